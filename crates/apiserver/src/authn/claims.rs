//! Whom a provider's signed claims speak for, by the operator's rules. Pure.
//!
//! Invariant: a rule that cannot be evaluated counts as one that does not hold. Not here: asking those who know claims
//! that a token only points at (`oidc`).

use super::provider::Issuer;
use auth::Identity;
use machinery::cel::{Budget, Program, Type, Value as Cel};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Five minutes for clocks that differ, as upstream's library has it.
const LEEWAY_SECONDS: i64 = 300;

/// A compiled expression with its text.
#[derive(Clone, Debug)]
pub struct Expression {
    /// As written.
    pub text: String,
    /// What it compiled to.
    pub program: Program,
}

impl Expression {
    /// Evaluates with one variable; the error is a sentence.
    pub fn eval(&self, variable: &str, value: &Cel) -> Result<Cel, String> {
        let scope = [(variable, value.clone())];
        let failed = |e| format!("expression '{}' resulted in error: {e}", self.text);
        self.program.eval(&scope, &mut Budget::default()).map_err(failed)
    }

    /// The texts that it makes: one or a list; null and "" are none.
    fn texts(&self, claims: &Cel) -> Result<Vec<String>, String> {
        let found = self.eval("claims", claims)?.to_json().map_err(|e| e.to_string())?;
        let found = if found.is_null() { Some(Vec::new()) } else { texts(&found) };
        let mut found = found.ok_or("expression must return a string or a list of strings")?;
        found.retain(|text| !text.is_empty());
        Ok(found)
    }
}

/// An expression that must hold, with what to say when it does not.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Of type bool.
    pub expression: Expression,
    /// "" for nothing.
    pub message: String,
}

impl Rule {
    fn hold(all: &[Rule], variable: &str, value: &Cel) -> Result<(), String> {
        for rule in all {
            if rule.expression.eval(variable, value)?.as_bool() != Some(true) {
                return Err(format!(
                    "validation expression '{}' failed: {}",
                    rule.expression.text, rule.message
                ));
            }
        }
        Ok(())
    }
}

/// Where an attribute of a user comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From nowhere.
    Nothing,
    /// From a claim, with something put before it.
    Claim {
        /// Which.
        name: String,
        /// What.
        prefix: String,
    },
    /// From an expression over `claims`.
    Expression(Expression),
}

/// One provider, checked.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Who.
    pub issuer: Issuer,
    /// Claims with the value that they must have.
    pub required: Vec<(String, String)>,
    /// Rules over `claims`.
    pub rules: Vec<Rule>,
    /// The user's name.
    pub username: Source,
    /// Groups.
    pub groups: Source,
    /// UID.
    pub uid: Source,
    /// Further attributes by key.
    pub extra: Vec<(String, Expression)>,
    /// Rules over `user`.
    pub user_rules: Vec<Rule>,
}

/// The type of `claims`.
pub fn claims_type() -> Type {
    Type::map(Type::Dyn)
}

/// The type of `user`.
pub fn user_type() -> Type {
    let texts = Type::list(Type::String);
    let fields = [
        ("username", Type::String),
        ("uid", Type::String),
        ("groups", texts.clone()),
        ("extra", Type::map(texts)),
    ];
    Type::object("kubernetes.UserInfo", fields.map(|(name, ty)| (name.to_string(), ty)))
}

/// A text, or each text of a list.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(all) => all.iter().map(|t| t.as_str().map(str::to_string)).collect(),
        _ => None,
    }
}

/// Who knows a claim that the token lacks: its URL, and the token that it wants (OpenID Connect Core, 5.6.2).
pub fn elsewhere(claims: &Value, name: &str) -> Result<Option<(String, String)>, String> {
    let names = &claims["_claim_names"];
    if !claims[name].is_null() || names.is_null() {
        return Ok(None);
    }
    let Some(names) = names.as_object() else {
        return Err("oidc: error parsing distributed claim names".into());
    };
    let sources = claims["_claim_sources"].as_object().ok_or("oidc: no claim sources")?;
    let Some(source) = names.get(name) else { return Ok(None) };
    let missing = || format!("id token _claim_names contained a source {source} missing in _claims_sources");
    let source = source.as_str().and_then(|source| sources.get(source)).ok_or_else(missing)?;
    let text = |field: &str| source[field].as_str().unwrap_or_default().to_string();
    // One without an endpoint is an aggregated claim, which upstream does not read either.
    Ok(Some((text("endpoint"), text("access_token"))).filter(|(url, _)| !url.is_empty()))
}

