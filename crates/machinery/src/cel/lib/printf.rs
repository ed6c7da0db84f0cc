//! `"…%s…".format([…])`.

use super::core;
use crate::cel::value::{EvalError, Value};

/// Digits behind the point that may be asked for.
const PRECISION_MAX: usize = 100;

/// The text with its clauses filled in.
pub fn format(text: &str, args: &Value) -> Result<String, EvalError> {
    let Value::List(args) = args else { return Err(EvalError::no_such_overload()) };
    let (mut out, mut next, mut chars) = (String::new(), 0, text.chars().peekable());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut precision = None;
        if chars.next_if_eq(&'.').is_some() {
            let mut digits = 0usize;
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits = (digits * 10 + digit as usize - '0' as usize).min(PRECISION_MAX + 1);
            }
            if digits > PRECISION_MAX {
                return Err(EvalError::failed("precision too large"));
            }
            precision = Some(digits);
        }
        let verb = chars.next().ok_or_else(|| EvalError::failed("unexpected end of string"))?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let arg = args.get(next).ok_or_else(|| EvalError::failed(format!("index {next} out of range")))?;
        next += 1;
        out.push_str(&clause(verb, precision, arg)?);
    }
    Ok(out)
}

fn clause(verb: char, precision: Option<usize>, arg: &Value) -> Result<String, EvalError> {
    let wrong = |kinds: &str| {
        let found = arg.type_name();
        EvalError::failed(format!("error during formatting: {kinds} can only be converted from {found}"))
    };
    let number = match arg {
        Value::Double(d) => Some(*d),
        Value::Int(n) => Some(*n as f64),
        Value::Uint(n) => Some(*n as f64),
        _ => None,
    };
    match (verb, arg) {
        ('s', _) => Ok(shown(arg, false)),
        ('d', Value::Int(_) | Value::Uint(_)) => core::text(arg),
        ('d', Value::Double(d)) if !d.is_finite() => core::text(arg),
        ('f', _) => {
            let number = number.ok_or_else(|| wrong("fixed-point clause"))?;
            Ok(format!("{number:.*}", precision.unwrap_or(6)))
        }
        ('e', _) => {
            let number = number.ok_or_else(|| wrong("scientific clause"))?;
            let text = format!("{number:.*e}", precision.unwrap_or(6));
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            Ok(format!("{mantissa}e{sign}{digits:0>2}"))
        }
        ('b', Value::Bool(b)) => Ok(u8::from(*b).to_string()),
        ('b' | 'o' | 'x' | 'X', Value::Int(n)) => {
            let digits = radix(verb, n.unsigned_abs());
            Ok(if *n < 0 { format!("-{digits}") } else { digits })
        }
        ('b' | 'o' | 'x' | 'X', Value::Uint(n)) => Ok(radix(verb, *n)),
        ('x' | 'X', Value::Bytes(_) | Value::String(_)) => {
            let bytes = match arg {
                Value::Bytes(bytes) => bytes.to_vec(),
                other => other.as_str().unwrap_or_default().as_bytes().to_vec(),
            };
            let hex = |b: &u8| if verb == 'x' { format!("{b:02x}") } else { format!("{b:02X}") };
            Ok(bytes.iter().map(hex).collect())
        }
        ('d' | 'b' | 'o' | 'x' | 'X', _) => Err(wrong("integer clause")),
        (other, _) => Err(EvalError::failed(format!(
            "could not parse formatting clause: unrecognized formatting clause {other:?}"
        ))),
    }
}

fn radix(verb: char, n: u64) -> String {
    match verb {
        'b' => format!("{n:b}"),
        'o' => format!("{n:o}"),
        'x' => format!("{n:x}"),
        _ => format!("{n:X}"),
    }
}

/// `%s` of anything; texts inside of lists and maps are quoted by nothing, as upstream's.
fn shown(value: &Value, _inside: bool) -> String {
    match value {
        Value::List(items) => {
            let all: Vec<String> = items.iter().map(|i| shown(i, true)).collect();
            format!("[{}]", all.join(", "))
        }
        Value::Map(map) => {
            let all: Vec<String> =
                map.iter().map(|(k, v)| format!("{}: {}", shown(&k.value(), true), shown(v, true))).collect();
            format!("{{{}}}", all.join(", "))
        }
        Value::Optional(_) => String::new(),
        other => core::text(other).unwrap_or_else(|_| other.type_name().to_string()),
    }
}
