//! Conditions of rules: checked and completed as ELB echoes them. Pure.

use super::find::{invalid, refused};
use crate::service::{AwsError, Outcome};
use crate::services::kept::{items, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

/// Field, its own configuration's member, and whether plain `Values` are good too.
const FIELDS: [(&str, &str, bool); 6] = [
    ("host-header", "HostHeaderConfig", true),
    ("path-pattern", "PathPatternConfig", true),
    ("http-header", "HttpHeaderConfig", false),
    ("http-request-method", "HttpRequestMethodConfig", false),
    ("query-string", "QueryStringConfig", false),
    ("source-ip", "SourceIpConfig", false),
];
/// Values of all conditions of a rule; ELB's limit.
const VALUES_MAX: usize = 5;

/// Checks and completes the conditions of a rule.
pub(super) fn checked(given: &Value) -> Outcome {
    refuse_if(items(given).is_empty(), || invalid("A condition must be specified"))?;
    let all: Vec<Value> = items(given).iter().map(one).collect::<Result<_, _>>()?;
    let count: usize = all.iter().map(values).map(<[Value]>::len).sum();
    if count > VALUES_MAX {
        return Err(invalid(format!("A rule can only have '{VALUES_MAX}' condition values")));
    }
    Ok(json!(all))
}

/// The values of a checked condition.
fn values(condition: &Value) -> &[Value] {
    let own = FIELDS.iter().find(|(field, ..)| *field == text(condition, "Field"));
    own.map_or(&[], |(_, config, _)| items(&condition[*config]["Values"]))
}

fn one(condition: &Value) -> Result<Value, AwsError> {
    let field = text(condition, "Field");
    let Some((_, config, plain)) = FIELDS.iter().find(|(f, ..)| *f == field) else {
        let names: Vec<&str> = FIELDS.iter().map(|(f, ..)| *f).collect();
        return Err(invalid(format!("Condition field '{field}' must be one of '[{}]'", names.join(", "))));
    };
    refuse_if(
        !items(&condition["RegexValues"]).is_empty() || !items(&condition[*config]["RegexValues"]).is_empty(),
        || refused("InvalidConfigurationRequest", "Gantry has no regular expressions in conditions"),
    )?;
    let mut out = json!({"Field": field, *config: condition[*config]});
    if out[*config].is_null() {
        if !plain || items(&condition["Values"]).is_empty() {
            return Err(invalid(format!("A condition of field '{field}' must have values in {config}")));
        }
        out[*config] = json!({"Values": condition["Values"]});
    }
    if items(&out[*config]["Values"]).is_empty() {
        return Err(invalid(format!("A condition of field '{field}' must have at least one value")));
    }
    if *plain {
        out["Values"] = out[*config]["Values"].clone();
    }
    if field == "http-header" && text(&out[*config], "HttpHeaderName").is_empty() {
        return Err(invalid("A condition of field 'http-header' must have a header name"));
    }
    let bad = |v: &&Value| v.as_str().is_none_or(|v| v.parse::<cidr::Cidr>().is_err());
    if field == "source-ip"
        && let Some(bad) = items(&out[*config]["Values"]).iter().find(bad)
    {
        return Err(invalid(format!("The source IP {bad} is not a valid CIDR block")));
    }
    Ok(out)
}

/// A range of addresses, only to see whether it is one.
mod cidr {
    pub struct Cidr;

    impl std::str::FromStr for Cidr {
        type Err = ();
        fn from_str(text: &str) -> Result<Self, ()> {
            let (address, prefix) = text.split_once('/').ok_or(())?;
            let address: std::net::IpAddr = address.parse().map_err(|_| ())?;
            let width = if address.is_ipv4() { 32 } else { 128 };
            prefix.parse::<u8>().ok().filter(|p| *p <= width).map(|_| Cidr).ok_or(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_echoed_in_both_forms() {
        let given = json!([{"Field": "path-pattern", "Values": ["/a/*"]}]);
        let wanted =
            json!([{"Field": "path-pattern", "Values": ["/a/*"], "PathPatternConfig": {"Values": ["/a/*"]}}]);
        assert_eq!(checked(&given).unwrap(), wanted);
        assert_eq!(checked(&wanted).unwrap(), wanted);
    }

    #[test]
    fn refusals() {
        for bad in [
            json!([]),
            json!([{"Field": "x", "Values": ["a"]}]),
            json!([{"Field": "host-header"}]),
            json!([{"Field": "http-header", "HttpHeaderConfig": {"Values": ["a"]}}]),
            json!([{"Field": "source-ip", "SourceIpConfig": {"Values": ["10.0.0.0/33"]}}]),
            json!([{"Field": "path-pattern", "Values": ["1", "2", "3", "4", "5", "6"]}]),
        ] {
            assert_eq!(checked(&bad).unwrap_err().code, "ValidationError", "{bad}");
        }
        let good = json!([{"Field": "source-ip", "SourceIpConfig": {"Values": ["10.0.0.0/8"]}}]);
        assert!(checked(&good).is_ok());
    }
}