impl Provider {
    /// Whom signed claims speak for now, or why for nobody.
    pub fn identity(&self, claims: &Value, now: i64) -> Result<Identity, String> {
        self.verify(claims, now)?;
        let values = Cel::from_json(claims);
        let user = self.user(claims, &values)?;
        let mut groups = self.groups(claims, &values)?;
        let uid = self.uid(claims, &values)?;
        let mut extra = BTreeMap::new();
        if let Some(jti) = claims["jti"].as_str() {
            let key = "authentication.kubernetes.io/credential-id".to_string();
            extra.insert(key, vec![format!("JTI={jti}")]);
        }
        for (key, expression) in &self.extra {
            let found = expression.texts(&values);
            let found = found.map_err(|e| format!("oidc: error evaluating extra claim expression: {e}"))?;
            if !found.is_empty() {
                extra.insert(key.clone(), found);
            }
        }
        for (claim, wanted) in &self.required {
            match &claims[claim] {
                Value::Null => return Err(format!("oidc: required claim {claim} not present in ID token")),
                Value::String(got) if got == wanted => {}
                got => {
                    return Err(format!(
                        "oidc: required claim {claim} value does not match. Got = {got}, want = {wanted}"
                    ));
                }
            }
        }
        Rule::hold(&self.rules, "claims", &values)
            .map_err(|e| format!("oidc: error evaluating claim validation expression: {e}"))?;
        if !self.user_rules.is_empty() {
            let info = json!({"username": user, "uid": uid, "groups": groups, "extra": extra});
            Rule::hold(&self.user_rules, "user", &Cel::typed(&info, &user_type()))
                .map_err(|e| format!("oidc: error evaluating user info validation rule: {e}"))?;
        }
        if !groups.iter().any(|g| g == "system:authenticated") {
            groups.push("system:authenticated".into());
        }
        Ok(Identity { user, uid, groups, extra })
    }

    /// Is a token with these claims for this server, and is it good now?
    pub fn verify(&self, claims: &Value, now: i64) -> Result<(), String> {
        let number = |name: &str| claims[name].as_f64().map(|n| n as i64);
        let expires = number("exp").ok_or("oidc: verify token: the token has no exp claim")?;
        if expires <= now {
            return Err(format!("oidc: verify token: oidc: token is expired (Token Expiry: {expires})"));
        }
        if number("nbf").is_some_and(|nbf| nbf > now + LEEWAY_SECONDS) {
            return Err("oidc: verify token: oidc: current time is before the nbf (not before) time".into());
        }
        let audiences = texts(&claims["aud"]).unwrap_or_default();
        let wanted = &self.issuer.audiences;
        if !audiences.iter().any(|a| wanted.contains(a)) {
            return Err(format!(
                "oidc: verify token: oidc: expected audience in {wanted:?} got {audiences:?}"
            ));
        }
        Ok(())
    }

    fn user(&self, claims: &Value, values: &Cel) -> Result<String, String> {
        match &self.username {
            Source::Nothing => Err("oidc: nothing is a user's name".into()),
            Source::Expression(expression) => {
                let failed = |e: String| format!("oidc: error evaluating username claim expression: {e}");
                let found = expression.eval("claims", values).map_err(failed)?;
                match found.as_str() {
                    None => Err(failed("username claim expression must return a string".into())),
                    Some("") => Err("oidc: empty username via CEL expression is not allowed".into()),
                    Some(name) => Ok(name.to_string()),
                }
            }
            Source::Claim { name, prefix } => {
                let user = claims[name].as_str().filter(|u| !u.is_empty());
                let user =
                    user.ok_or_else(|| format!("oidc: parse username claims {name:?}: claim not present"))?;
                let verified = &claims["email_verified"];
                if name == "email" && !verified.is_null() && *verified != true {
                    return Err("oidc: email not verified".into());
                }
                Ok(format!("{prefix}{user}"))
            }
        }
    }

    fn groups(&self, claims: &Value, values: &Cel) -> Result<Vec<String>, String> {
        match &self.groups {
            Source::Nothing => Ok(Vec::new()),
            Source::Expression(expression) => expression
                .texts(values)
                .map_err(|e| format!("oidc: error evaluating group claim expression: {e}")),
            Source::Claim { name, .. } if claims[name].is_null() => Ok(Vec::new()),
            Source::Claim { name, prefix } => {
                let all = texts(&claims[name]);
                let all = all.ok_or_else(|| format!("oidc: parse groups claim {name:?}: no texts"))?;
                Ok(all.into_iter().map(|group| format!("{prefix}{group}")).collect())
            }
        }
    }

