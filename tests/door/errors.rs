//! Each shape that a refusal has.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::client::Call;
use souk::actors::permissions::{Rank, Reach};
use souk::http::routes::{ROUTES, Route};

use crate::server::{ADMIN, Souk, address, eventually, product_body, purchase};

/// The answer is a problem about the field at `pointer`.
async fn refused_at(call: Call, pointer: &str) {
    let what = format!("{} {}", call.method, call.path);
    let body = call.send().await.problem(400, "invalid-body");
    assert_eq!(body["errors"][0]["pointer"], pointer, "{what}: {body}");
}

fn with(mut body: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match body.pointer_mut(parent).unwrap() {
        Value::Object(object) => drop(object.insert(name.to_owned(), value)),
        Value::Array(array) => array[name.parse::<usize>().unwrap()] = value,
        _ => panic!("{pointer}"),
    }
    body
}

#[tokio::test]
async fn a_wrong_field_is_named_by_its_pointer() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 5).await;
    let cart = souk.cart_with(&sku, 1).await;
    let product = product_body(&[(&format!("{sku}-A"), 1_000, 1), (&format!("{sku}-B"), 1_000, 1)]);
    for (pointer, value) in [
        ("/title", json!(7)),
        ("/title", json!("")),
        ("/title", json!("x".repeat(300))),
        ("/colour", json!("red")),
        ("/tags", json!("red")),
        ("/tags/0", json!(null)),
        ("/variants", json!([])),
        ("/variants/1/sku", json!(" padded ")),
        ("/variants/1/sku", json!("line\nbreak")),
        ("/variants/1/price", json!(12)),
        ("/variants/1/price/amount", json!(12.5)),
        ("/variants/1/price/amount", json!(-1)),
        ("/variants/0/price/currency", json!("EURO")),
        ("/variants/0/price/currency", json!("eur")),
        ("/variants/0/stock", json!(-1)),
        ("/variants/0/stock", json!(4_294_967_296_u64)),
    ] {
        let body = if pointer == "/tags/0" {
            with(product.clone(), "/tags", json!([null]))
        } else {
            with(product.clone(), pointer, value)
        };
        refused_at(souk.post("/api/products", body).bearer(&ADMIN), pointer).await;
    }
    for (pointer, value) in [
        ("/quantity", json!(0)),
        ("/quantity", json!(-1)),
        ("/quantity", json!("2")),
        ("/quantity", json!(10_001)),
        ("/quantity", json!(1e300)),
        ("/sku", json!("")),
        ("/sku", json!(null)),
        ("/price", json!(1)),
        ("/a~b", json!(1)),
    ] {
        let body = with(json!({ "sku": sku, "quantity": 1 }), pointer, value);
        let pointer = if pointer == "/a~b" { "/a~0b" } else { pointer };
        refused_at(souk.post(&cart.path("/items"), body).bearer(&cart.token), pointer).await;
    }
    for (pointer, value) in [
        ("/payment", json!("tok_ok")),
        ("/payment/token", json!(1)),
        ("/payment/iban", json!(1)),
        ("/shipping_address/city", json!(null)),
        ("/shipping_address/city", json!("")),
        ("/shipping_address/country", json!("Morocco")),
        ("/shipping_address/planet", json!("Earth")),
        ("/email", json!("nobody")),
        ("/email", json!(null)),
        ("/expected_total", json!(5)),
        ("/expected_total/currency", json!("XXQ")),
    ] {
        let body = match pointer {
            "/expected_total/currency" => with(purchase("tok_ok"), "/expected_total", json!({ "amount": 1, "currency": value })),
            _ => with(purchase("tok_ok"), pointer, value),
        };
        refused_at(souk.post(&cart.path("/checkout"), body.clone()).bearer(&cart.token), pointer).await;
        let body = with(body, "/items", json!([{ "sku": sku, "quantity": 1 }]));
        refused_at(souk.post("/api/orders", body), pointer).await;
    }
    for (items, pointer) in [
        (json!([]), "/items"),
        (json!({}), "/items"),
        (json!([{ "sku": sku, "quantity": 1 }, { "sku": sku, "quantity": 0 }]), "/items/1/quantity"),
        (json!([{ "sku": " ", "quantity": 1 }]), "/items/0/sku"),
        (json!([{ "sku": sku }]), "/items/0/quantity"),
    ] {
        refused_at(souk.post("/api/orders", with(purchase("tok_ok"), "/items", items)), pointer).await;
    }
    let adjustments = format!("/api/inventory/{sku}/adjustments");
    for (body, pointer) in [
        (json!({ "delta": 0, "reason": "r" }), "/delta"),
        (json!({ "delta": 1 }), "/reason"),
        (json!({ "delta": 1, "reason": " " }), "/reason"),
        (json!({ "delta": 1, "reason": "r".repeat(201) }), "/reason"),
        (json!({ "delta": i64::MAX, "reason": "r" }), "/delta"),
        (json!([]), ""),
    ] {
        refused_at(souk.post(&adjustments, body).bearer(&ADMIN), pointer).await;
    }
    refused_at(souk.post("/api/carts", json!({ "owner": "me" })), "/owner").await;
    refused_at(souk.post(&cart.path("/merge"), json!({ "from": "x", "from_token": "y" })).bearer(&cart.token), "/from").await;
    let lowered = souk.adjust(&sku, -5).await.problem(409, "below-committed");
    assert_eq!(lowered["committed"], 1);
    let taken = souk.post("/api/products", product_body(&[(&sku, 1, 1)])).bearer(&ADMIN).send().await;
    assert_eq!(taken.problem(409, "sku-taken")["skus"], json!([sku]));
}

