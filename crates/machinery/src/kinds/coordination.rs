//! Lease and LeaseCandidate.

use super::spot::Spot;

use super::{Behaviour, CHECKED, NameRule};
use crate::cel::Semver;
use crate::name;
use crate::table::{Cell, Column};

const GROUP: &str = "coordination.k8s.io";
/// The one strategy that is Kubernetes' own; others have a domain.
pub const OLDEST: &str = "OldestEmulationVersion";

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        group: GROUP,
        resource: "leases",
        create_on_update: true,
        unconditional_update: false,
        validate: lease,

        columns: &[Column::NAME, Column::new("Holder", Cell::Text("/spec/holderIdentity")), Column::AGE],
        ..CHECKED
    },
    Behaviour {
        group: GROUP,
        resource: "leasecandidates",
        name: NameRule::ConfigKey,
        create_on_update: true,
        unconditional_update: false,
        validate: candidate,
        immutable: &["spec.leaseName"],
        columns: &[
            Column::NAME,
            Column::new("LeaseName", Cell::Text("/spec/leaseName")),
            Column::new("BinaryVersion", Cell::Text("/spec/binaryVersion")),
            Column::new("EmulationVersion", Cell::Text("/spec/emulationVersion")),
            Column::new("PingTime", Cell::Text("/spec/pingTime")),
            Column::new("RenewTime", Cell::Text("/spec/renewTime")),
            Column::new("Strategy", Cell::Text("/spec/strategy")),
        ],
        ..CHECKED
    },
];

fn lease(obj: &Spot) {
    let spec = obj.key("spec");
    spec.within("leaseDurationSeconds", 1..=i64::MAX, "must be greater than 0");
    spec.non_negative(&["leaseTransitions"]);
    if spec.v["strategy"].is_string() {
        strategy(&spec);
    }
    if spec.text("strategy").is_empty() && !spec.text("preferredHolder").is_empty() {
        spec.forbidden("preferredHolder", "may only be specified if `strategy` is defined");
    }
}

/// The field is named twice, as upstream does.
fn strategy(spec: &Spot) {
    let own = spec.key("strategy").named(spec.at("strategy.strategy"));
    if own.text("").contains('/') {
        own.like("", name::qualified_name);
    } else {
        own.known("", &[OLDEST]);
    }
}

fn candidate(obj: &Spot) {
    let spec = obj.key("spec");
    spec.need("leaseName");
    let version = |key: &str| {
        let read = Semver::parse(spec.text(key));
        if read.is_none() && !spec.text(key).is_empty() {
            spec.wrong(key, "must be a valid semantic version");
        }
        read
    };
    let (emulated, binary) = (version("emulationVersion"), version("binaryVersion"));
    if spec.need("binaryVersion").is_some()
        && let (Some(emulated), Some(binary)) = (&emulated, &binary)
        && binary.cmp(emulated).is_lt()
    {
        spec.wrong("binaryVersion", "must be greater than or equal to `emulationVersion`");
    }
    let Some(own) = spec.need("strategy") else { return };
    if own == OLDEST && emulated.is_none() {
        spec.required("emulationVersion", "must be specified when `strategy` is 'OldestEmulationVersion'");
    }
    strategy(&spec);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
    use serde_json::Value;
    use serde_json::json;

    fn said(check: fn(&Spot), spec: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(&Spot::new(&json!({"spec": spec}), "", &mut errors));
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn leases_with_a_strategy() {
        assert!(said(lease, json!({"strategy": OLDEST, "preferredHolder": "a"})).is_empty());
        assert!(said(lease, json!({"strategy": "example.com/mine"})).is_empty());
        assert_eq!(
            said(lease, json!({"preferredHolder": "a"})),
            ["spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined"]
        );
        assert_eq!(
            said(lease, json!({"strategy": "Newest"})),
            [
                "spec.strategy.strategy: Unsupported value: \"Newest\": supported values: \"OldestEmulationVersion\""
            ]
        );
    }

    #[test]
    fn candidates() {
        let good = json!({"leaseName": "l", "binaryVersion": "1.36.0", "emulationVersion": "1.35.0", "strategy": OLDEST});
        assert!(said(candidate, good.clone()).is_empty());
        let with = |key: &str, value: &str| {
            let mut spec = good.clone();
            spec[key] = json!(value);
            said(candidate, spec)
        };
        assert_eq!(with("leaseName", ""), ["spec.leaseName: Required value"]);
        assert_eq!(
            with("binaryVersion", "1.34.0"),
            [
                "spec.binaryVersion: Invalid value: \"1.34.0\": must be greater than or equal to `emulationVersion`"
            ]
        );
        assert_eq!(
            with("binaryVersion", "v1.36"),
            ["spec.binaryVersion: Invalid value: \"v1.36\": must be a valid semantic version"]
        );
        assert!(
            with("emulationVersion", "")[0].starts_with("spec.emulationVersion: Required value: must be")
        );
    }
}
