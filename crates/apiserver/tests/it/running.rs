//! The server as a running thing: slow readers, panics, realms, restarts, lost history.

use crate::harness::*;
use apiserver::{Api, ApiConfig};
use auth::Identity;
use client::{ObjectKey, WatchOptions};
use futures_util::StreamExt;
use k8s_schema::gvr;
use serde_json::json;
use std::sync::Arc;

fn embedded(folder: &tempfile::TempDir) -> Arc<dyn store::Store> {
    let options = store::EmbeddedOptions::default();
    Arc::new(store::Embedded::open(&folder.path().join("store"), options).unwrap())
}

#[tokio::test]
async fn a_slow_watcher_is_cut_and_told() {
    let s = server().await;
    let client = s.api.client(s.identity.clone());
    s.post(MAPS, &config_map("a")).await.expect(201);
    let mut events = client.watch(&gvr::CONFIG_MAPS, &WatchOptions::default()).await.unwrap();
    let key = ObjectKey::new("default", "a");
    for i in 0..1_200 {
        client.merge_patch(&gvr::CONFIG_MAPS, &key, json!({"data": {"n": i.to_string()}})).await.unwrap();
    }
    let mut last = None;
    while let Some(event) = events.next().await {
        last = Some(event);
    }
    let error = last.unwrap().unwrap_err();
    assert_eq!((error.code, error.reason), (410, "Expired"));
}

struct Panics;

impl apiserver::authz::Authorizer for Panics {
    fn authorize(&self, identity: &Identity, _: &apiserver::authz::Attributes) -> apiserver::authz::Decision {
        assert!(identity.user != "bomb", "a handler breaks");
        apiserver::authz::Decision::Allow
    }
}

#[tokio::test]
async fn a_panic_is_an_answer_and_the_server_lives() {
    let s = server_with(|c| c.authorizer = Some(Arc::new(Panics))).await;
    s.with_identity(Identity::new("bomb", [])).get(MAPS).await.fails(500, "InternalError");
    s.get(MAPS).await.expect(200);
}

#[tokio::test]
async fn realms_do_not_see_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = embedded(&folder);
    let admin = || Identity::new("admin", ["system:masters"]);
    let one = Api::open(ApiConfig::new("one", store.clone())).await.unwrap();
    let two = Api::open(ApiConfig::new("one-more", store)).await.unwrap();
    let mut body = config_map("a");
    body["metadata"]["namespace"] = json!("default");
    one.client(admin()).create(&gvr::CONFIG_MAPS, body.clone()).await.unwrap();
    let list = two.client(admin()).list(&gvr::CONFIG_MAPS, &Default::default()).await.unwrap();
    assert!(list.items.is_empty());
    two.client(admin()).create(&gvr::CONFIG_MAPS, body).await.unwrap();
}

#[tokio::test]
async fn a_new_server_over_the_same_store_knows_what_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let store = embedded(&folder);
    let client = |api: &Arc<Api>| api.client(Identity::new("admin", ["system:masters"]));
    let service = |name: &str, ip: serde_json::Value| {
        json!({"metadata": {"name": name, "namespace": "default"},
            "spec": {"clusterIP": ip, "type": "NodePort", "ports": [{"port": 80}]}})
    };
    let first = Api::open(ApiConfig::new("main", store.clone())).await.unwrap();
    let made = client(&first).create(&gvr::SERVICES, service("a", json!(null))).await.unwrap();
    first.close();
    let second = Api::open(ApiConfig::new("main", store)).await.unwrap();
    let ip = made.value().unwrap()["spec"]["clusterIP"].clone();
    let error = client(&second).create(&gvr::SERVICES, service("b", ip)).await.unwrap_err();
    assert_eq!(error.code, 422, "{error}");
    let got = client(&second).get(&gvr::SERVICES, &made.key).await.unwrap();
    assert_eq!(got.raw, made.raw);
}

#[tokio::test]
async fn a_continue_token_whose_revision_is_gone_can_go_on_inconsistently() {
    let folder = tempfile::tempdir().unwrap();
    let store = embedded(&folder);
    let own = store.clone();
    let s = server_with(move |c| c.store = own).await;
    for i in 0..5 {
        s.post(MAPS, &config_map(&format!("m{i}"))).await.expect(201);
    }
    let page = s.get(&format!("{MAPS}?limit=2")).await.expect(200);
    let token = page["metadata"]["continue"].as_str().unwrap();
    s.post(MAPS, &config_map("m9")).await.expect(201);
    store.compact(store.revision().await.unwrap()).await.unwrap();
    let expired = s.get(&format!("{MAPS}?limit=2&continue={token}")).await.expect(410);
    assert_eq!(expired["reason"], "Expired");
    let token = expired["metadata"]["continue"].as_str().unwrap();
    let rest = s.get(&format!("{MAPS}?continue={token}")).await.expect(200);
    let names: Vec<&str> =
        rest["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["m2", "m3", "m4", "m9"]);
}

#[tokio::test]
async fn old_events_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = embedded(&folder);
    let at = |text: &'static str| move || text.parse().unwrap();
    let mut config = ApiConfig::new("main", store.clone());
    config.clock = Arc::new(at("2026-01-01T00:00:00Z"));
    let first = Api::open(config.clone()).await.unwrap();
    let event = json!({"metadata": {"name": "e", "namespace": "default"}, "reason": "R", "message": "m",
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}});
    first.client(Identity::new("t", ["system:masters"])).create(&gvr::EVENTS, event).await.unwrap();
    first.close();
    config.clock = Arc::new(at("2026-01-01T03:00:00Z"));
    let second = Api::open(config).await.unwrap();
    let client = second.client(Identity::new("t", ["system:masters"]));
    let gone = async {
        while !client.list(&gvr::EVENTS, &Default::default()).await.unwrap().items.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}
