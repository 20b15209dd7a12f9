//! A flash sale: some units of one sku at a price of their own, for a while, to whoever comes first.
//!
//! sold + held + free = allotment at every moment, where held are the units that are offered to the next in line, claimed,
//! or being paid. A claim is a hold with a deadline; what is not paid in time, declined or given up is offered to the next
//! in line in the same step. The allotment is kept aside by the inventory item, which hears what was sold, and at the end
//! what comes back: then sold + handed back = allotment, to the unit.
//!
//! A sale may have a million claims, so nothing here may look at all of them, except when it ends or comes to life.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod claims;
mod customer;
mod customers;
mod line;
mod packed;
mod places;

pub use claims::{Claim, ClaimNumber, ClaimPhase, Claims};
pub use customer::Customer;
pub use line::TicketNumber;
pub use places::{Offer, Places};

use self::claims::{Link, Millis, OrderNumber};
use self::customers::{Customers, Known};
use self::line::{Line, Ticket};
use self::places::Bits;
use super::entity::Notice;
use super::inventory::{self, Allotment};
use super::time::{MINUTE_MS, SECOND_MS};
use super::{CommandId, Context, Debt, Decision, Entity, Inventory, Money, Timestamp, ids};

/// Units that one sale can have.
pub const QUANTITY_MAX: u32 = 10_000_000;
/// Units that one customer can be allowed.
pub const PER_CUSTOMER_MAX: u32 = 1_000;
/// Claims that a sale grants in its life, those that ran out included.
pub const CLAIMS_MAX: u32 = 20_000_000;
pub const LINE_MAX: u32 = 1_000_000;
pub const REMINDERS_MAX: usize = 100_000;
/// Claims that expire, tickets that lapse and tickets that are admitted in one step; the next step follows at once.
pub const STEP_MAX: usize = 1_000;
pub const CLAIM_MS: i64 = 5 * MINUTE_MS;
pub const ADMISSION_MS: i64 = MINUTE_MS;
pub const GRACE_MS: i64 = 2 * MINUTE_MS;
/// The bounds of those three.
pub const DEADLINE_MS_MIN: i64 = SECOND_MS;
pub const DEADLINE_MS_MAX: i64 = 60 * MINUTE_MS;
/// How long a sale can last.
pub const WINDOW_MS_MAX: i64 = 31 * 24 * 60 * MINUTE_MS;
pub const ADMISSIONS_PER_S_MAX: u32 = 1_000_000;
/// Each bit doubles the work: 28 take a fast machine minutes.
pub const CHALLENGE_BITS_MAX: u8 = 28;
/// How long before the start those who asked for it are reminded.
pub const SOON_MS: i64 = 5 * MINUTE_MS;
/// So much of a second's admissions can be made up for at once.
const BURST_US: i64 = 100_000;
/// Claims of one customer, from the newest, that are looked at.
const OWN_CLAIMS_MAX: usize = 100;

pub struct FlashSale;

#[derive(Debug, Clone, Default)]
pub struct State {
    pub book: Book,
    index: Index,
}

/// All that a sale is. What else is in the state can be told from it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Book {
    /// Its own id, under which the inventory item knows it.
    pub id: String,
    pub terms: Option<Terms>,
    pub tuning: Tuning,
    pub status: Status,
    /// Who waits for the allotment to be set aside.
    approving: Option<CommandId>,
    /// The newest word that may be on its way to the inventory item.
    revision: u64,
    /// What the inventory item knows.
    told: Allotment,
    pub offered: u32,
    pub claimed: u32,
    pub paying: u32,
    pub sold: u32,
    claims: Claims,
    line: Line,
    /// From when on one more can be admitted, in microseconds since 1970.
    admits_from_us: i64,
    /// When somebody was admitted last, and how far apart they were admitted lately, on average.
    admitted_at: Option<Timestamp>,
    gap_us: i64,
    /// Those who are to come were told that it starts soon.
    announced: bool,
    reminders: Arc<BTreeSet<Customer>>,
}

/// What is looked up, told from the book.
#[derive(Debug, Clone, Default)]
struct Index {
    customers: Customers,
    /// Units that wait, are bound or sold, by the hash of the address.
    addresses: BTreeMap<u64, u32>,
    /// Offered claims in the order in which they run out; those at the front are offered still.
    offers: VecDeque<ClaimNumber>,
    /// The same of claims to be paid.
    holds: VecDeque<ClaimNumber>,
    /// Tickets whose holder is gone, by the moment until which the place is kept.
    away: BTreeSet<(Millis, TicketNumber)>,
}

/// What a vendor offers. Amounts of time are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    pub sku: String,
    pub product: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shop: Option<String>,
    pub title: String,
    pub price: Money,
    /// The allotment.
    pub quantity: u32,
    pub per_customer_limit: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_address_limit: Option<u32>,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    /// How long a claim can be paid.
    pub claim_ms: i64,
    /// How long whoever is admitted can claim.
    pub admission_ms: i64,
    /// How long the place of somebody who is gone is kept.
    pub grace_ms: i64,
    /// Whether one need not be signed in.
    pub guests: bool,
}

/// What an operator sets, also while the sale is on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// Claims and admissions a second; none is as many as there are units.
    pub admissions_per_s: Option<u32>,
    /// Leading zero bits of the proof of work that a claim must bear; 0 asks for none.
    pub challenge_bits: u8,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "FlashSaleStatus")]
pub enum Status {
    #[default]
    #[schemars(skip)]
    Absent,
    Draft,
    /// Approved; the allotment is being set aside.
    Arming,
    Scheduled,
    Active,
    Paused,
    /// Every unit is paid.
    SoldOut,
    Ended,
    Cancelled,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    Create {
        terms: Box<Terms>,
    },
    /// Replaces the terms of a draft.
    Update {
        terms: Box<Terms>,
    },
    Tune {
        tuning: Tuning,
    },
    /// Answered when the allotment is set aside, or is not to be had.
    Approve,
    Pause,
    Resume,
    Cancel {
        reason: String,
    },
    /// Units to pay, or a place in line.
    Claim {
        customer: Customer,
        quantity: u32,
        /// A hash of the network address; 0 where it does not matter.
        address: u64,
    },
    GiveUp {
        customer: Customer,
        claim: ClaimNumber,
    },
    /// Out of the line, for good.
    Leave {
        customer: Customer,
    },
    /// Whoever waits is no longer connected, or is again.
    Away {
        customer: Customer,
    },
    Back {
        customer: Customer,
    },
    Remind {
        customer: Customer,
    },
    /// Changes nothing: what everybody sees, and what this customer has.
    Look {
        customer: Option<Customer>,
    },
    /// Changes nothing: the line as it is, and who came to it and whose turn came from these numbers on.
    Places {
        tickets_from: TicketNumber,
        claims_from: ClaimNumber,
    },
    /// An order takes the claim up, to pay for it.
    Reserve {
        claim: ClaimNumber,
        order: String,
        customer: Customer,
        quantity: u32,
        unit_price: Money,
    },
    /// The order came to nothing: the units are the next one's.
    Release {
        claim: ClaimNumber,
        order: String,
        customer: Customer,
    },
    Commit {
        claim: ClaimNumber,
        order: String,
    },
    /// A paid order was refunded.
    Restock {
        claim: ClaimNumber,
        order: String,
    },
    HeardAllotted {
        allotment: Allotment,
    },
    HeardNotAllotted {
        revision: u64,
        why: inventory::Rejection,
    },
    /// Time has come for something.
    Elapse,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Created,
    Updated,
    Tuned,
    Scheduled,
    Paused,
    Resumed,
    Cancelled,
    Claimed { claim: ClaimNumber, quantity: u32, until: Timestamp },
    Queued { ticket: TicketNumber, ahead: u32, wait_ms: Option<i64> },
    GivenUp,
    Left,
    Reminded,
    Shown(Box<Shown>),
    Places(Box<Places>),
    Reserved,
    Released,
    Committed,
    Restocked,
    Noted,
}

