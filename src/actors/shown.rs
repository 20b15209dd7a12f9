//! What of an entity is shown outside: its state as an answer's body, and its records as events.
//!
//! Everything here is an allow-list. A token's or password's hash, a seal, a payment token or a command id must never
//! appear in it, and an e-mail address only in the answer to the order's or account's own holder; a field that is not named
//! here is not shown. Records of accounts show that something happened and nothing of what.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::domain::time::SECOND_MS;
use crate::domain::{Entity, Money, Timestamp, cart, flash_sale, ids, inventory, order, product, shop, user};
use crate::persistence::Version;
use crate::persistence::record::Record;

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Product")]
pub struct ProductShown<'a> {
    pub id: &'a str,
    pub shop_id: &'a str,
    pub handle: &'a str,
    pub title: &'a str,
    pub description: &'a str,
    pub vendor: &'a str,
    #[serde(rename = "type")]
    pub product_type: &'a str,
    pub category: &'a [String],
    pub tags: &'a [String],
    pub options: &'a [String],
    pub variants: &'a [product::Variant],
    pub published: bool,
    pub version: Version,
}

/// `None` while it is not (or no longer) in the catalogue.
pub fn product<'a>(id: &'a str, state: &'a product::State, version: Version) -> Option<ProductShown<'a>> {
    let content = state.in_force();
    (state.phase == product::Phase::Live).then(|| ProductShown {
        id,
        shop_id: &content.shop,
        handle: &content.handle,
        title: &content.title,
        description: &content.description,
        vendor: &content.vendor,
        product_type: &content.product_type,
        category: &content.category,
        tags: &content.tags,
        options: &content.options,
        variants: &content.variants,
        published: content.published,
        version,
    })
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "InventoryItem")]
pub struct InventoryShown<'a> {
    pub sku: &'a str,
    pub product_id: Option<&'a str>,
    pub on_hand: u32,
    pub reserved: u64,
    pub held: u64,
    /// Units that flash sales keep aside.
    pub allotted: u64,
    pub available: u64,
    pub low_stock_threshold: u32,
}

/// `None` when the sku was never in any catalogue.
pub fn inventory<'a>(sku: &'a str, state: &'a inventory::State, version: Version) -> Option<InventoryShown<'a>> {
    (version > 0).then(|| InventoryShown {
        sku,
        product_id: state.product.as_deref(),
        on_hand: state.on_hand,
        reserved: state.reserved,
        held: state.held,
        allotted: state.allotted,
        available: u64::from(state.available()),
        low_stock_threshold: state.low_stock_threshold,
    })
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Cart")]
pub struct CartShown<'a> {
    pub id: &'a str,
    #[schemars(extend("enum" = ["open", "checking_out", "checked_out", "merged"]))]
    pub status: &'static str,
    pub lines: Vec<CartLineShown<'a>>,
    /// `null` while the cart is empty: it has no currency yet.
    pub subtotal: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merged_into: Option<&'a str>,
    /// Why the last checkout came to nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<&'a order::Outcome>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CartLine")]
pub struct CartLineShown<'a> {
    pub sku: &'a str,
    pub product_id: &'a str,
    pub title: &'a str,
    pub quantity: u32,
    pub unit_price: Money,
    /// `null` past the largest amount there is.
    pub total: Option<Money>,
    pub held_until: Option<Timestamp>,
}

