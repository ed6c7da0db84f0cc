//! `resource.Quantity`: exact fixed-point numbers with Kubernetes' suffixes and canonical form.
//!
//! A quantity is a whole number of nanos in an `i128`; magnitudes are capped at 2^63-1 units and
//! finer fractions round away from zero, as upstream's are. No floats.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
/// Upstream caps magnitudes at `i64::MAX` units.
const UNITS_MAX: i128 = i64::MAX as i128;
const NANOS_MAX: i128 = UNITS_MAX * NANO;
/// Longer numbers than this are no quantities anybody writes; bounds the parse.
const TEXT_MAX: usize = 512;

/// How a quantity was written, which is how it is printed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `Ki`, `Mi`, …
    Binary,
    /// `m`, `k`, `M`, …
    Decimal,
    /// `e3`
    Exponent,
}

/// An amount of a resource.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the right form at all.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number is none.
    #[error("unable to parse quantity's value")]
    Numeric,
    /// The suffix is unknown.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// The factor of a suffix: a power of two or of ten.
enum Factor {
    Two(u32),
    Ten(i32),
}

fn suffix(text: &str) -> Result<(Format, Factor), QuantityError> {
    if let Some((_, e)) = BINARY.iter().find(|(s, _)| *s == text) {
        return Ok((Format::Binary, Factor::Two(*e)));
    }
    if let Some((_, e)) = DECIMAL.iter().find(|(s, _)| *s == text) {
        return Ok((Format::Decimal, Factor::Ten(*e)));
    }
    let digits = text.strip_prefix(['e', 'E']).filter(|d| !d.is_empty()).ok_or(QuantityError::Suffix)?;
    let exponent: i32 = digits.parse().map_err(|_| QuantityError::Suffix)?;
    Ok((Format::Exponent, Factor::Ten(exponent)))
}

impl Quantity {
    /// Zero.
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::Decimal };

    /// A whole number of units, printed with decimal suffixes.
    pub fn from_units(units: i64) -> Self {
        Quantity { nanos: i128::from(units) * NANO, format: Format::Decimal }
    }

    /// A whole number of thousandths.
    pub fn from_milli(milli: i64) -> Self {
        Quantity { nanos: i128::from(milli) * (NANO / 1000), format: Format::Decimal }
    }

    /// A whole number of billionths.
    pub fn from_nanos(nanos: i64) -> Self {
        Quantity { nanos: nanos.into(), format: Format::Decimal }
    }

    /// A whole number of bytes, printed with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Quantity { nanos: i128::from(bytes) * NANO, format: Format::Binary }
    }

    /// Units, rounded away from zero.
    pub fn units(&self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths, rounded away from zero; saturates.
    pub fn milli(&self) -> i64 {
        self.scaled(NANO / 1000)
    }

    fn scaled(&self, unit: i128) -> i64 {
        let magnitude = (self.nanos.abs() + unit - 1) / unit;
        let value = i64::try_from(magnitude).unwrap_or(i64::MAX);
        if self.nanos < 0 { -value } else { value }
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// Is it a whole number of units?
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// Rounds away from zero to whole thousandths (what defaulting does to resource lists).
    #[must_use]
    pub fn rounded_to_milli(self) -> Self {
        let unit = NANO / 1000;
        let magnitude = (self.nanos.abs() + unit - 1) / unit * unit;
        Quantity { nanos: magnitude.min(NANOS_MAX) * self.nanos.signum(), ..self }
    }

    /// Sum; saturates. The format is that of `self`, or of `other` when `self` is zero.
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "saturating and format-keeping: not what `+` promises")]
    pub fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Quantity { nanos: (self.nanos + other.nanos).clamp(-NANOS_MAX, NANOS_MAX), format }
    }

    /// The least of `min`, `min + step`, `min + 2 * step`, … that is not less; without a step only `min` counts.
    #[must_use]
    pub fn stepped(self, min: Self, step: Option<Self>) -> Self {
        if self <= min {
            return min;
        }
        let Some(step) = step.filter(|s| s.nanos > 0) else { return self };
        let steps = (self.nanos - min.nanos + step.nanos - 1) / step.nanos;
        let nanos = steps.checked_mul(step.nanos).map_or(NANOS_MAX, |n| (n + min.nanos).min(NANOS_MAX));
        Quantity { nanos, ..self }
    }

    /// Difference; see [`Quantity::add`].
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "saturating and format-keeping: not what `-` promises")]
    pub fn sub(self, other: Self) -> Self {
        self.add(Quantity { nanos: -other.nanos, ..other })
    }

    /// From JSON: a string, or a number as upstream's decoder reads one.
    pub fn from_json(value: &serde_json::Value) -> Option<Result<Self, QuantityError>> {
        match value {
            serde_json::Value::String(s) => Some(s.trim().parse()),
            serde_json::Value::Number(n) => Some(n.to_string().parse()),
            _ => None,
        }
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() || text.len() > TEXT_MAX {
            return Err(QuantityError::Format);
        }
        let (negative, body) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
        let (number, tail) = body.split_at(end);
        let letters = tail.find(|c: char| !"eEinumkKMGTP".contains(c)).unwrap_or(tail.len());
        let digits = tail[letters..].strip_prefix(['+', '-']).unwrap_or(&tail[letters..]);
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(QuantityError::Format);
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        if whole.is_empty() && fraction.is_empty() {
            return Err(if number.is_empty() { QuantityError::Format } else { QuantityError::Numeric });
        }
        let (mut format, factor) = suffix(tail)?;
        let magnitude = nanos(whole, fraction, &factor);
        if format == Format::Binary && magnitude > 0 && magnitude < NANO {
            format = Format::Decimal;
        }
        Ok(Quantity { nanos: if negative { -magnitude } else { magnitude }, format })
    }
}

