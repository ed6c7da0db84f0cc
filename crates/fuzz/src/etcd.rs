//! etcd's answers. The module names are the store's.

#[path = "../../store/src/etcd/messages.rs"]
#[expect(dead_code, reason = "only its parsers are called here")]
mod messages;
#[path = "../../store/src/etcd/wire.rs"]
mod wire;

use crate::{Expect, TxnOp};
use bytes::Bytes;
use messages::{RangeReply, StatusReply, TxnReply, WatchReply};
use wire::Writer;

/// Reads the bytes as each of the answers.
pub fn read_all(message: Bytes) {
    let length = message.len();
    if let Ok(reply) = RangeReply::read(message.clone()) {
        let bytes: usize = reply.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        assert!(bytes <= length, "more than was sent");
    }
    let _ = TxnReply::read(message.clone());
    if let Ok(reply) = WatchReply::read(message.clone()) {
        assert!(reply.events.len() <= length);
    }
    let _ = StatusReply::read(message);
}

/// Answers of an honest member, and requests for good measure.
pub fn seeds() -> Vec<Vec<u8>> {
    let header = || Writer::default().number(1, 7).number(3, 42);
    let kv = || {
        Writer::default().bytes(1, b"/gantry/main/k").number(2, 3).number(3, 5).number(4, 2).bytes(5, b"{}")
    };
    let range = Writer::default().message(1, header()).message(2, kv()).message(2, kv()).number(4, 2);
    let event = || Writer::default().number(1, 1).message(2, kv()).message(3, kv());
    let watch = Writer::default().message(1, header()).number(3, 1).number(5, 4).message(11, event());
    let put = Writer::default().message(2, Writer::default().message(2, kv()));
    let got = Writer::default().message(1, Writer::default().message(2, kv()));
    let txn = Writer::default().message(1, header()).number(2, 1).message(3, put).message(3, got);
    let status = Writer::default().message(1, header()).bytes(2, b"3.4.23").number(3, 20_480);
    let request = messages::txn(b"/k", Expect::Absent, &TxnOp::Put(Bytes::new()), b"v");
    vec![range.finish(), watch.finish(), txn.finish(), status.finish(), request]
}
