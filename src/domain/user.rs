//! An account: who may log in, under which roles and by which sessions and keys, and which e-mail address and shop are its.
//!
//! What is personal comes here only sealed, by a key of that account's own which lies outside of the journal. The domain
//! never opens a seal. When the account is deleted (or never came about) its key is destroyed: what the journal
//! holds can then be read by nobody, though not one record of it was rewritten. Secrets come here only as their SHA-256.
//!
//! An e-mail address is asked for at its own entity, under a number that this account never uses twice (see `email.rs`):
//! - sign-up: claim 1; granted, the account is created; refused, it never is.
//! - a change: claim the new one; granted, it is taken over and the old one released; refused, the old one stays.
//! - deletion: release what is held, and what is still being claimed. The release may arrive before that claim, which
//!   is then refused.
//! - a claim that was refused is released too: a late copy of it could meet an address that has become free.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::time::MINUTE_MS;
use super::{
    CommandId, Context, Debt, Decision, Email, Entity, Outside, Shop, Timestamp, email, email::EmailHash, ids, shop, turn,
};

type Turn = turn::Turn<User>;

/// A session that was not used for so long is over.
pub const SESSION_UNUSED_MS: i64 = 30 * 24 * 60 * MINUTE_MS;
/// Addresses that may still have to hear that they are given up, when the next one is asked for.
pub const RELEASING_MAX: usize = 4;
pub const SESSIONS_MAX: usize = 50;
pub const API_KEYS_MAX: usize = 20;
pub const SCOPES_MAX: usize = 32;
pub const SCOPE_BYTES_MAX: usize = 64;
pub const SEALED_BYTES_MAX: usize = 4 * 1024;

pub struct User;

/// Where the keys of the seals lie, one for each account.
pub struct Vault;

impl Outside for Vault {
    const NAME: &'static str = "vault";
    type Request = VaultRequest;
    type Answer = VaultAnswer;
}

/// Destroy the key of this account for good.
#[derive(Debug, Clone, PartialEq)]
pub struct VaultRequest {
    pub user: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum VaultAnswer {
    /// There is no such key any more, or there never was.
    Destroyed,
    Unavailable {
        reason: String,
    },
}

/// Text that only who has the account's key can read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(pub String);

/// An e-mail address: compared by its hash, read under its seal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedEmail {
    pub hash: EmailHash,
    pub sealed: Sealed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everybody who has an account.
    Customer,
    /// Owner of one shop.
    Vendor,
    Admin,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Customer => "customer",
            Role::Vendor => "vendor",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Its own id, under which it claims its e-mail address.
    pub id: String,
    pub phase: Phase,
    pub email: Option<SealedEmail>,
    /// The number of the claim by which it holds its address.
    pub claim: u64,
    /// Counts the claims that it ever made.
    pub claims: u64,
    /// The new address that it is claiming.
    pub change: Option<Change>,
    /// Claims that are to be given up.
    pub releasing: Vec<Claim>,
    /// All else that its holder tells about themselves.
    pub profile: Sealed,
    /// A PHC string of argon2id.
    pub password_hash: Sealed,
    /// Counts the passwords, so that who has verified one can say which.
    pub password_version: u64,
    /// Roles given by an admin.
    pub granted: BTreeSet<Role>,
    /// Its one shop, for ever.
    pub shop: Option<String>,
    /// The cart that it shops with, wherever it is logged in.
    pub cart: Option<String>,
    /// By id. Those past their time are swept when the next one is opened: see [`State::session`].
    pub sessions: BTreeMap<String, Session>,
    /// By id.
    pub api_keys: BTreeMap<String, ApiKey>,
    pub created_at: Timestamp,
    /// Its key is still to be destroyed.
    pub shredding: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    #[default]
    Absent,
    /// Waits for its e-mail address; nobody can log in.
    Registering {
        command: CommandId,
    },
    Active,
    /// The address belongs to another account.
    Refused,
    Deleted,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub command: CommandId,
    pub email: SealedEmail,
    pub claim: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    pub email: EmailHash,
    pub claim: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Of the one secret that refreshes it.
    pub secret_sha256: String,
    /// What it was opened with and from where, for its holder to recognise.
    pub device: Sealed,
    pub opened_at: Timestamp,
    pub used_at: Timestamp,
}

