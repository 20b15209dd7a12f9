//! A cart: lines at the price they were added at, each backed by a hold at its inventory item.
//!
//! A change of quantity is accepted only when the hold is. The cart asks for one hold of a sku at a time and answers the
//! changes that queued meanwhile in their order.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    CommandId, Context, Debt, Decision, Entity, Inventory, Money, Order, Timestamp, ids, inventory, order, payment,
    time::MINUTE_MS, turn,
};

type Turn = turn::Turn<Cart>;

pub const LINES_MAX: usize = order::LINES_MAX;
pub const QUANTITY_MAX: u32 = order::QUANTITY_MAX;
/// Changes of one line that may wait for its inventory item at a time.
pub const CHANGES_MAX: usize = 100;
/// A hold with less than this left is renewed whenever the cart is used.
pub const RENEW_BELOW_MS: i64 = 5 * MINUTE_MS;

pub struct Cart;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Its own id, under which it holds.
    pub id: String,
    pub phase: Phase,
    pub owner: Option<order::Owner>,
    /// By sku.
    pub lines: BTreeMap<String, Line>,
    /// Skus whose hold is to be given up, with the revision that says so. Not owed while the sku is in the cart again:
    /// either a newer hold is then granted, or the line goes and this is owed once more.
    pub releasing: BTreeMap<String, u64>,
    /// Counts the words sent to inventory items.
    pub revision: u64,
    /// Carts merged into this one.
    pub merged: BTreeSet<String>,
    /// Carts that are to hand over their lines, with the commands that wait for it.
    pub merging: BTreeMap<String, Vec<CommandId>>,
    /// Merges whose lines are here but not all held yet.
    pub merge_waiting: Vec<CommandId>,
    /// The order that failed last, and why the cart is open again.
    pub last_failure: Option<order::Outcome>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    #[default]
    Absent,
    Open,
    /// The order decides what becomes of the cart.
    CheckingOut {
        order: String,
        command: CommandId,
        draft: Box<order::Draft>,
    },
    CheckedOut {
        order: String,
    },
    /// Lines handed over to another cart.
    Merged {
        into: String,
        lines: Vec<HandedOver>,
    },
    Deleted,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub offer: Offer,
    /// Units accepted, each one held.
    pub quantity: u32,
    pub held_until: Option<Timestamp>,
    /// Changes not yet answered, oldest first.
    pub changes: Vec<Change>,
    /// What the inventory item was last asked to hold and has not answered yet.
    pub asked: Option<Asked>,
}

