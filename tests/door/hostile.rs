//! What no proper client sends: the door answers it, or closes in time, and goes on for everybody else.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::client::Call;
use crate::flash_sales;
use crate::server::{ADMIN, Cart, PASSWORD, Souk, name, product_body, purchase, text};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// The head timeout, the body's, the clock's grain, and some patience.
const CLOSED: Duration = Duration::from_secs(15);

fn head(method: &str, path: &str, headers: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: souk\r\n{headers}\r\n").into_bytes()
}

/// Also what never became a request is refused with a problem, and the connection ends with it.
fn is_a_problem(said: &str) {
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{said}"));
    assert!(head.contains("content-type: application/problem+json") && head.contains("x-request-id: "), "{said}");
    assert!(head.starts_with(&format!("HTTP/1.1 {} ", body["status"])) && body["request_id"].is_string(), "{said}");
}

/// The server still answers, on a new connection.
async fn is_well(souk: &Souk) {
    souk.get("/health/ready").send().await.expect(200);
}

#[tokio::test]
async fn percent_encoding_is_undone_once_or_refused() {
    let souk = Souk::shared().await;
    for path in ["/api/inventory/%", "/api/inventory/%2", "/api/inventory/%zz", "/api/inventory/%ff", "/api/carts/%C3%28/items"] {
        let answer = souk.get(path).bearer(&ADMIN).send().await;
        assert!(matches!(answer.status, 400 | 404 | 405), "{path}: {answer}");
    }
    souk.get("/api/inventory/%zz").send().await.problem(400, "invalid-path");
    for path in ["/api/inventory/%2500", "/api/inventory/%00", "/api/inventory/%E2%80%AE", "/api/inventory/..%2f..%2fx"] {
        souk.get(path).send().await.expect(404);
    }
    for path in ["/api/%70roducts", "/api/products%2f", "/api/products;a=b", "/api/products%3flimit=1"] {
        souk.get(path).send().await.problem(404, "not-found");
    }
    souk.get("/api/products?q=%E2%98%83+%26&limit=%31").send().await.expect(200);
    souk.get("/api/products?&&limit=1&&").send().await.expect(200);
    souk.get("http://elsewhere.test/api/products?limit=1").send().await.expect(200);
}

#[tokio::test]
async fn a_sku_may_have_slashes_spaces_and_any_script() {
    let souk = Souk::shared().await;
    let unique = name("Ω");
    for sku in ["red shirt/XL", "a?b#c&d=e%41", "Größe+42", "قميص-٤", "日本/🏮", "\"quoted\"\\", "..", "a;b,c"] {
        let sku = format!("{unique} {sku}");
        souk.product(&[(&sku, 700, 4)]).await;
        assert_eq!(souk.inventory(&sku).await["sku"], json!(sku));
        let cart = souk.cart_with(&sku, 1).await;
        let line = cart.path(&format!("/items/{}", souk::integrations::http_client::percent_encoded(&sku)));
        let set = souk.patch(&line, json!({ "quantity": 3 })).bearer(&cart.token).send().await.expect(200).json();
        assert_eq!((&set["lines"][0]["sku"], &set["lines"][0]["quantity"]), (&json!(sku), &json!(3)));
        souk.delete(&line).bearer(&cart.token).send().await.expect(200);
        souk.add(&cart, &sku, 2).await.expect(200);
        let order = souk.check_out(&cart, "tok_ok").await.expect(201).json();
        assert_eq!((&order["status"], &order["lines"][0]["sku"]), (&json!("paid"), &json!(sku)));
        assert_eq!(souk.inventory(&sku).await["on_hand"], 2);
    }
}

