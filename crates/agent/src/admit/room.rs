//! Room for critical pods: who must go so that one fits, as the kubelet chooses. Pure.
//!
//! Only amounts can be made room for; a taken port or a taint cannot. Nobody new is asked to go while those who are
//! on their way out leave enough.

use super::{Claim, Place, is_critical, objection, shortages, unfit};
use crate::pod::{PodView, Qos};
use crate::state::Verdict;
use sched::PodInfo;
use std::collections::BTreeMap;

/// A pod that is on the node.
pub struct Occupant<'a> {
    /// The pod.
    pub pod: &'a PodView,
    /// What it takes.
    pub claim: &'a Claim,
    /// Is it on its way out?
    pub going: bool,
}

/// What becomes of a new pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It may run.
    Admit,
    /// It may not.
    Refuse(Verdict),
    /// Not yet: others are leaving.
    Wait,
    /// Not yet: these (by UID) are to leave.
    MakeRoom(Vec<String>),
}

/// What is missing, by resource.
type Missing = BTreeMap<String, i64>;

/// What becomes of a new pod beside `occupants`, whose claims `place` lists as well.
pub fn rule(pod: &PodView, claim: &Claim, place: &Place, occupants: &[Occupant]) -> Ruling {
    let Some(verdict) = objection(pod, claim, place) else { return Ruling::Admit };
    let short = verdict.reason.starts_with("OutOf");
    if !is_critical(pod) || !short || unfit(claim, &PodInfo::read(&pod.pod), place).is_some() {
        return Ruling::Refuse(verdict);
    }
    let staying: Vec<&Occupant> = occupants.iter().filter(|o| !o.going).collect();
    let others: Vec<&Claim> = staying.iter().map(|o| o.claim).collect();
    let missing: Missing = shortages(claim, &Place { others: &others, ..*place })
        .map(|s| (s.name.to_string(), s.asked - (s.capacity - s.used)))
        .collect();
    if missing.is_empty() {
        return Ruling::Wait;
    }
    let lesser = |o: &&&Occupant| may_displace(pod, o.pod);
    match victims(&missing, &staying.iter().filter(lesser).copied().collect::<Vec<_>>()) {
        Some(uids) => Ruling::MakeRoom(uids),
        None => Ruling::Refuse(hopeless(&missing)),
    }
}

fn hopeless(missing: &Missing) -> Verdict {
    let list: String = missing.iter().map(|(name, n)| format!("(res: {name}, q: {n}), ")).collect();
    let message = format!(
        "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of \
         pods to preempt: no set of running pods found to reclaim resources: [{list}]"
    );
    super::rejected("UnexpectedAdmissionError", message)
}

/// Critical pods displace others; else the priority decides.
fn may_displace(pod: &PodView, other: &PodView) -> bool {
    let priority = |p: &PodView| p.spec().priority.unwrap_or(0);
    !is_critical(other) || priority(pod) > priority(other)
}

/// What a pod gives of a resource when it goes.
fn gives(occupant: &Occupant, name: &str) -> i64 {
    let requests = &occupant.claim.requests;
    match name {
        "pods" => 1,
        "cpu" => requests.milli_cpu,
        "memory" => requests.memory_bytes,
        "ephemeral-storage" => requests.ephemeral_bytes,
        other => requests.extended.get(other).copied().unwrap_or(0),
    }
}

/// What is still missing when these go.
fn without<'a>(missing: &Missing, going: impl Iterator<Item = &'a &'a Occupant<'a>> + Clone) -> Missing {
    let left = |(name, n): (&String, &i64)| {
        let left = n - going.clone().map(|o| gives(o, name)).sum::<i64>();
        (left > 0).then(|| (name.clone(), left))
    };
    missing.iter().filter_map(left).collect()
}

/// Best-effort pods go before burstable ones, and those before guaranteed ones: of each class only what the lower
/// classes together cannot give. `None`: all of them would not do.
fn victims(missing: &Missing, candidates: &[&Occupant]) -> Option<Vec<String>> {
    if !without(missing, candidates.iter()).is_empty() {
        return None;
    }
    let mut chosen: Vec<&Occupant> = Vec::new();
    for class in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
        let of = |wanted: fn(Qos, Qos) -> bool| {
            candidates.iter().copied().filter(move |o| wanted(o.pod.qos(), class)).collect::<Vec<_>>()
        };
        let lower = of(|own, class| rank(own) < rank(class));
        let needed = without(missing, lower.iter().chain(&chosen));
        let picked = nearest(needed, of(|own, class| own == class));
        chosen.extend(picked);
    }
    Some(chosen.iter().map(|o| o.pod.uid().to_string()).collect())
}

fn rank(class: Qos) -> u8 {
    match class {
        Qos::BestEffort => 0,
        Qos::Burstable => 1,
        Qos::Guaranteed => 2,
    }
}

