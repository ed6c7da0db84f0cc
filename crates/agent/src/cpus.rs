//! CPUs of their own for containers that ask for whole ones (the kubelet's static policy).
//!
//! A container of a Guaranteed pod whose CPU request is a whole number gets CPUs that no other container may use;
//! everything else shares the rest. What a pod has is decided when it is let in, written down before it starts and its
//! own until it is over. [`Books`] decides; the rest acts. Reserved CPUs are never given away.
//! Deliberately not here: alignment to NUMA nodes, keeping the host's own processes off these CPUs.

use crate::csi::Place;
use crate::devices::write_checkpoint;
use crate::ops::{Node, blocking};
use crate::pod::{PodView, Qos, Role};
use machinery::quantity::Quantity;
use parking_lot::Mutex;
use runtime::api::ContainerState;
use runtime::oci;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// CPUs by number.
pub type Set = BTreeSet<u32>;

/// The file of who has which.
const CHECKPOINT: &str = "gantry_cpus.json";
const SYS: &str = "/sys/devices/system/cpu";

/// What the node is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Are CPUs given to containers alone?
    pub exclusive: bool,
    /// Never to be given away.
    pub reserved: Set,
}

/// Reads `0-2,5`; `None`: it is no such list.
pub fn parse(text: &str) -> Option<Set> {
    let mut all = Set::new();
    for part in text.trim().split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?);
    }
    Some(all)
}

/// Writes the same.
fn shown(set: &Set) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for cpu in set {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => parts.push((*cpu, *cpu)),
        }
    }
    let part = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

/// Who has which CPUs, by pod (UID) and container.
type Grants = BTreeMap<String, BTreeMap<String, Set>>;

/// What a CPU is part of.
type PlaceOf<'a> = &'a dyn Fn(&u32) -> (u32, u32);

/// The books: pure.
#[derive(Debug, Default)]
struct Books {
    /// Socket and core of every CPU.
    cpus: BTreeMap<u32, (u32, u32)>,
    reserved: Set,
    grants: Grants,
}

/// Containers that get CPUs of their own, in the order in which they get them, and how many.
fn wishes(pod: &PodView) -> Vec<(&str, Role, usize)> {
    if pod.qos() != Qos::Guaranteed {
        return Vec::new();
    }
    let mut all = Vec::new();
    for roles in [&[Role::Init, Role::Sidecar][..], &[Role::Main]] {
        for c in pod.containers.iter().filter(|c| roles.contains(&c.role)) {
            let limits = c.spec.resources.as_ref().and_then(|r| r.limits.as_ref());
            let cpu = limits.and_then(|l| l.get("cpu")?.0.parse::<Quantity>().ok());
            let whole = cpu.filter(Quantity::is_whole).and_then(|q| usize::try_from(q.units()).ok());
            all.extend(whole.filter(|n| *n > 0).map(|n| (c.name(), c.role, n)));
        }
    }
    all
}

impl Books {
    fn granted(&self) -> Set {
        self.grants.values().flat_map(BTreeMap::values).flatten().copied().collect()
    }

    /// What those without CPUs of their own use.
    fn shared(&self) -> Set {
        let granted = self.granted();
        self.cpus.keys().filter(|cpu| !granted.contains(cpu)).copied().collect()
    }

    fn free(&self) -> Set {
        self.shared().difference(&self.reserved).copied().collect()
    }

    /// Whole sockets first, then whole cores, then what is left of cores that are begun.
    fn choose(&self, mut free: Set, count: usize) -> Set {
        let mut chosen = Set::new();
        let of_core = |cpu: &u32| self.cpus.get(cpu).copied().unwrap_or_default();
        let of_socket = |cpu: &u32| (of_core(cpu).0, 0);
        let by_place: [PlaceOf; 2] = [&of_socket, &of_core];
        for place in by_place {
            let mut whole: BTreeMap<(u32, u32), Set> = BTreeMap::new();
            for cpu in self.cpus.keys() {
                whole.entry(place(cpu)).or_default().insert(*cpu);
            }
            for group in whole.into_values() {
                if group.is_subset(&free) && chosen.len() + group.len() <= count {
                    free.retain(|cpu| !group.contains(cpu));
                    chosen.extend(group);
                }
            }
        }
        let threads = |cpu: &u32| free.iter().filter(|other| of_core(other) == of_core(cpu)).count();
        let mut rest: Vec<u32> = free.iter().copied().collect();
        rest.sort_by_key(|cpu| (threads(cpu), of_core(cpu), *cpu));
        let missing = count.saturating_sub(chosen.len());
        chosen.extend(rest.into_iter().take(missing));
        chosen
    }

