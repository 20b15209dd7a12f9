//! An order: lines at agreed prices on their way from placed to paid to shipped, or back to nothing.
//!
//! The order leads the purchase: it reserves at each inventory item, has its payment authorized, commits and captures,
//! and when anything is refused or time runs out it undoes what was done. It never ends half done.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::flash_sale::{self, ClaimNumber, Customer};
use super::{
    CommandId, Context, Debt, Decision, Entity, FlashSale, Inventory, Money, Payment, Saga, SagaEnding, Timestamp, inventory,
    payment, payment::Method, time::MINUTE_MS, turn,
};

type Turn = turn::Turn<Order>;

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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Address {
    #[schemars(length(max = Address::FIELD_CHARS_MAX), regex(pattern = r"\S"))]
    pub name: String,
    #[schemars(length(max = Address::FIELD_CHARS_MAX), regex(pattern = r"\S"))]
    pub line1: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = Address::FIELD_CHARS_MAX), regex(pattern = r"\S"))]
    pub line2: Option<String>,
    #[schemars(length(max = Address::FIELD_CHARS_MAX), regex(pattern = r"\S"))]
    pub city: String,
    #[schemars(length(max = Address::FIELD_CHARS_MAX), regex(pattern = r"\S"))]
    pub postal_code: String,
    /// ISO 3166-1 alpha-2.
    #[schemars(regex(pattern = "^[A-Z]{2}$"))]
    pub country: String,
}

/// Whom an order is for and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Contact {
    /// Checked, then sealed at the door: what is personal is in the journal only so, and is gone with its key.
    Sealed { contact: SealedContact },
    /// As orders were placed before contacts were sealed.
    Plain { email: Option<String>, shipping_address: Address },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedContact {
    /// Whose key opens it.
    pub key: String,
    pub sealed: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub sku: String,
    pub product: String,
    /// Who sells it; lines that are older than shops have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shop: Option<String>,
    pub title: String,
    pub quantity: u32,
    pub unit_price: Money,
    pub total: Money,
    /// The claim that its units and its price come from; without one the units are the inventory item's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claimed>,
}

/// A claim in a flash sale, and whose it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claimed {
    pub sale: String,
    pub claim: ClaimNumber,
    pub customer: Customer,
}

/// All that is agreed when an order is placed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Draft {
    pub owner: Owner,
    pub cart: Option<String>,
    /// At most one line for each sku.
    pub lines: Vec<Line>,
    pub total: Money,
    #[serde(flatten)]
    pub contact: Contact,
    pub payment: Method,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Its own id, under which it reserves and pays.
    pub id: String,
    pub draft: Option<Draft>,
    pub placed_at: Timestamp,
    pub status: Status,
    /// One for each of the draft's lines, in their order.
    pub stock: Vec<Stock>,
    pub payment: PaymentPhase,
    /// Why it was cancelled or not paid.
    pub reason: Option<Reason>,
    /// Each `Place` whose caller waits for the outcome.
    pub waiting: Vec<CommandId>,
    pub shipments: Vec<Shipment>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "OrderStatus")]
pub enum Status {
    #[default]
    #[schemars(skip)]
    Absent,
    Pending,
    Reserved,
    Paid,
    Shipped,
    Delivered,
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// Stock was short: what each refused sku could still have given.
    OutOfStock {
        short: Vec<Short>,
    },
    PaymentDeclined {
        message: String,
    },
    /// Not paid in time.
    Unpaid,
    /// Somebody asked for it.
    Requested {
        message: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Short {
    pub sku: String,
    pub requested: u32,
    pub available: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Shipment {
    pub carrier: String,
    pub tracking_number: Option<String>,
    pub shipped_at: Timestamp,
}

/// How a purchase ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// It has arrived.
    Deliver,
    /// A guest's order becomes that of an account, with the contact under the account's key.
    Claim {
        user: String,
        contact: Contact,
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
    Delivered,
    Claimed,
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
    #[error("an order that is {status:?} cannot be delivered")]
    NotDeliverable { status: Status },
    #[error("the order belongs to an account already")]
    NotClaimable,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "order.created")]
    Created { id: String, command: CommandId, draft: Draft, placed_at: Timestamp },
    /// Another command placed the same order, and waits for its outcome too.
    #[serde(rename = "order.placed_again")]
    PlacedAgain { command: CommandId },
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
    #[serde(rename = "order.payment.refunded")]
    PaymentRefunded,
    #[serde(rename = "order.paid")]
    Paid { total: Money },
    #[serde(rename = "order.payment_failed")]
    PaymentFailed { reason: Reason },
    #[serde(rename = "order.cancelled")]
    Cancelled { reason: Reason },
    #[serde(rename = "order.shipped")]
    Shipped { shipment: Shipment },
    #[serde(rename = "order.delivered")]
    Delivered { delivered_at: Timestamp },
    /// The money went back and the stock with it.
    #[serde(rename = "order.refunded")]
    Refunded { total: Money },
    /// It was a guest's, and is an account's now.
    #[serde(rename = "order.claimed")]
    Claimed {
        user: String,
        #[serde(flatten)]
        contact: Contact,
    },
}

impl Entity for Order {
    const KIND: &'static str = "order";
    const SNAPSHOT_FORMAT: u32 = 1;

