//! Spans for an OpenTelemetry collector: OTLP over HTTP, as JSON.
//!
//! A [`Recorder`] listens to `tracing` and puts each finished request, and each call to the outside, into a bounded queue; an
//! [`Exporter`] sends what is there about once a second. A collector that is slow or out loses spans, which are counted and
//! told in the log. It must never hold up a request, and a span must never carry more than the names and ids that the log
//! has too: no header, body or token.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::http_client::{Client, ClientError, Limits, Origin};
use super::traceparent;

/// The spans that are told of, and their kinds in OTLP: a server's and a client's.
const TOLD: [(&str, u8); 2] = [("request", 2), ("call", 3)];
/// Spans that wait to be sent; those that come while there are so many are lost.
const WAITING_MAX: usize = 8_192;
/// Spans in one message.
const SENT_AT_ONCE_MAX: usize = 1_024;
const PAUSE: Duration = Duration::from_secs(1);
const PATH: &str = "/v1/traces";
/// From this status on, a request has failed by our own fault.
const FAULT: u64 = 500;
/// OTLP's word for a span that failed.
const STATUS_ERROR: u8 = 2;

/// Listens to spans.
pub struct Recorder {
    queue: mpsc::Sender<Span>,
    lost: Arc<AtomicU64>,
}

/// Sends what was heard.
pub struct Exporter {
    queue: mpsc::Receiver<Span>,
    lost: Arc<AtomicU64>,
    client: Client,
    node: String,
}

/// Both ends, for a collector at this URL, which must be plain HTTP.
pub fn to(url: &str, node: &str) -> Result<(Recorder, Exporter), ClientError> {
    let client = Client::new(Origin::parse(url)?, Limits::default());
    let (put, queue) = mpsc::channel(WAITING_MAX);
    let lost = Arc::new(AtomicU64::new(0));
    Ok((Recorder { queue: put, lost: Arc::clone(&lost) }, Exporter { queue, lost, client, node: node.to_owned() }))
}

struct Span {
    name: &'static str,
    kind: u8,
    began: SystemTime,
    ended: SystemTime,
    /// Ours, by which nothing else is known yet.
    id: u64,
    trace: String,
    parent: String,
    has_failed: bool,
    attributes: Vec<Value>,
}

