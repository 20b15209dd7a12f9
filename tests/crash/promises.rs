//! What the program promises whatever ends it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::AUTHORIZATION;
use serde_json::{Value, json};
use souk::integrations::http_client::{Client, Limits, Origin, bearer};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::audit::{Auditor, End};
use crate::node::{DEADLINE, Node, run, until};
use crate::purchase::purchase;
use crate::shopper::{Memory, Scene, Shopper};

const ROUNDS: usize = 20;
const SHOPPERS: usize = 8;
/// The last moment of a round at which it may end.
const KILL_WITHIN_MS: u64 = 400;

fn seed() -> u64 {
    let seed = std::env::var("SOUK_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SOUK_TEST_SEED={seed}");
    seed
}

struct Crowd {
    scene: watch::Sender<Scene>,
    memory: Arc<Mutex<Memory>>,
    random: fastrand::Rng,
    tasks: Vec<JoinHandle<()>>,
    rounds: usize,
}

impl Crowd {
    fn new(random: fastrand::Rng) -> Crowd {
        Crowd { scene: watch::Sender::default(), memory: Arc::default(), random, tasks: Vec::new(), rounds: 0 }
    }

    fn begins(&mut self, origin: Origin, with_slow: bool) {
        self.scene.send_replace(Scene { origin: Some(origin), is_open: true });
        self.rounds += 1;
        for n in 0..SHOPPERS {
            let name = format!("round-{}-shopper-{n}", self.rounds);
            let shopper = Shopper::new(name, self.random.fork(), self.scene.subscribe(), self.memory.clone(), with_slow);
            self.tasks.push(tokio::spawn(shopper.shop()));
        }
    }

    fn node_is_gone(&self) {
        self.scene.send_replace(Scene { origin: None, is_open: false });
    }

    /// Everybody gets the answers that were cut off, and goes home.
    async fn ends(&mut self, origin: Origin) {
        self.scene.send_replace(Scene { origin: Some(origin), is_open: false });
        for task in self.tasks.drain(..) {
            tokio::time::timeout(DEADLINE, task).await.expect("every request is answered").unwrap();
        }
    }
}

async fn wait_at_random(random: &mut fastrand::Rng, most_ms: u64) {
    tokio::time::sleep(Duration::from_millis(random.u64(0..most_ms))).await;
}

