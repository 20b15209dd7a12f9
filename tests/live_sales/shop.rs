//! A node with its door in this process, sales of its own making, and those who watch them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use souk::actors::credential::{Credential, sha256_hex};
use souk::actors::live::Live;
use souk::actors::{self, Caller, Runtime, shown};
use souk::domain::flash_sale::{self, Customer, Own, Terms};
use souk::domain::order::Owner;
use souk::domain::{CommandId, Currency, FlashSale, Inventory, Money, Timestamp, inventory};
use souk::http::{self, Door};
use souk::metrics::Metrics;
use souk::node::{DataFolder, Node};
use souk::persistence::{Options, Version};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use ulid::Ulid;

pub const PATIENCE: Duration = Duration::from_secs(30);
pub const MINUTE_MS: i64 = 60_000;
const LOOK_AGAIN: Duration = Duration::from_millis(10);

pub struct Shop {
    pub runtime: Runtime,
    pub address: SocketAddr,
    _node: Node,
    _folder: TempDir,
}

/// Awaits a condition, with a deadline.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "never came about: {what}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// A guest's customer, by the token that they bear.
pub fn customer(token: &str) -> Customer {
    Customer::of(&Owner::Guest { token_sha256: sha256_hex(token.as_bytes()) }).unwrap()
}

pub fn guest(token: &str) -> Credential {
    Credential::guest(token)
}

pub fn caller() -> Caller {
    let id = Ulid::new().to_string();
    Caller::new(CommandId(id.clone()), "tester", id)
}

pub fn terms(sku: &str, quantity: u32, now: Timestamp) -> Terms {
    Terms {
        sku: sku.to_owned(),
        product: "prod_01M7XTJ72XFBZWPK91BJAAFXTS".to_owned(),
        shop: None,
        title: "Lantern".to_owned(),
        price: Money::new(900, Currency::EUR),
        quantity,
        per_customer_limit: 1,
        per_address_limit: None,
        starts_at: now.plus_ms(-1),
        ends_at: now.plus_ms(60 * MINUTE_MS),
        claim_ms: 5 * MINUTE_MS,
        admission_ms: MINUTE_MS,
        grace_ms: 2 * MINUTE_MS,
        guests: true,
    }
}

/// Makes a sale of so many units that has begun, and gives its id.
pub async fn sale(runtime: &Runtime, quantity: u32, change: impl FnOnce(&mut Terms)) -> String {
    let (id, sku) = (format!("fs_{}", Ulid::new()), format!("SKU-{}", Ulid::new()));
    let product = "prod_01M7XTJ72XFBZWPK91BJAAFXTS".to_owned();
    let register = inventory::Command::Register { product, on_hand: quantity };
    runtime.ask::<Inventory>(&sku, register, caller()).await.unwrap();
    let mut terms = terms(&sku, quantity, runtime.now());
    change(&mut terms);
    ask(runtime, &id, flash_sale::Command::Create { terms: Box::new(terms) }).await;
    ask(runtime, &id, flash_sale::Command::Approve).await;
    // It begins with the first look at the latest.
    picture(runtime, &id).await;
    id
}

pub async fn ask(runtime: &Runtime, sale: &str, command: flash_sale::Command) -> flash_sale::Reply {
    runtime.ask::<FlashSale>(sale, command, caller()).await.unwrap().reply
}

pub async fn claim(runtime: &Runtime, sale: &str, token: &str) -> flash_sale::Reply {
    ask(runtime, sale, flash_sale::Command::Claim { customer: customer(token), quantity: 1, address: 0 }).await
}

pub async fn own(runtime: &Runtime, sale: &str, token: &str) -> Own {
    match ask(runtime, sale, flash_sale::Command::Look { customer: Some(customer(token)) }).await {
        flash_sale::Reply::Shown(shown) => shown.own.unwrap(),
        other => panic!("{other:?}"),
    }
}

/// What the door shows of a sale.
pub async fn picture(runtime: &Runtime, sale: &str) -> (Version, Value) {
    let answered = runtime.ask::<FlashSale>(sale, flash_sale::Command::Look { customer: None }, caller()).await.unwrap();
    match answered.reply {
        flash_sale::Reply::Shown(shown) => (answered.version, serde_json::to_value(shown::flash_sale(sale, &shown)).unwrap()),
        other => panic!("{other:?}"),
    }
}