/// `None` before it was made and after it was deleted.
pub fn cart<'a>(id: &'a str, state: &'a cart::State) -> Option<CartShown<'a>> {
    let (status, order_id, merged_into) = match &state.phase {
        cart::Phase::Absent | cart::Phase::Deleted => return None,
        cart::Phase::Open => ("open", None, None),
        cart::Phase::CheckingOut { order, .. } => ("checking_out", Some(order.as_str()), None),
        cart::Phase::CheckedOut { order } => ("checked_out", Some(order.as_str()), None),
        cart::Phase::Merged { into, .. } => ("merged", None, Some(into.as_str())),
    };
    // A line without accepted units only waits for its hold.
    let lines: Vec<_> = state
        .lines
        .iter()
        .filter(|(_, line)| line.quantity > 0)
        .map(|(sku, line)| CartLineShown {
            sku,
            product_id: &line.offer.product,
            title: &line.offer.title,
            quantity: line.quantity,
            unit_price: line.offer.price,
            total: line.offer.price.times(line.quantity).ok(),
            held_until: line.held_until,
        })
        .collect();
    let subtotal = lines.first().and_then(|first| {
        let totals: Option<Vec<Money>> = lines.iter().map(|line| line.total).collect();
        Money::sum(first.unit_price.currency, totals?).ok()
    });
    Some(CartShown { id, status, lines, subtotal, order_id, merged_into, last_failure: state.last_failure.as_ref() })
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Order")]
pub struct OrderShown<'a> {
    pub id: &'a str,
    pub status: order::Status,
    pub lines: Vec<OrderLineShown<'a>>,
    pub total: Money,
    /// Shown only once it was opened for somebody who may read it, and not any more when its key is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shipping_address: Option<order::Address>,
    pub payment: PaymentShown<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a order::Reason>,
    pub placed_at: Timestamp,
    pub shipments: &'a [order::Shipment],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cart_id: Option<&'a str>,
    /// Only in the answer that made it, and only for a guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<&'a str>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OrderLine")]
pub struct OrderLineShown<'a> {
    pub sku: &'a str,
    pub product_id: &'a str,
    pub title: &'a str,
    pub quantity: u32,
    pub unit_price: Money,
    pub total: Money,
    /// The claim in a flash sale that its units and its price come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_id: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OrderPayment")]
pub struct PaymentShown<'a> {
    pub provider: &'a str,
    #[schemars(extend("enum" = PAYMENT_STATUSES))]
    pub status: &'static str,
}

/// `None` before it was placed.
pub fn order<'a>(id: &'a str, state: &'a order::State) -> Option<OrderShown<'a>> {
    let draft = state.draft.as_ref()?;
    Some(OrderShown {
        id,
        status: state.status,
        lines: draft.lines.iter().map(order_line).collect(),
        total: draft.total,
        email: None,
        shipping_address: None,
        payment: PaymentShown { provider: &draft.payment.provider, status: payment_status(state.payment) },
        reason: state.reason.as_ref(),
        placed_at: state.placed_at,
        shipments: &state.shipments,
        cart_id: draft.cart.as_deref(),
        token: None,
    })
}

fn order_line(line: &order::Line) -> OrderLineShown<'_> {
    OrderLineShown {
        sku: &line.sku,
        product_id: &line.product,
        title: &line.title,
        quantity: line.quantity,
        unit_price: line.unit_price,
        total: line.total,
        claim_id: line.claim.as_ref().map(|of| ids::claim(&of.sale, of.claim)),
    }
}

const PAYMENT_STATUSES: [&str; 10] =
    ["none", "authorizing", "declined", "capturing", "captured", "capture_failed", "voiding", "voided", "refunding", "refunded"];

fn payment_status(phase: order::PaymentPhase) -> &'static str {
    use order::PaymentPhase as P;
    match phase {
        P::None => "none",
        P::OwingAuthorize => "authorizing",
        P::Declined => "declined",
        P::OwingCapture => "capturing",
        P::Captured => "captured",
        P::CaptureFailed => "capture_failed",
        P::OwingVoid => "voiding",
        P::Voided => "voided",
        P::OwingRefund => "refunding",
        P::Refunded => "refunded",
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "FlashSale")]
pub struct FlashSaleShown<'a> {
    pub id: &'a str,
    pub status: flash_sale::Status,
    pub sku: &'a str,
    pub product_id: &'a str,
    pub shop_id: Option<&'a str>,
    pub title: &'a str,
    pub price: Money,
    /// All units of the sale, sold or not.
    pub quantity: u32,
    pub per_customer_limit: u32,
    pub per_address_limit: Option<u32>,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    /// How long a claim can be paid.
    pub claim_seconds: i64,
    /// How long an offer to the next in line can be taken up.
    pub admission_seconds: i64,
    /// How long the place of somebody who is gone is kept.
    pub grace_seconds: i64,
    /// Whether one need not be signed in.
    pub guests: bool,
    /// How many are let in each second at most; `null` is as many as there are units.
    pub admissions_per_second: Option<u32>,
    /// What a claim's proof of work must show; 0 asks for none.
    pub challenge_bits: u8,
    /// Units that nobody has.
    pub available: u32,
    /// Units that are offered, claimed or being paid.
    pub held: u32,
    pub sold: u32,
    /// How many are in line.
    pub waiting: u32,
    /// How many asked to be reminded.
    pub reminders: u32,
    /// It starts within five minutes.
    pub starts_soon: bool,
}

