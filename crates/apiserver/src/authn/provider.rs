//! `AuthenticationConfiguration`: what an operator says about providers of tokens, checked in upstream's words and
//! compiled. Pure. Deliberately not here: what the rules make of a token (`claims`).

use super::claims::{Expression, Provider, Rule, Source, claims_type, user_type};
use machinery::cel::{Env, Type, compile};
use machinery::field_errors::FieldErrors;
use machinery::name;
use serde::Deserialize;
use std::collections::BTreeSet;

/// Providers of one file (upstream's bound).
const PROVIDERS_MAX: usize = 64;
const BOTH: &str = "claim and expression can't both be set";
const EMAIL: &str = "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression";

/// A claim with what is put before its value, or an expression.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Mapping {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Uid {
    claim: String,
    expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Extra {
    key: String,
    value_expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Mappings {
    username: Mapping,
    groups: Mapping,
    uid: Uid,
    extra: Vec<Extra>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct ClaimRule {
    claim: String,
    required_value: String,
    expression: String,
    message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct UserRule {
    expression: String,
    message: String,
}

/// Who issues tokens.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Issuer {
    /// What its tokens name, and where it is found unless the next says otherwise.
    pub url: String,
    /// Where its document is.
    #[serde(rename = "discoveryURL")]
    pub discovery_url: String,
    /// PEM; "" is the machine's trust.
    pub certificate_authority: String,
    /// Whom its tokens must be for: one of these.
    pub audiences: Vec<String>,
    audience_match_policy: String,
    egress_selector_type: String,
}

/// A provider as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Written {
    issuer: Issuer,
    claim_validation_rules: Vec<ClaimRule>,
    claim_mappings: Mappings,
    user_validation_rules: Vec<UserRule>,
}

/// What was found wrong, as one sentence.
pub fn sentence(errors: &FieldErrors) -> Result<(), String> {
    let all: Vec<String> = errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
    match all.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        all => Err(format!("[{}]", all.join(", "))),
    }
}

/// Checks and compiles all providers of a file. Nobody else's tokens may look like this cluster's own.
pub fn compile_all(all: Vec<Written>, own_issuers: &[String]) -> Result<Vec<Provider>, String> {
    let mut errors = FieldErrors::new();
    if all.len() > PROVIDERS_MAX {
        errors.too_many("jwt", all.len(), PROVIDERS_MAX);
    }
    let (mut issuers, mut documents) = (BTreeSet::new(), BTreeSet::new());
    let mut providers = Vec::new();
    for (i, written) in all.into_iter().enumerate() {
        let path = format!("jwt[{i}]");
        let issuer = &written.issuer;
        if !issuers.insert(issuer.url.clone()) {
            errors.duplicate(&format!("{path}.issuer.url"), issuer.url.clone());
        }
        if !issuer.discovery_url.is_empty() && !documents.insert(issuer.discovery_url.clone()) {
            errors.duplicate(&format!("{path}.issuer.discoveryURL"), issuer.discovery_url.clone());
        }
        providers.push(written.compile(&path, own_issuers, &mut errors));
    }
    sentence(&errors)?;
    Ok(providers)
}

impl Issuer {
    fn check(&self, path: &str, own: &[String], errors: &mut FieldErrors) {
        let at = |field: &str| format!("{path}.{field}");
        match self.url.as_str() {
            "" => errors.required(&at("url"), ""),
            url => {
                if own.iter().any(|o| o == url) {
                    let why = format!("URL must not overlap with disallowed issuers: [{}]", own.join(" "));
                    errors.invalid(&at("url"), url, &why);
                }
                check_url(url, &at("url"), errors);
            }
        }
        if !self.discovery_url.is_empty() {
            let url = &self.discovery_url;
            if !self.url.is_empty() && self.url.trim_end_matches('/') == url.trim_end_matches('/') {
                let why = "discoveryURL must be different from URL";
                errors.invalid(&at("discoveryURL"), url.as_str(), why);
            }
            check_url(url, &at("discoveryURL"), errors);
        }
        self.check_audiences(path, errors);
        if !self.certificate_authority.is_empty()
            && let Err(why) = auth::trusting_client_config(&self.certificate_authority)
        {
            errors.invalid(&at("certificateAuthority"), "<omitted>", &why.to_string());
        }
        if !self.egress_selector_type.is_empty() {
            let why = "there is no egress selector here";
            errors.invalid(&at("egressSelectorType"), self.egress_selector_type.as_str(), why);
        }
    }

