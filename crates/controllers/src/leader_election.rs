//! Coordinated leader election (a feature gate): who should hold a Lease is chosen among its LeaseCandidates.
//!
//! Upstream's rules: where a lease has no living holder, or another candidate is better, all candidates are pinged; of
//! those who answer within [`ELECTION`] the oldest emulation version wins, then the oldest binary, then the oldest
//! candidate. A living holder is only told whom to give way to (`preferredHolder`). Candidates that have not renewed for
//! [`CANDIDATE`] do not count and go. Decisions ([`decide`], [`lease_for`]) are pure.
//! Deliberately not here: holding a lease (the candidates' own business).

use crate::context::{Context, Outcome, Reconcile, enqueue, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey};
use jiff::Timestamp;
use k8s_schema::gates::COORDINATED_LEADER_ELECTION;
use k8s_schema::gvr::{LEASE_CANDIDATES, LEASES};
use machinery::cel::Semver;
use machinery::kinds::coordination::OLDEST;
use machinery::kinds::get::{int, set, text};
use machinery::time::{format_micro, since};
use serde_json::{Value, json};
use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long candidates have to answer.
const ELECTION: Duration = Duration::from_secs(5);
/// Between two looks at a lease with candidates.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// A candidate that has not renewed for so long is gone.
const CANDIDATE: Duration = Duration::from_secs(30 * 60);
/// What a holder gets until it renews the lease itself.
const LEASE_SECONDS: i64 = 5;

/// A LeaseCandidate, as far as it counts.
#[derive(Clone, Debug)]
struct Candidate {
    name: String,
    emulated: Option<Semver>,
    binary: Option<Semver>,
    strategy: String,
    pinged: Option<Timestamp>,
    renewed: Option<Timestamp>,
    created: Option<Timestamp>,
}

fn time(value: &Value, at: &str) -> Option<Timestamp> {
    machinery::time::parse(text(value, at)).ok()
}

impl Candidate {
    fn read(value: &Value) -> Candidate {
        let version = |at: &str| Semver::parse_tolerant(text(value, at));
        Candidate {
            name: text(value, "/metadata/name").into(),
            emulated: version("/spec/emulationVersion"),
            binary: version("/spec/binaryVersion"),
            strategy: text(value, "/spec/strategy").into(),
            pinged: time(value, "/spec/pingTime"),
            renewed: time(value, "/spec/renewTime"),
            created: time(value, "/metadata/creationTimestamp"),
        }
    }

    fn renewed_within(&self, span: Duration, now: Timestamp) -> bool {
        self.renewed.is_some_and(|at| since(now, at) <= span)
    }

    fn is_for_good(&self, now: Timestamp) -> bool {
        !self.renewed_within(CANDIDATE, now) && self.created.is_some_and(|at| since(now, at) > CANDIDATE)
    }

    /// The better of two comes first.
    fn order(&self, other: &Candidate) -> Ordering {
        let versions = |a: &Option<Semver>, b: &Option<Semver>| match (a, b) {
            (Some(a), Some(b)) => a.cmp(b),
            (a, b) => a.is_some().cmp(&b.is_some()),
        };
        let by_age = || self.created.cmp(&other.created).then_with(|| self.name.cmp(&other.name));
        versions(&self.emulated, &other.emulated)
            .then_with(|| versions(&self.binary, &other.binary))
            .then_with(by_age)
    }
}

/// The strategy of the newest binary; `None` where candidates of that one disagree.
fn strategy<'a>(candidates: &[&'a Candidate]) -> Option<&'a str> {
    let version = |c: &Candidate| c.binary.as_ref().map(ToString::to_string);
    let newest = candidates.iter().max_by(|a, b| match (&a.binary, &b.binary) {
        (Some(a), Some(b)) => a.cmp(b),
        (a, b) => a.is_some().cmp(&b.is_some()),
    })?;
    let mut alike = candidates.iter().filter(|c| version(c) == version(newest));
    alike.all(|c| c.strategy == newest.strategy).then_some(newest.strategy.as_str())
}

/// Who should lead by the one strategy that is known here.
fn best<'a>(candidates: &[&'a Candidate]) -> Option<&'a Candidate> {
    if strategy(candidates)? != OLDEST {
        return None;
    }
    let whole = candidates.iter().filter(|c| c.emulated.is_some() && c.binary.is_some());
    whole.copied().min_by(|a, b| a.order(b))
}

/// What is to be done about a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// Nobody wants it.
    Nothing,
    /// All is well, or answers are awaited.
    Wait,
    /// These are asked whether they are there.
    Ping(Vec<String>),
    /// This one should hold it.
    Elect(String),
}

fn is_held(lease: &Value, now: Timestamp) -> bool {
    let lasts = int(lease, "/spec/leaseDurationSeconds").and_then(|s| u64::try_from(s).ok());
    let renewed = time(lease, "/spec/renewTime");
    let good = renewed.zip(lasts).is_some_and(|(at, s)| since(now, at) <= Duration::from_secs(s));
    good && !text(lease, "/spec/holderIdentity").is_empty()
}