/// A sale as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    pub terms: Terms,
    pub tuning: Tuning,
    pub status: Status,
    /// Units that nobody has.
    pub free: u32,
    /// Units that are offered, claimed or being paid.
    pub held: u32,
    pub sold: u32,
    pub waiting: u32,
    pub reminders: u32,
    /// It is to start within [`SOON_MS`].
    pub starts_soon: bool,
    pub own: Option<Own>,
}

/// What one customer has of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Own {
    /// From the newest.
    pub claims: Vec<OwnClaim>,
    pub ticket: Option<OwnTicket>,
    pub reminded: bool,
    /// The numbers that the next ticket and the next claim get: from there on, [`Command::Places`] tells what is new.
    pub tickets_from: TicketNumber,
    pub claims_from: ClaimNumber,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OwnClaim {
    pub claim: ClaimNumber,
    pub phase: ClaimPhase,
    pub quantity: u32,
    pub until: Timestamp,
    pub order: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OwnTicket {
    pub ticket: TicketNumber,
    pub quantity: u32,
    pub ahead: u32,
    pub wait_ms: Option<i64>,
    pub away_until: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("no such flash sale")]
    Unknown,
    #[error("the flash sale exists already")]
    Exists,
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    #[error("this cannot be done to a flash sale that is {status:?}")]
    NotNow { status: Status },
    #[error("the units cannot be set aside: {why}")]
    NotAllotted { why: inventory::Rejection },
    #[error("the flash sale starts at {starts_at}")]
    NotStarted { starts_at: Timestamp },
    #[error("the flash sale is paused")]
    Paused,
    #[error("the flash sale is over")]
    Over,
    #[error("every unit is sold")]
    SoldOut,
    #[error("only {available} left of the {requested} asked for")]
    Short { requested: u32, available: u32 },
    #[error("one customer can have {limit} and this one can have {left} more")]
    OverLimit { limit: u32, left: u32 },
    #[error("no more can be had from this network address")]
    OverAddressLimit,
    #[error("the line is full")]
    LineFull,
    #[error("the claim is over")]
    ClaimOver,
    #[error("the claim is being paid")]
    InPayment,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "flash_sale.created")]
    Created { id: String, terms: Box<Terms> },
    #[serde(rename = "flash_sale.updated")]
    Updated { terms: Box<Terms> },
    #[serde(rename = "flash_sale.tuned")]
    Tuned { tuning: Tuning },
    #[serde(rename = "flash_sale.approved")]
    Approved { command: CommandId },
    /// The units are not to be had; it is a draft again.
    #[serde(rename = "flash_sale.refused")]
    Refused { why: inventory::Rejection },
    #[serde(rename = "flash_sale.scheduled")]
    Scheduled,
    /// The inventory item took note.
    #[serde(rename = "flash_sale.allotted")]
    Allotted { allotment: Allotment },
    #[serde(rename = "flash_sale.reminder.requested")]
    ReminderRequested { customer: Customer },
    #[serde(rename = "flash_sale.starting_soon")]
    StartingSoon { starts_at: Timestamp },
    #[serde(rename = "flash_sale.started")]
    Started,
    #[serde(rename = "flash_sale.paused")]
    Paused,
    #[serde(rename = "flash_sale.resumed")]
    Resumed,
    /// Units to pay until then: free ones, or those that the claim of this number offered.
    #[serde(rename = "flash_sale.claimed")]
    Claimed {
        claim: ClaimNumber,
        customer: Customer,
        quantity: u16,
        until: Timestamp,
        command: u64,
        #[serde(default, skip_serializing_if = "is_zero")]
        address: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        admits_from_us: Option<i64>,
    },
    #[serde(rename = "flash_sale.queued")]
    Queued {
        ticket: TicketNumber,
        customer: Customer,
        quantity: u16,
        command: u64,
        #[serde(default, skip_serializing_if = "is_zero")]
        address: u64,
    },
    /// Whose turn it is, each with the claim that is offered until then.
    #[serde(rename = "flash_sale.admitted")]
    Admitted {
        admissions: Vec<Admission>,
        at: Timestamp,
        until: Timestamp,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        admits_from_us: Option<i64>,
    },
    #[serde(rename = "flash_sale.ticket.away")]
    TicketAway { ticket: TicketNumber, until: Timestamp },
    #[serde(rename = "flash_sale.ticket.back")]
    TicketBack { ticket: TicketNumber },
    /// Given up, or gone for longer than a place is kept.
    #[serde(rename = "flash_sale.ticket.left")]
    TicketsLeft { tickets: Vec<TicketNumber> },
    #[serde(rename = "flash_sale.claim_expired")]
    ClaimsExpired { claims: Vec<ClaimNumber> },
    #[serde(rename = "flash_sale.claim_released")]
    ClaimReleased { claim: ClaimNumber },
    #[serde(rename = "flash_sale.checkout_started")]
    CheckoutStarted { claim: ClaimNumber, order: String },
    #[serde(rename = "flash_sale.sold")]
    Sold { claim: ClaimNumber },
    #[serde(rename = "flash_sale.returned")]
    Returned { claim: ClaimNumber },
    #[serde(rename = "flash_sale.sold_out")]
    SoldOut,
    /// There are units again, and nobody in line for them.
    #[serde(rename = "flash_sale.available_again")]
    AvailableAgain { available: u32 },
    #[serde(rename = "flash_sale.ended")]
    Ended,
    #[serde(rename = "flash_sale.cancelled")]
    Cancelled { reason: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Admission {
    pub ticket: TicketNumber,
    pub claim: ClaimNumber,
    pub quantity: u16,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Entity for FlashSale {
    const KIND: &'static str = "flash_sale";
    const SNAPSHOT_FORMAT: u32 = 1;

    type State = State;
    type Command = Command;
    type Event = Event;
    type Reply = Reply;
    type Rejection = Rejection;

    fn decide(state: &State, command: Command, context: &Context<'_>) -> Result<Decision<Self>, Rejection> {
        if let Command::Create { terms } = command {
            return state.create(terms, context);
        }
        let mut sale = Sale::at(state, context).ok_or(Rejection::Unknown)?;
        let reply = match command {
            Command::Create { .. } => Err(Rejection::Exists),
            Command::Update { terms } => sale.update(terms),
            Command::Tune { tuning } => sale.tune(tuning),
            Command::Approve => return sale.approve(context.command),
            Command::Pause => sale.pause(),
            Command::Resume => sale.resume(),
            Command::Cancel { reason } => return sale.cancel(reason),
            Command::Claim { customer, quantity, address } => sale.claim(customer, quantity, address, context.command),
            Command::GiveUp { customer, claim } => sale.give_up(customer, claim),
            Command::Leave { customer } => sale.leave(customer),
            Command::Away { customer } => sale.away(customer),
            Command::Back { customer } => sale.back(customer),
            Command::Remind { customer } => sale.remind(customer),
            Command::Look { customer } => Ok(Reply::Shown(Box::new(sale.shown(customer)))),
            Command::Places { tickets_from, claims_from } => Ok(Reply::Places(Box::new(sale.places(tickets_from, claims_from)))),
            Command::Reserve { claim, order, customer, quantity, unit_price } => {
                sale.reserve(claim, order, customer, quantity, unit_price)
            }
            Command::Release { claim, order, customer } => sale.release(claim, &order, customer),
            Command::Commit { claim, order } => sale.commit(claim, &order),
            Command::Restock { claim, order } => sale.restock(claim, &order),
            Command::HeardAllotted { allotment } => return Ok(sale.heard_allotted(allotment)),
            Command::HeardNotAllotted { revision, why } => return Ok(sale.heard_not_allotted(revision, why)),
            Command::Elapse => sale.elapse(),
        }?;
        Ok(Decision::now(sale.into_events(), reply))
    }

    fn evolve(state: &mut State, event: &Event) {
        let book = &mut state.book;
        match event {
            Event::Created { id, terms } => {
                book.id.clone_from(id);
                book.terms = Some((**terms).clone());
                book.status = Status::Draft;
            }
            Event::Updated { terms } => book.terms = Some((**terms).clone()),
            Event::Tuned { tuning } => {
                book.tuning = *tuning;
                book.admits_from_us = 0;
            }
            Event::Approved { command } => {
                book.status = Status::Arming;
                book.approving = Some(command.clone());
                book.revision += 1;
            }
            Event::Refused { .. } => {
                book.status = Status::Draft;
                book.approving = None;
            }
            Event::Scheduled => {
                book.status = Status::Scheduled;
                book.approving = None;
            }
            Event::Allotted { allotment } => {
                book.told = *allotment;
                book.revision = book.revision.max(allotment.revision);
            }
            Event::ReminderRequested { customer } => {
                Arc::make_mut(&mut book.reminders).insert(*customer);
            }
            Event::StartingSoon { .. } => book.announced = true,
            Event::Started | Event::Resumed => book.status = Status::Active,
            Event::Paused => book.status = Status::Paused,
            Event::Claimed { claim, customer, quantity, until, command, address, admits_from_us } => {
                book.admits_from_us = admits_from_us.unwrap_or(book.admits_from_us);
                let (phase, until) = (ClaimPhase::Held, Millis::from(*until));
                let (customer, quantity, command, address) = (*customer, *quantity, *command, *address);
                match book.claims.get(*claim) {
                    Some(_) => state.take_up(*claim, quantity, until, command, address),
                    None => {
                        state.grant(Claim { customer, phase, quantity, until, order: None, command, address, previous: None })
                    }
                }
            }
            Event::Queued { ticket, customer, quantity, command, address } => {
                let (customer, quantity, command, address) = (*customer, *quantity, *command, *address);
                state.index.customers.change(customer, |known| known.ticket = Link::to(*ticket));
                state.index.count_address(address, i64::from(quantity));
                book.line.push(Ticket { customer, quantity, command, address, away_until: None });
            }
            Event::Admitted { admissions, at, until, admits_from_us } => {
                book.admits_from_us = admits_from_us.unwrap_or(book.admits_from_us);
                book.keep_pace(*at, admissions.len());
                for admission in admissions {
                    state.admit(*admission, (*until).into());
                }
            }
            Event::TicketAway { ticket, until } => state.set_away(*ticket, Some((*until).into())),
            Event::TicketBack { ticket } => state.set_away(*ticket, None),
            Event::TicketsLeft { tickets } => {
                for ticket in tickets {
                    state.remove_ticket(*ticket);
                }
            }
            Event::ClaimsExpired { claims } => {
                claims.iter().for_each(|claim| state.set_phase(*claim, ClaimPhase::Expired));
            }
            Event::ClaimReleased { claim } => state.set_phase(*claim, ClaimPhase::Released),
            Event::CheckoutStarted { claim, order } => {
                if let Some(claim) = book.claims.get_mut(*claim) {
                    claim.order = OrderNumber::parse(order);
                }
                state.set_phase(*claim, ClaimPhase::Paying);
            }
            Event::Sold { claim } => state.set_phase(*claim, ClaimPhase::Sold),
            Event::Returned { claim } => {
                state.set_phase(*claim, ClaimPhase::Returned);
                if state.book.status == Status::SoldOut {
                    state.book.status = Status::Active;
                }
            }
            Event::SoldOut => book.status = Status::SoldOut,
            Event::AvailableAgain { .. } => {}
            Event::Ended => {
                book.status = Status::Ended;
                state.close();
            }
            Event::Cancelled { .. } => {
                // A word to the inventory item may be on its way.
                book.revision += u64::from(book.status == Status::Arming);
                book.status = Status::Cancelled;
                book.approving = None;
                state.close();
            }
        }
        state.index.trim(&state.book.claims);
    }

    fn owes(state: &State) -> Vec<Debt<Self>> {
        let Some((allotment, terms)) = state.book.word().zip(state.book.terms.as_ref()) else { return Vec::new() };
        let sale = state.book.id.clone();
        let word = inventory::Command::Allot { sale, allotment };
        let revision = allotment.revision;
        vec![Debt::tell::<Inventory>(format!("allot/{revision}"), terms.sku.clone(), word, move |answer| match answer {
            Ok(inventory::Reply::Allotted(allotment)) => Some(Command::HeardAllotted { allotment }),
            Ok(_) => None,
            Err(why) => Some(Command::HeardNotAllotted { revision, why }),
        })]
    }

    fn due(state: &State) -> Option<Timestamp> {
        let (book, index) = (&state.book, &state.index);
        let terms = book.terms.as_ref()?;
        match book.status {
            Status::Scheduled if !book.announced => Some(terms.starts_at.plus_ms(-SOON_MS)),
            Status::Scheduled => Some(terms.starts_at),
            Status::Active | Status::Paused | Status::SoldOut => {
                let until = |queue: &VecDeque<ClaimNumber>| Some(Timestamp::from(book.claims.get(*queue.front()?)?.until));
                let away = index.away.first().map(|(until, _)| Timestamp::from(*until));
                let admits = (book.status == Status::Active && book.line.waiting() > 0 && book.free() > 0)
                    .then(|| Timestamp::from_millis((book.admits_from_us - BURST_US) / 1_000 + 1));
                let times = [Some(terms.ends_at), until(&index.offers), until(&index.holds), away, admits];
                times.into_iter().flatten().min()
            }
            Status::Absent | Status::Draft | Status::Arming | Status::Ended | Status::Cancelled => None,
        }
    }

    fn elapse() -> Option<Command> {
        Some(Command::Elapse)
    }

    /// A claim bears the hash of its command. A ticket does too, but nothing is left of one that was given up.
    fn knows_again(reply: &Reply) -> bool {
        matches!(reply, Reply::Claimed { .. })
    }

    /// The index is told from the book.
    fn picture(state: &State) -> Option<State> {
        Some(State { book: state.book.clone(), index: Index::default() })
    }

    fn notice(state: &State) -> Option<Box<dyn Notice<Self>>> {
        let (book, terms) = (&state.book, state.book.terms.as_ref()?);
        let refusal = match book.status {
            Status::Scheduled => Rejection::NotStarted { starts_at: terms.starts_at },
            Status::Paused => Rejection::Paused,
            Status::SoldOut => Rejection::SoldOut,
            Status::Ended | Status::Cancelled => Rejection::Over,
            Status::Active if book.is_full() => Rejection::LineFull,
            Status::Absent | Status::Draft | Status::Arming | Status::Active => return None,
        };
        let (limit, customers) = (terms.per_customer_limit, state.index.customers.clone());
        Some(Box::new(NothingToBeHad { refusal, limit, customers }))
    }

    fn is_at_rest(state: &State) -> bool {
        state.book.is_closed() && state.book.paying == 0 && state.book.word().is_none()
    }
}

/// What a stranger is told who would have units now; whoever has, had or waits for some is none.
struct NothingToBeHad {
    refusal: Rejection,
    limit: u32,
    customers: Customers,
}

impl Notice<FlashSale> for NothingToBeHad {
    fn refuses(&self, command: &Command) -> Option<Rejection> {
        let Command::Claim { customer, quantity, .. } = command else { return None };
        let is_stranger = (1..=self.limit).contains(quantity) && !self.customers.knows(*customer);
        is_stranger.then(|| self.refusal.clone())
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.book.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut book = Book::deserialize(deserializer)?;
        let index = Index::of(&mut book);
        Ok(State { book, index })
    }
}

/// Queues are the same when the same still runs out at the same moments.
impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        fn runs_out(state: &State, queue: &VecDeque<ClaimNumber>, phase: ClaimPhase) -> BTreeSet<(Millis, ClaimNumber)> {
            let claims = queue.iter().filter_map(|number| Some((state.book.claims.get(*number)?, *number)));
            claims.filter(|(claim, _)| claim.phase == phase).map(|(claim, number)| (claim.until, number)).collect()
        }
        let offers = |state: &State| runs_out(state, &state.index.offers, ClaimPhase::Offered);
        let holds = |state: &State| runs_out(state, &state.index.holds, ClaimPhase::Held);
        let (one, another) = (&self.index, &other.index);
        self.book == other.book
            && (&one.customers, &one.addresses, &one.away) == (&another.customers, &another.addresses, &another.away)
            && offers(self) == offers(other)
            && holds(self) == holds(other)
    }
}

