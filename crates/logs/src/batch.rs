//! What a batch of events must look like: CloudWatch Logs' rules for `PutLogEvents`. Pure.

use crate::record::MESSAGE_MAX;
use crate::scan::EVENT_OVERHEAD;
use std::ops::Range;

/// Events in a batch.
pub const EVENTS_MAX: usize = 10_000;
/// Bytes of a batch, each event counted with its overhead.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Older events are rejected.
const OLD_MS: u64 = 14 * DAY_MS;
/// Events further in the future are rejected.
const NEW_MS: u64 = 2 * 3600 * 1000;

/// Why a batch is refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Not by time.
    #[error("Log events in a single PutLogEvents request must be in chronological order.")]
    Order,
    /// Too long a time.
    #[error("The batch of log events in a single PutLogEvents request cannot span more than 24 hours.")]
    Span,
    /// Too many bytes.
    #[error("Upload too large: {0} bytes exceeds limit of 1048576")]
    Size(usize),
    /// One event is too large.
    #[error("Log event too large: {0} bytes exceeds limit of 1048576")]
    Event(usize),
}

/// The events of a batch that are taken, and which are not. Indexes as `rejectedLogEventsInfo` has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Taken.
    pub taken: Range<usize>,
    /// The first event that is too far in the future.
    pub too_new_from: Option<usize>,
    /// One past the last event that is too old.
    pub too_old_until: Option<usize>,
    /// One past the last event that the group's retention has passed.
    pub expired_until: Option<usize>,
}

/// Checks a batch of (time, message bytes) at `now_ms`.
///
/// # Errors
/// A rule that refuses all of it.
pub fn check(events: &[(u64, usize)], now_ms: u64, retention_ms: Option<u64>) -> Result<Checked, BatchError> {
    let bytes: usize = events.iter().map(|(_, length)| length + EVENT_OVERHEAD).sum();
    if let Some((_, length)) = events.iter().find(|(_, length)| *length > MESSAGE_MAX) {
        return Err(BatchError::Event(*length));
    }
    if bytes > BATCH_BYTES_MAX {
        return Err(BatchError::Size(bytes));
    }
    if events.windows(2).any(|pair| pair[0].0 > pair[1].0) {
        return Err(BatchError::Order);
    }
    let time = |event: Option<&(u64, usize)>| event.map_or(0, |(time, _)| *time);
    if time(events.last()) - time(events.first()) > DAY_MS {
        return Err(BatchError::Span);
    }
    let before = |limit_ms: u64| events.partition_point(|(time, _)| *time < limit_ms);
    let some = |count: usize| (count > 0).then_some(count);
    let old = before(now_ms.saturating_sub(OLD_MS));
    let expired = retention_ms.map_or(0, |kept| before(now_ms.saturating_sub(kept)));
    let new = events.partition_point(|(time, _)| *time <= now_ms + NEW_MS);
    Ok(Checked {
        taken: old.max(expired)..new.max(old.max(expired)),
        too_new_from: (new < events.len()).then_some(new),
        too_old_until: some(old),
        expired_until: some(expired),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 100 * DAY_MS;

    #[test]
    fn rules() {
        let of = |times: &[u64]| check(&times.iter().map(|t| (*t, 1)).collect::<Vec<_>>(), NOW, Some(DAY_MS));
        assert_eq!(of(&[2, 1]), Err(BatchError::Order));
        assert_eq!(of(&[1, 2 + DAY_MS]), Err(BatchError::Span));
        assert_eq!(check(&[(NOW, 1 << 20)], NOW, None), Err(BatchError::Size((1 << 20) + 26)));
        assert_eq!(check(&[(NOW, (1 << 20) + 1)], NOW, None), Err(BatchError::Event((1 << 20) + 1)));
        let late = NOW - DAY_MS - 5;
        let taken = of(&[late, NOW - 20, NOW - 10]).unwrap();
        assert_eq!((taken.taken, taken.expired_until, taken.too_old_until), (1..3, Some(1), None));
        let new = of(&[NOW, NOW + NEW_MS, NOW + NEW_MS + 1]).unwrap();
        assert_eq!((new.taken, new.too_new_from), (0..2, Some(2)));
        let old = of(&[5, 6]).unwrap();
        assert_eq!((old.taken, old.too_old_until, old.expired_until), (2..2, Some(2), Some(2)));
    }
}
