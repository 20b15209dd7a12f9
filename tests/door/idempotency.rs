//! `Idempotency-Key`: sent again is done once, whatever happens in between.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::client::{Answer, Call, Line};
use crate::server::{ADMIN, Souk, eventually, name, product_body, purchase, text};

fn order_body(sku: &str, token: &str) -> Value {
    let mut body = purchase(token);
    body["items"] = json!([{ "sku": sku, "quantity": 1 }]);
    body
}

/// One call to each POST that makes or changes something, and the same with another body.
async fn calls(souk: &Souk, sku: &str) -> Vec<(Call, Value)> {
    let cart = souk.cart().await;
    let full = souk.cart_with(sku, 1).await;
    let guest = souk.cart_with(sku, 1).await;
    let mut other = purchase("tok_ok");
    other["email"] = json!("eve@example.test");
    let calls = [
        (souk.post("/api/carts", json!({})), json!({ "x": 1 })),
        (
            souk.post(&cart.path("/items"), json!({ "sku": sku, "quantity": 2 })).bearer(&cart.token),
            json!({ "sku": sku, "quantity": 3 }),
        ),
        (
            souk.post(&cart.path("/merge"), json!({ "from": guest.id, "from_token": guest.token })).bearer(&cart.token),
            json!({ "from": cart.id }),
        ),
        (souk.post(&full.path("/checkout"), purchase("tok_ok")).bearer(&full.token), other.clone()),
        (souk.post("/api/orders", order_body(sku, "tok_ok")), order_body(sku, "tok_declined")),
        (souk.post("/api/products", product_body(&[(&name("KEY"), 100, 1)])).bearer(&ADMIN), json!({})),
        (
            souk.post(&format!("/api/inventory/{sku}/adjustments"), json!({ "delta": 7, "reason": "r" })).bearer(&ADMIN),
            json!({ "delta": 8, "reason": "r" }),
        ),
    ];
    calls.into()
}

fn assert_same(first: &Answer, again: &Answer) {
    assert_eq!((first.status, &first.body), (again.status, &again.body));
    for header in ["content-type", "location", "etag", "souk-position"] {
        assert_eq!(first.header(header), again.header(header), "{header}");
    }
}

#[tokio::test]
async fn a_key_gives_the_first_answer_again_also_after_a_crash_and_another_body_is_refused() {
    let mut souk = Souk::start(&[]).await;
    let sku = souk.sku(1_000, 100).await;
    let mut given = Vec::new();
    for (index, (call, other)) in calls(&souk, &sku).await.into_iter().enumerate() {
        let key = format!("key {index}");
        let first = call.clone().key(&key).send().await;
        assert!(first.status < 300, "{first}");
        assert_eq!(first.header("idempotency-replayed"), None);
        let again = call.clone().key(&key).send().await;
        assert_eq!(again.header("idempotency-replayed"), Some("true"), "{again}");
        assert_same(&first, &again);
        call.clone().json(&other).key(&key).send().await.problem(422, "idempotency-key-reused");
        let bound = call.clone().header("if-match", "\"1\"").key(&key).send().await;
        bound.problem(422, "idempotency-key-reused");
        given.push((call, key, first));
    }
    let before = souk.inventory(&sku).await;
    assert_eq!((&before["on_hand"], &before["held"]), (&json!(105), &json!(3)), "each took effect once");
    for ending in ["kill", "term"] {
        if ending == "kill" {
            souk.kill();
        } else {
            souk.ask_to_end();
            souk.ended().await;
        }
        souk.start_again().await;
        for (call, key, first) in &given {
            let again = call.clone().to(souk.address()).key(key).send().await;
            assert_eq!(again.header("idempotency-replayed"), Some("true"), "after {ending}: {again}");
            assert_same(first, &again);
        }
        assert_eq!(souk.inventory(&sku).await, before, "after {ending}");
    }
}

