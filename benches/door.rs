//! What the door costs: the same requests to a bare route, to the door without a known caller or budgets, and to the door with
//! both. One run, one process, the load on the same cores: look at the ratios. Then checkouts beside a storm of log-ins.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use souk::actors;
use souk::actors::live::Live;
use souk::demo;
use souk::http::client_address::Proxies;
use souk::http::limits::Quotas;
use souk::http::{self, Door};
use souk::integrations::http_client::{Client, Limits, Origin};
use souk::metrics::Metrics;
use souk::node::{DataFolder, Node};
use souk::persistence::Options;
use tempfile::TempDir;
use warp::Filter;
use warp::http::header::{AUTHORIZATION, HeaderName};
use warp::http::{HeaderValue, StatusCode};

const CALLERS: usize = 32;
const SLICE: Duration = Duration::from_millis(700);
/// Ways are asked in turns, so that whatever else the machine does hits them alike.
const TURNS: usize = 6;
const SKU: &str = "SAFFRON-2G";
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");

type Header = (HeaderName, HeaderValue);

/// Budgets that are charged and never spent.
fn plenty() -> Quotas {
    let plenty = "1000000/s:1000000".parse().unwrap();
    Quotas { reads: plenty, writes: plenty, login: plenty, checkout: plenty, claims: plenty, operator: plenty }
}

async fn open_door(node: &Node, quotas: Quotas) -> SocketAddr {
    let proxies = Proxies { trusted: vec!["127.0.0.1/32".parse().unwrap()], ..Proxies::default() };
    let config = http::Config { listen: SocketAddr::from(([127, 0, 0, 1], 0)), quotas, proxies, ..http::Config::default() };
    let listener = http::server::bind(config.listen).unwrap();
    let address = listener.local_addr().unwrap();
    let live = Live::start(node.journal.clone());
    let identity = Arc::clone(&node.identity);
    let door = Door::new(node.runtime.clone(), node.read_models.clone(), live, identity, Metrics::new(|_| {}), config).unwrap();
    tokio::spawn(http::server::serve_on(listener, door, std::future::ready(()), std::future::pending()));
    address
}

