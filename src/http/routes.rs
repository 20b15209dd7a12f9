//! All that can be asked, in one table, and the one way from a request to its answer.
//!
//! A request is matched, its caller is admitted, its body read, its Idempotency-Key looked up, and its handler run, in this
//! order. Whatever goes wrong on the way becomes an answer here.

use std::sync::Arc;
use std::time::Instant;

use futures_util::Stream;
use futures_util::future::BoxFuture;
use tracing::Instrument;
use warp::Buf;
use warp::http::header::{ALLOW, HeaderMap, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::hyper::upgrade::OnUpgrade;
use warp::reply::Response;

use super::answer::Answer;
use super::auth::{self, Needs};
use super::idempotency::{self, Begun};
use super::problem::Problem;
use super::request::{Request, X_REQUEST_ID, bearer, decode, new_seed, read_body, request_id, skip_body, trace_id};
use super::{Door, carts, cluster, health, inventory, live, orders, products};
use crate::domain::request::Seed;
use crate::metrics;

type Handler = fn(Arc<Door>, Request) -> BoxFuture<'static, Result<Answer, Problem>>;

/// One thing that can be asked.
pub struct Route {
    pub method: Method,
    /// Segments in `{braces}` are parameters.
    pub pattern: &'static str,
    pub needs: Needs,
    /// Browsers cannot send headers when they open a live connection: there the token may be in the query.
    pub token_in_query: bool,
    handler: Handler,
}

macro_rules! routes {
    ($($method:ident $pattern:literal $needs:ident $handler:path $(, $token_in_query:ident)?;)*) => {
        &[$(Route {
            method: Method::$method,
            pattern: $pattern,
            needs: Needs::$needs,
            token_in_query: routes!(@flag $($token_in_query)?),
            handler: |door, request| Box::pin($handler(door, request)),
        }),*]
    };
    (@flag) => { false };
    (@flag token_in_query) => { true };
}

/// The table. HEAD is answered as GET without the body, OPTIONS with the methods there are.
#[rustfmt::skip]
pub static ROUTES: &[Route] = routes! {
    GET    "/api/products"                                  Nothing  products::list;
    POST   "/api/products"                                  Admin    products::create;
    GET    "/api/products/{id}"                             Nothing  products::get;
    PATCH  "/api/products/{id}"                             Admin    products::change;
    DELETE "/api/products/{id}"                             Admin    products::delete;
    GET    "/api/inventory/{sku}"                           Nothing  inventory::get;
    PATCH  "/api/inventory/{sku}"                           Admin    inventory::change;
    POST   "/api/inventory/{sku}/adjustments"               Admin    inventory::adjust;
    POST   "/api/carts"                                     Nothing  carts::create;
    GET    "/api/carts/{id}"                                Cart     carts::get;
    DELETE "/api/carts/{id}"                                Cart     carts::delete;
    POST   "/api/carts/{id}/items"                          Cart     carts::add_item;
    PATCH  "/api/carts/{id}/items/{sku}"                    Cart     carts::set_item;
    DELETE "/api/carts/{id}/items/{sku}"                    Cart     carts::remove_item;
    POST   "/api/carts/{id}/merge"                          Cart     carts::merge;
    POST   "/api/carts/{id}/checkout"                       Cart     carts::checkout;
    GET    "/api/orders"                                    Admin    orders::list;
    POST   "/api/orders"                                    Nothing  orders::create;
    GET    "/api/orders/{id}"                               Order    orders::get;
    GET    "/api/orders/{id}/history"                       Order    orders::history;
    GET    "/api/orders/{id}/events"                        Order    live::events, token_in_query;
    POST   "/api/orders/{id}/cancel"                        Order    orders::cancel;
    POST   "/api/orders/{id}/shipments"                     Admin    orders::ship;
    GET    "/api/cluster"                                   Admin    cluster::get;
    POST   "/api/cluster/set-aside/{kind}/{id}/release"     Admin    cluster::release;
    GET    "/api/cluster/entities/{kind}/{id}"              Admin    cluster::inspect;
    GET    "/ws"                                            Nothing  live::socket, token_in_query;
    GET    "/health/live"                                   Nothing  health::live;
    GET    "/health/ready"                                  Nothing  health::ready;
    GET    "/metrics"                                       Nothing  health::metrics;
};

/// What a path leads to.
enum Found {
    Route(&'static Route, Vec<String>),
    /// The path exists, but not with this method; the methods that it has.
    OtherMethods(String),
    Nothing,
    BadPath,
}

/// The parameters of a path that has this pattern's form, as they were sent.
fn matches<'p>(pattern: &str, path: &'p str) -> Option<Vec<&'p str>> {
    let mut params = Vec::new();
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(params),
            (Some(name), Some(segment)) if name.starts_with('{') => {
                if segment.is_empty() {
                    return None;
                }
                params.push(segment);
            }
            (Some(literal), Some(segment)) if literal == segment => {}
            _ => return None,
        }
    }
}

