//! The contract: an OpenAPI 3.1 document, made when it is first asked for and served from memory.
//!
//! `operations` says of each route what it takes and what it answers. The schemas are those of the very structs that are
//! read and written, the limits in them are the constants that the code checks, and what a route needs of its caller
//! comes from `ROUTES`. Nothing may be stated here that no code holds to: `tests/contract` asks the running program for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use warp::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use warp::http::{Method, StatusCode};

use super::answer::{Answer, JSON};
use super::compression::TAG_SUFFIX;
use super::idempotency;
use super::problem::{self, PROBLEM_JSON, Problem};
use super::request::{CURSOR_CHARS_MAX, LIMIT_DEFAULT, LIMIT_MAX, Query, Request, parse_json};
use super::routes::{ROUTES, Route};
use super::users::Items;
use super::{Door, carts, claims, cluster, docs, flash_sales, health, inventory, orders, products, sessions, shops, users};
use crate::actors::credential::sha256_hex;
use crate::actors::permissions::{Permission, Rank, Reach};
use crate::actors::shown;
use crate::domain::{Entity, EveryKind, every_kind, ids, money::AMOUNT_MAX};
use crate::metrics;
use crate::persistence::inspect::Inspection;
use crate::read_models::{FlashSaleSummary, OrderSummary, Page, ProductSummary};

/// The refusals that there are: status, name as in `/problems/name`, and when it is said.
const PROBLEMS: &[(u16, &str, &str)] = &[
    (400, "not-http", "the request cannot be read as HTTP"),
    (400, "invalid-path", "the path is not percent-encoded UTF-8"),
    (400, "invalid-header", "a header cannot be read"),
    (400, "invalid-parameter", "a query parameter is unknown, given twice or cannot be read"),
    (400, "invalid-json", "the body is not JSON; `line` and `column` say where"),
    (400, "invalid-body", "`errors` says which fields are wrong"),
    (400, "broken-body", "the body ended too soon"),
    (400, "not-a-websocket", "the handshake is not one of WebSocket, version 13"),
    (401, "unauthorized", "this needs an account, or an API key"),
    (401, "invalid-token", "the token does not count (any more); `detail` says why"),
    (401, "wrong-credentials", "there is no account with this e-mail and password"),
    (403, "forbidden", "the account or the API key has no permission for this"),
    (404, "not-found", "there is nothing here, or it is not yours to see"),
    (404, "no-such-line", "the cart has no line with this sku"),
    (404, "no-such-page", "the cursor was not given out by this list"),
    (405, "method-not-allowed", "`Allow` says which methods there are"),
    (408, "slow-body", "the body did not arrive in time"),
    (409, "answer-forgotten", "it was answered before, and what was answered has been forgotten"),
    (409, "email-taken", "another account has this e-mail address"),
    (409, "has-shop", "the account has a shop already"),
    (409, "not-claimable", "the order belongs to an account already"),
    (409, "orders-underway", "an order of the account is still under way"),
    (409, "password-changed", "the password was changed in the meantime"),
    (409, "too-many-keys", "the account has all the keys that one can have"),
    (409, "exists", "it is there already, with other content"),
    (409, "contradictory-body", "fields contradict each other or what is there already; `errors` says which"),
    (409, "not-for-sale", "`skus` says what is not for sale"),
    (409, "sku-taken", "`skus` belong to other products"),
    (409, "out-of-stock", "there is not enough left; `available` or `short` says how much is"),
    (409, "below-committed", "the stock would be less than the `committed` units"),
    (409, "too-many", "there would be more units than can be counted"),
    (409, "cart-closed", "the cart can no longer be changed"),
    (409, "cart-empty", "the cart is empty"),
    (409, "checking-out", "the cart is being checked out, as order `order_id`"),
    (409, "prices-changed", "`changes` says which prices are others now"),
    (409, "total-differs", "the `total` is not the `expected_total`"),
    (409, "currency-differs", "one purchase is made in one currency"),
    (409, "too-many-lines", "the cart is full"),
    (409, "not-mergeable", "the other cart cannot be merged"),
    (409, "not-cancellable", "the order can no longer be cancelled"),
    (409, "in-payment", "the order is being paid right now; try again"),
    (409, "not-shippable", "only a paid order can be shipped"),
    (409, "not-deliverable", "only an order that is on its way can be delivered"),
    (409, "too-many-sales", "the sku has been in all the flash sales that one can be in"),
    (409, "sale-status", "this cannot be done to a flash sale that is `sale_status`"),
    (409, "sale-not-started", "the flash sale begins at `starts_at`"),
    (409, "sale-paused", "the flash sale is paused"),
    (409, "sale-over", "the flash sale has ended or was cancelled"),
    (409, "sold-out", "every unit of the flash sale is paid"),
    (409, "over-limit", "one customer can have `limit` units of the flash sale; `left` more, where that is said"),
    (409, "over-address-limit", "the flash sale gives no more units to this network address"),
    (409, "line-full", "nobody more can stand in line for the flash sale"),
    (409, "claim-over", "the claim has run out, was given up, or is not one that can be paid"),
    (409, "busy", "another change is under way; try again"),
    (409, "nothing-written-there", "no such Souk-Position was given out"),
    (412, "version-differs", "somebody else was first; its `version` is another one now"),
    (413, "too-large", "the body is too large"),
    (414, "head-too-large", "the path is too long"),
    (415, "unsupported-media-type", "the body is not sent as application/json"),
    (422, "idempotency-key-reused", "the key was used with another body"),
    (422, "email-needed", "a guest must say where the confirmation goes"),
    (422, "wrong-password", "the password shown is not the account's"),
    (422, "weak-password", "the new password is among the commonest, or the e-mail address itself"),
    (422, "not-offered", "this is not offered yet"),
    (422, "proof-needed", "the flash sale asks for a proof of work of `bits` bits"),
    (422, "proof-refused", "the proof of work does not count; `errors` says why, `bits` what is asked for"),
    (429, "rate-limited", "too much was asked in a short time"),
    (429, "too-many-attempts", "too many passwords were tried; the wait doubles with each"),
    (431, "head-too-large", "the headers are too large"),
    (500, "internal", "something failed on our side"),
    (503, "overloaded", "too much is asked at once"),
    (503, "outcome-unknown", "it is not known whether it was done; ask again with the same Idempotency-Key"),
    (503, "set-aside", "this needs an operator's hand first"),
    (503, "restarting", "this is coming back from a failure"),
    (503, "not-written", "it could not be stored, and nothing was done"),
    (503, "shutting-down", "this node is shutting down"),
    (503, "not-ready", "this node is starting or shutting down, or not in touch with its cluster"),
    (503, "read-model-behind", "the list has not come that far yet"),
    (503, "list-unavailable", "the list is not available"),
    (503, "vault-unavailable", "what is personal cannot be opened or sealed right now"),
    (503, "too-many-sessions", "this node holds all the live connections it can"),
    (503, "too-many-connections", "this node holds all the connections it can"),
];

/// What all operations may answer. The rest is said at each.
const ALWAYS: [&str; 13] = [
    "not-http",
    "invalid-path",
    "invalid-header",
    "invalid-parameter",
    "head-too-large",
    "internal",
    "overloaded",
    "outcome-unknown",
    "set-aside",
    "restarting",
    "shutting-down",
    "vault-unavailable",
    "too-many-connections",
];

/// The document, and what it was called when it was made.
struct Made {
    bytes: Bytes,
    etag: String,
}

static MADE: LazyLock<Made> = LazyLock::new(|| {
    let bytes = serde_json::to_vec(&document()).unwrap_or_default();
    Made { etag: format!("\"{}\"", sha256_hex(&bytes).get(..16).unwrap_or_default()), bytes: bytes.into() }
});

/// `GET /api/openapi.json`
pub async fn get(_: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    Ok(unless_known(&request, &MADE.etag, || Answer::bytes(StatusCode::OK, JSON, MADE.bytes.to_vec())))
}

/// The query parameters of each operation.
static QUERIES: LazyLock<BTreeMap<String, Vec<String>>> = LazyLock::new(|| {
    let parameters = parameters();
    let named = |parameter: &Value| {
        let shared = parameter["$ref"].as_str().and_then(|at| at.rsplit('/').next()).map(|name| &parameters[name]);
        let parameter = shared.unwrap_or(parameter);
        parameter["name"].as_str().filter(|_| parameter["in"] == "query").map(str::to_owned)
    };
    let of = |operation: Operation| {
        let names = operation.parameters.iter().filter_map(named).collect();
        (format!("{} {}", operation.method, operation.pattern), names)
    };
    operations(&mut Schemas::new()).into_iter().map(of).collect()
});

