//! The purchase, end to end: from an empty cart to an order that is paid, refused, cancelled or shipped.

use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{ADMIN, Cart, Souk, address, eventually, name, purchase, text};

const SETTLED: Duration = Duration::from_secs(15);

fn money(amount: i64) -> Value {
    json!({ "amount": amount, "currency": "EUR" })
}

/// Waits until the order has this status.
async fn becomes(souk: &Souk, id: &str, token: &str, status: &str) -> Value {
    eventually(SETTLED, async || Some(souk.order(id, token).await).filter(|order| order["status"] == status)).await
}

async fn history(souk: &Souk, id: &str, token: &str) -> Vec<String> {
    let path = format!("/api/orders/{id}/history?limit=100");
    let page = souk.get(&path).bearer(token).send().await.expect(200).json();
    assert_eq!(page["next_cursor"], Value::Null);
    page["items"].as_array().unwrap().iter().map(|item| text(&item["type"])).collect()
}

#[tokio::test]
async fn a_purchase_goes_from_an_empty_cart_to_a_paid_order() {
    let souk = Souk::shared().await;
    let (lamp, rug) = (souk.sku(1_999, 10).await, souk.sku(5_000, 3).await);

    let created = souk.post("/api/carts", json!({})).send().await.expect(201);
    let body = created.json();
    let cart = Cart { id: text(&body["id"]), token: text(&body["token"]) };
    assert_eq!(created.header("location"), Some(cart.path("").as_str()));
    assert_eq!((&body["status"], &body["lines"], &body["subtotal"]), (&json!("open"), &json!([]), &Value::Null));
    assert!(created.position() > 0 && cart.token.len() >= 32);

    let added = souk.add(&cart, &lamp, 2).await.expect(200);
    let line = &added.json()["lines"][0];
    assert_eq!((&line["sku"], &line["quantity"], &line["unit_price"]), (&json!(lamp), &json!(2), &money(1_999)));
    assert_eq!(line["total"], money(3_998));
    assert!(line["held_until"].is_string() && line.get("token").is_none());
    assert!(added.position() > created.position());
    assert_eq!(souk.inventory(&lamp).await["available"], 8, "a line in a cart is held");

    souk.add(&cart, &rug, 1).await.expect(200);
    let more = souk.add(&cart, &lamp, 1).await.expect(200).json();
    assert_eq!((&more["lines"][0]["quantity"], &more["subtotal"]), (&json!(3), &money(10_997)));
    let line = |sku: &str| cart.path(&format!("/items/{sku}"));
    let changed = souk.patch(&line(&lamp), json!({ "quantity": 4 })).bearer(&cart.token).send().await.expect(200);
    assert_eq!(changed.json()["subtotal"], money(12_996));
    let removed = souk.delete(&line(&rug)).bearer(&cart.token).send().await.expect(200);
    assert_eq!(removed.json()["lines"].as_array().unwrap().len(), 1);
    eventually(SETTLED, async || (souk.inventory(&rug).await["available"] == 3).then_some(())).await;

    let answer = souk.check_out(&cart, "tok_ok").await.expect(201);
    let order = answer.json();
    let id = text(&order["id"]);
    assert_eq!(answer.header("location"), Some(format!("/api/orders/{id}").as_str()));
    assert!(answer.position() > changed.position());
    assert_eq!((&order["status"], &order["total"], &order["cart_id"]), (&json!("paid"), &money(7_996), &json!(cart.id)));
    assert_eq!((&order["lines"][0]["sku"], &order["lines"][0]["quantity"]), (&json!(lamp), &json!(4)));
    assert_eq!((&order["email"], &order["shipping_address"]), (&json!("ada@example.test"), &address()));
    assert_eq!(order["payment"], json!({ "provider": "sandbox", "status": "captured" }));
    assert!(!answer.to_string().contains("tok_ok"), "a payment token is never shown");

    assert_eq!(souk.order(&id, &cart.token).await, order);
    assert_eq!(souk.order(&id, &ADMIN).await, order, "operators see every order");
    let stock = souk.inventory(&lamp).await;
    assert_eq!((&stock["on_hand"], &stock["reserved"], &stock["available"]), (&json!(6), &json!(0), &json!(6)));

    let told = history(&souk, &id, &cart.token).await;
    for once in ["order.created", "order.line.reserved", "order.payment.captured", "order.paid"] {
        assert_eq!(told.iter().filter(|told| *told == once).count(), 1, "{once}: {told:?}");
    }

    let cart_now = souk.get(&cart.path("")).bearer(&cart.token).send().await.expect(200).json();
    assert_eq!((&cart_now["status"], &cart_now["order_id"]), (&json!("checked_out"), &json!(id)));
    souk.add(&cart, &lamp, 1).await.problem(409, "cart-closed");
    souk.check_out(&cart, "tok_ok").await.problem(409, "cart-closed");
}