    fn uid(&self, claims: &Value, values: &Cel) -> Result<String, String> {
        match &self.uid {
            Source::Nothing => Ok(String::new()),
            Source::Claim { name, .. } => {
                let uid = claims[name].as_str().map(str::to_string);
                uid.ok_or_else(|| format!("oidc: parse uid claim {name:?}: claim not present"))
            }
            Source::Expression(expression) => {
                let failed = |e: String| format!("oidc: error evaluating uid claim expression: {e}");
                let found = expression.eval("claims", values).map_err(failed)?;
                let found = found.as_str().map(str::to_string);
                found.ok_or_else(|| failed("uid claim expression must return a string".into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::AuthenticationFile;
    use super::super::provider::OidcFlags;
    use super::*;

    fn flags() -> OidcFlags {
        OidcFlags {
            issuer_url: "https://i".into(),
            client_id: "me".into(),
            groups_claim: "groups".into(),
            groups_prefix: "oidc:".into(),
            required_claims: "hd=example.com".into(),
            ..OidcFlags::default()
        }
    }

    fn claims() -> Value {
        json!({"iss": "https://i", "aud": ["x", "me"], "sub": "alice", "exp": 100, "hd": "example.com",
            "groups": ["dev", "ops"]})
    }

    #[test]
    fn claims_become_an_identity() {
        let provider = flags().provider(&[]).unwrap();
        let who = provider.identity(&claims(), 50).unwrap();
        assert_eq!(who.user, "https://i#alice");
        assert_eq!(who.groups, ["oidc:dev", "oidc:ops", "system:authenticated"]);
        for (claim, value) in [
            ("exp", json!(50)),
            ("exp", Value::Null),
            ("nbf", json!(1_000)),
            ("aud", json!("other")),
            ("hd", json!("evil.com")),
            ("hd", Value::Null),
            ("sub", json!("")),
            ("groups", json!([1])),
        ] {
            let mut claims = claims();
            claims[claim] = value;
            assert!(provider.identity(&claims, 50).is_err(), "{claim}");
        }
        let mut one = claims();
        one["groups"] = json!("solo");
        assert_eq!(provider.identity(&one, 50).unwrap().groups[0], "oidc:solo");
    }

    #[test]
    fn a_token_may_say_who_knows_a_claim() {
        let with = |names: Value, sources: Value| json!({"_claim_names": names, "_claim_sources": sources});
        let source = json!({"s": {"endpoint": "https://g", "access_token": "t"}});
        let found = elsewhere(&with(json!({"groups": "s"}), source.clone()), "groups");
        assert_eq!(found, Ok(Some(("https://g".into(), "t".into()))));
        let mut given = with(json!({"groups": "s"}), source.clone());
        given["groups"] = json!(["a"]);
        for nothing in [
            given,
            json!({}),
            with(json!({"x": "s"}), source),
            with(json!({"groups": "s"}), json!({"s": {"JWT": "x"}})),
        ] {
            assert_eq!(elsewhere(&nothing, "groups"), Ok(None), "{nothing}");
        }
        for wrong in [
            with(json!({"groups": "s"}), Value::Null),
            with(json!("x"), json!({})),
            with(json!({"groups": "s"}), json!({})),
        ] {
            assert!(elsewhere(&wrong, "groups").is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_that_nobody_verified_is_no_name() {
        let flags = OidcFlags {
            issuer_url: "https://i".into(),
            client_id: "me".into(),
            username_claim: "email".into(),
            ..OidcFlags::default()
        };
        let provider = flags.provider(&[]).unwrap();
        let mut claims = claims();
        claims["email"] = json!("a@b");
        assert_eq!(provider.identity(&claims, 50).unwrap().user, "a@b");
        claims["email_verified"] = json!(false);
        assert!(provider.identity(&claims, 50).is_err());
    }

    /// A file with one provider that has this besides its issuer.
    fn file(rest: Value) -> Result<Provider, String> {
        let mut jwt = json!({"issuer": {"url": "https://i", "audiences": ["me"]}});
        rest.as_object().unwrap().iter().for_each(|(k, v)| jwt[k] = v.clone());
        let file = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
            "jwt": [jwt]});
        Ok(AuthenticationFile::read(file.to_string().as_bytes(), &[])?.providers.remove(0))
    }

    #[test]
    fn expressions_name_users_and_hold_them_to_rules() {
        let provider = file(json!({
            "claimMappings": {
                "username": {"expression": "'ext:' + claims.sub"},
                "groups": {"expression": "claims.roles.split(',').map(r, 'r:' + r)"},
                "uid": {"expression": "claims.?oid.orValue('none')"},
                "extra": [{"key": "example.org/tenant", "valueExpression": "claims.?tenant.orValue('')"},
                    {"key": "example.org/hd", "valueExpression": "[claims.hd, '']"}],
            },
            "claimValidationRules": [{"expression": "claims.exp - claims.iat <= 86400", "message": "too long"}],
            "userValidationRules": [
                {"expression": "!user.username.startsWith('ext:system:')", "message": "reserved"},
                {"expression": "user.groups.all(g, g != 'r:root') && user.extra['example.org/hd'].size() == 1"}],
        }))
        .unwrap();
        let claims = |sub: &str, roles: &str, iat: i64| json!({"aud": "me", "sub": sub, "exp": 100, "iat": iat, "roles": roles, "hd": "h"});
        let who = provider.identity(&claims("alice", "a,b", 1), 50).unwrap();
        assert_eq!((who.user.as_str(), who.uid.as_str()), ("ext:alice", "none"));
        assert_eq!(who.groups, ["r:a", "r:b", "system:authenticated"]);
        assert_eq!(who.extra, BTreeMap::from([("example.org/hd".to_string(), vec!["h".to_string()])]));
        for (claims, why) in [
            (claims("alice", "a", -90_000), "too long"),
            (claims("system:x", "a", 1), "reserved"),
            (claims("alice", "root", 1), "validation expression"),
            (json!({"aud": "me", "exp": 100, "iat": 1, "roles": "", "hd": "h"}), "no such key: sub"),
            (json!({"aud": "me", "exp": 100, "iat": 1, "sub": 7, "roles": "", "hd": "h"}), "username"),
        ] {
            let error = provider.identity(&claims, 50).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn mistakes_are_told_in_upstreams_words() {
        let sub = json!({"username": {"claim": "sub", "prefix": ""}});
        for (rest, why) in [
            (json!({}), "jwt[0].claimMappings.username: Required value: claim or expression is required"),
            (
                json!({"claimMappings": {"username": {"claim": "sub"}}}),
                "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
            ),
            (
                json!({"claimMappings": {"username": {"claim": "sub", "expression": "claims.sub"}}}),
                "jwt[0].claimMappings.username: Invalid value: \"\": claim and expression can't both be set",
            ),
            (
                json!({"claimMappings": {"username": {"expression": "claims.email"}}}),
                "jwt[0].claimMappings.username.expression: Invalid value: \"claims.email\": claims.email_verified must be used",
            ),
            (json!({"claimMappings": {"username": {"expression": "claims."}}}), "compilation failed"),
            (
                json!({"claimMappings": sub, "claimValidationRules": [{"expression": "claims.admin"}]}),
                "jwt[0].claimValidationRules[0].expression: Invalid value: \"claims.admin\": must evaluate to bool",
            ),
            (
                json!({"claimMappings": sub, "userValidationRules": [{"expression": "user.x == ''"}]}),
                "undefined field 'x'",
            ),
            (
                json!({"claimMappings": sub, "issuer": {"url": "https://u:p@i?q#f", "audiences": ["a", "a"]}}),
                "[jwt[0].issuer.url: Invalid value: \"https://u:p@i?q#f\": URL must not contain a username or password, ",
            ),
        ] {
            let error = file(rest).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let mut mappings = sub.clone();
        for (key, why) in [
            ("foo", "must be a domain-prefixed path"),
            ("a.k8s.io/x", "reserved for Kubernetes use"),
            ("a.io/X", "must be lowercase"),
        ] {
            mappings["extra"] = json!([{"key": key, "valueExpression": "'x'"}]);
            let error = file(json!({"claimMappings": mappings})).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let verified = "claims.?email_verified.orValue(false) ? claims.email : ''";
        assert!(file(json!({"claimMappings": {"username": {"expression": verified}}})).is_ok());
    }
}
