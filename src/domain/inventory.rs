//! An inventory item, one for each sku: what is on hand, what carts hold, what orders have reserved and what flash sales
//! keep aside.
//!
//! available = on hand − held − reserved − allotted, and never below zero. Holds are leases that expire; reservations end
//! only by their order's word (commit or release), allotments by their sale's.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Context, Decision, Entity, Timestamp, time::MINUTE_MS};

/// How long a hold lasts when its cart is not used.
pub const HOLD_MS: i64 = 15 * MINUTE_MS;
/// How long a reservation that lost the race against its own release is waited for, to be refused.
pub const CLOSED_AFTER_RELEASE_MS: i64 = 60 * MINUTE_MS;
/// Sales that one sku can have had. Each is remembered: a refund may bring its units back at any time.
pub const ALLOTMENTS_MAX: usize = 1_000;
/// How long a repeated restock is recognised.
pub const CLOSED_AFTER_RESTOCK_MS: i64 = 24 * 60 * MINUTE_MS;

pub struct Inventory;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The product whose variant this is; `None` before registration and after the variant was removed.
    pub product: Option<String>,
    pub on_hand: u32,
    pub low_stock_threshold: u32,
    /// Whether available is at or below the threshold, so that each crossing is told once.
    pub low: bool,
    /// By cart id.
    pub holds: BTreeMap<String, Hold>,
    /// By order id.
    pub reservations: BTreeMap<String, u32>,
    /// By flash sale.
    pub allotments: BTreeMap<String, Allotment>,
    /// Orders that released before their reservation arrived, or whose units were restocked, until the moment when no
    /// late message of theirs can still be under way.
    pub closed: BTreeMap<String, Timestamp>,
    /// Whether the sku was ever registered: its stock outlives the product that it belonged to.
    pub created: bool,
    /// The sum of `holds`, kept so that a decision among ten thousand holds adds nothing up.
    pub held: u64,
    /// The sum of `reservations`.
    pub reserved: u64,
    /// Units that the `allotments` still keep aside.
    pub allotted: u64,
    /// `holds` by the moment of their end.
    pub expiries: BTreeSet<(Timestamp, String)>,
    /// `closed` by the moment of their end.
    pub closings: BTreeSet<(Timestamp, String)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    pub quantity: u32,
    /// The cart's own counter: an older word never overrides a newer one.
    pub revision: u64,
    pub expires_at: Timestamp,
}

/// What a flash sale said last. Its units are on hand until they are sold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allotment {
    /// The sale's own counter: an older word never overrides a newer one.
    pub revision: u64,
    /// Units that are the sale's, sold or not.
    pub quantity: u32,
    pub sold: u32,
}