#[tokio::test]
async fn what_is_not_json_is_refused_with_the_place() {
    let souk = Souk::shared().await;
    for (body, line, column) in [("{", 1, 1), ("nonsense", 1, 2), ("{} {}", 1, 4), ("\u{feff}{}", 1, 1)] {
        let problem = souk.call("POST", "/api/carts").body(body).send().await.problem(400, "invalid-json");
        assert_eq!((&problem["line"], &problem["column"]), (&json!(line), &json!(column)), "{body}: {problem}");
    }
    let deep = "[".repeat(200_000);
    let answer = souk.call("POST", "/api/carts").body(deep).send().await;
    assert_eq!(answer.status, 400, "{answer}");
    let deep = format!("{{\"items\":{}{}}}", "[".repeat(300_000), "]".repeat(300_000));
    souk.call("POST", "/api/orders").body(deep).send().await.expect(400);
    souk.call("POST", "/api/carts").body(b"{\"a\xff\":1}".to_vec()).send().await.expect(400);
    souk.call("POST", "/api/carts").send().await.expect(201);
    for wrong in ["text/plain", "application/x-www-form-urlencoded", "application/json5", ""] {
        let call = souk.call("POST", "/api/carts").header("content-type", wrong).body("{}");
        call.send().await.problem(415, "unsupported-media-type");
    }
    for right in ["application/json; charset=utf-8", "Application/JSON", "application/merge-patch+json"] {
        souk.call("POST", "/api/carts").header("content-type", right).body("{}").send().await.expect(201);
    }
    let mut body = purchase("tok_ok");
    body["items"] = json!([{ "sku": souk.sku(100, 1).await, "quantity": 1 }]);
    for field in ["coupon_code", "couponCode", "promotion_code", "promotionCode"] {
        let mut body = body.clone();
        body[field] = json!("WELCOME");
        let problem = souk.post("/api/orders", body).send().await.problem(422, "not-offered");
        assert!(["/coupon_code", "/promotion_code"].contains(&problem["errors"][0]["pointer"].as_str().unwrap()));
    }
    let cart = souk.cart().await;
    let coupon = with(purchase("tok_ok"), "/coupon_code", json!("WELCOME"));
    souk.post(&cart.path("/checkout"), coupon).bearer(&cart.token).send().await.problem(422, "not-offered");
    let nothing = json!({ "items": [{ "sku": "NO-SUCH-SKU", "quantity": 1 }], "payment": body["payment"],
        "shipping_address": address(), "email": "a@b.test" });
    let unknown = souk.post("/api/orders", nothing).send().await.problem(409, "not-for-sale");
    assert_eq!((&unknown["errors"][0]["pointer"], &unknown["skus"]), (&json!("/items/0/sku"), &json!(["NO-SUCH-SKU"])));
}

