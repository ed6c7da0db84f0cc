//! The shape of the schema table: definitions, fields, resources. Data types only.
//!
//! Built-in rows are `static` data made at build time from `specs/`; rows of CustomResourceDefinitions
//! are made at run time. [`Held`] lets one type serve both without leaking.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

/// Borrowed for ever (built-in tables) or shared (tables made at run time).
pub enum Held<T: ?Sized + 'static> {
    /// Part of the binary.
    Static(&'static T),
    /// Made at run time; freed with its last user.
    Shared(Arc<T>),
}

impl<T: ?Sized> Clone for Held<T> {
    fn clone(&self) -> Self {
        match self {
            Held::Static(t) => Held::Static(t),
            Held::Shared(t) => Held::Shared(t.clone()),
        }
    }
}

impl<T: ?Sized> Deref for Held<T> {
    type Target = T;
    fn deref(&self) -> &T {
        match self {
            Held::Static(t) => t,
            Held::Shared(t) => t,
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl From<String> for Held<str> {
    fn from(text: String) -> Self {
        Held::Shared(text.into())
    }
}

impl<T> From<Vec<T>> for Held<[T]> {
    fn from(items: Vec<T>) -> Self {
        Held::Shared(items.into())
    }
}

/// The type of one value.
#[derive(Clone, Debug)]
pub enum Type {
    /// A string; `format` as OpenAPI has it ("" when none).
    String,
    /// Base64 text (Go `[]byte`).
    Bytes,
    /// RFC 3339 time, second precision (`metav1.Time`).
    Time,
    /// RFC 3339 time, microsecond precision (`metav1.MicroTime`).
    MicroTime,
    /// `resource.Quantity`: a string, or a number on input.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// A 32-bit integer.
    Int32,
    /// A 64-bit integer (also integers without a format).
    Int64,
    /// A double.
    Number,
    /// A boolean.
    Bool,
    /// Any JSON value (RawExtension, JSON, FieldsV1, an object without properties).
    Any,
    /// An object of a named definition.
    Object(DefRef),
    /// A map with string keys and values of this type.
    Map(Held<Type>),
    /// A list of values of this type.
    Array(Held<Type>),
}

/// How a definition is referred to: lazily, because definitions may be recursive
/// (JSONSchemaProps). Built-in ones go through the table by index.
#[derive(Clone, Debug)]
pub enum DefRef {
    /// Index into the built-in table; see [`crate::def`].
    Builtin(u16),
    /// A definition made at run time.
    Shared(Arc<Def>),
    /// One that is made when it is first looked at.
    Later(Arc<MadeLater>),
}

/// A definition and how it is made.
pub type MadeLater = LazyLock<Arc<Def>, Box<dyn FnOnce() -> Arc<Def> + Send + Sync>>;

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ListType {
    /// Replaced as a whole (the default).
    #[default]
    Atomic,
    /// A set of scalars.
    Set,
    /// A map keyed by [`Field::list_keys`].
    Map,
}

/// `x-kubernetes-patch-strategy`, as strategic merge patch uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PatchStrategy {
    /// None given: lists are replaced, objects and maps are merged.
    #[default]
    Replace,
    /// `replace` given: an object, too, is replaced as a whole (`selector` of a PodDisruptionBudget).
    ReplaceObject,
    /// Merge by [`Field::merge_key`], or as a set when that is empty.
    Merge,
    /// `retainKeys`.
    RetainKeys,
    /// `merge,retainKeys`.
    MergeRetainKeys,
}

impl DefRef {
    /// The definition, built in or shared.
    pub fn get(&self) -> &Def {
        match self {
            DefRef::Builtin(index) => &crate::defs()[usize::from(*index)],
            DefRef::Shared(def) => def,
            DefRef::Later(made) => made,
        }
    }
}

impl Type {
    /// The type at a path below: field names through objects, any segment through a map or a list.
    pub fn at<'a>(&'a self, path: &[&str]) -> Option<&'a Type> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        match self {
            Type::Object(def) => def.get().field(first)?.ty.at(rest),
            Type::Map(inner) | Type::Array(inner) => inner.at(rest),
            _ => None,
        }
    }
}

