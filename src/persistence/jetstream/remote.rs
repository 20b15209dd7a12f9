//! The stream as it really is: NATS subjects, headers and JSON, and nothing of what they are for.
//!
//! All answers come to one inbox and find their question by its number there: no subscription for each, and what nobody
//! waits for any more is dropped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{HeaderMap, StatusCode, Subscriber};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::envelope::Head;
use super::stream::{Extent, JetStream, Message, NoAnswer, PublishError, Stored, Which};
use crate::persistence::nats::{Nats, NatsError};

/// A page's next message is awaited for so long.
const PAGE_MESSAGE_MS: u64 = 1_000;
/// A page ends before its next message would make it heavier than this.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
const EXTENT_MS: u64 = 1_000;
/// Between two looks at whom the leader has heard of.
const PROOF_PAUSE_MS: u64 = 30;
const SUBSCRIBE_MS: u64 = 2_000;

const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
const SEQUENCE: &str = "Nats-Sequence";
const SUBJECT: &str = "Nats-Subject";

const NO_MESSAGE: u64 = 10_037;
const WRONG_LAST_SEQUENCE: u64 = 10_071;
const WRONG_LAST_SEQUENCE_CONSTANT: u64 = 10_164;
/// The server's own status, not JetStream's.
const NOT_FOUND: u16 = 404;
const END_OF_PAGE: u16 = 204;

/// Where answers go.
enum Asker {
    Once(oneshot::Sender<async_nats::Message>),
    Page(mpsc::Sender<async_nats::Message>),
}

#[derive(Default)]
struct Askers(Mutex<HashMap<u64, Asker>>);

impl Askers {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Asker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, number: u64, message: async_nats::Message) {
        let mut askers = self.lock();
        match askers.get(&number) {
            Some(Asker::Page(page)) => {
                // A page has room for all that was asked for.
                let _ = page.try_send(message);
            }
            Some(Asker::Once(_)) => {
                if let Some(Asker::Once(once)) = askers.remove(&number) {
                    let _ = once.send(message);
                }
            }
            None => {}
        }
    }
}

/// A question that is open; it is forgotten with this.
struct Open<'a> {
    askers: &'a Askers,
    number: u64,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.askers.lock().remove(&self.number);
    }
}

/// A stream on a NATS server.
pub struct Remote {
    nats: Nats,
    stream: String,
    tail_subject: String,
    inbox: String,
    asked: AtomicU64,
    askers: Arc<Askers>,
    postman: AbortHandle,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.postman.abort();
    }
}

impl Remote {
    /// The journal's stream under the connection's prefix.
    pub async fn new(nats: Nats) -> Result<Remote, NatsError> {
        let inbox = nats.client().new_inbox();
        let failed = |why: String| NatsError::Connect { urls: "the inbox".into(), why };
        let subscribed = timeout(Duration::from_millis(SUBSCRIBE_MS), nats.client().subscribe(format!("{inbox}.*")));
        let answers = subscribed.await.map_err(|_| failed("no answer".into()))?.map_err(|error| failed(error.to_string()))?;
        let askers = Arc::new(Askers::default());
        let postman = tokio::spawn(deliver(answers, inbox.len() + 1, askers.clone())).abort_handle();
        let (stream, tail_subject) = (super::setup::stream_name(nats.prefix()), super::setup::tail_subject(nats.prefix()));
        Ok(Remote { nats, stream, tail_subject, inbox, asked: AtomicU64::new(1), askers, postman })
    }

    fn open(&self, asker: Asker) -> (Open<'_>, String) {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        self.askers.lock().insert(number, asker);
        (Open { askers: &self.askers, number }, format!("{}.{number}", self.inbox))
    }

    /// Questions are not put aside for a connection that may come back: whoever asks will ask again.
    fn is_connected(&self) -> Result<(), NoAnswer> {
        if self.nats.is_connected() { Ok(()) } else { Err(NoAnswer("there is no connection to NATS".into())) }
    }

