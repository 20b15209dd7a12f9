//! Who bears a token: access tokens, API keys, and what may be a guest's.
//!
//! A signature shows that a token was given out; the account itself says what it is worth now. Both are looked at once and
//! then remembered for [`KNOWN_MS`]: a hot sale has no time to look anew for each request. What is ended on this node
//! is forgotten here at once ([`Bearers::session_ended`], [`Bearers::forget`]); what is ended through another node counts
//! here for that long at most, as do tokens of a signing key that is taken away. Nothing outlives a restart, so a session that
//! was ended before it stays ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use quick_cache::sync::Cache;

use super::identity::Identity;
use super::users::{ApiKey, KEY_PREFIX};
use crate::actors::credential::{Account, Credential, Gate, Key, NotRecognised, OPERATOR, sha256_hex};
use crate::actors::permissions::{Permission, Rank};
use crate::actors::{Failure, Runtime};
use crate::domain::time::SECOND_MS;
use crate::domain::user::{Role, State};
use crate::domain::{Timestamp, User};

/// How long an account is taken for what it was found to be.
pub const KNOWN_MS: i64 = 30 * SECOND_MS;
/// Tokens, and sessions, that are remembered; each takes about a kilobyte.
const KNOWN_MAX: usize = 50_000;
/// The longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// The gate of this node's door.
pub struct Bearers {
    runtime: Runtime,
    identity: Arc<Identity>,
    /// By the token or key as it is shown.
    known: Cache<String, Arc<Known>>,
    /// By session or account: what is known of it, to be forgotten.
    of_session: Cache<String, Arc<Known>>,
    /// Counts what was forgotten, so that nobody remembers what was looked at before.
    forgotten: AtomicU64,
}

struct Known {
    account: Arc<Account>,
    until: Timestamp,
    forgotten: AtomicBool,
}

impl Bearers {
    pub fn new(runtime: Runtime, identity: Arc<Identity>) -> Self {
        let (known, of_session) = (Cache::new(KNOWN_MAX), Cache::new(KNOWN_MAX));
        Bearers { runtime, identity, known, of_session, forgotten: AtomicU64::new(0) }
    }

    /// Whose token this is, if it can be no account's or was looked at lately.
    pub fn known(&self, token: Option<&str>) -> Option<Credential> {
        if let Some(credential) = of_no_account(token) {
            return Some(credential);
        }
        let known = self.known.get(token?)?;
        let counts = known.until > self.runtime.now() && !known.forgotten.load(Ordering::Acquire);
        counts.then(|| Credential::Account(Arc::clone(&known.account)))
    }

    /// No token of this session counts any more.
    pub fn session_ended(&self, session: &str) {
        self.identity.tokens.revoke_session(session, self.runtime.now());
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        if let Some((_, known)) = self.of_session.remove(session) {
            known.forgotten.store(true, Ordering::Release);
        }
    }

