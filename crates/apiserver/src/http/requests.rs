//! Requests to resources: one path for all of them.

use super::negotiate::{self, Form};
use super::respond::{self, Body, ListFrame, Wishes};
use super::{Inbound, body, proxy, watch};
use crate::Api;
use crate::heavy;
use crate::owners;
use crate::path::{Query, ResourcePath};
use crate::resources::{DEPRECATED_KINDS, Resource};
use crate::rules::{self, TableStyle};
use crate::select::Selection;
use crate::subresources::scale;
use crate::verbs::list::{Freshness, Page, parse_paging, parse_revision};
use crate::verbs::{
    Call, Effect, FieldValidation, WriteOptions, Written, delete, no_such_resource, not_allowed,
};
use ::http::{Response, header};
use client::{Object, ObjectKey, Verb};
use hyper::body::Body as _;
use k8s_schema::Gvr;
use machinery::apply::MANAGER_MAX;
use machinery::body::Repeats;
use machinery::field_errors::FieldErrors;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;

/// What every answer needs to know of the request.
struct Shape {
    form: Form,
    /// JSON stands in for protobuf.
    instead: bool,
    wishes: Wishes,
    include: String,
}

/// Answers an authorized request.
pub async fn answer(
    api: &Arc<Api>,
    inbound: Inbound,
    path: ResourcePath,
    verb: &str,
) -> Result<Response<Body>, ApiError> {
    let gvr = Gvr {
        group: path.group.clone().into(),
        version: path.version.clone().into(),
        resource: path.resource.clone().into(),
    };
    let resource = api.registry.find(&gvr).ok_or_else(no_such_resource)?;
    let deprecation = deprecation(&resource);
    let mut response = served(api, inbound, path, verb, resource).await?;
    if let Some(words) = deprecation {
        crate::audit::annotate("k8s.io/deprecated", "true");
        respond::warn(&mut response, &[words]);
    }
    Ok(response)
}

async fn served(
    api: &Arc<Api>,
    inbound: Inbound,
    path: ResourcePath,
    verb: &str,
    resource: Arc<Resource>,
) -> Result<Response<Body>, ApiError> {
    check_scope(&resource, &path, verb)?;
    if !path.subresource.is_empty() && !resource.has_subresource(&path.subresource) {
        return Err(no_such_resource());
    }
    let namespace = if resource.row.namespaced { path.namespace.as_str() } else { "" };
    let call = Call {
        identity: inbound.identity.clone(),
        resource,
        key: ObjectKey::new(namespace, path.name.as_str()),
        subresource: path.subresource.clone(),
        options: WriteOptions::default(),
    };
    if proxy::is_proxied(&call) {
        return proxy::answer(api, inbound, call, &path.rest).await;
    }
    if path.subresource.is_empty() && !call.resource.offers(verb) {
        return Err(not_allowed());
    }
    let reviews = !call.resource.offers("get");
    let shape = Shape {
        form: negotiate::form(inbound.header(header::ACCEPT), !reviews, verb == "watch")?,
        instead: negotiate::prefers_protobuf(inbound.header(header::ACCEPT)),
        wishes: inbound.wishes(),
        include: inbound.query.get("includeObject").to_string(),
    };
    match verb {
        "get" => get(api, &inbound, &call, &shape).await,
        "list" => list(api, &inbound, &call, &shape).await,
        "watch" => {
            let mut selection = selection(&call, &inbound.query)?;
            if !path.name.is_empty() {
                selection = selection.named(&path.name);
            }
            let place = api.places.take(&call.identity)?;
            watch::respond(api, selection, shape.form, (&inbound.query, place)).await
        }
        "deletecollection" => delete_collection(api, inbound, call, &shape).await,
        "create" | "update" | "patch" | "delete" => {
            // A body of unknown length may be anything; YAML grows by its aliases.
            let yaml = inbound.header(header::CONTENT_TYPE).contains("application/yaml");
            let heavy = yaml || inbound.request.body().size_hint().upper().is_none_or(|n| n >= heavy::BYTES);
            heavy::run(heavy, Box::pin(write(api, inbound, call, verb, &shape))).await
        }
        _ => Err(not_allowed()),
    }
}

