//! Access that another server judges: `SubjectAccessReview` posted, its answer remembered for a while.
//!
//! Which questions are asked at all the operator may narrow by conditions in CEL; what happens when the server cannot
//! be asked is his to say too. Deliberately not here: the file that says so (`authz_config`), the order (`authz`).

use crate::authz::Attributes;
use crate::outbound::Endpoint;
use auth::Identity;
use machinery::cel::{Budget, Program, Type, Value as Cel};
use machinery::selector::{FieldSelector, LabelSelector, Op, Requirement};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Answers kept; beyond it all are forgotten.
const KEPT_MAX: usize = 8_192;
/// Questions longer than this are not remembered (upstream: 10,000 characters).
const QUESTION_MAX: usize = 10_000;

/// What a reviewer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Allow,
    /// No, whoever else says yes.
    Deny(String),
    /// Nothing; others may know.
    NoOpinion(String),
}

/// How a reviewer is asked.
#[derive(Clone, Debug)]
pub struct Manner {
    /// How long a yes is good; zero: it is not remembered.
    pub allowed_kept: Duration,
    /// How long anything else is good.
    pub refused_kept: Duration,
    /// How long a question may take.
    pub timeout: Duration,
    /// Does the request fail when the reviewer cannot be asked?
    pub fails: bool,
    /// Are reviews of version v1beta1?
    pub beta: bool,
    /// What must hold of a question (`request`), with its text.
    pub conditions: Vec<(String, Program)>,
}

impl Default for Manner {
    /// Upstream's.
    fn default() -> Self {
        Manner {
            allowed_kept: Duration::from_secs(300),
            refused_kept: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            fails: false,
            beta: false,
            conditions: Vec::new(),
        }
    }
}

/// The server that judges.
pub struct AccessWebhook {
    endpoint: Endpoint,
    manner: Manner,
    kept: Mutex<HashMap<String, (Instant, Verdict)>>,
}

/// The type of `request` in conditions.
pub fn request_type() -> Type {
    let object = |name: &str, fields: Vec<(&str, Type)>| {
        Type::object(&format!("kubernetes.{name}"), fields.into_iter().map(|(n, t)| (n.to_string(), t)))
    };
    let texts = |names: &[&'static str]| names.iter().map(|n| (*n, Type::String)).collect::<Vec<_>>();
    let mut requirement = texts(&["key", "operator"]);
    requirement.push(("values", Type::list(Type::String)));
    let requirements = Type::list(object("SelectorRequirement", requirement));
    let selector = |name: &str| {
        object(name, vec![("rawSelector", Type::String), ("requirements", requirements.clone())])
    };
    let mut resource = texts(&["namespace", "verb", "group", "version", "resource", "subresource", "name"]);
    resource.push(("fieldSelector", selector("FieldSelectorAttributes")));
    resource.push(("labelSelector", selector("LabelSelectorAttributes")));
    let mut fields = texts(&["user", "uid"]);
    fields.extend([
        ("resourceAttributes", object("ResourceAttributes", resource)),
        ("nonResourceAttributes", object("NonResourceAttributes", texts(&["path", "verb"]))),
        ("groups", Type::list(Type::String)),
        ("extra", Type::map(Type::list(Type::String))),
    ]);
    object("SubjectAccessReviewSpec", fields)
}

/// The question as conditions see it: every text and list is there.
fn shown(spec: &Value) -> Cel {
    let mut shown = json!({"user": "", "uid": "", "groups": [], "extra": {}});
    if spec["resourceAttributes"].is_object() {
        shown["resourceAttributes"] = json!({"namespace": "", "verb": "", "group": "", "version": "",
            "resource": "", "subresource": "", "name": ""});
    }
    merge(&mut shown, spec);
    Cel::typed(&shown, &request_type())
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from.clone(),
    }
}

