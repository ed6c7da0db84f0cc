//! Ranges and addresses of services.
//!
//! A ServiceCIDR that is made gets a finalizer and is said to be ready; one that is to go is kept while an address would
//! be in no range without it. A service's address has an IPAddress (the API server makes it with the service); one that
//! is missing is made, one whose service is gone goes. Decisions ([`may_go`], [`is_orphan`]) are pure.
//! Deliberately not here: giving addresses (`apiserver`).

use crate::context::{Context, Outcome, Reconcile, enqueue, enqueue_self, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_schema::gvr::{IP_ADDRESSES, SERVICE_CIDRS, SERVICES};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// How long a range that goes is kept, so that no server gives addresses from it any more.
const GOING: Duration = Duration::from_secs(10);
/// An address whose service is not there yet may be waiting for it.
const YOUNG: Duration = Duration::from_secs(60);

/// An IPv4 range: network and mask.
type Range = (u32, u32);

fn range(text: &str) -> Option<Range> {
    let (network, length) = text.split_once('/')?;
    let (network, length): (Ipv4Addr, u32) = (network.parse().ok()?, length.parse().ok()?);
    let mask = u32::MAX.checked_shl(32_u32.checked_sub(length)?).unwrap_or(0);
    Some((u32::from(network) & mask, mask))
}

fn ranges(cidr: &ServiceCIDR) -> Vec<Range> {
    let texts = cidr.spec.iter().flat_map(|s| s.cidrs.iter().flatten());
    texts.filter_map(|text| range(text)).collect()
}

fn holds(range: Range, ip: u32) -> bool {
    ip & range.1 == range.0
}

/// May these ranges go, while the others and these addresses are there? They may when a larger one of the others has
/// all of them, or no address is in them alone.
fn may_go(own: &[Range], others: &[Range], addresses: &[u32]) -> bool {
    let within = |o: &Range| others.iter().any(|other| holds(*other, o.0) && other.1 <= o.1);
    let needed = |ip: &u32| own.iter().any(|o| holds(*o, *ip)) && !others.iter().any(|o| holds(*o, *ip));
    own.iter().all(within) || !addresses.iter().any(needed)
}

/// These kinds have no views that are shared.
fn read<T: DeserializeOwned>(object: &Object) -> Option<T> {
    serde_json::from_slice(&object.raw).ok()
}

/// Is an address kept for a service that has it no more?
fn is_orphan(address: &IPAddress, service: Option<&Service>) -> bool {
    let name = address.metadata.name.as_deref();
    let has = service.and_then(|s| s.spec.as_ref()).and_then(|s| s.cluster_ip.as_deref());
    has.is_none() || has != name
}

/// Where an address says that its service is; `None` where that is none.
fn parent(address: &IPAddress) -> Option<ObjectKey> {
    let parent = &address.spec.parent_ref;
    let of_service = parent.group.as_deref().unwrap_or_default().is_empty() && parent.resource == "services";
    of_service.then(|| ObjectKey::new(parent.namespace.clone().unwrap_or_default(), parent.name.as_str()))
}

fn is_managed(address: &Object) -> bool {
    address.meta().labels.get(MANAGED_BY).is_some_and(|by| by == ALLOCATOR)
}

#[derive(Clone)]
struct Shared {
    context: Context,
    ranges: Arc<Cache>,
    addresses: Arc<Cache>,
    services: Arc<Cache>,
}

struct Ranges(Shared);
struct Addresses(Shared);
struct Services(Shared);

/// Starts all three.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let of = |gvr| context.informers.of(gvr);
    let (ranges, addresses, services) = (of(&SERVICE_CIDRS), of(&IP_ADDRESSES), of(&SERVICES));
    let caches = vec![ranges.clone(), addresses.clone(), services.clone()];
    let queues: [Arc<Queue<ObjectKey>>; 3] = std::array::from_fn(|_| Arc::default());
    let [of_ranges, of_addresses, of_services] = queues;
    enqueue_self(&ranges, &of_ranges);
    // A range that goes waits for addresses and for other ranges.
    for cause in [&ranges, &addresses] {
        let all = ranges.clone();
        let going = move |_: &Object| {
            let all = all.list().into_iter().filter(|r| r.meta().deletion_timestamp.is_some());
            all.map(|r| r.key.clone()).collect()
        };
        enqueue(cause, &of_ranges, going);
    }
    enqueue_self(&addresses, &of_addresses);
    enqueue_self(&services, &of_services);
    enqueue(&addresses, &of_services, |address| {
        read(address).and_then(|a: IPAddress| parent(&a)).into_iter().collect()
    });
    let shared = Shared { context: context.clone(), ranges, addresses, services };
    let mut tasks = run("service-cidr", caches.clone(), of_ranges, 1, Arc::new(Ranges(shared.clone())));
    tasks.extend(run("ipaddresses", caches.clone(), of_addresses, 1, Arc::new(Addresses(shared.clone()))));
    tasks.extend(run("ipallocator-repair", caches, of_services, 1, Arc::new(Services(shared))));
    tasks
}

