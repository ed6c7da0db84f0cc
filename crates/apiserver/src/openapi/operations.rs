//! Operations: what can be done on which path, worked out from resource rows, in no OpenAPI version yet.
//!
//! The names (operation ids, actions, tags) are those that client generators know from upstream.

use k8s_schema::{ResourceRow, Subresource};

use super::schemas::{body_name, list_name, meta};

/// Name and type of one query parameter.
pub type Parameter = (&'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string");
const LIST: [Parameter; 10] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: [Parameter; 3] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: [Parameter; 4] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE: [Parameter; 4] = [
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const DELETE_COLLECTION: [Parameter; 10] = [
    ("continue", "string"),
    ("dryRun", "string"),
    ("fieldSelector", "string"),
    ("gracePeriodSeconds", "integer"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
];

/// What a request body is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// None.
    None,
    /// An object of that definition.
    Object(String),
    /// `DeleteOptions`, which may be left out.
    DeleteOptions,
    /// A patch.
    Patch,
}

/// One operation on one path.
#[derive(Clone, Debug)]
pub struct Operation {
    /// HTTP method, lower case.
    pub method: &'static str,
    /// `x-kubernetes-action`.
    pub action: &'static str,
    /// `operationId`, unique in a document.
    pub id: String,
    /// Group, version and kind that the operation is about.
    pub gvk: (String, String, String),
    /// Request body.
    pub body: Body,
    /// The definition of what comes back; `None`: text or a stream.
    pub answer: Option<String>,
    /// Status codes of success.
    pub codes: &'static [u16],
    /// Query parameters.
    pub query: Vec<Parameter>,
}

/// One path with its operations.
#[derive(Clone, Debug)]
pub struct PathItem {
    /// `/api/v1/namespaces/{namespace}/pods/{name}`.
    pub path: String,
    /// Names in braces, in order of the path.
    pub parameters: Vec<&'static str>,
    /// By method.
    pub operations: Vec<Operation>,
}

/// `/api/v1` or `/apis/{group}/{version}`.
pub fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// `core_v1`, `rbacAuthorization_v1`: the tag of a group version's operations.
pub fn tag(group: &str, version: &str) -> String {
    let title = group_title(group);
    let mut letters = title.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_lowercase).collect();
    format!("{first}{}_{version}", letters.as_str())
}

/// All paths of a row that have an operation.
pub fn paths(row: &ResourceRow) -> Vec<PathItem> {
    let root = root(&row.gvr.group, &row.gvr.version);
    let plural = &row.gvr.resource;
    let (base, scope): (String, &[&'static str]) = if row.namespaced {
        (format!("{root}/namespaces/{{namespace}}/{plural}"), &["namespace"])
    } else {
        (format!("{root}/{plural}"), &[])
    };
    let named: Vec<&'static str> = ["name"].iter().chain(scope).copied().collect();
    let mut items = vec![
        PathItem { path: base.clone(), parameters: scope.to_vec(), operations: collection(row) },
        PathItem { path: format!("{base}/{{name}}"), parameters: named.clone(), operations: item(row) },
    ];
    if row.namespaced && row.verbs.contains(&"list") {
        let operations = vec![list(row, format!("list{}{}ForAllNamespaces", title(row), row.kind))];
        items.push(PathItem { path: format!("{root}/{plural}"), parameters: vec![], operations });
    }
    for sub in row.subresources.iter() {
        let path = format!("{base}/{{name}}/{}", sub.name);
        items.push(PathItem { path, parameters: named.clone(), operations: subresource(row, sub) });
    }
    items.retain(|i| !i.operations.is_empty());
    items
}

/// `rbac.authorization.k8s.io` → `RbacAuthorization`; "" → `Core`.
fn group_title(group: &str) -> String {
    if group.is_empty() {
        return "Core".into();
    }
    let group = group.strip_suffix(".k8s.io").unwrap_or(group);
    group.split(['.', '-']).map(capitalised).collect()
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

fn title(row: &ResourceRow) -> String {
    format!("{}{}", group_title(&row.gvr.group), capitalised(&row.gvr.version))
}

/// `NamespacedPod` or `Node`.
fn scoped_kind(row: &ResourceRow) -> String {
    format!("{}{}", if row.namespaced { "Namespaced" } else { "" }, row.kind)
}

fn own_gvk(row: &ResourceRow) -> (String, String, String) {
    (row.gvr.group.to_string(), row.gvr.version.to_string(), row.kind.to_string())
}

fn list(row: &ResourceRow, id: String) -> Operation {
    Operation {
        method: "get",
        action: "list",
        id,
        gvk: own_gvk(row),
        body: Body::None,
        answer: Some(list_name(row)),
        codes: &[200],
        query: LIST.into(),
    }
}

fn collection(row: &ResourceRow) -> Vec<Operation> {
    let (title, kind) = (title(row), scoped_kind(row));
    let mut operations = Vec::new();
    if row.verbs.contains(&"deletecollection") {
        operations.push(Operation {
            method: "delete",
            action: "deletecollection",
            id: format!("delete{title}Collection{kind}"),
            gvk: own_gvk(row),
            body: Body::DeleteOptions,
            answer: Some(meta("Status")),
            codes: &[200],
            query: DELETE_COLLECTION.into(),
        });
    }
    if row.verbs.contains(&"list") {
        operations.push(list(row, format!("list{title}{kind}")));
    }
    if row.verbs.contains(&"create") {
        operations.push(Operation {
            method: "post",
            action: "post",
            id: format!("create{title}{kind}"),
            gvk: own_gvk(row),
            body: Body::Object(body_name(row)),
            answer: Some(body_name(row)),
            codes: &[200, 201, 202],
            query: WRITE.into(),
        });
    }
    operations
}

fn item(row: &ResourceRow) -> Vec<Operation> {
    let suffix = format!("{}{}", title(row), scoped_kind(row));
    let mut operations = object_operations(&row.verbs, &suffix, own_gvk(row), &body_name(row));
    if row.verbs.contains(&"delete") {
        operations.push(Operation {
            method: "delete",
            action: "delete",
            id: format!("delete{suffix}"),
            gvk: own_gvk(row),
            body: Body::DeleteOptions,
            answer: Some(meta("Status")),
            codes: &[200, 202],
            query: DELETE.into(),
        });
    }
    operations
}

/// get, patch, update of one object: the same for a resource and for a subresource.
fn object_operations(
    verbs: &[&str],
    suffix: &str,
    gvk: (String, String, String),
    body: &str,
) -> Vec<Operation> {
    let operation = |method, action, word: &str, request, query: &[Parameter]| Operation {
        method,
        action,
        id: format!("{word}{suffix}"),
        gvk: gvk.clone(),
        body: request,
        answer: Some(body.to_owned()),
        codes: if method == "get" { &[200] } else { &[200, 201] },
        query: query.into(),
    };
    let mut operations = Vec::new();
    if verbs.contains(&"get") {
        operations.push(operation("get", "get", "read", Body::None, &[]));
    }
    if verbs.contains(&"patch") {
        operations.push(operation("patch", "patch", "patch", Body::Patch, &PATCH));
    }
    if verbs.contains(&"update") {
        let request = Body::Object(body.to_owned());
        operations.push(operation("put", "put", "replace", request, &WRITE));
    }
    operations
}

fn subresource(row: &ResourceRow, sub: &Subresource) -> Vec<Operation> {
    let gvk = (sub.gvk.0.to_string(), sub.gvk.1.to_string(), sub.gvk.2.to_string());
    let name: String = sub.name.split('-').map(capitalised).collect();
    let suffix = format!("{}{}{name}", title(row), scoped_kind(row));
    if gvk.2.ends_with("Options") {
        return connect(row, sub, &gvk);
    }
    if &*sub.name == "log" {
        let mut operations = object_operations(&["get"], &suffix, gvk, "");
        operations.iter_mut().for_each(|o| o.answer = None);
        return operations;
    }
    let body = if gvk == own_gvk(row) { body_name(row) } else { definition_of(&gvk) };
    let mut operations = object_operations(&sub.verbs, &suffix, gvk.clone(), &body);
    if sub.verbs.contains(&"create") {
        operations.push(Operation {
            method: "post",
            action: "post",
            id: format!("create{suffix}"),
            gvk,
            body: Body::Object(body.clone()),
            answer: Some(body),
            codes: &[200, 201, 202],
            query: WRITE.into(),
        });
    }
    operations
}

/// exec, attach, port-forward, proxy: streams, not objects.
fn connect(row: &ResourceRow, sub: &Subresource, gvk: &(String, String, String)) -> Vec<Operation> {
    let methods = [
        ("delete", "delete", "Delete"),
        ("get", "get", "Get"),
        ("patch", "patch", "Patch"),
        ("create", "post", "Post"),
        ("update", "put", "Put"),
    ];
    let served = methods.into_iter().filter(|(verb, ..)| sub.verbs.contains(verb));
    served
        .map(|(_, method, word)| Operation {
            method,
            action: "connect",
            id: format!("connect{}{word}{}{}", title(row), scoped_kind(row), capitalised(&sub.name)),
            gvk: gvk.clone(),
            body: Body::None,
            answer: None,
            codes: &[200],
            query: vec![],
        })
        .collect()
}

/// The name of the built-in definition that is the body of a group, version and kind.
fn definition_of(gvk: &(String, String, String)) -> String {
    let wanted = (gvk.0.as_str(), gvk.1.as_str(), gvk.2.as_str());
    let found = k8s_schema::defs().iter().find(|d| d.gvks.contains(&wanted));
    found.map_or_else(|| meta("Status"), |d| d.name.to_string())
}

/// What every operation takes besides its own parameters.
pub fn common() -> Parameter {
    PRETTY
}