#[tokio::test]
async fn whoever_is_not_signed_in_is_told_so_where_that_is_needed() {
    let souk = Souk::shared().await;
    let guest = souk.cart().await;
    let is_closed = |route: &&Route| route.permission.reach(Rank::Guest) == Reach::None;
    for route in ROUTES.iter().filter(is_closed) {
        let path = route.pattern.replace(['{', '}'], "");
        let call = souk.call(route.method.as_str(), &path);
        for given in [None, Some(guest.token.as_str()), Some("nonsense"), Some("")] {
            let call = call.clone();
            let call = if let Some(token) = given { call.bearer(token) } else { call };
            let answer = call.send().await;
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{}", route.pattern);
            answer.problem(401, "unauthorized");
        }
        let basic = call.clone().header("authorization", &format!("Basic {}", *ADMIN)).send().await;
        basic.problem(401, "unauthorized");
        call.clone().bearer(&ADMIN[1..]).send().await.problem(401, "invalid-token");
        // Who it is decides before what was sent: nothing is learned from the order of checks.
        call.body("nonsense").send().await.problem(401, "unauthorized");
    }
}

#[tokio::test]
async fn whoever_comes_with_a_browser_is_told_as_a_page() {
    let souk = Souk::shared().await;
    for (path, accept, status, content_type) in [
        ("/nowhere", "text/html,*/*", 404, "text/html; charset=utf-8"),
        ("/nowhere", "*/*", 404, "application/problem+json"),
        ("/api/products/prod_short", "text/html", 404, "application/problem+json"),
        ("/products/prod_short", "text/html", 404, "text/html; charset=utf-8"),
        ("/products?sort=nonsense", "text/html", 400, "text/html; charset=utf-8"),
        ("/products?nonsense=1", "text/html", 400, "text/html; charset=utf-8"),
        ("/orders/ord_01ARZ3NDEKTSV4RRFFQ69G5FAV", "text/html", 404, "text/html; charset=utf-8"),
        ("/orders", "text/html", 303, ""),
        ("/vendor", "text/html", 303, ""),
        ("/operator", "text/html", 303, ""),
    ] {
        let answer = souk.get(path).header("accept", accept).send().await;
        assert_eq!((answer.status, answer.header("content-type").unwrap_or_default()), (status, content_type), "{path} {accept}");
        if status == 303 {
            assert_eq!(answer.header("location"), Some(&*format!("/login?back=%2F{}", &path[1..])));
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let souk = Souk::shared().await;
    let ulid = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    for path in [
        "/nowhere".to_owned(),
        "/api".into(),
        "/api/".into(),
        "/api/products/".into(),
        "//api/products".into(),
        "/api/products/../products".into(),
        "/API/products".into(),
        "/api/products/nonsense".into(),
        "/api/products/prod_short".into(),
        format!("/api/products/prod_{ulid}"),
        format!("/api/products/ord_{ulid}"),
        format!("/api/products/prod_{}", "8".repeat(26)),
        format!("/api/carts/cart_{ulid}"),
        format!("/api/orders/ord_{ulid}"),
        format!("/api/orders/ord_{ulid}/history"),
        format!("/api/orders/ord_{ulid}/events"),
        format!("/api/cluster/entities/order/ord_{ulid}"),
        "/api/cluster/entities/nonsense/x".into(),
        "/api/inventory/NO-SUCH-SKU".into(),
        "/api/inventory/%20padded".into(),
        "/api/inventory/a%0Ab".into(),
        format!("/api/inventory/{}", "x".repeat(101)),
        "/.git/config".into(),
        "/api/products/%2e%2e%2f%2e%2e%2fetc%2fpasswd".into(),
    ] {
        let answer = souk.get(&path).bearer(&ADMIN).send().await;
        assert_eq!(answer.status, 404, "{path}: {answer}");
    }
    souk.adjust("NO-SUCH-SKU", 1).await.problem(404, "not-found");
    let path = format!("/api/products/prod_{ulid}");
    souk.patch(&path, json!({})).bearer(&ADMIN).send().await.problem(404, "not-found");
    souk.delete(&path).bearer(&ADMIN).send().await.problem(404, "not-found");
    let ship = souk.post(&format!("/api/orders/ord_{ulid}/shipments"), json!({ "carrier": "c" }));
    ship.bearer(&ADMIN).send().await.problem(404, "not-found");
    let cart = souk.cart().await;
    let line = cart.path("/items/NO-SUCH-SKU");
    souk.patch(&line, json!({ "quantity": 1 })).bearer(&cart.token).send().await.problem(404, "no-such-line");
    souk.delete(&line).bearer(&cart.token).send().await.problem(404, "no-such-line");
}

#[tokio::test]
async fn a_query_that_is_not_understood_is_refused() {
    let souk = Souk::shared().await;
    for (path, name) in [
        ("/api/products?limit=0", "limit"),
        ("/api/products?limit=101", "limit"),
        ("/api/products?limit=x", "limit"),
        ("/api/products?limit=", "limit"),
        ("/api/products?cursor=", "cursor"),
        ("/api/products?in_stock=", "in_stock"),
        ("/api/products?sort=", "sort"),
        ("/api/products?min_price=-1", "min_price"),
        ("/api/products?limit=1&limit=2", "limit"),
        ("/api/products?cursor=nonsense", "cursor"),
        ("/api/products?sort=colour", "sort"),
        ("/api/products?in_stock=maybe", "in_stock"),
        ("/api/products?min_price=1.5", "min_price"),
        ("/api/products?max_price=99999999999999999999", "max_price"),
        ("/api/products?colour=red", "colour"),
        ("/api/cluster?colour=red", "colour"),
        ("/api/products?q=%zz", "q"),
        ("/api/products?q=%ff", "q"),
        ("/api/orders?status=lost", "status"),
        ("/api/orders?cursor=%F0%9F%92%A9", "cursor"),
    ] {
        let problem = souk.get(path).bearer(&ADMIN).send().await.problem(400, "invalid-parameter");
        assert!(problem["title"].as_str().unwrap().contains(name), "{path}: {problem}");
    }
    souk.get("/api/products").header("souk-at-least", "soon").send().await.problem(400, "invalid-header");
    souk.get("/api/products?q=&tag=").send().await.expect(200);
    souk.get("/api/products?cursor=00ff").send().await.problem(404, "no-such-page");
    for key in ["", "\u{e9}", &"k".repeat(256)] {
        souk.post("/api/carts", json!({})).key(key).send().await.problem(400, "invalid-header");
    }
}

#[tokio::test]
async fn an_object_is_not_a_list_and_a_whole_number_may_have_a_point() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 100).await;
    let cart = souk.cart().await;
    let items = cart.path("/items");
    let add = |body: Value| souk.post(&items, body).bearer(&cart.token).send();
    souk.post("/api/carts", json!([])).send().await.problem(400, "invalid-body");
    add(json!([sku, 1])).await.problem(400, "invalid-body");
    let mut order = purchase("tok_ok");
    order["items"] = json!([[sku, 1]]);
    refused_at(souk.post("/api/orders", order.clone()), "/items/0").await;
    order["items"] = json!([{ "sku": sku, "quantity": 1 }]);
    order["payment"] = json!(["sandbox", "tok_ok"]);
    refused_at(souk.post("/api/orders", order), "/payment").await;

    let added = add(json!({ "sku": sku, "quantity": 2.0 })).await.expect(200).json();
    assert_eq!(added["lines"][0]["quantity"], 2);
    add(json!({ "sku": sku, "quantity": 1.5 })).await.problem(400, "invalid-body");
}

