//! Live push at the door: the WebSocket handshake, and events and flash sales as SSE.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{Notify, watch};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use warp::Reply;
use warp::http::StatusCode;
use warp::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};

use super::answer::Answer;
use super::problem::Problem;
use super::request::Request;
use super::{Door, Phase, orders};
use crate::actors::board::{self, Place, Told, Watching};
use crate::actors::live::{Pushed, Watch, Watcher};
use crate::actors::session::Seat;
use crate::actors::shown;
use crate::domain::{Entity, Order, ids};
use crate::persistence::record::Payload;
use crate::persistence::{EntityKey, Position, Version};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// How long the upgrade may take after our answer.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);
/// A comment keeps proxies from closing a silent stream, and lets a drain or a gone reader be noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How soon a reader comes back, in milliseconds.
const RETRY_MS: u32 = 2_000;
/// Batches read from the journal at a time.
const PAGE: usize = 64;

/// `GET /ws`
pub async fn socket(door: Arc<Door>, mut request: Request) -> Result<Answer, Problem> {
    let accept = handshake(&request.headers).map_err(Problem::not_a_websocket)?;
    let upgrade = request.upgrade.take().ok_or_else(|| Problem::not_a_websocket("this connection cannot be upgraded"))?;
    let seat = door.sessions.seat().ok_or_else(Problem::too_many_sessions)?;
    let credential = request.credential;
    tokio::spawn(async move {
        match tokio::time::timeout(UPGRADE_TIMEOUT, upgrade).await {
            Ok(Ok(upgraded)) => door.sessions.admit(seat, upgraded, credential).await,
            Ok(Err(error)) => tracing::debug!(%error, "a connection was not upgraded"),
            Err(_) => tracing::debug!("a connection was not upgraded in time"),
        }
    });
    Ok(Answer::empty(StatusCode::SWITCHING_PROTOCOLS)
        .with(CONNECTION, "Upgrade")
        .with(UPGRADE, "websocket")
        .with(SEC_WEBSOCKET_ACCEPT, &accept))
}

/// Checks the opening handshake (RFC 6455, 4.2.1) and gives the accepting key.
fn handshake(headers: &HeaderMap) -> Result<String, &'static str> {
    let has = |name: HeaderName, token: &str| {
        let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    if !has(CONNECTION, "upgrade") || !has(UPGRADE, "websocket") {
        return Err("send Connection: Upgrade and Upgrade: websocket");
    }
    if !has(SEC_WEBSOCKET_VERSION, "13") {
        return Err("send Sec-WebSocket-Version: 13");
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or("send a Sec-WebSocket-Key")?.as_bytes();
    // 16 bytes in base64: 22 characters and two of padding.
    let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    match key.strip_suffix(b"==") {
        Some(data) if data.len() == 22 && data.iter().all(base64) => Ok(derive_accept_key(key)),
        _ => Err("the Sec-WebSocket-Key is not 16 bytes in base64"),
    }
}

/// A hint that there may be something new; the journal says what.
struct Hint(Notify);

impl Watcher for Hint {
    fn push(&self, _: &Arc<Pushed>) {
        self.0.notify_one();
    }
}

/// One reader of an order's events.
struct Reader {
    door: Arc<Door>,
    key: EntityKey,
    seq: Version,
    hint: Arc<Hint>,
    _watch: Watch,
    started: bool,
    phase: watch::Receiver<Phase>,
}

/// `GET /api/orders/{id}/events`
pub async fn events(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::ORDER)?;
    if !orders::exists(&door, id).await? {
        return Err(Problem::not_found());
    }
    let after = last_event_id(&request.headers)?;
    let key = EntityKey::new(Order::KIND, id);
    let hint = Arc::new(Hint(Notify::new()));
    // Watch first, read afterwards: nothing can fall in between.
    let watch = door.live.watch(key.clone(), hint.clone());
    let phase = door.watch_phase();
    let reader = Reader { door, key, seq: after, hint, _watch: watch, started: false, phase };
    Ok(event_stream(chunks(reader)))
}

fn last_event_id(headers: &HeaderMap) -> Result<Version, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(0) };
    let id = value.to_str().ok().and_then(|id| id.trim().parse().ok());
    id.ok_or_else(|| Problem::bad_header("Last-Event-ID", "send the last id back as it was given"))
}

fn event_stream(chunks: impl Stream<Item = Result<String, std::convert::Infallible>> + Send + 'static) -> Answer {
    let response = warp::reply::stream(Shared(Mutex::new(chunks.boxed()))).into_response();
    let answer = Answer::response(response).with(CACHE_CONTROL, "no-store").with(CONTENT_TYPE, "text/event-stream");
    answer.with(HeaderName::from_static("x-accel-buffering"), "no")
}

/// One watcher of a flash sale.
struct SaleWatcher {
    watching: Watching,
    started: bool,
    phase: watch::Receiver<Phase>,
    _place: Place,
    _seat: Seat,
}

/// `GET /api/flash-sales/{id}/events`
pub async fn sale_events(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::FLASH_SALE)?;
    let after = last_event_id(&request.headers)?;
    let seat = door.sessions.seat().ok_or_else(Problem::too_many_sessions)?;
    let seen = board::admit(&door.runtime, id, &request.credential).await?.ok_or_else(Problem::not_found)?;
    // Whoever claims to have seen what is yet to come is shown what there is.
    let after = if after > seen.version { 0 } else { after };
    let (watching, place) = door.sessions.boards().join(id, seen, after, Arc::default());
    let watcher = SaleWatcher { watching, started: false, phase: door.watch_phase(), _place: place, _seat: seat };
    Ok(event_stream(sale_chunks(watcher)))
}

