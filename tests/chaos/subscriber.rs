//! Somebody who follows one order or cart, over WebSocket or SSE, and comes back with the last sequence it has seen to any
//! address: when the connection breaks, when nothing is heard, and now and then without a reason.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::header::{AUTHORIZATION, HOST};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::asking::Client;
use crate::history::{Followed, Heard, Line, Outcome};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Who hears nothing for so long asks somebody else.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long a connection is kept at most.
const STAYS_MS: u64 = 6_000;
const AGAIN_MS: u64 = 200;
/// How long it is waited for the last events.
const LAST_EVENTS: Duration = Duration::from_secs(60);
/// An event stream's text that has no end.
const EVENT_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Transport {
    WebSocket,
    Sse,
}

/// What is followed. Only orders can be by SSE.
#[derive(Debug, Clone)]
pub struct Subject {
    /// `order:ID` or `cart:ID`
    pub topic: String,
    /// Where it can be looked at.
    pub path: String,
    pub token: String,
}

pub struct Subscriber {
    client: Client,
    subject: Subject,
    transport: Transport,
    seen: u64,
    /// Where the subject stands at last, once it is known.
    last: Option<u64>,
}

impl Subscriber {
    pub fn new(client: Client, subject: Subject, transport: Transport) -> Subscriber {
        Subscriber { client, subject, transport, seen: 0, last: None }
    }

    /// Follows until the shop is quiet and the last event is seen, or cannot be waited for any longer.
    pub async fn follow(mut self, mut is_quiet: watch::Receiver<bool>) {
        let mut deadline = None;
        while self.last.is_none_or(|last| self.seen < last) {
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                return;
            }
            if *is_quiet.borrow() && self.last.is_none() {
                deadline.get_or_insert(Instant::now() + LAST_EVENTS);
                match self.client.get(&self.subject.path, Some(&self.subject.token)).await {
                    Outcome::Ok { etag, .. } => self.last = etag,
                    // What is gone says no more.
                    Outcome::Refused { .. } => return,
                    Outcome::Unknown { .. } => {}
                }
                continue;
            }
            let stays = Duration::from_millis(self.client.random.u64(STAYS_MS / 8..STAYS_MS));
            let stayed = async {
                match self.transport {
                    Transport::WebSocket => self.by_websocket().await,
                    Transport::Sse => self.by_sse().await,
                }
            };
            tokio::select! {
                _ = timeout(stays, stayed) => {}
                _ = is_quiet.wait_for(|is_quiet| *is_quiet), if deadline.is_none() => {}
            }
            tokio::time::sleep(Duration::from_millis(self.client.random.u64(..AGAIN_MS))).await;
        }
    }

    fn is_at_the_end(&self) -> bool {
        self.last.is_some_and(|last| self.seen >= last)
    }

    async fn connect(&mut self) -> Option<(TcpStream, String)> {
        let url = self.client.address(None).await?;
        let authority = url.strip_prefix("http://")?.trim_end_matches('/').to_owned();
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(&authority)).await.ok()?.ok()?;
        Some((stream, authority))
    }

    fn opened(&self, authority: &str) {
        self.client.recorder.note(Line::Followed(Followed {
            client: self.client.name.clone(),
            topic: self.subject.topic.clone(),
            at_us: self.client.recorder.now_us(),
            address: authority.to_owned(),
            transport: format!("{:?}", self.transport),
            after: self.seen,
        }));
    }

    fn heard(&mut self, seq: u64, event_type: &str) {
        self.client.recorder.note(Line::Heard(Heard {
            client: self.client.name.clone(),
            topic: self.subject.topic.clone(),
            at_us: self.client.recorder.now_us(),
            seq,
            event_type: event_type.to_owned(),
        }));
        self.seen = self.seen.max(seq);
    }

    /// Listens until the connection ends; `None` then as well.
    async fn by_websocket(&mut self) -> Option<()> {
        let (stream, authority) = self.connect().await?;
        let request = format!("ws://{authority}/ws").into_client_request().ok()?;
        let upgraded = timeout(CONNECT_TIMEOUT, tokio_tungstenite::client_async(request, stream)).await.ok()?;
        let (mut socket, _) = upgraded.ok()?;
        let subject = &self.subject;
        let said = json!({ "type": "subscribe", "topic": subject.topic, "after": self.seen, "token": subject.token });
        socket.send(Message::text(said.to_string())).await.ok()?;
        self.opened(&authority);
        while !self.is_at_the_end() {
            let Message::Text(text) = timeout(SILENCE_MAX, socket.next()).await.ok()??.ok()? else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            let seq = message["seq"].as_u64();
            match (message["type"].as_str().unwrap_or(""), seq) {
                ("event", Some(seq)) => self.heard(seq, message["event"]["type"].as_str().unwrap_or("?")),
                ("state", Some(seq)) => self.heard(seq, "(state)"),
                ("error", _) => return None,
                _ => {}
            }
        }
        Some(())
    }

    async fn by_sse(&mut self) -> Option<()> {
        let (stream, authority) = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let driver = tokio::spawn(connection);
        let _ends = Ends(driver.abort_handle());
        let mut request = Request::get(format!("{}/events", self.subject.path))
            .header(HOST, &authority)
            .header(AUTHORIZATION, format!("Bearer {}", self.subject.token));
        if self.seen > 0 {
            request = request.header("last-event-id", self.seen);
        }
        let sent = sender.send_request(request.body(Empty::<Bytes>::new()).ok()?);
        let answer = timeout(CONNECT_TIMEOUT, sent).await.ok()?.ok()?;
        if answer.status() != 200 {
            return None;
        }
        self.opened(&authority);
        let mut body = answer.into_body();
        let mut text = String::new();
        while !self.is_at_the_end() {
            let frame = timeout(SILENCE_MAX, body.frame()).await.ok()??.ok()?;
            text.push_str(std::str::from_utf8(frame.data_ref()?).ok()?);
            while let Some(end) = text.find("\n\n") {
                let event: String = text.drain(..end + 2).collect();
                if let Some((id, event_type)) = parsed(&event) {
                    self.heard(id, event_type);
                }
            }
            if text.len() > EVENT_BYTES_MAX {
                return None;
            }
        }
        Some(())
    }
}

/// Ends the task that moves the bytes.
struct Ends(tokio::task::AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The id and type of one event of a stream; `None` for a comment.
fn parsed(event: &str) -> Option<(u64, &str)> {
    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
    Some((field("id: ")?.parse().ok()?, field("event: ")?))
}

#[test]
fn an_event_of_a_stream_is_told_from_a_comment() {
    assert_eq!(parsed("id: 7\nevent: order.paid\ndata: {}\n\n"), Some((7, "order.paid")));
    assert_eq!(parsed(": still here\n\n"), None);
    assert_eq!(parsed("retry: 2000\n\n"), None);
}
