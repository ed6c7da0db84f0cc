//! Which write made a value, and what became of a write whose answer was lost.
//!
//! Every value is stored with a mark behind it that no other write has. So a write whose answer was lost is
//! recognised when it is read back, even where somebody else wrote the same bytes.
//! Invariant: a verdict is only given where every history that can have led to what was read back agrees on it.
//! Deliberately not here: reading back and trying again (`mod`).

use super::messages::KeyValue;
use crate::{Expect, TxnOp};
use bytes::Bytes;

/// Opens a mark: a line of its own behind the value.
const OPENING: &[u8] = b"\n~";
/// 16 digits of the writer and 10 of the write, hexadecimal.
const MARK_BYTES: usize = OPENING.len() + 26;

/// The mark of one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark([u8; MARK_BYTES]);

impl Mark {
    /// Of write number `count` of a writer, whose number is random.
    pub fn new(writer: u64, count: u64) -> Self {
        let text = format!("\n~{writer:016x}{:010x}", count & 0xff_ffff_ffff);
        Mark(text.as_bytes().try_into().expect("the digits are counted"))
    }

    /// The value with this mark, as it is stored.
    pub fn behind(&self, value: &[u8]) -> Vec<u8> {
        [value, &self.0].concat()
    }

    fn made(&self, kv: &KeyValue) -> bool {
        kv.value.ends_with(&self.0)
    }
}

/// The value without its mark, as a copy: a slice would keep the whole message alive. What somebody else stored
/// has none and stays as it is.
pub(crate) fn value_of(stored: &[u8]) -> Bytes {
    let (value, mark) = stored.split_at(stored.len().saturating_sub(MARK_BYTES));
    let marked = mark
        .strip_prefix(OPENING)
        .is_some_and(|digits| mark.len() == MARK_BYTES && digits.iter().all(u8::is_ascii_hexdigit));
    Bytes::copy_from_slice(if marked { value } else { stored })
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It went through, and is what stands there.
    Applied,
    /// Not yet; it may be sent again, for it cannot go through twice.
    NotYet,
    /// It did not go through and never will.
    Conflict,
    /// It cannot be told.
    Unknown,
}

/// Judges by what stands under the key now, and by what stood there at the expected revision, where that is known.
pub(crate) fn judge(
    (expect, op): (Expect, &TxnOp),
    mark: &Mark,
    now: Option<&KeyValue>,
    base: Option<&KeyValue>,
) -> Verdict {
    if matches!(op, TxnOp::Put(_)) && now.is_some_and(|now| mark.made(now)) {
        return Verdict::Applied;
    }
    // Only an expected revision rules out that the write goes through later, or went through before others.
    let (Expect::Modified(revision), Some(now)) = (expect, now) else { return Verdict::Unknown };
    if now.modified == revision.0 {
        return Verdict::NotYet;
    }
    let same_life = now.created <= revision.0;
    match op {
        TxnOp::Delete if same_life => Verdict::Conflict,
        // The one write that followed the expected revision is somebody else's.
        TxnOp::Put(_) if same_life && base.is_some_and(|base| base.version + 1 == now.version) => {
            Verdict::Conflict
        }
        _ => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Revision;
    use proptest::prelude::*;

    #[test]
    fn marks_come_off() {
        let mark = Mark::new(u64::MAX, u64::MAX);
        for value in [&b""[..], b"{}", b"\n~", &[0; 100]] {
            let stored = Bytes::from(mark.behind(value));
            assert_eq!(value_of(&stored), value);
            // Only the last one comes off.
            assert_eq!(value_of(&Mark::new(1, 2).behind(&stored)), stored);
        }
        for foreign in [
            "",
            "{\"a\": 1}",
            "a value of somebody else, longer than a mark",
            "\n~0123456789abcdef012345678x",
        ] {
            assert_eq!(value_of(foreign.as_bytes()), foreign);
        }
    }

    /// What somebody does to the key.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Put,
        Delete,
        Ours,
    }

    /// The dumb twin: a key that plays a history.
    struct Key {
        revision: u64,
        now: Option<KeyValue>,
        ours: Option<u64>,
    }

    impl Key {
        fn put(&mut self, value: Vec<u8>) {
            self.revision += 1;
            let fresh = KeyValue { created: self.revision, ..KeyValue::default() };
            let old = self.now.take().unwrap_or(fresh);
            let (modified, version) = (self.revision, old.version + 1);
            self.now = Some(KeyValue { modified, version, value: value.into(), ..old });
        }

        fn step(&mut self, step: Step, (expect, op): (Expect, &TxnOp), mark: &Mark) {
            match step {
                Step::Put => self.put(Mark::new(2, self.revision).behind(b"v")),
                Step::Delete if self.now.is_some() => {
                    self.revision += 1;
                    self.now = None;
                }
                Step::Delete => {}
                Step::Ours => {
                    let holds = match expect {
                        Expect::Any => true,
                        Expect::Absent => self.now.is_none(),
                        Expect::Present => self.now.is_some(),
                        Expect::Modified(revision) => {
                            self.now.as_ref().is_some_and(|now| now.modified == revision.0)
                        }
                    };
                    if holds && self.ours.is_none() {
                        match op {
                            TxnOp::Put(value) => self.put(mark.behind(value)),
                            TxnOp::Delete => self.step(Step::Delete, (expect, op), mark),
                        }
                        self.ours = Some(self.revision);
                    }
                }
            }
        }
    }

    proptest! {
        /// The write arrives at any moment before or after it is read back, or never; others write at any time.
        #[test]
        fn verdicts_hold_in_every_history(
            before in prop::collection::vec(prop_oneof![3 => Just(Step::Put), 1 => Just(Step::Delete)], 0..5),
            after in prop::collection::vec(prop_oneof![Just(Step::Put), Just(Step::Delete)], 0..4),
            arrives in 0usize..8,
            kind in 0..4,
            put in any::<bool>(),
        ) {
            let mark = Mark::new(1, 1);
            let op = if put { TxnOp::Put(Bytes::from_static(b"v")) } else { TxnOp::Delete };
            let mut key = Key { revision: 10, now: None, ours: None };
            for step in before {
                key.step(step, (Expect::Any, &op), &mark);
            }
            let base = key.now.clone();
            let expect = match (kind, &base) {
                (0, _) => Expect::Absent,
                (1, _) => Expect::Present,
                (2, _) => Expect::Any,
                (_, Some(base)) => Expect::Modified(Revision(base.modified)),
                (_, None) => return Ok(()),
            };
            let write = (expect, &op);
            for (n, step) in after.iter().enumerate() {
                if n == arrives {
                    key.step(Step::Ours, write, &mark);
                }
                key.step(*step, write, &mark);
            }
            if arrives == after.len() {
                key.step(Step::Ours, write, &mark);
            }
            let verdict = judge(write, &mark, key.now.as_ref(), base.as_ref());
            let applied = key.ours;
            // It may still arrive after it was read back, after one more step of somebody.
            for last in [Step::Put, Step::Delete] {
                let mut later = Key { revision: key.revision, now: key.now.clone(), ours: None };
                later.step(last, write, &mark);
                later.step(Step::Ours, write, &mark);
                if verdict == Verdict::Conflict || verdict == Verdict::NotYet {
                    prop_assert!(later.ours.is_none(), "it went through after the verdict {:?}", verdict);
                }
            }
            match verdict {
                Verdict::Applied => prop_assert_eq!(applied, key.now.map(|now| now.modified)),
                Verdict::Conflict | Verdict::NotYet => prop_assert_eq!(applied, None),
                Verdict::Unknown => {}
            }
        }
    }
}
