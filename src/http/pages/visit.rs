//! Who a browser is: what it brings along in cookies, and what it is to bring along from now on.
//!
//! A browser bears an access token, and the refresh token by which it gets the next one, or as a guest a token of its own. All
//! are out of reach of scripts ([`session`] hands the one that counts to the pages' own) and are sent to this site alone. The API
//! itself never looks at a cookie: only pages do, and whatever a page changes takes a form that was made for this browser.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use warp::http::StatusCode;
use warp::http::header::{CACHE_CONTROL, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY, SET_COOKIE};

use super::super::answer::Answer;
use super::super::problem::Problem;
use super::super::request::{Request, decode, random_hex};
use super::super::{Door, auth};
use super::api::{Api, Refused};
use crate::actors::credential::{Account, Credential, same, sha256_hex};
use crate::actors::permissions::Rank;
use crate::domain::ids;

const ACCESS: &str = "souk_access";
const REFRESH: &str = "souk_refresh";
const GUEST: &str = "souk_guest";
const CART: &str = "souk_cart";
/// What is told on the next page, once.
const NOTE: &str = "souk_note";
/// As long as a session lasts that nobody uses.
const KEPT_SECONDS: i64 = 30 * 24 * 60 * 60;
const NOTE_SECONDS: i64 = 30;
const NOTE_BYTES_MAX: usize = 500;
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// What scripts of other sites cannot send along.
const SOUK_PAGE: HeaderName = HeaderName::from_static("souk-page");

/// A browser, as it is known by its cookies.
pub struct Visit {
    access: Option<String>,
    refresh: Option<String>,
    guest: Option<String>,
    cart: Option<String>,
    note: Option<String>,
    account: Option<Arc<Account>>,
    set: Vec<String>,
    secure: bool,
}

#[derive(Deserialize)]
struct LoggedIn {
    access_token: String,
    refresh_token: String,
    expires_in: i64,
    #[serde(default)]
    cart_id: Option<String>,
}

impl Visit {
    /// A browser of which nothing is known.
    pub fn nobody() -> Visit {
        let (access, refresh, guest, cart, note) = (None, None, None, None, None);
        Visit { access, refresh, guest, cart, note, account: None, set: Vec::new(), secure: false }
    }

    /// Recognises the browser. Where only its refresh token is left, it gets new ones.
    pub async fn of(door: &Arc<Door>, request: &Request) -> Result<Visit, Problem> {
        let cookie = |name: &str| cookie(&request.headers, name).map(str::to_owned);
        let mut visit = Visit {
            access: cookie(ACCESS),
            refresh: cookie(REFRESH),
            guest: cookie(GUEST),
            cart: cookie(CART).filter(|cart| ids::is_id(ids::CART, cart)),
            note: cookie(NOTE).and_then(|note| Some(decode(&note, true)?.into_owned())),
            account: None,
            set: Vec::new(),
            secure: request.secure,
        };
        visit.account = visit.recognised(door).await?;
        if visit.account.is_none() && visit.refresh.is_some() {
            visit.renew(door, request).await?;
        }
        if visit.note.is_some() {
            visit.forget(NOTE);
        }
        Ok(visit)
    }

