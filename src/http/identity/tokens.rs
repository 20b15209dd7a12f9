//! Access tokens: signed, verified, remembered while they are valid, and revoked.
//!
//! A token is a JWS in compact form (RFC 7515) with the claims of a JWT (RFC 7519), signed with Ed25519 (RFC 8037):
//!
//! 1. Its first segment must be, byte for byte, one that a key of ours writes (`{"alg":"EdDSA","kid":…,"typ":"JWT"}`). A
//!    header is never parsed, so no algorithm can be talked into: `none`, HS256 or a foreign `jwk` are just not ours.
//! 2. The signature is checked next, over the bytes as they came. Nothing is read from claims that are not signed.
//! 3. Issuer, audience, times and revocations are checked last, at each use, also of a token that is remembered.
//!
//! A library was looked for and not taken: `jsonwebtoken` with its Rust backend brings RSA (with an advisory that has no
//! fix), P-256 and P-384 for the sake of algorithms that must be refused here, and reads the system's clock by itself.
//!
//! A remembered verdict holds for one generation of the keys, so a key that is taken away is gone for them too. It is
//! found by the token's SHA-256; tokens themselves are not kept.
//!
//! Revocations are this node's, and in memory: whoever ends a session tells every node, and a start must hear again of
//! those of the last [`LIFETIME_MS`], or call [`Tokens::revoke_all`], which has all clients renew their tokens. When there
//! are more than [`REVOKED_MAX`], all tokens issued so far are refused: never is a revocation forgotten for want of room.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::keys::Keys;
use super::{NoRandomness, random};
use crate::domain::Timestamp;
use crate::domain::time::{MINUTE_MS, SECOND_MS};

/// How long a token lives.
pub const LIFETIME_MS: i64 = 15 * MINUTE_MS;
/// How far clocks may differ.
pub const LEEWAY_MS: i64 = 30 * SECOND_MS;
/// The longest token that is looked at.
pub const TOKEN_BYTES_MAX: usize = 4 * 1024;
/// Verified tokens that are remembered.
const REMEMBERED_MAX: usize = 50_000;
/// Sessions, and users, whose revocation is held.
pub const REVOKED_MAX: usize = 100_000;
/// How often revocations that have had their effect are let go.
const SWEEP_EVERY_MS: i64 = MINUTE_MS;
const SIGNATURE_BYTES: usize = 64;

/// Whom a token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The user's id.
    pub user: String,
    /// The session's id.
    pub session: String,
    pub roles: Vec<String>,
    /// A vendor's shop.
    pub shop: Option<String>,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub aud: String,
    pub sub: String,
    pub sid: String,
    pub roles: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shop: Option<String>,
    /// Seconds since 1970, as are the two below.
    pub iat: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    pub exp: i64,
    pub jti: String,
}

/// A token that was just signed. `Debug` does not show it.
pub struct Signed {
    pub token: String,
    pub expires_in_s: i64,
}

impl std::fmt::Debug for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signed").field("expires_in_s", &self.expires_in_s).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("there is no key to sign with")]
    NoKey,
    #[error("the claims cannot be written: {0}")]
    Claims(#[from] serde_json::Error),
    #[error("the claims are too long for a token")]
    TooLong,
}

/// Why a token is not taken. What a client is told is the same for most of these; the log may tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the token is longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    #[error("this is not a token of this service")]
    Malformed,
    #[error("the token's algorithm or key is not of this service")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    BadSignature,
    #[error("the token was issued by another")]
    WrongIssuer,
    #[error("the token is for another audience")]
    WrongAudience,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the token's session has ended")]
    Revoked,
}

impl Refused {
    /// What a client may know.
    pub fn told(self) -> &'static str {
        match self {
            Refused::Expired => "it has expired",
            Refused::NotYetValid => "it is not valid yet",
            Refused::Revoked => "its session has ended",
            Refused::TooLong
            | Refused::Malformed
            | Refused::UnknownKey
            | Refused::BadSignature
            | Refused::WrongIssuer
            | Refused::WrongAudience => "it is no token of this shop",
        }
    }
}