    /// Gives a pod what it asks for.
    ///
    /// # Errors
    /// The kubelet's words; it has nothing then.
    fn give(&mut self, pod: &PodView) -> Result<(), String> {
        if self.grants.contains_key(pod.uid()) {
            return Ok(());
        }
        let mut own: BTreeMap<String, Set> = BTreeMap::new();
        // Init containers end before the others begin.
        let mut reusable = Set::new();
        for (container, role, count) in wishes(pod) {
            let taken: Set = own.values().flatten().copied().collect();
            let mut free: Set = self.free().difference(&taken).copied().collect();
            free.extend(&reusable);
            if free.len() < count {
                let available = free.len();
                return Err(format!(
                    "not enough cpus available to satisfy request: requested={count}, available={available}"
                ));
            }
            // What an init container had goes first, so that others stay free.
            let again = reusable.len().min(count);
            let mut chosen = if again == count { Set::new() } else { reusable.clone() };
            let from: Set =
                if again == count { reusable.clone() } else { free.difference(&chosen).copied().collect() };
            let more = self.choose(from, count - chosen.len());
            chosen.extend(more);
            match role {
                Role::Init => reusable.extend(&chosen),
                _ => reusable.retain(|cpu| !chosen.contains(cpu)),
            }
            own.insert(container.into(), chosen);
        }
        if !own.is_empty() {
            self.grants.insert(pod.uid().into(), own);
        }
        Ok(())
    }
}

/// Socket and core of every CPU that is online.
fn machine() -> BTreeMap<u32, (u32, u32)> {
    let text = |path: &str| std::fs::read_to_string(Path::new(SYS).join(path)).unwrap_or_default();
    let number = |cpu: u32, what: &str| text(&format!("cpu{cpu}/topology/{what}")).trim().parse().ok();
    let online = parse(&text("online")).unwrap_or_default();
    let place =
        |cpu| (number(cpu, "physical_package_id").unwrap_or(0), number(cpu, "core_id").unwrap_or(cpu));
    online.into_iter().map(|cpu| (cpu, place(cpu))).collect()
}

/// The node's CPUs.
pub struct Cpus {
    checkpoint: PathBuf,
    /// `None`: all containers share all.
    books: Option<Mutex<Books>>,
}

impl Cpus {
    /// What an agent before left.
    pub fn new(place: &Place, settings: &Settings) -> Cpus {
        let checkpoint = place.root.join(CHECKPOINT);
        let books = settings.exclusive.then(|| {
            let kept = std::fs::read(&checkpoint).ok();
            let grants = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
            Mutex::new(Books { cpus: machine(), reserved: settings.reserved.clone(), grants })
        });
        Cpus { checkpoint, books }
    }

    /// Does the pod ask for CPUs of its own, and is that heard?
    pub fn wanted(&self, pod: &PodView) -> bool {
        self.books.is_some() && !wishes(pod).is_empty()
    }

    /// Has it some?
    pub fn holds(&self, uid: &str) -> bool {
        self.books.as_ref().is_some_and(|b| b.lock().grants.contains_key(uid))
    }

    /// The CPUs of a container as the kernel takes them; `None`: whichever there are.
    pub fn of(&self, uid: &str, container: &str) -> Option<String> {
        let books = self.books.as_ref()?.lock();
        let own = books.grants.get(uid).and_then(|pod| pod.get(container));
        Some(own.map_or_else(|| shown(&books.shared()), shown))
    }

    /// A container's own CPUs, for those who ask who has what.
    pub fn told(&self, uid: &str, container: &str) -> Vec<u32> {
        let Some(books) = &self.books else { return Vec::new() };
        let books = books.lock();
        books.grants.get(uid).and_then(|p| p.get(container)).into_iter().flatten().copied().collect()
    }

    /// CPUs that can be given away.
    pub fn allocatable(&self) -> Vec<u32> {
        let Some(books) = &self.books else { return Vec::new() };
        let books = books.lock();
        books.cpus.keys().filter(|cpu| !books.reserved.contains(cpu)).copied().collect()
    }

    async fn save(&self) -> Result<(), String> {
        let Some(books) = &self.books else { return Ok(()) };
        let (path, grants) = (self.checkpoint.clone(), books.lock().grants.clone());
        let write = move || write_checkpoint(&path, &grants);
        blocking(write).await?.map_err(|e| format!("writing down CPUs: {e}"))
    }
}

