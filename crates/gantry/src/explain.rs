//! `gantry explain pod NAME`: what every filter and every score says of a pod on every node, by the scheduler's own
//! code over what the API shows now. A pod that is placed is looked at as if it were not.
//!
//! Deliberately not here: what was the case when the decision was made; that is in the pod's events.

use crate::config::Config;
use anyhow::{Context, Result, bail};
use client::remote::Remote;
use client::{ApiClient, ListOptions, Object};
use k8s_openapi::api::core::v1 as core;
use k8s_schema::{Gvr, gvr};
use sched::volumes::{Claim, Class, Volume};
use sched::{Explanation, NodeSpec, PodInfo, Snapshot, explain};
use std::fmt::Write;
use std::sync::Arc;

const CLASSES: Gvr = Gvr::new("storage.k8s.io", "v1", "storageclasses");
const DEVICES: [Gvr; 3] = [
    Gvr::new("resource.k8s.io", "v1", "resourceclaims"),
    Gvr::new("resource.k8s.io", "v1", "deviceclasses"),
    Gvr::new("resource.k8s.io", "v1", "resourceslices"),
];

/// Prints the table.
pub fn run(config: Config, words: &[String]) -> Result<()> {
    let (names, flags): (Vec<&String>, Vec<&String>) = words.iter().partition(|w| !w.starts_with("--"));
    let mut namespace = "default";
    for flag in flags {
        namespace =
            flag.strip_prefix("--namespace=").with_context(|| format!("{flag:?} is not understood"))?;
    }
    let [kind, name] = names[..] else { bail!("gantry explain pod NAME [--namespace N]") };
    if kind != "pod" {
        bail!("gantry explain {kind}: there is `gantry explain pod` only");
    }
    let path = config.kubeconfig();
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{}: run `gantry up` first", path.display()))?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = tokio.block_on(look(&text))?;
    print!("{}", told(&config, seen, namespace, name)?);
    Ok(())
}

/// What the API shows.
struct Seen {
    namespaces: Vec<Arc<Object>>,
    pods: Vec<Arc<Object>>,
    nodes: Vec<Arc<Object>>,
    claims: Vec<Arc<Object>>,
    volumes: Vec<Arc<Object>>,
    classes: Vec<Arc<Object>>,
    /// Claims, classes and slices of devices.
    devices: [Vec<Arc<Object>>; 3],
}

async fn look(kubeconfig: &str) -> Result<Seen> {
    let client: ApiClient = Arc::new(Remote::from_kubeconfig(kubeconfig).await?);
    let list = async |gvr: &Gvr| anyhow::Ok(client.list(gvr, &ListOptions::default()).await?.items);
    Ok(Seen {
        namespaces: list(&gvr::NAMESPACES).await.context("is `gantry up` running?")?,
        pods: list(&gvr::PODS).await?,
        nodes: list(&gvr::NODES).await?,
        claims: list(&gvr::PERSISTENT_VOLUME_CLAIMS).await?,
        volumes: list(&gvr::PERSISTENT_VOLUMES).await?,
        classes: list(&CLASSES).await?,
        devices: [list(&DEVICES[0]).await?, list(&DEVICES[1]).await?, list(&DEVICES[2]).await?],
    })
}