fn is_election_due(candidates: &[&Candidate], lease: Option<&Value>, now: Timestamp) -> bool {
    let Some(lease) = lease.filter(|lease| is_held(lease, now)) else { return true };
    // So that candidates show in time that they are there.
    candidates.iter().any(|c| !c.renewed_within(CANDIDATE / 2, now))
        || best(candidates).is_some_and(|c| c.name != text(lease, "/spec/holderIdentity"))
}

fn decide(candidates: &[Candidate], lease: Option<&Value>, now: Timestamp) -> Plan {
    let living: Vec<&Candidate> = candidates.iter().filter(|c| c.renewed_within(CANDIDATE, now)).collect();
    if living.is_empty() {
        return Plan::Nothing;
    }
    if !is_election_due(&living, lease, now) {
        return Plan::Wait;
    }
    let (mut asked, mut awaited) = (Vec::new(), false);
    for candidate in &living {
        let unanswered = candidate.pinged.filter(|pinged| candidate.renewed < Some(*pinged));
        match unanswered {
            Some(pinged) => awaited |= since(now, pinged) < ELECTION,
            None if candidate.renewed_within(ELECTION, now) => {}
            None => asked.push(candidate.name.clone()),
        }
    }
    if !asked.is_empty() {
        return Plan::Ping(asked);
    }
    let present: Vec<&Candidate> = living.into_iter().filter(|c| c.renewed_within(ELECTION, now)).collect();
    match best(&present) {
        Some(electee) if !awaited => Plan::Elect(electee.name.clone()),
        _ => Plan::Wait,
    }
}

/// The lease as it should be once `electee` is chosen; `None` when it is so already.
fn lease_for(key: &ObjectKey, present: Option<&Value>, electee: &str, now: Timestamp) -> Option<Value> {
    let given = json!({"holderIdentity": electee, "strategy": OLDEST, "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": format_micro(now)});
    let Some(present) = present else {
        return Some(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": &*key.name, "namespace": &*key.namespace}, "spec": given}));
    };
    let holder = text(present, "/spec/holderIdentity");
    let mut lease = present.clone();
    if holder == electee {
        return None;
    }
    if holder.is_empty() || !is_held(present, now) {
        let changes = present["spec"]["leaseTransitions"].clone();
        lease["spec"] = given;
        if !changes.is_null() {
            set(&mut lease["spec"], "leaseTransitions", changes);
        }
    } else {
        set(&mut lease["spec"], "strategy", OLDEST);
        set(&mut lease["spec"], "preferredHolder", electee);
    }
    (lease != *present).then_some(lease)
}

struct Controller {
    context: Context,
    leases: Arc<Cache>,
    candidates: Arc<Cache>,
}

fn wanted(candidate: &Object) -> Option<String> {
    candidate.value().ok().map(|value| text(&value, "/spec/leaseName").to_string())
}

/// Starts it, where it is on. A key is a Lease's.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    if !context.config.gates.on(COORDINATED_LEADER_ELECTION) {
        return Vec::new();
    }
    let queue = Arc::new(Queue::default());
    let (leases, candidates) = (context.informers.of(&LEASES), context.informers.of(&LEASE_CANDIDATES));
    enqueue(&candidates, &queue, |candidate| {
        let lease = wanted(candidate);
        lease.map(|lease| ObjectKey::new(candidate.key.namespace.clone(), lease)).into_iter().collect()
    });
    let all = candidates.clone();
    enqueue(&leases, &queue, move |lease| {
        let of_it = |c: &Arc<Object>| wanted(c).as_deref() == Some(&*lease.key.name);
        let some = all.list_in(&lease.key.namespace).iter().any(of_it);
        some.then(|| lease.key.clone()).into_iter().collect()
    });
    let caches = vec![leases.clone(), candidates.clone()];
    let controller = Controller { context: context.clone(), leases, candidates };
    run("leader-election-controller", caches, queue, 1, Arc::new(controller))
}

impl Controller {
    async fn ping(&self, objects: &[Arc<Object>], names: &[String], now: Timestamp) -> Outcome {
        for object in objects.iter().filter(|o| names.iter().any(|n| **n == *o.key.name)) {
            let patch = json!({"metadata": {"resourceVersion": object.revision.to_string()},
                "spec": {"pingTime": format_micro(now)}});
            let pinged = self.context.client.merge_patch(&LEASE_CANDIDATES, &object.key, patch).await?;
            self.candidates.observe(pinged);
        }
        Ok(Some(LOOK_AGAIN))
    }

