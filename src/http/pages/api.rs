//! How a page asks the API: as any other client would, but in this process and without a socket.
//!
//! So whatever a page shows or does is admitted, limited, decided and repeated safely where the API's own requests are. No
//! page may look at an entity by another way.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use warp::http::Method;
use warp::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue};

use super::super::Door;
use super::super::answer::JSON;
use super::super::client_address::Peer;
use super::super::idempotency::IDEMPOTENCY_KEY;
use super::super::request::{Request, X_REQUEST_ID};
use super::super::routes::{self, Head};

/// A caller of the API, on behalf of the browser that sent this request.
#[derive(Clone, Copy)]
pub struct Api<'a> {
    pub door: &'a Arc<Door>,
    pub request: &'a Request,
    pub token: Option<&'a str>,
}

/// What the API said no with: RFC 9457's problem, as far as pages tell of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Refused {
    pub status: u16,
    #[serde(rename = "type")]
    pub problem: String,
    pub title: String,
    pub detail: Option<String>,
    pub errors: Vec<Wrong>,
    pub available: Option<u64>,
    pub starts_at: Option<String>,
    pub bits: Option<u8>,
}

/// A field that is wrong, by its JSON Pointer.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Wrong {
    pub pointer: String,
    pub message: String,
}

impl Refused {
    pub fn is(&self, problem: &str) -> bool {
        self.problem.strip_prefix("/problems/") == Some(problem)
    }

    /// Why, in a sentence.
    pub fn reason(&self) -> String {
        let wrong = self.errors.iter().map(|wrong| format!("{}: {}.", wrong.pointer.trim_start_matches('/'), wrong.message));
        std::iter::once(self.headline()).chain(wrong).collect::<Vec<_>>().join(" ")
    }

    /// The same where a form's fields say the rest.
    pub fn headline(&self) -> String {
        match &self.detail {
            // Who filled in a form knows of no body.
            _ if self.is("invalid-body") && !self.errors.is_empty() => "Not all of this can be right.".to_owned(),
            Some(detail) if self.errors.is_empty() => format!("{} {detail}", self.title),
            _ => self.title.clone(),
        }
    }

    /// What is wrong with a field.
    pub fn wrong_at(&self, pointer: &str) -> Option<&str> {
        self.errors.iter().find(|wrong| wrong.pointer == pointer).map(|wrong| wrong.message.as_str())
    }

    /// Whether whoever asked can do something about it here, and not only by logging in.
    pub fn can_be_mended(&self) -> bool {
        self.status < 500 && self.status != 401
    }

    fn unreadable(why: &dyn std::fmt::Display) -> Self {
        tracing::error!(%why, "a page cannot read what the API answers");
        Refused { status: 500, title: "Something went wrong on our side.".into(), ..Refused::default() }
    }
}

/// What was granted.
pub struct Granted<T> {
    /// Of the thing that is shown; 0 when the answer does not say it.
    pub version: u64,
    pub content: T,
}

impl<'a> Api<'a> {
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Refused> {
        self.ask(Method::GET, path, None, None).await.map(|granted| granted.content)
    }

    /// `None` when there is no such thing, or none that the caller may see.
    pub async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Refused> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(refused) if refused.status == 404 => Ok(None),
            Err(refused) => Err(refused),
        }
    }

    /// The same, with the version that it stands at.
    pub async fn find_at<T: DeserializeOwned>(&self, path: &str) -> Result<Option<(T, u64)>, Refused> {
        match self.ask(Method::GET, path, None, None).await {
            Ok(granted) => Ok(Some((granted.content, granted.version))),
            Err(refused) if refused.status == 404 => Ok(None),
            Err(refused) => Err(refused),
        }
    }

    /// Under a key, so that a form that is sent twice does one thing.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, key: &str, body: &Value) -> Result<Granted<T>, Refused> {
        self.ask(Method::POST, path, Some(key), Some(body)).await
    }

    pub async fn patch<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<Granted<T>, Refused> {
        self.ask(Method::PATCH, path, None, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Result<(), Refused> {
        self.ask::<Option<Value>>(Method::DELETE, path, None, None).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Granted<T>, Refused> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let headers = self.headers(key, body.len()).map_err(|error| Refused::unreadable(&error))?;
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let peer = Peer { address: self.request.client, secure: self.request.secure };
        let head = Head { method, path: path.to_owned(), query: query.to_owned(), headers, upgrade: None, peer };
        let body = stream::iter([Ok::<_, Infallible>(body)]);
        // Boxed, because an answer to a page is made of answers.
        let answering: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(routes::answer(Arc::clone(self.door), Box::new(head), body));
        let (parts, body) = answering.await.into_parts();
        let body = body.collect().await.map_err(|error| Refused::unreadable(&error))?.to_bytes();
        if !parts.status.is_success() {
            let refused = serde_json::from_slice(&body).map_err(|error| Refused::unreadable(&error))?;
            return Err(refused);
        }
        let content = if body.is_empty() { b"null" } else { &body[..] };
        let content = serde_json::from_slice(content).map_err(|error| Refused::unreadable(&error))?;
        let etag = parts.headers.get(ETAG).and_then(|etag| etag.to_str().ok());
        let version = etag.and_then(|etag| etag.trim_matches('"').parse().ok()).unwrap_or(0);
        Ok(Granted { version, content })
    }

    fn headers(&self, key: Option<&str>, length: usize) -> Result<HeaderMap, warp::http::header::InvalidHeaderValue> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(X_REQUEST_ID, HeaderValue::from_str(&self.request.id)?);
        if let Some(token) = self.token {
            headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}"))?);
        }
        if let Some(key) = key {
            headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_str(key)?);
        }
        for name in ["user-agent", "traceparent"].map(HeaderName::from_static) {
            headers.extend(self.request.headers.get(&name).map(|value| (name, value.clone())));
        }
        Ok(headers)
    }
}
