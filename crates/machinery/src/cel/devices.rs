//! Selectors of devices (`resource.k8s.io`): expressions over one device of a ResourceSlice.
//!
//! `device` has `driver`, `attributes` and `capacity` by domain and name, and `allowMultipleAllocations`. Names without
//! a domain are in the driver's; a domain that a device does not have is empty.

use super::{Bound, Budget, CALL_COST_MAX, Env, Ext, Key, Program, Semver, Type, Value, compile};
use crate::quantity::Quantity;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// What one selector may cost (upstream's `CELSelectorExpressionMaxCost`).
pub const SELECTOR_COST_MAX: u64 = CALL_COST_MAX;
/// Upstream's limits of names, texts and of attributes a device.
const DOMAIN_MAX: u64 = 63;
const NAME_MAX: u64 = 32;
const TEXT_MAX: u64 = 64;
const ENTRIES_MAX: u64 = 32;

static ENV: LazyLock<Env> = LazyLock::new(|| {
    let fields = [
        ("driver", Type::String),
        ("attributes", Type::map(Type::map(Type::Dyn))),
        ("capacity", Type::map(Type::map(Type::Library("quantity")))),
        ("allowMultipleAllocations", Type::Bool),
    ];
    let fields = fields.map(|(name, ty)| (name.to_string(), ty));
    Env::new().var("device", Type::object("kubernetes.DRADevice", fields))
});

static BOUND: LazyLock<Bound> = LazyLock::new(|| {
    let text = |size| Bound { size, ..Bound::default() };
    let map = |item| Bound {
        size: ENTRIES_MAX,
        walked: true,
        keyed: true,
        item: Some(Box::new(item)),
        ..Bound::default()
    };
    let fields = [
        ("driver", text(DOMAIN_MAX)),
        ("attributes", map(map(text(TEXT_MAX.max(NAME_MAX))))),
        ("capacity", map(map(text(1)))),
        ("allowMultipleAllocations", text(1)),
    ];
    Bound {
        size: 1,
        fields: fields.map(|(name, bound)| (name.to_string(), bound)).into(),
        ..Bound::default()
    }
});

/// A compiled selector.
#[derive(Clone, Debug)]
pub struct Selector(Program);

impl Selector {
    /// Compiles an expression.
    ///
    /// # Errors
    /// Upstream's words.
    pub fn compile(text: &str) -> Result<Selector, String> {
        let program = compile(&ENV, text).map_err(|e| format!("compilation failed: {e}"))?;
        match program.output() {
            Type::Bool | Type::Dyn => Ok(Selector(program)),
            other => Err(format!("must evaluate to bool or the unknown type, not {other}")),
        }
    }

    /// Can it cost more than a selector may?
    pub fn is_too_complex(&self) -> bool {
        self.0.cost_max(&[("device", &BOUND)]) > SELECTOR_COST_MAX
    }

    /// Does it choose the device (of [`value`])?
    ///
    /// # Errors
    /// CEL's words.
    pub fn matches(&self, device: &Value) -> Result<bool, String> {
        let mut budget = Budget::new(SELECTOR_COST_MAX);
        let value = self.0.eval(&[("device", device.clone())], &mut budget).map_err(|e| e.to_string())?;
        let kind = || format!("CEL result of type {} could not be converted to bool", value.type_name());
        value.as_bool().ok_or_else(kind)
    }
}

fn attribute(value: &Json) -> Option<Value> {
    let (kind, value) = value.as_object()?.iter().next()?;
    let version = |v: &Json| Some(Ext::Semver(Semver::parse(v.as_str()?)?).into());
    Some(match kind.as_str() {
        "version" => version(value)?,
        "versions" => Value::List(value.as_array()?.iter().map(version).collect::<Option<_>>()?),
        _ => Value::from_json(value),
    })
}

/// Entries by domain and name.
fn by_domain(driver: &str, entries: &Json, read: impl Fn(&Json) -> Option<Value>) -> Result<Value, String> {
    let mut domains: BTreeMap<&str, BTreeMap<Key, Value>> = BTreeMap::new();
    for (name, entry) in entries.as_object().into_iter().flatten() {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        let value = read(entry).ok_or_else(|| format!("attribute {name}: unsupported attribute value"))?;
        domains.entry(domain).or_default().insert(Key::String(id.into()), value);
    }
    let map = |entries| Value::Map(Arc::new(entries));
    let mut all: BTreeMap<Key, Value> =
        domains.into_iter().map(|(domain, own)| (Key::String(domain.into()), map(own))).collect();
    all.insert(Key::Any, map(BTreeMap::new()));
    Ok(map(all))
}

/// A device of a ResourceSlice as selectors see it.
///
/// # Errors
/// An attribute that cannot be read.
pub fn value(driver: &str, device: &Json) -> Result<Value, String> {
    let amount = |c: &Json| Some(Ext::Quantity(Quantity::from_json(&c["value"])?.ok()?).into());
    let fields = [
        ("driver", driver.into()),
        ("attributes", by_domain(driver, &device["attributes"], attribute)?),
        ("capacity", by_domain(driver, &device["capacity"], amount)?),
        ("allowMultipleAllocations", (device["allowMultipleAllocations"] == true).into()),
    ];
    Ok(Value::map(fields.map(|(name, value)| (name.to_string(), value))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors() {
        let device = json!({"name": "gpu-0", "attributes": {"model": {"string": "a100"}, "index": {"int": 3},
            "other.io/numa": {"int": 1}, "driverVersion": {"version": "1.20.3"}, "fast": {"bool": true}},
            "capacity": {"memory": {"value": "40Gi"}}});
        let device = value("gpu.x.io", &device).unwrap();
        let says = |text: &str| Selector::compile(text).and_then(|s| s.matches(&device));
        for text in [
            "device.driver == 'gpu.x.io' && device.attributes['gpu.x.io'].model == 'a100'",
            "device.attributes['other.io'].numa == 1 && !('numa' in device.attributes['gpu.x.io'])",
            "device.capacity['gpu.x.io'].memory.compareTo(quantity('40Gi')) == 0",
            "device.attributes['gpu.x.io'].driverVersion.isGreaterThan(semver('1.3.0'))",
            "cel.bind(d, device.attributes['gpu.x.io'], d.fast && d.index > 2)",
            "!has(device.attributes['none.io'].x) && !('none.io' in device.attributes)",
            "size(device.attributes) == 2 && device.attributes.all(d, d.endsWith('.io'))",
            "!device.allowMultipleAllocations",
        ] {
            assert_eq!(says(text), Ok(true), "{text}");
        }
        assert_eq!(says("device.attributes['none.io'].x == 1").unwrap_err(), "no such key: x");
        assert!(says("device.nothing").unwrap_err().starts_with("compilation failed: ERROR: <input>:1:7:"));
        assert_eq!(says("'a'").unwrap_err(), "must evaluate to bool or the unknown type, not string");
        let said = says("device.attributes['gpu.x.io'].index").unwrap_err();
        assert_eq!(said, "CEL result of type int could not be converted to bool");
        let nested = "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, \
            device.attributes.all(d, a + b + c + d != ''))))";
        assert!(Selector::compile(nested).unwrap().is_too_complex());
        assert!(!Selector::compile("device.driver == 'x'").unwrap().is_too_complex());
    }
}