#[tokio::test]
async fn fields_that_contradict_each_other_are_named() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 1).await;
    let body = product_body(&[(&format!("{sku}-A"), 1_000, 1), (&format!("{sku}-B"), 1_000, 1)]);
    for (pointer, value) in [
        ("/variants/1/sku", json!(format!("{sku}-A"))),
        ("/variants/1/options", json!([])),
        ("/variants/1/price", json!({ "amount": 1, "currency": "USD" })),
    ] {
        let body = with(body.clone(), pointer, value);
        let problem = souk.post("/api/products", body).bearer(&ADMIN).send().await.problem(409, "contradictory-body");
        assert!(problem["errors"][0]["pointer"].as_str().unwrap().starts_with(pointer), "{problem}");
    }
    let id = souk.product(&[(&format!("{sku}-C"), 1_000, 1)]).await;
    let moved = souk.patch(&format!("/api/products/{id}"), json!({ "shop_id": "another" })).bearer(&ADMIN).send().await;
    assert_eq!(moved.problem(409, "contradictory-body")["errors"][0]["pointer"], "/shop_id");
}

#[tokio::test]
async fn a_node_that_is_full_says_when_to_come_back_and_goes_on() {
    let souk = Souk::start(&["--waiting-per-node", "1"]).await;
    let answers = join_all((0..200).map(|_| souk.post("/api/carts", json!({})).send())).await;
    let made = answers.iter().filter(|answer| answer.status == 201).count();
    assert!(made > 0 && made < answers.len(), "{made} of {}", answers.len());
    for answer in answers.into_iter().filter(|answer| answer.status != 201) {
        assert_eq!(answer.header("retry-after"), Some("1"));
        answer.problem(503, "overloaded");
    }
    let made = async || (souk.post("/api/carts", json!({})).send().await.status == 201).then_some(());
    eventually(Duration::from_secs(5), made).await;
}