/// Takes the pod that comes nearest to what is missing, until nothing is; of equals the one that asks for less.
fn nearest<'a>(mut missing: Missing, mut from: Vec<&'a Occupant<'a>>) -> Vec<&'a Occupant<'a>> {
    let mut chosen = Vec::new();
    while !missing.is_empty() && !from.is_empty() {
        let distance = |o: &Occupant| -> f64 {
            let part = |(name, n): (&String, &i64)| ((n - gives(o, name)).max(0) as f64 / *n as f64).powi(2);
            missing.iter().map(part).sum()
        };
        let size = |o: &Occupant| (gives(o, "memory"), gives(o, "cpu"));
        let order =
            |a: &Occupant, b: &Occupant| distance(a).total_cmp(&distance(b)).then(size(a).cmp(&size(b)));
        let Some(best) = (0..from.len()).min_by(|a, b| order(from[*a], from[*b])) else { break };
        let best = from.swap_remove(best);
        missing = without(&missing, std::iter::once(&best));
        chosen.push(best);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::CRITICAL_PRIORITY;
    use crate::facts::tests::facts;
    use crate::pod::tests::pod;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    /// A pod of that CPU request; `more` goes into its spec.
    fn asking(cpu: &str, limits: bool, more: Value) -> PodView {
        let amounts = json!({"cpu": cpu, "memory": "1Mi"});
        let mut resources = if cpu.is_empty() { json!({}) } else { json!({"requests": amounts}) };
        if limits {
            resources["limits"] = amounts;
        }
        let mut spec = json!({"containers": [{"name": "a", "image": "i", "resources": resources}]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        pod(spec)
    }

    /// Indexes of those who go, or the ruling. The node has two cores.
    fn ruled(new: &PodView, others: &[(PodView, bool)]) -> Result<Vec<usize>, Ruling> {
        let claims: Vec<Claim> = others.iter().map(|(p, _)| Claim::of(p)).collect();
        let named: Vec<PodView> = others.iter().map(|(p, _)| p.clone()).collect();
        let occupants: Vec<Occupant> = named
            .iter()
            .zip(&claims)
            .zip(others)
            .map(|((pod, claim), (_, going))| Occupant { pod, claim, going: *going })
            .collect();
        let (all, facts, pressure) =
            (claims.iter().collect::<Vec<_>>(), facts(std::path::Path::new("/")), BTreeSet::new());
        let place = Place {
            facts: &facts,
            node: None,
            pressure: &pressure,
            others: &all,
            apparmor: false,
            selinux: false,
        };
        match rule(new, &Claim::of(new), &place, &occupants) {
            Ruling::MakeRoom(uids) => {
                let at = |uid: &String| named.iter().position(|p| p.uid() == uid).unwrap();
                Ok(uids.iter().map(at).collect())
            }
            other => Err(other),
        }
    }

    fn with_uid(view: &PodView, uid: &str) -> PodView {
        let mut value = view.object.value().unwrap();
        value["metadata"]["uid"] = json!(uid);
        PodView::new(std::sync::Arc::new(client::Object::parse(value.to_string().into()).unwrap())).unwrap()
    }

    fn beside(list: &[(&str, bool, Value, bool)]) -> Vec<(PodView, bool)> {
        let one = |(i, (cpu, limits, more, going)): (usize, &(&str, bool, Value, bool))| {
            (with_uid(&asking(cpu, *limits, more.clone()), &format!("u{i}")), *going)
        };
        list.iter().enumerate().map(one).collect()
    }

    #[test]
    fn lower_classes_go_first_and_no_more_than_needed() {
        let critical = |cpu: &str| asking(cpu, false, json!({"priority": CRITICAL_PRIORITY}));
        let none = || json!({});
        let others = beside(&[
            ("500m", true, none(), false),
            ("300m", false, none(), false),
            ("600m", false, none(), false),
            ("", false, none(), false),
        ]);
        assert_eq!(ruled(&critical("600m"), &others), Err(Ruling::Admit));
        assert_eq!(ruled(&critical("800m"), &others), Ok(vec![1]), "the smallest that gives enough");
        assert_eq!(ruled(&critical("1200m"), &others), Ok(vec![2]));
        assert_eq!(ruled(&critical("1400m"), &others), Ok(vec![2, 1]));
        assert_eq!(ruled(&critical("2"), &others), Ok(vec![0, 2, 1]));
        let Err(Ruling::Refuse(verdict)) = ruled(&critical("3"), &others) else { panic!() };
        assert_eq!(verdict.reason, "UnexpectedAdmissionError");
        assert!(verdict.message.ends_with("[(res: cpu, q: 2400), ]"), "{}", verdict.message);
    }

    #[test]
    fn who_stays_and_who_waits() {
        let top = json!({"priority": CRITICAL_PRIORITY + 1000});
        let low = json!({"priority": CRITICAL_PRIORITY});
        let new = asking("1", false, low.clone());
        let plain = asking("1", false, json!({}));
        let Err(Ruling::Refuse(verdict)) = ruled(&plain, &beside(&[("2", false, json!({}), false)])) else {
            panic!()
        };
        assert_eq!(verdict.reason, "OutOfcpu", "only critical pods displace others");
        assert!(matches!(ruled(&new, &beside(&[("2", false, top, false)])), Err(Ruling::Refuse(_))));
        assert!(matches!(ruled(&new, &beside(&[("2", false, low, false)])), Err(Ruling::Refuse(_))));
        let leaving = beside(&[("1500m", false, json!({}), true), ("500m", false, json!({}), false)]);
        assert_eq!(ruled(&new, &leaving), Err(Ruling::Wait));
    }
}