/// Gives a pod its CPUs, and takes them from those who run. `holding`: pods that are not over.
///
/// # Errors
/// Why it cannot have them, in the kubelet's words; it has none then.
pub async fn give(node: &Node, pod: &PodView, holding: &BTreeSet<String>) -> Result<(), String> {
    let Some(books) = &node.cpus.books else { return Ok(()) };
    let given = {
        let mut books = books.lock();
        books.grants.retain(|uid, _| uid == pod.uid() || holding.contains(uid));
        books.give(pod)
    };
    let given = match given {
        Ok(()) => node.cpus.save().await,
        failed => failed,
    };
    match given {
        Ok(()) => spread(node).await,
        Err(why) => {
            books.lock().grants.remove(pod.uid());
            return Err(format!("Allocate failed due to {why}, which is unexpected"));
        }
    }
    Ok(())
}

/// The pod is gone: everybody may use its CPUs.
pub async fn release(node: &Node, uid: &str) {
    let gone = node.cpus.books.as_ref().is_some_and(|b| b.lock().grants.remove(uid).is_some());
    if gone {
        if let Err(error) = node.cpus.save().await {
            tracing::warn!(uid, error, "CPUs that are free again are not written down so");
        }
        spread(node).await;
    }
}

/// Lets running containers use what they may now.
pub async fn spread(node: &Node) {
    if node.cpus.books.is_none() {
        return;
    }
    for pod in node.runtime.pods() {
        let lives = |c: &&runtime::api::ContainerInfo| !matches!(c.state, ContainerState::Exited { .. });
        for container in pod.containers.iter().filter(lives) {
            confine(node, &pod.spec.uid, (&container.spec.id, &container.spec.name)).await;
        }
    }
}

/// The same for one: by its id and name.
pub async fn confine(node: &Node, uid: &str, (id, name): (&str, &str)) {
    let Some(cpus) = node.cpus.of(uid, name) else { return };
    let cpu = oci::Cpu { cpus: Some(cpus), ..oci::Cpu::default() };
    let resources = oci::Resources { cpu, ..oci::Resources::default() };
    if let Err(error) = node.runtime.update_resources(uid, Some(id), resources).await {
        tracing::warn!(uid, container = name, %error, "a container keeps its CPUs");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;
    use serde_json::{Value, json};

    /// Two sockets of two cores of two threads: CPU n and n + 4 are one core.
    fn books(reserved: &str) -> Books {
        let cpus = (0..8).map(|cpu| (cpu, (cpu % 4 / 2, cpu % 2))).collect();
        Books { cpus, reserved: parse(reserved).unwrap(), ..Books::default() }
    }

    fn asks(name: &str, cpu: &str) -> Value {
        let amounts = json!({"cpu": cpu, "memory": "1Mi"});
        json!({"name": name, "image": "i", "resources": {"limits": amounts, "requests": amounts}})
    }

    fn given(books: &mut Books, spec: Value) -> Result<String, String> {
        books.give(&pod(spec))?;
        let own = books.grants.values().next_back().cloned().unwrap_or_default();
        Ok(own.iter().map(|(c, set)| format!("{c}:{}", shown(set))).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn lists() {
        assert_eq!(shown(&parse("0-2,5, 7-8").unwrap()), "0-2,5,7-8");
        assert_eq!((parse(""), parse("a"), parse("1-")), (Some(Set::new()), None, None));
    }

    #[test]
    fn whole_sockets_and_cores_first() {
        let one = |n: &str| given(&mut books("0"), json!({"containers": [asks("a", n)]}));
        assert_eq!(one("4").unwrap(), "a:2-3,6-7", "the socket that is free");
        assert_eq!(one("2").unwrap(), "a:1,5", "a core");
        assert_eq!(one("1").unwrap(), "a:4", "beside the reserved one, so that cores stay whole");
        assert_eq!(one("7").unwrap(), "a:1-7");
        let said = one("8").unwrap_err();
        assert_eq!(said, "not enough cpus available to satisfy request: requested=8, available=7");
        let mut books = books("0");
        assert_eq!(
            given(&mut books, json!({"containers": [asks("a", "2"), asks("b", "1500m")]})).unwrap(),
            "a:1,5"
        );
        assert_eq!(shown(&books.shared()), "0,2-4,6-7");
    }

    #[test]
    fn only_whole_cpus_of_guaranteed_pods() {
        let burstable = json!({"containers": [asks("a", "2"), {"name": "b", "image": "i"}]});
        assert_eq!(given(&mut books("0"), burstable).unwrap(), "");
        assert_eq!(given(&mut books("0"), json!({"containers": [asks("a", "1500m")]})).unwrap(), "");
    }

    #[test]
    fn init_containers_lend_theirs() {
        let spec =
            json!({"initContainers": [asks("i", "2")], "containers": [asks("a", "4"), asks("b", "1")]});
        let mut books = books("0");
        assert_eq!(given(&mut books, spec).unwrap(), "a:1-2,5-6 b:4 i:1,5");
    }
}
