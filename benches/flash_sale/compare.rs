//! The same buyers and the same units, sold by Souk and by what would otherwise be written: a Lua script in Redis, and a hot
//! row with an insert in PostgreSQL. Beside them what HTTP costs: a bare route that claims nothing.
//!
//! All load comes from one thread with as little in it as there can be, over as many connections for everybody. Each round
//! begins anew, and ends with a look at the outcome: everybody has one unit, nobody two. The servers are the caller's to start.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command as Program, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use souk::domain::Timestamp;
use souk::integrations::http_client::{Client, Limits, Origin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use warp::Filter;

use super::sale::{self, Started};

/// Where the others listen, and how much is sold.
#[derive(Debug)]
pub struct Others {
    pub redis_always: SocketAddr,
    pub redis_everysec: SocketAddr,
    pub postgres: SocketAddr,
    pub buyers: u64,
}

const ROUNDS: usize = 9;
/// A round of PostgreSQL takes longer than one of all others together: it takes part in so few.
const SLOW_EVERY: usize = 3;
const CONNECTIONS: usize = 64;
/// A node whose requests are worked on by one thread, as in Redis: where there are two cores, the other one is the load's and
/// the journal's.
const ONE_THREAD: [&str; 2] = ["--threads", "1"];
/// Callers of a sale in the same process.
const CALLERS: usize = 1_024;
/// Every so many attempts there is one more of a buyer who has been here.
const AGAIN_EVERY: u64 = 10;
const START_WITHIN: Duration = Duration::from_secs(30);

/// How one contender did in one round.
struct Round {
    claims: u64,
    took: Duration,
    /// Longest last.
    waits: Vec<Duration>,
}

/// One connection of one buyer after the other.
trait Counter {
    /// Whether the buyer has got a unit by this.
    async fn claim(&mut self, buyer: u64) -> bool;
}

pub fn run(tokio: &tokio::runtime::Runtime, others: &Others) {
    let load = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (bare, souk, alone) = (Bare::start(), Served::start(&[]), Served::start(&ONE_THREAD));
    let buyers = others.buyers;
    println!("{buyers} buyers, {CONNECTIONS} connections each ({CALLERS} callers in process), {ROUNDS} rounds in turns");
    // Each with its rounds and their numbers.
    let mut results: Vec<(&str, Vec<(usize, Round)>)> = [
        "PostgreSQL, hot row and insert",
        "Redis, AOF always",
        "Redis, AOF everysec",
        "Souk over HTTP",
        "Souk over HTTP, one thread",
        "a bare warp route",
        "Souk in process",
    ]
    .map(|name| (name, Vec::new()))
    .into();
    for number in 1..=ROUNDS {
        for (index, (name, rounds)) in results.iter_mut().enumerate() {
            let round = match index {
                0 if number % SLOW_EVERY != 1 => continue,
                0 => load.block_on(postgres(others.postgres, buyers)),
                1 => load.block_on(redis(others.redis_always, buyers)),
                2 => load.block_on(redis(others.redis_everysec, buyers)),
                3 => load.block_on(souk.sell(buyers)),
                4 => load.block_on(alone.sell(buyers)),
                5 => load.block_on(bare.answer(buyers)),
                _ => tokio.block_on(in_process(buyers)),
            };
            println!("  round {number}: {name}: {:.0}/s", round.rate());
            rounds.push((number, round));
        }
    }
    println!(
        "\n{:<32} {:>10} {:>12} {:>14} {:>10} {:>10}",
        "the middle round", "claims/s", "x Redis", "x PostgreSQL", "p50", "p99"
    );
    // It takes part in every round.
    let redis: Vec<f64> = results[1].1.iter().map(|(_, round)| round.rate()).collect();
    let mut postgres = None;
    for (name, rounds) in &mut results {
        let mut to_redis: Vec<f64> = rounds.iter().map(|(number, round)| round.rate() / redis[number - 1]).collect();
        to_redis.sort_by(f64::total_cmp);
        rounds.sort_by(|(_, one), (_, other)| one.rate().total_cmp(&other.rate()));
        let (to_redis, round) = (to_redis[to_redis.len() / 2], &rounds[rounds.len() / 2].1);
        let (rate, p50, p99) = (round.rate(), round.wait(0.5), round.wait(0.99));
        let to_postgres = rate / *postgres.get_or_insert(rate);
        println!("{name:<32} {rate:>10.0} {to_redis:>12.2} {to_postgres:>14.1} {p50:>10.2?} {p99:>10.2?}");
    }
    println!("\nx Redis: the middle of what each round says, because a shared machine is not as fast in one as in the next");
}

/// Souk over HTTP by itself, with what the node's processor does for one claim: that depends less on who else uses the machine.
pub fn over_http(buyers: u64) {
    let load = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let nodes = [("", Served::start(&[])), (" by one thread", Served::start(&ONE_THREAD))];
    for (how, souk) in nodes.iter().cycle().take(ROUNDS * nodes.len()) {
        let before = sale::processor(souk.serving.0.id());
        let round = load.block_on(souk.sell(buyers));
        let (user, kernel) = sale::processor(souk.serving.0.id());
        let each = |now: Duration, before: Duration| (now - before) / u32::try_from(buyers).unwrap();
        println!(
            "{:.0} claims/s{how}, p50 {:.2?}, p99 {:.2?}; the node works {:.1?} for each, and the kernel {:.1?} for it",
            round.rate(),
            round.wait(0.5),
            round.wait(0.99),
            each(user, before.0),
            each(kernel, before.1)
        );
    }
}

impl Round {
    fn rate(&self) -> f64 {
        self.claims as f64 / self.took.as_secs_f64()
    }

    fn wait(&self, share: f64) -> Duration {
        self.waits[((self.waits.len() - 1) as f64 * share) as usize]
    }
}

/// Every buyer once and some of them twice, over connections that each ask as soon as they have been answered.
async fn rush<C: Counter>(counters: Vec<C>, buyers: u64) -> Round {
    let (next, began) = (std::cell::Cell::new(0_u64), Instant::now());
    let asks = counters.into_iter().map(async |mut counter| {
        let (mut claims, mut waits) = (0, Vec::new());
        while next.get() < buyers {
            let buyer = next.replace(next.get() + 1);
            let asked = Instant::now();
            claims += u64::from(counter.claim(buyer).await);
            waits.push(asked.elapsed());
            if buyer % AGAIN_EVERY == 0 {
                claims += u64::from(counter.claim(buyer / 2).await);
            }
        }
        (claims, waits)
    });
    let done = futures_util::future::join_all(asks).await;
    let took = began.elapsed();
    let claims = done.iter().map(|(claims, _)| claims).sum();
    let mut waits: Vec<Duration> = done.into_iter().flat_map(|(_, waits)| waits).collect();
    waits.sort_unstable();
    Round { claims, took, waits }
}

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// As long as a guest's token is.
fn token(buyer: u64) -> String {
    format!("{:064x}", u128::from(buyer) | 1 << 127)
}

// Redis -------------------------------------------------------------------------------------------------------------------

/// Units, who has how many, and at most one to each: what a shop bolts before its database.
const SCRIPT: &str = "if redis.call('HGET', KEYS[2], ARGV[1]) then return -1 end \
local left = tonumber(redis.call('GET', KEYS[1])) \
if left < 1 then return 0 end \
redis.call('DECR', KEYS[1]) \
redis.call('HSET', KEYS[2], ARGV[1], 1) \
return 1";

struct Redis {
    stream: TcpStream,
    sha: String,
    answer: Vec<u8>,
}

impl Redis {
    async fn connect(address: SocketAddr) -> Redis {
        let mut redis = Redis { stream: connect(address).await, sha: String::new(), answer: Vec::new() };
        redis.sha = redis.ask(&["SCRIPT", "LOAD", SCRIPT]).await;
        redis
    }

    /// The answer's first line, or the text that it announces.
    async fn ask(&mut self, words: &[&str]) -> String {
        let mut asked = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| asked.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        self.stream.write_all(asked.as_bytes()).await.unwrap();
        self.answer.clear();
        loop {
            assert!(self.stream.read_buf(&mut self.answer).await.unwrap() > 0, "Redis hangs up");
            let text = std::str::from_utf8(&self.answer).unwrap();
            let mut lines = text.split_inclusive("\r\n").filter_map(|line| line.strip_suffix("\r\n"));
            match lines.next() {
                Some(first) if first.starts_with('$') => match lines.next() {
                    Some(said) => return said.to_owned(),
                    None => continue,
                },
                Some(first) => {
                    assert!(!first.starts_with('-'), "{first}");
                    return first[1..].to_owned();
                }
                None => continue,
            }
        }
    }
}

impl Counter for Redis {
    async fn claim(&mut self, buyer: u64) -> bool {
        let sha = self.sha.clone();
        self.ask(&["EVALSHA", &sha, "2", "left", "buyers", &token(buyer)]).await == "1"
    }
}

async fn redis(address: SocketAddr, buyers: u64) -> Round {
    let mut counters = Vec::new();
    for _ in 0..CONNECTIONS {
        counters.push(Redis::connect(address).await);
    }
    let mut operator = Redis::connect(address).await;
    operator.ask(&["DEL", "buyers"]).await;
    operator.ask(&["SET", "left", &buyers.to_string()]).await;
    let round = rush(counters, buyers).await;
    let had = operator.ask(&["HLEN", "buyers"]).await;
    assert_eq!((operator.ask(&["GET", "left"]).await, had, round.claims), ("0".to_owned(), buyers.to_string(), buyers));
    round
}

// PostgreSQL ----------------------------------------------------------------------------------------------------------------

struct Postgres {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Postgres {
    /// As the superuser of a server that trusts whoever comes.
    async fn connect(address: SocketAddr) -> Postgres {
        let mut postgres = Postgres { stream: connect(address).await, answer: Vec::new() };
        let parameters = b"user\0postgres\0database\0postgres\0\0";
        let mut hello = (parameters.len() as u32 + 8).to_be_bytes().to_vec();
        hello.extend(0x0003_0000_u32.to_be_bytes());
        hello.extend(parameters);
        postgres.stream.write_all(&hello).await.unwrap();
        postgres.until_ready().await.unwrap();
        postgres
    }

    /// What the statement's rows have in their first column, or the code of its error.
    async fn ask(&mut self, statement: &str) -> Result<Vec<String>, String> {
        let mut query = vec![b'Q'];
        query.extend((statement.len() as u32 + 5).to_be_bytes());
        query.extend(statement.as_bytes());
        query.push(0);
        self.stream.write_all(&query).await.unwrap();
        self.until_ready().await
    }

    async fn until_ready(&mut self) -> Result<Vec<String>, String> {
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            while let Some(message) = self.message() {
                match message[0] {
                    b'Z' => return error.map_or(Ok(rows), Err),
                    b'D' => rows.push(String::from_utf8(message[11..].to_vec()).unwrap()),
                    b'E' => {
                        let fields = message[5..].split(|byte| *byte == 0);
                        let code = fields.filter_map(|field| field.strip_prefix(b"C")).next().unwrap_or_default();
                        error = Some(String::from_utf8_lossy(code).into_owned());
                    }
                    _ => {}
                }
            }
            assert!(self.stream.read_buf(&mut self.answer).await.unwrap() > 0, "PostgreSQL hangs up");
        }
    }

    /// The next whole message, taken off.
    fn message(&mut self) -> Option<Vec<u8>> {
        let length = u32::from_be_bytes(self.answer.get(1..5)?.try_into().unwrap()) as usize + 1;
        (self.answer.len() >= length).then(|| self.answer.drain(..length).collect())
    }
}

impl Counter for Postgres {
    async fn claim(&mut self, buyer: u64) -> bool {
        let token = token(buyer);
        let claim = format!(
            "WITH taken AS (UPDATE stock SET units_left = units_left - 1 WHERE sku = 'LANTERN-S' AND units_left > 0 RETURNING sku) \
             INSERT INTO orders (sku, buyer, status) SELECT sku, '{token}', 'held' FROM taken RETURNING id"
        );
        match self.ask(&claim).await {
            Ok(rows) => rows.len() == 1,
            // A second one of the same buyer: nothing of the statement stays.
            Err(code) if code == "23505" => false,
            Err(code) => panic!("PostgreSQL says {code}"),
        }
    }
}

async fn postgres(address: SocketAddr, buyers: u64) -> Round {
    let mut operator = Postgres::connect(address).await;
    let begin = format!(
        "DROP TABLE IF EXISTS stock, orders; \
         CREATE TABLE stock (sku text PRIMARY KEY, units_left bigint NOT NULL CHECK (units_left >= 0)) WITH (fillfactor = 50); \
         CREATE TABLE orders (id bigserial PRIMARY KEY, sku text NOT NULL, buyer text NOT NULL UNIQUE, status text NOT NULL, \
         at timestamptz NOT NULL DEFAULT now()); \
         INSERT INTO stock VALUES ('LANTERN-S', {buyers})"
    );
    operator.ask(&begin).await.unwrap();
    let mut counters = Vec::new();
    for _ in 0..CONNECTIONS {
        counters.push(Postgres::connect(address).await);
    }
    let round = rush(counters, buyers).await;
    let left = operator.ask("SELECT units_left FROM stock").await.unwrap();
    let sold = operator.ask("SELECT count(DISTINCT buyer) FROM orders").await.unwrap();
    assert_eq!((left, sold, round.claims), (vec!["0".to_owned()], vec![buyers.to_string()], buyers));
    round
}

// HTTP ------------------------------------------------------------------------------------------------------------------------

/// Posts claims over one connection, and reads no more of an answer than it must.
struct Http {
    stream: TcpStream,
    path: String,
    asked: Vec<u8>,
    answer: Vec<u8>,
}

impl Http {
    async fn all(address: SocketAddr, path: &str) -> Vec<Http> {
        let mut all = Vec::new();
        for _ in 0..CONNECTIONS {
            all.push(Http { stream: connect(address).await, path: path.to_owned(), asked: Vec::new(), answer: Vec::new() });
        }
        all
    }

    /// Where the body begins, and how long it is.
    fn head(&self) -> Option<(usize, usize)> {
        let end = self.answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&self.answer[..end]).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("the answer says its length");
        Some((end, length.parse().unwrap()))
    }
}

