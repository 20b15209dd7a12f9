//! What browsers are told besides the answer: whether pages of other origins may read it, and what it may do to its reader.
//!
//! Nothing here guards the API itself, which looks at tokens and never at cookies: a browser sends nothing by itself that
//! opens anything. So other origins are refused unless an operator names them, and `Access-Control-Allow-Credentials` is
//! never said. A WebSocket is outside of all this, and needs its token like every other request.

use std::str::FromStr;

use warp::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ALLOW, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue,
    ORIGIN, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use warp::http::{Method, StatusCode};

use super::answer::Answer;

/// What a page may send beyond what browsers always let it.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, idempotency-key, if-match, if-none-match, last-event-id, souk-at-least, traceparent, \
     x-request-id",
);
/// What a page may read beyond what browsers always let it.
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static(
    "etag, idempotency-replayed, location, ratelimit-limit, ratelimit-remaining, ratelimit-reset, retry-after, souk-position, \
     www-authenticate, x-request-id",
);
/// How long a browser may remember a preflight. Browsers have limits of their own, two hours at most.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("7200");
/// A year, as preload lists ask for.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
/// A live connection has its token in the query.
const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");
/// A page has all it needs from here. One that needs something else says so itself.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
);
const VARY_ORIGIN: HeaderValue = HeaderValue::from_static("origin");

/// An origin as browsers send it: `https://shop.example`, a port only if it is not the scheme's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

#[derive(Debug, thiserror::Error)]
#[error(
    "expected an origin as browsers send it, without a path, in lower case, the port only if it is unusual: https://shop.example"
)]
pub struct NotAnOrigin;

impl FromStr for Origin {
    type Err = NotAnOrigin;

    fn from_str(text: &str) -> Result<Self, NotAnOrigin> {
        let (host, usual_port) = match text.split_once("://") {
            Some(("https", host)) => (host, ":443"),
            Some(("http", host)) => (host, ":80"),
            _ => return Err(NotAnOrigin),
        };
        let (name, port) = match host.rsplit_once(':').filter(|_| !host.ends_with(']')) {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        };
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let named = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
                !name.is_empty() && name.bytes().all(known)
            }
        };
        let numbered = port.is_none_or(|port| !port.starts_with(['0', '+']) && port.parse::<u16>().is_ok());
        if !named || !numbered || host.ends_with(usual_port) {
            return Err(NotAnOrigin);
        }
        HeaderValue::from_str(text).map(Origin).map_err(|_| NotAnOrigin)
    }
}

/// What of a request decides what its answer tells a browser.
pub struct Asked {
    /// The origin of the page that asks, if it is one of those that may.
    origin: Option<HeaderValue>,
    preflight: bool,
    secure: bool,
}

impl Asked {
    pub fn of(origins: &[Origin], method: &Method, headers: &HeaderMap, secure: bool) -> Self {
        let mut given = headers.get_all(ORIGIN).iter();
        let origin = match (given.next(), given.next()) {
            (Some(origin), None) => origins.iter().find(|known| known.0 == *origin).map(|known| known.0.clone()),
            _ => None,
        };
        let preflight = *method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        Asked { origin, preflight, secure }
    }

    pub fn tell(self, origins: &[Origin], answer: &mut Answer) {
        let headers = &mut answer.headers;
        if !origins.is_empty() {
            // Also when no page asks: a cache must not hand that answer to a page.
            headers.append(VARY, VARY_ORIGIN);
        }
        if let Some(origin) = self.origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            match headers.get(ALLOW).filter(|_| self.preflight && answer.status == StatusCode::NO_CONTENT).cloned() {
                Some(methods) => {
                    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
                    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
                    headers.insert(ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
                }
                None => drop(headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS)),
            }
        }
        headers.insert(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        headers.entry(REFERRER_POLICY).or_insert(NO_REFERRER);
        if self.secure {
            headers.insert(STRICT_TRANSPORT_SECURITY, HSTS);
        }
        if is_page(headers) {
            headers.entry(CONTENT_SECURITY_POLICY).or_insert(PAGE_POLICY);
        }
    }
}

