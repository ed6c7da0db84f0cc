//! Certificate requests of nodes: approved by upstream's rules, signed with the cluster's authority, forgotten in time.
//!
//! What is approved without a person: a node's client certificate, asked for with a bootstrap token or with the
//! certificate it renews (upstream's `csrapproving`, by the same rights `nodeclient` and `selfnodeclient`); and a
//! node's serving certificate for its own name and addresses, which upstream leaves to others. One rule is ours: a
//! bootstrap token does not get the name of a node that is there and Ready. Approved requests for users
//! (`kubernetes.io/kube-apiserver-client`) are signed too; other signers are left alone.
//! Who asked is in `spec`, written by the API server. The decision ([`decide`]) is pure.

use crate::context::{Context, Outcome, Reconcile, enqueue_self, run};
use async_trait::async_trait;
use auth::Ca;
use auth::csr::{Request, Usage};
use client::cache::Cache;
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey, Verb, Write};
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest as Csr;
use k8s_openapi::api::core::v1::Node;
use k8s_schema::gvr;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

const USER_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const BOOTSTRAP_PREFIX: &str = "system:bootstrap:";
/// Life of a certificate when the request does not ask for a shorter one (upstream's default).
const LIFE: Duration = Duration::from_secs(365 * 86_400);
/// The shortest life a request may ask for.
const LIFE_MIN: Duration = Duration::from_secs(600);
/// How long requests are kept for people to look at: decided ones, and those that nobody decides (upstream's).
const KEPT_DECIDED: Duration = Duration::from_secs(3_600);
const KEPT_PENDING: Duration = Duration::from_secs(86_400);

struct Controller {
    context: Context,
    ca: Arc<Ca>,
    requests: Arc<Cache>,
    nodes: Arc<Cache>,
}

/// Starts it, where there is an authority to sign with.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let Some(ca) = context.config.authority.clone() else { return Vec::new() };
    let queue = Arc::new(Queue::default());
    let requests = context.informers.of(&gvr::CERTIFICATE_SIGNING_REQUESTS);
    let nodes = context.informers.of(&gvr::NODES);
    enqueue_self(&requests, &queue);
    let controller =
        Controller { context: context.clone(), ca, requests: requests.clone(), nodes: nodes.clone() };
    run("csr", vec![requests, nodes], queue, 1, Arc::new(controller))
}

/// What to do about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// Nothing before that time has passed.
    Wait(Duration),
    Delete,
    /// Say why it gets no certificate.
    Fail(String),
    /// Approve it, if its asker may create this subresource of requests; `None`: without asking.
    Approve(Option<&'static str>),
    Deny(String),
    Sign(Usage, Duration),
}

/// A node as far as it matters here.
#[derive(Clone, Debug, Default)]
struct Known {
    name: String,
    ready: bool,
    addresses: Vec<String>,
}

fn decide(csr: &Csr, request: &Request, nodes: &[Known], now: Timestamp) -> Plan {
    let conditions = csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let has = |kind: &str| conditions.clone().any(|c| c.type_ == kind);
    let certified = csr.status.as_ref().is_some_and(|s| s.certificate.is_some());
    let (approved, ended) = (has("Approved"), has("Denied") || has("Failed") || certified);
    // The decided are kept from their decision on, the others from when they came.
    let decided = conditions.clone().filter(|_| ended).filter_map(|c| c.last_update_time.as_ref()).max();
    let from = decided.or(csr.metadata.creation_timestamp.as_ref());
    let age = from.map_or(Duration::ZERO, |t| machinery::time::since(now, t.0));
    let kept = if ended { KEPT_DECIDED } else { KEPT_PENDING };
    if age >= kept && (ended || !approved) {
        return Plan::Delete;
    }
    if approved
        && !ended
        && let Some(why) = fault(csr, request)
    {
        return Plan::Fail(why);
    }
    let asked = csr.spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
    let life = asked.map_or(LIFE, |asked| asked.clamp(LIFE_MIN, LIFE));
    match csr.spec.signer_name.as_str() {
        _ if ended => Plan::Wait(kept - age),
        USER_CLIENT | NODE_CLIENT if approved => Plan::Sign(Usage::Client, life),
        NODE_SERVING if approved => Plan::Sign(Usage::Server, life),
        NODE_CLIENT => client_plan(csr, request, nodes).unwrap_or(Plan::Wait(kept - age)),
        NODE_SERVING => serving_plan(csr, request, nodes).unwrap_or(Plan::Wait(kept - age)),
        _ => Plan::Wait(if approved { kept } else { kept.saturating_sub(age) }),
    }
}

