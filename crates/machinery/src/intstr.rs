//! `intstr.IntOrString`: a number, or a string that is a name or a percentage.

use serde_json::Value;

/// Either form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntOrString {
    /// A number.
    Int(i32),
    /// A string.
    Str(String),
}

impl IntOrString {
    /// Reads JSON; `None` when it is neither a 32-bit integer nor a string.
    pub fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::String(s) => Some(IntOrString::Str(s.clone())),
            Value::Number(n) => n.as_i64().and_then(|n| i32::try_from(n).ok()).map(IntOrString::Int),
            _ => None,
        }
    }

    /// A number as it is, a percentage of `total` rounded up or down; `None` for another string.
    pub fn scaled(&self, total: i32, round_up: bool) -> Option<i32> {
        match self {
            IntOrString::Int(n) => Some(*n),
            IntOrString::Str(_) => {
                let product = i64::from(self.percent()?) * i64::from(total);
                let rounded = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
                Some(i32::try_from(rounded).unwrap_or(i32::MAX))
            }
        }
    }

    /// The percentage, when it is one.
    pub fn percent(&self) -> Option<i32> {
        match self {
            IntOrString::Str(s) => s.strip_suffix('%')?.parse().ok(),
            IntOrString::Int(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn percentages() {
        let p = |v: Value, total, up| IntOrString::from_json(&v).unwrap().scaled(total, up);
        assert_eq!(p(json!(3), 10, true), Some(3));
        assert_eq!(p(json!("25%"), 10, true), Some(3));
        assert_eq!(p(json!("25%"), 10, false), Some(2));
        assert_eq!(p(json!("http"), 10, false), None);
        assert_eq!(IntOrString::from_json(&json!(1.5)), None);
        assert_eq!(IntOrString::from_json(&json!(5_000_000_000_i64)), None);
    }
}