    type State = State;
    type Command = Command;
    type Event = Event;
    type Reply = Reply;
    type Rejection = Rejection;

    fn decide(state: &State, command: Command, context: &Context<'_>) -> Result<Decision<Self>, Rejection> {
        match command {
            Command::Place { draft } => return state.place(draft, context),
            Command::Cancel { reason } => return state.cancel(reason),
            Command::Ship { carrier, tracking_number } => return state.ship(carrier, tracking_number, context),
            Command::Deliver => return state.deliver(context),
            Command::Claim { user, contact } => return state.claim(user, contact),
            _ => {}
        }
        let mut turn = Turn::on(state);
        if let Some(event) = state.note(command, context.now) {
            turn.emit(event);
            conclude(&mut turn, &state.waiting);
        }
        Ok(turn.now(Reply::Noted))
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Created { id, command, draft, placed_at } => {
                state.id.clone_from(id);
                state.stock = vec![Stock::OwingReserve; draft.lines.len()];
                state.draft = Some(draft.clone());
                state.placed_at = *placed_at;
                state.status = Status::Pending;
                state.waiting = vec![command.clone()];
            }
            Event::PlacedAgain { command } => state.waiting.push(command.clone()),
            Event::LineReserved { sku } => state.set_line(sku, Stock::Reserved),
            Event::LineRefused { sku, available } => state.set_line(sku, Stock::Refused { available: *available }),
            Event::LineReleased { sku } => state.set_line(sku, Stock::Released),
            Event::LineCommitted { sku } => state.set_line(sku, Stock::Committed),
            Event::LineRestocked { sku } => state.set_line(sku, Stock::Restocked),
            Event::Updated { status } => state.move_to(*status),
            Event::PaymentAuthorized => {
                state.payment = PaymentPhase::OwingCapture;
                state.turn_lines(commit);
            }
            Event::PaymentCaptured => state.payment = PaymentPhase::Captured,
            Event::PaymentCaptureFailed { reason } => {
                state.payment = PaymentPhase::CaptureFailed;
                state.reason = Some(Reason::PaymentDeclined { message: reason.clone() });
            }
            Event::PaymentVoided => state.payment = PaymentPhase::Voided,
            Event::PaymentRefunded => state.payment = PaymentPhase::Refunded,
            Event::Paid { .. } => state.status = Status::Paid,
            Event::PaymentFailed { reason } => state.undo(Status::PaymentFailed, reason),
            Event::Cancelled { reason } => state.undo(Status::Cancelled, reason),
            Event::Shipped { shipment } => {
                state.status = Status::Shipped;
                state.shipments.push(shipment.clone());
            }
            Event::Delivered { .. } => state.status = Status::Delivered,
            Event::Refunded { .. } => state.status = Status::Refunded,
            Event::Claimed { user, contact } => {
                if let Some(draft) = &mut state.draft {
                    draft.owner = Owner::Account { user: user.clone() };
                    draft.contact = contact.clone();
                }
            }
        }
        if state.is_concluded() {
            state.waiting.clear();
        }
    }

    fn is_at_rest(state: &State) -> bool {
        state.is_concluded() && Self::owes(state).is_empty()
    }

