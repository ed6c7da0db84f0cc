//! Taints that an administrator puts on devices (DeviceTaintRule), beside those that drivers tell of.

use super::read::{DeviceId, text};
use crate::model::Taint;
use serde_json::Value;

/// A rule, as far as placing needs it.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Driver, pool and device, each where it matters; `None`: the rule selects nothing.
    selector: Option<[Option<String>; 3]>,
    /// What those get.
    pub taint: Taint,
}

impl Rule {
    /// Reads a DeviceTaintRule.
    pub fn read(object: &Value) -> Rule {
        let (selector, taint) = (&object["spec"]["deviceSelector"], &object["spec"]["taint"]);
        let part = |key: &str| selector[key].as_str().map(str::to_string);
        Rule {
            selector: selector.is_object().then(|| ["driver", "pool", "device"].map(part)),
            taint: Taint {
                key: text(taint, "key").into(),
                value: text(taint, "value").into(),
                effect: text(taint, "effect").into(),
            },
        }
    }

    /// Does it select this device (driver, pool, name)?
    pub fn selects(&self, device: [&str; 3]) -> bool {
        let fits = |(own, name): (&Option<String>, &str)| own.as_deref().is_none_or(|own| own == name);
        self.selector.as_ref().is_some_and(|parts| parts.iter().zip(device).all(fits))
    }
}

/// The taints of rules that select the device.
pub fn taints<'a>(
    rules: impl Iterator<Item = &'a Rule>,
    (driver, pool, name): &DeviceId,
) -> impl Iterator<Item = &'a Taint> {
    rules.filter(move |rule| rule.selects([driver, pool, name])).map(|rule| &rule.taint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_empty_selector_is_for_all_and_none_for_none() {
        let selects = |selector: Value| {
            Rule::read(&json!({"spec": {"deviceSelector": selector}})).selects(["x.io", "p", "d"])
        };
        assert!(selects(json!({})) && selects(json!({"driver": "x.io", "device": "d"})));
        assert!(!selects(Value::Null) && !selects(json!({"driver": "x.io", "pool": "q"})));
    }
}
