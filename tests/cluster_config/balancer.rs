//! The load balancer before nodes that do as they are told, and before a real one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::json;
use souk::integrations::http_client::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use warp::http::{HeaderName, HeaderValue};

use crate::haproxy::Balancer;
use crate::node::{self, Node, until};
use crate::support::{self, Asked, told};

/// Nobody listens there.
const GONE: &str = "127.0.0.1:1";
const READ: Duration = Duration::from_secs(20);

/// A node that answers with its own name.
struct Told {
    name: usize,
    ready: AtomicBool,
    /// Requests that it will answer with 503.
    refuses: AtomicUsize,
    asked: Mutex<Vec<Asked>>,
    /// What waits at `/slow`.
    slow: Notify,
    slow_is_there: AtomicBool,
}

impl Told {
    async fn start(name: usize) -> (Arc<Told>, String) {
        let node = Arc::new(Told {
            name,
            ready: AtomicBool::new(true),
            refuses: AtomicUsize::new(0),
            asked: Mutex::default(),
            slow: Notify::new(),
            slow_is_there: AtomicBool::new(false),
        });
        let served = node.clone();
        let url = support::serve(move |asked| {
            let node = served.clone();
            async move { node.answer(asked).await }
        })
        .await;
        (node, url.strip_prefix("http://").unwrap().to_owned())
    }

    async fn answer(&self, asked: Asked) -> support::Told {
        let status = |is_well: bool| if is_well { 200 } else { 503 };
        if asked.path == "/health/ready" {
            return told(status(self.ready.load(Ordering::SeqCst)), json!({}));
        }
        let slow = asked.path == "/slow";
        self.asked.lock().unwrap().push(asked);
        if slow {
            self.slow_is_there.store(true, Ordering::SeqCst);
            self.slow.notified().await;
        }
        let refused = self.refuses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        told(status(!refused), json!(self.name))
    }

    fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

async fn three() -> (Vec<Arc<Told>>, Balancer) {
    let started = join_all((1..=3).map(Told::start)).await;
    let (nodes, addresses): (Vec<_>, Vec<_>) = started.into_iter().unzip();
    let balancer = Balancer::before(addresses.try_into().unwrap()).await;
    balancer.awaits_nodes(3).await;
    (nodes, balancer)
}

async fn post(client: &mut Client, key: Option<&'static str>) -> u16 {
    let key = key.map(|key| (HeaderName::from_static("idempotency-key"), HeaderValue::from_static(key)));
    client.post("/orders", key.as_slice(), Bytes::from_static(b"{}")).await.unwrap().status.as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_no_longer_ready_gets_nothing_new_and_finishes_what_it_has() {
    let (nodes, balancer) = three().await;
    let mut slow_client = balancer.client();
    let slow = tokio::spawn(async move { slow_client.get("/slow", &[]).await.unwrap() });
    until("the slow request is somewhere", || async { nodes.iter().any(|node| node.slow_is_there.load(Ordering::SeqCst)) }).await;
    let leaving = nodes.iter().find(|node| node.slow_is_there.load(Ordering::SeqCst)).unwrap();
    leaving.ready.store(false, Ordering::SeqCst);
    balancer.awaits_nodes(2).await;
    let before = leaving.count();
    let answers = join_all((0..40).map(|_| async { balancer.client().get("/x", &[]).await.unwrap().status.as_u16() })).await;
    assert_eq!((answers, leaving.count()), (vec![200; 40], before));

    leaving.slow.notify_one();
    let answer = slow.await.unwrap();
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, leaving.name.to_string().as_bytes()), "{}", balancer.log());
    leaving.ready.store(true, Ordering::SeqCst);
    balancer.awaits_nodes(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_and_a_write_with_a_key_are_tried_elsewhere_after_a_503_and_a_write_without_a_key_is_not() {
    let (nodes, balancer) = three().await;
    let mut client = balancer.client();
    let asked = || nodes.iter().map(|node| node.count()).sum::<usize>();
    // Two of three refuse: of three attempts the third is at the one that does not.
    let refuse = |each: usize| nodes[..2].iter().for_each(|node| node.refuses.store(each, Ordering::SeqCst));
    refuse(usize::MAX);
    for round in 0..10 {
        assert_eq!(post(&mut client, Some("key")).await, 200, "round {round}: {}", balancer.log());
        assert_eq!(client.get("/x", &[]).await.unwrap().status, 200, "round {round}");
    }
    let before = asked();
    let mut refused = 0;
    for _ in 0..9 {
        refused += usize::from(post(&mut client, None).await == 503);
    }
    assert_eq!(asked() - before, 9, "each was sent once");
    assert!(refused >= 1, "and somebody heard the 503");
    refuse(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_costs_no_request_not_even_before_that_is_noticed() {
    let (one, address) = Told::start(1).await;
    let balancer = Balancer::before([GONE.to_owned(), GONE.to_owned(), address]).await;
    let answers = join_all((0..40).map(|_| async { post(&mut balancer.client(), None).await })).await;
    assert_eq!((answers, one.count()), (vec![200; 40], 40), "{}", balancer.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_hears_of_the_clients_address_and_the_public_sees_no_figures() {
    let (nodes, balancer) = three().await;
    let mut client = balancer.client();
    assert_eq!(client.get("/metrics", &[]).await.unwrap().status, 404);
    assert!(nodes.iter().all(|node| node.count() == 0));
    let forged = (HeaderName::from_static("x-forwarded-for"), HeaderValue::from_static("192.0.2.1"));
    client.get("/x", &[forged]).await.unwrap();
    let node = nodes.iter().find(|node| node.count() > 0).unwrap();
    let asked = node.asked.lock().unwrap();
    let said: Vec<&str> = asked[0].headers.get_all("x-forwarded-for").iter().map(|said| said.to_str().unwrap()).collect();
    assert_eq!(said.join(",").rsplit(',').next().map(str::trim), Some("127.0.0.1"), "the rightmost is the balancer's own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_and_a_purchase_pass_through_to_a_real_node() {
    let data = tempfile::tempdir().unwrap();
    let (_node, origin) = Node::start_with(data.path(), &["--demo", "--trusted-proxy", "127.0.0.1"]).await;
    let address = origin.to_string().strip_prefix("http://").unwrap().trim_end_matches('/').to_owned();
    let balancer = Balancer::before([address, GONE.to_owned(), GONE.to_owned()]).await;
    balancer.awaits_nodes(1).await;
    let mut rehearse = node::souk();
    rehearse.args(["rehearse", "checkout", "--buyers", "1", "--seconds", "1", "--url"]);
    rehearse.arg(format!("http://127.0.0.1:{}", balancer.port()));
    let rehearsed = tokio::task::spawn_blocking(move || rehearse.output().unwrap()).await.unwrap();
    assert!(rehearsed.status.success(), "{}", String::from_utf8_lossy(&rehearsed.stderr));

    let mut socket = TcpStream::connect(("127.0.0.1", balancer.port())).await.unwrap();
    let upgrade = "GET /ws HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(upgrade.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(READ, read).await.unwrap();
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.to_lowercase().contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
}