fn told(config: &Config, seen: Seen, namespace: &str, name: &str) -> Result<String> {
    let mut snapshot = Snapshot::default();
    snapshot.profiles = config.scheduler().profiles;
    for namespace in seen.namespaces {
        snapshot.set_namespace(&namespace.key.name, Some(namespace.meta().labels.clone()));
    }
    for node in seen.nodes {
        snapshot.set_node(NodeSpec::read(&*node.view::<core::Node>()?));
    }
    for claim in seen.claims {
        let claim = Claim::read(&claim.value()?);
        snapshot.volumes.claims.insert(claim.id.clone(), claim);
    }
    for volume in seen.volumes {
        let volume = Volume::read(&volume.value()?);
        snapshot.volumes.volumes.insert(volume.name.clone(), volume);
    }
    for class in seen.classes {
        snapshot.volumes.classes.insert(class.key.name.to_string(), Class::read(&class.value()?));
    }
    let [claims, classes, slices] = seen.devices;
    let inventory = &mut snapshot.volumes.devices;
    for object in claims {
        let id = (object.key.namespace.to_string(), object.key.name.to_string());
        inventory.put_claim(&id, Some(&object.value()?));
    }
    for object in classes {
        inventory.put_class(&object.key.name, Some(&object.value()?));
    }
    for object in slices {
        inventory.put_slice(&object.key.name, Some(&object.value()?));
    }
    let mut wanted = None;
    for object in seen.pods {
        let mut pod = core::Pod::clone(&*object.view::<core::Pod>()?);
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        let over = matches!(phase, Some("Succeeded" | "Failed"));
        let promised = pod.status.as_ref().and_then(|s| s.nominated_node_name.clone());
        let node = pod.spec.as_mut().and_then(|s| s.node_name.take()).filter(|n| !n.is_empty());
        let info = Arc::new(PodInfo::read(&pod).with_defaults(&snapshot.profiles));
        if &*object.key.namespace == namespace && &*object.key.name == name {
            wanted = Some((info, node));
        } else if let Some(node) = node.filter(|_| !over) {
            snapshot.place(&node, info);
        } else if let Some(node) = promised.filter(|n| !over && !n.is_empty()) {
            snapshot.nominate(&node, info);
        }
    }
    let (info, node) =
        wanted.with_context(|| format!("pods {name:?} not found in namespace {namespace:?}"))?;
    let place = node.map_or("waits".to_string(), |n| format!("is on {n}"));
    Ok(format!("pod {namespace}/{name} {place}\n{}", table(&explain(&snapshot, &info))))
}

/// Points of the nodes that are good, the best first; then the objections of the others.
fn table(told: &Explanation) -> String {
    let mut out = String::new();
    if !told.before.is_empty() {
        let _ = writeln!(out, "no node was asked: {}", told.before);
    }
    let good: Vec<_> = told.nodes.iter().filter(|v| v.objections.is_empty()).collect();
    let width = told.nodes.iter().map(|v| v.node.len()).max().unwrap_or(0).max(4);
    if !good.is_empty() {
        let _ = write!(out, "\n{:width$}  TOTAL", "NODE");
        told.scores.iter().for_each(|name| _ = write!(out, "  {name}"));
        out.push('\n');
        for verdict in good {
            let _ = write!(out, "{:width$}  {:>5}", verdict.node, verdict.points.iter().sum::<i64>());
            let columns = told.scores.iter().zip(&verdict.points);
            columns.for_each(|(name, points)| _ = write!(out, "  {points:>at$}", at = name.len()));
            out.push('\n');
        }
    }
    let mut objections = told.nodes.iter().filter(|v| !v.objections.is_empty()).peekable();
    if objections.peek().is_some() {
        let _ = writeln!(out, "\n{:width$}  FILTER: REASON", "NODE");
    }
    for verdict in objections {
        for (filter, reasons) in &verdict.objections {
            let _ = writeln!(out, "{:width$}  {filter}: {}", verdict.node, reasons.join(", "));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(value: Value) -> Arc<Object> {
        Arc::new(Object::parse(value.to_string().into()).unwrap())
    }

    #[test]
    fn a_waiting_and_a_placed_pod() {
        let node = |name: &str, cpu: &str| {
            object(json!({"metadata": {"name": name},
                "status": {"allocatable": {"cpu": cpu, "memory": "1Gi", "pods": "9"}}}))
        };
        let pod = |name: &str, node: &str, cpu: &str| {
            object(json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"nodeName": node,
                "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
        };
        let seen = || Seen {
            namespaces: Vec::new(),
            pods: vec![pod("a", "big", "2"), pod("b", "", "2")],
            nodes: vec![node("big", "3"), node("small", "1")],
            claims: vec![],
            volumes: vec![],
            classes: vec![],
            devices: Default::default(),
        };
        let text = told(&Config::default(), seen(), "n", "b").unwrap();
        let words =
            ["pod n/b waits", "", "NODE   FILTER: REASON", "big    NodeResourcesFit: Insufficient cpu"];
        assert_eq!(text.lines().take(4).collect::<Vec<_>>(), words, "{text}");
        let text = told(&Config::default(), seen(), "n", "a").unwrap();
        assert!(text.starts_with("pod n/a is on big\n\nNODE   TOTAL  TaintToleration"), "{text}");
        assert!(text.contains("\nbig  "), "its own place is free for it: {text}");
        assert!(told(&Config::default(), seen(), "n", "c").is_err());
    }
}
