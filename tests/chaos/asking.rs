//! One client: it asks any of the addresses it knows, again and again under the same key until it knows, and writes down
//! every attempt.
//!
//! It stands in for the load balancer too: it chooses an address for itself, now and then another one, and goes elsewhere
//! when one fails it. So the crowd needs nothing between itself and the nodes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use serde_json::Value;
use souk::integrations::http_client::{
    Answer, Client as Connection, ClientError, Header, IDEMPOTENCY_KEY, Limits, Origin, bearer,
};
use tokio::sync::watch;

use crate::history::{Asked, Line, Outcome, Recorder, Seeks};

const SOUK_AT_LEAST: HeaderName = HeaderName::from_static("souk-at-least");
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an answer is waited for, if nothing else is said.
const PATIENCE: Duration = Duration::from_secs(5);
/// A wish that is not answered by then is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(60);
const BACKOFF_FIRST_MS: u64 = 10;
const BACKOFF_MAX_MS: u64 = 500;
/// How often a client goes to another address without a reason, in percent.
const STRAYS_PERCENT: u32 = 20;

/// The nodes' URLs, as far as there are any; it changes when a node comes back somewhere else.
pub type Addresses = watch::Receiver<Vec<String>>;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    Get,
    Post,
    Delete,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Delete => "DELETE",
        }
    }
}

pub struct Client {
    pub name: String,
    pub random: fastrand::Rng,
    /// How long an answer is waited for.
    pub patience: Duration,
    addresses: Addresses,
    pub recorder: Recorder,
    connection: Option<(String, Connection)>,
}

/// Something to be done once, however often it is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    number: u64,
    method: Method,
    path: String,
    token: Option<String>,
    key: Option<String>,
    body: Value,
    seeks: Option<Seeks>,
}

impl Client {
    pub fn new(name: String, random: fastrand::Rng, addresses: Addresses, recorder: Recorder) -> Client {
        Client { name, random, patience: PATIENCE, addresses, recorder, connection: None }
    }

    /// A client of the same place with a name and a fate of its own.
    pub fn companion(&mut self, name: String) -> Client {
        let companion = Client::new(name, self.random.fork(), self.addresses.clone(), self.recorder.clone());
        Client { patience: self.patience, ..companion }
    }

    pub fn wish(&self, method: Method, path: &str, token: Option<&str>, body: Value) -> Wish {
        let number = self.recorder.new_wish();
        let key = (method == Method::Post).then(|| format!("chaos-{}-wish-{number}", self.name));
        Wish { number, method, path: path.to_owned(), token: token.map(str::to_owned), key, body, seeks: None }
    }

    /// Asks until there is a yes or a no; `Unknown` when it was given up.
    pub async fn ask(&mut self, wish: &Wish) -> Outcome {
        let deadline = Instant::now() + GIVEN_UP_AFTER;
        let mut backoff_ms = BACKOFF_FIRST_MS;
        loop {
            let outcome = self.try_once(wish).await;
            if outcome.is_known() || Instant::now() > deadline {
                return outcome;
            }
            tokio::time::sleep(Duration::from_millis(self.random.u64(backoff_ms / 2..=backoff_ms))).await;
            backoff_ms = (backoff_ms * 2).min(BACKOFF_MAX_MS);
        }
    }

    pub async fn get(&mut self, path: &str, token: Option<&str>) -> Outcome {
        let wish = self.wish(Method::Get, path, token, Value::Null);
        self.ask(&wish).await
    }

    /// A list that is to have what its reader was told of.
    pub async fn list(&mut self, path: &str, token: &str, seeks: &Seeks) -> Outcome {
        let wish = self.wish(Method::Get, path, Some(token), Value::Null);
        self.ask(&Wish { seeks: Some(seeks.clone()), ..wish }).await
    }

    pub async fn post(&mut self, path: &str, token: Option<&str>, body: Value) -> Outcome {
        let wish = self.wish(Method::Post, path, token, body);
        self.ask(&wish).await
    }