/// Refuses a query that has what the contract does not name.
pub fn check_query(route: &Route, query: &str) -> Result<(), Problem> {
    let known = QUERIES.get(&format!("{} {}", route.method, route.pattern)).map_or(&[][..], Vec::as_slice);
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    Query::parse(query, &known).map(|_| ())
}

/// The answer, or 304 when the reader has it already.
pub fn unless_known(request: &Request, etag: &str, answer: impl FnOnce() -> Answer) -> Answer {
    let same = |tag: &str| tag == "*" || tag.trim_start_matches("W/").replace(TAG_SUFFIX, "") == etag;
    let known = |value: &str| value.split(',').map(str::trim).any(same);
    let has = request.headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(known);
    let answer = if has { Answer::empty(StatusCode::NOT_MODIFIED) } else { answer() };
    answer.with(ETAG, etag).with(CACHE_CONTROL, "no-cache")
}

/// What a route takes and answers.
struct Operation {
    method: Method,
    pattern: &'static str,
    id: &'static str,
    tag: &'static str,
    summary: &'static str,
    description: &'static str,
    parameters: Vec<Value>,
    body: Option<Body>,
    answers: Vec<(u16, Value)>,
    refusals: Vec<&'static str>,
}

struct Body {
    schema: Schema,
    example: Value,
    required: bool,
    /// Whether the example is read as the body that it is an example of.
    #[cfg_attr(not(test), expect(dead_code, reason = "asked by the test below"))]
    reads: fn(&[u8]) -> Result<(), Problem>,
}

/// The schemas of what is read and of what is written.
struct Schemas {
    read: SchemaGenerator,
    written: SchemaGenerator,
}

/// Says the bound of a number that its type has, and leaves out the default of what can be left out.
fn bounded(schema: &mut Schema) {
    if schema.get("format").is_some_and(|format| format == "uint32") && schema.get("maximum").is_none() {
        schema.insert("maximum".into(), u32::MAX.into());
    }
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
}

impl Schemas {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12()
                .with(|settings| settings.definitions_path = "/components/schemas".into())
                .with_transform(RecursiveTransform(bounded))
        };
        Schemas { read: settings().for_deserialize().into_generator(), written: settings().for_serialize().into_generator() }
    }

    fn written<T: JsonSchema>(&mut self) -> Value {
        self.written.subschema_for::<T>().to_value()
    }

    /// All of them by name. What is both read and written is the same either way, or it bears two names.
    fn into_components(mut self) -> Map<String, Value> {
        let mut components = self.written.take_definitions(true);
        components.extend(self.read.take_definitions(true));
        components
    }
}

impl Operation {
    fn new(method: Method, pattern: &'static str, id: &'static str, tag: &'static str, summary: &'static str) -> Self {
        Operation {
            method,
            pattern,
            id,
            tag,
            summary,
            description: "",
            parameters: Vec::new(),
            body: None,
            answers: Vec::new(),
            refusals: Vec::new(),
        }
    }

    fn says(mut self, description: &'static str) -> Self {
        self.description = description;
        self
    }

    fn parameter(mut self, name: &str) -> Self {
        self.parameters.push(json!({ "$ref": format!("#/components/parameters/{name}") }));
        self
    }

    fn query(mut self, name: &str, description: &str, schema: Value) -> Self {
        self.parameters.push(json!({ "name": name, "in": "query", "description": description, "schema": schema }));
        self
    }

    /// Makes the last parameter one that must be there.
    fn required_query(mut self) -> Self {
        if let Some(parameter) = self.parameters.last_mut() {
            parameter["required"] = true.into();
        }
        self
    }

    fn takes<T: JsonSchema + DeserializeOwned>(mut self, schemas: &mut Schemas, example: Value) -> Self {
        let reads = |body: &[u8]| parse_json::<T>(body).map(|_| ());
        let required = parse_json::<T>(b"").is_err();
        self.body = Some(Body { schema: schemas.read.subschema_for::<T>(), example, required, reads });
        self
    }

    /// What it answers when all went well. Headers by their name in `headers`.
    fn answers(self, status: u16, description: &str, headers: &[&str], content: Option<(&str, Value, Value)>) -> Self {
        let mut answer = json!({ "description": description, "headers": header_refs(headers) });
        if let Some((media_type, schema, example)) = content {
            let mut media = json!({ "schema": schema });
            if !example.is_null() {
                media["example"] = example;
            }
            answer["content"] = json!({ media_type: media });
        }
        self.answer(status, answer)
    }

    fn answer(mut self, status: u16, answer: Value) -> Self {
        self.answers.push((status, answer));
        self
    }

    fn json<T: JsonSchema>(
        self,
        schemas: &mut Schemas,
        status: u16,
        description: &str,
        headers: &[&str],
        example: Value,
    ) -> Self {
        let schema = schemas.written::<T>();
        self.answers(status, description, headers, Some((JSON, schema, example)))
    }

    /// A single thing: with its version as ETag, and 304 for whoever has it.
    fn thing<T: JsonSchema>(self, schemas: &mut Schemas, description: &str, example: Value) -> Self {
        self.json::<T>(schemas, 200, description, &["ETag"], example)
            .answers(304, "It is still the one that you have.", &["ETag"], None)
            .parameter("If-None-Match")
            .refuses(&["not-found"])
    }

    /// A list, whose reader may ask to see its own writes.
    fn page<T: JsonSchema>(self, schemas: &mut Schemas, description: &str, example: Value) -> Self {
        self.parameter("limit")
            .parameter("cursor")
            .parameter("Souk-At-Least")
            .json::<T>(schemas, 200, description, &[], example)
            .refuses(&["no-such-page", "nothing-written-there", "read-model-behind", "list-unavailable"])
    }

    fn if_match(self) -> Self {
        self.parameter("If-Match").refuses(&["version-differs"])
    }

    fn refuses(mut self, names: &[&'static str]) -> Self {
        self.refusals.extend(names);
        self
    }

    /// What follows from the method, the body, and what the route needs of its caller.
    fn by_the_rules(self, route: &Route) -> Self {
        let (takes_body, reads) = (self.body.is_some(), self.method == Method::GET);
        let mut operation = self.refuses(&ALWAYS);
        if !reads {
            operation = operation.refuses(&["slow-body", "too-large", "broken-body", "not-written"]);
        }
        if operation.method == Method::POST {
            operation = operation.parameter("Idempotency-Key").refuses(&["idempotency-key-reused", "answer-forgotten"]);
        }
        if takes_body {
            operation = operation.refuses(&["invalid-json", "invalid-body", "unsupported-media-type"]);
        }
        if route.budget.is_some() {
            operation = operation.refuses(&["rate-limited"]);
        }
        if route.permission != Permission::Ask {
            operation = operation.refuses(&["invalid-token"]);
        }
        match route.permission.reach(Rank::Guest) {
            Reach::All => operation,
            Reach::None => operation.refuses(&["unauthorized", "forbidden"]),
            // Whose it is, is only said to its owner.
            Reach::Own | Reach::Shop => operation.refuses(&["forbidden", "not-found"]),
        }
    }

    fn into_value(self, route: &Route) -> Value {
        let mut operation = self.by_the_rules(route);
        let replayable = operation.method == Method::POST;
        let mut responses = Map::new();
        for (status, mut answer) in operation.answers {
            if replayable && status != 101 {
                answer["headers"]["Idempotency-Replayed"] = header_ref("Idempotency-Replayed");
            }
            responses.insert(status.to_string(), answer);
        }
        responses.extend(refusals(&operation.refusals, replayable));
        if route.budget.is_some() {
            for answer in responses.values_mut() {
                for name in ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"] {
                    answer["headers"][name] = header_ref(name);
                }
            }
        }
        let path_parameters = operation.pattern.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        operation.parameters.splice(0..0, path_parameters.map(|name| path_parameter(operation.pattern, name)));
        let mut value = json!({
            "operationId": operation.id,
            "tags": [operation.tag],
            "summary": operation.summary,
            "security": security(route.permission),
            "responses": responses,
        });
        if !operation.description.is_empty() {
            value["description"] = operation.description.into();
        }
        if !operation.parameters.is_empty() {
            value["parameters"] = operation.parameters.into();
        }
        if let Some(body) = operation.body {
            let content = json!({ JSON: { "schema": body.schema, "example": body.example } });
            value["requestBody"] = json!({ "required": body.required, "content": content });
        }
        value
    }
}