impl Counter for Http {
    async fn claim(&mut self, buyer: u64) -> bool {
        let Http { stream, path, asked, answer } = self;
        asked.clear();
        let body = r#"{"quantity":1}"#;
        write!(
            asked,
            "POST {path} HTTP/1.1\r\nhost: souk\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            token(buyer),
            body.len()
        )
        .unwrap();
        stream.write_all(asked).await.unwrap();
        answer.clear();
        loop {
            assert!(self.stream.read_buf(&mut self.answer).await.unwrap() > 0, "the door hangs up");
            if self.head().is_some_and(|(begins, length)| self.answer.len() >= begins + length) {
                break;
            }
        }
        match &self.answer[9..12] {
            b"201" => true,
            b"409" => false,
            _ => panic!("{}", String::from_utf8_lossy(&self.answer)),
        }
    }
}

/// Another process of this program or of the shop, which ends with this one.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node as it is shipped, with a data folder of its own.
struct Served {
    serving: Serving,
    data: tempfile::TempDir,
    url: String,
}

#[derive(Deserialize)]
struct Made {
    id: String,
}

impl Served {
    /// With these arguments besides.
    fn start(arguments: &[&str]) -> Served {
        let data = tempfile::tempdir().unwrap();
        let mut serve = Program::new(env!("CARGO_BIN_EXE_souk"));
        serve.args(["serve", "--no-limits", "--listen", "127.0.0.1:0", "--data"]).arg(data.path());
        serve.args(arguments);
        let serving = Serving(serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let (address, until) = (data.path().join("address"), Instant::now() + START_WITHIN);
        loop {
            let url = std::fs::read_to_string(&address).unwrap_or_default();
            if url.ends_with('\n') {
                return Served { serving, data, url: url.trim().to_owned() };
            }
            assert!(Instant::now() < until, "the node starts");
            std::thread::yield_now();
        }
    }

    async fn sell(&self, buyers: u64) -> Round {
        let token = Program::new(env!("CARGO_BIN_EXE_souk")).args(["admin", "token", "--data"]).arg(self.data.path()).output();
        let token = String::from_utf8(token.unwrap().stdout).unwrap();
        let client = Client::new(Origin::parse(&self.url).unwrap(), Limits::default());
        let mut client = client.with_token(token.trim()).unwrap();
        let mut post = async |path: &str, body: Value| -> Made {
            let answer = client.post(path, &[], body.to_string().into()).await.unwrap();
            assert!(answer.status.is_success(), "{path}: {}", String::from_utf8_lossy(&answer.body));
            serde_json::from_slice(&answer.body).unwrap()
        };
        let (sku, price) = (format!("LANTERN-{}", ulid::Ulid::new()), json!({ "amount": 900, "currency": "EUR" }));
        let variant = json!({ "sku": sku, "price": price, "options": ["One"], "stock": buyers });
        post("/api/products", json!({ "title": "Lantern", "options": ["Kind"], "variants": [variant] })).await;
        let now = Timestamp::from_millis(ulid::Ulid::new().timestamp_ms() as i64);
        let terms = json!({
            "sku": sku, "price": price, "quantity": buyers, "per_customer_limit": 1, "guests": true,
            "starts_at": now, "ends_at": now.plus_ms(3_600_000), "claim_seconds": 3_600,
        });
        let sale = format!("/api/flash-sales/{}", post("/api/flash-sales", terms).await.id);
        post(&format!("{sale}/approve"), json!({})).await;
        let address = self.url.strip_prefix("http://").unwrap().trim_end_matches('/').parse().unwrap();
        let round = rush(Http::all(address, &format!("{sale}/claims")).await, buyers).await;
        let shown: Value = serde_json::from_slice(&client.get(&sale, &[]).await.unwrap().body).unwrap();
        assert_eq!((&shown["held"], &shown["available"], round.claims), (&json!(buyers), &json!(0), buyers), "{shown}");
        round
    }
}

/// A route that reads the same and answers as much, and keeps nothing.
struct Bare {
    _serving: Serving,
    address: SocketAddr,
}

impl Bare {
    fn start() -> Bare {
        let mut program = Program::new(std::env::current_exe().unwrap());
        let mut serving = program.arg("bare").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(serving.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Bare { _serving: Serving(serving), address: line.trim().parse().unwrap() }
    }

    async fn answer(&self, buyers: u64) -> Round {
        // Whoever comes again is answered the same here.
        let mut round =
            rush(Http::all(self.address, "/api/flash-sales/fs_01M7XTJD39HAVHP9G020ZF53AX/claims").await, buyers).await;
        round.claims = buyers;
        round
    }
}

pub async fn serve_bare() {
    let claim = json!({
        "id": "clm_01M7XTJD39HAVHP9G020ZF53AX-0000001", "quantity": 1, "unit_price": { "amount": 900, "currency": "EUR" },
        "expires_at": Timestamp::from_millis(0),
    });
    let route = warp::path!("api" / "flash-sales" / String / "claims")
        .and(warp::post())
        .and(warp::header::<String>("authorization"))
        .and(warp::body::json())
        .map(move |_: String, _: String, _: Value| {
            warp::reply::with_status(warp::reply::json(&claim), warp::http::StatusCode::CREATED)
        });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    warp::serve(route).incoming(listener).run().await;
}

// In process --------------------------------------------------------------------------------------------------------------------

async fn in_process(buyers: u64) -> Round {
    let dir = tempfile::tempdir().unwrap();
    let Started { runtime, journal } = sale::start(dir.path(), 100).await;
    sale::open(&runtime, u32::try_from(buyers).unwrap()).await;
    let began = Instant::now();
    let attempts = buyers + buyers / AGAIN_EVERY;
    let claim = move |number: u64| super::claim(if number < buyers { number } else { (number - buyers) * AGAIN_EVERY });
    let (_, waits) = super::crowd(&runtime, CALLERS, move |number| number < attempts, claim, drop).await;
    let took = began.elapsed();
    let shown = sale::look(&runtime).await;
    assert_eq!((u64::from(shown.held), shown.free), (buyers, 0));
    drop(runtime);
    journal.close();
    Round { claims: buyers, took, waits }
}