/// A verdict on a token, for one generation of the keys.
#[derive(Clone)]
struct Verified {
    claims: Arc<Claims>,
    generation: u64,
}

/// The issuer and verifier of access tokens.
pub struct Tokens {
    keys: Arc<Keys>,
    issuer: String,
    audience: String,
    remembered: Cache<[u8; 32], Verified, quick_cache::UnitWeighter, BuildHasherDefault<OfDigest>>,
    revoked: RwLock<Revoked>,
    /// Whatever was issued in this second or before is refused.
    refused_until_s: AtomicI64,
}

/// What was revoked, and until when that must be known.
#[derive(Default)]
struct Revoked {
    /// By session: when its last token has expired, in milliseconds.
    sessions: HashMap<String, i64>,
    /// By user: the second up to which tokens were issued that are refused.
    users: HashMap<String, i64>,
    swept_ms: i64,
}

impl Tokens {
    pub fn new(keys: Arc<Keys>, issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        // Tokens have much the same size, so items are counted.
        let remembered = Cache::with(
            REMEMBERED_MAX,
            REMEMBERED_MAX as u64,
            quick_cache::UnitWeighter,
            BuildHasherDefault::default(),
            quick_cache::sync::DefaultLifecycle::default(),
        );
        Tokens {
            keys,
            issuer: issuer.into(),
            audience: audience.into(),
            remembered,
            revoked: RwLock::default(),
            refused_until_s: AtomicI64::new(i64::MIN),
        }
    }

