//! All that can be asked, in one table, and the one way from a request to its answer.
//!
//! A request is matched, its caller's budget is charged, the caller is admitted, its body read, its Idempotency-Key looked up,
//! and its handler run, in this order. Whatever goes wrong on the way becomes an answer here.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use futures_util::Stream;
use futures_util::future::BoxFuture;
use warp::Buf;
use warp::http::header::{ALLOW, HeaderMap, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::hyper::upgrade::OnUpgrade;
use warp::reply::Response;

use super::answer::Answer;
use super::auth;
use super::browsers::Asked;
use super::client_address::{Client, Peer};
use super::compression::Wanted;
use super::idempotency::{self, Begun};
use super::limits::{Budget, Who};
use super::pages::{self, account, assets, operator, sales, shopper, vendor, visit};
use super::problem::Problem;
use super::request::{Request, X_REQUEST_ID, bearer, decode, new_ulid, read_body, request_id, skip_body, trace};
use super::{
    Door, carts, claims, cluster, docs, flash_sales, health, inventory, live, openapi, orders, products, sealing, sessions,
    shops, users,
};
use crate::actors::credential::Credential;
use crate::actors::permissions::Permission;
use crate::domain::request::Seed;
use crate::metrics;

type Handler = fn(Arc<Door>, Request) -> BoxFuture<'static, Result<Answer, Problem>>;

/// One thing that can be asked.
pub struct Route {
    pub method: Method,
    /// Segments in `{braces}` are parameters.
    pub pattern: &'static str,
    /// What its caller must be permitted to do.
    pub permission: Permission,
    /// Browsers cannot send headers when they open a live connection: there the token may be in the query.
    pub token_in_query: bool,
    /// What the request is taken from; `None` for what load balancers and dashboards ask.
    pub budget: Option<Budget>,
    handler: Handler,
}

macro_rules! routes {
    ($($method:ident $pattern:literal $permission:ident $handler:path $(, $mark:ident)*;)*) => {
        &[$(Route {
            method: Method::$method,
            pattern: $pattern,
            permission: Permission::$permission,
            token_in_query: false $(|| routes!(@in_query $mark))*,
            budget: routes!(@budget $method $($mark)*),
            handler: |door, request| Box::pin($handler(door, request)),
        }),*]
    };
    (@in_query token_in_query) => { true };
    (@in_query $other:ident) => { false };
    (@budget $method:ident unlimited $($rest:ident)*) => { None };
    (@budget $method:ident login $($rest:ident)*) => { Some(Budget::Login) };
    (@budget $method:ident checkout $($rest:ident)*) => { Some(Budget::Checkout) };
    (@budget $method:ident claims $($rest:ident)*) => { Some(Budget::Claims) };
    (@budget $method:ident token_in_query $($rest:ident)*) => { routes!(@budget $method $($rest)*) };
    (@budget GET) => { Some(Budget::Reads) };
    (@budget $method:ident) => { Some(Budget::Writes) };
}

/// The table. HEAD is answered as GET without the body, OPTIONS with the methods there are.
///
/// What follows the handler is out of the ordinary: `token_in_query`, and the budget where it is not reads for GET and
/// writes for all others: `login` (whatever shows or sets a password), `checkout`, `claims`,
/// `unlimited`.
#[rustfmt::skip]
pub static ROUTES: &[Route] = routes! {
    GET    "/api/products"                                      CatalogueRead   products::list;
    POST   "/api/products"                                      CatalogueWrite  products::create;
    GET    "/api/products/{id}"                                 CatalogueRead   products::get;
    PATCH  "/api/products/{id}"                                 CatalogueWrite  products::change;
    DELETE "/api/products/{id}"                                 CatalogueWrite  products::delete;
    GET    "/api/inventory/{sku}"                               StockRead       inventory::get;
    PATCH  "/api/inventory/{sku}"                               StockWrite      inventory::change;
    POST   "/api/inventory/{sku}/adjustments"                   StockWrite      inventory::adjust;
    POST   "/api/carts"                                         CartMake        carts::create;
    GET    "/api/carts/{id}"                                    CartUse         carts::get;
    DELETE "/api/carts/{id}"                                    CartUse         carts::delete;
    POST   "/api/carts/{id}/items"                              CartUse         carts::add_item;
    PATCH  "/api/carts/{id}/items/{sku}"                        CartUse         carts::set_item;
    DELETE "/api/carts/{id}/items/{sku}"                        CartUse         carts::remove_item;
    POST   "/api/carts/{id}/merge"                              CartUse         carts::merge;
    POST   "/api/carts/{id}/checkout"                           CartUse         carts::checkout, checkout;
    GET    "/api/orders"                                        OrderList       orders::list;
    POST   "/api/orders"                                        OrderPlace      orders::create, checkout;
    GET    "/api/orders/{id}"                                   OrderRead       orders::get;
    GET    "/api/orders/{id}/history"                           OrderFollow     orders::history;
    GET    "/api/orders/{id}/events"                            OrderFollow     live::events, token_in_query;
    POST   "/api/orders/{id}/cancel"                            OrderCancel     orders::cancel;
    POST   "/api/orders/{id}/shipments"                         OrderShip       orders::ship;
    POST   "/api/orders/{id}/delivery"                          OrderShip       orders::deliver;
    POST   "/api/orders/{id}/claim"                             OrderClaim      orders::claim;
    GET    "/api/flash-sales"                                   SaleRead        flash_sales::list;
    POST   "/api/flash-sales"                                   SaleWrite       flash_sales::create;
    GET    "/api/flash-sales/{id}"                              SaleRead        flash_sales::get;
    PATCH  "/api/flash-sales/{id}"                              SaleWrite       flash_sales::change;
    POST   "/api/flash-sales/{id}/approve"                      SaleApprove     flash_sales::approve;
    POST   "/api/flash-sales/{id}/pause"                        SaleWrite       flash_sales::pause;
    POST   "/api/flash-sales/{id}/resume"                       SaleWrite       flash_sales::resume;
    POST   "/api/flash-sales/{id}/cancel"                       SaleWrite       flash_sales::cancel;
    GET    "/api/flash-sales/{id}/challenge"                    SaleBuy         claims::challenge;
    GET    "/api/flash-sales/{id}/claims"                       SaleBuy         claims::list;
    POST   "/api/flash-sales/{id}/claims"                       SaleBuy         claims::claim, claims;
    GET    "/api/flash-sales/{id}/claims/{claim}"               SaleBuy         claims::get;
    DELETE "/api/flash-sales/{id}/claims/{claim}"               SaleBuy         claims::give_up;
    DELETE "/api/flash-sales/{id}/ticket"                       SaleBuy         claims::leave;
    POST   "/api/flash-sales/{id}/reminder"                     SaleBuy         claims::remind;
    GET    "/api/flash-sales/{id}/events"                       LiveConnect     live::sale_events, token_in_query;
    POST   "/api/users"                                         AccountMake     users::sign_up, login;
    GET    "/api/users"                                         AccountGovern   users::find;
    GET    "/api/users/me"                                      AccountRead     users::me;
    PATCH  "/api/users/me"                                      AccountUse      users::change;
    DELETE "/api/users/me"                                      AccountUse      users::delete;
    POST   "/api/users/me/password"                             AccountUse      users::change_password, login;
    POST   "/api/users/me/email"                                AccountUse      users::change_email, login;
    GET    "/api/users/me/sessions"                             AccountUse      users::sessions;
    DELETE "/api/users/me/sessions"                             AccountUse      users::end_sessions;
    DELETE "/api/users/me/sessions/{id}"                        AccountUse      users::end_session;
    GET    "/api/users/me/keys"                                 AccountUse      users::keys;
    POST   "/api/users/me/keys"                                 AccountUse      users::make_key;
    DELETE "/api/users/me/keys/{id}"                            AccountUse      users::revoke_key;
    GET    "/api/users/{id}"                                    AccountGovern   users::get;
    POST   "/api/users/{id}/roles"                              AccountGovern   users::grant_role;
    DELETE "/api/users/{id}/roles/{role}"                       AccountGovern   users::revoke_role;
    POST   "/api/sessions"                                      SessionMake     sessions::log_in, login;
    DELETE "/api/sessions"                                      AccountUse      sessions::log_out;
    POST   "/api/sessions/refresh"                              SessionMake     sessions::refresh, login;
    POST   "/api/shops"                                         ShopMake        shops::open;
    GET    "/api/shops/{id}"                                    ShopRead        shops::get;
    PATCH  "/api/shops/{id}"                                    ShopWrite       shops::change;
    GET    "/api/cluster"                                       NodeRead        cluster::get;
    POST   "/api/cluster/set-aside/{kind}/{id}/release"         NodeRepair      cluster::release;
    GET    "/api/cluster/entities/{kind}/{id}"                  NodeRead        cluster::inspect;
    GET    "/ws"                                                LiveConnect     live::socket, token_in_query;
    GET    "/.well-known/jwks.json"                             Ask             sessions::jwks, unlimited;
    GET    "/health/live"                                       Ask             health::live, unlimited;
    GET    "/health/ready"                                      Ask             health::ready, unlimited;
    GET    "/metrics"                                           Ask             health::metrics, unlimited;
    GET    "/api/openapi.json"                                  Ask             openapi::get;
    GET    "/docs"                                              Ask             docs::get;
    GET    "/docs/style.css"                                    Ask             docs::style;
};

/// The pages, which are none of the contract. What they ask of the API is charged there.
#[rustfmt::skip]
pub static PAGES: &[Route] = routes! {
    GET    "/"                                                  Visit           shopper::home;
    GET    "/products"                                          Visit           shopper::products;
    GET    "/products/{id}"                                     Visit           shopper::product;
    GET    "/cart"                                              Visit           shopper::cart;
    POST   "/cart/items"                                        Visit           shopper::add_to_cart, unlimited;
    POST   "/cart/items/{sku}"                                  Visit           shopper::change_cart, unlimited;
    GET    "/checkout"                                          Visit           shopper::checkout;
    POST   "/checkout"                                          Visit           shopper::check_out, unlimited;
    GET    "/orders"                                            Visit           shopper::orders;
    GET    "/orders/{id}"                                       Visit           shopper::order;
    POST   "/orders/{id}/cancel"                                Visit           shopper::cancel_order, unlimited;
    GET    "/sales"                                             Visit           sales::list;
    GET    "/sales/{id}"                                        Visit           sales::sale;
    POST   "/sales/{id}/claims"                                 Visit           sales::claim, unlimited;
    POST   "/sales/{id}/give-up"                                Visit           sales::give_up, unlimited;
    POST   "/sales/{id}/leave"                                  Visit           sales::leave, unlimited;
    POST   "/sales/{id}/reminder"                               Visit           sales::remind, unlimited;
    GET    "/login"                                             Visit           account::log_in;
    POST   "/login"                                             Visit           account::logged_in, unlimited;
    POST   "/logout"                                            Visit           account::log_out, unlimited;
    GET    "/signup"                                            Visit           account::sign_up;
    POST   "/signup"                                            Visit           account::signed_up, unlimited;
    GET    "/account"                                           Visit           account::account;
    POST   "/account/leave"                                     Visit           account::leave, unlimited;
    POST   "/account/{change}"                                  Visit           account::changed, unlimited;
    POST   "/account/sessions/{id}"                             Visit           account::end_session, unlimited;
    GET    "/vendor"                                            Visit           vendor::home;
    POST   "/vendor/orders/{id}/ship"                           Visit           vendor::ship, unlimited;
    POST   "/vendor/orders/{id}/deliver"                        Visit           vendor::deliver, unlimited;
    GET    "/vendor/products"                                   Visit           vendor::products;
    GET    "/vendor/figures"                                    Visit           vendor::figures;
    POST   "/vendor/stock/{sku}"                                Visit           vendor::adjust, unlimited;
    POST   "/vendor/stock/{sku}/low"                            Visit           vendor::low_from, unlimited;
    GET    "/vendor/sales"                                      Visit           vendor::sales;
    POST   "/vendor/sales"                                      Visit           vendor::new_sale, unlimited;
    GET    "/vendor/sales/{id}"                                 Visit           vendor::cockpit;
    POST   "/vendor/sales/{id}/{act}"                           Visit           vendor::act, unlimited;
    GET    "/operator"                                          Visit           operator::home;
    POST   "/operator/release"                                  Visit           operator::release, unlimited;
    GET    "/operator/entities"                                 Visit           operator::entities;
    GET    "/operator/sales"                                    Visit           operator::sales;
    POST   "/operator/sales/{id}"                               Visit           operator::tune, unlimited;
    GET    "/operator/users"                                    Visit           operator::users;
    POST   "/operator/users/{id}/admin"                         Visit           operator::change_admin, unlimited;
    GET    "/session"                                           Visit           visit::session;
    GET    "/assets/{version}/{name}"                           Visit           assets::get, unlimited;
};

/// What a path leads to.
enum Found {
    Route(&'static Route, Vec<String>),
    /// The path exists, but not with this method; the methods that it has.
    OtherMethods(String),
    Nothing,
    BadPath,
}

/// How many segments a path may have.
const DEPTH_MAX: usize = 8;

/// A route and the segments of its pattern.
struct Pattern {
    route: &'static Route,
    /// `None` for a parameter.
    segments: Vec<Option<&'static str>>,
}

impl Pattern {
    fn matches(&self, path: &[&str]) -> bool {
        let fits = |(wanted, given): (&Option<&str>, &&str)| wanted.map_or(!given.is_empty(), |wanted| wanted == *given);
        // From the end, where those of one family differ most.
        self.segments.len() == path.len() && self.segments.iter().zip(path).rev().all(fits)
    }

    /// What stands for the parameters in a path that matches, decoded; `None` where that cannot be done.
    fn params(&self, path: &[&str]) -> Option<Vec<String>> {
        let given = self.segments.iter().zip(path).filter(|(wanted, _)| wanted.is_none());
        given.map(|(_, given)| decode(given, false).map(Cow::into_owned)).collect()
    }
}

/// The segment that tells the routes of one thing from those of another: always one that is written out.
fn family<'p>(segments: &[&'p str]) -> &'p str {
    let family = if let ["api", of, ..] = segments { Some(of) } else { segments.first() };
    family.copied().unwrap_or_default()
}

