//! An e-mail address, one entity for each: which account holds it, so that no two ever do.
//!
//! It is known by its hash; the address itself must never come here. An account claims it before it is created or takes
//! it for its new one, and releases it when it has another or is deleted. Accounts number their claims, so that a
//! claim that its own release has overtaken is refused: nothing is held for ever by nobody.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Context, Decision, Entity, Timestamp, ids, time::MINUTE_MS};

/// How long a claim that was released, or lost the race against its own release, is waited for, to be refused.
pub const CLOSED_MS: i64 = 60 * MINUTE_MS;
/// How many accounts' closed claims are remembered; past it the one that is waited for longest goes.
pub const CLOSED_MAX: usize = 100;

pub struct Email;

/// HMAC-SHA256 of a normalised address under the installation's secret, in hex: the id of its entity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EmailHash(pub String);

impl EmailHash {
    pub fn is_valid(&self) -> bool {
        ids::is_sha256(&self.0)
    }
}

impl fmt::Display for EmailHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub holder: Option<Holder>,
    /// By account: claims that came to their end, until no late message of theirs can still be under way.
    pub closed: BTreeMap<String, Closed>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Holder {
    pub user: String,
    /// The account's own counter: an older word never overrides a newer one.
    pub claim: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Closed {
    /// This claim of the account and all before it.
    pub claim: u64,
    pub until: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    Claim {
        user: String,
        claim: u64,
    },
    /// Gives up this claim and all before it, also one that has not arrived yet.
    Release {
        user: String,
        claim: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Granted,
    Released,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("another account holds this e-mail address")]
    Taken,
    #[error("this claim was released")]
    Closed,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "email.claimed")]
    Claimed { user: String, claim: u64 },
    #[serde(rename = "email.released")]
    Released { user: String, claim: u64, until: Timestamp },
    /// A release came before its claim, or to one who had been refused: its late messages are refused until `until`.
    #[serde(rename = "email.closed")]
    Closed { user: String, claim: u64, until: Timestamp },
}

impl Entity for Email {
    const KIND: &'static str = "email";
    const SNAPSHOT_FORMAT: u32 = 1;

    type State = State;
    type Command = Command;
    type Event = Event;
    type Reply = Reply;
    type Rejection = Rejection;

    fn decide(state: &State, command: Command, context: &Context<'_>) -> Result<Decision<Self>, Rejection> {
        match command {
            Command::Claim { user, claim } => {
                if state.closed_of(&user) >= claim {
                    return Err(Rejection::Closed);
                }
                match &state.holder {
                    Some(holder) if holder.user != user => Err(Rejection::Taken),
                    Some(holder) if holder.claim >= claim => Ok(Decision::now(Vec::new(), Reply::Granted)),
                    _ => Ok(Decision::now(vec![Event::Claimed { user, claim }], Reply::Granted)),
                }
            }
            Command::Release { user, claim } => {
                let until = context.now.plus_ms(CLOSED_MS);
                let events = match state.holder.as_ref().filter(|holder| holder.user == user) {
                    Some(holder) if holder.claim > claim => Vec::new(),
                    Some(_) => vec![Event::Released { user, claim, until }],
                    None if state.closed_of(&user) >= claim => Vec::new(),
                    None => vec![Event::Closed { user, claim, until }],
                };
                Ok(Decision::now(events, Reply::Released))
            }
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Claimed { user, claim } => state.holder = Some(Holder { user: user.clone(), claim: *claim }),
            Event::Released { user, claim, until } => {
                state.holder = None;
                state.close(user, *claim, *until);
            }
            Event::Closed { user, claim, until } => state.close(user, *claim, *until),
        }
    }

    /// Somebody logs in by it now and then; that is no reason to keep it.
    fn is_at_rest(_state: &State) -> bool {
        true
    }
}

impl State {
    /// The account's newest claim that came to its end; accounts count from 1.
    fn closed_of(&self, user: &str) -> u64 {
        self.closed.get(user).map_or(0, |closed| closed.claim)
    }

