//! The bridge from verbs to `machinery`: how bodies of a resource are read, converted, prepared, checked, shown.
//!
//! Everything here is pure; everything special about a kind is in `machinery::kinds`.

use crate::custom::{self, Custom};
use crate::resources::Resource;
use crate::verbs::modify::Part;
use crate::verbs::{Call, FieldValidation, WriteOptions};
use client::{Object, PatchKind};
use machinery::body::Repeats;
use machinery::convert;
use machinery::crd;
use machinery::field_errors::FieldErrors;
use machinery::kinds::{self, strategy};
use machinery::patch;
use machinery::selector::FieldSelector;
use machinery::status::ApiError;
use machinery::table::{self, Include};
use machinery::walk::{self, Unknown};
use serde_json::{Value, json};
use std::sync::Arc;

/// Reads a body in the served version: checks kind and fields, fills in defaults, converts to the stored version.
/// Returns the warnings that the fields earned.
pub fn decode(
    resource: &Resource,
    mut value: Value,
    options: &WriteOptions,
) -> Result<(Value, Vec<String>), ApiError> {
    check_kind(resource, &mut value)?;
    let mode = match options.validation {
        FieldValidation::Ignore => Unknown::Drop,
        FieldValidation::Warn => Unknown::Warn,
        FieldValidation::Strict => Unknown::Error,
    };
    let row = &*resource.row;
    if let Some(custom) = &resource.custom {
        let warnings = decode_custom(resource, custom, &mut value, mode, &options.duplicates)?;
        return Ok((value, warnings));
    }
    convert::before_decode(row, &mut value);
    let warnings = walk::decode(&mut value, row.def.get(), mode, &options.duplicates)
        .map_err(|e| e.of_body(&row.kind, &row.gvr.version))?;
    convert::to_storage(row, &mut value);
    strategy::defaults(&resource.stored, &mut value);
    Ok((value, warnings))
}

/// A custom resource's body: metadata as everywhere, the rest as its schema says.
fn decode_custom(
    resource: &Resource,
    custom: &Custom,
    value: &mut Value,
    mode: Unknown,
    duplicates: &Repeats,
) -> Result<Vec<String>, ApiError> {
    let row = &*resource.row;
    let mut envelope = json!({"metadata": value["metadata"].take()});
    let mut outcome = walk::check(&mut envelope, &custom::ENVELOPE, mode);
    match envelope["metadata"].take() {
        Value::Null => drop(value.as_object_mut().and_then(|map| map.remove("metadata"))),
        metadata => value["metadata"] = metadata,
    }
    outcome.unknown.extend(crd::prune(value, custom.version.schema()));
    let notes = duplicates.before(&outcome.unknown);
    let warnings = walk::report(outcome, mode, notes).map_err(|e| e.of_body(&row.kind, &row.gvr.version))?;
    crd::default(value, custom.version.schema());
    value["apiVersion"] = json!(resource.stored.api_version());
    Ok(warnings)
}

/// The body must be of the resource's kind and version; an absent kind is taken for granted, as upstream does.
fn check_kind(resource: &Resource, value: &mut Value) -> Result<(), ApiError> {
    let row = &*resource.row;
    let wanted = row.api_version();
    if !value.is_object() {
        return Err(ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: json: cannot unmarshal into Go value of type struct",
            row.kind
        )));
    }
    for (field, text) in [("apiVersion", wanted.as_str()), ("kind", &*row.kind)] {
        if value.get(field).is_some_and(|v| !v.is_string() && !v.is_null()) {
            return Err(ApiError::bad_request(format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal into Go struct field .{field} of type string"
            )));
        }
        if value[field].as_str().is_none_or(str::is_empty) {
            value[field] = json!(text);
        }
    }
    let (version, kind) =
        (value["apiVersion"].as_str().unwrap_or_default(), value["kind"].as_str().unwrap_or_default());
    if kind != &*row.kind {
        let last = version.rsplit('/').next().unwrap_or_default();
        return Err(ApiError::bad_request(format!(
            "{kind} in version \"{last}\" cannot be handled as a {}: the kind in the data ({kind}) does not match the expected kind ({})",
            row.kind, row.kind
        )));
    }
    if version != wanted {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({wanted})"
        )));
    }
    Ok(())
}

/// The namespace of a new object is the request's.
pub fn settle_namespace(call: &Call, value: &mut Value) -> Result<(), ApiError> {
    let Some(metadata) = value["metadata"].as_object_mut() else { return Ok(()) };
    let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    let namespace = &*call.key.namespace;
    if !call.resource.row.namespaced {
        if !given.is_empty() {
            return Err(ApiError::bad_request(WRONG_NAMESPACE));
        }
        return Ok(());
    }
    if !given.is_empty() && given != namespace {
        return Err(ApiError::bad_request(WRONG_NAMESPACE));
    }
    metadata.insert("namespace".into(), json!(namespace));
    Ok(())
}

const WRONG_NAMESPACE: &str =
    "the namespace of the provided object does not match the namespace sent on the request";

