//! How ownership sees a value: as one leaf, as a structure, as a map, or as a list whose items have names.
//!
//! Reads the schema table; [`Spot`] is a place in it. Fields of any type are leaves in built-in kinds; where the
//! schema is made at run time they are *deduced*: objects are maps, everything else is a leaf.

use crate::crd::REST;
use k8s_schema::{Def, DefRef, Field, ListType, Type};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt::Write;
use std::sync::LazyLock;

static ANY: Type = Type::Any;
pub static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));

/// Structures that Go's types hold by value, so that an object never lacks them: they are not added or removed.
/// (Required fields are like them.)
const BY_VALUE: [&str; 14] = [
    "daemonEndpoints",
    "jobTemplate",
    "kubeletEndpoint",
    "loadBalancer",
    "metadata",
    "nodeInfo",
    "podSelector",
    "resources",
    "scaleTargetRef",
    "spec",
    "status",
    "strategy",
    "template",
    "updateStrategy",
];

/// A place in the schema.
#[derive(Clone, Copy)]
pub struct Spot<'a> {
    ty: &'a Type,
    field: Option<&'a Field>,
    deduced: bool,
}

/// What a value is to ownership.
pub enum Shape<'a> {
    /// Owned as a whole.
    Leaf,
    /// Fields of a definition.
    Struct(&'a Def),
    /// Keys with values of one kind.
    Map(Spot<'a>),
    /// A list whose items are told apart by their key fields, or by their values when there are none.
    Items(Items<'a>),
}

/// A list with named items.
pub struct Items<'a> {
    /// The items' own place.
    pub spot: Spot<'a>,
    keys: &'a [Cow<'static, str>],
}

impl<'a> Spot<'a> {
    /// The root of a kind, whose body is `ty`.
    pub fn root(ty: &'a Type) -> Self {
        Spot { ty, field: None, deduced: matches!(ty, Type::Object(DefRef::Shared(_) | DefRef::Later(_))) }
    }

    fn at(&self, ty: &'a Type, field: Option<&'a Field>) -> Self {
        Spot { ty, field, deduced: self.deduced }
    }

    /// The type of the value here.
    pub fn ty(&self) -> &'a Type {
        self.ty
    }

    /// Is this behind a key that the schema does not list? Such keys are owned even where there is something below.
    pub fn is_entry(&self) -> bool {
        self.field.is_none()
    }

    /// What the values here are; they help only where the schema says nothing.
    pub fn shape(&self, values: [Option<&Value>; 2]) -> Shape<'a> {
        match self.ty {
            Type::Object(def) => {
                let def = def.get();
                match self.field.map_or(def.map_atomic, |f| f.map_atomic) {
                    true => Shape::Leaf,
                    false => Shape::Struct(def),
                }
            }
            Type::Map(inner) if !self.field.is_some_and(|f| f.map_atomic) => Shape::Map(self.at(inner, None)),
            Type::Array(item) => match self.field {
                Some(f) if f.list_type != ListType::Atomic => {
                    let keys: &[Cow<'static, str>] =
                        if f.list_type == ListType::Map { &f.list_keys } else { &[] };
                    Shape::Items(Items { spot: self.at(item, None), keys })
                }
                _ => Shape::Leaf,
            },
            Type::Any if self.deduced && values.iter().flatten().all(|v| v.is_object()) => {
                Shape::Map(self.at(&ANY, None))
            }
            _ => Shape::Leaf,
        }
    }

    /// What stands for a value that is missing here although its parent is there.
    pub fn missing(&self) -> Option<&'static Value> {
        let field = self.field?;
        match self.ty {
            Type::Object(_) if field.required || BY_VALUE.contains(&&*field.name) => Some(&EMPTY),
            Type::Array(_) if field.required => Some(&Value::Null),
            _ => None,
        }
    }
}

impl<'a> Shape<'a> {
    /// The place of an entry of a structure or map; `None` for a field that the schema does not have.
    pub fn entry(&self, of: &Spot<'a>, name: &str) -> Option<Spot<'a>> {
        match self {
            Shape::Struct(def) => match def.field(name) {
                Some(f) => Some(of.at(&f.ty, Some(f))),
                None => of.deduced.then(|| def.field(REST)).flatten().map(|f| of.at(&f.ty, None)),
            },
            Shape::Map(inner) => Some(*inner),
            Shape::Leaf | Shape::Items(_) => None,
        }
    }

    /// The place behind a path element.
    pub fn behind(&self, of: &Spot<'a>, element: &str) -> Option<Spot<'a>> {
        match (self, element.strip_prefix("f:")) {
            (Shape::Items(items), None) => Some(items.spot),
            (_, Some(name)) => self.entry(of, name),
            (_, None) => None,
        }
    }
}

impl Items<'_> {
    /// The path element of an item, or why it has none.
    pub fn element(&self, item: &Value) -> Result<String, String> {
        if self.keys.is_empty() {
            return match item {
                Value::Object(_) | Value::Array(_) | Value::Null => {
                    Err("associative list without keys has an element that's no scalar".into())
                }
                scalar => Ok(format!("v:{scalar}")),
            };
        }
        let mut named = Vec::with_capacity(self.keys.len());
        for key in self.keys {
            let key = &**key;
            let value = match item.get(key).filter(|v| !v.is_null()) {
                Some(value) => Cow::Borrowed(value),
                None => self.default_of(key).map(Cow::Owned).ok_or_else(|| {
                    format!("associative list with keys has an element that omits key field {key:?} (and doesn't have default value)")
                })?,
            };
            named.push((key, value));
        }
        named.sort_by_key(|(key, _)| *key);
        let mut element = String::from("k:{");
        for (nth, (key, value)) in named.into_iter().enumerate() {
            let comma = if nth > 0 { "," } else { "" };
            // Names of fields need no escape.
            let _ = write!(element, "{comma}\"{key}\":{value}");
        }
        element.push('}');
        Ok(element)
    }

    fn default_of(&self, key: &str) -> Option<Value> {
        let Type::Object(def) = self.spot.ty else { return None };
        serde_json::from_str(&def.get().field(key)?.default).ok()
    }
}
