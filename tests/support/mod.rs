//! A tiny HTTP server on a real socket, for tests of what talks to a Souk node without having one.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

/// A request as a test looks at it.
pub struct Asked {
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Asked {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    pub fn segments(&self) -> Vec<&str> {
        self.path.split('?').next().unwrap_or("").split('/').filter(|piece| !piece.is_empty()).collect()
    }
}

pub struct Told {
    pub status: u16,
    pub header: Option<(&'static str, String)>,
    pub body: Value,
}

pub fn told(status: u16, body: Value) -> Told {
    Told { status, header: None, body }
}

/// Serves until the test's runtime ends; returns the URL.
pub async fn serve<F, A>(answer: F) -> String
where
    F: Fn(Asked) -> A + Send + Sync + 'static,
    A: Future<Output = Told> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let answer = Arc::clone(&answer);
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = Arc::clone(&answer);
                async move { Ok::<_, Infallible>(respond(request, &*answer).await) }
            });
            tokio::spawn(async move {
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    url
}

async fn respond<F, A>(request: Request<Incoming>, answer: &F) -> Response<Full<Bytes>>
where
    F: Fn(Asked) -> A,
    A: Future<Output = Told>,
{
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let told = answer(Asked { method: parts.method.to_string(), path, headers: parts.headers, body }).await;
    let mut response = Response::new(Full::new(Bytes::from(told.body.to_string())));
    *response.status_mut() = StatusCode::from_u16(told.status).unwrap();
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
    if let Some((name, value)) = told.header {
        response.headers_mut().insert(HeaderName::from_static(name), value.parse().unwrap());
    }
    response
}
