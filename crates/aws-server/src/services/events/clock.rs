//! Rules with schedules: one "Scheduled Event" at each time. Runs in one server of several.

use super::engine::{Engine, Rule};
use crate::services::kept::text;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// A wait is cut into pieces: a host that sleeps or sets its clock is noticed.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(60);

/// The rules that are due in `(from, to]` and the first time after `to`. Pure.
fn due(
    rules: &[Arc<Rule>],
    from: Timestamp,
    to: Timestamp,
) -> (Vec<(Arc<Rule>, Timestamp)>, Option<Timestamp>) {
    let (mut now, mut soonest) = (Vec::new(), None);
    for rule in rules.iter().filter(|r| r.is_enabled()) {
        let Some(schedule) = &rule.schedule else { continue };
        let start = rule.spec["CreatedAt"].as_f64().and_then(|s| Timestamp::from_second(s as i64).ok());
        let start = start.unwrap_or_default();
        let mut next = schedule.next(start, from);
        if let Some(time) = next.filter(|t| *t <= to) {
            // Late by more than one period: once is enough.
            now.push((rule.clone(), time));
            next = schedule.next(start, to);
        }
        soonest = [soonest, next].into_iter().flatten().min();
    }
    (now, soonest)
}

fn event(rule: &Rule, time: Timestamp) -> Value {
    json!({
        "version": "0", "id": uuid::Uuid::new_v4().to_string(), "detail-type": "Scheduled Event",
        "source": "aws.events", "account": rule.account, "region": rule.region,
        "time": machinery::time::format(time), "resources": [text(&rule.spec, "Arn")], "detail": {},
    })
}

/// Keeps the schedules, until dropped.
pub async fn run(engine: Arc<Engine>) {
    let rules = engine.rules().clone();
    rules.wait_synced().await;
    let mut changed = rules.changed();
    let mut seen = Timestamp::now();
    loop {
        let now = Timestamp::now();
        let all: Vec<Arc<Rule>> = rules.list().iter().filter_map(|o| o.view::<Rule>().ok()).collect();
        // A clock that was set back repeats nothing.
        let (ready, soonest) = due(&all, seen.min(now), now);
        for (rule, time) in ready {
            engine.deliver(&rule, &Arc::new(event(&rule, time)));
        }
        seen = now;
        let left = soonest.map(|t| Duration::try_from(t.duration_since(now)).unwrap_or_default());
        tokio::select! {
            () = wait(left) => {}
            _ = changed.changed() => {}
        }
    }
}

/// Nothing scheduled: until a rule changes.
async fn wait(left: Option<Duration>) {
    match left {
        Some(left) => tokio::time::sleep(left.min(LOOK_AGAIN_MAX)).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_schema::View;

    fn rule(schedule: &str, state: &str) -> Arc<Rule> {
        let spec = json!({"Name": "r", "Arn": "arn:aws:events:us-east-1:123456789012:rule/r", "State": state,
            "ScheduleExpression": schedule, "CreatedAt": 0.0});
        Arc::new(Rule::decode(json!({"spec": spec}).to_string().as_bytes()).unwrap())
    }

    #[test]
    fn what_is_due_is_due_once() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let rules = [
            rule("rate(1 minute)", "ENABLED"),
            rule("rate(1 hour)", "ENABLED"),
            rule("rate(1 minute)", "DISABLED"),
        ];
        let (ready, soonest) = due(&rules, at(10), at(59));
        assert_eq!((ready.len(), soonest), (0, Some(at(60))));
        let (ready, soonest) = due(&rules, at(59), at(60));
        assert_eq!((ready.len(), soonest), (1, Some(at(120))));
        // An hour's pause: each once, and on from there.
        let (ready, soonest) = due(&rules, at(60), at(3_600));
        assert_eq!((ready.len(), soonest), (2, Some(at(3_660))));
        assert_eq!(event(&ready[0].0, ready[0].1)["time"], "1970-01-01T00:02:00Z");
    }
}
