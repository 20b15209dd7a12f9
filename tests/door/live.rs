//! Live push: WebSocket and SSE, across restarts, with slow and broken clients beside good ones.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::client::Line;
use crate::server::{ADMIN, Cart, Souk, eventually, text};

const PATIENCE: Duration = Duration::from_secs(15);

struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn open(address: SocketAddr, query: &str) -> Socket {
        Socket::on(TcpStream::connect(address).await.unwrap(), address, query, None).await
    }

    async fn on(stream: TcpStream, address: SocketAddr, query: &str, token: Option<&str>) -> Socket {
        let mut request = format!("ws://{address}/ws{query}").into_client_request().unwrap();
        if let Some(token) = token {
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let (socket, answer) = timeout(PATIENCE, tokio_tungstenite::client_async(request, stream)).await.unwrap().unwrap();
        assert!(answer.headers().contains_key("x-request-id"));
        Socket(socket)
    }

    async fn say(&mut self, what: Value) {
        self.0.send(Message::text(what.to_string())).await.unwrap();
    }

    async fn subscribe(&mut self, topic: &str, after: impl Into<Option<u64>>, token: &str) {
        let mut said = json!({ "type": "subscribe", "topic": topic, "token": token });
        if let Some(after) = after.into() {
            said["after"] = json!(after);
        }
        self.say(said).await;
    }

    /// The next message, or the close frame.
    async fn next(&mut self) -> Result<Value, Option<CloseFrame>> {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("nothing is heard") {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => return Err(frame),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    async fn hear(&mut self) -> Value {
        self.next().await.expect("closed")
    }

    /// The code and reason with which the connection is closed, whatever comes before.
    async fn closing(&mut self) -> (u16, String) {
        loop {
            match self.next().await {
                Ok(_) => {}
                Err(frame) => {
                    let frame = frame.expect("closed without a reason");
                    return (frame.code.into(), frame.reason.to_string());
                }
            }
        }
    }

    /// The next event, which must be number `seq` of this topic.
    async fn event(&mut self, topic: &str, seq: u64) -> Value {
        let heard = self.hear().await;
        assert_eq!((&heard["type"], &heard["topic"], &heard["seq"]), (&json!("event"), &json!(topic), &json!(seq)), "{heard}");
        assert_eq!((&heard["event"]["specversion"], &heard["event"]["entityversion"]), (&json!("1.0"), &json!(seq)));
        heard["event"].clone()
    }

    async fn refusal(&mut self) -> String {
        let heard = self.hear().await;
        assert_eq!(heard["type"], "error", "{heard}");
        text(&heard["code"])
    }
}

fn topic(cart: &Cart) -> String {
    format!("cart:{}", cart.id)
}

#[tokio::test]
async fn a_subscriber_hears_all_from_where_it_asks_and_then_live_in_order() {
    let souk = Souk::shared().await;
    let sku = souk.sku(100, 1_000).await;
    let cart = souk.cart_with(&sku, 1).await;
    let mut all = Socket::open(souk.address(), "").await;
    all.subscribe(&topic(&cart), 0, &cart.token).await;
    let subscribed = all.hear().await;
    let now = subscribed["seq"].as_u64().unwrap();
    assert_eq!(subscribed, json!({ "type": "subscribed", "topic": topic(&cart), "seq": now, "after": 0 }));
    let mut seen = vec![text(&all.event(&topic(&cart), 1).await["type"])];
    for seq in 2..=now {
        seen.push(text(&all.event(&topic(&cart), seq).await["type"]));
    }
    assert_eq!((seen[0].as_str(), seen.last().unwrap().as_str()), ("cart.created", "cart.item.added"));

    // Another one from the present on, named by its header; a third from the middle, named by its query.
    let stream = TcpStream::connect(souk.address()).await.unwrap();
    let mut new = Socket::on(stream, souk.address(), "", Some(&cart.token)).await;
    new.say(json!({ "type": "subscribe", "topic": topic(&cart) })).await;
    assert_eq!(new.hear().await["after"], now);
    let mut middle = Socket::open(souk.address(), &format!("?access_token={}", cart.token)).await;
    middle.say(json!({ "type": "subscribe", "topic": topic(&cart), "after": 1 })).await;
    assert_eq!(middle.hear().await["after"], 1);
    let order = souk.check_out(&cart, "tok_ok").await.expect(201);
    let last = souk.get(&cart.path("")).bearer(&cart.token).send().await.expect(200).etag();
    let last: u64 = last.trim_matches('"').parse().unwrap();
    assert!(last > now);
    for (socket, from) in [(&mut all, now + 1), (&mut new, now + 1), (&mut middle, 2)] {
        for seq in from..=last {
            let event = socket.event(&topic(&cart), seq).await;
            assert!(!event.to_string().contains(&cart.token));
        }
    }
    let order_topic = format!("order:{}", text(&order.json()["id"]));
    all.subscribe(&order_topic, 0, &cart.token).await;
    let mut types = Vec::new();
    for seq in 1..=all.hear().await["seq"].as_u64().unwrap() {
        types.push(text(&all.event(&order_topic, seq).await["type"]));
    }
    assert!(types.contains(&"order.paid".to_owned()), "{types:?}");
    all.say(json!({ "type": "unsubscribe", "topic": order_topic })).await;
    assert_eq!(all.hear().await, json!({ "type": "unsubscribed", "topic": order_topic }));
    all.say(json!({ "type": "ping" })).await;
    assert_eq!(all.hear().await, json!({ "type": "pong" }));
    all.0.close(None).await.unwrap();
    assert!(all.next().await.is_err());
}

#[tokio::test]
async fn a_topic_is_heard_only_by_those_who_may_see_it() {
    let souk = Souk::shared().await;
    let sku = souk.sku(100, 1_000).await;
    let (mine, yours) = (souk.cart_with(&sku, 1).await, souk.cart().await);
    let order = format!("order:{}", text(&souk.check_out(&mine, "tok_ok").await.expect(201).json()["id"]));
    let mut socket = Socket::open(souk.address(), "").await;
    for token in [yours.token.as_str(), "nonsense", ""] {
        for topic in [topic(&mine), order.clone()] {
            socket.subscribe(&topic, 0, token).await;
            assert_eq!(socket.refusal().await, "not-found", "{topic}");
        }
    }
    socket.subscribe(&topic(&mine), 0, &ADMIN).await;
    assert_eq!(socket.refusal().await, "not-found", "a cart is its holder's alone");
    socket.subscribe("order:ord_01ARZ3NDEKTSV4RRFFQ69G5FAV", 0, &ADMIN).await;
    assert_eq!(socket.refusal().await, "not-found");
    socket.subscribe("inventory:NO-SUCH-SKU", 0, "").await;
    assert_eq!(socket.refusal().await, "not-found");
    for wrong in ["", "order", "order:x", "user:1", "flash_sale:x", "inventory: padded"] {
        socket.subscribe(wrong, 0, "").await;
        assert_eq!(socket.refusal().await, "unknown-topic", "{wrong}");
    }
    socket.subscribe(&order, 1_000, &ADMIN).await;
    assert_eq!(socket.refusal().await, "invalid-after");
    socket.subscribe(&order, u64::MAX, &ADMIN).await;
    assert_eq!(socket.refusal().await, "invalid-after");
    socket.subscribe(&order, None, &ADMIN).await;
    assert_eq!(socket.hear().await["type"], "subscribed");
    socket.subscribe(&order, None, &ADMIN).await;
    assert_eq!(socket.refusal().await, "already-subscribed");
    socket.say(json!({ "type": "unsubscribe", "topic": topic(&mine) })).await;
    assert_eq!(socket.refusal().await, "not-found");
    for wrong in
        ["", "nonsense", "[]", "{\"type\":\"shout\"}", "{\"type\":\"ping\",\"x\":1}", "{\"type\":\"subscribe\",\"topic\":1}"]
    {
        socket.0.send(Message::text(wrong)).await.unwrap();
        assert_eq!(socket.refusal().await, "invalid-message", "{wrong}");
    }
    // How much of a sku is left everybody may know, and not who has the rest.
    let inventory = format!("inventory:{sku}");
    let mut stranger = Socket::open(souk.address(), "").await;
    stranger.say(json!({ "type": "subscribe", "topic": inventory, "after": 0 })).await;
    for seq in 1..=stranger.hear().await["seq"].as_u64().unwrap() {
        let data = stranger.event(&inventory, seq).await["data"].clone();
        assert!(data.as_object().unwrap().keys().all(|key| key == "available"), "{data}");
    }
}

#[tokio::test]
async fn a_client_that_comes_back_after_a_restart_misses_nothing_and_hears_nothing_twice() {
    let mut souk = Souk::start(&[]).await;
    let sku = souk.sku(100, 10_000).await;
    let topic = format!("inventory:{sku}");
    let mut heard = 0_u64;
    for round in 0..4 {
        let mut socket = Socket::open(souk.address(), "").await;
        socket.subscribe(&topic, heard, "").await;
        assert_eq!(socket.hear().await["after"], heard);
        let written = async {
            for _ in 0..20 {
                souk.adjust(&sku, 1).await.expect(200);
            }
            let tag = souk.get(&format!("/api/inventory/{sku}")).send().await.expect(200).etag();
            tag.trim_matches('"').parse::<u64>().unwrap()
        };
        // The client hears some of it live, at most, before the server goes.
        let (last, ()) = tokio::join!(written, async {
            for _ in 0..8 {
                heard += 1;
                socket.event(&topic, heard).await;
            }
        });
        if round % 2 == 0 {
            souk.kill();
        } else {
            souk.ask_to_end();
            let (code, reason) = loop {
                match socket.next().await {
                    Ok(event) => {
                        heard += 1;
                        assert_eq!(event["seq"], heard);
                    }
                    Err(frame) => break frame.map(|frame| (u16::from(frame.code), frame.reason.to_string())).unwrap(),
                }
            };
            assert_eq!((code, reason.as_str()), (1001, "this node is shutting down; connect again"));
            souk.ended().await;
        }
        souk.start_again().await;
        let mut socket = Socket::open(souk.address(), "").await;
        socket.subscribe(&topic, heard, "").await;
        assert_eq!(socket.hear().await["seq"], last, "round {round}");
        while heard < last {
            heard += 1;
            socket.event(&topic, heard).await;
        }
        souk.adjust(&sku, 1).await.expect(200);
        heard += 1;
        socket.event(&topic, heard).await;
    }
}

/// A connection whose kernel buffers hold next to nothing, so that not to read is felt soon.
async fn narrow(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2_048).unwrap();
    socket.connect(address).await.unwrap()
}

/// Changes the stock this often, over some connections at once.
async fn write_many(souk: &Souk, sku: &str, count: usize) {
    let writers = (0..4).map(|_| async {
        let mut line = souk.connect().await;
        for _ in 0..count / 4 {
            let body = json!({ "delta": 1, "reason": "r" });
            let call = souk.post(&format!("/api/inventory/{sku}/adjustments"), body).bearer(&ADMIN);
            call.send_on(&mut line).await.expect(200);
        }
    });
    futures_util::future::join_all(writers).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_nobody_and_is_let_go_with_a_reason() {
    const EVENTS: usize = 1_600;
    let souk = Souk::start(&[]).await;
    let sku = souk.sku(100, 1).await;
    let topic = format!("inventory:{sku}");
    let mut good = Socket::open(souk.address(), "").await;
    good.subscribe(&topic, None, "").await;
    let from = good.hear().await["seq"].as_u64().unwrap();
    // One that never reads, and one that does after a while.
    let mut stuck = Socket::on(narrow(souk.address()).await, souk.address(), "", None).await;
    stuck.subscribe(&topic, None, "").await;
    assert_eq!(stuck.hear().await["seq"], from);
    let mut late = Socket::on(narrow(souk.address()).await, souk.address(), "", None).await;
    late.subscribe(&topic, None, "").await;
    assert_eq!(late.hear().await["seq"], from);

    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    let hears = async {
        for seq in from + 1..=from + EVENTS as u64 {
            let waited = Instant::now();
            good.event(&topic, seq).await;
            slowest = slowest.max(waited.elapsed());
        }
        begun.elapsed()
    };
    let (wrote, heard) = tokio::join!(async { (write_many(&souk, &sku, EVENTS).await, begun.elapsed()).1 }, hears);
    println!("{EVENTS} events written in {wrote:?}, heard in {heard:?}, longest silence {slowest:?}");
    assert!(heard < wrote + Duration::from_secs(2), "the good client was held up");

    // The late one gets the newest state in place of what it missed, and all that follows.
    let mut seq = from;
    let mut states = 0;
    while seq < from + EVENTS as u64 {
        let message = late.hear().await;
        let now = message["seq"].as_u64().unwrap();
        match message["type"].as_str().unwrap() {
            "event" => assert_eq!(now, seq + 1, "a gap without a state"),
            "state" => {
                assert!(now > seq);
                assert_eq!(message["state"]["sku"], sku);
                states += 1;
            }
            other => panic!("{other}"),
        }
        seq = now;
    }
    assert!(states > 0, "the late client was never behind: the test did not fill its buffers");

    let sessions = async || souk.get("/api/cluster").bearer(&ADMIN).send().await.expect(200).json()["live_sessions"].as_u64();
    eventually(Duration::from_secs(20), async || (sessions().await == Some(2)).then_some(())).await;
    assert!(begun.elapsed() < Duration::from_secs(40));
    let (code, reason) = stuck.closing().await;
    assert_eq!((code, reason.as_str()), (1008, "too slow: nothing was taken for 10 seconds"));
    souk.adjust(&sku, 1).await.expect(200);
    good.event(&topic, from + EVENTS as u64 + 1).await;
    late.event(&topic, from + EVENTS as u64 + 1).await;
}

/// A frame as a client sends it: masked with zeros, so that the payload stands as it is.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// A WebSocket by hand.
async fn raw(souk: &Souk) -> Line {
    let call = souk.get("/ws").header("connection", "Upgrade").header("upgrade", "websocket");
    let call = call.header("sec-websocket-version", "13").header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let mut line = souk.connect().await;
    call.send_on(&mut line).await.expect(101);
    line
}

#[tokio::test]
async fn a_frame_that_breaks_the_protocol_closes_its_connection_with_the_right_code() {
    let souk = Souk::shared().await;
    let unmasked = [&[0x81, 2][..], b"{}"].concat();
    for (what, bytes, code) in [
        ("unmasked", unmasked, 1002_u16),
        ("an unknown opcode", frame(0x83, b"x"), 1002),
        ("a reserved bit", frame(0xC1, b"x"), 1002),
        ("a fragmented ping", frame(0x09, b"x"), 1002),
        ("a long ping", frame(0x89, &[b'x'; 126]), 1002),
        ("a continuation of nothing", frame(0x80, b"x"), 1002),
        ("binary", frame(0x82, b"x"), 1003),
        ("text that is not UTF-8", frame(0x81, b"\xff\xfe"), 1007),
        ("a long message", frame(0x81, &[b'x'; 20_000]), 1009),
        ("a frame of 2^62 bytes", [&[0x81, 0xFF, 0x40, 0, 0, 0, 0, 0, 0, 0][..], &[0; 4]].concat(), 1009),
        ("a long message in pieces", [frame(0x01, &[b'x'; 9_000]), frame(0x80, &[b'x'; 9_000])].concat(), 1009),
    ] {
        let mut line = raw(&souk).await;
        line.write(&bytes).await;
        let said = line.rest(PATIENCE).await;
        assert!(said.len() >= 4 && said[0] == 0x88, "{what}: {said:?}");
        assert_eq!(u16::from_be_bytes([said[2], said[3]]), code, "{what}");
        assert!(said.len() > 4, "{what}: a close frame says why");
    }
    // A ping is answered with its own words; a message in pieces is one message; half a frame and gone is no harm.
    let mut line = raw(&souk).await;
    line.write(&frame(0x89, b"are you there")).await;
    line.write(&[frame(0x01, br#"{"type":"#), frame(0x89, b""), frame(0x80, br#""ping"}"#)].concat()).await;
    let pong = [&[0x8A, 13][..], b"are you there"].concat();
    let answer = [&[0x81, 15][..], br#"{"type":"pong"}"#].concat();
    let said = line.bytes(pong.len() + 2 + answer.len()).await;
    for part in [pong, answer, vec![0x8A, 0]] {
        assert!(said.windows(part.len()).any(|window| window == part), "{part:?} in {said:?}");
    }
    line.write(&frame(0x88, &[0x03, 0xE8])).await;
    assert_eq!(line.rest(PATIENCE).await, [0x88, 2, 0x03, 0xE8]);
    let mut line = raw(&souk).await;
    line.write(&[0x81, 0xFE, 0x10]).await;
    drop(line);
    drop(raw(&souk).await);

    let mut flood = Socket::open(souk.address(), "").await;
    for _ in 0..200 {
        match flood.0.feed(Message::text(r#"{"type":"ping"}"#)).await {
            Ok(()) | Err(Error::Io(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let _ = flood.0.flush().await;
    assert_eq!(flood.closing().await, (1008, "too many messages".to_owned()));
}

#[tokio::test]
async fn a_handshake_that_is_none_is_told_what_is_missing() {
    let souk = Souk::shared().await;
    souk.get("/ws").send().await.problem(400, "not-a-websocket");
    let good = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for broken in 0..good.len() {
        let call = good
            .iter()
            .enumerate()
            .fold(souk.get("/ws"), |call, (index, (name, value))| call.header(name, if index == broken { "8" } else { value }));
        let answer = call.send().await;
        assert!(answer.json()["detail"].is_string());
        answer.problem(400, "not-a-websocket");
    }
    let call = good.iter().fold(souk.call("HEAD", "/ws"), |call, (name, value)| call.header(name, value));
    assert_eq!(call.send().await.status, 400, "only GET opens a WebSocket");
}

/// Reads events from `events` until number `last`, each exactly once, and returns their types.
async fn read_events(line: &mut Line, pending: &mut String, seen: &mut u64, last: u64) -> Vec<String> {
    let mut types = Vec::new();
    while *seen < last {
        let event = line.event(pending).await.expect("the stream ended");
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
        let Some(id) = field("id: ") else { continue };
        *seen += 1;
        assert_eq!(id, seen.to_string(), "{event}");
        let data: Value = serde_json::from_str(&field("data: ").unwrap()).unwrap();
        assert_eq!(data["entityversion"], *seen);
        assert_eq!(data["type"], field("event: ").unwrap());
        types.push(text(&data["type"]));
    }
    types
}

#[tokio::test]
async fn an_event_stream_goes_on_from_the_last_event_id_also_after_a_restart() {
    let mut souk = Souk::start(&[]).await;
    let sku = souk.sku(100, 10).await;
    let cart = souk.cart_with(&sku, 1).await;
    let order = text(&souk.check_out(&cart, "tok_ok").await.expect(201).json()["id"]);
    let path = format!("/api/orders/{order}/events");
    let version = async |souk: &Souk| {
        let tag = souk.get(&format!("/api/orders/{order}")).bearer(&cart.token).send().await.expect(200).etag();
        tag.trim_matches('"').parse::<u64>().unwrap()
    };
    let (mut seen, mut pending) = (0, String::new());
    let mut line = souk.connect().await;
    line.write(&souk.get(&format!("{path}?access_token={}", cart.token)).bytes()).await;
    assert!(line.head().await.starts_with("HTTP/1.1 200"));
    let types = read_events(&mut line, &mut pending, &mut seen, version(&souk).await).await;
    assert_eq!((types[0].as_str(), types.last().unwrap().as_str()), ("order.created", "order.paid"));

    // Live.
    let ship = json!({ "carrier": "Caravan" });
    souk.post(&format!("/api/orders/{order}/shipments"), ship).bearer(&ADMIN).send().await.expect(201);
    let last = seen + 1;
    assert_eq!(read_events(&mut line, &mut pending, &mut seen, last).await, ["order.shipped"]);

    for (ending, from) in [("kill", 3_u64), ("term", last - 1)] {
        if ending == "kill" {
            souk.kill();
        } else {
            souk.ask_to_end();
            while line.event(&mut pending).await.is_some() {}
            souk.ended().await;
        }
        souk.start_again().await;
        line = souk.connect().await;
        pending.clear();
        line.write(&souk.get(&path).bearer(&cart.token).header("last-event-id", &from.to_string()).bytes()).await;
        assert!(line.head().await.starts_with("HTTP/1.1 200"));
        seen = from;
        let types = read_events(&mut line, &mut pending, &mut seen, last).await;
        assert_eq!((types.len() as u64, types.last().unwrap().as_str()), (last - from, "order.shipped"));
    }
    for wrong in ["x", "-1", "1.5"] {
        let answer = souk.get(&path).bearer(&cart.token).header("last-event-id", wrong).send().await;
        answer.problem(400, "invalid-header");
    }
}
