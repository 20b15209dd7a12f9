//! A shop of three nodes over three nats-servers, each a process that can be killed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use souk::cluster::{Name, Owners, partition};
use souk::demo;
use souk::integrations::http_client::{Client, ClientError, Header, Limits, Origin};
use souk::persistence::EntityKey;
use tempfile::TempDir;

use crate::nats::Nats;
use crate::node::{Node, souk};

pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
const OPENING: usize = 16;
/// Between two attempts at what was refused or got no answer.
pub const PAUSE: Duration = Duration::from_millis(20);
/// More than anybody will buy.
pub const PLENTY: u32 = 1_000_000;

pub struct Running {
    pub process: Node,
    pub origin: Origin,
}

pub struct Shop {
    pub nats: Nats,
    pub nodes: BTreeMap<&'static str, Running>,
    pub skus: Vec<String>,
    pub vendor: String,
    dir: TempDir,
}

pub fn client(origin: &Origin) -> Client {
    // Longer than a node waits for anything.
    Client::new(origin.clone(), Limits { request: Duration::from_secs(15), ..Limits::default() })
}

pub fn read(body: &Bytes) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

pub async fn post(client: &mut Client, path: &str, headers: &[Header], body: &Value) -> Result<(u16, Value), ClientError> {
    let answer = client.post(path, headers, Bytes::from(body.to_string())).await?;
    Ok((answer.status.as_u16(), read(&answer.body)))
}

pub async fn vendors_token(origin: &Origin) -> String {
    let body = json!({ "email": demo::ACCOUNTS[1], "password": demo::PASSWORD });
    let (status, said) = post(&mut client(origin), "/api/sessions", &[], &body).await.unwrap();
    assert_eq!(status, 201, "{said}");
    said["access_token"].as_str().unwrap().to_owned()
}

/// Makes so many products of one sku each.
pub async fn stock_up(origins: &[Origin], vendor: &str, count: usize) -> Vec<String> {
    let made = futures_util::stream::iter(0..count).map(|number| async move {
        let sku = format!("BENCH-{number}");
        let variant = json!({ "sku": sku, "price": { "amount": 700, "currency": "EUR" }, "stock": PLENTY });
        let body = json!({ "title": sku, "variants": [variant] });
        let mut client = client(&origins[number % origins.len()]).with_token(vendor).unwrap();
        let (status, said) = post(&mut client, "/api/products", &[], &body).await.unwrap();
        assert_eq!(status, 201, "{said}");
        sku
    });
    made.buffered(OPENING).collect().await
}

impl Shop {
    /// Opens with so many skus. `flags` are given to each node.
    pub async fn open(skus: usize, flags: &[&str]) -> Shop {
        let nats = Nats::three().await;
        let dir = tempfile::tempdir().unwrap();
        let mut shop = Shop { nats, nodes: BTreeMap::new(), skus: Vec::new(), vendor: String::new(), dir };
        let demo: Vec<&str> = flags.iter().copied().chain(["--demo"]).collect();
        shop.start("n1", &demo).await;
        shop.start("n2", flags).await;
        shop.start("n3", flags).await;
        let origins = shop.origins();
        shop.vendor = vendors_token(&origins[0]).await;
        shop.skus = stock_up(&origins, &shop.vendor, skus).await;
        shop
    }

    pub async fn start(&mut self, name: &'static str, flags: &[&str]) {
        let monitors: Vec<String> =
            (0..self.nats.len()).map(|index| format!("http://{}", self.nats.monitor_address(index))).collect();
        let (urls, monitors) = (self.nats.urls().join(","), monitors.join(","));
        let mut all = vec!["--nats", &urls, "--nats-monitor", &monitors, "--node-name", name];
        all.extend(flags);
        let mut process = Node::spawn_by(souk(), &self.folder(name), &all);
        let origin = process.is_ready().await;
        self.nodes.insert(name, Running { process, origin });
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn origins(&self) -> Vec<Origin> {
        self.nodes.values().map(|node| node.origin.clone()).collect()
    }

    /// Which node has a sku's item while all three are there.
    pub fn owner(&self, sku: &str) -> &'static str {
        let names = NODES.map(|name| Name::parse(name).unwrap());
        let owners = Owners::among(names);
        let owner = owners.of(partition(&EntityKey::new("inventory", sku))).unwrap();
        NODES.into_iter().find(|name| *name == owner.as_str()).unwrap()
    }

    /// Writes to the item of each sku, so that all are in memory.
    pub async fn touch_all(&self) {
        let origins = self.origins();
        let touched = futures_util::stream::iter(self.skus.iter().enumerate()).map(|(number, sku)| {
            let mut writer = Writer::new(&origins[number % origins.len()..][..1], &self.vendor, sku);
            async move { writer.succeeds().await }
        });
        touched.buffer_unordered(OPENING).for_each(|_| async {}).await;
    }
}

/// Writes to one sku's item, at any of these nodes in turn.
pub struct Writer {
    clients: Vec<Client>,
    path: String,
    turn: usize,
}

impl Writer {
    pub fn new(origins: &[Origin], vendor: &str, sku: &str) -> Writer {
        let clients = origins.iter().map(|origin| client(origin).with_token(vendor).unwrap()).collect();
        Writer { clients, path: format!("/api/inventory/{sku}/adjustments"), turn: 0 }
    }

    /// Opens the connections.
    pub async fn connect(&mut self) {
        for client in &mut self.clients {
            assert_eq!(client.get("/health/live", &[]).await.unwrap().status, 200);
        }
    }

    pub async fn once(&mut self) -> Result<(), String> {
        self.turn += 1;
        let at = self.turn % self.clients.len();
        let body = json!({ "delta": 1, "reason": "a bench" });
        match post(&mut self.clients[at], &self.path, &[], &body).await {
            Ok((200, _)) => Ok(()),
            Ok((status, said)) => Err(format!("{status} {}", said["type"])),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Tries until it succeeds; how long that took.
    pub async fn succeeds(&mut self) -> Duration {
        let begun = Instant::now();
        while let Err(why) = self.once().await {
            assert!(begun.elapsed() < Duration::from_secs(60), "{why}");
            tokio::time::sleep(PAUSE).await;
        }
        begun.elapsed()
    }
}
