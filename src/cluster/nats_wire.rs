//! The wire over NATS: heartbeats and asks as plain messages, the register as a stream.
//!
//! - `P.m.beat`: heartbeats, published by each member and heard by all.
//! - `P.m.<member>.ask`: asks, as NATS requests. That nobody listens is known at once. What is larger than the server's
//!   `max_payload` is refused, asks before they are sent and answers by an answer that says so: nothing is cut in pieces.
//! - `P-beats`: the register, a stream with the subject `P.b.<member>` for each entry. On files, because a register that forgets
//!   makes everybody join anew; it grows by a few records a second and keeps the newest few of each subject. More than one,
//!   since a server that reads the newest of all subjects looks them up first and loads them afterwards, and must not find one
//!   gone that was just replaced.
//!
//! Nothing may wait here without an end, and heartbeats never wait: one that cannot be sent at once is not sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap, Message, Request, RequestErrorKind, StatusCode};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::register::OPERATION_MS;
use super::wire::{Answer, AskError, Entry, Incoming, Name, Outcome, PutError, Wire, WireError};

/// Opening the register takes this long at most: a JetStream that elects a leader needs some seconds.
const OPEN_MS: u64 = 30_000;
const OPEN_TRY_MS: u64 = 5_000;
const OPEN_BACKOFF_MS: u64 = 200;
/// An entry of a member that has not been heard of for so long is forgotten.
const ENTRY_AGE_MS: u64 = 60 * 60 * 1_000;
/// How many records of a member the register keeps.
const ENTRY_RECORDS: i64 = 16;
/// Most that one read answers; the server's own bound.
const ENTRIES_MAX: usize = 1_024;
/// Heartbeats that wait to be sent.
const BEATS_WAITING_MAX: usize = 8;
/// How often the connection is looked at.
const LOOK_MS: u64 = 20;
/// An answer that cannot be handed to the connection for so long is dropped.
const ANSWER_MS: u64 = 5_000;

const PATIENCE: &str = "Souk-Patience-Ms";
const OUTCOME: &str = "Souk-Outcome";
const OVERLOADED: &str = "overloaded";
const TOO_LARGE: &str = "too-large";
const BYTES: &str = "Souk-Bytes";
/// Room for the headers of an answer.
const HEADERS_BYTES_MAX: usize = 512;

#[derive(Debug, Clone)]
pub struct NatsWireOptions {
    pub prefix: String,
    /// Servers that keep the register. `None`: three, or as many as there are.
    pub replicas: Option<usize>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the stream {stream} cannot be made or read: {why}")]
    Stream { stream: String, why: String },
    #[error("the stream {stream} has {setting} = {is}, and should have {should}")]
    Setting { stream: String, setting: &'static str, is: String, should: String },
}

pub struct NatsWire {
    client: Client,
    jetstream: Context,
    prefix: String,
    beats: mpsc::Sender<Bytes>,
    /// Changes when the connection is lost.
    losses: watch::Receiver<u64>,
    dropped: Arc<AtomicU64>,
}

impl NatsWire {
    /// Must be called within a runtime, on which it lives.
    pub async fn open(client: Client, options: &NatsWireOptions) -> Result<Self, OpenError> {
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(Duration::from_millis(OPERATION_MS));
        open_register(&client, options).await?;
        let (beats, waiting) = mpsc::channel(BEATS_WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        tokio::spawn(send_beats(client.clone(), format!("{}.m.beat", options.prefix), waiting, dropped.clone()));
        let (lost, losses) = watch::channel(0);
        tokio::spawn(look_at_the_connection(client.clone(), lost));
        Ok(NatsWire { client, jetstream, prefix: options.prefix.clone(), beats, losses, dropped })
    }

    /// Heartbeats that were not sent because the connection was lost or full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn stream(&self) -> String {
        format!("{}-beats", self.prefix)
    }

    fn ask_subject(&self, member: &Name) -> String {
        format!("{}.m.{member}.ask", self.prefix)
    }