impl Allotment {
    fn kept_aside(self) -> u32 {
        self.quantity.saturating_sub(self.sold)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// A product claims this sku for one of its variants. `on_hand` counts only when the sku is new.
    Register {
        product: String,
        on_hand: u32,
    },
    /// The product gives the sku up (variant removed or product deleted). Stock and reservations stay.
    Deregister {
        product: String,
    },
    Adjust {
        delta: i64,
        reason: String,
    },
    SetThreshold {
        low_stock_threshold: u32,
    },
    /// The cart's hold becomes exactly `quantity` (0 releases) and lasts until now + [`HOLD_MS`]. `absorb` names a
    /// merged cart whose hold on this sku is taken over in the same step.
    Hold {
        cart: String,
        quantity: u32,
        revision: u64,
        absorb: Option<String>,
    },
    /// The order reserves `quantity`, first out of its cart's hold. All of it or nothing.
    Reserve {
        order: String,
        cart: Option<String>,
        quantity: u32,
    },
    Release {
        order: String,
    },
    /// The reserved units leave the stock.
    Commit {
        order: String,
    },
    /// Units of a refunded order come back.
    Restock {
        order: String,
        quantity: u32,
    },
    /// What the flash sale has becomes exactly this.
    Allot {
        sale: String,
        allotment: Allotment,
    },
    /// Time has come for the earliest hold.
    Expire,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Registered,
    Deregistered,
    Adjusted,
    ThresholdSet,
    Held {
        quantity: u32,
        expires_at: Option<Timestamp>,
    },
    Reserved,
    Released,
    Committed,
    Restocked,
    /// What the sale has now.
    Allotted(Allotment),
    Expired,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("this sku is not in any catalogue")]
    Unknown,
    #[error("this sku already belongs to product {product}")]
    Taken { product: String },
    /// `available` is what this caller could have had.
    #[error("only {available} left of the {requested} asked for")]
    Short { requested: u32, available: u32 },
    #[error("the stock cannot be lowered below the {committed} units that are held and reserved")]
    BelowCommitted { committed: u32 },
    #[error("the stock of one sku cannot exceed {} units", u32::MAX)]
    TooMany,
    #[error("this order no longer wants its units")]
    Closed,
    #[error("one sku cannot be in more than {ALLOTMENTS_MAX} flash sales")]
    TooManySales,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "inventory.created")]
    Created { product: String, on_hand: u32 },
    /// The sku's product (gained, changed or given up) or threshold changed.
    #[serde(rename = "inventory.updated")]
    Updated { product: Option<String>, low_stock_threshold: u32 },
    #[serde(rename = "inventory.low_stock")]
    LowStock { available: u32, low_stock_threshold: u32 },
    #[serde(rename = "inventory.hold.placed")]
    HoldPlaced { cart: String, quantity: u32, revision: u64, expires_at: Timestamp, available: u32 },
    #[serde(rename = "inventory.hold.released")]
    HoldReleased { cart: String, available: u32 },
    #[serde(rename = "inventory.hold.expired")]
    HoldExpired { cart: String, available: u32 },
    #[serde(rename = "inventory.reserved")]
    Reserved { order: String, cart: Option<String>, quantity: u32, available: u32 },
    #[serde(rename = "inventory.released")]
    Released { order: String, available: u32 },
    /// A release came before its reservation: the order's late messages are refused until `until`.
    #[serde(rename = "inventory.closed")]
    Closed { order: String, until: Timestamp },
    #[serde(rename = "inventory.allotted")]
    Allotted { sale: String, allotment: Allotment, on_hand: u32, available: u32 },
    #[serde(rename = "stock.decreased")]
    Decreased { quantity: u32, reason: String, order: Option<String>, on_hand: u32, available: u32 },
    #[serde(rename = "stock.increased")]
    Increased { quantity: u32, reason: String, order: Option<String>, until: Option<Timestamp>, on_hand: u32, available: u32 },
}

impl Entity for Inventory {
    const KIND: &'static str = "inventory";
    const SNAPSHOT_FORMAT: u32 = 2;

    type State = State;
    type Command = Command;
    type Event = Event;
    type Reply = Reply;
    type Rejection = Rejection;

    fn decide(state: &State, command: Command, context: &Context<'_>) -> Result<Decision<Self>, Rejection> {
        let mut item = Item::at(state, context.now);
        let reply = match command {
            Command::Register { product, on_hand } => item.register(product, on_hand),
            Command::Deregister { product } => item.deregister(&product),
            Command::Adjust { delta, reason } => item.adjust(delta, reason),
            Command::SetThreshold { low_stock_threshold } => item.set_threshold(low_stock_threshold),
            Command::Hold { cart, quantity, revision, absorb } => item.hold(cart, quantity, revision, absorb),
            Command::Reserve { order, cart, quantity } => item.reserve(order, cart, quantity),
            Command::Release { order } => item.release(order),
            Command::Commit { order } => item.commit(order),
            Command::Restock { order, quantity } => item.restock(order, quantity),
            Command::Allot { sale, allotment } => item.allot(sale, allotment),
            Command::Expire => Ok(Reply::Expired),
        }?;
        Ok(Decision::now(item.into_events(), reply))
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Created { product, on_hand } => {
                state.created = true;
                state.product = Some(product.clone());
                state.on_hand = *on_hand;
            }
            Event::Updated { product, low_stock_threshold } => {
                state.product.clone_from(product);
                state.low_stock_threshold = *low_stock_threshold;
            }
            Event::LowStock { .. } => state.low = true,
            Event::HoldPlaced { cart, quantity, revision, expires_at, .. } => {
                state.place(cart, Hold { quantity: *quantity, revision: *revision, expires_at: *expires_at });
            }
            Event::HoldReleased { cart, .. } | Event::HoldExpired { cart, .. } => state.drop_hold(cart),
            Event::Reserved { order, cart, quantity, .. } => {
                if let Some(cart) = cart {
                    state.drop_hold(cart);
                }
                state.drop_reservation(order);
                state.reservations.insert(order.clone(), *quantity);
                state.reserved += u64::from(*quantity);
            }
            Event::Released { order, .. } => state.drop_reservation(order),
            Event::Closed { order, until } => state.close(order, *until, CLOSED_AFTER_RELEASE_MS),
            Event::Allotted { sale, allotment, on_hand, .. } => {
                let before = state.allotments.insert(sale.clone(), *allotment).unwrap_or_default();
                state.allotted =
                    state.allotted.saturating_sub(u64::from(before.kept_aside())) + u64::from(allotment.kept_aside());
                state.on_hand = *on_hand;
            }
            Event::Decreased { order, on_hand, .. } => {
                if let Some(order) = order {
                    state.drop_reservation(order);
                }
                state.on_hand = *on_hand;
            }
            Event::Increased { order, until, on_hand, .. } => {
                if let (Some(order), Some(until)) = (order, until) {
                    state.close(order, *until, CLOSED_AFTER_RESTOCK_MS);
                }
                state.on_hand = *on_hand;
            }
        }
        if state.low_stock_threshold == 0 || state.available() > state.low_stock_threshold {
            state.low = false;
        }
    }

    fn due(state: &State) -> Option<Timestamp> {
        state.expiries.first().map(|(expires_at, _)| *expires_at)
    }

    fn elapse() -> Option<Command> {
        Some(Command::Expire)
    }
}

