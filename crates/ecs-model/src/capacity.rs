//! Capacity provider strategies: which provider each of some tasks goes to.

use crate::refusal::Refusal;
use machinery::kinds::get::{int, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Fargate on demand.
pub const FARGATE: &str = "FARGATE";
/// Fargate that can be taken away.
pub const FARGATE_SPOT: &str = "FARGATE_SPOT";
/// Most providers of a strategy.
const ITEMS_MAX: usize = 20;
const WEIGHT_MAX: i64 = 1000;
const BASE_MAX: i64 = 100_000;

/// Is that provider one of the two that every cluster may use?
pub fn is_fargate(provider: &str) -> bool {
    matches!(provider, FARGATE | FARGATE_SPOT)
}

/// One line of a strategy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name.
    pub provider: String,
    /// Tasks that it gets first.
    pub base: u64,
    /// Its share of the rest.
    pub weight: u64,
}

/// A checked strategy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strategy(Vec<Item>);

impl Strategy {
    /// Reads `capacityProviderStrategy`; `to_name` turns an ARN into a name.
    pub fn parse(items: &[Value], to_name: impl Fn(&str) -> String) -> Result<Strategy, Refusal> {
        let refuse = |words: &str| Err(Refusal::parameter(words));
        if items.len() > ITEMS_MAX {
            return refuse("The capacity provider strategy cannot contain more than 20 capacity providers.");
        }
        let mut out: Vec<Item> = Vec::new();
        for item in items {
            let (base, weight) = (int(item, "/base").unwrap_or(0), int(item, "/weight").unwrap_or(0));
            if !(0..=BASE_MAX).contains(&base) || !(0..=WEIGHT_MAX).contains(&weight) {
                return refuse(
                    "The base value must be between 0 and 100000 and the weight value between 0 and 1000.",
                );
            }
            let provider = to_name(text(item, "/capacityProvider"));
            if out.iter().any(|i| i.provider == provider) {
                return refuse(
                    "A capacity provider can only be specified once in a capacity provider strategy.",
                );
            }
            out.push(Item { provider, base: base.unsigned_abs(), weight: weight.unsigned_abs() });
        }
        if out.iter().filter(|i| i.base > 0).count() > 1 {
            return refuse(
                "Only one capacity provider in a capacity provider strategy can have a base defined.",
            );
        }
        // A single provider without a weight has it all.
        if let [only] = out.as_mut_slice()
            && items[0].get("weight").is_none()
        {
            only.weight = 1;
        }
        if !out.is_empty() && out.iter().all(|i| i.weight == 0) {
            return refuse(
                "There are no capacity providers in the capacity provider strategy with a weight value greater than \
                 zero. Specify a weight value greater than zero and try again.",
            );
        }
        let fargate = out.iter().filter(|i| is_fargate(&i.provider)).count();
        if fargate > 0 && fargate < out.len() {
            return refuse(
                "A capacity provider strategy cannot contain a mix of capacity providers using Auto Scaling groups and \
                 Fargate providers. Specify one or the other and try again.",
            );
        }
        Ok(Strategy(out))
    }

    /// Its lines.
    pub fn items(&self) -> &[Item] {
        &self.0
    }

    /// As ECS echoes it.
    pub fn document(&self) -> Value {
        let line = |i: &Item| json!({"capacityProvider": i.provider, "weight": i.weight, "base": i.base});
        self.0.iter().map(line).collect()
    }

