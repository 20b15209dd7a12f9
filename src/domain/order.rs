//! An order: lines at agreed prices on their way from placed to paid to shipped, or back to nothing.
//!
//! The order leads the purchase: it reserves at each inventory item, has its payment authorized, commits and captures,
//! and when anything is refused or time runs out it undoes what was done. It never ends half done.

use serde::{Deserialize, Serialize};

use super::{CommandId, Money, Timestamp, payment::Method, time::MINUTE_MS};

/// An order that is not paid by then is cancelled by its own timer.
pub const UNPAID_MS: i64 = 30 * MINUTE_MS;
pub const LINES_MAX: usize = 100;
pub const QUANTITY_MAX: u32 = 10_000;

pub struct Order;

/// Who may see and cancel the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// Whoever holds the token with this SHA-256, in hex.
    Guest {
        token_sha256: String,
    },
    Account {
        user: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    pub name: String,
    pub line1: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line2: Option<String>,
    pub city: String,
    pub postal_code: String,
    /// ISO 3166-1 alpha-2.
    pub country: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub sku: String,
    pub product: String,
    pub title: String,
    pub quantity: u32,
    pub unit_price: Money,
    pub total: Money,
}

/// All that is agreed when an order is placed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Draft {
    pub owner: Owner,
    pub cart: Option<String>,
    /// At most one line for each sku.
    pub lines: Vec<Line>,
    pub total: Money,
    pub email: Option<String>,
    pub shipping_address: Address,
    pub payment: Method,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub draft: Option<Draft>,
    pub placed_at: Timestamp,
    pub status: Status,
    /// One for each of the draft's lines, in their order.
    pub stock: Vec<Stock>,
    pub payment: PaymentPhase,
    /// Why it was cancelled or not paid.
    pub reason: Option<Reason>,
    /// The `Place` whose caller waits for the outcome.
    pub waiting: Option<CommandId>,
    pub shipments: Vec<Shipment>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    #[default]
    Absent,
    Pending,
    Reserved,
    Paid,
    Shipped,
    Cancelled,
    PaymentFailed,
    Refunded,
}

/// Where a line's units are. `Owing…` is a debt to the inventory item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stock {
    OwingReserve,
    Reserved,
    Refused { available: u32 },
    OwingRelease,
    Released,
    OwingCommit,
    Committed,
    OwingRestock,
    Restocked,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentPhase {
    #[default]
    None,
    OwingAuthorize,
    Declined,
    OwingCapture,
    Captured,
    CaptureFailed,
    OwingVoid,
    Voided,
    OwingRefund,
    Refunded,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// Stock was short: what each refused sku could still have given.
    OutOfStock {
        short: Vec<Short>,
    },
    PaymentDeclined {
        message: String,
    },
    /// Not paid within [`UNPAID_MS`].
    Unpaid,
    /// Somebody asked for it.
    Requested {
        message: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Short {
    pub sku: String,
    pub requested: u32,
    pub available: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipment {
    pub carrier: String,
    pub tracking_number: Option<String>,
    pub shipped_at: Timestamp,
}

/// How a purchase ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub order: String,
    pub status: Status,
    pub reason: Option<Reason>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Answered when the order is paid, failed or cancelled.
    Place {
        draft: Draft,
    },
    Cancel {
        reason: String,
    },
    Ship {
        carrier: String,
        tracking_number: Option<String>,
    },
    HeardReserved {
        sku: String,
    },
    HeardRefused {
        sku: String,
        available: u32,
    },
    HeardReleased {
        sku: String,
    },
    HeardCommitted {
        sku: String,
    },
    HeardRestocked {
        sku: String,
    },
    HeardAuthorized,
    HeardDeclined {
        reason: String,
    },
    HeardCaptured,
    HeardCaptureFailed {
        reason: String,
    },
    HeardVoided,
    HeardRefunded,
    /// The time to pay is over.
    Expire,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Concluded(Outcome),
    Cancelled,
    Shipped,
    Noted,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("no such order")]
    Unknown,
    #[error("the order was placed already, with other content")]
    Exists,
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    #[error("the order is {status:?} and can no longer be cancelled")]
    NotCancellable { status: Status },
    #[error("the order is being paid right now; try again in a moment")]
    InPayment,
    #[error("only a paid order can be shipped; this one is {status:?}")]
    NotShippable { status: Status },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "order.created")]
    Created { command: CommandId, draft: Draft, placed_at: Timestamp },
    #[serde(rename = "order.line.reserved")]
    LineReserved { sku: String },
    #[serde(rename = "order.line.refused")]
    LineRefused { sku: String, available: u32 },
    #[serde(rename = "order.line.released")]
    LineReleased { sku: String },
    #[serde(rename = "order.line.committed")]
    LineCommitted { sku: String },
    #[serde(rename = "order.line.restocked")]
    LineRestocked { sku: String },
    /// The order moved on inside its life: to `reserved`, or back to nothing owed.
    #[serde(rename = "order.updated")]
    Updated { status: Status },
    #[serde(rename = "order.payment.authorized")]
    PaymentAuthorized,
    #[serde(rename = "order.payment.captured")]
    PaymentCaptured,
    #[serde(rename = "order.payment.capture_failed")]
    PaymentCaptureFailed { reason: String },
    #[serde(rename = "order.payment.voided")]
    PaymentVoided,
    #[serde(rename = "order.paid")]
    Paid { total: Money },
    #[serde(rename = "order.payment_failed")]
    PaymentFailed { reason: Reason },
    #[serde(rename = "order.cancelled")]
    Cancelled { reason: Reason },
    #[serde(rename = "order.shipped")]
    Shipped { shipment: Shipment },
    /// The money went back and the stock with it.
    #[serde(rename = "order.refunded")]
    Refunded { total: Money },
}
