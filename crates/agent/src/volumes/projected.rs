//! `projected`: ConfigMaps, Secrets, the downward API and service account tokens in one folder.

use super::payload::{File, Payload, Selection, add_object, mode, safe_path};
use super::{Context, atomic, downward};
use crate::config::RefKind;
use crate::config::mounts::MountedVolume;
use crate::pod::PodView;
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
            let file = File { data: token.text.clone().into_bytes(), mode: mode(None, default_mode) };
            payload.insert(safe_path(&s.path)?, file);
        } else {
            return Err("this projected source is not supported yet".into());
        }
    }
    atomic::publish_in_memory(context, &volume.name, &payload)
}