/// The refusals by their status. A problem of another type than those named would break the contract.
fn refusals(names: &[&str], replayable: bool) -> BTreeMap<String, Value> {
    let names: BTreeSet<&str> = names.iter().copied().collect();
    let mut by_status: BTreeMap<u16, Vec<(&str, &str)>> = BTreeMap::new();
    for (status, name, when) in PROBLEMS.iter().filter(|(_, name, _)| names.contains(name)) {
        by_status.entry(*status).or_default().push((*name, *when));
    }
    let answer = |status: u16, said: Vec<(&str, &str)>| {
        let list: Vec<String> = said.iter().map(|(name, when)| format!("`/problems/{name}`: {when}.")).collect();
        let types: Vec<String> = said.iter().map(|(name, _)| format!("/problems/{name}")).collect();
        let schema = json!({ "$ref": "#/components/schemas/Problem", "properties": { "type": { "enum": types } } });
        let mut headers = header_refs(match status {
            401 => &["WWW-Authenticate"],
            409 | 429 | 503 => &["Retry-After"],
            _ => &[],
        });
        if replayable && (400..500).contains(&status) {
            headers.insert("Idempotency-Replayed".into(), header_ref("Idempotency-Replayed"));
        }
        let example = said.first().map(|(name, when)| {
            json!({
                "type": format!("/problems/{name}"),
                "title": "A sentence that a person can act on.",
                "status": status,
                "detail": when,
                "request_id": "01M7XTJD39HAVHP9G020ZF53AX",
            })
        });
        json!({
            "description": list.join("\n"),
            "headers": headers,
            "content": { PROBLEM_JSON: { "schema": schema, "example": example } },
        })
    };
    by_status.into_iter().map(|(status, said)| (status.to_string(), answer(status, said))).collect()
}

fn header_ref(name: &str) -> Value {
    json!({ "$ref": format!("#/components/headers/{name}") })
}

/// These, and what every answer bears.
fn header_refs(names: &[&str]) -> Map<String, Value> {
    names.iter().chain(&["X-Request-Id"]).map(|name| ((*name).to_owned(), header_ref(name))).collect()
}