    /// The providers of `count` more tasks, one each; `running` are there already. Bases first, then by weight.
    pub fn split(&self, running: &BTreeMap<String, u64>, count: usize) -> Vec<String> {
        let mut have: Vec<u64> =
            self.0.iter().map(|i| running.get(&i.provider).copied().unwrap_or(0)).collect();
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            let Some(at) = self.next(&have) else { break };
            have[at] += 1;
            out.push(self.0[at].provider.clone());
        }
        out
    }

    fn next(&self, have: &[u64]) -> Option<usize> {
        if let Some(at) = self.0.iter().zip(have).position(|(item, have)| *have < item.base) {
            return Some(at);
        }
        // Balinski and Young's quota method: of those below their share of one task more, the one with the least
        // (beyond base + 1) / weight. Nobody comes to be a whole task away from the exact share.
        let weighted = || self.0.iter().zip(have).enumerate().filter(|(_, (i, _))| i.weight > 0);
        let beyond = |item: &Item, have: u64| u128::from(have.saturating_sub(item.base));
        let tasks: u128 = weighted().map(|(_, (item, have))| beyond(item, *have)).sum();
        let total: u128 = self.0.iter().map(|i| u128::from(i.weight)).sum();
        let below = weighted()
            .filter(|(_, (item, have))| beyond(item, **have) * total < u128::from(item.weight) * (tasks + 1));
        let share = |(at, (item, have)): &(usize, (&Item, &u64))| {
            ((beyond(item, **have) + 1) * 1_000_000_000 / u128::from(item.weight), *at)
        };
        below.min_by_key(share).map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    fn strategy(items: Value) -> Result<Strategy, Refusal> {
        Strategy::parse(items.as_array().unwrap(), str::to_string)
    }

    #[test]
    fn base_first_then_by_weight() {
        let items = json!([{"capacityProvider": "FARGATE", "base": 2, "weight": 1},
            {"capacityProvider": "FARGATE_SPOT", "weight": 3}]);
        let split = strategy(items).unwrap().split(&BTreeMap::new(), 10);
        let spot = split.iter().filter(|p| *p == FARGATE_SPOT).count();
        assert_eq!((split.len(), spot, &*split[0], &*split[1]), (10, 6, FARGATE, FARGATE));
        let only = strategy(json!([{"capacityProvider": "FARGATE_SPOT"}])).unwrap();
        assert_eq!(only.document(), json!([{"capacityProvider": "FARGATE_SPOT", "weight": 1, "base": 0}]));
        assert_eq!(Strategy::default().split(&BTreeMap::new(), 3), Vec::<String>::new());
    }

    #[test]
    fn refusals() {
        let item = |name: &str, base: i64, weight: i64| json!({"capacityProvider": name, "base": base, "weight": weight});
        for (items, words) in [
            (json!([item("a", 0, 0), item("b", 0, 0)]), "There are no capacity providers"),
            (json!([item("a", 1, 1), item("b", 1, 1)]), "Only one capacity provider"),
            (json!([item("a", 0, 1), item("a", 0, 1)]), "A capacity provider can only"),
            (
                json!([item("FARGATE", 0, 1), item("b", 0, 1)]),
                "A capacity provider strategy cannot contain a mix",
            ),
            (json!([item("a", -1, 1)]), "The base value must be"),
            (json!([item("a", 0, 1001)]), "The base value must be"),
            (vec![item("a", 0, 1); 21].into(), "The capacity provider strategy cannot contain more"),
        ] {
            let refused = strategy(items).unwrap_err();
            assert!(refused.message.starts_with(words), "{refused}");
        }
    }

    proptest! {
        /// Beyond the base, every provider is less than one task away from its exact share.
        #[test]
        fn shares_are_exact(weights in prop::collection::vec(0u64..10, 1..5), base in 0u64..5, count in 0usize..60) {
            if weights.iter().all(|w| *w == 0) {
                return Ok(());
            }
            let items: Vec<Item> = weights.iter().enumerate()
                .map(|(i, w)| Item { provider: format!("p{i}"), base: if i == 0 { base } else { 0 }, weight: *w }).collect();
            let split = Strategy(items.clone()).split(&BTreeMap::new(), count);
            prop_assert_eq!(split.len(), count);
            let rest = (count as u64).saturating_sub(base);
            let total: u64 = weights.iter().sum();
            for item in items {
                let got = split.iter().filter(|p| **p == item.provider).count() as u64;
                let beyond = got.saturating_sub(item.base.min(count as u64));
                let share = rest * item.weight;
                prop_assert!((beyond * total).abs_diff(share) < total, "{beyond} of {rest} at {}/{total}", item.weight);
                prop_assert!(item.weight > 0 || beyond == 0);
            }
        }
    }
}