    async fn request(&self, member: &Name, payload: Bytes, patience: Duration) -> Result<Bytes, AskError> {
        let (bytes, bytes_max) = (payload.len(), self.client.max_payload());
        if bytes + HEADERS_BYTES_MAX > bytes_max {
            return Err(AskError::TooLarge { what: "an ask", bytes, bytes_max });
        }
        let mut losses = self.losses.clone();
        losses.mark_unchanged();
        if self.client.connection_state() != State::Connected {
            return Err(AskError::Lost("not connected".to_owned()));
        }
        let mut headers = HeaderMap::new();
        headers.insert(PATIENCE, patience.as_millis().to_string());
        let request = Request::new().payload(payload).headers(headers).timeout(Some(patience));
        let answered = timeout(patience, self.client.send_request(self.ask_subject(member), request));
        let answer = tokio::select! {
            answered = answered => match answered {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => return Err(match error.kind() {
                    RequestErrorKind::NoResponders => AskError::NoSuchMember(member.clone()),
                    RequestErrorKind::TimedOut => AskError::TimedOut(member.clone()),
                    RequestErrorKind::MaxPayloadExceeded => AskError::TooLarge { what: "an ask", bytes, bytes_max },
                    _ => AskError::Lost(error.to_string()),
                }),
                Err(_) => return Err(AskError::TimedOut(member.clone())),
            },
            _ = losses.changed() => return Err(AskError::Lost("the connection was lost while waiting".to_owned())),
        };
        let header = |name: &str| answer.headers.as_ref().and_then(|headers| headers.get(name)).map(|value| value.as_str());
        match header(OUTCOME) {
            None => Ok(answer.payload),
            Some(OVERLOADED) => Err(AskError::Overloaded(member.clone())),
            Some(TOO_LARGE) => {
                let bytes = header(BYTES).and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
                Err(AskError::TooLarge { what: "an answer", bytes, bytes_max })
            }
            Some(other) => Err(AskError::Lost(format!("an answer that is not understood: {other}"))),
        }
    }

    async fn read_entries(&self) -> Result<Vec<Entry>, WireError> {
        let inbox = self.client.new_inbox();
        let mut messages = self.client.subscribe(inbox.clone()).await.map_err(failed)?;
        let subjects = format!("{}.b.*", self.prefix);
        let wanted = serde_json::json!({ "multi_last": [subjects], "batch": ENTRIES_MAX }).to_string();
        let api = format!("$JS.API.DIRECT.GET.{}", self.stream());
        self.client.publish_with_reply(api, inbox, wanted.into()).await.map_err(failed)?;
        let mut entries = Vec::new();
        while let Some(message) = messages.next().await {
            match message.status.map(|status| status.as_u16()) {
                None => entries.extend(self.entry(message)),
                // The end of the batch; or none at all.
                Some(204 | 404) => return Ok(entries),
                Some(_) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                    return Err(WireError("no server has the register".to_owned()));
                }
                Some(status) => return Err(WireError(format!("the register answered {status}"))),
            }
        }
        Err(WireError("the connection was closed".to_owned()))
    }

    fn entry(&self, message: Message) -> Option<Entry> {
        let headers = message.headers.as_ref()?;
        let member = headers.get("Nats-Subject")?.as_str().rsplit('.').next()?;
        let sequence = headers.get("Nats-Sequence")?.as_str().parse().ok()?;
        Some(Entry { member: Name::parse(member).ok()?, sequence, payload: message.payload })
    }
}

fn failed(error: impl std::fmt::Display) -> WireError {
    WireError(error.to_string())
}

async fn open_register(client: &Client, options: &NatsWireOptions) -> Result<(), OpenError> {
    let stream = format!("{}-beats", options.prefix);
    let mut jetstream = jetstream::new(client.clone());
    jetstream.set_timeout(Duration::from_millis(OPEN_TRY_MS));
    let begun = Instant::now();
    loop {
        let why = match try_register(&jetstream, &stream, options).await {
            Ok(is) => return check(&stream, &is, &options.prefix),
            Err(why) => why,
        };
        if begun.elapsed() >= Duration::from_millis(OPEN_MS) {
            return Err(OpenError::Stream { stream, why });
        }
        sleep(Duration::from_millis(OPEN_BACKOFF_MS + fastrand::u64(..OPEN_BACKOFF_MS))).await;
    }
}