pub fn flash_sale<'a>(id: &'a str, shown: &'a flash_sale::Shown) -> FlashSaleShown<'a> {
    let flash_sale::Shown { terms, tuning, status, free, held, sold, waiting, reminders, starts_soon, own: _ } = shown;
    FlashSaleShown {
        id,
        status: *status,
        sku: &terms.sku,
        product_id: &terms.product,
        shop_id: terms.shop.as_deref(),
        title: &terms.title,
        price: terms.price,
        quantity: terms.quantity,
        per_customer_limit: terms.per_customer_limit,
        per_address_limit: terms.per_address_limit,
        starts_at: terms.starts_at,
        ends_at: terms.ends_at,
        claim_seconds: terms.claim_ms / SECOND_MS,
        admission_seconds: terms.admission_ms / SECOND_MS,
        grace_seconds: terms.grace_ms / SECOND_MS,
        guests: terms.guests,
        admissions_per_second: tuning.admissions_per_s,
        challenge_bits: tuning.challenge_bits,
        available: *free,
        held: *held,
        sold: *sold,
        waiting: *waiting,
        reminders: *reminders,
        starts_soon: *starts_soon,
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Claim")]
pub struct ClaimShown {
    pub id: String,
    #[schemars(extend("enum" = CLAIM_STATUSES))]
    pub status: &'static str,
    pub quantity: u32,
    pub unit_price: Money,
    /// Until when it can be taken up (offered) or paid (held).
    pub expires_at: Timestamp,
    /// The order that pays for it, or did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_id: Option<String>,
}

/// To the customer whose claim it is.
pub fn claim(sale: &str, claim: &flash_sale::OwnClaim, unit_price: Money) -> ClaimShown {
    ClaimShown {
        id: ids::claim(sale, claim.claim),
        status: claim_status(claim.phase),
        quantity: claim.quantity,
        unit_price,
        expires_at: claim.until,
        order_id: claim.order.clone(),
    }
}

const CLAIM_STATUSES: [&str; 7] = ["offered", "held", "paying", "sold", "expired", "released", "returned"];

fn claim_status(phase: flash_sale::ClaimPhase) -> &'static str {
    use flash_sale::ClaimPhase as P;
    match phase {
        P::Offered => "offered",
        P::Held => "held",
        P::Paying => "paying",
        P::Sold => "sold",
        P::Expired => "expired",
        P::Released => "released",
        P::Returned => "returned",
    }
}

/// A place in line.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Ticket")]
pub struct TicketShown {
    /// 1 is the next.
    #[schemars(range(min = 1))]
    pub place: u32,
    /// If it goes on as it went lately; `null` while nobody can tell.
    pub estimated_wait_seconds: Option<i64>,
    /// Units that it waits for.
    pub quantity: u32,
}

/// To the customer who waits.
pub fn ticket(ahead: u32, wait_ms: Option<i64>, quantity: u32) -> TicketShown {
    let estimated_wait_seconds = wait_ms.map(|ms| ms.saturating_add(SECOND_MS - 1) / SECOND_MS);
    TicketShown { place: ahead.saturating_add(1), estimated_wait_seconds, quantity }
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct AccountShown<'a> {
    pub id: &'a str,
    pub email: &'a str,
    pub name: &'a str,
    pub roles: BTreeSet<user::Role>,
    pub shop_id: Option<&'a str>,
    /// The cart that it used last.
    pub cart_id: Option<&'a str>,
    pub created_at: Timestamp,
}

/// To its own holder. `email` and `name` come from under their seals, which are opened elsewhere. `None` unless it is active.
pub fn account<'a>(id: &'a str, state: &'a user::State, email: &'a str, name: &'a str) -> Option<AccountShown<'a>> {
    let (roles, shop_id, created_at) = (state.roles(), state.shop.as_deref(), state.created_at);
    let cart_id = state.cart.as_deref();
    state.is_active().then_some(AccountShown { id, email, name, roles, shop_id, cart_id, created_at })
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct SessionShown<'a> {
    pub id: &'a str,
    pub device: &'a str,
    pub opened_at: Timestamp,
    pub used_at: Timestamp,
    pub expires_at: Timestamp,
    /// Whether it is the one that asks.
    pub current: bool,
}

/// To the account's own holder; `device` from under its seal.
pub fn session<'a>(id: &'a str, session: &user::Session, device: &'a str, current: bool) -> SessionShown<'a> {
    let user::Session { opened_at, used_at, .. } = *session;
    SessionShown { id, device, opened_at, used_at, expires_at: session.expires_at(), current }
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct ApiKeyShown<'a> {
    pub id: &'a str,
    pub label: &'a str,
    pub scopes: &'a BTreeSet<String>,
    pub created_at: Timestamp,
    /// The key itself: only in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<&'a str>,
}

/// To the account's own holder; `label` from under its seal.
pub fn api_key<'a>(id: &'a str, api_key: &'a user::ApiKey, label: &'a str) -> ApiKeyShown<'a> {
    ApiKeyShown { id, label, scopes: &api_key.scopes, created_at: api_key.created_at, key: None }
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct ShopShown<'a> {
    pub id: &'a str,
    pub name: &'a str,
    pub description: &'a str,
}