/// One property of a definition.
#[derive(Clone, Debug)]
pub struct Field {
    /// JSON name.
    pub name: Held<str>,
    /// Its type.
    pub ty: Type,
    /// Listed in `required`.
    pub required: bool,
    /// For arrays.
    pub list_type: ListType,
    /// For arrays of type map: the key fields, in order.
    pub list_keys: Held<[Cow<'static, str>]>,
    /// For strategic merge patch.
    pub patch_strategy: PatchStrategy,
    /// For strategic merge patch; "" when none.
    pub merge_key: Held<str>,
    /// Is the map or object replaced as a whole? The field's own `x-kubernetes-map-type`, else that of the
    /// definition it refers to (`claimRef` is granular though ObjectReference is atomic).
    pub map_atomic: bool,
    /// The default visible in OpenAPI v3, as JSON text; "" when none.
    pub default: Held<str>,
}

/// One named definition (`io.k8s.api.core.v1.Pod`), fields sorted by name.
#[derive(Clone, Debug)]
pub struct Def {
    /// Full dotted name.
    pub name: Held<str>,
    /// Properties, sorted by name.
    pub fields: Held<[Field]>,
    /// group, version, kind triples this definition is the body of (`x-kubernetes-group-version-kind`).
    pub gvks: Held<[(&'static str, &'static str, &'static str)]>,
    /// `x-kubernetes-map-type: atomic` of the definition itself: for values that are no field (list items).
    pub map_atomic: bool,
}

impl Def {
    /// The property of that JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| (*f.name).cmp(name)).ok().map(|i| &self.fields[i])
    }
}

/// A subresource of a resource (`status`, `scale`, `binding`, `log`, …).
#[derive(Clone, Debug)]
pub struct Subresource {
    /// Its path segment.
    pub name: Held<str>,
    /// Group, version, kind of its body, as discovery tells it.
    pub gvk: (Held<str>, Held<str>, Held<str>),
    /// Verbs, sorted, as discovery tells them.
    pub verbs: Held<[&'static str]>,
}

/// One served resource in one version.
#[derive(Clone, Debug)]
pub struct ResourceRow {
    /// Group ("" is core), version, plural.
    pub gvr: Gvr,
    /// Kind ("Pod").
    pub kind: Held<str>,
    /// Lower-case singular.
    pub singular: Held<str>,
    /// Short names.
    pub short_names: Held<[Cow<'static, str>]>,
    /// Categories ("all").
    pub categories: Held<[Cow<'static, str>]>,
    /// In a namespace?
    pub namespaced: bool,
    /// Verbs, sorted, as discovery tells them.
    pub verbs: Held<[&'static str]>,
    /// Subresources, sorted by name.
    pub subresources: Held<[Subresource]>,
    /// The body's definition.
    pub def: DefRef,
    /// The version objects of this resource are stored in (all versions of one resource share storage).
    pub storage_version: Held<str>,
    /// The group they are stored under: another than the row's own for `events.k8s.io` (core) and for
    /// `extensions` (apps). The plural is the same.
    pub storage_group: Held<str>,
    /// Accepted from old manifests only; strict conformance hides it.
    pub legacy: bool,
    /// Served only where this gate of [`crate::gates`] is on; "": always.
    pub gate: &'static str,
}

impl ResourceRow {
    /// Where the objects are stored; equal for all rows that show the same objects.
    pub fn storage_gvr(&self) -> Gvr {
        Gvr {
            group: self.storage_group.to_string().into(),
            version: self.storage_version.to_string().into(),
            resource: self.gvr.resource.clone(),
        }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        self.gvr.api_version()
    }
}

/// Group, version and plural resource name: how an API path names a collection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gvr {
    /// "" is the core group.
    pub group: Cow<'static, str>,
    /// "v1".
    pub version: Cow<'static, str>,
    /// Plural ("pods").
    pub resource: Cow<'static, str>,
}

impl Gvr {
    /// A compile-time triple.
    pub const fn new(group: &'static str, version: &'static str, resource: &'static str) -> Self {
        Gvr {
            group: Cow::Borrowed(group),
            version: Cow::Borrowed(version),
            resource: Cow::Borrowed(resource),
        }
    }
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
    /// `pods` or `deployments.apps`: how messages name a resource.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() {
            self.resource.to_string()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }
}
