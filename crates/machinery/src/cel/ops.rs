//! Fields, entries, and what walks make: the parts of evaluation that need no evaluator.

use super::ast::Walk;
use super::value::{EvalError, Key, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

fn entry<'a>(of: &'a Value, field: &str) -> Result<Option<&'a Value>, EvalError> {
    match of {
        Value::Map(map) => Ok(map.get(&Key::String(field.into())).or_else(|| map.get(&Key::Any))),
        other => {
            Err(EvalError::failed(format!("unsupported type '{}' for field selection", other.type_name())))
        }
    }
}

/// `of.field`
pub fn select(of: &Value, field: &str) -> Result<Value, EvalError> {
    if let Value::Optional(inner) = of {
        return match inner {
            Some(value) => select_optional(value, field),
            None => Ok(Value::NONE),
        };
    }
    entry(of, field)?.cloned().ok_or_else(|| EvalError::failed(format!("no such key: {field}")))
}

/// `of.?field`
pub fn select_optional(of: &Value, field: &str) -> Result<Value, EvalError> {
    match of {
        Value::Optional(None) => Ok(Value::NONE),
        Value::Optional(Some(inner)) => select_optional(inner, field),
        other => Ok(Value::Optional(entry(other, field)?.cloned().map(Arc::new))),
    }
}

/// `has(of.field)`
pub fn has(of: &Value, field: &str) -> Result<bool, EvalError> {
    match of {
        Value::Optional(None) => Ok(false),
        Value::Optional(Some(inner)) => has(inner, field),
        other => Ok(entry(other, field)?.is_some()),
    }
}

/// Index or key, and item, of everything that can be walked over.
pub fn entries(range: &Value) -> Result<Vec<(Value, Value)>, EvalError> {
    match range {
        Value::List(items) => {
            Ok(items.iter().enumerate().map(|(i, v)| (Value::Int(i as i64), v.clone())).collect())
        }
        Value::Map(map) => {
            let real = map.iter().filter(|(k, _)| **k != Key::Any);
            Ok(real.map(|(k, v)| (k.value(), v.clone())).collect())
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

/// What a walk has made so far.
pub struct Made {
    walk: Walk,
    count: usize,
    failed: Option<EvalError>,
    decided: bool,
    items: Vec<Value>,
    keys: Vec<Value>,
    map: BTreeMap<Key, Value>,
}

impl Made {
    /// Nothing yet.
    pub fn new(walk: Walk) -> Self {
        Made {
            walk,
            count: 0,
            failed: None,
            decided: false,
            items: Vec::new(),
            keys: Vec::new(),
            map: BTreeMap::new(),
        }
    }

    /// Takes the body's value for one entry; true when the rest does not matter.
    pub fn take(
        &mut self,
        key: &Value,
        item: &Value,
        body: Result<Value, EvalError>,
    ) -> Result<bool, EvalError> {
        let holds = |body: Result<Value, EvalError>| match body? {
            Value::Bool(b) => Ok(b),
            _ => Err(EvalError::no_such_overload()),
        };
        match self.walk {
            Walk::All | Walk::Exists => match holds(body) {
                Ok(b) => self.decided |= b == (self.walk == Walk::Exists),
                Err(error) => self.failed = Some(self.failed.take().unwrap_or(error)),
            },
            Walk::ExistsOne => self.count += usize::from(holds(body)?),
            Walk::Map | Walk::TransformList => self.items.push(body?),
            Walk::Filter => self.items.extend(holds(body)?.then(|| item.clone())),
            Walk::SortBy => {
                self.keys.push(body?);
                self.items.push(item.clone());
            }
            Walk::TransformMap => self.insert(key, body?)?,
            Walk::TransformMapEntry => {
                let Value::Map(made) = body? else { return Err(EvalError::no_such_overload()) };
                for (key, value) in made.iter() {
                    self.insert(&key.value(), value.clone())?;
                }
            }
        }
        Ok(self.decided)
    }

    fn insert(&mut self, key: &Value, value: Value) -> Result<(), EvalError> {
        let key = key.key().ok_or_else(|| EvalError::failed("unsupported key type"))?;
        match self.map.insert(key.clone(), value) {
            None => Ok(()),
            Some(_) => Err(EvalError::failed(format!("insert failed: key {:?} already exists", key.value()))),
        }
    }

    /// The value of the whole.
    pub fn finish(self) -> Result<Value, EvalError> {
        match self.walk {
            Walk::All | Walk::Exists if self.decided => Ok(Value::Bool(self.walk == Walk::Exists)),
            Walk::All | Walk::Exists => self.failed.map_or(Ok(Value::Bool(self.walk == Walk::All)), Err),
            Walk::ExistsOne => Ok(Value::Bool(self.count == 1)),
            Walk::Map | Walk::TransformList | Walk::Filter => Ok(self.items.into()),
            Walk::SortBy => sorted(self.keys.into_iter().zip(self.items).collect()),
            Walk::TransformMap | Walk::TransformMapEntry => Ok(Value::Map(Arc::new(self.map))),
        }
    }
}

/// The items by their keys, all of which must be of one kind.
pub fn sorted(mut pairs: Vec<(Value, Value)>) -> Result<Value, EvalError> {
    if let Some((first, _)) = pairs.first()
        && pairs.iter().any(|(key, _)| first.order(key).is_none() || first.type_name() != key.type_name())
    {
        return Err(EvalError::failed("list elements must have the same type and be comparable"));
    }
    pairs.sort_by(|a, b| a.0.order(&b.0).unwrap_or(std::cmp::Ordering::Equal));
    Ok(pairs.into_iter().map(|(_, item)| item).collect::<Vec<_>>().into())
}