impl State {
    /// Units that nobody holds, has reserved or keeps aside, counting holds that have expired but were not yet swept as held.
    pub fn available(&self) -> u32 {
        let free = u64::from(self.on_hand).saturating_sub(self.held).saturating_sub(self.reserved).saturating_sub(self.allotted);
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    /// What a cart could have at this moment.
    pub fn available_at(&self, now: Timestamp) -> u32 {
        let expired = self.expiries.iter().take_while(|(expires_at, _)| *expires_at <= now);
        let freed = expired.filter_map(|(_, cart)| self.holds.get(cart)).map(|hold| hold.quantity);
        freed.fold(self.available(), u32::saturating_add)
    }

    fn place(&mut self, cart: &str, hold: Hold) {
        self.drop_hold(cart);
        self.held += u64::from(hold.quantity);
        self.expiries.insert((hold.expires_at, cart.to_owned()));
        self.holds.insert(cart.to_owned(), hold);
    }

    fn drop_hold(&mut self, cart: &str) {
        if let Some(hold) = self.holds.remove(cart) {
            self.held = self.held.saturating_sub(u64::from(hold.quantity));
            self.expiries.remove(&(hold.expires_at, cart.to_owned()));
        }
    }

    fn drop_reservation(&mut self, order: &str) {
        if let Some(quantity) = self.reservations.remove(order) {
            self.reserved = self.reserved.saturating_sub(u64::from(quantity));
        }
    }

    /// Remembers the order until then, and forgets those whose time had passed when this was decided.
    fn close(&mut self, order: &str, until: Timestamp, kept_ms: i64) {
        let now = until.plus_ms(-kept_ms);
        while self.closings.first().is_some_and(|(passed, _)| *passed <= now) {
            if let Some((_, passed)) = self.closings.pop_first() {
                self.closed.remove(&passed);
            }
        }
        if let Some(before) = self.closed.insert(order.to_owned(), until) {
            self.closings.remove(&(before, order.to_owned()));
        }
        self.closings.insert((until, order.to_owned()));
    }
}

/// The item as one decision sees it: the state without the holds that have expired, and what the decision has taken
/// from it so far. Only the numbers are carried along; the ten thousand holds of a flash sale are never copied.
struct Item<'a> {
    state: &'a State,
    now: Timestamp,
    on_hand: u32,
    low_stock_threshold: u32,
    available: u32,
    low: bool,
    events: Vec<Event>,
}

impl<'a> Item<'a> {
    fn at(state: &'a State, now: Timestamp) -> Self {
        let mut item = Item {
            state,
            now,
            on_hand: state.on_hand,
            low_stock_threshold: state.low_stock_threshold,
            available: state.available(),
            low: state.low,
            events: Vec::new(),
        };
        for (_, cart) in state.expiries.iter().take_while(|(expires_at, _)| *expires_at <= now) {
            let freed = state.holds.get(cart).map_or(0, |hold| hold.quantity);
            let available = item.available.saturating_add(freed);
            item.emit(available, Event::HoldExpired { cart: cart.clone(), available });
        }
        item
    }

    /// Writes an event down after which this much is available.
    fn emit(&mut self, available: u32, event: Event) {
        self.available = available;
        self.low &= self.low_stock_threshold > 0 && available <= self.low_stock_threshold;
        self.events.push(event);
    }

