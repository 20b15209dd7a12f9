//! Whoever guesses passwords waits ever longer: by the e-mail that is tried, and by the address that tries.
//!
//! An attempt is counted as a failure before the password is looked at, and taken back when it was right. So a thousand
//! attempts at once are a thousand failures, not one. From a free number of failures on, each further one starts a wait
//! that doubles, up to a longest; an attempt within it is refused unseen and does not count. A success forgets the
//! e-mail's failures. It does not forget the address's, else a guesser would log in to an account of his own in between.
//!
//! All of this is in memory and each node's own: in a cluster a guesser has each node's free attempts, and a restart
//! forgets. That bounds him well enough, because what is left grows with the number of nodes and no more.
//!
//! # Why a flood of e-mails neither grows the table nor frees a locked one
//!
//! A table has a bound, and who leaves it first is who has been free the longest: entries are ordered by the end of
//! their wait, and one that waits for nothing is ordered by its last failure. A flood of e-mails with a failure each is
//! ordered by the present, so it pushes out its own and never an entry whose wait lies ahead. To push out one that
//! waits for 15 minutes, the whole table must be filled with longer waits, each of which took a dozen failures, and each
//! failure a password to hash. What is won by that is four more guesses.
//!
//! E-mails and addresses have a table each, so that a flood of one cannot push out the other.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::domain::Timestamp;
use crate::domain::time::{MINUTE_MS, SECOND_MS};

/// What a table of failures goes by.
#[derive(Debug, Clone, Copy)]
struct Policy {
    /// The failure that starts the first wait.
    first_wait_at: u32,
    /// Entries that are held.
    entries_max: usize,
    /// After so long without a failure or a wait, all is forgotten.
    forgotten_after_ms: i64,
}

const FIRST_WAIT_MS: i64 = SECOND_MS;
const LONGEST_WAIT_MS: i64 = 15 * MINUTE_MS;
const ENTRIES_MAX: usize = 100_000;
const EMAILS: Policy = Policy { first_wait_at: 5, entries_max: ENTRIES_MAX, forgotten_after_ms: 24 * 60 * MINUTE_MS };
/// Behind one address there may be a whole office, which mistypes more and must not be shut out for a day.
const ADDRESSES: Policy = Policy { first_wait_at: 20, entries_max: ENTRIES_MAX, forgotten_after_ms: 60 * MINUTE_MS };
/// Entries that are looked at for each attempt, to let go of what is forgotten.
const FORGOTTEN_AT_ONCE: usize = 4;

/// The attempt must wait so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many failed attempts: try again in {wait_ms} ms")]
pub struct Locked {
    pub wait_ms: i64,
}

/// An attempt that is counted as a failure until it is said to be none.
#[must_use = "a success must be said"]
#[derive(Debug, PartialEq, Eq)]
pub struct Attempt {
    email: Key,
    address: Key,
}

/// The failures of this node. One lock for both tables, held for a few lookups.
#[derive(Debug)]
pub struct Guesses(Mutex<Tables>);

#[derive(Debug)]
struct Tables {
    emails: Table,
    addresses: Table,
}

impl Default for Guesses {
    fn default() -> Self {
        Guesses(Mutex::new(Tables { emails: Table::new(EMAILS), addresses: Table::new(ADDRESSES) }))
    }
}

impl Guesses {
    /// Counts an attempt, or refuses it. `email_id` is any stable name of the e-mail, known or not.
    pub fn begin(&self, email_id: &str, address: IpAddr, now: Timestamp) -> Result<Attempt, Locked> {
        let attempt = Attempt { email: key(email_id.as_bytes()), address: address_key(address) };
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait_ms = tables.emails.wait_ms(attempt.email, now).max(tables.addresses.wait_ms(attempt.address, now));
        if wait_ms > 0 {
            return Err(Locked { wait_ms });
        }
        tables.emails.failed(attempt.email, now);
        tables.addresses.failed(attempt.address, now);
        Ok(attempt)
    }

    /// The password was right: the e-mail's failures are forgotten, and this one of the address.
    pub fn succeeded(&self, attempt: Attempt) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.emails.forget(attempt.email);
        tables.addresses.take_back(attempt.address);
    }

    /// The password was not looked at, for want of time or by a fault of ours.
    pub fn undone(&self, attempt: Attempt) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.emails.take_back(attempt.email);
        tables.addresses.take_back(attempt.address);
    }
}

/// A short name for whatever fails; nothing personal is held.
type Key = [u8; 16];

fn key(bytes: &[u8]) -> Key {
    let mut key = Key::default();
    for (to, from) in key.iter_mut().zip(Sha256::digest(bytes)) {
        *to = from;
    }
    key
}

/// Whoever has an IPv6 address has the 2^64 of its network, which therefore count as one.
fn address_key(address: IpAddr) -> Key {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).octets(),
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    failures: u32,
    failed_at: Timestamp,
    /// When the next attempt may be made. Never before `failed_at`.
    free_at: Timestamp,
}

