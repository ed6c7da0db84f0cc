//! From a proposed size to the one that is set: stabilisation windows, rate limits, bounds.
//!
//! Pure: the history is a value that the caller keeps. Words and reasons are upstream's (`podautoscaler/horizontal.go`,
//! Kubernetes v1.36). Deliberately not here: where the proposal comes from ([`super::replicas`]).

use jiff::{SignedDuration, Timestamp};
use machinery::kinds::get::{int, list, text};
use serde_json::Value;

/// How long a lower proposal must last before it is followed, where the autoscaler does not say.
pub const SCALE_DOWN_WINDOW_SECONDS: i64 = 300;
/// Without behaviour, a target at most doubles at once; below this size it may grow to it.
const DOUBLING_FROM: i64 = 4;

/// A change of the size that was made.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Change {
    at: Timestamp,
    by: i64,
}

/// What is remembered of an autoscaler between two looks.
#[derive(Clone, Debug, Default)]
pub struct History {
    proposals: Vec<(Timestamp, i64)>,
    grown: Vec<Change>,
    shrunk: Vec<Change>,
}

/// A proposal and its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Proposal {
    /// Size now.
    pub current: i64,
    /// Size that the metrics ask for.
    pub wanted: i64,
    /// Lower bound.
    pub min: i64,
    /// Upper bound.
    pub max: i64,
    /// Now.
    pub now: Timestamp,
}

/// The size to set, with what two conditions say of it: reason and message.
#[derive(Clone, Debug, PartialEq)]
pub struct Settled {
    /// Size to set.
    pub replicas: i64,
    /// `AbleToScale`, which is true.
    pub able: (&'static str, &'static str),
    /// `ScalingLimited`.
    pub limited: (bool, &'static str, &'static str),
}

const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const HELD_DOWN: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const HELD_UP: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const WITHIN: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FAST_UP: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const TOO_FAST_DOWN: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: (&str, &str) =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: (&str, &str) =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");

impl History {
    /// The first look: the size that is there counts as proposed, so that a restart shrinks nothing at once.
    pub fn begin(&mut self, current: i64, now: Timestamp) {
        if self.proposals.is_empty() {
            self.proposals.push((now, current));
        }
    }

    /// Applies `behavior` (`null`: the classic rules) and remembers the proposal.
    pub fn settle(&mut self, behavior: &Value, ask: Proposal) -> Settled {
        let (up, down) =
            (window(&behavior["scaleUp"], 0), window(&behavior["scaleDown"], SCALE_DOWN_WINDOW_SECONDS));
        let (up_from, down_from) = (before(ask.now, up), before(ask.now, down));
        let (mut lowest, mut highest) = (ask.wanted, ask.wanted);
        for (at, size) in &self.proposals {
            if *at > up_from {
                lowest = lowest.min(*size);
            }
            if *at > down_from {
                highest = highest.max(*size);
            }
        }
        self.proposals.retain(|(at, _)| *at >= up_from.min(down_from));
        self.proposals.push((ask.now, ask.wanted));
        let steady = ask.current.max(lowest).min(highest);
        let able = match (steady == ask.wanted, ask.wanted >= ask.current) {
            (true, _) => READY,
            (false, true) => HELD_DOWN,
            (false, false) => HELD_UP,
        };
        let (replicas, (reason, message)) = match behavior.is_null() {
            true => classic(steady, &ask),
            false => self.at_rate(behavior, steady, &ask),
        };
        Settled { replicas, able, limited: (replicas != steady, reason, message) }
    }

    fn at_rate(&self, behavior: &Value, steady: i64, ask: &Proposal) -> (i64, (&'static str, &'static str)) {
        if steady > ask.current {
            let fastest = self.most(&behavior["scaleUp"], ask).max(ask.current);
            let (most, why) = if ask.max > fastest { (fastest, TOO_FAST_UP) } else { (ask.max, TOO_MANY) };
            if steady > most {
                return (most, why);
            }
        } else if steady < ask.current {
            let fastest = self.least(&behavior["scaleDown"], ask).min(ask.current);
            let (least, why) = if ask.min < fastest { (fastest, TOO_FAST_DOWN) } else { (ask.min, TOO_FEW) };
            if steady < least {
                return (least, why);
            }
        }
        (steady, WITHIN)
    }

    /// The size when the policy's period began.
    fn at_start(&self, policy: &Value, ask: &Proposal) -> i64 {
        let from = before(ask.now, int(policy, "/periodSeconds").unwrap_or(0));
        let sum = |changes: &[Change]| changes.iter().filter(|c| c.at > from).map(|c| c.by).sum::<i64>();
        ask.current - sum(&self.grown) + sum(&self.shrunk)
    }

    fn most(&self, rules: &Value, ask: &Proposal) -> i64 {
        let allowed = list(rules, "/policies").iter().map(|policy| {
            let (start, value) = (self.at_start(policy, ask), int(policy, "/value").unwrap_or(0));
            match text(policy, "/type") {
                "Pods" => start + value,
                // Rounded up: a small target must be able to grow.
                _ => (start * (100 + value)).div_euclid(100) + i64::from(start * (100 + value) % 100 != 0),
            }
        });
        match text(rules, "/selectPolicy") {
            "Disabled" => ask.current,
            "Min" => allowed.min().unwrap_or(ask.max),
            _ => allowed.max().unwrap_or(ask.max),
        }
    }

