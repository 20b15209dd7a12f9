//! What a handler gives back.

use serde::Serialize;
use warp::http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use warp::http::{Response as HttpResponse, StatusCode};
use warp::reply::Response;

use super::problem::Problem;
use crate::persistence::{Position, Version};

pub const SOUK_POSITION: HeaderName = HeaderName::from_static("souk-position");
pub const JSON: &str = "application/json";

/// An answer before it becomes a response.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
    /// The account whose key seals the body where it is kept; `None` for the caller's own.
    pub personal_to: Option<String>,
}

pub enum Body {
    Bytes(Vec<u8>),
    /// A stream or an upgrade, made by warp.
    Response(Box<Response>),
}

impl Answer {
    pub fn empty(status: StatusCode) -> Self {
        Answer { status, headers: HeaderMap::new(), body: Body::Bytes(Vec::new()), personal_to: None }
    }

    pub fn json<T: Serialize + ?Sized>(status: StatusCode, content: &T) -> Result<Self, Problem> {
        let mut body = Vec::with_capacity(512);
        serde_json::to_writer(&mut body, content).map_err(|error| Problem::internal("an answer cannot be written", &error))?;
        Ok(Answer::bytes(status, JSON, body))
    }

    pub fn bytes(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Self {
        let mut answer = Answer { body: Body::Bytes(body), ..Answer::empty(status) };
        answer.headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        answer
    }

    pub fn response(response: Response) -> Self {
        let status = response.status();
        Answer { body: Body::Response(Box::new(response)), ..Answer::empty(status) }
    }

    /// Sets a header. A value that no header can have is left out.
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub fn personal_to(mut self, user: &str) -> Self {
        self.personal_to = Some(user.to_owned());
        self
    }

    pub fn etag(self, version: Version) -> Self {
        self.with(ETAG, &format!("\"{version}\""))
    }

    pub fn location(self, path: &str) -> Self {
        self.with(LOCATION, path)
    }

    pub fn position(mut self, position: Position) -> Self {
        self.headers.insert(SOUK_POSITION, HeaderValue::from(position.0));
        self
    }

    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        self
    }

    /// The same without its body, but with the length that it would have.
    pub fn without_body(mut self) -> Self {
        match &self.body {
            Body::Bytes(body) if !body.is_empty() => {
                self.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            }
            Body::Bytes(_) | Body::Response(_) => {}
        }
        self.body = Body::Bytes(Vec::new());
        self
    }

    pub fn into_response(self) -> Response {
        match self.body {
            Body::Bytes(body) => {
                let mut response = HttpResponse::new(body.into());
                *response.status_mut() = self.status;
                *response.headers_mut() = self.headers;
                response
            }
            Body::Response(mut response) => {
                response.headers_mut().extend(self.headers);
                *response
            }
        }
    }
}
