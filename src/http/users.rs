//! Accounts: made, looked at, changed and deleted by their holders; found and given roles by admins.
//!
//! What is personal is sealed here, under the account's own key, before it goes anywhere; and opened here, for its holder
//! or an admin. A password is seen here and by whoever hashes it, and nowhere else.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use warp::http::StatusCode;
use warp::http::header::CACHE_CONTROL;

use super::Door;
use super::answer::Answer;
use super::identity::Identity;
use super::identity::passwords::{NEW_CHARS_MAX, NEW_CHARS_MIN, Password, Unfit};
use super::identity::seals::SealError;
use super::problem::{FieldError, Problem};
use super::request::{Query, Request, present};
use crate::actors::credential::sha256_hex;
use crate::actors::permissions::Permission;
use crate::actors::{Answered, Caller, Failure, Runtime, shown};
use crate::domain::email::EmailHash;
use crate::domain::user::{Command, Reply, Role, SCOPES_MAX, Sealed, SealedEmail, State};
use crate::domain::{self, User, ids};
use crate::persistence::Version;
use crate::read_models::{OrderQuery, Whose};

pub(super) const EMAIL_CHARS_MAX: usize = 254;
const NAME_CHARS_MAX: usize = 100;
/// What [`Email::parse`] takes, for those who write addresses elsewhere.
pub(super) const EMAIL_PATTERN: &str = r"^[^\s@\u0000-\u001f\u007f-\u009f]+@[^\s@.\u0000-\u001f\u007f-\u009f]([^\s@\u0000-\u001f\u007f-\u009f]*[^\s@.\u0000-\u001f\u007f-\u009f])?$";
/// What [`check_name`] takes besides the length.
pub(super) const NAME_PATTERN: &str =
    r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$";

/// An e-mail address that could be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email {
    /// As its holder writes it.
    written: String,
    /// The one form under which all its spellings are the same address.
    normal: String,
}

impl Email {
    /// Something before one @, something after it, nothing that is no letter, digit or sign. More can only be known by
    /// writing to it.
    pub fn parse(text: &str) -> Option<Self> {
        let written = text.trim();
        let (local, host) = written.rsplit_once('@')?;
        let printable = !written.chars().any(|char| char.is_control() || char.is_whitespace());
        let sound =
            !local.is_empty() && !host.is_empty() && !local.contains('@') && !host.starts_with('.') && !host.ends_with('.');
        (printable && sound && written.chars().count() <= EMAIL_CHARS_MAX)
            .then(|| Email { written: written.to_owned(), normal: written.to_lowercase() })
    }

    pub fn normal(&self) -> &str {
        &self.normal
    }
}

/// What an account's holder tells about themselves, under its seal.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Profile {
    name: String,
}

/// What it takes to have an account.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    #[schemars(length(max = EMAIL_CHARS_MAX), regex(pattern = EMAIL_PATTERN))]
    pub email: String,
    /// Neither one of the commonest nor the address itself.
    #[schemars(with = "String", length(min = NEW_CHARS_MIN, max = NEW_CHARS_MAX))]
    pub password: Password,
    #[schemars(length(max = NAME_CHARS_MAX), regex(pattern = NAME_PATTERN))]
    pub name: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProfilePatch {
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "String", length(max = NAME_CHARS_MAX), regex(pattern = NAME_PATTERN))]
    name: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PasswordChange")]
pub(super) struct PasswordBody {
    #[schemars(with = "String")]
    current_password: Password,
    #[schemars(with = "String", length(min = NEW_CHARS_MIN, max = NEW_CHARS_MAX))]
    new_password: Password,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "EmailChange")]