    async fn ask_once(&self, subject: String, body: Bytes, within: Duration) -> Result<async_nats::Message, NoAnswer> {
        self.is_connected()?;
        let (sender, receiver) = oneshot::channel();
        let (_open, reply) = self.open(Asker::Once(sender));
        let asked = async {
            let sent = self.nats.client().publish_with_reply(subject, reply, body).await;
            sent.map_err(|error| NoAnswer(error.to_string()))?;
            receiver.await.map_err(|_| NoAnswer("the connection was closed".into()))
        };
        let answer =
            timeout(within, asked).await.map_err(|_| NoAnswer(format!("nothing within {} ms", within.as_millis())))??;
        match answer.status {
            Some(StatusCode::NO_RESPONDERS) => Err(NoAnswer("nobody is there".into())),
            _ => Ok(answer),
        }
    }

    /// What whoever takes itself for the leader says of the stream.
    async fn info(&self) -> Result<Info, NoAnswer> {
        let subject = format!("$JS.API.STREAM.INFO.{}", self.stream);
        let answer = self.ask_once(subject, Bytes::new(), Duration::from_millis(EXTENT_MS)).await?;
        let answer: InfoAnswer = serde_json::from_slice(&answer.payload).map_err(|error| NoAnswer(error.to_string()))?;
        match (answer.state, answer.error) {
            (Some(state), _) => {
                let replicas = answer.cluster.unwrap_or_default().replicas;
                let heard = replicas.iter().map(|replica| Duration::from_nanos(replica.active)).collect();
                Ok(Info { first: state.first_seq, last: state.last_seq, created: answer.created, heard })
            }
            (None, Some(error)) => Err(said(&error)),
            (None, None) => Err(NoAnswer("neither a state nor an error".into())),
        }
    }

    /// The messages of one direct get.
    async fn page(&self, question: &impl Serialize, limit: usize) -> Result<Vec<Stored>, NoAnswer> {
        self.is_connected()?;
        let body = serde_json::to_vec(question).map_err(|error| NoAnswer(error.to_string()))?;
        let (sender, mut messages) = mpsc::channel(limit + 1);
        let (_open, reply) = self.open(Asker::Page(sender));
        let mut deadline = Instant::now() + Duration::from_millis(PAGE_MESSAGE_MS);
        let sent = self.nats.client().publish_with_reply(format!("$JS.API.DIRECT.GET.{}", self.stream), reply, body.into());
        match timeout_at(deadline, sent).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(NoAnswer(error.to_string())),
            Err(_) => return Err(NoAnswer("the connection is busy".into())),
        }
        let mut page = Vec::new();
        loop {
            let Ok(Some(message)) = timeout_at(deadline, messages.recv()).await else {
                return Err(NoAnswer(format!("a page was cut after {} messages", page.len())));
            };
            match message.status.map(|status| status.as_u16()) {
                None => page.push(published(message).ok_or_else(|| NoAnswer("a message without a sequence".into()))?),
                Some(END_OF_PAGE | NOT_FOUND) => return Ok(page),
                Some(status) => {
                    let what = message.description.unwrap_or_default();
                    return Err(NoAnswer(format!("{status} {what}")));
                }
            }
            deadline = Instant::now() + Duration::from_millis(PAGE_MESSAGE_MS);
        }
    }
}

/// Brings each answer to whoever asked.
async fn deliver(mut answers: Subscriber, number_at: usize, askers: Arc<Askers>) {
    while let Some(message) = answers.next().await {
        if let Some(number) = message.subject.get(number_at..).and_then(|number| number.parse().ok()) {
            askers.deliver(number, message);
        }
    }
}

#[derive(Serialize)]
struct DirectGet<'a> {
    seq: u64,
    next_by_subj: &'a str,
    batch: usize,
    max_bytes: usize,
}

#[derive(Serialize)]
struct NewestGet<'a> {
    multi_last: &'a [&'a str],
}

#[derive(Serialize)]
struct LeaderGet<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_by_subj: Option<&'a str>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct Acknowledgement {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct LeaderAnswer {
    #[serde(default)]
    message: Option<LeaderMessage>,
    #[serde(default)]
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct LeaderMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct InfoAnswer {
    #[serde(default)]
    created: String,
    #[serde(default)]
    state: Option<InfoState>,
    #[serde(default)]
    cluster: Option<InfoCluster>,
    #[serde(default)]
    error: Option<ApiError>,
}

#[derive(Deserialize, Default)]
struct InfoCluster {
    #[serde(default)]
    replicas: Vec<InfoReplica>,
}

