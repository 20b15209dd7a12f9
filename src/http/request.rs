//! What a handler gets: the request's parts, read within limits and checked once.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, Stream, StreamExt};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use serde_path_to_error::Segment;
use ulid::{ULID_LEN, Ulid};
use warp::Buf;
use warp::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH};
use warp::hyper::upgrade::OnUpgrade;

use super::answer::JSON;
use super::compression::{TAG_SUFFIX, accepts_gzip, is_of_gzip};
use super::problem::{FieldError, Problem};
use super::{Config, Door};
use crate::actors::Caller;
use crate::actors::credential::{Account, Credential, hex};
use crate::domain::request::Seed;
use crate::domain::{CommandId, ids};
use crate::integrations::traceparent;
use crate::persistence::{Position, Version};

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const SOUK_AT_LEAST: HeaderName = HeaderName::from_static("souk-at-least");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const REQUEST_ID_BYTES_MAX: usize = 64;

pub const LIMIT_DEFAULT: usize = 20;
pub const LIMIT_MAX: usize = 100;
pub const CURSOR_CHARS_MAX: usize = 1_024;

/// What is read and thrown away of a body that is too large, so that the client gets to read the answer.
const DISCARDED_BYTES_MAX: usize = 16 * 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// A request as its handler sees it.
pub struct Request {
    pub id: Arc<str>,
    pub correlation: Arc<str>,
    /// The pattern's `{…}` in their order, decoded.
    pub params: Vec<String>,
    /// As it was sent, without the `?`.
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub credential: Credential,
    /// Where it comes from.
    pub client: IpAddr,
    /// Whether it came over TLS.
    pub secure: bool,
    /// As it was sent.
    pub path: String,
    /// Where all ids come from that the handler makes.
    pub seed: Seed,
    pub upgrade: Option<OnUpgrade>,
}

impl Request {
    pub fn param(&self, index: usize) -> &str {
        self.params.get(index).map_or("", String::as_str)
    }

    /// The parameter as an id of this kind; what cannot be one is not found.
    pub fn id_param(&self, index: usize, prefix: &str) -> Result<&str, Problem> {
        let id = self.param(index);
        if ids::is_id(prefix, id) { Ok(id) } else { Err(Problem::not_found()) }
    }

    pub fn sku_param(&self, index: usize) -> Result<&str, Problem> {
        let sku = self.param(index);
        if ids::is_sku(sku) { Ok(sku) } else { Err(Problem::not_found()) }
    }

    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        check_content_type(&self.headers)?;
        parse_json(&self.body)
    }

    /// The caller of the request's one command, bound to the version that it knows.
    pub fn caller(&self) -> Result<Caller, Problem> {
        let mut caller = Caller::new(CommandId(self.seed.id.clone()), self.credential.asker(), Arc::clone(&self.correlation));
        caller.if_version = if_match(&self.headers)?;
        Ok(caller)
    }

    /// The caller of one of several commands of the request, each told by its own name.
    pub fn step(&self, name: &str, asker: &str) -> Caller {
        Caller::new(CommandId([&self.seed.id, "/", name].concat()), asker, Arc::clone(&self.correlation))
    }

    /// The id that this request gives to what it makes: the same each time it is repeated.
    pub fn new_id(&self, prefix: &str) -> String {
        [prefix, "_", &self.seed.id].concat()
    }

    /// A secret that this request gives out: the same each time it is repeated. The seed is in the journal, so it takes
    /// the installation's secret to make one of it.
    pub fn new_secret(&self, door: &Door, purpose: &str) -> Result<String, Problem> {
        // The seed of a request that cannot be repeated has none.
        let fresh = if self.seed.secret.is_empty() { random_hex()? } else { String::new() };
        let seed = if self.seed.secret.is_empty() { &fresh } else { &self.seed.secret };
        Ok(door.identity.secret.derive(&[purpose.as_bytes(), seed.as_bytes()]))
    }

    /// The account that the caller is signed in to.
    pub fn account(&self) -> Result<&Account, Problem> {
        self.credential.account().ok_or_else(|| Problem::unauthorized("sign in, or send an API key"))
    }

    /// Whether the reader already has this version.
    pub fn has_version(&self, version: Version) -> bool {
        self.headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
            value.split(',').map(str::trim).any(|tag| {
                let tag = tag.strip_prefix("W/").unwrap_or(tag);
                // Who takes no gzip any more cannot use what it has of it.
                let usable = || !is_of_gzip(tag) || accepts_gzip(&self.headers);
                tag == "*" || (unquote(tag) == Some(version) && usable())
            })
        })
    }

    /// The position that the reader wants to see at least.
    pub fn at_least(&self) -> Result<Option<Position>, Problem> {
        match self.headers.get(SOUK_AT_LEAST) {
            None => Ok(None),
            Some(value) => value
                .to_str()
                .ok()
                .and_then(|value| value.parse().ok())
                .map(|position| Some(Position(position)))
                .ok_or_else(|| Problem::bad_header("Souk-At-Least", "send a Souk-Position back as it was given")),
        }
    }
}