impl Session {
    pub fn expires_at(&self) -> Timestamp {
        self.used_at.plus_ms(SESSION_UNUSED_MS)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiKey {
    pub secret_sha256: String,
    pub scopes: BTreeSet<String>,
    /// What its holder calls it.
    pub label: Sealed,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Answered when the e-mail address has spoken.
    SignUp {
        email: SealedEmail,
        profile: Sealed,
        password_hash: Sealed,
    },
    ChangeProfile {
        profile: Sealed,
    },
    /// Answered when the new address has spoken; at once when only its writing differs.
    ChangeEmail {
        email: SealedEmail,
    },
    /// Ends all sessions but `keep`. `password_version`: of the password that was verified.
    ChangePassword {
        password_hash: Sealed,
        password_version: u64,
        keep: Option<String>,
    },
    GrantRole {
        role: Role,
    },
    /// Ends all sessions: what they were given under the role is worth nothing from now on.
    RevokeRole {
        role: Role,
    },
    UseCart {
        cart: String,
    },
    /// Asked by a shop that is to open.
    AttachShop {
        shop: String,
    },
    /// `password_version`: of the password that was verified.
    OpenSession {
        session: String,
        secret_sha256: String,
        device: Sealed,
        password_version: u64,
    },
    /// Swaps the session's secret for the next one.
    Refresh {
        session: String,
        presented_sha256: String,
        next_sha256: String,
    },
    EndSession {
        session: String,
    },
    EndAllSessions {
        keep: Option<String>,
    },
    CreateApiKey {
        key: String,
        secret_sha256: String,
        scopes: BTreeSet<String>,
        label: Sealed,
    },
    RevokeApiKey {
        key: String,
    },
    Delete,
    HeardClaim {
        claim: u64,
        granted: bool,
    },
    HeardReleased {
        claim: u64,
    },
    HeardShopClosed,
    HeardDestroyed,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Created,
    Updated,
    PasswordChanged,
    RoleGranted,
    RoleRevoked,
    CartUsed,
    ShopAttached,
    SessionOpened,
    Refreshed,
    /// Also when there was nothing to end.
    SessionsEnded,
    ApiKeyCreated,
    /// Also when there was no such key.
    ApiKeyRevoked,
    Deleted,
    Noted,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("no such account")]
    Unknown,
    #[error("the account was deleted")]
    Deleted,
    #[error("the account exists already")]
    Exists,
    #[error("another account has this e-mail address")]
    EmailTaken,
    #[error("another change of the e-mail address is still under way; try again in a moment")]
    Busy,
    #[error("the password was changed in the meantime")]
    PasswordChanged,
    #[error("no such session")]
    NoSuchSession,
    /// The session is over, for whoever holds its other secrets too.
    #[error("this secret is not the session's newest: somebody may have a copy of it, so the session was ended")]
    Reused,
    #[error("another session or key has this id")]
    IdTaken,
    #[error("an account has at most {API_KEYS_MAX} keys")]
    TooManyApiKeys,
    #[error("the role {role} is not an admin's to give or take")]
    NotGrantable { role: Role },
    #[error("this account has the shop {shop} already")]
    HasShop { shop: String },
    /// `field`: the command's.
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Its holder ended it.
    LoggedOut,
    /// Unused for [`SESSION_UNUSED_MS`].
    Expired,
    /// The one unused for longest gave way to a new one.
    Displaced,
    /// A secret that is not its newest was presented.
    Reused,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    /// The account is written down and claims its e-mail address, under the number 1.
    #[serde(rename = "user.registration.requested")]
    RegistrationRequested { id: String, command: CommandId, email: SealedEmail, profile: Sealed, password_hash: Sealed },
    #[serde(rename = "user.registration.refused")]
    RegistrationRefused,
    #[serde(rename = "user.created")]
    Created { created_at: Timestamp },
    /// Profile, address or both: as they are now. `claim`: the number under which the address is held.
    #[serde(rename = "user.updated")]
    Updated { email: SealedEmail, claim: u64, profile: Sealed },
    #[serde(rename = "user.email.change_requested")]
    EmailChangeRequested { command: CommandId, email: SealedEmail, claim: u64 },
    #[serde(rename = "user.email.change_refused")]
    EmailChangeRefused { claim: u64 },
    #[serde(rename = "user.email.released")]
    EmailReleased { claim: u64 },
    #[serde(rename = "user.password.changed")]
    PasswordChanged { password_hash: Sealed, kept: Option<String> },
    #[serde(rename = "user.role.granted")]
    RoleGranted { role: Role },
    #[serde(rename = "user.role.revoked")]
    RoleRevoked { role: Role },
    #[serde(rename = "user.cart.used")]
    CartUsed { cart: String },
    #[serde(rename = "user.shop.attached")]
    ShopAttached { shop: String },
    #[serde(rename = "user.shop.closed")]
    ShopClosed,
    #[serde(rename = "user.session.opened")]
    SessionOpened { session: String, secret_sha256: String, device: Sealed, opened_at: Timestamp },
    #[serde(rename = "user.session.refreshed")]
    SessionRefreshed { session: String, secret_sha256: String, used_at: Timestamp },
    #[serde(rename = "user.session.ended")]
    SessionEnded { session: String, because: Ending },
    #[serde(rename = "user.sessions.ended")]
    SessionsEnded { kept: Option<String> },
    #[serde(rename = "user.api_key.created")]
    ApiKeyCreated { key: String, secret_sha256: String, scopes: BTreeSet<String>, label: Sealed, created_at: Timestamp },
    #[serde(rename = "user.api_key.revoked")]
    ApiKeyRevoked { key: String },
    #[serde(rename = "user.deleted")]
    Deleted,
    /// Nothing that was ever sealed for this account can be read any more.
    #[serde(rename = "user.seal.destroyed")]
    SealDestroyed,
}

impl Entity for User {
    const KIND: &'static str = "user";
    const SNAPSHOT_FORMAT: u32 = 1;
    const HIDDEN: &'static [&'static str] = &["sealed", "profile", "password_hash", "device", "label", "secret_sha256"];

