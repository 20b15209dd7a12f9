//! `Idempotency-Key`: a POST that is sent again gets its first answer again.
//!
//! 1. `begin` writes down the key with the body's fingerprint and the seed of all ids that the handler will make.
//! 2. The handler works with that seed, so that a repeat makes the same ids and the same command ids.
//! 3. `finish` writes down the answer.
//!
//! If the node dies between 2 and 3, the repeat gets the same seed and meets what the first attempt did: the entities
//! answer a repeated command id with their first answer. An answer that says "not now" is never kept.

use std::net::IpAddr;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use ulid::Ulid;
use warp::http::header::{
    CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use warp::http::{Method, StatusCode};

use super::answer::{Answer, Body, SOUK_POSITION};
use super::identity::seals::{SealError, Vault};
use super::identity::secret::Secret;
use super::problem::Problem;
use super::request::new_seed;
use super::{Door, sealing};
use crate::actors::credential::{Credential, hex};
use crate::actors::{AskError, Caller};
use crate::domain::request::{self, Command, Reply, Seed};
use crate::domain::{CommandId, Request};

pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
pub const KEY_BYTES_MAX: usize = 255;
/// A key as long as this is taken for one that nobody else has.
const OWN_BYTES_MIN: usize = 16;

/// The headers that belong to an answer for good.
const KEPT: [HeaderName; 6] = [CONTENT_TYPE, LOCATION, ETAG, CACHE_CONTROL, WWW_AUTHENTICATE, SOUK_POSITION];

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

/// The entity that a key belongs to: the same key of somebody else, or on another path, is another one. Who shows no token is
/// told from others by the key alone; one that others might use as well counts for one address only.
pub fn entity_id(credential: &Credential, client: IpAddr, method: &Method, path: &str, key: &str) -> String {
    let address = match credential {
        Credential::Nobody if key.len() < OWN_BYTES_MIN => client.to_string(),
        _ => String::new(),
    };
    digest(&[credential.name(), &address, method.as_str(), path, key].map(str::as_bytes))
}

/// What makes two requests the same. With another `If-Match` something else is asked.
pub fn fingerprint(secret: &Secret, query: &str, headers: &HeaderMap, body: &[u8]) -> String {
    let bound_to = headers.get_all(IF_MATCH).iter().map(HeaderValue::as_bytes);
    secret.derive(&[b"request", query.as_bytes(), body].into_iter().chain(bound_to).collect::<Vec<_>>())
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
        Reply::Finished(answer) => Ok(Begun::Replay(replay(&door.identity.vault, answer).await?)),
    }
}

/// Keeps the answer; what the caller hears is the answer that was kept, which may be that of another attempt.
pub async fn finish(door: &Door, id: &str, answer: Answer, seal_by: String, correlation: &Arc<str>) -> Answer {
    if !is_kept(&answer) {
        return answer;
    }
    let kept = match kept(&door.identity.vault, &answer, seal_by).await {
        Ok(Some(kept)) => kept,
        Ok(None) => return answer,
        Err(error) => {
            tracing::warn!(%error, "an answer could not be sealed for its Idempotency-Key");
            return answer;
        }
    };
    match door.runtime.ask::<Request>(id, Command::Finish { answer: kept.clone() }, caller(correlation)).await {
        Ok(answered) => match answered.reply {
            Reply::Finished(first) if first != kept => replay(&door.identity.vault, first).await.unwrap_or(answer),
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

/// An answer may hold an address or a token: its body is kept under a seal.
async fn kept(vault: &Vault, answer: &Answer, seal_by: String) -> Result<Option<request::Answer>, SealError> {
    let Body::Bytes(body) = &answer.body else { return Ok(None) };
    let header = |name: HeaderName| Some((name.as_str().to_owned(), answer.headers.get(&name)?.to_str().ok()?.to_owned()));
    let (body, sealed_by) = match body.is_empty() {
        true => (String::new(), None),
        false => {
            let key = answer.personal_to.clone().unwrap_or(seal_by);
            (sealing::seal(vault, &key, body).await?, Some(key))
        }
    };
    let headers = KEPT.into_iter().filter_map(header).collect();
    Ok(Some(request::Answer { status: answer.status.as_u16(), headers, body, sealed_by }))
}

async fn replay(vault: &Vault, kept: request::Answer) -> Result<Answer, Problem> {
    let body = match &kept.sealed_by {
        None => kept.body.into_bytes(),
        Some(key) => vault.open_seal(key, &kept.body).await?.ok_or_else(Problem::answer_forgotten)?.to_vec(),
    };
    let mut answer = Answer::empty(StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK));
    for (name, value) in kept.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            answer.headers.insert(name, value);
        }
    }
    answer.headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    answer.body = Body::Bytes(body);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::identity::keystore::Folder;
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
        let (me, you, nobody) = (Credential::guest("a"), Credential::guest("b"), Credential::Nobody);
        let [home, office] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
        let secret = Secret::new(&[7; 32]);
        let ids = [
            entity_id(&me, home, &Method::POST, "/api/carts", "k"),
            entity_id(&you, home, &Method::POST, "/api/carts", "k"),
            entity_id(&nobody, home, &Method::POST, "/api/carts", "k"),
            entity_id(&nobody, office, &Method::POST, "/api/carts", "k"),
            entity_id(&me, home, &Method::POST, "/api/orders", "k"),
            entity_id(&me, home, &Method::POST, "/api/cart", "sk"),
        ];
        assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), ids.len());
        let own = |from| entity_id(&nobody, from, &Method::POST, "/api/carts", "0123456789abcdef");
        assert_eq!(own(home), own(office), "whoever moves on still has the key");
        let (free, bound) = (HeaderMap::new(), HeaderMap::from_iter([(IF_MATCH, HeaderValue::from_static("\"3\""))]));
        assert_ne!(fingerprint(&secret, "", &free, b"a"), fingerprint(&secret, "a", &free, b""));
        assert_ne!(fingerprint(&secret, "", &free, b"a"), fingerprint(&secret, "", &bound, b"a"));
        assert_ne!(fingerprint(&secret, "", &free, b"a"), fingerprint(&Secret::new(&[8; 32]), "", &free, b"a"));
    }

    #[tokio::test]
    async fn an_answer_that_is_kept_comes_back_as_it_was_until_its_key_is_destroyed() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::new(Arc::new(Folder::new(folder.path())));
        let answer = Answer::bytes(StatusCode::CREATED, "application/json", b"{}".to_vec())
            .location("/api/carts/1")
            .etag(3)
            .position(Position(9));
        let day = || "guests-2026-11-21".to_owned();
        let stored = kept(&vault, &answer, day()).await.unwrap().unwrap();
        assert!(!stored.body.contains('{'), "{}", stored.body);
        let again = replay(&vault, stored.clone()).await.unwrap();
        assert_eq!(again.status, StatusCode::CREATED);
        for (name, value) in &answer.headers {
            assert_eq!(again.headers.get(name), Some(value));
        }
        assert!(again.headers.contains_key("idempotency-replayed"));
        assert!(matches!(again.body, Body::Bytes(body) if body == b"{}"));
        vault.destroy(&day()).await.unwrap();
        assert_eq!(replay(&vault, stored).await.err().unwrap().status(), StatusCode::CONFLICT);
        for (status, keep) in [(201, true), (409, true), (408, false), (429, false), (500, false), (503, false)] {
            assert_eq!(is_kept(&Answer::empty(StatusCode::from_u16(status).unwrap())), keep, "{status}");
        }
        assert!(!is_kept(&Answer::empty(StatusCode::CONFLICT).retry_after(1)), "busy now, and not for good");
    }
}
