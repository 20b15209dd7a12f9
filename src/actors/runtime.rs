//! STUB for the door's branch only: the lead's runtime replaces this file at the merge.
#![allow(clippy::unimplemented, unused_variables, missing_docs, clippy::unwrap_used, clippy::type_complexity)]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::ask::{Answered, AskError, Caller, Failure};
use crate::domain::{Context, Decision, Entity, Timestamp, cart, inventory, order, product};
use crate::persistence::{Journal, Version};

#[derive(Clone)]
pub struct Runtime(Arc<dyn Journal>);

#[derive(Debug, Clone, Serialize)]
pub struct Census {
    pub residents: BTreeMap<&'static str, usize>,
    pub set_aside: Vec<SetAside>,
    pub waiting: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct SetAside {
    pub kind: String,
    pub id: String,
    pub reason: String,
    pub since: Timestamp,
}

impl Runtime {
    pub async fn ask<E: Entity>(
        &self,
        id: &str,
        command: E::Command,
        caller: Caller,
    ) -> Result<Answered<E::Reply>, AskError<E::Rejection>> {
        unimplemented!()
    }

    /// Looks at the newest durable state. An entity that was never written shows its Default state at version 0.
    pub async fn view<E: Entity, T: Send + 'static>(
        &self,
        id: &str,
        look: impl FnOnce(&E::State, Version) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let key = crate::persistence::EntityKey::new(E::KIND, id);
        let batches = self.0.read(&key, 1, 100_000).await.unwrap();
        let (mut state, mut version) = (E::State::default(), 0);
        for batch in &batches {
            for record in crate::persistence::record::Payload::parse(&batch.payload).unwrap().events {
                E::evolve(&mut state, &record.event::<E::Event>().unwrap());
                version = record.version;
            }
        }
        Ok(look(&state, version))
    }

    pub fn census(&self) -> Census {
        unimplemented!()
    }

    pub fn release(&self, kind: &str, id: &str) -> bool {
        unimplemented!()
    }

    pub fn journal(&self) -> &Arc<dyn Journal> {
        &self.0
    }

    pub fn now(&self) -> Timestamp {
        unimplemented!()
    }
}

macro_rules! stub {
    ($entity:ty, $module:ident, $kind:literal, $evolve:expr) => {
        impl Entity for $entity {
            const KIND: &'static str = $kind;
            const SNAPSHOT_FORMAT: u32 = 1;
            type State = $module::State;
            type Command = $module::Command;
            type Event = $module::Event;
            type Reply = $module::Reply;
            type Rejection = $module::Rejection;

            fn decide(_: &Self::State, _: Self::Command, _: &Context<'_>) -> Result<Decision<Self>, Self::Rejection> {
                unimplemented!()
            }

            fn evolve(state: &mut Self::State, event: &Self::Event) {
                $evolve(state, event)
            }
        }
    };
}