/// Multiplies `whole.fraction` out to nanos: rounds up below, caps above.
fn nanos(whole: &str, fraction: &str, factor: &Factor) -> i128 {
    let fraction = fraction.trim_end_matches('0');
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
    let Some(first) = digits.iter().position(|&d| d != 0) else {
        return 0;
    };
    let digits = &digits[first..];
    let (shift, twos) = match factor {
        Factor::Ten(e) => (*e, 0),
        Factor::Two(e) => (0, *e),
    };
    // value = digits × 10^ten nanos × 2^twos
    let ten = i64::from(shift) - fraction.len() as i64 + 9;
    let size = digits.len() as i64 + ten;
    if size > 40 {
        return NANOS_MAX;
    }
    // Digits far below a nano only decide whether to round up.
    let keep = if ten < 0 {
        (digits.len() as i64 + ten + 20).clamp(0, digits.len() as i64) as usize
    } else {
        digits.len()
    };
    let rest = digits[keep..].iter().any(|&d| d != 0);
    let ten = ten + (digits.len() - keep) as i64;
    scale(&digits[..keep], ten, twos, rest)
}

/// `digits × 10^ten × 2^twos`, rounded up, capped; `rest`: something non-zero was cut off behind.
fn scale(digits: &[u8], ten: i64, twos: u32, rest: bool) -> i128 {
    // A big number in base 10^9 limbs keeps this exact and short; sizes are bounded by TEXT_MAX.
    let mut limbs: Vec<u64> = vec![0];
    let step = |limbs: &mut Vec<u64>, multiply: u64, add: u64| {
        let mut carry = add;
        for limb in limbs.iter_mut() {
            let n = *limb * multiply + carry;
            *limb = n % 1_000_000_000;
            carry = n / 1_000_000_000;
        }
        if carry > 0 {
            limbs.push(carry);
        }
    };
    for &d in digits {
        step(&mut limbs, 10, u64::from(d));
    }
    for _ in 0..twos {
        step(&mut limbs, 2, 0);
    }
    for _ in 0..ten.max(0) {
        step(&mut limbs, 10, 0);
    }
    let mut up = rest;
    for _ in 0..(-ten).clamp(0, 2 * TEXT_MAX as i64) {
        let mut remainder = 0;
        for limb in limbs.iter_mut().rev() {
            let n = remainder * 1_000_000_000 + *limb;
            *limb = n / 10;
            remainder = n % 10;
        }
        up |= remainder > 0;
    }
    if -ten > 2 * TEXT_MAX as i64 {
        return 1; // something tiny: the smallest amount there is
    }
    let mut value: i128 = 0;
    for limb in limbs.iter().rev() {
        value = value.saturating_mul(1_000_000_000).saturating_add(i128::from(*limb));
    }
    value.saturating_add(i128::from(up)).min(NANOS_MAX)
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that keeps it exact.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let units = self.nanos / NANO;
        if self.format == Format::Binary && self.is_whole() && units.abs() >= 1024 {
            let (mut n, mut power) = (units, 0);
            while n % 1024 == 0 && power < BINARY.len() {
                n /= 1024;
                power += 1;
            }
            let suffix = if power == 0 { "" } else { BINARY[power - 1].0 };
            return write!(f, "{n}{suffix}");
        }
        let (mut n, mut exponent) = (self.nanos, -9);
        while n % 1000 == 0 && exponent < 18 {
            n /= 1000;
            exponent += 3;
        }
        match (self.format, exponent) {
            (Format::Exponent, 0) => write!(f, "{n}"),
            (Format::Exponent, e) => write!(f, "{n}e{e}"),
            (_, e) => {
                let suffix = DECIMAL.iter().find(|(_, x)| *x == e).map_or("", |(s, _)| s);
                write!(f, "{n}{suffix}")
            }
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0", "0"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1.0", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("128Mi", "128Mi"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("1000Ki", "1000Ki"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("1E", "1E"),
            ("1E3", "1e3"),
            ("1000000", "1M"),
            ("512Ki", "512Ki"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("0.0001Ki", "102400u"),
            ("-1", "-1"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("123456789", "123456789"),
            ("1e-3", "1e-3"),
            ("100Ei", "9223372036854775807"),
            ("1e100", "9223372036854775807e0"),
            ("9223372036854775807", "9223372036854775807"),
            ("1e-1000", "1e-9"),
            ("8Ei", "9223372036854775807"),
            ("00012", "12"),
            ("0.30", "300m"),
        ] {
            let canonical = canonical.trim_end_matches("e0");
            assert_eq!(q(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn refusals() {
        for (text, e) in [
            ("", QuantityError::Format),
            ("a", QuantityError::Format),
            ("1.2.3", QuantityError::Format),
            ("1Kii", QuantityError::Suffix),
            ("1mm", QuantityError::Suffix),
            ("1 ", QuantityError::Format),
            (".", QuantityError::Numeric),
            ("1K", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1ki", QuantityError::Suffix),
            ("+", QuantityError::Format),
            ("1m5", QuantityError::Suffix),
        ] {
            assert_eq!(text.parse::<Quantity>().unwrap_err(), e, "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        assert_eq!(q("100m").add(q("1")).milli(), 1100);
        assert_eq!(q("1").sub(q("100m")).to_string(), "900m");
        assert_eq!(q("1001u").units(), 1);
        assert_eq!(q("1001u").milli(), 2);
        assert_eq!(q("-1001u").milli(), -2);
        assert_eq!(q("100Ei").add(q("100Ei")).units(), i64::MAX);
        assert_eq!(q("100Ei").milli(), i64::MAX);
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("1000m"), q("1"));
        assert_eq!(q("1u").rounded_to_milli().to_string(), "1m");
        assert_eq!(Quantity::from_bytes(1 << 30).to_string(), "1Gi");
    }

    proptest! {
        #[test]
        fn canonical_is_a_fixed_point(text in "[-+]?[0-9]{1,30}(\\.[0-9]{0,30})?(|n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e-?[0-9]{1,3})") {
            let value = q(&text);
            let canonical = value.to_string();
            prop_assert_eq!(q(&canonical), value);
            prop_assert_eq!(q(&canonical).to_string(), canonical);
        }

        #[test]
        fn never_panics(text in ".{0,20}") {
            let _ = text.parse::<Quantity>();
        }

        /// Dumb twin: numbers small enough for i128.
        #[test]
        fn agrees_with_plain_integers(whole in 0u32.., frac in 0u32..1_000_000, neg: bool) {
            let text = format!("{}{whole}.{frac:06}", if neg { "-" } else { "" });
            let nanos = (i128::from(whole) * NANO + i128::from(frac) * 1000) * if neg { -1 } else { 1 };
            prop_assert_eq!(q(&text).nanos, nanos);
        }
    }
}
