//! Of several servers over one store, one runs the controllers: the one that holds a Lease.
//!
//! Invariant: two never run them at once, as long as clocks run equally fast: who cannot renew for [`RENEW_MAX`] stops,
//! and nobody takes a lease before it stood still for [`LEASE`], by the taker's own clock (no time of another machine is
//! ever compared). A server that comes back takes its own lease up at once; one that ends gives it back.
//! Deliberately not here: what is run; stores of one server, which need no lease.

use super::Instance;
use client::{ApiClient, Object, ObjectKey};
use jiff::Timestamp;
use k8s_schema::gvr::LEASES;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long a lease is good without renewal (as upstream's).
const LEASE: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long stops: well before others may begin.
const RENEW_MAX: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long giving the lease back may take: the process is ending, perhaps on a busy machine.
const RELEASE_MAX: Duration = Duration::from_secs(5);

/// What to do about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There is none: make it.
    Create,
    /// It is ours, or nobody's any more: write it.
    Write,
    /// Somebody holds it.
    Wait,
}

/// `still` is for how long the lease has not changed, as far as we have seen.
fn decide(lease: Option<&Value>, me: &str, still: Duration) -> Step {
    let Some(lease) = lease else { return Step::Create };
    match lease["spec"]["holderIdentity"].as_str().unwrap_or_default() {
        "" => Step::Write,
        holder if holder == me => Step::Write,
        _ if still >= LEASE => Step::Write,
        _ => Step::Wait,
    }
}

/// The lease as we write it.
fn written(lease: &mut Value, me: &str, now: Timestamp) {
    let time = machinery::time::format_micro(now);
    let spec = &mut lease["spec"];
    if spec["holderIdentity"] != me {
        let changes = spec["leaseTransitions"].as_i64().map_or(0, |n| n.saturating_add(1));
        *spec = json!({"holderIdentity": me, "acquireTime": time, "leaseTransitions": changes});
    }
    spec["leaseDurationSeconds"] = LEASE.as_secs().into();
    spec["renewTime"] = time.into();
}

/// A candidate for one lease.
pub struct Candidate {
    /// Who asks the API.
    pub client: ApiClient,
    /// Which lease, in `kube-system`.
    pub lease: &'static str,
    /// Who we are: the same after a restart, no other server's.
    pub me: String,
}

/// Keeps what `start` gives running: at once, or where servers share a store, in the one that holds the lease.
pub fn in_turn<T: Send + 'static>(
    instance: &mut Instance,
    lease: &'static str,
    client: ApiClient,
    start: impl Fn() -> T + Send + Sync + 'static,
) {
    let shared = instance.control.shares_store();
    let me = format!("{}_{}", instance.facts.node_name, instance.config.name);
    instance.tasks.push(tokio::spawn(async move {
        if shared {
            Candidate { client, lease, me }.run(start).await;
        } else {
            let _running = start();
            std::future::pending::<()>().await;
        }
    }));
}

impl Candidate {
    fn key(&self) -> ObjectKey {
        ObjectKey::new("kube-system", self.lease)
    }

