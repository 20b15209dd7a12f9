//! gzip for large answers of text, when the client takes it.
//!
//! Only whole bodies are compressed: a stream of events or a WebSocket never comes here with bytes. That a compressed
//! answer's length tells of its content (BREACH) matters where a browser sends a cookie by itself; here tokens are sent by
//! hand.
//!
//! The compressed form is another representation of the same thing, so its entity tag must be another one (RFC 9110,
//! 8.8.3.3). It is the version with a suffix, `"7-gzip"`, and not a weak tag: a weak one never matches in `If-Match`
//! (RFC 9110, 13.1.1), and who has read a thing compressed may change it all the same. `request` reads both as version 7.

use std::io::Write;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use warp::http::StatusCode;
use warp::http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, VARY,
};

use super::answer::{Answer, Body};

/// What follows the version in the tag of a compressed answer.
pub const TAG_SUFFIX: &str = "-gzip";
/// Less than this is one packet either way.
const BYTES_MIN: usize = 1_024;
/// More than this is compressed off the threads that answer everybody else.
const INLINE_BYTES_MAX: usize = 32 * 1024;
const VARY_ENCODING: HeaderValue = HeaderValue::from_static("accept-encoding");
const GZIP: HeaderValue = HeaderValue::from_static("gzip");

/// What of a request decides whether its answer is compressed.
pub struct Wanted {
    gzip: bool,
    /// The client has a compressed representation, and asks whether it is still the newest.
    has_gzip: bool,
}

impl Wanted {
    pub fn of(headers: &HeaderMap) -> Self {
        let gzip = accepts_gzip(headers);
        let has_gzip = gzip && values(headers, IF_NONE_MATCH).any(is_of_gzip);
        Wanted { gzip, has_gzip }
    }

    /// Compresses the answer if that is wanted and worth it.
    pub async fn apply(self, mut answer: Answer) -> Answer {
        if answer.status == StatusCode::NOT_MODIFIED {
            // The tag that the whole answer would bear. Its body is not there to be weighed; but who names a compressed
            // one has been sent it, for the same version.
            if self.has_gzip {
                mark_tag(&mut answer.headers);
            }
            answer.headers.append(VARY, VARY_ENCODING);
            return answer;
        }
        let Body::Bytes(body) = &mut answer.body else { return answer };
        if body.len() < BYTES_MIN || !is_text(&answer.headers) || answer.headers.contains_key(CONTENT_ENCODING) {
            return answer;
        }
        answer.headers.append(VARY, VARY_ENCODING);
        if !self.gzip {
            return answer;
        }
        let whole = Arc::new(std::mem::take(body));
        let packed = match whole.len() {
            ..=INLINE_BYTES_MAX => pack(&whole),
            _ => {
                let shared = Arc::clone(&whole);
                // It fails only when the node is being torn down.
                tokio::task::spawn_blocking(move || pack(&shared)).await.unwrap_or(None)
            }
        };
        match packed {
            Some(packed) => {
                *body = packed;
                answer.headers.insert(CONTENT_ENCODING, GZIP);
                mark_tag(&mut answer.headers);
            }
            None => *body = Arc::unwrap_or_clone(whole),
        }
        answer
    }
}

/// The same compressed, if that is shorter. Fast rather than small: the last tenth costs most of the time.
fn pack(whole: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(whole.len() / 4), Compression::fast());
    let packed = encoder.write_all(whole).and_then(|()| encoder.finish());
    packed.ok().filter(|packed| packed.len() < whole.len())
}

/// Makes `"7"` the tag of version 7 compressed.
fn mark_tag(headers: &mut HeaderMap) {
    let marked = headers.get(ETAG).and_then(|tag| tag.to_str().ok()?.strip_suffix('"'));
    if let Some(marked) = marked.and_then(|tag| HeaderValue::from_str(&format!("{tag}{TAG_SUFFIX}\"")).ok()) {
        headers.insert(ETAG, marked);
    }
}

/// Whether a tag is that of a compressed answer.
pub fn is_of_gzip(tag: &str) -> bool {
    tag.strip_suffix('"').is_some_and(|tag| tag.ends_with(TAG_SUFFIX))
}

/// What shrinks. A live stream is no such thing, whoever makes it.
fn is_text(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let subtype = essence.rsplit('/').next().unwrap_or("");
    let structured = ["json", "javascript", "openmetrics-text", "yaml"].contains(&subtype)
        || subtype.ends_with("+json")
        || subtype.ends_with("+xml");
    (essence.starts_with("text/") && essence != "text/event-stream") || structured
}

/// By RFC 9110, 12.5.3: named with a weight above 0, or covered by `*`, and not liked less than the plain form.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut any, mut identity) = (None, None, None);
    for coding in values(headers, ACCEPT_ENCODING) {
        let mut parts = coding.split(';');
        let name = parts.next().unwrap_or("").trim().to_ascii_lowercase();
        let weight = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            // What is no weight counts as a refusal.
            name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok().filter(|q| (0.0..=1.0).contains(q)))
        });
        let weight = weight.map_or(1.0, |weight| weight.unwrap_or(0.0));
        match name.as_str() {
            "gzip" | "x-gzip" => gzip = Some(weight),
            "*" => any = Some(weight),
            "identity" => identity = Some(weight),
            _ => {}
        }
    }
    let gzip = gzip.or(any).unwrap_or(0.0);
    gzip > 0.0 && gzip >= identity.unwrap_or(0.0)
}