impl Book {
    pub fn is_closed(&self) -> bool {
        matches!(self.status, Status::Ended | Status::Cancelled)
    }

    /// Units that were set aside for the sale and are nobody's.
    pub fn free(&self) -> u32 {
        let allotment = self.terms.as_ref().map_or(0, |terms| terms.quantity);
        allotment.saturating_sub(self.held()).saturating_sub(self.sold)
    }

    /// Nobody more can be let in, nor wait.
    fn is_full(&self) -> bool {
        self.claims.len() >= CLAIMS_MAX || self.line.waiting() >= LINE_MAX
    }

    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Units that are offered, claimed or being paid.
    pub fn held(&self) -> u32 {
        self.offered + self.claimed + self.paying
    }

    /// What the inventory item has still to hear.
    fn word(&self) -> Option<Allotment> {
        let quantity = match self.status {
            Status::Absent | Status::Draft => return None,
            Status::Ended | Status::Cancelled => self.sold + self.paying,
            _ => self.terms.as_ref()?.quantity,
        };
        let is_known = self.told.revision >= self.revision && (self.told.quantity, self.told.sold) == (quantity, self.sold);
        let revision = self.revision.max(self.told.revision + 1);
        (!is_known).then_some(Allotment { revision, quantity, sold: self.sold })
    }

