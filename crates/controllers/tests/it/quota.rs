//! Quotas with their controller: what goes is given back, and no race lets more through than there may be.

use crate::harness::*;
use futures_util::future::join_all;
use k8s_schema::{Gvr, gvr};
use serde_json::{Value, json};

const QUOTAS: Gvr = Gvr::new("", "v1", "resourcequotas");
const LIMIT: usize = 5;

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}})
}

fn counts(quota: &Value, wanted: usize) -> bool {
    quota["status"]["used"]["configmaps"] == json!(wanted.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_goes_is_given_back_and_no_race_lets_more_through() {
    let c = cluster().await;
    let hard = json!({"configmaps": LIMIT.to_string()});
    let metadata = json!({"name": "q", "namespace": "default"});
    c.create(&QUOTAS, json!({"metadata": metadata, "spec": {"hard": hard}})).await;
    // The controllers' own map is there, or will be.
    c.until_object(&QUOTAS, &key("q"), |quota| counts(quota, 1)).await;
    for round in 0..3 {
        let create = async |n: usize| c.client.create(&gvr::CONFIG_MAPS, map(&format!("r{round}-{n}"))).await;
        let made: Vec<_> = join_all((0..12).map(create)).await.into_iter().flatten().collect();
        assert_eq!(made.len(), LIMIT - 1);
        // Deletions make the controller count while others create.
        let delete = async {
            for object in &made {
                c.delete(&gvr::CONFIG_MAPS, &object.key, None).await.unwrap();
            }
        };
        tokio::join!(delete, join_all((20..40).map(create)));
        let there = c.list(&gvr::CONFIG_MAPS).await;
        let there: Vec<_> = there.iter().filter(|o| &*o.key.namespace == "default").collect();
        assert!(there.len() <= LIMIT, "{} in round {round}", there.len());
        for object in there.iter().filter(|o| o.key.name.starts_with('r')) {
            c.delete(&gvr::CONFIG_MAPS, &object.key, None).await.unwrap();
        }
        c.until_object(&QUOTAS, &key("q"), |quota| counts(quota, 1)).await;
    }
}
