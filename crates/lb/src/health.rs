//! What checks say about a target: a pure state machine.

use crate::config::Check;

/// Why a check failed, in ELB's reason codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Answered with a status outside the matcher.
    Status(u16),
    /// No answer in time.
    Timeout,
    /// No connection, or it broke.
    Connection,
}

/// What is known of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not checked yet.
    #[default]
    Initial,
    /// Gets requests.
    Healthy,
    /// Gets none while others are healthy.
    Unhealthy(Failure),
}

/// State with its streaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// What is known.
    pub state: State,
    streak: u32,
}

impl Health {
    /// A state that no check has confirmed yet.
    pub fn starting(state: State) -> Self {
        Health { state, streak: 0 }
    }

    /// Takes one check's outcome; says whether the state changed. A new target needs one success, a healthy or
    /// unhealthy one as many in a row as the thresholds say.
    pub fn observe(&mut self, outcome: Result<(), Failure>, check: &Check) -> bool {
        let against = match (&self.state, &outcome) {
            (State::Healthy, Ok(())) => false,
            (State::Unhealthy(_), Err(failure)) => {
                let changed = self.state != State::Unhealthy(failure.clone());
                (self.state, self.streak) = (State::Unhealthy(failure.clone()), 0);
                return changed;
            }
            _ => true,
        };
        self.streak = if against { self.streak + 1 } else { 0 };
        let needed = match (&self.state, &outcome) {
            (State::Initial, Ok(())) => 1,
            (_, Ok(())) => check.healthy_threshold,
            (_, Err(_)) => check.unhealthy_threshold,
        };
        if !against || self.streak < needed.max(1) {
            return false;
        }
        self.streak = 0;
        self.state = outcome.map_or_else(State::Unhealthy, |()| State::Healthy);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Protocol;
    use std::time::Duration;

    #[test]
    fn one_success_is_enough_at_first() {
        let check = Check {
            protocol: Protocol::Tcp,
            port: None,
            path: String::new(),
            matcher: Vec::new(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy_threshold: 2,
            unhealthy_threshold: 2,
        };
        let mut health = Health::default();
        assert!(!health.observe(Err(Failure::Connection), &check) && health.state == State::Initial);
        assert!(health.observe(Ok(()), &check) && health.state == State::Healthy);
        assert!(!health.observe(Err(Failure::Timeout), &check) && health.state == State::Healthy);
        assert!(!health.observe(Ok(()), &check));
        assert!(!health.observe(Err(Failure::Timeout), &check));
        assert!(health.observe(Err(Failure::Status(500)), &check));
        assert_eq!(health.state, State::Unhealthy(Failure::Status(500)));
        assert!(!health.observe(Ok(()), &check) && !health.observe(Err(Failure::Status(500)), &check));
        assert!(!health.observe(Ok(()), &check) && health.observe(Ok(()), &check));
        assert_eq!(health.state, State::Healthy);
    }
}