    async fn recognised(&self, door: &Door) -> Result<Option<Arc<Account>>, Problem> {
        let Some(access) = &self.access else { return Ok(None) };
        match auth::recognise(door, Some(access)).await {
            Ok(Credential::Account(account)) => Ok(Some(account)),
            Ok(Credential::Bearer { .. } | Credential::Nobody) => Ok(None),
            // It ran out, or its session was ended.
            Err(problem) if problem.status() == StatusCode::UNAUTHORIZED => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    /// All pages of a browser that come at once renew under one key, and get the same tokens.
    async fn renew(&mut self, door: &Arc<Door>, request: &Request) -> Result<(), Problem> {
        let Some(refresh) = self.refresh.take() else { return Ok(()) };
        let api = Api { door, request, token: None };
        let key = format!("renew-{}", sha256_hex(refresh.as_bytes()));
        match api.post::<LoggedIn>("/api/sessions/refresh", &key, &json!({ "refresh_token": refresh })).await {
            Ok(granted) => {
                self.keep(granted.content);
                self.account = self.recognised(door).await?;
            }
            Err(refused) if refused.status == 401 => self.log_out(),
            // Not now: the page is then a guest's, and the next one tries again.
            Err(_) => self.refresh = Some(refresh),
        }
        Ok(())
    }

    fn keep(&mut self, tokens: LoggedIn) {
        self.set(ACCESS, &tokens.access_token, tokens.expires_in);
        self.set(REFRESH, &tokens.refresh_token, KEPT_SECONDS);
        (self.access, self.refresh) = (Some(tokens.access_token), Some(tokens.refresh_token));
        if let Some(cart) = tokens.cart_id {
            self.keep_cart(&cart);
        }
    }

    /// Logs in with what a form says, and takes the guest's cart along.
    pub async fn log_in(
        &mut self,
        door: &Arc<Door>,
        request: &Request,
        key: &str,
        email: &str,
        password: &str,
    ) -> Result<(), Refused> {
        let mut body = json!({ "email": email, "password": password });
        if let (Some(cart), Some(guest)) = (&self.cart, &self.guest) {
            body["cart"] = json!({ "id": cart, "token": guest });
        }
        let api = Api { door, request, token: None };
        let granted = api.post::<LoggedIn>("/api/sessions", key, &body).await?;
        self.forget(CART);
        self.cart = None;
        self.keep(granted.content);
        Ok(())
    }

    /// What was the account's is forgotten; the API is told by the caller.
    pub fn log_out(&mut self) {
        (self.access, self.refresh, self.cart, self.account) = (None, None, None, None);
        [ACCESS, REFRESH, CART].into_iter().for_each(|name| self.forget(name));
    }

    pub fn account(&self) -> Option<&Account> {
        self.account.as_deref()
    }

    pub fn is(&self, rank: Rank) -> bool {
        self.account().is_some_and(|account| account.ranks.contains(&rank))
    }

    /// What this browser shows the API.
    pub fn token(&self) -> Option<&str> {
        match self.account {
            Some(_) => self.access.as_deref(),
            None => self.guest.as_deref(),
        }
    }

    /// The same; whoever had none is a guest from now on.
    pub fn own_token(&mut self) -> Result<&str, Problem> {
        if self.account.is_none() && self.guest.is_none() {
            let guest = random_hex()?;
            self.set(GUEST, &guest, KEPT_SECONDS);
            self.guest = Some(guest);
        }
        Ok(self.token().unwrap_or_default())
    }

    pub fn cart(&self) -> Option<&str> {
        self.cart.as_deref()
    }

    pub fn keep_cart(&mut self, cart: &str) {
        self.set(CART, cart, KEPT_SECONDS);
        self.cart = Some(cart.to_owned());
    }

    pub fn forget_cart(&mut self) {
        self.forget(CART);
        self.cart = None;
    }

    /// Says something at the top of the next page.
    pub fn say(&mut self, note: &str) {
        let short: String = note.chars().take(NOTE_BYTES_MAX / 4).collect();
        let encoded: String = crate::integrations::http_client::percent_encoded(&short);
        self.set(NOTE, &encoded, NOTE_SECONDS);
    }

    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    fn set(&mut self, name: &str, value: &str, seconds: i64) {
        let secure = if self.secure { "; Secure" } else { "" };
        let start = format!("{name}=");
        self.set.retain(|set| !set.starts_with(&start));
        self.set.push(format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"));
    }

    fn forget(&mut self, name: &str) {
        self.set(name, "", 0);
    }

    /// The answer, with the cookies that the browser is to keep.
    pub fn dress(&self, mut answer: Answer) -> Answer {
        for cookie in &self.set {
            if let Ok(cookie) = HeaderValue::from_str(cookie) {
                answer.headers.append(SET_COOKIE, cookie);
            }
        }
        // Without a referrer browsers would not say of a form where it comes from.
        answer.with(CACHE_CONTROL, "no-store").with(REFERRER_POLICY, "same-origin")
    }

    // Forms -----------------------------------------------------------------------------------------------------------------

    /// What forms for this browser bear: nobody else can make it, nor read it.
    pub fn form_token(&mut self, door: &Door) -> Result<String, Problem> {
        self.own_token()?;
        Ok(self.expected(door))
    }

    fn expected(&self, door: &Door) -> String {
        // Of a session and not of its newest token: a form outlives that.
        let session = self.account().and_then(|account| account.session.clone());
        let bound_to = session.or_else(|| self.guest.clone()).unwrap_or_default();
        door.identity.secret.derive(&[b"form of a page", bound_to.as_bytes()])
    }

    /// Whether this form was made for this browser by a page of ours.
    pub fn accepts(&self, door: &Door, headers: &HeaderMap, form_token: &str) -> bool {
        let is_known = self.account.is_some() || self.guest.is_some();
        is_known && is_same_site(headers) && same(self.expected(door).as_bytes(), form_token.as_bytes())
    }
}

/// Browsers say where a request comes from; those that do not say it are told by the form's token alone.
fn is_same_site(headers: &HeaderMap) -> bool {
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    let is_site = site.is_none_or(|site| matches!(site, b"same-origin" | b"none"));
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let is_origin = match (text(ORIGIN), text(HOST)) {
        (Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, authority)| authority == host),
        (Some(_), None) => false,
        (None, _) => true,
    };
    is_site && is_origin
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(given, value)| *given == name && !value.is_empty()).map(|(_, value)| value)
}

/// `GET /session`: what the pages' own scripts show the API. Asked for again when the API does not know it any more.
pub async fn session(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    #[derive(Serialize)]
    struct Session<'a> {
        token: Option<&'a str>,
        is_account: bool,
    }
    if !request.headers.contains_key(SOUK_PAGE) || !is_same_site(&request.headers) {
        return Err(Problem::not_found());
    }
    let visit = Visit::of(&door, &request).await?;
    let session = Session { token: visit.token(), is_account: visit.account().is_some() };
    Ok(visit.dress(Answer::json(StatusCode::OK, &session)?))
}

