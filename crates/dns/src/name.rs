//! Domain names in wire form. Pure.
//!
//! Invariants: a [`Name`] is lower case, at most 255 bytes, ends with the root label, and every label has
//! 1–63 bytes; so equality of bytes is equality of names (RFC 1035 §3.1, RFC 4343).
//! Deliberately not here: international names (they come as ASCII already).

use std::fmt;

const NAME_MAX: usize = 255;
const LABEL_MAX: usize = 63;
const POINTER: u8 = 0xc0;

/// A domain name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Vec<u8>);

impl Name {
    /// Reads `a.b.c` or `a.b.c.`; `None` if a label or the whole is empty or too long.
    pub fn parse(text: &str) -> Option<Self> {
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.strip_suffix('.').unwrap_or(text).split('.') {
            push_label(&mut wire, label.as_bytes())?;
        }
        wire.push(0);
        (wire.len() <= NAME_MAX).then_some(Self(wire))
    }

    /// The name with a label in front.
    pub fn child(&self, label: &str) -> Option<Self> {
        let mut wire = Vec::with_capacity(label.len() + 1 + self.0.len());
        push_label(&mut wire, label.as_bytes())?;
        wire.extend_from_slice(&self.0);
        (wire.len() <= NAME_MAX).then_some(Self(wire))
    }

    /// The name without its first label; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        let first = usize::from(self.0[0]);
        (first > 0).then(|| Self(self.0[first + 1..].to_vec()))
    }

    /// The labels, first to last, without the root.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (len, tail) = rest.split_first()?;
            let label = tail.get(..usize::from(*len)).filter(|label| !label.is_empty())?;
            rest = &tail[label.len()..];
            Some(label)
        })
    }

    /// Whether this is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        let (mut rest, mut labels) = (&self.0[..], self.labels());
        loop {
            if rest == other.0 {
                return true;
            }
            let Some(label) = labels.next() else { return false };
            rest = &rest[label.len() + 1..];
        }
    }

    /// The wire form.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// Reads a name at `*at` and moves `*at` behind it. Compression pointers must point backwards, so that
    /// reading ends. `None` if it is malformed.
    pub(crate) fn read(message: &[u8], at: &mut usize) -> Option<Self> {
        let (mut wire, mut position, mut limit, mut jumped) = (Vec::new(), *at, *at, false);
        loop {
            let len = *message.get(position)?;
            match len {
                0 => break,
                1..=63 => {
                    push_label(&mut wire, message.get(position + 1..position + 1 + usize::from(len))?)?;
                    position += 1 + usize::from(len);
                }
                _ if len & POINTER == POINTER => {
                    let low = *message.get(position + 1)?;
                    let target = (usize::from(len & !POINTER) << 8) | usize::from(low);
                    if target >= limit {
                        return None;
                    }
                    if !jumped {
                        *at = position + 2;
                    }
                    (position, limit, jumped) = (target, target, true);
                }
                _ => return None,
            }
            if wire.len() >= NAME_MAX {
                return None;
            }
        }
        if !jumped {
            *at = position + 1;
        }
        wire.push(0);
        Some(Self(wire))
    }
}

fn push_label(wire: &mut Vec<u8>, label: &[u8]) -> Option<()> {
    let len = u8::try_from(label.len()).ok().filter(|len| (1..=LABEL_MAX).contains(&usize::from(*len)))?;
    wire.push(len);
    wire.extend(label.iter().map(u8::to_ascii_lowercase));
    Some(())
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in self.labels() {
            write!(f, "{}.", label.escape_ascii())?;
        }
        if self.0.len() == 1 { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_compare_and_nest() {
        let name = Name::parse("Web.Default.svc.cluster.local.").unwrap();
        assert_eq!(name.to_string(), "web.default.svc.cluster.local.");
        let domain = Name::parse("cluster.local").unwrap();
        assert!(name.is_within(&domain) && domain.is_within(&domain) && !domain.is_within(&name));
        assert!(!Name::parse("xcluster.local").unwrap().is_within(&domain));
        assert_eq!(domain.child("a").and_then(|child| child.parent()), Some(domain));
        for bad in ["", ".", "a..b", &"x".repeat(64), &"abc.".repeat(64)] {
            assert_eq!(Name::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn pointers_point_backwards_only() {
        // "a" at 0, then a pointer to it behind "b".
        let message = [1, b'A', 0, 1, b'b', 0xc0, 0, 9];
        let mut at = 3;
        assert_eq!(Name::read(&message, &mut at), Name::parse("b.a"));
        assert_eq!(at, 7);
        for looping in [&[0xc0, 0][..], &[1, b'a', 0xc0, 0], &[0xc0, 2, 0xc0, 0]] {
            assert_eq!(Name::read(looping, &mut 0), None, "{looping:?}");
        }
    }

    proptest! {
        #[test]
        fn reading_survives_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0usize..600) {
            let mut end = at;
            if let Some(name) = Name::read(&bytes, &mut end) {
                prop_assert!(name.wire().len() <= NAME_MAX && end > at && end <= bytes.len());
                prop_assert_eq!(Name::read(name.wire(), &mut 0), Some(name));
            }
        }
    }
}