    fn into_events(mut self) -> Vec<Event> {
        let (available, low_stock_threshold) = (self.available, self.low_stock_threshold);
        if low_stock_threshold > 0 && available <= low_stock_threshold && !self.low && !self.events.is_empty() {
            self.events.push(Event::LowStock { available, low_stock_threshold });
        }
        self.events
    }

    fn hold_of(&self, cart: &str) -> Option<&'a Hold> {
        self.state.holds.get(cart).filter(|hold| hold.expires_at > self.now)
    }

    /// Units that are promised to somebody.
    fn committed(&self) -> u32 {
        self.on_hand.saturating_sub(self.available)
    }

    fn is_listed(&self) -> Result<(), Rejection> {
        self.state.product.is_some().then_some(()).ok_or(Rejection::Unknown)
    }

    fn is_created(&self) -> bool {
        self.state.created
    }

    fn update(&mut self, product: Option<String>, low_stock_threshold: u32) {
        self.low_stock_threshold = low_stock_threshold;
        self.emit(self.available, Event::Updated { product, low_stock_threshold });
    }

    fn register(&mut self, product: String, on_hand: u32) -> Result<Reply, Rejection> {
        match &self.state.product {
            Some(owner) if *owner == product => {}
            Some(owner) => return Err(Rejection::Taken { product: owner.clone() }),
            None if self.is_created() => self.update(Some(product), self.low_stock_threshold),
            None => {
                self.on_hand = on_hand;
                self.emit(on_hand, Event::Created { product, on_hand });
            }
        }
        Ok(Reply::Registered)
    }

    fn deregister(&mut self, product: &str) -> Result<Reply, Rejection> {
        if self.state.product.as_deref() == Some(product) {
            self.update(None, self.low_stock_threshold);
        }
        Ok(Reply::Deregistered)
    }

    fn adjust(&mut self, delta: i64, reason: String) -> Result<Reply, Rejection> {
        if !self.is_created() {
            return Err(Rejection::Unknown);
        }
        let quantity = u32::try_from(delta.unsigned_abs());
        match delta {
            0 => {}
            1.. => {
                let quantity = quantity.map_err(|_| Rejection::TooMany)?;
                self.increase(quantity, reason, None, None)?;
            }
            _ => {
                let quantity = quantity.ok().filter(|quantity| *quantity <= self.available);
                let quantity = quantity.ok_or(Rejection::BelowCommitted { committed: self.committed() })?;
                self.on_hand -= quantity;
                let (on_hand, available) = (self.on_hand, self.available - quantity);
                self.emit(available, Event::Decreased { quantity, reason, order: None, on_hand, available });
            }
        }
        Ok(Reply::Adjusted)
    }

    fn increase(
        &mut self,
        quantity: u32,
        reason: String,
        order: Option<String>,
        until: Option<Timestamp>,
    ) -> Result<(), Rejection> {
        let on_hand = self.on_hand.checked_add(quantity).ok_or(Rejection::TooMany)?;
        let available = self.available.saturating_add(quantity);
        self.on_hand = on_hand;
        self.emit(available, Event::Increased { quantity, reason, order, until, on_hand, available });
        Ok(())
    }

    fn set_threshold(&mut self, low_stock_threshold: u32) -> Result<Reply, Rejection> {
        if !self.is_created() {
            return Err(Rejection::Unknown);
        }
        if low_stock_threshold != self.low_stock_threshold {
            self.update(self.state.product.clone(), low_stock_threshold);
        }
        Ok(Reply::ThresholdSet)
    }

    /// A cart's word counts when it is newer than the one that the hold carries; giving up is always possible, also
    /// when the sku is no longer sold.
    fn hold(&mut self, cart: String, quantity: u32, revision: u64, absorb: Option<String>) -> Result<Reply, Rejection> {
        let own = self.hold_of(&cart);
        if let Some(hold) = own.filter(|hold| revision <= hold.revision) {
            return Ok(Reply::Held { quantity: hold.quantity, expires_at: Some(hold.expires_at) });
        }
        if quantity == 0 {
            if let Some(hold) = own {
                let available = self.available.saturating_add(hold.quantity);
                self.emit(available, Event::HoldReleased { cart, available });
            }
            return Ok(Reply::Held { quantity: 0, expires_at: None });
        }
        self.is_listed()?;
        let absorbed = absorb.filter(|other| *other != cart).and_then(|other| Some((self.hold_of(&other)?.quantity, other)));
        let freed = own.map_or(0, |hold| hold.quantity).saturating_add(absorbed.as_ref().map_or(0, |(quantity, _)| *quantity));
        let within_reach = self.available.saturating_add(freed);
        if quantity > within_reach {
            return Err(Rejection::Short { requested: quantity, available: within_reach });
        }
        if let Some((quantity, cart)) = absorbed {
            let available = self.available.saturating_add(quantity);
            self.emit(available, Event::HoldReleased { cart, available });
        }
        let (available, expires_at) = (within_reach - quantity, self.now.plus_ms(HOLD_MS));
        self.emit(available, Event::HoldPlaced { cart, quantity, revision, expires_at, available });
        Ok(Reply::Held { quantity, expires_at: Some(expires_at) })
    }

    /// The line's whole hold goes with the reservation: what the order does not need of it is free again.
    fn reserve(&mut self, order: String, cart: Option<String>, quantity: u32) -> Result<Reply, Rejection> {
        if self.state.reservations.contains_key(&order) {
            return Ok(Reply::Reserved);
        }
        if self.state.closed.contains_key(&order) {
            return Err(Rejection::Closed);
        }
        self.is_listed()?;
        let held = cart.as_deref().and_then(|cart| self.hold_of(cart)).map_or(0, |hold| hold.quantity);
        let within_reach = self.available.saturating_add(held);
        if quantity > within_reach {
            return Err(Rejection::Short { requested: quantity, available: within_reach });
        }
        let available = within_reach - quantity;
        self.emit(available, Event::Reserved { order, cart, quantity, available });
        Ok(Reply::Reserved)
    }

    fn release(&mut self, order: String) -> Result<Reply, Rejection> {
        if let Some(quantity) = self.state.reservations.get(&order) {
            let available = self.available.saturating_add(*quantity);
            self.emit(available, Event::Released { order, available });
        } else if !self.state.closed.contains_key(&order) {
            let until = self.now.plus_ms(CLOSED_AFTER_RELEASE_MS);
            self.emit(self.available, Event::Closed { order, until });
        }
        Ok(Reply::Released)
    }

    fn commit(&mut self, order: String) -> Result<Reply, Rejection> {
        if let Some(quantity) = self.state.reservations.get(&order).copied() {
            self.on_hand = self.on_hand.saturating_sub(quantity);
            let (on_hand, available, reason) = (self.on_hand, self.available, "sold".to_owned());
            self.emit(available, Event::Decreased { quantity, reason, order: Some(order), on_hand, available });
        }
        Ok(Reply::Committed)
    }

    fn restock(&mut self, order: String, quantity: u32) -> Result<Reply, Rejection> {
        if !self.state.closed.contains_key(&order) {
            let until = self.now.plus_ms(CLOSED_AFTER_RESTOCK_MS);
            self.increase(quantity, "restocked".to_owned(), Some(order), Some(until))?;
        }
        Ok(Reply::Restocked)
    }

    /// A sale's word counts when it is newer than the one that is known; the answer says what counts now. Units that it sold
    /// leave the stock, units that it gives back, or that are refunded, are free.
    fn allot(&mut self, sale: String, allotment: Allotment) -> Result<Reply, Rejection> {
        let known = self.state.allotments.get(&sale).copied();
        if let Some(known) = known.filter(|known| allotment.revision <= known.revision) {
            return Ok(Reply::Allotted(known));
        }
        if known.is_none() && allotment.quantity > 0 {
            self.is_listed()?;
            if self.state.allotments.len() >= ALLOTMENTS_MAX {
                return Err(Rejection::TooManySales);
            }
        }
        let before = known.unwrap_or_default();
        let on_hand = self.on_hand.saturating_add(before.sold).saturating_sub(allotment.sold);
        let within_reach = u64::from(self.available) + u64::from(before.kept_aside()) + u64::from(before.sold);
        let wanted = u64::from(allotment.kept_aside()) + u64::from(allotment.sold);
        let Some(available) = within_reach.checked_sub(wanted).and_then(|available| u32::try_from(available).ok()) else {
            let available = u32::try_from(within_reach).unwrap_or(u32::MAX);
            return Err(Rejection::Short { requested: allotment.quantity, available });
        };
        self.on_hand = on_hand;
        self.emit(available, Event::Allotted { sale, allotment, on_hand, available });
        Ok(Reply::Allotted(allotment))
    }
}

#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
