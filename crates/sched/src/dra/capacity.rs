//! How much of a device a request takes, where several claims may have parts of it.

use super::read::{Amounts, Capacity, Device, Policy};
use machinery::quantity::Quantity;

/// What of a capacity is taken for this request; none: the default, or all.
fn taken(request: Option<Quantity>, capacity: &Capacity) -> Quantity {
    let policy = capacity.policy.as_ref();
    let Some(request) = request else {
        return policy.and_then(|p| p.default).unwrap_or(capacity.value);
    };
    match policy {
        Some(Policy { min: Some(min), step, .. }) => request.stepped(*min, *step),
        Some(Policy { values, .. }) if !values.is_empty() => {
            values.iter().copied().filter(|v| *v >= request).min().unwrap_or(request)
        }
        _ => request,
    }
}

fn allowed(amount: Quantity, policy: &Policy) -> bool {
    if policy.default == Some(amount) {
        return true;
    }
    let in_range = policy.max.is_none_or(|max| amount <= max)
        && policy.min.is_none_or(|min| amount.stepped(min, policy.step) == amount);
    in_range && (policy.values.is_empty() || policy.values.contains(&amount))
}

/// What is taken by name; `None`: the device does not have that, or not any more.
pub fn consumption(driver: &str, device: &Device, wanted: &Amounts, used: &Amounts) -> Option<Amounts> {
    let own = |name: &str| {
        let short = name.strip_prefix(driver).and_then(|n| n.strip_prefix('/'));
        let candidates =
            [Some(name.to_string()), short.map(str::to_string), Some(format!("{driver}/{name}"))];
        candidates.into_iter().flatten().find(|n| device.capacity.contains_key(n))
    };
    let wanted: Amounts = wanted.iter().map(|(n, q)| Some((own(n)?, *q))).collect::<Option<_>>()?;
    let mut all = Amounts::new();
    for (name, capacity) in &device.capacity {
        let amount = taken(wanted.get(name).copied(), capacity);
        let before = used.get(name).copied().unwrap_or(Quantity::ZERO);
        let fits = capacity.policy.as_ref().is_none_or(|p| allowed(amount, p))
            && amount.sign() >= 0
            && amount.add(before) <= capacity.value;
        if !fits {
            return None;
        }
        all.insert(name.clone(), amount);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::super::read::Slice;
    use super::*;
    use serde_json::{Value, json};

    fn amounts(list: &[(&str, &str)]) -> Amounts {
        list.iter().map(|(n, q)| (n.to_string(), q.parse().unwrap())).collect()
    }

    fn takes(capacity: Value, wanted: &[(&str, &str)], used: &[(&str, &str)]) -> Option<String> {
        let device = json!({"name": "d", "allowMultipleAllocations": true, "capacity": capacity});
        let slice = Slice::read(&json!({"spec": {"driver": "x.io", "devices": [device]}}));
        let taken = consumption("x.io", &slice.devices[0], &amounts(wanted), &amounts(used))?;
        Some(taken.values().map(|q| q.to_string()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn parts_of_a_device() {
        let range = json!({"mem": {"value": "10Gi", "requestPolicy": {"default": "1Gi",
            "validRange": {"min": "2Gi", "max": "6Gi", "step": "2Gi"}}}});
        let of = |wanted: &str, used: &str| takes(range.clone(), &[("mem", wanted)], &[("mem", used)]);
        assert_eq!(of("3Gi", "0").as_deref(), Some("4Gi"), "rounded up to a step");
        assert_eq!(of("1Gi", "0").as_deref(), Some("2Gi"), "at least the least");
        assert_eq!(of("7Gi", "0"), None, "more than one may have");
        assert_eq!((of("4Gi", "6Gi").as_deref(), of("4Gi", "7Gi")), (Some("4Gi"), None));
        assert_eq!(takes(range.clone(), &[], &[]).as_deref(), Some("1Gi"), "the default, whatever the range");
        assert_eq!(takes(range.clone(), &[("x.io/mem", "2Gi")], &[]).as_deref(), Some("2Gi"));
        assert_eq!(takes(range, &[("y.io/mem", "2Gi")], &[]), None, "nobody's");
        let values =
            json!({"n": {"value": "8", "requestPolicy": {"default": "1", "validValues": ["1", "4"]}}});
        assert_eq!(takes(values.clone(), &[("n", "2")], &[]).as_deref(), Some("4"));
        assert_eq!(takes(values, &[("n", "5")], &[]), None);
        assert_eq!(takes(json!({"n": {"value": "8"}}), &[], &[]).as_deref(), Some("8"), "all of it");
    }
}