#[derive(Deserialize)]
struct InfoReplica {
    /// How long ago the leader heard of it, in nanoseconds.
    #[serde(default = "never")]
    active: u64,
}

fn never() -> u64 {
    u64::MAX
}

struct Info {
    first: u64,
    last: u64,
    created: String,
    /// How long ago each of the others was heard.
    heard: Vec<Duration>,
}

impl Info {
    /// Whether so many of the others were heard that with the leader itself they are a quorum.
    fn followed_within(&self, span: Duration) -> bool {
        let needed = self.heard.len().div_ceil(2);
        self.heard.iter().filter(|ago| **ago < span).count() >= needed
    }
}

#[derive(Deserialize)]
struct InfoState {
    first_seq: u64,
    last_seq: u64,
}

fn said(error: &ApiError) -> NoAnswer {
    NoAnswer(format!("{} ({})", error.description, error.err_code))
}

/// A message of the stream as it is published to whoever follows or asks: its place is in its headers.
fn published(message: async_nats::Message) -> Option<Stored> {
    let headers = message.headers.as_ref()?;
    let text = |name: &str| headers.get(name).map(|value| value.as_str());
    let sequence = text(SEQUENCE)?.parse().ok()?;
    let subject = text(SUBJECT)?.into();
    Some(Stored { sequence, subject, head: Head::from_texts(text), payload: message.payload })
}

fn leader_message(message: LeaderMessage) -> Result<Stored, NoAnswer> {
    let decode = |text: &str| BASE64_STANDARD.decode(text).map_err(|error| NoAnswer(error.to_string()));
    let (headers, payload) = (decode(&message.hdrs)?, decode(&message.data)?);
    let headers = String::from_utf8_lossy(&headers);
    let text = |name: &str| {
        let mut lines = headers.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(of, _)| of.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let head = Head::from_texts(text);
    Ok(Stored { sequence: message.seq, subject: message.subject.into(), head, payload: payload.into() })
}

/// What an acknowledgement says, or the refusal that came instead.
fn acknowledged(message: &async_nats::Message) -> Result<u64, PublishError> {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(PublishError::NotSent("nobody leads the stream".into()));
    }
    let answer: Acknowledgement = serde_json::from_slice(&message.payload)
        .map_err(|error| PublishError::Lost(format!("an answer that is none: {error}")))?;
    match answer.error {
        None if answer.seq > 0 => Ok(answer.seq),
        None => Err(PublishError::Lost("an answer without a sequence".into())),
        Some(error) => Err(match error.err_code {
            code @ (WRONG_LAST_SEQUENCE | WRONG_LAST_SEQUENCE_CONSTANT) => PublishError::WrongSequence { code },
            // The leader's own trouble says nothing about what the others have stored.
            code if error.code >= 500 => PublishError::Lost(format!("{} ({code})", error.description)),
            code => PublishError::Refused { code, what: error.description },
        }),
    }
}

impl JetStream for Remote {
    fn publish<'a>(&'a self, message: &'a Message, within: Duration) -> BoxFuture<'a, Result<u64, PublishError>> {
        Box::pin(async move {
            if !self.nats.is_connected() {
                return Err(PublishError::NotSent("there is no connection to NATS".into()));
            }
            let mut headers = HeaderMap::new();
            headers.insert(EXPECTED, message.after.to_string());
            for (name, text) in message.head.texts() {
                headers.insert(name, text);
            }
            let (sender, receiver) = oneshot::channel();
            let (_open, reply) = self.open(Asker::Once(sender));
            let subject = message.subject.to_string();
            let published = async {
                let client = self.nats.client();
                let sent = client.publish_with_reply_and_headers(subject, reply, headers, message.payload.clone()).await;
                sent.map_err(|error| PublishError::NotSent(error.to_string()))?;
                let answer = receiver.await.map_err(|_| PublishError::Lost("the connection was closed".into()))?;
                acknowledged(&answer)
            };
            match timeout(within, published).await {
                Ok(result) => result,
                Err(_) => Err(PublishError::Lost(format!("nothing within {} ms", within.as_millis()))),
            }
        })
    }