/// To everybody, and nothing of its owner. `None` unless it is open.
pub fn shop<'a>(id: &'a str, state: &'a shop::State) -> Option<ShopShown<'a>> {
    let shop::Content { name, description } = &state.content;
    state.is_open().then_some(ShopShown { id, name, description })
}

/// A record as a CloudEvents object.
#[derive(Debug, Serialize)]
pub struct EventShown<'a, D: Serialize> {
    pub specversion: &'static str,
    pub id: String,
    pub source: &'static str,
    #[serde(rename = "type")]
    pub event_type: &'a str,
    pub subject: &'a str,
    pub time: &'a str,
    pub entityversion: Version,
    pub data: D,
}

/// A record as a line of the audit trail.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OrderRecord")]
pub struct HistoryShown {
    pub version: Version,
    #[serde(rename = "type")]
    pub event_type: String,
    pub time: String,
    #[schemars(with = "OrderData<'static>")]
    pub data: Box<RawValue>,
    pub asked_by: String,
}

/// The record as it may leave, in JSON.
pub fn event(kind: &str, id: &str, record: &Record<'_>) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::value::to_raw_value(&EventShown {
        specversion: "1.0",
        id: format!("{kind}/{id}/{}", record.version),
        source: "/souk",
        event_type: &record.event_type,
        subject: id,
        time: &record.time,
        entityversion: record.version,
        data: data(kind, record)?,
    })
}

pub fn history(kind: &str, record: &Record<'_>) -> Result<HistoryShown, serde_json::Error> {
    Ok(HistoryShown {
        version: record.version,
        event_type: record.event_type.to_string(),
        time: record.time.to_string(),
        data: data(kind, record)?,
        asked_by: record.asker.to_string(),
    })
}

