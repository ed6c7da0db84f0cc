//! Names of parameters, and what may follow them. Pure.

use super::invalid;
use crate::service::{AwsError, Call};
use ecs_model::refusal::refuse_if;

/// Levels of a path.
const DEPTH_MAX: usize = 15;

/// A parameter, and which version of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// The parameter's name.
    pub name: String,
    /// A version's number or label; "" for the newest.
    pub selector: String,
}

/// Reads `name`, `name:3`, `name:label` or an ARN with the same.
pub(super) fn reference(text: &str) -> Reference {
    let rest = match text.strip_prefix("arn:").and_then(|arn| arn.splitn(5, ':').nth(4)) {
        // `parameter/a/b` stands for `/a/b`, `parameter/a` for `a`.
        Some(resource) => {
            let name = resource.strip_prefix("parameter").unwrap_or(resource);
            let flat = name.strip_prefix('/').filter(|n| !n.contains('/'));
            flat.unwrap_or(name)
        }
        None => text,
    };
    let (name, selector) = rest.split_once(':').unwrap_or((rest, ""));
    Reference { name: name.into(), selector: selector.into() }
}

/// A name that a new parameter may have.
pub(super) fn check_new(name: &str) -> Result<(), AwsError> {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"_.-/".contains(&b);
    if !name.bytes().all(letter) {
        return Err(invalid(
            "Parameter name: can't be prefixed with \"ssm\" (case-insensitive). If formed as a path, it can consist of \
             sub-paths divided by slash symbol; each sub-path can be formed as a mix of letters, numbers and the \
             following 3 symbols .-_",
        ));
    }
    if name.contains('/') && !name.starts_with('/') {
        return Err(invalid("Parameter name must be a fully qualified name."));
    }
    let depth = name.split('/').filter(|p| !p.is_empty()).count();
    if depth > DEPTH_MAX {
        return Err(AwsError::client(
            "HierarchyLevelLimitExceededException",
            format!("Parameter name must have at most {DEPTH_MAX} levels"),
        ));
    }
    let first = name.trim_start_matches('/').to_ascii_lowercase();
    refuse_if(first.starts_with("aws") || first.starts_with("ssm"), || {
        AwsError::client("AccessDeniedException", format!("No access to reserved parameter name: {name}."))
    })
}

/// The parameter's ARN.
pub(super) fn arn(call: &Call, name: &str) -> String {
    let slash = if name.starts_with('/') { "" } else { "/" };
    format!("arn:aws:ssm:{}:{}:parameter{slash}{name}", call.region, call.caller.account)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_in_all_forms() {
        let of = |text: &str| {
            let reference = reference(text);
            (reference.name, reference.selector)
        };
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(of("/a/b:3"), pair("/a/b", "3"));
        assert_eq!(of("plain"), pair("plain", ""));
        assert_eq!(of("arn:aws:ssm:us-east-1:123456789012:parameter/a/b:prod"), pair("/a/b", "prod"));
        assert_eq!(of("arn:aws:ssm:us-east-1:123456789012:parameter/a"), pair("a", ""));
    }

    #[test]
    fn names_of_new_parameters() {
        assert!(check_new("/a/b_c.D-1").is_ok() && check_new("a").is_ok());
        for bad in ["a/b", "a b", "/aws/x", "ssm-x", &"/a".repeat(16)] {
            assert!(check_new(bad).is_err(), "{bad}");
        }
    }
}
