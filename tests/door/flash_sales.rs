//! Flash sales: from a vendor's draft to a unit that is paid, and everybody who is to be kept out on the way.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use souk::actors::clock::Clock;

use crate::client::{Answer, Call};
use crate::routes::Walk;
use crate::server::{ADMIN, Account, Cart, Souk, eventually, name, product_body, purchase, text};

const SETTLED: Duration = Duration::from_secs(15);
const MINUTE_MS: i64 = 60_000;

/// A moment so many milliseconds from now.
fn in_ms(ms: i64) -> String {
    Clock::default().now().plus_ms(ms).to_string()
}

fn money(amount: i64) -> Value {
    json!({ "amount": amount, "currency": "EUR" })
}

/// A sale of this sku that is on, for accounts, with `changes`.
fn terms(sku: &str, quantity: u32, changes: Value) -> Value {
    let mut terms = json!({
        "sku": sku, "price": money(700), "quantity": quantity, "per_customer_limit": 2,
        "starts_at": in_ms(-1_000), "ends_at": in_ms(30 * MINUTE_MS),
    });
    terms.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    terms
}

/// Where a sale is.
#[derive(Clone)]
struct Sale(String);

impl Sale {
    fn path(&self, rest: &str) -> String {
        format!("/api/flash-sales/{}{rest}", self.0)
    }
}

async fn draft(souk: &Souk, token: &str, terms: Value) -> Sale {
    Sale(text(&souk.post("/api/flash-sales", terms).bearer(token).send().await.expect(201).json()["id"]))
}

async fn approved(souk: &Souk, terms: Value) -> Sale {
    let sale = draft(souk, &ADMIN, terms).await;
    souk.call("POST", &sale.path("/approve")).bearer(&ADMIN).send().await.expect(200);
    sale
}

/// A sale of a product of its own.
async fn on_sale(souk: &Souk, quantity: u32, changes: Value) -> Sale {
    let sku = souk.sku(1_000, quantity + 5).await;
    approved(souk, terms(&sku, quantity, changes)).await
}

/// The body of a new sale, with all that can be in it.
pub fn whole_terms(sku: &str) -> Value {
    let more = json!({
        "per_address_limit": 100, "claim_seconds": 60, "admission_seconds": 30, "grace_seconds": 30, "guests": true,
    });
    terms(sku, 5, more)
}

/// The id of a sale of a few units that everybody may claim of.
pub async fn open_to_all(souk: &Souk, sku: &str) -> String {
    approved(souk, whole_terms(sku)).await.0
}

async fn look(souk: &Souk, sale: &Sale) -> Value {
    souk.get(&sale.path("")).send().await.expect(200).json()
}

fn claim(souk: &Souk, sale: &Sale, quantity: u32) -> Call {
    souk.post(&sale.path("/claims"), json!({ "quantity": quantity }))
}

fn order(souk: &Souk, claim: &str, token: &str) -> Call {
    let mut body = purchase(token);
    body["claim_id"] = json!(claim);
    souk.post("/api/orders", body)
}

async fn own(souk: &Souk, sale: &Sale, token: &str) -> Value {
    souk.get(&sale.path("/claims")).bearer(token).send().await.expect(200).json()
}