/// The body of an update must be about the object in the path.
pub fn check_names(call: &Call, body: &Value) -> Result<(), ApiError> {
    let text = |field: &str| body["metadata"][field].as_str().unwrap_or_default();
    let (name, namespace) = (text("name"), text("namespace"));
    if name != &*call.key.name
        && !(name.is_empty() && body["metadata"]["name"].is_null() && call.subresource == "binding")
    {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.key.name
        )));
    }
    if !namespace.is_empty() && namespace != &*call.key.namespace {
        return Err(ApiError::bad_request(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the URL ({})",
            call.key.namespace
        )));
    }
    Ok(())
}

/// A patch may not rename.
pub fn check_patched(call: &Call, value: &Value) -> Result<(), ApiError> {
    if !value["metadata"].is_object() {
        return Err(ApiError::bad_request("the patched object has no metadata"));
    }
    check_names(call, value)
}

/// Applies a patch to a document in the served version.
pub fn apply_patch(
    resource: &Resource,
    kind: PatchKind,
    target: &mut Value,
    body: &Value,
) -> Result<(), ApiError> {
    match kind {
        PatchKind::Json => patch::json(target, body)?,
        PatchKind::Merge | PatchKind::Strategic if !body.is_object() => return Err(not_an_object()),
        PatchKind::Merge => patch::merge(target, body),
        PatchKind::Strategic => patch::strategic(target, body, resource.row.def.get())?,
        PatchKind::Apply => return Err(ApiError::internal("apply is no patch of a document")),
    }
    Ok(())
}

fn not_an_object() -> ApiError {
    ApiError::bad_request("json: cannot unmarshal into Go value of type map[string]interface {}")
}

/// Applies a patch to a Scale.
pub fn apply_patch_to_scale(kind: PatchKind, target: &mut Value, body: &Value) -> Result<(), ApiError> {
    match kind {
        PatchKind::Json => patch::json(target, body)?,
        _ if !body.is_object() => return Err(not_an_object()),
        // A Scale has no lists: a strategic patch of it is a merge patch.
        _ => patch::merge(target, body),
    }
    Ok(())
}

/// What a creator may not set, and what a new object starts with.
pub fn prepare_create(resource: &Resource, value: &mut Value) {
    strategy::prepare_create(&resource.stored, value);
    if resource.custom.is_none() {
        strategy::empty_status(&resource.stored, value);
    }
}

/// Takes over from the old object everything that a write of this part may not set.
pub fn prepare_update(resource: &Resource, part: Part, new: &mut Value, old: &Value) {
    let pointers: &[&str] = match part {
        Part::Whole => return strategy::prepare_update(&resource.stored, new, old, strategy::Part::Main),
        Part::Status => {
            strategy::prepare_update(&resource.stored, new, old, strategy::Part::Status);
            if resource.custom.is_some() {
                keep_metadata(new, old);
            }
            return;
        }
        Part::Resize => return kinds::pod::resize::prepare_update(new, old),
        Part::Finalize => &["/spec/finalizers"],
        Part::Approval => {
            &["/status/conditions", "/metadata/labels", "/metadata/annotations", "/metadata/finalizers"]
        }
        Part::EphemeralContainers => &["/spec/ephemeralContainers"],
    };
    let mut kept = old.clone();
    for pointer in pointers {
        let (parent, field) = pointer.rsplit_once('/').unwrap_or_default();
        let wished = new.pointer(pointer).cloned();
        let section = parent.trim_start_matches('/');
        if kept.get(section).is_none() && wished.is_some() {
            kept[section] = json!({});
        }
        match (kept.pointer_mut(parent).and_then(Value::as_object_mut), wished) {
            (Some(map), Some(wished)) => drop(map.insert(field.into(), wished)),
            (Some(map), None) => drop(map.remove(field)),
            (None, _) => {}
        }
    }
    *new = kept;
    if part == Part::EphemeralContainers {
        strategy::count_generation(new, old);
    }
}

/// A status write of a custom resource sets nothing but its status.
fn keep_metadata(new: &mut Value, old: &Value) {
    let Some(metadata) = new["metadata"].as_object_mut() else { return };
    for key in ["labels", "annotations", "finalizers", "ownerReferences"] {
        match old["metadata"].get(key) {
            Some(before) => drop(metadata.insert(key.into(), before.clone())),
            None => drop(metadata.remove(key)),
        }
    }
}

/// Checks a new object or an update: 422 with every cause.
pub fn validate(resource: &Resource, part: Part, new: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let update = |old, part| strategy::faults_of_update(&resource.stored, new, old, part);
    let mut errors = match (old, part) {
        (None, _) => strategy::faults_of_new(&resource.stored, new),
        (Some(old), Part::Whole) => update(old, strategy::Part::Main),
        (Some(old), Part::Status) => update(old, strategy::Part::Status),
        // The others take one field over from a checked body; the rest is what was stored.
        (Some(old), Part::EphemeralContainers) => return kinds::pod::ephemeral::validate_update(new, old),
        (Some(old), Part::Resize) => return kinds::pod::resize::validate_update(new, old),
        (Some(old), Part::Approval) => return kinds::certificates::validate_approval(new, old),
        (Some(_), Part::Finalize) => return Ok(()),
    };
    validate_custom(resource, new, old, &mut errors);
    strategy::finish(&resource.row, new, errors)
}

