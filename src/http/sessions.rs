//! Logging in, renewing and logging out.
//!
//! An unknown e-mail address and a wrong password must be told apart by nobody, neither by the answer nor by its time.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use warp::http::StatusCode;
use warp::http::header::{CACHE_CONTROL, USER_AGENT};

use super::answer::Answer;
use super::identity::passwords::Password;
use super::identity::secret::Secret;
use super::identity::tokens::{LIFETIME_MS, Subject};
use super::problem::Problem;
use super::request::{Request, object_or_null};
use super::users::{self, Email};
use super::{Door, auth, carts};
use crate::actors::credential::{Credential, same, sha256_hex};
use crate::actors::{AskError, Caller};
use crate::domain::time::SECOND_MS;
use crate::domain::user::{Command, Rejection, State};
use crate::domain::{CommandId, User, ids};

/// What of a User-Agent is kept for the holder of the account to recognise it by.
const DEVICE_CHARS_MAX: usize = 200;
/// How long a JWK set may be kept: less than the time for which a new key is shown before it signs.
const JWKS_KEPT: &str = "public, max-age=300";

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "LogIn")]
pub(super) struct LogInBody {
    email: String,
    #[schemars(with = "String")]
    password: Password,
    /// A guest's cart, which is merged into the account's.
    #[serde(default, deserialize_with = "object_or_null")]
    cart: Option<GuestCart>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GuestCart {
    #[schemars(regex(pattern = ids::CART_PATTERN))]
    id: String,
    token: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Refresh")]
pub(super) struct RefreshBody {
    refresh_token: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct LoggedIn<'a> {
    access_token: &'a str,
    refresh_token: &'a str,
    token_type: &'static str,
    /// Seconds.
    expires_in: i64,
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cart_id: Option<&'a str>,
}

/// A refresh token: `rt_ACCOUNT.SESSION.SECRET.MAC`. The MAC shows that it was given out here: any secret but the newest ends
/// its session, which must take a token that once was one, and not just the session's id.
#[derive(Debug, PartialEq)]
struct RefreshToken<'a> {
    user: &'a str,
    session: &'a str,
}

const REFRESH_PREFIX: &str = "rt_";

impl<'a> RefreshToken<'a> {
    fn parse(secret: &Secret, token: &'a str) -> Option<Self> {
        let (told, mac) = token.rsplit_once('.')?;
        let mut parts = told.strip_prefix(REFRESH_PREFIX)?.split('.');
        let (user, session) = (parts.next()?, parts.next()?);
        let sound = ids::is_id(ids::USER, user) && ids::is_id(ids::SESSION, session);
        (sound && same(Self::mac(secret, told).as_bytes(), mac.as_bytes())).then_some(RefreshToken { user, session })
    }

    fn write(secret: &Secret, user: &str, session: &str, own_secret: &str) -> String {
        let told = format!("{REFRESH_PREFIX}{user}.{session}.{own_secret}");
        let mac = Self::mac(secret, &told);
        format!("{told}.{mac}")
    }