#[tokio::test]
async fn a_declined_payment_is_told_and_the_cart_can_be_used_again() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 5).await;
    let cart = souk.cart_with(&sku, 2).await;
    let order = souk.check_out(&cart, "tok_declined").await.expect(201).json();
    assert_eq!((&order["status"], &order["reason"]["kind"]), (&json!("payment_failed"), &json!("payment_declined")));
    let stock = souk.inventory(&sku).await;
    assert_eq!((&stock["on_hand"], &stock["reserved"]), (&json!(5), &json!(0)));

    let open = souk.get(&cart.path("")).bearer(&cart.token).send().await.expect(200).json();
    assert_eq!((&open["status"], &open["lines"][0]["quantity"]), (&json!("open"), &json!(2)));
    assert_eq!(open["last_failure"]["order"], order["id"]);
    souk.add(&cart, &sku, 1).await.expect(200);
    let order = souk.check_out(&cart, "tok_ok").await.expect(201).json();
    assert_eq!((&order["status"], &order["total"]), (&json!("paid"), &money(3_000)));
    assert_eq!(souk.inventory(&sku).await["on_hand"], 2);

    // An unknown token or provider is a declined payment, and no fault.
    let cart = souk.cart_with(&sku, 1).await;
    assert_eq!(souk.check_out(&cart, "tok_unheard_of").await.expect(201).json()["status"], "payment_failed");
    let mut body = purchase("tok_ok");
    body["payment"]["provider"] = json!("acme");
    let order = souk.post(&cart.path("/checkout"), body).bearer(&cart.token).send().await.expect(201).json();
    assert_eq!(order["status"], "payment_failed");
}

#[tokio::test]
async fn a_slow_payment_is_accepted_first_and_paid_later_and_an_outage_stays_open() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 5).await;
    let (slow, error) = (souk.cart_with(&sku, 1).await, souk.cart_with(&sku, 1).await);
    let body = json!({ "items": [{ "sku": sku, "quantity": 1 }], "payment": purchase("tok_slow")["payment"],
        "shipping_address": address(), "email": "ada@example.test" });
    let without_cart = souk.post("/api/orders", body).send();
    let (slow_answer, error_answer, orders_answer) =
        tokio::join!(souk.check_out(&slow, "tok_slow"), souk.check_out(&error, "tok_error"), without_cart);

    let mut orders = Vec::new();
    for answer in [slow_answer.expect(202), error_answer.expect(202), orders_answer.expect(202)] {
        let order = answer.json();
        assert_eq!(answer.header("location"), Some(format!("/api/orders/{}", text(&order["id"])).as_str()));
        assert!(["pending", "reserved"].contains(&order["status"].as_str().unwrap()), "{answer}");
        let list = souk.get("/api/orders?limit=100").bearer(&ADMIN).header("souk-at-least", &answer.position().to_string());
        let list = list.send().await.expect(200).json();
        assert!(list["items"].as_array().unwrap().iter().any(|listed| listed["id"] == order["id"]), "{list}");
        orders.push(order);
    }
    let id = |order: usize| text(&orders[order]["id"]);
    souk.add(&slow, &sku, 1).await.problem(409, "checking-out");
    becomes(&souk, &id(0), &slow.token, "paid").await;
    becomes(&souk, &id(2), &text(&orders[2]["token"]), "paid").await;
    let unpaid = souk.order(&id(1), &error.token).await;
    assert_eq!((&unpaid["status"], &unpaid["payment"]["status"]), (&json!("reserved"), &json!("authorizing")));
    let stock = souk.inventory(&sku).await;
    assert_eq!((&stock["on_hand"], &stock["reserved"]), (&json!(3), &json!(1)));

    // Cancelled before it is paid: nothing is charged, and the cart has its unit again.
    let cancel = souk.post(&format!("/api/orders/{}/cancel", id(1)), json!({ "reason": "too long" }));
    assert_eq!(cancel.bearer(&error.token).send().await.expect(200).json()["status"], "cancelled");
    eventually(SETTLED, async || {
        let stock = souk.inventory(&sku).await;
        (stock["reserved"] == 0 && stock["held"] == 1).then_some(())
    })
    .await;
    let open = eventually(SETTLED, async || {
        let cart = souk.get(&error.path("")).bearer(&error.token).send().await.expect(200).json();
        (cart["status"] == "open").then_some(cart)
    });
    assert_eq!(open.await["last_failure"]["reason"], json!({ "kind": "requested", "message": "too long" }));
}