    async fn forget(&self, object: &Object) -> Outcome {
        let options =
            DeleteOptions { resource_version: Some(object.revision.to_string()), ..DeleteOptions::default() };
        match self.context.client.delete(&LEASE_CANDIDATES, &object.key, options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(None),
        }
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let now = self.context.now();
        let mut objects = self.candidates.list_in(&key.namespace);
        objects.retain(|o| wanted(o).as_deref() == Some(&*key.name));
        let mut candidates = Vec::new();
        for object in &objects {
            let Ok(value) = object.value() else { continue };
            let candidate = Candidate::read(&value);
            if candidate.is_for_good(now) {
                self.forget(object).await?;
            } else {
                candidates.push(candidate);
            }
        }
        let lease = self.leases.get(key).and_then(|lease| lease.value().ok());
        match decide(&candidates, lease.as_ref(), now) {
            Plan::Nothing => Ok((!candidates.is_empty()).then_some(CANDIDATE)),
            Plan::Wait => Ok(Some(LOOK_AGAIN)),
            Plan::Ping(names) => self.ping(&objects, &names, now).await,
            Plan::Elect(electee) => {
                let client = &self.context.client;
                let written = match (lease_for(key, lease.as_ref(), &electee, now), &lease) {
                    (None, _) => return Ok(Some(LOOK_AGAIN)),
                    (Some(new), None) => client.create(&LEASES, new).await?,
                    (Some(new), Some(_)) => client.update(&LEASES, key, new).await?,
                };
                tracing::info!(lease = %key, %electee, "elected");
                self.leases.observe(written);
                Ok(Some(LOOK_AGAIN))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, stamp};

    fn candidate(name: &str, emulated: &str, binary: &str, renewed: i64) -> Candidate {
        Candidate::read(&json!({"metadata": {"name": name, "creationTimestamp": stamp(0)},
            "spec": {"emulationVersion": emulated, "binaryVersion": binary, "strategy": OLDEST,
                "renewTime": format_micro(at(renewed))}}))
    }

    fn held_by(holder: &str, renewed: i64) -> Value {
        json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15,
            "renewTime": format_micro(at(renewed)), "leaseTransitions": 3}})
    }

    fn elected(name: &str) -> Plan {
        Plan::Elect(name.into())
    }

    #[test]
    fn the_oldest_emulation_wins_then_the_oldest_binary() {
        let all = [
            candidate("a", "1.36.0", "1.36.0", 9),
            candidate("b", "1.35.0", "1.36.0", 9),
            candidate("c", "1.35.0", "1.35.3", 9),
        ];
        assert_eq!(decide(&all, None, at(10)), elected("c"));
        assert_eq!(decide(&all[..2], None, at(10)), elected("b"));
        assert_eq!(decide(&all, Some(&held_by("c", 9)), at(10)), Plan::Wait);
        assert_eq!(decide(&all, Some(&held_by("b", 9)), at(10)), elected("c"));
        let mut other = all.clone();
        other[0].strategy = "x.io/y".into();
        assert_eq!(decide(&other, None, at(10)), Plan::Wait, "the newest binary does not agree with itself");
    }

    #[test]
    fn candidates_are_asked_first_and_the_silent_do_not_count() {
        let mut all = [candidate("a", "1.35.0", "1.35.0", 0), candidate("b", "1.36.0", "1.36.0", 0)];
        assert_eq!(decide(&all, None, at(100)), Plan::Ping(vec!["a".into(), "b".into()]));
        all.iter_mut().for_each(|c| c.pinged = Some(at(100)));
        all[1].renewed = Some(at(101));
        assert_eq!(decide(&all, None, at(102)), Plan::Wait, "the better one may still answer");
        assert_eq!(decide(&all, None, at(105)), elected("b"));
        assert_eq!(decide(&all, None, at(3_000)), Plan::Nothing, "nobody has been heard of for long");
    }

    #[test]
    fn who_has_not_been_heard_of_for_long_is_asked() {
        let all = [candidate("a", "1.36.0", "1.36.0", 0)];
        assert_eq!(decide(&all, Some(&held_by("a", 899)), at(900)), Plan::Wait);
        assert_eq!(decide(&all, Some(&held_by("a", 1_000)), at(1_001)), Plan::Ping(vec!["a".into()]));
        assert!(!all[0].is_for_good(at(1_000)) && all[0].is_for_good(at(2_000)));
    }

    #[test]
    fn a_living_holder_is_told_a_dead_one_is_replaced() {
        let key = ObjectKey::new("kube-system", "l");
        let new = lease_for(&key, None, "a", at(10)).unwrap();
        assert_eq!((&new["spec"]["holderIdentity"], &new["spec"]["strategy"]), (&json!("a"), &json!(OLDEST)));
        let told = lease_for(&key, Some(&held_by("b", 9)), "a", at(10)).unwrap();
        assert_eq!(
            (&told["spec"]["holderIdentity"], &told["spec"]["preferredHolder"]),
            (&json!("b"), &json!("a"))
        );
        assert_eq!(lease_for(&key, Some(&told), "a", at(10)), None);
        let taken = lease_for(&key, Some(&told), "a", at(60)).unwrap();
        assert_eq!(taken["spec"]["holderIdentity"], "a");
        assert_eq!(taken["spec"]["leaseTransitions"], 3);
        assert!(taken["spec"]["preferredHolder"].is_null());
    }
}
