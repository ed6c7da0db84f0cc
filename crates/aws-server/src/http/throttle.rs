//! How often one caller may call: a token bucket an access key. Pure but for its table.

use parking_lot::Mutex;
use std::collections::HashMap;

/// Calls a second that a caller may make for long: several times what AWS allows, since the machine is one's own;
/// it keeps a script that runs wild from taking all of it.
const RATE: f64 = 2_000.0;
/// Calls at once after a pause.
const BURST: f64 = 10_000.0;
/// Callers that are remembered; when there are more, all start anew with full buckets.
const CALLERS_MAX: usize = 4_096;

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at_ms: u64,
}

/// The buckets.
#[derive(Default)]
pub struct Throttle {
    buckets: Mutex<HashMap<String, Bucket>>,
}

impl Throttle {
    /// May this caller make one more call now?
    pub fn admit(&self, caller: &str, now_ms: u64) -> bool {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= CALLERS_MAX && !buckets.contains_key(caller) {
            buckets.clear();
        }
        let bucket = match buckets.get_mut(caller) {
            Some(bucket) => bucket,
            None => buckets.entry(caller.into()).or_insert(Bucket { tokens: BURST, at_ms: now_ms }),
        };
        let passed = now_ms.saturating_sub(bucket.at_ms) as f64 / 1_000.0;
        bucket.tokens = (bucket.tokens + passed * RATE).min(BURST);
        bucket.at_ms = now_ms;
        let admitted = bucket.tokens >= 1.0;
        if admitted {
            bucket.tokens -= 1.0;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let throttle = Throttle::default();
        let admitted =
            |caller: &str, now, count: usize| (0..count).filter(|_| throttle.admit(caller, now)).count();
        assert_eq!(admitted("a", 0, 20_000), BURST as usize);
        assert_eq!(admitted("a", 500, 20_000), RATE as usize / 2);
        assert_eq!(admitted("b", 500, 10), 10);
        assert_eq!(admitted("a", 0, 1), 0);
    }
}
