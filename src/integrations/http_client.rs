//! A small JSON client: one keep-alive HTTP/1.1 connection, used by one caller at a time.
//!
//! For talking to a Souk node from the command line. Plain `http` only: TLS belongs to the proxy in front of a node.
//! A connection is opened when it is first needed, and again when the other side has closed it. A request that went out
//! on a connection that was closed under it is sent once more on a fresh one, if that cannot do a thing twice: when the
//! request provably never left, is a GET or DELETE, or bears an `Idempotency-Key`.
//!
//! It must never interpret an answer: a 503 is an answer like any other, and whether to try again is the caller's rule.

use std::fmt::{self, Write as _};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The largest answer that is read.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Requests are bounded by the server; this bounds what a hostile server can make us hold for its headers.
const HEADERS_BYTES_MAX: usize = 64 * 1024;

pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A header that goes with one request.
pub type Header = (HeaderName, HeaderValue);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("`{url}` is not a URL of the form http://host:port")]
    BadUrl { url: String },
    #[error("the token has characters that no header can carry")]
    BadToken,
    #[error("cannot connect to {authority}: {source}")]
    Connect { authority: String, source: std::io::Error },
    #[error("no connection to {authority} within {limit_ms} ms")]
    ConnectTimeout { authority: String, limit_ms: u128 },
    #[error("no answer within {limit_ms} ms")]
    Timeout { limit_ms: u128 },
    #[error("the request could not be written: {0}")]
    BadRequest(#[from] hyper::http::Error),
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the answer broke off or is larger than {} MiB: {reason}", ANSWER_BYTES_MAX / (1024 * 1024))]
    Body { reason: String },
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub connect: Duration,
    /// From the first byte of a request, connecting included, to the last byte of its answer.
    pub request: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connect: Duration::from_secs(3), request: Duration::from_secs(10) }
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// How long the server asks to wait, if it says so in seconds.
    pub fn retry_after(&self) -> Option<Duration> {
        self.header("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs)
    }
}

/// Where a client connects to. Shared by the clients of one server.
#[derive(Debug, Clone)]
pub struct Origin {
    authority: Arc<str>,
    host: HeaderValue,
    /// What the URL had after the authority, put before each path; no slash at its end.
    prefix: Arc<str>,
}

impl Origin {
    pub fn parse(url: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::BadUrl { url: url.to_owned() };
        let uri: hyper::Uri = url.parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?;
        if uri.scheme_str() != Some("http") || authority.as_str().contains('@') || uri.query().is_some() {
            return Err(bad());
        }
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?;
        let port = authority.port_u16().unwrap_or(80);
        Ok(Origin {
            authority: format!("{}:{port}", authority.host()).into(),
            host,
            prefix: uri.path().trim_end_matches('/').into(),
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.prefix)
    }
}

pub struct Client {
    origin: Origin,
    limits: Limits,
    /// Sent with each request that brings no `Authorization` of its own.
    bearer: Option<HeaderValue>,
    connection: Option<Connection>,
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Moves the bytes, as part of whoever waits for them: a task of its own would cost two changes of task a request.
    driver: http1::Connection<TokioIo<TcpStream>, Full<Bytes>>,
}

impl Connection {
    /// Whether the other side has closed it while nobody was looking.
    fn is_closed(&mut self) -> bool {
        (&mut self.driver).now_or_never().is_some() || self.sender.is_closed()
    }

    /// Sends a request and reads its answer; also says whether the connection can be used again.
    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<(Answer, bool), Failure> {
        let Connection { sender, driver } = self;
        let mut answered = pin!(async {
            if let Err(error) = sender.ready().await {
                return Err(Failure { error: error.into(), never_sent: true });
            }
            let response = sender.try_send_request(request).await.map_err(|mut failed| {
                let never_sent = failed.take_message().is_some();
                Failure { error: failed.into_error().into(), never_sent }
            })?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| ClientError::Body { reason: error.to_string() })?.to_bytes();
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        });
        tokio::select! {
            biased;
            answer = &mut answered => return Ok((answer?, true)),
            // Its error reaches the exchange itself.
            _ = driver => {}
        }
        Ok((answered.await?, false))
    }
}

