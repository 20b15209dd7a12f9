//! A cart: lines at the price they were added at, each backed by a hold at its inventory item.
//!
//! A change of quantity is accepted only when the hold is. The cart asks for one hold of a sku at a time and answers the
//! changes that queued meanwhile in their order.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{CommandId, Money, Timestamp, order};

pub const LINES_MAX: usize = order::LINES_MAX;
pub const QUANTITY_MAX: u32 = order::QUANTITY_MAX;

pub struct Cart;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub phase: Phase,
    pub owner: Option<order::Owner>,
    /// By sku.
    pub lines: BTreeMap<String, Line>,
    /// Skus whose hold is to be given up, with the revision that says so.
    pub releasing: BTreeMap<String, u64>,
    /// Counts the words sent to inventory items.
    pub revision: u64,
    /// Carts merged into this one.
    pub merged: BTreeSet<String>,
    /// Carts that are to hand over their lines, with the command that waits for it.
    pub merging: BTreeMap<String, CommandId>,
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

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
        shipping_address: order::Address,
        email: Option<String>,
        expected_total: Option<Money>,
        prices: BTreeMap<String, Money>,
    },
    Delete,
    /// Takes the new prices over into the lines, as the shopper was told.
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
    Created { owner: order::Owner },
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
    /// The oldest `answered` changes could not be had.
    #[serde(rename = "cart.item.refused")]
    ItemRefused { sku: String, available: u32, answered: usize },
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