/// What a shopper was shown when adding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    pub product: String,
    /// Who sells it; offers that are older than shops have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shop: Option<String>,
    pub title: String,
    pub price: Money,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// `None` for lines that came by a merge: nobody waits for them.
    pub command: Option<CommandId>,
    pub change: QuantityChange,
    /// The merged cart whose hold is taken over.
    pub absorb: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantityChange {
    Add(u32),
    Set(u32),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub revision: u64,
    pub quantity: u32,
    /// How many of the oldest changes this covers.
    pub covers: usize,
    pub absorb: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HandedOver {
    pub sku: String,
    pub quantity: u32,
    pub offer: Offer,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PriceChange {
    pub sku: String,
    pub was: Money,
    /// `None` when it is no longer for sale.
    pub now: Option<Money>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    Create {
        owner: order::Owner,
    },
    /// Answered when the hold is.
    Add {
        sku: String,
        quantity: u32,
        offer: Offer,
    },
    /// Answered when the hold is; 0 removes the line at once.
    Set {
        sku: String,
        quantity: u32,
    },
    Remove {
        sku: String,
    },
    /// Take over the lines of another cart; answered when they are here.
    Merge {
        from: String,
    },
    /// Asked by the cart that takes over.
    HandOver {
        into: String,
    },
    /// `order`: the id that the order will have. `prices`: what each sku costs now, absent when not for sale.
    /// Answered with the order's outcome.
    Checkout {
        order: String,
        payment: super::payment::Method,
        contact: order::Contact,
        expected_total: Option<Money>,
        prices: BTreeMap<String, Money>,
        /// What the shopper claimed in a flash sale, to be bought along.
        #[serde(default)]
        claimed: Option<Box<order::Line>>,
    },
    Delete,
    HeardHeld {
        sku: String,
        revision: u64,
        quantity: u32,
        expires_at: Timestamp,
    },
    HeardShort {
        sku: String,
        revision: u64,
        available: u32,
    },
    HeardReleased {
        sku: String,
        revision: u64,
    },
    HeardHandedOver {
        from: String,
        lines: Vec<HandedOver>,
    },
    HeardNotHandedOver {
        from: String,
    },
    HeardOutcome {
        outcome: order::Outcome,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Created,
    /// The line's accepted quantity.
    Quantity(u32),
    Removed,
    Merged,
    HandedOver {
        lines: Vec<HandedOver>,
    },
    Concluded(order::Outcome),
    Deleted,
    Noted,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("no such cart")]
    Unknown,
    #[error("the cart exists already")]
    Exists,
    #[error("the cart is closed: {because}")]
    Closed { because: String },
    #[error("the cart is being checked out as order {order}")]
    CheckingOut { order: String },
    #[error("no line with sku {sku}")]
    NoSuchLine { sku: String },
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    /// `available`: what this cart could have of the sku in total.
    #[error("only {available} of {sku} can be had")]
    Short { sku: String, requested: u32, available: u32 },
    #[error("the cart is empty")]
    Empty,
    #[error("a change of the cart is still being confirmed; try again in a moment")]
    Busy,
    #[error("prices have changed since they were put into the cart")]
    PricesChanged { changes: Vec<PriceChange> },
    #[error("the total is {actual}, not the expected {expected}")]
    TotalDiffers { expected: Money, actual: Money },
    #[error("a cart holds at most {LINES_MAX} lines")]
    TooManyLines,
    #[error("the cart is in {cart}, this is sold in {offer}")]
    CurrencyDiffers { cart: super::Currency, offer: super::Currency },
    #[error("the other cart cannot be merged")]
    NotMergeable,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "cart.created")]
    Created { id: String, owner: order::Owner },
    /// A change of quantity waits for its hold.
    #[serde(rename = "cart.item.requested")]
    ItemRequested { sku: String, offer: Offer, change: Change },
    /// The inventory item is asked to hold this much.
    #[serde(rename = "cart.hold.asked")]
    HoldAsked { sku: String, asked: Asked },
    /// The line has grown (or is new): `quantity` units are now in it.
    #[serde(rename = "cart.item.added")]
    ItemAdded { sku: String, quantity: u32, held_until: Timestamp, answered: usize },
    /// The line's quantity was set or its hold renewed.
    #[serde(rename = "cart.updated")]
    Updated { sku: String, quantity: u32, held_until: Timestamp, answered: usize },
    /// What was asked for could not be had. `refused`: which of the line's changes are dropped, by their position;
    /// `reduced`: merged ones of which a part fits, with what is left of them.
    #[serde(rename = "cart.item.refused")]
    ItemRefused { sku: String, available: u32, refused: Vec<usize>, reduced: Vec<(usize, u32)> },
    #[serde(rename = "cart.item.removed")]
    ItemRemoved { sku: String },
    #[serde(rename = "cart.hold.released")]
    HoldReleased { sku: String },
    /// The shopper was told of new prices, which the lines now bear.
    #[serde(rename = "cart.repriced")]
    Repriced { changes: Vec<PriceChange> },
    #[serde(rename = "cart.merge_requested")]
    MergeRequested { from: String, command: CommandId },
    #[serde(rename = "cart.merged")]
    Merged { from: String, lines: Vec<HandedOver> },
    #[serde(rename = "cart.merge_refused")]
    MergeRefused { from: String },
    /// All lines went to another cart.
    #[serde(rename = "cart.handed_over")]
    HandedOver { into: String, lines: Vec<HandedOver> },
    #[serde(rename = "cart.checked_out")]
    CheckedOut { order: String, command: CommandId, draft: Box<order::Draft> },
    /// The order is paid, and the cart is done.
    #[serde(rename = "cart.completed")]
    Completed { order: String },
    /// The order failed: the cart can be used again.
    #[serde(rename = "cart.reopened")]
    Reopened { outcome: order::Outcome },
    #[serde(rename = "cart.deleted")]
    Deleted,
}

impl Entity for Cart {
    const KIND: &'static str = "cart";
    const SNAPSHOT_FORMAT: u32 = 1;

    type State = State;
    type Command = Command;
    type Event = Event;
    type Reply = Reply;
    type Rejection = Rejection;