/// The fields of a form.
pub struct Form(Vec<(String, String)>);

impl Form {
    pub fn parse(body: &[u8]) -> Result<Form, Problem> {
        let text = std::str::from_utf8(body).map_err(|_| Problem::bad_json(1, 1, "a form is text".into()))?;
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name, true)?.into_owned(), decode(value, true)?.into_owned()))
        });
        let pairs: Option<Vec<_>> = pairs.collect();
        pairs.map(Form).ok_or_else(|| Problem::bad_json(1, 1, "not percent-encoded UTF-8".into()))
    }

    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(given, _)| given == name).map_or("", |(_, value)| value.trim())
    }

    /// As it was given: blanks at either end of a password count.
    pub fn secret(&self, name: &str) -> &str {
        self.0.iter().find(|(given, _)| given == name).map_or("", |(_, value)| value)
    }

    pub fn number(&self, name: &str) -> Value {
        self.get(name).parse::<i64>().map_or_else(|_| self.get(name).into(), Value::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn a_form_is_taken_from_a_page_of_ours_only() {
        for (given, expected) in [
            (vec![], true),
            (vec![("sec-fetch-site", "same-origin")], true),
            (vec![("sec-fetch-site", "none")], true),
            (vec![("sec-fetch-site", "same-site")], false),
            (vec![("sec-fetch-site", "cross-site")], false),
            (vec![("origin", "https://shop.example"), ("host", "shop.example")], true),
            (vec![("origin", "http://127.0.0.1:8080"), ("host", "127.0.0.1:8080")], true),
            (vec![("origin", "https://evil.example"), ("host", "shop.example")], false),
            (vec![("origin", "null"), ("host", "shop.example")], false),
            (vec![("origin", "https://shop.example")], false),
        ] {
            assert_eq!(is_same_site(&headers(&given)), expected, "{given:?}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let given = headers(&[("cookie", "a=1; souk_guest=abc; b=; souk_guest=second")]);
        assert_eq!((cookie(&given, "souk_guest"), cookie(&given, "a"), cookie(&given, "b")), (Some("abc"), Some("1"), None));
        assert_eq!(cookie(&given, "souk"), None);
    }

    #[test]
    fn no_form_and_no_cookie_breaks_its_reader() {
        let good = vec![b"sku=red%20shirt&q=a+b&empty=&n=3".to_vec(), b"souk_access=x; souk_note=a%20b".to_vec()];
        crate::hostile::feed("forms", good, |bytes| {
            if let Ok(form) = Form::parse(bytes) {
                assert!(form.get("q").len() <= bytes.len() && form.secret("q").len() <= bytes.len());
            }
            if let Ok(line) = HeaderValue::from_bytes(bytes) {
                let headers = HeaderMap::from_iter([(COOKIE, line)]);
                assert!(
                    [NOTE, CART, ""].iter().all(|name| cookie(&headers, name).is_none_or(|value| value.len() <= bytes.len()))
                );
            }
        });
    }

    #[test]
    fn a_form_is_read_as_browsers_write_it() {
        let form = Form::parse(b"sku=red%20shirt&q=a+b&empty=&n=3&q=again&password=+x+").unwrap();
        assert_eq!((form.get("sku"), form.get("q"), form.get("empty"), form.get("none")), ("red shirt", "a b", "", ""));
        assert_eq!((form.number("n"), form.number("sku")), (json!(3), json!("red shirt")));
        assert_eq!((form.get("password"), form.secret("password")), ("x", " x "));
        assert!(Form::parse(b"a=%zz").is_err() && Form::parse(b"\xff").is_err());
    }
}