/// Every route of flash sales on its good path.
pub async fn walk(souk: &Souk, walk: &mut Walk) {
    let sku = souk.sku(1_000, 10).await;
    let sales = "/api/flash-sales";
    let body = terms(&sku, 3, json!({ "guests": true, "starts_at": in_ms(30 * MINUTE_MS), "ends_at": in_ms(40 * MINUTE_MS) }));
    let created = walk.take(sales, souk.post(sales, body).bearer(&ADMIN), 201).await;
    let sale = Sale(text(&created.json()["id"]));
    assert_eq!((created.header("location"), &created.json()["status"]), (Some(sale.path("").as_str()), &json!("draft")));
    let changes = json!({ "starts_at": in_ms(-1_000), "quantity": 2, "admissions_per_second": 1_000 });
    let changed = walk.take("/api/flash-sales/{id}", souk.patch(&sale.path(""), changes).bearer(&ADMIN), 200).await;
    assert!(changed.position() > created.position());
    let changed = changed.json();
    assert_eq!((&changed["quantity"], &changed["admissions_per_second"]), (&json!(2), &json!(1_000)));
    let act = |name: &str| souk.call("POST", &sale.path(name)).bearer(&ADMIN);
    let approved = walk.take("/api/flash-sales/{id}/approve", act("/approve"), 200).await;
    let seen = walk.take("/api/flash-sales/{id}", souk.get(&sale.path("")), 200).await;
    assert_eq!((&seen.json()["status"], seen.header("etag")), (&json!("active"), None));
    let list = souk.get(&format!("{sales}?sku={sku}")).header("souk-at-least", &approved.position().to_string());
    assert_eq!(walk.take(sales, list, 200).await.json()["items"][0]["id"], sale.0);
    assert_eq!(walk.take("/api/flash-sales/{id}/pause", act("/pause"), 200).await.json()["status"], "paused");
    assert_eq!(walk.take("/api/flash-sales/{id}/resume", act("/resume"), 200).await.json()["status"], "active");

    let challenge = walk.take("/api/flash-sales/{id}/challenge", souk.get(&sale.path("/challenge")), 200).await.json();
    let token = text(&challenge["token"]);
    let remind = souk.call("POST", &sale.path("/reminder")).bearer(&token);
    assert_eq!(walk.take("/api/flash-sales/{id}/reminder", remind, 200).await.json(), json!({ "reminded": true }));
    let claimed = walk.take("/api/flash-sales/{id}/claims", claim(souk, &sale, 2).bearer(&token), 201).await;
    assert!(claimed.position() > approved.position());
    let path = claimed.header("location").unwrap().to_owned();
    let shown = walk.take("/api/flash-sales/{id}/claims/{claim}", souk.get(&path).bearer(&token), 200).await.json();
    assert_eq!((&shown["id"], &shown["status"]), (&claimed.json()["id"], &json!("held")));
    let all = walk.take("/api/flash-sales/{id}/claims", souk.get(&sale.path("/claims")).bearer(&token), 200).await.json();
    assert_eq!(all, json!({ "claims": [shown], "ticket": null, "reminded": true }));
    let queued = claim(souk, &sale, 1).send().await.expect(202).json();
    let waits = text(&queued["token"]);
    walk.take("/api/flash-sales/{id}/ticket", souk.delete(&sale.path("/ticket")).bearer(&waits), 204).await;
    walk.take("/api/flash-sales/{id}/claims/{claim}", souk.delete(&path).bearer(&token), 204).await;
    walk.noted("GET", "/api/flash-sales/{id}/events");
    let mut line = souk.connect().await;
    line.write(&souk.get(&sale.path("/events")).bytes()).await;
    let head = line.head().await.to_lowercase();
    assert!(head.starts_with("http/1.1 200") && head.contains("content-type: text/event-stream"), "{head}");
    let cancel = souk.post(&sale.path("/cancel"), json!({ "reason": "a mistake" })).bearer(&ADMIN);
    assert_eq!(walk.take("/api/flash-sales/{id}/cancel", cancel, 200).await.json()["status"], "cancelled");
}

