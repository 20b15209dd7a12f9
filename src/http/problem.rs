//! The only place where an error becomes an answer: `application/problem+json` (RFC 9457).
//!
//! `type` is stable and is what programs look at; `title` is a sentence that a person can act on. Nothing of the inside
//! (paths, panics, other people's data) may appear in a problem.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use warp::http::StatusCode;
use warp::http::header::{ALLOW, WWW_AUTHENTICATE};

use super::answer::Answer;
use super::identity::guesses::Locked;
use super::identity::keystore::KeystoreError;
use super::identity::passwords::{PasswordError, Unfit};
use super::identity::seals::SealError;
use super::proof_of_work::ProofError;
use crate::actors::{AskError, Failure};
use crate::domain::{Money, Timestamp, cart, flash_sale, inventory, order, product, request, shop, user};
use crate::persistence::Version;
use crate::read_models::ReadModelError;

pub const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request was not answered as it hoped.
#[derive(Debug)]
pub struct Problem(Box<Content>);

#[derive(Debug)]
struct Content {
    status: StatusCode,
    body: Body,
    retry_after_s: Option<u32>,
    allow: Option<String>,
}

/// Why something was not done (RFC 9457).
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct Body {
    /// Stable: what programs look at.
    #[serde(rename = "type")]
    #[schemars(regex(pattern = "^/problems/[a-z-]+$"))]
    problem_type: String,
    /// A sentence that a person can act on.
    title: String,
    #[schemars(range(min = 400, max = 599))]
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Which fields of the body are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    errors: Vec<FieldError>,
    #[serde(flatten)]
    more: Members,
}

/// Where in the body something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FieldError {
    /// A JSON Pointer.
    pub pointer: String,
    pub message: String,
}

impl FieldError {
    pub fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        FieldError { pointer: pointer.into(), message: message.into() }
    }
}

// What a program can go on with.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct Members {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sku: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requested: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    short: Option<Vec<order::Short>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<cart::PriceChange>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_total: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_status: Option<order::Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sale_status: Option<flash_sale::Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    starts_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bits: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skus: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    committed: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Version>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

impl Problem {
    fn new(status: StatusCode, name: &'static str, title: impl Into<String>) -> Self {
        let body =
            Body { problem_type: format!("/problems/{name}"), title: title.into(), status: status.as_u16(), ..Body::default() };
        Problem(Box::new(Content { status, body, retry_after_s: None, allow: None }))
    }

    fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.body.detail = Some(detail.into());
        self
    }

    fn error(mut self, pointer: impl Into<String>, message: impl Into<String>) -> Self {
        self.0.body.errors.push(FieldError::new(pointer, message));
        self
    }

    fn more(mut self, set: impl FnOnce(&mut Members)) -> Self {
        set(&mut self.0.body.more);
        self
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after_s = Some(seconds);
        self
    }

    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The answer, naming the request for whoever asks for help.
    pub fn into_answer(mut self, request_id: &str) -> Answer {
        self.0.body.more.request_id = Some(request_id.to_owned());
        let body = serde_json::to_vec(&self.0.body).unwrap_or_default();
        let mut answer = Answer::bytes(self.0.status, PROBLEM_JSON, body);
        if let Some(seconds) = self.0.retry_after_s {
            answer = answer.retry_after(seconds);
        }
        if let Some(allow) = &self.0.allow {
            answer = answer.with(ALLOW, allow);
        }
        if self.0.status == StatusCode::UNAUTHORIZED {
            answer = answer.with(WWW_AUTHENTICATE, "Bearer");
        }
        answer
    }

    // What is wrong with a request itself.

    pub fn not_found() -> Self {
        Problem::new(StatusCode::NOT_FOUND, "not-found", "There is nothing here, or it is not yours to see.")
    }

    pub fn method_not_allowed(allow: String) -> Self {
        let title = format!("This can only be asked with {allow}.");
        let mut problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", title);
        problem.0.allow = Some(allow);
        problem
    }

    pub fn unauthorized(detail: &'static str) -> Self {
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "Send a valid token as Authorization: Bearer.").detail(detail)
    }

    /// A token that is an account's and does not count (any more).
    pub fn invalid_token(detail: &'static str) -> Self {
        Problem::new(StatusCode::UNAUTHORIZED, "invalid-token", "This token does not count. Log in, or renew it.").detail(detail)
    }

    /// The answer was given once, and what it said was forgotten since.
    pub fn answer_forgotten() -> Self {
        Problem::conflict("answer-forgotten", "This request was answered before, and its answer has been forgotten.")
    }

    pub fn orders_underway(order: &str) -> Self {
        Problem::conflict("orders-underway", "An order of this account is still under way. Cancel it, or wait for its shipment.")
            .detail(format!("it is /api/orders/{order}"))
    }

    fn has_shop(shop: &str) -> Self {
        Problem::conflict("has-shop", "An account has one shop, and this one has it already.")
            .detail(format!("it is /api/shops/{shop}"))
    }

    pub fn email_needed() -> Self {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "email-needed", "Say where the confirmation goes, or sign in.")
            .error("/email", "a guest must give one")
    }

    pub fn wrong_password() -> Self {
        let title = "This is not the account's password.";
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "wrong-password", title).error("/current_password", "it is another one")
    }

    pub fn weak_password(pointer: &'static str, why: Unfit) -> Self {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "weak-password", "Choose another password.")
            .error(pointer, why.to_string())
    }

    pub fn wrong_credentials() -> Self {
        Problem::new(StatusCode::UNAUTHORIZED, "wrong-credentials", "There is no account with this e-mail and password.")
    }

    pub fn forbidden(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::FORBIDDEN, "forbidden", "This account may not do this.").detail(detail)
    }

    /// What cannot be read as a request at all.
    pub fn unreadable(status: StatusCode) -> Self {
        match status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG => Problem::new(
                status,
                "head-too-large",
                "The request's head is too large. Send a shorter path, or less in headers.",
            ),
            _ => Problem::new(status, "not-http", "This cannot be read as an HTTP request."),
        }
    }

    pub fn bad_path() -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "invalid-path", "The path is not percent-encoded UTF-8.")
    }

    pub fn bad_header(name: &str, message: &str) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "invalid-header", format!("The header {name} is not valid.")).detail(message)
    }

    pub fn bad_parameter(name: &str, message: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "invalid-parameter", format!("The query parameter {name} is not valid."))
            .detail(message)
    }

    pub fn bad_json(line: usize, column: usize, message: String) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "invalid-json", "The body is not valid JSON.").detail(message).more(|more| {
            more.line = Some(line);
            more.column = Some(column);
        })
    }

    pub fn bad_body(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "invalid-body", "The body is not what is asked for here.").error(pointer, message)
    }

    pub fn bad_fields(errors: Vec<FieldError>) -> Self {
        let mut problem = Problem::new(StatusCode::BAD_REQUEST, "invalid-body", "The body is not what is asked for here.");
        problem.0.body.errors = errors;
        problem
    }

    pub fn not_json() -> Self {
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Send the body as application/json.")
    }

    pub fn too_large(bytes_max: usize) -> Self {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", format!("A body has at most {bytes_max} bytes."))
    }

    pub fn slow_body() -> Self {
        Problem::new(StatusCode::REQUEST_TIMEOUT, "slow-body", "The body did not arrive in time.")
    }

    pub fn broken_body() -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "broken-body", "The body ended before it was complete.")
    }

    pub fn not_offered(pointer: &str) -> Self {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not-offered", "Coupons and promotions are not offered yet.")
            .error(pointer, "not offered yet")
    }

    pub fn not_for_sale(skus: Vec<(String, String)>) -> Self {
        let mut problem = Problem::new(StatusCode::CONFLICT, "not-for-sale", "This is not for sale.");
        problem.0.body.errors =
            skus.iter().map(|(pointer, sku)| FieldError::new(pointer.clone(), format!("{sku} is not for sale"))).collect();
        problem.more(|more| more.skus = Some(skus.into_iter().map(|(_, sku)| sku).collect()))
    }

    pub fn not_a_websocket(message: &'static str) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "not-a-websocket", "This path speaks WebSocket, version 13.").detail(message)
    }

    // What the node cannot do now.

    pub fn rate_limited(budget: &'static str, seconds: u32) -> Self {
        let title = "Too much was asked in a short time. Ask again later; Retry-After says when.";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", title)
            .detail(format!("the budget for {budget} is spent"))
            .retry_after(seconds)
    }

    pub fn too_many_sessions() -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-sessions", "This node holds all the live connections it can.")
            .retry_after(5)
    }

    pub fn not_ready(what: &'static str) -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", what).retry_after(1)
    }

    pub fn behind() -> Self {
        let title = "The list has not come that far yet. Try again in a moment.";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "read-model-behind", title).retry_after(1)
    }

    pub fn nothing_written_there() -> Self {
        let title = "Nothing has been written there. Send a Souk-Position back as it was given.";
        Problem::conflict("nothing-written-there", title)
    }

    pub fn contended() -> Self {
        Problem::new(StatusCode::CONFLICT, "busy", "Others keep changing this at the same time. Try again.").retry_after(1)
    }

    pub fn outcome_unknown() -> Self {
        let title = "It is not known whether this was done. Ask again with the same Idempotency-Key, which is safe.";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "outcome-unknown", title).retry_after(1)
    }

    /// Logged in full, shown in one sentence.
    pub fn internal(what: &'static str, error: &dyn fmt::Display) -> Self {
        tracing::error!(%error, "{what}");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something failed on our side; it has been logged.")
    }

    // How a purchase can fail.

    pub fn out_of_stock(order: &str, short: Vec<order::Short>) -> Self {
        let detail = short
            .iter()
            .map(|s| format!("{}: {} left of the {} asked for", s.sku, s.available, s.requested))
            .collect::<Vec<_>>()
            .join("; ");
        let available = match short.as_slice() {
            [only] => Some(only.available),
            _ => None,
        };
        Problem::new(StatusCode::CONFLICT, "out-of-stock", "There is not enough left.").detail(detail).more(|more| {
            more.available = available;
            more.short = Some(short);
            more.order_id = Some(order.to_owned());
        })
    }

    pub fn claim_over() -> Self {
        Problem::conflict("claim-over", "This claim can no longer be used.")
    }

    /// Names the order that came to nothing by it.
    pub fn of_order(self, order: &str) -> Self {
        self.more(|more| more.order_id = Some(order.to_owned()))
    }

    pub fn claimed_twice() -> Self {
        Problem::contradictory("/claim_id", "is of a sku that is bought along too: buy them one after the other".into())
    }

    /// `left` is how many more this customer can have, where that is known.
    pub fn over_limit(limit: u32, left: Option<u32>) -> Self {
        Problem::conflict("over-limit", "One customer cannot have that many.").more(|more| {
            more.limit = Some(limit);
            more.left = left;
        })
    }

    pub fn proof_needed(bits: u8) -> Self {
        let title = "This sale asks for a proof of work. Take its challenge, and send the proof with the claim.";
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "proof-needed", title)
            .error("/proof", "is missing")
            .more(|more| more.bits = Some(bits))
    }

    pub fn proof_refused(bits: u8, error: &ProofError) -> Self {
        let title = "This proof of work does not count. Take a new challenge.";
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "proof-refused", title)
            .error("/proof", error.to_string())
            .more(|more| more.bits = Some(bits))
    }

    pub fn total_differs(expected: Money, actual: Money) -> Self {
        Problem::new(StatusCode::CONFLICT, "total-differs", "The total is not what was expected.")
            .detail(format!("the total is {actual}, not {expected}"))
            .more(|more| {
                more.expected_total = Some(expected);
                more.total = Some(actual);
            })
    }

    pub fn currencies_differ(detail: String) -> Self {
        Problem::new(StatusCode::CONFLICT, "currency-differs", "One purchase is made in one currency.").detail(detail)
    }

    fn conflict(name: &'static str, title: impl Into<String>) -> Self {
        Problem::new(StatusCode::CONFLICT, name, title)
    }

    /// `field` as the domain names it: a JSON Pointer already, or a dotted path.
    pub fn invalid(field: &str, message: String) -> Self {
        Problem::bad_body(pointer(field), message)
    }

    pub fn contradictory(field: &str, message: String) -> Self {
        let title = "The body contradicts itself or what is there already, though each part could be right by itself.";
        Problem::conflict("contradictory-body", title).error(pointer(field), message)
    }
}