    fn decide(state: &State, command: Command, context: &Context<'_>) -> Result<Decision<Self>, Rejection> {
        let mut turn = Turn::on(state);
        match command {
            Command::Create { owner } => state.create(owner, context),
            Command::Add { sku, quantity, offer } => {
                state.check_add(&sku, quantity, &offer)?;
                turn.request(sku, offer, QuantityChange::Add(quantity), context)
            }
            Command::Set { sku, quantity: 0 } | Command::Remove { sku } => turn.remove(sku),
            Command::Set { sku, quantity } => {
                let offer = state.check_set(&sku, quantity)?;
                turn.request(sku, offer, QuantityChange::Set(quantity), context)
            }
            Command::Merge { from } => turn.merge(from, context),
            Command::HandOver { into } => turn.hand_over(into),
            Command::Checkout { order, payment, contact, expected_total, prices, claimed } => {
                let terms = Terms { order, payment, contact, expected_total, prices, claimed };
                turn.check_out(terms, context)
            }
            Command::Delete => turn.delete(),
            Command::HeardHeld { sku, revision, expires_at, .. } => Ok(turn.heard_held(sku, revision, expires_at)),
            Command::HeardShort { sku, revision, available } => Ok(turn.heard_short(sku, revision, available)),
            Command::HeardReleased { sku, revision } => {
                if state.releasing.get(&sku) == Some(&revision) {
                    turn.emit(Event::HoldReleased { sku });
                }
                Ok(turn.now(Reply::Noted))
            }
            Command::HeardHandedOver { from, lines } => Ok(turn.heard_handed_over(from, lines)),
            Command::HeardNotHandedOver { from } => {
                if let Some(waiting) = state.merging.get(&from) {
                    turn.settle_all(waiting.iter().cloned(), &Err(Rejection::NotMergeable));
                    turn.emit(Event::MergeRefused { from });
                }
                Ok(turn.now(Reply::Noted))
            }
            Command::HeardOutcome { outcome } => Ok(turn.heard_outcome(outcome)),
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Created { id, owner } => {
                state.id.clone_from(id);
                state.phase = Phase::Open;
                state.owner = Some(owner.clone());
            }
            Event::ItemRequested { sku, offer, change } => state.queue(sku, offer, change.clone()),
            Event::HoldAsked { sku, asked } => {
                state.revision = state.revision.max(asked.revision);
                if let Some(line) = state.lines.get_mut(sku) {
                    line.asked = Some(asked.clone());
                }
            }
            Event::ItemAdded { sku, quantity, held_until, answered } | Event::Updated { sku, quantity, held_until, answered } => {
                if let Some(line) = state.lines.get_mut(sku) {
                    line.quantity = *quantity;
                    line.held_until = Some(*held_until);
                    line.changes.drain(..(*answered).min(line.changes.len()));
                    line.asked = None;
                }
                state.releasing.remove(sku);
            }
            Event::ItemRefused { sku, refused, reduced, .. } => state.refuse(sku, refused, reduced),
            Event::ItemRemoved { sku } => {
                state.lines.remove(sku);
                state.release(sku);
            }
            Event::HoldReleased { sku } => {
                state.releasing.remove(sku);
            }
            Event::Repriced { changes } => {
                for (change, now) in changes.iter().filter_map(|change| Some((change, change.now?))) {
                    if let Some(line) = state.lines.get_mut(&change.sku) {
                        line.offer.price = now;
                    }
                }
            }
            Event::MergeRequested { from, command } => state.merging.entry(from.clone()).or_default().push(command.clone()),
            Event::Merged { from, lines } => {
                let waiting = state.merging.remove(from).unwrap_or_default();
                state.merge_waiting.extend(waiting);
                state.merged.insert(from.clone());
                for line in lines {
                    let change = QuantityChange::Add(line.quantity);
                    state.queue(&line.sku, &line.offer, Change { command: None, change, absorb: Some(from.clone()) });
                }
            }
            Event::MergeRefused { from } => {
                state.merging.remove(from);
            }
            Event::HandedOver { into, lines } => {
                for (sku, line) in std::mem::take(&mut state.lines) {
                    if line.quantity == 0 {
                        state.release(&sku);
                    }
                }
                state.phase = Phase::Merged { into: into.clone(), lines: lines.clone() };
            }
            Event::CheckedOut { order, command, draft } => {
                let (order, command, draft) = (order.clone(), command.clone(), draft.clone());
                state.phase = Phase::CheckingOut { order, command, draft };
            }
            Event::Completed { order } => state.phase = Phase::CheckedOut { order: order.clone() },
            Event::Reopened { outcome } => {
                state.phase = Phase::Open;
                state.last_failure = Some(outcome.clone());
                state.lines.values_mut().for_each(|line| line.held_until = None);
            }
            Event::Deleted => {
                for sku in std::mem::take(&mut state.lines).into_keys() {
                    state.release(&sku);
                }
                state.merging.clear();
                state.phase = Phase::Deleted;
            }
        }
        if !state.has_merge_changes() {
            state.merge_waiting.clear();
        }
    }

    fn is_at_rest(state: &State) -> bool {
        let is_over = matches!(state.phase, Phase::CheckedOut { .. } | Phase::Merged { .. } | Phase::Deleted);
        is_over && Self::owes(state).is_empty()
    }