#[tokio::test]
async fn a_unit_goes_from_a_vendors_draft_to_a_paid_order_at_the_sales_price() {
    let souk = Souk::shared().await;
    let ((vendor, shop), buyer) = (souk.vendor().await, souk.account().await);
    let sku = name("FLASH");
    souk.post("/api/products", product_body(&[(&sku, 1_000, 10)])).bearer(&vendor.token).send().await.expect(201);
    let sale = draft(&souk, &vendor.token, terms(&sku, 4, json!({}))).await;
    let seen = souk.get(&sale.path("")).bearer(&vendor.token).send().await.expect(200).json();
    assert_eq!((&seen["status"], &seen["shop_id"], &seen["sku"]), (&json!("draft"), &json!(shop), &json!(sku)));
    assert_eq!((&seen["claim_seconds"], &seen["guests"], &seen["challenge_bits"]), (&json!(300), &json!(false), &json!(0)));
    souk.get(&sale.path("")).send().await.problem(404, "not-found");
    claim(&souk, &sale, 1).bearer(&buyer.token).send().await.problem(404, "not-found");

    souk.call("POST", &sale.path("/approve")).bearer(&ADMIN).send().await.expect(200);
    let stock = souk.inventory(&sku).await;
    assert_eq!((&stock["on_hand"], &stock["allotted"], &stock["available"]), (&json!(10), &json!(4), &json!(6)));
    let claimed = claim(&souk, &sale, 2).bearer(&buyer.token).send().await.expect(201).json();
    assert_eq!((&claimed["quantity"], &claimed["unit_price"]), (&json!(2), &money(700)));
    assert!(claimed.get("token").is_none() && claimed["expires_at"].is_string());
    let now = look(&souk, &sale).await;
    assert_eq!((&now["available"], &now["held"], &now["sold"]), (&json!(2), &json!(2), &json!(0)));

    let id = text(&claimed["id"]);
    let mut body = purchase("tok_ok");
    (body["claim_id"], body["items"], body["expected_total"]) = (json!(id), json!([]), money(1_400));
    let paid = souk.post("/api/orders", body).bearer(&buyer.token).send().await.expect(201).json();
    assert_eq!((&paid["status"], &paid["total"]), (&json!("paid"), &money(1_400)));
    let line = &paid["lines"][0];
    assert_eq!((&line["claim_id"], &line["sku"], &line["unit_price"]), (&json!(id), &json!(sku), &money(700)));
    let path = format!("/api/orders/{}", text(&paid["id"]));
    assert_eq!(souk.get(&path).bearer(&buyer.token).send().await.expect(200).json()["lines"][0]["claim_id"], json!(id));
    // It is the sale's own word that its units are sold and have left the stock.
    eventually(SETTLED, async || (souk.inventory(&sku).await["on_hand"] == 8).then_some(())).await;
    let mine = own(&souk, &sale, &buyer.token).await;
    assert_eq!((&mine["claims"][0]["status"], &mine["claims"][0]["order_id"]), (&json!("sold"), &paid["id"]));
    order(&souk, &id, "tok_ok").bearer(&buyer.token).send().await.problem(409, "claim-over");
    let refused = claim(&souk, &sale, 1).bearer(&buyer.token).send().await.problem(409, "over-limit");
    assert_eq!((&refused["limit"], &refused["left"]), (&json!(2), &json!(0)));

    // Beside other goods, which have their own price; the rest of the sale, so that nothing is left of it.
    let (other, lamp) = (souk.account().await, souk.sku(300, 5).await);
    let claimed = claim(&souk, &sale, 2).bearer(&other.token).send().await.expect(201).json();
    let mut body = purchase("tok_ok");
    (body["claim_id"], body["items"]) = (claimed["id"].clone(), json!([{ "sku": lamp, "quantity": 1 }]));
    let paid = souk.post("/api/orders", body).bearer(&other.token).send().await.expect(201).json();
    assert_eq!((&paid["status"], &paid["total"], paid["lines"].as_array().unwrap().len()), (&json!("paid"), &money(1_700), 2));
    eventually(SETTLED, async || (look(&souk, &sale).await["status"] == "sold_out").then_some(())).await;
    let late = souk.account().await;
    claim(&souk, &sale, 1).bearer(&late.token).send().await.problem(409, "sold-out");
    eventually(SETTLED, async || (souk.inventory(&sku).await["on_hand"] == 6).then_some(())).await;
    assert_eq!(souk.inventory(&sku).await["available"], 6);
}

#[tokio::test]
async fn a_declined_payment_gives_the_units_to_the_next_in_line() {
    let souk = Souk::shared().await;
    let sale = on_sale(&souk, 1, json!({ "guests": true })).await;
    let first = claim(&souk, &sale, 1).send().await.expect(201).json();
    let next = claim(&souk, &sale, 1).send().await.expect(202).json();
    let (token, waits) = (text(&first["token"]), text(&next["token"]));
    let declined = order(&souk, &text(&first["id"]), "tok_declined").bearer(&token).send().await.expect(201).json();
    assert_eq!(declined["status"], "payment_failed");
    let offered = eventually(SETTLED, async || {
        let mine = own(&souk, &sale, &waits).await;
        (mine["claims"][0]["status"] == "offered").then(|| mine["claims"][0].clone())
    })
    .await;
    order(&souk, &text(&offered["id"]), "tok_ok").bearer(&waits).send().await.problem(409, "claim-over");
    let taken = claim(&souk, &sale, 1).bearer(&waits).send().await.expect(201).json();
    assert_eq!(taken["id"], offered["id"]);
    let paid = order(&souk, &text(&taken["id"]), "tok_ok").bearer(&waits).send().await.expect(201).json();
    assert_eq!(paid["status"], "paid");
}