#[tokio::test]
async fn no_header_can_be_smuggled_into_an_answer() {
    let souk = Souk::shared().await;
    for path in ["/api/inventory/x%0d%0aSet-Cookie:%20a=b", "/api/products?a%0d%0aset-cookie:a=b=1", "/%0d%0aset-cookie:a=b"] {
        let answer = souk.get(path).send().await;
        assert!(answer.status >= 400 && answer.header("set-cookie").is_none(), "{answer}");
    }
    // Both lengths, two lengths, a bad length, a bad chunk, an obsolete fold: one answer, and no second request in it.
    let smuggled = "GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n";
    for (headers, body) in [
        ("content-length: 5\r\ncontent-length: 6\r\n", smuggled),
        ("content-length: -1\r\n", smuggled),
        ("content-length: 1x\r\n", smuggled),
        ("transfer-encoding: chunked\r\n", "zz\r\n"),
        ("transfer-encoding: chunked, identity\r\n", smuggled),
        ("transfer-encoding : chunked\r\n", smuggled),
        ("x-a: b\r\n folded\r\n", ""),
        ("no colon here\r\n", ""),
        ("x-nul: a\0b\r\n", ""),
    ] {
        let mut line = souk.connect().await;
        line.write(&head("POST", "/api/carts", headers)).await;
        line.write(body.as_bytes()).await;
        let said = String::from_utf8_lossy(&line.rest(CLOSED).await).into_owned();
        assert!(said.starts_with("HTTP/1.1 400 ") && !said.contains("\"live\""), "{headers:?}: {said}");
        is_a_problem(&said);
    }
    for garbage in
        ["\0\0\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\r\n\r\n"]
    {
        let mut line = souk.connect().await;
        line.write(garbage.as_bytes()).await;
        let said = String::from_utf8_lossy(&line.rest(CLOSED).await).into_owned();
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4") || said.starts_with("HTTP/1.1 5"), "{garbage:?}: {said}");
    }
    is_well(&souk).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let souk = Souk::shared().await;
    let many: String = (0..150).map(|index| format!("x-{index}: 1\r\n")).collect();
    let long = format!("x-long: {}\r\n", "a".repeat(100 * KIB));
    for headers in [many, long, format!("authorization: Bearer {}\r\n", "t".repeat(70 * KIB))] {
        let mut line = souk.connect().await;
        line.write(&head("GET", "/api/products", &headers)).await;
        let said = String::from_utf8_lossy(&line.rest(CLOSED).await).into_owned();
        assert!(said.starts_with("HTTP/1.1 431 ") && said.contains("/problems/head-too-large"), "{said}");
        is_a_problem(&said);
    }
    let mut line = souk.connect().await;
    line.write(&head("GET", &format!("/api/products?q={}", "a".repeat(80 * KIB)), "")).await;
    let said = String::from_utf8_lossy(&line.rest(CLOSED).await).into_owned();
    assert!(said.starts_with("HTTP/1.1 414 ") || said.starts_with("HTTP/1.1 431 "), "{said}");
    // Large, and within the bounds.
    let cart = souk.cart().await;
    let answer = souk.get(&cart.path("")).bearer(&cart.token).header("cookie", &"c".repeat(30 * KIB)).send().await;
    answer.expect(200);
    souk.get("/api/cluster").bearer(&"t".repeat(30 * KIB)).send().await.problem(401, "invalid-token");
    is_well(&souk).await;
}

#[tokio::test]
async fn a_body_over_one_mebibyte_is_refused_with_an_answer() {
    let souk = Souk::shared().await;
    let note = |bytes: usize| format!("{{\"x\":\"{}\"}}", "n".repeat(bytes - 8));
    let fits = souk.call("POST", "/api/carts").body(note(MIB)).send().await;
    assert_eq!(fits.problem(400, "invalid-body")["errors"][0]["pointer"], "/x");
    for bytes in [MIB + 1, 5 * MIB] {
        souk.call("POST", "/api/carts").body(note(bytes)).send().await.problem(413, "too-large");
        souk.call("POST", "/api/products").body(note(bytes)).bearer("nobody").send().await.problem(401, "unauthorized");
    }
    // In chunks, without an end.
    let call = souk.call("POST", "/api/carts");
    let mut line = souk.connect().await;
    line.write(&head("POST", "/api/carts", "transfer-encoding: chunked\r\n")).await;
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(64 * KIB)).into_bytes();
    let mut sent = 0;
    while sent < 64 && tokio::io::AsyncWriteExt::write_all(&mut line.stream, &chunk).await.is_ok() {
        sent += 1;
    }
    line.answer(false).await.check(&call).problem(413, "too-large");
    // In chunks that are fine.
    let mut line = souk.connect().await;
    line.write(&head("POST", "/api/carts", "transfer-encoding: chunked\r\n")).await;
    line.write(b"1\r\n{\r\n1;ext=1\r\n}\r\n0\r\ntrailer: t\r\n\r\n").await;
    line.answer(false).await.check(&call).expect(201);
    // Whoever asks first is told before sending.
    let mut line = souk.connect().await;
    line.write(&head("POST", "/api/carts", &format!("content-length: {}\r\nexpect: 100-continue\r\n", 3 * MIB))).await;
    line.answer(false).await.check(&call).problem(413, "too-large");
    is_well(&souk).await;
}

