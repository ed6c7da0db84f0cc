//! What the rules of a definition may cost at most, and upstream's limits on that.
//!
//! A rule costs what its expression may ([`Program::cost_max`]), as often as its place can come in one object. A schema
//! without `maxItems`, `maxProperties` and `maxLength` is bounded by what a request can hold.

use super::schema::{Additional, Schema, Ty};
use crate::cel::{Bound, Program, REQUEST_BYTES_MAX, escape};
use crate::field_errors::FieldErrors;

/// Of one rule, as often as it may run for one object.
const RULE_MAX: u64 = 10_000_000;
/// Of all rules of a version.
const SCHEMA_MAX: u64 = 100_000_000;
/// How many of the dearest are named when all together cost too much.
const NAMED_MAX: usize = 4;

/// Bytes that the shortest value of a schema takes in JSON, with upstream's figures.
fn least(schema: &Schema) -> u64 {
    let own = match schema.ty {
        Ty::String | Ty::Array => 2,
        Ty::Boolean => 4,
        Ty::Integer | Ty::Number | Ty::IntOrString | Ty::Any => 1,
        Ty::Object => {
            let required = schema
                .properties
                .iter()
                .filter(|(name, s)| schema.required.contains(name) && s.default.is_none());
            // Quotes, colon and comma.
            required.fold(2, |sum, (name, s)| sum + name.len() as u64 + least(s) + 4)
        }
    };
    if schema.nullable { own.min(4) } else { own }
}

/// A place with rules.
pub struct Own {
    bound: Bound,
    /// How many of it fit into a request.
    most: u64,
}

/// The place of this schema.
pub fn own(schema: &Schema) -> Own {
    Own { bound: bound(schema), most: REQUEST_BYTES_MAX / (least(schema) + 1) }
}

/// How big the values of a schema can be.
fn bound(schema: &Schema) -> Bound {
    let checks = schema.checks.as_deref();
    let room = REQUEST_BYTES_MAX - 2;
    let fields = schema.properties.iter().filter_map(|(key, below)| Some((escape(key)?, bound(below))));
    match (schema.ty, &schema.additional) {
        (Ty::Array, _) => {
            let item = schema.items.as_deref();
            let most = checks.and_then(|c| c.max_items);
            let size = most.unwrap_or_else(|| room / (item.map_or(1, least) + 1));
            let item = item.map(|item| Box::new(bound(item)));
            Bound { size, walked: true, item, ..Bound::default() }
        }
        (Ty::Object, Additional::Of(below)) => {
            let most = checks.and_then(|c| c.max_properties);
            let size = most.unwrap_or_else(|| room / (least(below) + 6));
            let item = Some(Box::new(bound(below)));
            Bound { size, walked: true, item, keyed: true, ..Bound::default() }
        }
        (Ty::String, _) => {
            let longest = checks
                .filter(|c| !c.choices.is_empty())
                .and_then(|c| c.choices.iter().filter_map(|v| v.as_str().map(|s| s.len() as u64)).max());
            let size = match (checks.map_or("", |c| c.format.as_str()), checks.and_then(|c| c.max_length)) {
                ("duration", _) => 32,
                ("date", _) => 12,
                ("date-time", _) => 32,
                ("byte", Some(most)) => most,
                // Lengths are characters, and those have up to four bytes.
                (_, Some(most)) => most.saturating_mul(4),
                (_, None) => longest.unwrap_or(room),
            };
            Bound { size, ..Bound::default() }
        }
        _ => Bound { size: 1, fields: fields.collect(), ..Bound::default() },
    }
}

/// What the rules of one version cost together.
#[derive(Default)]
pub struct Costs {
    total: u64,
    /// Cost and place, the dearest first.
    dearest: Vec<(u64, String)>,
}