    type State = State;
    type Command = Command;
    type Event = Event;
    type Reply = Reply;
    type Rejection = Rejection;

    fn decide(state: &State, command: Command, context: &Context<'_>) -> Result<Decision<Self>, Rejection> {
        match command {
            Command::SignUp { email, profile, password_hash } => state.sign_up(email, profile, password_hash, context),
            Command::Delete => state.delete(),
            Command::HeardClaim { claim, granted } => Ok(state.heard_claim(claim, granted, context.now)),
            Command::HeardReleased { claim } => {
                Ok(noted(state.releasing.iter().any(|owed| owed.claim == claim), Event::EmailReleased { claim }))
            }
            Command::HeardShopClosed => Ok(noted(state.is_leaving_its_shop(), Event::ShopClosed)),
            Command::HeardDestroyed => Ok(noted(state.shredding, Event::SealDestroyed)),
            command => {
                state.check_active()?;
                state.decide_active(command, context)
            }
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::RegistrationRequested { id, command, email, profile, password_hash } => {
                state.id.clone_from(id);
                state.phase = Phase::Registering { command: command.clone() };
                state.email = Some(email.clone());
                (state.claim, state.claims) = (1, 1);
                state.profile = profile.clone();
                state.password_hash = password_hash.clone();
                state.password_version = 1;
            }
            Event::RegistrationRefused => {
                state.give_up_address();
                state.forget(Phase::Refused);
            }
            Event::Created { created_at } => {
                state.phase = Phase::Active;
                state.created_at = *created_at;
            }
            Event::Updated { email, claim, profile } => state.update(email, *claim, profile),
            Event::EmailChangeRequested { command, email, claim } => {
                state.claims = *claim;
                state.change = Some(Change { command: command.clone(), email: email.clone(), claim: *claim });
            }
            Event::EmailChangeRefused { claim } => {
                if state.change.as_ref().is_some_and(|change| change.claim == *claim) {
                    state.give_up_change();
                }
            }
            Event::EmailReleased { claim } => state.releasing.retain(|owed| owed.claim != *claim),
            Event::PasswordChanged { password_hash, kept } => {
                state.password_hash = password_hash.clone();
                state.password_version += 1;
                state.keep_session(kept.as_deref());
            }
            Event::RoleGranted { role } => {
                state.granted.insert(*role);
            }
            Event::RoleRevoked { role } => {
                state.granted.remove(role);
                state.keep_session(None);
            }
            Event::CartUsed { cart } => state.cart = Some(cart.clone()),
            Event::ShopAttached { shop } => state.shop = Some(shop.clone()),
            Event::ShopClosed => state.shop = None,
            Event::SessionOpened { session, secret_sha256, device, opened_at } => {
                let (secret_sha256, device) = (secret_sha256.clone(), device.clone());
                let opened = Session { secret_sha256, device, opened_at: *opened_at, used_at: *opened_at };
                state.sessions.insert(session.clone(), opened);
            }
            Event::SessionRefreshed { session, secret_sha256, used_at } => {
                if let Some(session) = state.sessions.get_mut(session) {
                    session.secret_sha256.clone_from(secret_sha256);
                    session.used_at = *used_at;
                }
            }
            Event::SessionEnded { session, .. } => {
                state.sessions.remove(session);
            }
            Event::SessionsEnded { kept } => state.keep_session(kept.as_deref()),
            Event::ApiKeyCreated { key, secret_sha256, scopes, label, created_at } => {
                let (secret_sha256, scopes, label) = (secret_sha256.clone(), scopes.clone(), label.clone());
                state.api_keys.insert(key.clone(), ApiKey { secret_sha256, scopes, label, created_at: *created_at });
            }
            Event::ApiKeyRevoked { key } => {
                state.api_keys.remove(key);
            }
            Event::Deleted => {
                state.give_up_address();
                state.give_up_change();
                state.forget(Phase::Deleted);
            }
            Event::SealDestroyed => state.shredding = false,
        }
    }