fn pointer(field: &str) -> String {
    match field {
        "" => String::new(),
        field if field.starts_with('/') => field.to_owned(),
        field => format!("/{}", field.replace('.', "/")),
    }
}

/// For a person, on one line.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Body { title, detail, errors, .. } = &self.0.body;
        f.write_str(title)?;
        detail.iter().try_for_each(|detail| write!(f, " {detail}"))?;
        errors.iter().try_for_each(|error| write!(f, " {}: {}.", error.pointer.trim_start_matches('/'), error.message))
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let unavailable = |name, title, seconds| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, name, title).detail(failure.to_string()).retry_after(seconds)
        };
        match &failure {
            Failure::Overloaded(_) => unavailable("overloaded", "Too much is being asked at once. Try again in a moment.", 1),
            Failure::VersionDiffers { actual } => {
                let actual = *actual;
                Problem::new(
                    StatusCode::PRECONDITION_FAILED,
                    "version-differs",
                    "Somebody else changed this first. Read it again.",
                )
                .more(|more| more.version = Some(actual))
            }
            Failure::TimedOut | Failure::Died | Failure::Unknown(_) => {
                if let Failure::Unknown(why) = &failure {
                    tracing::error!(%why, "the outcome of a write is unknown");
                }
                Problem::outcome_unknown()
            }
            Failure::SetAside => unavailable("set-aside", "This needs an operator's hand first. Nothing was done.", 60),
            Failure::Restarting => unavailable("restarting", "This is coming back from a failure. Try again in a moment.", 1),
            Failure::NotWritten(why) => {
                // The journal has told the operator, once; this is told once for each request.
                tracing::debug!(%why, "a write failed");
                Problem::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "not-written",
                    "This could not be stored, and nothing was done. Try again.",
                )
                .retry_after(5)
            }
            Failure::Unreadable(error) => Problem::internal("the journal cannot be read", error),
            Failure::Draining => unavailable("shutting-down", "This node is shutting down. Ask again, another will answer.", 1),
            Failure::Moved | Failure::OutOfReach(_) => unavailable(
                "out-of-reach",
                "The node that has this cannot be reached. Nothing is known to be done. Try again.",
                1,
            ),
        }
    }
}