    fn least(&self, rules: &Value, ask: &Proposal) -> i64 {
        let allowed = list(rules, "/policies").iter().map(|policy| {
            let (start, value) = (self.at_start(policy, ask), int(policy, "/value").unwrap_or(0));
            match text(policy, "/type") {
                "Pods" => start - value,
                _ => (start * (100 - value)).div_euclid(100),
            }
        });
        match text(rules, "/selectPolicy") {
            "Disabled" => ask.current,
            // The smallest change leaves the most.
            "Min" => allowed.max().unwrap_or(ask.min),
            _ => allowed.min().unwrap_or(ask.min),
        }
    }

    /// Remembers a change that was made, as long as a policy of that direction looks back.
    pub fn changed(&mut self, behavior: &Value, from: i64, to: i64, now: Timestamp) {
        if behavior.is_null() {
            return;
        }
        let (changes, side) = if to > from {
            (&mut self.grown, "/scaleUp/policies")
        } else {
            (&mut self.shrunk, "/scaleDown/policies")
        };
        let longest = list(behavior, side).iter().filter_map(|p| int(p, "/periodSeconds")).max().unwrap_or(0);
        changes.retain(|c| c.at >= before(now, longest));
        changes.push(Change { at: now, by: (to - from).abs() });
    }
}

fn classic(steady: i64, ask: &Proposal) -> (i64, (&'static str, &'static str)) {
    let fastest = (2 * ask.current).max(DOUBLING_FROM);
    let (most, why) = if ask.max > fastest { (fastest, TOO_FAST_UP) } else { (ask.max, TOO_MANY) };
    match steady {
        n if n < ask.min => (ask.min, TOO_FEW),
        n if n > most => (most, why),
        n => (n, WITHIN),
    }
}

fn window(rules: &Value, otherwise: i64) -> i64 {
    int(rules, "/stabilizationWindowSeconds").unwrap_or(otherwise)
}

fn before(now: Timestamp, seconds: i64) -> Timestamp {
    now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;
    use serde_json::json;

    fn ask(current: i64, wanted: i64, second: i64) -> Proposal {
        Proposal { current, wanted, min: 1, max: 20, now: at(second) }
    }

    #[test]
    fn classic_growth_at_most_doubles_and_shrinking_waits() {
        let mut history = History::default();
        history.begin(1, at(0));
        let grown = history.settle(&Value::Null, ask(1, 20, 15));
        assert_eq!((grown.replicas, grown.limited.0, grown.limited.1), (4, true, "ScaleUpLimit"));
        let more = history.settle(&Value::Null, Proposal { max: 6, ..ask(4, 9, 30) });
        assert_eq!((more.replicas, more.limited.1), (6, "TooManyReplicas"));
        let held = history.settle(&Value::Null, Proposal { max: 30, ..ask(20, 1, 60) });
        assert_eq!((held.replicas, held.able.0), (20, "ScaleDownStabilized"));
        let least = history.settle(&Value::Null, ask(20, 0, 800));
        assert_eq!(
            (least.replicas, least.able.0, least.limited.1),
            (1, "ReadyForNewScale", "TooFewReplicas")
        );
    }

    #[test]
    fn policies_limit_the_rate_over_their_period() {
        let behavior = json!({
            "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
                {"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]},
            "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
                {"type": "Pods", "value": 3, "periodSeconds": 60}, {"type": "Percent", "value": 10, "periodSeconds": 60}]}});
        let mut history = History::default();
        history.begin(3, at(0));
        assert_eq!(history.settle(&behavior, ask(3, 20, 1)).replicas, 5);
        history.changed(&behavior, 3, 5, at(1));
        let held = history.settle(&behavior, ask(5, 20, 30));
        assert_eq!((held.replicas, held.limited), (5, (true, TOO_FAST_UP.0, TOO_FAST_UP.1)));
        assert_eq!(history.settle(&behavior, ask(5, 20, 62)).replicas, 8, "half of 5, rounded up");
        let down = history.settle(&behavior, ask(20, 1, 100));
        assert_eq!(
            (down.replicas, down.limited.1),
            (18, "ScaleDownLimit"),
            "ten of a hundred is the smaller change"
        );
        history.changed(&behavior, 20, 18, at(100));
        assert_eq!(history.settle(&behavior, ask(18, 1, 130)).replicas, 18);
        let off = json!({"scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Disabled", "policies": []}});
        assert_eq!(history.settle(&off, ask(18, 1, 300)).replicas, 18);
    }

    #[test]
    fn windows_hold_both_directions() {
        let behavior = json!({"scaleUp": {"stabilizationWindowSeconds": 120, "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 900, "periodSeconds": 15}]}});
        let mut history = History::default();
        history.begin(2, at(0));
        let held = history.settle(&behavior, ask(2, 9, 15));
        assert_eq!((held.replicas, held.able.0), (2, "ScaleUpStabilized"));
        assert_eq!(
            history.settle(&behavior, ask(2, 7, 130)).replicas,
            7,
            "the lowest of the last two minutes"
        );
        assert_eq!(history.settle(&behavior, ask(7, 3, 140)).able.0, "ScaleDownStabilized");
    }
}