pub(super) struct EmailBody {
    #[schemars(with = "String")]
    current_password: Password,
    #[schemars(length(max = EMAIL_CHARS_MAX), regex(pattern = EMAIL_PATTERN))]
    email: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewApiKey")]
pub(super) struct KeyBody {
    #[schemars(length(max = NAME_CHARS_MAX), regex(pattern = NAME_PATTERN))]
    label: String,
    /// What the key may do: names of permissions.
    #[schemars(length(min = 1, max = SCOPES_MAX), extend("items" = { "type": "string", "enum": scope_names() }))]
    scopes: Vec<String>,
}

/// The permissions that a key can have.
fn scope_names() -> Vec<&'static str> {
    Permission::EVERY.iter().filter(|permission| permission.is_for_keys()).map(|permission| permission.name()).collect()
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewRole")]
pub(super) struct RoleBody {
    /// A vendor is who opens a shop, and a customer whoever signs up.
    #[schemars(extend("enum" = ["admin"]))]
    role: String,
}

/// All of a list that is short by its bounds.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "{T}List")]
pub(super) struct Items<T> {
    items: Vec<T>,
    next_cursor: Option<String>,
}

// Sealing -----------------------------------------------------------------------------------------------------------

pub async fn seal(identity: &Identity, user: &str, plain: &[u8]) -> Result<Sealed, SealError> {
    Ok(Sealed(identity.vault.seal(user, plain).await?))
}

/// `None` when the key is gone.
async fn open(door: &Door, user: &str, sealed: &Sealed) -> Result<Option<String>, Problem> {
    let opened = door.identity.vault.open_seal(user, &sealed.0).await?;
    Ok(opened.map(|plain| String::from_utf8_lossy(&plain).into_owned()))
}

async fn seal_email(identity: &Identity, user: &str, email: &Email) -> Result<SealedEmail, SealError> {
    let hash = EmailHash(identity.email_id(email.normal()));
    Ok(SealedEmail { hash, sealed: seal(identity, user, email.written.as_bytes()).await? })
}

async fn seal_profile(identity: &Identity, user: &str, profile: &Profile) -> Result<Sealed, Problem> {
    let plain = serde_json::to_vec(profile).map_err(|error| Problem::internal("a profile cannot be written", &error))?;
    Ok(seal(identity, user, &plain).await?)
}

async fn open_profile(door: &Door, user: &str, sealed: &Sealed) -> Result<Option<Profile>, Problem> {
    let opened = open(door, user, sealed).await?;
    Ok(opened.and_then(|plain| serde_json::from_str(&plain).ok()))
}

// Looking -----------------------------------------------------------------------------------------------------------

/// The account that holds an e-mail address.
pub async fn holder(door: &Door, email_id: &str) -> Result<Option<String>, Problem> {
    let look = |state: &domain::email::State, _| state.holder.as_ref().map(|holder| holder.user.clone());
    Ok(door.runtime.view::<domain::Email, _>(email_id, look).await?)
}

/// The hash of an account's password, and which of its passwords that is.
pub async fn password_of(door: &Door, user: &str) -> Result<Option<(String, u64)>, Problem> {
    let look = |state: &State, _| state.is_active().then(|| (state.password_hash.clone(), state.password_version));
    let Some((sealed, version)) = door.runtime.view::<User, _>(user, look).await? else { return Ok(None) };
    Ok(open(door, user, &sealed).await?.map(|phc| (phc, version)))
}

/// The address of an account, as its holder writes it.
pub async fn email_of(door: &Door, user: &str) -> Result<Option<String>, Problem> {
    let sealed = door.runtime.view::<User, _>(user, |state: &State, _| state.email.clone()).await?;
    match sealed {
        Some(email) => open(door, user, &email.sealed).await,
        None => Ok(None),
    }
}

async fn account(door: &Door, user: &str) -> Result<(State, Version), Problem> {
    let look = |state: &State, version| state.is_active().then(|| (state.clone(), version));
    door.runtime.view::<User, _>(user, look).await?.ok_or_else(Problem::not_found)
}

async fn show(door: &Door, user: &str, status: StatusCode) -> Result<(Answer, Version), Problem> {
    let (state, version) = account(door, user).await?;
    let email = match &state.email {
        Some(email) => open(door, user, &email.sealed).await?.unwrap_or_default(),
        None => String::new(),
    };
    let profile = open_profile(door, user, &state.profile).await?.unwrap_or_default();
    let shown = shown::account(user, &state, &email, &profile.name).ok_or_else(Problem::not_found)?;
    Ok((Answer::json(status, &shown)?.etag(version).with(CACHE_CONTROL, "no-store"), version))
}

async fn changed(door: &Door, user: &str, answered: &Answered<Reply>) -> Result<Answer, Problem> {
    Ok(show(door, user, StatusCode::OK).await?.0.position(answered.position))
}

// Its holder --------------------------------------------------------------------------------------------------------

fn check_name(name: &str, pointer: &str, max: usize) -> Option<FieldError> {
    let sound = !name.trim().is_empty() && name.chars().count() <= max && !name.chars().any(char::is_control);
    (!sound).then(|| FieldError::new(pointer, format!("must have 1 to {max} characters, all of them printable")))
}

/// Makes an account with this id.
pub async fn register(
    runtime: &Runtime,
    identity: &Identity,
    user: &str,
    new: NewAccount,
    caller: Caller,
) -> Result<Answered<Reply>, Problem> {
    let NewAccount { email, password, name } = new;
    let parsed = Email::parse(&email);
    let mut errors = Vec::new();
    if parsed.is_none() {
        errors.push(FieldError::new("/email", "this cannot be an e-mail address"));
    }
    let unfit = password.fits(&email).err();
    if let Some(why @ (Unfit::TooShort | Unfit::TooLong)) = unfit {
        errors.push(FieldError::new("/password", why.to_string()));
    }
    errors.extend(check_name(&name, "/name", NAME_CHARS_MAX));
    let Some(email) = parsed.filter(|_| errors.is_empty()) else { return Err(Problem::bad_fields(errors)) };
    if let Some(why) = unfit {
        return Err(Problem::weak_password("/password", why));
    }

    let phc = identity.passwords.hash(password).await?;
    // Makes the account's key.
    let password_hash = Sealed(identity.vault.seal_first(user, phc.as_bytes()).await?);
    let command = Command::SignUp {
        email: seal_email(identity, user, &email).await?,
        profile: seal_profile(identity, user, &Profile { name }).await?,
        password_hash,
    };
    Ok(runtime.ask::<User>(user, command, caller).await?)
}

pub async fn sign_up(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let new: NewAccount = request.json()?;
    let user = request.new_id(ids::USER);
    let answered = register(&door.runtime, &door.identity, &user, new, request.caller()?).await?;
    let (answer, _) = show(&door, &user, StatusCode::CREATED).await?;
    Ok(answer.location("/api/users/me").personal_to(&user).position(answered.position))
}

pub async fn me(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let (answer, version) = show(&door, &request.account()?.user, StatusCode::OK).await?;
    if request.has_version(version) {
        return Ok(Answer::empty(StatusCode::NOT_MODIFIED).etag(version));
    }
    Ok(answer)
}

pub async fn change(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let user = &*request.account()?.user;
    let ProfilePatch { name } = request.json()?;
    let caller = request.caller()?;
    let Some(name) = name else {
        let (answer, version) = show(&door, user, StatusCode::OK).await?;
        return match caller.if_version {
            Some(wanted) if wanted != version => Err(Failure::VersionDiffers { actual: version }.into()),
            _ => Ok(answer),
        };
    };
    if let Some(error) = check_name(&name, "/name", NAME_CHARS_MAX) {
        return Err(Problem::bad_fields(vec![error]));
    }
    let profile = seal_profile(&door.identity, user, &Profile { name }).await?;
    let answered = door.runtime.ask::<User>(user, Command::ChangeProfile { profile }, caller).await?;
    changed(&door, user, &answered).await
}

/// Everything about the account is forgotten; its orders keep what was bought and paid. While one is on its way its address
/// is still needed, and nobody could read it any more.
pub async fn delete(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let user = &*request.account()?.user;
    if !door.read_models.reached(door.runtime.journal().end().await.map_err(Failure::from)?, door.config.read_model_wait).await {
        return Err(Problem::behind());
    }
    for status in ["pending", "reserved", "paid"] {
        let underway =
            OrderQuery { whose: Whose::Accounts(user.to_owned()), status: Some(status.into()), limit: 1, cursor: None };
        if let Some(order) = door.read_models.orders(underway).await?.items.first() {
            return Err(Problem::orders_underway(&order.id));
        }
    }
    let (state, _) = account(&door, user).await?;
    let answered = door.runtime.ask::<User>(user, Command::Delete, request.caller()?).await?;
    state.sessions.keys().for_each(|session| door.gate.session_ended(session));
    door.gate.forget(user);
    Ok(Answer::empty(StatusCode::NO_CONTENT).position(answered.position))
}

/// Whoever changes what opens the account shows that they hold it, also where somebody left it open. Gives the version of
/// the password that was verified.
async fn verify(door: &Door, request: &Request, user: &str, password: Password) -> Result<u64, Problem> {
    let (state, _) = account(door, user).await?;
    let Some((phc, version)) = password_of(door, user).await? else { return Err(Problem::not_found()) };
    let email = state.email.as_ref().map_or(user, |email| &email.hash.0);
    let attempt = door.identity.guesses.begin(email, request.client, door.now())?;
    match door.identity.passwords.verify(password, &phc).await {
        Ok(true) => {
            door.identity.guesses.succeeded(attempt);
            Ok(version)
        }
        Ok(false) => Err(Problem::wrong_password()),
        Err(error) => {
            door.identity.guesses.undone(attempt);
            Err(error.into())
        }
    }
}

/// Ends every other session.
pub async fn change_password(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let account_now = request.account()?;
    let user = &*account_now.user;
    let PasswordBody { current_password, new_password } = request.json()?;
    let (state, _) = account(&door, user).await?;
    let email = email_of(&door, user).await?;
    match new_password.fits(email.as_deref().unwrap_or_default()) {
        Ok(()) => {}
        Err(why @ (Unfit::TooShort | Unfit::TooLong)) => return Err(Problem::bad_body("/new_password", why.to_string())),
        Err(why) => return Err(Problem::weak_password("/new_password", why)),
    }
    let password_version = verify(&door, &request, user, current_password).await?;
    let phc = door.identity.passwords.hash(new_password).await?;
    let password_hash = seal(&door.identity, user, phc.as_bytes()).await?;
    let keep = account_now.session.clone();
    let command = Command::ChangePassword { password_hash, password_version, keep: keep.clone() };
    let answered = door.runtime.ask::<User>(user, command, request.caller()?).await?;
    for session in state.sessions.keys().filter(|session| Some(*session) != keep.as_ref()) {
        door.gate.session_ended(session);
    }
    Ok(Answer::empty(StatusCode::NO_CONTENT).position(answered.position))
}

pub async fn change_email(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let user = &*request.account()?.user;
    let EmailBody { current_password, email } = request.json()?;
    let Some(email) = Email::parse(&email) else {
        return Err(Problem::bad_body("/email", "this cannot be an e-mail address"));
    };
    verify(&door, &request, user, current_password).await?;
    let command = Command::ChangeEmail { email: seal_email(&door.identity, user, &email).await? };
    let answered = door.runtime.ask::<User>(user, command, request.caller()?).await?;
    changed(&door, user, &answered).await
}

// Sessions and keys -------------------------------------------------------------------------------------------------

pub async fn sessions(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let account_now = request.account()?;
    let (state, version) = account(&door, &account_now.user).await?;
    let mut opened = Vec::new();
    for (id, session) in state.sessions_at(door.now()) {
        opened.push((id, session, open(&door, &account_now.user, &session.device).await?.unwrap_or_default()));
    }
    let is_current = |id: &String| account_now.session.as_ref() == Some(id);
    let mut items: Vec<_> =
        opened.iter().map(|(id, session, device)| shown::session(id, session, device, is_current(id))).collect();
    items.sort_by_key(|session| std::cmp::Reverse(session.used_at));
    Ok(Answer::json(StatusCode::OK, &Items { items, next_cursor: None })?.etag(version).with(CACHE_CONTROL, "no-store"))
}

pub async fn end(door: &Door, request: &Request, session: String) -> Result<Answer, Problem> {
    let user = &*request.account()?.user;
    let command = Command::EndSession { session: session.clone() };
    let answered = door.runtime.ask::<User>(user, command, request.caller()?).await?;
    door.gate.session_ended(&session);
    Ok(Answer::empty(StatusCode::NO_CONTENT).position(answered.position))
}

pub async fn end_session(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let session = request.id_param(0, ids::SESSION)?.to_owned();
    let (state, _) = account(&door, &request.account()?.user).await?;
    if state.session(&session, door.now()).is_none() {
        return Err(Problem::not_found());
    }
    end(&door, &request, session).await
}

/// Logs out everywhere, here too.
pub async fn end_sessions(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let user = &*request.account()?.user;
    let (state, _) = account(&door, user).await?;
    let answered = door.runtime.ask::<User>(user, Command::EndAllSessions { keep: None }, request.caller()?).await?;
    state.sessions.keys().for_each(|session| door.gate.session_ended(session));
    Ok(Answer::empty(StatusCode::NO_CONTENT).position(answered.position))
}

pub async fn keys(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let user = &*request.account()?.user;
    let (state, version) = account(&door, user).await?;
    let mut opened = Vec::new();
    for (id, key) in &state.api_keys {
        opened.push((id, key, open(&door, user, &key.label).await?.unwrap_or_default()));
    }
    let items: Vec<_> = opened.iter().map(|(id, key, label)| shown::api_key(id, key, label)).collect();
    Ok(Answer::json(StatusCode::OK, &Items { items, next_cursor: None })?.etag(version).with(CACHE_CONTROL, "no-store"))
}

/// The parts of an API key: whose and which.
pub struct ApiKey<'a> {
    pub user: &'a str,
    pub id: &'a str,
}

