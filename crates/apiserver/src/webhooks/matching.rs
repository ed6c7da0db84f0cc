//! Which requests a webhook or a policy is about: rules, scopes, selectors. Pure.

use machinery::selector::LabelSelector;
use serde_json::Value;

/// What a request is about, as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: &'a str,
    /// API group.
    pub group: &'a str,
    /// Version.
    pub version: &'a str,
    /// Plural name.
    pub resource: &'a str,
    /// "" for the object itself.
    pub subresource: &'a str,
    /// Is the object in a namespace? (A Namespace is not.)
    pub namespaced: bool,
    /// The object's name, for rules that list names.
    pub name: &'a str,
}

/// One rule.
#[derive(Clone, Debug)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    scope: String,
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|t| t.as_str().map(str::to_string)).collect()
}

fn among(list: &[String], text: &str) -> bool {
    list.iter().any(|t| t == "*" || t == text)
}

impl Rule {
    fn read(rule: &Value) -> Rule {
        Rule {
            operations: texts(&rule["operations"]),
            groups: texts(&rule["apiGroups"]),
            versions: texts(&rule["apiVersions"]),
            resources: texts(&rule["resources"]),
            names: texts(&rule["resourceNames"]),
            scope: rule["scope"].as_str().unwrap_or("*").to_string(),
        }
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        let scope = match self.scope.as_str() {
            "Namespaced" => subject.namespaced,
            "Cluster" => !subject.namespaced,
            _ => true,
        };
        let resource = |wanted: &String| {
            let (resource, sub) = wanted.split_once('/').unwrap_or((wanted, ""));
            (resource == "*" || resource == subject.resource) && (sub == "*" || sub == subject.subresource)
        };
        scope
            && among(&self.operations, subject.operation)
            && among(&self.groups, subject.group)
            && among(&self.versions, subject.version)
            && self.resources.iter().any(resource)
            && (self.names.is_empty() || self.names.iter().any(|n| n == subject.name))
    }
}

/// Rules and selectors together.
#[derive(Clone, Debug)]
pub struct Matcher {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Do rules match the same object under other groups and versions?
    equivalent: bool,
    namespaces: LabelSelector,
    objects: LabelSelector,
}

impl Matcher {
    /// Reads a webhook (`rules`) or the match resources of a policy (`resourceRules`, `excludeResourceRules`).
    ///
    /// # Errors
    /// A selector is malformed.
    pub fn read(value: &Value) -> Result<Matcher, String> {
        let rules =
            |key: &str| value[key].as_array().into_iter().flatten().map(Rule::read).collect::<Vec<_>>();
        // An absent selector is one that selects all, as defaulting would make it.
        let selector = |key: &str| match value.get(key).filter(|v| !v.is_null()) {
            None => Ok(LabelSelector::everything()),
            some => LabelSelector::from_json(some).map_err(|e| e.to_string()),
        };
        let mut all = rules("rules");
        all.extend(rules("resourceRules"));
        Ok(Matcher {
            rules: all,
            excluded: rules("excludeResourceRules"),
            equivalent: value["matchPolicy"] != "Exact",
            namespaces: selector("namespaceSelector")?,
            objects: selector("objectSelector")?,
        })
    }

    /// The index in `forms` of the form that the rules are about: the request's own (the first) before all others.
    pub fn form(&self, forms: &[Subject<'_>]) -> Option<usize> {
        let own = forms.first()?;
        if self.excludes(forms) {
            return None;
        }
        // Rule by rule: an exact match of a later rule stands above an equivalent one of an earlier rule.
        if self.rules.iter().any(|rule| rule.matches(own)) {
            return Some(0);
        }
        if !self.equivalent {
            return None;
        }
        self.rules.iter().find_map(|rule| forms.iter().position(|form| rule.matches(form)))
    }

    /// Is one of the forms left out expressly?
    pub fn excludes(&self, forms: &[Subject<'_>]) -> bool {
        let considered = if self.equivalent { forms } else { &forms[..1] };
        considered.iter().any(|form| self.excluded.iter().any(|rule| rule.matches(form)))
    }

    /// Are there rules at all? A binding without any is about what its policy is about.
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// Is one of the objects selected by its labels?
    pub fn selects_object(&self, objects: [Option<&Value>; 2]) -> bool {
        let selected = |object: &Value| self.objects.matches_json(object["metadata"].get("labels"));
        self.objects.is_everything() || objects.into_iter().flatten().any(selected)
    }

    /// Must the namespace be looked at?
    pub fn minds_namespace(&self) -> bool {
        !self.namespaces.is_everything()
    }

    /// Does the namespace with these labels qualify?
    pub fn selects_namespace(&self, labels: Option<&Value>) -> bool {
        self.namespaces.matches_json(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn subject<'a>(operation: &'a str, resource: &'a str, subresource: &'a str) -> Subject<'a> {
        Subject {
            operation,
            group: "apps",
            version: "v1",
            resource,
            subresource,
            namespaced: true,
            name: "x",
        }
    }

    fn matcher(rule: Value) -> Matcher {
        let mut full =
            json!({"operations": ["*"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["*"]});
        rule.as_object().unwrap().iter().for_each(|(k, v)| full[k] = v.clone());
        Matcher::read(&json!({"rules": [full]})).unwrap()
    }

    #[test]
    fn resources_and_subresources() {
        for (wanted, plain, scale) in [
            ("*", true, false),
            ("*/*", true, true),
            ("*/scale", false, true),
            ("deployments", true, false),
            ("deployments/*", true, true),
            ("deployments/scale", false, true),
            ("pods", false, false),
        ] {
            let matcher = matcher(json!({"resources": [wanted]}));
            let found = |sub| matcher.form(&[subject("UPDATE", "deployments", sub)]).is_some();
            assert_eq!((found(""), found("scale")), (plain, scale), "{wanted}");
        }
    }

    #[test]
    fn scope_operation_name() {
        let one = [subject("CREATE", "deployments", "")];
        assert!(matcher(json!({"scope": "Cluster"})).form(&one).is_none());
        assert!(matcher(json!({"scope": "Namespaced"})).form(&one).is_some());
        assert!(matcher(json!({"operations": ["UPDATE"]})).form(&one).is_none());
        assert!(matcher(json!({"resourceNames": ["y"]})).form(&one).is_none());
    }

    #[test]
    fn equivalent_forms_come_last() {
        let old = Subject { group: "extensions", version: "v1beta1", ..subject("CREATE", "deployments", "") };
        let new = subject("CREATE", "deployments", "");
        assert_eq!(matcher(json!({})).form(&[old, new]), Some(1));
        assert_eq!(matcher(json!({"apiGroups": ["*"], "apiVersions": ["*"]})).form(&[old, new]), Some(0));
        let mut exact = matcher(json!({}));
        exact.equivalent = false;
        assert_eq!(exact.form(&[old, new]), None);
        let mut but = matcher(json!({}));
        but.excluded = matcher(json!({})).rules;
        assert_eq!(but.form(&[old, new]), None);
    }

    #[test]
    fn selectors() {
        let hook = Matcher::read(&json!({"objectSelector": {"matchLabels": {"a": "b"}}})).unwrap();
        let with = json!({"metadata": {"labels": {"a": "b"}}});
        let without = json!({"metadata": {}});
        assert!(hook.selects_object([Some(&without), Some(&with)]));
        assert!(!hook.selects_object([Some(&without), None]));
        assert!(!hook.minds_namespace() && hook.selects_namespace(None));
    }
}
