//! Every served resource, walked through its verbs: nothing answers 5xx, lists and tables have their shapes.

use crate::harness::*;
use k8s_schema::ResourceRow;
use serde_json::{Value, json};

const TABLE: (&str, &str) = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");

fn collection(row: &ResourceRow) -> String {
    let root = if row.gvr.group.is_empty() { "/api" } else { "/apis" };
    let namespace = if row.namespaced { "/namespaces/default" } else { "" };
    format!("{root}/{}{namespace}/{}", row.api_version(), row.gvr.resource)
}

async fn walk(s: &Server, row: &ResourceRow) -> bool {
    let path = collection(row);
    let offers = |verb: &str| row.verbs.contains(&verb);
    let body = json!({"apiVersion": row.api_version(), "kind": &*row.kind, "metadata": {"name": "walk"}});
    let made = s.post(&path, &body).await;
    let aws = row.gvr.group.ends_with(".gantry.dev");
    let expected: &[u16] = match offers("create") {
        // Objects of the AWS API are made there only.
        true if aws => &[403],
        true => &[201, 422, 400, 404],
        false => &[405],
    };
    assert!(expected.contains(&made.code), "{path}: {} {:?}", made.code, made.body);
    for (verb, headers) in [("list", vec![]), ("list", vec![TABLE])] {
        let reply = s.call("GET", &path, &headers, "").await;
        assert_eq!(reply.code, if offers(verb) { 200 } else { 405 }, "{path}");
        let list = reply.json();
        if offers(verb) && headers.is_empty() {
            assert_eq!(list["kind"], json!(format!("{}List", row.kind)), "{path}");
        }
        if offers(verb) && !headers.is_empty() {
            let columns = list["columnDefinitions"].as_array().unwrap().len();
            assert!(columns > 0, "{path}");
            for line in list["rows"].as_array().unwrap() {
                assert_eq!(line["cells"].as_array().unwrap().len(), columns, "{path}");
            }
        }
    }
    if made.code != 201 || !offers("get") {
        return false;
    }
    let one = format!("{path}/walk");
    let got = s.get(&one).await.expect(200);
    assert_eq!(got["kind"], json!(&*row.kind));
    let same = s.put(&one, &got).await.expect(200);
    assert_eq!(
        same["metadata"]["resourceVersion"], got["metadata"]["resourceVersion"],
        "{path}: {got} {same}"
    );
    let labelled =
        s.patch(&one, "merge-patch", &json!({"metadata": {"labels": {"a": "b"}}})).await.expect(200);
    assert_eq!(labelled["metadata"]["labels"]["a"], "b", "{path}");
    let strategic = json!({"metadata": {"annotations": {"c": "d"}}});
    s.patch(&one, "strategic-merge-patch", &strategic).await.expect(200);
    s.delete(&one).await.expect(200);
    true
}

#[tokio::test]
async fn every_resource_answers_every_verb() {
    let s = server_with(|c| c.gates = k8s_schema::Gates::all()).await;
    let mut stored = 0;
    for row in k8s_schema::resources() {
        stored += usize::from(walk(&s, row).await);
    }
    assert!(stored > 20, "{stored} kinds could be made from a bare name");
}

#[tokio::test]
async fn junk_of_every_shape_is_refused_in_words() {
    let s = server_with(|c| c.gates = k8s_schema::Gates::all()).await;
    let junk = [
        json!(null),
        json!(1),
        json!([]),
        json!(""),
        json!({}),
        json!({"metadata": 1}),
        json!({"metadata": {"name": {}}}),
        json!({"metadata": {"name": "x"}, "spec": []}),
        json!({"metadata": {"name": "x"}, "spec": {"containers": {}}, "status": 3}),
        json!({"metadata": {"name": "x", "labels": [1], "ownerReferences": "y", "finalizers": {"a": 1}}}),
    ];
    for row in k8s_schema::resources().iter().filter(|r| r.verbs.contains(&"create")) {
        let path = collection(row);
        for body in &junk {
            let reply = s.post(&path, body).await;
            let review = !row.verbs.contains(&"get");
            assert!(reply.code < 500, "{path} {body}: {} {:?}", reply.code, reply.body);
            if reply.code >= 400 {
                let status: Value = reply.json();
                assert_eq!(status["kind"], "Status", "{path}");
                assert!(!status["message"].as_str().unwrap_or_default().is_empty(), "{path}");
            } else {
                assert!(review || body["metadata"].is_object(), "{path} {body}: {:?}", reply.body);
            }
        }
    }
    for body in &junk {
        for (path, codes) in [
            (format!("{PODS}/p/binding"), [400, 404, 422]),
            (format!("{PODS}/p/eviction"), [400, 404, 422]),
            ("/api/v1/namespaces/default/serviceaccounts/x/token".to_string(), [400, 404, 501]),
        ] {
            let code = s.post(&path, body).await.code;
            assert!(codes.contains(&code), "{path} {body}: {code}");
        }
        for path in [
            format!("{PODS}/p"),
            format!("{PODS}/p/status"),
            "/apis/apps/v1/namespaces/default/deployments/d/scale".into(),
        ] {
            let code = s.put(&path, body).await.code;
            assert!(matches!(code, 400 | 404), "{path} {body}: {code}");
        }
    }
}