#[tokio::test]
async fn a_sale_says_why_it_gives_nothing() {
    let souk = Souk::shared().await;
    let buyer = souk.account().await;
    let claimed = async |sale: &Sale| claim(&souk, sale, 1).bearer(&buyer.token).send().await;
    let starts_at = in_ms(10 * MINUTE_MS);
    let later = on_sale(&souk, 3, json!({ "starts_at": starts_at })).await;
    let refused = claimed(&later).await;
    assert!(refused.header("retry-after").is_some(), "not now is not for good: {refused}");
    assert_eq!(refused.problem(409, "sale-not-started")["starts_at"], starts_at);
    let reminded = souk.call("POST", &later.path("/reminder")).bearer(&buyer.token).send().await.expect(200).json();
    assert_eq!((&reminded, &own(&souk, &later, &buyer.token).await["reminded"]), (&json!({ "reminded": true }), &json!(true)));
    souk.call("POST", &later.path("/pause")).bearer(&ADMIN).send().await.problem(409, "sale-status");

    let sale = on_sale(&souk, 3, json!({})).await;
    souk.call("POST", &sale.path("/pause")).bearer(&ADMIN).send().await.expect(200);
    claimed(&sale).await.problem(409, "sale-paused");
    souk.call("POST", &sale.path("/resume")).bearer(&ADMIN).send().await.expect(200);
    claim(&souk, &sale, 3).bearer(&buyer.token).send().await.problem(409, "over-limit");
    let other = souk.account().await;
    claim(&souk, &sale, 2).bearer(&other.token).send().await.expect(201);
    let short = claim(&souk, &sale, 2).bearer(&buyer.token).send().await.problem(409, "out-of-stock");
    assert_eq!((&short["requested"], &short["available"]), (&json!(2), &json!(1)));
    souk.post(&sale.path("/cancel"), json!({})).bearer(&ADMIN).send().await.expect(200);
    claimed(&sale).await.problem(409, "sale-over");
    souk.call("POST", &sale.path("/resume")).bearer(&ADMIN).send().await.problem(409, "sale-status");
    let sku = text(&look(&souk, &sale).await["sku"]);
    eventually(SETTLED, async || (souk.inventory(&sku).await["allotted"] == 0).then_some(())).await;

    // More than there is cannot be set aside; the draft can be changed and approved again.
    let too_much = draft(&souk, &ADMIN, terms(&sku, 100, json!({}))).await;
    let approve = || souk.call("POST", &too_much.path("/approve")).bearer(&ADMIN).send();
    assert_eq!(approve().await.problem(409, "out-of-stock")["available"], 8);
    souk.patch(&too_much.path(""), json!({ "quantity": 8 })).bearer(&ADMIN).send().await.expect(200);
    assert_eq!(approve().await.expect(200).json()["available"], 8);
    souk.patch(&too_much.path(""), json!({ "quantity": 9 })).bearer(&ADMIN).send().await.problem(409, "sale-status");
    souk.get("/api/flash-sales/fs_01ARZ3NDEKTSV4RRFFQ69G5FAV").send().await.problem(404, "not-found");
}

#[tokio::test]
async fn terms_that_cannot_be_are_refused_where_they_are_wrong() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 5).await;
    let refused = async |changes: Value| souk.post("/api/flash-sales", terms(&sku, 1, changes)).bearer(&ADMIN).send().await;
    for (changes, pointer) in [
        (json!({ "quantity": 0 }), "/quantity"),
        (json!({ "per_customer_limit": 0 }), "/per_customer_limit"),
        (json!({ "per_address_limit": 0 }), "/per_address_limit"),
        (json!({ "price": money(-1) }), "/price/amount"),
        (json!({ "claim_seconds": 0 }), "/claim_seconds"),
        (json!({ "grace_seconds": 3_601 }), "/grace_seconds"),
        (json!({ "sku": " x" }), "/sku"),
        (json!({ "starts_at": "soon" }), "/starts_at"),
    ] {
        let problem = refused(changes.clone()).await.problem(400, "invalid-body");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{changes}");
    }
    for (changes, pointer) in [
        (json!({ "ends_at": in_ms(-5_000) }), "/ends_at"),
        (json!({ "starts_at": in_ms(-9_000), "ends_at": in_ms(-5_000) }), "/ends_at"),
        (json!({ "ends_at": in_ms(32 * 24 * 60 * MINUTE_MS) }), "/ends_at"),
        (json!({ "price": { "amount": 1, "currency": "USD" } }), "/price/currency"),
    ] {
        let problem = refused(changes.clone()).await.problem(409, "contradictory-body");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{changes}");
    }
    refused(json!({ "sku": name("NEVER") })).await.problem(409, "not-for-sale");
}