    fn owes(state: &State) -> Vec<Debt<Self>> {
        let asks = state.lines.iter().filter_map(|(sku, line)| Some(state.ask_debt(sku, line.asked.as_ref()?)));
        let releases = state.releasing.iter().filter(|(sku, _)| !state.lines.contains_key(*sku));
        let releases = releases.map(|(sku, revision)| state.release_debt(sku, *revision));
        let merges = state.merging.keys().map(|from| state.merge_debt(from));
        asks.chain(releases).chain(merges).chain(state.place_debt()).collect()
    }
}

impl QuantityChange {
    /// The line's quantity after this change.
    fn after(self, quantity: u32) -> u32 {
        match self {
            QuantityChange::Add(more) => quantity.saturating_add(more).min(QUANTITY_MAX),
            QuantityChange::Set(exactly) => exactly.min(QUANTITY_MAX),
        }
    }
}

impl Line {
    /// The line's quantity when all changes that wait are made.
    fn expected(&self) -> u32 {
        self.changes.iter().fold(self.quantity, |quantity, change| change.change.after(quantity))
    }

    /// What to ask the inventory item for next: the changes from the oldest on, up to where a second merged cart's hold
    /// would have to be taken over in the same step.
    fn next_ask(&self, revision: u64) -> Asked {
        let mut asked = Asked { revision, quantity: self.quantity, covers: 0, absorb: None };
        for change in &self.changes {
            match (&asked.absorb, &change.absorb) {
                (Some(one), Some(other)) if one != other => break,
                (None, Some(other)) => asked.absorb = Some(other.clone()),
                _ => {}
            }
            asked.quantity = change.change.after(asked.quantity);
            asked.covers += 1;
        }
        asked
    }
}

/// What comes of a line's changes when only so much can be had: see [`Line::share_out`].
struct Shares {
    refused: Vec<usize>,
    reduced: Vec<(usize, u32)>,
    /// The line's quantity after what is left of the changes.
    quantity: u32,
    answers: Vec<(CommandId, Rejection)>,
}

impl Line {
    /// Goes through the asked-for changes from the oldest on and refuses each one that does not fit into `available`; a
    /// later, smaller one may. A merged line, for which nobody waits, is reduced to what fits. What the line already had
    /// counts only as far as it is still there: its hold may have run out.
    fn share_out(&self, sku: &str, covers: usize, available: u32) -> Shares {
        let quantity = self.quantity.min(available);
        let mut shares = Shares { refused: Vec::new(), reduced: Vec::new(), quantity, answers: Vec::new() };
        for (position, change) in self.changes.iter().enumerate().take(covers) {
            let requested = change.change.after(shares.quantity);
            let fits = available.saturating_sub(shares.quantity);
            match &change.command {
                _ if requested <= available => shares.quantity = requested,
                None if fits > 0 => {
                    shares.reduced.push((position, fits));
                    shares.quantity = available;
                }
                None => shares.refused.push(position),
                Some(command) => {
                    let short = Rejection::Short { sku: sku.to_owned(), requested, available };
                    shares.refused.push(position);
                    shares.answers.push((command.clone(), short));
                }
            }
        }
        shares
    }
}

/// What a shopper agrees to when checking out.
struct Terms {
    order: String,
    payment: payment::Method,
    contact: order::Contact,
    expected_total: Option<Money>,
    prices: BTreeMap<String, Money>,
    claimed: Option<Box<order::Line>>,
}

fn invalid(field: impl Into<String>, message: impl Into<String>) -> Rejection {
    Rejection::Invalid { field: field.into(), message: message.into() }
}

fn check_quantity(quantity: u32) -> Result<(), Rejection> {
    match quantity {
        1..=QUANTITY_MAX => Ok(()),
        _ => Err(invalid("/quantity", format!("must be 1 to {QUANTITY_MAX}"))),
    }
}