pub const KEY_PREFIX: &str = "sk_";

impl<'a> ApiKey<'a> {
    pub fn parse(key: &'a str) -> Option<Self> {
        let (user, rest) = key.strip_prefix(KEY_PREFIX)?.split_once('.')?;
        let (id, secret) = rest.split_once('.')?;
        let sound = ids::is_id(ids::USER, user) && ids::is_id(ids::API_KEY, id) && ids::is_sha256(secret);
        sound.then_some(ApiKey { user, id })
    }
}

pub async fn make_key(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let user = &*request.account()?.user;
    let KeyBody { label, scopes } = request.json()?;
    let mut errors: Vec<FieldError> = check_name(&label, "/label", NAME_CHARS_MAX).into_iter().collect();
    if scopes.is_empty() {
        errors.push(FieldError::new("/scopes", "name at least one"));
    }
    for (index, scope) in scopes.iter().enumerate() {
        if !Permission::parse(scope).is_some_and(Permission::is_for_keys) {
            errors.push(FieldError::new(format!("/scopes/{index}"), format!("expected one of {}", scope_names().join(", "))));
            break;
        }
    }
    if !errors.is_empty() {
        return Err(Problem::bad_fields(errors));
    }
    let id = request.new_id(ids::API_KEY);
    let key = format!("{KEY_PREFIX}{user}.{id}.{}", request.new_secret(&door, "api key")?);
    let command = Command::CreateApiKey {
        key: id.clone(),
        secret_sha256: sha256_hex(key.as_bytes()),
        scopes: scopes.into_iter().collect(),
        label: seal(&door.identity, user, label.as_bytes()).await?,
    };
    let answered = door.runtime.ask::<User>(user, command, request.caller()?).await?;
    let (state, _) = account(&door, user).await?;
    let made = state.api_keys.get(&id).ok_or_else(Problem::not_found)?;
    let mut shown = shown::api_key(&id, made, &label);
    shown.key = Some(&key);
    Ok(Answer::json(StatusCode::CREATED, &shown)?.with(CACHE_CONTROL, "no-store").position(answered.position))
}