    /// The purchase. What happens to an order that was paid is no part of it.
    fn saga(state: &State) -> Option<Saga> {
        let was_paid = || state.stock.iter().any(|stock| matches!(stock, Stock::OwingRestock | Stock::Restocked));
        let ending = match state.status {
            Status::Absent | Status::Refunded => return None,
            Status::Cancelled if was_paid() => return None,
            Status::Pending | Status::Reserved => None,
            Status::Paid | Status::Shipped | Status::Delivered => Some(SagaEnding::Completed),
            Status::Cancelled | Status::PaymentFailed => Self::owes(state).is_empty().then_some(SagaEnding::Compensated),
        };
        Some(Saga { begun: state.placed_at, ending })
    }

    fn owes(state: &State) -> Vec<Debt<Self>> {
        let Some(draft) = &state.draft else { return Vec::new() };
        let lines = draft.lines.iter().zip(&state.stock);
        lines.filter_map(|(line, stock)| state.stock_debt(draft, line, *stock)).chain(state.payment_debt(draft)).collect()
    }

    fn due(state: &State) -> Option<Timestamp> {
        state.awaits_payment().then(|| state.placed_at.plus_ms(UNPAID_MS))
    }

    fn elapse() -> Option<Command> {
        Some(Command::Expire)
    }
}

/// Decides what follows from what was just heard, and answers whoever waits when the order has come to its end.
fn conclude(turn: &mut Turn, waiting: &[CommandId]) {
    while let Some(event) = turn.state.follows() {
        turn.emit(event);
    }
    if turn.state.is_concluded() {
        let outcome = turn.state.outcome();
        turn.settle_all(waiting.iter().cloned(), &Ok(Reply::Concluded(outcome)));
    }
}

impl State {
    pub fn outcome(&self) -> Outcome {
        Outcome { order: self.id.clone(), status: self.status, reason: self.reason.clone() }
    }

    /// Whether the outcome is known and no unit is still bound: whoever hears of a failure may want the units again.
    fn is_concluded(&self) -> bool {
        match self.status {
            Status::Absent | Status::Pending | Status::Reserved => false,
            Status::Paid | Status::Shipped | Status::Delivered | Status::Refunded => true,
            Status::Cancelled | Status::PaymentFailed => {
                !self.stock.iter().any(|stock| matches!(stock, Stock::OwingRelease | Stock::OwingRestock))
            }
        }
    }

    /// Whether it can still run out of time: until the authorization is heard.
    fn awaits_payment(&self) -> bool {
        self.status == Status::Pending || (self.status == Status::Reserved && self.payment == PaymentPhase::OwingAuthorize)
    }

    fn all_lines(&self, is: impl Fn(&Stock) -> bool) -> bool {
        self.stock.iter().all(is)
    }

    fn line(&self, sku: &str) -> Option<Stock> {
        let lines = &self.draft.as_ref()?.lines;
        lines.iter().zip(&self.stock).find(|(line, _)| line.sku == sku).map(|(_, stock)| *stock)
    }

    fn set_line(&mut self, sku: &str, to: Stock) {
        let Some(draft) = &self.draft else { return };
        for (_, stock) in draft.lines.iter().zip(&mut self.stock).filter(|(line, _)| line.sku == sku) {
            *stock = to;
        }
    }

    fn turn_lines(&mut self, turn: fn(Stock) -> Stock) {
        self.stock.iter_mut().for_each(|stock| *stock = turn(*stock));
    }

    /// With every line reserved the payment is next; where there is nothing to pay, the units are the customer's.
    fn move_to(&mut self, status: Status) {
        self.status = status;
        if status != Status::Reserved {
            return;
        }
        match self.draft.as_ref().is_some_and(|draft| draft.total.amount > 0) {
            true => self.payment = PaymentPhase::OwingAuthorize,
            false => self.turn_lines(commit),
        }
    }

    /// Turns all that was done into the debt of undoing it.
    fn undo(&mut self, status: Status, reason: &Reason) {
        self.payment = match (self.payment, status) {
            (PaymentPhase::OwingAuthorize, Status::PaymentFailed) => PaymentPhase::Declined,
            (PaymentPhase::OwingAuthorize, _) => PaymentPhase::OwingVoid,
            (PaymentPhase::Captured, _) => PaymentPhase::OwingRefund,
            (payment, _) => payment,
        };
        self.turn_lines(undo);
        self.status = status;
        self.reason = Some(reason.clone());
    }