impl State {
    fn is_open(&self) -> Result<(), Rejection> {
        let closed = |because: &str| Rejection::Closed { because: because.to_owned() };
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Absent => Err(Rejection::Unknown),
            Phase::CheckingOut { order, .. } => Err(Rejection::CheckingOut { order: order.clone() }),
            Phase::CheckedOut { order } => Err(closed(&format!("it became order {order}"))),
            Phase::Merged { into, .. } => Err(closed(&format!("its lines went to cart {into}"))),
            Phase::Deleted => Err(closed("it was deleted")),
        }
    }

    fn has_merge_changes(&self) -> bool {
        self.lines.values().flat_map(|line| &line.changes).any(|change| change.command.is_none())
    }

    /// The one currency of its lines, once there are any.
    fn currency(&self) -> Option<super::Currency> {
        self.lines.values().next().map(|line| line.offer.price.currency)
    }

    /// A line is shown the price that it was first added at; another one is told of when checking out.
    fn queue(&mut self, sku: &str, offer: &Offer, change: Change) {
        let line = self.lines.entry(sku.to_owned()).or_insert_with(|| Line {
            offer: offer.clone(),
            quantity: 0,
            held_until: None,
            changes: Vec::new(),
            asked: None,
        });
        line.changes.push(change);
    }

    fn refuse(&mut self, sku: &str, refused: &[usize], reduced: &[(usize, u32)]) {
        let Some(line) = self.lines.get_mut(sku) else { return };
        line.asked = None;
        for (position, quantity) in reduced {
            if let Some(change) = line.changes.get_mut(*position) {
                change.change = QuantityChange::Add(*quantity);
            }
        }
        let mut position = 0..;
        line.changes.retain(|_| position.next().is_some_and(|position| !refused.contains(&position)));
        if line.quantity == 0 && line.changes.is_empty() {
            self.lines.remove(sku);
        }
    }

    fn release(&mut self, sku: &str) {
        self.revision += 1;
        self.releasing.insert(sku.to_owned(), self.revision);
    }

    fn create(&self, owner: order::Owner, context: &Context<'_>) -> Result<Decision<Cart>, Rejection> {
        match self.phase {
            Phase::Absent => Ok(Decision::now(vec![Event::Created { id: context.id.to_owned(), owner }], Reply::Created)),
            _ => Err(Rejection::Exists),
        }
    }

    fn check_add(&self, sku: &str, quantity: u32, offer: &Offer) -> Result<(), Rejection> {
        self.is_open()?;
        if !ids::is_sku(sku) {
            return Err(invalid("/sku", "is not a sku"));
        }
        check_quantity(quantity)?;
        if offer.price.amount < 0 {
            return Err(invalid("/price", "must not be negative"));
        }
        if let Some(cart) = self.currency().filter(|currency| *currency != offer.price.currency) {
            return Err(Rejection::CurrencyDiffers { cart, offer: offer.price.currency });
        }
        match self.lines.get(sku) {
            None if self.lines.len() >= LINES_MAX => Err(Rejection::TooManyLines),
            None => Ok(()),
            Some(line) if line.changes.len() >= CHANGES_MAX => Err(Rejection::Busy),
            Some(line) => check_quantity(line.expected().saturating_add(quantity)),
        }
    }

    fn check_set(&self, sku: &str, quantity: u32) -> Result<Offer, Rejection> {
        self.is_open()?;
        check_quantity(quantity)?;
        match self.lines.get(sku) {
            None => Err(Rejection::NoSuchLine { sku: sku.to_owned() }),
            Some(line) if line.changes.len() >= CHANGES_MAX => Err(Rejection::Busy),
            Some(line) => Ok(line.offer.clone()),
        }
    }

    /// The lines that differ from what they cost now. A price in another currency is none: it cannot be had in this cart.
    fn price_changes(&self, prices: &BTreeMap<String, Money>) -> Vec<PriceChange> {
        let changes = self.lines.iter().map(|(sku, line)| {
            let was = line.offer.price;
            let now = prices.get(sku).copied().filter(|now| now.currency == was.currency);
            PriceChange { sku: sku.clone(), was, now }
        });
        changes.filter(|change| change.now != Some(change.was)).collect()
    }

    fn draft(&self, owner: order::Owner, terms: Terms) -> Result<order::Draft, Rejection> {
        let too_large = |_| invalid("/total", "is more than an order can come to");
        let mut lines = Vec::with_capacity(self.lines.len());
        for (sku, line) in &self.lines {
            let (unit_price, quantity) = (line.offer.price, line.quantity);
            let total = unit_price.times(quantity).map_err(too_large)?;
            let Offer { product, shop, title, price: _ } = line.offer.clone();
            lines.push(order::Line { sku: sku.clone(), product, shop, title, quantity, unit_price, total, claim: None });
        }
        if let Some(claimed) = terms.claimed {
            if self.lines.contains_key(&claimed.sku) {
                return Err(invalid("/claim_id", "is of a sku that is in the cart too: buy them one after the other"));
            }
            lines.push(*claimed);
        }
        let currency = lines.first().map(|line| line.total.currency).ok_or(Rejection::Empty)?;
        if let Some(other) = lines.iter().map(|line| line.total.currency).find(|other| *other != currency) {
            return Err(Rejection::CurrencyDiffers { cart: currency, offer: other });
        }
        let total = Money::sum(currency, lines.iter().map(|line| line.total)).map_err(too_large)?;
        if let Some(expected) = terms.expected_total.filter(|expected| *expected != total) {
            return Err(Rejection::TotalDiffers { expected, actual: total });
        }
        let Terms { payment, contact, .. } = terms;
        Ok(order::Draft { owner, cart: Some(self.id.clone()), lines, total, contact, payment })
    }

    fn ask_debt(&self, sku: &str, asked: &Asked) -> Debt<Cart> {
        let (heard, revision) = (sku.to_owned(), asked.revision);
        let (cart, quantity, absorb) = (self.id.clone(), asked.quantity, asked.absorb.clone());
        let hold = inventory::Command::Hold { cart, quantity, revision, absorb };
        Debt::tell::<Inventory>(format!("hold/{sku}/{revision}"), sku, hold, move |answer| {
            Some(hear_hold(heard, revision, answer))
        })
    }

    fn release_debt(&self, sku: &str, revision: u64) -> Debt<Cart> {
        let heard = sku.to_owned();
        let release = inventory::Command::Hold { cart: self.id.clone(), quantity: 0, revision, absorb: None };
        Debt::tell::<Inventory>(format!("hold/{sku}/{revision}"), sku, release, move |_| {
            Some(Command::HeardReleased { sku: heard, revision })
        })
    }

    /// A cart that is being changed by a merge of its own is asked again; any other refusal is final.
    fn merge_debt(&self, from: &str) -> Debt<Cart> {
        let heard = from.to_owned();
        let hand_over = Command::HandOver { into: self.id.clone() };
        Debt::tell::<Cart>(format!("merge/{from}"), from, hand_over, move |answer| match answer {
            Ok(Reply::HandedOver { lines }) => Some(Command::HeardHandedOver { from: heard, lines }),
            Ok(_) | Err(Rejection::Busy) => None,
            Err(_) => Some(Command::HeardNotHandedOver { from: heard }),
        })
    }

    fn place_debt(&self) -> Option<Debt<Cart>> {
        let Phase::CheckingOut { order, draft, .. } = &self.phase else { return None };
        let (heard, draft) = (order.clone(), (**draft).clone());
        Some(Debt::tell::<Order>(format!("place/{order}"), order, order::Command::Place { draft }, move |answer| {
            hear_outcome(heard, answer)
        }))
    }
}