    fn owes(state: &State) -> Vec<Debt<Self>> {
        let registering = match (&state.phase, &state.email) {
            (Phase::Registering { .. }, Some(email)) => Some(state.claim_debt(&email.hash, state.claim)),
            _ => None,
        };
        let changing = state.change.iter().map(|change| state.claim_debt(&change.email.hash, change.claim));
        let releasing = state.releasing.iter().map(|owed| state.release_debt(owed));
        let closing = state.shop.as_ref().filter(|_| state.is_leaving_its_shop()).map(|shop| {
            let hear = |answer: Result<shop::Reply, shop::Rejection>| answer.ok().map(|_| Command::HeardShopClosed);
            Debt::tell::<Shop>("close-shop", shop, shop::Command::Close, hear)
        });
        let shredding = state.shredding.then(|| {
            Debt::call::<Vault>("destroy-key", VaultRequest { user: state.id.clone() }, |answer| match answer {
                VaultAnswer::Destroyed => Some(Command::HeardDestroyed),
                VaultAnswer::Unavailable { .. } => None,
            })
        });
        registering.into_iter().chain(changing).chain(releasing).chain(closing).chain(shredding).collect()
    }

    fn is_at_rest(state: &State) -> bool {
        matches!(state.phase, Phase::Refused | Phase::Deleted) && Self::owes(state).is_empty()
    }
}

/// What was heard, when it is news.
fn noted(is_news: bool, event: Event) -> Decision<User> {
    Decision::now(if is_news { vec![event] } else { Vec::new() }, Reply::Noted)
}

fn invalid(field: &str, message: impl Into<String>) -> Rejection {
    Rejection::Invalid { field: field.to_owned(), message: message.into() }
}