impl Shop {
    pub async fn open() -> Shop {
        let folder = tempfile::tempdir().unwrap();
        let data = DataFolder::open(folder.path()).unwrap();
        let node = Node::open(&data, None, Options::default(), actors::Config::default()).await.unwrap();
        let config = http::Config { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..http::Config::default() };
        let listener = http::server::bind(config.listen).unwrap();
        let address = listener.local_addr().unwrap();
        let live = Live::start(node.journal.clone());
        let (runtime, identity) = (node.runtime.clone(), Arc::clone(&node.identity));
        let door = Door::new(runtime.clone(), node.read_models.clone(), live, identity, Metrics::new(|_| {}), config).unwrap();
        tokio::spawn(http::server::serve_on(listener, door, std::future::ready(()), std::future::pending()));
        Shop { runtime, address, _node: node, _folder: folder }
    }
}

pub struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    pub async fn open(address: SocketAddr) -> Socket {
        let stream = TcpStream::connect(address).await.unwrap();
        let request = format!("ws://{address}/ws").into_client_request().unwrap();
        Socket(timeout(PATIENCE, tokio_tungstenite::client_async(request, stream)).await.unwrap().unwrap().0)
    }

    /// Watches a sale, as whoever bears the token; the version at which it was then.
    pub async fn watch(
        address: SocketAddr,
        sale: &str,
        after: impl Into<Option<Version>>,
        token: Option<&str>,
    ) -> (Socket, Version) {
        let mut socket = Socket::open(address).await;
        let mut said = json!({ "type": "subscribe", "topic": format!("flash_sale:{sale}") });
        if let Some(after) = after.into() {
            said["after"] = json!(after);
        }
        if let Some(token) = token {
            said["token"] = json!(token);
        }
        socket.say(said).await;
        let heard = socket.hear().await;
        assert_eq!(heard["type"], "subscribed", "{heard}");
        (socket, heard["seq"].as_u64().unwrap())
    }

    pub async fn say(&mut self, what: Value) {
        self.0.send(Message::text(what.to_string())).await.unwrap();
    }

    pub async fn hear(&mut self) -> Value {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("nothing is heard") {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Close(frame))) => panic!("closed: {frame:?}"),
                Some(Ok(_)) => {}
                other => panic!("the connection ended: {other:?}"),
            }
        }
    }

    /// The next message of this type that is as wanted.
    pub async fn hear_until(&mut self, kind: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let heard = self.hear().await;
            if heard["type"] == kind && wanted(&heard) {
                return heard;
            }
            assert!(Instant::now() < deadline, "never heard; last {heard}");
        }
    }
}

/// A stream of server-sent events.
pub struct Events(BufReader<TcpStream>);

impl Events {
    pub async fn open(address: SocketAddr, path: &str, token: Option<&str>, last: Option<&str>) -> (u16, Events) {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut events = Events(BufReader::new(stream));
        let mut head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n");
        head.extend(token.map(|token| format!("authorization: Bearer {token}\r\n")));
        head.extend(last.map(|last| format!("last-event-id: {last}\r\n")));
        events.0.get_mut().write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        let status = events.line().await.split(' ').nth(1).unwrap().parse().unwrap();
        while !events.line().await.is_empty() {}
        (status, events)
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.0.read_line(&mut line)).await.expect("nothing is heard").unwrap();
        assert!(read > 0, "the stream ended");
        line.trim_end().to_owned()
    }

    /// The next event: its type, its id if it has one, and its data.
    pub async fn next(&mut self) -> (String, Option<Version>, Value) {
        let (mut kind, mut id) = (String::new(), None);
        loop {
            let line = self.line().await;
            if let Some(found) = line.strip_prefix("id: ") {
                id = Some(found.parse().unwrap());
            } else if let Some(found) = line.strip_prefix("event: ") {
                found.clone_into(&mut kind);
            } else if let Some(data) = line.strip_prefix("data: ") {
                return (kind, id, serde_json::from_str(data).unwrap());
            }
        }
    }
}
