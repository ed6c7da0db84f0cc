//! Watches: exactness under writes, selection, bookmarks, ends.

use crate::harness::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

#[tokio::test]
async fn every_change_once_and_in_order_under_concurrent_writes() {
    let s = Arc::new(server().await);
    let start = s.get(MAPS).await.expect(200)["metadata"]["resourceVersion"].as_str().unwrap().to_string();
    let early = s.watch(&format!("{MAPS}?watch=1&resourceVersion={start}")).await;
    let writers = (0..4).map(|w| {
        let s = s.clone();
        tokio::spawn(async move {
            for i in 0..30 {
                let name = format!("w{w}-{i}");
                s.post(MAPS, &config_map(&name)).await.expect(201);
                let patch = json!({"data": {"a": "2"}});
                s.patch(&format!("{MAPS}/{name}"), "merge-patch", &patch).await.expect(200);
                if i % 2 == 0 {
                    s.delete(&format!("{MAPS}/{name}")).await.expect(200);
                }
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let late = s.watch(&format!("{MAPS}?watch=1&resourceVersion={start}")).await;
    for writer in writers {
        writer.await.unwrap();
    }
    let total = 4 * (30 + 30 + 15);
    for mut lines in [early, late] {
        let mut last = 0;
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        for _ in 0..total {
            let event = lines.next().await.unwrap();
            let metadata = &event["object"]["metadata"];
            let revision: u64 = metadata["resourceVersion"].as_str().unwrap().parse().unwrap();
            assert!(revision > last, "in order");
            last = revision;
            let name = metadata["name"].as_str().unwrap().to_string();
            match event["type"].as_str().unwrap() {
                "ADDED" => assert!(held.insert(name, revision).is_none()),
                "MODIFIED" => assert!(held.insert(name, revision).is_some()),
                "DELETED" => assert!(held.remove(&name).is_some()),
                other => panic!("{other}"),
            }
        }
        assert_eq!(held.len(), 60);
    }
}

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let s = server().await;
    let mut lines = s.watch(&format!("{MAPS}?watch=true&labelSelector=in%3Dyes")).await;
    s.post(MAPS, &config_map("a")).await.expect(201);
    let path = format!("{MAPS}/a");
    let label = |v: &str| json!({"metadata": {"labels": {"in": v}}});
    s.patch(&path, "merge-patch", &label("yes")).await.expect(200);
    assert_eq!(lines.short().await, "ADDED a");
    s.patch(&path, "merge-patch", &json!({"data": {"b": "1"}})).await.expect(200);
    assert_eq!(lines.short().await, "MODIFIED a");
    let out = s.patch(&path, "merge-patch", &label("no")).await.expect(200);
    let event = lines.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["metadata"]["labels"]["in"], "yes", "shown as it was");
    assert_eq!(event["object"]["metadata"]["resourceVersion"], out["metadata"]["resourceVersion"]);
    s.delete(&path).await.expect(200);
    s.post(MAPS, &{
        let mut body = config_map("b");
        body["metadata"]["labels"] = json!({"in": "yes"});
        body
    })
    .await
    .expect(201);
    assert_eq!(lines.short().await, "ADDED b");
}

#[tokio::test]
async fn present_objects_come_first_and_a_bookmark_ends_them() {
    let s = server().await;
    s.post(MAPS, &config_map("a")).await.expect(201);
    s.post(MAPS, &config_map("b")).await.expect(201);
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut lines = s.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(lines.short().await, "ADDED a");
    assert_eq!(lines.short().await, "ADDED b");
    let bookmark = lines.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    s.post(MAPS, &config_map("c")).await.expect(201);
    assert_eq!(lines.short().await, "ADDED c");
    let mut one = s.watch(&format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Db")).await;
    assert_eq!(one.short().await, "ADDED b");
    let mut old = s.watch("/api/v1/watch/namespaces/default/configmaps/c").await;
    assert_eq!(old.short().await, "ADDED c");
    let bad = s.get(&format!("{MAPS}?watch=1&sendInitialEvents=true")).await.fails(422, "Invalid");
    assert!(bad.contains("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"), "{bad}");
}

#[tokio::test]
async fn a_timeout_ends_the_watch_after_a_bookmark() {
    let s = server().await;
    let made = s.post(MAPS, &config_map("a")).await.expect(201);
    let mut lines = s.watch(&format!("{MAPS}?watch=1&allowWatchBookmarks=true&timeoutSeconds=3")).await;
    assert_eq!(lines.short().await, "ADDED a");
    let bookmark = lines.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    let revision =
        |v: &serde_json::Value| v["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(revision(&bookmark["object"]) >= revision(&made));
    while let Some(event) = lines.next().await {
        assert_eq!(event["type"], "BOOKMARK");
    }
}

#[tokio::test]
async fn too_old_a_revision_is_told_in_the_stream() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let open = || async {
        let store = store::Embedded::open(&path, store::EmbeddedOptions::default()).unwrap();
        apiserver::Api::open(apiserver::ApiConfig::new("main", Arc::new(store))).await.unwrap()
    };
    let first = open().await;
    first.close();
    drop(first);
    let api = loop {
        // The feed lets go of the store a moment after the close.
        match store::Embedded::open(&path, store::EmbeddedOptions::default()) {
            Ok(store) => {
                break apiserver::Api::open(apiserver::ApiConfig::new("main", Arc::new(store)))
                    .await
                    .unwrap();
            }
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let client = api.client(auth::Identity::new("test", ["system:masters"]));
    let list = client.list(&k8s_schema::gvr::NAMESPACES, &Default::default()).await.unwrap();
    assert_eq!(list.items.len(), 4, "recovered");
    let options = client::WatchOptions { after: Some(1), ..Default::default() };
    let error = client.watch(&k8s_schema::gvr::NAMESPACES, &options).await.err().unwrap();
    assert_eq!((error.code, error.reason), (410, "Expired"));
    assert!(error.message.starts_with("too old resource version: 1 ("), "{}", error.message);
}

#[tokio::test]
async fn a_watch_that_starts_too_early_gets_an_error_event() {
    let s = server().await;
    // The ring of one resource holds 4,096 changes.
    let client = s.api.client(s.identity.clone());
    let made = s.post(MAPS, &config_map("a")).await.expect(201);
    let key = client::ObjectKey::new("default", "a");
    for i in 0..4_200 {
        client
            .merge_patch(&k8s_schema::gvr::CONFIG_MAPS, &key, json!({"data": {"n": i.to_string()}}))
            .await
            .unwrap();
    }
    let at = made["metadata"]["resourceVersion"].as_str().unwrap();
    let mut lines = s.watch(&format!("{MAPS}?watch=1&resourceVersion={at}")).await;
    let event = lines.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["reason"], "Expired");
    assert!(
        event["object"]["message"]
            .as_str()
            .unwrap()
            .starts_with(&format!("too old resource version: {at} ("))
    );
    assert!(lines.next().await.is_none());
}

#[tokio::test]
async fn closing_the_server_ends_watches() {
    let s = server().await;
    let mut lines = s.watch(&format!("{MAPS}?watch=1")).await;
    s.api.close();
    assert!(lines.next().await.is_none());
}

#[tokio::test]
async fn tables_are_watched_as_tables() {
    let s = server().await;
    s.post(MAPS, &config_map("a")).await.expect(201);
    let request = http::Request::builder()
        .uri(format!("{MAPS}?watch=1"))
        .header("host", "api")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Default::default())
        .unwrap();
    let response = s.send(request).await;
    let frame = http_body_util::BodyExt::frame(&mut response.into_body()).await.unwrap().unwrap();
    let event: serde_json::Value = serde_json::from_slice(&frame.into_data().unwrap()).unwrap();
    assert_eq!(event["object"]["kind"], "Table");
    assert_eq!(event["object"]["rows"][0]["cells"][0], "a");
    assert!(!event["object"]["columnDefinitions"].as_array().unwrap().is_empty());
}

/// One from a revision that is still to come waits for it, as upstream's, and shows nothing from before.
#[tokio::test]
async fn a_watch_may_begin_in_the_future() {
    let s = server().await;
    let made = s.post(MAPS, &config_map("a")).await.expect(201);
    let now: u64 = made["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let mut lines = s.watch(&format!("{MAPS}?watch=1&resourceVersion={}", now + 40)).await;
    let mut last = now;
    for i in 0.. {
        let written = s
            .patch(&format!("{MAPS}/a"), "merge-patch", &json!({"data": {"n": i.to_string()}}))
            .await
            .expect(200);
        last = written["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        if last > now + 40 {
            break;
        }
    }
    let event = lines.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["resourceVersion"]),
        (&json!("MODIFIED"), &json!(last.to_string()))
    );
}