impl From<ReadModelError> for Problem {
    fn from(error: ReadModelError) -> Self {
        match error {
            ReadModelError::BadCursor => Problem::new(
                StatusCode::NOT_FOUND,
                "no-such-page",
                "There is no such page: this cursor was not given out by this list, with these filters.",
            ),
            error => {
                tracing::error!(%error, "a read model failed");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "list-unavailable", "The list is not available. Try again.")
                    .retry_after(5)
            }
        }
    }
}

/// A refusal of the domain, or a failure to ask it.
macro_rules! from_ask_error {
    ($module:ident) => {
        impl From<AskError<$module::Rejection>> for Problem {
            fn from(error: AskError<$module::Rejection>) -> Self {
                match error {
                    AskError::Rejected(rejection) => rejection.into(),
                    AskError::Failed(failure) => failure.into(),
                }
            }
        }
    };
}

from_ask_error!(cart);
from_ask_error!(flash_sale);
from_ask_error!(shop);
from_ask_error!(user);
from_ask_error!(inventory);
from_ask_error!(order);
from_ask_error!(product);
from_ask_error!(request);

impl From<cart::Rejection> for Problem {
    fn from(rejection: cart::Rejection) -> Self {
        use cart::Rejection as R;
        let detail = rejection.to_string();
        match rejection {
            R::Unknown => Problem::not_found(),
            R::Exists => Problem::conflict("exists", "This cart exists already."),
            R::Closed { .. } => Problem::conflict("cart-closed", "This cart can no longer be changed.").detail(detail),
            R::CheckingOut { order } => {
                Problem::conflict("checking-out", "This cart is being checked out.").more(|more| more.order_id = Some(order))
            }
            R::NoSuchLine { .. } => {
                Problem::new(StatusCode::NOT_FOUND, "no-such-line", "The cart has no such line.").detail(detail)
            }
            R::Invalid { field, message } => Problem::invalid(&field, message),
            R::Short { sku, requested, available } => {
                Problem::conflict("out-of-stock", "There is not enough left.").detail(detail).more(|more| {
                    more.sku = Some(sku);
                    more.requested = Some(requested);
                    more.available = Some(available);
                })
            }
            R::Empty => Problem::conflict("cart-empty", "The cart is empty."),
            R::Busy => {
                Problem::conflict("busy", "A change of the cart is still being confirmed. Try again in a moment.").retry_after(1)
            }
            R::PricesChanged { changes } => {
                let title = "Prices have changed. Look at the cart again, and check out if they are right.";
                Problem::conflict("prices-changed", title).more(|more| more.changes = Some(changes))
            }
            R::TotalDiffers { expected, actual } => Problem::total_differs(expected, actual),
            R::TooManyLines => Problem::conflict("too-many-lines", detail),
            R::CurrencyDiffers { .. } => Problem::currencies_differ(detail),
            R::NotMergeable => Problem::conflict("not-mergeable", "The other cart cannot be merged."),
        }
    }
}