/// Namespaced resources are written in a namespace, others never have one.
fn check_scope(resource: &Resource, path: &ResourcePath, verb: &str) -> Result<(), ApiError> {
    let stray = !resource.row.namespaced && !path.namespace.is_empty() && !resource.is("", "namespaces");
    let nowhere = resource.row.namespaced && path.namespace.is_empty();
    if stray || (nowhere && !path.name.is_empty()) {
        return Err(no_such_resource());
    }
    if nowhere && !matches!(verb, "list" | "watch") {
        return Err(not_allowed());
    }
    let names_one = !path.name.is_empty();
    let misplaced = match verb {
        "create" => names_one && path.subresource.is_empty(),
        "update" | "patch" => !names_one,
        _ => false,
    };
    if misplaced {
        return Err(not_allowed());
    }
    Ok(())
}

fn selection(call: &Call, query: &Query) -> Result<Selection, ApiError> {
    let namespace = Some(&*call.key.namespace);
    Selection::parse(&call.resource, namespace, query.get("labelSelector"), query.get("fieldSelector"))
}

async fn get(
    api: &Arc<Api>,
    inbound: &Inbound,
    call: &Call,
    shape: &Shape,
) -> Result<Response<Body>, ApiError> {
    let freshness = match parse_revision(&call.resource, inbound.query.get("resourceVersion"))? {
        None => Freshness::Current,
        Some(0) => Freshness::Any,
        Some(n) => Freshness::NotOlderThan(n),
    };
    const READABLE: [&str; 6] = ["", "status", "scale", "approval", "ephemeralcontainers", "resize"];
    if !READABLE.contains(&call.subresource.as_str()) {
        return Err(not_allowed());
    }
    let object = api.get(call, freshness).await?;
    let object = match call.subresource.as_str() {
        "scale" => scale::read(&call.resource, &object)?,
        _ => rules::serve(&call.resource, &object)?,
    };
    one(api, call, &object, 200, shape)
}

/// One object in the wished form.
fn one(
    api: &Api,
    call: &Call,
    object: &Arc<Object>,
    code: u16,
    shape: &Shape,
) -> Result<Response<Body>, ApiError> {
    let content_type = shape.form.content_type(false);
    let value = match shape.form {
        Form::Object => {
            return Ok(respond::json_bytes(code, &content_type, object.raw.clone(), shape.wishes));
        }
        Form::Table(version) => {
            let metadata = json!({"resourceVersion": object.revision.to_string()});
            let style = style(api, version, shape);
            if call.subresource == "scale" {
                let value = object.value().map_err(ApiError::internal)?;
                let (include, own) = (rules::table_include(style.include)?, format!("meta.k8s.io/{version}"));
                machinery::table::scale(&value, metadata, style.now, include, &own)
            } else {
                rules::table(&call.resource, std::slice::from_ref(object), metadata, style)?
            }
        }
        Form::Partial(version) | Form::PartialProtobuf(version) => rules::partial(object, version),
        Form::Protobuf => object.value().map_err(ApiError::internal)?,
    };
    if shape.form.is_protobuf() {
        return respond::value(code, shape.form, &value, shape.wishes);
    }
    Ok(respond::json_value(code, &content_type, &value, shape.wishes))
}

fn style<'a>(api: &Api, version: &'a str, shape: &'a Shape) -> TableStyle<'a> {
    TableStyle { version, include: &shape.include, columns: true, now: (api.config.clock)() }
}

async fn list(
    api: &Arc<Api>,
    inbound: &Inbound,
    call: &Call,
    shape: &Shape,
) -> Result<Response<Body>, ApiError> {
    let selection = selection(call, &inbound.query)?;
    let paging = parse_paging(&call.resource, &inbound.query)?;
    let page = api.list(&selection, &paging).await?;
    let heavy = shape.form.is_protobuf() && page.items.len() >= heavy::OBJECTS;
    heavy::run(heavy, async { many(api, call, page, shape) }).await
}