    fn place(&self, draft: Draft, context: &Context<'_>) -> Result<Decision<Order>, Rejection> {
        let (id, command) = (context.id.to_owned(), context.command.clone());
        match &self.draft {
            None => {
                draft.check()?;
                Ok(Decision::later(vec![Event::Created { id, command, draft, placed_at: context.now }]))
            }
            Some(placed) if !placed.is_same_purchase(&draft) => Err(Rejection::Exists),
            Some(_) if self.is_concluded() => Ok(Decision::now(Vec::new(), Reply::Concluded(self.outcome()))),
            Some(_) if self.waiting.contains(&command) => Ok(Decision::later(Vec::new())),
            Some(_) => Ok(Decision::later(vec![Event::PlacedAgain { command }])),
        }
    }

    fn cancel(&self, message: String) -> Result<Decision<Order>, Rejection> {
        let status = self.status;
        let mut turn = Turn::on(self);
        match status {
            Status::Absent => return Err(Rejection::Unknown),
            Status::Cancelled | Status::Refunded => {}
            Status::Shipped | Status::Delivered | Status::PaymentFailed => {
                return Err(Rejection::NotCancellable { status });
            }
            Status::Reserved if !self.awaits_payment() => return Err(Rejection::InPayment),
            Status::Pending | Status::Reserved | Status::Paid => {
                turn.emit(Event::Cancelled { reason: Reason::Requested { message } });
                conclude(&mut turn, &self.waiting);
            }
        }
        Ok(turn.now(Reply::Cancelled))
    }

    fn ship(
        &self,
        carrier: String,
        tracking_number: Option<String>,
        context: &Context<'_>,
    ) -> Result<Decision<Order>, Rejection> {
        match self.status {
            Status::Absent => Err(Rejection::Unknown),
            Status::Paid => {
                let shipment = Shipment { carrier, tracking_number, shipped_at: context.now };
                Ok(Decision::now(vec![Event::Shipped { shipment }], Reply::Shipped))
            }
            status => Err(Rejection::NotShippable { status }),
        }
    }

    fn deliver(&self, context: &Context<'_>) -> Result<Decision<Order>, Rejection> {
        match self.status {
            Status::Absent => Err(Rejection::Unknown),
            Status::Shipped => Ok(Decision::now(vec![Event::Delivered { delivered_at: context.now }], Reply::Delivered)),
            status => Err(Rejection::NotDeliverable { status }),
        }
    }

    /// Whoever asks has shown the guest's token. Asked again by the same account it is claimed already.
    fn claim(&self, user: String, contact: Contact) -> Result<Decision<Order>, Rejection> {
        match self.draft.as_ref().map(|draft| &draft.owner) {
            None => Err(Rejection::Unknown),
            Some(Owner::Guest { .. }) => Ok(Decision::now(vec![Event::Claimed { user, contact }], Reply::Claimed)),
            Some(Owner::Account { user: owner }) if *owner == user => Ok(Decision::now(Vec::new(), Reply::Claimed)),
            Some(Owner::Account { .. }) => Err(Rejection::NotClaimable),
        }
    }

