//! How long things took, counted without a lock: a few atomic additions for each.
//!
//! Read while it is written, the counts may be of a moment after the sum. Nothing here may wait.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bounds are few and fixed, so that counting is a short search.
const BOUNDS_MAX: usize = 16;

/// A histogram of durations.
#[derive(Debug)]
pub struct Durations {
    /// Upper bounds in microseconds, ascending.
    bounds_us: &'static [u64],
    /// As many as there are bounds, and one for what is longer than all of them.
    counts: [AtomicU64; BOUNDS_MAX + 1],
    sum_us: AtomicU64,
}

/// What was counted: each bound in seconds with the number of those that lie between it and the bound before.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    pub sum_seconds: f64,
    pub count: u64,
    pub buckets: Vec<(f64, u64)>,
}

impl Durations {
    pub const fn new(bounds_us: &'static [u64]) -> Self {
        assert!(bounds_us.len() <= BOUNDS_MAX);
        Durations { bounds_us, counts: [const { AtomicU64::new(0) }; BOUNDS_MAX + 1], sum_us: AtomicU64::new(0) }
    }

    pub fn count(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let place = self.bounds_us.partition_point(|bound| *bound < us);
        if let Some(count) = self.counts.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    pub fn counted(&self) -> Counted {
        let seconds = |us: u64| us as f64 / 1e6;
        let bounds = self.bounds_us.iter().map(|bound| seconds(*bound)).chain([f64::MAX]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        Counted {
            sum_seconds: seconds(self.sum_us.load(Ordering::Relaxed)),
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_for_the_first_bound_that_it_does_not_exceed() {
        let durations = Durations::new(&[1_000, 10_000]);
        for us in [0, 1_000, 1_001, 10_000, 10_001, 3_000_000] {
            durations.count(Duration::from_micros(us));
        }
        let expected = Counted { sum_seconds: 3.022_002, count: 6, buckets: vec![(0.001, 2), (0.01, 2), (f64::MAX, 2)] };
        assert_eq!(durations.counted(), expected);
    }
}
