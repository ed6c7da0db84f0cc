//! The environment of a container: values, fields, resources, keys, whole objects, services.

use super::{ConfigError, ContainerInput, Objects, RefKind, env_file, expand::expand, fields};
use client::Object;
use k8s_openapi::api::core::v1::{self as core, ConfigMap, EnvVarSource, Secret, Service};
use std::collections::BTreeMap;

/// All variables that the spec and the services give (not the image's).
pub fn environment(input: &ContainerInput) -> Result<BTreeMap<String, String>, ConfigError> {
    let services = services(input);
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    let c = &input.container.spec;
    for source in c.env_from.iter().flatten() {
        let (kind, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(r), _) => (RefKind::ConfigMap, &r.name, r.optional),
            (None, Some(r)) => (RefKind::Secret, &r.name, r.optional),
            (None, None) => continue,
        };
        let Some(object) = find(input.objects, kind, name, optional)? else { continue };
        let prefix = source.prefix.as_deref().unwrap_or_default();
        for (key, value) in text_data(kind, object) {
            // A name with `=` cannot be set at all.
            if !key.contains('=') && !key.is_empty() {
                env.insert(format!("{prefix}{key}"), value);
            }
        }
    }
    for var in c.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(text), None) => {
                let mut known = services.clone();
                known.extend(env.iter().map(|(k, v)| (k.clone(), v.clone())));
                Some(expand(text, &known))
            }
            (_, Some(source)) => from(input, source)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.insert(var.name.clone(), value);
        }
    }
    for (name, value) in services {
        env.entry(name).or_insert(value);
    }
    Ok(env)
}

/// `None`: optional and not there.
fn from(input: &ContainerInput, source: &EnvVarSource) -> Result<Option<String>, ConfigError> {
    if let Some(field) = &source.field_ref {
        let value = fields::field(input.pod, &field.field_path, input.facts, input.pod_ips);
        return value.map(Some).map_err(ConfigError::Config);
    }
    if let Some(selector) = &source.resource_field_ref {
        let name = selector.container_name.as_deref().unwrap_or(input.container.name());
        return fields::resource(input.pod, name, selector, input.facts)
            .map(Some)
            .map_err(ConfigError::Config);
    }
    if let Some(file) = &source.file_key_ref {
        let optional = file.optional == Some(true);
        let at = |why: &str| {
            ConfigError::Config(format!("file {:?} of volume {:?}: {why}", file.path, file.volume_name))
        };
        let Some(text) = (input.files)(&file.volume_name, &file.path) else {
            return if optional { Ok(None) } else { Err(at("no such file")) };
        };
        let value = env_file::find(&text, &file.key).map_err(|why| at(&why))?;
        return if value.is_none() && !optional {
            Err(at(&format!("no key {:?}", file.key)))
        } else {
            Ok(value)
        };
    }
    let (kind, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(r), _) => (RefKind::ConfigMap, &r.name, &r.key, r.optional),
        (None, Some(r)) => (RefKind::Secret, &r.name, &r.key, r.optional),
        (None, None) => {
            return Err(ConfigError::Config("a variable without a source".into()));
        }
    };
    let Some(object) = find(input.objects, kind, name, optional)? else { return Ok(None) };
    match text_data(kind, object).remove(key) {
        Some(value) => Ok(Some(value)),
        None if optional == Some(true) => Ok(None),
        None => {
            let namespace = input.pod.namespace();
            Err(ConfigError::Config(format!(
                "couldn't find key {key} in {} {namespace}/{name}",
                kind.title()
            )))
        }
    }
}

fn find<'a>(
    objects: &'a Objects,
    kind: RefKind,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a Object>, ConfigError> {
    match objects.get(&(kind, name.to_string())) {
        Some(object) => Ok(Some(object)),
        None if optional == Some(true) => Ok(None),
        None => Err(ConfigError::Config(format!("{} \"{name}\" not found", kind.singular()))),
    }
}

/// Text entries of a ConfigMap or Secret (Secrets' bytes as text, lossily: variables are text).
fn text_data(kind: RefKind, object: &Object) -> BTreeMap<String, String> {
    match kind {
        RefKind::ConfigMap => {
            object.view::<ConfigMap>().ok().and_then(|m| m.data.clone()).unwrap_or_default()
        }
        RefKind::Secret => {
            let data = object.view::<Secret>().ok().and_then(|s| s.data.clone()).unwrap_or_default();
            data.into_iter().map(|(k, v)| (k, String::from_utf8_lossy(&v.0).into_owned())).collect()
        }
    }
}

/// All entries of a ConfigMap or Secret as bytes, as volumes have them.
pub fn byte_data(kind: RefKind, object: &Object) -> BTreeMap<String, Vec<u8>> {
    match kind {
        RefKind::ConfigMap => {
            let Ok(map) = object.view::<ConfigMap>() else { return BTreeMap::new() };
            let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
            let bytes = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
            text.chain(bytes).collect()
        }
        RefKind::Secret => {
            let data = object.view::<Secret>().ok().and_then(|s| s.data.clone()).unwrap_or_default();
            data.into_iter().map(|(k, v)| (k, v.0)).collect()
        }
    }
}

/// `FOO_SERVICE_HOST` and the like: of the pod's namespace, and of `kubernetes` always.
fn services(input: &ContainerInput) -> BTreeMap<String, String> {
    let links = input.pod.spec().enable_service_links.unwrap_or(true);
    let mut env = BTreeMap::new();
    if input.pod.task.is_some() {
        // A task's programs must not take Kubernetes for their surroundings.
        return env;
    }
    for object in input.services {
        let master = &*object.key.namespace == "default" && &*object.key.name == "kubernetes";
        let own = links && &*object.key.namespace == input.pod.namespace();
        if !(master || own) {
            continue;
        }
        if let Ok(service) = object.view::<Service>() {
            service_env(&object.key.name, &service, &mut env);
        }
    }
    env
}

fn service_env(name: &str, service: &core::Service, env: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ip.is_empty() || ip == "None" || ports.is_empty() {
        return;
    }
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let base = upper(name);
    let mut put = |key: String, value: String| env.insert(key, value);
    put(format!("{base}_SERVICE_HOST"), ip.into());
    put(format!("{base}_SERVICE_PORT"), ports[0].port.to_string());
    for (index, port) in ports.iter().enumerate() {
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            put(format!("{base}_SERVICE_PORT_{}", upper(name)), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{ip}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            put(format!("{base}_PORT"), url.clone());
        }
        let prefix = format!("{base}_PORT_{}_{}", port.port, protocol.to_uppercase());
        put(format!("{prefix}_PROTO"), protocol.to_lowercase());
        put(format!("{prefix}_PORT"), port.port.to_string());
        put(format!("{prefix}_ADDR"), ip.into());
        put(prefix, url);
    }
}
