//! `gantry token create`: a bootstrap token, and the command that joins with it.
//!
//! A token is a Secret as kubeadm makes them; `kubectl -n kube-system delete secret bootstrap-token-…` ends it early.

use super::publish;
use crate::config::Config;
use anyhow::{Context, Result, bail};
use client::remote::Remote;
use client::{ApiClient, ObjectKey};
use jiff::{SignedDuration, Timestamp};
use k8s_schema::gvr;
use serde_json::{Value, json};
use std::io::Read;
use std::sync::Arc;

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const ID_LEN: usize = 6;
const SECRET_LEN: usize = 16;
/// Life of a token when nobody says otherwise (kubeadm's).
const LIFE: &str = "24h";

/// Prints the whole joining command.
pub fn run(config: Config, words: &[String]) -> Result<()> {
    let (verb, flags) = words.split_first().context("gantry token create [--ttl 24h]")?;
    if verb != "create" {
        bail!("gantry token {verb}: there is `gantry token create` only");
    }
    let mut life = LIFE;
    for flag in flags {
        life = flag.strip_prefix("--ttl=").with_context(|| format!("{flag:?} is not understood"))?;
    }
    let life = duration(life)?;
    let path = config.kubeconfig();
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{}: run `gantry up` first", path.display()))?;
    let mut random = [0; 64];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let token = token(&random).context("an unlikely draw: try again")?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let command = tokio.block_on(create(&text, &token, Timestamp::now().checked_add(life)?))?;
    println!("{command}");
    Ok(())
}

/// `90m`, `24h`, `7d`.
fn duration(text: &str) -> Result<SignedDuration> {
    let unit = text.chars().last().unwrap_or_default();
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => 0,
    };
    let number =
        text.strip_suffix(unit).and_then(|n| n.parse::<u32>().ok()).filter(|n| *n > 0 && seconds > 0);
    let number = number.with_context(|| format!("--ttl {text:?} is not of the form 90m, 24h or 7d"))?;
    Ok(SignedDuration::from_secs(i64::from(number) * seconds))
}

/// Characters without bias: bytes past the last whole multiple of the alphabet are left out.
fn token(random: &[u8]) -> Option<String> {
    let whole = 256 / ALPHABET.len() * ALPHABET.len();
    let good = random.iter().filter(|b| usize::from(**b) < whole);
    let text: String = good
        .map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()]))
        .take(ID_LEN + SECRET_LEN)
        .collect();
    let (id, secret) = text.split_at_checked(ID_LEN)?;
    (secret.len() == SECRET_LEN).then(|| format!("{id}.{secret}"))
}

async fn create(kubeconfig: &str, token: &str, ends: Timestamp) -> Result<String> {
    let client: ApiClient = Arc::new(Remote::from_kubeconfig(kubeconfig).await?);
    let key = ObjectKey::new(publish::CLUSTER_INFO.0, publish::CLUSTER_INFO.1);
    let info = client.get(&gvr::CONFIG_MAPS, &key).await.context("is `gantry up` running?")?;
    let info = info.value()?["data"]["kubeconfig"].as_str().unwrap_or_default().to_string();
    let server = info
        .lines()
        .find_map(|l| l.trim().strip_prefix("server:"))
        .context("cluster-info names no server")?;
    let pem = super::authority::authority_of(&info).context("cluster-info holds no authority")?;
    let hash = auth::csr::key_hash(&pem).context("cluster-info holds no authority")?;
    client.create(&gvr::SECRETS, secret(token, ends)).await?;
    Ok(format!("gantry agent --server {} --token {token} --ca-hash {hash}", server.trim()))
}

fn secret(token: &str, ends: Timestamp) -> Value {
    let (id, secret) = token.split_once('.').unwrap_or_default();
    json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"namespace": "kube-system", "name": format!("bootstrap-token-{id}")},
        "stringData": {"token-id": id, "token-secret": secret, "expiration": machinery::time::format(ends),
            "description": "made by `gantry token create`", "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true"}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_kubeadms_form() {
        let random: Vec<u8> = (0..64).map(|n| n * 4).collect();
        let token = token(&random).unwrap();
        let (id, secret) = token.split_once('.').unwrap();
        assert_eq!((id.len(), secret.len()), (ID_LEN, SECRET_LEN));
        assert!(token.bytes().all(|b| b == b'.' || ALPHABET.contains(&b)));
        assert_eq!(super::token(&[255; 64]), None);
    }

    #[test]
    fn lives_are_read() {
        assert_eq!(duration("90m").unwrap(), SignedDuration::from_hours(1) + SignedDuration::from_mins(30));
        assert_eq!(duration("7d").unwrap(), SignedDuration::from_hours(168));
        for bad in ["", "h", "0h", "-1h", "24", "1y"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