/// Why an attempt failed, and whether it may be made again.
struct Failure {
    error: ClientError,
    never_sent: bool,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Failure { error, never_sent: false }
    }
}

impl Client {
    pub fn new(origin: Origin, limits: Limits) -> Self {
        Client { origin, limits, bearer: None, connection: None }
    }

    pub fn with_token(mut self, token: &str) -> Result<Self, ClientError> {
        self.bearer = Some(bearer(token)?);
        Ok(self)
    }

    pub async fn get(&mut self, path: &str, headers: &[Header]) -> Result<Answer, ClientError> {
        self.send(Method::GET, path, headers, None).await
    }

    pub async fn post(&mut self, path: &str, headers: &[Header], body: Bytes) -> Result<Answer, ClientError> {
        self.send(Method::POST, path, headers, Some(body)).await
    }

    pub async fn patch(&mut self, path: &str, headers: &[Header], body: Bytes) -> Result<Answer, ClientError> {
        self.send(Method::PATCH, path, headers, Some(body)).await
    }

    pub async fn delete(&mut self, path: &str, headers: &[Header]) -> Result<Answer, ClientError> {
        self.send(Method::DELETE, path, headers, None).await
    }

    /// Sends one request and reads its whole answer. When it fails or is cancelled, the connection goes with it: what
    /// is still on the wire would be taken for the answer to the next request.
    async fn send(&mut self, method: Method, path: &str, headers: &[Header], body: Option<Bytes>) -> Result<Answer, ClientError> {
        let limit = self.limits.request;
        match timeout(limit, self.send_with_second_chance(method, path, headers, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Timeout { limit_ms: limit.as_millis() }),
        }
    }

    async fn send_with_second_chance(
        &mut self,
        method: Method,
        path: &str,
        headers: &[Header],
        body: Option<Bytes>,
    ) -> Result<Answer, ClientError> {
        let harmless_twice =
            method == Method::GET || method == Method::DELETE || headers.iter().any(|(name, _)| *name == IDEMPOTENCY_KEY);
        if let Some(mut connection) = self.connection.take()
            && !connection.is_closed()
        {
            let request = self.request(&method, path, headers, body.clone())?;
            match self.attempt(connection, request).await {
                Ok(answer) => return Ok(answer),
                Err(failure) if failure.never_sent => {}
                Err(Failure { error: ClientError::Broken(_), .. }) if harmless_twice => {}
                Err(failure) => return Err(failure.error),
            }
        }
        let request = self.request(&method, path, headers, body)?;
        let connection = self.connect().await?;
        self.attempt(connection, request).await.map_err(|failure| failure.error)
    }

    async fn attempt(&mut self, mut connection: Connection, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let (answer, reusable) = connection.exchange(request).await?;
        self.connection = reusable.then_some(connection);
        Ok(answer)
    }