pub async fn revoke_key(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let (user, id) = (&request.account()?.user, request.id_param(0, ids::API_KEY)?);
    if !account(&door, user).await?.0.api_keys.contains_key(id) {
        return Err(Problem::not_found());
    }
    let answered = door.runtime.ask::<User>(user, Command::RevokeApiKey { key: id.to_owned() }, request.caller()?).await?;
    door.gate.forget(user);
    Ok(Answer::empty(StatusCode::NO_CONTENT).position(answered.position))
}

// Admins ------------------------------------------------------------------------------------------------------------

/// The account of an e-mail address.
pub async fn find(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let query = Query::parse(&request.query, &["email"])?;
    let Some(email) = query.get("email").and_then(Email::parse) else {
        return Err(Problem::bad_parameter("email", "expected an e-mail address"));
    };
    let hash = door.identity.email_id(email.normal());
    let user = holder(&door, &hash).await?.ok_or_else(Problem::not_found)?;
    Ok(show(&door, &user, StatusCode::OK).await?.0)
}

pub async fn get(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let user = request.id_param(0, ids::USER)?;
    let (answer, version) = show(&door, user, StatusCode::OK).await?;
    if request.has_version(version) {
        return Ok(Answer::empty(StatusCode::NOT_MODIFIED).etag(version));
    }
    Ok(answer)
}

