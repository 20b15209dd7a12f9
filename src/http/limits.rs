//! How much one caller may ask: a budget for each kind of request, which refills all the time.
//!
//! The rule is GCRA, the leaky bucket read as a meter. Of each caller one number is kept: the moment at which its budget is
//! whole again. A request moves that moment on by one interval, and is refused if it would then lie further ahead than
//! the whole budget lasts. Refused requests cost nothing, so whoever keeps asking is not locked out for ever.
//!
//! Callers that are remembered have a bound, whoever asks and from however many addresses, which is why this is not a
//! crate's keyed limiter: those keep every key until they are swept. Here a shard has two generations. A caller who asks
//! is written into the young one; when that is full, or has lasted as long as a budget takes to refill, the old one is
//! dropped and the young one becomes old. What leaves by age was whole again and is no loss. What leaves by fullness gets
//! its budget anew, and whoever can send from that many addresses has as many budgets anyway.
//!
//! Budgets are of this node: behind a balancer over several nodes a caller has that many times the budget.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use warp::http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::actors::credential::{Account, Credential, OPERATOR};

// The three headers of the earlier revisions of the IETF draft "RateLimit header fields for HTTP", because these are what
// clients know. Later revisions put the same into one structured field.
pub const RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
pub const RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
pub const RATELIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Callers remembered in each budget.
const CALLERS_MAX: usize = 65_536;
/// So that two requests seldom wait for the same lock.
const SHARDS: usize = 16;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// What a quota may say; more than these is no limit, and its numbers could overflow.
const QUOTA_MAX: u32 = 1_000_000;

/// What a request is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Budget {
    Reads,
    Writes,
    /// Whatever shows or sets a password.
    Login,
    Checkout,
    /// Claims in flash sales, where everybody comes at once.
    Claims,
    /// The operator's requests, whatever they are. No route names it.
    Operator,
}

impl Budget {
    pub const ALL: [Budget; 6] =
        [Budget::Reads, Budget::Writes, Budget::Login, Budget::Checkout, Budget::Claims, Budget::Operator];

    pub fn name(self) -> &'static str {
        match self {
            Budget::Reads => "reads",
            Budget::Writes => "writes",
            Budget::Login => "login",
            Budget::Checkout => "checkout",
            Budget::Claims => "claims",
            Budget::Operator => "operator",
        }
    }
}

/// Whose budget it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// An API key, by its id.
    Key(Arc<str>),
    /// Somebody signed in, by the account's id.
    Account(Arc<str>),
    /// Everybody else: a guest's token is free to make, so it says nothing about who asks.
    Address(IpAddr),
    Operator,
}

impl Who {
    /// Who asks. Passwords are tried by address, whoever one has shown to be: a hundred accounts are no more guesses.
    pub fn of(budget: Budget, credential: &Credential, client: IpAddr) -> Self {
        match (budget, credential.account()) {
            (Budget::Login, _) | (_, None) => Who::Address(network(client)),
            (_, Some(account)) if &*account.user == OPERATOR => Who::Operator,
            (_, Some(Account { key: Some(key), .. })) => Who::Key(Arc::clone(&key.id)),
            (_, Some(account)) => Who::Account(Arc::clone(&account.user)),
        }
    }
}

/// What counts as one address. A home is given a /64 of IPv6, and could send from all of it.
pub fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

/// How much there is of a budget: `50/s:500` is 50 requests a second on average and 500 at once; `0` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota(Option<Rate>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate {
    interval_ns: u64,
    burst: u32,
}

impl Rate {
    /// How long it takes to refill.
    fn window_ns(&self) -> u64 {
        self.interval_ns.saturating_mul(u64::from(self.burst))
    }
}

impl Quota {
    pub const UNLIMITED: Quota = Quota(None);