fn headers() -> Value {
    let tag = json!({ "type": "string", "pattern": r#"^"[0-9a-f]{1,20}(-gzip)?"$"# });
    let position = json!({ "type": "integer", "minimum": 0 });
    json!({
        "X-Request-Id": {
            "description": "The request's name in our logs: the one that it came with, if that is sane.",
            "required": true,
            "schema": { "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$" },
        },
        "ETag": { "description": "The version of what is answered.", "required": true, "schema": tag },
        "Souk-Position": {
            "description": "Where in the journal this is written. Sent back as Souk-At-Least, a list shows it.",
            "required": true,
            "schema": position,
        },
        "Cache-Control": { "description": "How long the answer may be kept.", "schema": { "type": "string" } },
        "Location": { "description": "Where it is.", "required": true, "schema": { "type": "string" } },
        "Retry-After": { "description": "Seconds after which to ask again.", "schema": { "type": "integer", "minimum": 1 } },
        "RateLimit-Limit": { "description": "How much may be asked at once.", "schema": position },
        "RateLimit-Remaining": { "description": "How much of that is left.", "schema": position },
        "RateLimit-Reset": { "description": "Seconds until all of it is there again; after a 429, until something is.", "schema": position },
        "Idempotency-Replayed": {
            "description": "This is the first answer again; nothing was done now.",
            "schema": { "type": "string", "enum": ["true"] },
        },
        "WWW-Authenticate": { "required": true, "schema": { "type": "string", "enum": ["Bearer"] } },
    })
}

fn parameters() -> Value {
    let number = json!({ "type": "string", "pattern": "^[0-9]{1,19}$" });
    json!({
        "limit": {
            "name": "limit", "in": "query", "description": "The most items to answer.",
            "schema": { "type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT },
        },
        "cursor": {
            "name": "cursor", "in": "query", "description": "The `next_cursor` of the page before, with the same filters.",
            "schema": { "type": "string", "pattern": "^[0-9a-f]+$", "maxLength": CURSOR_CHARS_MAX },
        },
        "Souk-At-Least": {
            "name": "Souk-At-Least", "in": "header", "description": "A Souk-Position that the list must have come to.",
            "schema": number,
        },
        "If-Match": {
            "name": "If-Match", "in": "header", "description": "The ETag that is to be changed, or `*`.",
            "schema": { "type": "string", "anyOf": [{ "pattern": r#"^"[0-9]{1,19}"$"# }, { "enum": ["*"] }] },
        },
        "If-None-Match": {
            "name": "If-None-Match", "in": "header", "description": "The ETags that you have.",
            "schema": { "type": "string" },
        },
        "Idempotency-Key": {
            "name": "Idempotency-Key", "in": "header",
            "description": "Makes it safe to ask again: the same key with the same body gets the first answer again.",
            "schema": { "type": "string", "pattern": "^[!-~]([ -~]*[!-~])?$", "minLength": 1, "maxLength": idempotency::KEY_BYTES_MAX },
        },
        "Last-Event-ID": {
            "name": "Last-Event-ID", "in": "header", "description": "The last `id` that you have; the stream goes on after it.",
            "schema": number,
        },
    })
}

struct Kinds(Vec<&'static str>);

impl EveryKind for Kinds {
    fn kind<E: Entity>(&mut self) {
        self.0.push(E::KIND);
    }
}

fn path_parameter(pattern: &str, name: &str) -> Value {
    let id = |pattern: &str, example: &str| (json!({ "type": "string", "pattern": pattern }), example.to_owned());
    let (schema, example) = match name {
        "kind" => {
            let mut kinds = Kinds(Vec::new());
            every_kind(&mut kinds);
            (json!({ "type": "string", "enum": kinds.0 }), "order".into())
        }
        "sku" => {
            let schema = json!({ "type": "string", "pattern": ids::SKU_PATTERN, "maxLength": ids::SKU_CHARS_MAX });
            (schema, SKU.into())
        }
        _ if pattern.starts_with("/api/carts/") => id(ids::CART_PATTERN, CART),
        _ if pattern.starts_with("/api/orders/") => id(ids::ORDER_PATTERN, ORDER),
        "claim" => id(ids::CLAIM_PATTERN, CLAIM),
        _ if pattern.starts_with("/api/flash-sales/") => id(ids::FLASH_SALE_PATTERN, SALE),
        _ if pattern.starts_with("/api/products/") => id(ids::PRODUCT_PATTERN, PRODUCT),
        _ if pattern.starts_with("/api/shops/") => id(ids::SHOP_PATTERN, SHOP),
        _ if pattern.starts_with("/api/users/me/sessions/") => id(ids::SESSION_PATTERN, SESSION),
        _ if pattern.starts_with("/api/users/me/keys/") => id(ids::API_KEY_PATTERN, API_KEY),
        "role" => (json!({ "type": "string", "enum": ["admin"] }), "admin".into()),
        _ if pattern.starts_with("/api/users/") => id(ids::USER_PATTERN, USER),
        _ => (json!({ "type": "string", "minLength": 1 }), ORDER.into()),
    };
    json!({ "name": name, "in": "path", "required": true, "schema": schema, "example": example })
}

/// What opens it. A guest's cart or order whose token is missing is not found, as with a wrong one, so that nobody learns
/// whether it exists: that is why the empty requirement stands beside the token.
fn security(permission: Permission) -> Value {
    let mut ways: Vec<&str> = Vec::new();
    match (permission, permission.reach(Rank::Guest)) {
        (Permission::Ask, _) => return json!([]),
        (Permission::CartUse, _) => ways.extend(["", "cart"]),
        (Permission::SaleBuy, _) => ways.extend(["", "claim"]),
        (_, Reach::Own) => ways.extend(["", "order"]),
        (_, Reach::All) => ways.push(""),
        (_, Reach::None | Reach::Shop) => {}
    }
    ways.push("account");
    if permission.is_for_keys() {
        ways.push("key");
    }
    let way = |way: &str| if way.is_empty() { json!({}) } else { json!({ way: [] }) };
    ways.into_iter().map(way).collect()
}

fn security_schemes() -> Value {
    let bearer = |description: &str| json!({ "type": "http", "scheme": "bearer", "description": description });
    json!({
        "account": {
            "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
            "description": "The access token of `POST /api/sessions`. What it may do depends on the account's roles.",
        },
        "key": bearer("An API key of `POST /api/users/me/keys`. It may do what its scopes name, and what everybody may."),
        "cart": bearer("The token that came with a guest's cart."),
        "order": bearer("The token that came with a guest's order, or that of the cart or the claim that it was made of."),
        "claim": bearer("The token that came with a guest's claim, place in line, reminder or challenge."),
    })
}

const ABOUT: &str = "\
Money is in whole minor units (cents), with its currency. Times are RFC 3339 in UTC.

Errors are `application/problem+json` (RFC 9457). `type` is stable and made for programs, `title` is for people, `errors` \
points at what is wrong in a body. A `Retry-After` says that asking again will help.

A POST with an `Idempotency-Key` can be sent again safely. A change can be bound to an `ETag` with `If-Match`. A write \
answers with its `Souk-Position`, and a list that is asked with it as `Souk-At-Least` shows that write.

Every answer bears an `X-Request-Id`, which may be given by the client: 1 to 64 letters, digits, `.`, `_` and `-`. A \
`traceparent` (W3C Trace Context) is taken up.

Fields may be added to what is answered. What a body has that is not described is refused. HEAD is answered as GET without \
the body, OPTIONS with the methods there are.";

/// The whole document.
pub fn document() -> Value {
    let mut schemas = Schemas::new();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for operation in operations(&mut schemas) {
        let route = ROUTES.iter().find(|route| route.method == operation.method && route.pattern == operation.pattern);
        // An operation without a route is found by the test below, and must not be promised meanwhile.
        let Some(route) = route else { continue };
        let method = operation.method.as_str().to_ascii_lowercase();
        paths.entry(operation.pattern).or_default().insert(method, operation.into_value(route));
    }
    schemas.written::<problem::Body>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Souk",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "A marketplace: products, stock, carts, orders, payments.",
            "description": ABOUT,
            "license": { "name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE") },
        },
        "servers": [{ "url": "/" }],
        "tags": TAGS.map(|(name, description)| json!({ "name": name, "description": description })),
        "paths": paths,
        "components": {
            "schemas": schemas.into_components(),
            "parameters": parameters(),
            "headers": headers(),
            "securitySchemes": security_schemes(),
        },
    })
}

const TAGS: [(&str, &str); 9] = [
    ("Products", "What is sold."),
    ("Inventory", "How much of each sku there is."),
    ("Carts", "From the first item to the checkout. A guest's cart is held by whoever has its token."),
    ("Orders", "Placed, looked at, cancelled, shipped."),
    (
        "Flash sales",
        "Some units at a price of their own, for a while, to whoever comes first. A guest's claim is held by whoever has the \
         token that came with it.",
    ),
    ("Accounts", "Signing up, logging in, sessions, API keys, roles."),
    ("Shops", "What vendors sell under."),
    ("Live", "Events as they happen."),
    ("Operation", "For those who run it."),
];

const SKU: &str = "LANTERN-S";
const PRODUCT: &str = "prod_01M7XTJ72XFBZWPK91BJAAFXTS";
const CART: &str = "cart_01M7XTJCNK7E0TZAKXQ10YG0SG";
const OTHER_CART: &str = "cart_01M7XTGS4C0P2XJ5B7N8R3QWVY";
const ORDER: &str = "ord_01M7XTJD39HAVHP9G020ZF53AX";
const SALE: &str = "fs_01M7XTJZ0N8S2Y6KQH4D5E3WVB";
const CLAIM: &str = "claim_01M7XTJZ0N8S2Y6KQH4D5E3WVB_41";
const SHOP: &str = "shop_01M7XTHW5QK3N8Y2RZ6E4DBFGA";
const USER: &str = "usr_01M7XTHB0V6S9C4TJXPM2WQKRN";
const SESSION: &str = "ses_01M7XTHE7A1DG5ZFV3YB8HNKSC";
const API_KEY: &str = "key_01M7XTHH9XPR2M6CWQ4TJ0EVDB";
const TOKEN: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
const PLACED: &str = "2026-11-21T01:12:12.653Z";

fn euros(cents: i64) -> Value {
    json!({ "amount": cents, "currency": "EUR" })
}

fn product() -> Value {
    json!({
        "id": PRODUCT, "shop_id": "shop_default", "handle": "copper-lantern", "title": "Copper Lantern",
        "description": "A hand-beaten lantern.", "vendor": "Souk", "type": "Lighting", "category": ["Home", "Lighting"],
        "tags": ["copper"], "options": ["Size"],
        "variants": [{ "sku": SKU, "price": euros(4900), "options": ["Small"] }], "published": true, "version": 2,
    })
}

fn product_summary() -> Value {
    json!({
        "id": PRODUCT, "shop_id": "shop_default", "handle": "copper-lantern", "title": "Copper Lantern", "vendor": "Souk",
        "type": "Lighting", "category": ["Home", "Lighting"], "tags": ["copper"], "price_from": euros(4900),
        "price_to": euros(4900), "in_stock": true, "version": 2,
        "variants": [{ "sku": SKU, "price": euros(4900), "options": ["Small"], "available": 400 }],
    })
}

fn inventory_item() -> Value {
    json!({
        "sku": SKU, "product_id": PRODUCT, "on_hand": 400, "reserved": 0, "held": 2, "allotted": 0, "available": 398,
        "low_stock_threshold": 5,
    })
}

fn cart() -> Value {
    json!({
        "id": CART, "status": "open", "subtotal": euros(9800),
        "lines": [{
            "sku": SKU, "product_id": PRODUCT, "title": "Copper Lantern (Small)", "quantity": 2,
            "unit_price": euros(4900), "total": euros(9800), "held_until": "2026-11-21T01:27:12.636Z",
        }],
    })
}

fn address() -> Value {
    json!({ "name": "Ada", "line1": "1 Main Street", "city": "Paris", "postal_code": "75001", "country": "FR" })
}

fn purchase() -> Value {
    json!({
        "payment": { "provider": "sandbox", "token": "tok_ok" }, "email": "ada@example.com",
        "shipping_address": address(),
    })
}

fn order(status: &str) -> Value {
    json!({
        "id": ORDER, "status": status, "total": euros(9800), "email": "ada@example.com", "shipping_address": address(),
        "payment": { "provider": "sandbox", "status": "captured" }, "placed_at": PLACED, "shipments": [], "cart_id": CART,
        "lines": [{
            "sku": SKU, "product_id": PRODUCT, "title": "Copper Lantern (Small)", "quantity": 2,
            "unit_price": euros(4900), "total": euros(9800),
        }],
    })
}

fn page(item: Value) -> Value {
    json!({ "items": [item], "next_cursor": null })
}

fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let mut all = Vec::new();
    all.extend(of_products(schemas));
    all.extend(of_inventory(schemas));
    all.extend(of_carts(schemas));
    all.extend(of_orders(schemas));
    all.extend(of_flash_sales(schemas));
    all.extend(of_claims(schemas));
    all.extend(of_accounts(schemas));
    all.extend(of_shops(schemas));
    all.extend(of_live());
    all.extend(of_operation(schemas));
    all
}

fn of_products(s: &mut Schemas) -> Vec<Operation> {
    let on = |method, pattern, id, summary| Operation::new(method, pattern, id, "Products", summary);
    let text = || json!({ "type": "string" });
    let price = || json!({ "type": "integer", "minimum": 0, "maximum": AMOUNT_MAX });
    let new = json!({
        "title": "Copper Lantern", "description": "A hand-beaten lantern.", "category": ["Home", "Lighting"],
        "options": ["Size"],
        "variants": [{ "sku": "LANTERN-XL", "price": euros(7900), "options": ["Extra large"], "stock": 10 }],
    });
    vec![
        on(Method::GET, "/api/products", "listProducts", "Find products that are for sale")
            .query("q", "Words that must all occur.", text())
            .query("category", "The beginning of a category's path, as `Kitchen > Coffee Machines`.", text())
            .query("tag", "A tag.", text())
            .query("shop", "A shop's id.", text())
            .query("min_price", "Minor units.", price())
            .query("max_price", "Minor units.", price())
            .query("in_stock", "Only what is available, or only what is not.", json!({ "type": "boolean" }))
            .query("sort", "In which order.", json!({ "type": "string", "enum": products::SORTS, "default": "relevance" }))
            .page::<Page<ProductSummary>>(s, "A page of products.", page(product_summary())),
        on(Method::POST, "/api/products", "createProduct", "Offer a product")
            .takes::<products::ProductBody>(s, new)
            .json::<shown::ProductShown<'_>>(s, 201, "It is offered.", &["ETag", "Location", "Souk-Position"], product())
            .refuses(&["sku-taken", "contradictory-body", "exists", "busy"]),
        on(Method::GET, "/api/products/{id}", "getProduct", "Look at a product").thing::<shown::ProductShown<'_>>(
            s,
            "The product.",
            product(),
        ),
        on(Method::PATCH, "/api/products/{id}", "changeProduct", "Change a product")
            .says("What is given replaces what was; what is left out stays.")
            .takes::<products::ProductPatch>(s, json!({ "title": "Copper Lantern, hand-beaten" }))
            .json::<shown::ProductShown<'_>>(s, 200, "The product as it is now.", &["ETag", "Souk-Position"], product())
            .if_match()
            .refuses(&["not-found", "sku-taken", "contradictory-body", "busy"]),
        on(Method::DELETE, "/api/products/{id}", "deleteProduct", "Take a product out of the catalogue")
            .answers(204, "It is gone.", &["Souk-Position"], None)
            .if_match()
            .refuses(&["not-found", "busy"]),
    ]
}

fn of_inventory(s: &mut Schemas) -> Vec<Operation> {
    let on = |method, pattern, id, summary| Operation::new(method, pattern, id, "Inventory", summary);
    vec![
        on(Method::GET, "/api/inventory/{sku}", "getInventory", "How much there is of a sku").thing::<shown::InventoryShown<'_>>(
            s,
            "The inventory item.",
            inventory_item(),
        ),
        on(Method::PATCH, "/api/inventory/{sku}", "changeInventory", "Say when stock is low")
            .takes::<inventory::InventoryPatch>(s, json!({ "low_stock_threshold": 5 }))
            .json::<shown::InventoryShown<'_>>(s, 200, "The item as it is now.", &["ETag", "Souk-Position"], inventory_item())
            .if_match()
            .refuses(&["not-found"]),
        on(Method::POST, "/api/inventory/{sku}/adjustments", "adjustInventory", "Note that units came or went")
            .takes::<inventory::AdjustmentBody>(s, json!({ "delta": 10, "reason": "delivery" }))
            .json::<shown::InventoryShown<'_>>(s, 200, "The item as it is now.", &["ETag", "Souk-Position"], inventory_item())
            .if_match()
            .refuses(&["not-found", "below-committed", "too-many"]),
    ]
}