fn find(method: &Method, path: &str) -> Found {
    let wanted = if method == Method::HEAD { &Method::GET } else { method };
    let mut allowed: Vec<&str> = Vec::new();
    for route in ROUTES {
        let Some(params) = matches(route.pattern, path) else { continue };
        if route.method == *wanted {
            let decoded: Option<Vec<String>> =
                params.into_iter().map(|param| decode(param, false).map(std::borrow::Cow::into_owned)).collect();
            return decoded.map_or(Found::BadPath, |params| Found::Route(route, params));
        }
        allowed.push(route.method.as_str());
        if route.method == Method::GET {
            allowed.push("HEAD");
        }
    }
    if allowed.is_empty() {
        return Found::Nothing;
    }
    allowed.push("OPTIONS");
    Found::OtherMethods(allowed.join(", "))
}

/// A request's head, as warp hands it over.
pub struct Head {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub upgrade: Option<OnUpgrade>,
}

/// Answers a request, whatever it is.
pub async fn answer<S, B, E>(door: Arc<Door>, head: Head, body: S) -> Response
where
    S: Stream<Item = Result<B, E>> + Send,
    B: Buf + Send,
    E: Send,
{
    let started = Instant::now();
    let id = request_id(&head.headers);
    let correlation: Arc<str> = trace_id(&head.headers).map_or_else(|| Arc::clone(&id), Into::into);
    let found = find(&head.method, &head.path);
    let route = match &found {
        Found::Route(route, _) => route.pattern,
        Found::OtherMethods(_) | Found::Nothing | Found::BadPath => "none",
    };
    let method = method_label(&head.method);
    let is_head = head.method == Method::HEAD;

    let span = tracing::info_span!("request", id = %id, method, route, trace = %correlation);
    let answered = async {
        let answer = match run(&door, head, body, found, &id, &correlation).await {
            Ok(answer) => answer,
            Err(problem) => problem.into_answer(&id),
        };
        tracing::debug!(status = answer.status.as_u16(), micros = started.elapsed().as_micros() as u64, "answered");
        answer
    };
    let mut answer = answered.instrument(span).await;

    let status = answer.status.as_u16();
    door.metrics.http_requests.get_or_create(&metrics::Answered { route, method, status }).inc();
    door.metrics.http_latency.get_or_create(&metrics::Routed { route, method }).observe(started.elapsed().as_secs_f64());
    if let Ok(id) = HeaderValue::from_str(&id) {
        answer.headers.insert(X_REQUEST_ID, id);
    }
    if is_head {
        answer = answer.without_body();
    }
    answer.into_response()
}

/// A label from a fixed set.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

async fn run<S, B, E>(
    door: &Arc<Door>,
    head: Head,
    body: S,
    found: Found,
    id: &Arc<str>,
    correlation: &Arc<str>,
) -> Result<Answer, Problem>
where
    S: Stream<Item = Result<B, E>> + Send,
    B: Buf + Send,
    E: Send,
{
    let has_body = !matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let admitted = admit(door, &head, found).await;
    let (route, params, credential) = match admitted {
        Ok(Admitted::Handler(route, params, credential)) => (route, params, credential),
        Ok(Admitted::Answered(answer)) => return Ok(answer),
        Err(problem) => {
            // Closing on unread bytes could lose the answer on its way.
            if has_body {
                skip_body(body, &head.headers, &door.config).await;
            }
            return Err(problem);
        }
    };
    let body = if has_body { read_body(body, &head.headers, &door.config).await? } else { bytes::Bytes::new() };

    let key = if route.method == Method::POST { idempotency::key(&head.headers)? } else { None };
    let kept_as = key.map(|key| idempotency::entity_id(&credential, &head.method, &head.path, key));
    let seed = match &kept_as {
        None if has_body => new_seed()?,
        // Whoever only looks makes nothing.
        None => Seed { id: String::new(), secret: String::new() },
        Some(kept_as) => {
            let fingerprint = idempotency::fingerprint(&head.query, &body);
            match idempotency::begin(door, kept_as, fingerprint, correlation).await? {
                Begun::Work(seed) => seed,
                Begun::Replay(answer) => return Ok(answer),
            }
        }
    };
    let request = Request {
        id: Arc::clone(id),
        correlation: Arc::clone(correlation),
        params,
        query: head.query,
        headers: head.headers,
        body,
        credential,
        seed,
        // The answer to a HEAD ends with its head: nothing can follow on such a connection but HTTP.
        upgrade: head.upgrade.filter(|_| head.method == Method::GET),
    };
    let Some(kept_as) = kept_as else { return (route.handler)(Arc::clone(door), request).await };
    let answer = match (route.handler)(Arc::clone(door), request).await {
        Ok(answer) => answer,
        Err(problem) => problem.into_answer(id),
    };
    Ok(idempotency::finish(door, &kept_as, answer, correlation).await)
}

