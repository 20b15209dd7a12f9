//! An inventory item, one for each sku: what is on hand, what carts hold and what orders have reserved.
//!
//! available = on hand − held − reserved, and never below zero. Holds are leases that expire; reservations end only by
//! their order's word (commit or release).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Timestamp, time::MINUTE_MS};

/// How long a hold lasts when its cart is not used.
pub const HOLD_MS: i64 = 15 * MINUTE_MS;

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
    /// Orders that released before their reservation arrived, or whose units were restocked, until the moment when no
    /// late message of theirs can still be under way.
    pub closed: BTreeMap<String, Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    pub quantity: u32,
    /// The cart's own counter: an older word never overrides a newer one.
    pub revision: u64,
    pub expires_at: Timestamp,
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
    /// Time has come for the earliest hold.
    Expire,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Registered,
    Deregistered,
    Adjusted,
    ThresholdSet,
    Held { quantity: u32, expires_at: Option<Timestamp> },
    Reserved,
    Released,
    Committed,
    Restocked,
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
    #[serde(rename = "stock.decreased")]
    Decreased { quantity: u32, reason: String, order: Option<String>, on_hand: u32, available: u32 },
    #[serde(rename = "stock.increased")]
    Increased { quantity: u32, reason: String, order: Option<String>, until: Option<Timestamp>, on_hand: u32, available: u32 },
}
