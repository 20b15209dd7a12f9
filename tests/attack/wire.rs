//! HTTP/1.1 by hand, so that also what no proper client would send can be sent.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub const PATIENCE: Duration = Duration::from_secs(40);

/// One connection.
pub struct Line<T = TcpStream> {
    pub stream: T,
    read: Vec<u8>,
}

#[derive(Debug)]
pub struct Heard {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Heard {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {} {}", self.head, self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.split_once(": ").filter(|(given, _)| *given == name).map(|(_, value)| value))
    }

    /// It is a problem of this type.
    #[track_caller]
    pub fn is_problem(&self, status: u16, name: &str) {
        assert_eq!(self.status, status, "{} {}", self.head, self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.head);
        assert_eq!(self.json()["type"], format!("/problems/{name}"), "{}", self.text());
    }
}

impl Line {
    pub async fn open(address: SocketAddr) -> Line {
        let stream = timeout(PATIENCE, TcpStream::connect(address)).await.unwrap().unwrap();
        stream.set_nodelay(true).unwrap();
        Line::on(stream)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Line<T> {
    pub fn on(stream: T) -> Line<T> {
        Line { stream, read: Vec::new() }
    }

    /// Whether it could be sent.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.is_ok_and(|written| written.is_ok())
    }

    /// A request with these further header lines, and its answer.
    pub async fn ask(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Heard {
        let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let head = format!("{method} {path} HTTP/1.1\r\nhost: souk\r\n{headers}{length}\r\n{body}");
        assert!(self.write(head.as_bytes()).await, "the connection is closed");
        self.hear().await.unwrap_or_else(|| panic!("{method} {path}: no answer"))
    }

    /// The next answer; `None` when the connection ends without one.
    pub async fn hear(&mut self) -> Option<Heard> {
        timeout(PATIENCE, self.read_answer()).await.expect("no answer in time")
    }

    async fn read_answer(&mut self) -> Option<Heard> {
        loop {
            let end = loop {
                match self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                    Some(end) => break end + 4,
                    None if self.more().await => {}
                    None => return None,
                }
            };
            let head = String::from_utf8(self.read.drain(..end).collect()).unwrap();
            let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
            let mut heard = Heard { status, head, body: Vec::new() };
            if status == 100 {
                continue;
            }
            if let Some(length) = heard.header("content-length") {
                let length: usize = length.parse().unwrap();
                while self.read.len() < length {
                    if !self.more().await {
                        return None;
                    }
                }
                heard.body = self.read.drain(..length).collect();
            }
            return Some(heard);
        }
    }

    /// Reads on; false when the connection has ended.
    async fn more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.read.extend_from_slice(&buffer[..count]);
                true
            }
        }
    }

    /// Whether this text comes before the connection ends.
    pub async fn until_text(&mut self, text: &str) -> bool {
        let awaited = async {
            while !self.read.windows(text.len()).any(|window| window == text.as_bytes()) {
                if !self.more().await {
                    return false;
                }
            }
            true
        };
        timeout(PATIENCE, awaited).await.unwrap_or(false)
    }

    /// Everything that still comes until the connection is closed, which must be within this time.
    pub async fn rest(&mut self, within: Duration) -> Vec<u8> {
        timeout(within, async { while self.more().await {} }).await.expect("the connection was not closed in time");
        std::mem::take(&mut self.read)
    }
}
