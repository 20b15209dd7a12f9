//! How long to wait before trying again: exponential, with jitter, capped.

const BASE_MS: i64 = 50;
pub const CAP_MS: i64 = 30_000;

/// Milliseconds to wait after the `tries`-th try, from half to all of an exponentially growing span.
pub fn backoff_ms(tries: u32) -> i64 {
    let span = BASE_MS.saturating_mul(1_i64 << tries.saturating_sub(1).min(20)).min(CAP_MS);
    span / 2 + fastrand::i64(0..=span / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_from_tens_of_milliseconds_to_half_a_minute() {
        for (tries, least, most) in
            [(0, 25, 50), (1, 25, 50), (2, 50, 100), (5, 400, 800), (11, 15_000, 30_000), (u32::MAX, 15_000, 30_000)]
        {
            for _ in 0..100 {
                assert!((least..=most).contains(&backoff_ms(tries)), "{tries}");
            }
        }
    }
}