    fn check_audiences(&self, path: &str, errors: &mut FieldErrors) {
        let field = format!("{path}.audiences");
        if self.audiences.is_empty() {
            errors.required(&field, &format!("at least one {field} is required"));
            return;
        }
        let mut seen = BTreeSet::new();
        for (i, audience) in self.audiences.iter().enumerate() {
            if audience.is_empty() {
                errors.required(&format!("{field}[{i}]"), "");
            }
            if !seen.insert(audience) {
                errors.duplicate(&format!("{field}[{i}]"), audience.as_str());
            }
        }
        let policy = self.audience_match_policy.as_str();
        let why = match (self.audiences.len(), policy) {
            (_, "MatchAny") | (1, "") => return,
            (1, _) => "audienceMatchPolicy must be empty or MatchAny for single audience",
            _ => "audienceMatchPolicy must be MatchAny for multiple audiences",
        };
        errors.invalid(&format!("{path}.audienceMatchPolicy"), policy, why);
    }
}

fn check_url(url: &str, path: &str, errors: &mut FieldErrors) {
    let (whole, fragment) = url.split_once('#').unwrap_or((url, ""));
    let authority = whole.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    if let Err(error) = whole.parse::<http::Uri>() {
        errors.invalid(path, url, &error.to_string());
    }
    for (wrong, why) in [
        (!whole.starts_with("https://"), "URL scheme must be https"),
        (authority.contains('@'), "URL must not contain a username or password"),
        (whole.contains('?'), "URL must not contain a query"),
        (!fragment.is_empty(), "URL must not contain a fragment"),
    ] {
        if wrong {
            errors.invalid(path, url, why);
        }
    }
}

/// Does an expression select this member of `claims`? (Told by its text: a string constant that looks like it counts.)
fn selects(expression: &str, member: &str) -> bool {
    let text: String = expression.chars().filter(|c| !c.is_whitespace()).collect();
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    ["claims.", "claims.?"].iter().any(|how| {
        let wanted = format!("{how}{member}");
        text.match_indices(&wanted).any(|(at, _)| ends(&text[at + wanted.len()..]))
    })
}

/// Compiles; what is wrong goes to the errors. `wanted`: the only type that it may have.
pub fn expression(
    env: &Env,
    text: &str,
    path: &str,
    wanted: Option<&Type>,
    errors: &mut FieldErrors,
) -> Option<Expression> {
    match compile(env, text) {
        Err(error) => errors.invalid(path, text, &format!("compilation failed: {error}")),
        Ok(program) => match wanted.filter(|w| **w != *program.output()) {
            None => return Some(Expression { text: text.to_string(), program }),
            Some(wanted) => errors.invalid(path, text, &format!("must evaluate to {wanted}")),
        },
    }
    None
}

impl Mapping {
    fn compile(self, env: &Env, path: &str, required: bool, errors: &mut FieldErrors) -> Source {
        match (self.claim.is_empty(), self.expression.is_empty()) {
            (false, false) => errors.invalid(path, "", BOTH),
            (true, true) if required => errors.required(path, "claim or expression is required"),
            (true, true) => {}
            (true, false) => {
                if let Some(prefix) = &self.prefix {
                    let why = "may not be specified when expression is set";
                    errors.invalid(&format!("{path}.prefix"), prefix.as_str(), why);
                }
                let compiled = expression(env, &self.expression, &format!("{path}.expression"), None, errors);
                return compiled.map_or(Source::Nothing, Source::Expression);
            }
            (false, true) => match self.prefix {
                Some(prefix) => return Source::Claim { name: self.claim, prefix },
                None => {
                    let why = "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                    errors.required(&format!("{path}.prefix"), why);
                }
            },
        }
        Source::Nothing
    }
}