    /// The event that an answer or the clock leaves; `None` for one that comes late or twice.
    fn note(&self, command: Command, now: Timestamp) -> Option<Event> {
        let line_is = |sku: &str, stock: Stock| self.line(sku) == Some(stock);
        let event = match command {
            Command::HeardReserved { sku } => (line_is(&sku, Stock::OwingReserve), Event::LineReserved { sku }),
            Command::HeardRefused { sku, available } => {
                (line_is(&sku, Stock::OwingReserve), Event::LineRefused { sku, available })
            }
            Command::HeardReleased { sku } => (line_is(&sku, Stock::OwingRelease), Event::LineReleased { sku }),
            Command::HeardCommitted { sku } => (line_is(&sku, Stock::OwingCommit), Event::LineCommitted { sku }),
            Command::HeardRestocked { sku } => (line_is(&sku, Stock::OwingRestock), Event::LineRestocked { sku }),
            Command::HeardAuthorized => (self.payment == PaymentPhase::OwingAuthorize, Event::PaymentAuthorized),
            Command::HeardDeclined { reason: message } => {
                let reason = Reason::PaymentDeclined { message };
                (self.payment == PaymentPhase::OwingAuthorize, Event::PaymentFailed { reason })
            }
            Command::HeardCaptured => (self.payment == PaymentPhase::OwingCapture, Event::PaymentCaptured),
            Command::HeardCaptureFailed { reason } => {
                (self.payment == PaymentPhase::OwingCapture, Event::PaymentCaptureFailed { reason })
            }
            Command::HeardVoided => (self.payment == PaymentPhase::OwingVoid, Event::PaymentVoided),
            Command::HeardRefunded => (self.payment == PaymentPhase::OwingRefund, Event::PaymentRefunded),
            Command::Expire => {
                let over = self.awaits_payment() && now >= self.placed_at.plus_ms(UNPAID_MS);
                (over, Event::Cancelled { reason: Reason::Unpaid })
            }
            Command::Place { .. } | Command::Cancel { .. } | Command::Ship { .. } | Command::Deliver | Command::Claim { .. } => {
                return None;
            }
        };
        event.0.then_some(event.1)
    }

    /// The next step that the order takes by itself.
    fn follows(&self) -> Option<Event> {
        let total = self.draft.as_ref()?.total;
        let is_settled = |payment| self.payment == payment || (total.amount == 0 && self.payment == PaymentPhase::None);
        match self.status {
            Status::Pending if self.all_lines(|stock| *stock == Stock::Reserved) => {
                Some(Event::Updated { status: Status::Reserved })
            }
            Status::Pending if self.all_lines(|stock| *stock != Stock::OwingReserve) => {
                Some(Event::Cancelled { reason: Reason::OutOfStock { short: self.short() } })
            }
            Status::Reserved if self.all_lines(|stock| *stock == Stock::Committed) => match &self.reason {
                Some(reason) if self.payment == PaymentPhase::CaptureFailed => {
                    Some(Event::PaymentFailed { reason: reason.clone() })
                }
                _ => is_settled(PaymentPhase::Captured).then_some(Event::Paid { total }),
            },
            Status::Cancelled if self.all_lines(|stock| *stock == Stock::Restocked) => {
                is_settled(PaymentPhase::Refunded).then_some(Event::Refunded { total })
            }
            _ => None,
        }
    }

    fn short(&self) -> Vec<Short> {
        let lines = self.draft.iter().flat_map(|draft| &draft.lines).zip(&self.stock);
        let refused = lines.filter_map(|(line, stock)| match stock {
            Stock::Refused { available } => {
                Some(Short { sku: line.sku.clone(), requested: line.quantity, available: *available })
            }
            _ => None,
        });
        refused.collect()
    }

    fn stock_debt(&self, draft: &Draft, line: &Line, stock: Stock) -> Option<Debt<Order>> {
        let (order, quantity) = (self.id.clone(), line.quantity);
        let (by, of) = (order.clone(), line.claim.as_ref());
        Some(match stock {
            Stock::OwingReserve => owe(
                "reserve",
                line,
                inventory::Command::Reserve { order, cart: draft.cart.clone(), quantity },
                of.map(|Claimed { claim, customer, .. }| flash_sale::Command::Reserve {
                    claim: *claim,
                    order: by,
                    customer: *customer,
                    quantity,
                    unit_price: line.unit_price,
                }),
                |sku, answer| match answer {
                    Ok(()) => Some(Command::HeardReserved { sku }),
                    Err(available) => Some(Command::HeardRefused { sku, available }),
                },
            ),
            Stock::OwingRelease => owe(
                "release",
                line,
                inventory::Command::Release { order },
                of.map(|Claimed { claim, customer, .. }| flash_sale::Command::Release {
                    claim: *claim,
                    order: by,
                    customer: *customer,
                }),
                |sku, answer| answer.ok().map(|()| Command::HeardReleased { sku }),
            ),
            Stock::OwingCommit => owe(
                "commit",
                line,
                inventory::Command::Commit { order },
                of.map(|Claimed { claim, .. }| flash_sale::Command::Commit { claim: *claim, order: by }),
                |sku, answer| answer.ok().map(|()| Command::HeardCommitted { sku }),
            ),
            Stock::OwingRestock => owe(
                "restock",
                line,
                inventory::Command::Restock { order, quantity },
                of.map(|Claimed { claim, .. }| flash_sale::Command::Restock { claim: *claim, order: by }),
                |sku, answer| answer.ok().map(|()| Command::HeardRestocked { sku }),
            ),
            Stock::Reserved | Stock::Refused { .. } | Stock::Released | Stock::Committed | Stock::Restocked => return None,
        })
    }