    /// Remembers the claim, and forgets those whose time had passed when this was decided.
    fn close(&mut self, user: &str, claim: u64, until: Timestamp) {
        let now = until.plus_ms(-CLOSED_MS);
        self.closed.retain(|_, closed| closed.until > now);
        self.closed.insert(user.to_owned(), Closed { claim, until });
        if self.closed.len() > CLOSED_MAX {
            let longest = self.closed.iter().min_by_key(|(_, closed)| closed.until).map(|(user, _)| user.clone());
            longest.and_then(|user| self.closed.remove(&user));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::testing::{Given, at, given};

    fn claim(user: &str, claim: u64) -> Command {
        Command::Claim { user: user.to_owned(), claim }
    }

    fn release(user: &str, claim: u64) -> Command {
        Command::Release { user: user.to_owned(), claim }
    }

    fn claimed(user: &str, claim: u64) -> Event {
        Event::Claimed { user: user.to_owned(), claim }
    }

    fn released(user: &str, claim: u64) -> Event {
        Event::Released { user: user.to_owned(), claim, until: at(CLOSED_MS) }
    }

    fn closed(user: &str, claim: u64) -> Event {
        Event::Closed { user: user.to_owned(), claim, until: at(CLOSED_MS) }
    }

    fn email(events: impl IntoIterator<Item = Event>) -> Given<Email> {
        given(events)
    }

    #[test]
    fn the_first_to_claim_holds_it_and_any_other_is_refused() {
        let held = email([]).when(claim("ada", 1)).then(vec![claimed("ada", 1)], Reply::Granted).and();
        held.when(claim("bob", 1)).then_refused(Rejection::Taken);
        held.when(claim("ada", 1)).then_nothing_but(Reply::Granted);
    }

    #[test]
    fn only_its_holder_releases_it_and_then_it_is_free() {
        let held = email([claimed("ada", 1)]);
        let still = held.when(release("bob", 1)).then(vec![closed("bob", 1)], Reply::Released).and();
        still.when(claim("cleo", 1)).then_refused(Rejection::Taken);
        let free = held.when(release("ada", 1)).then(vec![released("ada", 1)], Reply::Released).and();
        free.when(release("ada", 1)).then_nothing_but(Reply::Released);
        free.when(claim("bob", 1)).then(vec![claimed("bob", 1)], Reply::Granted);
    }

    #[test]
    fn a_claim_that_its_own_release_has_overtaken_is_refused() {
        let overtaken = email([]).when(release("ada", 2)).then(vec![closed("ada", 2)], Reply::Released).and();
        overtaken.when(claim("ada", 2)).then_refused(Rejection::Closed);
        overtaken.when(release("ada", 2)).then_nothing_but(Reply::Released);
        overtaken.when(claim("bob", 1)).then(vec![claimed("bob", 1)], Reply::Granted);
        let repeated = email([claimed("ada", 1), released("ada", 1)]);
        repeated.when(claim("ada", 1)).then_refused(Rejection::Closed);
    }

    #[test]
    fn an_account_that_comes_back_holds_it_by_its_newest_claim() {
        let back = email([claimed("ada", 1), released("ada", 1)]);
        let back = back.when(claim("ada", 3)).then(vec![claimed("ada", 3)], Reply::Granted).and();
        back.when(release("ada", 1)).then_nothing_but(Reply::Released);
        let overtaking = email([claimed("ada", 1)]).when(claim("ada", 3)).then(vec![claimed("ada", 3)], Reply::Granted).and();
        overtaking.when(release("ada", 1)).then_nothing_but(Reply::Released);
        overtaking.when(claim("bob", 1)).then_refused(Rejection::Taken);
    }

    #[test]
    fn closed_claims_are_forgotten_in_time_and_never_grow_past_their_bound() {
        let later = email([closed("ada", 1)]).at(CLOSED_MS).after([release("bob", 1)]);
        assert_eq!(later.state.closed.keys().collect::<Vec<_>>(), ["bob"]);
        let many = email((0..=CLOSED_MAX as i64).map(|number| Event::Closed {
            user: format!("{:03}", CLOSED_MAX as i64 - number),
            claim: 1,
            until: at(CLOSED_MS + number),
        }));
        assert_eq!(many.state.closed.len(), CLOSED_MAX);
        assert!(!many.state.closed.contains_key("100"), "the one that is waited for longest went");
    }
}