/// A new seed: a ULID, and 32 bytes that nobody can guess.
pub fn new_seed() -> Result<Seed, Problem> {
    Ok(Seed { id: Ulid::new().to_string(), secret: random_hex()? })
}

/// 32 random bytes.
pub fn random_hex() -> Result<String, Problem> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| Problem::internal("the system gives no random bytes", &error))?;
    Ok(hex(&bytes))
}

/// The client's own name for the request if it is a sane one.
pub fn request_id(headers: &HeaderMap) -> Option<Arc<str>> {
    let sane = |id: &&str| {
        (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok()).filter(sane).map(Arc::from)
}

pub fn new_ulid() -> Arc<str> {
    Arc::from(&*Ulid::new().array_to_str(&mut [0; ULID_LEN]))
}

/// The trace that the request belongs to, and its caller's span. Of several headers none counts: nobody knows which one is
/// meant.
pub fn trace(headers: &HeaderMap) -> Option<(&str, &str)> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => traceparent::parse(value.to_str().ok()?),
        _ => None,
    }
}

/// The token of `Authorization: Bearer`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case("bearer ").then(|| token.trim())
}

fn if_match(headers: &HeaderMap) -> Result<Option<Version>, Problem> {
    let mut values = headers.get_all(IF_MATCH).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return match headers.contains_key(IF_MATCH) {
            true => Err(Problem::bad_header("If-Match", "send one entity tag")),
            false => Ok(None),
        };
    };
    match value.to_str().map(str::trim) {
        Ok("*") => Ok(None),
        Ok(tag) => unquote(tag)
            .map(Some)
            .ok_or_else(|| Problem::bad_header("If-Match", "send one ETag back as it was given, quotes included")),
        Err(_) => Err(Problem::bad_header("If-Match", "send one ETag back as it was given")),
    }
}

/// The version of a tag, whichever representation of it the tag is of.
fn unquote(tag: &str) -> Option<Version> {
    let tag = tag.strip_prefix('"')?.strip_suffix('"')?;
    tag.strip_suffix(TAG_SUFFIX).unwrap_or(tag).parse().ok()
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    if value == JSON {
        return Ok(());
    }
    let essence = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case(JSON) || essence.to_ascii_lowercase().ends_with("+json") {
        Ok(())
    } else {
        Err(Problem::not_json())
    }
}

/// Reads a body; an empty one counts as `{}`.
pub fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let body = if body.is_empty() { b"{}" } else { body };
    match serde_json::from_slice(body) {
        Ok(Object(content)) => Ok(content),
        Err(error) if error.classify() == Category::Data => {
            match whole_numbers(body).and_then(|body| serde_json::from_slice(&body).ok()) {
                Some(Object(content)) => Ok(content),
                None => Err(locate::<T>(body, &error)),
            }
        }
        Err(error) => Err(Problem::bad_json(error.line(), error.column(), message(&error))),
    }
}