fn is_page(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    content_type.get(..9).is_some_and(|start| start.eq_ignore_ascii_case(b"text/html"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use warp::http::header::HeaderName;

    const SHOP: &str = "https://shop.example";

    /// The headers of an answer of this kind to a request of this kind.
    fn told(
        origins: &[&str],
        method: Method,
        sent: &[(HeaderName, &str)],
        secure: bool,
        mut answer: Answer,
    ) -> BTreeMap<String, String> {
        let origins: Vec<Origin> = origins.iter().map(|origin| origin.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        Asked::of(&origins, &method, &headers, secure).tell(&origins, &mut answer);
        answer.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    fn json() -> Answer {
        Answer::bytes(StatusCode::OK, "application/json", b"{}".to_vec())
    }

    #[test]
    fn an_origin_is_what_a_browser_sends_and_nothing_else() {
        for right in [
            SHOP,
            "http://localhost:3000",
            "http://127.0.0.1:8000",
            "http://[::1]:3000",
            "https://[2001:db8::1]",
            "https://a-b.c_d.test",
        ] {
            assert_eq!(right.parse::<Origin>().unwrap().0, right);
        }
        for wrong in [
            "",
            "*",
            "null",
            "shop.example",
            "https://",
            "https://shop.example/",
            "https://Shop.example",
            "HTTPS://shop.example",
            "https://shop.example:443",
            "http://shop.example:80",
            "https://shop.example:",
            "https://shop.example:0",
            "https://*.example",
            "https://shop.example:99999",
            "https://a@shop.example",
            "https://shop.example?",
            "ftp://shop.example",
            "https://[::1",
            "https://[x]",
        ] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_a_page_of_a_named_origin_may_read() {
        for (origins, sent, allowed, vary) in [
            (&[][..], &[(ORIGIN, SHOP)][..], None, false),
            (&[SHOP], &[], None, true),
            (&[SHOP], &[(ORIGIN, SHOP)], Some(SHOP), true),
            (&["http://other.test", SHOP], &[(ORIGIN, SHOP)], Some(SHOP), true),
            (&[SHOP], &[(ORIGIN, "https://shop.example.evil.test")], None, true),
            (&[SHOP], &[(ORIGIN, "http://shop.example")], None, true),
            (&[SHOP], &[(ORIGIN, "null")], None, true),
            (&[SHOP], &[(ORIGIN, SHOP), (ORIGIN, SHOP)], None, true),
        ] {
            let told = told(origins, Method::GET, sent, false, json());
            assert_eq!(told.get("access-control-allow-origin").map(String::as_str), allowed, "{origins:?} {sent:?}");
            assert_eq!(told.contains_key("access-control-expose-headers"), allowed.is_some());
            assert_eq!(told.contains_key("vary"), vary, "{origins:?} {sent:?}");
            assert!(!told.contains_key("access-control-allow-credentials") && !told.contains_key("access-control-allow-methods"));
        }
    }

    #[test]
    fn a_preflight_hears_the_methods_of_its_path_and_no_other_request_does() {
        let options = || Answer::empty(StatusCode::NO_CONTENT).with(ALLOW, "GET, HEAD, OPTIONS");
        let preflight = [(ORIGIN, SHOP), (ACCESS_CONTROL_REQUEST_METHOD, "GET")];
        let heard = told(&[SHOP], Method::OPTIONS, &preflight, false, options());
        assert_eq!(heard["access-control-allow-methods"], "GET, HEAD, OPTIONS");
        assert!(
            heard["access-control-allow-headers"].contains("idempotency-key") && heard.contains_key("access-control-max-age")
        );
        let evil = [(ORIGIN, "https://evil.test"), (ACCESS_CONTROL_REQUEST_METHOD, "GET")];
        let not_found = Answer::bytes(StatusCode::NOT_FOUND, "application/problem+json", b"{}".to_vec());
        for told in [
            told(&[], Method::OPTIONS, &preflight, false, options()),
            told(&[SHOP], Method::OPTIONS, &evil, false, options()),
            told(&[SHOP], Method::OPTIONS, &preflight[..1], false, options()),
            told(&[SHOP], Method::OPTIONS, &preflight, false, not_found),
        ] {
            assert!(!told.contains_key("access-control-allow-methods"), "{told:?}");
        }
    }

    #[test]
    fn each_answer_says_how_it_is_to_be_treated_and_a_page_what_it_may_load() {
        let page = || Answer::bytes(StatusCode::OK, "Text/HTML; charset=utf-8", Vec::new());
        for (answer, secure, policy) in [
            (json(), false, None),
            (json(), true, None),
            (Answer::empty(StatusCode::NO_CONTENT), false, None),
            (page(), false, Some("default-src 'self'")),
            (page().with(CONTENT_SECURITY_POLICY, "default-src 'none'"), true, Some("default-src 'none'")),
        ] {
            let told = told(&[], Method::GET, &[], secure, answer);
            assert_eq!((told["x-content-type-options"].as_str(), told["referrer-policy"].as_str()), ("nosniff", "no-referrer"));
            assert_eq!(told.contains_key("strict-transport-security"), secure);
            let given = told.get("content-security-policy");
            assert_eq!(given.is_some(), policy.is_some());
            assert!(given.is_none_or(|given| given.starts_with(policy.unwrap())));
        }
    }
}