    /// What this account is has changed: it is looked at anew.
    pub fn forget(&self, user: &str) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.of_session.retain(|_, known| {
            let other = &*known.account.user != user;
            known.forgotten.fetch_or(!other, Ordering::AcqRel);
            other
        });
    }

    async fn of_token(&self, token: &str) -> Result<Credential, NotRecognised> {
        let (now, forgotten) = (self.runtime.now(), self.forgotten.load(Ordering::Acquire));
        let verify = || self.identity.tokens.verify(token, now).map_err(|refused| NotRecognised::Refused(refused.told()));
        let claims = verify()?;
        let expires = Timestamp::from_millis(claims.exp.saturating_mul(SECOND_MS));
        if claims.sub == OPERATOR {
            return Ok(Credential::Account(operator()));
        }
        let account = self.signed_in(&claims.sub, &claims.sid).await?.ok_or(NotRecognised::Refused("its session has ended"))?;
        self.remember(token, &claims.sid, &account, expires, forgotten);
        // Ended while it was being looked at.
        verify()?;
        Ok(Credential::Account(account))
    }

    async fn of_key(&self, shown: &str) -> Result<Credential, NotRecognised> {
        const WRONG: NotRecognised = NotRecognised::Refused("there is no such API key (any more)");
        let forgotten = self.forgotten.load(Ordering::Acquire);
        let ApiKey { user, id } = ApiKey::parse(shown).ok_or(WRONG)?;
        let (own_user, own_id, own_sha256): (Arc<str>, Arc<str>, _) = (user.into(), id.into(), sha256_hex(shown.as_bytes()));
        let look = move |state: &State, _| {
            let key = state.api_keys.get(&*own_id).filter(|key| state.is_active() && key.secret_sha256 == own_sha256)?;
            let scopes = key.scopes.iter().filter_map(|scope| Permission::parse(scope)).collect();
            Some(account(own_user, state, None, Some(Key { id: own_id, scopes })))
        };
        let account = self.runtime.view::<User, _>(user, look).await?.ok_or(WRONG)?;
        self.remember(shown, id, &account, Timestamp::from_millis(i64::MAX), forgotten);
        Ok(Credential::Account(account))
    }

    /// The account, if this session of it has not ended.
    async fn signed_in(&self, user: &str, session: &str) -> Result<Option<Arc<Account>>, Failure> {
        let (own_user, own_session, now): (Arc<str>, _, _) = (user.into(), session.to_owned(), self.runtime.now());
        let look = move |state: &State, _| {
            let is_open = state.is_active() && state.session(&own_session, now).is_some();
            is_open.then(|| account(own_user, state, Some(own_session), None))
        };
        self.runtime.view::<User, _>(user, look).await
    }

    /// Unless something was forgotten since it was looked at, which may have been this.
    fn remember(&self, shown: &str, session: &str, account: &Arc<Account>, expires: Timestamp, forgotten: u64) {
        if self.forgotten.load(Ordering::Acquire) != forgotten {
            return;
        }
        let now = self.runtime.now();
        let until = now.plus_ms(KNOWN_MS).min(expires);
        let alike =
            |known: &Arc<Known>| known.until > now && !known.forgotten.load(Ordering::Acquire) && known.account == *account;
        // Several tokens of one session are known as one, so that all of them are forgotten with it.
        let known = match self.of_session.get(session).filter(alike) {
            Some(known) => known,
            None => {
                let known = Arc::new(Known { account: Arc::clone(account), until, forgotten: AtomicBool::new(false) });
                if let Some(before) = self.of_session.get(session) {
                    before.forgotten.store(true, Ordering::Release);
                }
                self.of_session.insert(session.to_owned(), Arc::clone(&known));
                known
            }
        };
        self.known.insert(shown.to_owned(), Arc::clone(&known));
        if self.forgotten.load(Ordering::Acquire) != forgotten {
            known.forgotten.store(true, Ordering::Release);
        }
    }
}

fn account(user: Arc<str>, state: &State, session: Option<String>, key: Option<Key>) -> Arc<Account> {
    let rank = |role: Role| match role {
        Role::Customer => Rank::Customer,
        Role::Vendor => Rank::Vendor,
        Role::Admin => Rank::Admin,
    };
    let ranks = state.roles().into_iter().map(rank).collect();
    Arc::new(Account { user, session, ranks, shop: state.shop.clone(), key })
}

/// Whoever can read the signing key: what it may do, it could have itself allowed by any token.
fn operator() -> Arc<Account> {
    Arc::new(Account { user: OPERATOR.into(), session: None, ranks: vec![Rank::Admin], shop: None, key: None })
}

/// Whose token this is, if it can be no account's: what is neither a key nor signed.
fn of_no_account(token: Option<&str>) -> Option<Credential> {
    let Some(token) = token.filter(|token| !token.is_empty()) else { return Some(Credential::Nobody) };
    let is_guests = token.len() <= TOKEN_BYTES_MAX && !token.starts_with(KEY_PREFIX) && !token.contains('.');
    is_guests.then(|| Credential::guest(token))
}

impl Gate for Bearers {
    fn recognise<'a>(&'a self, token: Option<&'a str>) -> BoxFuture<'a, Result<Credential, NotRecognised>> {
        Box::pin(async move {
            match (of_no_account(token), token.unwrap_or_default()) {
                (Some(credential), _) => Ok(credential),
                (None, token) if token.len() > TOKEN_BYTES_MAX => Err(NotRecognised::Refused("no token is so long")),
                (None, token) if token.starts_with(KEY_PREFIX) => self.of_key(token).await,
                (None, token) => self.of_token(token).await,
            }
        })
    }

    fn still_counts<'a>(&'a self, account: &'a Account) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            match (&account.session, &account.key) {
                (Some(session), _) => !matches!(self.signed_in(&account.user, session).await, Ok(None)),
                (None, Some(key)) => {
                    let id = Arc::clone(&key.id);
                    let look = move |state: &State, _| state.is_active() && state.api_keys.contains_key(&*id);
                    !matches!(self.runtime.view::<User, _>(&account.user, look).await, Ok(false))
                }
                (None, None) => true,
            }
        })
    }
}