    fn payment_debt(&self, draft: &Draft) -> Option<Debt<Order>> {
        let payment = payment_id(&self.id);
        let owe = |id: &str, command: payment::Command, hear: fn(PaymentAnswer) -> Option<Command>| {
            Some(Debt::tell::<Payment>(id, payment, command, hear))
        };
        match self.payment {
            PaymentPhase::OwingAuthorize => {
                let (order, amount, method) = (self.id.clone(), draft.total, draft.payment.clone());
                owe("authorize", payment::Command::Authorize { order, amount, method }, hear_authorize)
            }
            PaymentPhase::OwingCapture => owe("capture", payment::Command::Capture, hear_capture),
            PaymentPhase::OwingVoid => owe("void", payment::Command::Void, |answer| answer.ok().map(|_| Command::HeardVoided)),
            PaymentPhase::OwingRefund => {
                owe("refund", payment::Command::Refund, |answer| answer.ok().map(|_| Command::HeardRefunded))
            }
            PaymentPhase::None
            | PaymentPhase::Declined
            | PaymentPhase::Captured
            | PaymentPhase::CaptureFailed
            | PaymentPhase::Voided
            | PaymentPhase::Refunded => None,
        }
    }
}

fn commit(stock: Stock) -> Stock {
    if stock == Stock::Reserved { Stock::OwingCommit } else { stock }
}

/// A line whose reservation was not answered may have it. So may one that was refused: another copy of the same message
/// can still be under way, and would be granted when units have come free. Both are released.
fn undo(stock: Stock) -> Stock {
    match stock {
        Stock::OwingReserve | Stock::Reserved | Stock::Refused { .. } => Stock::OwingRelease,
        Stock::Committed => Stock::OwingRestock,
        other => other,
    }
}

type PaymentAnswer = Result<payment::Reply, payment::Rejection>;

/// The id of an order's one payment.
pub fn payment_id(order: &str) -> String {
    format!("pay_{}", order.strip_prefix("ord_").unwrap_or(order))
}

/// A debt of a line to whoever has its units: the flash sale that they were claimed in, or the inventory item.
fn owe(
    verb: &str,
    line: &Line,
    item: inventory::Command,
    sale: Option<flash_sale::Command>,
    // An error is how many could still have been had.
    hear: fn(String, Result<(), u32>) -> Option<Command>,
) -> Debt<Order> {
    let (id, sku) = (format!("{verb}/{}", line.sku), line.sku.clone());
    match (&line.claim, sale) {
        (Some(claimed), Some(sale)) => {
            Debt::tell::<FlashSale>(id, claimed.sale.clone(), sale, move |answer| hear(sku, answer.map(drop).map_err(|_| 0)))
        }
        _ => Debt::tell::<Inventory>(id, line.sku.clone(), item, move |answer| hear(sku, answer.map(drop).map_err(left))),
    }
}

/// How much an inventory item that refuses could have given.
fn left(rejection: inventory::Rejection) -> u32 {
    match rejection {
        inventory::Rejection::Short { available, .. } => available,
        _ => 0,
    }
}

fn hear_authorize(answer: PaymentAnswer) -> Option<Command> {
    match answer {
        Ok(payment::Reply::Authorized) => Some(Command::HeardAuthorized),
        Ok(payment::Reply::Declined { reason }) => Some(Command::HeardDeclined { reason }),
        Ok(_) => None,
        Err(rejection) => Some(Command::HeardDeclined { reason: rejection.to_string() }),
    }
}

/// A payment that refuses the capture has not taken anything and never will.
fn hear_capture(answer: PaymentAnswer) -> Option<Command> {
    match answer {
        Ok(payment::Reply::Captured) => Some(Command::HeardCaptured),
        Ok(payment::Reply::CaptureFailed { reason }) => Some(Command::HeardCaptureFailed { reason }),
        Ok(_) => None,
        Err(rejection) => Some(Command::HeardCaptureFailed { reason: rejection.to_string() }),
    }
}