    const fn per_second(rate: u32, burst: u32) -> Self {
        Quota(Some(Rate { interval_ns: NANOS_PER_SECOND / rate as u64, burst }))
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "expected `0` for no limit, or a rate and how many may come at once, each from 1 to {QUOTA_MAX}: 50/s:500, 30/min:20, 10/h:5"
)]
pub struct NotAQuota;

impl FromStr for Quota {
    type Err = NotAQuota;

    fn from_str(text: &str) -> Result<Self, NotAQuota> {
        if text == "0" {
            return Ok(Quota::UNLIMITED);
        }
        let count = |text: &str| match text.parse::<u32>() {
            Ok(count) if (1..=QUOTA_MAX).contains(&count) => Ok(count),
            _ => Err(NotAQuota),
        };
        let (rate, burst) = text.split_once(':').ok_or(NotAQuota)?;
        let (rate, unit) = rate.split_once('/').ok_or(NotAQuota)?;
        let seconds = match unit {
            "s" => 1,
            "min" => 60,
            "h" => 3_600,
            _ => return Err(NotAQuota),
        };
        let interval_ns = seconds * NANOS_PER_SECOND / u64::from(count(rate)?);
        Ok(Quota(Some(Rate { interval_ns, burst: count(burst)? })))
    }
}

/// Written as it is read, in the largest number of whole requests.
impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(rate) = self.0 else { return f.write_str("0") };
        let (seconds, unit) = match rate.interval_ns {
            ..=NANOS_PER_SECOND => (1, "s"),
            ns if ns <= 60 * NANOS_PER_SECOND => (60, "min"),
            _ => (3_600, "h"),
        };
        write!(f, "{}/{unit}:{}", seconds * NANOS_PER_SECOND / rate.interval_ns, rate.burst)
    }
}

/// The quota of each budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    pub reads: Quota,
    pub writes: Quota,
    pub login: Quota,
    pub checkout: Quota,
    pub claims: Quota,
    pub operator: Quota,
}

impl Quotas {
    pub const UNLIMITED: Quotas = Quotas {
        reads: Quota::UNLIMITED,
        writes: Quota::UNLIMITED,
        login: Quota::UNLIMITED,
        checkout: Quota::UNLIMITED,
        claims: Quota::UNLIMITED,
        operator: Quota::UNLIMITED,
    };
}

/// One address may be an office or a part of a mobile network: these are for a crowd of shoppers behind it.
impl Default for Quotas {
    fn default() -> Self {
        Quotas {
            reads: Quota::per_second(100, 1_000),
            writes: Quota::per_second(30, 300),
            login: Quota::per_second(1, 60),
            checkout: Quota::per_second(5, 100),
            claims: Quota::per_second(10, 300),
            operator: Quota::per_second(1_000, 10_000),
        }
    }
}

/// What became of a request, and how the budget stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    pub budget: Budget,
    pub granted: bool,
    /// As many as may come at once.
    pub limit: u32,
    /// How many more may come now.
    pub remaining: u32,
    /// In how many seconds the budget is whole again; for a request that was refused, in how many the next one is granted,
    /// so that `RateLimit-Reset` and `Retry-After` say the same.
    pub reset_s: u32,
}

impl Spent {
    pub fn tell(&self, headers: &mut HeaderMap) {
        headers.insert(RATELIMIT_LIMIT, HeaderValue::from(self.limit));
        headers.insert(RATELIMIT_REMAINING, HeaderValue::from(self.remaining));
        headers.insert(RATELIMIT_RESET, HeaderValue::from(self.reset_s));
    }
}

/// All budgets of all callers. Touched by every request, from all threads.
pub struct Limits {
    began: Instant,
    reads: Table,
    writes: Table,
    login: Table,
    checkout: Table,
    claims: Table,
    operator: Table,
}

