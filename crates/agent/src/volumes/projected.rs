//! `projected`: ConfigMaps, Secrets, the downward API and service account tokens in one folder.

use super::payload::{File, Payload, Selection, add_object, mode, safe_path};
use super::{Context, atomic, downward, fs_group};
use crate::config::RefKind;
use crate::config::mounts::MountedVolume;
use crate::pod::{ContainerView, PodView, Role};
use k8s_openapi::api::core::v1::{ServiceAccountTokenProjection, Volume};

/// Seconds that a token lasts when nobody says otherwise.
const TOKEN_SECONDS: i64 = 3600;

/// A token that a pod needs. One minted token serves every file that needs the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenNeed {
    /// Audience; "" is the API server's own.
    pub audience: String,
    /// How long it shall last.
    pub seconds: i64,
}

impl TokenNeed {
    fn of(source: &ServiceAccountTokenProjection) -> TokenNeed {
        TokenNeed {
            audience: source.audience.clone().unwrap_or_default(),
            seconds: source.expiration_seconds.unwrap_or(TOKEN_SECONDS),
        }
    }
}

/// The tokens that a pod's volumes need.
pub fn token_needs(pod: &PodView) -> Vec<TokenNeed> {
    let volumes = pod.spec().volumes.iter().flatten();
    let sources = volumes.flat_map(|v| v.projected.iter()).flat_map(|p| p.sources.iter().flatten());
    let mut needs: Vec<TokenNeed> =
        sources.filter_map(|s| s.service_account_token.as_ref()).map(TokenNeed::of).collect();
    needs.sort();
    needs.dedup();
    needs
}

pub(super) fn mount(context: &Context, volume: &Volume) -> Result<MountedVolume, String> {
    let source = volume.projected.as_ref().ok_or("not a projected volume")?;
    let mut payload = Payload::new();
    for part in source.sources.iter().flatten() {
        let default_mode = source.default_mode;
        if let Some(s) = &part.config_map {
            let (name, items) = (s.name.as_str(), s.items.as_deref());
            let optional = s.optional.unwrap_or(false);
            let what = Selection { kind: RefKind::ConfigMap, name, items, optional, default_mode };
            add_object(&mut payload, context.objects, &what)?;
        } else if let Some(s) = &part.secret {
            let (name, items) = (s.name.as_str(), s.items.as_deref());
            let optional = s.optional.unwrap_or(false);
            let what = Selection { kind: RefKind::Secret, name, items, optional, default_mode };
            add_object(&mut payload, context.objects, &what)?;
        } else if let Some(s) = &part.downward_api {
            downward::add(&mut payload, context, s.items.as_deref().unwrap_or_default(), default_mode)?;
        } else if let Some(s) = &part.service_account_token {
            let token = match context.tokens.get(&TokenNeed::of(s)) {
                Some(Ok(token)) => token,
                Some(Err(error)) => return Err(format!("failed to fetch token: {error}")),
                None => return Err("failed to fetch token: not asked for".into()),
            };
            payload.insert(safe_path(&s.path)?, token_file(context.pod, token.text.clone(), default_mode));
        } else {
            return Err("this projected source is not supported yet".into());
        }
    }
    atomic::publish_in_memory(context, &volume.name, &payload)
}

/// A token is for the pod's one user, or for its group (which is let in later); only where there is neither, for all.
fn token_file(pod: &PodView, text: String, default_mode: Option<i32>) -> File {
    let user = only_user(pod);
    let private = user.is_some() || fs_group(pod).is_some();
    let mode = if private { 0o600 } else { mode(None, default_mode) };
    File { data: text.into_bytes(), mode, owner: user.unwrap_or(0) }
}

/// The user that all containers of the pod are told to run as.
fn only_user(pod: &PodView) -> Option<u32> {
    let pods = pod.spec().security_context.as_ref().and_then(|c| c.run_as_user);
    let own = |c: &ContainerView| c.spec.security_context.as_ref().and_then(|c| c.run_as_user).or(pods);
    let mut users = pod.containers.iter().filter(|c| c.role != Role::Ephemeral).map(own);
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;
    use serde_json::{Value, json};

    #[test]
    fn a_token_is_for_the_pods_user_or_group() {
        let of = |pods: Value, containers: [Value; 2]| {
            let list = containers.map(|c| json!({"name": "c", "image": "i", "securityContext": c}));
            let file =
                token_file(&pod(json!({"securityContext": pods, "containers": list})), "t".into(), None);
            (file.mode, file.owner)
        };
        assert_eq!(of(json!({}), [json!({}), json!({})]), (0o644, 0));
        assert_eq!(of(json!({"runAsUser": 7}), [json!({}), json!({"runAsUser": 7})]), (0o600, 7));
        assert_eq!(of(json!({"runAsUser": 7}), [json!({}), json!({"runAsUser": 8})]), (0o644, 0));
        assert_eq!(of(json!({}), [json!({"runAsUser": 7}), json!({})]), (0o644, 0));
        assert_eq!(of(json!({"fsGroup": 9}), [json!({}), json!({})]), (0o600, 0));
    }
}
