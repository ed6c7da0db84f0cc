//! Field managers: who a writer is, and the bridge from the verbs to `machinery::apply`.
//!
//! Ownership is settled where upstream settles it: after the body is decoded and defaulted, before strategy and
//! admission, so that what the server itself adds belongs to nobody. Writes of components in this process are
//! recorded like any other. Deliberately not here: what bindings, deletes and allocation change, which upstream
//! does not record either.

use crate::resources::Resource;
use crate::rules;
use crate::verbs::Call;
use k8s_schema::ResourceRow;
use machinery::apply::{self, MANAGER_MAX, Writer};
use machinery::status::ApiError;
use serde_json::Value;

/// The manager that a user agent stands for: what precedes its first slash, printable and short.
pub fn of_agent(agent: &str) -> String {
    let name = agent.split('/').next().unwrap_or_default();
    let mut manager = String::new();
    for letter in name.chars().filter(|c| !c.is_control()) {
        if manager.len() + letter.len_utf8() > MANAGER_MAX {
            break;
        }
        manager.push(letter);
    }
    manager
}

/// The manager that a component in this process is, by the name of its upstream twin.
pub fn of_component(user: &str) -> String {
    let name = user.strip_prefix("system:").unwrap_or(user);
    match name.split_once(':') {
        Some(("node", _)) => "kubelet".into(),
        Some((_, rest)) => rest.rsplit(':').next().unwrap_or(rest).into(),
        None if name == "apiserver" => "kube-apiserver".into(),
        None => name.into(),
    }
}

/// `group/version` of another row of the same stored resource.
fn sibling(resource: &Resource, api_version: &str) -> Option<&'static ResourceRow> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let row = k8s_schema::resource(group, version, resource.name())?;
    (row.storage_gvr() == resource.stored.storage_gvr()).then_some(row)
}

fn with_writer<T>(call: &Call, now: &str, act: impl FnOnce(&Writer<'_>) -> T) -> T {
    let resource = &*call.resource;
    let manager = &call.options.manager;
    let subresource = &call.subresource;
    act(&Writer {
        manager,
        subresource,
        now,
        row: &resource.row,
        sibling: &|version| sibling(resource, version),
    })
}

/// The managers after a create or update that makes `new`; both objects are in the stored form. Takes the list that
/// the client sent out of `new`.
pub fn updated(call: &Call, now: &str, old: Option<&Value>, new: &mut Value) -> Option<Value> {
    with_writer(call, now, |writer| {
        if call.resource.is_storage_version() {
            return apply::update(writer, old, new);
        }
        let served = |value: &Value| rules::to_served(&call.resource, value.clone());
        let managers = apply::update(writer, old.map(served).as_ref(), &mut served(new));
        take(new);
        managers
    })
}

/// `config` applied to the live object, both in the served form; the result carries its managers.
pub fn applied(call: &Call, now: &str, live: Option<Value>, config: &Value) -> Result<Value, ApiError> {
    Ok(with_writer(call, now, |writer| apply::apply(writer, live, config, call.options.force))?)
}

/// Takes the list of managers out of an object.
pub fn take(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

/// Puts a list of managers into an object. Where only times differ from the list before, that one stays, so that a
/// write of nothing stays one.
pub fn put(object: &mut Value, managers: Option<Value>, old: Option<&Value>) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let Some(managers) = managers else { return drop(metadata.remove("managedFields")) };
    let before = old.map(|o| &o["metadata"]["managedFields"]).filter(|b| **b != managers);
    match before.filter(|b| apply::same_but_times(b, &managers)) {
        None => drop(metadata.insert("managedFields".into(), managers)),
        Some(before) => {
            metadata.insert("managedFields".into(), before.clone());
            if Some(&*object) != old {
                object["metadata"]["managedFields"] = managers;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_by_name() {
        assert_eq!(of_agent("kubectl/v1.32.0 (linux/amd64)"), "kubectl");
        assert_eq!(of_agent("a\u{7}b"), "ab");
        assert_eq!(of_agent(&"é".repeat(100)).len(), MANAGER_MAX);
        for (user, manager) in [
            ("system:node:n1", "kubelet"),
            ("system:kube-controller-manager", "kube-controller-manager"),
            ("system:serviceaccount:kube-system:x", "x"),
            ("system:apiserver", "kube-apiserver"),
            ("admin", "admin"),
        ] {
            assert_eq!(of_component(user), manager);
        }
    }
}