/// The body with `3.0` and `3e0` written as `3`, which in JSON is the same number; `None` if there are no such. Looked at
/// only when the body cannot be read as it is.
fn whole_numbers(body: &[u8]) -> Option<Vec<u8>> {
    let mut written = Vec::with_capacity(body.len());
    let (mut changed, mut in_string) = (false, false);
    let mut at = 0;
    while let Some(&byte) = body.get(at) {
        let number = match byte {
            b'\\' if in_string => body.get(at..at + 2).unwrap_or(b"\\"),
            b'-' | b'0'..=b'9' if !in_string => {
                let rest = body.get(at..).unwrap_or_default();
                let end = rest.iter().position(|b| !matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'));
                rest.get(..end.unwrap_or(rest.len())).unwrap_or_default()
            }
            _ => std::slice::from_ref(&byte),
        };
        in_string ^= byte == b'"';
        at += number.len();
        match whole(number).filter(|_| !in_string) {
            Some(whole) => {
                changed = true;
                written.extend_from_slice(whole.to_string().as_bytes());
            }
            None => written.extend_from_slice(number),
        }
    }
    changed.then_some(written)
}

/// The integer that a number with a point or an exponent is. Past 2^53 such numbers have gaps: there nothing is certain.
fn whole(number: &[u8]) -> Option<i64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if number.len() < 3 || !number.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        return None;
    }
    // Only what is JSON: Rust reads more.
    let value: f64 = serde_json::from_slice(number).ok()?;
    (value.fract() == 0.0 && value.abs() < EXACT_MAX).then_some(value as i64)
}

/// Reads a wrong body once more to learn which field is wrong.
fn locate<T: DeserializeOwned>(body: &[u8], first: &serde_json::Error) -> Problem {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    match serde_path_to_error::deserialize::<_, Object<T>>(&mut deserializer) {
        Ok(_) => Problem::bad_body("", message(first)),
        Err(error) => {
            let mut pointer = String::new();
            for segment in error.path() {
                let name = match segment {
                    Segment::Seq { index } => Cow::Owned(index.to_string()),
                    Segment::Map { key } => Cow::Borrowed(key.as_str()),
                    Segment::Enum { variant } => Cow::Borrowed(variant.as_str()),
                    Segment::Unknown => continue,
                };
                push_pointer(&mut pointer, &name);
            }
            let message = message(error.inner());
            // A missing field has no place of its own: the path ends at the object that lacks it.
            if let Some(name) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
                push_pointer(&mut pointer, name);
            }
            Problem::bad_fields(vec![FieldError { pointer, message }])
        }
    }
}

fn push_pointer(pointer: &mut String, name: &str) {
    pointer.push('/');
    pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
}

/// The error without its position, which is told apart.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
        None => text,
    }
}

/// What is written as an object, and only so: by itself serde also takes a list of the fields' values for a struct.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, members: M) -> Result<Object<T>, M::Error> {
                T::deserialize(MapAccessDeserializer::new(members)).map(Object)
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

/// For fields that are objects.
pub fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(content)| content)
}

/// For fields that are objects or `null`.
pub fn object_or_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.map(|Object(content)| content))
}

/// For fields that are lists of objects.
pub fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Vec::deserialize(deserializer)?.into_iter().map(|Object(content)| content).collect())
}

/// For lists of objects that may be left out but not be `null`.
pub fn objects_present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Vec<T>>, D::Error> {
    objects(deserializer).map(Some)
}