async fn try_register(jetstream: &Context, stream: &str, options: &NatsWireOptions) -> Result<Config, String> {
    let mut last = String::new();
    let counts = match options.replicas {
        Some(replicas) => vec![replicas],
        // A cluster of fewer servers refuses more replicas than it has.
        None => vec![3, 2, 1],
    };
    for num_replicas in counts {
        let config = Config {
            name: stream.to_owned(),
            subjects: vec![format!("{}.b.*", options.prefix)],
            storage: StorageType::File,
            num_replicas,
            max_messages_per_subject: ENTRY_RECORDS,
            max_age: Duration::from_millis(ENTRY_AGE_MS),
            discard: DiscardPolicy::Old,
            allow_direct: true,
            // Repeats are known by the sequence that they expect.
            duplicate_window: Duration::from_millis(100),
            ..Config::default()
        };
        match jetstream.get_or_create_stream(config).await {
            Ok(stream) => return Ok(stream.cached_info().config.clone()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

fn check(stream: &str, is: &Config, prefix: &str) -> Result<(), OpenError> {
    let wrong = |setting: &'static str, is: String, should: String| {
        Err(OpenError::Setting { stream: stream.to_owned(), setting, is, should })
    };
    let subjects = vec![format!("{prefix}.b.*")];
    if is.subjects != subjects {
        return wrong("subjects", format!("{:?}", is.subjects), format!("{subjects:?}"));
    }
    if is.storage != StorageType::File {
        return wrong("storage", format!("{:?}", is.storage), format!("{:?}", StorageType::File));
    }
    if is.max_messages_per_subject != ENTRY_RECORDS {
        return wrong("max_msgs_per_subject", is.max_messages_per_subject.to_string(), ENTRY_RECORDS.to_string());
    }
    if !is.allow_direct {
        return wrong("allow_direct", false.to_string(), true.to_string());
    }
    Ok(())
}

async fn send_beats(client: Client, subject: String, mut waiting: mpsc::Receiver<Bytes>, dropped: Arc<AtomicU64>) {
    while let Some(beat) = waiting.recv().await {
        // The connection would keep it until it is back.
        let sent = client.connection_state() == State::Connected && client.publish(subject.clone(), beat).await.is_ok();
        if !sent {
            dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn look_at_the_connection(client: Client, lost: watch::Sender<u64>) {
    let statistics = client.statistics();
    let mut connects = statistics.connects.load(Ordering::Relaxed);
    let mut was_connected = true;
    while !lost.is_closed() {
        sleep(Duration::from_millis(LOOK_MS)).await;
        let is_connected = client.connection_state() == State::Connected;
        let connects_now = statistics.connects.load(Ordering::Relaxed);
        if (was_connected && !is_connected) || connects_now != connects {
            lost.send_modify(|losses| *losses += 1);
        }
        (was_connected, connects) = (is_connected, connects_now);
    }
}

fn incoming(client: Client, message: Message) -> Option<Incoming> {
    let reply = message.reply?;
    let patience = message.headers.as_ref().and_then(|headers| headers.get(PATIENCE)?.as_str().parse().ok());
    let patience = Duration::from_millis(patience.unwrap_or(0));
    let answer = Answer::new(move |outcome| {
        async move {
            let mut headers = HeaderMap::new();
            let bytes_max = client.max_payload();
            let sent = match outcome {
                Outcome::Answered(payload) if payload.len() + HEADERS_BYTES_MAX <= bytes_max => {
                    timeout(Duration::from_millis(ANSWER_MS), client.publish(reply, payload)).await
                }
                Outcome::Answered(payload) => {
                    headers.insert(OUTCOME, TOO_LARGE);
                    headers.insert(BYTES, payload.len().to_string());
                    timeout(Duration::from_millis(ANSWER_MS), client.publish_with_headers(reply, headers, Bytes::new())).await
                }
                Outcome::Overloaded => {
                    headers.insert(OUTCOME, OVERLOADED);
                    timeout(Duration::from_millis(ANSWER_MS), client.publish_with_headers(reply, headers, Bytes::new())).await
                }
            };
            if !matches!(sent, Ok(Ok(()))) {
                tracing::debug!("an answer could not be sent; its asker will meet its deadline");
            }
        }
        .boxed()
    });
    Some(Incoming { payload: message.payload, patience, answer })
}

impl Wire for NatsWire {
    fn broadcast(&self, beat: Bytes) {
        if self.beats.try_send(beat).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn hear(&self) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, WireError>> {
        async move {
            let beats = self.client.subscribe(format!("{}.m.beat", self.prefix)).await.map_err(failed)?;
            Ok(beats.map(|message| message.payload).boxed())
        }
        .boxed()
    }

    fn ask<'a>(&'a self, member: &'a Name, payload: Bytes, patience: Duration) -> BoxFuture<'a, Result<Bytes, AskError>> {
        self.request(member, payload, patience).boxed()
    }

    fn listen<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<BoxStream<'static, Incoming>, WireError>> {
        async move {
            let asks = self.client.subscribe(self.ask_subject(name)).await.map_err(failed)?;
            // That others can ask from now on, and not only soon.
            self.client.flush().await.map_err(failed)?;
            let client = self.client.clone();
            Ok(asks.filter_map(move |message| std::future::ready(incoming(client.clone(), message))).boxed())
        }
        .boxed()
    }

    fn put<'a>(&'a self, member: &'a Name, expected: u64, payload: Bytes) -> BoxFuture<'a, Result<u64, PutError>> {
        async move {
            let message = PublishMessage::build().payload(payload).expected_last_subject_sequence(expected);
            let put = async {
                let acknowledged = self.jetstream.send_publish(format!("{}.b.{member}", self.prefix), message).await?;
                acknowledged.await
            };
            match timeout(Duration::from_millis(OPERATION_MS), put).await {
                Ok(Ok(acknowledged)) => Ok(acknowledged.sequence),
                Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => Err(PutError::Changed),
                Ok(Err(error)) => Err(PutError::Unknown(error.to_string())),
                Err(_) => Err(PutError::Unknown("no answer in time".to_owned())),
            }
        }
        .boxed()
    }

    fn read(&self) -> BoxFuture<'_, Result<Vec<Entry>, WireError>> {
        async move {
            let read = timeout(Duration::from_millis(OPERATION_MS), self.read_entries()).await;
            read.unwrap_or_else(|_| Err(WireError("no answer in time".to_owned())))
        }
        .boxed()
    }
}