impl Costs {
    /// Adds an expression; complains when it alone costs too much.
    pub fn add(
        &mut self,
        (program, own): (&Program, &Own),
        times: Option<u64>,
        (what, at): (&str, &str),
        errors: &mut FieldErrors,
    ) {
        // A message is only made where a rule fails.
        let times = if what == "rule" { times.unwrap_or(own.most) } else { 1 };
        let cost = program.cost_max(&[("self", &own.bound), ("oldSelf", &own.bound)]).saturating_mul(times);
        let at = format!("{at}.{what}");
        if cost > RULE_MAX {
            errors.forbidden(&at, &exceeds(&format!("estimated {what} cost"), cost, RULE_MAX));
        }
        self.total = self.total.saturating_add(cost);
        let place = self.dearest.partition_point(|(c, _)| *c >= cost);
        self.dearest.insert(place, (cost, at));
        self.dearest.truncate(NAMED_MAX);
    }

    /// Complains when all together cost too much. `path` is the schema's.
    pub fn tell(&self, path: &str, errors: &mut FieldErrors) {
        if self.total <= SCHEMA_MAX {
            return;
        }
        for (_, at) in &self.dearest {
            let words =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            errors.forbidden(at, words);
        }
        let what = "estimated rule cost total for entire OpenAPIv3 schema";
        errors.forbidden(path, &exceeds(what, self.total, SCHEMA_MAX));
    }
}

/// In upstream's words.
fn exceeds(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        f if f > 100.0 => "more than 100x".to_string(),
        // Not "1.0x".
        f if f < 1.5 => format!("{f:.6}x"),
        f => format!("{f:.1}x"),
    };
    let advice = "try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared";
    format!("{what} exceeds budget by factor of {factor} ({advice})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::rules;
    use serde_json::{Value, json};

    fn complaints(schema: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        rules::check(&schema, "s", &mut errors);
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    fn words(max_items: Value, max_length: Value, rule: &str) -> Value {
        let mut list = json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": [{"rule": rule}]});
        list["maxItems"] = max_items;
        list["items"]["maxLength"] = max_length;
        json!({"type": "object", "properties": {"l": list}})
    }

    #[test]
    fn rules_that_may_cost_too_much_are_refused_in_upstreams_words() {
        let pairs = "self.all(x, self.all(y, x == y))";
        assert_eq!(complaints(words(json!(10), json!(10), pairs)), Vec::<String>::new());
        let all = complaints(words(Value::Null, Value::Null, pairs));
        let at = "s.properties[l].x-kubernetes-validations[0].rule: Forbidden: ";
        let advice = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";
        assert_eq!(
            all[0],
            format!("{at}estimated rule cost exceeds budget by factor of more than 100x {advice}")
        );
        assert_eq!(
            all[1],
            format!(
                "{at}contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"
            )
        );
        assert_eq!(
            all[2],
            format!(
                "s: Forbidden: estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x {advice}"
            )
        );
        // An ordinary rule over an unbounded list is fine.
        assert_eq!(complaints(words(Value::Null, Value::Null, "size(self) > 0")), Vec::<String>::new());
    }

    /// How often a place can come counts.
    #[test]
    fn places_are_multiplied() {
        let inner = json!({"type": "string", "maxLength": 1_000, "x-kubernetes-validations": [{"rule": "self.matches('^[a-z]{1,9}$')"}]});
        let nested = |items: Value| {
            let mut list = json!({"type": "array", "items": inner});
            list["maxItems"] = items;
            complaints(json!({"type": "object", "properties": {"l": list}}))
        };
        assert!(nested(json!(100)).is_empty());
        assert_eq!(nested(Value::Null).len(), 3, "as many as a request holds");
    }

    #[test]
    fn factors_are_told_as_upstream_does() {
        assert!(exceeds("x", 12_000_000, RULE_MAX).contains("by factor of 1.200000x ("));
        assert!(exceeds("x", 25_000_000, RULE_MAX).contains("by factor of 2.5x ("));
        assert!(exceeds("x", u64::MAX, RULE_MAX).contains("more than 100x"));
    }
}
