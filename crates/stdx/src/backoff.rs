//! Back-off arithmetic: pure, so that the caller owns the clock and the dice.

use std::time::Duration;

/// An exponential back-off: `base × factor^n`, never above `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Delay before the first retry.
    pub base: Duration,
    /// Multiplier per further retry.
    pub factor: u32,
    /// Upper bound of one delay.
    pub max: Duration,
}

impl Backoff {
    /// The delay before retry number `attempt` (0 = the first retry).
    pub fn delay(&self, attempt: u32) -> Duration {
        let mut delay = self.base;
        for _ in 0..attempt {
            delay = delay.saturating_mul(self.factor);
            if delay >= self.max {
                return self.max;
            }
        }
        delay.min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_until_the_bound() {
        let backoff = Backoff { base: Duration::from_secs(10), factor: 2, max: Duration::from_secs(300) };
        let seconds: Vec<u64> = (0..7).map(|n| backoff.delay(n).as_secs()).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.delay(u32::MAX).as_secs(), 300);
    }
}
