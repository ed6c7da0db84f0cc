//! The JSON documents of images as they are on the wire, and the checked [`ImageConfig`] made from them.
//!
//! Wire types follow the OCI image specification and `docker save`; unknown fields are ignored, `null` is empty.

use crate::digest::Digest;
use crate::error::ImageError;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// The part of an image's config that says how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Goes before `cmd`.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// Working folder; "" is `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, …; "" is root.
    pub user: String,
    /// `80/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// Anonymous volumes' mount points, sorted.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Signal name or number; "" is SIGTERM.
    pub stop_signal: String,
}

/// Operating system and processor of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// Go's name of the processor (`amd64`, `arm64`).
    #[serde(deserialize_with = "nullable")]
    pub architecture: String,
    /// `linux`.
    #[serde(deserialize_with = "nullable")]
    pub os: String,
    /// `v8`; "" when there are none.
    #[serde(deserialize_with = "nullable")]
    pub variant: String,
}

impl Platform {
    /// What this binary runs on.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            other => (other, ""),
        };
        Platform { architecture: architecture.into(), os: "linux".into(), variant: variant.into() }
    }

    /// How well an image for `self` runs on `host`: `None` not at all, more is better.
    pub(crate) fn fits(&self, host: &Platform) -> Option<u8> {
        if self.os != host.os || self.architecture != host.architecture {
            return None;
        }
        match (self.variant.as_str(), host.variant.as_str()) {
            (theirs, ours) if theirs == ours => Some(2),
            // No variant named is the base line; an older one runs on a newer processor.
            ("", _) => Some(1),
            (theirs, ours) if theirs < ours => Some(0),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// A descriptor: what a document says about another blob.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(deserialize_with = "nullable")]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) platform: Option<Platform>,
}

impl Descriptor {
    pub(crate) fn digest(&self) -> Result<Digest, ImageError> {
        Digest::parse(&self.digest).ok_or_else(|| {
            ImageError::document("descriptor", format!("unsupported digest {:?}", self.digest))
        })
    }
}

/// A manifest or an index: told apart by which list they have, and never both.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Document {
    pub(crate) media_type: Option<String>,
    pub(crate) manifests: Option<Vec<Descriptor>>,
    pub(crate) config: Option<Descriptor>,
    pub(crate) layers: Option<Vec<Descriptor>>,
}

/// What a [`Document`] turned out to be.
pub(crate) enum Parsed {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

impl Parsed {
    /// Reads a manifest or index; one that could be read as either is refused (CVE-2021-41190).
    pub(crate) fn from_json(bytes: &[u8], what: &str) -> Result<Parsed, ImageError> {
        // serde would take a list of the fields' values for the object.
        if bytes.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err(ImageError::document(what, "not a JSON object"));
        }
        let document: Document = from_json(bytes, what)?;
        let claims =
            |kind: &str| document.media_type.as_deref().is_none_or(|t| t.is_empty() || t.contains(kind));
        match document {
            Document { manifests: Some(list), config: None, layers: None, .. }
                if claims("index") || claims("manifest.list") =>
            {
                Ok(Parsed::Index(list))
            }
            Document { manifests: None, config: Some(config), layers: Some(layers), .. }
                if claims("manifest") && !document.media_type.as_deref().unwrap_or("").contains("list") =>
            {
                Ok(Parsed::Manifest { config, layers })
            }
            _ => Err(ImageError::document(what, "neither clearly an image manifest nor clearly an index")),
        }
    }
}

/// One row of `docker save`'s manifest.json.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    pub(crate) config: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) layers: Vec<String>,
}

/// An image's config document.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigDocument {
    #[serde(flatten)]
    pub(crate) platform: Platform,
    #[serde(deserialize_with = "nullable")]
    config: RunConfig,
    #[serde(deserialize_with = "nullable")]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RootFs {
    #[serde(deserialize_with = "nullable")]
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RunConfig {
    #[serde(deserialize_with = "nullable")]
    env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    working_dir: String,
    #[serde(deserialize_with = "nullable")]
    user: String,
    #[serde(deserialize_with = "nullable")]
    exposed_ports: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable")]
    volumes: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    stop_signal: String,
}

impl ConfigDocument {
    pub(crate) fn from_json(bytes: &[u8]) -> Result<ConfigDocument, ImageError> {
        from_json(bytes, "image config")
    }

    pub(crate) fn diff_ids(&self) -> Result<Vec<Digest>, ImageError> {
        let parse = |id: &String| {
            Digest::parse(id)
                .ok_or_else(|| ImageError::document("image config", format!("bad diff_id {id:?}")))
        };
        self.rootfs.diff_ids.iter().map(parse).collect()
    }

    pub(crate) fn into_config(self) -> ImageConfig {
        let run = self.config;
        ImageConfig {
            env: run.env,
            entrypoint: run.entrypoint,
            cmd: run.cmd,
            working_dir: run.working_dir,
            user: run.user,
            exposed_ports: run.exposed_ports.into_keys().collect(),
            volumes: run.volumes.into_keys().collect(),
            labels: run.labels,
            stop_signal: run.stop_signal,
        }
    }
}

pub(crate) fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|e| ImageError::document(what, e))
}

/// Go writes nil slices and maps as `null`.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_empty() {
        let text = br#"{"os":"linux","architecture":"amd64","config":{"Env":null,"Cmd":["a"],"ExposedPorts":{"80/tcp":{}}},
            "rootfs":{"type":"layers","diff_ids":null}}"#;
        let document = ConfigDocument::from_json(text).unwrap();
        assert_eq!(document.platform.to_string(), "linux/amd64");
        assert!(document.diff_ids().unwrap().is_empty());
        let config = document.into_config();
        assert_eq!((config.cmd, config.exposed_ports), (vec!["a".to_string()], vec!["80/tcp".to_string()]));
        assert!(ConfigDocument::from_json(br#"{"config":null,"rootfs":null}"#).is_ok());
    }

    #[test]
    fn a_document_is_one_thing() {
        let both = br#"{"manifests":[],"config":{"digest":"x","size":1},"layers":[]}"#;
        assert!(Parsed::from_json(both, "m").is_err());
        let lying = br#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#;
        assert!(Parsed::from_json(lying, "m").is_err());
        let lying = br#"{"mediaType":"application/vnd.oci.image.index.v1+json","config":{"digest":"x","size":1},"layers":[]}"#;
        assert!(Parsed::from_json(lying, "m").is_err());
        let list =
            br#"{"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[]}"#;
        assert!(matches!(Parsed::from_json(list, "m"), Ok(Parsed::Index(_))));
        assert!(Parsed::from_json(b"[[[[", "m").is_err());
        assert!(Parsed::from_json(br#"[null,null,{"digest":"x"},[]]"#, "m").is_err());
    }

    #[test]
    fn platforms_rank() {
        let p = |architecture: &str, variant: &str| Platform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: variant.into(),
        };
        let arm = p("arm64", "v8");
        assert_eq!(p("arm64", "v8").fits(&arm), Some(2));
        assert_eq!(p("arm64", "").fits(&arm), Some(1));
        assert_eq!(p("arm", "v6").fits(&p("arm", "v7")), Some(0));
        assert_eq!(p("arm", "v8").fits(&p("arm", "v7")), None);
        assert_eq!(p("amd64", "").fits(&arm), None);
    }
}