fn check_sealed(field: &str, sealed: &Sealed) -> Result<(), Rejection> {
    match sealed.0.len() {
        1..=SEALED_BYTES_MAX => Ok(()),
        _ => Err(invalid(field, format!("must have 1 to {SEALED_BYTES_MAX} bytes"))),
    }
}

fn check_email(email: &SealedEmail) -> Result<(), Rejection> {
    if !email.hash.is_valid() {
        return Err(invalid("email", "must be known by a hash of 64 hex digits"));
    }
    check_sealed("email", &email.sealed)
}

fn check_id(field: &str, prefix: &str, id: &str) -> Result<(), Rejection> {
    ids::is_id(prefix, id).then_some(()).ok_or_else(|| invalid(field, format!("must be {prefix}_ and a ULID")))
}

fn check_sha256(field: &str, text: &str) -> Result<(), Rejection> {
    ids::is_sha256(text).then_some(()).ok_or_else(|| invalid(field, "must be 64 hex digits"))
}

fn check_scopes(scopes: &BTreeSet<String>) -> Result<(), Rejection> {
    if !(1..=SCOPES_MAX).contains(&scopes.len()) {
        return Err(invalid("scopes", format!("must be 1 to {SCOPES_MAX}")));
    }
    let is_scope = |scope: &String| {
        (1..=SCOPE_BYTES_MAX).contains(&scope.len())
            && scope.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b':'))
    };
    match scopes.iter().all(is_scope) {
        true => Ok(()),
        false => Err(invalid("scopes", format!("each must be made of a-z, 0-9, _ - . : and have at most {SCOPE_BYTES_MAX}"))),
    }
}

impl State {
    pub fn is_active(&self) -> bool {
        self.phase == Phase::Active
    }

    /// All its roles; none unless it is active.
    pub fn roles(&self) -> BTreeSet<Role> {
        let own = [Some(Role::Customer), self.shop.as_ref().map(|_| Role::Vendor)];
        let all = own.into_iter().flatten().chain(self.granted.iter().copied());
        all.filter(|_| self.is_active()).collect()
    }

    /// The session, if it is not over at this moment.
    pub fn session(&self, id: &str, now: Timestamp) -> Option<&Session> {
        self.sessions.get(id).filter(|session| session.expires_at() > now)
    }

    /// The sessions that are not over at this moment, by id.
    pub fn sessions_at(&self, now: Timestamp) -> impl Iterator<Item = (&String, &Session)> {
        self.sessions.iter().filter(move |(_, session)| session.expires_at() > now)
    }

    /// Only a deleted account leaves its shop.
    fn is_leaving_its_shop(&self) -> bool {
        self.phase == Phase::Deleted && self.shop.is_some()
    }

    fn check_active(&self) -> Result<(), Rejection> {
        match self.phase {
            Phase::Active => Ok(()),
            Phase::Deleted => Err(Rejection::Deleted),
            Phase::Absent | Phase::Registering { .. } | Phase::Refused => Err(Rejection::Unknown),
        }
    }

    fn check_password(&self, version: u64) -> Result<(), Rejection> {
        (self.password_version == version).then_some(()).ok_or(Rejection::PasswordChanged)
    }

    // Folding -------------------------------------------------------------------------------------------------------

    fn update(&mut self, email: &SealedEmail, claim: u64, profile: &Sealed) {
        if self.claim != claim {
            self.give_up_address();
        }
        self.change.take_if(|change| change.claim == claim);
        self.email = Some(email.clone());
        self.claim = claim;
        self.profile = profile.clone();
    }

    fn give_up_address(&mut self) {
        let held = self.email.take().map(|email| Claim { email: email.hash, claim: self.claim });
        self.releasing.extend(held);
    }

    fn give_up_change(&mut self) {
        let claiming = self.change.take().map(|change| Claim { email: change.email.hash, claim: change.claim });
        self.releasing.extend(claiming);
    }

    fn keep_session(&mut self, kept: Option<&str>) {
        self.sessions.retain(|session, _| Some(session.as_str()) == kept);
    }