/// All routes, by what they are about: a path is held against a few of them, not against all.
static FAMILIES: LazyLock<HashMap<&'static str, Vec<Pattern>>> = LazyLock::new(|| {
    let mut families: HashMap<_, Vec<_>> = HashMap::new();
    for route in ROUTES.iter().chain(PAGES) {
        let segments: Vec<&str> = route.pattern.split('/').skip(1).collect();
        let of = family(&segments);
        let segments = segments.into_iter().map(|segment| (!segment.starts_with('{')).then_some(segment)).collect();
        families.entry(of).or_default().push(Pattern { route, segments });
    }
    families
});

fn find(method: &Method, path: &str) -> Found {
    let wanted = if method == Method::HEAD { &Method::GET } else { method };
    let (mut segments, mut depth) = ([""; DEPTH_MAX], 0);
    let Some(path) = path.strip_prefix('/') else { return Found::Nothing };
    for segment in path.split('/') {
        let Some(place) = segments.get_mut(depth) else { return Found::Nothing };
        (*place, depth) = (segment, depth + 1);
    }
    let path = segments.get(..depth).unwrap_or_default();
    let mut allowed: Vec<&str> = Vec::new();
    for pattern in FAMILIES.get(family(path)).into_iter().flatten().filter(|pattern| pattern.matches(path)) {
        let route = pattern.route;
        if route.method == *wanted {
            return pattern.params(path).map_or(Found::BadPath, |params| Found::Route(route, params));
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
    pub peer: Peer,
}

/// Answers a request, whatever it is.
pub async fn answer<S, B, E>(door: Arc<Door>, head: Box<Head>, body: S) -> Response
where
    S: Stream<Item = Result<B, E>> + Send,
    B: Buf + Send,
    E: Send,
{
    let started = Instant::now();
    let named = request_id(&head.headers);
    let is_new = named.is_none();
    let id = named.unwrap_or_else(new_ulid);
    let trace = trace(&head.headers);
    let correlation: Arc<str> = trace.map_or_else(|| Arc::clone(&id), |(trace, _)| trace.into());
    let found = find(&head.method, &head.path);
    let route = match &found {
        Found::Route(route, _) => route.pattern,
        Found::OtherMethods(_) | Found::Nothing | Found::BadPath => "none",
    };
    let method = method_label(&head.method);
    let is_head = head.method == Method::HEAD;

    let client = door.config.proxies.client(head.peer, &head.headers);
    let origins = &door.config.cors_origins;
    let asked = Asked::of(origins, &head.method, &head.headers, client.secure);
    let wanted = Wanted::of(&head.headers);
    let is_for_people = pages::is_for_people(&head.path, &head.headers);

    // Without a trace of its caller's, a request's own id is the one to follow.
    let (traced, parent) = trace.unzip();
    let status = tracing::field::Empty;
    let span = tracing::info_span!("request", id = &*id, method, route, trace = traced, parent, status);
    let mut borne = HeaderMap::new();
    let arrival = Arrival { id: Arc::clone(&id), is_new, correlation, client };
    let answer = {
        let mut answered = pin!(async {
            match run(&door, head, body, found, arrival, &mut borne).await {
                Ok(answer) => answer,
                Err(problem) if is_for_people => pages::problem_page(problem, &id),
                Err(problem) => problem.into_answer(&id),
            }
        });
        // As `Instrument` does it, but without a copy of all that the request is.
        let answer = poll_fn(|context| span.in_scope(|| answered.as_mut().poll(context))).await;
        let (status, micros) = (answer.status.as_u16(), started.elapsed().as_micros() as u64);
        span.record("status", status);
        tracing::debug!(parent: &span, status, micros, "answered");
        answer
    };
    let mut answer = wanted.apply(answer).await;

    let status = answer.status.as_u16();
    door.metrics.http_requests.get_or_create(&metrics::Answered { route, method, status }).inc();
    door.metrics.http_latency.get_or_create(&metrics::Routed { route, method }).observe(started.elapsed().as_secs_f64());
    answer.headers.extend(borne);
    asked.tell(origins, &mut answer);
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

/// What is known of a request before it is looked at.
struct Arrival {
    id: Arc<str>,
    /// The id was made here: nothing else bears it.
    is_new: bool,
    correlation: Arc<str>,
    client: Client,
}

/// What not every request comes to is boxed: each is as large as the largest thing that it may wait for.
///
/// `borne` takes the headers that the answer bears whatever becomes of the request.
async fn run<S, B, E>(
    door: &Arc<Door>,
    head: Box<Head>,
    body: S,
    found: Found,
    arrival: Arrival,
    borne: &mut HeaderMap,
) -> Result<Answer, Problem>
where
    S: Stream<Item = Result<B, E>> + Send,
    B: Buf + Send,
    E: Send,
{
    let has_body = !matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let Arrival { id, is_new, correlation, client: Client { address: client, secure } } = arrival;
    let admitted = admit(door, &head, client, found, borne).await;
    let (route, params, credential) = match admitted {
        Ok(Admitted::Handler(route, params, credential)) => (route, params, credential),
        Ok(Admitted::Answered(answer)) => return Ok(answer),
        Err(problem) => {
            // Closing on unread bytes could lose the answer on its way.
            if has_body {
                Box::pin(skip_body(body, &head.headers, &door.config)).await;
            }
            return Err(problem);
        }
    };
    let body = if has_body { read_body(body, &head.headers, &door.config).await? } else { bytes::Bytes::new() };

    // A page's own query is none of the contract's.
    if !head.query.is_empty() && route.permission != Permission::Visit {
        openapi::check_query(route, &head.query)?;
    }
    let key = if route.method == Method::POST { idempotency::key(&head.headers)? } else { None };
    let kept_as = key.map(|key| idempotency::entity_id(&credential, client, &head.method, &head.path, key));
    let seed = match &kept_as {
        // Nothing repeats it, and whoever only looks makes nothing.
        None if !has_body => Seed::default(),
        None => Seed { id: if is_new { id.to_string() } else { new_ulid().to_string() }, secret: String::new() },
        Some(kept_as) => {
            let fingerprint = idempotency::fingerprint(&door.identity.secret, &head.query, &head.headers, &body);
            match Box::pin(idempotency::begin(door, kept_as, fingerprint, &correlation)).await? {
                Begun::Work(seed) => seed,
                Begun::Replay(answer) => return Ok(answer),
            }
        }
    };
    let request = Request {
        id: Arc::clone(&id),
        correlation: Arc::clone(&correlation),
        params,
        query: head.query,
        headers: head.headers,
        body,
        credential,
        client,
        secure,
        path: head.path,
        seed,
        // The answer to a HEAD ends with its head: nothing can follow on such a connection but HTTP.
        upgrade: head.upgrade.filter(|_| head.method == Method::GET),
    };
    let Some(kept_as) = kept_as else { return (route.handler)(Arc::clone(door), request).await };
    let seal_by = sealing::key_of(&request.credential, door.now());
    let answer = match (route.handler)(Arc::clone(door), request).await {
        Ok(answer) => answer,
        Err(problem) => problem.into_answer(&id),
    };
    Ok(Box::pin(idempotency::finish(door, &kept_as, answer, seal_by, &correlation)).await)
}

enum Admitted {
    Handler(&'static Route, Vec<String>, Credential),
    Answered(Answer),
}

async fn admit(door: &Door, head: &Head, client: IpAddr, found: Found, borne: &mut HeaderMap) -> Result<Admitted, Problem> {
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
    let recognised = match route.permission {
        // Whoever asks: a token would not be looked at.
        Permission::Ask | Permission::Visit => Ok(Credential::Nobody),
        _ => auth::recognise(door, bearer(&head.headers).or(in_query.as_deref())).await,
    };
    if let Some(budget) = route.budget {
        // Whoever shows a false token pays as nobody.
        charge(door, client, budget, recognised.as_ref().unwrap_or(&Credential::Nobody), borne)?;
    }
    let credential = recognised?;
    auth::check(door, route.permission, &params, &credential).await?;
    Ok(Admitted::Handler(route, params, credential))
}

/// Takes the request from its caller's budget. Before anything is looked up for it, so that guessing ids has a price.
fn charge(door: &Door, client: IpAddr, budget: Budget, credential: &Credential, borne: &mut HeaderMap) -> Result<(), Problem> {
    let who = Who::of(budget, credential, client);
    let Some(spent) = door.limits.spend(budget, &who) else { return Ok(()) };
    spent.tell(borne);
    if spent.granted {
        return Ok(());
    }
    let budget = spent.budget.name();
    door.metrics.http_requests_refused.get_or_create(&metrics::Refused { budget }).inc();
    tracing::debug!(?who, budget, "over the limit");
    Err(Problem::rate_limited(budget, spent.reset_s))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::permissions::{Rank, Reach};
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
            // Whatever a guest's token opens has a name that the token is compared with.
            let owned = route.permission.reach(Rank::Guest) == Reach::Own;
            assert!(!owned || route.pattern.contains("/{id}"), "{}", route.pattern);
        }
    }

    #[test]
    fn no_path_breaks_the_table() {
        let good = ROUTES.iter().chain(PAGES).map(|route| route.pattern.as_bytes().to_vec()).collect();
        crate::hostile::feed("paths", good, |bytes| {
            let Ok(path) = std::str::from_utf8(bytes) else { return };
            for method in [Method::GET, Method::POST, Method::TRACE] {
                if let Found::Route(route, params) = find(&method, path) {
                    assert_eq!(params.len(), route.pattern.matches('{').count());
                }
            }
        });
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
            (Method::GET, "/", "GET / []"),
            (Method::HEAD, "/orders/ord_1", r#"GET /orders/{id} ["ord_1"]"#),
            (Method::GET, "/orders/ord_1/cancel", "405 POST, OPTIONS"),
            (Method::GET, "", "404"),
            (Method::GET, "//api/products", "404"),
        ] {
            assert_eq!(found(method, path), expected, "{path}");
        }
    }
}