/// A page in the wished form. Long ones are made as they are sent.
fn many(api: &Api, call: &Call, mut page: Page, shape: &Shape) -> Result<Response<Body>, ApiError> {
    let row = &*call.resource.row;
    let mut frame = ListFrame {
        kind: format!("{}List", row.kind),
        api_version: row.api_version(),
        revision: page.revision,
        next: page.next,
        remaining: page.remaining,
        items: "items",
        columns: None,
    };
    let resource = call.resource.clone();
    let encode: respond::Encode = match shape.form {
        // As upstream, where built-in kinds lose their name within a list.
        Form::Object if resource.custom.is_none() => {
            Box::new(move |object| Ok(respond::untyped(&rules::serve(&resource, object)?.raw)))
        }
        Form::Object => Box::new(move |object| Ok(rules::serve(&resource, object)?.raw.clone())),
        Form::Table(version) => {
            frame = ListFrame {
                kind: "Table".into(),
                api_version: format!("meta.k8s.io/{version}"),
                items: "rows",
                columns: Some(rules::table_columns(&resource)),
                ..frame
            };
            if resource.is("flowcontrol.apiserver.k8s.io", "flowschemas") {
                // They are read in the order in which they count.
                let precedence = |o: &Arc<Object>| o.value().ok()?["spec"]["matchingPrecedence"].as_i64();
                page.items.sort_by_cached_key(precedence);
            }
            let now = (api.config.clock)();
            let include = rules::table_include(&shape.include)?;
            let row = move |object: &Arc<Object>| {
                let object = rules::serve(&resource, object)?;
                rules::table_row(&resource, &object, (version, include), now)
            };
            Box::new(move |object| Ok(row(object)?.to_string().into()))
        }
        Form::Partial(version) => {
            frame = ListFrame {
                kind: "PartialObjectMetadataList".into(),
                api_version: format!("meta.k8s.io/{version}"),
                ..frame
            };
            let instead = shape.instead;
            Box::new(move |object| {
                let object = rules::serve(&resource, object)?;
                let raw = rules::partial(&object, version).to_string().into();
                Ok(if instead { respond::untyped(&raw) } else { raw })
            })
        }
        Form::Protobuf | Form::PartialProtobuf(_) => {
            let partial = if let Form::PartialProtobuf(version) = shape.form { Some(version) } else { None };
            if let Some(version) = partial {
                frame.kind = "PartialObjectMetadataList".into();
                frame.api_version = format!("meta.k8s.io/{version}");
            }
            let head =
                json!({"kind": frame.kind, "apiVersion": frame.api_version, "metadata": frame.metadata()});
            let items = page.items.iter().map(|o| {
                let object = rules::serve(&resource, o)?;
                match partial {
                    Some(version) => Ok(rules::partial(&object, version)),
                    None => object.value().map_err(ApiError::internal),
                }
            });
            let list = machinery::protobuf::sealed_list(&head, items)?;
            return Ok(respond::raw(200, negotiate::PROTOBUF, respond::full(list)));
        }
    };
    respond::list(&frame, &shape.form.content_type(true), (page.items, encode), shape.wishes)
}

/// dryRun, fieldValidation, fieldManager and force.
fn write_options(inbound: &Inbound, verb: &str) -> Result<WriteOptions, ApiError> {
    let query = &inbound.query;
    let mut errors = FieldErrors::new();
    let kind = match verb {
        "create" => "CreateOptions",
        "update" => "UpdateOptions",
        "patch" => "PatchOptions",
        _ => "DeleteOptions",
    };
    let manager = query.get("fieldManager");
    if verb == "patch" {
        let applies = negotiate::media_type(inbound.header(header::CONTENT_TYPE)) == body::APPLY;
        if applies && manager.is_empty() {
            errors.required("fieldManager", "is required for apply patch");
        } else if !applies && query.find("force").is_some() {
            errors.forbidden("force", "may not be specified for non-apply patch");
        }
    }
    if manager.len() > MANAGER_MAX {
        errors.too_long("fieldManager", MANAGER_MAX);
    }
    if manager.chars().any(char::is_control) {
        errors.invalid("fieldManager", manager, "should only contain printable characters");
    }
    let dry_run = query.find("dryRun").is_some();
    for value in query.all("dryRun").filter(|v| *v != "All") {
        errors.not_supported("dryRun", value, &["All"]);
    }
    let validation = match query.get("fieldValidation") {
        "" | "Warn" => FieldValidation::Warn,
        "Ignore" => FieldValidation::Ignore,
        "Strict" => FieldValidation::Strict,
        other => {
            errors.not_supported("fieldValidation", other, &["Ignore", "Strict", "Warn"]);
            FieldValidation::Warn
        }
    };
    errors.into_result("meta.k8s.io", kind, "")?;
    let manager = match manager {
        "" => owners::of_agent(inbound.header(header::USER_AGENT)),
        given => given.to_string(),
    };
    Ok(WriteOptions {
        dry_run,
        validation,
        duplicates: Repeats::default(),
        manager,
        force: query.flag("force"),
    })
}

