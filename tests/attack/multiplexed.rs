//! HTTP/2 by hand: streams that are opened to be forgotten, reset, or never read.

use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::node::Node;
use crate::shopper::buy;
use crate::wire::Line;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const CLOSED: Duration = Duration::from_secs(40);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The head of `GET /api/products`, as HPACK without a table.
fn get() -> Vec<u8> {
    let mut head = vec![0x82, 0x86, 0x04, 13];
    head.extend(b"/api/products");
    head.extend([0x01, 4]);
    head.extend(b"souk");
    head
}

async fn greeted(node: &Node, settings: &[u8]) -> Line {
    let mut line = node.connect().await;
    line.write(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).await;
    line
}

#[tokio::test]
async fn streams_that_are_reset_as_fast_as_they_are_opened_end_the_connection() {
    let node = Node::start(&[]).await;
    let before = node.resident_bytes();
    let mut line = greeted(&node, &[]).await;
    let mut sent = 0_u32;
    // END_STREAM and END_HEADERS, then at once: cancel.
    while sent < 200_000 {
        let pairs: Vec<u8> = (0..100)
            .flat_map(|n| {
                let stream = (sent + n) * 2 + 1;
                [frame(HEADERS, 0x5, stream, &get()), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
            })
            .collect();
        sent += 100;
        if !line.write(&pairs).await {
            break;
        }
    }
    assert!(sent < 200_000, "it was let go on for ever");
    assert!(node.resident_bytes().saturating_sub(before) < 64 * 1024 * 1024);
    buy(&node).await;
}

#[tokio::test]
async fn a_head_in_endless_continuations_ends_the_connection() {
    let node = Node::start(&[]).await;
    let before = node.resident_bytes();
    let mut line = greeted(&node, &[]).await;
    line.write(&frame(HEADERS, 0x1, 1, &get())).await;
    // A literal header of 16,000 bytes, never the last one.
    let mut more = vec![0x00, 1, b'x', 0x7f, 0x81, 0x7c];
    more.extend(vec![b'a'; 16_000]);
    let more = frame(CONTINUATION, 0, 1, &more[..16_000]);
    let mut sent = 0;
    while sent < 10_000 && line.write(&more).await {
        sent += 1;
    }
    assert!(sent < 10_000, "it was let go on for ever");
    assert!(node.resident_bytes().saturating_sub(before) < 64 * 1024 * 1024);
    node.is_well().await;
}

#[tokio::test]
async fn a_connection_that_greets_and_asks_nothing_is_cut_off() {
    let node = Node::start(&[]).await;
    let mut line = greeted(&node, &[]).await;
    let mut buffer = [0; 1_024];
    let closed =
        tokio::time::timeout(CLOSED, async { while line.stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {} });
    assert!(closed.await.is_ok());
    node.is_well().await;
}