fn of_carts(s: &mut Schemas) -> Vec<Operation> {
    let on = |method, pattern, id, summary| Operation::new(method, pattern, id, "Carts", summary);
    let mut created = json!({ "token": TOKEN, "id": CART, "status": "open", "lines": [], "subtotal": null });
    created["subtotal"] = Value::Null;
    let changed = |operation: Operation, s: &mut Schemas| {
        operation
            .json::<shown::CartShown<'_>>(s, 200, "The cart as it is now.", &["ETag", "Souk-Position"], cart())
            .if_match()
            .refuses(&["not-found", "cart-closed", "checking-out", "busy"])
    };
    let add = on(Method::POST, "/api/carts/{id}/items", "addCartItem", "Put something into a cart")
        .says("The units are held for this cart for a while: `held_until` says how long.")
        .takes::<carts::ItemBody>(s, json!({ "sku": SKU, "quantity": 2 }))
        .refuses(&["not-for-sale", "out-of-stock", "too-many-lines", "currency-differs"]);
    let set = on(Method::PATCH, "/api/carts/{id}/items/{sku}", "setCartItem", "Set a line's quantity")
        .takes::<carts::QuantityBody>(s, json!({ "quantity": 3 }))
        .refuses(&["no-such-line", "out-of-stock"]);
    let remove =
        on(Method::DELETE, "/api/carts/{id}/items/{sku}", "removeCartItem", "Take a line out").refuses(&["no-such-line"]);
    let merge = on(Method::POST, "/api/carts/{id}/merge", "mergeCarts", "Merge another cart into this one")
        .says("Whoever merges must hold both carts.")
        .takes::<carts::MergeBody>(s, json!({ "from": OTHER_CART, "from_token": TOKEN }))
        .refuses(&["not-mergeable", "too-many-lines", "currency-differs"]);
    vec![
        on(Method::POST, "/api/carts", "createCart", "Take a cart")
            .takes::<carts::CartBody>(s, json!({}))
            .json::<carts::Created<'_>>(s, 201, "An empty cart.", &["ETag", "Location", "Souk-Position"], created),
        on(Method::GET, "/api/carts/{id}", "getCart", "Look into a cart").thing::<shown::CartShown<'_>>(s, "The cart.", cart()),
        on(Method::DELETE, "/api/carts/{id}", "deleteCart", "Leave a cart behind")
            .answers(204, "It is gone, and what it held is free.", &["Souk-Position"], None)
            .if_match()
            .refuses(&["not-found", "cart-closed", "checking-out", "busy"]),
        changed(add, s),
        changed(set, s),
        changed(remove, s),
        changed(merge, s),
        purchased(on(Method::POST, "/api/carts/{id}/checkout", "checkOutCart", "Buy what is in a cart"), s)
            .takes::<orders::PurchaseBody>(s, purchase())
            .if_match()
            .refuses(&["not-found", "cart-empty", "cart-closed", "checking-out", "prices-changed", "busy"]),
    ]
}

/// The answers to every purchase.
fn purchased(operation: Operation, s: &mut Schemas) -> Operation {
    operation
        .says(
            "201 when the purchase has come to its end within two seconds; `status` says whether it was paid. 202 when it \
             takes longer: look at `Location`.",
        )
        .json::<shown::OrderShown<'_>>(s, 201, "The order.", &["ETag", "Location", "Souk-Position"], order("paid"))
        .json::<shown::OrderShown<'_>>(
            s,
            202,
            "The order is on its way.",
            &["ETag", "Location", "Souk-Position"],
            order("pending"),
        )
        .refuses(&["out-of-stock", "total-differs", "currency-differs", "not-offered", "email-needed"])
        .refuses(&["not-found", "claim-over", "contradictory-body"])
}

fn of_orders(s: &mut Schemas) -> Vec<Operation> {
    let on = |method, pattern, id, summary| Operation::new(method, pattern, id, "Orders", summary);
    let mut new = purchase();
    new["items"] = json!([{ "sku": SKU, "quantity": 2 }]);
    let summary = json!({ "id": ORDER, "status": "paid", "total": euros(9800), "items": 2, "placed_at": PLACED });
    let record = json!({
        "version": 4, "type": "order.paid", "time": PLACED, "data": { "total": euros(9800) },
        "asked_by": "payment/pay_01M7XTJD39HAVHP9G020ZF53AX",
    });
    let statuses = json!({ "type": "string", "enum": orders::STATUSES });
    vec![
        on(Method::GET, "/api/orders", "listOrders", "List orders, the newest first")
            .says("One's own; an admin lists everybody's. With `shop`, its owner lists what was bought there.")
            .query("status", "Only orders of this status.", statuses)
            .query("shop", "Only what was bought in this shop.", json!({ "type": "string" }))
            .refuses(&["not-found"])
            .page::<Page<OrderSummary>>(s, "A page of orders.", page(summary)),
        purchased(on(Method::POST, "/api/orders", "placeOrder", "Buy without a cart"), s)
            .takes::<orders::OrderBody>(s, new)
            .refuses(&["not-for-sale", "exists", "contradictory-body"]),
        on(Method::GET, "/api/orders/{id}", "getOrder", "Look at an order").thing::<shown::OrderShown<'_>>(
            s,
            "The order.",
            order("paid"),
        ),
        on(Method::GET, "/api/orders/{id}/history", "getOrderHistory", "All that ever happened to an order")
            .parameter("limit")
            .query("cursor", "The `next_cursor` of the page before.", json!({ "type": "string", "pattern": "^[0-9]{1,19}$" }))
            .json::<orders::History>(s, 200, "A page of records, the oldest first.", &[], page(record))
            .refuses(&["not-found"]),
        on(Method::POST, "/api/orders/{id}/cancel", "cancelOrder", "Cancel an order")
            .says("What was paid is paid back, and what was reserved is free again.")
            .takes::<orders::CancelBody>(s, json!({ "reason": "changed my mind" }))
            .json::<shown::OrderShown<'_>>(s, 200, "The order as it is now.", &["ETag", "Souk-Position"], order("cancelled"))
            .if_match()
            .refuses(&["not-found", "not-cancellable", "in-payment"]),
        on(Method::POST, "/api/orders/{id}/claim", "claimOrder", "Take a guest's order into my account")
            .takes::<orders::ClaimBody>(s, json!({ "token": TOKEN }))
            .json::<shown::OrderShown<'_>>(s, 200, "The order as it is now.", &["ETag", "Souk-Position"], order("paid"))
            .if_match()
            .refuses(&["not-found", "not-claimable"]),
        on(Method::POST, "/api/orders/{id}/shipments", "shipOrder", "Note that an order is on its way")
            .takes::<orders::ShipmentBody>(s, json!({ "carrier": "Post", "tracking_number": "RX123" }))
            .json::<shown::OrderShown<'_>>(s, 201, "The order as it is now.", &["ETag", "Souk-Position"], order("shipped"))
            .if_match()
            .refuses(&["not-found", "not-shippable"]),
        on(Method::POST, "/api/orders/{id}/delivery", "deliverOrder", "Note that an order has arrived")
            .json::<shown::OrderShown<'_>>(s, 200, "The order as it is now.", &["ETag", "Souk-Position"], order("delivered"))
            .if_match()
            .refuses(&["not-found", "not-deliverable"]),
    ]
}