#[tokio::test]
async fn stock_that_is_short_is_told_with_what_is_left() {
    let souk = Souk::shared().await;
    let (few, many) = (souk.sku(1_000, 3).await, souk.sku(1_000, 50).await);
    let cart = souk.cart().await;
    let short = souk.add(&cart, &few, 4).await.problem(409, "out-of-stock");
    assert_eq!((&short["sku"], &short["requested"], &short["available"]), (&json!(few), &json!(4), &json!(3)));
    let empty = souk.get(&cart.path("")).bearer(&cart.token).send().await.expect(200).json();
    assert_eq!(empty["lines"], json!([]));
    souk.add(&cart, &few, 2).await.expect(200);
    souk.patch(&cart.path(&format!("/items/{few}")), json!({ "quantity": 9 }))
        .bearer(&cart.token)
        .send()
        .await
        .problem(409, "out-of-stock");

    let other = souk.cart().await;
    assert_eq!(souk.add(&other, &few, 2).await.problem(409, "out-of-stock")["available"], 1, "what another cart holds is gone");
    let items = json!([{ "sku": few, "quantity": 2 }, { "sku": many, "quantity": 1 }, { "sku": few, "quantity": 1 }]);
    let mut body = purchase("tok_ok");
    body["items"] = items;
    let refused = souk.post("/api/orders", body).send().await.problem(409, "out-of-stock");
    assert_eq!(refused["short"], json!([{ "sku": few, "requested": 3, "available": 1 }]));
    assert!(refused["order_id"].as_str().unwrap().starts_with("ord_"));
    let stock = souk.inventory(&many).await;
    assert_eq!((&stock["available"], &stock["reserved"]), (&json!(50), &json!(0)), "all or nothing");
    assert_eq!(souk.inventory(&few).await["available"], 1);
}

#[tokio::test]
async fn a_new_price_is_told_before_it_is_charged() {
    let souk = Souk::shared().await;
    let sku = name("REPRICED");
    let product = souk.product(&[(&sku, 1_000, 5)]).await;
    let cart = souk.cart_with(&sku, 2).await;
    let variants = json!([{ "sku": sku, "price": money(1_200), "options": [sku] }]);
    souk.patch(&format!("/api/products/{product}"), json!({ "variants": variants })).bearer(&ADMIN).send().await.expect(200);

    let told = souk.check_out(&cart, "tok_ok").await.problem(409, "prices-changed");
    assert_eq!(told["changes"], json!([{ "sku": sku, "was": money(1_000), "now": money(1_200) }]));
    let seen = souk.get(&cart.path("")).bearer(&cart.token).send().await.expect(200).json();
    assert_eq!(seen["subtotal"], money(2_400));
    assert_eq!(souk.check_out(&cart, "tok_ok").await.expect(201).json()["total"], money(2_400));

    // Taken off the market while it lies in a cart.
    let cart = souk.cart_with(&sku, 1).await;
    souk.delete(&format!("/api/products/{product}")).bearer(&ADMIN).send().await.expect(204);
    let told = souk.check_out(&cart, "tok_ok").await.problem(409, "prices-changed");
    assert_eq!(told["changes"], json!([{ "sku": sku, "was": money(1_200), "now": null }]));
    souk.check_out(&cart, "tok_ok").await.problem(409, "prices-changed");
    let gone = souk.add(&souk.cart().await, &sku, 1).await.problem(409, "not-for-sale");
    assert_eq!(gone["errors"][0]["pointer"], "/sku");
}