#[tokio::test]
async fn a_guest_is_who_bears_the_token_that_came_with_the_claim() {
    let souk = Souk::shared().await;
    let closed = on_sale(&souk, 2, json!({})).await;
    for call in [
        claim(&souk, &closed, 1),
        claim(&souk, &closed, 1).bearer("somebody"),
        souk.get(&closed.path("/claims")),
        souk.get(&closed.path("/challenge")),
        souk.call("POST", &closed.path("/reminder")),
        souk.delete(&closed.path("/ticket")),
    ] {
        call.send().await.problem(401, "unauthorized");
    }
    let sale = on_sale(&souk, 9, json!({ "guests": true })).await;
    let claimed = claim(&souk, &sale, 1).send().await.expect(201).json();
    let (id, token) = (text(&claimed["id"]), text(&claimed["token"]));
    let path = sale.path(&format!("/claims/{id}"));
    let again = claim(&souk, &sale, 1).bearer(&token).send().await.expect(201).json();
    assert!(again.get("token").is_none() && again["id"] != claimed["id"], "{again}");
    claim(&souk, &sale, 1).bearer(&token).send().await.problem(409, "over-limit");
    souk.get(&sale.path("/claims")).send().await.problem(401, "unauthorized");

    let stranger = souk.account().await;
    for bearer in [stranger.token.as_str(), "somebody-else"] {
        souk.get(&path).bearer(bearer).send().await.problem(404, "not-found");
        souk.delete(&path).bearer(bearer).send().await.problem(404, "not-found");
        order(&souk, &id, "tok_ok").bearer(bearer).send().await.problem(404, "not-found");
        assert_eq!(own(&souk, &sale, bearer).await, json!({ "claims": [], "ticket": null, "reminded": false }));
    }
    order(&souk, &id, "tok_ok").send().await.problem(404, "not-found");
    souk.get(&closed.path(&format!("/claims/{id}"))).bearer(&stranger.token).send().await.problem(404, "not-found");
    let paid = order(&souk, &id, "tok_ok").bearer(&token).send().await.expect(201).json();
    assert!(paid.get("token").is_none(), "its buyer has one");
    souk.order(&text(&paid["id"]), &token).await;
    souk.get(&format!("/api/orders/{}", text(&paid["id"]))).send().await.problem(404, "not-found");
}

#[tokio::test]
async fn whoever_waits_has_a_place_and_moves_up_and_can_leave() {
    let souk = Souk::shared().await;
    let sale = on_sale(&souk, 2, json!({ "guests": true })).await;
    let first = claim(&souk, &sale, 2).send().await.expect(201).json();
    let mut waiting = Vec::new();
    for place in 1..=3 {
        let queued = claim(&souk, &sale, 1).send().await.expect(202).json();
        assert_eq!((&queued["ticket"]["place"], &queued["ticket"]["quantity"]), (&json!(place), &json!(1)));
        waiting.push(text(&queued["token"]));
    }
    let again = claim(&souk, &sale, 2).bearer(&waiting[2]).send().await.expect(202).json();
    assert_eq!(again, json!({ "ticket": { "place": 3, "estimated_wait_seconds": null, "quantity": 1 } }), "one place each");
    souk.delete(&sale.path("/ticket")).bearer(&waiting[0]).send().await.expect(204);
    souk.delete(&sale.path("/ticket")).bearer(&waiting[0]).send().await.expect(204);
    assert_eq!(own(&souk, &sale, &waiting[2]).await["ticket"]["place"], 2);
    assert_eq!(look(&souk, &sale).await["waiting"], 2);
    let path = sale.path(&format!("/claims/{}", text(&first["id"])));
    souk.delete(&path).bearer(&text(&first["token"])).send().await.expect(204);
    souk.delete(&path).bearer(&text(&first["token"])).send().await.expect(204);
    for waits in &waiting[1..] {
        let mine = own(&souk, &sale, waits).await;
        assert_eq!((&mine["claims"][0]["status"], &mine["ticket"]), (&json!("offered"), &Value::Null));
        claim(&souk, &sale, 1).bearer(waits).send().await.expect(201);
    }
    let now = look(&souk, &sale).await;
    assert_eq!((&now["waiting"], &now["held"], &now["available"]), (&json!(0), &json!(2), &json!(0)));
}