fn hear_hold(sku: String, revision: u64, answer: Result<inventory::Reply, inventory::Rejection>) -> Command {
    match answer {
        Ok(inventory::Reply::Held { quantity, expires_at: Some(expires_at) }) => {
            Command::HeardHeld { sku, revision, quantity, expires_at }
        }
        Err(inventory::Rejection::Short { available, .. }) => Command::HeardShort { sku, revision, available },
        Ok(_) | Err(_) => Command::HeardShort { sku, revision, available: 0 },
    }
}

/// An order that refuses to be placed at all has bound nothing: the cart opens again.
fn hear_outcome(order: String, answer: Result<order::Reply, order::Rejection>) -> Option<Command> {
    let outcome = match answer {
        Ok(order::Reply::Concluded(outcome)) => outcome,
        Ok(_) => return None,
        Err(rejection) => {
            let reason = Some(order::Reason::Requested { message: rejection.to_string() });
            order::Outcome { order, status: order::Status::Cancelled, reason }
        }
    };
    Some(Command::HeardOutcome { outcome })
}

impl Turn {
    /// Emits an event that may have been the last one that a merge waited for.
    fn emit_answer(&mut self, event: Event) {
        let waiting = self.state.merge_waiting.clone();
        self.emit(event);
        if self.state.merge_waiting.is_empty() {
            self.settle_all(waiting, &Ok(Reply::Merged));
        }
    }

    fn ask(&mut self, sku: &str) {
        if let Some(line) = self.state.lines.get(sku) {
            let asked = line.next_ask(self.state.revision + 1);
            self.emit(Event::HoldAsked { sku: sku.to_owned(), asked });
        }
    }

    fn ask_each(&mut self, wanted: impl Fn(&str, &Line) -> bool) {
        let idle = self.state.lines.iter().filter(|(sku, line)| line.asked.is_none() && wanted(sku, line));
        let skus: Vec<String> = idle.map(|(sku, _)| sku.clone()).collect();
        skus.iter().for_each(|sku| self.ask(sku));
    }

    /// Queues a change for its hold, and renews the holds that would soon run out under a shopper who is still here.
    fn request(
        mut self,
        sku: String,
        offer: Offer,
        change: QuantityChange,
        context: &Context<'_>,
    ) -> Result<Decision<Cart>, Rejection> {
        let command = Some(context.command.clone());
        if self.state.lines.get(&sku).is_some_and(|line| line.changes.iter().any(|change| change.command == command)) {
            return Ok(self.later());
        }
        let change = Change { command, change, absorb: None };
        self.emit(Event::ItemRequested { sku: sku.clone(), offer, change });
        let soon = context.now.plus_ms(RENEW_BELOW_MS);
        self.ask_each(|other, line| other == sku || line.held_until.is_none_or(|held_until| held_until < soon));
        Ok(self.later())
    }

