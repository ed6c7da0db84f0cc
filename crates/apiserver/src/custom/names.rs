//! Which of a definition's names are accepted: pure.

use machinery::time;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A name that is taken: of which kind, and the word.
type Conflict = (&'static str, String);

/// Names in use in one group, by others than the definition that is asked about.
#[derive(Default)]
pub struct Taken {
    /// Plurals, singulars and short names.
    pub resources: BTreeSet<String>,
    /// Kinds and list kinds.
    pub kinds: BTreeSet<String>,
}

impl Taken {
    /// Takes the names of an accepted definition (or of a built-in row in the same form).
    pub fn add(&mut self, names: &Value) {
        let text = |key: &str| names[key].as_str().unwrap_or_default().to_string();
        let short = names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str);
        self.resources.extend([text("plural"), text("singular")]);
        self.resources.extend(short.map(str::to_string));
        self.kinds.extend([text("kind"), text("listKind")]);
    }
}

/// Every name that a definition wants.
pub fn wished(names: &Value) -> BTreeSet<&str> {
    let short = names["shortNames"].as_array().into_iter().flatten();
    let own = ["plural", "singular", "kind", "listKind"].map(|key| &names[key]);
    own.into_iter().chain(short).filter_map(Value::as_str).collect()
}

/// The first name that somebody else has, and why it cannot be had.
fn conflict(names: &Value, taken: &Taken) -> Option<Conflict> {
    let text = |key: &str| names[key].as_str().unwrap_or_default().to_string();
    let resource = |reason, name: String| taken.resources.contains(&name).then_some((reason, name));
    let kind = |reason, name: String| taken.kinds.contains(&name).then_some((reason, name));
    let short = names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str);
    resource("PluralConflict", text("plural"))
        .or_else(|| resource("SingularConflict", text("singular")))
        .or_else(|| short.filter_map(|s| resource("ShortNamesConflict", s.to_string())).next())
        .or_else(|| kind("KindConflict", text("kind")))
        .or_else(|| kind("ListKindConflict", text("listKind")))
}

fn condition(status: &Value, ty: &str) -> Option<usize> {
    status["conditions"].as_array()?.iter().position(|c| c["type"] == ty)
}

/// Sets a condition; its transition time moves only when its status does.
pub fn set_condition(status: &mut Value, (ty, value, reason, message): (&str, &str, &str, &str), now: &str) {
    let mut new =
        json!({"type": ty, "status": value, "lastTransitionTime": now, "reason": reason, "message": message});
    let at = condition(status, ty);
    let Some(list) = status["conditions"].as_array_mut() else {
        status["conditions"] = json!([new]);
        return;
    };
    match at {
        Some(at) => {
            if list[at]["status"] == value {
                new["lastTransitionTime"] = list[at]["lastTransitionTime"].clone();
            }
            list[at] = new;
        }
        None => list.push(new),
    }
}

/// Is this condition true?
pub fn is(definition: &Value, ty: &str) -> bool {
    condition(&definition["status"], ty)
        .is_some_and(|at| definition["status"]["conditions"][at]["status"] == "True")
}

/// What a definition in one of the project's own groups says about its approval, in upstream's words.
fn approval(definition: &Value) -> Option<(&'static str, &'static str, String)> {
    const KEY: &str = "api-approved.kubernetes.io";
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let within = |domain: &str| group == domain || group.ends_with(&format!(".{domain}"));
    if !within("k8s.io") && !within("kubernetes.io") {
        return None;
    }
    let said = definition["metadata"]["annotations"][KEY].as_str().unwrap_or_default();
    let must = format!("protected groups must have approval annotation \"{KEY}\"");
    Some(match said {
        "" => ("False", "MissingAnnotation", format!("{must}, {SEE}")),
        _ if said.starts_with("unapproved") => {
            ("False", "UnapprovedAnnotation", format!("not approved: {said:?}"))
        }
        _ if said.contains("://") => ("True", "ApprovedAnnotation", format!("approved in {said}")),
        _ => {
            let how = "with either a URL or a reason starting with \"unapproved\"";
            ("False", "InvalidAnnotation", format!("{must} {how}, {SEE}"))
        }
    })
}

/// The status that a definition should have, given what is taken.
pub fn status(definition: &Value, taken: &Taken, now: jiff::Timestamp) -> Value {
    let now = time::format(now);
    let names = &definition["spec"]["names"];
    let mut status = definition["status"].clone();
    if let Some((value, reason, message)) = approval(definition) {
        let ty = "KubernetesAPIApprovalPolicyConformant";
        set_condition(&mut status, (ty, value, reason, &message), &now);
    }
    match conflict(names, taken) {
        None => {
            status["acceptedNames"] = names.clone();
            set_condition(&mut status, ("NamesAccepted", "True", "NoConflicts", "no conflicts found"), &now);
            let accepted = "the initial names have been accepted";
            set_condition(&mut status, ("Established", "True", "InitialNamesAccepted", accepted), &now);
        }
        Some((reason, name)) => {
            let message = format!("{name:?} is already in use");
            set_condition(&mut status, ("NamesAccepted", "False", reason, &message), &now);
            // Once served, a definition goes on with the names that it has.
            if !is(definition, "Established") {
                let why = "not all names are accepted";
                set_condition(&mut status, ("Established", "False", "NotAccepted", why), &now);
            }
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protected_groups_tell_their_approval() {
        let at = |group: &str, said: &str| {
            let metadata = json!({"annotations": {"api-approved.kubernetes.io": said}});
            approval(&json!({"metadata": metadata, "spec": {"group": group}}))
                .map(|(value, reason, _)| (value, reason))
        };
        assert_eq!(at("example.org", ""), None);
        assert_eq!(at("notk8s.io", ""), None);
        assert_eq!(at("x.k8s.io", "https://a/b"), Some(("True", "ApprovedAnnotation")));
        assert_eq!(at("x.k8s.io", "unapproved, trying"), Some(("False", "UnapprovedAnnotation")));
        assert_eq!(at("k8s.io", "yes"), Some(("False", "InvalidAnnotation")));
        assert_eq!(at("kubernetes.io", ""), Some(("False", "MissingAnnotation")));
    }

    #[test]
    fn names_are_accepted_once() {
        let names = json!({"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList", "shortNames": ["wd"]});
        let definition = json!({"spec": {"names": names}, "status": {"conditions": []}});
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let first = status(&definition, &Taken::default(), now);
        assert_eq!(first["acceptedNames"], names);
        assert_eq!(first["conditions"][1]["reason"], "InitialNamesAccepted");
        let later = "2026-01-02T00:00:00Z".parse().unwrap();
        let again = status(&json!({"spec": {"names": names}, "status": first}), &Taken::default(), later);
        assert_eq!(again, first, "nothing to say again");
        let mut taken = Taken::default();
        taken.add(&json!({"plural": "other", "singular": "wd", "kind": "Other", "listKind": "OtherList"}));
        let refused = status(&definition, &taken, now);
        assert_eq!(refused["conditions"][0]["reason"], "ShortNamesConflict");
        assert_eq!(refused["conditions"][0]["message"], "\"wd\" is already in use");
        assert_eq!(refused["conditions"][1]["status"], "False");
        let served = status(&json!({"spec": {"names": names}, "status": first}), &taken, now);
        assert!(
            is(&json!({"status": served}), "Established") && !is(&json!({"status": served}), "NamesAccepted")
        );
    }
}
