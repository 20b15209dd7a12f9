//! What a connection costs, and how many there may be.

use std::time::Duration;

use crate::client::Line;
use crate::server::{ADMIN, Souk, eventually};

const SOCKETS: usize = 1_000;
/// In a debug build; the aim of a release build is 20 KB.
const BYTES_MAX: u64 = 40_000;

async fn sessions(souk: &Souk) -> u64 {
    souk.get("/api/cluster").bearer(&ADMIN).send().await.expect(200).json()["live_sessions"].as_u64().unwrap()
}

/// Opens that many of a kind and returns what one of them costs the server, in bytes.
async fn cost(souk: &Souk, open: impl AsyncFn(&Souk) -> Line, opened: impl AsyncFn(&Souk) -> bool) -> u64 {
    // The first hundred pay for threads, arenas and caches, which the others share.
    let mut kept = Vec::new();
    for _ in 0..100 {
        kept.push(open(souk).await);
    }
    let before = souk.resident_bytes();
    for _ in 0..SOCKETS {
        kept.push(open(souk).await);
    }
    eventually(Duration::from_secs(10), async || opened(souk).await.then_some(())).await;
    souk.resident_bytes().saturating_sub(before) / SOCKETS as u64
}

async fn web_socket(souk: &Souk) -> Line {
    let call = souk.get("/ws").header("connection", "Upgrade").header("upgrade", "websocket");
    let call = call.header("sec-websocket-version", "13").header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let mut line = souk.connect().await;
    call.send_on(&mut line).await.expect(101);
    line
}

async fn keep_alive(souk: &Souk) -> Line {
    let mut line = souk.connect().await;
    souk.get("/health/live").send_on(&mut line).await.expect(200);
    line
}

/// What an idle WebSocket and an idle keep-alive connection cost, each on a server of its own: what the first kind gave
/// back would hide what the second takes.
async fn measure(program: &str) -> (u64, u64) {
    let (first, second) = (Souk::start_program(program, &[]).await, Souk::start_program(program, &[]).await);
    let sockets = cost(&first, web_socket, async |souk: &Souk| sessions(souk).await == SOCKETS as u64 + 100).await;
    let lines = cost(&second, keep_alive, async |_: &Souk| true).await;
    println!("{program}: an idle WebSocket takes {sockets} bytes, an idle keep-alive connection {lines}");
    eventually(Duration::from_secs(10), async || (sessions(&first).await == 0).then_some(())).await;
    (sockets, lines)
}

#[tokio::test]
async fn an_idle_connection_takes_little_memory() {
    let (sockets, lines) = measure(env!("CARGO_BIN_EXE_souk")).await;
    assert!(sockets < BYTES_MAX && lines < BYTES_MAX, "{sockets} {lines}");
}

/// `SOUK_RELEASE=target/release/souk cargo test --test door -- --ignored --nocapture` measures another build.
#[tokio::test]
#[ignore = "a measurement of the program that SOUK_RELEASE names"]
async fn an_idle_connection_of_another_build() {
    let program = std::env::var("SOUK_RELEASE").expect("SOUK_RELEASE names the program");
    measure(&program).await;
}

#[tokio::test]
async fn one_connection_too_many_is_turned_away_and_the_others_are_served() {
    let souk = Souk::start(&["--connections-max", "50"]).await;
    // The server's own start is looked at over a connection, which must be gone first.
    let connections = async || {
        let metrics = souk.get("/metrics").send().await.expect(200);
        let text = String::from_utf8(metrics.body).unwrap();
        let line = text.lines().find(|line| line.starts_with("souk_http_connections ")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    eventually(Duration::from_secs(5), async || (connections().await <= 1.0).then_some(())).await;
    let mut first = eventually(Duration::from_secs(10), async || {
        let mut lines = Vec::new();
        for _ in 0..50 {
            let mut line = souk.connect().await;
            line.write(&souk.get("/health/live").bytes()).await;
            lines.push(line);
        }
        for line in &mut lines {
            // A connection of the question before may not be gone yet.
            if line.next_answer(false).await?.status != 200 {
                return None;
            }
        }
        Some(lines)
    })
    .await;
    for _ in 0..20 {
        let mut one_more = souk.connect().await;
        let answer = one_more.answer(false).await;
        assert_eq!((answer.header("retry-after"), answer.header("connection")), (Some("1"), Some("close")));
        answer.problem(503, "too-many-connections");
        assert!(one_more.rest(Duration::from_secs(5)).await.is_empty());
    }
    // Whoever speaks before being turned away hears it all the same.
    for _ in 0..20 {
        let mut one_more = souk.connect().await;
        one_more.write(&souk.get("/api/products").bytes()).await;
        one_more.answer(false).await.problem(503, "too-many-connections");
    }
    for line in &mut first {
        souk.get("/health/live").send_on(line).await.expect(200);
    }
    first.truncate(49);
    eventually(Duration::from_secs(5), async || {
        let mut line = souk.connect().await;
        line.write(&souk.get("/health/live").bytes()).await;
        line.next_answer(false).await.filter(|answer| answer.status == 200).map(drop)
    })
    .await;
}