    async fn connect(&self) -> Result<Connection, ClientError> {
        let authority = &*self.origin.authority;
        let stream = match timeout(self.limits.connect, TcpStream::connect(authority)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(ClientError::Connect { authority: authority.to_owned(), source }),
            Err(_) => {
                let limit_ms = self.limits.connect.as_millis();
                return Err(ClientError::ConnectTimeout { authority: authority.to_owned(), limit_ms });
            }
        };
        // Requests are small: waiting to fill a packet would only add 40 ms to each.
        let nodelay = stream.set_nodelay(true);
        nodelay.map_err(|source| ClientError::Connect { authority: authority.to_owned(), source })?;
        let (sender, driver) = http1::Builder::new().max_buf_size(HEADERS_BYTES_MAX).handshake(TokioIo::new(stream)).await?;
        Ok(Connection { sender, driver })
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        headers: &[Header],
        body: Option<Bytes>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let request = Request::builder().method(method).header(HOST, &self.origin.host);
        let request = match &*self.origin.prefix {
            "" => request.uri(path),
            prefix => request.uri(format!("{prefix}{path}")),
        };
        let has_body = body.is_some();
        let mut request = request.body(Full::new(body.unwrap_or_default()))?;
        let fields = request.headers_mut();
        if has_body {
            fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        for (name, value) in headers {
            fields.insert(name, value.clone());
        }
        if let Some(bearer) = &self.bearer
            && !fields.contains_key(AUTHORIZATION)
        {
            fields.insert(AUTHORIZATION, bearer.clone());
        }
        Ok(request)
    }
}

/// The value of an `Authorization` header, kept out of logs.
pub fn bearer(token: &str) -> Result<HeaderValue, ClientError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| ClientError::BadToken)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Writes `text` as one segment of a path or one value of a query.
pub fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

    /// A server that answers one request on each connection and then closes it, with or without a word. Returns how
    /// many connections it has taken.
    async fn fickle_server(answers_on_a_connection: usize) -> (Origin, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = Origin::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&taken);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                for _ in 0..answers_on_a_connection {
                    let mut request = [0; 4096];
                    if stream.read(&mut request).await.unwrap_or(0) == 0 {
                        break;
                    }
                    stream.write_all(OK).await.unwrap();
                }
                // The next request is read and then dropped with the connection.
                let mut request = [0; 1];
                let _ = stream.read(&mut request).await;
            }
        });
        (origin, taken)
    }

    #[tokio::test]
    async fn a_connection_is_kept_and_a_closed_one_is_replaced_once() {
        let (origin, taken) = fickle_server(2).await;
        let mut client = Client::new(origin, Limits::default());
        for _ in 0..4 {
            assert_eq!(client.get("/", &[]).await.unwrap().body, "{}");
        }
        assert_eq!(taken.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_post_that_may_have_arrived_is_sent_again_only_with_an_idempotency_key() {
        let (origin, _) = fickle_server(1).await;
        let mut client = Client::new(origin, Limits::default());
        client.get("/", &[]).await.unwrap();
        let lost = client.post("/", &[], Bytes::from_static(b"{}")).await;
        assert!(matches!(lost, Err(ClientError::Broken(_))), "{lost:?}");

        client.get("/", &[]).await.unwrap();
        let key = (IDEMPOTENCY_KEY, HeaderValue::from_static("k"));
        assert_eq!(client.post("/", &[key], Bytes::from_static(b"{}")).await.unwrap().status, 200);
    }

    #[tokio::test]
    async fn a_server_that_hangs_costs_the_request_timeout_and_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = Origin::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let limits = Limits { request: Duration::from_millis(50), ..Limits::default() };
        let mut client = Client::new(origin, limits);
        assert!(matches!(client.get("/", &[]).await, Err(ClientError::Timeout { limit_ms: 50 })));
        assert!(client.connection.is_none());
    }

    #[test]
    fn only_plain_http_urls_are_taken() {
        for url in ["https://a", "a:80", "http://", "", "http://u:p@a", "ftp://a", "http://a/?q"] {
            assert!(Origin::parse(url).is_err(), "{url}");
        }
        assert_eq!(Origin::parse("http://souk.test/base/").unwrap().to_string(), "http://souk.test:80/base");
        assert_eq!(Origin::parse("http://[::1]:8080").unwrap().to_string(), "http://[::1]:8080");
    }

    #[test]
    fn a_segment_of_a_path_is_encoded() {
        assert_eq!(percent_encoded("red shirt/XL-ü_~."), "red%20shirt%2FXL-%C3%BC_~.");
    }

    #[test]
    fn a_token_never_shows_in_debug_output() {
        assert!(!format!("{:?}", bearer("secret").unwrap()).contains("secret"));
    }
}