    /// An address, other than the last one if that failed and there is another.
    pub async fn address(&mut self, not: Option<&str>) -> Option<String> {
        let known = self.addresses.wait_for(|addresses| !addresses.is_empty());
        let known = tokio::time::timeout(GIVEN_UP_AFTER, known).await.ok()?.ok()?.clone();
        let others: Vec<&String> = known.iter().filter(|address| Some(address.as_str()) != not).collect();
        let choice = if others.is_empty() { known.iter().collect() } else { others };
        Some(choice[self.random.usize(..choice.len())].clone())
    }

    /// One attempt, written down.
    pub async fn try_once(&mut self, wish: &Wish) -> Outcome {
        let strays = self.random.u32(0..100) < STRAYS_PERCENT;
        let at = self.connection.as_ref().map(|(address, _)| address.clone());
        let is_gone = at.as_ref().is_none_or(|at| !self.addresses.borrow().contains(at));
        if strays || is_gone {
            let Some(address) = self.address(None).await else { return Outcome::Unknown { why: "no address".into() } };
            self.connect_to(address);
        }
        let asked_us = self.recorder.now_us();
        let Some((address, connection)) = &mut self.connection else { return Outcome::Unknown { why: "no address".into() } };
        let address = address.clone();
        let outcome = outcome(send(connection, wish).await);
        let answered_us = self.recorder.now_us();
        if !outcome.is_known()
            && let Some(elsewhere) = self.address(Some(&address)).await
        {
            self.connect_to(elsewhere);
        }
        self.recorder.note(Line::Asked(Asked {
            client: self.name.clone(),
            wish: wish.number,
            asked_us,
            answered_us,
            address,
            method: wish.method.name().to_owned(),
            path: wish.path.clone(),
            key: wish.key.clone(),
            body: wish.body.clone(),
            seeks: wish.seeks.clone(),
            outcome: outcome.clone(),
        }));
        outcome
    }

    fn connect_to(&mut self, address: String) {
        if self.connection.as_ref().is_some_and(|(at, _)| *at == address) {
            return;
        }
        let origin = Origin::parse(&address).unwrap();
        let limits = Limits { connect: CONNECT_TIMEOUT, request: self.patience };
        self.connection = Some((address, Connection::new(origin, limits)));
    }
}

async fn send(connection: &mut Connection, wish: &Wish) -> Result<Answer, ClientError> {
    let mut headers: Vec<Header> = Vec::new();
    headers.extend(wish.token.as_ref().map(|token| (AUTHORIZATION, bearer(token).unwrap())));
    headers.extend(wish.key.as_ref().map(|key| (IDEMPOTENCY_KEY, HeaderValue::from_str(key).unwrap())));
    headers.extend(wish.seeks.as_ref().map(|seeks| (SOUK_AT_LEAST, HeaderValue::from(seeks.position))));
    match wish.method {
        Method::Get => connection.get(&wish.path, &headers).await,
        Method::Delete => connection.delete(&wish.path, &headers).await,
        Method::Post => connection.post(&wish.path, &headers, Bytes::from(wish.body.to_string())).await,
    }
}

fn outcome(answer: Result<Answer, ClientError>) -> Outcome {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Outcome::Unknown { why: error.to_string() },
    };
    let status = answer.status.as_u16();
    let body: Value = match answer.body.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&answer.body).unwrap_or(Value::Null),
    };
    // "Not now" is no answer: the same key may be answered otherwise later.
    if status >= 500 || matches!(status, 408 | 429) || answer.header("retry-after").is_some() {
        let name = body["type"].as_str().unwrap_or("no problem");
        return Outcome::Unknown { why: format!("{status}: {name}") };
    }
    let replayed = answer.header("idempotency-replayed").is_some();
    if status >= 400 {
        return Outcome::Refused { status, replayed, problem: body };
    }
    let etag = answer.header("etag").and_then(|etag| etag.trim_matches('"').parse().ok());
    let position = answer.header("souk-position").and_then(|position| position.parse().ok());
    Outcome::Ok { status, etag, position, replayed, answer: body }
}