impl Written {
    fn compile(self, path: &str, own_issuers: &[String], errors: &mut FieldErrors) -> Provider {
        let env = Env::new().var("claims", claims_type());
        self.issuer.check(&format!("{path}.issuer"), own_issuers, errors);
        let texts = self.claim_validation_rules.iter().map(|r| &r.expression);
        let verified = texts.chain(self.claim_mappings.extra.iter().map(|e| &e.value_expression));
        let name = self.claim_mappings.username.expression.clone();
        let verified = verified.chain([&name]).any(|text| selects(text, "email_verified"));
        let (required, rules) = claim_rules(self.claim_validation_rules, &env, path, errors);
        let at = |field: &str| format!("{path}.claimMappings.{field}");
        let mappings = self.claim_mappings;
        let username = mappings.username.compile(&env, &at("username"), true, errors);
        let groups = mappings.groups.compile(&env, &at("groups"), false, errors);
        let uid = Mapping {
            prefix: (!mappings.uid.claim.is_empty()).then(String::new),
            claim: mappings.uid.claim,
            expression: mappings.uid.expression,
        };
        let uid = uid.compile(&env, &at("uid"), false, errors);
        let extra = extras(mappings.extra, &env, &at("extra"), errors);
        if selects(&name, "email") && !verified {
            errors.invalid(&at("username.expression"), name, EMAIL);
        }
        let user_rules = user_rules(self.user_validation_rules, path, errors);
        Provider { issuer: self.issuer, required, rules, username, groups, uid, extra, user_rules }
    }
}

fn claim_rules(
    all: Vec<ClaimRule>,
    env: &Env,
    path: &str,
    errors: &mut FieldErrors,
) -> (Vec<(String, String)>, Vec<Rule>) {
    let (mut required, mut rules) = (Vec::new(), Vec::new());
    let (mut claims, mut texts) = (BTreeSet::new(), BTreeSet::new());
    for (i, rule) in all.into_iter().enumerate() {
        let at = format!("{path}.claimValidationRules[{i}]");
        match (rule.claim.is_empty(), rule.expression.is_empty()) {
            (false, false) => errors.invalid(&at, rule.claim, BOTH),
            (true, true) => errors.required(&at, "claim or expression is required"),
            (false, true) => {
                if !rule.message.is_empty() {
                    let why = "may not be specified when claim is set";
                    errors.invalid(&format!("{at}.message"), rule.message, why);
                }
                if !claims.insert(rule.claim.clone()) {
                    errors.duplicate(&format!("{at}.claim"), rule.claim.as_str());
                }
                required.push((rule.claim, rule.required_value));
            }
            (true, false) => {
                if !rule.required_value.is_empty() {
                    let why = "may not be specified when expression is set";
                    errors.invalid(&format!("{at}.requiredValue"), rule.required_value, why);
                }
                let at = format!("{at}.expression");
                if !texts.insert(rule.expression.clone()) {
                    errors.duplicate(&at, rule.expression);
                    continue;
                }
                let compiled = expression(env, &rule.expression, &at, Some(&Type::Bool), errors);
                rules.extend(compiled.map(|expression| Rule { expression, message: rule.message }));
            }
        }
    }
    (required, rules)
}