    /// How long whoever has so many before them will wait, if it goes on as it went lately.
    fn wait_ms(&self, ahead: u32) -> Option<i64> {
        self.pace_us().map(|pace_us| places::wait_ms(ahead, pace_us))
    }

    /// How far apart admissions are to be expected.
    fn pace_us(&self) -> Option<i64> {
        let by_rate = self.tuning.admissions_per_s.map(|rate| 1_000_000 / i64::from(rate.max(1)));
        by_rate.into_iter().chain((self.gap_us > 0).then_some(self.gap_us)).max()
    }

    /// The newest admission weighs an eighth.
    fn keep_pace(&mut self, at: Timestamp, admissions: usize) {
        let admissions = i64::try_from(admissions).unwrap_or(i64::MAX).max(1);
        if let Some(before) = self.admitted_at {
            let gap_us = (at.since_ms(before).max(0).saturating_mul(1_000) / admissions).max(1);
            self.gap_us = if self.gap_us == 0 { gap_us } else { (self.gap_us * 7 + gap_us) / 8 };
        }
        self.admitted_at = Some(at);
    }

    fn count(&mut self, phase: ClaimPhase) -> Option<&mut u32> {
        match phase {
            ClaimPhase::Offered => Some(&mut self.offered),
            ClaimPhase::Held => Some(&mut self.claimed),
            ClaimPhase::Paying => Some(&mut self.paying),
            ClaimPhase::Sold => Some(&mut self.sold),
            ClaimPhase::Expired | ClaimPhase::Released | ClaimPhase::Returned => None,
        }
    }

    fn add(&mut self, phase: ClaimPhase, quantity: u16) {
        if let Some(count) = self.count(phase) {
            *count += u32::from(quantity);
        }
    }

    fn take(&mut self, phase: ClaimPhase, quantity: u16) {
        if let Some(count) = self.count(phase) {
            *count = count.saturating_sub(u32::from(quantity));
        }
    }
}

impl Index {
    /// Also links each claim to its customer's claim before it.
    fn of(book: &mut Book) -> Self {
        let bound = |claim: &Claim| if claim.phase.binds() { u32::from(claim.quantity) } else { 0 };
        let mut links = Vec::new();
        let claims = book.claims.iter().map(|(number, claim)| (number, claim.customer, bound(claim)));
        let customers = Customers::of(claims, |number, before| links.push((number, before)));
        for (number, before) in links {
            if let Some(claim) = book.claims.get_mut(number) {
                claim.previous = Some(before);
            }
        }
        let mut index = Index { customers, ..Index::default() };
        for (number, claim) in book.claims.iter() {
            index.count_address(claim.address, i64::from(bound(claim)));
            match claim.phase {
                ClaimPhase::Offered => index.offers.push_back(number),
                ClaimPhase::Held => index.holds.push_back(number),
                _ => {}
            }
        }
        let until = |number: &ClaimNumber| book.claims.get(*number).map(|claim| claim.until);
        // As they were granted: those that run out at the same moment may have been granted in another order than numbered,
        // which makes no difference.
        index.offers.make_contiguous().sort_by_key(until);
        index.holds.make_contiguous().sort_by_key(until);
        for (number, ticket) in book.line.iter() {
            index.customers.change(ticket.customer, |known| known.ticket = Link::to(number));
            index.count_address(ticket.address, i64::from(ticket.quantity));
            index.away.extend(ticket.away_until.map(|until| (until, number)));
        }
        index
    }

    fn count_address(&mut self, address: u64, units: i64) {
        if address == 0 || units == 0 {
            return;
        }
        let count = self.addresses.entry(address).or_default();
        *count = u32::try_from(i64::from(*count) + units).unwrap_or_default();
        if *count == 0 {
            self.addresses.remove(&address);
        }
    }

    /// Lets go of what no longer runs out.
    fn trim(&mut self, claims: &Claims) {
        let is = |number: Option<&ClaimNumber>, phase| {
            number.is_some_and(|number| claims.get(*number).is_none_or(|claim| claim.phase != phase))
        };
        while is(self.offers.front(), ClaimPhase::Offered) {
            self.offers.pop_front();
        }
        while is(self.holds.front(), ClaimPhase::Held) {
            self.holds.pop_front();
        }
    }
}

impl State {
    fn known(&self, customer: Customer) -> Known {
        self.index.customers.get(customer)
    }