    /// Only what is still owed is left.
    fn forget(&mut self, phase: Phase) {
        let before = std::mem::take(self);
        *self = State {
            id: before.id,
            phase,
            claim: before.claim,
            claims: before.claims,
            releasing: before.releasing,
            shop: before.shop,
            shredding: true,
            ..State::default()
        };
    }

    // Owing ---------------------------------------------------------------------------------------------------------

    fn claim_debt(&self, email: &EmailHash, claim: u64) -> Debt<User> {
        let request = email::Command::Claim { user: self.id.clone(), claim };
        Debt::tell::<Email>(format!("claim/{claim}"), &email.0, request, move |answer| {
            Some(Command::HeardClaim { claim, granted: answer.is_ok() })
        })
    }

    fn release_debt(&self, owed: &Claim) -> Debt<User> {
        let claim = owed.claim;
        let request = email::Command::Release { user: self.id.clone(), claim };
        Debt::tell::<Email>(format!("release/{claim}"), &owed.email.0, request, move |answer| {
            answer.ok().map(|_| Command::HeardReleased { claim })
        })
    }

    // Deciding ------------------------------------------------------------------------------------------------------

    fn sign_up(
        &self,
        email: SealedEmail,
        profile: Sealed,
        password_hash: Sealed,
        context: &Context<'_>,
    ) -> Result<Decision<User>, Rejection> {
        match self.phase {
            Phase::Absent => {}
            Phase::Deleted => return Err(Rejection::Deleted),
            _ => return Err(Rejection::Exists),
        }
        check_email(&email)?;
        check_sealed("profile", &profile)?;
        check_sealed("password_hash", &password_hash)?;
        let (id, command) = (context.id.to_owned(), context.command.clone());
        Ok(Decision::later(vec![Event::RegistrationRequested { id, command, email, profile, password_hash }]))
    }

    /// What a registering account hears decides whether there will be one; what an active one hears, its new address.
    fn heard_claim(&self, claim: u64, granted: bool, now: Timestamp) -> Decision<User> {
        let mut turn = Turn::on(self);
        match (&self.phase, &self.change) {
            (Phase::Registering { command }, _) if claim == self.claim => {
                turn.emit(match granted {
                    true => Event::Created { created_at: now },
                    false => Event::RegistrationRefused,
                });
                turn.settle(command.clone(), if granted { Ok(Reply::Created) } else { Err(Rejection::EmailTaken) });
            }
            (Phase::Active, Some(change)) if claim == change.claim => {
                let (email, profile) = (change.email.clone(), self.profile.clone());
                turn.emit(match granted {
                    true => Event::Updated { email, claim, profile },
                    false => Event::EmailChangeRefused { claim },
                });
                turn.settle(change.command.clone(), if granted { Ok(Reply::Updated) } else { Err(Rejection::EmailTaken) });
            }
            _ => {}
        }
        turn.now(Reply::Noted)
    }

    /// Once for all: whatever was under way ends here.
    fn delete(&self) -> Result<Decision<User>, Rejection> {
        if self.phase == Phase::Deleted {
            return Ok(Decision::now(Vec::new(), Reply::Deleted));
        }
        self.check_active()?;
        let mut turn = Turn::on(self);
        if let Some(change) = &self.change {
            turn.settle(change.command.clone(), Err(Rejection::Deleted));
        }
        turn.emit(Event::Deleted);
        Ok(turn.now(Reply::Deleted))
    }

