//! What stands before every handler: budgets, where a request comes from, and what browsers and caches are told.

use std::io::Read;
use std::time::Duration;

use serde_json::json;

use crate::client::Answer;
use crate::server::{ADMIN, Souk, eventually, name, product_body, text};

/// The three headers of a budget as numbers.
fn budget(answer: &Answer) -> Option<[u32; 3]> {
    let header = |name| answer.header(name).map(|value| value.parse().unwrap());
    match ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"].map(header) {
        [Some(limit), Some(remaining), Some(reset)] => Some([limit, remaining, reset]),
        [None, None, None] => None,
        some => panic!("some of the headers and not all: {some:?} {answer}"),
    }
}

/// A refusal, and the budget that it names.
fn refused(answer: Answer, name: &str) {
    let [_, remaining, reset] = budget(&answer).unwrap();
    assert_eq!((remaining, answer.header("retry-after")), (0, Some(reset.to_string().as_str())), "{answer}");
    assert!(reset > 0);
    assert_eq!(answer.problem(429, "rate-limited")["detail"], format!("the budget for {name} is spent"));
}

#[tokio::test]
async fn whoever_asks_too_much_is_refused_until_later_and_nobody_else_is() {
    let souk = Souk::start(&[
        "--limit-reads=1/h:3",
        "--limit-writes=1/h:2",
        "--limit-checkout=1/h:1",
        "--limit-claims=1/h:1",
        "--limit-login=1/h:1",
        "--limit-operator=1/h:5",
    ])
    .await;
    // HEAD reads as GET does, and what is not found was looked for: both count.
    let first = souk.get("/api/products").send().await.expect(200);
    let second = souk.call("HEAD", "/api/products").send().await.expect(200);
    let [[limit, remaining, reset], [_, then_remaining, then_reset]] = [&first, &second].map(|answer| budget(answer).unwrap());
    assert_eq!((limit, remaining, then_remaining), (3, 2, 1));
    assert!(reset <= 3_600 && (3_601..=7_200).contains(&then_reset), "{reset} {then_reset}");
    let missing = souk.get("/api/orders/ord_01ARZ3NDEKTSV4RRFFQ69G5FAV").bearer("a-guess").send().await.expect(404);
    assert_eq!(budget(&missing).unwrap()[1], 0);
    for token in ["", "another-guess", "and-another"] {
        refused(souk.get("/api/products").bearer(token).send().await, "reads");
    }
    let upgrade = souk.get("/ws").header("connection", "Upgrade").header("upgrade", "websocket");
    refused(upgrade.send().await, "reads");

    // Writes have a budget of their own, checkouts too; a refused one has no effect, also not on its Idempotency-Key.
    souk.post("/api/carts", json!({})).key("a").send().await.expect(201);
    let cart = souk.cart().await;
    refused(souk.post("/api/carts", json!({})).key("c").send().await, "writes");
    assert_eq!(souk.check_out(&cart, "tok_ok").await.header("ratelimit-limit"), Some("1"));
    refused(souk.check_out(&cart, "tok_ok").await, "checkout");
    refused(souk.post("/api/orders", json!({})).send().await, "checkout");
    let claim = || souk.post("/api/flash-sales/fs_01ARZ3NDEKTSV4RRFFQ69G5FAV/claims", json!({ "quantity": 1 })).send();
    assert_eq!(claim().await.header("ratelimit-limit"), Some("1"));
    refused(claim().await, "claims");

    // What is no route, or no request to a handler, or asked by a load balancer, is not limited.
    for path in ["/health/live", "/health/ready", "/metrics", "/metrics", "/metrics"] {
        assert_eq!(budget(&souk.get(path).send().await.expect(200)), None, "{path}");
    }
    assert_eq!(budget(&souk.get("/nothing").send().await.expect(404)), None);
    assert_eq!(budget(&souk.call("OPTIONS", "/api/products").send().await.expect(204)), None);

    // The operator's budget is one for everything.
    for remaining in [4, 3] {
        let seen = souk.get("/api/cluster").bearer(&ADMIN).send().await.expect(200);
        assert_eq!(budget(&seen).unwrap()[..2], [5, remaining]);
    }
    for remaining in [2, 1, 0] {
        let seen = souk.post("/api/carts", json!({})).bearer(&ADMIN).send().await.expect(201);
        assert_eq!(budget(&seen).unwrap()[1], remaining);
    }
    refused(souk.get("/api/products").bearer(&ADMIN).send().await, "operator");

    let metrics = String::from_utf8(souk.get("/metrics").send().await.body).unwrap();
    for (name, count) in [("reads", 4), ("writes", 1), ("checkout", 2), ("operator", 1)] {
        let line = format!("souk_http_requests_refused_total{{budget=\"{name}\"}} {count}");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn a_budget_refills_and_0_is_no_limit() {
    let souk = Souk::start(&["--limit-reads=5/s:1", "--limit-writes=0"]).await;
    souk.get("/api/products").send().await.expect(200);
    eventually(Duration::from_secs(10), async || {
        let answer = souk.get("/api/products").send().await;
        (answer.status == 429).then_some(())
    })
    .await;
    eventually(Duration::from_secs(10), async || {
        let answer = souk.get("/api/products").send().await;
        (answer.status == 200).then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(budget(&souk.post("/api/carts", json!({})).send().await.expect(201)), None);
    }
}

#[tokio::test]
async fn a_client_behind_a_trusted_proxy_has_its_own_budget_and_cannot_choose_another() {
    let one = "--limit-reads=1/h:1";
    let [trusting, standard, plain] = [
        Souk::start(&[one, "--trusted-proxy=127.0.0.0/8", "--trusted-proxy=10.0.0.1"]).await,
        Souk::start(&[one, "--trusted-proxy=127.0.0.1", "--proxy-header=forwarded"]).await,
        Souk::start(&[one]).await,
    ];
    let ask = async |souk: &Souk, name: &str, value: &str| souk.get("/api/products").header(name, value).send().await.status;
    for (value, status) in [
        ("198.51.100.1", 200),
        ("198.51.100.1", 429),
        ("203.0.113.9, 198.51.100.1", 429),
        ("198.51.100.1, 10.0.0.1", 429),
        ("198.51.100.2", 200),
        ("2001:db8:1:1::1", 200),
        ("2001:db8:1:1:ffff::2", 429),
        ("2001:db8:1:2::1", 200),
        // Nobody's address: the proxy's own, once.
        ("nonsense", 200),
        ("198.51.100.3, unknown", 429),
    ] {
        assert_eq!(ask(&trusting, "x-forwarded-for", value).await, status, "{value}");
    }
    for (name, value, status) in [
        ("forwarded", "for=198.51.100.1;proto=https", 200),
        ("forwarded", "for=203.0.113.9, for=\"198.51.100.1:4711\"", 429),
        ("forwarded", "for=\"[2001:db8:1:1::1]\"", 200),
        ("x-forwarded-for", "203.0.113.10", 200),
        ("x-forwarded-for", "203.0.113.11", 429),
    ] {
        assert_eq!(ask(&standard, name, value).await, status, "{value}");
    }
    assert_eq!(ask(&plain, "x-forwarded-for", "198.51.100.1").await, 200);
    assert_eq!(ask(&plain, "x-forwarded-for", "198.51.100.2").await, 429, "nobody is believed");
}

#[tokio::test]
async fn pages_of_named_origins_may_read_answers_and_all_others_may_not() {
    const SHOP: &str = "https://shop.example";
    let souk = Souk::start(&["--cors-origin", SHOP, "--cors-origin", "http://localhost:3000", "--limit-reads=1/h:7"]).await;
    let allowed = |answer: &Answer| answer.header("access-control-allow-origin").map(str::to_owned);
    for origin in [SHOP, "http://localhost:3000"] {
        let answer = souk.get("/api/products").header("origin", origin).send().await.expect(200);
        assert_eq!((allowed(&answer).as_deref(), answer.header("vary")), (Some(origin), Some("origin")));
        let exposed = answer.header("access-control-expose-headers").unwrap().to_owned();
        let own = ["etag", "location", "retry-after", "souk-position", "x-request-id", "ratelimit-reset", "idempotency-replayed"];
        assert!(own.iter().all(|name| exposed.split(", ").any(|exposed| exposed == *name)), "{exposed}");
        // An error must be readable too, or a page cannot tell what went wrong.
        let missing = souk.get("/api/products/nothing").header("origin", origin).send().await.expect(404);
        assert_eq!(allowed(&missing).as_deref(), Some(origin));
    }
    for origin in ["https://evil.example", "null", "https://shop.example:444"] {
        let answer = souk.get("/api/products").header("origin", origin).send().await.expect(200);
        assert_eq!((allowed(&answer), answer.header("vary")), (None, Some("origin")));
    }
    let spent = souk.get("/api/products").header("origin", SHOP).send().await;
    assert_eq!(allowed(&spent).as_deref(), Some(SHOP), "a page must learn that it has to wait");
    refused(spent, "reads");

    // What a browser asks before it sends a PATCH: not limited, since it cannot be told to wait.
    let preflight =
        |path, origin| souk.call("OPTIONS", path).header("origin", origin).header("access-control-request-method", "PATCH");
    let answer = preflight("/api/products/x", SHOP).send().await.expect(204);
    assert_eq!(allowed(&answer).as_deref(), Some(SHOP));
    assert_eq!(answer.header("access-control-allow-methods"), answer.header("allow"));
    assert!(answer.header("allow").unwrap().contains("PATCH"));
    let headers = answer.header("access-control-allow-headers").unwrap();
    assert!(
        ["authorization", "content-type", "idempotency-key", "if-match", "souk-at-least"]
            .iter()
            .all(|name| headers.contains(name))
    );
    let other = preflight("/api/products/x", "https://evil.example").send().await.expect(204);
    assert_eq!((allowed(&other), other.header("access-control-allow-methods")), (None, None));
    preflight("/api/nothing", SHOP).send().await.expect(404);

    // Nobody is named by default.
    let closed = Souk::shared().await;
    let answer = closed.get("/api/carts/x").header("origin", SHOP).send().await.expect(404);
    assert_eq!((allowed(&answer), answer.header("vary")), (None, None));
}

#[tokio::test]
async fn a_wrong_flag_says_what_is_expected() {
    for (flag, expected) in [
        ("--limit-reads=50", "50/s:500"),
        ("--trusted-proxy=localhost", "10.0.0.0/8"),
        ("--cors-origin=https://shop.example/", "https://shop.example"),
        ("--cors-origin=*", "https://shop.example"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_souk")).args(["serve", flag]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("expected") && said.contains(expected), "{flag}: {said}");
    }
}

#[tokio::test]
async fn only_what_came_over_tls_is_told_to_stay_there() {
    let souk = Souk::start(&["--trusted-proxy", "127.0.0.1"]).await;
    for (proto, expected) in [(Some("https"), true), (Some("http"), false), (None, false)] {
        let mut call = souk.get("/api/products").header("x-forwarded-for", "198.51.100.1");
        if let Some(proto) = proto {
            call = call.header("x-forwarded-proto", proto);
        }
        let answer = call.send().await.expect(200);
        assert_eq!(answer.header("strict-transport-security").is_some(), expected, "{proto:?}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
    }
    let direct = Souk::shared().await.get("/api/products").header("x-forwarded-proto", "https").send().await;
    assert_eq!(direct.header("strict-transport-security"), None);
}

fn unpacked(answer: &Answer) -> Vec<u8> {
    assert_eq!(answer.header("content-encoding"), Some("gzip"), "{answer}");
    let mut whole = Vec::new();
    flate2::read::GzDecoder::new(&answer.body[..]).read_to_end(&mut whole).unwrap();
    whole
}

#[tokio::test]
async fn a_large_answer_is_compressed_for_whoever_takes_it_and_keeps_its_tag_apart() {
    let souk = Souk::shared().await;
    let (first, rest) = (name("PACKED"), name("PACKED"));
    let skus: Vec<String> = (0..30).map(|number| format!("{rest}-{number}")).collect();
    let mut variants = vec![(first.as_str(), 1_000, 1)];
    variants.extend(skus.iter().map(|sku| (sku.as_str(), 1_000, 1)));
    let path = format!("/api/products/{}", souk.product(&variants).await);

    let plain = souk.get(&path).send().await.expect(200);
    let packed = souk.get(&path).header("accept-encoding", "br, gzip").send().await.expect(200);
    assert!(plain.header("content-encoding").is_none() && plain.body.len() > 1_024);
    assert!(packed.body.len() * 2 < plain.body.len(), "{} of {}", packed.body.len(), plain.body.len());
    assert_eq!(unpacked(&packed), plain.body);
    assert_eq!((plain.header("vary"), packed.header("vary")), (Some("accept-encoding"), Some("accept-encoding")));
    let version = plain.etag().trim_matches('"').to_owned();
    assert_eq!(packed.etag(), format!("\"{version}-gzip\""));

    let head = souk.call("HEAD", &path).header("accept-encoding", "gzip").send().await.expect(200);
    assert_eq!(head.header("content-length"), Some(packed.body.len().to_string().as_str()));
    for name in ["etag", "content-encoding", "vary", "content-type"] {
        assert_eq!(head.header(name), packed.header(name));
    }
    // Each form is known again by its own tag, and only by those who can use it.
    for (encoding, tag, status, answered) in [
        ("gzip", packed.etag(), 304, packed.etag()),
        ("gzip", plain.etag(), 304, plain.etag()),
        ("identity", plain.etag(), 304, plain.etag()),
        ("identity", packed.etag(), 200, plain.etag()),
    ] {
        let call = souk.get(&path).header("accept-encoding", encoding).header("if-none-match", &tag);
        let answer = call.send().await.expect(status);
        assert_eq!((answer.etag(), answer.header("vary")), (answered, Some("accept-encoding")), "{encoding} {tag}");
    }
    // Who has read it compressed may change it.
    let change = souk.patch(&path, json!({ "title": "Changed" })).bearer(&ADMIN).header("if-match", &packed.etag());
    let change = change.header("accept-encoding", "gzip").send().await.expect(200);
    assert_eq!(change.etag(), format!("\"{}-gzip\"", version.parse::<u64>().unwrap() + 1));
    let late = souk.patch(&path, json!({ "title": "Late" })).bearer(&ADMIN).header("if-match", &packed.etag());
    late.send().await.problem(412, "version-differs");
}

#[tokio::test]
async fn small_answers_streams_and_upgrades_are_not_compressed_and_a_repeat_is_for_each_as_it_asks() {
    let souk = Souk::shared().await;
    let gzip = ("accept-encoding", "gzip");
    let small = souk.get("/health/live").header(gzip.0, gzip.1).send().await.expect(200);
    assert_eq!((small.header("content-encoding"), small.header("vary")), (None, None));

    let skus: Vec<String> = (0..30).map(|_| name("REPEATED")).collect();
    let variants: Vec<_> = skus.iter().map(|sku| (sku.as_str(), 500, 1)).collect();
    let create = souk.post("/api/products", product_body(&variants)).bearer(&ADMIN).key("packed-once");
    let first = create.clone().header(gzip.0, gzip.1).send().await.expect(201);
    let again = create.clone().send().await.expect(201);
    assert_eq!((again.header("idempotency-replayed"), again.header("content-encoding")), (Some("true"), None));
    assert_eq!(unpacked(&first), again.body);
    assert_eq!(unpacked(&create.header(gzip.0, gzip.1).send().await.expect(201)), again.body);

    let cart = souk.cart_with(&skus[0], 1).await;
    let order = souk.check_out(&cart, "tok_ok").await.expect(201).json();
    let events = souk.get(&format!("/api/orders/{}/events", text(&order["id"]))).bearer(&cart.token).header(gzip.0, gzip.1);
    let mut line = souk.connect().await;
    line.write(&events.bytes()).await;
    let head = line.head().await.to_lowercase();
    assert!(head.contains("content-type: text/event-stream") && !head.contains("content-encoding"), "{head}");
    assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    let mut pending = String::new();
    assert!(line.event(&mut pending).await.unwrap().starts_with("retry: "));

    let socket = souk.get("/ws").header("connection", "Upgrade").header("upgrade", "websocket").header(gzip.0, gzip.1);
    let socket = socket.header("sec-websocket-version", "13").header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(socket.send().await.expect(101).header("content-encoding"), None);
}