fn flash_sale(status: &str) -> Value {
    json!({
        "id": SALE, "status": status, "sku": SKU, "product_id": PRODUCT, "shop_id": SHOP, "title": "Copper Lantern (Small)",
        "price": euros(2900), "quantity": 100, "per_customer_limit": 2, "per_address_limit": null,
        "starts_at": "2026-11-27T18:00:00.000Z", "ends_at": "2026-11-27T19:00:00.000Z", "claim_seconds": 300,
        "admission_seconds": 60, "grace_seconds": 120, "guests": true, "admissions_per_second": null, "challenge_bits": 0,
        "available": 100, "held": 0, "sold": 0, "waiting": 0, "reminders": 0, "starts_soon": false,
    })
}

fn of_flash_sales(s: &mut Schemas) -> Vec<Operation> {
    let on = |method, pattern, id, summary| Operation::new(method, pattern, id, "Flash sales", summary);
    let text = || json!({ "type": "string" });
    let summary = json!({
        "id": SALE, "status": "scheduled", "sku": SKU, "product_id": PRODUCT, "shop_id": SHOP, "title": "Copper Lantern (Small)",
        "price": euros(2900), "quantity": 100, "per_customer_limit": 2, "starts_at": "2026-11-27T18:00:00.000Z",
        "ends_at": "2026-11-27T19:00:00.000Z", "guests": true,
    });
    let new = json!({
        "sku": SKU, "price": euros(2900), "quantity": 100, "per_customer_limit": 2, "starts_at": "2026-11-27T18:00:00Z",
        "ends_at": "2026-11-27T19:00:00Z", "guests": true,
    });
    let run = |name: &'static str, id, summary, status, s: &mut Schemas| {
        on(Method::POST, name, id, summary)
            .json::<shown::FlashSaleShown<'_>>(s, 200, "The sale as it is now.", &["Souk-Position"], flash_sale(status))
            .refuses(&["not-found", "sale-status", "sale-over"])
    };
    vec![
        on(Method::GET, "/api/flash-sales", "listFlashSales", "List flash sales, the soonest start first")
            .says("Drafts are listed for their own shop and for admins.")
            .query("status", "Only sales of this status.", json!({ "type": "string", "enum": flash_sales::STATUSES }))
            .query("sku", "Only sales of this sku.", text())
            .query("shop", "Only sales of this shop.", text())
            .page::<Page<FlashSaleSummary>>(s, "A page of flash sales.", page(summary)),
        on(Method::POST, "/api/flash-sales", "createFlashSale", "Draft a flash sale")
            .says("Of a product of one's own shop; an admin's of any. An admin approves it.")
            .takes::<flash_sales::SaleBody>(s, new)
            .json::<shown::FlashSaleShown<'_>>(s, 201, "The draft.", &["Location", "Souk-Position"], flash_sale("draft"))
            .refuses(&["not-for-sale", "contradictory-body", "exists"]),
        on(Method::GET, "/api/flash-sales/{id}", "getFlashSale", "Look at a flash sale")
            .says("It bears no ETag: it changes with every claim.")
            .json::<shown::FlashSaleShown<'_>>(s, 200, "The sale.", &[], flash_sale("active"))
            .refuses(&["not-found"]),
        on(Method::PATCH, "/api/flash-sales/{id}", "changeFlashSale", "Change a flash sale")
            .says(
                "What is given replaces what was; what is left out stays. The terms of a draft are its shop's to change. \
                 `admissions_per_second` and `challenge_bits` are an admin's, at any time; they count within a second.",
            )
            .takes::<flash_sales::SalePatch>(s, json!({ "quantity": 120 }))
            .json::<shown::FlashSaleShown<'_>>(s, 200, "The sale as it is now.", &["Souk-Position"], flash_sale("draft"))
            .refuses(&["not-found", "contradictory-body", "sale-status", "sale-over", "busy"]),
        run("/api/flash-sales/{id}/approve", "approveFlashSale", "Approve a flash sale", "scheduled", s)
            .says("Answers when the units are set aside: from then on the sale starts and ends by itself.")
            .refuses(&["out-of-stock", "not-for-sale", "too-many-sales", "contradictory-body"]),
        run("/api/flash-sales/{id}/pause", "pauseFlashSale", "Pause a flash sale", "paused", s)
            .says("Nothing is claimed until it goes on. What is claimed can be paid, and its end comes all the same."),
        run("/api/flash-sales/{id}/resume", "resumeFlashSale", "Let a flash sale go on", "active", s),
        run("/api/flash-sales/{id}/cancel", "cancelFlashSale", "Cancel a flash sale", "cancelled", s)
            .says("What is being paid can be paid; every other unit goes back into the stock.")
            .takes::<orders::CancelBody>(s, json!({ "reason": "the delivery is late" })),
    ]
}

fn of_claims(s: &mut Schemas) -> Vec<Operation> {
    let on = |method, pattern, id, summary| Operation::new(method, pattern, id, "Flash sales", summary);
    let until = "2026-11-27T18:05:00.123Z";
    let ticket = json!({ "place": 12, "estimated_wait_seconds": 40, "quantity": 1 });
    let claim = json!({ "id": CLAIM, "status": "held", "quantity": 1, "unit_price": euros(2900), "expires_at": until });
    let granted = json!({ "id": CLAIM, "quantity": 1, "unit_price": euros(2900), "expires_at": until, "token": TOKEN });
    let challenge = format!("{SALE}.guest_{}.18.1795802523123.{TOKEN}", TOKEN.get(..32).unwrap_or_default());
    vec![
        on(Method::GET, "/api/flash-sales/{id}/challenge", "getClaimChallenge", "Something to work on before a claim")
            .says(
                "For sales whose `challenge_bits` are not 0. Find a `nonce` such that SHA-256 of `challenge`, a full stop and \
                 `nonce` begins with `bits` zero bits, and send both with the claim. It counts for this caller in this sale \
                 until `expires_at`. A guest who shows no token is given one, and claims with it.",
            )
            .json::<claims::Challenge<'_>>(
                s,
                200,
                "The challenge.",
                &["Cache-Control"],
                json!({ "challenge": challenge, "bits": 18, "expires_at": until }),
            )
            .refuses(&["not-found", "unauthorized", "forbidden"]),
        on(Method::GET, "/api/flash-sales/{id}/claims", "listOwnClaims", "What I have of a flash sale")
            .json::<claims::OwnClaims>(
                s,
                200,
                "The newest claims, up to 100, and the place in line.",
                &["Cache-Control"],
                json!({ "claims": [claim], "ticket": ticket, "reminded": false }),
            )
            .refuses(&["not-found", "unauthorized", "forbidden"]),
        on(Method::POST, "/api/flash-sales/{id}/claims", "claim", "Claim units of a flash sale")
            .says(
                "201 when the units are yours to pay, until `expires_at`. 202 when there is a line: whose turn comes is offered \
                 a claim, and takes it up by asking this again, with another Idempotency-Key if with any. Whoever is in line \
                 and asks again hears the place. A guest who shows no token is given one.",
            )
            .takes::<claims::ClaimBody>(s, json!({ "quantity": 1 }))
            .json::<claims::Granted<'_>>(s, 201, "Units to pay.", &["Location", "Souk-Position"], granted)
            .json::<claims::Queued<'_>>(
                s,
                202,
                "A place in line.",
                &["Location", "Souk-Position"],
                json!({ "ticket": ticket, "token": TOKEN }),
            )
            .refuses(&["not-found", "unauthorized", "forbidden", "proof-needed", "proof-refused", "contradictory-body"])
            .refuses(&["sale-not-started", "sale-paused", "sale-over", "sold-out", "out-of-stock", "over-limit"])
            .refuses(&["over-address-limit", "line-full", "claim-over"]),
        on(Method::GET, "/api/flash-sales/{id}/claims/{claim}", "getClaim", "Look at a claim")
            .json::<shown::ClaimShown>(s, 200, "The claim.", &["Cache-Control"], claim.clone())
            .refuses(&["not-found", "unauthorized", "forbidden"]),
        on(Method::DELETE, "/api/flash-sales/{id}/claims/{claim}", "giveUpClaim", "Give a claim up")
            .answers(204, "Its units are the next one's.", &["Souk-Position"], None)
            .refuses(&["not-found", "unauthorized", "forbidden", "claim-over", "in-payment"]),
        on(Method::DELETE, "/api/flash-sales/{id}/ticket", "leaveLine", "Leave the line")
            .answers(204, "The caller is not in line.", &["Souk-Position"], None)
            .refuses(&["not-found", "unauthorized", "forbidden"]),
        on(Method::POST, "/api/flash-sales/{id}/reminder", "remindOfFlashSale", "Ask to be reminded of a flash sale")
            .says("Before it starts, and when units are to be had again.")
            .json::<claims::Reminder<'_>>(s, 200, "It is noted.", &["Souk-Position"], json!({ "reminded": true }))
            .refuses(&["not-found", "unauthorized", "forbidden", "sale-over", "line-full"]),
    ]
}

