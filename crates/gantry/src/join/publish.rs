//! What a cluster tells those who join: its authority, to anybody (`kube-public/cluster-info`, in kubeadm's form), and
//! the settings that all nodes share, to nodes.

use crate::up::{Instance, registry};
use anyhow::{Result, ensure};
use auth::{Identity, SYSTEM_MASTERS};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use client::ApiClient;
use client::ObjectKey;
use k8s_schema::gvr;
use machinery::status::ApiError;
use serde_json::{Value, json};

/// Namespace and name of the public ConfigMap.
pub const CLUSTER_INFO: (&str, &str) = ("kube-public", "cluster-info");
/// Namespace and name of the ConfigMap with settings by their names.
pub const SETTINGS: (&str, &str) = ("kube-system", "gantry-settings");

/// Where the cluster's registry is, among the settings.
pub const REGISTRY: &str = "registry";
/// What tells the cluster's keys from others, and its AWS account: among the settings, for further servers.
const KEYS: &str = "keys";
const ACCOUNT: &str = "aws-account";
/// Characters of a fingerprint.
const FINGERPRINT: usize = 16;

/// Publishes both, beside whatever starts next.
pub async fn start(instance: &mut Instance) -> Result<()> {
    let client = instance.control.client(Identity::new("system:apiserver", [SYSTEM_MASTERS]))?;
    let server = format!("https://{}:{}", instance.facts.node_ip, instance.config.port);
    let ca_pem = instance.control.ca()?.cert_pem().to_string();
    same_authority(&client, &ca_pem).await?;
    let own = own_keys(instance);
    if instance.control.shares_store() {
        same_keys(&client, &own).await?;
    }
    let info = json!({"kubeconfig": cluster_info(&server, &ca_pem)});
    let mut settings = instance.config.shared();
    let registry = registry::address(instance).map(|at| format!("https://{at}"));
    settings[REGISTRY] = registry.unwrap_or_default().into();
    settings[KEYS] = own.0.into();
    settings[ACCOUNT] = own.1.into();
    instance.tasks.push(tokio::spawn(async move {
        for (at, data) in [(CLUSTER_INFO, info), (SETTINGS, settings)] {
            if let Err(error) = put(&client, at, data).await {
                tracing::warn!(%error, "other nodes cannot join: {} was not written", at.1);
            }
        }
    }));
    Ok(())
}

/// A server over the store of a cluster with another authority would split it in two.
async fn same_authority(client: &ApiClient, ca_pem: &str) -> Result<()> {
    let key = ObjectKey::new(CLUSTER_INFO.0, CLUSTER_INFO.1);
    let Ok(info) = client.get(&gvr::CONFIG_MAPS, &key).await else { return Ok(()) };
    let info = info.value()?;
    let known = info["data"]["kubeconfig"].as_str().unwrap_or_default();
    ensure!(
        known.is_empty() || known.contains(&BASE64_STANDARD.encode(ca_pem)),
        "the cluster in this store has another certificate authority: copy pki/ from the data folder of one of its \
         servers"
    );
    Ok(())
}

/// What tells the keys under `pki` (AWS's, encryption's) from others, without telling them; and the AWS account.
fn own_keys(instance: &Instance) -> (String, String) {
    let aws = instance.aws.keys.as_ref().map(|keys| keys.seal("fingerprint", "")).unwrap_or_default();
    let aws: String = aws.chars().take(FINGERPRINT).collect();
    (format!("{}-{aws}", instance.control.encryption), instance.config.aws_account.clone())
}

/// Servers over one store must accept the same AWS keys and read the same encrypted values.
async fn same_keys(client: &ApiClient, (keys, account): &(String, String)) -> Result<()> {
    let key = ObjectKey::new(SETTINGS.0, SETTINGS.1);
    let Ok(settings) = client.get(&gvr::CONFIG_MAPS, &key).await else { return Ok(()) };
    let settings = settings.value()?;
    let known = |name: &str| settings["data"][name].as_str().unwrap_or_default().to_string();
    ensure!(
        ["", keys].contains(&&*known(KEYS)),
        "the cluster in this store has other keys: copy pki/ (aws.key, encryption.key) from the data folder of one of its \
         servers"
    );
    ensure!(
        ["", account].contains(&&*known(ACCOUNT)),
        "the cluster in this store has the AWS account {}: give --aws-account as there",
        known(ACCOUNT)
    );
    Ok(())
}

async fn put(client: &ApiClient, (namespace, name): (&str, &str), data: Value) -> Result<(), ApiError> {
    let key = ObjectKey::new(namespace, name);
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": name}, "data": data});
    match client.create(&gvr::CONFIG_MAPS, body).await {
        Err(error) if error.is_already_exists() => {
            client.merge_patch(&gvr::CONFIG_MAPS, &key, json!({"data": data})).await.map(|_| ())
        }
        done => done.map(|_| ()),
    }
}

/// A kubeconfig without users: where the cluster is, and its authority.
pub fn cluster_info(server: &str, ca_pem: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: \"\"\n  cluster:\n    certificate-authority-data: {}\n    \
         server: {server}\ncontexts: []\nusers: []\n",
        BASE64_STANDARD.encode(ca_pem)
    )
}
