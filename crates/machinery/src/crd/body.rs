//! A custom resource's body as the table definition that patches, server-side apply and field lookups read.
//!
//! What the schema says about a value's structure is kept (types, list types, keys, atomic maps, defaults of keys);
//! what it does not know stays `Any`, and apply deduces it. A structure that keeps fields which it does not know has a
//! field without a name, [`REST`], that stands for them.

use super::schema::{Additional, Schema, Ty};
use k8s_schema::{Def, DefRef, Field, Held, ListType, PatchStrategy, Type};
use std::sync::Arc;

/// The definition of every object's metadata.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The name of the field that stands for fields that the schema does not know, but keeps.
pub const REST: &str = "";

/// The definition of a kind's body. `name` is the definition's (`org.example.v1.Widget`).
pub fn definition(name: &str, schema: &Schema) -> Arc<Def> {
    definition_of(name, schema, true)
}

fn definition_of(name: &str, schema: &Schema, object: bool) -> Arc<Def> {
    let mut fields: Vec<Field> = Vec::with_capacity(schema.properties.len() + 4);
    fields.extend(schema.keeps_unknown().then(|| field(REST, Type::Any, None, false)));
    for (key, below) in &schema.properties {
        if !(object && ["apiVersion", "kind", "metadata"].contains(&key.as_str())) {
            fields.push(field(key, type_of(below), Some(below), schema.required.contains(key)));
        }
    }
    if object {
        let metadata = k8s_schema::def_by_name(OBJECT_META);
        let metadata = metadata.and_then(|def| k8s_schema::defs().iter().position(|d| std::ptr::eq(d, def)));
        let metadata = metadata.map_or(Type::Any, |at| Type::Object(DefRef::Builtin(at as u16)));
        let own = [("apiVersion", Type::String), ("kind", Type::String), ("metadata", metadata)];
        fields.extend(own.into_iter().map(|(name, ty)| field(name, ty, None, false)));
    }
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    Arc::new(Def {
        name: name.to_string().into(),
        fields: fields.into(),
        gvks: Held::Static(&[]),
        map_atomic: schema.map_atomic,
    })
}

fn field(name: &str, ty: Type, schema: Option<&Schema>, required: bool) -> Field {
    let keys = schema.map(|s| s.list_keys.clone()).unwrap_or_default();
    Field {
        name: name.to_string().into(),
        ty,
        required,
        list_type: schema.map_or(ListType::Atomic, |s| s.list_type),
        list_keys: keys.into_iter().map(Into::into).collect::<Vec<_>>().into(),
        patch_strategy: PatchStrategy::Replace,
        merge_key: Held::Static(""),
        map_atomic: schema.is_some_and(|s| s.map_atomic),
        default: schema.and_then(|s| s.default.as_ref()).map_or(Held::Static(""), |d| d.to_string().into()),
    }
}

fn type_of(schema: &Schema) -> Type {
    let object = || Type::Object(DefRef::Shared(definition_of("", schema, schema.embedded)));
    match schema.ty {
        Ty::String => Type::String,
        Ty::Integer => Type::Int64,
        Ty::Number => Type::Number,
        Ty::Boolean => Type::Bool,
        Ty::IntOrString => Type::IntOrString,
        Ty::Array => match &schema.items {
            Some(items) => Type::Array(Held::Shared(Arc::new(type_of(items)))),
            None => Type::Any,
        },
        Ty::Object | Ty::Any => match &schema.additional {
            Additional::Of(values) => Type::Map(Held::Shared(Arc::new(type_of(values)))),
            // Structures that keep unknown fields are deduced from their values, as they have no fixed fields.
            _ if schema.keeps_unknown() && schema.properties.is_empty() && !schema.embedded => Type::Any,
            _ if schema.ty == Ty::Any => Type::Any,
            _ => object(),
        },
    }
}