fn of_accounts(s: &mut Schemas) -> Vec<Operation> {
    let on = |method, pattern, id, summary| Operation::new(method, pattern, id, "Accounts", summary);
    let user = || {
        json!({
            "id": USER, "email": "ada@example.com", "name": "Ada", "roles": ["customer"], "shop_id": null, "cart_id": CART,
            "created_at": PLACED,
        })
    };
    let session = json!({
        "id": SESSION, "device": "curl/8.5", "opened_at": PLACED, "used_at": PLACED,
        "expires_at": "2026-12-21T01:12:12.653Z", "current": true,
    });
    let key = || json!({ "id": API_KEY, "label": "warehouse", "scopes": ["orders.read"], "created_at": PLACED });
    let mut made_key = key();
    made_key["key"] = format!("sk_{USER}.{API_KEY}.{TOKEN}").into();
    let refresh = format!("rt_{USER}.{SESSION}.{TOKEN}.{TOKEN}");
    let logged_in = || {
        json!({
            "access_token": "eyJhbGciOiJFZERTQSJ9.e30.c2ln", "refresh_token": refresh, "token_type": "Bearer",
            "expires_in": 900, "user_id": USER,
        })
    };
    let (email, password) = ("ada@example.com", "copper lantern 7");
    let private: &[&str] = &["ETag", "Cache-Control"];
    vec![
        on(Method::POST, "/api/users", "signUp", "Make an account")
            .takes::<users::NewAccount>(s, json!({ "email": email, "password": password, "name": "Ada" }))
            .json::<shown::AccountShown<'_>>(
                s,
                201,
                "The account.",
                &["ETag", "Cache-Control", "Location", "Souk-Position"],
                user(),
            )
            .refuses(&["email-taken", "weak-password", "exists"]),
        on(Method::GET, "/api/users", "findUser", "Find an account by its e-mail address")
            .query(
                "email",
                "The address.",
                json!({ "type": "string", "maxLength": users::EMAIL_CHARS_MAX, "pattern": users::EMAIL_PATTERN }),
            )
            .required_query()
            .json::<shown::AccountShown<'_>>(s, 200, "The account.", private, user())
            .refuses(&["not-found"]),
        on(Method::GET, "/api/users/me", "getMe", "Look at my account").thing::<shown::AccountShown<'_>>(
            s,
            "The account.",
            user(),
        ),
        on(Method::PATCH, "/api/users/me", "changeMe", "Change my profile")
            .takes::<users::ProfilePatch>(s, json!({ "name": "Ada L." }))
            .json::<shown::AccountShown<'_>>(s, 200, "The account as it is now.", private, user())
            .if_match()
            .refuses(&["not-found"]),
        on(Method::DELETE, "/api/users/me", "deleteMe", "Delete my account")
            .says(
                "All that is personal is forgotten, also in what is kept for ever. Orders stay, without whom they were for. A \
                 shop is closed.",
            )
            .answers(204, "It is gone.", &["Souk-Position"], None)
            .if_match()
            .refuses(&["not-found", "orders-underway", "read-model-behind", "list-unavailable"]),
        on(Method::POST, "/api/users/me/password", "changePassword", "Change my password")
            .says("Ends every other session.")
            .takes::<users::PasswordBody>(s, json!({ "current_password": password, "new_password": "another lantern 8" }))
            .answers(204, "It is changed.", &["Souk-Position"], None)
            .if_match()
            .refuses(&["not-found", "weak-password", "wrong-password", "too-many-attempts", "password-changed"]),
        on(Method::POST, "/api/users/me/email", "changeEmail", "Change my e-mail address")
            .takes::<users::EmailBody>(s, json!({ "current_password": password, "email": "ada@example.org" }))
            .json::<shown::AccountShown<'_>>(
                s,
                200,
                "The account as it is now.",
                &["ETag", "Cache-Control", "Souk-Position"],
                user(),
            )
            .if_match()
            .refuses(&["not-found", "email-taken", "wrong-password", "too-many-attempts", "busy"]),
        on(Method::GET, "/api/users/me/sessions", "listMySessions", "Where I am logged in")
            .json::<Items<shown::SessionShown<'_>>>(s, 200, "All sessions, the last used first.", private, page(session))
            .refuses(&["not-found"]),
        on(Method::DELETE, "/api/users/me/sessions", "endMySessions", "Log out everywhere")
            .answers(204, "All sessions have ended.", &["Souk-Position"], None)
            .if_match()
            .refuses(&["not-found"]),
        on(Method::DELETE, "/api/users/me/sessions/{id}", "endMySession", "End one of my sessions")
            .answers(204, "It has ended.", &["Souk-Position"], None)
            .if_match()
            .refuses(&["not-found"]),
        on(Method::GET, "/api/users/me/keys", "listMyKeys", "My API keys")
            .json::<Items<shown::ApiKeyShown<'_>>>(s, 200, "All keys.", private, page(key()))
            .refuses(&["not-found"]),
        on(Method::POST, "/api/users/me/keys", "makeKey", "Make an API key")
            .says("For machines. The key itself is in this answer and never again.")
            .takes::<users::KeyBody>(s, json!({ "label": "warehouse", "scopes": ["orders.read"] }))
            .json::<shown::ApiKeyShown<'_>>(s, 201, "The key.", &["Cache-Control", "Souk-Position"], made_key)
            .if_match()
            .refuses(&["not-found", "too-many-keys", "exists"]),
        on(Method::DELETE, "/api/users/me/keys/{id}", "revokeKey", "Revoke an API key")
            .answers(204, "It opens nothing any more.", &["Souk-Position"], None)
            .if_match()
            .refuses(&["not-found"]),
        on(Method::GET, "/api/users/{id}", "getUser", "Look at an account").thing::<shown::AccountShown<'_>>(
            s,
            "The account.",
            user(),
        ),
        on(Method::POST, "/api/users/{id}/roles", "grantRole", "Make an admin of an account")
            .takes::<users::RoleBody>(s, json!({ "role": "admin" }))
            .json::<shown::AccountShown<'_>>(
                s,
                200,
                "The account as it is now.",
                &["ETag", "Cache-Control", "Souk-Position"],
                user(),
            )
            .if_match()
            .refuses(&["not-found"]),
        on(Method::DELETE, "/api/users/{id}/roles/{role}", "revokeRole", "Take a role from an account")
            .says("Ends its sessions.")
            .answers(204, "It has the role no more.", &["Souk-Position"], None)
            .if_match()
            .refuses(&["not-found"]),
        on(Method::POST, "/api/sessions", "logIn", "Log in")
            .takes::<sessions::LogInBody>(s, json!({ "email": email, "password": password }))
            .json::<sessions::LoggedIn<'_>>(s, 201, "The tokens.", &["Cache-Control", "Souk-Position"], logged_in())
            .refuses(&["wrong-credentials", "too-many-attempts", "exists"]),
        on(Method::DELETE, "/api/sessions", "logOut", "Log out")
            .answers(204, "The session has ended.", &["Souk-Position"], None)
            .if_match()
            .refuses(&["not-found"]),
        on(Method::POST, "/api/sessions/refresh", "refreshSession", "Renew the tokens")
            .says(
                "Each refresh token can be used once. One that is used again may be stolen: its session is ended. Send an \
                 Idempotency-Key, and an answer that got lost can be had again.",
            )
            .takes::<sessions::RefreshBody>(s, json!({ "refresh_token": refresh }))
            .json::<sessions::LoggedIn<'_>>(s, 200, "New tokens.", &["Cache-Control", "Souk-Position"], logged_in()),
        on(Method::GET, "/.well-known/jwks.json", "getJwks", "The keys that access tokens are signed with").answers(
            200,
            "A JWK set (RFC 7517).",
            &["Cache-Control"],
            Some((JSON, json!({ "type": "object", "required": ["keys"] }), Value::Null)),
        ),
    ]
}

fn of_shops(s: &mut Schemas) -> Vec<Operation> {
    let on = |method, pattern, id, summary| Operation::new(method, pattern, id, "Shops", summary);
    let shop = || json!({ "id": SHOP, "name": "Bab Doukkala", "description": "Made by hand in the old town." });
    let body = || json!({ "name": "Bab Doukkala", "description": "Made by hand in the old town." });
    vec![
        on(Method::POST, "/api/shops", "openShop", "Open a shop")
            .says("Makes a vendor of the account. One shop for each account.")
            .takes::<shops::ShopBody>(s, body())
            .json::<shown::ShopShown<'_>>(s, 201, "The shop.", &["ETag", "Location", "Souk-Position"], shop())
            .refuses(&["has-shop", "exists", "not-found"]),
        on(Method::GET, "/api/shops/{id}", "getShop", "Look at a shop").thing::<shown::ShopShown<'_>>(s, "The shop.", shop()),
        on(Method::PATCH, "/api/shops/{id}", "changeShop", "Change a shop")
            .takes::<shops::ShopPatch>(s, json!({ "name": "Bab Doukkala, est. 1162" }))
            .json::<shown::ShopShown<'_>>(s, 200, "The shop as it is now.", &["ETag", "Souk-Position"], shop())
            .if_match()
            .refuses(&["not-found", "busy"]),
    ]
}

