//! Claims, classes and slices of devices, read once from the API's JSON.

use crate::model::{NodeSpec, Taint};
use crate::terms::NodeTerm;
use k8s_openapi::api::core::v1 as core;
use machinery::cel;
use machinery::cel::devices::Selector;
use machinery::quantity::Quantity;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Driver, pool and name of a device.
pub type DeviceId = (Arc<str>, Arc<str>, Arc<str>);
/// Driver and name of a pool.
pub type PoolId = (Arc<str>, Arc<str>);
/// Amounts by name.
pub type Amounts = BTreeMap<String, Quantity>;
/// Amounts by counter set and counter.
pub type Counters = BTreeMap<(String, String), Quantity>;
/// Namespace and name of a claim.
pub type ClaimId = (String, String);
/// Expressions, compiled or with the reason why not.
pub type Selectors = Vec<Result<Selector, String>>;

/// On claims that the scheduler makes for extended resources.
pub const EXTENDED: &str = "resource.kubernetes.io/extended-resource-claim";

pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

pub(super) fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn texts(value: &Value, key: &str) -> Vec<String> {
    list(value, key).filter_map(Value::as_str).map(str::to_string).collect()
}

fn quantity(value: &Value) -> Option<Quantity> {
    Quantity::from_json(value).and_then(Result::ok)
}

fn amounts(value: &Value) -> Amounts {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(name, v)| Some((name.clone(), quantity(v)?))).collect()
}

/// Where devices are.
#[derive(Clone, Debug)]
pub enum Place {
    /// On one node.
    Node(String),
    /// Everywhere.
    All,
    /// On nodes that a selector chooses; as the API has it.
    Chosen(Vec<NodeTerm>, Value),
    /// Each device says it.
    Each,
    /// In no way that is known here.
    Unknown,
}

impl Place {
    fn read(spec: &Value) -> Place {
        let selector = &spec["nodeSelector"];
        match spec["nodeName"].as_str().filter(|n| !n.is_empty()) {
            Some(node) => Place::Node(node.into()),
            None if spec["allNodes"] == true => Place::All,
            None if selector.is_object() => Place::Chosen(terms(selector), selector.clone()),
            None if spec["perDeviceNodeSelection"] == true => Place::Each,
            None => Place::Unknown,
        }
    }

    /// Is that on the node?
    pub fn reaches(&self, node: &NodeSpec) -> bool {
        match self {
            Place::Node(name) => *name == node.name,
            Place::All => true,
            Place::Chosen(terms, _) => terms.iter().any(|t| t.matches(&node.name, &node.labels)),
            Place::Each | Place::Unknown => false,
        }
    }
}

/// The terms of a `NodeSelector`.
fn terms(selector: &Value) -> Vec<NodeTerm> {
    let read = |t: &Value| serde_json::from_value::<core::NodeSelectorTerm>(t.clone()).ok();
    list(selector, "nodeSelectorTerms").filter_map(read).filter_map(|t| NodeTerm::read(&t)).collect()
}

/// How much of a capacity a request may take.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub default: Option<Quantity>,
    pub values: Vec<Quantity>,
    pub min: Option<Quantity>,
    pub max: Option<Quantity>,
    pub step: Option<Quantity>,
}

/// A capacity of a device.
#[derive(Clone, Debug)]
pub struct Capacity {
    pub value: Quantity,
    pub policy: Option<Policy>,
}

impl Capacity {
    fn read(value: &Value) -> Option<Capacity> {
        let policy = &value["requestPolicy"];
        let range = &policy["validRange"];
        let policy = policy.is_object().then(|| Policy {
            default: quantity(&policy["default"]),
            values: list(policy, "validValues").filter_map(quantity).collect(),
            min: quantity(&range["min"]),
            max: quantity(&range["max"]),
            step: quantity(&range["step"]),
        });
        Some(Capacity { value: quantity(&value["value"])?, policy })
    }
}

/// A device.
#[derive(Clone, Debug)]
pub struct Device {
    pub name: Arc<str>,
    /// For selectors.
    pub value: Result<cel::Value, String>,
    pub attributes: Value,
    pub capacity: BTreeMap<String, Capacity>,
    pub taints: Vec<Taint>,
    pub consumes: Counters,
    pub place: Place,
    /// May several claims have a part of it?
    pub multiple: bool,
    pub binds_to_node: bool,
    /// Conditions that must hold, and such that must not, before a pod is bound.
    pub conditions: [Value; 2],
}