impl Visit for Span {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "trace" => self.trace = traceparent::trace_of(value),
            "parent" => self.parent = value.to_owned(),
            name => self.attributes.push(json!({ "key": name, "value": { "stringValue": value } })),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.has_failed |= field.name() == "status" && value >= FAULT;
        // 64-bit numbers are texts in OTLP's JSON.
        self.attributes.push(json!({ "key": field.name(), "value": { "intValue": value.to_string() } }));
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let name = attributes.metadata().name();
        let told = TOLD.iter().find(|(told, _)| *told == name);
        let (Some((_, kind)), Some(seen)) = (told, context.span(id)) else { return };
        let now = SystemTime::now();
        let mut span = Span {
            name,
            kind: *kind,
            began: now,
            ended: now,
            id: fastrand::u64(1..),
            trace: String::new(),
            parent: String::new(),
            has_failed: false,
            attributes: Vec::new(),
        };
        attributes.record(&mut span);
        seen.extensions_mut().insert(span);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(seen) = context.span(id)
            && let Some(span) = seen.extensions_mut().get_mut::<Span>()
        {
            values.record(span);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(mut span) = context.span(&id).and_then(|seen| seen.extensions_mut().remove::<Span>()) else { return };
        span.ended = SystemTime::now();
        if self.queue.try_send(span).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Exporter {
    /// Sends for as long as anybody listens. What was heard in the last moment before the end is not sent.
    pub async fn run(mut self) {
        let mut waiting = Vec::with_capacity(SENT_AT_ONCE_MAX);
        let mut is_down = false;
        while self.queue.recv_many(&mut waiting, SENT_AT_ONCE_MAX).await > 0 {
            let body = Bytes::from(payload(&self.node, &waiting).to_string());
            let problem = match self.client.post(PATH, &[], body).await {
                Ok(answer) if answer.status.is_success() => None,
                Ok(answer) => Some(format!("it answers {}", answer.status)),
                Err(error) => Some(error.to_string()),
            };
            if problem.is_some() {
                self.lost.fetch_add(waiting.len() as u64, Ordering::Relaxed);
            }
            let lost = self.lost.load(Ordering::Relaxed);
            match (&problem, is_down) {
                (Some(reason), false) => {
                    tracing::warn!(reason, lost, "the collector does not take spans; they are lost until it does")
                }
                (None, true) => tracing::info!(lost, "the collector takes spans again"),
                _ => {}
            }
            is_down = problem.is_some();
            // A queue that is full again already is not let wait.
            if waiting.len() < SENT_AT_ONCE_MAX || is_down {
                tokio::time::sleep(PAUSE).await;
            }
            waiting.clear();
        }
    }
}

fn payload(node: &str, spans: &[Span]) -> Value {
    let text = |key: &str, value: &str| json!({ "key": key, "value": { "stringValue": value } });
    let nanos = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
    let spans = spans.iter().map(|span| {
        json!({
            "traceId": span.trace,
            "spanId": format!("{:016x}", span.id),
            "parentSpanId": span.parent,
            "name": span.name,
            "kind": span.kind,
            "startTimeUnixNano": nanos(span.began),
            "endTimeUnixNano": nanos(span.ended),
            "attributes": span.attributes,
            "status": if span.has_failed { json!({ "code": STATUS_ERROR }) } else { json!({}) },
        })
    });
    json!({ "resourceSpans": [{
        "resource": { "attributes": [text("service.name", "souk"), text("service.instance.id", node)] },
        "scopeSpans": [{ "scope": { "name": "souk" }, "spans": spans.collect::<Vec<_>>() }],
    }] })
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[tokio::test]
    async fn requests_and_calls_are_told_with_their_trace_and_nothing_else_is() {
        let (recorder, mut exporter) = to("http://127.0.0.1:1", "n1").unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(recorder), || {
            let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
            let span = tracing::info_span!("request", %trace, parent = Some("00f067aa0ba902b7"), route = "/x", status = tracing::field::Empty);
            span.in_scope(|| tracing::info_span!("other").in_scope(|| tracing::info_span!("call", to = "bank", trace = "req-1")));
            span.record("status", 503_u64);
        });
        let mut heard = Vec::new();
        assert_eq!(exporter.queue.recv_many(&mut heard, 10).await, 2);
        let told = payload("n1", &heard);
        let spans = &told["resourceSpans"][0]["scopeSpans"][0]["spans"];
        let (call, request) = (&spans[0], &spans[1]);
        assert_eq!((&call["name"], &call["kind"], &call["parentSpanId"]), (&json!("call"), &json!(3), &json!("")));
        assert_eq!(call["traceId"].as_str().unwrap().len(), 32);
        assert_eq!(request["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((&request["parentSpanId"], &request["status"]["code"]), (&json!("00f067aa0ba902b7"), &json!(2)));
        let attributes = json!([
            { "key": "route", "value": { "stringValue": "/x" } },
            { "key": "status", "value": { "intValue": "503" } },
        ]);
        assert_eq!(request["attributes"], attributes);
    }

    #[test]
    fn a_full_queue_loses_spans_and_holds_up_nobody() {
        let (recorder, exporter) = to("http://127.0.0.1:1", "n1").unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(recorder), || {
            (0..WAITING_MAX + 5).for_each(|_| drop(tracing::info_span!("call", trace = "t")));
        });
        assert_eq!((exporter.queue.len(), exporter.lost.load(Ordering::Relaxed)), (WAITING_MAX, 5));
    }
}
