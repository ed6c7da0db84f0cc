//! The node goes down in order: pods end by priority, the lowest first, each group within its time, and their status
//! says why. Upstream's graceful node shutdown, asked for by command (`gantry shutdown`), since an agent that ends by
//! itself leaves its pods running.
//!
//! Pure: [`Settings`] and [`groups`]. Shell: [`run`]. From the moment it is asked for until the agent's next start the
//! node is not Ready and new pods are refused; a shutdown is not taken back. Deliberately not here: systemd's inhibitor
//! locks (a unit's `ExecStop` asks), and whatever ignores its end: the machine itself ends that.

use crate::admit::CRITICAL_PRIORITY;
use crate::eviction::settings::duration;
use crate::ops::Node;
use crate::pod::PodView;
use crate::state::Verdict;
use crate::worker::Event;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Of pods that were ended.
const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// Of pods that came too late.
const REFUSED: &str = "NodeShutdown";
const REFUSED_MESSAGE: &str = "Pod was rejected as the node is shutting down.";
/// What may follow the last group's time: SIGKILL of those who used it up, and what the API is told of them.
const LAST_WORDS: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long pods have, by their least priority, in seconds. Empty: a shutdown is not offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<i32, i64>);

impl Settings {
    /// Reads the time of all (`30s`), the part of it that is kept for critical pods, and, in place of both, a list of
    /// `priority=time`.
    ///
    /// # Errors
    /// What is malformed, or more for critical pods than for all.
    pub fn parse(all: &str, critical: &str, by_priority: &str) -> Result<Settings, String> {
        let time = |text: &str| {
            let read = duration(text).filter(|d| !d.is_negative());
            read.map(|d| d.as_secs()).ok_or_else(|| format!("invalid duration {text:?}"))
        };
        if by_priority.is_empty() {
            let (all, critical) = (time(all)?, time(critical)?);
            if critical > all {
                return Err(format!("{all} s for all pods are less than {critical} s for critical ones"));
            }
            let both = [(0, all - critical), (CRITICAL_PRIORITY, critical)];
            return Ok(Settings(if all == 0 { BTreeMap::new() } else { both.into() }));
        }
        let mut list = BTreeMap::new();
        for entry in by_priority.split(',').map(str::trim) {
            let (priority, text) =
                entry.split_once('=').ok_or_else(|| format!("{entry:?} is not priority=time"))?;
            let priority = priority.trim().parse().map_err(|_| format!("invalid priority {priority:?}"))?;
            if list.insert(priority, time(text.trim())?).is_some() {
                return Err(format!("the priority {priority} is there twice"));
            }
        }
        Ok(Settings(list))
    }