#[tokio::test]
async fn a_claim_that_was_not_paid_in_time_cannot_be_paid_any_more() {
    let souk = Souk::shared().await;
    let sale = on_sale(&souk, 1, json!({ "guests": true, "claim_seconds": 1 })).await;
    let claimed = claim(&souk, &sale, 1).send().await.expect(201).json();
    let token = text(&claimed["token"]);
    let status = async || own(&souk, &sale, &token).await["claims"][0]["status"].clone();
    eventually(SETTLED, async || (status().await == "expired").then_some(())).await;
    order(&souk, &text(&claimed["id"]), "tok_ok").bearer(&token).send().await.problem(409, "claim-over");
    assert_eq!(look(&souk, &sale).await["available"], 1);
    claim(&souk, &sale, 1).bearer(&token).send().await.expect(201);
}

#[tokio::test]
async fn a_claim_is_bought_along_with_a_cart() {
    let souk = Souk::shared().await;
    let sale = on_sale(&souk, 9, json!({ "guests": true })).await;
    let (lamp, sku) = (souk.sku(300, 5).await, text(&look(&souk, &sale).await["sku"]));
    let check_out = |cart: &Cart, claim: &Value| {
        let mut body = purchase("tok_ok");
        body["claim_id"] = claim.clone();
        souk.post(&cart.path("/checkout"), body).bearer(&cart.token).send()
    };
    let (full, empty, same) = (souk.cart_with(&lamp, 1).await, souk.cart().await, souk.cart_with(&sku, 1).await);
    for (cart, total) in [(&full, 1_000), (&empty, 700)] {
        let claimed = claim(&souk, &sale, 1).bearer(&cart.token).send().await.expect(201).json();
        check_out(&same, &claimed["id"]).await.problem(404, "not-found");
        let paid = check_out(cart, &claimed["id"]).await.expect(201).json();
        assert_eq!((&paid["status"], &paid["total"], &paid["cart_id"]), (&json!("paid"), &money(total), &json!(cart.id)));
        assert!(paid["lines"].as_array().unwrap().iter().any(|line| line["claim_id"] == claimed["id"]), "{paid}");
    }
    let claimed = claim(&souk, &sale, 1).bearer(&same.token).send().await.expect(201).json();
    let problem = check_out(&same, &claimed["id"]).await.problem(409, "contradictory-body");
    assert_eq!(problem["errors"][0]["pointer"], "/claim_id");
    check_out(&same, &json!("claim_1")).await.problem(400, "invalid-body");
}

#[tokio::test]
async fn a_repeated_claim_and_a_repeated_order_are_one() {
    let souk = Souk::shared().await;
    let sale = on_sale(&souk, 5, json!({ "guests": true })).await;
    let keyed = || claim(&souk, &sale, 1).key("a-claim-that-is-asked-for-twice");
    let (first, second) = (keyed().send().await.expect(201), keyed().send().await.expect(201));
    assert_eq!((first.json(), second.header("idempotency-replayed")), (second.json(), Some("true")));
    let (id, token) = (text(&first.json()["id"]), text(&first.json()["token"]));
    let keyed = || order(&souk, &id, "tok_ok").bearer(&token).key("an-order-that-is-asked-for-twice");
    let (first, second) = (keyed().send().await.expect(201), keyed().send().await.expect(201));
    assert_eq!(first.json(), second.json());
    eventually(SETTLED, async || (look(&souk, &sale).await["sold"] == 1).then_some(())).await;
    assert_eq!(look(&souk, &sale).await["held"], 0);
}

