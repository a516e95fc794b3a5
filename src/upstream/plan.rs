//! Which endpoint is asked next. Pure: it is told how an attempt went and answers what to do.
//!
//! Endpoints are asked in order. One whose failure may pass is asked again in the next round, after a backoff;
//! one whose failure is final is not. "Not found" is the verdict only if every endpoint said it.

use std::time::Duration;

use crate::runtime::Backoff;

use super::error::Error;

/// The rounds of one call over the endpoints of one upstream.
#[derive(Debug)]
pub(super) struct Plan {
    outcomes: Vec<Outcome>,
    /// The position in the round, counted from `first`.
    position: usize,
    first: usize,
    /// Rounds left after this one; `None` as long as the caller has time.
    rounds_left: Option<u32>,
    backoff: Backoff,
}

#[derive(Debug)]
enum Outcome {
    Untried,
    MayPass(Error),
    Final(Error),
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask this endpoint.
    Ask(usize),
    /// Wait, then ask for the next step.
    Wait(Duration),
    /// There is nothing left to try.
    GiveUp,
}

impl Plan {
    /// A call that fails fast: `attempts` rounds, and no second one for what time alone does not mend.
    pub(super) fn for_call(endpoints: usize, attempts: u32, backoff: Backoff) -> Self {
        Self::new(endpoints, 0, Some(attempts.saturating_sub(1)), backoff)
    }

    /// A transfer to take up again, at the endpoint it came from first, for as long as the caller has time.
    pub(super) fn for_resuming(endpoints: usize, from: usize, backoff: Backoff) -> Self {
        Self::new(endpoints, from, None, backoff)
    }

    fn new(endpoints: usize, first: usize, rounds_left: Option<u32>, backoff: Backoff) -> Self {
        let outcomes = (0..endpoints).map(|_| Outcome::Untried).collect();
        Self { outcomes, position: 0, first, rounds_left, backoff }
    }

    /// What to do now. Each endpoint that is named must be reported as failed before the next step, or the
    /// plan is done.
    pub(super) fn step(&mut self) -> Step {
        while self.position < self.outcomes.len() {
            let index = (self.first + self.position) % self.outcomes.len();
            if !matches!(self.outcomes[index], Outcome::Final(_)) {
                return Step::Ask(index);
            }
            self.position += 1;
        }
        let wishes = self.outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::MayPass(error) => Some(error.retry_after().unwrap_or_default()),
            Outcome::Untried | Outcome::Final(_) => None,
        });
        let Some(shortest_wish) = wishes.min() else {
            return Step::GiveUp;
        };
        if let Some(left) = &mut self.rounds_left {
            let Some(fewer) = left.checked_sub(1) else {
                return Step::GiveUp;
            };
            *left = fewer;
        }
        self.position = 0;
        let wait = self.backoff.next_wait();
        // Whoever resumes has time to do as it is asked; a call has not, and its rounds are few.
        Step::Wait(if self.is_resuming() { wait.max(shortest_wish) } else { wait })
    }

    /// The endpoint that was to be asked has failed.
    pub(super) fn failed(&mut self, error: Error) {
        let index = (self.first + self.position) % self.outcomes.len();
        let may_pass = if self.is_resuming() { error.is_retryable() } else { passes_quickly(&error) };
        self.outcomes[index] = if may_pass { Outcome::MayPass(error) } else { Outcome::Final(error) };
        self.position += 1;
    }

    /// A transfer has got on: waits are short again, and endpoint `current` is the first to be asked.
    pub(super) fn progressed(&mut self, current: usize) {
        self.first = current;
        self.position = 0;
        self.backoff.reset();
        for outcome in &mut self.outcomes {
            if matches!(outcome, Outcome::MayPass(_)) {
                *outcome = Outcome::Untried;
            }
        }
    }

    /// The one error that stands for all, once there is nothing left to try. That a caller may not is a no, whatever
    /// else could not be asked.
    pub(super) fn verdict(self) -> Option<Error> {
        let errors = self.outcomes.into_iter().filter_map(|outcome| match outcome {
            Outcome::MayPass(error) | Outcome::Final(error) => Some(error),
            Outcome::Untried => None,
        });
        let weight = |error: &Error| match error {
            error if error.is_of_caller() => 2,
            Error::NotFound { .. } => 0,
            _ => 1,
        };
        // Of those that weigh the same, the first.
        errors.reduce(|first, other| if weight(&other) > weight(&first) { other } else { first })
    }

    fn is_resuming(&self) -> bool {
        self.rounds_left.is_none()
    }
}