    /// The keys that sign, for the JWK set.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    pub fn sign(&self, subject: &Subject, now: Timestamp) -> Result<Signed, SignError> {
        let issued_s = self.issued_s(&subject.user, now);
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            sub: subject.user.clone(),
            sid: subject.session.clone(),
            roles: subject.roles.clone(),
            shop: subject.shop.clone(),
            iat: issued_s,
            nbf: None,
            exp: issued_s + LIFETIME_MS / SECOND_MS,
            jti: URL_SAFE_NO_PAD.encode(random::<16>()?),
        };
        let token = self.sign_claims(&claims, now)?;
        Ok(Signed { token, expires_in_s: LIFETIME_MS / SECOND_MS })
    }

    fn sign_claims(&self, claims: &Claims, now: Timestamp) -> Result<String, SignError> {
        let keys = self.keys.current(now);
        let key = keys.signing(now).ok_or(SignError::NoKey)?;
        let mut token = key.header().to_owned();
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims)?, &mut token);
        let signature = key.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        if token.len() > TOKEN_BYTES_MAX { Err(SignError::TooLong) } else { Ok(token) }
    }

    /// The second that a new token says it was issued in: the first one after all that is revoked of this user. So who
    /// logs in again within the second of a revocation is not shut out.
    fn issued_s(&self, user: &str, now: Timestamp) -> i64 {
        let refused_s = self.read_revoked().users.get(user).copied().unwrap_or(i64::MIN);
        let refused_s = refused_s.max(self.refused_until_s.load(Ordering::Acquire));
        let now_s = seconds(now);
        // Only what lies within a clock's difference: a revocation far ahead is somebody's mistake, and would give
        // tokens that are not valid yet.
        if (now_s..now_s + LEEWAY_MS / SECOND_MS).contains(&refused_s) { refused_s + 1 } else { now_s }
    }

    /// Whether a token speaks for somebody now, and for whom.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Arc<Claims>, Refused> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refused::TooLong);
        }
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let keys = self.keys.current(now);
        if let Some(known) = self.remembered.get(&digest) {
            if known.generation == keys.generation() {
                let held = self.holds_now(&known.claims, now);
                if held == Err(Refused::Expired) {
                    self.remembered.remove(&digest);
                }
                return held.map(|()| known.claims);
            }
            self.remembered.remove(&digest);
        }
        drop(keys);
        let (claims, generation) = self.read(token, now)?;
        self.holds_now(&claims, now)?;
        let claims = Arc::new(claims);
        self.remembered.insert(digest, Verified { claims: Arc::clone(&claims), generation });
        Ok(claims)
    }

    /// The claims of a token that one of our keys has signed for us.
    fn read(&self, token: &str, now: Timestamp) -> Result<(Claims, u64), Refused> {
        let (message, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(Refused::Malformed)?;
        let mut keys = self.keys.current(now);
        if keys.by_header(header, now).is_none() {
            keys = self.keys.newest(now);
        }
        let key = keys.by_header(header, now).ok_or(Refused::UnknownKey)?;
        // Strict: no padding, no bits to spare. So there is one text for each signature and no token has a twin.
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Refused::Malformed)?;
        let signature: [u8; SIGNATURE_BYTES] = signature.try_into().map_err(|_| Refused::Malformed)?;
        if !key.verifies(message.as_bytes(), &signature) {
            return Err(Refused::BadSignature);
        }
        let claims = URL_SAFE_NO_PAD.decode(payload).map_err(|_| Refused::Malformed)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| Refused::Malformed)?;
        if claims.iss != self.issuer {
            return Err(Refused::WrongIssuer);
        }
        if claims.aud != self.audience {
            return Err(Refused::WrongAudience);
        }
        // A key that is given may sign for others too, but a longer life would outlive a revocation.
        if claims.exp.saturating_sub(claims.iat) > LIFETIME_MS / SECOND_MS {
            return Err(Refused::Malformed);
        }
        Ok((claims, keys.generation()))
    }

    /// What may change from one use of a token to the next.
    fn holds_now(&self, claims: &Claims, now: Timestamp) -> Result<(), Refused> {
        let now_ms = now.as_millis();
        if claims.exp.saturating_mul(SECOND_MS).saturating_add(LEEWAY_MS) <= now_ms {
            return Err(Refused::Expired);
        }
        let begins_s = claims.nbf.map_or(claims.iat, |nbf| nbf.max(claims.iat));
        if begins_s.saturating_mul(SECOND_MS).saturating_sub(LEEWAY_MS) > now_ms {
            return Err(Refused::NotYetValid);
        }
        if claims.iat <= self.refused_until_s.load(Ordering::Acquire) {
            return Err(Refused::Revoked);
        }
        let revoked = self.read_revoked();
        let session_ended = revoked.sessions.contains_key(&claims.sid);
        if session_ended || revoked.users.get(&claims.sub).is_some_and(|until_s| claims.iat <= *until_s) {
            return Err(Refused::Revoked);
        }
        Ok(())
    }

    /// Refuses all tokens of a session from now on.
    pub fn revoke_session(&self, session: &str, now: Timestamp) {
        let last_expiry_ms = now.plus_ms(LIFETIME_MS + 2 * LEEWAY_MS).as_millis();
        self.revoke(now, |revoked| &mut revoked.sessions, session, last_expiry_ms);
    }

    /// Refuses all tokens of a user that were issued until now. `now` is when it was decided, on whichever node.
    ///
    /// A node whose clock is ahead may have issued one that seems younger; revoking the sessions one by one has no such gap.
    pub fn revoke_user(&self, user: &str, now: Timestamp) {
        self.revoke(now, |revoked| &mut revoked.users, user, seconds(now));
    }

    /// Refuses all tokens that were issued until now, to whomever. Their clients renew them.
    pub fn revoke_all(&self, now: Timestamp) {
        self.refused_until_s.fetch_max(seconds(now), Ordering::AcqRel);
    }

    fn revoke(&self, now: Timestamp, of: impl Fn(&mut Revoked) -> &mut HashMap<String, i64>, id: &str, value: i64) {
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        revoked.sweep(now, SWEEP_EVERY_MS);
        if of(&mut revoked).len() >= REVOKED_MAX {
            revoked.sweep(now, 0);
        }
        let held = of(&mut revoked);
        if held.len() >= REVOKED_MAX {
            tracing::warn!("too many sessions have ended at once: all tokens issued so far are refused");
            held.clear();
            self.revoke_all(now);
        }
        let until = held.entry(id.to_owned()).or_insert(value);
        *until = value.max(*until);
    }

    fn read_revoked(&self) -> std::sync::RwLockReadGuard<'_, Revoked> {
        self.revoked.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Revoked {
    /// Lets go of what concerns no token any more.
    fn sweep(&mut self, now: Timestamp, every_ms: i64) {
        let now_ms = now.as_millis();
        if now_ms - self.swept_ms < every_ms {
            return;
        }
        self.swept_ms = now_ms;
        self.sessions.retain(|_, until_ms| *until_ms > now_ms);
        let lived_s = (LIFETIME_MS + 2 * LEEWAY_MS) / SECOND_MS;
        self.users.retain(|_, issued_s| *issued_s + lived_s > seconds(now));
    }
}