    fn decide_active(&self, command: Command, context: &Context<'_>) -> Result<Decision<User>, Rejection> {
        match command {
            Command::ChangeProfile { profile } => self.change_profile(profile),
            Command::ChangeEmail { email } => self.change_email(email, context),
            Command::ChangePassword { password_hash, password_version, keep } => {
                self.check_password(password_version)?;
                check_sealed("password_hash", &password_hash)?;
                let kept = keep.filter(|session| self.session(session, context.now).is_some());
                Ok(Decision::now(vec![Event::PasswordChanged { password_hash, kept }], Reply::PasswordChanged))
            }
            Command::GrantRole { role } => {
                let events = self.change_role(role, false, Event::RoleGranted { role })?;
                Ok(Decision::now(events, Reply::RoleGranted))
            }
            Command::RevokeRole { role } => {
                let events = self.change_role(role, true, Event::RoleRevoked { role })?;
                Ok(Decision::now(events, Reply::RoleRevoked))
            }
            Command::UseCart { cart } => {
                check_id("cart", ids::CART, &cart)?;
                let events = if self.cart.as_ref() == Some(&cart) { Vec::new() } else { vec![Event::CartUsed { cart }] };
                Ok(Decision::now(events, Reply::CartUsed))
            }
            Command::AttachShop { shop } => self.attach_shop(shop),
            Command::OpenSession { session, secret_sha256, device, password_version } => {
                self.check_password(password_version)?;
                self.open_session(session, secret_sha256, device, context.now)
            }
            Command::Refresh { session, presented_sha256, next_sha256 } => {
                self.refresh(session, &presented_sha256, next_sha256, context)
            }
            Command::EndSession { session } => Ok(self.end_session(session)),
            Command::EndAllSessions { keep } => Ok(self.end_all_sessions(keep)),
            Command::CreateApiKey { key, secret_sha256, scopes, label } => {
                self.create_api_key(key, ApiKey { secret_sha256, scopes, label, created_at: context.now })
            }
            Command::RevokeApiKey { key } => {
                let revoked = self.api_keys.contains_key(&key).then_some(Event::ApiKeyRevoked { key });
                Ok(Decision::now(revoked.into_iter().collect(), Reply::ApiKeyRevoked))
            }
            Command::SignUp { .. }
            | Command::Delete
            | Command::HeardClaim { .. }
            | Command::HeardReleased { .. }
            | Command::HeardShopClosed
            | Command::HeardDestroyed => Ok(Decision::now(Vec::new(), Reply::Noted)),
        }
    }

    fn change_profile(&self, profile: Sealed) -> Result<Decision<User>, Rejection> {
        check_sealed("profile", &profile)?;
        let email = self.email.clone().ok_or(Rejection::Unknown)?;
        Ok(Decision::now(vec![Event::Updated { email, claim: self.claim, profile }], Reply::Updated))
    }

    /// One change at a time.
    fn change_email(&self, email: SealedEmail, context: &Context<'_>) -> Result<Decision<User>, Rejection> {
        check_email(&email)?;
        if self.change.is_some() || self.releasing.len() >= RELEASING_MAX {
            return Err(Rejection::Busy);
        }
        if self.email.as_ref().is_some_and(|own| own.hash == email.hash) {
            let updated = Event::Updated { email, claim: self.claim, profile: self.profile.clone() };
            return Ok(Decision::now(vec![updated], Reply::Updated));
        }
        let (command, claim) = (context.command.clone(), self.claims + 1);
        Ok(Decision::later(vec![Event::EmailChangeRequested { command, email, claim }]))
    }

    /// Customer is everybody, and vendor is who has a shop.
    fn change_role(&self, role: Role, if_granted: bool, event: Event) -> Result<Vec<Event>, Rejection> {
        match role {
            Role::Customer | Role::Vendor => Err(Rejection::NotGrantable { role }),
            Role::Admin if self.granted.contains(&role) == if_granted => Ok(vec![event]),
            Role::Admin => Ok(Vec::new()),
        }
    }

    fn attach_shop(&self, shop: String) -> Result<Decision<User>, Rejection> {
        match &self.shop {
            Some(own) if *own == shop => Ok(Decision::now(Vec::new(), Reply::ShopAttached)),
            Some(own) => Err(Rejection::HasShop { shop: own.clone() }),
            None => Ok(Decision::now(vec![Event::ShopAttached { shop }], Reply::ShopAttached)),
        }
    }