fn invalid(field: impl Into<String>, message: impl Into<String>) -> Rejection {
    Rejection::Invalid { field: field.into(), message: message.into() }
}

impl Draft {
    /// Whether another draft asks for the same. Its seal may be another one, and it may have been claimed since.
    fn is_same_purchase(&self, other: &Draft) -> bool {
        (&self.cart, &self.lines, self.total, &self.payment) == (&other.cart, &other.lines, other.total, &other.payment)
    }

    fn check(&self) -> Result<(), Rejection> {
        if !(1..=LINES_MAX).contains(&self.lines.len()) {
            return Err(invalid("/lines", format!("must be 1 to {LINES_MAX}")));
        }
        let mut skus = BTreeSet::new();
        for (index, line) in self.lines.iter().enumerate() {
            line.check(index)?;
            if !skus.insert(&line.sku) {
                return Err(invalid(format!("/lines/{index}/sku"), "another line has this sku"));
            }
        }
        let total = Money::sum(self.total.currency, self.lines.iter().map(|line| line.total));
        if total != Ok(self.total) {
            return Err(invalid("/total", "must be the sum of the lines, in their one currency"));
        }
        self.contact.check(&self.owner).map_err(|(field, message)| invalid(field, message))
    }
}

impl Contact {
    /// The fields that are wrong, and why. What is sealed was checked before.
    pub fn wrong(&self, owner: &Owner) -> Vec<(String, String)> {
        let Contact::Plain { email, shipping_address } = self else { return Vec::new() };
        let email = check_email(owner, email.as_deref()).err().map(|message| ("/email".to_owned(), message.to_owned()));
        let address = shipping_address.wrong().map(|(field, message)| (format!("/shipping_address/{field}"), message));
        email.into_iter().chain(address).collect()
    }

    /// The first of them.
    pub fn check(&self, owner: &Owner) -> Result<(), (String, String)> {
        self.wrong(owner).into_iter().next().map_or(Ok(()), Err)
    }
}

/// A guest has no account to look at: the confirmation must have somewhere to go.
fn check_email(owner: &Owner, email: Option<&str>) -> Result<(), &'static str> {
    match (email, owner) {
        (None, Owner::Guest { .. }) => Err("a guest must give one"),
        (Some(email), _) if !email.contains('@') || email.chars().count() > Address::FIELD_CHARS_MAX => {
            Err("this cannot be an e-mail address")
        }
        _ => Ok(()),
    }
}

impl Line {
    fn check(&self, index: usize) -> Result<(), Rejection> {
        if !(1..=QUANTITY_MAX).contains(&self.quantity) {
            return Err(invalid(format!("/lines/{index}/quantity"), format!("must be 1 to {QUANTITY_MAX}")));
        }
        if self.unit_price.amount < 0 {
            return Err(invalid(format!("/lines/{index}/unit_price"), "must not be negative"));
        }
        if self.unit_price.times(self.quantity) != Ok(self.total) {
            return Err(invalid(format!("/lines/{index}/total"), "must be the unit price times the quantity"));
        }
        Ok(())
    }
}

impl Address {
    pub const FIELD_CHARS_MAX: usize = 255;

    /// The fields that are wrong, and why.
    fn wrong(&self) -> impl Iterator<Item = (&'static str, String)> {
        let needed = [("name", &self.name), ("line1", &self.line1), ("city", &self.city), ("postal_code", &self.postal_code)];
        let texts = needed.into_iter().chain(self.line2.as_ref().map(|line2| ("line2", line2)));
        let wrong = texts.filter(|(_, text)| text.trim().is_empty() || text.chars().count() > Self::FIELD_CHARS_MAX);
        let country = self.country.len() != 2 || !self.country.bytes().all(|byte| byte.is_ascii_uppercase());
        wrong
            .map(|(field, _)| (field, format!("must have 1 to {} characters", Self::FIELD_CHARS_MAX)))
            .chain(country.then(|| ("country", "must be the two upper-case letters of ISO 3166-1".to_owned())))
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