fn seconds(time: Timestamp) -> i64 {
    time.as_millis().div_euclid(SECOND_MS)
}

/// A hash of what is one already. Only tokens that we have signed are remembered, so nobody chooses the digests.
#[derive(Default)]
struct OfDigest(u64);

impl Hasher for OfDigest {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    /// The length of the digest, which is always the same.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use hmac::{Hmac, KeyInit, Mac};
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    const START_S: i64 = 1_800_000_000;
    const ISSUER: &str = "https://souk.test";
    const AUDIENCE: &str = "souk";

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis((START_S + s) * SECOND_MS)
    }

    fn subject(user: &str, session: &str) -> Subject {
        Subject { user: user.into(), session: session.into(), roles: vec!["customer".into()], shop: None }
    }

    struct House {
        folder: TempDir,
        tokens: Tokens,
    }

    impl House {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let keys = Arc::new(Keys::open(folder.path(), at(0)).unwrap());
            House { tokens: Tokens::new(keys, ISSUER, AUDIENCE), folder }
        }

        /// Another that shares the keys.
        fn beside(&self, issuer: &str, audience: &str) -> Tokens {
            Tokens::new(Arc::new(Keys::open(self.folder.path(), at(0)).unwrap()), issuer, audience)
        }

        fn token(&self, user: &str, session: &str, s: i64) -> String {
            self.tokens.sign(&subject(user, session), at(s)).unwrap().token
        }

        /// A token with these claims, whose signature is right.
        fn with_claims(&self, claims: &Value) -> String {
            let keys = self.tokens.keys.current(at(0));
            let key = keys.signing(at(0)).unwrap();
            let message = format!("{}.{}", key.header(), URL_SAFE_NO_PAD.encode(claims.to_string()));
            let signature = URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()));
            format!("{message}.{signature}")
        }

        fn verify(&self, token: &str, s: i64) -> Result<Arc<Claims>, Refused> {
            self.tokens.verify(token, at(s))
        }
    }

    fn claims() -> Value {
        json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "usr_1", "sid": "ses_1", "roles": ["customer"],
            "iat": START_S, "exp": START_S + 900, "jti": "1",
        })
    }

    fn changed(name: &str, value: impl Into<Value>) -> Value {
        let mut claims = claims();
        claims[name] = value.into();
        claims
    }

    #[test]
    fn a_token_says_whom_it_speaks_for_and_for_how_long() {
        let house = House::new();
        let vendor = Subject { shop: Some("shop_1".into()), roles: vec!["vendor".into()], ..subject("usr_1", "ses_1") };
        let signed = house.tokens.sign(&vendor, at(0)).unwrap();
        assert_eq!(signed.expires_in_s, 900);
        for _first_and_repeated in 0..2 {
            let claims = house.verify(&signed.token, 1).unwrap();
            assert_eq!((claims.sub.as_str(), claims.sid.as_str()), ("usr_1", "ses_1"));
            assert_eq!((claims.roles.as_slice(), claims.shop.as_deref()), (&["vendor".to_owned()][..], Some("shop_1")));
            assert_eq!((claims.iat, claims.exp), (START_S, START_S + 900));
        }
        assert_eq!(house.tokens.remembered.len(), 1);
        assert!(!format!("{signed:?}").contains(&signed.token));
    }

    #[test]
    fn the_header_names_the_algorithm_and_the_key() {
        let house = House::new();
        let token = house.token("usr_1", "ses_1", 0);
        let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        let kid = house.tokens.keys().current(at(0)).signing(at(0)).unwrap().kid.clone();
        assert_eq!(header, json!({"alg": "EdDSA", "typ": "JWT", "kid": kid}));
    }

    #[test]
    fn a_known_token_of_rfc_8037_has_the_signature_that_the_rfc_gives() {
        // Appendix A.4 signs `eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc` with the key of A.1.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("given.pem");
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
            -----END PRIVATE KEY-----\n";
        std::fs::write(&path, pem).unwrap();
        let keys = Keys::given(&path, at(0)).unwrap().current(at(0));
        let signature = keys.signing(at(0)).unwrap().sign(b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc");
        let expected = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        assert_eq!(URL_SAFE_NO_PAD.encode(signature), expected);
    }

    #[test]
    fn a_token_holds_from_its_issue_to_its_expiry_and_clocks_may_differ_by_half_a_minute() {
        let house = House::new();
        let token = house.token("usr_1", "ses_1", 0);
        // Forwards and back again: a verdict that is remembered is no other.
        for s in [0, -30, -31, 900, 929, 930, 931, 900, -31, 0] {
            let expected = match s {
                ..-30 => Err(Refused::NotYetValid),
                930.. => Err(Refused::Expired),
                _ => Ok(()),
            };
            assert_eq!(house.verify(&token, s).map(|_| ()), expected, "{s}");
        }
        house.verify(&token, 2_000).unwrap_err();
        assert_eq!(house.tokens.remembered.len(), 0, "what has expired is not kept");
    }

    #[test]
    fn claims_that_are_not_for_us_are_refused_although_their_signature_is_right() {
        let house = House::new();
        for (claims, expected) in [
            (changed("iss", "https://other.test"), Refused::WrongIssuer),
            (changed("iss", Value::Null), Refused::Malformed),
            (changed("aud", "other"), Refused::WrongAudience),
            (changed("aud", json!([AUDIENCE])), Refused::Malformed),
            (changed("exp", START_S - 31), Refused::Expired),
            (changed("exp", START_S + 901), Refused::Malformed),
            (changed("exp", i64::MAX), Refused::Malformed),
            (changed("exp", "never"), Refused::Malformed),
            (changed("iat", i64::MIN), Refused::Malformed),
            (changed("iat", START_S + 31), Refused::NotYetValid),
            (changed("nbf", START_S + 31), Refused::NotYetValid),
            (changed("sub", Value::Null), Refused::Malformed),
            (json!({}), Refused::Malformed),
            (json!("not claims"), Refused::Malformed),
        ] {
            assert_eq!(house.verify(&house.with_claims(&claims), 0), Err(expected), "{claims}");
        }
        assert!(house.verify(&house.with_claims(&claims()), 0).is_ok(), "else the cases above prove nothing");
    }

    #[test]
    fn a_token_of_another_issuer_or_for_another_audience_is_refused_although_it_shares_our_keys() {
        let house = House::new();
        let other = |issuer, audience| house.beside(issuer, audience).sign(&subject("usr_1", "ses_1"), at(0)).unwrap().token;
        assert_eq!(house.verify(&other("https://other.test", AUDIENCE), 0), Err(Refused::WrongIssuer));
        assert_eq!(house.verify(&other(ISSUER, "admin"), 0), Err(Refused::WrongAudience));
        assert!(house.verify(&other(ISSUER, AUDIENCE), 0).is_ok());
    }

    #[test]
    fn no_other_algorithm_and_no_other_key_is_taken() {
        let house = House::new();
        let keys = house.tokens.keys.current(at(0));
        let kid = keys.signing(at(0)).unwrap().kid.clone();
        let jwks = keys.to_jwks(at(0));
        let public = URL_SAFE_NO_PAD.decode(jwks["keys"][0]["x"].as_str().unwrap()).unwrap();
        let payload = URL_SAFE_NO_PAD.encode(claims().to_string());
        let sign = |message: &str| URL_SAFE_NO_PAD.encode(keys.signing(at(0)).unwrap().sign(message.as_bytes()));
        let hs256 = |message: &str, key: &[u8]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
            mac.update(message.as_bytes());
            URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
        };
        let token = |header: &Value, signature: &dyn Fn(&str) -> String| {
            let message = format!("{}.{payload}", URL_SAFE_NO_PAD.encode(header.to_string()));
            let signature = signature(&message);
            format!("{message}.{signature}")
        };
        for (header, signature) in [
            (json!({"alg": "none", "kid": kid, "typ": "JWT"}), ""),
            (json!({"alg": "None", "kid": kid, "typ": "JWT"}), ""),
            (json!({"alg": "none", "typ": "JWT"}), "AA"),
        ] {
            assert_eq!(house.verify(&token(&header, &|_| signature.into()), 0), Err(Refused::UnknownKey), "{header}");
        }
        let confused = json!({"alg": "HS256", "kid": kid, "typ": "JWT"});
        for key in [public.as_slice(), jwks["keys"][0]["x"].as_str().unwrap().as_bytes()] {
            assert_eq!(house.verify(&token(&confused, &|message| hs256(message, key)), 0), Err(Refused::UnknownKey));
        }
        // Rightly signed by our key, and yet not a header that we write.
        for header in [
            json!({"alg": "EdDSA", "typ": "JWT"}),
            json!({"alg": "EdDSA", "kid": "another", "typ": "JWT"}),
            json!({"alg": "EdDSA", "kid": kid, "typ": "JWT", "crit": ["exp"]}),
            json!({"alg": "EdDSA", "kid": kid, "typ": "JWT", "jwk": jwks["keys"][0]}),
        ] {
            assert_eq!(house.verify(&token(&header, &sign), 0), Err(Refused::UnknownKey), "{header}");
        }
        // Another installation's key under our key's name.
        let other = House::new();
        let foreign = other.token("usr_1", "ses_1", 0);
        assert_eq!(house.verify(&foreign, 0), Err(Refused::UnknownKey));
        let (_, rest) = foreign.split_once('.').unwrap();
        let renamed = format!("{}.{rest}", keys.signing(at(0)).unwrap().header());
        assert_eq!(house.verify(&renamed, 0), Err(Refused::BadSignature));
    }

    #[test]
    fn a_token_that_is_cut_padded_or_oversized_is_refused() {
        let house = House::new();
        let token = house.token("usr_1", "ses_1", 0);
        house.verify(&token, 0).unwrap();
        for length in 0..token.len() {
            assert!(house.verify(&token[..length], 0).is_err(), "{length}");
        }
        for longer in [format!("{token}="), format!("{token}."), format!(" {token}"), format!("{token}\n"), format!("{token}A")] {
            assert!(house.verify(&longer, 0).is_err(), "{longer}");
        }
        let long = "x".repeat(TOKEN_BYTES_MAX);
        let padded = house.with_claims(&changed("padding", long.as_str()));
        assert_eq!(house.verify(&padded, 0), Err(Refused::TooLong));
        assert!(house.verify(&house.with_claims(&changed("padding", &long[..100])), 0).is_ok());
        let wordy = Subject { roles: vec![long], ..subject("usr_1", "ses_1") };
        assert!(matches!(house.tokens.sign(&wordy, at(0)), Err(SignError::TooLong)));
    }

    #[test]
    fn a_session_that_has_ended_stays_refused_until_its_tokens_have_expired_and_others_are_untouched() {
        let house = House::new();
        let (mine, other) = (house.token("usr_1", "ses_1", 0), house.token("usr_1", "ses_2", 0));
        house.verify(&mine, 0).unwrap();
        let unseen = house.token("usr_1", "ses_1", 5);
        house.tokens.revoke_session("ses_1", at(10));
        for s in [10, 400, 900, 929] {
            house.tokens.revoke_session("ses_unrelated", at(s));
            assert_eq!(house.verify(&mine, s), Err(Refused::Revoked), "{s}");
            assert_eq!(house.verify(&unseen, s), Err(Refused::Revoked), "{s}");
            assert!(house.verify(&other, s).is_ok(), "{s}");
        }
        assert_eq!(house.verify(&mine, 930), Err(Refused::Expired));
        // A day later nothing is held of it.
        house.tokens.revoke_session("ses_3", at(86_400));
        assert_eq!(house.tokens.read_revoked().sessions.len(), 1);
    }

    #[test]
    fn revoking_a_user_ends_all_that_was_issued_and_nothing_that_comes_after() {
        let house = House::new();
        let (first, second) = (house.token("usr_1", "ses_1", 0), house.token("usr_1", "ses_2", 10));
        let other = house.token("usr_2", "ses_3", 0);
        house.verify(&first, 10).unwrap();
        house.tokens.revoke_user("usr_1", at(10));
        assert_eq!(house.verify(&first, 10), Err(Refused::Revoked));
        assert_eq!(house.verify(&second, 10), Err(Refused::Revoked));
        assert!(house.verify(&other, 10).is_ok());
        let same_second = house.token("usr_1", "ses_4", 10);
        assert!(house.verify(&same_second, 10).is_ok(), "who logs in again at once is not shut out");
        // Heard late from another node, an older revocation takes nothing back.
        house.tokens.revoke_user("usr_1", at(5));
        assert_eq!(house.verify(&second, 10), Err(Refused::Revoked));
        house.tokens.revoke_user("usr_2", at(2_000));
        assert_eq!(house.tokens.read_revoked().users.len(), 1);
    }

    #[test]
    fn revoking_all_has_every_client_renew_its_token() {
        let house = House::new();
        let old = house.token("usr_1", "ses_1", 0);
        house.verify(&old, 0).unwrap();
        house.tokens.revoke_all(at(10));
        house.tokens.revoke_all(at(5));
        assert_eq!(house.verify(&old, 10), Err(Refused::Revoked));
        assert!(house.verify(&house.token("usr_1", "ses_1", 10), 10).is_ok());
    }

    #[test]
    fn more_revocations_than_can_be_held_refuse_too_much_and_never_too_little() {
        let house = House::new();
        let revoked = house.token("usr_1", "ses_0", 0);
        let other = house.token("usr_2", "ses_other", 0);
        for session in 0..=REVOKED_MAX {
            house.tokens.revoke_session(&format!("ses_{session}"), at(1));
        }
        assert_eq!(house.verify(&revoked, 1), Err(Refused::Revoked));
        assert_eq!(house.verify(&other, 1), Err(Refused::Revoked));
        assert!(house.tokens.read_revoked().sessions.len() <= REVOKED_MAX);
        assert!(house.verify(&house.token("usr_2", "ses_other", 1), 1).is_ok());
    }

    #[test]
    fn after_a_rotation_old_tokens_still_verify_and_new_ones_bear_the_new_key() {
        let house = House::new();
        let old = house.token("usr_1", "ses_1", 0);
        house.verify(&old, 0).unwrap();
        let kid = house.tokens.keys.rotate(at(0)).unwrap();
        let new = house.token("usr_1", "ses_1", 60);
        let header = URL_SAFE_NO_PAD.decode(new.split('.').next().unwrap()).unwrap();
        assert!(String::from_utf8(header).unwrap().contains(&kid));
        assert!(house.verify(&old, 60).is_ok() && house.verify(&new, 60).is_ok());
    }

    #[test]
    fn a_key_that_was_taken_away_is_gone_for_remembered_tokens_too() {
        let house = House::new();
        let token = house.token("usr_1", "ses_1", 0);
        house.verify(&token, 0).unwrap();
        let kid = house.tokens.keys.current(at(0)).signing(at(0)).unwrap().kid.clone();
        house.tokens.keys.rotate(at(0)).unwrap();
        assert!(house.verify(&token, 1).is_ok());
        std::fs::remove_file(house.folder.path().join(format!("{kid}.pem"))).unwrap();
        assert_eq!(house.verify(&token, 10), Err(Refused::UnknownKey));
    }

    #[test]
    fn a_token_of_a_node_that_has_rotated_is_taken_by_one_that_has_not_looked_yet() {
        let house = House::new();
        let other = house.beside(ISSUER, AUDIENCE);
        let first = house.tokens.keys.current(at(0)).signing(at(0)).unwrap().kid.clone();
        house.tokens.keys.rotate(at(0)).unwrap();
        // An emergency: the old key is taken away, so that the new one signs at once.
        std::fs::remove_file(house.folder.path().join(format!("{first}.pem"))).unwrap();
        house.tokens.keys.current(at(5));
        let token = house.token("usr_1", "ses_1", 5);
        other.keys.current(at(4));
        assert!(other.verify(&token, at(5)).is_ok());
    }

    #[test]
    fn no_more_tokens_are_remembered_than_the_bound() {
        let house = House::new();
        let claims = Arc::new(serde_json::from_value::<Claims>(claims()).unwrap());
        for n in 0..REMEMBERED_MAX as u64 + 10_000 {
            let digest = Sha256::digest(n.to_le_bytes()).into();
            house.tokens.remembered.insert(digest, Verified { claims: Arc::clone(&claims), generation: 0 });
        }
        assert!(house.tokens.remembered.len() <= REMEMBERED_MAX);
        assert!(house.tokens.remembered.len() > REMEMBERED_MAX / 2);
    }

    static HOUSE: LazyLock<House> = LazyLock::new(House::new);
    static TOKEN: LazyLock<String> = LazyLock::new(|| HOUSE.token("usr_1", "ses_1", 0));

    proptest! {
        #[test]
        fn no_text_makes_verify_panic_and_none_is_taken(text in any::<String>(), at_ms in any::<i64>()) {
            prop_assert!(HOUSE.tokens.verify(&text, Timestamp::from_millis(at_ms)).is_err());
        }

        #[test]
        fn no_bytes_in_three_segments_make_verify_panic_and_none_are_taken(
            header in proptest::option::of(any::<Vec<u8>>()), payload in any::<Vec<u8>>(), signature in any::<[u8; 64]>(),
        ) {
            let ours = || HOUSE.tokens.keys.current(at(0)).signing(at(0)).unwrap().header().to_owned();
            let header = header.map_or_else(ours, |header| URL_SAFE_NO_PAD.encode(header));
            let token = [header, URL_SAFE_NO_PAD.encode(payload), URL_SAFE_NO_PAD.encode(signature)].join(".");
            prop_assert!(HOUSE.verify(&token, 0).is_err());
        }

        #[test]
        fn no_changed_token_verifies(place in any::<prop::sample::Index>(), to in any::<char>()) {
            let token = TOKEN.as_str();
            let at = place.index(token.len());
            let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
            prop_assert!(HOUSE.verify(token, 0).is_ok());
            prop_assert_eq!(HOUSE.verify(&changed, 0).is_ok(), changed == token);
        }

        #[test]
        fn no_token_with_a_flipped_bit_verifies(place in any::<prop::sample::Index>(), bit in 0..7_u8) {
            let mut bytes = TOKEN.clone().into_bytes();
            let at = place.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(HOUSE.verify(&String::from_utf8(bytes).unwrap(), 0).is_err());
        }
    }
}