async fn write(
    api: &Arc<Api>,
    inbound: Inbound,
    mut call: Call,
    verb: &str,
    shape: &Shape,
) -> Result<Response<Body>, ApiError> {
    call.options = write_options(&inbound, verb)?;
    let verb = match verb {
        "create" | "update" => {
            let body = body::object(inbound.request, &call.resource.row.kind).await?;
            call.options.duplicates = body.duplicates;
            if verb == "create" { Verb::Create(body.value) } else { Verb::Update(body.value) }
        }
        "patch" => {
            let (kind, body) = body::patch(inbound.request, call.resource.custom.is_none()).await?;
            call.options.duplicates = body.duplicates;
            Verb::Patch(kind, body.value)
        }
        _ => {
            let body = body::optional(inbound.request).await?;
            if body["dryRun"].as_array().is_some_and(|d| d.iter().any(|v| v == "All")) {
                call.options.dry_run = true;
            }
            Verb::Delete(delete::parse_options(&body, &inbound.query)?)
        }
    };
    if let Verb::Create(body) = &verb {
        if let Some(answer) = api.review(&call, body).await? {
            return respond::value(201, shape.form, &answer, shape.wishes);
        }
        if call.resource.is("", "bindings") {
            call = binding(api, call, body)?;
        }
    }
    let is_delete = matches!(verb, Verb::Delete(_));
    let written = api.write(call.clone(), verb).await?;
    let mut response = written_answer(api, &call, &written, is_delete, shape)?;
    respond::warn(&mut response, &written.warnings);
    Ok(response)
}

/// What whoever uses this resource is told, whatever the verb.
fn deprecation(resource: &Resource) -> Option<String> {
    let (row, stored) = (&*resource.row, &*resource.stored);
    if row.legacy {
        let own = format!("{} {}", row.api_version(), row.kind);
        return Some(format!("{own} is deprecated; use {} {}", stored.api_version(), stored.kind));
    }
    let told = DEPRECATED_KINDS.iter().find(|(group, name, _)| resource.is(group, name));
    let own = || resource.custom.as_ref().and_then(|custom| custom.deprecation.clone());
    told.map(|(.., words)| words.to_string()).or_else(own)
}

/// `POST bindings` is `POST pods/{name}/binding`.
fn binding(api: &Api, call: Call, body: &Value) -> Result<Call, ApiError> {
    let name = body["metadata"]["name"].as_str().unwrap_or_default();
    let resource = api.registry.find(&k8s_schema::gvr::PODS).ok_or_else(no_such_resource)?;
    let key = ObjectKey::new(call.key.namespace.clone(), name);
    Ok(Call { resource, key, subresource: "binding".into(), ..call })
}

fn written_answer(
    api: &Api,
    call: &Call,
    written: &Written,
    is_delete: bool,
    shape: &Shape,
) -> Result<Response<Body>, ApiError> {
    let success =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    match (call.subresource.as_str(), written.effect) {
        ("binding" | "eviction", _) => respond::value(201, shape.form, &success, shape.wishes),
        (_, Effect::Removed) if is_delete && !delete::answers_with_object(&call.resource) => {
            let status = delete::deleted_status(call, &written.object);
            respond::value(200, shape.form, &status, shape.wishes)
        }
        (_, Effect::Created) => one(api, call, &written.object, 201, shape),
        _ => one(api, call, &written.object, 200, shape),
    }
}

async fn delete_collection(
    api: &Arc<Api>,
    inbound: Inbound,
    mut call: Call,
    shape: &Shape,
) -> Result<Response<Body>, ApiError> {
    let selection = selection(&call, &inbound.query)?;
    call.options = write_options(&inbound, "delete")?;
    let body = body::optional(inbound.request).await?;
    let options = delete::parse_options(&body, &inbound.query)?;
    let items = api.delete_collection(&call, &selection, &options).await?;
    let items = api.in_served(&call.resource, items).await?;
    let page = Page { items, revision: api.storage.cache.revision(), next: String::new(), remaining: None };
    many(api, &call, page, shape)
}