/// What is wrong with an approved request, in upstream's words; signers that are not ours judge for themselves.
fn fault(csr: &Csr, request: &Request) -> Option<String> {
    let usages: Vec<&str> = csr.spec.usages.iter().flatten().map(String::as_str).collect();
    let purpose = match csr.spec.signer_name.as_str() {
        USER_CLIENT => {
            let known = ["client auth", "digital signature", "key encipherment"];
            return match usages.iter().find(|u| !known.contains(u)) {
                Some(usage) => Some(format!("invalid usage for client certificate: {usage}")),
                None if usages.contains(&"client auth") => None,
                None => Some("missing required usage for client certificate: client auth".into()),
            };
        }
        NODE_CLIENT => "client auth",
        NODE_SERVING => "server auth",
        _ => return None,
    };
    let named = !request.names.is_empty() || !request.ips.is_empty();
    let why = match () {
        () if request.groups != [NODES] => "subject organization is not system:nodes",
        () if !request.user.starts_with(NODE_PREFIX) => {
            "subject common name does not begin with system:node:"
        }
        () if purpose == "client auth" && named => "DNS and IP subjectAltNames are not allowed",
        () if purpose == "server auth" && !named => "at least one DNS or IP subjectAltName is required",
        () if request.more => "Email and URI subjectAltNames are not allowed",
        () if node_of(csr, request, purpose).is_none() => {
            return Some(format!("usages did not match [{purpose} digital signature key encipherment]"));
        }
        () => return None,
    };
    Some(why.into())
}

/// The node that the request is for, if it has the form of a node's.
fn node_of<'a>(csr: &Csr, request: &'a Request, purpose: &str) -> Option<&'a str> {
    let usages: Vec<&str> = csr.spec.usages.iter().flatten().map(String::as_str).collect();
    let known = usages.iter().all(|u| [purpose, "digital signature", "key encipherment"].contains(u));
    let well_formed = known && usages.contains(&purpose) && usages.contains(&"digital signature");
    let node = request.user.strip_prefix(NODE_PREFIX).filter(|n| !n.is_empty())?;
    (well_formed && !request.more && request.groups == [NODES]).then_some(node)
}

fn client_plan(csr: &Csr, request: &Request, nodes: &[Known]) -> Option<Plan> {
    let node = node_of(csr, request, "client auth")?;
    if !request.names.is_empty() || !request.ips.is_empty() {
        return None;
    }
    let asker = csr.spec.username.as_deref().unwrap_or_default();
    if asker == request.user {
        return Some(Plan::Approve(Some("selfnodeclient")));
    }
    let lives = asker.starts_with(BOOTSTRAP_PREFIX) && nodes.iter().any(|n| n.name == node && n.ready);
    if lives {
        let why = format!("node {node:?} is there and Ready: delete it first, or join by another name");
        return Some(Plan::Deny(why));
    }
    Some(Plan::Approve(Some("nodeclient")))
}

/// A node serves under its own name and the addresses that its Node object has and no other has.
fn serving_plan(csr: &Csr, request: &Request, nodes: &[Known]) -> Option<Plan> {
    let node = node_of(csr, request, "server auth")?;
    let in_nodes = csr.spec.groups.iter().flatten().any(|g| g == NODES);
    if csr.spec.username.as_deref() != Some(&request.user) || !in_nodes {
        return None;
    }
    let mut names = request.names.iter().cloned().chain(request.ips.iter().map(IpAddr::to_string)).peekable();
    names.peek()?;
    let own = |name: &String| {
        let holders = nodes.iter().filter(|n| n.name == *name || n.addresses.contains(name));
        holders.map(|n| n.name.as_str()).eq([node])
    };
    names.all(|name| own(&name)).then_some(Plan::Approve(None))
}

fn known(object: &Object) -> Option<Known> {
    let node = object.view::<Node>().ok()?;
    let status = node.status.as_ref();
    let mut conditions = status.into_iter().flat_map(|s| s.conditions.iter().flatten());
    let addresses = status.into_iter().flat_map(|s| s.addresses.iter().flatten());
    Some(Known {
        name: object.key.name.to_string(),
        ready: conditions.any(|c| c.type_ == "Ready" && c.status == "True"),
        addresses: addresses.map(|a| a.address.clone()).collect(),
    })
}