/// Whether another round within the next second or two has a chance. A time-out has cost its deadline already,
/// and who named a time to come back, or is left alone for a time, is not asked before it.
fn passes_quickly(error: &Error) -> bool {
    match error {
        Error::Unreachable { retry_after, .. } | Error::RateLimited { retry_after, .. } => {
            retry_after.is_none()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::ErrorCode;
    use crate::upstream::error::{Place, Stage};

    fn at(name: &str) -> Place {
        Place { upstream: "x.example".parse().unwrap(), endpoint: format!("https://{name}").parse().unwrap() }
    }

    fn not_found(name: &str) -> Error {
        Error::NotFound { at: at(name), code: ErrorCode::BlobUnknown }
    }

    fn refused(name: &str) -> Error {
        Error::Unreachable { at: at(name), reason: "refused".to_owned(), retry_after: None }
    }

    fn limited(name: &str, retry_after: Option<u64>) -> Error {
        Error::RateLimited { at: at(name), retry_after: retry_after.map(Duration::from_secs) }
    }

    fn timed_out(name: &str) -> Error {
        Error::TimedOut { at: at(name), stage: Stage::Connect, after: Duration::from_secs(5) }
    }

    fn corrupt(name: &str) -> Error {
        Error::Corrupt { at: at(name), reason: "other bytes".to_owned() }
    }

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
    }

    /// Plays a call in which every attempt at endpoint `i` fails with `errors[i]`; returns who was asked, the
    /// time waited, and the verdict.
    fn play(errors: &[Error]) -> (Vec<usize>, Duration, Error) {
        let mut plan = Plan::for_call(errors.len(), 3, backoff());
        let (mut asked, mut waited) = (Vec::new(), Duration::ZERO);
        loop {
            match plan.step() {
                Step::Ask(index) => {
                    asked.push(index);
                    plan.failed(errors[index].clone());
                }
                Step::Wait(wait) => waited += wait,
                Step::GiveUp => return (asked, waited, plan.verdict().unwrap()),
            }
        }
    }

    #[test]
    fn only_what_may_pass_is_asked_again_and_all_refused_fails_quickly() {
        let cases: [(&[Error], &[usize], &str); 8] = [
            (&[refused("a"), refused("b")], &[0, 1, 0, 1, 0, 1], "unreachable"),
            (&[refused("a"), not_found("b")], &[0, 1, 0, 0], "unreachable"),
            (&[not_found("a"), refused("b")], &[0, 1, 1, 1], "unreachable"),
            (&[not_found("a"), not_found("b")], &[0, 1], "not_found"),
            (&[timed_out("a"), not_found("b")], &[0, 1], "timed_out"),
            (&[corrupt("a"), not_found("b")], &[0, 1], "corrupt"),
            (&[limited("a", Some(60))], &[0], "rate_limited"),
            (&[limited("a", None)], &[0, 0, 0], "rate_limited"),
        ];
        for (errors, expected, verdict) in cases {
            let (asked, waited, error) = play(errors);
            assert_eq!(asked, expected, "{errors:?}");
            assert_eq!(error.kind(), verdict, "{errors:?}");
            assert!(waited < Duration::from_secs(1), "{waited:?}");
        }
    }

    #[test]
    fn resuming_begins_where_it_broke_and_goes_on_to_the_next() {
        let mut plan = Plan::for_resuming(3, 1, backoff());
        assert_eq!(plan.step(), Step::Ask(1));
        plan.failed(timed_out("b"));
        assert_eq!(plan.step(), Step::Ask(2));
        plan.progressed(2);
        assert_eq!(plan.step(), Step::Ask(2));
        plan.failed(corrupt("c"));
        assert_eq!(plan.step(), Step::Ask(0));
        plan.failed(limited("a", Some(9)));
        assert_eq!(plan.step(), Step::Ask(1));
        plan.failed(limited("b", Some(7)));
        assert_eq!(plan.step(), Step::Wait(Duration::from_secs(7)));
        assert_eq!(plan.step(), Step::Ask(0), "the corrupt one is never asked again");
    }

    #[test]
    fn without_anyone_left_to_ask_resuming_ends() {
        let mut plan = Plan::for_resuming(1, 0, backoff());
        assert_eq!(plan.step(), Step::Ask(0));
        plan.failed(corrupt("a"));
        assert_eq!(plan.step(), Step::GiveUp);
        assert_eq!(plan.verdict().unwrap().kind(), "corrupt");
    }
}