/// What a board shows as text, without end; it ends when the node drains.
fn sale_chunks(watcher: SaleWatcher) -> impl Stream<Item = Result<String, std::convert::Infallible>> {
    stream::unfold(watcher, |mut watcher| async move {
        if !std::mem::replace(&mut watcher.started, true) {
            return Some((Ok(format!("retry: {RETRY_MS}\n\n")), watcher));
        }
        loop {
            if *watcher.phase.borrow_and_update() == Phase::Draining {
                return None;
            }
            tokio::select! {
                told = watcher.watching.next() => {
                    let text = match told? {
                        Told::State { seq, text } => sse(seq, "state", &text),
                        // It takes no id: what is missed of it is made up for by the next.
                        Told::Ticket { text } => format!("event: ticket\ndata: {text}\n\n"),
                    };
                    return Some((Ok(text), watcher));
                }
                changed = watcher.phase.changed() => if changed.is_err() { return None },
                () = tokio::time::sleep(KEEP_ALIVE) => return Some((Ok(": still here\n\n".to_owned()), watcher)),
            }
        }
    })
}

/// The event stream as text, without end; it ends when the node drains or the journal cannot be read, and the reader
/// comes back by itself.
fn chunks(reader: Reader) -> impl Stream<Item = Result<String, std::convert::Infallible>> {
    stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        if !std::mem::replace(&mut reader.started, true) {
            return Some((Ok(format!("retry: {RETRY_MS}\n\n")), Some(reader)));
        }
        loop {
            if *reader.phase.borrow_and_update() == Phase::Draining {
                return None;
            }
            match reader.read().await {
                Some(text) if text.is_empty() => {}
                Some(text) => return Some((Ok(text), Some(reader))),
                None => return None,
            }
            tokio::select! {
                () = reader.hint.0.notified() => {}
                changed = reader.phase.changed() => if changed.is_err() { return None },
                () = tokio::time::sleep(KEEP_ALIVE) => return Some((Ok(": still here\n\n".to_owned()), Some(reader))),
            }
        }
    })
}

/// Lets warp share the stream between threads, which it asks for and never does.
struct Shared(Mutex<BoxStream<'static, Result<String, std::convert::Infallible>>>);

impl Stream for Shared {
    type Item = Result<String, std::convert::Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = self.get_mut().0.get_mut().unwrap_or_else(PoisonError::into_inner);
        stream.as_mut().poll_next(cx)
    }
}

impl Reader {
    /// What is new, as SSE; empty when nothing is, `None` when it cannot be read.
    async fn read(&mut self) -> Option<String> {
        let batches =
            match self.door.runtime.journal().read(&self.key, self.seq.saturating_add(1), Position::default(), PAGE).await {
                Ok(batches) => batches,
                Err(error) => {
                    tracing::error!(entity = %self.key, %error, "an event stream cannot read the journal");
                    return None;
                }
            };
        let mut text = String::new();
        for batch in &batches {
            let payload = Payload::parse(&batch.payload).ok()?;
            for record in payload.events.iter().filter(|record| record.version > self.seq) {
                let event = shown::event(self.key.kind(), self.key.id(), record).ok()?;
                text.push_str(&sse(record.version, &record.event_type, event.get()));
            }
            self.seq = self.seq.max(batch.last());
        }
        Some(text)
    }
}

/// JSON text has no line breaks of its own, so one `data` line holds it.
fn sse(id: Version, event_type: &str, json: &str) -> String {
    format!("id: {id}\nevent: {event_type}\ndata: {json}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use warp::http::HeaderValue;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_handshake_of_the_rfc_is_accepted() {
        let good = [
            (CONNECTION, "keep-alive, Upgrade"),
            (UPGRADE, "WebSocket"),
            (SEC_WEBSOCKET_VERSION, "13"),
            (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        assert_eq!(handshake(&headers(&good)).as_deref(), Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        for missing in 0..good.len() {
            let mut some = good.to_vec();
            some.remove(missing);
            assert!(handshake(&headers(&some)).is_err(), "without {}", good[missing].0);
        }
        for key in ["", "short==", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25j!Q=="] {
            let mut some = good.to_vec();
            some[3].1 = key;
            assert!(handshake(&headers(&some)).is_err(), "{key}");
        }
    }

    #[test]
    fn no_header_breaks_the_handshake() {
        crate::hostile::feed("headers", vec![b"keep-alive, Upgrade".to_vec()], |bytes| {
            let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
            let names = [CONNECTION, UPGRADE, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_KEY];
            for odd in &names {
                let right = headers(&[
                    (CONNECTION, "Upgrade"),
                    (UPGRADE, "websocket"),
                    (SEC_WEBSOCKET_VERSION, "13"),
                    (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
                ]);
                let mut some = right.clone();
                some.insert(odd.clone(), value.clone());
                let _ = handshake(&some);
            }
        });
    }

    #[test]
    fn an_event_has_its_version_as_id() {
        assert_eq!(sse(7, "order.paid", "{}"), "id: 7\nevent: order.paid\ndata: {}\n\n");
    }
}