/// What of a record's data is shown. A kind or type that is not known shows nothing.
fn data(kind: &str, record: &Record<'_>) -> Result<Box<RawValue>, serde_json::Error> {
    use serde_json::value::to_raw_value;
    match kind {
        order::Order::KIND => match record.event::<order::Event>() {
            Ok(event) => to_raw_value(&order_data(&event)),
            Err(_) => to_raw_value(&Nothing {}),
        },
        cart::Cart::KIND => match record.event::<cart::Event>() {
            Ok(event) => to_raw_value(&cart_data(&event)),
            Err(_) => to_raw_value(&Nothing {}),
        },
        inventory::Inventory::KIND => match record.event::<inventory::Event>() {
            Ok(event) => to_raw_value(&inventory_data(&event)),
            Err(_) => to_raw_value(&Nothing {}),
        },
        _ => to_raw_value(&Nothing {}),
    }
}

#[derive(Serialize)]
struct Nothing {}

#[derive(Default, Serialize, JsonSchema)]
#[schemars(rename = "OrderRecordData")]
struct OrderData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<Vec<OrderLineShown<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sku: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<order::Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a order::Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shipment: Option<&'a order::Shipment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cart_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    placed_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered_at: Option<Timestamp>,
}

fn order_data(event: &order::Event) -> OrderData<'_> {
    use order::Event as E;
    let none = OrderData::default();
    match event {
        E::Created { draft, placed_at, id: _, command: _ } => OrderData {
            lines: Some(draft.lines.iter().map(order_line).collect()),
            total: Some(draft.total),
            cart_id: draft.cart.as_deref(),
            provider: Some(&draft.payment.provider),
            placed_at: Some(*placed_at),
            ..none
        },
        E::LineReserved { sku } | E::LineReleased { sku } | E::LineCommitted { sku } | E::LineRestocked { sku } => {
            OrderData { sku: Some(sku), ..none }
        }
        E::LineRefused { sku, available } => OrderData { sku: Some(sku), available: Some(*available), ..none },
        E::Updated { status } => OrderData { status: Some(*status), ..none },
        E::PlacedAgain { .. }
        | E::PaymentAuthorized
        | E::PaymentCaptured
        | E::PaymentVoided
        | E::PaymentRefunded
        | E::Claimed { .. } => none,
        E::PaymentCaptureFailed { reason } => OrderData { message: Some(reason), ..none },
        E::Paid { total } | E::Refunded { total } => OrderData { total: Some(*total), ..none },
        E::PaymentFailed { reason } | E::Cancelled { reason } => OrderData { reason: Some(reason), ..none },
        E::Shipped { shipment } => OrderData { shipment: Some(shipment), ..none },
        E::Delivered { delivered_at } => OrderData { delivered_at: Some(*delivered_at), ..none },
    }
}

#[derive(Default, Serialize)]
struct CartData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    sku: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    product_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit_price: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    into: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<&'a [cart::PriceChange]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantities: Option<BTreeMap<&'a str, u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a order::Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<Money>,
}

fn cart_data(event: &cart::Event) -> CartData<'_> {
    use cart::Event as E;
    let none = CartData::default();
    let units = |lines: &'_ [cart::HandedOver]| -> u32 { lines.iter().fold(0, |sum, line| sum.saturating_add(line.quantity)) };
    match event {
        E::Created { .. } | E::Deleted => none,
        E::ItemRequested { sku, offer, change: _ } => CartData {
            sku: Some(sku),
            product_id: Some(&offer.product),
            title: Some(&offer.title),
            unit_price: Some(offer.price),
            ..none
        },
        E::HoldAsked { sku, asked } => CartData { sku: Some(sku), quantity: Some(asked.quantity), ..none },
        E::ItemAdded { sku, quantity, held_until, answered: _ } | E::Updated { sku, quantity, held_until, answered: _ } => {
            CartData { sku: Some(sku), quantity: Some(*quantity), held_until: Some(*held_until), ..none }
        }
        E::ItemRefused { sku, available, .. } => CartData { sku: Some(sku), available: Some(*available), ..none },
        E::ItemRemoved { sku } | E::HoldReleased { sku } => CartData { sku: Some(sku), ..none },
        E::Repriced { changes } => CartData { changes: Some(changes), ..none },
        E::MergeRequested { from, command: _ } | E::MergeRefused { from } => CartData { from: Some(from), ..none },
        E::Merged { from, lines } => CartData {
            from: Some(from),
            quantity: Some(units(lines)),
            quantities: Some(lines.iter().map(|line| (line.sku.as_str(), line.quantity)).collect()),
            ..none
        },
        E::HandedOver { into, lines } => CartData { into: Some(into), quantity: Some(units(lines)), ..none },
        E::CheckedOut { order, draft, command: _ } => CartData { order_id: Some(order), total: Some(draft.total), ..none },
        E::Completed { order } => CartData { order_id: Some(order), ..none },
        E::Reopened { outcome } => CartData { outcome: Some(outcome), ..none },
    }
}

