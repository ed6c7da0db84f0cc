//! etcd's requests and answers, only the fields that are used. Names and numbers follow `rpc.proto` and `kv.proto`.
//!
//! Deliberately not here: what a key or a value looks like inside (`mod`, `mark`).

use super::wire::{Field, Malformed, Writer, fields};
use crate::{Expect, TxnOp};
use bytes::Bytes;

/// The full name of a method, as in the path of its URL.
pub(crate) type Method = &'static str;
pub(crate) const RANGE: Method = "/etcdserverpb.KV/Range";
pub(crate) const TXN: Method = "/etcdserverpb.KV/Txn";
pub(crate) const COMPACT: Method = "/etcdserverpb.KV/Compact";
pub(crate) const WATCH: Method = "/etcdserverpb.Watch/Watch";
pub(crate) const STATUS: Method = "/etcdserverpb.Maintenance/Status";

/// A key with its value and history numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyValue {
    pub key: Bytes,
    pub created: u64,
    pub modified: u64,
    /// Counts the writes since the creation, which is 1.
    pub version: u64,
    pub value: Bytes,
}

impl KeyValue {
    fn read(message: Bytes) -> Result<Self, Malformed> {
        let mut kv = KeyValue::default();
        fields(message, |field, value| {
            match field {
                1 => kv.key = value.bytes()?,
                2 => kv.created = value.number()?,
                3 => kv.modified = value.number()?,
                4 => kv.version = value.number()?,
                5 => kv.value = value.bytes()?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(kv)
    }
}

fn header_revision(header: Field) -> Result<u64, Malformed> {
    let mut revision = 0;
    fields(header.bytes()?, |field, value| {
        if field == 3 {
            revision = value.number()?;
        }
        Ok(())
    })?;
    Ok(revision)
}

/// What to read. Reads are linearizable: `serializable` is never set.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeRequest<'a> {
    pub key: &'a [u8],
    /// Empty: only `key`.
    pub end: &'a [u8],
    /// 0: no limit.
    pub limit: usize,
    /// 0: now.
    pub revision: u64,
    pub count_only: bool,
}

impl RangeRequest<'_> {
    fn writer(&self) -> Writer {
        Writer::default()
            .bytes(1, self.key)
            .bytes(2, self.end)
            .number(3, self.limit as u64)
            .number(4, self.revision)
            .number(9, u64::from(self.count_only))
    }

    pub fn encode(&self) -> Vec<u8> {
        self.writer().finish()
    }
}

/// The newest key of a range that was written after a revision, without its value: `RangeRequest` sorted by
/// modification, descending, limit 1.
pub(crate) fn newest_since(key: &[u8], end: &[u8], after: u64) -> Vec<u8> {
    const DESCENDING: u64 = 2;
    const BY_MODIFICATION: u64 = 3;
    let request = Writer::default().bytes(1, key).bytes(2, end).number(3, 1);
    let request = request.number(5, DESCENDING).number(6, BY_MODIFICATION);
    request.number(8, 1).number(10, after + 1).finish()
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct RangeReply {
    /// The newest revision when it was read.
    pub revision: u64,
    pub kvs: Vec<KeyValue>,
    /// Keys in the range, whatever the limit.
    pub count: u64,
}

impl RangeReply {
    pub fn read(message: Bytes) -> Result<Self, Malformed> {
        let mut reply = RangeReply::default();
        fields(message, |field, value| {
            match field {
                1 => reply.revision = header_revision(value)?,
                2 => reply.kvs.push(KeyValue::read(value.bytes()?)?),
                4 => reply.count = value.number()?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(reply)
    }
}

fn compare(key: &[u8], result: u64, target: u64, value: u64) -> Writer {
    // The field of each target's value stands 4 behind the target's number.
    Writer::default().number(1, result).number(2, target).bytes(3, key).number(4 + target, value)
}

/// One compare-and-swap that reads the key when the precondition does not hold.
pub(crate) fn txn(key: &[u8], expect: Expect, op: &TxnOp, stored: &[u8]) -> Vec<u8> {
    const EQUAL: u64 = 0;
    const GREATER: u64 = 1;
    const VERSION: u64 = 0;
    const MODIFIED: u64 = 2;
    let compares = match expect {
        Expect::Any => vec![],
        Expect::Absent => vec![compare(key, EQUAL, VERSION, 0)],
        Expect::Present => vec![compare(key, GREATER, VERSION, 0)],
        // An absent key counts as modified at 0.
        Expect::Modified(revision) => {
            vec![compare(key, EQUAL, MODIFIED, revision.0), compare(key, GREATER, VERSION, 0)]
        }
    };
    let success = match op {
        TxnOp::Put(_) => {
            Writer::default().message(2, Writer::default().bytes(1, key).bytes(2, stored).number(4, 1))
        }
        TxnOp::Delete => Writer::default().message(3, Writer::default().bytes(1, key).number(3, 1)),
    };
    let failure = Writer::default().message(1, RangeRequest { key, ..RangeRequest::default() }.writer());
    let txn = compares.into_iter().fold(Writer::default(), |txn, compare| txn.message(1, compare));
    txn.message(2, success).message(3, failure).finish()
}

/// Writes `value` if the key has been written `version` times, else reads it. The clock of the compactions.
pub(crate) fn put_if_version(key: &[u8], version: u64, value: &[u8]) -> Vec<u8> {
    let put = Writer::default().message(2, Writer::default().bytes(1, key).bytes(2, value));
    let get = Writer::default().message(1, RangeRequest { key, ..RangeRequest::default() }.writer());
    Writer::default().message(1, compare(key, 0, 0, version)).message(2, put).message(3, get).finish()
}

/// What came of a transaction with one operation in each branch.
#[derive(Debug, Default)]
pub(crate) struct TxnReply {
    pub revision: u64,
    pub succeeded: bool,
    /// The record before the write; or, when the comparison failed, the one that stands there.
    pub kv: Option<KeyValue>,
}

impl TxnReply {
    pub fn read(message: Bytes) -> Result<Self, Malformed> {
        let mut reply = TxnReply::default();
        fields(message, |field, value| {
            match field {
                1 => reply.revision = header_revision(value)?,
                2 => reply.succeeded = value.number()? != 0,
                3 => fields(value.bytes()?, |kind, response| {
                    // Records stand in field 2 of a range's and a put's answer, in field 3 of a deletion's.
                    let records = if kind == 3 { 3 } else { 2 };
                    fields(response.bytes()?, |field, value| {
                        if field == records {
                            reply.kv = Some(KeyValue::read(value.bytes()?)?);
                        }
                        Ok(())
                    })
                })?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(reply)
    }
}

/// Forget what is older than this revision.
pub(crate) fn compact(revision: u64) -> Vec<u8> {
    Writer::default().number(1, revision).finish()
}

/// Starts a watch of a range: with the records before each change, with progress reports, in bounded pieces.
pub(crate) fn watch_create(key: &[u8], end: &[u8], start: u64) -> Vec<u8> {
    let create = Writer::default().bytes(1, key).bytes(2, end).number(3, start);
    Writer::default().message(1, create.number(4, 1).number(6, 1).number(8, 1)).finish()
}

/// One change.
#[derive(Debug, Default)]
pub(crate) struct WatchEvent {
    pub deleted: bool,
    pub kv: KeyValue,
    pub previous: Option<KeyValue>,
}

/// News of a watch.
#[derive(Debug, Default)]
pub(crate) struct WatchReply {
    pub revision: u64,
    pub created: bool,
    pub canceled: bool,
    /// The oldest revision kept, when the watch was refused or ended for asking for an older one; else 0.
    pub compacted: u64,
    pub reason: String,
    /// More of the same piece of history follows.
    pub fragment: bool,
    pub events: Vec<WatchEvent>,
}

impl WatchReply {
    pub fn read(message: Bytes) -> Result<Self, Malformed> {
        let mut reply = WatchReply::default();
        fields(message, |field, value| {
            match field {
                1 => reply.revision = header_revision(value)?,
                3 => reply.created = value.number()? != 0,
                4 => reply.canceled = value.number()? != 0,
                5 => reply.compacted = value.number()?,
                6 => reply.reason = value.text()?,
                7 => reply.fragment = value.number()? != 0,
                11 => reply.events.push(WatchEvent::read(value.bytes()?)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(reply)
    }
}

impl WatchEvent {
    fn read(message: Bytes) -> Result<Self, Malformed> {
        let mut event = WatchEvent::default();
        fields(message, |field, value| {
            match field {
                1 => event.deleted = value.number()? == 1,
                2 => event.kv = KeyValue::read(value.bytes()?)?,
                3 => event.previous = Some(KeyValue::read(value.bytes()?)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(event)
    }
}

/// The state of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StatusReply {
    pub version: String,
    /// Bytes of the member's file.
    pub file_bytes: u64,
    /// Alarms and the like, in etcd's words.
    pub errors: Vec<String>,
}

impl StatusReply {
    pub fn read(message: Bytes) -> Result<Self, Malformed> {
        let mut reply = StatusReply::default();
        fields(message, |field, value| {
            match field {
                2 => reply.version = value.text()?,
                3 => reply.file_bytes = value.number()?,
                8 => reply.errors.push(value.text()?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(reply)
    }
}