/// Failures by key, within a bound.
#[derive(Debug)]
struct Table {
    policy: Policy,
    entries: HashMap<Key, Entry>,
    /// The same keys, by when they are free: the first to leave is the first here.
    by_freedom: BTreeSet<(Timestamp, Key)>,
}

impl Table {
    fn new(policy: Policy) -> Self {
        Table { policy, entries: HashMap::new(), by_freedom: BTreeSet::new() }
    }

    /// How long the next attempt must wait.
    fn wait_ms(&self, key: Key, now: Timestamp) -> i64 {
        // A clock set back must not lengthen the wait.
        self.entries.get(&key).map_or(0, |entry| entry.free_at.since_ms(now).clamp(0, LONGEST_WAIT_MS))
    }

    fn failed(&mut self, key: Key, now: Timestamp) {
        self.let_go(now);
        let before = self.take(key).filter(|entry| !self.is_forgotten(entry, now));
        let failures = before.map_or(0, |entry| entry.failures).saturating_add(1);
        if self.entries.len() >= self.policy.entries_max
            && let Some((_, freest)) = self.by_freedom.pop_first()
        {
            self.entries.remove(&freest);
        }
        self.put(key, failures, now);
    }

    /// One failure was none.
    fn take_back(&mut self, key: Key) {
        if let Some(entry) = self.take(key)
            && entry.failures > 1
        {
            self.put(key, entry.failures - 1, entry.failed_at);
        }
    }

    fn forget(&mut self, key: Key) {
        self.take(key);
    }