fn validate_custom(resource: &Resource, new: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let Some(custom) = &resource.custom else { return };
    let own = |value: &Value| {
        let mut value = value.clone();
        value.as_object_mut().map(|map| map.remove("metadata"));
        value
    };
    crd::validate(&own(new), custom.version.schema(), old.map(own).as_ref(), "", errors);
    crd::rules::validate(new, custom.version.schema(), old, errors);
}

/// Refuses field selectors that the kind does not support.
pub fn check_selectable(resource: &Resource, fields: &FieldSelector) -> Result<(), ApiError> {
    if let Some(custom) = &resource.custom {
        let own = |field: &str| custom.selectable.iter().any(|(label, _)| label == field);
        let known = |field: &str| matches!(field, "metadata.name" | "metadata.namespace") || own(field);
        let unknown = fields.requirements.iter().find(|r| !known(&r.field));
        return unknown.map_or(Ok(()), |r| {
            Err(ApiError::bad_request(format!("field label not supported: {}", r.field)))
        });
    }
    strategy::check_field_selector(&resource.row, fields)
}

/// The value of a selectable field of a stored document.
pub fn field(resource: &Resource, value: &Value, field: &str) -> Option<String> {
    let own = resource.custom.iter().flat_map(|c| &c.selectable).find(|(label, _)| label == field);
    if let Some((_, path)) = own {
        let found = path.find(value);
        let text = |v: &&Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
        return Some(found.first().map(text).unwrap_or_default());
    }
    kinds::field_value(&resource.stored, value, field)
}

/// A document of the stored version in the served one.
pub fn to_served(resource: &Resource, mut value: Value) -> Value {
    if let Some(custom) = &resource.custom {
        crd::default(&mut value, custom.version.schema());
        crd::prune(&mut value, custom.version.schema());
        value["apiVersion"] = json!(resource.row.api_version());
    } else if !resource.is_storage_version() {
        convert::from_storage(&resource.row, &mut value);
    }
    value
}

/// A stored object in the served version: itself for nearly all.
pub fn serve(resource: &Resource, object: &Arc<Object>) -> Result<Arc<Object>, ApiError> {
    if resource.is_storage_version() {
        return Ok(object.clone());
    }
    let value = to_served(resource, object.value().map_err(ApiError::internal)?);
    let raw = serde_json::to_vec(&value).map_err(ApiError::internal)?;
    Ok(Arc::new(Object::new(object.key.clone(), object.revision, raw.into())))
}

/// A Table of objects. `metadata` is the list's; `columns` is false for watch events after the first.
pub fn table(
    resource: &Resource,
    objects: &[Arc<Object>],
    metadata: Value,
    style: TableStyle<'_>,
) -> Result<Value, ApiError> {
    let form = (style.version, table_include(style.include)?);
    let rows: Result<Vec<Value>, ApiError> =
        objects.iter().map(|object| table_row(resource, object, form, style.now)).collect();
    let columns = style.columns.then(|| table_columns(resource));
    Ok(table::table(&format!("meta.k8s.io/{}", style.version), metadata, columns, rows?))
}

/// The `includeObject` parameter.
pub fn table_include(text: &str) -> Result<Include, ApiError> {
    Include::parse(text).ok_or_else(|| {
        ApiError::bad_request(format!(
            "Unable to convert to Table as requested: includeObject: Invalid value: {text:?}: must be 'Metadata', 'Object', 'None', or empty",
        ))
    })
}

/// The columns of a Table of these.
pub fn table_columns(resource: &Resource) -> Value {
    match &resource.custom {
        Some(custom) => crd::columns::definitions(&custom.columns),
        None => table::columns(&resource.row),
    }
}

/// One row of a Table.
pub fn table_row(
    resource: &Resource,
    object: &Object,
    (version, include): (&str, Include),
    now: jiff::Timestamp,
) -> Result<Value, ApiError> {
    let group_version = format!("meta.k8s.io/{version}");
    let value = object.value().map_err(ApiError::internal)?;
    Ok(match &resource.custom {
        Some(custom) => {
            let cells = crd::columns::cells(&custom.columns, &value, now);
            table::row(cells, &value, include, &group_version)
        }
        None => table::table_row(&resource.row, &value, now, include, &group_version),
    })
}

/// How a Table is made.
#[derive(Clone, Copy)]
pub struct TableStyle<'a> {
    /// `v1` or `v1beta1`.
    pub version: &'a str,
    /// The `includeObject` parameter.
    pub include: &'a str,
    /// Send column definitions?
    pub columns: bool,
    /// Ages count up to here.
    pub now: jiff::Timestamp,
}

/// Metadata only.
pub fn partial(object: &Object, version: &str) -> Value {
    let value = object.value().unwrap_or_default();
    json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": value["metadata"]})
}