    fn mac(secret: &Secret, told: &str) -> String {
        secret.derive(&[b"refresh token", told.as_bytes()])
    }
}

/// The account with this address and password, and which of its passwords that was.
async fn verify(door: &Door, email_id: Option<&str>, password: Password) -> Result<Option<(String, u64)>, Problem> {
    let user = match email_id {
        Some(email_id) => users::holder(door, email_id).await?,
        None => None,
    };
    let account = match &user {
        Some(user) => users::password_of(door, user).await?,
        None => None,
    };
    let (Some(user), Some((phc, version))) = (user, account) else {
        door.identity.passwords.verify_nobody(password).await?;
        return Ok(None);
    };
    Ok(door.identity.passwords.verify(password, &phc).await?.then_some((user, version)))
}

pub async fn log_in(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let body: LogInBody = request.json()?;
    if body.cart.as_ref().is_some_and(|cart| !ids::is_id(ids::CART, &cart.id)) {
        return Err(Problem::bad_body("/cart/id", "this is not the id of a cart"));
    }
    let email = Email::parse(&body.email);
    // Whatever cannot be an address is nobody's, and takes as long.
    let hash = door.identity.email_id(email.as_ref().map_or("", Email::normal));
    let attempt = door.identity.guesses.begin(&hash, request.client, door.now())?;
    let verified = match verify(&door, email.is_some().then_some(&*hash), body.password).await {
        Ok(verified) => verified,
        Err(problem) => {
            door.identity.guesses.undone(attempt);
            return Err(problem);
        }
    };
    let Some((user, password_version)) = verified else { return Err(Problem::wrong_credentials()) };
    door.identity.guesses.succeeded(attempt);

    let session = request.new_id(ids::SESSION);
    let secret = request.new_secret(&door, "refresh")?;
    let refresh_token = RefreshToken::write(&door.identity.secret, &user, &session, &secret);
    let device = request.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or("unknown");
    let device: String = device.chars().take(DEVICE_CHARS_MAX).collect();
    let command = Command::OpenSession {
        session: session.clone(),
        secret_sha256: sha256_hex(refresh_token.as_bytes()),
        device: users::seal(&door.identity, &user, device.as_bytes()).await?,
        password_version,
    };
    let caller = Caller::new(CommandId(request.seed.id.clone()), user.as_str(), Arc::clone(&request.correlation));
    let answered = match door.runtime.ask::<User>(&user, command, caller).await {
        Ok(answered) => answered,
        // Deleted, or its password changed, while it was being verified.
        Err(AskError::Rejected(Rejection::Unknown | Rejection::Deleted | Rejection::PasswordChanged)) => {
            return Err(Problem::wrong_credentials());
        }
        Err(error) => return Err(error.into()),
    };
    let cart_id = match body.cart {
        Some(cart) => take_cart(&door, &request, &user, cart).await?,
        None => None,
    };
    let answer = logged_in(&door, StatusCode::CREATED, &user, &session, &refresh_token, cart_id.as_deref()).await?;
    Ok(answer.position(answered.position))
}

/// The account's cart, with what was in the guest's. A cart that cannot be merged (any more) does not stop a log-in.
async fn take_cart(door: &Door, request: &Request, user: &str, cart: GuestCart) -> Result<Option<String>, Problem> {
    let guest = Credential::guest(&cart.token);
    if !auth::owns_cart(door, &cart.id, &guest).await? {
        return Ok(None);
    }
    carts::take_over(door, request, user, &cart.id).await.map(Some)
}

pub async fn refresh(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let RefreshBody { refresh_token } = request.json()?;
    let Some(RefreshToken { user, session }) = RefreshToken::parse(&door.identity.secret, &refresh_token) else {
        return Err(Problem::invalid_token("this is no refresh token"));
    };
    let next = RefreshToken::write(&door.identity.secret, user, session, &request.new_secret(&door, "refresh")?);
    let command = Command::Refresh {
        session: session.to_owned(),
        presented_sha256: sha256_hex(refresh_token.as_bytes()),
        next_sha256: sha256_hex(next.as_bytes()),
    };
    let caller = Caller::new(CommandId(request.seed.id.clone()), user, Arc::clone(&request.correlation));
    match door.runtime.ask::<User>(user, command, caller).await {
        Ok(answered) => Ok(logged_in(&door, StatusCode::OK, user, session, &next, None).await?.position(answered.position)),
        Err(AskError::Rejected(Rejection::Reused)) => {
            door.gate.session_ended(session);
            tracing::warn!(user, session, "a spent refresh token was shown: the session was ended");
            Err(Problem::invalid_token("this refresh token was used before, so its session was ended: log in again"))
        }
        Err(AskError::Rejected(Rejection::NoSuchSession | Rejection::Unknown | Rejection::Deleted)) => {
            Err(Problem::invalid_token("this session has ended: log in again"))
        }
        Err(error) => Err(error.into()),
    }
}

async fn logged_in(
    door: &Door,
    status: StatusCode,
    user: &str,
    session: &str,
    refresh_token: &str,
    cart_id: Option<&str>,
) -> Result<Answer, Problem> {
    let of = |state: &State, _| (state.roles().iter().map(|role| role.name().to_owned()).collect(), state.shop.clone());
    let (roles, shop) = door.runtime.view::<User, _>(user, of).await?;
    let subject = Subject { user: user.to_owned(), session: session.to_owned(), roles, shop };
    let signed =
        door.identity.tokens.sign(&subject, door.now()).map_err(|error| Problem::internal("a token cannot be signed", &error))?;
    let body = LoggedIn {
        access_token: &signed.token,
        refresh_token,
        token_type: "Bearer",
        expires_in: LIFETIME_MS / SECOND_MS,
        user_id: user,
        cart_id,
    };
    Ok(Answer::json(status, &body)?.with(CACHE_CONTROL, "no-store"))
}

/// Ends the session that the request came by.
pub async fn log_out(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let account = request.account()?;
    let Some(session) = account.session.clone() else { return Err(Problem::not_found()) };
    users::end(&door, &request, session).await
}

/// The public halves of the keys that access tokens are signed with.
pub async fn jwks(door: Arc<Door>, _: Request) -> Result<Answer, Problem> {
    let now = door.now();
    Ok(Answer::json(StatusCode::OK, &door.identity.tokens.keys().current(now).to_jwks(now))?.with(CACHE_CONTROL, JWKS_KEPT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::identity::keys::Keys;
    use crate::http::identity::tokens::Tokens;

    #[test]
    fn a_refresh_token_names_its_account_and_its_session_and_cannot_be_made_up() {
        let (user, session) = ("usr_01ARZ3NDEKTSV4RRFFQ69G5FAV", "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV");
        let (secret, other) = (Secret::new(&[7; 32]), Secret::new(&[8; 32]));
        let token = RefreshToken::write(&secret, user, session, &"0a".repeat(32));
        assert_eq!(RefreshToken::parse(&secret, &token), Some(RefreshToken { user, session }));
        assert_eq!(RefreshToken::parse(&other, &token), None);
        for wrong in ["", "rt_", "rt_...", "rt_a.b.c.d", &token[3..], &token[..token.len() - 1], &token.replace(".0a", ".0b")] {
            assert_eq!(RefreshToken::parse(&secret, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn no_token_breaks_who_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let now = crate::domain::Timestamp::from_millis(1_800_000_000_000);
        let tokens = Tokens::new(Arc::new(Keys::open(folder.path(), now).unwrap()), "souk", "souk");
        let (user, session) = ("usr_01ARZ3NDEKTSV4RRFFQ69G5FAV", "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV");
        let subject = Subject { user: user.into(), session: session.into(), roles: Vec::new(), shop: None };
        let access = tokens.sign(&subject, now).unwrap().token;
        let secret = Secret::new(&[7; 32]);
        let refresh = RefreshToken::write(&secret, user, session, &"0a".repeat(32));
        let key = format!("sk_{user}.key_01ARZ3NDEKTSV4RRFFQ69G5FAV.{}", "0a".repeat(32));
        let good = [access.clone(), refresh.clone(), key].map(String::into_bytes).to_vec();
        crate::hostile::feed("tokens", good, move |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            // What was changed in any way opens nothing.
            assert_eq!(tokens.verify(text, now).is_ok(), text == access);
            assert_eq!(RefreshToken::parse(&secret, text).is_some(), text == refresh);
            let _ = users::ApiKey::parse(text);
        });
    }
}
