//! `Idempotency-Key`: a POST that is sent again gets its first answer again.
//!
//! 1. `begin` writes down the key with the body's fingerprint and the seed of all ids that the handler will make.
//! 2. The handler works with that seed, so that a repeat makes the same ids and the same command ids.
//! 3. `finish` writes down the answer.
//!
//! If the node dies between 2 and 3, the repeat gets the same seed and meets what the first attempt did: the entities
//! answer a repeated command id with their first answer. An answer that says "not now" is never kept.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use ulid::Ulid;
use warp::http::header::{CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use warp::http::{Method, StatusCode};

use super::Door;
use super::answer::{Answer, Body, SOUK_POSITION};
use super::problem::Problem;
use super::request::new_seed;
use crate::actors::credential::{Credential, hex};
use crate::actors::{AskError, Caller};
use crate::domain::request::{self, Command, Reply, Seed};
use crate::domain::{CommandId, Request};

pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const KEY_BYTES_MAX: usize = 255;

/// The headers that belong to an answer for good.
const KEPT: [HeaderName; 4] = [CONTENT_TYPE, LOCATION, ETAG, SOUK_POSITION];

/// What a key led to.
pub enum Begun {
    /// Work with this seed, then [`finish`].
    Work(Seed),
    Replay(Answer),
}

/// The request's key, if it bears one.
pub fn key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    value
        .to_str()
        .ok()
        .filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|byte| (b' '..=b'~').contains(&byte)))
        .map(Some)
        .ok_or_else(|| Problem::bad_header("Idempotency-Key", "it has 1 to 255 printable ASCII characters"))
}

/// The entity that a key belongs to: the same key of somebody else, or on another path, is another one.
pub fn entity_id(credential: &Credential, method: &Method, path: &str, key: &str) -> String {
    digest(&[credential.token_sha256().unwrap_or("anonymous"), method.as_str(), path, key].map(str::as_bytes))
}

/// What makes two requests the same.
pub fn fingerprint(query: &str, body: &[u8]) -> String {
    digest(&[query.as_bytes(), body])
}

/// SHA-256 over parts, each preceded by its length so that no two lists of parts are the same bytes.
fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

pub async fn begin(door: &Door, id: &str, fingerprint: String, correlation: &Arc<str>) -> Result<Begun, Problem> {
    let command = Command::Begin { fingerprint, seed: new_seed()? };
    match door.runtime.ask::<Request>(id, command, caller(correlation)).await?.reply {
        Reply::Begun { seed } => Ok(Begun::Work(seed)),
        Reply::Finished(answer) => Ok(Begun::Replay(replay(answer))),
    }
}

/// Keeps the answer; what the caller hears is the answer that was kept, which may be that of another attempt.
pub async fn finish(door: &Door, id: &str, answer: Answer, correlation: &Arc<str>) -> Answer {
    if !is_kept(&answer) {
        return answer;
    }
    let Some(kept) = kept(&answer) else { return answer };
    match door.runtime.ask::<Request>(id, Command::Finish { answer: kept.clone() }, caller(correlation)).await {
        Ok(answered) => match answered.reply {
            Reply::Finished(first) if first != kept => replay(first),
            Reply::Finished(_) | Reply::Begun { .. } => answer,
        },
        // What was done is done: a repeat finds it by its seed.
        Err(AskError::Failed(failure)) => {
            tracing::warn!(%failure, "an answer could not be kept for its Idempotency-Key");
            answer
        }
        Err(AskError::Rejected(rejection)) => {
            tracing::error!(%rejection, "an answer was refused for its Idempotency-Key");
            answer
        }
    }
}

fn caller(correlation: &Arc<str>) -> Caller {
    Caller::new(CommandId(Ulid::new().to_string()), "door", Arc::clone(correlation))
}

/// Whether an answer says something lasting: one that asks to come back must be another one then.
fn is_kept(answer: &Answer) -> bool {
    let passes = matches!(answer.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    answer.status.as_u16() < 500 && !passes && !answer.headers.contains_key(RETRY_AFTER)
}

fn kept(answer: &Answer) -> Option<request::Answer> {
    let Body::Bytes(body) = &answer.body else { return None };
    let header = |name: HeaderName| Some((name.as_str().to_owned(), answer.headers.get(&name)?.to_str().ok()?.to_owned()));
    Some(request::Answer {
        status: answer.status.as_u16(),
        headers: KEPT.into_iter().filter_map(header).collect(),
        body: String::from_utf8(body.clone()).ok()?,
    })
}

fn replay(kept: request::Answer) -> Answer {
    let mut answer = Answer::empty(StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK));
    for (name, value) in kept.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            answer.headers.insert(name, value);
        }
    }
    answer.headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    answer.body = Body::Bytes(kept.body.into_bytes());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::credential::Gate;
    use crate::persistence::Position;

    #[test]
    fn a_key_is_printable_and_short() {
        let with = |value: &str| HeaderMap::from_iter([(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value.as_bytes()).unwrap())]);
        assert_eq!(key(&HeaderMap::new()).unwrap(), None);
        assert_eq!(key(&with("k 1")).unwrap(), Some("k 1"));
        let long = "x".repeat(256);
        for wrong in ["", "ü", "a\tb", long.as_str()] {
            assert!(key(&with(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_key_counts_for_one_caller_on_one_path() {
        let gate = Gate::default();
        let (me, you, nobody) = (gate.recognise(Some("a")), gate.recognise(Some("b")), gate.recognise(None));
        let ids = [
            entity_id(&me, &Method::POST, "/api/carts", "k"),
            entity_id(&you, &Method::POST, "/api/carts", "k"),
            entity_id(&nobody, &Method::POST, "/api/carts", "k"),
            entity_id(&me, &Method::POST, "/api/orders", "k"),
            entity_id(&me, &Method::POST, "/api/cart", "sk"),
        ];
        assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), ids.len());
        assert_ne!(fingerprint("", b"a"), fingerprint("a", b""));
    }

    #[test]
    fn an_answer_that_is_kept_comes_back_as_it_was() {
        let answer = Answer::bytes(StatusCode::CREATED, "application/json", b"{}".to_vec())
            .location("/api/carts/1")
            .etag(3)
            .position(Position(9));
        let again = replay(kept(&answer).unwrap());
        assert_eq!(again.status, StatusCode::CREATED);
        for (name, value) in &answer.headers {
            assert_eq!(again.headers.get(name), Some(value));
        }
        assert!(again.headers.contains_key("idempotency-replayed"));
        assert!(matches!(again.body, Body::Bytes(body) if body == b"{}"));
        for (status, keep) in [(201, true), (409, true), (408, false), (429, false), (500, false), (503, false)] {
            assert_eq!(is_kept(&Answer::empty(StatusCode::from_u16(status).unwrap())), keep, "{status}");
        }
        assert!(!is_kept(&Answer::empty(StatusCode::CONFLICT).retry_after(1)), "busy now, and not for good");
    }
}