fn grantable(role: &str) -> Option<Role> {
    (role == Role::Admin.name()).then_some(Role::Admin)
}

pub async fn grant_role(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let user = request.id_param(0, ids::USER)?;
    let RoleBody { role } = request.json()?;
    let Some(role) = grantable(&role) else {
        return Err(Problem::bad_body("/role", "expected admin: a vendor is who opens a shop, a customer who signs up"));
    };
    let answered = door.runtime.ask::<User>(user, Command::GrantRole { role }, request.caller()?).await?;
    door.gate.forget(user);
    changed(&door, user, &answered).await
}

pub async fn revoke_role(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let user = request.id_param(0, ids::USER)?;
    let Some(role) = grantable(request.param(1)) else { return Err(Problem::not_found()) };
    let (state, _) = account(&door, user).await?;
    let answered = door.runtime.ask::<User>(user, Command::RevokeRole { role }, request.caller()?).await?;
    state.sessions.keys().for_each(|session| door.gate.session_ended(session));
    door.gate.forget(user);
    Ok(Answer::empty(StatusCode::NO_CONTENT).position(answered.position))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_same_however_it_is_spelt() {
        let parse = |text| Email::parse(text).map(|email| email.normal);
        for text in ["Ada@Souk.test", " ada@souk.test ", "ADA@SOUK.TEST"] {
            assert_eq!(parse(text).as_deref(), Some("ada@souk.test"), "{text}");
        }
        let long = format!("{}@souk.test", "a".repeat(250));
        for text in
            ["", "ada", "@souk.test", "ada@", "a@b@c", "ada@.test", "ada@test.", "a da@souk.test", "ada@so\nuk.test", &long]
        {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(parse("ü.ö+shop@bücher.test").as_deref(), Some("ü.ö+shop@bücher.test"));
    }

    #[test]
    fn an_api_key_names_its_account_and_itself() {
        let key = format!("sk_usr_01ARZ3NDEKTSV4RRFFQ69G5FAV.key_01ARZ3NDEKTSV4RRFFQ69G5FAV.{}", "0a".repeat(32));
        let parsed = ApiKey::parse(&key).unwrap();
        assert_eq!((parsed.user, parsed.id), ("usr_01ARZ3NDEKTSV4RRFFQ69G5FAV", "key_01ARZ3NDEKTSV4RRFFQ69G5FAV"));
        for wrong in ["", "sk_", "sk_..", &key[1..], &key[..key.len() - 1], &key.replace("usr", "ord")] {
            assert!(ApiKey::parse(wrong).is_none(), "{wrong}");
        }
    }
}