    /// A customer's claims, from the newest.
    fn claims_of(&self, known: Known) -> impl Iterator<Item = (ClaimNumber, &Claim)> {
        let numbered = |link: Link| Some((link.number(), self.book.claims.get(link.number())?));
        let newest = known.last_claim.and_then(numbered);
        std::iter::successors(newest, move |(_, claim)| claim.previous.and_then(numbered)).take(OWN_CLAIMS_MAX)
    }

    fn create(&self, terms: Box<Terms>, context: &Context<'_>) -> Result<Decision<FlashSale>, Rejection> {
        if self.book.terms.is_some() {
            return Err(Rejection::Exists);
        }
        terms.check(context.now)?;
        Ok(Decision::now(vec![Event::Created { id: context.id.to_owned(), terms }], Reply::Created))
    }

    fn grant(&mut self, mut claim: Claim) {
        let number = self.book.claims.len();
        let Claim { customer, quantity, .. } = claim;
        self.index.customers.change(customer, |known| {
            claim.previous = std::mem::replace(&mut known.last_claim, Link::to(number));
            known.units += u32::from(quantity);
        });
        self.index.count_address(claim.address, i64::from(claim.quantity));
        self.book.add(claim.phase, claim.quantity);
        match claim.phase {
            ClaimPhase::Offered => self.index.offers.push_back(number),
            _ => self.index.holds.push_back(number),
        }
        self.book.claims.push(claim);
    }

    /// Whoever was offered units takes them, or fewer.
    fn take_up(&mut self, number: ClaimNumber, quantity: u16, until: Millis, command: u64, address: u64) {
        self.set_phase(number, ClaimPhase::Released);
        if let Some(claim) = self.book.claims.get_mut(number) {
            (claim.quantity, claim.until, claim.command, claim.address) = (quantity, until, command, address);
        }
        self.set_phase(number, ClaimPhase::Held);
        self.index.holds.push_back(number);
    }

    fn set_phase(&mut self, number: ClaimNumber, phase: ClaimPhase) {
        let Some(claim) = self.book.claims.get_mut(number) else { return };
        let before = std::mem::replace(&mut claim.phase, phase);
        let Claim { customer, quantity, address, .. } = *claim;
        self.book.take(before, quantity);
        self.book.add(phase, quantity);
        if before.binds() != phase.binds() {
            let units = i64::from(quantity) * if phase.binds() { 1 } else { -1 };
            self.index.customers.change(customer, |known| {
                known.units = u32::try_from(i64::from(known.units) + units).unwrap_or_default();
            });
            self.index.count_address(address, units);
        }
    }

    fn remove_ticket(&mut self, number: TicketNumber) -> Option<Ticket> {
        let ticket = self.book.line.remove(number)?;
        self.index.customers.change(ticket.customer, |known| known.ticket = None);
        self.index.count_address(ticket.address, -i64::from(ticket.quantity));
        if let Some(until) = ticket.away_until {
            self.index.away.remove(&(until, number));
        }
        Some(ticket)
    }

    fn admit(&mut self, admission: Admission, until: Millis) {
        let Some(Ticket { customer, command, address, .. }) = self.remove_ticket(admission.ticket) else { return };
        let (phase, quantity) = (ClaimPhase::Offered, admission.quantity);
        self.grant(Claim { customer, phase, quantity, until, order: None, command, address, previous: None });
    }

    fn set_away(&mut self, number: TicketNumber, until: Option<Millis>) {
        let Some(ticket) = self.book.line.get_mut(number) else { return };
        if let Some(before) = std::mem::replace(&mut ticket.away_until, until) {
            self.index.away.remove(&(before, number));
        }
        self.index.away.extend(until.map(|until| (until, number)));
    }

    /// What is not being paid is nobody's any more.
    fn close(&mut self) {
        for number in std::mem::take(&mut self.index.offers).into_iter().chain(std::mem::take(&mut self.index.holds)) {
            if self.book.claims.get(number).is_some_and(|claim| matches!(claim.phase, ClaimPhase::Offered | ClaimPhase::Held)) {
                self.set_phase(number, ClaimPhase::Expired);
            }
        }
        let waiting: Vec<TicketNumber> = self.book.line.iter().map(|(number, _)| number).collect();
        for ticket in waiting {
            self.remove_ticket(ticket);
        }
    }
}

/// A decision in the making.
struct Sale<'a> {
    state: &'a State,
    terms: &'a Terms,
    now: Timestamp,
    // As they will be when the events so far are folded in.
    status: Status,
    free: u32,
    sold: u32,
    rate: Option<u32>,
    admits_from_us: i64,
    /// Tickets that are no longer in line.
    gone: Vec<TicketNumber>,
    events: Vec<Event>,
}

impl<'a> Sale<'a> {
    fn at(state: &'a State, context: &Context<'_>) -> Option<Self> {
        let terms = state.book.terms.as_ref()?;
        let book = &state.book;
        Some(Sale {
            state,
            terms,
            now: context.now,
            status: book.status,
            free: book.free(),
            sold: book.sold,
            rate: book.tuning.admissions_per_s,
            admits_from_us: book.admits_from_us,
            gone: Vec::new(),
            events: Vec::new(),
        })
    }

    fn into_events(self) -> Vec<Event> {
        self.events
    }

    fn is(&self, statuses: &[Status]) -> Result<(), Rejection> {
        statuses.contains(&self.status).then_some(()).ok_or(Rejection::NotNow { status: self.status })
    }

