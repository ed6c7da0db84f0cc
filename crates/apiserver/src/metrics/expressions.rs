//! How long expressions (CEL) take: `machinery::cel` has no clock.

use client::metrics::{Family, Figure, shared};
use machinery::cel::{self, CompileError, Env, Program};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Prometheus' own.
const SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const COMPILATION: Family = Family::histogram("apiserver_cel_compilation_duration_seconds", &SECONDS);
const EVALUATION: Family = Family::histogram("apiserver_cel_evaluation_duration_seconds", &SECONDS);

static ROWS: [OnceLock<Arc<Figure>>; 2] = [OnceLock::new(), OnceLock::new()];

fn timed<T>(row: usize, family: &Family, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let outcome = work();
    ROWS[row].get_or_init(|| shared().of(family, "")).observe(begun.elapsed().as_secs_f64());
    outcome
}

/// Compiles, and counts it.
pub fn compile(env: &Env, text: &str) -> Result<Program, CompileError> {
    timed(0, &COMPILATION, || cel::compile(env, text))
}

/// Counts what an evaluation takes.
pub fn evaluated<T>(work: impl FnOnce() -> T) -> T {
    timed(1, &EVALUATION, work)
}