impl From<inventory::Rejection> for Problem {
    fn from(rejection: inventory::Rejection) -> Self {
        use inventory::Rejection as R;
        let detail = rejection.to_string();
        match rejection {
            R::Unknown => Problem::not_found(),
            R::Taken { .. } => Problem::conflict("sku-taken", "This sku belongs to another product."),
            R::Short { requested, available } => {
                Problem::conflict("out-of-stock", "There is not enough left.").detail(detail).more(|more| {
                    more.requested = Some(requested);
                    more.available = Some(available);
                })
            }
            R::BelowCommitted { committed } => {
                let title = "The stock cannot be lowered below what carts hold and orders have reserved.";
                Problem::conflict("below-committed", title).detail(detail).more(|more| more.committed = Some(committed))
            }
            R::TooMany => Problem::conflict("too-many", "There would be more units than can be counted.").detail(detail),
            R::Closed => Problem::conflict("closed", "This order no longer wants its units."),
            R::TooManySales => Problem::conflict("too-many-sales", "This sku has been in too many flash sales.").detail(detail),
        }
    }
}

impl From<order::Rejection> for Problem {
    fn from(rejection: order::Rejection) -> Self {
        use order::Rejection as R;
        let detail = rejection.to_string();
        match rejection {
            R::Unknown => Problem::not_found(),
            R::Exists => Problem::conflict("exists", "This order was placed already, with other content."),
            R::Invalid { field, message } => Problem::invalid(&field, message),
            R::NotCancellable { status } => Problem::conflict("not-cancellable", "This order can no longer be cancelled.")
                .detail(detail)
                .more(|more| more.order_status = Some(status)),
            R::InPayment => {
                Problem::conflict("in-payment", "This order is being paid right now. Try again in a moment.").retry_after(1)
            }
            R::NotDeliverable { status } => {
                Problem::conflict("not-deliverable", "Only an order that is on its way can be delivered.")
                    .detail(detail)
                    .more(|more| more.order_status = Some(status))
            }
            R::NotShippable { status } => Problem::conflict("not-shippable", "Only a paid order can be shipped.")
                .detail(detail)
                .more(|more| more.order_status = Some(status)),
            R::NotClaimable => Problem::conflict("not-claimable", "This order belongs to an account already."),
        }
    }
}

/// A state that passes: an answer that says when to come back is not kept for a repeat.
const PAUSE_S: u32 = 5;