impl Device {
    fn read(driver: &str, device: &Value) -> Device {
        let capacity = device["capacity"].as_object().into_iter().flatten();
        let taint = |t: &Value| Taint {
            key: text(t, "key").into(),
            value: text(t, "value").into(),
            effect: text(t, "effect").into(),
        };
        Device {
            name: text(device, "name").into(),
            value: cel::devices::value(driver, device),
            attributes: device["attributes"].clone(),
            capacity: capacity.filter_map(|(name, c)| Some((name.clone(), Capacity::read(c)?))).collect(),
            taints: list(device, "taints").map(taint).collect(),
            consumes: list(device, "consumesCounters").flat_map(|c| counters(c, "counterSet")).collect(),
            place: Place::read(device),
            multiple: device["allowMultipleAllocations"] == true,
            binds_to_node: device["bindsToNode"] == true,
            conditions: ["bindingConditions", "bindingFailureConditions"].map(|k| device[k].clone()),
        }
    }

    /// An attribute by its full name (`domain/name`).
    pub fn attribute(&self, driver: &str, full: &str) -> Option<&Value> {
        let own = || full.split_once('/').filter(|(domain, _)| *domain == driver).map(|(_, name)| name);
        self.attributes.get(full).or_else(|| self.attributes.get(own()?))
    }
}

fn counters(value: &Value, set: &str) -> Vec<((String, String), Quantity)> {
    let set = text(value, set);
    let all = value["counters"].as_object().into_iter().flatten();
    all.filter_map(|(name, c)| Some(((set.to_string(), name.clone()), quantity(&c["value"])?))).collect()
}

/// A slice of a pool.
#[derive(Clone, Debug)]
pub struct Slice {
    pub pool: PoolId,
    pub generation: i64,
    /// How many slices of this generation the pool has.
    pub count: i64,
    pub place: Place,
    pub devices: Vec<Device>,
    pub counters: Counters,
}

impl Slice {
    /// Reads a ResourceSlice.
    pub fn read(object: &Value) -> Slice {
        let spec = &object["spec"];
        let (driver, pool) = (text(spec, "driver"), &spec["pool"]);
        Slice {
            pool: (driver.into(), text(pool, "name").into()),
            generation: pool["generation"].as_i64().unwrap_or(0),
            count: pool["resourceSliceCount"].as_i64().unwrap_or(0),
            place: Place::read(spec),
            devices: list(spec, "devices").map(|d| Device::read(driver, d)).collect(),
            counters: list(spec, "sharedCounters").flat_map(|s| counters(s, "name")).collect(),
        }
    }

    /// Has the node something of it?
    pub fn reaches(&self, node: &NodeSpec) -> bool {
        match self.place {
            Place::Each => self.devices.iter().any(|d| d.place.reaches(node)),
            _ => self.place.reaches(node),
        }
    }
}

fn selectors(value: &Value) -> Selectors {
    list(value, "selectors").map(|s| Selector::compile(text(&s["cel"], "expression"))).collect()
}

/// A class.
#[derive(Clone, Debug)]
pub struct Class {
    pub name: String,
    pub selectors: Selectors,
    pub config: Vec<Value>,
    /// The extended resource that stands for it.
    pub extended: Option<String>,
    /// The newest class of several stands for a resource.
    pub created: String,
}

impl Class {
    /// Reads a DeviceClass.
    pub fn read(object: &Value) -> Class {
        let spec = &object["spec"];
        Class {
            name: text(&object["metadata"], "name").into(),
            selectors: selectors(spec),
            config: list(spec, "config").cloned().collect(),
            extended: spec["extendedResourceName"].as_str().map(str::to_string),
            created: text(&object["metadata"], "creationTimestamp").into(),
        }
    }
}

/// One way to fulfil a request.
#[derive(Clone, Debug)]
pub struct Exact {
    /// "" for the only one.
    pub name: String,
    pub class: String,
    pub selectors: Selectors,
    /// Every device that suits; `None`: not known here how many.
    pub all: Option<bool>,
    pub count: usize,
    pub admin: bool,
    pub tolerations: Vec<core::Toleration>,
    /// The same as the API has them.
    pub written: Value,
    pub capacity: Amounts,
}

impl Exact {
    fn read(request: &Value) -> Exact {
        let written = request["tolerations"].clone();
        Exact {
            name: text(request, "name").into(),
            class: text(request, "deviceClassName").into(),
            selectors: selectors(request),
            all: match text(request, "allocationMode") {
                "All" => Some(true),
                "ExactCount" | "" => Some(false),
                _ => None,
            },
            count: request["count"].as_u64().map_or(1, |n| usize::try_from(n).unwrap_or(usize::MAX)),
            admin: request["adminAccess"] == true,
            tolerations: serde_json::from_value(written.clone()).unwrap_or_default(),
            written,
            capacity: amounts(&request["capacity"]["requests"]),
        }
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    pub name: String,
    /// Ways to fulfil it, the best first.
    pub ways: Vec<Exact>,
    /// Is it a list of alternatives, so that results name the way?
    pub listed: bool,
}

impl Request {
    fn read(request: &Value) -> Request {
        let ways: Vec<Exact> = list(request, "firstAvailable").map(Exact::read).collect();
        let name = text(request, "name").to_string();
        match ways.is_empty() {
            true => {
                let only = Exact { name: String::new(), ..Exact::read(&request["exactly"]) };
                Request { name, ways: vec![only], listed: false }
            }
            false => Request { name, ways, listed: true },
        }
    }