    fn remove(mut self, sku: String) -> Result<Decision<Cart>, Rejection> {
        self.state.is_open()?;
        let Some(line) = self.state.lines.get(&sku) else { return Err(Rejection::NoSuchLine { sku }) };
        let waiting: Vec<CommandId> = line.changes.iter().filter_map(|change| change.command.clone()).collect();
        self.settle_all(waiting, &Err(Rejection::NoSuchLine { sku: sku.clone() }));
        self.emit_answer(Event::ItemRemoved { sku });
        Ok(self.now(Reply::Removed))
    }

    fn heard_held(mut self, sku: String, revision: u64, held_until: Timestamp) -> Decision<Cart> {
        let line = self.state.lines.get(&sku);
        let Some((line, asked)) = line.and_then(|line| Some((line, line.asked.clone()?))).filter(|(_, a)| a.revision == revision)
        else {
            return self.now(Reply::Noted);
        };
        let mut quantity = line.quantity;
        let mut answers = Vec::new();
        let covered: Vec<Change> = line.changes.iter().take(asked.covers).cloned().collect();
        for change in &covered {
            quantity = change.change.after(quantity);
            answers.extend(change.command.clone().map(|command| (command, quantity)));
        }
        let has_grown = covered.iter().any(|change| matches!(change.change, QuantityChange::Add(_)));
        let (quantity, answered) = (asked.quantity, asked.covers);
        for (command, quantity) in answers {
            self.settle(command, Ok(Reply::Quantity(quantity)));
        }
        self.emit_answer(match has_grown {
            true => Event::ItemAdded { sku: sku.clone(), quantity, held_until, answered },
            false => Event::Updated { sku: sku.clone(), quantity, held_until, answered },
        });
        self.ask_each(|other, line| other == sku && !line.changes.is_empty());
        self.now(Reply::Noted)
    }

    /// Each time at least one change is refused or reduced, or the line shrinks, so that asking again comes to an end.
    fn heard_short(mut self, sku: String, revision: u64, available: u32) -> Decision<Cart> {
        let line = self.state.lines.get(&sku);
        let Some((line, asked)) = line.and_then(|line| Some((line, line.asked.clone()?))).filter(|(_, a)| a.revision == revision)
        else {
            return self.now(Reply::Noted);
        };
        let had = line.quantity;
        let shares = line.share_out(&sku, asked.covers, available.min(QUANTITY_MAX));
        for (command, rejection) in shares.answers {
            self.settle(command, Err(rejection));
        }
        let (refused, reduced) = (shares.refused, shares.reduced);
        self.emit_answer(Event::ItemRefused { sku: sku.clone(), available, refused, reduced });
        let Some(line) = self.state.lines.get(&sku) else { return self.now(Reply::Noted) };
        match line.changes.is_empty() {
            false => self.ask(&sku),
            true if shares.quantity == had => {}
            true if shares.quantity == 0 => self.emit_answer(Event::ItemRemoved { sku }),
            true => {
                let (revision, quantity) = (self.state.revision + 1, shares.quantity);
                let asked = Asked { revision, quantity, covers: 0, absorb: None };
                self.emit(Event::HoldAsked { sku, asked });
            }
        }
        self.now(Reply::Noted)
    }

    fn merge(mut self, from: String, context: &Context<'_>) -> Result<Decision<Cart>, Rejection> {
        self.state.is_open()?;
        if from == context.id {
            return Err(Rejection::NotMergeable);
        }
        if self.state.merged.contains(&from) {
            return Ok(self.now(Reply::Merged));
        }
        let command = context.command.clone();
        if !self.state.merging.get(&from).is_some_and(|waiting| waiting.contains(&command)) {
            self.emit(Event::MergeRequested { from, command });
        }
        Ok(self.later())
    }

