//! HTTP/1.1 by hand, with the conventions of the contract checked on every answer.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// One request.
#[derive(Clone)]
pub struct Call {
    address: SocketAddr,
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Call {
    pub fn new(address: SocketAddr, method: &str, path: &str) -> Self {
        Call { address, method: method.into(), path: path.into(), headers: Vec::new(), body: None }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same call to a server that has come back elsewhere.
    pub fn to(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", self.method, self.path, self.address);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = &self.body {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend(self.body.iter().flatten());
        bytes
    }

    /// On a connection of its own.
    pub async fn send(self) -> Answer {
        let mut line = Line::open(self.address).await;
        self.send_on(&mut line).await
    }

    pub async fn send_on(self, line: &mut Line) -> Answer {
        line.write(&self.bytes()).await;
        let answer = line.answer(self.method == "HEAD").await;
        answer.check(&self)
    }
}

/// One connection.
pub struct Line {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Line {
    pub async fn open(address: SocketAddr) -> Line {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Line { stream, read: Vec::new() }
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next answer; there must be one.
    pub async fn answer(&mut self, is_head: bool) -> Answer {
        self.next_answer(is_head).await.expect("the connection was closed without an answer")
    }

    /// The next answer, or `None` when the connection ends before one begins.
    pub async fn next_answer(&mut self, is_head: bool) -> Option<Answer> {
        timeout(PATIENCE, self.read_answer(is_head)).await.expect("no answer in time")
    }

    async fn read_answer(&mut self, is_head: bool) -> Option<Answer> {
        let end = loop {
            match self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None if self.more().await => {}
                None if self.read.is_empty() => return None,
                None => panic!("the connection was closed within a head: {:?}", String::from_utf8_lossy(&self.read)),
            }
        };
        let head: Vec<u8> = self.read.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                (name.to_ascii_lowercase(), value.trim().to_owned())
            })
            .collect();
        let mut answer = Answer { status, headers, body: Vec::new(), asked: String::new() };
        if status < 200 && status != 101 {
            return Box::pin(self.read_answer(is_head)).await;
        }
        if !is_head && status != 101 && status != 204 && status != 304 {
            answer.body = match (answer.header("content-length"), answer.header("transfer-encoding")) {
                (Some(length), _) => self.take(length.parse().unwrap()).await,
                (None, Some("chunked")) => self.chunks().await,
                _ => panic!("a body without a length: {head}"),
            };
        }
        Some(answer)
    }

    async fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await {
            body.extend(chunk);
        }
        body
    }

    /// The next chunk of a chunked body, `None` at its end.
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.until(b"\r\n").await;
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let chunk = self.take(size).await;
        assert_eq!(self.take(2).await, b"\r\n");
        (size > 0).then_some(chunk)
    }

    /// The head of an answer whose body is read by [`Line::text_until`].
    pub async fn head(&mut self) -> String {
        timeout(PATIENCE, self.until(b"\r\n\r\n")).await.expect("no head in time")
    }

    async fn until(&mut self, end: &[u8]) -> String {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end) {
                return String::from_utf8(self.read.drain(..at + end.len()).collect()).unwrap();
            }
            assert!(self.more().await, "the connection was closed");
        }
    }

    /// Text of a chunked body up to a blank line, which ends a server-sent event; `None` when the body has ended.
    pub async fn event(&mut self, pending: &mut String) -> Option<String> {
        loop {
            if let Some(at) = pending.find("\n\n") {
                return Some(pending.drain(..at + 2).collect());
            }
            let chunk = timeout(PATIENCE, self.chunk()).await.expect("no event in time")?;
            pending.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(self.more().await, "the connection was closed within a body");
        }
        self.read.drain(..count).collect()
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

    /// This many bytes, whatever they are.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        timeout(PATIENCE, self.take(count)).await.expect("nothing in time")
    }

    /// Everything that still comes until the connection is closed.
    pub async fn rest(&mut self, within: Duration) -> Vec<u8> {
        timeout(within, async { while self.more().await {} }).await.expect("the connection was not closed in time");
        std::mem::take(&mut self.read)
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// What it answers, for whoever reads a failure.
    asked: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self}"))
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// The body of a problem of this type.
    #[track_caller]
    pub fn problem(self, status: u16, name: &str) -> Value {
        assert_eq!(self.status, status, "{self}");
        let body = self.json();
        assert_eq!(body["type"], format!("/problems/{name}"), "{self}");
        body
    }

    pub fn position(&self) -> u64 {
        self.header("souk-position").unwrap_or_else(|| panic!("no position: {self}")).parse().unwrap()
    }

    /// The position as a header's value, also of an answer that has none.
    pub fn position_or_0(&self) -> String {
        self.header("souk-position").unwrap_or("0").to_owned()
    }

    pub fn etag(&self) -> String {
        self.header("etag").unwrap_or_else(|| panic!("no entity tag: {self}")).to_owned()
    }

    /// What every answer keeps to.
    pub fn check(mut self, call: &Call) -> Self {
        let asked = format!("{} {}", call.method, call.path);
        self.asked.clone_from(&asked);
        let id = self.header("x-request-id").unwrap_or_else(|| panic!("{asked}: no request id: {self}"));
        assert!((1..=64).contains(&id.len()), "{asked}: {self}");
        assert_eq!(self.header("x-content-type-options"), Some("nosniff"), "{asked}: {self}");
        // Only pages tell people what went wrong.
        let is_page = !call.path.starts_with("/api") && self.header("content-type") == Some("text/html; charset=utf-8");
        if self.status >= 400 && !is_page {
            assert_eq!(self.header("content-type"), Some("application/problem+json"), "{asked}: {self}");
            if call.method != "HEAD" {
                let body = self.json();
                assert_eq!(body["status"], self.status, "{asked}: {self}");
                assert!(body["type"].as_str().is_some_and(|kind| kind.starts_with("/problems/")), "{asked}: {self}");
                assert!(body["title"].as_str().is_some_and(|title| title.ends_with('.')), "{asked}: {self}");
                if self.header("idempotency-replayed").is_none() {
                    assert_eq!(body["request_id"], id, "{asked}: {self}");
                }
                for error in body["errors"].as_array().into_iter().flatten() {
                    let pointer = error["pointer"].as_str().unwrap();
                    assert!(pointer.is_empty() || pointer.starts_with('/'), "{asked}: {self}");
                    assert!(error["message"].is_string(), "{asked}: {self}");
                }
            }
        }
        if self.status == 503 || self.status == 429 {
            assert!(self.header("retry-after").is_some(), "{asked}: {self}");
        }
        self
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {:?} {}", self.asked, self.status, self.headers, String::from_utf8_lossy(&self.body))
    }
}
