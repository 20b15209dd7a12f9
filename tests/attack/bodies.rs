//! Bodies that are far too large, or far too deep.

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::node::Node;
use crate::shopper::{buy, fill_cart};
use crate::wire::{Heard, Line};

const MIB: usize = 1024 * 1024;
const HUGE: usize = 100 * MIB;
/// What the node may take more while it refuses all of them. It would be eight times a hundred MiB if it kept them.
const GROWTH_MAX: u64 = 64 * MIB as u64;

/// Sends a head and then as much of a huge body as the node takes, and listens at the same time, as a careful client does.
async fn flood(node: &Node, head: &str, piece: Vec<u8>) -> Option<Heard> {
    let stream = TcpStream::connect(node.address).await.unwrap();
    let (read, mut write) = stream.into_split();
    let head = head.as_bytes().to_vec();
    let sending = tokio::spawn(async move {
        write.write_all(&head).await?;
        let mut sent = 0;
        while sent < HUGE {
            write.write_all(&piece).await?;
            sent += piece.len();
        }
        std::io::Result::Ok(write)
    });
    let heard = Line::on(tokio::io::join(read, tokio::io::sink())).hear().await;
    sending.abort();
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_mebibytes_are_refused_and_never_held() {
    let node = Node::start(&[]).await;
    buy(&node).await;
    let admin = &node.admin;
    let before = node.resident_bytes();
    let plain = vec![b'x'; MIB];
    let chunk = [b"100000\r\n".to_vec(), plain.clone(), b"\r\n".to_vec()].concat();
    for target in ["POST /api/carts", "POST /api/orders", "POST /api/products", "PATCH /api/inventory/LANTERN-S"] {
        let start =
            format!("{target} HTTP/1.1\r\nhost: souk\r\nauthorization: Bearer {admin}\r\ncontent-type: application/json\r\n");
        let announced = format!("{start}content-length: {HUGE}\r\n\r\n");
        let unannounced = format!("{start}transfer-encoding: chunked\r\n\r\n");
        let floods = (0..8).map(|n| match n % 2 {
            0 => flood(&node, &announced, plain.clone()),
            _ => flood(&node, &unannounced, chunk.clone()),
        });
        let (heard, largest) = tokio::join!(join_all(floods), async {
            let mut largest = 0;
            for _ in 0..20 {
                largest = largest.max(node.resident_bytes());
                node.is_well().await;
            }
            largest
        });
        for (n, heard) in heard.into_iter().enumerate() {
            heard.unwrap_or_else(|| panic!("{target} {n}: closed without a word")).is_problem(413, "too-large");
        }
        let growth = largest.max(node.resident_bytes()).saturating_sub(before);
        assert!(growth < GROWTH_MAX, "{target}: {growth} bytes more");
    }
    // What is refused for another reason is not read either.
    let nobody = format!("POST /api/products HTTP/1.1\r\nhost: souk\r\ncontent-length: {HUGE}\r\n\r\n");
    flood(&node, &nobody, plain).await.unwrap().is_problem(401, "unauthorized");
    buy(&node).await;
}

#[tokio::test]
async fn json_that_is_nested_too_deeply_is_refused() {
    let node = Node::start(&[]).await;
    let mut line = node.connect().await;
    let (cart, token) = fill_cart(&mut line).await;
    let deep = |open: &str, close: &str, depth: usize| format!("{}{}", open.repeat(depth), close.repeat(depth));
    let bodies = [
        "[".repeat(MIB - 1),
        "{\"a\":".repeat(200_000),
        deep("[", "]", 400_000),
        format!("{{\"sku\":{}}}", deep("[", "]", 100_000)),
        format!("{{\"x\":{}}}", deep("{\"x\":[", "]}", 50_000)),
        format!("{{\"payment\":{{\"provider\":{}1{}}}}}", "{\"a\":".repeat(50_000), "}".repeat(50_000)),
    ];
    let paths = [
        "/api/carts".to_owned(),
        format!("/api/carts/{cart}/items"),
        format!("/api/carts/{cart}/checkout"),
        "/api/orders".to_owned(),
    ];
    for path in &paths {
        for body in &bodies {
            let headers = format!("content-type: application/json\r\nauthorization: Bearer {token}\r\n");
            let heard = line.ask("POST", path, &headers, body).await;
            assert_eq!(heard.status, 400, "{path} {}…: {}", &body[..40], heard.text());
            assert!(heard.body.len() < 2_000, "{}", heard.text());
        }
    }
    node.is_well().await;
}