#[tokio::test]
async fn a_vendor_runs_its_own_sales_and_finds_nothing_of_others() {
    let souk = Souk::shared().await;
    let ((mine, shop), (theirs, _)) = (souk.vendor().await, souk.vendor().await);
    let customer = souk.account().await;
    let sku = name("MINE");
    souk.post("/api/products", product_body(&[(&sku, 1_000, 10)])).bearer(&mine.token).send().await.expect(201);
    let new = |who: &Account| souk.post("/api/flash-sales", terms(&sku, 4, json!({}))).bearer(&who.token).send();
    new(&theirs).await.problem(403, "forbidden");
    new(&customer).await.problem(403, "forbidden");
    souk.post("/api/flash-sales", terms(&sku, 4, json!({}))).send().await.problem(401, "unauthorized");
    let sale = draft(&souk, &mine.token, terms(&sku, 4, json!({}))).await;
    let all = |who: &Account| {
        let patch = souk.patch(&sale.path(""), json!({ "quantity": 5 }));
        let acts = ["/pause", "/resume"].map(|act| souk.call("POST", &sale.path(act)));
        let cancel = souk.post(&sale.path("/cancel"), json!({}));
        acts.into_iter().chain([patch, cancel]).map(|call| call.bearer(&who.token)).collect::<Vec<_>>()
    };
    for call in all(&theirs) {
        call.send().await.problem(404, "not-found");
    }
    for call in all(&customer) {
        call.send().await.problem(403, "forbidden");
    }
    souk.get(&sale.path("")).bearer(&theirs.token).send().await.problem(404, "not-found");
    let approve = || souk.call("POST", &sale.path("/approve"));
    approve().bearer(&mine.token).send().await.problem(403, "forbidden");
    approve().send().await.problem(401, "unauthorized");
    let changed = souk.patch(&sale.path(""), json!({ "quantity": 5, "guests": true })).bearer(&mine.token).send().await;
    let (position, changed) = (changed.position().to_string(), changed.expect(200).json());
    assert_eq!((&changed["quantity"], &changed["guests"], &changed["price"]), (&json!(5), &json!(true), &money(700)));
    let tuned = souk.patch(&sale.path(""), json!({ "challenge_bits": 4 })).bearer(&mine.token).send().await;
    tuned.problem(403, "forbidden");

    let listed = async |who: Option<&str>, query: &str| {
        let call = souk.get(&format!("/api/flash-sales?{query}")).header("souk-at-least", &position);
        let page = who.map_or(call.clone(), |token| call.bearer(token)).send().await.expect(200).json();
        page["items"].as_array().unwrap().iter().any(|item| item["id"] == sale.0)
    };
    let (of_shop, of_sku) = (format!("shop={shop}"), format!("sku={sku}&status=draft"));
    for query in [&of_shop, &of_sku] {
        assert!(listed(Some(&mine.token), query).await && listed(Some(&ADMIN), query).await);
        assert!(!listed(Some(&theirs.token), query).await && !listed(None, query).await);
    }
    approve().bearer(&ADMIN).send().await.expect(200);
    assert_eq!(souk.call("POST", &sale.path("/pause")).bearer(&mine.token).send().await.expect(200).json()["status"], "paused");
}

/// A nonce for the challenge.
fn work(challenge: &Value) -> Value {
    let (text, bits) = (text(&challenge["challenge"]), challenge["bits"].as_u64().unwrap() as u32);
    let zeros = |nonce: &u32| {
        let hash = Sha256::digest(format!("{text}.{nonce}"));
        u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]).leading_zeros() >= bits
    };
    json!({ "challenge": text, "nonce": (0..).find(zeros).unwrap().to_string() })
}

fn with_proof(souk: &Souk, sale: &Sale, proof: &Value) -> Call {
    souk.post(&sale.path("/claims"), json!({ "quantity": 1, "proof": proof }))
}

