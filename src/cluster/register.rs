//! This node's entry in the register, and whom the node must wait for before it answers reads from memory.
//!
//! The register is a small replicated log with a compare-and-set for each member's newest entry. A member that wants a
//! lease writes itself into it, again and again. Who is silent on the network cannot be told from who cannot be heard; the
//! register can tell: whoever wants to do without a silent member writes `out` over its entry, which succeeds only if the
//! member has not written for a while, and makes the member's next write fail.
//!
//! - A node *registers* with its first entry, and *then* reads the register: whoever is in it may hold a lease (a *holder*).
//!   Of two registered nodes, the later one thus knows of the earlier one, whatever the network does.
//! - Nothing is gained before `STANDING_MS` after registering: what an overwritten or lost entry allowed is over by then.
//! - A holder is let go when it is silent and *cleared*: its entry says `left` or `out`, or is another's or lost since
//!   `STANDING_MS`, or this node has written `out` over an entry that stood still for `STANDING_MS`.
//! - Should the register be lost or set back, a node's next write fails, and it registers anew.
//!
//! Pure: it is told the time and what came of the operations that it asks for, one at a time.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::beat::Incarnation;
use super::membership::{Rule, Rules, SILENCE_MS};
use super::wire::{Entry, Name, PutError, WireError};