    /// The name that results have.
    pub fn full_name(&self, way: usize) -> String {
        if self.listed { format!("{}/{}", self.name, self.ways[way].name) } else { self.name.clone() }
    }
}

/// What holds for the devices of several requests together.
#[derive(Clone, Debug)]
pub struct Constraint {
    /// Empty: all.
    pub requests: BTreeSet<String>,
    pub attribute: String,
    /// Must the values differ? Else they must be equal.
    pub distinct: bool,
}

impl Constraint {
    fn read(value: &Value) -> Constraint {
        let (same, distinct) = (value["matchAttribute"].as_str(), value["distinctAttribute"].as_str());
        Constraint {
            requests: texts(value, "requests").into_iter().collect(),
            attribute: same.or(distinct).unwrap_or_default().into(),
            distinct: same.is_none(),
        }
    }

    /// Is it about this request?
    pub fn covers(&self, request: &Request, way: usize) -> bool {
        self.requests.is_empty()
            || self.requests.contains(&request.name)
            || self.requests.contains(&request.full_name(way))
    }
}

/// A device, or a part of it, that a claim has.
#[derive(Clone, Debug)]
pub struct Given {
    pub device: DeviceId,
    pub admin: bool,
    /// A part: these amounts of it.
    pub part: Option<Amounts>,
    /// The request that it fulfils.
    pub request: String,
    pub tolerations: Vec<core::Toleration>,
}

/// What a claim has.
#[derive(Clone, Debug, Default)]
pub struct Allocation {
    pub given: Vec<Given>,
    /// Nodes that reach it; `None`: all.
    pub nodes: Option<Vec<NodeTerm>>,
}

impl Allocation {
    /// Reads an `AllocationResult`.
    pub fn read(value: &Value) -> Allocation {
        let given = |r: &Value| Given {
            device: (text(r, "driver").into(), text(r, "pool").into(), text(r, "device").into()),
            admin: r["adminAccess"] == true,
            part: r["shareID"].is_string().then(|| amounts(&r["consumedCapacity"])),
            request: text(r, "request").into(),
            tolerations: serde_json::from_value(r["tolerations"].clone()).unwrap_or_default(),
        };
        let selector = value.get("nodeSelector").filter(|s| s.is_object());
        Allocation {
            given: list(&value["devices"], "results").map(given).collect(),
            nodes: selector.map(terms),
        }
    }

    /// Does the node reach it?
    pub fn reaches(&self, node: &NodeSpec) -> bool {
        self.nodes.as_ref().is_none_or(|t| t.iter().any(|t| t.matches(&node.name, &node.labels)))
    }
}

/// A claim.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    pub id: ClaimId,
    pub requests: Vec<Request>,
    pub constraints: Vec<Constraint>,
    pub config: Vec<Value>,
    pub allocation: Option<Allocation>,
    /// UIDs of those who use it.
    pub reserved: Vec<String>,
    pub deleting: bool,
    /// UID of the pod that it was made for.
    pub pod: Option<String>,
    /// Was it made for a pod's extended resources?
    pub extended: bool,
}

impl Claim {
    /// Reads a ResourceClaim.
    pub fn read(object: &Value) -> Claim {
        let (meta, status) = (&object["metadata"], &object["status"]);
        let devices = &object["spec"]["devices"];
        let mut owners =
            list(meta, "ownerReferences").filter(|o| o["kind"] == "Pod" && o["controller"] == true);
        Claim {
            id: (text(meta, "namespace").into(), text(meta, "name").into()),
            requests: list(devices, "requests").map(Request::read).collect(),
            constraints: list(devices, "constraints").map(Constraint::read).collect(),
            config: list(devices, "config").cloned().collect(),
            allocation: status["allocation"].is_object().then(|| Allocation::read(&status["allocation"])),
            reserved: list(status, "reservedFor").map(|r| text(r, "uid").into()).collect(),
            deleting: !meta["deletionTimestamp"].is_null(),
            pod: owners.next().map(|o| text(o, "uid").into()),
            extended: meta["annotations"][EXTENDED] == "true",
        }
    }
}