enum Admitted {
    Handler(&'static Route, Vec<String>, crate::actors::credential::Credential),
    Answered(Answer),
}

async fn admit(door: &Door, head: &Head, found: Found) -> Result<Admitted, Problem> {
    let (route, params) = match found {
        Found::Route(route, params) => (route, params),
        Found::OtherMethods(allowed) if head.method == Method::OPTIONS => {
            return Ok(Admitted::Answered(Answer::empty(StatusCode::NO_CONTENT).with(ALLOW, &allowed)));
        }
        Found::OtherMethods(allowed) => return Err(Problem::method_not_allowed(allowed)),
        Found::Nothing => return Err(Problem::not_found()),
        Found::BadPath => return Err(Problem::bad_path()),
    };
    let in_query = match route.token_in_query {
        true => head.query.split('&').find_map(|pair| decode(pair.strip_prefix("access_token=")?, true)),
        false => None,
    };
    let credential = door.gate.recognise(bearer(&head.headers).or(in_query.as_deref()));
    auth::check(door, route.needs, &params, &credential).await?;
    Ok(Admitted::Handler(route, params, credential))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn found(method: Method, path: &str) -> String {
        match find(&method, path) {
            Found::Route(route, params) => format!("{} {} {params:?}", route.method, route.pattern),
            Found::OtherMethods(allowed) => format!("405 {allowed}"),
            Found::Nothing => "404".into(),
            Found::BadPath => "400".into(),
        }
    }

    #[test]
    fn each_route_is_there_once_and_leads_to_itself() {
        let mut seen = BTreeSet::new();
        for route in ROUTES {
            let shape: Vec<&str> = route.pattern.split('/').map(|s| if s.starts_with('{') { "{}" } else { s }).collect();
            assert!(seen.insert((route.method.as_str(), shape)), "twice: {} {}", route.method, route.pattern);
            assert!(route.pattern.starts_with('/') && !route.pattern.ends_with('/'), "{}", route.pattern);
            for segment in route.pattern.split('/').filter(|segment| segment.contains(['{', '}'])) {
                assert!(segment.starts_with('{') && segment.ends_with('}') && segment.len() > 2, "{}", route.pattern);
            }
            let path = route.pattern.replace(['{', '}'], "x");
            assert!(found(route.method.clone(), &path).starts_with(&format!("{} {} ", route.method, route.pattern)));
            let owned = matches!(route.needs, Needs::Cart | Needs::Order);
            assert!(!owned || route.pattern.contains("/{id}"), "{}", route.pattern);
        }
    }

    #[test]
    fn a_path_leads_to_a_route_or_says_why_not() {
        for (method, path, expected) in [
            (Method::GET, "/api/products", "GET /api/products []"),
            (Method::HEAD, "/api/products", "GET /api/products []"),
            (Method::GET, "/api/inventory/red%20shirt%2FXL", r#"GET /api/inventory/{sku} ["red shirt/XL"]"#),
            (Method::PATCH, "/api/carts/c/items/a%2Fb", r#"PATCH /api/carts/{id}/items/{sku} ["c", "a/b"]"#),
            (Method::GET, "/api/inventory/%zz", "400"),
            (Method::GET, "/api/inventory/%ff", "400"),
            (Method::PUT, "/api/products/x", "405 GET, HEAD, PATCH, DELETE, OPTIONS"),
            (Method::OPTIONS, "/api/carts", "405 POST, OPTIONS"),
            (Method::GET, "/api/carts/c/checkout", "405 POST, OPTIONS"),
            (Method::GET, "/api/products/", "404"),
            (Method::GET, "/api/products/a/b", "404"),
            (Method::GET, "/", "404"),
            (Method::GET, "", "404"),
            (Method::GET, "//api/products", "404"),
        ] {
            assert_eq!(found(method, path), expected, "{path}");
        }
    }
}
