//! Each route of the table on its good path, and what the conventions say of single things.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::client::{Answer, Call};
use crate::server::{ADMIN, Souk, name, product_body, purchase, text};
use crate::{accounts, flash_sales};

/// Which routes were walked.
#[derive(Default)]
pub struct Walk(BTreeSet<(String, &'static str)>);

impl Walk {
    /// Something that was taken by other means.
    pub fn noted(&mut self, method: &str, pattern: &'static str) {
        self.0.insert((method.into(), pattern));
    }

    pub async fn take(&mut self, pattern: &'static str, call: Call, status: u16) -> Answer {
        self.0.insert((call.method.clone(), pattern));
        // Boxed: unoptimised, a long walk is more than a thread's stack.
        Box::pin(call.send()).await.expect(status)
    }
}

fn members(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn each_route_answers_as_documented() {
    let souk = Souk::shared().await;
    let mut walk = Walk::default();
    let sku = name("ROUTES");
    let mut body = product_body(&[(&sku, 1_500, 20)]);
    body["tags"] = json!([sku]);
    body["type"] = json!("Lamp");
    let created = walk.take("/api/products", souk.post("/api/products", body).bearer(&ADMIN), 201).await;
    let product = created.json();
    let path = format!("/api/products/{}", text(&product["id"]));
    assert_eq!((created.header("location"), created.header("content-type")), (Some(path.as_str()), Some("application/json")));
    assert_eq!((created.etag(), created.position() > 0), (format!("\"{}\"", product["version"]), true));
    let wanted = "id shop_id handle title description vendor type category tags options variants published version";
    assert_eq!(members(&product), wanted.split(' ').collect());
    assert_eq!(product["variants"][0]["price"], json!({ "amount": 1_500, "currency": "EUR" }));

    let seen = walk.take("/api/products/{id}", souk.get(&path), 200).await;
    assert_eq!((seen.json(), seen.etag()), (product.clone(), created.etag()));
    let listed = souk.get(&format!("/api/products?tag={sku}")).header("souk-at-least", &created.position().to_string());
    let listed = walk.take("/api/products", listed, 200).await.json();
    assert_eq!(members(&listed), ["items", "next_cursor"].into());
    assert_eq!((&listed["items"][0]["id"], &listed["items"][0]["variants"][0]["available"]), (&product["id"], &json!(20)));
    let changed = walk.take("/api/products/{id}", souk.patch(&path, json!({ "title": "New" })).bearer(&ADMIN), 200).await;
    assert_eq!((&changed.json()["title"], &changed.json()["type"]), (&json!("New"), &json!("Lamp")));
    assert!(changed.etag() != created.etag() && changed.position() > created.position());

    let item = format!("/api/inventory/{sku}");
    let stock = walk.take("/api/inventory/{sku}", souk.get(&item), 200).await;
    let wanted = "sku product_id on_hand reserved held allotted available low_stock_threshold";
    assert_eq!(members(&stock.json()), wanted.split(' ').collect());
    let threshold = souk.patch(&item, json!({ "low_stock_threshold": 3 })).bearer(&ADMIN);
    let threshold = walk.take("/api/inventory/{sku}", threshold, 200).await;
    assert_eq!(threshold.json()["low_stock_threshold"], 3);
    let adjustment = json!({ "delta": -5, "reason": "broken" });
    let adjust = souk.post(&format!("{item}/adjustments"), adjustment).bearer(&ADMIN);
    let adjusted = walk.take("/api/inventory/{sku}/adjustments", adjust, 200).await;
    assert_eq!(adjusted.json()["on_hand"], 15);
    assert!(adjusted.position() > threshold.position() && adjusted.etag() != threshold.etag());

    let carts = "/api/carts";
    let cart = walk.take(carts, souk.post(carts, json!({})), 201).await.json();
    assert_eq!(members(&cart), ["id", "status", "lines", "subtotal", "token"].into());
    let (cart_path, token) = (format!("/api/carts/{}", text(&cart["id"])), text(&cart["token"]));
    let items = format!("{cart_path}/items");
    let add = souk.post(&items, json!({ "sku": sku, "quantity": 2 })).bearer(&token);
    let added = walk.take("/api/carts/{id}/items", add, 200).await;
    assert!(added.position() > 0 && added.etag().starts_with('"'));
    let line = format!("{items}/{sku}");
    let set = souk.patch(&line, json!({ "quantity": 3 })).bearer(&token);
    let set = walk.take("/api/carts/{id}/items/{sku}", set, 200).await;
    assert_eq!((&set.json()["lines"][0]["quantity"], set.position() > added.position()), (&json!(3), true));
    let seen = walk.take("/api/carts/{id}", souk.get(&cart_path).bearer(&token), 200).await;
    assert_eq!((seen.json(), seen.etag()), (set.json(), set.etag()));
    let removed = walk.take("/api/carts/{id}/items/{sku}", souk.delete(&line).bearer(&token), 200).await;
    assert_eq!(removed.json()["lines"], json!([]));
    let other = souk.cart_with(&sku, 1).await;
    let merge = souk.post(&format!("{cart_path}/merge"), json!({ "from": other.id, "from_token": other.token }));
    let merged = walk.take("/api/carts/{id}/merge", merge.bearer(&token), 200).await;
    assert_eq!((&merged.json()["lines"][0]["quantity"], merged.position() > 0), (&json!(1), true));
    let unused = souk.cart().await;
    let deleted = walk.take("/api/carts/{id}", souk.delete(&unused.path("")).bearer(&unused.token), 204).await;
    assert!(deleted.position() > 0);
    souk.get(&unused.path("")).bearer(&unused.token).send().await.problem(404, "not-found");

    let check_out = souk.post(&format!("{cart_path}/checkout"), purchase("tok_ok")).bearer(&token);
    let order = walk.take("/api/carts/{id}/checkout", check_out, 201).await;
    let wanted = "id status lines total email shipping_address payment placed_at shipments cart_id";
    assert_eq!(members(&order.json()), wanted.split(' ').collect());
    let id = text(&order.json()["id"]);
    let order_path = format!("/api/orders/{id}");
    let mut body = purchase("tok_ok");
    body["items"] = json!([{ "sku": sku, "quantity": 1 }]);
    let direct = walk.take("/api/orders", souk.post("/api/orders", body), 201).await;
    assert!(direct.json()["token"].is_string());
    let list = souk.get("/api/orders?limit=100").bearer(&ADMIN).header("souk-at-least", &direct.position().to_string());
    let list = walk.take("/api/orders", list, 200).await.json();
    let listed = list["items"].as_array().unwrap().iter().find(|order| order["id"] == direct.json()["id"]).unwrap();
    assert_eq!((&listed["status"], &listed["items"]), (&json!("paid"), &json!(1)));
    walk.take("/api/orders/{id}", souk.get(&order_path).bearer(&token), 200).await;
    let history = walk.take("/api/orders/{id}/history", souk.get(&format!("{order_path}/history")).bearer(&token), 200).await;
    assert_eq!(members(&history.json()["items"][0]), ["version", "type", "time", "data", "asked_by"].into());
    let ship = souk.post(&format!("{order_path}/shipments"), json!({ "carrier": "Caravan" })).bearer(&ADMIN);
    let shipped = walk.take("/api/orders/{id}/shipments", ship, 201).await;
    assert_eq!((&shipped.json()["status"], shipped.position() > order.position()), (&json!("shipped"), true));
    let deliver = souk.call("POST", &format!("{order_path}/delivery")).bearer(&ADMIN);
    assert_eq!(walk.take("/api/orders/{id}/delivery", deliver, 200).await.json()["status"], "delivered");
    let cancel = souk.post(&format!("/api/orders/{}/cancel", text(&direct.json()["id"])), json!({}));
    walk.take("/api/orders/{id}/cancel", cancel.bearer(&text(&direct.json()["token"])), 200).await;

    let cluster = walk.take("/api/cluster", souk.get("/api/cluster").bearer(&ADMIN), 200).await.json();
    assert_eq!((&cluster["members"][0]["self"], &cluster["set_aside"]), (&json!(true), &json!([])));
    assert!(cluster["residents"]["order"].as_u64().unwrap() > 0);
    let entity = souk.get(&format!("/api/cluster/entities/order/{id}")).bearer(&ADMIN);
    let entity = walk.take("/api/cluster/entities/{kind}/{id}", entity, 200).await.json();
    assert_eq!((&entity["kind"], &entity["state"]["status"]), (&json!("order"), &json!("delivered")));
    // Nothing is set aside here; what is cannot be brought about from outside.
    let release = souk.call("POST", &format!("/api/cluster/set-aside/order/{id}/release")).bearer(&ADMIN);
    walk.take("/api/cluster/set-aside/{kind}/{id}/release", release, 404).await;

    for (path, status) in [("/health/live", "live"), ("/health/ready", "ready")] {
        let pattern = souk::http::routes::ROUTES.iter().find(|route| route.pattern == path).unwrap().pattern;
        let health = walk.take(pattern, souk.get(path), 200).await;
        assert_eq!((health.json(), health.header("cache-control")), (json!({ "status": status }), Some("no-store")));
    }
    for (path, content_type) in [
        ("/api/openapi.json", "application/json"),
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/style.css", "text/css; charset=utf-8"),
    ] {
        let shown = walk.take(path, souk.get(path), 200).await;
        assert_eq!(shown.header("content-type"), Some(content_type));
        let known = souk.get(path).header("if-none-match", shown.header("etag").unwrap()).send().await.expect(304);
        assert!(known.body.is_empty());
        if path != "/api/openapi.json" {
            let policy = shown.header("content-security-policy").unwrap();
            assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        }
    }
    let metrics = walk.take("/metrics", souk.get("/metrics"), 200).await;
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text_of = String::from_utf8(metrics.body).unwrap();
    assert!(text_of.contains("/api/carts/{id}/checkout") && text_of.trim_end().ends_with("# EOF"), "{text_of}");

    let socket = souk.get("/ws").header("connection", "Upgrade").header("upgrade", "websocket");
    let socket = socket.header("sec-websocket-version", "13").header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let socket = walk.take("/ws", socket, 101).await;
    assert_eq!(socket.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    walk.noted("GET", "/api/orders/{id}/events");
    let mut line = souk.connect().await;
    line.write(&souk.get(&format!("{order_path}/events?access_token={token}")).bytes()).await;
    let head = line.head().await.to_lowercase();
    assert!(head.starts_with("http/1.1 200") && head.contains("content-type: text/event-stream"), "{head}");
    assert!(head.contains("x-request-id: ") && head.contains("cache-control: no-store"), "{head}");

    accounts::walk(&souk, &mut walk, &sku).await;
    flash_sales::walk(&souk, &mut walk).await;

    let gone = walk.take("/api/products/{id}", souk.delete(&path).bearer(&ADMIN), 204).await;
    assert!(gone.position() > changed.position());
    souk.get(&path).send().await.problem(404, "not-found");
    let table = souk::http::routes::ROUTES.iter().map(|route| (route.method.to_string(), route.pattern));
    let left_out: Vec<_> = table.filter(|route| !walk.0.contains(route)).collect();
    assert!(left_out.is_empty(), "{left_out:?}");
}

#[tokio::test]
async fn an_unchanged_thing_is_not_sent_again_and_a_change_of_an_old_version_is_refused() {
    let souk = Souk::shared().await;
    let sku = name("TAGGED");
    let product = format!("/api/products/{}", souk.product(&[(&sku, 1_000, 9)]).await);
    let cart = souk.cart_with(&sku, 1).await;
    let order_cart = souk.cart_with(&sku, 1).await;
    let order = format!("/api/orders/{}", text(&souk.check_out(&order_cart, "tok_ok").await.expect(201).json()["id"]));
    let item = format!("/api/inventory/{sku}");
    for (path, token) in [
        (&product, ADMIN.as_str()),
        (&item, ADMIN.as_str()),
        (&cart.path(""), cart.token.as_str()),
        (&order, order_cart.token.as_str()),
    ] {
        let seen = souk.get(path).bearer(token).send().await.expect(200);
        let tag = seen.etag();
        for given in [tag.clone(), format!("W/{tag}"), format!("\"0\", {tag}"), "*".to_owned()] {
            let same = souk.get(path).bearer(token).header("if-none-match", &given).send().await.expect(304);
            assert_eq!((same.etag(), same.body.len()), (tag.clone(), 0), "{path} {given}");
        }
        for given in ["\"0\"", "nonsense", ""] {
            souk.get(path).bearer(token).header("if-none-match", given).send().await.expect(200);
        }
    }
    let line = cart.path(&format!("/items/{sku}"));
    let changes = [
        (&product, souk.patch(&product, json!({ "title": "Newer" })), ADMIN.as_str(), 200),
        (&item, souk.patch(&item, json!({ "low_stock_threshold": 2 })), ADMIN.as_str(), 200),
        (&item, souk.post(&format!("{item}/adjustments"), json!({ "delta": 1, "reason": "found" })), ADMIN.as_str(), 200),
        (&cart.path(""), souk.patch(&line, json!({ "quantity": 2 })), cart.token.as_str(), 200),
        (&cart.path(""), souk.post(&cart.path("/items"), json!({ "sku": sku, "quantity": 1 })), cart.token.as_str(), 200),
        (&cart.path(""), souk.post(&cart.path("/checkout"), purchase("tok_ok")), cart.token.as_str(), 201),
        (&order, souk.post(&format!("{order}/shipments"), json!({ "carrier": "c" })), ADMIN.as_str(), 201),
        (&product, souk.delete(&product), ADMIN.as_str(), 204),
    ];
    for (path, change, token, status) in changes {
        let tag = souk.get(path).bearer(token).send().await.expect(200).etag();
        let old = change.clone().bearer(token).header("if-match", "\"1\"").send().await.problem(412, "version-differs");
        assert_eq!(format!("\"{}\"", old["version"]), tag, "{path}");
        for wrong in ["1", "W/\"1\"", "\"1\", \"2\""] {
            change.clone().bearer(token).header("if-match", wrong).send().await.problem(400, "invalid-header");
        }
        assert_eq!(souk.get(path).bearer(token).send().await.expect(200).etag(), tag, "a refusal changes nothing");
        change.bearer(token).header("if-match", &tag).send().await.expect(status);
    }
}

#[tokio::test]
async fn head_answers_as_get_without_the_body_and_options_says_what_there_is() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 5).await;
    for path in ["/api/products", "/health/live", "/metrics", &format!("/api/inventory/{sku}"), "/api/nothing", "/api/cluster"] {
        let (get, head) = (souk.get(path).send().await, souk.call("HEAD", path).send().await);
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        assert_eq!((head.header("content-type"), head.header("etag")), (get.header("content-type"), get.header("etag")));
        let length = head.header("content-length").unwrap().parse::<usize>().unwrap();
        // Metrics count this very request, and request ids differ in nothing but their letters.
        assert!(path == "/metrics" || length == get.body.len(), "{path}");
    }
    // The answer to a HEAD ends with its head: the next one on the connection is not disturbed.
    let mut line = souk.connect().await;
    for method in ["HEAD", "GET", "HEAD", "OPTIONS", "HEAD", "GET"] {
        souk.call(method, "/api/products").send_on(&mut line).await;
    }
    let mut seen = BTreeSet::new();
    for route in souk::http::routes::ROUTES {
        let path = route.pattern.replace(['{', '}'], "");
        if !seen.insert(path.clone()) {
            continue;
        }
        let options = souk.call("OPTIONS", &path).send().await.expect(204);
        let allowed: Vec<String> = options.header("allow").unwrap().split(", ").map(str::to_owned).collect();
        assert!(allowed.contains(&route.method.to_string()) && allowed.contains(&"OPTIONS".to_owned()), "{path}: {allowed:?}");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "BREW"] {
            let answer = souk.call(method, &path).send().await;
            match allowed.iter().any(|allowed| allowed == method) {
                true => assert!(answer.status != 405, "{method} {path}: {answer}"),
                false => {
                    assert_eq!(answer.header("allow"), options.header("allow"), "{method} {path}");
                    answer.problem(405, "method-not-allowed");
                }
            }
        }
    }
}

#[tokio::test]
async fn each_answer_bears_the_requests_name_and_a_trace_is_taken_up() {
    let souk = Souk::shared().await;
    let named = souk.get("/api/products").header("x-request-id", "mine-1.2_3").send().await;
    assert_eq!(named.header("x-request-id"), Some("mine-1.2_3"));
    for odd in ["a b", "<script>", &"x".repeat(65), "\u{e9}"] {
        let answer = souk.get("/api/nothing").header("x-request-id", odd).send().await;
        assert_eq!(answer.header("x-request-id").unwrap().len(), 26, "{odd:?}");
    }
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let call = souk.post("/api/carts", json!({})).header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"));
    let cart = text(&call.send().await.expect(201).json()["id"]);
    let record = souk.get(&format!("/api/cluster/entities/cart/{cart}")).bearer(&ADMIN).send().await.expect(200).json();
    assert!(record["history"][0].to_string().contains(trace), "{record}");
}
