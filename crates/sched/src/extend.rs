//! Extenders: servers outside that have a say in filtering, rating, preempting and binding (`extender/v1`). What the file
//! says of them, the documents they are sent, and what their answers come to.
//!
//! A pod that an extender is interested in is decided for in several steps: the decision is a [`Question`], and when the
//! answer is there ([`Advice`]) the decision is made anew with it. Keys of answers are read in any case, as Go reads
//! them. Deliberately not here: the calls (`controllers`, `gantry`).

use crate::model::PodInfo;
use crate::preempt::Victims;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What an extender's points count at most; a score of ours counts ten times as much (as upstream).
const SCALE: i64 = 100 / 10;
/// How long an extender has, unless the file says (as upstream).
const TIMEOUT: &str = "5s";
/// The plug-in name that its refusals are noted under (as upstream).
pub const NAME: &str = "Extender";

/// One extender, as the file has it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Extender {
    /// Where it is; verbs are put behind it.
    pub url_prefix: String,
    /// Path of its filter; "": it does not filter. So for the others.
    pub filter_verb: String,
    /// Path of its rating.
    pub prioritize_verb: String,
    /// Path of its say in preemption.
    pub preempt_verb: String,
    /// Path of its binding, in place of ours.
    pub bind_verb: String,
    weight: i64,
    #[serde(rename = "enableHTTPS")]
    enable_https: bool,
    tls_config: Tls,
    http_timeout: Option<String>,
    node_cache_capable: bool,
    managed_resources: Vec<Managed>,
    /// Does scheduling go on without it when it fails?
    pub ignorable: bool,
    /// How long it has.
    #[serde(skip)]
    pub timeout: Duration,
}

/// How its certificate is checked, and what it is shown.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Tls {
    /// Is its certificate not checked?
    pub insecure: bool,
    /// Who it must be, if not the URL's host.
    pub server_name: String,
    /// Files with PEM.
    pub cert_file: String,
    /// The key's.
    pub key_file: String,
    /// The authority's.
    pub ca_file: String,
    /// The same in base64; these go before the files.
    pub cert_data: String,
    /// The key's.
    pub key_data: String,
    /// The authority's.
    pub ca_data: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Managed {
    name: String,
    ignored_by_scheduler: bool,
}

/// `1m30s` and the like.
fn go_duration(text: &str) -> Option<Duration> {
    machinery::cel::duration(text).and_then(|d| Duration::try_from(d).ok())
}

impl Extender {
    /// Checks the list of a file, in upstream's words.
    pub(crate) fn check(all: &mut [Extender]) -> Result<(), String> {
        let mut managed = BTreeSet::new();
        let mut binders = 0;
        for (i, extender) in all.iter_mut().enumerate() {
            let at = format!("extenders[{i}]");
            if extender.url_prefix.is_empty() {
                return Err(format!("{at}.urlPrefix: Required value"));
            }
            if !extender.prioritize_verb.is_empty() && extender.weight <= 0 {
                return Err(format!(
                    "{at}.weight: Invalid value: {}: must have a positive weight applied to it",
                    extender.weight
                ));
            }
            let given = extender.http_timeout.as_deref().filter(|t| !t.is_empty() && *t != "0s");
            let given = given.unwrap_or(TIMEOUT);
            extender.timeout = go_duration(given)
                .ok_or(format!("{at}.httpTimeout: Invalid value: {given:?}: no duration"))?;
            binders += usize::from(!extender.bind_verb.is_empty());
            for resource in &extender.managed_resources {
                let words = machinery::name::qualified_name(&resource.name);
                if let Some(why) = words.first() {
                    return Err(format!("{at}.managedResources: Invalid value: {:?}: {why}", resource.name));
                }
                if !resource.name.contains('/') || resource.name.contains("kubernetes.io/") {
                    return Err(format!(
                        "{at}.managedResources: Invalid value: {:?}: name is an invalid extended resource name",
                        resource.name
                    ));
                }
                if !managed.insert(resource.name.clone()) {
                    return Err(format!(
                        "{at}.managedResources: Invalid value: {:?}: duplicate extender managed resource name",
                        resource.name
                    ));
                }
            }
        }
        match binders {
            0 | 1 => Ok(()),
            n => Err(format!(
                "extenders: Invalid value: \"found {n} extenders implementing bind\": only one extender can implement bind"
            )),
        }
    }