stub!(cart::Cart, cart, "cart", |_, _| {});
stub!(order::Order, order, "order", |state: &mut order::State, event: &order::Event| if let order::Event::Created {
    draft, ..
} = event
{
    state.draft = Some(draft.clone());
});
stub!(inventory::Inventory, inventory, "inventory", |_, _| {});
stub!(product::Product, product, "product", |_, _| {});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::credential::sha256_hex;
    use crate::actors::live::Live;
    use crate::domain::{CommandId, Currency, Money, payment};
    use crate::http::{Config, Door};
    use crate::metrics::Metrics;
    use crate::persistence::journal::Done;
    use crate::persistence::record::{Cause, PayloadWriter};
    use crate::persistence::{Append, AppendError, Batch, Committed, EntityKey, Position, ReadError, Wake};
    use crate::read_models::ReadModels;
    use futures_util::future::BoxFuture;
    use futures_util::stream::{self, BoxStream};
    use futures_util::{SinkExt, StreamExt};
    use std::sync::Mutex;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::{Notify, oneshot};
    use tokio_tungstenite::tungstenite::Message;

    #[derive(Default)]
    struct Double(Arc<(Mutex<Vec<Committed>>, Notify)>);

    impl Journal for Double {
        fn append(&self, append: Append, done: Done) {
            let mut all = self.0.0.lock().unwrap();
            let position = Position(all.len() as u64 + 1);
            let batch = Batch { first: append.expected + 1, count: append.count, position, payload: append.payload };
            all.push(Committed { entity: append.entity, batch });
            drop(all);
            self.0.1.notify_waiters();
            done(Ok::<_, AppendError>(position));
        }
        fn read<'a>(
            &'a self,
            entity: &'a EntityKey,
            from: Version,
            limit: usize,
        ) -> BoxFuture<'a, Result<Vec<Batch>, ReadError>> {
            let all = self.0.0.lock().unwrap();
            let found = all
                .iter()
                .filter(|c| c.entity == *entity && c.batch.last() >= from)
                .take(limit)
                .map(|c| c.batch.clone())
                .collect();
            Box::pin(async move { Ok(found) })
        }
        fn follow(&self, after: Position) -> BoxStream<'static, Result<Committed, ReadError>> {
            let shared = self.0.clone();
            stream::unfold(after.0 as usize, move |at| {
                let shared = shared.clone();
                async move {
                    loop {
                        let wait = shared.1.notified();
                        if let Some(next) = shared.0.lock().unwrap().get(at).cloned() {
                            return Some((Ok(next), at + 1));
                        }
                        let _ = tokio::time::timeout(Duration::from_millis(5), wait).await;
                    }
                }
            })
            .boxed()
        }
        fn highest(&self) -> Position {
            Position(self.0.0.lock().unwrap().len() as u64)
        }
        fn agenda<'a>(&'a self, _: Option<&'a EntityKey>, _: usize) -> BoxFuture<'a, Result<Vec<(EntityKey, Wake)>, ReadError>> {
            Box::pin(async { Ok(Vec::new()) })
        }
    }

    fn write<E: Serialize>(journal: &Double, key: &EntityKey, version: Version, event: &E) {
        let command = CommandId::from("c");
        let mut writer = PayloadWriter::default();
        let cause = Cause { command: &command, correlation: "r", asker: "a", time: Timestamp::default() };
        writer.event(key, version, cause, event).unwrap();
        let payload = writer.finish(Wake::Never).unwrap().into();
        journal.append(
            Append { entity: key.clone(), expected: version - 1, count: 1, payload, wake: Wake::Never },
            Box::new(|_| {}),
        );
    }

    fn held(version: Version) -> inventory::Event {
        inventory::Event::HoldReleased { cart: "x".repeat(50), available: version as u32 }
    }

    async fn serve(config: Config) -> (Arc<Double>, std::net::SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        let journal = Arc::new(Double::default());
        let runtime = Runtime(journal.clone());
        let live = Live::start(journal.clone());
        let door = Door::new(runtime, Arc::new(ReadModels::stub()), live, Metrics::default(), config).unwrap();
        let listener = crate::http::server::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(crate::http::server::serve_on(listener, door, async { drop(stopped.await) }));
        (journal, address, stop, task)
    }

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn smoke_http() {
        let (_, address, stop, task) = serve(Config { connections_max: 3, ..Config::default() }).await;
        let close = "Host: x\r\nConnection: close\r\n";
        for (request, parts) in [
            (format!("GET /health/ready HTTP/1.1\r\n{close}\r\n"), vec!["200 OK", "x-request-id", "{\"status\":\"ready\"}"]),
            (format!("HEAD /health/ready HTTP/1.1\r\n{close}\r\n"), vec!["200 OK", "content-length: 18"]),
            (format!("GET /nope HTTP/1.1\r\nX-Request-Id: me\r\n{close}\r\n"), vec!["404", "problem+json", "x-request-id: me"]),
            (format!("PUT /api/carts HTTP/1.1\r\nContent-Length: 2\r\n{close}\r\n{{}}"), vec!["405", "allow: POST, OPTIONS"]),
            (format!("OPTIONS /api/products HTTP/1.1\r\n{close}\r\n"), vec!["204", "allow: GET, HEAD, POST, OPTIONS"]),
            (
                format!("POST /api/products HTTP/1.1\r\nContent-Length: 2\r\n{close}\r\n{{}}"),
                vec!["401", "www-authenticate: Bearer"],
            ),
            (
                format!("POST /api/orders HTTP/1.1\r\nContent-Length: 3\r\n{close}\r\n{{x}}"),
                vec!["400", "invalid-json", "\"column\":2"],
            ),
            (
                format!("POST /api/orders HTTP/1.1\r\nContent-Length: 2000000\r\n{close}\r\n{}", "x".repeat(2_000_000)),
                vec!["413", "too-large"],
            ),
            (format!("POST /api/orders HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2000000\r\n{close}\r\n"), vec!["413"]),
            (
                format!("POST /api/orders HTTP/1.1\r\nIdempotency-Key: \t\r\nContent-Length: 2\r\n{close}\r\n{{}}"),
                vec!["400", "invalid-header"],
            ),
            (format!("GET /api/inventory/%zz HTTP/1.1\r\n{close}\r\n"), vec!["400", "invalid-path"]),
            (format!("GET /api/inventory/a%2Fb HTTP/1.1\r\n{close}\r\n"), vec!["404"]),
            (format!("GET /api/products?limit=0 HTTP/1.1\r\n{close}\r\n"), vec!["400", "invalid-parameter"]),
            (format!("GET /api/orders/ord_01ARZ3NDEKTSV4RRFFQ69G5FAV HTTP/1.1\r\n{close}\r\n"), vec!["404"]),
            (format!("GET /ws HTTP/1.1\r\n{close}\r\n"), vec!["400", "not-a-websocket"]),
            (
                format!("GET /metrics HTTP/1.1\r\n{close}\r\n"),
                vec!["200", "souk_http_requests_total{route=\"/health/ready\",method=\"GET\",status=\"200\"} 1"],
            ),
        ] {
            let answer = ask(address, &request).await;
            for part in parts {
                assert!(answer.contains(part), "{part} not in {answer}");
            }
            if request.starts_with("HEAD") {
                assert!(answer.ends_with("\r\n\r\n"), "{answer}");
            }
        }
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(ask(address, "").await.contains("too-many-connections"));
        stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(3), task).await.expect("drains at once").unwrap();
    }

    type Client = tokio_tungstenite::WebSocketStream<TcpStream>;

    async fn connect(address: std::net::SocketAddr) -> Client {
        let stream = TcpStream::connect(address).await.unwrap();
        tokio_tungstenite::client_async(format!("ws://{address}/ws"), stream).await.unwrap().0
    }

    async fn hear(client: &mut Client) -> serde_json::Value {
        loop {
            match tokio::time::timeout(Duration::from_secs(30), client.next()).await.expect("in time").unwrap().unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Close(frame) => {
                    return serde_json::json!({"type": "close", "code": u16::from(frame.clone().unwrap().code), "reason": frame.unwrap().reason.as_str()});
                }
                _ => {}
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn smoke_ws() {
        let (journal, address, stop, task) = serve(Config::default()).await;
        let key = EntityKey::new("inventory", "a b");
        for version in 1..=200 {
            write(&journal, &key, version, &held(version));
        }
        let mut client = connect(address).await;
        for (said, code) in [
            ("{}", "invalid-message"),
            (r#"{"type":"subscribe","topic":"shop:x"}"#, "unknown-topic"),
            (r#"{"type":"subscribe","topic":"inventory:none"}"#, "not-found"),
            (r#"{"type":"subscribe","topic":"order:ord_01ARZ3NDEKTSV4RRFFQ69G5FAV"}"#, "not-found"),
            (r#"{"type":"subscribe","topic":"inventory:a b","after":201}"#, "invalid-after"),
        ] {
            client.send(Message::text(said)).await.unwrap();
            assert_eq!(hear(&mut client).await["code"], code);
        }
        client.send(Message::text(r#"{"type":"subscribe","topic":"inventory:a b","after":3}"#)).await.unwrap();
        assert_eq!(hear(&mut client).await, serde_json::json!({"type":"subscribed","topic":"inventory:a b","seq":200,"after":3}));
        let writer = {
            let (journal, key) = (journal.clone(), key.clone());
            tokio::spawn(async move {
                for version in 201..=3000 {
                    write(&journal, &key, version, &held(version));
                    if version % 50 == 0 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            })
        };
        let (mut seq, mut states) = (3, 0);
        while seq < 3000 {
            let heard = hear(&mut client).await;
            let next = heard["seq"].as_u64().unwrap();
            match heard["type"].as_str().unwrap() {
                "event" => {
                    assert_eq!(next, seq + 1);
                    assert_eq!(heard["event"]["data"]["available"], next);
                }
                "state" => {
                    assert!(next > seq);
                    states += 1;
                }
                other => panic!("{other}: {heard}"),
            }
            seq = next;
        }
        writer.await.unwrap();
        println!("states: {states}");
        client.send(Message::text(r#"{"type":"unsubscribe","topic":"inventory:a b"}"#)).await.unwrap();
        assert_eq!(hear(&mut client).await["type"], "unsubscribed");
        write(&journal, &key, 3001, &held(3001));
        client.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
        assert_eq!(hear(&mut client).await["type"], "pong");

        // A client that reads nothing is let go with a reason.
        let mut slow = connect(address).await;
        slow.send(Message::text(r#"{"type":"subscribe","topic":"inventory:a b"}"#)).await.unwrap();
        let began = std::time::Instant::now();
        for version in 3002..=60_000 {
            write(&journal, &key, version, &held(version));
            if version % 200 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        println!("wrote in {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_secs(14)).await;
        let mut last = serde_json::Value::Null;
        let mut n = 0;
        while let Ok(Some(Ok(message))) = tokio::time::timeout(Duration::from_secs(5), slow.next()).await {
            n += 1;
            if let Message::Text(t) = &message {
                last = serde_json::from_str(t).unwrap();
            }
            if let Message::Close(frame) = message {
                println!("closed after {n}: {frame:?}; last {last}");
                break;
            }
        }
        println!("slow ended, {n} messages, last {}", last["seq"]);

        stop.send(()).unwrap();
        assert_eq!(hear(&mut client).await["code"], 1001);
        drop(client);
        drop(slow);
        tokio::time::timeout(Duration::from_secs(5), task).await.expect("drains").unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn smoke_sse() {
        let (journal, address, stop, task) = serve(Config::default()).await;
        let id = "ord_01ARZ3NDEKTSV4RRFFQ69G5FAV";
        let key = EntityKey::new("order", id);
        let draft = order::Draft {
            owner: order::Owner::Guest { token_sha256: sha256_hex(b"tok") },
            cart: None,
            lines: vec![],
            total: Money::new(1, Currency::EUR),
            email: None,
            shipping_address: order::Address {
                name: "n".into(),
                line1: "l".into(),
                line2: None,
                city: "c".into(),
                postal_code: "p".into(),
                country: "DE".into(),
            },
            payment: payment::Method { provider: "sandbox".into(), token: "secret".into() },
        };
        write(
            &journal,
            &key,
            1,
            &order::Event::Created { command: CommandId::from("c"), draft, placed_at: Timestamp::default() },
        );
        write(&journal, &key, 2, &order::Event::PaymentAuthorized);
        let get = |path: &str, more: &str| format!("GET /api/orders/{id}{path} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
        let close = "Connection: close\r\nAuthorization: Bearer tok\r\n";
        assert!(ask(address, &get("", "Connection: close\r\nAuthorization: Bearer no\r\n")).await.contains("404"));
        let order = ask(address, &get("", close)).await;
        assert!(order.contains("200 OK") && order.contains("etag: \"2\"") && !order.contains("secret"), "{order}");
        assert!(ask(address, &get("", &format!("{close}If-None-Match: \"2\"\r\n"))).await.contains("304"));
        let history = ask(address, &get("/history?limit=1", close)).await;
        assert!(history.contains("\"next_cursor\":\"1\"") && history.contains("order.created"), "{history}");
        assert!(ask(address, &get("/history?limit=1&cursor=1", close)).await.contains("\"next_cursor\":null"));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(get("/events?access_token=tok", "Last-Event-ID: 1\r\n").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        write(&journal, &key, 3, &order::Event::PaymentCaptured);
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.send(()).unwrap();
        let mut text = String::new();
        tokio::time::timeout(Duration::from_secs(3), stream.read_to_string(&mut text))
            .await
            .expect("ends with the drain")
            .unwrap();
        for part in ["text/event-stream", "retry: 2000", "id: 2\nevent: order.payment.authorized\ndata: {", "id: 3\n"] {
            assert!(text.contains(part), "{part} not in {text}");
        }
        assert!(!text.contains("id: 1\n"));
        tokio::time::timeout(Duration::from_secs(3), task).await.expect("drains").unwrap();
    }
}