impl From<flash_sale::Rejection> for Problem {
    fn from(rejection: flash_sale::Rejection) -> Self {
        use flash_sale::Rejection as R;
        let detail = rejection.to_string();
        match rejection {
            R::Unknown => Problem::not_found(),
            R::Exists => Problem::conflict("exists", "This flash sale exists already."),
            // Each bound is checked at the door; what is left is how terms fit together, or the clock.
            R::Invalid { field, message } => Problem::contradictory(&field, message),
            R::NotNow { status } => {
                let title = "This cannot be done to the sale in the state that it is in.";
                Problem::conflict("sale-status", title).detail(detail).more(|more| more.sale_status = Some(status))
            }
            R::NotAllotted { why: inventory::Rejection::Unknown } => {
                Problem::conflict("not-for-sale", "This is not for sale.").detail(detail)
            }
            R::NotAllotted { why } => why.into(),
            R::NotStarted { starts_at } => Problem::conflict("sale-not-started", "This sale has not started yet.")
                .more(|more| more.starts_at = Some(starts_at))
                .retry_after(PAUSE_S),
            R::Paused => Problem::conflict("sale-paused", "This sale is paused. Try again later.").retry_after(PAUSE_S),
            R::Over => Problem::conflict("sale-over", "This sale is over."),
            R::SoldOut => Problem::conflict("sold-out", "Every unit is sold."),
            R::Short { requested, available } => {
                Problem::conflict("out-of-stock", "There is not enough left.").detail(detail).more(|more| {
                    more.requested = Some(requested);
                    more.available = Some(available);
                })
            }
            R::OverLimit { limit, left } => Problem::over_limit(limit, Some(left)).detail(detail),
            R::OverAddressLimit => Problem::conflict("over-address-limit", "No more can be had from this network address."),
            R::LineFull => Problem::conflict("line-full", "The line is full. Try again later.").retry_after(PAUSE_S),
            R::ClaimOver => Problem::claim_over(),
            R::InPayment => Problem::conflict("in-payment", "This claim is being paid right now. Cancel its order, or wait.")
                .retry_after(PAUSE_S),
        }
    }
}

/// A product's field as its body names it.
fn in_body(field: &str) -> &str {
    match field {
        "/shop" => "/shop_id",
        "/product_type" => "/type",
        field => field,
    }
}

impl From<product::Rejection> for Problem {
    fn from(rejection: product::Rejection) -> Self {
        use product::Rejection as R;
        match rejection {
            R::Unknown => Problem::not_found(),
            R::Exists => Problem::conflict("exists", "This product exists already."),
            R::Invalid { field, message } => Problem::invalid(in_body(&field), message),
            R::Contradictory { field, message } => Problem::contradictory(in_body(&field), message),
            R::SkusTaken { skus } => {
                Problem::conflict("sku-taken", "Some skus belong to other products.").more(|more| more.skus = Some(skus))
            }
            R::Busy => {
                Problem::conflict("busy", "Another change of this product is under way. Try again in a moment.").retry_after(1)
            }
        }
    }
}

impl From<user::Rejection> for Problem {
    fn from(rejection: user::Rejection) -> Self {
        use user::Rejection as R;
        match rejection {
            R::Unknown | R::Deleted | R::NoSuchSession => Problem::not_found(),
            R::Exists | R::IdTaken => Problem::conflict("exists", "This exists already."),
            R::EmailTaken => Problem::conflict("email-taken", "Another account has this e-mail address.")
                .error("/email", "another account has this address"),
            R::Busy => {
                Problem::conflict("busy", "A change of the e-mail address is under way. Try again in a moment.").retry_after(1)
            }
            R::PasswordChanged => Problem::conflict("password-changed", "The password was changed in the meantime."),
            R::Reused => Problem::invalid_token("this refresh token was used before, so its session was ended: log in again"),
            R::TooManyApiKeys => Problem::conflict("too-many-keys", "Revoke a key first.").detail(R::TooManyApiKeys.to_string()),
            R::NotGrantable { role } => Problem::invalid("/role", R::NotGrantable { role }.to_string()),
            R::HasShop { shop } => Problem::has_shop(&shop),
            R::Invalid { field, message } => Problem::invalid(&format!("/{field}"), message),
        }
    }
}

impl From<shop::Rejection> for Problem {
    fn from(rejection: shop::Rejection) -> Self {
        use shop::Rejection as R;
        match rejection {
            R::Unknown | R::OwnerUnknown => Problem::not_found(),
            R::Exists => Problem::conflict("exists", "This shop exists already."),
            R::Invalid { field, message } => Problem::invalid(&field, message),
            R::OwnerHasShop { shop } => Problem::has_shop(&shop),
        }
    }
}

impl From<Locked> for Problem {
    fn from(locked: Locked) -> Self {
        let seconds = u32::try_from(locked.wait_ms.saturating_add(999) / 1_000).unwrap_or(u32::MAX);
        let title = "Too many attempts have failed. Wait a moment before the next one.";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-attempts", title).retry_after(seconds)
    }
}