fn of_live() -> Vec<Operation> {
    let on = |method, pattern, id, summary| Operation::new(method, pattern, id, "Live", summary);
    let token = || json!({ "type": "string" });
    let said_in_query = "The token, for browsers, which cannot send headers here.";
    let pictures = "retry: 2000\n\nid: 91\nevent: state\ndata: {\"type\":\"state\",\"topic\":\"flash_sale:fs_…\",\"seq\":91,\"state\":{}}\n\n";
    let stream = "retry: 2000\n\nid: 4\nevent: order.paid\ndata: {\"specversion\":\"1.0\",\"type\":\"order.paid\"}\n\n";
    vec![
        on(Method::GET, "/api/orders/{id}/events", "streamOrderEvents", "An order's events as they happen")
            .says(
                "Server-sent events, without end. Each has the record's version as `id`, its type as `event`, and a \
                 CloudEvents object as `data`.",
            )
            .query("access_token", said_in_query, token())
            .parameter("Last-Event-ID")
            .answers(200, "The stream.", &[], Some(("text/event-stream", json!({ "type": "string" }), stream.into())))
            .refuses(&["not-found"]),
        on(Method::GET, "/api/flash-sales/{id}/events", "streamFlashSale", "A flash sale as it changes")
            .says(
                "Server-sent events, without end. `state` bears the whole sale as it is, at most ten times a second, with its \
                 version as `id`. Somebody in line also gets `ticket`, at most once a second: the place and the estimated wait, \
                 and the claim to take up when it is their turn. While this stream is open they are taken to be there.",
            )
            .query("access_token", said_in_query, token())
            .parameter("Last-Event-ID")
            .answers(200, "The stream.", &[], Some(("text/event-stream", json!({ "type": "string" }), pictures.into())))
            .refuses(&["not-found", "too-many-sessions"]),
        on(Method::GET, "/ws", "openWebSocket", "Events of many things over one WebSocket")
            .says(
                "Send `{\"type\":\"subscribe\",\"topic\":\"order:ord_…\",\"after\":12}` and each event comes as \
                 `{\"type\":\"event\",\"topic\":…,\"seq\":13,\"event\":{…}}`. Topics are `order:`, `cart:` and `inventory:`; a `token` may stand beside the topic. \
                 `flash_sale:` sends the newest `state` of the sale instead of its events, and to those in line their `ticket`.",
            )
            .query("access_token", said_in_query, token())
            .answers(101, "The connection speaks WebSocket from here on.", &[], None)
            .refuses(&["not-a-websocket", "too-many-sessions"]),
    ]
}

fn of_operation(s: &mut Schemas) -> Vec<Operation> {
    let on = |method, pattern, id, summary| Operation::new(method, pattern, id, "Operation", summary);
    let census = json!({
        "members": [{
            "name": "n1", "self": true, "state": "active", "http": "127.0.0.1:8080", "version": "0.1.0", "partitions": 256,
            "owned": (0..=u8::MAX).collect::<Vec<u8>>(), "handovers": 0,
            "residents": { "cart": 3 },
        }],
        "residents": { "cart": 3 }, "set_aside": [], "waiting": 0, "agenda": 2,
        "live_sessions": 0,
    });
    let inspection = json!({ "kind": "cart", "id": CART, "version": 1, "state": {}, "history": [{}] });
    let text = |example: Value| (json!({ "type": "string" }), example);
    let (exposition, exposed) = text("# TYPE souk_http_requests counter\n".into());
    let (page, html) = text(Value::Null);
    let (css, none) = text(Value::Null);
    vec![
        on(Method::GET, "/api/cluster", "getCluster", "Who the members are, and what lives on each").json::<cluster::Cluster>(
            s,
            200,
            "The same from every node.",
            &[],
            census,
        ),
        on(Method::POST, "/api/cluster/set-aside/{kind}/{id}/release", "releaseEntity", "Take back what was set aside")
            .answers(204, "It is taken back.", &[], None)
            .refuses(&["not-found"]),
        on(Method::GET, "/api/cluster/entities/{kind}/{id}", "inspectEntity", "An entity's state and history")
            .query("until", "As it was at this version.", json!({ "type": "integer", "minimum": 1 }))
            .json::<Inspection>(s, 200, "As the journal alone tells it.", &[], inspection)
            .refuses(&["not-found"]),
        on(Method::GET, "/health/live", "getLiveness", "Whether the program runs").json::<health::Health>(
            s,
            200,
            "It runs.",
            &[],
            json!({ "status": "live" }),
        ),
        on(Method::GET, "/health/ready", "getReadiness", "Whether the node takes requests")
            .json::<health::Health>(s, 200, "It does.", &[], json!({ "status": "ready" }))
            .refuses(&["not-ready"]),
        on(Method::GET, "/metrics", "getMetrics", "Metrics").answers(
            200,
            "OpenMetrics text.",
            &[],
            Some((metrics::CONTENT_TYPE, exposition, exposed)),
        ),
        on(Method::GET, "/api/openapi.json", "getContract", "This document")
            .answers(200, "OpenAPI 3.1.", &["ETag"], Some((JSON, json!({ "type": "object" }), Value::Null)))
            .answers(304, "It is still the one that you have.", &["ETag"], None)
            .parameter("If-None-Match"),
        on(Method::GET, "/docs", "getDocs", "This document as a page")
            .answers(200, "HTML.", &["ETag"], Some((docs::HTML, page, html)))
            .answers(304, "It is still the one that you have.", &["ETag"], None)
            .parameter("If-None-Match"),
        on(Method::GET, "/docs/style.css", "getDocsStyle", "The page's style")
            .answers(200, "CSS.", &["ETag"], Some((docs::CSS, css, none)))
            .answers(304, "It is still the one that you have.", &["ETag"], None)
            .parameter("If-None-Match"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_in_the_document_and_the_other_way_round() {
        let routes: BTreeSet<String> = ROUTES.iter().map(|route| format!("{} {}", route.method, route.pattern)).collect();
        let mut told = BTreeSet::new();
        for operation in operations(&mut Schemas::new()) {
            let name = format!("{} {}", operation.method, operation.pattern);
            assert!(told.insert(name.clone()), "{name} is told twice");
        }
        assert_eq!(told, routes);
    }

    #[test]
    fn every_example_of_a_body_is_read() {
        for operation in operations(&mut Schemas::new()) {
            if let Some(body) = operation.body {
                let read = (body.reads)(body.example.to_string().as_bytes());
                assert!(read.is_ok(), "{}: {read:?}", operation.id);
            }
        }
    }

    #[test]
    fn what_is_read_and_written_has_one_schema_or_two_names() {
        let mut schemas = Schemas::new();
        operations(&mut schemas);
        let (read, written) = (schemas.read.take_definitions(true), schemas.written.take_definitions(true));
        for (name, schema) in read {
            assert!(written.get(&name).is_none_or(|other| *other == schema), "{name}: {schema}");
        }
    }

    #[test]
    fn every_refusal_that_is_named_is_known_and_all_that_is_known_is_named() {
        let mut named: BTreeSet<&str> = BTreeSet::new();
        for operation in operations(&mut Schemas::new()) {
            let route = ROUTES.iter().find(|route| route.method == operation.method && route.pattern == operation.pattern);
            named.extend(operation.by_the_rules(route.unwrap()).refusals);
        }
        // Said to methods that a path does not have, so that no operation has it.
        named.insert("method-not-allowed");
        let known: BTreeSet<&str> = PROBLEMS.iter().map(|(_, name, _)| *name).collect();
        assert_eq!(named, known);
    }

    #[test]
    fn every_refusal_of_the_door_is_known() {
        let source = include_str!("problem.rs").split("#[cfg(test)]").next().unwrap();
        // Names stand right after the status that they go with.
        for (status, _) in source.match_indices("StatusCode::") {
            let rest = &source[status + "StatusCode::".len()..];
            let Some((constant, rest)) = rest.split_once(',') else { continue };
            if constant.contains(|c: char| !c.is_ascii_uppercase() && c != '_') {
                continue;
            }
            let Some(name) = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()) else { continue };
            assert!(PROBLEMS.iter().any(|(_, known, _)| *known == name), "{constant}: {name}");
        }
        for (at, _) in source.match_indices("conflict(\"") {
            let name = source[at + "conflict(\"".len()..].split('"').next().unwrap();
            // Said between entities only.
            assert!(name == "closed" || PROBLEMS.iter().any(|(status, known, _)| (*status, *known) == (409, name)), "{name}");
        }
    }
}
