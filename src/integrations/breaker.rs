//! A circuit breaker: an outside provider that is out is left alone, and nobody waits for it.
//!
//! | it is | and a call | until |
//! |---|---|---|
//! | closed | goes through | enough different subjects have failed: opens |
//! | open | is refused at once | its span has passed: half-open |
//! | half-open | goes through if it is the only one, the probe; all others are refused | the probe's end: closed, or open again |
//!
//! What counts is the subject of a call (a payment), not the call. An outage is what several subjects meet; a request that
//! the provider chokes on fails each time that it is repeated, and must not close the door for everybody else. So:
//! - A subject that fails again and again counts once.
//! - A success of anybody ends a run of failures.
//! - While half-open, a subject that has failed already is let through only when no other came for a while, and its failure
//!   does not lengthen the wait: it says nothing new.
//!
//! A call that takes longer than its deadline is cut off and counts as a failure, and so does one that is given up. What it
//! did at the provider is unknown then, which is why every call bears a key that makes a repeat harmless.
//!
//! [`Core`] is the rule with time handed in; [`Breaker`] is the rule around calls. Neither may ever wait for a lock across
//! a call, or know what a call is about.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// So many subjects that fail with no success between them open it.
    pub failures_in_a_row: usize,
    /// The span over which the share of failures is counted.
    pub window_ms: u64,
    /// No share is taken of fewer outcomes.
    pub window_outcomes_min: usize,
    /// This share of failures within the window opens it.
    pub window_failures_percent: usize,
    /// How long it stays open the first time; twice as long after each failed probe.
    pub open_ms: u64,
    pub open_ms_max: u64,
    /// How long half-open waits for a subject that has not failed before.
    pub fresh_wait_ms: u64,
    /// A call that takes longer has failed.
    pub call_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            failures_in_a_row: 5,
            window_ms: 10_000,
            window_outcomes_min: 20,
            window_failures_percent: 50,
            open_ms: 1_000,
            open_ms_max: 30_000,
            fresh_wait_ms: 1_000,
            // Shorter than an attempt of a debt may take, so that what is slow is known for it.
            call_ms: 5_000,
        }
    }
}

/// Subjects that are remembered for having failed. Past it the oldest is forgotten, and may count again.
const FAILED_MAX: usize = 256;
/// Into how many parts the window is cut: successes leave it one part at a time.
const PARTS: u64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Closed,
    Open,
    HalfOpen,
}

impl State {
    pub const ALL: [State; 3] = [State::Closed, State::Open, State::HalfOpen];

    pub fn name(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half_open",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The provider did its work, whatever it answered.
    Worked,
    Failed,
}

/// Leave to call. Valid for the phase that it was given in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    phase: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    Open { until_ms: u64 },
    HalfOpen { since_ms: u64, probing: bool },
}

/// The rule. All times are milliseconds since a moment of the caller's choice, which never run backwards.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    phase: Phase,
    /// Counts the phases, so that the end of a call from an earlier one says nothing about this one.
    phases: u64,
    /// Subjects that failed within the window, and when they did so last.
    failed: VecDeque<(u64, String)>,
    /// Those that failed since the last success.
    in_a_row: BTreeSet<String>,
    /// Successes by part of the window: the part's number, and how many.
    worked: VecDeque<(u64, usize)>,
    /// How often it was opened since it was closed.
    openings: u32,
    random: fastrand::Rng,
}