    fn book(&self) -> &'a Book {
        &self.state.book
    }

    // Its life --------------------------------------------------------------------------------------------------------

    fn update(&mut self, terms: Box<Terms>) -> Result<Reply, Rejection> {
        self.is(&[Status::Draft])?;
        terms.check(self.now)?;
        if *terms != *self.terms {
            self.events.push(Event::Updated { terms });
        }
        Ok(Reply::Updated)
    }

    fn tune(&mut self, tuning: Tuning) -> Result<Reply, Rejection> {
        if self.book().is_closed() {
            return Err(Rejection::Over);
        }
        tuning.check()?;
        if tuning != self.book().tuning {
            self.events.push(Event::Tuned { tuning });
            (self.rate, self.admits_from_us) = (tuning.admissions_per_s, 0);
            self.settle_down();
        }
        Ok(Reply::Tuned)
    }

    fn approve(mut self, command: &CommandId) -> Result<Decision<FlashSale>, Rejection> {
        match self.status {
            Status::Arming => return Err(Rejection::NotNow { status: self.status }),
            Status::Draft => {}
            _ if self.book().is_closed() => return Err(Rejection::Over),
            _ => return Ok(Decision::now(Vec::new(), Reply::Scheduled)),
        }
        self.terms.check(self.now)?;
        self.events.push(Event::Approved { command: command.clone() });
        Ok(Decision::later(self.into_events()))
    }

    fn heard_allotted(mut self, allotment: Allotment) -> Decision<FlashSale> {
        let approving = self.book().approving.clone().filter(|_| self.status == Status::Arming);
        if allotment.revision > self.book().told.revision {
            self.events.push(Event::Allotted { allotment });
            if approving.is_some() {
                self.events.push(Event::Scheduled);
            }
        }
        let decision = Decision::now(self.into_events(), Reply::Noted);
        match approving {
            Some(command) => decision.settle(command, Ok(Reply::Scheduled)),
            None => decision,
        }
    }

    /// Only the first word can be refused: every later one takes less.
    fn heard_not_allotted(mut self, revision: u64, why: inventory::Rejection) -> Decision<FlashSale> {
        let approving =
            self.book().approving.clone().filter(|_| self.status == Status::Arming && revision == self.book().revision);
        let Some(command) = approving else { return Decision::now(Vec::new(), Reply::Noted) };
        self.events.push(Event::Refused { why: why.clone() });
        Decision::now(self.into_events(), Reply::Noted).settle(command, Err(Rejection::NotAllotted { why }))
    }

    fn pause(&mut self) -> Result<Reply, Rejection> {
        if self.status != Status::Paused {
            self.is(&[Status::Active])?;
            self.events.push(Event::Paused);
        }
        Ok(Reply::Paused)
    }

    fn resume(&mut self) -> Result<Reply, Rejection> {
        if self.status == Status::Paused {
            self.status = Status::Active;
            self.events.push(Event::Resumed);
            self.settle_down();
        }
        self.is(&[Status::Active, Status::SoldOut])?;
        Ok(Reply::Resumed)
    }

    fn cancel(mut self, reason: String) -> Result<Decision<FlashSale>, Rejection> {
        if self.status == Status::Ended {
            return Err(Rejection::Over);
        }
        let approving = self.book().approving.clone();
        if self.status != Status::Cancelled {
            self.events.push(Event::Cancelled { reason });
        }
        let decision = Decision::now(self.into_events(), Reply::Cancelled);
        Ok(match approving {
            Some(command) => decision.settle(command, Err(Rejection::Over)),
            None => decision,
        })
    }

    fn elapse(&mut self) -> Result<Reply, Rejection> {
        match self.status {
            Status::Scheduled => {
                if !self.book().announced && self.now >= self.terms.starts_at.plus_ms(-SOON_MS) {
                    self.events.push(Event::StartingSoon { starts_at: self.terms.starts_at });
                }
                if self.now >= self.terms.starts_at {
                    self.status = Status::Active;
                    self.events.push(Event::Started);
                }
            }
            Status::Active | Status::Paused | Status::SoldOut if self.now >= self.terms.ends_at => self.events.push(Event::Ended),
            Status::Active | Status::Paused | Status::SoldOut => {
                self.expire_claims();
                self.drop_absent();
                self.settle_down();
            }
            Status::Absent | Status::Draft | Status::Arming | Status::Ended | Status::Cancelled => {}
        }
        Ok(Reply::Noted)
    }

    fn expire_claims(&mut self) {
        let state = self.state;
        let mut claims = Vec::new();
        for (queue, phase) in [(&state.index.offers, ClaimPhase::Offered), (&state.index.holds, ClaimPhase::Held)] {
            for (number, claim) in queue.iter().filter_map(|number| Some((*number, state.book.claims.get(*number)?))) {
                // In between may be some that were taken up or paid since.
                if claim.phase != phase {
                    continue;
                }
                if claims.len() >= STEP_MAX || claim.until > self.now.into() {
                    break;
                }
                self.free += u32::from(claim.quantity);
                claims.push(number);
            }
        }
        if !claims.is_empty() {
            self.events.push(Event::ClaimsExpired { claims });
        }
    }

    fn drop_absent(&mut self) {
        let over = self.state.index.away.iter().take_while(|(until, _)| *until <= self.now.into());
        let tickets: Vec<TicketNumber> = over.map(|(_, ticket)| *ticket).take(STEP_MAX).collect();
        if !tickets.is_empty() {
            self.gone.extend(&tickets);
            self.events.push(Event::TicketsLeft { tickets });
        }
    }

    /// Does what follows from units that came free or were sold: offers them to the next in line, or says that there are
    /// some, or none any more.
    fn settle_down(&mut self) {
        if self.status != Status::Active {
            return;
        }
        let none_were_free = self.book().free() == 0;
        let still_waiting = self.book().line.waiting() as usize - self.gone.len() - self.admit();
        if self.sold == self.terms.quantity {
            self.status = Status::SoldOut;
            self.events.push(Event::SoldOut);
        } else if self.free > 0 && none_were_free && still_waiting == 0 {
            self.events.push(Event::AvailableAgain { available: self.free });
        }
    }

    fn now_us(&self) -> i64 {
        self.now.as_millis().saturating_mul(1_000)
    }

    /// Lets one more in, if the rate allows it now.
    fn pass(&mut self) -> bool {
        let Some(rate) = self.rate else { return true };
        let now_us = self.now_us();
        if self.admits_from_us > now_us + BURST_US {
            return false;
        }
        self.admits_from_us = self.admits_from_us.max(now_us) + 1_000_000 / i64::from(rate.max(1));
        true
    }

    /// Offers what is free to those who wait, in their order, and says to how many. Whoever wants more than there is, is
    /// offered what there is.
    fn admit(&mut self) -> usize {
        let book = self.book();
        let mut admissions = Vec::new();
        for (ticket, waiting) in book.line.iter() {
            let claim = book.claims.len() + admissions.len() as u32;
            if self.free == 0 || admissions.len() >= STEP_MAX || claim >= CLAIMS_MAX {
                break;
            }
            if self.gone.contains(&ticket) {
                continue;
            }
            if !self.pass() {
                break;
            }
            let quantity = waiting.quantity.min(u16::try_from(self.free).unwrap_or(u16::MAX));
            self.free -= u32::from(quantity);
            admissions.push(Admission { ticket, claim, quantity });
        }
        let admitted = admissions.len();
        if admitted > 0 {
            let until = self.deadline(self.terms.admission_ms, &self.state.index.offers);
            self.events.push(Event::Admitted { admissions, at: self.now, until, admits_from_us: self.told_rate() });
        }
        admitted
    }

    /// What an event tells of the rate: nothing where there is none.
    fn told_rate(&self) -> Option<i64> {
        self.rate.map(|_| self.admits_from_us)
    }

    /// Never before the one granted last, whatever the clock says, and never after the end.
    fn deadline(&self, ms: i64, queue: &VecDeque<ClaimNumber>) -> Timestamp {
        let last = queue.back().and_then(|number| self.book().claims.get(*number)).map(|claim| Timestamp::from(claim.until));
        let until = self.now.plus_ms(ms);
        last.map_or(until, |last| until.max(last)).min(self.terms.ends_at)
    }

    // Buying ----------------------------------------------------------------------------------------------------------

    fn claim(&mut self, customer: Customer, quantity: u32, address: u64, command: &CommandId) -> Result<Reply, Rejection> {
        let limit = self.terms.per_customer_limit;
        let units = u16::try_from(quantity).ok().filter(|units| (1..=limit.min(PER_CUSTOMER_MAX)).contains(&u32::from(*units)));
        let units = units.ok_or_else(|| invalid("/quantity", format!("must be 1 to {limit}")))?;
        let command = hash(command);
        let address = if self.terms.per_address_limit.is_some() { address } else { 0 };
        let known = self.state.known(customer);
        if let Some((number, claim)) = self.state.claims_of(known).find(|(_, claim)| claim.command == command) {
            match claim.phase {
                ClaimPhase::Offered => {}
                ClaimPhase::Held | ClaimPhase::Paying | ClaimPhase::Sold => {
                    let (quantity, until) = (u32::from(claim.quantity), claim.until.into());
                    return Ok(Reply::Claimed { claim: number, quantity, until });
                }
                ClaimPhase::Expired | ClaimPhase::Released | ClaimPhase::Returned => return Err(Rejection::ClaimOver),
            }
        }
        if let Some(ticket) = known.ticket.map(Link::number) {
            return Ok(self.place_of(ticket));
        }
        let mut offers = self.state.claims_of(known).filter(|(_, claim)| claim.phase == ClaimPhase::Offered);
        // What is offered can be taken up also while nothing new is granted.
        if let Some((number, offer)) = offers.next() {
            return self.take_up(number, *offer, units, address, command);
        }
        self.is_on()?;
        let left = limit.saturating_sub(known.units);
        if quantity > left {
            return Err(Rejection::OverLimit { limit, left });
        }
        self.check_address(address, quantity)?;
        let book = self.book();
        if book.claims.len() >= CLAIMS_MAX {
            return Err(Rejection::LineFull);
        }
        if book.line.waiting() == 0 && self.free > 0 {
            if quantity > self.free {
                return Err(Rejection::Short { requested: quantity, available: self.free });
            }
            if self.pass() {
                return Ok(self.hold(book.claims.len(), customer, units, command, address));
            }
        }
        if book.line.waiting() >= LINE_MAX || book.line.next() == u32::MAX {
            return Err(Rejection::LineFull);
        }
        let (ticket, ahead) = (book.line.next(), book.line.waiting());
        self.events.push(Event::Queued { ticket, customer, quantity: units, command, address });
        Ok(Reply::Queued { ticket, ahead, wait_ms: book.wait_ms(ahead) })
    }

    fn is_on(&self) -> Result<(), Rejection> {
        match self.status {
            Status::Absent | Status::Draft | Status::Arming => Err(Rejection::Unknown),
            Status::Scheduled => Err(Rejection::NotStarted { starts_at: self.terms.starts_at }),
            Status::Paused => Err(Rejection::Paused),
            Status::SoldOut => Err(Rejection::SoldOut),
            Status::Ended | Status::Cancelled => Err(Rejection::Over),
            Status::Active if self.now >= self.terms.ends_at => Err(Rejection::Over),
            Status::Active => Ok(()),
        }
    }

    fn check_address(&self, address: u64, quantity: u32) -> Result<(), Rejection> {
        let Some(limit) = self.terms.per_address_limit else { return Ok(()) };
        let units = self.state.index.addresses.get(&address).copied().unwrap_or_default();
        if units.saturating_add(quantity) > limit { Err(Rejection::OverAddressLimit) } else { Ok(()) }
    }

    fn hold(&mut self, claim: ClaimNumber, customer: Customer, quantity: u16, command: u64, address: u64) -> Reply {
        let admits_from_us = self.told_rate();
        let until = self.deadline(self.terms.claim_ms, &self.state.index.holds);
        self.events.push(Event::Claimed { claim, customer, quantity, until, command, address, admits_from_us });
        Reply::Claimed { claim, quantity: quantity.into(), until }
    }

    /// An offer whose time is over is not taken up any more, swept or not.
    fn take_up(
        &mut self,
        number: ClaimNumber,
        offer: Claim,
        quantity: u16,
        address: u64,
        command: u64,
    ) -> Result<Reply, Rejection> {
        if offer.until <= self.now.into() {
            return Err(Rejection::ClaimOver);
        }
        let taken = quantity.min(offer.quantity);
        let address = if offer.address == 0 { address } else { offer.address };
        let reply = self.hold(number, offer.customer, taken, command, address);
        self.free += u32::from(offer.quantity - taken);
        self.settle_down();
        Ok(reply)
    }

    fn place_of(&self, ticket: TicketNumber) -> Reply {
        let ahead = self.book().line.ahead_of(ticket).unwrap_or_default();
        Reply::Queued { ticket, ahead, wait_ms: self.book().wait_ms(ahead) }
    }

    fn own(&self, customer: Customer, claim: ClaimNumber) -> Result<&'a Claim, Rejection> {
        self.book().claims.get(claim).filter(|claim| claim.customer == customer).ok_or(Rejection::ClaimOver)
    }

    fn free_claim(&mut self, number: ClaimNumber, claim: &Claim) {
        self.free += u32::from(claim.quantity);
        self.events.push(Event::ClaimReleased { claim: number });
        self.settle_down();
    }

    fn give_up(&mut self, customer: Customer, number: ClaimNumber) -> Result<Reply, Rejection> {
        let claim = self.own(customer, number)?;
        match claim.phase {
            ClaimPhase::Offered | ClaimPhase::Held => self.free_claim(number, claim),
            ClaimPhase::Paying => return Err(Rejection::InPayment),
            ClaimPhase::Sold => return Err(Rejection::ClaimOver),
            ClaimPhase::Expired | ClaimPhase::Released | ClaimPhase::Returned => {}
        }
        Ok(Reply::GivenUp)
    }

    fn ticket_of(&self, customer: Customer) -> Option<(TicketNumber, &'a Ticket)> {
        let number = self.state.known(customer).ticket?.number();
        Some((number, self.book().line.get(number)?))
    }

    fn leave(&mut self, customer: Customer) -> Result<Reply, Rejection> {
        if let Some((ticket, _)) = self.ticket_of(customer) {
            self.events.push(Event::TicketsLeft { tickets: vec![ticket] });
        }
        Ok(Reply::Left)
    }

    fn away(&mut self, customer: Customer) -> Result<Reply, Rejection> {
        if let Some((ticket, _)) = self.ticket_of(customer).filter(|(_, ticket)| ticket.away_until.is_none()) {
            let until = self.now.plus_ms(self.terms.grace_ms);
            self.events.push(Event::TicketAway { ticket, until });
        }
        Ok(Reply::Noted)
    }

    fn back(&mut self, customer: Customer) -> Result<Reply, Rejection> {
        if let Some((ticket, _)) = self.ticket_of(customer).filter(|(_, ticket)| ticket.away_until.is_some()) {
            self.events.push(Event::TicketBack { ticket });
        }
        Ok(Reply::Noted)
    }

    fn remind(&mut self, customer: Customer) -> Result<Reply, Rejection> {
        match self.status {
            Status::Absent | Status::Draft | Status::Arming => return Err(Rejection::Unknown),
            Status::Ended | Status::Cancelled => return Err(Rejection::Over),
            Status::Scheduled | Status::Active | Status::Paused | Status::SoldOut => {}
        }
        let reminders = &self.book().reminders;
        if !reminders.contains(&customer) {
            if reminders.len() >= REMINDERS_MAX {
                return Err(Rejection::LineFull);
            }
            self.events.push(Event::ReminderRequested { customer });
        }
        Ok(Reply::Reminded)
    }

    // Paying ----------------------------------------------------------------------------------------------------------

    fn reserve(
        &mut self,
        number: ClaimNumber,
        order: String,
        customer: Customer,
        quantity: u32,
        unit_price: Money,
    ) -> Result<Reply, Rejection> {
        let claim = self.own(customer, number)?;
        let by = OrderNumber::parse(&order).ok_or_else(|| invalid("/order", "is not the id of an order"))?;
        match claim.phase {
            ClaimPhase::Paying | ClaimPhase::Sold if claim.order == Some(by) => {}
            ClaimPhase::Held if claim.until > self.now.into() => {
                if (u32::from(claim.quantity), self.terms.price) != (quantity, unit_price) {
                    return Err(invalid("/claim_id", "was for another quantity or price"));
                }
                self.events.push(Event::CheckoutStarted { claim: number, order });
            }
            _ => return Err(Rejection::ClaimOver),
        }
        Ok(Reply::Reserved)
    }

    /// A release may come before its reservation, which then finds the claim over.
    fn release(&mut self, number: ClaimNumber, order: &str, customer: Customer) -> Result<Reply, Rejection> {
        if let Ok(claim) = self.own(customer, number) {
            let is_its = match claim.phase {
                ClaimPhase::Held => true,
                ClaimPhase::Paying => claim.order == OrderNumber::parse(order),
                _ => false,
            };
            if is_its {
                self.free_claim(number, claim);
            }
        }
        Ok(Reply::Released)
    }

    /// The claim, when this order pays or has paid for it.
    fn paid_by(&self, number: ClaimNumber, order: &str) -> Result<&'a Claim, Rejection> {
        let claim = self.book().claims.get(number).ok_or(Rejection::ClaimOver)?;
        let is_its = claim.order.is_some() && claim.order == OrderNumber::parse(order);
        is_its.then_some(claim).ok_or(Rejection::ClaimOver)
    }

    fn commit(&mut self, number: ClaimNumber, order: &str) -> Result<Reply, Rejection> {
        let claim = self.paid_by(number, order)?;
        if claim.phase == ClaimPhase::Paying {
            self.sold += u32::from(claim.quantity);
            self.events.push(Event::Sold { claim: number });
            self.settle_down();
        }
        Ok(Reply::Committed)
    }

    fn restock(&mut self, number: ClaimNumber, order: &str) -> Result<Reply, Rejection> {
        let claim = self.paid_by(number, order)?;
        if claim.phase == ClaimPhase::Sold {
            self.sold -= u32::from(claim.quantity).min(self.sold);
            self.free += u32::from(claim.quantity);
            self.events.push(Event::Returned { claim: number });
            if self.status == Status::SoldOut {
                self.status = Status::Active;
            }
            self.settle_down();
        }
        Ok(Reply::Restocked)
    }

    // Looking ---------------------------------------------------------------------------------------------------------

    fn shown(&self, customer: Option<Customer>) -> Shown {
        let book = self.book();
        let free = if book.is_closed() { 0 } else { self.free };
        let own = customer.map(|customer| {
            let claims = self.state.claims_of(self.state.known(customer)).map(|(claim, of)| OwnClaim {
                claim,
                phase: of.phase,
                quantity: of.quantity.into(),
                until: of.until.into(),
                order: of.order.map(|order| order.to_string()),
            });
            let ticket = self.ticket_of(customer).map(|(ticket, of)| {
                let ahead = book.line.ahead_of(ticket).unwrap_or_default();
                let away_until = of.away_until.map(Timestamp::from);
                OwnTicket { ticket, quantity: of.quantity.into(), ahead, wait_ms: book.wait_ms(ahead), away_until }
            });
            Own {
                claims: claims.collect(),
                ticket,
                reminded: book.reminders.contains(&customer),
                tickets_from: book.line.next(),
                claims_from: book.claims.len(),
            }
        });
        Shown {
            terms: self.terms.clone(),
            tuning: book.tuning,
            status: self.status,
            free,
            held: book.held(),
            sold: book.sold,
            waiting: book.line.waiting(),
            reminders: book.reminders.len() as u32,
            starts_soon: book.announced && self.status == Status::Scheduled,
            own,
        }
    }

    /// Costs what is new, and a bit for each ticket of the line.
    fn places(&self, tickets_from: TicketNumber, claims_from: ClaimNumber) -> Places {
        let (book, index) = (self.book(), &self.state.index);
        let (first, waiting) = book.line.standing();
        let mut away = Bits::default();
        for ticket in index.away.iter().filter_map(|(_, ticket)| ticket.checked_sub(first)) {
            away.set(ticket);
        }
        let newcomers = book.line.from(tickets_from).take(places::NEWS_MAX);
        let newcomers: Vec<_> = newcomers.map(|(number, ticket)| (number, ticket.customer)).collect();
        // They are in the order of their numbers, but for a few that run out at the same moment.
        let offers = index.offers.iter().skip(index.offers.partition_point(|number| *number < claims_from));
        let offers = offers.filter_map(|number| Some((*number, book.claims.get(*number)?)));
        let offers = offers.filter(|(number, claim)| *number >= claims_from && claim.phase == ClaimPhase::Offered);
        let offers = offers.map(|(claim, of)| Offer {
            claim,
            customer: of.customer,
            quantity: of.quantity.into(),
            until: of.until.into(),
        });
        let offers: Vec<_> = offers.take(places::NEWS_MAX).collect();
        let told = |news: usize, last: Option<u32>, all: u32| match last {
            Some(last) if news == places::NEWS_MAX => last + 1,
            _ => all,
        };
        Places {
            first,
            waiting,
            away,
            pace_us: book.pace_us(),
            is_closed: book.is_closed(),
            tickets_from: told(newcomers.len(), newcomers.last().map(|(number, _)| *number), book.line.next()),
            claims_from: told(offers.len(), offers.last().map(|offer| offer.claim), book.claims.len()),
            is_all: newcomers.len() < places::NEWS_MAX && offers.len() < places::NEWS_MAX,
            newcomers,
            offers,
        }
    }
}