async fn open_bare(body: Vec<u8>) -> SocketAddr {
    let body = Bytes::from(body);
    let answer =
        move |_: String| warp::http::Response::builder().header("content-type", "application/json").body(body.clone()).unwrap();
    let route = warp::path!("api" / "products" / String).map(answer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(warp::serve(route).incoming(listener).run());
    address
}

fn client(address: SocketAddr) -> Client {
    Client::new(Origin::parse(&format!("http://{address}")).unwrap(), Limits::default())
}

fn bearer(token: &str) -> Header {
    (AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap())
}

async fn post(client: &mut Client, path: &str, headers: &[Header], body: &Value) -> (StatusCode, Value) {
    let answer = client.post(path, headers, Bytes::from(body.to_string())).await.unwrap();
    (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// One caller's way: where it asks, and as whom.
struct Asking {
    client: Client,
    /// As an account, or as a guest.
    token: Option<String>,
}

impl Asking {
    fn headers(&self) -> Vec<Header> {
        self.token.iter().map(|token| bearer(token)).collect()
    }

    /// A cart with its headers.
    async fn cart(&mut self) -> (String, Vec<Header>) {
        let own = self.headers();
        let (status, cart) = post(&mut self.client, "/api/carts", &own, &json!({})).await;
        assert_eq!(status, 201, "{cart}");
        let headers = if own.is_empty() { vec![bearer(&text(&cart["token"]))] } else { own };
        (format!("/api/carts/{}", text(&cart["id"])), headers)
    }

    async fn add(&mut self, cart: &str, headers: &[Header]) {
        let item = json!({ "sku": SKU, "quantity": 1 });
        let (status, said) = post(&mut self.client, &format!("{cart}/items"), headers, &item).await;
        assert_eq!(status, 200, "{said}");
    }

    async fn check_out(&mut self, cart: &str, headers: &[Header]) {
        let body = json!({
            "payment": { "provider": "sandbox", "token": "tok_ok" }, "email": "ada@souk.test",
            "shipping_address": { "name": "Ada", "line1": "1 Way", "city": "Fez", "postal_code": "30000", "country": "MA" },
        });
        let (status, said) = post(&mut self.client, &format!("{cart}/checkout"), headers, &body).await;
        assert_eq!(status, 201, "{said}");
    }
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Read,
    Add,
    CheckOut,
}

/// How many a caller gets done until the deadline, and how long each checkout took.
async fn ask(what: What, product: &str, asking: &mut Asking, deadline: Instant) -> (u64, Vec<Duration>) {
    let (mut done, mut took) = (0, Vec::new());
    let headers = asking.headers();
    let mut own = None;
    while Instant::now() < deadline {
        match what {
            What::Read => {
                let answer = asking.client.get(product, &headers).await.unwrap();
                assert_eq!(answer.status, 200);
            }
            What::Add => {
                // A new one now and then: a line has its bound.
                if done % 100 == 0 {
                    own = Some(asking.cart().await);
                }
                let (cart, headers) = own.clone().unwrap();
                asking.add(&cart, &headers).await;
            }
            What::CheckOut => {
                let (cart, headers) = asking.cart().await;
                asking.add(&cart, &headers).await;
                let began = Instant::now();
                asking.check_out(&cart, &headers).await;
                took.push(began.elapsed());
            }
        }
        done += 1;
    }
    (done, took)
}

async fn slice(what: What, product: &str, way: &mut [Asking]) -> (u64, Vec<Duration>) {
    let deadline = Instant::now() + SLICE;
    let all = join_all(way.iter_mut().map(|asking| ask(what, product, asking, deadline))).await;
    all.into_iter().fold((0, Vec::new()), |(done, mut took), (more, some)| {
        took.extend(some);
        (done + more, took)
    })
}

/// Asks in turns; how much each way got done in a second.
async fn compare(what: What, product: &str, ways: &mut [(&str, Vec<Asking>)]) -> Vec<f64> {
    let mut done = vec![0_u64; ways.len()];
    for turn in 0..=TURNS {
        for (index, (_, way)) in ways.iter_mut().enumerate() {
            let (some, _) = slice(what, product, way).await;
            // The first turn warms up.
            done[index] += if turn > 0 { some } else { 0 };
        }
    }
    done.into_iter().map(|done| done as f64 / (SLICE.as_secs_f64() * TURNS as f64)).collect()
}

fn percentile(took: &mut [Duration], percent: usize) -> Duration {
    took.sort_unstable();
    took[(took.len() * percent / 100).min(took.len() - 1)]
}

/// Wrong passwords as fast as the door takes them, each from another address for another account.
async fn storm(door: SocketAddr, number: usize) {
    let mut client = client(door);
    for attempt in 0_u32.. {
        let from = HeaderValue::from_str(&format!("198.{number}.{}.{}", attempt / 250 % 250, attempt % 250)).unwrap();
        let body = json!({ "email": format!("{number}-{attempt}@souk.test"), "password": "not this one" });
        let (status, _) = post(&mut client, "/api/sessions", &[(FORWARDED, from)], &body).await;
        assert!(matches!(status.as_u16(), 401 | 503), "{status}");
    }
}

async fn run() {
    let folder = TempDir::new().unwrap();
    let data = DataFolder::open(folder.path()).unwrap();
    let node = Node::open(&data, None, Options::default(), actors::Config::default()).await.unwrap();
    demo::fill(&node.runtime, &node.identity).await.unwrap();
    let (open, guarded) = (open_door(&node, Quotas::UNLIMITED).await, open_door(&node, plenty()).await);

    // The load has a thread of its own, as somebody else's machine would be.
    let load = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(measure(open, guarded));
    });
    tokio::task::spawn_blocking(move || load.join().unwrap()).await.unwrap();
}

async fn measure(open: SocketAddr, guarded: SocketAddr) {
    let mut setup = client(guarded);
    let mut log_in = async |email: &str| {
        let body = json!({ "email": email, "password": demo::PASSWORD });
        let (status, said) = post(&mut setup, "/api/sessions", &[], &body).await;
        assert_eq!(status, 201, "{said}");
        text(&said["access_token"])
    };
    let vendor = log_in(demo::ACCOUNTS[1]).await;
    let mut shoppers = Vec::new();
    for number in 0..CALLERS {
        let email = format!("shopper-{number}@souk.test");
        let body = json!({ "email": email, "password": demo::PASSWORD, "name": "A shopper" });
        let (status, said) = post(&mut client(guarded), "/api/users", &[], &body).await;
        assert_eq!(status, 201, "{said}");
        shoppers.push(log_in(&email).await);
    }
    let found = setup.get("/api/products?q=saffron", &[]).await.unwrap();
    let found: Value = serde_json::from_slice(&found.body).unwrap();
    let product = format!("/api/products/{}", text(&found["items"][0]["id"]));
    let more = json!({ "delta": 2_000_000_000_u32, "reason": "a bench" });
    let (status, said) = post(&mut setup, &format!("/api/inventory/{SKU}/adjustments"), &[bearer(&vendor)], &more).await;
    assert_eq!(status, 200, "{said}");
    let shown = setup.get(&product, &[]).await.unwrap().body.to_vec();
    let bare = open_bare(shown).await;

    let way = |address: SocketAddr, tokens: Option<&Vec<String>>| -> Vec<Asking> {
        let asking = |number: usize| Asking { client: client(address), token: tokens.map(|tokens| tokens[number].clone()) };
        (0..CALLERS).map(asking).collect()
    };
    println!("{CALLERS} callers, requests/s (purchases/s for checkout)");
    let mut reads = [("bare", way(bare, None)), ("open", way(open, None)), ("guarded", way(guarded, Some(&shoppers)))];
    let rates = compare(What::Read, &product, &mut reads).await;
    let (of_bare, of_open) = (rates[2] / rates[0], rates[2] / rates[1]);
    println!(
        "GET product   bare {:>8.0}   door without caller and budget {:>8.0}   with both {:>8.0}   with/bare {of_bare:.2}   with/without {of_open:.2}",
        rates[0], rates[1], rates[2]
    );
    for (name, what) in [("add to cart", What::Add), ("checkout", What::CheckOut)] {
        let mut ways = [("open", way(open, None)), ("guarded", way(guarded, Some(&shoppers)))];
        let rates = compare(what, &product, &mut ways).await;
        println!(
            "{name:<12}                    without {:>8.0}   with {:>8.0}   with/without {:.2}",
            rates[0],
            rates[1],
            rates[1] / rates[0]
        );
    }

    let mut buyers: Vec<Asking> = (0..4).map(|_| Asking { client: client(guarded), token: None }).collect();
    let (mut calm, mut stormy) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        calm.extend(slice(What::CheckOut, &product, &mut buyers).await.1);
        let storms: Vec<_> = (0..64).map(|number| tokio::spawn(storm(guarded, number))).collect();
        stormy.extend(slice(What::CheckOut, &product, &mut buyers).await.1);
        storms.iter().for_each(tokio::task::JoinHandle::abort);
    }
    let [calm_p50, calm_p99] = [50, 99].map(|percent| percentile(&mut calm, percent));
    let [storm_p50, storm_p99] = [50, 99].map(|percent| percentile(&mut stormy, percent));
    let ratio = storm_p99.as_secs_f64() / calm_p99.as_secs_f64();
    println!(
        "checkout of 4 buyers: p50 {calm_p50:?} p99 {calm_p99:?}; beside 64 who log in without a rest: p50 {storm_p50:?} p99 {storm_p99:?}; p99 {ratio:.2} times"
    );
}

fn main() {
    // cargo test runs benches too, to see that they start.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run());
    println!("done");
    std::process::exit(0);
}
