//! `authorizer`: questions to the API server's authorizer.
//!
//! An expression builds an [`Inquiry`] step by step and asks with `check`; who answers is an [`Authority`].

use crate::cel::table::{Cost, Row};
use crate::cel::value::{EvalError, Ext, Value};
use std::fmt;
use std::sync::Arc;

type Outcome = Result<Value, EvalError>;

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inquiry {
    /// A path that is no resource's; "" for resources.
    pub path: String,
    /// API group.
    pub group: String,
    /// Plural name.
    pub resource: String,
    /// Subresource or "".
    pub subresource: String,
    /// Namespace or "".
    pub namespace: String,
    /// Name or "".
    pub name: String,
    /// Field selector or "".
    pub field_selector: String,
    /// Label selector or "".
    pub label_selector: String,
    /// The verb.
    pub verb: String,
    /// Asked for this service account (namespace and name) instead of the requester.
    pub service_account: Option<(String, String)>,
}

/// Who answers.
pub trait Authority: Send + Sync {
    /// Allowed or not, and why; an error for a question that could not be answered.
    fn decide(&self, inquiry: &Inquiry) -> Result<(bool, String), String>;
}

/// A question on its way, or its answer.
pub enum Check {
    /// A question with its type's short name.
    Asking(&'static str, Arc<dyn Authority>, Box<Inquiry>),
    /// The answer.
    Decided(Result<(bool, String), String>),
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Check::Asking(name, _, inquiry) => write!(f, "{name}({inquiry:?})"),
            Check::Decided(answer) => write!(f, "{answer:?}"),
        }
    }
}

impl Check {
    /// The table's short name of its type.
    pub fn short_name(&self) -> &'static str {
        match self {
            Check::Asking(name, ..) => name,
            Check::Decided(_) => "decision",
        }
    }
}

/// The value of the variable `authorizer` (of the type `Type::Library("authorizer")`).
pub fn authorizer(authority: Arc<dyn Authority>) -> Value {
    Ext::Check(Check::Asking("authorizer", authority, Box::default())).into()
}

/// The value of `authorizer.requestResource` (of the type `Type::Library("resourcecheck")`).
pub fn request_resource(authority: Arc<dyn Authority>, inquiry: Inquiry) -> Value {
    Ext::Check(Check::Asking("resourcecheck", authority, Box::new(inquiry))).into()
}

/// Rows of this library.
pub const ROWS: &[Row] = &[
    ("authorizer:path(string) pathcheck", Cost::Flat, |a| {
        if text(a, 1).is_empty() {
            return Err(EvalError::failed("path must not be empty"));
        }
        step(a, "pathcheck", |i, s| i.path = s)
    }),
    ("authorizer:group(string) groupcheck", Cost::Flat, |a| step(a, "groupcheck", |i, s| i.group = s)),
    ("authorizer:serviceAccount(string, string) authorizer", Cost::Flat, |a| {
        let name = text(a, 2);
        step(a, "authorizer", |i, namespace| i.service_account = Some((namespace, name)))
    }),
    ("groupcheck:resource(string) resourcecheck", Cost::Flat, |a| {
        step(a, "resourcecheck", |i, s| i.resource = s)
    }),
    ("resourcecheck:subresource(string) resourcecheck", Cost::Flat, |a| {
        step(a, "resourcecheck", |i, s| i.subresource = s)
    }),
    ("resourcecheck:namespace(string) resourcecheck", Cost::Flat, |a| {
        step(a, "resourcecheck", |i, s| i.namespace = s)
    }),
    ("resourcecheck:name(string) resourcecheck", Cost::Flat, |a| step(a, "resourcecheck", |i, s| i.name = s)),
    ("resourcecheck:fieldSelector(string) resourcecheck", Cost::Flat, |a| {
        step(a, "resourcecheck", |i, s| i.field_selector = s)
    }),
    ("resourcecheck:labelSelector(string) resourcecheck", Cost::Flat, |a| {
        step(a, "resourcecheck", |i, s| i.label_selector = s)
    }),
    ("resourcecheck:check(string) decision; pathcheck:check(string) decision", Cost::Authorize, check),
    ("decision:allowed() bool", Cost::Flat, |a| answer(a, |d| matches!(d, Ok((true, _))).into())),
    ("decision:reason() string", Cost::Flat, |a| answer(a, |d| d.as_ref().map_or("", |(_, why)| why).into())),
    ("decision:errored() bool", Cost::Flat, |a| answer(a, |d| d.is_err().into())),
    ("decision:error() string", Cost::Flat, |a| {
        answer(a, |d| d.as_ref().err().cloned().unwrap_or_default().into())
    }),
];

fn text(a: &[Value], i: usize) -> String {
    a.get(i).and_then(Value::as_str).unwrap_or_default().to_string()
}

fn asking(value: &Value) -> Result<(&Arc<dyn Authority>, &Inquiry), EvalError> {
    match value {
        Value::Ext(ext) => match &**ext {
            Ext::Check(Check::Asking(_, authority, inquiry)) => Ok((authority, inquiry)),
            _ => Err(EvalError::no_such_overload()),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

fn step(a: &[Value], to: &'static str, set: impl FnOnce(&mut Inquiry, String)) -> Outcome {
    let (authority, inquiry) = asking(&a[0])?;
    let mut inquiry = inquiry.clone();
    set(&mut inquiry, text(a, 1));
    Ok(Ext::Check(Check::Asking(to, authority.clone(), Box::new(inquiry))).into())
}

fn check(a: &[Value]) -> Outcome {
    let (authority, inquiry) = asking(&a[0])?;
    let inquiry = Inquiry { verb: text(a, 1), ..inquiry.clone() };
    Ok(Ext::Check(Check::Decided(authority.decide(&inquiry))).into())
}

fn answer(a: &[Value], read: impl FnOnce(&Result<(bool, String), String>) -> Value) -> Outcome {
    match &a[0] {
        Value::Ext(ext) => match &**ext {
            Ext::Check(Check::Decided(decision)) => Ok(read(decision)),
            _ => Err(EvalError::no_such_overload()),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}
