//! What the rehearsals share: how they understand what the service answers, and how they tell it.
//!
//! Nothing here decides what an answer is worth; only whether it came, and what it says.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::integrations::http_client::{Answer, Client, ClientError, Header};

/// How often an order that is not settled yet (202) is looked at, at most.
const POLLS_MAX: u32 = 40;
pub const POLL_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, thiserror::Error)]
pub enum RehearseError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{what}: {reason}")]
    Refused { what: String, reason: String },
    #[error("{what}: the answer was not understood: {reason}")]
    NotUnderstood { what: String, reason: String },
    #[error("the catalogue has nothing in stock; name a --sku, or import products first")]
    NothingToBuy,
}

#[derive(Deserialize)]
pub struct OrderAnswer<'a> {
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    #[serde(borrow)]
    pub status: Cow<'a, str>,
    #[serde(borrow, default)]
    pub lines: Vec<LineAnswer<'a>>,
}

#[derive(Deserialize)]
pub struct LineAnswer<'a> {
    #[serde(borrow)]
    pub sku: Cow<'a, str>,
    pub quantity: i64,
}

#[derive(Deserialize)]
pub struct InventoryAnswer {
    pub available: i64,
    pub reserved: i64,
    #[serde(default)]
    pub held: i64,
    #[serde(default)]
    pub allotted: i64,
}

impl InventoryAnswer {
    pub fn units(&self) -> i64 {
        self.available + self.reserved + self.held + self.allotted
    }
}

pub fn understood<'a, T: Deserialize<'a>>(what: &str, answer: &'a Answer) -> Result<T, RehearseError> {
    if !answer.status.is_success() {
        return Err(RehearseError::Refused { what: what.to_owned(), reason: reason_of(answer) });
    }
    serde_json::from_slice(&answer.body)
        .map_err(|error| RehearseError::NotUnderstood { what: what.to_owned(), reason: error.to_string() })
}

/// The status and the title of the problem, which is the same for all problems of a kind and so can be counted.
pub fn reason_of(answer: &Answer) -> String {
    #[derive(Deserialize)]
    struct Problem<'a> {
        #[serde(borrow)]
        title: Option<Cow<'a, str>>,
    }
    match serde_json::from_slice::<Problem<'_>>(&answer.body) {
        Ok(Problem { title: Some(title) }) => format!("{}: {title}", answer.status.as_u16()),
        _ => answer.status.to_string(),
    }
}

/// Why a purchase came to nothing.
pub enum Setback {
    Refused { reason: String, wait: Option<Duration> },
    Failed(String),
}

pub enum Settlement {
    Paid { order: String, lines: Vec<(String, i64)> },
    NotPaid { status: String },
    Unknown { reason: String },
}

pub fn is_paid(status: &str) -> bool {
    matches!(status, "paid" | "shipped" | "delivered")
}

/// Follows an order, from the answer to its checkout, until it is paid or never will be.
pub async fn settle(client: &mut Client, answer: &Answer, authorization: &Header, deadline: Instant) -> Settlement {
    let location = answer.header("location").and_then(path_of).map(str::to_owned);
    let mut body = answer.body.clone();
    for _ in 0..POLLS_MAX {
        let order = serde_json::from_slice::<OrderAnswer<'_>>(&body);
        let path = match (&order, &location) {
            (Ok(order), _) if is_paid(&order.status) => {
                let lines = order.lines.iter().map(|line| (line.sku.clone().into_owned(), line.quantity)).collect();
                return Settlement::Paid { order: order.id.clone().into_owned(), lines };
            }
            (Ok(order), _) if !matches!(&*order.status, "pending" | "reserved") => {
                return Settlement::NotPaid { status: order.status.clone().into_owned() };
            }
            (_, Some(location)) => Cow::Borrowed(location.as_str()),
            (Ok(order), None) => Cow::Owned(format!("/api/orders/{}", order.id)),
            (Err(error), None) => return Settlement::Unknown { reason: format!("the order was not understood: {error}") },
        };
        if Instant::now() + POLL_EVERY > deadline {
            break;
        }
        sleep(POLL_EVERY.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        match client.get(&path, std::slice::from_ref(authorization)).await {
            Ok(answer) if answer.status.is_success() => body = answer.body,
            Ok(_) | Err(_) => {}
        }
    }
    Settlement::Unknown { reason: "the order did not settle in time".to_owned() }
}

/// The path of a `Location`, which may be a whole URL: an order is read from where it was placed.
pub fn path_of(location: &str) -> Option<&str> {
    match location.split_once("://") {
        Some((_, rest)) => rest.find('/').map(|start| &rest[start..]),
        None => location.starts_with('/').then_some(location),
    }
}

pub fn expect(step: &str, answer: Result<Answer, ClientError>, wanted: &[StatusCode]) -> Result<Answer, Setback> {
    match answer {
        Ok(answer) if wanted.contains(&answer.status) => Ok(answer),
        Ok(answer) if answer.status == StatusCode::INTERNAL_SERVER_ERROR => {
            Err(Setback::Failed(format!("{step}: {}", reason_of(&answer))))
        }
        Ok(answer) => Err(Setback::Refused { reason: format!("{step}: {}", reason_of(&answer)), wait: answer.retry_after() }),
        Err(error) => Err(Setback::Failed(format!("{step}: {error}"))),
    }
}

pub fn parse<'a, T: Deserialize<'a>>(step: &str, answer: &'a Answer) -> Result<T, Setback> {
    serde_json::from_slice(&answer.body).map_err(|error| Setback::Failed(format!("{step}: not understood: {error}")))
}

pub fn checkout_body() -> Bytes {
    let body = serde_json::json!({
        "payment": { "provider": "sandbox", "token": "tok_ok" },
        "shipping_address": {
            "name": "Robin Rehearsal",
            "line1": "1 Test Street",
            "city": "Berlin",
            "postal_code": "10115",
            "country": "DE",
        },
        "email": "rehearsal@souk.test",
    });
    body.to_string().into()
}
