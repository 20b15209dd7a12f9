//! Ten flash sales at once, and how long it takes from a write that is durable to all who watch.
//!
//! The node is this process, with its door and a journal that flushes; the watchers are WebSockets of another one on the same
//! cores, each following three of the sales, since a process here may have so many files and no more. For each state that a
//! watcher gets: the time from when the newest write in it was acknowledged until the watcher has read it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command as Program, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use souk::actors::credential::sha256_hex;
use souk::actors::live::Live;
use souk::actors::{self, Caller, Runtime};
use souk::domain::flash_sale::{Command, Customer, Terms};
use souk::domain::order::Owner;
use souk::domain::{CommandId, Currency, FlashSale, Inventory, Money, inventory};
use souk::http::limits::Quotas;
use souk::http::{self, Door};
use souk::metrics::Metrics;
use souk::node::{DataFolder, Node};
use souk::persistence::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use ulid::Ulid;

const SALES: usize = 10;
const SALES_EACH: usize = 3;
/// Watches in all: a socket that follows three sales watches three times.
const WATCHES: [usize; 4] = [1_000, 5_000, 20_000, 50_000];
const LASTS: Duration = Duration::from_secs(15);
/// Of each sale, in a second.
const CLAIMS_PER_S: u64 = 50;
const UNITS: u32 = 1_000_000;
const CONNECTING: usize = 64;

fn now_us() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as u64
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match arguments.iter().position(|argument| argument == "watch") {
        Some(at) => {
            let [address, sales, sockets, file] = &arguments[at + 1..] else { panic!("{arguments:?}") };
            let sales: Vec<String> = sales.split(',').map(str::to_owned).collect();
            runtime.block_on(watch(address.parse().unwrap(), &sales, sockets.parse().unwrap(), Path::new(file)));
        }
        None => runtime.block_on(serve()),
    }
}

// The node -----------------------------------------------------------------------------------------------------------------

fn caller() -> Caller {
    let id = Ulid::new().to_string();
    Caller::new(CommandId(id.clone()), "bench", id)
}

async fn sale(runtime: &Runtime) -> String {
    let (id, sku) = (format!("fs_{}", Ulid::new()), format!("SKU-{}", Ulid::new()));
    let product = format!("prod_{}", Ulid::new());
    runtime
        .ask::<Inventory>(&sku, inventory::Command::Register { product: product.clone(), on_hand: UNITS }, caller())
        .await
        .unwrap();
    let now = runtime.now();
    let terms = Terms {
        sku,
        product,
        shop: None,
        title: "Lantern".to_owned(),
        price: Money::new(900, Currency::EUR),
        quantity: UNITS,
        per_customer_limit: 1,
        per_address_limit: None,
        starts_at: now.plus_ms(-1),
        ends_at: now.plus_ms(3_600_000),
        claim_ms: 600_000,
        admission_ms: 60_000,
        grace_ms: 60_000,
        guests: true,
    };
    for command in [Command::Create { terms: Box::new(terms) }, Command::Approve] {
        runtime.ask::<FlashSale>(&id, command, caller()).await.unwrap();
    }
    id
}

/// When which version was acknowledged.
type Written = Mutex<HashMap<u64, u64>>;

async fn claim(runtime: Runtime, sale: String, written: Arc<Written>, until: tokio::time::Instant) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / CLAIMS_PER_S as u32);
    while tokio::time::Instant::now() < until {
        ticks.tick().await;
        let owner = Owner::Guest { token_sha256: sha256_hex(Ulid::new().to_string().as_bytes()) };
        let customer = Customer::of(&owner).unwrap();
        let answered =
            runtime.ask::<FlashSale>(&sale, Command::Claim { customer, quantity: 1, address: 0 }, caller()).await.unwrap();
        written.lock().unwrap().insert(answered.version, now_us());
    }
}

async fn serve() {
    let folder = tempfile::tempdir().unwrap();
    let data = DataFolder::open(folder.path()).unwrap();
    let node = Node::open(&data, None, Options::default(), actors::Config::default()).await.unwrap();
    let plenty = "1000000/s:1000000".parse().unwrap();
    let quotas = Quotas { reads: plenty, ..Quotas::default() };
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = http::Config { listen, quotas, connections_max: 30_000, live_sessions_max: 30_000, ..http::Config::default() };
    let listener = http::server::bind(listen).unwrap();
    let address = listener.local_addr().unwrap();
    let live = Live::start(node.journal.clone());
    let identity = Arc::clone(&node.identity);
    let door = Door::new(node.runtime.clone(), node.read_models.clone(), live, identity, Metrics::new(|_| {}), config).unwrap();
    tokio::spawn(http::server::serve_on(listener, door, std::future::ready(()), std::future::pending()));
    println!(
        "{SALES} sales, {CLAIMS_PER_S} claims/s each, {} s a row; sockets of one other process on the same cores",
        LASTS.as_secs()
    );
    println!(
        "{:>8} {:>8} {:>12} {:>10} {:>9} {:>9} {:>9}",
        "watches", "sockets", "states", "each/s", "p50 ms", "p99 ms", "max ms"
    );
    for watches in WATCHES {
        row(&node.runtime, address, watches, folder.path()).await;
    }
    node.close(Duration::from_secs(10)).await;
}