/// From one write of the own entry to the next.
const PUT_MS: u64 = 400;
/// An operation without an answer by now has an unknown outcome.
pub const OPERATION_MS: u64 = 1_000;
/// From one look at the register to the next while somebody is silent.
const LOOK_MS: u64 = 250;
/// After an operation that failed, with as much again at random.
const BACKOFF_MS: u64 = 150;
/// A member that is silent for this long is looked up in the register, so that it is known by the end of `SILENCE_MS` whether
/// its entry stands still.
const SUSPECT_MS: u64 = 500;
/// An entry that did not change for this long brings no lease any more.
pub const STANDING_MS: u64 = 1_500;
/// Reads without our newest entry, after which it is taken for lost and not for late.
const READS_BEHIND_MAX: u32 = 4;
/// A namesake that neither hears nor is heard, and that pushes our entry aside so often, lives: the older process ends.
const PUSHED_ASIDE_MAX: u32 = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Put { member: Name, expected: u64, payload: Bytes },
    Read,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    Put(Result<u64, PutError>),
    Read(Result<Vec<Entry>, WireError>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub incarnation: Incarnation,
    /// Counts the writes of an incarnation.
    pub number: u64,
    pub says: Says,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Says {
    Here,
    Left,
    /// Written by another: it did without this one.
    Out,
}

/// A member in one of its lives.
pub type Life = (Name, Incarnation);

#[derive(Debug, Default)]
struct Holder {
    /// When it was last heard on the network; 0 when never.
    heard_ms: u64,
    /// The sequence of its entry, and since when that stands there.
    entry: Option<(u64, u64)>,
    /// From then on nothing counts that it was granted before it was last heard.
    cleared_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Own,
    Read,
    Out,
    Left,
}

#[derive(Debug)]
struct InFlight {
    id: u64,
    kind: Kind,
    sent_ms: u64,
    /// Whose entry `Out` is written over.
    life: Option<Life>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// A newer process writes itself in under our name again and again.
    Taken,
}

pub struct Register {
    name: Name,
    incarnation: Incarnation,
    rules: Rules,
    random: fastrand::Rng,
    in_flight: Option<InFlight>,
    operations: u64,
    not_before_ms: u64,
    put_due_ms: u64,
    look_due_ms: u64,
    /// The sequence of the own entry as it should be; `None` when it must be read first.
    own: Option<u64>,
    /// The newest of this process that was acknowledged; 0 when there is none, or the register was lost since.
    newest: u64,
    number: u64,
    /// When the first write of this registration was known to be stored, which is later than when it was.
    registered_ms: Option<u64>,
    /// When the newest acknowledged write of this registration was sent.
    acknowledged_ms: Option<u64>,
    /// Whether the register was read since registering.
    holders_known: bool,
    reads_behind: u32,
    /// How often another process has written itself in under our name, in this life.
    pushed_aside: u32,
    holders: BTreeMap<Life, Holder>,
    is_leaving: bool,
}

impl Register {
    pub fn new(name: Name, incarnation: Incarnation, rules: Rules, seed: u64) -> Self {
        Register {
            name,
            incarnation,
            rules,
            random: fastrand::Rng::with_seed(seed),
            in_flight: None,
            operations: 0,
            not_before_ms: 0,
            put_due_ms: 0,
            look_due_ms: 0,
            own: None,
            newest: 0,
            number: 0,
            registered_ms: None,
            acknowledged_ms: None,
            holders_known: false,
            reads_behind: 0,
            pushed_aside: 0,
            holders: BTreeMap::new(),
            is_leaving: false,
        }
    }

    /// Begins a new life, not registered.
    pub fn rejoin(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
        self.in_flight = None;
        self.number = 0;
        self.pushed_aside = 0;
        self.unregister();
    }

    fn unregister(&mut self) {
        self.own = None;
        self.registered_ms = None;
        self.acknowledged_ms = None;
        self.holders_known = false;
        self.reads_behind = 0;
    }

    /// A member that claims to own something was heard.
    pub fn heard(&mut self, life: &Life, now_ms: u64) {
        let holder = match self.holders.get_mut(life) {
            Some(holder) => holder,
            None => self.holders.entry(life.clone()).or_default(),
        };
        // It may have registered anew, and rely on our acknowledgement.
        holder.cleared_ms = None;
        holder.heard_ms = now_ms;
    }

    /// A member said good-bye, having given up its lease before.
    pub fn left(&mut self, life: &Life) {
        self.holders.remove(life);
    }

    pub fn leave(&mut self) {
        self.is_leaving = true;
        self.put_due_ms = 0;
    }

    pub fn holders(&self) -> impl Iterator<Item = &Life> {
        self.holders.keys()
    }

    /// Until when the newest acknowledged write allows a lease.
    pub fn lease_until_ms(&self) -> Option<u64> {
        self.acknowledged_ms.map(|sent_ms| sent_ms + self.rules.lease_ms())
    }

    /// Whether all holders are known, and nobody can have a grant that is not one of them.
    pub fn is_complete(&self, now_ms: u64) -> bool {
        self.holders_known && self.registered_ms.is_some_and(|registered_ms| now_ms >= registered_ms + STANDING_MS)
    }

    pub fn is_registered(&self) -> bool {
        self.registered_ms.is_some()
    }

    /// Lets holders go that are silent and cleared.
    pub fn let_go(&mut self, now_ms: u64, unheard_ms: impl Fn(&Life) -> u64) {
        let must_be_cleared = self.rules.keep(Rule::ClearInRegister);
        self.holders.retain(|life, holder| {
            let is_cleared = holder.cleared_ms.is_some_and(|cleared_ms| cleared_ms <= now_ms) || !must_be_cleared;
            unheard_ms(life) < SILENCE_MS || !is_cleared
        });
    }

    /// What to do next, if anything. `wants` is whether the node wants to be in the register.
    pub fn next(&mut self, now_ms: u64, wants: bool, unheard_ms: impl Fn(&Life) -> u64) -> Option<(u64, Operation)> {
        if let Some(in_flight) = &self.in_flight {
            if now_ms < in_flight.sent_ms + OPERATION_MS {
                return None;
            }
            let (id, unknown) = (in_flight.id, "no answer".to_owned());
            let done = match in_flight.kind {
                Kind::Read => Done::Read(Err(WireError(unknown))),
                Kind::Own | Kind::Out | Kind::Left => Done::Put(Err(PutError::Unknown(unknown))),
            };
            // Nothing was read, so nothing can be found.
            let _ = self.done(id, done, now_ms);
        }
        let (kind, life, operation) = self.choose(now_ms, wants, unheard_ms)?;
        self.operations += 1;
        self.in_flight = Some(InFlight { id: self.operations, kind, sent_ms: now_ms, life });
        Some((self.operations, operation))
    }

    fn choose(&mut self, now_ms: u64, wants: bool, unheard_ms: impl Fn(&Life) -> u64) -> Option<(Kind, Option<Life>, Operation)> {
        if now_ms < self.not_before_ms {
            return None;
        }
        if self.is_leaving {
            let expected = self.own.take_if(|_| self.registered_ms.is_some())?;
            return Some((Kind::Left, None, self.put(Says::Left, expected)));
        }
        if !wants {
            return None;
        }
        let Some(expected) = self.own else {
            return Some((Kind::Read, None, Operation::Read));
        };
        if self.put_due_ms <= now_ms {
            self.put_due_ms = now_ms + PUT_MS;
            return Some((Kind::Own, None, self.put(Says::Here, expected)));
        }
        self.registered_ms?;
        if !self.holders_known {
            return Some((Kind::Read, None, Operation::Read));
        }
        self.look_after_the_silent(now_ms, unheard_ms)
    }

    fn put(&mut self, says: Says, expected: u64) -> Operation {
        self.number += 1;
        let payload = line(&Line { incarnation: self.incarnation, number: self.number, says });
        Operation::Put { member: self.name.clone(), expected, payload }
    }

    fn look_after_the_silent(
        &mut self,
        now_ms: u64,
        unheard_ms: impl Fn(&Life) -> u64,
    ) -> Option<(Kind, Option<Life>, Operation)> {
        let silent = |life: &Life| unheard_ms(life) >= SUSPECT_MS;
        let mut suspects = self.holders.iter().filter(|(life, holder)| holder.cleared_ms.is_none() && silent(life));
        let mut is_suspected = false;
        let standing_ms = if self.rules.keep(Rule::OutOnlyWhatStands) { STANDING_MS } else { 0 };
        let standing = suspects.find_map(|(life, holder)| {
            is_suspected = true;
            let (sequence, since_ms) = holder.entry?;
            (unheard_ms(life) >= SILENCE_MS && now_ms >= since_ms + standing_ms).then(|| (life.clone(), sequence))
        });
        if let Some((life, expected)) = standing {
            let payload = line(&Line { incarnation: life.1, number: 0, says: Says::Out });
            let operation = Operation::Put { member: life.0.clone(), expected, payload };
            return Some((Kind::Out, Some(life), operation));
        }
        if !is_suspected || now_ms < self.look_due_ms {
            return None;
        }
        self.look_due_ms = now_ms + LOOK_MS;
        Some((Kind::Read, None, Operation::Read))
    }

    /// What came of an operation. Answers late, doubled or of an earlier life count for nothing.
    #[must_use]
    pub fn done(&mut self, id: u64, done: Done, now_ms: u64) -> Found {
        let Some(in_flight) = self.in_flight.take_if(|in_flight| in_flight.id == id) else {
            return Found::Nothing;
        };
        match (in_flight.kind, done) {
            (Kind::Own, Done::Put(Ok(sequence))) => {
                self.registered_ms.get_or_insert(now_ms);
                self.own = Some(sequence);
                self.newest = sequence;
                self.acknowledged_ms = Some(in_flight.sent_ms);
            }
            (Kind::Own, Done::Put(Err(_))) => {
                self.own = None;
                self.put_due_ms = 0;
                self.back_off(now_ms);
            }
            (Kind::Out, Done::Put(Ok(_))) => {
                if let Some(holder) = in_flight.life.and_then(|life| self.holders.get_mut(&life)) {
                    holder.cleared_ms = Some(now_ms);
                }
            }
            (Kind::Out, Done::Put(Err(_))) => {
                // It lives after all, or somebody was quicker: looked up anew.
                if let Some(holder) = in_flight.life.and_then(|life| self.holders.get_mut(&life)) {
                    holder.entry = None;
                }
                self.back_off(now_ms);
            }
            (Kind::Read, Done::Read(Ok(entries))) => return self.read(&entries, now_ms),
            (Kind::Read, _) => self.back_off(now_ms),
            (Kind::Left, _) | (_, Done::Read(_)) => {}
        }
        Found::Nothing
    }

    fn back_off(&mut self, now_ms: u64) {
        self.not_before_ms = now_ms + BACKOFF_MS + self.random.u64(..BACKOFF_MS);
    }

    fn read(&mut self, entries: &[Entry], now_ms: u64) -> Found {
        let own = entries.iter().find(|entry| entry.member == self.name);
        let (sequence, own_line) = own.map_or((0, None), |entry| (entry.sequence, parsed(entry)));
        if sequence < self.newest {
            // The server that answered is behind, or the register was lost.
            self.reads_behind += 1;
            if self.reads_behind >= READS_BEHIND_MAX {
                self.unregister();
                self.newest = 0;
            }
            self.back_off(now_ms);
            return Found::Nothing;
        }
        self.reads_behind = 0;
        let is_ours = own_line.as_ref().is_some_and(|line| line.incarnation == self.incarnation && line.says == Says::Here);
        if !is_ours {
            let other = own_line.filter(|line| line.says == Says::Here).map(|line| line.incarnation.process);
            if let Some(other) = other.filter(|other| *other != self.incarnation.process && self.registered_ms.is_some()) {
                self.pushed_aside += 1;
                // Once may have been the last deed of a process that has ended since.
                if self.pushed_aside >= PUSHED_ASIDE_MAX && other > self.incarnation.process {
                    return Found::Taken;
                }
            }
            self.unregister();
            self.own = Some(sequence);
            return Found::Nothing;
        }
        self.own = Some(sequence);
        self.newest = sequence;
        // If not by an acknowledgement, then by a write whose outcome was unknown.
        self.registered_ms.get_or_insert(now_ms);
        self.meet(entries, now_ms);
        self.holders_known = true;
        Found::Nothing
    }

    /// Takes in what the register says of others.
    fn meet(&mut self, entries: &[Entry], now_ms: u64) {
        let lines: BTreeMap<&Name, (u64, Line)> = entries
            .iter()
            .filter(|entry| entry.member != self.name)
            .filter_map(|entry| Some((&entry.member, (entry.sequence, parsed(entry)?))))
            .collect();
        for (name, (_, line)) in &lines {
            if line.says == Says::Here {
                self.holders.entry(((*name).clone(), line.incarnation)).or_default();
            }
        }
        // What was read may be old, but has our newest acknowledged write. It says nothing new of a member that was heard since
        // that was sent: that may have registered in between.
        let known_ms = self.acknowledged_ms.unwrap_or(0);
        for ((name, incarnation), holder) in &mut self.holders {
            match lines.get(name) {
                Some((sequence, line)) if line.incarnation == *incarnation && line.says == Says::Here => {
                    let known = holder.entry.filter(|(known, _)| known == sequence);
                    holder.entry = Some(known.unwrap_or((*sequence, now_ms)));
                    holder.cleared_ms = None;
                }
                _ if known_ms <= holder.heard_ms => {}
                Some((_, line)) if line.incarnation == *incarnation => holder.cleared_ms = Some(now_ms),
                _ => {
                    holder.entry = None;
                    holder.cleared_ms.get_or_insert(now_ms + STANDING_MS);
                }
            }
        }
    }
}

fn line(line: &Line) -> Bytes {
    // Strings, numbers and fixed words: nothing that could fail to be written.
    serde_json::to_vec(line).unwrap_or_default().into()
}

fn parsed(entry: &Entry) -> Option<Line> {
    serde_json::from_slice(&entry.payload).ok()
}