    /// Only what is accepted goes along. A cart in the middle of a merge of its own cannot tell yet what it has.
    fn hand_over(mut self, into: String) -> Result<Decision<Cart>, Rejection> {
        match &self.state.phase {
            Phase::Merged { into: before, lines } if *before == into => {
                let lines = lines.clone();
                return Ok(self.now(Reply::HandedOver { lines }));
            }
            Phase::CheckingOut { order, .. } => return Err(Rejection::CheckingOut { order: order.clone() }),
            Phase::Open if !self.state.merging.is_empty() => return Err(Rejection::NotMergeable),
            Phase::Open if self.state.has_merge_changes() => return Err(Rejection::Busy),
            Phase::Open => {}
            _ => return Err(Rejection::NotMergeable),
        }
        self.settle_changes(&format!("its lines went to cart {into}"));
        let accepted = self.state.lines.iter().filter(|(_, line)| line.quantity > 0);
        let lines =
            accepted.map(|(sku, line)| HandedOver { sku: sku.clone(), quantity: line.quantity, offer: line.offer.clone() });
        let lines: Vec<HandedOver> = lines.collect();
        self.emit(Event::HandedOver { into, lines: lines.clone() });
        Ok(self.now(Reply::HandedOver { lines }))
    }

    /// All who wait for a change hear that the cart is closed.
    fn settle_changes(&mut self, because: &str) {
        let changes = self.state.lines.values().flat_map(|line| &line.changes);
        let waiting: Vec<CommandId> = changes.filter_map(|change| change.command.clone()).collect();
        self.settle_all(waiting, &Err(Rejection::Closed { because: because.to_owned() }));
    }

    /// What this cart has no room for, or is sold in another currency, is left behind; its hold runs out by itself.
    fn heard_handed_over(mut self, from: String, mut lines: Vec<HandedOver>) -> Decision<Cart> {
        let Some(waiting) = self.state.merging.get(&from).cloned() else { return self.now(Reply::Noted) };
        let currency = self.state.currency().or(lines.first().map(|line| line.offer.price.currency));
        let mut room = LINES_MAX.saturating_sub(self.state.lines.len());
        lines.retain(|line| {
            let is_new = !self.state.lines.contains_key(&line.sku);
            let fits = Some(line.offer.price.currency) == currency && (!is_new || room > 0);
            room -= usize::from(fits && is_new);
            fits
        });
        self.emit(Event::Merged { from, lines });
        if self.state.merge_waiting.is_empty() {
            self.settle_all(waiting, &Ok(Reply::Merged));
        }
        self.ask_each(|_, line| !line.changes.is_empty());
        self.now(Reply::Noted)
    }

    fn check_out(mut self, terms: Terms, context: &Context<'_>) -> Result<Decision<Cart>, Rejection> {
        self.state.is_open()?;
        let lines = &self.state.lines;
        if lines.values().any(|line| line.asked.is_some() || !line.changes.is_empty()) || !self.state.merging.is_empty() {
            return Err(Rejection::Busy);
        }
        let owner = self.state.owner.clone().filter(|_| !lines.is_empty() || terms.claimed.is_some()).ok_or(Rejection::Empty)?;
        terms.contact.check(&owner).map_err(|(field, message)| invalid(field, message))?;
        let command = context.command.clone();
        let changes = self.state.price_changes(&terms.prices);
        if !changes.is_empty() {
            let told = Rejection::PricesChanged { changes: changes.clone() };
            if changes.iter().all(|change| change.now.is_none()) {
                return Err(told);
            }
            self.emit(Event::Repriced { changes });
            self.settle(command, Err(told));
            return Ok(self.later());
        }
        let order = terms.order.clone();
        let draft = Box::new(self.state.draft(owner, terms)?);
        self.emit(Event::CheckedOut { order, command, draft });
        Ok(self.later())
    }

    /// A failed order has given its units back; the cart asks for them anew.
    fn heard_outcome(mut self, outcome: order::Outcome) -> Decision<Cart> {
        let command = match &self.state.phase {
            Phase::CheckingOut { order, command, .. } if *order == outcome.order => command.clone(),
            _ => return self.now(Reply::Noted),
        };
        match outcome.status {
            order::Status::Paid | order::Status::Shipped | order::Status::Delivered | order::Status::Refunded => {
                self.emit(Event::Completed { order: outcome.order.clone() });
            }
            _ => {
                self.emit(Event::Reopened { outcome: outcome.clone() });
                self.ask_each(|_, _| true);
            }
        }
        self.settle(command, Ok(Reply::Concluded(outcome)));
        self.now(Reply::Noted)
    }

    fn delete(mut self) -> Result<Decision<Cart>, Rejection> {
        if self.state.phase == Phase::Deleted {
            return Ok(self.now(Reply::Deleted));
        }
        self.state.is_open()?;
        let because = "it was deleted";
        self.settle_changes(because);
        let merges: Vec<CommandId> = self.state.merging.values().flatten().chain(&self.state.merge_waiting).cloned().collect();
        self.settle_all(merges, &Err(Rejection::Closed { because: because.to_owned() }));
        self.emit(Event::Deleted);
        Ok(self.now(Reply::Deleted))
    }
}

#[cfg(test)]
#[path = "cart_tests.rs"]
mod tests;
