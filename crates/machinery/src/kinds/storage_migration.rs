//! StorageVersionMigration: objects of one resource that are to be written anew.

use super::get::{list, text};
use super::spot::Spot;
use super::{Behaviour, COUNTED};
use serde_json::Value;

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[Behaviour {
    group: "storagemigration.k8s.io",
    resource: "storageversionmigrations",
    validate: migration,
    validate_update: Some(|s, old| {
        migration(s);
        for key in ["group", "resource"] {
            let now = s.key("spec.resource").text(key);
            if now != old["spec"]["resource"][key].as_str().unwrap_or_default() {
                s.invalid(key, now, "field is immutable");
            }
        }
    }),
    validate_status: status,
    ..COUNTED
}];

fn migration(obj: &Spot) {
    if obj.text("spec.resource.resource").is_empty() {
        obj.required("spec.resource.resource", "resource is required");
    }
}

/// Is the condition of that type true?
fn is(obj: &Value, condition: &str) -> bool {
    let mut all = list(obj, "/status/conditions").iter();
    all.any(|c| text(c, "/type") == condition && text(c, "/status") == "True")
}

fn status(spot: &Spot, old: &Value) {
    let new = spot.v;
    let (own, before) = (text(new, "/status/resourceVersion"), text(old, "/status/resourceVersion"));
    if !own.is_empty() && own.parse::<u64>().is_err() {
        let why = format!("failed to parse resource version {own:?}: not a number");
        spot.wrong("status.resourceVersion", &why);
    }
    if !before.is_empty() && own != before {
        spot.invalid("status.resourceVersion", own, "cannot be updated");
    }
    let (done, failed, running) = (is(new, "Succeeded"), is(new, "Failed"), is(new, "Running"));
    for (wrong, why) in [
        (done && failed, "Both success and failed conditions cannot be true at the same time"),
        (done && running, "Running condition cannot be true when success condition is true"),
        (failed && running, "Running condition cannot be true when failed condition is true"),
        (is(old, "Succeeded") && !done, "Success condition cannot be set to false once it is true"),
        (is(old, "Failed") && !failed, "Failed condition cannot be set to false once it is true"),
    ] {
        if wrong {
            spot.wrong("status.conditions", why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
    use serde_json::json;

    #[test]
    fn a_migration_ends_once() {
        let of = |conditions: &[&str], revision: &str| {
            let all: Vec<Value> = conditions.iter().map(|c| json!({"type": c, "status": "True"})).collect();
            json!({"status": {"conditions": all, "resourceVersion": revision}})
        };
        let said = |new: Value, old: Value| {
            let mut errors = FieldErrors::new();
            status(&Spot::new(&new, "", &mut errors), &old);
            errors.causes().len()
        };
        assert_eq!(said(of(&["Running"], "7"), of(&[], "")), 0);
        assert_eq!(said(of(&["Succeeded"], "7"), of(&["Running"], "7")), 0);
        assert_eq!(said(of(&["Succeeded", "Failed"], "7"), of(&[], "7")), 1);
        assert_eq!(said(of(&["Running"], "8"), of(&["Failed"], "7")), 2);
        assert_eq!(said(of(&[], "x"), of(&[], "")), 1);
    }
}