    /// Runs what `start` gives while the lease is ours; until dropped.
    pub async fn run<T>(self, start: impl Fn() -> T) {
        let mut running: Option<T> = None;
        let (mut seen, mut renewed) = ((0, Instant::now()), Instant::now());
        loop {
            // A renewal counts from when it was sent; one that hangs must not hide that time is up.
            let begun = Instant::now();
            let left = RENEW_MAX.saturating_sub(renewed.elapsed()).max(LOOK_AGAIN);
            match timeout(left, self.step(&mut seen)).await {
                Ok(Ok(true)) => {
                    renewed = begun;
                    if running.is_none() {
                        tracing::info!(lease = self.lease, "leading");
                        running = Some(start());
                    }
                }
                Ok(Ok(false)) if running.take().is_some() => {
                    tracing::warn!(lease = self.lease, "somebody else leads now");
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::debug!(%error, lease = self.lease, "the lease was not written"),
                Err(_) => tracing::debug!(lease = self.lease, "the lease was not written in time"),
            }
            if renewed.elapsed() + LOOK_AGAIN >= RENEW_MAX && running.take().is_some() {
                tracing::warn!(lease = self.lease, "not leading: the lease could not be renewed");
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// One look, one write: is the lease ours?
    async fn step(&self, seen: &mut (u64, Instant)) -> Result<bool, ApiError> {
        let lease = match self.client.get(&LEASES, &self.key()).await {
            Ok(lease) => Some(lease),
            Err(error) if error.code == 404 => None,
            Err(error) => return Err(error),
        };
        let revision = lease.as_ref().map_or(0, |lease| lease.revision);
        if revision != seen.0 {
            *seen = (revision, Instant::now());
        }
        let value = lease.as_deref().map(Object::value).transpose().map_err(ApiError::internal)?;
        let mut value = match decide(value.as_ref(), &self.me, seen.1.elapsed()) {
            Step::Wait => return Ok(false),
            Step::Create => {
                json!({"metadata": {"name": self.lease, "namespace": "kube-system"}, "spec": {}})
            }
            Step::Write => value.unwrap_or_default(),
        };
        written(&mut value, &self.me, Timestamp::now());
        let done = match revision {
            0 => self.client.create(&LEASES, value).await,
            // The body carries the revision that was read: somebody who was faster makes this a conflict.
            _ => self.client.update(&LEASES, &self.key(), value).await,
        };
        match done {
            Ok(lease) => {
                *seen = (lease.revision, Instant::now());
                Ok(true)
            }
            Err(error) if error.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Gives a lease back, if it is `me`'s: another server need not wait for it to lapse.
pub fn release(client: ApiClient, lease: &'static str, me: String) -> impl Future<Output = ()> {
    let release = async move {
        let key = ObjectKey::new("kube-system", lease);
        let mut value = client.get(&LEASES, &key).await?.value().map_err(ApiError::internal)?;
        if value["spec"]["holderIdentity"] == me.as_str() {
            value["spec"]["holderIdentity"] = "".into();
            client.update(&LEASES, &key, value).await?;
        }
        Ok::<_, ApiError>(())
    };
    async move {
        if let Ok(Err(error)) = timeout(RELEASE_MAX, release).await {
            tracing::debug!(%error, lease, "the lease was not given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(by: &str) -> Value {
        json!({"spec": {"holderIdentity": by, "leaseTransitions": 3, "acquireTime": "2026-01-01T00:00:00.000000Z"}})
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free() {
        let (soon, late) = (LEASE - Duration::from_millis(1), LEASE);
        assert_eq!(decide(None, "a", soon), Step::Create);
        assert_eq!(decide(Some(&held("")), "a", soon), Step::Write);
        assert_eq!(decide(Some(&held("a")), "a", soon), Step::Write);
        assert_eq!(decide(Some(&held("b")), "a", soon), Step::Wait);
        assert_eq!(decide(Some(&held("b")), "a", late), Step::Write);
    }

    #[test]
    fn changes_of_hands_are_counted_and_renewals_are_not() {
        let now = machinery::time::parse("2026-02-02T00:00:00Z").unwrap();
        let (mut ours, mut theirs) = (held("a"), held("b"));
        written(&mut ours, "a", now);
        written(&mut theirs, "a", now);
        assert_eq!(
            (&ours["spec"]["leaseTransitions"], &theirs["spec"]["leaseTransitions"]),
            (&json!(3), &json!(4))
        );
        assert_eq!(ours["spec"]["acquireTime"], "2026-01-01T00:00:00.000000Z");
        assert_eq!(theirs["spec"]["acquireTime"], "2026-02-02T00:00:00.000000Z");
        assert_eq!(theirs["spec"]["holderIdentity"], "a");
    }
}