async fn row(runtime: &Runtime, address: SocketAddr, watches: usize, folder: &Path) {
    let mut sales = Vec::new();
    for _ in 0..SALES {
        sales.push(sale(runtime).await);
    }
    let (sockets, file) = (watches.div_ceil(SALES_EACH), folder.join("samples"));
    let mut watchers = Program::new(std::env::current_exe().unwrap())
        .args(["watch", &address.to_string(), &sales.join(","), &sockets.to_string()])
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(watchers.stdout.take().unwrap());
    let hear = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    });
    hear.await.unwrap();
    let until = tokio::time::Instant::now() + LASTS;
    let written: Vec<Arc<Written>> = (0..SALES).map(|_| Arc::default()).collect();
    let claims = sales.iter().zip(&written).map(|(sale, written)| claim(runtime.clone(), sale.clone(), written.clone(), until));
    join_all(claims.map(tokio::spawn)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    watchers.stdin.take().unwrap().write_all(b"stop\n").unwrap();
    tokio::task::spawn_blocking(move || assert!(watchers.wait().unwrap().success())).await.unwrap();
    let samples = fs::read(&file).unwrap();
    let mut took: Vec<u64> = samples
        .as_chunks::<24>()
        .0
        .iter()
        .filter_map(|sample| {
            let number = |at: usize| u64::from_le_bytes(sample[at..at + 8].try_into().unwrap());
            // What is not of a claim is of the sale's beginning.
            let at = written[number(0) as usize].lock().unwrap().get(&number(8)).copied()?;
            Some(number(16).saturating_sub(at))
        })
        .collect();
    took.sort_unstable();
    let ms = |part: f64| took[((took.len() - 1) as f64 * part) as usize] as f64 / 1_000.0;
    let each = took.len() as f64 / (sockets * SALES_EACH) as f64 / LASTS.as_secs_f64();
    let (count, all) = (took.len(), sockets * SALES_EACH);
    println!("{all:>8} {sockets:>8} {count:>12} {each:>10.1} {:>9.1} {:>9.1} {:>9.1}", ms(0.5), ms(0.99), ms(1.0));
}

// The watchers -------------------------------------------------------------------------------------------------------------

async fn watch(address: SocketAddr, sales: &[String], sockets: usize, file: &Path) {
    let samples = Arc::new(Mutex::new(Vec::<u8>::new()));
    let connecting = Arc::new(tokio::sync::Semaphore::new(CONNECTING));
    let sales: Arc<[String]> = sales.into();
    let opened = (0..sockets).map(|number| {
        let (samples, connecting, sales) = (samples.clone(), connecting.clone(), sales.clone());
        tokio::spawn(async move {
            let _one_of = connecting.acquire().await.unwrap();
            let mine: Vec<usize> = (0..SALES_EACH).map(|which| (number + which * 3) % sales.len()).collect();
            let stream = open(address, mine.iter().map(|sale| sales[*sale].as_str())).await;
            tokio::spawn(read(stream, sales, samples));
        })
    });
    for opened in join_all(opened).await {
        opened.unwrap();
    }
    println!("ready");
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()).unwrap()).await.unwrap();
    fs::write(file, &*samples.lock().unwrap()).unwrap();
    std::process::exit(0);
}

async fn open(address: SocketAddr, sales: impl Iterator<Item = &str>) -> TcpStream {
    let mut stream = TcpSocket::new_v4().unwrap().connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let head = format!(
        "GET /ws HTTP/1.1\r\nhost: {address}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    for sale in sales {
        let said = format!("{{\"type\":\"subscribe\",\"topic\":\"flash_sale:{sale}\"}}");
        // Masked with zeros, so that it stands as it is.
        let mut frame = vec![0x81, 0x80 | said.len() as u8, 0, 0, 0, 0];
        assert!(said.len() < 126);
        frame.extend(said.as_bytes());
        stream.write_all(&frame).await.unwrap();
        let answer = next_text(&mut stream, &mut Vec::new()).await;
        assert!(answer.starts_with("{\"type\":\"subscribed\""), "{answer}");
    }
    stream
}

/// The next text of a server's frames, which are not masked.
async fn next_text(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> String {
    loop {
        if let Some((text, rest)) = frame(buffer) {
            let text = text.map(str::to_owned);
            buffer.drain(..rest);
            match text {
                Some(text) => return text,
                // A ping.
                None => stream.write_all(&[0x8A, 0x80, 0, 0, 0, 0]).await.unwrap(),
            }
            continue;
        }
        assert!(stream.read_buf(buffer).await.unwrap() > 0, "the connection ended");
    }
}

/// A whole frame at the front, its text if it is one, and its length.
fn frame(buffer: &[u8]) -> Option<(Option<&str>, usize)> {
    let [first, second, rest @ ..] = buffer else { return None };
    let (length, head) = match (second & 0x7F, rest) {
        (126, [high, low, ..]) => (usize::from(u16::from_be_bytes([*high, *low])), 4),
        (126, _) => return None,
        (127, _) => panic!("no state is that long"),
        (length, _) => (usize::from(length), 2),
    };
    let payload = buffer.get(head..head + length)?;
    assert_ne!(first & 0x0F, 8, "closed: {}", String::from_utf8_lossy(payload));
    let text = (first & 0x0F == 1).then(|| std::str::from_utf8(payload).unwrap());
    Some((text, head + length))
}

async fn read(mut stream: TcpStream, sales: Arc<[String]>, samples: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = Vec::with_capacity(4_096);
    let head = "{\"type\":\"state\",\"topic\":\"flash_sale:";
    loop {
        let text = next_text(&mut stream, &mut buffer).await;
        let at = now_us();
        let rest = text.strip_prefix(head).unwrap_or_else(|| panic!("{text}"));
        let (sale, rest) = rest.split_once("\",\"seq\":").unwrap();
        let seq: u64 = rest.split(',').next().unwrap().parse().unwrap();
        let sale = sales.iter().position(|known| known == sale).unwrap() as u64;
        let mut samples = samples.lock().unwrap();
        [sale, seq, at].iter().for_each(|number| samples.extend(number.to_le_bytes()));
    }
}
