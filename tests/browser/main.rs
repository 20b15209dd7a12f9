//! The pages in a real browser, as people use them: Chromium, driven by Playwright.
//!
//! What is missing is installed: playwright-core and axe-core come from npm into `target/`, Chromium from Debian's packages where
//! this runs as root. What a person does is in `scenarios.mjs`; a scenario that wants the server killed says so, and this kills
//! it. Screenshots are left in `target/screenshots`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/haproxy.rs"]
#[allow(dead_code)]
mod haproxy;
#[path = "../support/nats.rs"]
mod nats;
#[path = "../support/node.rs"]
#[allow(dead_code)]
mod node;
mod tools;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use souk::integrations::http_client::{Client, Limits, Origin};
use souk::node::DataFolder;
use souk::persistence::{Append, Embedded, EntityKey, Journal, Options, Position, Wake};
use tempfile::TempDir;

use haproxy::Balancer;
use nats::{Nats, free_ports};
use node::{Node, souk, until};

/// See `scenarios.mjs`.
const DAMAGED: &str = "cart_01M00000000000000000000000";
const SCENARIO_WITHIN: Duration = Duration::from_secs(240);

/// What a scenario is played with.
trait Shop {
    fn url(&self) -> String;
    async fn operator(&self) -> String;
    /// kill -9.
    async fn kill(&mut self);
    /// A new one where it was.
    async fn start(&mut self);
    fn log(&self) -> String;
}

struct OneNode {
    node: Option<Node>,
    origin: Origin,
    folder: TempDir,
}

impl OneNode {
    const FLAGS: [&str; 3] = ["--demo", "--snapshot-every", "10"];

    async fn open() -> OneNode {
        OneNode::open_on(tempfile::tempdir().unwrap()).await
    }

    async fn open_on(folder: TempDir) -> OneNode {
        let (node, origin) = Node::start_with(folder.path(), &OneNode::FLAGS).await;
        OneNode { node: Some(node), origin, folder }
    }

    /// With a cart in its journal that nobody can read.
    async fn open_damaged() -> OneNode {
        let OneNode { node, folder, .. } = OneNode::open().await;
        let node = node.unwrap();
        node.tell_to_drain();
        assert!(node.ends().await.success());
        let (journal, _) = Embedded::open(&DataFolder::open(folder.path()).unwrap().journal(), Options::default()).unwrap();
        let record = json!({
            "specversion": "1.0", "source": "/souk", "id": format!("cart/{DAMAGED}/1"), "subject": DAMAGED,
            "time": "2026-01-01T00:00:00Z", "entityversion": 1, "causationid": "none", "correlationid": "none", "askedby": "nobody",
            "type": "cart.item.added", "data": { "nonsense": true },
        });
        let payload = json!({ "wake_at": null, "answers": [], "events": [record] }).to_string().into();
        let (entity, after, wake) = (EntityKey::new("cart", DAMAGED), Position(0), Wake::Never);
        let (tell, told) = std::sync::mpsc::channel();
        journal.append(
            Append { entity, expected: 0, after, count: 1, payload, wake },
            Box::new(move |stored| tell.send(stored).unwrap()),
        );
        told.recv().unwrap().unwrap();
        journal.close();
        OneNode::open_on(folder).await
    }
}

impl Shop for OneNode {
    fn url(&self) -> String {
        self.origin.to_string().trim_end_matches('/').to_owned()
    }

    async fn operator(&self) -> String {
        node::operator(self.folder.path())
    }

    async fn kill(&mut self) {
        self.node.take().unwrap().kill();
    }

    async fn start(&mut self) {
        let listen = self.url().strip_prefix("http://").unwrap().to_owned();
        let node = self.node.insert(Node::spawn_at(souk(), &listen, self.folder.path(), &OneNode::FLAGS));
        node.is_ready().await;
    }

    fn log(&self) -> String {
        self.node.as_ref().map(Node::log).unwrap_or_default()
    }
}

/// Two nodes behind a balancer.
struct TwoNodes {
    nodes: Vec<Option<Node>>,
    first_port: u16,
    balancer: Balancer,
    nats: Nats,
    folder: TempDir,
}

impl TwoNodes {
    async fn open() -> TwoNodes {
        let nats = Nats::one().await;
        let first_port = free_ports(&[0, 1]);
        let nobody = "127.0.0.1:1".to_owned();
        let address = |node: u16| format!("127.0.0.1:{}", first_port + node);
        let balancer = Balancer::before([address(0), address(1), nobody]).await;
        let folder = tempfile::tempdir().unwrap();
        let mut shop = TwoNodes { nodes: vec![None, None], first_port, balancer, nats, folder };
        // The first fills an empty shop, before there is another who could.
        shop.start_node(0).await;
        shop.start_node(1).await;
        shop.balancer.awaits_nodes(2).await;
        shop
    }

    fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.first_port + u16::try_from(node).unwrap())
    }

    async fn start_node(&mut self, node: usize) {
        let (url, monitor) = (self.nats.url(0), format!("http://{}", self.nats.monitor_address(0)));
        let name = format!("n{}", node + 1);
        let mut flags = vec!["--nats", &url, "--nats-monitor", &monitor, "--allow-single-replica", "--node-name", &name];
        flags.extend(["--trusted-proxy", "127.0.0.1"]);
        flags.extend((node == 0).then_some("--demo"));
        let data = self.folder.path().join(&name);
        let started = Node::spawn_at(souk(), &self.address(node), &data, &flags);
        self.nodes[node].insert(started).is_ready().await;
    }

    /// Whether a page is connected there.
    async fn is_followed(&self, node: usize) -> bool {
        let mut client = Client::new(Origin::parse(&format!("http://{}", self.address(node))).unwrap(), Limits::default());
        let metrics = client.get("/metrics", &[]).await.unwrap();
        !String::from_utf8_lossy(&metrics.body).lines().any(|line| line == "souk_live_sessions 0")
    }
}

impl Shop for TwoNodes {
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.balancer.port())
    }

    async fn operator(&self) -> String {
        let mut command = souk();
        command.args(["admin", "token", "--nats", &self.nats.url(0)]);
        let ran = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap().trim().to_owned()
    }

    /// The one that a page is connected to. Those that were left may take a moment to go.
    async fn kill(&mut self) {
        let one = || async { self.is_followed(0).await != self.is_followed(1).await };
        until("a page is connected to one of them", one).await;
        let node = if self.is_followed(0).await { 0 } else { 1 };
        self.nodes[node].take().unwrap().kill();
    }

    async fn start(&mut self) {
        let node = self.nodes.iter().position(Option::is_none).unwrap();
        self.start_node(node).await;
    }

    fn log(&self) -> String {
        self.nodes.iter().flatten().map(Node::log).collect::<Vec<_>>().join("\n\n")
    }
}

/// Plays a scenario to its end. What it says it wants done to the server is done.
async fn play(scenario: &str, mut shop: impl Shop) {
    let tools = tools::installed();
    let screenshots = Path::new(env!("CARGO_BIN_EXE_souk")).ancestors().nth(2).unwrap().join("screenshots");
    std::fs::create_dir_all(&screenshots).unwrap();
    let mut command = Command::new("node");
    command.arg(tools.folder.join("scenarios.mjs")).arg(scenario).current_dir(&tools.folder);
    command.env("SOUK_URL", shop.url()).env("SOUK_OPERATOR", shop.operator().await).env("CHROMIUM", &tools.chromium);
    command.env("SCREENSHOTS", screenshots);
    let mut playing = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut tell, said) = (playing.stdin.take().unwrap(), playing.stdout.take().unwrap());
    let (line, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || BufReader::new(said).lines().map_while(Result::ok).all(|text| line.send(text).is_ok()));
    let mut errors = playing.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        text
    });
    let until = Instant::now() + SCENARIO_WITHIN;
    let is_late = loop {
        match tokio::time::timeout_at(until.into(), lines.recv()).await {
            Ok(Some(line)) if line == "kill the server" => {
                shop.kill().await;
                writeln!(tell, "it is gone").unwrap();
            }
            Ok(Some(line)) if line == "start the server" => {
                shop.start().await;
                writeln!(tell, "it is back").unwrap();
            }
            Ok(Some(line)) => println!("{scenario}: {line}"),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    if is_late {
        let _ = playing.kill();
    }
    let ended = playing.wait().unwrap();
    let errors = errors.join().unwrap();
    assert!(ended.success() && !is_late, "{scenario} fails ({ended}):\n{errors}\n{}", shop.log());
}

/// Two at a time: each waits half of its time, and more would only wait for each other.
static AT_ONCE: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(2);

macro_rules! scenarios {
    ($($name:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let _turn = AT_ONCE.acquire().await.unwrap();
            play(stringify!($name), OneNode::open().await).await;
        }
    )*};
}

scenarios! {
    a_purchase_by_mouse
    a_purchase_by_keyboard_alone
    a_purchase_without_scripts
    what_is_wrong_is_told_beside_its_field
    two_browsers_see_the_same_order_move
    the_server_is_killed_and_the_page_recovers_without_a_reload
    a_vendor_ships_and_the_shopper_s_page_moves
    a_flash_sale_with_twenty_tabs
    an_operator_looks_at_the_cluster_and_at_an_entity_s_life
    an_account_is_changed_and_left_by_its_holder
    every_page_is_accessible_from_a_phone_to_a_wall
    the_first_page_is_small
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_goes_on_at_another_node_when_its_own_is_killed() {
    // Alone: nodes that get no processor for two seconds take each other for dead.
    let _turn = AT_ONCE.acquire_many(2).await.unwrap();
    play("a_page_goes_on_at_another_node_when_its_own_is_killed", TwoNodes::open().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_aside_is_taken_back() {
    let _turn = AT_ONCE.acquire().await.unwrap();
    play("what_was_set_aside_is_taken_back", OneNode::open_damaged().await).await;
}

#[tokio::test]
async fn a_form_that_no_page_of_ours_has_made_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_node, origin) = Node::start_with(folder.path(), &OneNode::FLAGS).await;
    let mut client = Client::new(origin, Limits::default());
    for form in ["sku=LANTERN-S&quantity=1", "sku=LANTERN-S&quantity=1&form_token=guessed"] {
        let answer = client.post("/cart/items", &[], form.into()).await.unwrap();
        assert_eq!(answer.status, 403, "{form}");
    }
}