    /// Is a shutdown offered?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Pods that end at the same time.
pub struct Group {
    /// Seconds that they have.
    pub seconds: i64,
    /// The pods.
    pub pods: Vec<PodView>,
}

/// Who ends when: each pod belongs to the greatest priority that is not above its own, and to the least of all where
/// there is none. Groups without pods take no time.
pub fn groups(settings: &Settings, pods: Vec<PodView>) -> Vec<Group> {
    let mut groups: BTreeMap<i32, Group> = BTreeMap::new();
    for pod in pods {
        let priority = pod.spec().priority.unwrap_or(0);
        let own = settings.0.range(..=priority).next_back().or(settings.0.first_key_value());
        let Some((at, seconds)) = own else { continue };
        groups.entry(*at).or_insert_with(|| Group { seconds: *seconds, pods: Vec::new() }).pods.push(pod);
    }
    groups.into_values().collect()
}

/// What becomes of a pod that comes while the node goes down.
pub fn refusal() -> Verdict {
    Verdict { rejected: true, reason: REFUSED.into(), message: REFUSED_MESSAGE.into(), grace: 0 }
}

/// Ends all pods. Returns when they are gone and the API knows, or their time is over.
pub(crate) async fn run(node: &Node, settings: &Settings, worker: &mpsc::UnboundedSender<Event>) {
    if !node.shutting_down.send_replace(true) {
        let told = "Shutdown manager detected shutdown event".to_string();
        node.recorder.node(&node.facts.node_name, REFUSED, told);
    }
    let all = node.all_pods().into_iter().filter_map(|object| PodView::new(object).ok());
    let groups = groups(settings, all.filter(|pod| !pod.stored_phase_is_terminal()).collect());
    let last = groups.len().saturating_sub(1);
    for (n, group) in groups.iter().enumerate() {
        for pod in &group.pods {
            let grace = pod.spec_grace().min(group.seconds);
            let verdict = Verdict { rejected: false, reason: REASON.into(), message: MESSAGE.into(), grace };
            // An error means that the worker ended, and with it the agent.
            let _ = worker.send(Event::Judged(pod.uid().into(), verdict));
        }
        let words = if n == last { LAST_WORDS } else { Duration::ZERO };
        let deadline = Instant::now() + Duration::from_secs(group.seconds.unsigned_abs()) + words;
        while !group.pods.iter().all(|pod| is_over(node, pod)) && Instant::now() < deadline {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let left: Vec<String> =
            group.pods.iter().filter(|p| !is_over(node, p)).map(|p| p.key().to_string()).collect();
        if !left.is_empty() {
            tracing::warn!(pods = left.join(", "), "not gone within their time");
        }
    }
}

/// Does nothing of it run, and does the API know?
fn is_over(node: &Node, pod: &PodView) -> bool {
    let shown = match node.mirror_of(&pod.object) {
        None => node.pods.get(pod.key()).filter(|shown| shown.uid() == pod.uid()),
        mirror => mirror,
    };
    let over = |view: PodView| view.stored_phase_is_terminal();
    node.live(pod.uid()).is_none() && shown.is_none_or(|shown| PodView::new(shown).is_ok_and(over))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;
    use serde_json::json;

    fn grouped(settings: &Settings, priorities: &[i32]) -> Vec<(i64, Vec<i32>)> {
        let make = |p: &i32| pod(json!({"containers": [{"name": "a", "image": "i"}], "priority": p}));
        let priority = |p: &PodView| p.spec().priority.unwrap();
        let all = groups(settings, priorities.iter().map(make).collect());
        all.iter().map(|g| (g.seconds, g.pods.iter().map(priority).collect())).collect()
    }

    #[test]
    fn critical_pods_go_last_in_their_part_of_the_time() {
        let both = Settings::parse("30s", "10s", "").unwrap();
        assert_eq!(
            grouped(&both, &[2_000_001_000, 5, -7, CRITICAL_PRIORITY - 1, CRITICAL_PRIORITY]),
            [(20, vec![5, -7, CRITICAL_PRIORITY - 1]), (10, vec![2_000_001_000, CRITICAL_PRIORITY])]
        );
        assert_eq!(grouped(&both, &[CRITICAL_PRIORITY]), [(10, vec![CRITICAL_PRIORITY])]);
        assert!(Settings::parse("0", "0", "").unwrap().is_empty());
    }

    #[test]
    fn priorities_have_times_of_their_own() {
        let list = Settings::parse("30s", "10s", "1000=1m, 10=5s,100000=3s").unwrap();
        assert_eq!(
            grouped(&list, &[9, 10, 999, 1000, 99_999, 100_000, 7_000_000]),
            [(5, vec![9, 10, 999]), (60, vec![1000, 99_999]), (3, vec![100_000, 7_000_000])]
        );
    }

    #[test]
    fn says_what_is_wrong() {
        for (all, critical, list, words) in [
            ("10s", "20s", "", "10 s for all pods are less than 20 s"),
            ("x", "0", "", "invalid duration \"x\""),
            ("1s", "0", "a=1s", "invalid priority \"a\""),
            ("1s", "0", "1", "is not priority=time"),
            ("1s", "0", "1=1s,1=2s", "twice"),
        ] {
            let error = Settings::parse(all, critical, list).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
