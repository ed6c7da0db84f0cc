//! What is fuzzed: parsers of hostile input as functions of bytes, with their laws as assertions.
//!
//! A target is one row of [`TARGETS`]: it must not panic, hang or eat memory, whatever the bytes. Its seeds are made
//! here, by code; inputs that the fuzzer found worth keeping, and those that once failed, are lines of
//! `corpus/<target>.txt` (escaped as in a Rust byte string), replayed by this crate's test.
//! Parsers that are private to a large crate are included by their path: so the instrumented build stays small.
//! Deliberately not here: the fuzzer (`main.rs`, never instrumented).

mod api;
mod etcd;
mod images;
mod languages;
mod nodeapi;
mod wire;

macro_rules! included {
    ($($path:literal $name:ident)*) => {$(
        #[path = $path]
        #[expect(dead_code, reason = "only its parsers are called here")]
        mod $name;
    )*};
}

included! {
    "../../image/src/digest.rs" digest
    "../../image/src/error.rs" error
    "../../image/src/fs.rs" fs
    "../../image/src/limits.rs" limits
    "../../image/src/oci.rs" oci
    "../../image/src/reference.rs" reference
    "../../store/src/seam.rs" seam
}

#[path = "../../apiserver/src/pod_figures/exposition.rs"]
mod exposition;
#[path = "../../apiserver/src/path.rs"]
#[cfg_attr(not(test), expect(dead_code, reason = "only its parsers are called here"))]
mod path;
#[path = "../../apiserver/src/scan.rs"]
mod scan;
#[path = "../../controllers/src/cron_job/schedule.rs"]
mod schedule;
#[path = "../../image/src/tarball.rs"]
#[expect(dead_code, reason = "only its parsers are called here")]
mod tarball;
#[path = "../../image/src/unpack.rs"]
mod unpack;

// The names under which the included files know each other.
use error::ImageError;
use reference::ReferenceError;
use seam::{Expect, TxnOp};

/// A parser under test.
pub struct Target {
    /// Its name on the command line and of its corpus.
    pub name: &'static str,
    /// Takes any bytes; a panic is a finding.
    pub run: fn(&[u8]),
    /// Honest inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words that inputs are made of.
    pub words: &'static [&'static str],
    /// Writes files: the fuzzer runs it where it can reach nothing else.
    pub writes: bool,
}

/// All of them. A static: what only a constant names would be compiled where it is used, without instrumentation.
pub static TARGETS: &[Target] = &[
    api::JSON_PATCH,
    api::MERGE_PATCH,
    api::STRATEGIC_PATCH,
    api::SELECTORS,
    api::BODY,
    api::PROTOBUF,
    api::APPLY,
    api::POD,
    api::QUANTITY,
    api::CRON,
    api::PATH,
    languages::CEL,
    languages::EXPOSITION,
    wire::SPDY,
    wire::WEBSOCKET,
    wire::DNS,
    wire::ETCD,
    images::REFERENCE,
    images::MANIFEST,
    images::LAYER,
];

/// A panic that only guided search finds: by it the fuzzer proves that coverage and comparisons guide it.
pub static MAZE: Target = Target {
    name: "maze",
    run: |input| {
        let Some((word, rest)) = input.split_first_chunk::<4>() else { return };
        if u32::from_be_bytes(*word) ^ 0x5a5a_5a5a == 0x1d3f_77b6 && rest.len() > 3 {
            for (step, wanted) in [b'm', b'a', b'z', b'e'].into_iter().enumerate() {
                if rest[step] != wanted {
                    return;
                }
            }
            panic!("the middle of the maze");
        }
    },
    seeds: || vec![vec![0; 12]],
    words: &[],
    writes: false,
};

/// A corpus file's lines as inputs.
///
/// # Errors
/// Says which line is not escaped bytes.
pub fn corpus_of(text: &str) -> Result<Vec<Vec<u8>>, String> {
    text.lines().map(|line| unescaped(line).ok_or_else(|| format!("not escaped bytes: {line}"))).collect()
}

fn unescaped(line: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = line.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (what, tail) = rest.split_first()?;
        rest = tail;
        bytes.push(match what {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let (digits, tail) = rest.split_first_chunk::<2>()?;
                rest = tail;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            other => *other,
        });
    }
    Some(bytes)
}
