//! RBAC rules: what a rule allows, and which rights one set of rules has that another lacks. Pure.

use crate::authz::Attributes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Everything, in any list of a rule.
const ALL: &str = "*";
/// Single rights that a set of rules may be broken into for a comparison: a rule of some kilobytes could mean
/// billions, and no honest role comes near.
const RIGHTS_MAX: usize = 200_000;

/// A rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// API groups; "" is core.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources, with subresource where there is one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Only these objects; all when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Other paths.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
    /// Verbs.
    pub verbs: Vec<String>,
}

/// More rights than are compared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rules stand for more than {RIGHTS_MAX} single rights")]
pub struct TooManyRights;

fn holds(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == ALL || item == wanted)
}

fn path_matches(list: &[String], path: &str) -> bool {
    list.iter().any(|url| url == path || url.strip_suffix(ALL).is_some_and(|prefix| path.starts_with(prefix)))
}

/// Do the resources of a rule hold this one? `sub` is "" for none.
fn resource_matches(list: &[String], resource: &str, sub: &str) -> bool {
    list.iter().any(|item| {
        item == ALL
            || match item.split_once('/') {
                None => sub.is_empty() && item == resource,
                Some((own, own_sub)) => !sub.is_empty() && own_sub == sub && (own == ALL || own == resource),
            }
    })
}

impl Rule {
    /// Does it allow this?
    pub fn allows(&self, a: &Attributes) -> bool {
        if !a.is_resource() {
            return holds(&self.verbs, &a.verb) && path_matches(&self.non_resource_urls, &a.path);
        }
        holds(&self.verbs, &a.verb)
            && holds(&self.api_groups, &a.group)
            && resource_matches(&self.resources, &a.resource, &a.subresource)
            && (self.resource_names.is_empty() || self.resource_names.contains(&a.name))
    }

    /// Does it give at least the single right that `right` is?
    fn covers(&self, right: &Right<'_>) -> bool {
        match *right {
            Right::Path { verb, url } => {
                holds(&self.verbs, verb) && path_matches(&self.non_resource_urls, url)
            }
            Right::Resource { verb, group, resource, name } => {
                let (plain, sub) = resource.split_once('/').unwrap_or((resource, ""));
                let names = match name {
                    _ if self.resource_names.is_empty() => true,
                    None => false,
                    Some(name) => self.resource_names.iter().any(|n| n == name),
                };
                holds(&self.verbs, verb)
                    && holds(&self.api_groups, group)
                    && resource_matches(&self.resources, plain, sub)
                    && names
            }
        }
    }

    fn rights(&self) -> Vec<Right<'_>> {
        let mut all = Vec::new();
        for verb in &self.verbs {
            all.extend(self.non_resource_urls.iter().map(|url| Right::Path { verb, url }));
            for group in &self.api_groups {
                for resource in &self.resources {
                    let right = |name| Right::Resource { verb, group, resource, name };
                    match self.resource_names.as_slice() {
                        [] => all.push(right(None)),
                        names => all.extend(names.iter().map(|n| right(Some(n)))),
                    }
                }
            }
        }
        all
    }

    fn count(&self) -> usize {
        let names = self.resource_names.len().max(1);
        let resources = self.api_groups.len().saturating_mul(self.resources.len()).saturating_mul(names);
        self.verbs.len().saturating_mul(resources.saturating_add(self.non_resource_urls.len()))
    }
}

/// One verb on one thing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Right<'a> {
    Resource { group: &'a str, resource: &'a str, name: Option<&'a str>, verb: &'a str },
    Path { url: &'a str, verb: &'a str },
}

/// The rights that `wanted` gives and `owned` does not, one rule for each resource or path.
pub fn missing(owned: &[Rule], wanted: &[Rule]) -> Result<Vec<Rule>, TooManyRights> {
    let total = wanted.iter().map(Rule::count).fold(0, usize::saturating_add);
    if total > RIGHTS_MAX {
        return Err(TooManyRights);
    }
    let rights: BTreeSet<Right<'_>> = wanted.iter().flat_map(Rule::rights).collect();
    let mut found: BTreeMap<Right<'_>, Vec<String>> = BTreeMap::new();
    for right in rights.into_iter().filter(|r| !owned.iter().any(|o| o.covers(r))) {
        let (thing, verb) = match right {
            Right::Resource { group, resource, name, verb } => {
                (Right::Resource { group, resource, name, verb: "" }, verb)
            }
            Right::Path { url, verb } => (Right::Path { url, verb: "" }, verb),
        };
        found.entry(thing).or_default().push(verb.into());
    }
    let rule = |(thing, verbs)| match thing {
        Right::Resource { group, resource, name, .. } => Rule {
            api_groups: vec![group.into()],
            resources: vec![resource.into()],
            resource_names: name.into_iter().map(String::from).collect(),
            verbs,
            ..Rule::default()
        },
        Right::Path { url, .. } => Rule { non_resource_urls: vec![url.into()], verbs, ..Rule::default() },
    };
    Ok(found.into_iter().map(rule).collect())
}