    fn open_session(
        &self,
        session: String,
        secret_sha256: String,
        device: Sealed,
        now: Timestamp,
    ) -> Result<Decision<User>, Rejection> {
        check_id("session", ids::SESSION, &session)?;
        check_sha256("secret_sha256", &secret_sha256)?;
        check_sealed("device", &device)?;
        match self.sessions.get(&session) {
            Some(before) if before.secret_sha256 == secret_sha256 => {
                return Ok(Decision::now(Vec::new(), Reply::SessionOpened));
            }
            Some(_) => return Err(Rejection::IdTaken),
            None => {}
        }
        let mut turn = Turn::on(self);
        for (over, _) in self.sessions.iter().filter(|(_, session)| session.expires_at() <= now) {
            turn.emit(Event::SessionEnded { session: over.clone(), because: Ending::Expired });
        }
        if turn.state.sessions.len() >= SESSIONS_MAX {
            let longest_unused = turn.state.sessions.iter().min_by_key(|(_, session)| session.used_at).map(|(id, _)| id.clone());
            if let Some(session) = longest_unused {
                turn.emit(Event::SessionEnded { session, because: Ending::Displaced });
            }
        }
        turn.emit(Event::SessionOpened { session, secret_sha256, device, opened_at: now });
        Ok(turn.now(Reply::SessionOpened))
    }

    /// Any secret but the newest ends the session, known to have been spent or not: with a list of spent ones, a thief would
    /// only have to refresh until the stolen one has dropped off it. Only who was told the session's id can present
    /// one, and could log it out as well.
    fn refresh(
        &self,
        session: String,
        presented_sha256: &str,
        next_sha256: String,
        context: &Context<'_>,
    ) -> Result<Decision<User>, Rejection> {
        check_sha256("next_sha256", &next_sha256)?;
        let newest = &self.session(&session, context.now).ok_or(Rejection::NoSuchSession)?.secret_sha256;
        if newest == presented_sha256 {
            if *newest == next_sha256 {
                return Err(invalid("next_sha256", "must be of another secret"));
            }
            let refreshed = Event::SessionRefreshed { session, secret_sha256: next_sha256, used_at: context.now };
            return Ok(Decision::now(vec![refreshed], Reply::Refreshed));
        }
        // A rejection leaves no record; this one must.
        let ended = Event::SessionEnded { session, because: Ending::Reused };
        Ok(Decision::later(vec![ended]).settle(context.command.clone(), Err(Rejection::Reused)))
    }

    fn end_session(&self, session: String) -> Decision<User> {
        let is_there = self.sessions.contains_key(&session);
        let ended = is_there.then_some(Event::SessionEnded { session, because: Ending::LoggedOut });
        Decision::now(ended.into_iter().collect(), Reply::SessionsEnded)
    }

    fn end_all_sessions(&self, keep: Option<String>) -> Decision<User> {
        let kept = keep.filter(|session| self.sessions.contains_key(session));
        let ended = (self.sessions.len() > usize::from(kept.is_some())).then_some(Event::SessionsEnded { kept });
        Decision::now(ended.into_iter().collect(), Reply::SessionsEnded)
    }

    fn create_api_key(&self, key: String, new: ApiKey) -> Result<Decision<User>, Rejection> {
        check_id("key", ids::API_KEY, &key)?;
        check_sha256("secret_sha256", &new.secret_sha256)?;
        check_sealed("label", &new.label)?;
        check_scopes(&new.scopes)?;
        match self.api_keys.get(&key) {
            Some(before) if before.secret_sha256 == new.secret_sha256 => {
                return Ok(Decision::now(Vec::new(), Reply::ApiKeyCreated));
            }
            Some(_) => return Err(Rejection::IdTaken),
            None if self.api_keys.len() >= API_KEYS_MAX => return Err(Rejection::TooManyApiKeys),
            None => {}
        }
        let ApiKey { secret_sha256, scopes, label, created_at } = new;
        Ok(Decision::now(vec![Event::ApiKeyCreated { key, secret_sha256, scopes, label, created_at }], Reply::ApiKeyCreated))
    }
}

#[cfg(test)]
#[path = "user_tests.rs"]
mod tests;