#[tokio::test]
async fn a_key_belongs_to_one_caller_and_one_path() {
    let souk = Souk::shared().await;
    let key = name("shared key");
    let sku = souk.sku(1_000, 100).await;
    let (mine, yours) = (souk.cart().await, souk.cart().await);
    for cart in [&mine, &yours] {
        let body = json!({ "sku": sku, "quantity": 1 });
        let answer = souk.post(&cart.path("/items"), body).bearer(&cart.token).key(&key).send().await.expect(200);
        assert_eq!(answer.header("idempotency-replayed"), None);
        assert_eq!(answer.json()["id"], cart.id);
    }
    // A refusal is an answer too; one that says "not now" is not kept.
    let (cart, key) = (souk.cart().await, name("refused"));
    let body = json!({ "sku": sku, "quantity": 9_999 });
    let add = souk.post(&cart.path("/items"), body).bearer(&cart.token).key(&key);
    let first = add.clone().send().await.expect(409);
    souk.adjust(&sku, 20_000).await.expect(200);
    let again = add.send().await.expect(409);
    assert_same(&first, &again);
}

#[tokio::test]
async fn the_same_key_many_times_at_once_has_one_effect() {
    let souk = Souk::shared().await;
    let sku = souk.sku(1_000, 100).await;
    let cart = souk.cart_with(&sku, 1).await;
    let order = souk.post("/api/orders", order_body(&sku, "tok_ok")).key(&name("k"));
    let check_out = souk.post(&cart.path("/checkout"), purchase("tok_ok")).bearer(&cart.token).key(&name("k"));
    let adjust = souk.post(&format!("/api/inventory/{sku}/adjustments"), json!({ "delta": 10, "reason": "r" }));
    let adjust = adjust.bearer(&ADMIN).key(&name("k"));
    for call in [order, check_out, adjust] {
        let answers = join_all((0..20).map(|_| call.clone().send())).await;
        for answer in &answers {
            assert!(answer.status < 300, "{answer}");
            assert_same(&answers[0], answer);
        }
    }
    let stock = souk.inventory(&sku).await;
    assert_eq!((&stock["on_hand"], &stock["reserved"], &stock["held"]), (&json!(108), &json!(0), &json!(0)));
}

#[tokio::test]
async fn a_purchase_whose_answer_was_lost_to_a_crash_is_made_once() {
    let mut souk = Souk::start(&[]).await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let sku = souk.sku(1_000, 100).await;
    let mut sold = 0;
    for round in 0..8_u32 {
        let cart = souk.cart_with(&sku, 1).await;
        let call = match round % 2 {
            0 => souk.post("/api/orders", order_body(&sku, "tok_ok")),
            _ => souk.post(&cart.path("/checkout"), purchase("tok_ok")).bearer(&cart.token),
        };
        let call = call.key(&format!("round {round}"));
        let mut line = Line::open(souk.address()).await;
        line.stream.write_all(&call.bytes()).await.unwrap();
        // Not a wait for something: the moment of the crash is what is varied.
        tokio::time::sleep(Duration::from_micros(random.u64(0..12_000))).await;
        souk.kill();
        souk.start_again().await;
        let call = call.to(souk.address());
        let answer = call.clone().send().await;
        assert!(matches!(answer.status, 201 | 202), "round {round}: {answer}");
        let order = answer.json();
        let token = if round % 2 == 0 { text(&order["token"]) } else { cart.token.clone() };
        let id = text(&order["id"]);
        eventually(Duration::from_secs(15), async || (souk.order(&id, &token).await["status"] == "paid").then_some(())).await;
        assert_eq!(call.send().await.json()["id"], order["id"]);
        sold += 1;
        let on_hand = eventually(Duration::from_secs(5), async || {
            let stock = souk.inventory(&sku).await;
            (stock["reserved"] == 0).then(|| stock["on_hand"].as_u64().unwrap())
        });
        assert_eq!(on_hand.await, 100 - sold, "round {round}");
        let list = souk.get("/api/orders?limit=100").bearer(&ADMIN).header("souk-at-least", &answer.position_or_0());
        let list = list.send().await.expect(200).json();
        assert_eq!(list["items"].as_array().unwrap().len() as u64, sold, "round {round}: {list}");
    }
}