/// The members of a list that may stand on several lines.
fn values(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',').map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn wanted(sent: &[(HeaderName, &str)]) -> Wanted {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        Wanted::of(&headers)
    }

    fn unpacked(answer: &Answer) -> Vec<u8> {
        let Body::Bytes(body) = &answer.body else { panic!("no bytes") };
        let mut whole = Vec::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut whole).unwrap();
        whole
    }

    fn header(answer: &Answer, name: HeaderName) -> Option<&str> {
        answer.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn gzip_is_used_only_if_the_client_takes_it() {
        for (sent, accepted) in [
            (&[][..], false),
            (&[""], false),
            (&["gzip"], true),
            (&["GZIP"], true),
            (&["x-gzip"], true),
            (&["deflate, gzip;q=1.0, *;q=0.5"], true),
            (&["br", "gzip"], true),
            (&["br, zstd, deflate"], false),
            (&["gzip;q=0"], false),
            (&["gzip;q=0.000, *"], false),
            (&["*"], true),
            (&["*;q=0"], false),
            (&["identity"], false),
            (&["gzip;q=0.5, identity"], false),
            (&["gzip;q=0.5, identity;q=0.5"], true),
            (&["gzip ; q=0.5"], true),
            (&["gzip;q=nan"], false),
            (&["gzip;q=2"], false),
            (&["gzipped"], false),
        ] {
            let sent: Vec<_> = sent.iter().map(|value| (ACCEPT_ENCODING, *value)).collect();
            assert_eq!(wanted(&sent).gzip, accepted, "{sent:?}");
        }
    }

    #[tokio::test]
    async fn a_large_answer_of_text_is_compressed_and_says_so() {
        let gzip = [(ACCEPT_ENCODING, "gzip")];
        for size in [BYTES_MIN, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 1_000_000] {
            let body = vec![b' '; size];
            let answer = Answer::bytes(StatusCode::OK, "application/json", body.clone()).etag(7);
            let packed = wanted(&gzip).apply(answer).await;
            assert_eq!((unpacked(&packed), packed.status), (body, StatusCode::OK));
            assert_eq!((header(&packed, ETAG), header(&packed, CONTENT_ENCODING)), (Some("\"7-gzip\""), Some("gzip")));
            assert_eq!(header(&packed, VARY), Some("accept-encoding"));
        }
        let plain = wanted(&[]).apply(Answer::bytes(StatusCode::OK, "application/json", vec![b' '; 2_000]).etag(7)).await;
        assert_eq!((header(&plain, ETAG), header(&plain, CONTENT_ENCODING)), (Some("\"7\""), None));
        assert_eq!(header(&plain, VARY), Some("accept-encoding"), "a cache must know that there is another form");
    }

    #[tokio::test]
    async fn what_is_small_or_no_text_or_does_not_shrink_is_left_as_it_is() {
        let mut noise = vec![0; 2_000];
        getrandom::fill(&mut noise).unwrap();
        let large = || vec![b' '; 2_000];
        let cases = [
            ("application/json", vec![b' '; BYTES_MIN - 1], false),
            ("image/png", large(), false),
            ("text/event-stream", large(), false),
            ("application/json", noise, true),
        ];
        for (content_type, body, vary) in cases {
            let answer = Answer::bytes(StatusCode::OK, content_type, body.clone()).etag(7);
            let left = wanted(&[(ACCEPT_ENCODING, "gzip")]).apply(answer).await;
            assert_eq!((header(&left, ETAG), header(&left, CONTENT_ENCODING)), (Some("\"7\""), None), "{content_type}");
            assert!(matches!(&left.body, Body::Bytes(left) if *left == body));
            assert_eq!(left.headers.contains_key(VARY), vary);
        }
        for text in ["application/problem+json", "text/html; charset=utf-8", crate::metrics::CONTENT_TYPE, "IMAGE/SVG+XML"] {
            let answer = Answer::bytes(StatusCode::OK, text, large());
            assert_eq!(unpacked(&wanted(&[(ACCEPT_ENCODING, "gzip")]).apply(answer).await), large(), "{text}");
        }
    }

    #[tokio::test]
    async fn an_answer_without_its_body_bears_the_tag_that_its_reader_has() {
        for (encoding, tag, expected) in [
            ("gzip", "\"7-gzip\"", "\"7-gzip\""),
            ("gzip", "\"6\", W/\"7-gzip\"", "\"7-gzip\""),
            ("gzip", "\"7\"", "\"7\""),
            ("gzip", "*", "\"7\""),
            ("identity", "\"7-gzip\"", "\"7\""),
        ] {
            let answer = Answer::empty(StatusCode::NOT_MODIFIED).etag(7);
            let told = wanted(&[(ACCEPT_ENCODING, encoding), (IF_NONE_MATCH, tag)]).apply(answer).await;
            assert_eq!((header(&told, ETAG), header(&told, VARY)), (Some(expected), Some("accept-encoding")), "{encoding} {tag}");
        }
    }
}
