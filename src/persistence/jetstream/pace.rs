//! How long to wait before asking again: growing, bounded, and never in step with others.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

const FIRST_MS: u64 = 2;
const LAST_MS: u64 = 250;
/// A leader that is there answers sooner.
const ANSWER_MS: u64 = 500;
/// ... unless the answer is heavy and the line slow: so long is waited now and then.
const HEAVY_ANSWER_MS: u64 = 3_000;
const HEAVY_EVERY: u32 = 4;

/// The only source of chance here, so that a run can be repeated.
pub struct Dice(Mutex<fastrand::Rng>);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(Mutex::new(fastrand::Rng::with_seed(seed)))
    }

    fn between(&self, low: u64, high: u64) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).u64(low..=high)
    }

    /// Anything from half of `full` to all of it.
    pub fn about(&self, full: Duration) -> Duration {
        let micros = u64::try_from(full.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.between(micros / 2, micros))
    }
}

/// One series of attempts.
#[derive(Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    pub async fn wait(&mut self, dice: &Dice) {
        let full = (FIRST_MS << self.attempts.min(16)).min(LAST_MS);
        self.attempts += 1;
        tokio::time::sleep(dice.about(Duration::from_millis(full))).await;
    }

    /// How long the next answer is waited for. Short, so that a new leader is found soon.
    pub fn patience(&self) -> Duration {
        let heavy = self.attempts % HEAVY_EVERY == HEAVY_EVERY - 1;
        Duration::from_millis(if heavy { HEAVY_ANSWER_MS } else { ANSWER_MS })
    }
}

/// Asks for so long, and meanwhile asks anew: a leader never hears what was asked before it led. The first answer counts.
pub async fn ask_anew<T, E, F>(within: Duration, ask: impl Fn(Duration) -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let until = Instant::now() + within;
    let mut asked = FuturesUnordered::new();
    loop {
        asked.push(ask(until.saturating_duration_since(Instant::now())));
        let anew = Instant::now() + Duration::from_millis(ANSWER_MS);
        loop {
            tokio::select! {
                biased;
                Some(answer) = asked.next() => match answer {
                    Err(_) if !asked.is_empty() => {}
                    answer => return answer,
                },
                () = tokio::time::sleep_until(anew), if anew < until => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_to_their_bound_and_differ() {
        let (dice, mut backoff) = (Dice::new(1), Backoff::default());
        let mut waits = Vec::new();
        for _ in 0..100 {
            let begun = Instant::now();
            backoff.wait(&dice).await;
            waits.push(begun.elapsed());
        }
        assert!(waits[0] <= Duration::from_millis(FIRST_MS + 1));
        let late = &waits[10..];
        // tokio's timers have a grain of one millisecond.
        let bounds = Duration::from_millis(LAST_MS / 2)..=Duration::from_millis(LAST_MS + 1);
        assert!(late.iter().all(|wait| bounds.contains(wait)), "{late:?}");
        assert!(late.iter().any(|wait| wait != &late[0]));
    }
}