/// Of an inventory item everybody may know how much is left, and nothing of who has the rest.
#[derive(Serialize)]
struct InventoryData {
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<u32>,
}

fn inventory_data(event: &inventory::Event) -> InventoryData {
    use inventory::Event as E;
    let available = match event {
        E::Created { on_hand, .. } => Some(*on_hand),
        E::Updated { .. } | E::Closed { .. } => None,
        E::LowStock { available, .. }
        | E::HoldPlaced { available, .. }
        | E::HoldReleased { available, .. }
        | E::HoldExpired { available, .. }
        | E::Reserved { available, .. }
        | E::Released { available, .. }
        | E::Allotted { available, .. }
        | E::Decreased { available, .. }
        | E::Increased { available, .. } => Some(*available),
    };
    InventoryData { available }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{CommandId, Currency, payment};
    use crate::persistence::record::{Cause, Payload, PayloadWriter};
    use crate::persistence::{EntityKey, Wake};

    fn recorded<E: Serialize>(kind: &str, event: &E) -> String {
        let key = EntityKey::new(kind, "x");
        let command = CommandId::from("cmd-secret");
        let cause = Cause { command: &command, correlation: "corr", asker: "order/ord_secret", time: Timestamp::default() };
        let mut writer = PayloadWriter::default();
        writer.event(&key, 7, cause, event).unwrap();
        let bytes = writer.finish(Wake::Never).unwrap();
        let payload = Payload::parse(&bytes).unwrap();
        super::event(kind, "x", &payload.events[0]).unwrap().to_string()
    }

    #[test]
    fn a_change_of_a_product_shows_when_its_skus_are_claimed() {
        let titled = |title: &str| product::Content { title: title.into(), ..product::Content::default() };
        let mut state = product::State { phase: product::Phase::Live, content: titled("Old"), ..product::State::default() };
        let stock = std::collections::BTreeMap::from([("new".to_owned(), 1)]);
        let drafted = product::Event::UpdateDrafted { command: CommandId::from("c"), content: titled("New"), stock };
        product::Product::evolve(&mut state, &drafted);
        assert_eq!(product("prod_1", &state, 2).unwrap().title, "Old");
        product::Product::evolve(&mut state, &product::Event::SkuClaimed { sku: "new".into() });
        product::Product::evolve(&mut state, &product::Event::Updated { content: titled("New") });
        assert_eq!(product("prod_1", &state, 4).unwrap().title, "New");
    }

    fn draft() -> order::Draft {
        let price = Money::new(100, Currency::EUR);
        order::Draft {
            owner: order::Owner::Guest { token_sha256: "hash-secret".into() },
            cart: Some("cart_1".into()),
            lines: vec![order::Line {
                sku: "S".into(),
                product: "prod_1".into(),
                shop: None,
                title: "T".into(),
                quantity: 1,
                unit_price: price,
                total: price,
                claim: None,
            }],
            total: price,
            contact: order::Contact::Plain {
                email: Some("mail-secret@x.test".into()),
                shipping_address: order::Address {
                    name: "name-secret".into(),
                    line1: "l".into(),
                    line2: None,
                    city: "c".into(),
                    postal_code: "p".into(),
                    country: "DE".into(),
                },
            },
            payment: payment::Method { provider: "sandbox".into(), token: "pay-secret".into() },
        }
    }

    #[test]
    fn no_secret_leaves_in_an_event() {
        let command = CommandId::from("cmd-secret");
        let created = order::Event::Created {
            id: "ord_1".into(),
            command: command.clone(),
            draft: draft(),
            placed_at: Timestamp::default(),
        };
        let checked_out = cart::Event::CheckedOut { order: "ord_1".into(), command, draft: Box::new(draft()) };
        let owned = cart::Event::Created { id: "cart_1".into(), owner: draft().owner };
        let reserved = inventory::Event::Reserved {
            order: "ord_secret".into(),
            cart: Some("cart_secret".into()),
            quantity: 1,
            available: 4,
        };
        for text in [
            recorded("order", &created),
            recorded("cart", &checked_out),
            recorded("cart", &owned),
            recorded("inventory", &reserved),
            recorded("payment", &reserved),
        ] {
            assert!(!text.contains("secret"), "{text}");
        }
        assert!(recorded("order", &created).contains(r#""type":"order.created""#));
        assert!(recorded("inventory", &reserved).ends_with(r#""entityversion":7,"data":{"available":4}}"#));
    }

    #[test]
    fn an_order_is_shown_without_its_secrets() {
        let state = order::State { draft: Some(draft()), ..order::State::default() };
        let text = serde_json::to_string(&order("ord_1", &state).unwrap()).unwrap();
        assert!(!text.contains("secret"), "{text}");
        assert!(order("ord_1", &order::State::default()).is_none());
    }

    #[test]
    fn an_account_is_shown_without_a_hash_or_a_seal() {
        use crate::domain::email::EmailHash;
        use user::{Event, Sealed, SealedEmail, User};

        let sealed = || Sealed("seal-secret".to_owned());
        let secret_sha256 = || "hash-secret".to_owned();
        let scopes = BTreeSet::from(["products:write".to_owned()]);
        let time = Timestamp::default();
        let events = [
            Event::RegistrationRequested {
                id: "usr_1".into(),
                command: CommandId::from("cmd-secret"),
                email: SealedEmail { hash: EmailHash("email-secret".into()), sealed: sealed() },
                profile: sealed(),
                password_hash: sealed(),
            },
            Event::Created { created_at: time },
            Event::SessionOpened { session: "ses_1".into(), secret_sha256: secret_sha256(), device: sealed(), opened_at: time },
            Event::ApiKeyCreated {
                key: "key_1".into(),
                secret_sha256: secret_sha256(),
                scopes,
                label: sealed(),
                created_at: time,
            },
            Event::ShopAttached { shop: "shop_1".into() },
        ];
        let mut state = user::State::default();
        assert!(account("usr_1", &state, "", "").is_none());
        for event in &events {
            User::evolve(&mut state, event);
            let text = recorded("user", event);
            assert!(text.ends_with(r#""data":{}}"#), "{text}");
        }
        let shown = [
            serde_json::to_value(account("usr_1", &state, "ada@example.com", "Ada")).unwrap(),
            serde_json::to_value(session("ses_1", &state.sessions["ses_1"], "Firefox", true)).unwrap(),
            serde_json::to_value(api_key("key_1", &state.api_keys["key_1"], "till")).unwrap(),
        ];
        assert_eq!((&shown[0]["roles"][1], &shown[0]["shop_id"]), (&"vendor".into(), &"shop_1".into()));
        assert_eq!((&shown[1]["device"], &shown[2]["label"]), (&"Firefox".into(), &"till".into()));
        let text = serde_json::to_string(&shown).unwrap();
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn a_shop_is_shown_while_it_is_open_and_without_its_owner() {
        let content = shop::Content { name: "Lamps".into(), description: String::new() };
        let mut state = shop::State { owner: "usr_secret".into(), content, ..shop::State::default() };
        assert!(shop("shop_1", &state).is_none());
        state.phase = shop::Phase::Open;
        let text = serde_json::to_string(&shop("shop_1", &state)).unwrap();
        assert!(text.contains("Lamps") && !text.contains("secret"), "{text}");
    }
}