fn extras(all: Vec<Extra>, env: &Env, path: &str, errors: &mut FieldErrors) -> Vec<(String, Expression)> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (i, extra) in all.into_iter().enumerate() {
        let at = format!("{path}[{i}]");
        let key = extra.key.as_str();
        let field = format!("{at}.key");
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        match key.split_once('/') {
            _ if key.is_empty() => errors.required(&field, ""),
            Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
                errors.invalid_all(&field, domain, name::dns1123_subdomain(domain));
            }
            _ => errors.invalid(&field, key, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
        }
        if key != key.to_lowercase() {
            errors.invalid(&field, key, "must be lowercase");
        }
        let reserved =
            |d: &str| domain == d || domain.strip_suffix(d).is_some_and(|rest| rest.ends_with('.'));
        if ["kubernetes.io", "k8s.io"].into_iter().any(reserved) {
            let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
            errors.invalid(&field, key, why);
        }
        if !seen.insert(extra.key.clone()) {
            errors.duplicate(&field, key);
            continue;
        }
        let field = format!("{at}.valueExpression");
        if extra.value_expression.is_empty() {
            errors.required(&field, "");
            continue;
        }
        let compiled = expression(env, &extra.value_expression, &field, None, errors);
        found.extend(compiled.map(|expression| (extra.key, expression)));
    }
    found
}

fn user_rules(all: Vec<UserRule>, path: &str, errors: &mut FieldErrors) -> Vec<Rule> {
    let env = Env::new().var("user", user_type());
    let mut seen = BTreeSet::new();
    let mut rules = Vec::new();
    for (i, rule) in all.into_iter().enumerate() {
        let at = format!("{path}.userValidationRules[{i}].expression");
        if rule.expression.is_empty() {
            errors.required(&at, "");
        } else if !seen.insert(rule.expression.clone()) {
            errors.duplicate(&at, rule.expression);
        } else {
            let compiled = expression(&env, &rule.expression, &at, Some(&Type::Bool), errors);
            rules.extend(compiled.map(|expression| Rule { expression, message: rule.message }));
        }
    }
    rules
}

/// Upstream's `--oidc-*` flags.
#[derive(Clone, Debug, Default)]
pub struct OidcFlags {
    /// Issuer.
    pub issuer_url: String,
    /// Audience.
    pub client_id: String,
    /// Claim that is the user's name; "" is `sub`.
    pub username_claim: String,
    /// Put before it; "" is the issuer and `#` unless the claim is `email`; `-` is nothing.
    pub username_prefix: String,
    /// Claim with the groups; "" for none.
    pub groups_claim: String,
    /// Put before each.
    pub groups_prefix: String,
    /// `key=value,…` that must be.
    pub required_claims: String,
    /// Authority of the issuer's certificate, PEM; "" is the machine's trust.
    pub ca_pem: String,
}

impl OidcFlags {
    /// The one provider that they describe; the error is a sentence.
    pub fn provider(self, own_issuers: &[String]) -> Result<Provider, String> {
        let claim = if self.username_claim.is_empty() { "sub".into() } else { self.username_claim };
        let prefix = match self.username_prefix.as_str() {
            "-" => String::new(),
            "" if claim == "email" => String::new(),
            "" => format!("{}#", self.issuer_url),
            given => given.to_string(),
        };
        let required = self.required_claims.split(',').filter_map(|pair| pair.split_once('='));
        let rules = required.map(|(claim, value)| ClaimRule {
            claim: claim.trim().into(),
            required_value: value.trim().into(),
            ..ClaimRule::default()
        });
        let groups =
            Mapping { prefix: Some(self.groups_prefix), claim: self.groups_claim, ..Mapping::default() };
        let written = Written {
            issuer: Issuer {
                url: self.issuer_url,
                certificate_authority: self.ca_pem,
                audiences: vec![self.client_id],
                ..Issuer::default()
            },
            claim_validation_rules: rules.collect(),
            claim_mappings: Mappings {
                username: Mapping { claim, prefix: Some(prefix), ..Mapping::default() },
                groups,
                ..Mappings::default()
            },
            user_validation_rules: Vec::new(),
        };
        let mut all = compile_all(vec![written], own_issuers)?;
        all.pop().ok_or_else(|| "no provider".to_string())
    }
}
