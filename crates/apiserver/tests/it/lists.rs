//! Lists: selection, pages, revisions.

use crate::harness::*;
use serde_json::{Value, json};

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|i| i["metadata"]["name"].as_str().unwrap().to_string()).collect()
}

#[tokio::test]
async fn selectors_select() {
    let s = server().await;
    for (name, app) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut body = config_map(name);
        body["metadata"]["labels"] = json!({"app": app});
        s.post(MAPS, &body).await.expect(201);
    }
    for (query, want) in [
        ("labelSelector=app%3Dx", vec!["a", "c"]),
        ("labelSelector=app%20in%20(y,z)", vec!["b"]),
        ("labelSelector=!app", vec![]),
        ("fieldSelector=metadata.name%3Db", vec!["b"]),
        ("fieldSelector=metadata.name!%3Db", vec!["a", "c"]),
        ("fieldSelector=metadata.namespace%3Dother", vec![]),
    ] {
        assert_eq!(names(&s.get(&format!("{MAPS}?{query}")).await.expect(200)), want, "{query}");
    }
    let everywhere = s.get("/api/v1/configmaps?labelSelector=app%3Dy").await.expect(200);
    assert_eq!((&everywhere["kind"], &everywhere["apiVersion"]), (&json!("ConfigMapList"), &json!("v1")));
    assert_eq!(names(&everywhere), ["b"]);
}

#[tokio::test]
async fn pages_are_one_consistent_list_whatever_is_written_between() {
    let s = server().await;
    for i in 0..25 {
        s.post(MAPS, &config_map(&format!("m{i:02}"))).await.expect(201);
    }
    // A namespace whose name sorts before "default/" in the store but after "default" as a word.
    s.post("/api/v1/namespaces", &json!({"metadata": {"name": "default-a"}})).await.expect(201);
    s.post("/api/v1/namespaces/default-a/configmaps", &config_map("x")).await.expect(201);
    let first = s.get("/api/v1/configmaps?limit=10").await.expect(200);
    assert_eq!(first["metadata"]["remainingItemCount"], 16);
    let revision = first["metadata"]["resourceVersion"].clone();
    s.delete(&format!("{MAPS}/m20")).await.expect(200);
    s.post(MAPS, &config_map("m999")).await.expect(201);
    let mut all = names(&first);
    let mut token = first["metadata"]["continue"].as_str().unwrap().to_string();
    while !token.is_empty() {
        let page = s.get(&format!("/api/v1/configmaps?limit=10&continue={token}")).await.expect(200);
        assert_eq!(page["metadata"]["resourceVersion"], revision);
        all.extend(names(&page));
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_string();
    }
    let mut want: Vec<String> = (0..25).map(|i| format!("m{i:02}")).collect();
    want.insert(0, "x".into());
    assert_eq!(all, want);
    let selected = s.get("/api/v1/configmaps?limit=1&fieldSelector=metadata.name%3Dm05").await.expect(200);
    assert_eq!(names(&selected), ["m05"]);
    assert!(selected["metadata"]["remainingItemCount"].is_null());
}

#[tokio::test]
async fn revisions_are_honoured() {
    let s = server().await;
    let one = s.post(MAPS, &config_map("a")).await.expect(201);
    let at = one["metadata"]["resourceVersion"].as_str().unwrap().to_string();
    s.post(MAPS, &config_map("b")).await.expect(201);
    let exact = s.get(&format!("{MAPS}?resourceVersion={at}&resourceVersionMatch=Exact")).await.expect(200);
    assert_eq!(names(&exact), ["a"]);
    assert_eq!(exact["metadata"]["resourceVersion"], json!(at));
    let newer =
        s.get(&format!("{MAPS}?resourceVersion={at}&resourceVersionMatch=NotOlderThan")).await.expect(200);
    assert_eq!(names(&newer), ["a", "b"]);
    assert_eq!(names(&s.get(&format!("{MAPS}?resourceVersion=0")).await.expect(200)).len(), 2);
    let message = s.get(&format!("{MAPS}?resourceVersion=999999")).await.fails(504, "Timeout");
    assert!(message.starts_with("Too large resource version: 999999, current: "), "{message}");
}

#[tokio::test]
async fn reads_see_writes_at_once() {
    let s = server().await;
    for i in 0..100 {
        s.post(MAPS, &config_map(&format!("m{i}"))).await.expect(201);
        assert_eq!(names(&s.get(MAPS).await.expect(200)).len(), i + 1);
    }
}
