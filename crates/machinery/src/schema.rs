//! Small readings of the schema table that patches and walks share.

use k8s_schema::{Def, Type};

/// The definition of an object type.
pub fn object_of(ty: &Type) -> Option<&Def> {
    match ty {
        Type::Object(reference) => Some(reference.get()),
        _ => None,
    }
}

/// The element type of a list.
pub fn element_of(ty: &Type) -> Option<&Type> {
    match ty {
        Type::Array(element) => Some(element),
        _ => None,
    }
}