#[tokio::test]
async fn whoever_is_too_slow_is_closed_in_time_and_nobody_waits_for_it() {
    let souk = Souk::shared().await;
    let started = Instant::now();
    let silent = async {
        let mut line = souk.connect().await;
        assert!(line.rest(CLOSED).await.is_empty());
    };
    let half_a_head = async {
        let mut line = souk.connect().await;
        line.write(b"GET /api/products HTTP/1.1\r\nhost: souk\r\nx-never: en").await;
        line.rest(CLOSED).await;
    };
    // A byte now and then does not buy more time.
    let dripping = async {
        let mut line = souk.connect().await;
        line.write(b"GET /api/products HTTP/1.1\r\nhost: souk\r\nx-drip: ").await;
        let mut pace = tokio::time::interval(Duration::from_millis(500));
        while started.elapsed() < CLOSED {
            pace.tick().await;
            if tokio::io::AsyncWriteExt::write_all(&mut line.stream, b"a").await.is_err() {
                return;
            }
        }
        panic!("a dripping head was kept for {:?}", started.elapsed());
    };
    let second_head = async {
        let mut line = souk.connect().await;
        souk.get("/health/live").send_on(&mut line).await.expect(200);
        line.write(b"GET /heal").await;
        line.rest(CLOSED).await;
    };
    let half_a_body = async {
        let mut line = souk.connect().await;
        line.write(&head("POST", "/api/carts", "content-length: 100\r\n")).await;
        line.write(b"{").await;
        let call = souk.call("POST", "/api/carts");
        line.answer(false).await.check(&call).problem(408, "slow-body");
        line.rest(CLOSED).await;
    };
    let broken_off = async {
        let mut line = souk.connect().await;
        line.write(&head("POST", "/api/carts", "content-length: 100\r\n")).await;
        line.write(b"{").await;
        drop(line);
    };
    let everybody_else = async {
        for _ in 0..100 {
            let begun = Instant::now();
            souk.get("/api/products").send().await.expect(200);
            assert!(begun.elapsed() < Duration::from_secs(3));
        }
    };
    tokio::join!(silent, half_a_head, dripping, second_head, half_a_body, broken_off, everybody_else);
    assert!(started.elapsed() < CLOSED + Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let souk = Souk::shared().await;
    let sku = souk.sku(100, 500).await;
    let mut calls = Vec::new();
    for index in 0..30 {
        calls.push(match index % 5 {
            0 => souk.get("/api/products?limit=1"),
            1 => souk.post("/api/carts", json!({})),
            2 => souk.call("HEAD", "/api/products"),
            3 => souk.get("/api/nothing"),
            _ => souk.post(&format!("/api/inventory/{sku}/adjustments"), json!({ "delta": 1, "reason": "r" })).bearer(&ADMIN),
        });
    }
    let named = |index: usize, call: &Call| call.clone().header("x-request-id", &format!("in-order-{index}"));
    let bytes: Vec<u8> = calls.iter().enumerate().flat_map(|(index, call)| named(index, call).bytes()).collect();
    let mut line = souk.connect().await;
    line.write(&bytes).await;
    for (index, call) in calls.iter().enumerate() {
        let answer = line.answer(call.method == "HEAD").await.check(call);
        assert_eq!(answer.header("x-request-id"), Some(format!("in-order-{index}").as_str()));
        assert_eq!(answer.status, [200, 201, 200, 404, 200][index % 5]);
    }
    let last = souk.get("/health/live").header("connection", "close").send_on(&mut line).await.expect(200);
    assert_eq!(last.header("connection"), Some("close"));
    assert!(line.rest(CLOSED).await.is_empty());
}

// Nonsense, and much of it -----------------------------------------------------------------------------------------

fn nonsense(random: &mut fastrand::Rng, depth: u32) -> Value {
    match random.u32(0..if depth > 3 { 9 } else { 11 }) {
        0 => Value::Null,
        1 => json!(random.bool()),
        2 => json!(random.i64(..)),
        3 => json!(random.u64(..)),
        4 => json!(random.i32(-3..3)),
        5 => json!(random.f64() * 1e20),
        6 => json!(["", " ", "EUR", "tok_ok", "prod_", "\u{0}", "\u{202e}x", "🏮", "/", "-1", "null"][random.usize(0..11)]),
        7 => json!("long".repeat(random.usize(0..200))),
        8 => json!(i64::MAX),
        9 => (0..random.usize(0..5)).map(|_| nonsense(random, depth + 1)).collect(),
        _ => {
            let name = |random: &mut fastrand::Rng| ["sku", "quantity", "amount", "a/b~c", ""][random.usize(0..5)].to_owned();
            Value::Object((0..random.usize(0..4)).map(|_| (name(random), nonsense(random, depth + 1))).collect::<Map<_, _>>())
        }
    }
}

/// Changes one place of a body, somewhere.
fn spoil(body: &mut Value, random: &mut fastrand::Rng) {
    match body {
        Value::Object(object) if !object.is_empty() && random.u32(0..5) > 0 => {
            let at = random.usize(0..object.len());
            let key = object.keys().nth(at).unwrap().clone();
            match random.u32(0..6) {
                0 => drop(object.remove(&key)),
                1 => drop(object.insert("extra".into(), nonsense(random, 0))),
                _ => spoil(&mut object[&key], random),
            }
        }
        Value::Array(array) if !array.is_empty() && random.u32(0..5) > 0 => {
            let at = random.usize(0..array.len());
            match random.u32(0..4) {
                0 => {
                    let copy = array[at].clone();
                    array.push(copy);
                }
                _ => spoil(&mut array[at], random),
            }
        }
        other => *other = nonsense(random, 0),
    }
}

/// A body as a broken or hostile client would send it.
fn body(template: &Value, random: &mut fastrand::Rng) -> Vec<u8> {
    let mut value = template.clone();
    match random.u32(0..10) {
        0 => value = nonsense(random, 0),
        1 => {}
        _ => (0..random.usize(1..4)).for_each(|_| spoil(&mut value, random)),
    }
    let mut bytes = value.to_string().into_bytes();
    if random.u32(0..8) == 0 && !bytes.is_empty() {
        match random.u32(0..3) {
            0 => bytes.truncate(random.usize(0..bytes.len())),
            1 => {
                let at = random.usize(0..bytes.len());
                bytes[at] = random.u8(..);
            }
            _ => bytes.extend_from_slice(b"\0}]"),
        }
    }
    bytes
}

#[tokio::test]
async fn no_body_makes_the_server_fail_or_hang_up() {
    const ROUNDS: usize = 200;
    let seed = std::env::var("SOUK_DOOR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SOUK_DOOR_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let souk = Souk::start(&[]).await;
    let sku = souk.sku(500, 1_000_000).await;
    let product = souk.product(&[(&name("FUZZ"), 300, 5)]).await;
    let bought = souk.cart_with(&sku, 1).await;
    let order = text(&souk.check_out(&bought, "tok_ok").await.expect(201).json()["id"]);
    let mut order_body = purchase("tok_ok");
    order_body["items"] = json!([{ "sku": sku, "quantity": 1 }]);
    order_body["expected_total"] = json!({ "amount": 500, "currency": "EUR" });
    let item = json!({ "sku": sku, "quantity": 1 });
    let mut whole_product = product_body(&[("FUZZ-NEW", 100, 3), ("FUZZ-NEW-2", 100, 3)]);
    for (name, value) in [("tags", json!(["a"])), ("category", json!(["b"])), ("vendor", json!("v")), ("published", json!(true))]
    {
        whole_product[name] = value;
    }
    let templates = [
        ("POST", "/api/products", whole_product.clone()),
        ("PATCH", "/api/products/{id}", whole_product),
        ("DELETE", "/api/products/{id}", json!({})),
        ("PATCH", "/api/inventory/{sku}", json!({ "low_stock_threshold": 3 })),
        ("POST", "/api/inventory/{sku}/adjustments", json!({ "delta": 1, "reason": "r" })),
        ("POST", "/api/carts", json!({})),
        ("DELETE", "/api/carts/{id}", json!({})),
        ("POST", "/api/carts/{id}/items", item),
        ("PATCH", "/api/carts/{id}/items/{sku}", json!({ "quantity": 2 })),
        ("DELETE", "/api/carts/{id}/items/{sku}", json!({})),
        ("POST", "/api/carts/{id}/merge", json!({ "from": bought.id, "from_token": bought.token })),
        ("POST", "/api/carts/{id}/checkout", purchase("tok_ok")),
        ("POST", "/api/orders", order_body),
        ("POST", "/api/orders/{id}/cancel", json!({ "reason": "r" })),
        ("POST", "/api/orders/{id}/delivery", json!({})),
        ("POST", "/api/orders/{id}/shipments", json!({ "carrier": "c", "tracking_number": "t" })),
        ("POST", "/api/cluster/set-aside/{kind}/{id}/release", json!({})),
        ("POST", "/api/orders/{id}/claim", json!({ "token": bought.token })),
        ("POST", "/api/users", json!({ "email": "fuzz@souk.test", "password": PASSWORD, "name": "Fuzz" })),
        ("PATCH", "/api/users/me", json!({ "name": "Fuzz" })),
        ("DELETE", "/api/users/me", json!({})),
        ("POST", "/api/users/me/password", json!({ "current_password": PASSWORD, "new_password": PASSWORD })),
        ("POST", "/api/users/me/email", json!({ "current_password": PASSWORD, "email": "fuzz@souk.test" })),
        ("DELETE", "/api/users/me/sessions", json!({})),
        ("DELETE", "/api/users/me/sessions/{id}", json!({})),
        ("POST", "/api/users/me/keys", json!({ "label": "fuzz", "scopes": ["orders.read"] })),
        ("DELETE", "/api/users/me/keys/{id}", json!({})),
        ("POST", "/api/users/{id}/roles", json!({ "role": "admin" })),
        ("DELETE", "/api/users/{id}/roles/{role}", json!({})),
        ("POST", "/api/sessions", json!({ "email": "fuzz@souk.test", "password": PASSWORD })),
        ("DELETE", "/api/sessions", json!({})),
        ("POST", "/api/sessions/refresh", json!({ "refresh_token": "rt_a.b.c.d" })),
        ("POST", "/api/flash-sales", flash_sales::whole_terms(&sku)),
        ("PATCH", "/api/flash-sales/{id}", json!({ "admissions_per_second": 10, "challenge_bits": 0 })),
        ("POST", "/api/flash-sales/{id}/approve", json!({})),
        ("POST", "/api/flash-sales/{id}/pause", json!({})),
        ("POST", "/api/flash-sales/{id}/resume", json!({})),
        ("POST", "/api/flash-sales/{id}/cancel", json!({ "reason": "r" })),
        ("POST", "/api/flash-sales/{id}/claims", json!({ "quantity": 1, "proof": { "challenge": "c", "nonce": "n" } })),
        ("DELETE", "/api/flash-sales/{id}/claims/{claim}", json!({})),
        ("DELETE", "/api/flash-sales/{id}/ticket", json!({})),
        ("POST", "/api/flash-sales/{id}/reminder", json!({})),
        ("POST", "/api/shops", json!({ "name": "Fuzz", "description": "Things." })),
        ("PATCH", "/api/shops/{id}", json!({ "name": "Fuzz" })),
    ];
    let writes = souk::http::routes::ROUTES.iter().filter(|route| route.method != "GET");
    let left_out: Vec<_> =
        writes.filter(|route| !templates.iter().any(|t| (t.0, t.1) == (route.method.as_str(), route.pattern))).collect();
    assert!(left_out.is_empty(), "{:?}", left_out.iter().map(|route| route.pattern).collect::<Vec<_>>());

    let mut line = souk.connect().await;
    let (mut accepted, mut refused) = (0, 0);
    let mut cart: Cart = souk.cart_with(&sku, 1).await;
    let mut me = souk.account().await;
    let mut sale = flash_sales::open_to_all(&souk, &sku).await;
    for round in 0..ROUNDS {
        if round % 10 == 0 {
            cart = souk.cart_with(&sku, 1).await;
            me = souk.account().await;
            sale = flash_sales::open_to_all(&souk, &sku).await;
        }
        for (method, pattern, template) in &templates {
            let (id, token) = match *pattern {
                pattern if pattern.starts_with("/api/carts") => (&cart.id, cart.token.as_str()),
                pattern if pattern.starts_with("/api/orders/") => (&order, ADMIN.as_str()),
                "/api/orders" => (&order, "nobody"),
                "/api/users" | "/api/sessions" | "/api/sessions/refresh" if *method == "POST" => (&order, "nobody"),
                pattern if ["/claims", "/ticket", "/reminder"].iter().any(|own| pattern.contains(own)) => {
                    (&sale, me.token.as_str())
                }
                pattern if pattern.starts_with("/api/flash-sales") => (&sale, ADMIN.as_str()),
                pattern if pattern.starts_with("/api/users/{id}") => (&me.id, ADMIN.as_str()),
                pattern if pattern.starts_with("/api/users") || pattern.starts_with("/api/s") => (&me.id, me.token.as_str()),
                _ => (&product, ADMIN.as_str()),
            };
            let path = pattern.replace("{id}", id).replace("{sku}", &sku).replace("{kind}", "order").replace("{role}", "admin");
            let path = path.replace("{claim}", &souk::domain::ids::claim(&sale, 0));
            let mut call = souk.call(method, &path).bearer(token).body(body(template, &mut random));
            if random.u32(0..6) == 0 {
                call = call.key(["k", "k2", "\u{e9}", &"k".repeat(300)][random.usize(0..4)]);
            }
            if random.u32(0..10) == 0 {
                call = call.header("if-match", ["\"1\"", "*", "\"\"", "\"18446744073709551615\"", ","][random.usize(0..5)]);
            }
            if random.u32(0..12) == 0 {
                call = call.header("content-type", ["application/json", "text/xml", ";", "a/b+json"][random.usize(0..4)]);
            }
            let what = format!("seed {seed}, round {round}: {}", String::from_utf8_lossy(&call.bytes()));
            line.write(&call.bytes()).await;
            let Some(answer) = line.next_answer(false).await else { panic!("the connection was dropped; {what}") };
            let answer = answer.check(&call);
            assert!(answer.status < 500 && answer.header("connection").is_none(), "{answer}; {what}");
            *if answer.status < 300 { &mut accepted } else { &mut refused } += 1;
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(accepted > 100 && refused > 1_000);
    let stock = souk.inventory(&sku).await;
    assert!(stock["on_hand"].as_u64() >= stock["reserved"].as_u64(), "{stock}");
    let list = souk.get("/api/orders").bearer(&ADMIN).header("souk-at-least", &souk.adjust(&sku, 1).await.position_or_0());
    list.send().await.expect(200);
    let mut query = souk.connect().await;
    for _ in 0..ROUNDS {
        let mut text =
            |count: usize| (0..count).map(|_| random.char('!'..'~')).filter(|c| !" #\"<>\\^`{|}".contains(*c)).collect();
        let (path, value): (String, String) = (text(12), text(20));
        let names = ["q", "limit", "cursor", "sort", "tag", "min_price", "in_stock", "shop", "status", "x"];
        let name = names[value.len() % names.len()];
        for path in [format!("/api/products?{name}={value}"), format!("/api/orders?{name}={value}"), format!("/api/{path}")] {
            let answer = souk.get(&path).bearer(&ADMIN).send_on(&mut query).await;
            assert!(answer.status < 500, "seed {seed}: {path}: {answer}");
        }
    }
}