#[tokio::test]
async fn a_claim_bears_the_proof_of_work_that_the_sale_asks_for() {
    let souk = Souk::shared().await;
    let sale = on_sale(&souk, 9, json!({ "guests": true, "per_customer_limit": 1 })).await;
    let tune = |bits: u8| souk.patch(&sale.path(""), json!({ "challenge_bits": bits })).bearer(&ADMIN).send();
    let tuned = tune(10).await.expect(200).json();
    assert_eq!(tuned["challenge_bits"], 10);
    // What an operator sets counts within a second.
    let asked = async || claim(&souk, &sale, 1).bearer("a-guest").send().await;
    let needed = eventually(SETTLED, async || Some(asked().await).filter(|answer| answer.status == 422)).await;
    assert_eq!(needed.problem(422, "proof-needed")["bits"], 10);

    let challenge = souk.get(&sale.path("/challenge")).send().await.expect(200);
    assert_eq!(challenge.header("cache-control"), Some("no-store"));
    let challenge = challenge.json();
    let (token, proof) = (text(&challenge["token"]), work(&challenge));
    let refused = |answer: Answer| text(&answer.problem(422, "proof-refused")["errors"][0]["message"]);
    // Somebody else's, in another sale, not worked for, not given out here.
    let why = refused(with_proof(&souk, &sale, &proof).bearer("another").send().await);
    assert!(why.contains("another sale or customer"), "{why}");
    let other = on_sale(&souk, 1, json!({ "guests": true })).await;
    souk.patch(&other.path(""), json!({ "challenge_bits": 1 })).bearer(&ADMIN).send().await.expect(200);
    let why = refused(with_proof(&souk, &other, &proof).bearer(&token).send().await);
    assert!(why.contains("another sale or customer"), "{why}");
    let mut lazy = proof.clone();
    for nonce in 0.. {
        lazy["nonce"] = json!(format!("lazy-{nonce}"));
        let hash = Sha256::digest(format!("{}.lazy-{nonce}", text(&lazy["challenge"])));
        if hash[0] != 0 {
            break;
        }
    }
    let why = refused(with_proof(&souk, &sale, &lazy).bearer(&token).send().await);
    assert!(why.contains("zero bits"), "{why}");
    let mut forged = proof.clone();
    forged["challenge"] = json!(text(&forged["challenge"]).replace(".10.", ".0."));
    let why = refused(with_proof(&souk, &sale, &forged).bearer(&token).send().await);
    assert!(why.contains("not given out"), "{why}");
    let long = json!({ "challenge": "c", "nonce": "n".repeat(65) });
    let long = with_proof(&souk, &sale, &long).bearer(&token).send().await.problem(400, "invalid-body");
    assert_eq!(long["errors"][0]["pointer"], "/proof/nonce");
    with_proof(&souk, &sale, &proof).bearer(&token).send().await.expect(201);

    // An account's challenge is for that account; one that became too easy does not count.
    let buyer = souk.account().await;
    let easy = souk.get(&sale.path("/challenge")).bearer(&buyer.token).send().await.expect(200).json();
    assert!(easy.get("token").is_none());
    tune(12).await.expect(200);
    let proof = work(&easy);
    let hard = async || {
        let answer = souk.get(&sale.path("/challenge")).bearer(&buyer.token).send().await.expect(200).json();
        (answer["bits"] == 12).then_some(answer)
    };
    let hard = eventually(SETTLED, hard).await;
    let why = refused(with_proof(&souk, &sale, &proof).bearer(&buyer.token).send().await);
    assert!(why.contains("easier"), "{why}");
    with_proof(&souk, &sale, &work(&hard)).bearer(&buyer.token).send().await.expect(201);
}

#[tokio::test]
async fn one_address_gets_its_units_and_is_not_in_the_journal() {
    let souk = Souk::start(&["--trusted-proxy", "127.0.0.1", "--limit-claims", "1/h:3"]).await;
    let sale = on_sale(&souk, 9, json!({ "guests": true, "per_address_limit": 2 })).await;
    let from = |address: &str, quantity| claim(&souk, &sale, quantity).header("x-forwarded-for", address).send();
    from("203.0.113.77", 2).await.expect(201);
    from("203.0.113.77", 1).await.problem(409, "over-address-limit");
    from("203.0.113.78", 2).await.expect(201);
    // A home has a whole /64 of IPv6.
    from("2001:db8:77:1::1", 1).await.expect(201);
    from("2001:db8:77:1::2", 2).await.problem(409, "over-address-limit");
    from("2001:db8:77:2::1", 2).await.expect(201);
    // Claims have a budget of their own, by address for guests.
    let spent = from("203.0.113.77", 1).await;
    assert_eq!((spent.status, spent.header("ratelimit-limit")), (409, Some("3")));
    assert_eq!(from("203.0.113.77", 1).await.problem(429, "rate-limited")["detail"], "the budget for claims is spent");
    from("203.0.113.79", 1).await.expect(201);
    souk.get(&sale.path("")).header("x-forwarded-for", "203.0.113.77").send().await.expect(200);
    for file in souk.files() {
        let bytes = std::fs::read(&file).unwrap();
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!has("203.0.113.7") && !has("2001:db8:77"), "{}", file.display());
    }
}
