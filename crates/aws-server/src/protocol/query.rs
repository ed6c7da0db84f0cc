//! `Action=…&A.member.1.B=…` forms: query and EC2 input. (Their answers are XML: [`super::xml`].)

use super::{DecodeError, time};
use auth::sigv4::unescape;
use aws_schema::{Kind, Member, Service, ShapeId, Structure};
use ecs_model::refusal::refuse_if;
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;

/// Parameters of one call: far more than any call has.
const PARAMETERS_MAX: usize = 20_000;
/// Dots in one name: no input is nested deeper.
const DEPTH_MAX: usize = 40;

/// A tree of parameters: `A.B.1` is three levels.
#[derive(Debug, Default)]
pub struct Node {
    value: Option<String>,
    children: BTreeMap<String, Node>,
}

impl Node {
    /// The value of a top-level parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.children.get(name)?.value.as_deref()
    }

    fn child(&self, name: &str) -> Option<&Node> {
        self.children.get(name)
    }

    /// Numbered children in the order of their numbers.
    fn numbered(&self) -> Vec<&Node> {
        let mut list: Vec<(u64, &Node)> =
            self.children.iter().filter_map(|(k, n)| Some((k.parse().ok()?, n))).collect();
        list.sort_by_key(|(number, _)| *number);
        list.into_iter().map(|(_, node)| node).collect()
    }
}

/// The parameters of a call, from its query and its form.
///
/// # Errors
/// Too many, too deep, or no text.
pub fn parameters(query: &str, body: &[u8]) -> Result<Node, DecodeError> {
    let body = std::str::from_utf8(body).map_err(|_| DecodeError::new("the body is not UTF-8"))?;
    let mut root = Node::default();
    let pairs = query.split('&').chain(body.trim_end().split('&')).filter(|p| !p.is_empty());
    for (count, pair) in pairs.enumerate() {
        refuse_if(count >= PARAMETERS_MAX, || DecodeError::new("too many parameters"))?;
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = unescape(name);
        if name.split('.').count() > DEPTH_MAX {
            return Err(DecodeError::new("a parameter is nested too deeply"));
        }
        let node = name.split('.').fold(&mut root, |n, part| n.children.entry(part.into()).or_default());
        node.value = Some(unescape(value));
    }
    Ok(root)
}

/// What a walk over the tree needs to know.
struct Walk<'a> {
    service: &'a Service,
    ec2: bool,
}

/// The document of a form.
pub(super) fn input(service: &Service, shape: ShapeId, form: &Node, ec2: bool) -> Result<Value, DecodeError> {
    let walk = Walk { service, ec2 };
    let Some(structure) = service.structure(shape) else { return Ok(Value::Object(Map::new())) };
    walk.structure(structure, form)
}

impl Walk<'_> {
    fn structure(&self, structure: &Structure, node: &Node) -> Result<Value, DecodeError> {
        let mut out = Map::new();
        for member in &structure.members {
            let Some(child) = self.member(node, member) else { continue };
            if let Some(value) = self.value(member.shape, child, member.name)? {
                out.insert(member.name.into(), value);
            }
        }
        Ok(Value::Object(out))
    }

    fn member<'n>(&self, node: &'n Node, member: &Member) -> Option<&'n Node> {
        if !self.ec2 {
            return node.child(member.wire).or_else(|| node.child(member.name));
        }
        let upper = |name: &str| {
            let mut letters = name.chars();
            letters.next().map(|c| c.to_uppercase().chain(letters).collect::<String>()).unwrap_or_default()
        };
        let query = Some(member.query).filter(|q| !q.is_empty()).and_then(|q| node.child(q));
        query.or_else(|| node.child(&upper(member.wire))).or_else(|| node.child(&upper(member.name)))
    }

    fn value(&self, shape: ShapeId, node: &Node, at: &str) -> Result<Option<Value>, DecodeError> {
        match &self.service.shape(shape).kind {
            Kind::Structure(structure) => match node.children.is_empty() {
                true => Ok(node.value.as_ref().map(|_| Value::Object(Map::new()))),
                false => self.structure(structure, node).map(Some),
            },
            Kind::List { member, item, .. } => {
                let inner = [*item, "member", "item"].into_iter().find_map(|n| node.child(n));
                let nodes = inner.unwrap_or(node).numbered();
                if nodes.is_empty() && node.value.as_deref() != Some("") {
                    return Ok(None);
                }
                let values =
                    nodes.into_iter().map(|n| self.value(*member, n, at)).collect::<Result<Vec<_>, _>>()?;
                Ok(Some(Value::Array(values.into_iter().flatten().collect())))
            }
            Kind::Map { value, names, .. } => self.map(*value, *names, node, at),
            kind => node.value.as_deref().map(|text| scalar(kind, text, at)).transpose(),
        }
    }

    fn map(
        &self,
        shape: ShapeId,
        (key, value): (&str, &str),
        node: &Node,
        at: &str,
    ) -> Result<Option<Value>, DecodeError> {
        let named = |wire: &'static str, name: &str| {
            if name.is_empty() { wire.to_string() } else { name.to_string() }
        };
        let (key, value) = (named("key", key), named("value", value));
        let mut out = Map::new();
        for entry in node.child("entry").unwrap_or(node).numbered() {
            let Some(key) = entry.get(&key) else { continue };
            let of = entry.child(&value).map(|n| self.value(shape, n, at)).transpose()?.flatten();
            out.insert(key.to_string(), of.unwrap_or_default());
        }
        Ok(Some(Value::Object(out)))
    }
}

fn scalar(kind: &Kind, text: &str, at: &str) -> Result<Value, DecodeError> {
    let unfit = || DecodeError::at(format!("'{text}' is not a valid value"), at);
    Ok(match kind {
        Kind::Integer => Value::from(text.trim().parse::<i32>().map_err(|_| unfit())?),
        Kind::Long => Value::from(text.trim().parse::<i64>().map_err(|_| unfit())?),
        Kind::Float | Kind::Double => {
            let number = text.trim().parse::<f64>().map_err(|_| unfit())?;
            Number::from_f64(number).map(Value::Number).ok_or_else(unfit)?
        }
        Kind::Boolean => match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Value::Bool(true),
            "false" | "0" => Value::Bool(false),
            _ => return Err(unfit()),
        },
        Kind::Timestamp(_) => time::parse(text).ok_or_else(unfit)?,
        _ => Value::from(text),
    })
}