/// What is asked.
fn spec(identity: &Identity, a: &Attributes) -> Value {
    let mut spec = json!({"user": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        spec["uid"] = json!(identity.uid);
    }
    if !identity.extra.is_empty() {
        spec["extra"] = json!(identity.extra);
    }
    if !a.is_resource() {
        spec["nonResourceAttributes"] = json!({"path": a.path, "verb": a.verb});
        return spec;
    }
    let mut resource = json!({});
    for (field, text) in [
        ("namespace", &a.namespace),
        ("verb", &a.verb),
        ("group", &a.group),
        ("version", &a.version),
        ("resource", &a.resource),
        ("subresource", &a.subresource),
        ("name", &a.name),
    ] {
        if !text.is_empty() {
            resource[field] = json!(text);
        }
    }
    let fields = FieldSelector::parse(&a.field_selector).unwrap_or_default();
    if !fields.is_empty() {
        let requirement = |r: &machinery::selector::FieldRequirement| {
            let operator = if r.negated { "NotIn" } else { "In" };
            json!({"key": r.field, "operator": operator, "values": [r.value]})
        };
        let all: Vec<Value> = fields.requirements.iter().map(requirement).collect();
        resource["fieldSelector"] = json!({"requirements": all});
    }
    if let Ok(labels) = LabelSelector::parse(&a.label_selector)
        && !labels.requirements.is_empty()
    {
        let requirement = |r: &Requirement| {
            let operator = match r.op {
                Op::In | Op::Equals => "In",
                Op::NotIn | Op::NotEquals => "NotIn",
                Op::Exists => return Some(json!({"key": r.key, "operator": "Exists"})),
                Op::DoesNotExist => return Some(json!({"key": r.key, "operator": "DoesNotExist"})),
                // Reviews have no such operators.
                Op::GreaterThan | Op::LessThan => return None,
            };
            Some(json!({"key": r.key, "operator": operator, "values": r.values}))
        };
        let all: Vec<Value> = labels.requirements.iter().filter_map(requirement).collect();
        resource["labelSelector"] = json!({"requirements": all});
    }
    spec["resourceAttributes"] = resource;
    spec
}

fn read(review: &Value) -> Verdict {
    let status = &review["status"];
    let reason = status["reason"].as_str().unwrap_or_default().to_string();
    match (status["allowed"] == true, status["denied"] == true) {
        (_, true) => Verdict::Deny(reason),
        (true, false) => Verdict::Allow,
        (false, false) => Verdict::NoOpinion(reason),
    }
}

impl AccessWebhook {
    /// Asks that endpoint.
    pub fn new(endpoint: Endpoint, manner: Manner) -> AccessWebhook {
        AccessWebhook { endpoint, manner, kept: Mutex::default() }
    }

    /// Is it asked about this? One condition that does not hold decides, even where another fails.
    fn minds(&self, spec: &Value) -> Result<bool, String> {
        if self.manner.conditions.is_empty() {
            return Ok(true);
        }
        let (request, mut budget) = (shown(spec), Budget::default());
        let mut failures = Vec::new();
        for (text, program) in &self.manner.conditions {
            match program.eval(&[("request", request.clone())], &mut budget) {
                Ok(value) if value.as_bool() == Some(true) => {}
                Ok(_) => return Ok(false),
                Err(error) => failures
                    .push(format!("cel evaluation error: expression '{text}' resulted in error: {error}")),
            }
        }
        if failures.is_empty() { Ok(true) } else { Err(failures.join(", ")) }
    }

    fn unasked(&self) -> Verdict {
        if self.manner.fails { Verdict::Deny(String::new()) } else { Verdict::NoOpinion(String::new()) }
    }

    /// Its judgment.
    pub async fn judge(&self, identity: &Identity, attributes: &Attributes) -> Verdict {
        let mut spec = spec(identity, attributes);
        match self.minds(&spec) {
            Ok(true) => {}
            Ok(false) => return Verdict::NoOpinion(String::new()),
            Err(error) => {
                tracing::warn!(error, "a condition of an authorization webhook failed");
                return self.unasked();
            }
        }
        let question = spec.to_string();
        if let Some((until, known)) = self.kept.lock().get(&question)
            && Instant::now() < *until
        {
            return known.clone();
        }
        let version = if self.manner.beta { "v1beta1" } else { "v1" };
        if self.manner.beta {
            // The old version's list has another name.
            spec["group"] = spec["groups"].take();
            spec.as_object_mut().map(|spec| spec.remove("groups"));
        }
        let review = json!({"apiVersion": format!("authorization.k8s.io/{version}"),
            "kind": "SubjectAccessReview", "metadata": {"creationTimestamp": null}, "spec": spec});
        let verdict = match self.endpoint.post(&review, self.manner.timeout).await {
            Ok(answer) => read(&answer),
            Err(error) => {
                tracing::warn!(error, "access could not be reviewed");
                return self.unasked();
            }
        };
        let yes = verdict == Verdict::Allow;
        let life = if yes { self.manner.allowed_kept } else { self.manner.refused_kept };
        if question.len() <= QUESTION_MAX && !life.is_zero() {
            let mut kept = self.kept.lock();
            if kept.len() >= KEPT_MAX {
                kept.clear();
            }
            kept.insert(question, (Instant::now() + life, verdict.clone()));
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers() {
        let path = Attributes { verb: "get".into(), path: "/x".into(), ..Attributes::default() };
        let asked = spec(&Identity::new("bob", ["g"]), &path);
        assert_eq!(asked["nonResourceAttributes"], json!({"path": "/x", "verb": "get"}));
        let pods = Attributes { verb: "list".into(), resource: "pods".into(), ..Attributes::default() };
        let pods = pods.selecting("spec.nodeName=n,status.phase!=Failed", "a in (x),!b");
        assert_eq!(
            spec(&Identity::default(), &pods)["resourceAttributes"],
            json!({"verb": "list", "resource": "pods", "fieldSelector": {"requirements": [
                {"key": "spec.nodeName", "operator": "In", "values": ["n"]},
                {"key": "status.phase", "operator": "NotIn", "values": ["Failed"]}]},
                "labelSelector": {"requirements": [{"key": "a", "operator": "In", "values": ["x"]},
                    {"key": "b", "operator": "DoesNotExist"}]}})
        );
        let no = |reason: &str| Verdict::NoOpinion(reason.into());
        assert_eq!(read(&json!({"status": {"allowed": true}})), Verdict::Allow);
        let both = json!({"status": {"allowed": true, "denied": true, "reason": "x"}});
        assert_eq!(read(&both), Verdict::Deny("x".into()));
        assert_eq!(read(&json!({"status": {"allowed": false, "reason": "no"}})), no("no"));
        assert_eq!(read(&Value::Null), no(""));
    }
}