impl Limits {
    pub fn new(quotas: Quotas) -> Self {
        let table = |quota| Table::new(quota, CALLERS_MAX);
        Limits {
            began: Instant::now(),
            reads: table(quotas.reads),
            writes: table(quotas.writes),
            login: table(quotas.login),
            checkout: table(quotas.checkout),
            claims: table(quotas.claims),
            operator: table(quotas.operator),
        }
    }

    /// Takes one request from the caller's budget; `None` when that has no limit.
    pub fn spend(&self, budget: Budget, who: &Who) -> Option<Spent> {
        let budget = if *who == Who::Operator { Budget::Operator } else { budget };
        let table = match budget {
            Budget::Reads => &self.reads,
            Budget::Writes => &self.writes,
            Budget::Login => &self.login,
            Budget::Checkout => &self.checkout,
            Budget::Claims => &self.claims,
            Budget::Operator => &self.operator,
        };
        table.spend(budget, who, u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// The callers of one budget.
struct Table {
    quota: Quota,
    callers_max: usize,
    /// Seeded at random: nobody can choose addresses that meet in one shard.
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
}

#[derive(Default)]
struct Shard {
    young: HashMap<Who, u64>,
    old: HashMap<Who, u64>,
    /// When the old generation was the young one last.
    turned_ns: u64,
}

impl Table {
    fn new(quota: Quota, callers_max: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Table { quota, callers_max, hasher: RandomState::new(), shards }
    }

    fn spend(&self, budget: Budget, who: &Who, now_ns: u64) -> Option<Spent> {
        let rate = self.quota.0?;
        let index = usize::try_from(self.hasher.hash_one(who)).unwrap_or(0) % SHARDS;
        let mut shard = self.shards.get(index)?.lock().unwrap_or_else(PoisonError::into_inner);
        let (spent, whole_at_ns) = spend(&rate, budget, shard.whole_at(who), now_ns);
        shard.set(who, whole_at_ns, now_ns, rate.window_ns(), self.callers_max / SHARDS / 2);
        Some(spent)
    }

    #[cfg(test)]
    fn callers(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap()).map(|shard| shard.young.len() + shard.old.len()).sum()
    }
}

impl Shard {
    /// When this caller's budget is whole again; 0 for one who is not known.
    fn whole_at(&self, who: &Who) -> u64 {
        self.young.get(who).or_else(|| self.old.get(who)).copied().unwrap_or(0)
    }

    fn set(&mut self, who: &Who, whole_at_ns: u64, now_ns: u64, window_ns: u64, generation_max: usize) {
        if let Some(known) = self.young.get_mut(who) {
            *known = whole_at_ns;
            return;
        }
        if self.young.len() >= generation_max || now_ns.saturating_sub(self.turned_ns) > window_ns {
            self.old = std::mem::take(&mut self.young);
            self.turned_ns = now_ns;
        }
        self.young.insert(who.clone(), whole_at_ns);
    }
}

/// The rule: what becomes of a request, and when the budget is then whole again.
fn spend(rate: &Rate, budget: Budget, whole_at_ns: u64, now_ns: u64) -> (Spent, u64) {
    let window_ns = rate.window_ns();
    let whole_at_ns = whole_at_ns.max(now_ns);
    let then_ns = whole_at_ns.saturating_add(rate.interval_ns);
    let used_ns = then_ns - now_ns;
    let spent = |granted, remaining, wait_ns: u64| Spent {
        budget,
        granted,
        limit: rate.burst,
        remaining,
        reset_s: u32::try_from(wait_ns.div_ceil(NANOS_PER_SECOND)).unwrap_or(u32::MAX),
    };
    match window_ns.checked_sub(used_ns) {
        None => (spent(false, 0, used_ns - window_ns), whole_at_ns),
        Some(free_ns) => {
            let remaining = u32::try_from(free_ns / rate.interval_ns).unwrap_or(rate.burst);
            (spent(true, remaining, used_ns), then_ns)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::credential::Key;
    use proptest::prelude::*;

    const SECOND: u64 = NANOS_PER_SECOND;

    fn quota(text: &str) -> Quota {
        text.parse().unwrap()
    }

    fn somebody(number: u32) -> Who {
        Who::Address(IpAddr::from(number.to_be_bytes()))
    }

    #[test]
    fn a_quota_is_read_as_it_is_written_and_nonsense_is_refused() {
        for text in ["0", "50/s:500", "1000000/s:1000000", "1/s:1", "30/min:20", "10/h:5", "1/h:1000000"] {
            assert_eq!(quota(text).to_string(), text);
        }
        for (given, same) in [("60/min:5", "1/s:5"), ("3600/h:2", "1/s:2"), ("60/h:9", "1/min:9")] {
            assert_eq!(quota(given).to_string(), same);
        }
        for wrong in
            ["", "50", "50/s", "50:5", "/s:5", "5/:5", "5/s:", "0/s:5", "5/s:0", "-1/s:5", "1.5/s:5", "5/d:5", "1000001/s:1"]
        {
            assert!(wrong.parse::<Quota>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_budget_lets_a_burst_through_and_then_its_rate() {
        let table = Table::new(quota("2/s:4"), 1_000);
        let me = somebody(1);
        // (milliseconds, granted, remaining, reset)
        for (now_ms, granted, remaining, reset_s) in [
            (0, true, 3, 1),
            (0, true, 2, 1),
            (0, true, 1, 2),
            (0, true, 0, 2),
            (0, false, 0, 1),
            (499, false, 0, 1),
            (500, true, 0, 2),
            (500, false, 0, 1),
            (1_600, true, 1, 2),
            (1_600, true, 0, 2),
            (1_600, false, 0, 1),
            (60_000, true, 3, 1),
        ] {
            let spent = table.spend(Budget::Reads, &me, now_ms * 1_000_000).unwrap();
            assert_eq!((spent.granted, spent.remaining, spent.reset_s), (granted, remaining, reset_s), "at {now_ms} ms");
            assert_eq!(spent.limit, 4);
        }
        let slow = Table::new(quota("1/min:1"), 1_000);
        assert_eq!(slow.spend(Budget::Login, &me, 0).unwrap().reset_s, 60);
        let refused = slow.spend(Budget::Login, &me, 20 * SECOND).unwrap();
        assert_eq!((refused.granted, refused.reset_s), (false, 40), "the next one is granted then");
        assert!(slow.spend(Budget::Login, &me, 60 * SECOND).unwrap().granted);
    }

    #[test]
    fn each_caller_has_its_own_budget_of_each_kind_and_a_quota_of_0_has_no_limit() {
        let one = quota("1/h:1");
        let limits = Limits::new(Quotas { reads: one, writes: one, login: one, operator: quota("1/h:2"), ..Quotas::UNLIMITED });
        let granted = |budget, who| limits.spend(budget, &who).map(|spent: Spent| (spent.budget.name(), spent.granted));
        let callers = || [somebody(1), somebody(2), Who::Account("usr_1".into()), Who::Key("usr_1".into())];
        for (budget, name) in [(Budget::Reads, "reads"), (Budget::Writes, "writes"), (Budget::Login, "login")] {
            for expected in [true, false, false] {
                for who in callers() {
                    assert_eq!(granted(budget, who), Some((name, expected)));
                }
            }
        }
        for who in callers() {
            assert_eq!(granted(Budget::Checkout, who), None);
        }
        for (budget, expected) in [(Budget::Reads, true), (Budget::Checkout, true), (Budget::Writes, false)] {
            assert_eq!(granted(budget, Who::Operator), Some(("operator", expected)));
        }
    }

    #[test]
    fn a_guest_counts_by_address_and_whoever_is_signed_in_apart() {
        let who = |budget, caller: Credential, address: &str| Who::of(budget, &caller, address.parse().unwrap());
        let account = |user: &str, key: Option<&str>| {
            let key = key.map(|id| Key { id: id.into(), scopes: Vec::new() });
            Credential::Account(Arc::new(Account { user: user.into(), session: None, ranks: Vec::new(), shop: None, key }))
        };
        let address = |text: &str| Who::Address(text.parse().unwrap());
        for (token, client, expected) in [
            (Credential::Nobody, "192.0.2.7", "192.0.2.7"),
            (Credential::guest("guest"), "192.0.2.7", "192.0.2.7"),
            (Credential::Nobody, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            (Credential::Nobody, "2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"),
            (Credential::Nobody, "::ffff:192.0.2.7", "192.0.2.7"),
        ] {
            assert_eq!(who(Budget::Reads, token, client), address(expected), "{client}");
        }
        assert_eq!(who(Budget::Writes, account(OPERATOR, None), "192.0.2.7"), Who::Operator);
        assert_eq!(who(Budget::Writes, account("ada", None), "192.0.2.7"), Who::Account("ada".into()));
        assert_eq!(who(Budget::Writes, account("ada", Some("key")), "192.0.2.7"), Who::Key("key".into()));
        for user in [OPERATOR, "ada"] {
            assert_eq!(who(Budget::Login, account(user, None), "192.0.2.7"), address("192.0.2.7"));
        }
    }

    #[test]
    fn a_flood_of_addresses_does_not_grow_the_table_and_does_not_free_whoever_is_still_asking() {
        const MAX: usize = 1_600;
        let table = Table::new(quota("1/h:1"), MAX);
        let me = somebody(u32::MAX);
        assert!(table.spend(Budget::Login, &me, 0).unwrap().granted);
        for number in 0..100_000 {
            table.spend(Budget::Login, &somebody(number), 1).unwrap();
            if number % 100 == 0 {
                assert!(!table.spend(Budget::Login, &me, 1).unwrap().granted, "after {number}");
                assert!(table.callers() <= MAX, "{}", table.callers());
            }
        }
    }

    #[test]
    fn callers_who_are_idle_are_forgotten_when_their_budget_is_whole() {
        let table = Table::new(quota("1/s:10"), 100_000);
        for number in 0..1_000 {
            table.spend(Budget::Reads, &somebody(number), 0);
        }
        assert_eq!(table.callers(), 1_000);
        // Two generations later nobody of them is left.
        for (now_s, at_most) in [(11, 2_000), (22, 2_000), (33, 1_000)] {
            for number in 0..200 {
                table.spend(Budget::Reads, &somebody(1_000_000 + now_s * 1_000 + number), u64::from(now_s) * SECOND);
            }
            assert!(table.callers() <= at_most, "{} after {now_s} s", table.callers());
        }
        assert_eq!(table.callers(), 400);
    }

    proptest! {
        #[test]
        fn in_no_stretch_of_time_is_more_granted_than_the_burst_and_the_rate(
            per_second in 1_u32..50,
            burst in 1_u32..20,
            steps_ms in prop::collection::vec(0_u64..400, 1..200),
        ) {
            let table = Table::new(Quota::per_second(per_second, burst), 1_000);
            let (mut now_ns, mut granted_at) = (0, Vec::new());
            for step_ms in steps_ms {
                now_ns += step_ms * 1_000_000;
                let spent = table.spend(Budget::Reads, &somebody(1), now_ns).unwrap();
                prop_assert!(spent.remaining < burst);
                if spent.granted {
                    granted_at.push(now_ns);
                }
            }
            let interval_ns = SECOND / u64::from(per_second);
            for (first, from_ns) in granted_at.iter().enumerate() {
                for (last, to_ns) in granted_at.iter().enumerate().skip(first) {
                    let most = u64::from(burst) + (to_ns - from_ns) / interval_ns;
                    prop_assert!((last - first + 1) as u64 <= most, "{} between {from_ns} and {to_ns}", last - first + 1);
                }
            }
        }
    }
}