/// For fields that may be left out but not be `null`.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Reads a whole body within the limits of size and time.
pub async fn read_body<S, B, E>(body: S, headers: &HeaderMap, config: &Config) -> Result<Bytes, Problem>
where
    S: Stream<Item = Result<B, E>>,
    B: Buf,
{
    let announced: usize =
        headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()).and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = pin!(body);
    if announced > config.body_bytes_max {
        // A client that waits for our word before it sends need not send at all.
        if !headers.contains_key(EXPECT) {
            discard(body, announced).await;
        }
        return Err(Problem::too_large(config.body_bytes_max));
    }
    let mut deadline = None;
    // Most bodies are one chunk, which came with the head: it is taken as it is, and no clock looked at.
    let (mut first, mut whole) = (Bytes::new(), BytesMut::new());
    loop {
        let next = match body.next().now_or_never() {
            Some(next) => Ok(next),
            None => {
                let now = tokio::time::Instant::now();
                let patience = *deadline.get_or_insert(now + config.body_timeout);
                tokio::time::timeout_at(patience.min(now + config.body_chunk_timeout), body.next()).await
            }
        };
        match next {
            Err(_) => return Err(Problem::slow_body()),
            Ok(None) if whole.is_empty() => return Ok(first),
            Ok(None) => return Ok(whole.freeze()),
            Ok(Some(Err(_))) => return Err(Problem::broken_body()),
            Ok(Some(Ok(mut chunk))) => {
                let size = chunk.remaining();
                if first.len().max(whole.len()) + size > config.body_bytes_max {
                    discard(body, 0).await;
                    return Err(Problem::too_large(config.body_bytes_max));
                }
                let chunk = chunk.copy_to_bytes(size);
                if first.is_empty() {
                    first = chunk;
                    continue;
                }
                if whole.is_empty() {
                    whole.extend_from_slice(&first);
                }
                whole.extend_from_slice(&chunk);
            }
        }
    }
}

/// Takes the body of a request that is refused whatever it says.
pub async fn skip_body<S, B, E>(body: S, headers: &HeaderMap, config: &Config)
where
    S: Stream<Item = Result<B, E>>,
    B: Buf,
{
    // A client that waits for our word before it sends need not send at all.
    if !headers.contains_key(EXPECT) {
        discard(pin!(body), config.body_bytes_max).await;
    }
}

/// Reads a body's rest and forgets it: a connection that is closed with unread bytes loses the answer on its way.
async fn discard<S, B, E>(mut body: std::pin::Pin<&mut S>, announced: usize)
where
    S: Stream<Item = Result<B, E>>,
    B: Buf,
{
    if announced > DISCARDED_BYTES_MAX {
        return;
    }
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(chunk)) = body.next().await {
            bytes += chunk.remaining();
            if bytes > DISCARDED_BYTES_MAX {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, read).await;
}

