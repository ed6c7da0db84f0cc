//! `gantry kubeconfig`: a kubeconfig for a user and a group, with a client certificate of this cluster's authority.
//!
//! What the user may do is not decided here: roles and bindings say so.

use crate::config::Config;
use crate::kubeconfig;
use anyhow::{Context, Result, bail, ensure};
use auth::Ca;
use std::time::SystemTime;

/// Prints the kubeconfig.
pub fn run(config: Config, words: &[String]) -> Result<()> {
    print!("{}", text(&config, words)?);
    Ok(())
}

fn text(config: &Config, words: &[String]) -> Result<String> {
    let (mut user, mut group) = (None, None);
    for word in words {
        match word.strip_prefix("--").and_then(|w| w.split_once('=')) {
            Some(("user", name)) => user = Some(name),
            Some(("group", _)) if group.is_some() => {
                bail!("a certificate names one group: give --group once")
            }
            Some(("group", name)) => group = Some(name),
            _ => bail!("{word:?} is not understood: gantry kubeconfig --user U [--group G]"),
        }
    }
    let user = user.filter(|u| !u.is_empty()).context("whose? gantry kubeconfig --user U [--group G]")?;
    let folder = config.data_dir.join("pki");
    ensure!(folder.join("ca.crt").exists(), "{} holds no authority: run `gantry up` first", folder.display());
    let now = SystemTime::now();
    let ca = Ca::load_or_create(&folder, now)?;
    let issued = ca.issue_client(user, group, now)?;
    Ok(kubeconfig::text(&config.server(), ca.cert_pem(), user, &issued))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_gets_a_certificate_and_mistakes_get_words() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { data_dir: folder.path().into(), port: 6443, ..Config::default() };
        let words = |list: &[&str]| list.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        let error = |list: &[&str]| text(&config, &words(list)).unwrap_err().to_string();
        assert!(error(&["--user=alice"]).contains("run `gantry up` first"));
        std::fs::create_dir(folder.path().join("pki")).unwrap();
        Ca::load_or_create(&folder.path().join("pki"), SystemTime::now()).unwrap();
        let made = text(&config, &words(&["--user=alice", "--group=dev"])).unwrap();
        assert!(made.contains("- name: alice") && made.contains("server: https://127.0.0.1:6443"));
        assert!(error(&[]).contains("whose?"));
        assert!(error(&["alice"]).contains("not understood"));
        assert!(error(&["--user=a", "--group=b", "--group=c"]).contains("one group"));
    }
}
