//! What instrumented code reports: edges taken and values compared. LLVM calls these functions by name.
//!
//! Invariant: nothing here is instrumented itself. One thread runs a target at a time; others may look.
//! Deliberately not here: counting within a counter's bucket (`main.rs`).
#![expect(unsafe_code, reason = "LLVM's instrumentation calls functions by their plain names")]

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

/// Edges known at most; those beyond share the last one.
pub const EDGES_MAX: usize = 1 << 18;
/// Comparisons of a run that are kept.
const COMPARED_MAX: usize = 512;

static RECORDS: AtomicBool = AtomicBool::new(false);
static EDGES: AtomicU32 = AtomicU32::new(0);
static COUNTS: [AtomicU32; EDGES_MAX] = [const { AtomicU32::new(0) }; EDGES_MAX];
/// Edges with a count, in the order they were met.
static MET: [AtomicU32; EDGES_MAX] = [const { AtomicU32::new(0) }; EDGES_MAX];
static MET_LEN: AtomicUsize = AtomicUsize::new(0);
static COMPARED: [[AtomicU64; 2]; COMPARED_MAX] = [const { [const { AtomicU64::new(0) }; 2] }; COMPARED_MAX];
static COMPARED_LEN: AtomicUsize = AtomicUsize::new(0);

/// What a run met.
pub struct Met {
    /// Edges and how often each was taken.
    pub edges: Vec<(usize, u32)>,
    /// Unequal operands of comparisons.
    pub compared: Vec<[u64; 2]>,
}

/// Runs something and gives what it met.
pub fn of(run: impl FnOnce()) -> Met {
    COMPARED_LEN.store(0, Relaxed);
    RECORDS.store(true, Relaxed);
    run();
    RECORDS.store(false, Relaxed);
    let met = MET[..MET_LEN.swap(0, Relaxed)].iter().map(|edge| edge.load(Relaxed) as usize);
    let edges = met.map(|edge| (edge, COUNTS[edge].swap(0, Relaxed))).collect();
    let compared = &COMPARED[..COMPARED_LEN.load(Relaxed).min(COMPARED_MAX)];
    Met {
        edges,
        compared: compared.iter().map(|pair| [pair[0].load(Relaxed), pair[1].load(Relaxed)]).collect(),
    }
}

/// Called on every edge. A guard is zero until it gets its number here.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_trace_pc_guard(guard: &AtomicU32) {
    if !RECORDS.load(Relaxed) {
        return;
    }
    let mut edge = guard.load(Relaxed);
    if edge == 0 {
        edge = (EDGES.fetch_add(1, Relaxed) + 1).min(EDGES_MAX as u32 - 1);
        guard.store(edge, Relaxed);
    }
    let count = &COUNTS[edge as usize];
    let before = count.load(Relaxed);
    count.store(before.saturating_add(1), Relaxed);
    if before == 0 {
        let at = MET_LEN.load(Relaxed);
        MET[at].store(edge, Relaxed);
        MET_LEN.store(at + 1, Relaxed);
    }
}

#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_trace_pc_guard_init(_: usize, _: usize) {}

/// The values behind the number are of no use without reading foreign memory.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_trace_switch(_: u64, _: usize) {}

fn compared(a: u64, b: u64) {
    let at = COMPARED_LEN.load(Relaxed);
    if a != b && at < COMPARED_MAX && RECORDS.load(Relaxed) {
        COMPARED[at][0].store(a, Relaxed);
        COMPARED[at][1].store(b, Relaxed);
        COMPARED_LEN.store(at + 1, Relaxed);
    }
}

macro_rules! comparisons {
    ($($name:ident $int:ty),*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name(a: $int, b: $int) {
            compared(u64::from(a), u64::from(b));
        }
    )*};
}

comparisons! {
    __sanitizer_cov_trace_cmp1 u8, __sanitizer_cov_trace_const_cmp1 u8,
    __sanitizer_cov_trace_cmp2 u16, __sanitizer_cov_trace_const_cmp2 u16,
    __sanitizer_cov_trace_cmp4 u32, __sanitizer_cov_trace_const_cmp4 u32,
    __sanitizer_cov_trace_cmp8 u64, __sanitizer_cov_trace_const_cmp8 u64
}