    fn ask_leader<'a>(
        &'a self,
        subject: &'a str,
        which: Which,
        within: Duration,
    ) -> BoxFuture<'a, Result<Option<Stored>, NoAnswer>> {
        Box::pin(async move {
            let question = match which {
                Which::Last => LeaderGet { seq: None, next_by_subj: None, last_by_subj: Some(subject) },
                Which::From(from) => LeaderGet { seq: Some(from), next_by_subj: Some(subject), last_by_subj: None },
            };
            let body = serde_json::to_vec(&question).map_err(|error| NoAnswer(error.to_string()))?;
            let asked = self.ask_once(format!("$JS.API.STREAM.MSG.GET.{}", self.stream), body.into(), within);
            let answer = asked.await?;
            let answer: LeaderAnswer = serde_json::from_slice(&answer.payload).map_err(|error| NoAnswer(error.to_string()))?;
            match (answer.message, answer.error) {
                (Some(message), _) => leader_message(message).map(Some),
                (None, Some(error)) if error.err_code == NO_MESSAGE => Ok(None),
                (None, Some(error)) => Err(said(&error)),
                (None, None) => Err(NoAnswer("neither a message nor an error".into())),
            }
        })
    }

    fn ask_any<'a>(&'a self, subject: Option<&'a str>, from: u64, limit: usize) -> BoxFuture<'a, Result<Vec<Stored>, NoAnswer>> {
        Box::pin(async move {
            let next_by_subj = subject.unwrap_or(">");
            self.page(&DirectGet { seq: from.max(1), next_by_subj, batch: limit, max_bytes: PAGE_BYTES }, limit).await
        })
    }

    fn ask_newest<'a>(&'a self, subjects: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Stored>, NoAnswer>> {
        Box::pin(async move { self.page(&NewestGet { multi_last: subjects }, subjects.len()).await })
    }

    fn proven_end(&self, within: Duration) -> BoxFuture<'_, Result<u64, NoAnswer>> {
        Box::pin(async move {
            let asked = Instant::now();
            let mut why = NoAnswer("no quorum was heard of".into());
            while asked.elapsed() < within {
                let sent = Instant::now();
                match self.info().await {
                    // All by durations: nobody's clock has to agree with ours.
                    Ok(info) if info.followed_within(sent.duration_since(asked)) => return Ok(info.last),
                    Ok(_) => {}
                    Err(error) => why = error,
                }
                tokio::time::sleep(Duration::from_millis(PROOF_PAUSE_MS)).await;
            }
            Err(why)
        })
    }

    fn extent(&self) -> BoxFuture<'_, Result<Extent, NoAnswer>> {
        Box::pin(async move {
            let Info { first, last, created, .. } = self.info().await?;
            Ok(Extent { first, last, identity: created })
        })
    }

    fn tail(&self) -> BoxFuture<'_, Result<BoxStream<'static, Stored>, NoAnswer>> {
        Box::pin(async move {
            let subscribed = self.nats.client().subscribe(self.tail_subject.clone());
            let subscribed = timeout(Duration::from_millis(SUBSCRIBE_MS), subscribed).await;
            let messages = subscribed.map_err(|_| NoAnswer("the connection is busy".into()))?;
            let messages = messages.map_err(|error| NoAnswer(error.to_string()))?;
            Ok(messages.filter_map(|message| std::future::ready(published(message))).boxed())
        })
    }

    fn connections(&self) -> watch::Receiver<u64> {
        self.nats.connections()
    }

    fn message_bytes_max(&self) -> usize {
        self.nats.client().max_payload()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_the_leader_with_enough_of_the_others() {
        let heard = |ms: &[u64]| {
            let heard = ms.iter().copied().map(Duration::from_millis).collect();
            Info { first: 1, last: 9, created: String::new(), heard }.followed_within(Duration::from_millis(100))
        };
        assert!(heard(&[]), "a server of its own");
        assert!(heard(&[99]) && !heard(&[100]), "of two, both");
        assert!(heard(&[99, 5_000]) && !heard(&[100, 100]), "of three, two");
        assert!(heard(&[1, 1, 500, 500]) && !heard(&[1, 500, 500, 500]), "of five, three");
        assert!(heard(&[1, 1, 500]) && !heard(&[1, 500, 500]), "of four, three");
    }
}