/// As upstream prints a rule in a refusal.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let shown = parts.iter().filter(|(_, list)| !list.is_empty());
        let shown: Vec<String> = shown.map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
        write!(f, "{{{}}}", shown.join(", "))
    }
}

/// A list of strings as Go's `%q` prints it.
pub fn quoted(list: &[String]) -> String {
    let items: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", items.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(groups: &[&str], resources: &[&str], names: &[&str], verbs: &[&str]) -> Rule {
        let list = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect();
        Rule {
            api_groups: list(groups),
            resources: list(resources),
            resource_names: list(names),
            verbs: list(verbs),
            ..Rule::default()
        }
    }

    fn wish(verb: &str, resource: &str, sub: &str, name: &str) -> Attributes {
        let text = |t: &str| t.to_string();
        Attributes {
            verb: text(verb),
            resource: text(resource),
            subresource: text(sub),
            name: text(name),
            ..Attributes::default()
        }
    }

    #[test]
    fn what_rules_allow() {
        let pods = rule(&[""], &["pods", "*/scale"], &[], &["get", "list"]);
        assert!(pods.allows(&wish("get", "pods", "", "a")));
        assert!(!pods.allows(&wish("get", "pods", "log", "a")), "a subresource needs its own word");
        assert!(pods.allows(&wish("get", "x", "scale", "")));
        assert!(!pods.allows(&wish("get", "x", "", "")) && !pods.allows(&wish("delete", "pods", "", "")));
        let named = rule(&[""], &["secrets"], &["a"], &["*"]);
        assert!(named.allows(&wish("delete", "secrets", "", "a")));
        assert!(!named.allows(&wish("delete", "secrets", "", "b")));
        assert!(!named.allows(&wish("list", "secrets", "", "")), "no name, no match");
        assert!(rule(&["*"], &["*"], &[], &["*"]).allows(&wish("x", "y", "z", "")));
        let urls = Rule {
            non_resource_urls: vec!["/api/*".into(), "/v".into()],
            verbs: vec!["get".into()],
            ..Rule::default()
        };
        let path = |p: &str| Attributes { verb: "get".into(), path: p.into(), ..Attributes::default() };
        assert!(urls.allows(&path("/api/v1")) && urls.allows(&path("/v")));
        assert!(!urls.allows(&path("/api")) && !urls.allows(&path("/vv")));
    }

    #[test]
    fn what_is_missing_in_upstreams_words() {
        let owned = [rule(&[""], &["pods"], &[], &["get", "list"])];
        let wanted = [rule(&["", "apps"], &["pods"], &[], &["get", "delete", "create"])];
        let missing = missing(&owned, &wanted).unwrap();
        let text: Vec<String> = missing.iter().map(Rule::to_string).collect();
        assert_eq!(
            text,
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["create" "delete"]}"#,
                r#"{APIGroups:["apps"], Resources:["pods"], Verbs:["create" "delete" "get"]}"#
            ]
        );
    }

    /// (owned, wanted, is it covered?)
    #[test]
    fn escalation_table() {
        let r = rule;
        for (owned, wanted, covered) in [
            (r(&["*"], &["*"], &[], &["*"]), r(&["*"], &["*"], &[], &["*"]), true),
            (r(&[""], &["*"], &[], &["get"]), r(&[""], &["pods/log"], &[], &["get"]), true),
            (r(&[""], &["pods"], &[], &["get"]), r(&[""], &["pods/log"], &[], &["get"]), false),
            (r(&[""], &["*/log"], &[], &["get"]), r(&[""], &["pods/log"], &[], &["get"]), true),
            (r(&[""], &["pods"], &[], &["get"]), r(&[""], &["*"], &[], &["get"]), false),
            (r(&[""], &["pods"], &[], &["get"]), r(&[""], &["pods"], &[], &["*"]), false),
            (r(&[""], &["pods"], &["a"], &["get"]), r(&[""], &["pods"], &[], &["get"]), false),
            (r(&[""], &["pods"], &["a"], &["get"]), r(&[""], &["pods"], &["a"], &["get"]), true),
            (r(&[""], &["pods"], &["a"], &["get"]), r(&[""], &["pods"], &["a", "b"], &["get"]), false),
            (r(&[""], &["pods"], &[], &["get"]), r(&[""], &["pods"], &["b"], &["get"]), true),
        ] {
            let lacking = missing(std::slice::from_ref(&owned), std::slice::from_ref(&wanted)).unwrap();
            assert_eq!(lacking.is_empty(), covered, "{owned} {wanted}");
        }
        let many: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
        let huge = Rule { api_groups: many.clone(), resources: many.clone(), verbs: many, ..Rule::default() };
        assert_eq!(missing(&[], &[huge]), Err(TooManyRights));
    }

    const GROUPS: [&str; 3] = ["", "apps", "*"];
    const RESOURCES: [&str; 6] = ["pods", "pods/log", "*/log", "secrets", "*", "secrets/x"];
    const NAMES: [&str; 2] = ["a", "b"];
    const VERBS: [&str; 3] = ["get", "list", "*"];

    fn some(of: &'static [&'static str], least: usize) -> impl Strategy<Value = Vec<String>> {
        prop::sample::subsequence(of, least..=of.len().min(least + 2))
            .prop_map(|l| l.into_iter().map(String::from).collect())
    }

    fn arb_rule() -> impl Strategy<Value = Rule> {
        (some(&GROUPS, 1), some(&RESOURCES, 1), some(&NAMES, 0), some(&VERBS, 1)).prop_map(|(g, r, n, v)| {
            Rule { api_groups: g, resources: r, resource_names: n, verbs: v, ..Rule::default() }
        })
    }

    /// Every question of a small world.
    fn world() -> Vec<Attributes> {
        let mut all = Vec::new();
        for group in ["", "apps", "batch"] {
            for (resource, sub) in
                [("pods", ""), ("pods", "log"), ("secrets", ""), ("secrets", "x"), ("jobs", "log")]
            {
                for name in ["", "a", "b", "c"] {
                    for verb in ["get", "list", "delete"] {
                        all.push(Attributes { group: group.into(), ..wish(verb, resource, sub, name) });
                    }
                }
            }
        }
        all
    }

    /// The dumb twin: every word of every list, compared as upstream's documentation puts it.
    fn twin(rule: &Rule, a: &Attributes) -> bool {
        let full = if a.subresource.is_empty() {
            a.resource.clone()
        } else {
            format!("{}/{}", a.resource, a.subresource)
        };
        let any_sub = format!("*/{}", a.subresource);
        let mut allowed = false;
        for group in &rule.api_groups {
            for resource in &rule.resources {
                for verb in &rule.verbs {
                    let fits = (group == "*" || *group == a.group)
                        && (resource == "*"
                            || *resource == full
                            || (!a.subresource.is_empty() && *resource == any_sub))
                        && (verb == "*" || *verb == a.verb);
                    allowed |=
                        fits && (rule.resource_names.is_empty() || rule.resource_names.contains(&a.name));
                }
            }
        }
        allowed
    }

    proptest! {
        #[test]
        fn rules_allow_what_the_twin_allows(rule in arb_rule()) {
            for a in world() {
                prop_assert_eq!(rule.allows(&a), twin(&rule, &a), "{} {:?}", rule, a);
            }
        }

        /// Nothing that is held to be covered allows more than its owner has.
        #[test]
        fn covered_means_no_more(owned in prop::collection::vec(arb_rule(), 0..3), wanted in prop::collection::vec(arb_rule(), 0..3)) {
            let lacking = missing(&owned, &wanted).unwrap();
            for a in world().iter().filter(|a| wanted.iter().any(|w| w.allows(a))) {
                let has = owned.iter().chain(&lacking).any(|o| o.allows(a));
                prop_assert!(has, "{:?} is neither owned nor named as missing", a);
            }
            let all: Vec<Rule> = owned.iter().chain(&lacking).cloned().collect();
            prop_assert!(missing(&all, &wanted).unwrap().is_empty());
        }
    }
}