impl Ranges {
    /// Says whether the range is ready, where it does not say so already.
    async fn say(&self, object: &Object, cidr: &ServiceCIDR, ready: bool) -> Outcome {
        let (status, reason, message) = match ready {
            true => ("True", "", "Kubernetes Service CIDR is ready"),
            false => (
                "False",
                "Terminating",
                "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
            ),
        };
        let mut conditions = cidr.status.iter().flat_map(|s| s.conditions.iter().flatten());
        if conditions.any(|c| c.type_ == "Ready" && c.status == status) {
            return Ok(None);
        }
        let now = machinery::time::format(self.0.context.now());
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": status, "reason": reason,
            "message": message, "lastTransitionTime": now}]}});
        let client = &self.0.context.client;
        self.0.ranges.observe(client.merge_patch_status(&SERVICE_CIDRS, &object.key, patch).await?);
        Ok(None)
    }

    async fn set_finalizers(&self, object: &Object, finalizers: Vec<String>) -> Outcome {
        let patch =
            json!({"metadata": {"finalizers": finalizers, "resourceVersion": object.revision.to_string()}});
        match self.0.context.client.merge_patch(&SERVICE_CIDRS, &object.key, patch).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(None),
        }
    }
}

#[async_trait]
impl Reconcile for Ranges {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(object) = self.0.ranges.get(key) else { return Ok(None) };
        let Some(cidr) = read::<ServiceCIDR>(&object) else { return Ok(None) };
        let mut finalizers = object.meta().finalizers.clone();
        let kept = finalizers.iter().any(|f| f == FINALIZER);
        let Some(since) = &object.meta().deletion_timestamp else {
            if !kept {
                finalizers.push(FINALIZER.into());
                self.set_finalizers(&object, finalizers).await?;
            }
            return self.say(&object, &cidr, true).await;
        };
        let others = self.0.ranges.list().into_iter().filter(|o| o.key != *key);
        let others: Vec<Range> =
            others.filter_map(|o| read(&o)).flat_map(|c: ServiceCIDR| ranges(&c)).collect();
        let held = self.0.addresses.list().into_iter().filter(|a| is_managed(a));
        let held: Vec<u32> =
            held.filter_map(|a| a.key.name.parse::<Ipv4Addr>().ok()).map(u32::from).collect();
        if !may_go(&ranges(&cidr), &others, &held) {
            return self.say(&object, &cidr, false).await;
        }
        let begun = machinery::time::parse(since).unwrap_or_default();
        let left = GOING.saturating_sub(machinery::time::since(self.0.context.now(), begun));
        if !left.is_zero() {
            return Ok(Some(left));
        }
        finalizers.retain(|f| f != FINALIZER);
        if kept { self.set_finalizers(&object, finalizers).await } else { Ok(None) }
    }
}

#[async_trait]
impl Reconcile for Addresses {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(object) = self.0.addresses.get(key).filter(|a| is_managed(a)) else { return Ok(None) };
        let Some(address) = read::<IPAddress>(&object) else { return Ok(None) };
        let service = parent(&address).and_then(|place| self.0.services.view::<Service>(&place));
        if !is_orphan(&address, service.as_deref()) {
            return Ok(None);
        }
        let made = object.meta().creation_timestamp.as_deref();
        let made = made.and_then(|t| machinery::time::parse(t).ok()).unwrap_or_default();
        let left = YOUNG.saturating_sub(machinery::time::since(self.0.context.now(), made));
        if !left.is_zero() {
            return Ok(Some(left));
        }
        let options =
            DeleteOptions { resource_version: Some(object.revision.to_string()), ..DeleteOptions::default() };
        match self.0.context.client.delete(&IP_ADDRESSES, key, options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(None),
        }
    }
}

#[async_trait]
impl Reconcile for Services {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(service) = self.0.services.view::<Service>(key) else { return Ok(None) };
        let ip = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).unwrap_or_default();
        if ip.parse::<Ipv4Addr>().is_err() || self.0.addresses.get(&ObjectKey::cluster(ip)).is_some() {
            return Ok(None);
        }
        let body = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": {"name": ip, "labels": {MANAGED_BY: ALLOCATOR, "ipaddress.kubernetes.io/ip-family": "IPv4"}},
            "spec": {"parentRef": {"group": "", "resource": "services", "namespace": &*key.namespace, "name": &*key.name}}});
        match self.0.context.client.create(&IP_ADDRESSES, body).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;

    #[test]
    fn a_range_stays_while_an_address_needs_it() {
        let of = |text: &str| range(text).unwrap();
        let ip = |text: &str| u32::from(text.parse::<Ipv4Addr>().unwrap());
        let (small, large) = (of("10.0.1.0/24"), of("10.0.0.0/16"));
        assert!(may_go(&[small], &[], &[]));
        assert!(!may_go(&[small], &[], &[ip("10.0.1.7")]));
        assert!(may_go(&[small], &[], &[ip("10.0.2.7")]));
        assert!(may_go(&[small], &[large], &[ip("10.0.1.7")]), "the larger one has it too");
        assert!(!may_go(&[large], &[small], &[ip("10.0.1.7"), ip("10.0.2.7")]));
        assert!(may_go(&[large], &[small], &[ip("10.0.1.7")]));
        assert!(may_go(&[small], &[small], &[ip("10.0.1.7")]), "another has the same");
        assert_eq!(range("10.0.0.0/33"), None);
    }

    #[test]
    fn an_address_without_its_service_is_an_orphan() {
        let address = object(json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"group": "",
            "resource": "services", "namespace": "n", "name": "s"}}}));
        let address: IPAddress = read(&address).unwrap();
        assert_eq!(parent(&address), Some(ObjectKey::new("n", "s")));
        let service = |ip: &str| {
            object(json!({"metadata": {"name": "s"}, "spec": {"clusterIP": ip}})).view::<Service>().unwrap()
        };
        assert!(is_orphan(&address, None) && is_orphan(&address, Some(&service("10.0.0.2"))));
        assert!(
            is_orphan(&address, Some(&service("None"))) && !is_orphan(&address, Some(&service("10.0.0.1")))
        );
    }
}