    /// Resources that our own filter leaves to it.
    pub(crate) fn ignored(&self) -> impl Iterator<Item = &String> {
        self.managed_resources.iter().filter(|r| r.ignored_by_scheduler).map(|r| &r.name)
    }

    /// Is the pod its business?
    pub fn is_interested(&self, pod: &PodInfo) -> bool {
        self.managed_resources.is_empty()
            || self.managed_resources.iter().any(|r| pod.requests.extended.contains_key(&r.name))
    }

    /// Does it filter or rate nodes for this pod?
    pub(crate) fn judges(&self, pod: &PodInfo) -> bool {
        self.is_interested(pod) && !(self.filter_verb.is_empty() && self.prioritize_verb.is_empty())
    }

    /// Where a verb of it is.
    pub fn url(&self, verb: &str) -> String {
        format!("{}/{verb}", self.url_prefix.trim_end_matches('/'))
    }

    /// How it is spoken to where its URL is https.
    pub fn tls(&self) -> Tls {
        let mut tls = self.tls_config.clone();
        tls.insecure |= self.enable_https && tls.ca_file.is_empty() && tls.ca_data.is_empty();
        tls
    }

    /// What it is asked when it filters or rates; `node` yields a node's object.
    pub fn about_nodes(&self, pod: &Value, advice: &Advice, node: impl Fn(&str) -> Value) -> Value {
        let names = advice.nodes.keys();
        match self.node_cache_capable {
            true => json!({"Pod": pod, "Nodes": null, "NodeNames": names.collect::<Vec<_>>()}),
            false => {
                let items: Vec<Value> = names.map(|n| node(n)).collect();
                json!({"Pod": pod, "Nodes": {"metadata": {}, "items": items}, "NodeNames": null})
            }
        }
    }

    /// What it is asked when it has a say in preemption; `of` yields a pod's object.
    pub fn about_victims(&self, pod: &Value, victims: &Candidates, of: impl Fn(&PodInfo) -> Value) -> Value {
        let each = |(pods, violations): &Victims| {
            let listed = |p: &PodInfo| if self.node_cache_capable { json!({"UID": p.uid}) } else { of(p) };
            let pods: Vec<Value> = pods.iter().map(|p| listed(p)).collect();
            json!({"Pods": pods, "NumPDBViolations": violations})
        };
        let map: serde_json::Map<String, Value> = victims.iter().map(|(n, v)| (n.clone(), each(v))).collect();
        let key = if self.node_cache_capable { "NodeNameToMetaVictims" } else { "NodeNameToVictims" };
        json!({"Pod": pod, key: map})
    }

    /// What it is asked when it binds.
    pub fn about_binding(pod: &PodInfo, node: &str) -> Value {
        let (namespace, name) = pod.id.clone().unwrap_or_default();
        json!({"PodName": &*name, "PodNamespace": &*namespace, "PodUID": pod.uid, "Node": node})
    }
}

/// Nodes that victims would leave, with them and the number of budgets that break.
pub type Candidates = BTreeMap<String, Victims>;

/// What extenders are to be asked about a pod.
#[derive(Clone, Debug)]
pub enum Question {
    /// Which of these nodes.
    Nodes(Vec<String>),
    /// Which of these victims; in which domain, "" where that is open.
    Victims(String, Candidates),
}

/// What extenders said of a pod.
#[derive(Clone, Debug, Default)]
pub struct Advice {
    /// The nodes that are left, with the points that they got.
    pub nodes: BTreeMap<String, i64>,
    /// Those that were refused: why ("": they did not say), and could an eviction help?
    pub(crate) refused: BTreeMap<String, (String, bool)>,
    /// Whom they let go, by the domain that was asked about.
    pub(crate) victims: BTreeMap<String, Candidates>,
}

/// A field of an answer, whatever the case of its name.
fn field<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let fields = answer.as_object().into_iter().flatten();
    fields.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or(&Value::Null, |(_, v)| v)
}