/// FNV-1a in 64 bits: the same for ever, and only ever compared within one customer's claims.
fn hash(command: &CommandId) -> u64 {
    command.0.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn invalid(field: impl Into<String>, message: impl Into<String>) -> Rejection {
    Rejection::Invalid { field: field.into(), message: message.into() }
}

impl Terms {
    fn check(&self, now: Timestamp) -> Result<(), Rejection> {
        let within = |field: &str, value: i64, min: i64, max: i64| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(invalid(field, format!("must be {min} to {max}"))),
        };
        if !ids::is_sku(&self.sku) {
            return Err(invalid("/sku", "is not a sku"));
        }
        if self.price.amount < 0 {
            return Err(invalid("/price", "must not be negative"));
        }
        within("/quantity", self.quantity.into(), 1, QUANTITY_MAX.into())?;
        within("/per_customer_limit", self.per_customer_limit.into(), 1, PER_CUSTOMER_MAX.into())?;
        if let Some(limit) = self.per_address_limit {
            within("/per_address_limit", limit.into(), 1, QUANTITY_MAX.into())?;
        }
        for (field, ms) in
            [("/claim_seconds", self.claim_ms), ("/admission_seconds", self.admission_ms), ("/grace_seconds", self.grace_ms)]
        {
            within(field, ms / SECOND_MS, DEADLINE_MS_MIN / SECOND_MS, DEADLINE_MS_MAX / SECOND_MS)?;
        }
        if self.ends_at <= self.starts_at {
            return Err(invalid("/ends_at", "must come after the start"));
        }
        if self.ends_at <= now {
            return Err(invalid("/ends_at", "is over already"));
        }
        if self.ends_at.since_ms(self.starts_at) > WINDOW_MS_MAX {
            return Err(invalid("/ends_at", format!("a sale lasts at most {} days", WINDOW_MS_MAX / (24 * 60 * MINUTE_MS))));
        }
        Ok(())
    }
}

impl Tuning {
    fn check(self) -> Result<(), Rejection> {
        if self.admissions_per_s.is_some_and(|rate| !(1..=ADMISSIONS_PER_S_MAX).contains(&rate)) {
            return Err(invalid("/admissions_per_second", format!("must be 1 to {ADMISSIONS_PER_S_MAX}")));
        }
        if self.challenge_bits > CHALLENGE_BITS_MAX {
            return Err(invalid("/challenge_bits", format!("must be 0 to {CHALLENGE_BITS_MAX}")));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "flash_sale_tests.rs"]
mod tests;