impl Controller {
    /// Has the asker the right to create that subresource of requests?
    async fn permitted(&self, csr: &Csr, subresource: &str) -> Result<bool, ApiError> {
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": csr.spec.username, "uid": csr.spec.uid, "groups": csr.spec.groups, "extra": csr.spec.extra,
            "resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests",
                "subresource": subresource, "verb": "create", "version": "*"}}});
        let answer = self.context.client.create(&gvr::SUBJECT_ACCESS_REVIEWS, review).await?;
        Ok(answer.value().map_err(ApiError::internal)?["status"]["allowed"] == true)
    }

    async fn write(
        &self,
        object: &Object,
        part: &'static str,
        change: impl FnOnce(&mut Value),
    ) -> Result<(), ApiError> {
        let mut body = object.value().map_err(ApiError::internal)?;
        change(&mut body["status"]);
        let (gvr, key) = (gvr::CERTIFICATE_SIGNING_REQUESTS, object.key.clone());
        let verb = Verb::Update(body);
        self.context.client.write(Write { gvr, key, subresource: part, verb }).await.map(|_| ())
    }

    fn condition(&self, kind: &str, reason: &str, message: &str) -> impl FnOnce(&mut Value) + use<> {
        let now = machinery::time::format(self.context.now());
        let condition = json!({"type": kind, "status": "True", "reason": reason, "message": message,
            "lastUpdateTime": now, "lastTransitionTime": now});
        move |status| match status["conditions"].as_array_mut() {
            Some(conditions) => conditions.push(condition),
            None => status["conditions"] = json!([condition]),
        }
    }

    async fn act(&self, object: &Object, csr: &Csr, pem: &str, plan: Plan) -> Outcome {
        match plan {
            Plan::Wait(time) => return Ok(Some(time)),
            Plan::Delete => {
                let options = DeleteOptions { uid: Some(object.uid().into()), ..DeleteOptions::default() };
                let gvr = gvr::CERTIFICATE_SIGNING_REQUESTS;
                self.context.client.delete(&gvr, &object.key, options).await?;
            }
            Plan::Approve(right) => {
                if let Some(right) = right
                    && !self.permitted(csr, right).await?
                {
                    return Ok(None);
                }
                let message = "Auto approving kubelet certificate after SubjectAccessReview.";
                self.write(object, "approval", self.condition("Approved", "AutoApproved", message)).await?;
            }
            Plan::Deny(why) => {
                tracing::warn!(request = %object.key, why, "a certificate request was denied");
                self.write(object, "approval", self.condition("Denied", "NodeExists", &why)).await?;
            }
            Plan::Fail(why) => {
                self.write(object, "status", self.condition("Failed", "SignerValidationFailure", &why))
                    .await?;
            }
            Plan::Sign(usage, life) => match self.ca.sign(pem, usage, life, self.context.now().into()) {
                Ok(certificate) => {
                    let certificate = json!(k8s_openapi::ByteString(certificate.into_bytes()));
                    self.write(object, "status", |status| status["certificate"] = certificate).await?;
                }
                Err(error) => {
                    let why = error.to_string();
                    self.write(object, "status", self.condition("Failed", "SignerValidationFailure", &why))
                        .await?;
                }
            },
        }
        Ok(None)
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(object) = self.requests.get(key) else { return Ok(None) };
        let value = object.value().map_err(ApiError::internal)?;
        let Ok(csr) = serde_json::from_value::<Csr>(value) else { return Ok(None) };
        let pem = String::from_utf8(csr.spec.request.0.clone()).unwrap_or_default();
        // The API server takes no others.
        let Ok(request) = Request::parse(&pem) else { return Ok(None) };
        let nodes: Vec<Known> = self.nodes.list().iter().filter_map(|n| known(n)).collect();
        let plan = decide(&csr, &request, &nodes, self.context.now());
        match self.act(&object, &csr, &pem, plan).await {
            Err(error) if error.is_not_found() => Ok(None),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csr(signer: &str, asker: &str, usage: &str, status: Value) -> Csr {
        serde_json::from_value(json!({"metadata": {"name": "r", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"request": "", "signerName": signer, "username": asker, "groups": [NODES],
                "usages": ["digital signature", usage], "expirationSeconds": 60}, "status": status}))
        .unwrap()
    }

    fn request(user: &str, names: &[&str]) -> Request {
        let (ips, names): (Vec<&str>, Vec<&str>) =
            names.iter().copied().partition(|n| n.parse::<IpAddr>().is_ok());
        Request {
            user: user.into(),
            groups: vec![NODES.into()],
            names: names.into_iter().map(|n: &str| n.to_string()).collect(),
            ips: ips.into_iter().map(|n: &str| n.parse().unwrap()).collect(),
            more: false,
        }
    }

    fn plan(csr: &Csr, request: &Request) -> Plan {
        let node = |name: &str, ready, addresses: &[&str]| Known {
            name: name.into(),
            ready,
            addresses: addresses.iter().map(|a| a.to_string()).collect(),
        };
        let nodes = [
            node("a", true, &["10.0.0.1", "a", "10.0.0.9"]),
            node("b", false, &["10.0.0.2", "b", "10.0.0.9"]),
        ];
        decide(csr, request, &nodes, "2026-01-01T00:10:00Z".parse().unwrap())
    }

    #[test]
    fn nodes_get_client_certificates_by_their_rights() {
        let of = |asker: &str, node: &str, names: &[&str]| {
            plan(
                &csr(NODE_CLIENT, asker, "client auth", json!({})),
                &request(&format!("{NODE_PREFIX}{node}"), names),
            )
        };
        let waits = |plan: Plan| matches!(plan, Plan::Wait(_));
        assert_eq!(of("system:bootstrap:x", "c", &[]), Plan::Approve(Some("nodeclient")));
        assert_eq!(of("system:bootstrap:x", "b", &[]), Plan::Approve(Some("nodeclient")));
        assert!(matches!(of("system:bootstrap:x", "a", &[]), Plan::Deny(_)));
        assert_eq!(of("system:node:a", "a", &[]), Plan::Approve(Some("selfnodeclient")));
        assert_eq!(of("system:node:a", "b", &[]), Plan::Approve(Some("nodeclient")), "which nodes have not");
        assert!(waits(of("system:bootstrap:x", "c", &["c"])), "a client has no names");
        assert!(waits(of("system:bootstrap:x", "", &[])));
        let mut odd = request("system:node:c", &[]);
        odd.groups.push("system:masters".into());
        assert!(waits(plan(&csr(NODE_CLIENT, "system:bootstrap:x", "client auth", json!({})), &odd)));
        assert!(waits(plan(
            &csr(NODE_CLIENT, "x", "server auth", json!({})),
            &request("system:node:c", &[])
        )));
        assert!(waits(plan(&csr(USER_CLIENT, "x", "client auth", json!({})), &request("alice", &[]))));
    }

    #[test]
    fn nodes_serve_under_their_own_names_only() {
        let of = |asker: &str, names: &[&str]| {
            plan(&csr(NODE_SERVING, asker, "server auth", json!({})), &request("system:node:a", names))
        };
        assert_eq!(of("system:node:a", &["a", "10.0.0.1"]), Plan::Approve(None));
        for (asker, names) in [
            ("system:node:a", &["a", "10.0.0.2"][..]),
            ("system:node:a", &["10.0.0.9"]),
            ("system:node:a", &["b"]),
            ("system:node:a", &["kubernetes"]),
            ("system:node:a", &[]),
            ("system:node:b", &["a"]),
            ("system:bootstrap:x", &["a"]),
        ] {
            assert!(matches!(of(asker, names), Plan::Wait(_)), "{asker} {names:?}");
        }
    }

    #[test]
    fn the_approved_are_signed_and_the_old_go() {
        let approved = json!({"conditions": [{"type": "Approved", "status": "True"}]});
        let asked = |signer: &str, usage: &str, status: &Value, names: &[&str]| {
            plan(&csr(signer, "x", usage, status.clone()), &request("system:node:a", names))
        };
        let of = |signer: &str, status: &Value| asked(signer, "client auth", status, &[]);
        assert_eq!(of(NODE_CLIENT, &approved), Plan::Sign(Usage::Client, LIFE_MIN));
        assert_eq!(of(USER_CLIENT, &approved), Plan::Sign(Usage::Client, LIFE_MIN));
        assert_eq!(
            asked(NODE_SERVING, "server auth", &approved, &["a"]),
            Plan::Sign(Usage::Server, LIFE_MIN)
        );
        for (signer, usage, names) in [
            (NODE_SERVING, "server auth", &[][..]),
            (NODE_SERVING, "client auth", &["a"]),
            (NODE_CLIENT, "client auth", &["a"]),
            (USER_CLIENT, "server auth", &[]),
        ] {
            assert!(
                matches!(asked(signer, usage, &approved, names), Plan::Fail(_)),
                "{signer} {usage} {names:?}"
            );
        }
        assert!(matches!(of("example.com/own", &approved), Plan::Wait(_)));
        let denied = json!({"conditions": [{"type": "Denied", "status": "True"}]});
        assert_eq!(of(NODE_CLIENT, &denied), Plan::Wait(KEPT_DECIDED - Duration::from_secs(600)));
        let done = csr(NODE_CLIENT, "x", "client auth", json!({"certificate": "eA=="}));
        let late = |text: &str| decide(&done, &request("u", &[]), &[], text.parse().unwrap());
        assert_eq!(late("2026-01-01T01:00:00Z"), Plan::Delete);
        let decided = csr(
            NODE_CLIENT,
            "x",
            "client auth",
            json!({"conditions": [
            {"type": "Denied", "status": "True", "lastUpdateTime": "2026-01-01T00:30:00Z"}]}),
        );
        let at = |text: &str| decide(&decided, &request("u", &[]), &[], text.parse().unwrap());
        assert_eq!(
            at("2026-01-01T01:29:00Z"),
            Plan::Wait(Duration::from_secs(60)),
            "counted from the decision"
        );
        assert_eq!(at("2026-01-01T01:30:00Z"), Plan::Delete);
    }
}
