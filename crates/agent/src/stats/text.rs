//! Prometheus' text format.

use std::fmt::{Display, Write};

/// Series, family by family.
#[derive(Default)]
pub struct Text(String);

impl Text {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample, with its moment where that is known.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display, at_ms: Option<i64>) {
        self.0.push_str(name);
        for (place, (key, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{key}=\"{value}\"", if place == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = write!(self.0, "{end} {value}");
        if let Some(at) = at_ms {
            let _ = write!(self.0, " {at}");
        }
        self.0.push('\n');
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value, None);
    }

    /// All of it.
    pub fn finish(self) -> String {
        self.0
    }
}

/// Nanoseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "exact to a nanosecond for 100 days, then to a few")]
pub fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// A moment in nanoseconds since the epoch as seconds: to the millisecond, which a float holds.
#[expect(clippy::cast_precision_loss, reason = "milliseconds since the epoch are exact in a float")]
pub fn moment(nanos: i64) -> f64 {
    (nanos / 1_000_000) as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_quoted() {
        let mut text = Text::default();
        text.single("a", "gauge", "A.", 1.5);
        text.sample("b", &[("x", "1\"\\"), ("y", "")], 2, Some(7));
        assert_eq!(text.finish(), "# HELP a A.\n# TYPE a gauge\na 1.5\nb{x=\"1\\\"\\\\\",y=\"\"} 2 7\n");
    }
}