impl From<PasswordError> for Problem {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "Too many are logging in at once. Try again in a moment.",
            )
            .retry_after(1),
            error => Problem::internal("a password cannot be worked on", &error),
        }
    }
}

impl From<SealError> for Problem {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Destroyed => Problem::not_found(),
            error @ (SealError::Busy | SealError::Keystore(KeystoreError::Unreachable(_))) => {
                tracing::warn!(%error, "the vault does not answer");
                let title = "What is personal cannot be opened right now. Try again in a moment.";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "vault-unavailable", title).retry_after(5)
            }
            error => Problem::internal("the vault cannot be used", &error),
        }
    }
}

impl From<request::Rejection> for Problem {
    fn from(rejection: request::Rejection) -> Self {
        match rejection {
            request::Rejection::Differs => Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "This Idempotency-Key was used with another body. Use a new one.",
            ),
            request::Rejection::Unknown => Problem::outcome_unknown(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Currency;
    use crate::http::answer::Body as AnswerBody;
    use crate::persistence::ReadError;

    fn shown(problem: Problem) -> (u16, serde_json::Value, bool) {
        let answer = problem.into_answer("req-1");
        let AnswerBody::Bytes(body) = answer.body else { panic!("a problem is bytes") };
        (answer.status.as_u16(), serde_json::from_slice(&body).unwrap(), answer.headers.contains_key("retry-after"))
    }

    #[test]
    fn each_failure_has_its_status_and_says_when_to_come_back() {
        for (failure, status, kind, retry) in [
            (Failure::Overloaded("cart".into()), 503, "overloaded", true),
            (Failure::VersionDiffers { actual: 7 }, 412, "version-differs", false),
            (Failure::TimedOut, 503, "outcome-unknown", true),
            (Failure::Died, 503, "outcome-unknown", true),
            (Failure::Unknown("x".into()), 503, "outcome-unknown", true),
            (Failure::SetAside, 503, "set-aside", true),
            (Failure::Restarting, 503, "restarting", true),
            (Failure::NotWritten("disk full".into()), 503, "not-written", true),
            (Failure::Unreadable(ReadError::Unreadable("/secret/path".into())), 500, "internal", false),
            (Failure::Draining, 503, "shutting-down", true),
            (Failure::Moved, 503, "out-of-reach", true),
            (Failure::OutOfReach("n2".into()), 503, "out-of-reach", true),
        ] {
            let (got, body, retries) = shown(failure.into());
            assert_eq!((got, &body["type"], retries), (status, &format!("/problems/{kind}").into(), retry));
            assert!(!body.to_string().contains("/secret/path") && !body.to_string().contains("disk full"));
            assert_eq!((&body["status"], &body["request_id"]), (&status.into(), &"req-1".into()));
        }
    }

    #[test]
    fn a_refusal_says_what_a_program_can_go_on_with() {
        let (status, body, _) = shown(cart::Rejection::Short { sku: "S".into(), requested: 5, available: 2 }.into());
        assert_eq!((status, &body["type"], &body["available"]), (409, &"/problems/out-of-stock".into(), &2.into()));

        let money = |amount| Money::new(amount, Currency::EUR);
        let (status, body, _) = shown(cart::Rejection::TotalDiffers { expected: money(1), actual: money(2) }.into());
        assert_eq!((status, &body["total"]["amount"]), (409, &2.into()));

        let (status, body, _) = shown(product::Rejection::Invalid { field: "variants.0.sku".into(), message: "m".into() }.into());
        assert_eq!((status, &body["errors"][0]["pointer"]), (400, &"/variants/0/sku".into()));

        let (status, body, _) = shown(request::Rejection::Differs.into());
        assert_eq!((status, &body["type"]), (422, &"/problems/idempotency-key-reused".into()));

        let short = vec![order::Short { sku: "S".into(), requested: 3, available: 1 }];
        let (_, body, _) = shown(Problem::out_of_stock("ord_1", short));
        assert_eq!((&body["available"], &body["short"][0]["sku"]), (&1.into(), &"S".into()));
    }
}