#[tokio::test]
async fn a_total_that_was_not_expected_is_refused() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 5).await;
    let cart = souk.cart_with(&sku, 2).await;
    let mut body = purchase("tok_ok");
    body["expected_total"] = money(1_999);
    let refused = souk.post(&cart.path("/checkout"), body.clone()).bearer(&cart.token).send().await.problem(409, "total-differs");
    assert_eq!((&refused["expected_total"], &refused["total"]), (&money(1_999), &money(2_000)));
    body["expected_total"] = money(2_000);
    souk.post(&cart.path("/checkout"), body.clone()).bearer(&cart.token).send().await.expect(201);

    body["items"] = json!([{ "sku": sku, "quantity": 1 }]);
    souk.post("/api/orders", body.clone()).send().await.problem(409, "total-differs");
    body["expected_total"] = money(1_000);
    souk.post("/api/orders", body).send().await.expect(201);
    souk.check_out(&souk.cart().await, "tok_ok").await.problem(409, "cart-empty");
}

#[tokio::test]
async fn a_paid_order_that_is_cancelled_is_refunded_and_restocked() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 5).await;
    let cart = souk.cart_with(&sku, 3).await;
    let id = text(&souk.check_out(&cart, "tok_ok").await.expect(201).json()["id"]);
    assert_eq!(souk.inventory(&sku).await["on_hand"], 2);
    let path = format!("/api/orders/{id}/cancel");
    let cancelled = souk.post(&path, json!({})).bearer(&cart.token).send().await.expect(200);
    assert!(["cancelled", "refunded"].contains(&cancelled.json()["status"].as_str().unwrap()), "{cancelled}");
    assert!(cancelled.position() > 0);
    let refunded = becomes(&souk, &id, &cart.token, "refunded").await;
    assert_eq!(refunded["payment"]["status"], "refunded");
    let stock = souk.inventory(&sku).await;
    assert_eq!((&stock["on_hand"], &stock["available"]), (&json!(5), &json!(5)));
    souk.post(&path, json!({})).bearer(&cart.token).send().await.expect(200);
    let told = history(&souk, &id, &cart.token).await;
    for once in ["order.cancelled", "order.payment.refunded", "order.line.restocked", "order.refunded"] {
        assert_eq!(told.iter().filter(|told| *told == once).count(), 1, "{once}: {told:?}");
    }
    let ship = souk.post(&format!("/api/orders/{id}/shipments"), json!({ "carrier": "Caravan" })).bearer(&ADMIN);
    ship.send().await.problem(409, "not-shippable");
}

#[tokio::test]
async fn a_shipped_order_says_how_and_can_no_longer_be_cancelled() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 5).await;
    let cart = souk.cart_with(&sku, 1).await;
    let id = text(&souk.check_out(&cart, "tok_ok").await.expect(201).json()["id"]);
    let path = format!("/api/orders/{id}/shipments");
    let body = json!({ "carrier": "Caravan", "tracking_number": "C-7" });
    souk.post(&path, body.clone()).bearer(&cart.token).send().await.problem(401, "unauthorized");
    let shipped = souk.post(&path, body).bearer(&ADMIN).send().await.expect(201);
    let order = shipped.json();
    assert_eq!((&order["status"], &order["shipments"][0]["carrier"]), (&json!("shipped"), &json!("Caravan")));
    assert_eq!(order["shipments"][0]["tracking_number"], "C-7");
    assert_eq!(souk.order(&id, &cart.token).await, order);
    let refused = souk.post(&format!("/api/orders/{id}/cancel"), json!({})).bearer(&cart.token).send().await;
    assert_eq!(refused.problem(409, "not-cancellable")["order_status"], "shipped");
}