/// Undoes percent-encoding; `None` when it is broken or not UTF-8.
pub fn decode(text: &str, plus_is_space: bool) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|byte| byte == b'%' || (plus_is_space && byte == b'+')) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let (high, low) = (char::from(bytes.next()?).to_digit(16)?, char::from(bytes.next()?).to_digit(16)?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// A query string, each of whose parameters is known and given once.
#[derive(Debug)]
pub struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    pub fn parse(query: &'a str, known: &[&str]) -> Result<Self, Problem> {
        let mut pairs: Vec<(Cow<'a, str>, Cow<'a, str>)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decode(name, true), decode(value, true)) else {
                return Err(Problem::bad_parameter(name, "not percent-encoded UTF-8"));
            };
            if !known.contains(&name.as_ref()) {
                let there_are = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(Problem::bad_parameter(&name, format!("unknown; there are {there_are}")));
            }
            if pairs.iter().any(|(given, _)| *given == name) {
                return Err(Problem::bad_parameter(&name, "given twice"));
            }
            pairs.push((name, value));
        }
        Ok(Query(pairs))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_ref())
    }

    pub fn owned(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    /// A text to look for: an empty one is none, as an empty field of a search form is.
    pub fn text(&self, name: &str) -> Option<String> {
        self.owned(name).filter(|text| !text.is_empty())
    }

    pub fn parsed<T: std::str::FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        self.get(name)
            .map(|value| value.parse().map_err(|_| Problem::bad_parameter(name, format!("expected {expected}"))))
            .transpose()
    }

    /// What can be a cursor; whether the list gave it out is the list's to say.
    pub fn cursor(&self) -> Result<Option<String>, Problem> {
        let sane = |cursor: &str| {
            (1..=CURSOR_CHARS_MAX).contains(&cursor.len()) && cursor.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        match self.owned("cursor") {
            Some(cursor) if !sane(&cursor) => Err(Problem::bad_parameter("cursor", "send a next_cursor back as it was given")),
            cursor => Ok(cursor),
        }
    }

    pub fn limit(&self) -> Result<usize, Problem> {
        match self.parsed("limit", "a number from 1 to 100")? {
            None => Ok(LIMIT_DEFAULT),
            Some(limit) if (1..=LIMIT_MAX).contains(&limit) => Ok(limit),
            Some(_) => Err(Problem::bad_parameter("limit", "expected a number from 1 to 100")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use crate::http::answer::Body;
    use futures_util::stream;
    use serde::Deserialize;
    use warp::http::HeaderValue;

    fn shown(problem: Problem) -> serde_json::Value {
        let Body::Bytes(body) = problem.into_answer("r").body else { panic!("a problem is bytes") };
        serde_json::from_slice(&body).unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Item {
        sku: String,
        quantity: u32,
        #[serde(default, deserialize_with = "present")]
        note: Option<String>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Payer {
        name: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Basket {
        #[serde(deserialize_with = "objects")]
        items: Vec<Item>,
        #[serde(default, deserialize_with = "object_or_null")]
        payer: Option<Payer>,
    }

    #[test]
    fn a_wrong_field_is_pointed_at() {
        for (body, pointer, part) in [
            (r#"{"items":[{"sku":"a","quantity":"2"}]}"#, "/items/0/quantity", "expected u32"),
            (r#"{"items":[{"sku":"a","quantity":-1}]}"#, "/items/0/quantity", "expected u32"),
            (r#"{"items":[{"sku":"a"}]}"#, "/items/0/quantity", "missing field"),
            (r#"{"items":[{"sku":"a","quantity":1,"note":null}]}"#, "/items/0/note", "null"),
            (r#"{"items":[],"x/y":1}"#, "/x~1y", "unknown field"),
            (r#"{}"#, "/items", "missing field"),
            ("", "/items", "missing field"),
            (r#"[]"#, "", "expected an object"),
            (r#"[[]]"#, "", "expected an object"),
            (r#"{"items":[["a",1]]}"#, "/items/0", "expected an object"),
            (r#"{"items":[],"payer":["Ada"]}"#, "/payer", "expected an object"),
        ] {
            let problem = shown(parse_json::<Basket>(body.as_bytes()).unwrap_err());
            assert_eq!(problem["type"], "/problems/invalid-body", "{body}");
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}");
            assert!(problem["errors"][0]["message"].as_str().unwrap().contains(part), "{problem}");
        }
    }

    #[test]
    fn broken_json_is_placed_by_line_and_column() {
        let deep = "[".repeat(100_000);
        for body in ["{\n \"items\": [}", "{\"items\":[]} x", "\u{feff}{}", deep.as_str()] {
            let problem = shown(parse_json::<Basket>(body.as_bytes()).unwrap_err());
            let kind = problem["type"].as_str().unwrap();
            assert!(kind == "/problems/invalid-json" || kind == "/problems/invalid-body", "{problem}");
        }
        let problem = shown(parse_json::<Basket>(b"{\n \"items\": [}").unwrap_err());
        assert_eq!((&problem["line"], &problem["column"]), (&2.into(), &12.into()));
        assert_eq!(shown(parse_json::<Basket>(b"{\"items\":\"\xff\"}").unwrap_err())["status"], 400);
    }

    #[test]
    fn a_whole_number_may_be_written_with_a_point() {
        for (number, quantity) in [("3.0", Some(3)), ("3e0", Some(3)), ("30E-1", Some(3)), ("-0.0", Some(0)), ("3.5", None)] {
            let body = format!(r#"{{"items":[{{"quantity":{number},"sku":"\\\"1.0"}}]}}"#);
            let read = parse_json::<Basket>(body.as_bytes()).ok();
            assert_eq!(read.as_ref().map(|basket| basket.items[0].quantity), quantity, "{number}");
            assert!(read.is_none_or(|basket| basket.items[0].sku == "\\\"1.0"), "text is left as it is");
        }
        for wrong in ["1e300", "9007199254740993.0", "03.0", "3.", "-1.0", ".5"] {
            let body = format!(r#"{{"items":[{{"quantity":{wrong},"sku":"a"}}]}}"#);
            assert!(parse_json::<Basket>(body.as_bytes()).is_err(), "{wrong}");
        }
        let twice = br#"{"items":[],"items":[{"quantity":3.0,"sku":"a"}]}"#;
        assert!(parse_json::<Basket>(twice).is_err(), "a field that is given twice stays wrong");
    }

    #[test]
    fn no_body_breaks_its_reader() {
        let good = br#"{"items":[{"sku":"a","quantity":2.0,"note":"\\u00e9"}],"payer":{"name":"Ada"}}"#.to_vec();
        hostile::feed("bodies", vec![good], |body| match parse_json::<Basket>(body) {
            Ok(basket) => assert!(basket.items.len() <= body.len()),
            Err(problem) => assert!(shown(problem)["status"] == 400),
        });
    }

    #[test]
    fn a_number_is_written_anew_only_where_it_stays_the_same() {
        let good = br#"{"a":[1.0,-2e3,"3.0",{"4.0":5E0}]}"#.to_vec();
        hostile::feed("bodies", vec![good], |body| {
            let (Some(written), Ok(before)) = (whole_numbers(body), serde_json::from_slice::<serde_json::Value>(body)) else {
                return;
            };
            let after: serde_json::Value = serde_json::from_slice(&written).unwrap();
            assert_eq!(as_floats(before), as_floats(after));
        });
    }

    /// All numbers as floating point, so that 1 and 1.0 are the same.
    fn as_floats(value: serde_json::Value) -> serde_json::Value {
        use serde_json::Value;
        match value {
            Value::Number(number) => number.as_f64().map_or(Value::Null, Value::from),
            Value::Array(items) => items.into_iter().map(as_floats).collect(),
            Value::Object(members) => members.into_iter().map(|(name, value)| (name, as_floats(value))).collect(),
            other => other,
        }
    }

    #[test]
    fn no_path_or_query_breaks_its_reader() {
        hostile::feed("paths", vec![b"q=red%20shirt&limit=5&cursor=00ff".to_vec()], |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            for plus in [true, false] {
                assert!(decode(text, plus).is_none_or(|decoded| decoded.len() <= text.len()));
            }
            if let Ok(query) = Query::parse(text, &["q", "limit", "cursor"]) {
                let _ = (query.limit(), query.cursor(), query.parsed::<i64>("q", "a number"));
            }
        });
    }

    #[test]
    fn no_header_breaks_its_reader() {
        let names =
            [IF_MATCH, IF_NONE_MATCH, SOUK_AT_LEAST, X_REQUEST_ID, TRACEPARENT, AUTHORIZATION, CONTENT_TYPE, CONTENT_LENGTH];
        hostile::feed("headers", vec![b"\"12\"".to_vec(), b"Bearer t".to_vec()], move |bytes| {
            let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
            let headers: HeaderMap = names.iter().map(|name| (name.clone(), value.clone())).collect();
            let _ = (if_match(&headers), trace(&headers), bearer(&headers), check_content_type(&headers));
            let id = request_id(&headers).unwrap_or_else(new_ulid);
            assert!(HeaderValue::from_str(&id).is_ok() && id.len() <= REQUEST_ID_BYTES_MAX);
            let _ = crate::http::idempotency::key(&HeaderMap::from_iter([(crate::http::idempotency::IDEMPOTENCY_KEY, value)]));
        });
    }

    #[test]
    fn percent_encoding_is_undone_or_refused() {
        for (text, plus, decoded) in [
            ("plain", false, Some("plain")),
            ("red%20shirt%2FXL", false, Some("red shirt/XL")),
            ("a+b", false, Some("a+b")),
            ("a+b", true, Some("a b")),
            ("%C3%BC", false, Some("ü")),
            ("%", false, None),
            ("%2", false, None),
            ("%zz", false, None),
            ("%+1", false, None),
            ("%FF", false, None),
        ] {
            assert_eq!(decode(text, plus).as_deref(), decoded, "{text}");
        }
    }

    #[test]
    fn a_query_has_known_parameters_once() {
        let known = ["q", "limit"];
        let query = Query::parse("q=red+shirt%21&limit=5", &known).unwrap();
        assert_eq!((query.get("q"), query.limit().unwrap()), (Some("red shirt!"), 5));
        assert_eq!(Query::parse("", &known).unwrap().limit().unwrap(), LIMIT_DEFAULT);
        assert_eq!(Query::parse("q=", &known).unwrap().text("q"), None);
        for wrong in ["x=1", "q=1&q=2", "q=%zz"] {
            assert!(Query::parse(wrong, &known).is_err(), "{wrong}");
        }
        for wrong in ["limit=", "limit=0", "limit=101", "limit=-1", "limit=x"] {
            assert!(Query::parse(wrong, &known).unwrap().limit().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_entity_tag_is_one_version_in_quotes() {
        assert_eq!(if_match(&headers(&[])).unwrap(), None);
        assert_eq!(if_match(&headers(&[("if-match", "*")])).unwrap(), None);
        assert_eq!(if_match(&headers(&[("if-match", "\"12\"")])).unwrap(), Some(12));
        assert_eq!(if_match(&headers(&[("if-match", "\"12-gzip\"")])).unwrap(), Some(12));
        for wrong in ["\"-gzip\"", "\"12-br\"", "12", "\"x\"", "W/\"12\"", "\"1\", \"2\""] {
            assert!(if_match(&headers(&[("if-match", wrong)])).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_request_is_named_by_its_client_only_if_the_name_is_sane() {
        assert_eq!(request_id(&headers(&[("x-request-id", "abc-1.2_3")])).as_deref(), Some("abc-1.2_3"));
        let long = "x".repeat(65);
        for wrong in ["", "a b", "a\"b", long.as_str()] {
            assert_eq!(request_id(&headers(&[("x-request-id", wrong)])), None, "{wrong}");
        }
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let header = format!("00-{id}-00f067aa0ba902b7-01");
        assert_eq!(trace(&headers(&[("traceparent", &header)])), Some((id, "00f067aa0ba902b7")));
        assert_eq!(trace(&headers(&[("traceparent", "00-xyz-1-1")])), None);
        let mut twice = headers(&[("traceparent", &header)]);
        twice.append("traceparent", HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        assert_eq!(trace(&twice), None);
        assert_eq!(bearer(&headers(&[("authorization", "bearer t1")])), Some("t1"));
        assert_eq!(bearer(&headers(&[("authorization", "Basic t1")])), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_within_its_limits() {
        let config = Config { body_bytes_max: 4, ..Config::default() };
        let none = HeaderMap::new();
        let chunks = |parts: &[&'static str]| {
            stream::iter(parts.iter().map(|part| Ok::<_, ()>(Bytes::from_static(part.as_bytes()))).collect::<Vec<_>>())
        };
        assert_eq!(read_body(chunks(&["ab", "cd"]), &none, &config).await.unwrap(), "abcd");
        let kind = |read: Result<Bytes, Problem>| shown(read.unwrap_err())["status"].as_u64().unwrap();
        assert_eq!(kind(read_body(chunks(&["ab", "cde"]), &none, &config).await), 413);
        assert_eq!(kind(read_body(chunks(&[]), &headers(&[("content-length", "5")]), &config).await), 413);
        assert_eq!(kind(read_body(stream::iter([Err::<Bytes, _>(())]), &none, &config).await), 400);
        assert_eq!(kind(read_body(stream::pending::<Result<Bytes, ()>>(), &none, &config).await), 408);
        let dripping = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            Some((Ok::<_, ()>(Bytes::new()), ()))
        });
        assert_eq!(kind(read_body(dripping, &none, &config).await), 408);
    }
}