/// A node with goods in it.
async fn opened() -> (TempDir, Node, Origin) {
    let folder = tempfile::tempdir().unwrap();
    let (node, origin) = Node::start(folder.path()).await;
    Auditor::new(origin.clone(), folder.path()).open_shop().await;
    (folder, node, origin)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_loses_nothing_that_it_said_and_ends_all_that_it_began() {
    let mut random = fastrand::Rng::with_seed(seed());
    let (folder, mut node, mut origin) = opened().await;
    let mut crowd = Crowd::new(random.fork());
    let mut ends: BTreeMap<String, End> = BTreeMap::new();
    for round in 1..=ROUNDS {
        let began = Instant::now();
        crowd.begins(origin, round % 5 == 0);
        wait_at_random(&mut random, KILL_WITHIN_MS).await;
        node.kill();
        crowd.node_is_gone();
        // Some of them do not get far before the next one comes.
        for _ in 0..random.usize(0..3) {
            let short_lived = Node::spawn(folder.path());
            wait_at_random(&mut random, 150).await;
            short_lived.kill();
        }
        (node, origin) = Node::start(folder.path()).await;
        crowd.ends(origin.clone()).await;
        let memory = std::mem::take(&mut *crowd.memory.lock().unwrap());
        Auditor::new(origin.clone(), folder.path()).audit(&memory, &mut ends, round == ROUNDS).await;
        let (carts, orders) = (memory.carts.len(), memory.orders.len());
        println!(
            "round {round}: {} answers, {} asked again, {carts} carts, {orders} orders, {} ms",
            memory.answers,
            memory.repeated,
            began.elapsed().as_millis()
        );
        *crowd.memory.lock().unwrap() = memory;
    }
    let auditor = Auditor::new(origin, folder.path());
    auditor.assert_nothing_invented(&ends).await;
    let mut statuses: BTreeMap<&str, usize> = BTreeMap::new();
    ends.values().for_each(|end| *statuses.entry(&end.status).or_default() += 1);
    println!("{statuses:?}");
    for status in ["paid", "refunded", "payment_failed"] {
        assert!(statuses.contains_key(status), "no order is {status}: {statuses:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_stop_under_load_it_answers_what_is_in_flight_and_exits_with_zero_and_nothing_is_lost() {
    let mut random = fastrand::Rng::with_seed(seed());
    let (folder, node, origin) = opened().await;
    let mut crowd = Crowd::new(random.fork());
    // Eight purchases that take as long as a purchase may: they are in flight when the word comes.
    let slow: Vec<_> = (0..8)
        .map(|n| {
            let mut client = Client::new(origin.clone(), Limits::default());
            let mut body = purchase("tok_slow");
            body["items"] = json!([{ "sku": "MANY-1", "quantity": n % 3 + 1 }]);
            tokio::spawn(async move { client.post("/api/orders", &[], Bytes::from(body.to_string())).await })
        })
        .collect();
    Auditor::new(origin.clone(), folder.path()).until_waiting(8).await;
    crowd.begins(origin, false);
    let memory = crowd.memory.clone();
    until("the crowd is served", || async { memory.lock().unwrap().answers >= 50 }).await;
    node.tell_to_drain();
    for slow in slow {
        let answer = slow.await.unwrap().expect("what is in flight is answered");
        assert!([201, 202].contains(&answer.status.as_u16()), "{}", answer.status);
        let order: Value = serde_json::from_slice(&answer.body).unwrap();
        let [id, token, status] = ["id", "token", "status"].map(|name| order[name].as_str().unwrap().to_owned());
        let memory = crate::shopper::OrderMemory { token, status, cancel_asked: false };
        crowd.memory.lock().unwrap().orders.insert(id, memory);
    }
    let log = node.log();
    let ended = node.ends().await;
    crowd.node_is_gone();
    assert_eq!(ended.code(), Some(0), "{log}");
    assert!(!folder.path().join("address").exists(), "a node that is gone has no address");

    let (_node, origin) = Node::start(folder.path()).await;
    crowd.ends(origin.clone()).await;
    let memory = std::mem::take(&mut *crowd.memory.lock().unwrap());
    let mut ends = BTreeMap::new();
    let auditor = Auditor::new(origin, folder.path());
    auditor.audit(&memory, &mut ends, true).await;
    auditor.assert_nothing_invented(&ends).await;
    println!("{} answers, {} asked again, {} orders", memory.answers, memory.repeated, memory.orders.len());
}

/// Buys one thing and returns the order's id and token.
async fn buy_one(origin: &Origin) -> (String, String) {
    let mut client = Client::new(origin.clone(), Limits::default());
    let mut body = purchase("tok_ok");
    body["items"] = json!([{ "sku": "MANY-1", "quantity": 1 }]);
    let answer = client.post("/api/orders", &[], Bytes::from(body.to_string())).await.unwrap();
    assert_eq!(answer.status, 201);
    let order: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(order["status"], "paid");
    (order["id"].as_str().unwrap().to_owned(), order["token"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_on_the_same_data_says_that_it_is_in_use_and_leaves_the_first_alone() {
    let (folder, _node, origin) = opened().await;
    let second = run(&["serve", "--listen", "127.0.0.1:0"], folder.path()).await;
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success());
    assert!(said.contains("in use by another process"), "{said}");
    assert!(folder.path().join("address").exists(), "the first can still be found");
    buy_one(&origin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_inspected_alike_on_a_running_and_on_a_stopped_node() {
    let (folder, node, origin) = opened().await;
    let (id, _) = buy_one(&origin).await;
    let inspect = async |arguments: &[&str]| {
        let output = run(&[&["inspect", "order", &id], arguments].concat(), folder.path()).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let running = inspect(&["--json"]).await;
    node.tell_to_drain();
    assert_eq!(node.ends().await.code(), Some(0));
    let stopped = inspect(&["--json"]).await;
    assert_eq!(running, stopped);
    let inspection: Value = serde_json::from_str(&stopped).unwrap();
    assert_eq!(inspection["state"]["status"], "paid");
    assert!(inspection["history"].as_array().unwrap().iter().any(|record| record["type"] == "order.paid"));
    assert!(inspect(&[]).await.contains("order.paid"));
    let unknown = run(&["inspect", "order", "ord_nobody"], folder.path()).await;
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("ord_nobody"));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_and_read_models_can_be_deleted_and_nothing_is_lost() {
    let mut random = fastrand::Rng::with_seed(seed());
    let (folder, node, origin) = opened().await;
    let mut crowd = Crowd::new(random.fork());
    crowd.begins(origin.clone(), false);
    let memory = crowd.memory.clone();
    until("some have bought", || async { memory.lock().unwrap().orders.len() >= 30 }).await;
    crowd.ends(origin).await;
    node.tell_to_drain();
    assert_eq!(node.ends().await.code(), Some(0));
    for folder in ["snapshots", "read-models"].map(|name| folder.path().join(name)) {
        assert!(folder.read_dir().unwrap().next().is_some(), "{} holds something", folder.display());
        std::fs::remove_dir_all(folder).unwrap();
    }
    let (_node, origin) = Node::start(folder.path()).await;
    let memory = std::mem::take(&mut *crowd.memory.lock().unwrap());
    let auditor = Auditor::new(origin.clone(), folder.path());
    let mut ends = BTreeMap::new();
    auditor.audit(&memory, &mut ends, true).await;
    auditor.assert_nothing_invented(&ends).await;
    let (id, token) = buy_one(&origin).await;
    let mut client = Client::new(origin, Limits::default());
    let found = client.get(&format!("/api/orders/{id}"), &[(AUTHORIZATION, bearer(&token).unwrap())]).await.unwrap();
    assert_eq!(found.status, 200);
}
