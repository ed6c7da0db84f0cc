//! MessagePack, as far as the forward protocol of Fluentd needs it. Pure.

/// Appends a text.
pub(super) fn text(out: &mut Vec<u8>, text: &str) {
    head(out, text.len(), &[(0x20, 0xa0, 0), (1 << 8, 0xd9, 1), (1 << 16, 0xda, 2), (1 << 32, 0xdb, 4)]);
    out.extend_from_slice(text.as_bytes());
}

/// Appends the head of a list.
pub(super) fn list(out: &mut Vec<u8>, length: usize) {
    head(out, length, &[(0x10, 0x90, 0), (1 << 16, 0xdc, 2), (1 << 32, 0xdd, 4)]);
}

/// Appends the head of a map.
pub(super) fn map(out: &mut Vec<u8>, length: usize) {
    head(out, length, &[(0x10, 0x80, 0), (1 << 16, 0xde, 2), (1 << 32, 0xdf, 4)]);
}

/// Appends a time in Fluentd's own type: seconds and nanoseconds.
pub(super) fn event_time(out: &mut Vec<u8>, time_ms: u64) {
    out.extend_from_slice(&[0xd7, 0]);
    out.extend_from_slice(&u32::try_from(time_ms / 1000).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&((time_ms % 1000) as u32 * 1_000_000).to_be_bytes());
}

/// The first form whose limit (exclusive) holds: (limit, marker, bytes of length; 0: the length is in the marker).
fn head(out: &mut Vec<u8>, length: usize, forms: &[(u64, u8, usize)]) {
    let form = forms.iter().find(|(limit, ..)| (length as u64) < *limit);
    let (_, marker, bytes) = form.expect("lengths are bounded by the size of a batch");
    match bytes {
        0 => out.push(marker | length as u8),
        n => {
            out.push(*marker);
            out.extend_from_slice(&(length as u32).to_be_bytes()[4 - n..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let of = |build: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            build(&mut out);
            out
        };
        assert_eq!(of(&|o| text(o, "ab")), b"\xa2ab");
        assert_eq!(of(&|o| text(o, &"x".repeat(40)))[..2], [0xd9, 40]);
        assert_eq!(of(&|o| text(o, &"x".repeat(300)))[..3], [0xda, 1, 44]);
        assert_eq!(of(&|o| text(o, &"x".repeat(70_000)))[..5], [0xdb, 0, 1, 0x11, 0x70]);
        assert_eq!(of(&|o| list(o, 3)), [0x93]);
        assert_eq!(of(&|o| list(o, 16)), [0xdc, 0, 16]);
        assert_eq!(of(&|o| map(o, 15)), [0x8f]);
        assert_eq!(of(&|o| event_time(o, 1_500)), [0xd7, 0, 0, 0, 0, 1, 0x1d, 0xcd, 0x65, 0]);
    }
}