    fn take(&mut self, key: Key) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        self.by_freedom.remove(&(entry.free_at, key));
        Some(entry)
    }

    fn put(&mut self, key: Key, failures: u32, failed_at: Timestamp) {
        let free_at = failed_at.plus_ms(self.wait_after_ms(failures));
        self.entries.insert(key, Entry { failures, failed_at, free_at });
        self.by_freedom.insert((free_at, key));
    }

    /// The wait that so many failures start.
    fn wait_after_ms(&self, failures: u32) -> i64 {
        match failures.checked_sub(self.policy.first_wait_at) {
            None => 0,
            Some(doublings) => 1_i64
                .checked_shl(doublings.min(32))
                .map_or(LONGEST_WAIT_MS, |times| times.saturating_mul(FIRST_WAIT_MS).min(LONGEST_WAIT_MS)),
        }
    }

    fn is_forgotten(&self, entry: &Entry, now: Timestamp) -> bool {
        now.since_ms(entry.free_at) >= self.policy.forgotten_after_ms
    }

    /// Lets go of some of what is forgotten, so that a quiet table empties.
    fn let_go(&mut self, now: Timestamp) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some((free_at, key)) = self.by_freedom.first().copied() else { return };
            if now.since_ms(free_at) < self.policy.forgotten_after_ms {
                return;
            }
            self.by_freedom.remove(&(free_at, key));
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + ms)
    }

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn table(entries_max: usize) -> Table {
        Table::new(Policy { entries_max, ..EMAILS })
    }

    #[test]
    fn from_the_fifth_failure_on_the_wait_doubles_from_a_second_to_a_quarter_of_an_hour() {
        let guesses = Guesses::default();
        let mut now_ms = 0;
        for (failure, wait_ms) in [
            (1, 0),
            (2, 0),
            (3, 0),
            (4, 0),
            (5, 1_000),
            (6, 2_000),
            (7, 4_000),
            (8, 8_000),
            (9, 16_000),
            (10, 32_000),
            (11, 64_000),
            (12, 128_000),
            (13, 256_000),
            (14, 512_000),
            (15, 900_000),
            (16, 900_000),
            (17, 900_000),
        ] {
            // From another address each time: it is the e-mail that is guessed at.
            let _ = guesses.begin("a", address(failure), at(now_ms)).unwrap();
            if wait_ms > 0 {
                let refused = guesses.begin("a", address(100), at(now_ms));
                assert_eq!(refused, Err(Locked { wait_ms }), "after failure {failure}");
                let refused = guesses.begin("a", address(101), at(now_ms + wait_ms - 1));
                assert_eq!(refused, Err(Locked { wait_ms: 1 }), "asking does not lengthen the wait");
            }
            now_ms += wait_ms;
        }
    }

    #[test]
    fn so_many_failures_that_nobody_can_count_them_wait_no_longer_than_the_longest() {
        let table = table(1);
        for failures in [15, 36, 37, 38, 68, 69, 70, u32::MAX] {
            assert_eq!(table.wait_after_ms(failures), LONGEST_WAIT_MS, "{failures}");
        }
    }

    #[test]
    fn a_success_forgets_the_e_mails_failures_and_not_the_addresss() {
        let guesses = Guesses::default();
        for round in 0..4 {
            for _ in 0..4 {
                let _ = guesses.begin("a", address(1), at(round)).unwrap();
            }
            // The fifth is right.
            let attempt = guesses.begin("a", address(1), at(round)).unwrap();
            guesses.succeeded(attempt);
        }
        // The address has failed 16 times by now, and may 4 times more.
        for n in 0..4 {
            let _ = guesses.begin(&format!("other {n}"), address(1), at(10)).unwrap();
        }
        assert_eq!(guesses.begin("yet another", address(1), at(10)), Err(Locked { wait_ms: 1_000 }));
        assert!(guesses.begin("a", address(2), at(10)).is_ok());
    }

    #[test]
    fn attempts_at_once_are_each_counted_before_any_is_answered() {
        let guesses = Guesses::default();
        let begun = (0..100).filter(|n| guesses.begin("a", address(*n), at(0)).is_ok()).count();
        assert_eq!(begun, 5);
    }

    #[test]
    fn an_attempt_that_was_not_looked_at_leaves_no_trace() {
        let guesses = Guesses::default();
        for n in 0..1_000 {
            let attempt = guesses.begin("a", address(1), at(n)).unwrap();
            guesses.undone(attempt);
        }
        let tables = guesses.0.lock().unwrap();
        assert!(tables.emails.entries.is_empty() && tables.addresses.entries.is_empty());
        assert!(tables.emails.by_freedom.is_empty() && tables.addresses.by_freedom.is_empty());
    }

    #[test]
    fn an_attempt_taken_back_shortens_the_wait_that_it_started() {
        let guesses = Guesses::default();
        let mut last = None;
        for n in 0..5 {
            last = Some(guesses.begin("a", address(n), at(0)).unwrap());
        }
        guesses.begin("a", address(9), at(0)).unwrap_err();
        guesses.undone(last.unwrap());
        assert!(guesses.begin("a", address(9), at(0)).is_ok());
    }

    #[test]
    fn a_day_of_quiet_forgets_an_e_mails_failures() {
        let mut table = table(10);
        let key = key(b"a");
        for _ in 0..5 {
            table.failed(key, at(0));
        }
        let forgotten_ms = FIRST_WAIT_MS + EMAILS.forgotten_after_ms;
        table.failed(key, at(forgotten_ms - 1));
        assert_eq!(table.entries[&key].failures, 6);
        let forgotten_ms = forgotten_ms - 1 + 2 * FIRST_WAIT_MS + EMAILS.forgotten_after_ms;
        table.failed(key, at(forgotten_ms));
        assert_eq!(table.entries[&key].failures, 1);
    }

    #[test]
    fn one_network_of_ipv6_is_one_address_and_so_is_ipv4_in_either_form() {
        let same = |left: &str, right: &str| address_key(left.parse().unwrap()) == address_key(right.parse().unwrap());
        assert!(same("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
        assert!(same("192.0.2.1", "::ffff:192.0.2.1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
    }

    #[test]
    fn a_flood_of_e_mails_neither_grows_the_table_nor_frees_a_locked_one() {
        let mut table = table(1_000);
        let victim = key(b"victim");
        for _ in 0..15 {
            table.failed(victim, at(0));
        }
        for n in 0..100_000_i64 {
            let now = at(n * LONGEST_WAIT_MS / 100_000);
            table.failed(key(&n.to_le_bytes()), now);
            assert!(table.entries.len() <= 1_000);
            assert!(table.wait_ms(victim, now) > 0, "freed by e-mail {n}");
        }
        assert_eq!(table.entries.len(), table.by_freedom.len());
        // Nor do e-mails that are locked themselves, for less long.
        for n in 0..2_000_i64 {
            for _ in 0..6 {
                table.failed(key(&n.to_be_bytes()), at(1));
            }
        }
        assert!(table.wait_ms(victim, at(1)) > 0);
    }

    #[test]
    fn a_quiet_table_empties() {
        let mut table = table(1_000);
        for n in 0..1_000_i64 {
            table.failed(key(&n.to_le_bytes()), at(n));
        }
        for n in 0..1_000_i64 {
            table.failed(key(b"one"), at(2_000 + EMAILS.forgotten_after_ms + n));
        }
        assert_eq!(table.entries.len(), 1);
    }

    proptest! {
        #[test]
        fn the_table_and_its_order_always_agree_and_keep_their_bound(
            steps in proptest::collection::vec((0..12_u8, 0..4_u8, -2_000..100_000_i64), 0..200),
        ) {
            let mut table = table(8);
            let mut now_ms = 0;
            for (name, step, passes_ms) in steps {
                now_ms += passes_ms;
                match step {
                    0 => table.forget(key(&[name])),
                    1 => table.take_back(key(&[name])),
                    _ => table.failed(key(&[name]), at(now_ms)),
                }
                let order: BTreeSet<_> = table.entries.iter().map(|(key, entry)| (entry.free_at, *key)).collect();
                prop_assert_eq!(&order, &table.by_freedom);
                prop_assert!(table.entries.len() <= 8);
                prop_assert!(table.wait_ms(key(&[name]), at(now_ms)) <= LONGEST_WAIT_MS);
            }
        }
    }
}