/// Did the extender say that it failed?
pub fn failed(answer: &Value) -> Result<(), String> {
    match field(answer, "Error").as_str() {
        None | Some("") => Ok(()),
        Some(error) => Err(error.to_string()),
    }
}

impl Advice {
    /// Nobody was asked yet.
    pub fn begin(nodes: Vec<String>) -> Advice {
        Advice { nodes: nodes.into_iter().map(|n| (n, 0)).collect(), ..Advice::default() }
    }

    /// They let these victims go.
    pub fn of_victims(place: String, victims: Candidates) -> Advice {
        Advice { victims: [(place, victims)].into(), ..Advice::default() }
    }

    /// Takes up what was said later.
    pub fn extend(&mut self, later: Advice) {
        self.nodes.extend(later.nodes);
        self.refused.extend(later.refused);
        self.victims.extend(later.victims);
    }

    /// An answer to a filter's question.
    ///
    /// # Errors
    /// What is wrong with it; nothing has changed then.
    pub fn filtered(&mut self, by: &Extender, answer: &Value) -> Result<(), String> {
        failed(answer)?;
        let names = field(answer, "NodeNames").as_array().filter(|_| by.node_cache_capable);
        let items = field(field(answer, "Nodes"), "items").as_array();
        let left: BTreeSet<&str> = match (names, items) {
            (Some(names), _) => names.iter().filter_map(Value::as_str).collect(),
            (None, Some(items)) => items.iter().filter_map(|n| n["metadata"]["name"].as_str()).collect(),
            (None, None) => BTreeSet::new(),
        };
        if let Some(stranger) = left.iter().find(|n| !self.nodes.contains_key(**n)) {
            return Err(format!(
                "extender {:?} claims a filtered node {stranger:?} which is not found in the input node list",
                by.url_prefix
            ));
        }
        let refused = self.nodes.extract_if(.., |name, _| !left.contains(name.as_str()));
        self.refused.extend(refused.map(|(name, _)| (name, (String::new(), false))));
        for (key, helpable) in [("FailedNodes", true), ("FailedAndUnresolvableNodes", false)] {
            for (node, why) in field(answer, key).as_object().into_iter().flatten() {
                let why = why.as_str().unwrap_or_default().to_string();
                self.refused.insert(node.clone(), (why, helpable));
            }
        }
        Ok(())
    }

    /// An answer to a rating's question.
    pub fn rated(&mut self, by: &Extender, answer: &Value) {
        for entry in answer.as_array().into_iter().flatten() {
            let (host, score) = (field(entry, "Host").as_str(), field(entry, "Score").as_i64());
            if let (Some(points), Some(score)) = (host.and_then(|h| self.nodes.get_mut(h)), score) {
                *points = points.saturating_add(score.saturating_mul(by.weight).saturating_mul(SCALE));
            }
        }
    }

    /// An answer to a question about victims, of whom there were these.
    ///
    /// # Errors
    /// A pod that is not there.
    pub fn spared(by: &Extender, asked: &Candidates, answer: &Value) -> Result<Candidates, String> {
        let mut left = Candidates::new();
        for (node, victims) in field(answer, "NodeNameToMetaVictims").as_object().into_iter().flatten() {
            let known = asked.get(node).map(|(pods, _)| pods).into_iter().flatten();
            let by_uid: BTreeMap<&str, _> = known.map(|p| (p.uid.as_str(), p)).collect();
            let mut pods = Vec::new();
            for pod in field(victims, "Pods").as_array().into_iter().flatten() {
                let uid = field(pod, "UID").as_str().unwrap_or_default();
                let found = by_uid.get(uid).ok_or_else(|| {
                    format!(
                        "extender: {} claims to preempt pod (UID: {uid}) on node: {node}, but the pod is not found on that node",
                        by.url_prefix
                    )
                })?;
                pods.push((*found).clone());
            }
            let violations = field(victims, "NumPDBViolations").as_u64().unwrap_or(0);
            left.insert(node.clone(), (pods, usize::try_from(violations).unwrap_or(usize::MAX)));
        }
        Ok(left)
    }
}

#[cfg(test)]
mod tests;
