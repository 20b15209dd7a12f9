//! How long things took: counts in buckets that grow with the value, shared by all buyers.
//!
//! A bucket is at most 1/64 wide of its value, so a percentile is within 1.6 % of the exact one; the maximum is exact.
//! The memory is the same for a second and for a day.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Buckets in each doubling of the value.
const STEPS_BITS: u32 = 6;
const STEPS: usize = 1 << STEPS_BITS;
/// Values up to 2^36 µs, 19 hours, are told apart.
const DOUBLINGS: usize = 31;
const BUCKETS: usize = STEPS * (DOUBLINGS + 1);

pub struct Latency {
    counts: Box<[AtomicU64]>,
    max_us: AtomicU64,
}

/// In microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub count: u64,
    pub p50_us: u64,
    pub p95_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Latency { counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), max_us: AtomicU64::new(0) }
    }
}

impl Latency {
    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(us)].fetch_add(1, Ordering::Relaxed);
        self.max_us.fetch_max(us, Ordering::Relaxed);
    }

    pub fn summary(&self) -> Summary {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let (count, max_us) = (counts.iter().sum::<u64>(), self.max_us.load(Ordering::Relaxed));
        let percentile = |percent: u64| {
            // The rank of the value that `percent` of all values do not exceed, from 1.
            let rank = (count * percent).div_ceil(100).max(1);
            let mut passed = 0;
            let found = counts.iter().position(|in_bucket| {
                passed += in_bucket;
                passed >= rank
            });
            found.map_or(0, |index| top_of(index).min(max_us))
        };
        Summary { count, p50_us: percentile(50), p95_us: percentile(95), p99_us: percentile(99), max_us }
    }
}

fn bucket(us: u64) -> usize {
    let doublings = (64 - us.leading_zeros()).saturating_sub(STEPS_BITS + 1);
    let index = doublings as usize * STEPS + (us >> doublings) as usize;
    index.min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn top_of(index: usize) -> u64 {
    let doublings = (index / STEPS).saturating_sub(1);
    let step = (index - doublings * STEPS) as u64;
    ((step + 1) << doublings) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_sixty_fourth_of_the_exact_ones() {
        let latency = Latency::default();
        (1..=100_000).for_each(|us| latency.record(Duration::from_micros(us)));
        let summary = latency.summary();
        for (found, exact) in [(summary.p50_us, 50_000), (summary.p95_us, 95_000), (summary.p99_us, 99_000)] {
            assert!((exact..=exact + exact / 64).contains(&found), "{found} for {exact}");
        }
        assert_eq!((summary.count, summary.max_us), (100_000, 100_000));
    }

    #[test]
    fn every_value_lies_in_its_bucket_and_buckets_do_not_overlap() {
        for us in (0..5_000).chain([65_535, 65_536, 1 << 30, (1 << 36) - 1]) {
            let index = bucket(us);
            assert!(us <= top_of(index) && (index == 0 || us > top_of(index - 1)), "{us}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_recorded_is_all_zero() {
        assert_eq!(Latency::default().summary(), Summary::default());
    }
}