impl Core {
    pub fn new(settings: Settings, seed: u64) -> Self {
        Core {
            settings,
            phase: Phase::Closed,
            phases: 0,
            failed: VecDeque::new(),
            in_a_row: BTreeSet::new(),
            worked: VecDeque::new(),
            openings: 0,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    pub fn state(&self) -> State {
        match self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Whether this subject may call now.
    pub fn admit(&mut self, subject: &str, now_ms: u64) -> Option<Ticket> {
        if let Phase::Open { until_ms } = self.phase
            && now_ms >= until_ms
        {
            self.enter(Phase::HalfOpen { since_ms: now_ms, probing: false });
        }
        match &mut self.phase {
            Phase::Closed => {}
            Phase::Open { .. } | Phase::HalfOpen { probing: true, .. } => return None,
            Phase::HalfOpen { since_ms, probing } => {
                let fresh = self.failed.iter().all(|(_, failed)| failed != subject);
                if !fresh && now_ms.saturating_sub(*since_ms) < self.settings.fresh_wait_ms {
                    return None;
                }
                *probing = true;
            }
        }
        Some(Ticket { phase: self.phases })
    }

    /// Takes note of a call's end.
    pub fn ended(&mut self, ticket: Ticket, subject: &str, outcome: Outcome, now_ms: u64) {
        if ticket.phase != self.phases {
            return;
        }
        match (self.phase, outcome) {
            (Phase::Closed, Outcome::Worked) => {
                self.in_a_row.clear();
                let part = now_ms / (self.settings.window_ms / PARTS).max(1);
                match self.worked.back_mut() {
                    Some((last, count)) if *last == part => *count += 1,
                    _ => self.worked.push_back((part, 1)),
                }
                self.forget(now_ms);
            }
            (Phase::Closed, Outcome::Failed) => {
                self.note_failed(subject, now_ms);
                self.forget(now_ms);
                if self.is_out() {
                    self.open(now_ms);
                }
            }
            (Phase::HalfOpen { .. }, Outcome::Worked) => {
                self.failed.clear();
                self.in_a_row.clear();
                self.worked.clear();
                self.openings = 0;
                self.enter(Phase::Closed);
            }
            (Phase::HalfOpen { .. }, Outcome::Failed) => {
                let fresh = self.failed.iter().all(|(_, failed)| failed != subject);
                self.note_failed(subject, now_ms);
                if !fresh {
                    self.openings = self.openings.saturating_sub(1);
                }
                self.open(now_ms);
            }
            // No call begins while it is open.
            (Phase::Open { .. }, _) => {}
        }
    }

    fn note_failed(&mut self, subject: &str, now_ms: u64) {
        self.failed.retain(|(_, failed)| failed != subject);
        if self.failed.len() >= FAILED_MAX {
            self.failed.pop_front();
        }
        self.failed.push_back((now_ms, subject.to_owned()));
        if self.in_a_row.len() < self.settings.failures_in_a_row {
            self.in_a_row.insert(subject.to_owned());
        }
    }

    /// Lets go of what is older than the window. Only while closed: a suspect stays one until the provider has worked.
    fn forget(&mut self, now_ms: u64) {
        let oldest_ms = now_ms.saturating_sub(self.settings.window_ms);
        self.failed.retain(|(at_ms, _)| *at_ms >= oldest_ms);
        let oldest_part = oldest_ms / (self.settings.window_ms / PARTS).max(1);
        self.worked.retain(|(part, _)| *part >= oldest_part);
    }

    fn is_out(&self) -> bool {
        let failed = self.failed.len();
        let outcomes = failed + self.worked.iter().map(|(_, count)| count).sum::<usize>();
        self.in_a_row.len() >= self.settings.failures_in_a_row
            || outcomes >= self.settings.window_outcomes_min && failed * 100 >= outcomes * self.settings.window_failures_percent
    }

    /// Opens for half to all of a span that doubles with each time.
    fn open(&mut self, now_ms: u64) {
        let Settings { open_ms, open_ms_max, .. } = self.settings;
        let span_ms = open_ms.saturating_mul(1 << self.openings.min(20)).min(open_ms_max);
        self.openings = self.openings.saturating_add(1);
        let wait_ms = span_ms / 2 + self.random.u64(0..=span_ms / 2);
        self.enter(Phase::Open { until_ms: now_ms.saturating_add(wait_ms) });
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phases += 1;
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The provider was not called.
    #[error("it has failed lately and is left alone for a moment")]
    Open,
    /// The provider was called, and what it did is unknown.
    #[error("it did not answer within {limit_ms} ms")]
    TooSlow { limit_ms: u64 },
}

/// What a breaker has seen since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    pub provider: &'static str,
    pub state: State,
    /// How often it came into each state, in the order of [`State::ALL`].
    pub transitions: [u64; 3],
    /// Calls that were refused without calling.
    pub refused: u64,
    pub failed: u64,
}

/// The breaker of one provider.
pub struct Breaker {
    provider: &'static str,
    call_limit_ms: u64,
    began: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    core: Core,
    transitions: [u64; 3],
    refused: u64,
    failed: u64,
}

impl Breaker {
    pub fn new(provider: &'static str, settings: Settings) -> Self {
        Breaker {
            provider,
            call_limit_ms: settings.call_ms,
            began: Instant::now(),
            inner: Mutex::new(Inner { core: Core::new(settings, fastrand::u64(..)), transitions: [0; 3], refused: 0, failed: 0 }),
        }
    }

    /// Calls if the breaker lets this subject through. `outcome` says what an answer tells about the provider.
    pub async fn call<A, F: Future<Output = A>>(
        &self,
        subject: &str,
        call: impl FnOnce() -> F,
        outcome: impl FnOnce(&A) -> Outcome,
    ) -> Result<A, Refusal> {
        let Some(ticket) = self.turn(|inner, now_ms| {
            let ticket = inner.core.admit(subject, now_ms);
            inner.refused += u64::from(ticket.is_none());
            ticket
        }) else {
            return Err(Refusal::Open);
        };
        let mut under_way = UnderWay { breaker: self, ticket, subject, outcome: Outcome::Failed };
        match tokio::time::timeout(Duration::from_millis(self.call_limit_ms), call()).await {
            Ok(answer) => {
                under_way.outcome = outcome(&answer);
                Ok(answer)
            }
            Err(_) => Err(Refusal::TooSlow { limit_ms: self.call_limit_ms }),
        }
    }

    pub fn census(&self) -> Census {
        let inner = self.lock();
        Census {
            provider: self.provider,
            state: inner.core.state(),
            transitions: inner.transitions,
            refused: inner.refused,
            failed: inner.failed,
        }
    }

    /// Takes one step, and takes note of the state that it leads to.
    fn turn<T>(&self, step: impl FnOnce(&mut Inner, u64) -> T) -> T {
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut inner = self.lock();
        let before = inner.core.state();
        let result = step(&mut inner, now_ms);
        let after = inner.core.state();
        if let (true, Some(times)) = (before != after, inner.transitions.get_mut(after as usize)) {
            *times += 1;
            drop(inner);
            match after {
                State::Open => tracing::warn!(provider = self.provider, "a provider fails and is left alone for a moment"),
                State::HalfOpen => tracing::info!(provider = self.provider, "a provider is tried again"),
                State::Closed => tracing::info!(provider = self.provider, "a provider works again"),
            }
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call under way. One that is given up or dies has failed: a probe must have an end, or nobody ever calls again.
struct UnderWay<'a> {
    breaker: &'a Breaker,
    ticket: Ticket,
    subject: &'a str,
    outcome: Outcome,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.breaker.turn(|inner, now_ms| {
            inner.failed += u64::from(self.outcome == Outcome::Failed);
            inner.core.ended(self.ticket, self.subject, self.outcome, now_ms);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        failures_in_a_row: 3,
        window_ms: 10_000,
        window_outcomes_min: 10,
        window_failures_percent: 50,
        open_ms: 1_000,
        open_ms_max: 4_000,
        fresh_wait_ms: 500,
        call_ms: 2_000,
    };

    /// One thing that happens at a moment, and the state that follows.
    enum Step {
        Works(&'static str),
        Fails(&'static str),
        Refused(&'static str),
    }
    use State::{Closed, HalfOpen, Open};
    use Step::{Fails, Refused, Works};

    fn play(steps: &[(u64, Step, State)]) -> Core {
        let mut core = Core::new(SETTINGS, 1);
        for (at_ms, step, state) in steps {
            let (subject, outcome) = match step {
                Works(subject) => (subject, Some(Outcome::Worked)),
                Fails(subject) => (subject, Some(Outcome::Failed)),
                Refused(subject) => (subject, None),
            };
            let ticket = core.admit(subject, *at_ms);
            assert_eq!(ticket.is_some(), outcome.is_some(), "{subject} at {at_ms}");
            if let (Some(ticket), Some(outcome)) = (ticket, outcome) {
                core.ended(ticket, subject, outcome, *at_ms);
            }
            assert_eq!(core.state(), *state, "after {subject} at {at_ms}");
        }
        core
    }

    #[test]
    fn several_subjects_that_fail_in_a_row_open_it_and_a_probe_closes_it() {
        play(&[
            (0, Fails("a"), Closed),
            (1, Fails("b"), Closed),
            (2, Fails("c"), Open),
            (3, Refused("d"), Open),
            (499, Refused("d"), Open),
            (1_002, Works("d"), Closed),
            (1_003, Fails("a"), Closed),
            (1_004, Fails("b"), Closed),
            (1_005, Works("d"), Closed),
            (1_006, Fails("c"), Closed),
        ]);
    }

    #[test]
    fn one_subject_that_fails_for_ever_opens_nothing() {
        let mut core = Core::new(SETTINGS, 1);
        for at_ms in 0..1_000 {
            let ticket = core.admit("a", at_ms * 10).unwrap();
            core.ended(ticket, "a", Outcome::Failed, at_ms * 10);
            assert_eq!(core.state(), Closed);
        }
        assert_eq!((core.failed.len(), core.in_a_row.len()), (1, 1));
    }

    #[test]
    fn half_of_the_outcomes_of_a_window_open_it_though_others_succeed() {
        const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let mut core = Core::new(SETTINGS, 1);
        let end = |core: &mut Core, name: &str, outcome, at_ms| {
            let ticket = core.admit(name, at_ms).unwrap();
            core.ended(ticket, name, outcome, at_ms);
            core.state()
        };
        for (index, name) in NAMES.iter().enumerate().take(4) {
            assert_eq!(end(&mut core, "good", Outcome::Worked, index as u64), Closed);
            assert_eq!(end(&mut core, name, Outcome::Failed, index as u64), Closed);
        }
        // The window has passed: those before count no more.
        for (index, name) in NAMES.iter().enumerate() {
            let at_ms = 20_000 + index as u64;
            assert_eq!(end(&mut core, "good", Outcome::Worked, at_ms), Closed);
            let expected = if index == 4 { Open } else { Closed };
            assert_eq!(end(&mut core, name, Outcome::Failed, at_ms), expected, "{name}");
            if expected == Open {
                return;
            }
        }
        panic!("it never opened");
    }

    #[test]
    fn it_stays_open_ever_longer_while_fresh_probes_fail() {
        for seed in 0..100 {
            let mut core = Core::new(SETTINGS, seed);
            let mut now_ms = 0;
            for name in ["a", "b", "c"] {
                let ticket = core.admit(name, now_ms).unwrap();
                core.ended(ticket, name, Outcome::Failed, now_ms);
            }
            for (index, span_ms) in [1_000, 2_000, 4_000, 4_000].into_iter().enumerate() {
                let Phase::Open { until_ms } = core.phase else { panic!("not open") };
                let wait_ms = until_ms - now_ms;
                assert!((span_ms / 2..=span_ms).contains(&wait_ms), "seed {seed}: {wait_ms} of {span_ms}");
                now_ms = until_ms;
                let probe = format!("probe {index}");
                let ticket = core.admit(&probe, now_ms).unwrap();
                core.ended(ticket, &probe, Outcome::Failed, now_ms);
            }
        }
    }

    #[test]
    fn a_subject_that_failed_before_is_no_probe_while_another_may_come_and_its_failure_says_nothing_new() {
        let open = || play(&[(0, Fails("a"), Closed), (0, Fails("b"), Closed), (0, Fails("c"), Open)]);
        let mut core = open();
        assert_eq!(core.admit("a", 1_000), None);
        assert_eq!(core.state(), HalfOpen);
        assert!(core.admit("d", 1_001).is_some(), "a fresh one goes first");

        let mut core = open();
        let mut now_ms = 1_000;
        for _ in 0..10 {
            assert_eq!(core.admit("b", now_ms), None);
            now_ms += SETTINGS.fresh_wait_ms;
            let ticket = core.admit("b", now_ms).unwrap();
            core.ended(ticket, "b", Outcome::Failed, now_ms);
            let Phase::Open { until_ms } = core.phase else { panic!("not open") };
            assert!(until_ms - now_ms <= SETTINGS.open_ms);
            now_ms = until_ms;
        }
    }

    #[test]
    fn half_open_lets_one_call_through_and_what_ends_late_is_ignored() {
        let mut core = Core::new(SETTINGS, 1);
        let early = core.admit("early", 0).unwrap();
        for name in ["a", "b", "c"] {
            let ticket = core.admit(name, 0).unwrap();
            core.ended(ticket, name, Outcome::Failed, 0);
        }
        core.ended(early, "early", Outcome::Worked, 1);
        assert_eq!(core.state(), Open, "an answer from before says nothing");
        let probe = core.admit("d", 1_000).unwrap();
        for name in ["e", "f"] {
            assert_eq!(core.admit(name, 1_001), None);
        }
        core.ended(early, "early", Outcome::Failed, 1_002);
        assert_eq!(core.state(), HalfOpen);
        core.ended(probe, "d", Outcome::Worked, 1_003);
        assert_eq!(core.state(), Closed);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut core = Core::new(Settings { failures_in_a_row: 4, window_outcomes_min: usize::MAX, ..SETTINGS }, 1);
        for index in 0..10_000_u64 {
            let (subject, outcome) =
                if index % 3 == 0 { ("good".into(), Outcome::Worked) } else { (index.to_string(), Outcome::Failed) };
            let ticket = core.admit(&subject, index).unwrap();
            core.ended(ticket, &subject, outcome, index);
        }
        assert_eq!(core.state(), Closed);
        assert!(core.failed.len() <= FAILED_MAX && core.worked.len() as u64 <= PARTS + 1 && core.in_a_row.len() < 4);
    }

    fn told(answer: &bool) -> Outcome {
        if *answer { Outcome::Worked } else { Outcome::Failed }
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_breaker_refuses_without_calling() {
        let breaker = Breaker::new("test", SETTINGS);
        for name in ["a", "b", "c"] {
            assert_eq!(breaker.call(name, async || false, told).await, Ok(false));
        }
        let called = std::cell::Cell::new(false);
        let answer = breaker.call(
            "d",
            async || {
                called.set(true);
                true
            },
            told,
        );
        assert_eq!((answer.await, called.get()), (Err(Refusal::Open), false));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(breaker.call("d", async || true, told).await, Ok(true));
        let expected = Census { provider: "test", state: Closed, transitions: [1, 1, 1], refused: 1, failed: 3 };
        assert_eq!(breaker.census(), expected);
    }

    #[tokio::test]
    async fn an_open_breaker_answers_in_microseconds() {
        const CALLS: u32 = 10_000;
        let breaker = Breaker::new("test", Settings { open_ms: 3_600_000, open_ms_max: 3_600_000, ..SETTINGS });
        for name in ["a", "b", "c"] {
            assert_eq!(breaker.call(name, async || false, told).await, Ok(false));
        }
        let began = std::time::Instant::now();
        for _ in 0..CALLS {
            assert_eq!(breaker.call("d", async || true, told).await, Err(Refusal::Open));
        }
        let each = began.elapsed() / CALLS;
        // In a debug build, on a machine that has other things to do.
        assert!(each < Duration::from_micros(100), "{each:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_slow_or_given_up_has_failed() {
        let breaker = Breaker::new("test", SETTINGS);
        let never = async || std::future::pending::<bool>().await;
        for name in ["a", "b"] {
            assert_eq!(breaker.call(name, never, told).await, Err(Refusal::TooSlow { limit_ms: 2_000 }));
        }
        let given_up = tokio::time::timeout(Duration::from_millis(10), breaker.call("c", never, told));
        assert!(given_up.await.is_err());
        assert_eq!(breaker.census().state, Open);
        // A probe that is given up ends too.
        tokio::time::advance(Duration::from_secs(1)).await;
        let given_up = tokio::time::timeout(Duration::from_millis(10), breaker.call("d", never, told));
        assert!(given_up.await.is_err());
        assert_eq!(breaker.census().state, Open);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(breaker.call("e", async || true, told).await, Ok(true));
    }
}