#[tokio::test]
async fn an_order_without_a_cart_gives_its_guest_a_token() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 5).await;
    let mut body = purchase("tok_ok");
    body["items"] = json!([{ "sku": sku, "quantity": 1 }, { "sku": sku, "quantity": 1 }]);
    let answer = souk.post("/api/orders", body).send().await.expect(201);
    let order = answer.json();
    let (id, token) = (text(&order["id"]), text(&order["token"]));
    assert_eq!((&order["status"], &order["total"]), (&json!("paid"), &money(2_000)));
    assert_eq!(order["lines"].as_array().unwrap().len(), 1, "the same sku twice is one line");
    assert!(answer.position() > 0 && answer.etag().starts_with('"'));
    let seen = souk.order(&id, &token).await;
    assert!(seen.get("token").is_none(), "the token is told once");
    assert_eq!(seen["status"], "paid");
    souk.get(&format!("/api/orders/{id}")).send().await.problem(404, "not-found");
}

#[tokio::test]
async fn what_belongs_to_others_is_not_found() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 5).await;
    let (mine, yours) = (souk.cart_with(&sku, 1).await, souk.cart().await);
    let order = text(&souk.check_out(&mine, "tok_ok").await.expect(201).json()["id"]);
    let mine = { souk.cart_with(&sku, 1).await };
    let item = json!({ "sku": sku, "quantity": 1 });
    let merge = json!({ "from": yours.id, "from_token": yours.token });
    let line = mine.path(&format!("/items/{sku}"));
    let calls = [
        souk.get(&mine.path("")),
        souk.delete(&mine.path("")),
        souk.post(&mine.path("/items"), item),
        souk.patch(&line, json!({ "quantity": 2 })),
        souk.delete(&line),
        souk.post(&mine.path("/merge"), merge),
        souk.post(&mine.path("/checkout"), purchase("tok_ok")),
        souk.get(&format!("/api/orders/{order}")),
        souk.get(&format!("/api/orders/{order}/history")),
        souk.get(&format!("/api/orders/{order}/events")),
        souk.post(&format!("/api/orders/{order}/cancel"), json!({})),
    ];
    for call in calls {
        for token in [None, Some(yours.token.as_str()), Some("nonsense"), Some("")] {
            let call = call.clone();
            let call = if let Some(token) = token { call.bearer(token) } else { call };
            call.send().await.problem(404, "not-found");
        }
    }
    let taken = json!({ "from": mine.id, "from_token": yours.token });
    souk.post(&yours.path("/merge"), taken).bearer(&yours.token).send().await.problem(404, "not-found");
    let seen = souk.get(&mine.path("")).bearer(&mine.token).send().await.expect(200).json();
    assert_eq!(seen["lines"][0]["quantity"], 1, "nothing of it had an effect");
}

#[tokio::test]
async fn a_guest_cart_is_merged_into_mine_once() {
    let souk = Souk::shared().await;
    let (lamp, rug) = (souk.sku(1_000, 10).await, souk.sku(2_000, 10).await);
    let (mine, guest) = (souk.cart_with(&lamp, 2).await, souk.cart_with(&lamp, 3).await);
    souk.add(&guest, &rug, 1).await.expect(200);
    let body = json!({ "from": guest.id, "from_token": guest.token });
    let merged = souk.post(&mine.path("/merge"), body.clone()).bearer(&mine.token).send().await.expect(200).json();
    let quantities: Vec<_> = merged["lines"].as_array().unwrap().iter().map(|line| line["quantity"].clone()).collect();
    assert_eq!((quantities, &merged["subtotal"]), (vec![json!(5), json!(1)], &money(7_000)));
    souk.post(&mine.path("/merge"), body).bearer(&mine.token).send().await.expect(200);
    let gone = souk.get(&guest.path("")).bearer(&guest.token).send().await.expect(200).json();
    assert_eq!((&gone["status"], &gone["merged_into"]), (&json!("merged"), &json!(mine.id)));
    souk.add(&guest, &rug, 1).await.problem(409, "cart-closed");
    eventually(SETTLED, async || {
        let (lamps, rugs) = (souk.inventory(&lamp).await, souk.inventory(&rug).await);
        (lamps["available"] == 5 && rugs["available"] == 9).then_some(())
    })
    .await;
    assert_eq!(souk.check_out(&mine, "tok_ok").await.expect(201).json()["total"], money(7_000));
    let itself = json!({ "from": mine.id, "from_token": mine.token });
    souk.post(&mine.path("/merge"), itself).bearer(&mine.token).send().await.problem(400, "invalid-body");
}
