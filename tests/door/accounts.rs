//! Accounts, roles, sessions, keys and shops, as their holders and those who would like to be them meet the door.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use souk::actors::permissions::{Permission, Rank, Reach};
use souk::http::openapi;
use souk::http::routes::{PAGES, ROUTES};

use crate::routes::Walk;
use crate::server::{ADMIN, Account, PASSWORD, Souk, eventually, name, product_body, purchase, text};

const PATIENCE: Duration = Duration::from_secs(10);

/// Every route of accounts, sessions, keys, shops and claims, answered as documented.
pub async fn walk(souk: &Souk, walk: &mut Walk, sku: &str) {
    let (email, id, token) = Box::pin(walk_of_a_new_account(souk, walk)).await;
    Box::pin(walk_of_an_admin(souk, walk, &email, &id, &token)).await;
    let (me, email) = Box::pin(walk_of_a_session(souk, walk, &email)).await;
    Box::pin(walk_of_a_vendor(souk, walk, &me)).await;
    Box::pin(walk_to_the_end(souk, walk, sku, me, &email)).await;
}

async fn walk_of_a_new_account(souk: &Souk, walk: &mut Walk) -> (String, String, String) {
    let email = format!("{}@Souk.test", name("walker"));
    let body = json!({ "email": email, "password": PASSWORD, "name": "Walker" });
    let made = walk.take("/api/users", souk.post("/api/users", body), 201).await;
    assert_eq!(made.header("location"), Some("/api/users/me"));
    let user = made.json();
    assert_eq!((&user["email"], &user["name"], &user["roles"]), (&json!(email), &json!("Walker"), &json!(["customer"])));
    let id = text(&user["id"]);

    let credentials = json!({ "email": email.to_uppercase(), "password": PASSWORD });
    let said = walk.take("/api/sessions", souk.post("/api/sessions", credentials), 201).await;
    assert_eq!(said.header("cache-control"), Some("no-store"));
    let said = said.json();
    assert_eq!((&said["token_type"], &said["expires_in"], &said["user_id"]), (&json!("Bearer"), &json!(900), &json!(id)));
    let refresh = json!({ "refresh_token": said["refresh_token"] });
    let said = walk.take("/api/sessions/refresh", souk.post("/api/sessions/refresh", refresh), 200).await.json();
    let token = text(&said["access_token"]);

    let me = walk.take("/api/users/me", souk.get("/api/users/me").bearer(&token), 200).await;
    assert_eq!(me.json(), user);
    let unchanged = souk.get("/api/users/me").bearer(&token).header("if-none-match", &me.etag());
    unchanged.send().await.expect(304);
    let renamed = souk.patch("/api/users/me", json!({ "name": "Walker II" })).bearer(&token).header("if-match", &me.etag());
    let renamed = walk.take("/api/users/me", renamed, 200).await;
    assert_eq!(renamed.json()["name"], "Walker II");
    let late = souk.patch("/api/users/me", json!({ "name": "III" })).bearer(&token).header("if-match", &me.etag());
    late.send().await.problem(412, "version-differs");
    (email, id, token)
}

async fn walk_of_an_admin(souk: &Souk, walk: &mut Walk, email: &str, id: &str, token: &str) {
    let found = souk.get(&format!("/api/users?email={}", email.replace('@', "%40"))).bearer(&ADMIN);
    assert_eq!(walk.take("/api/users", found, 200).await.json()["id"], json!(id));
    let path = format!("/api/users/{id}");
    assert_eq!(walk.take("/api/users/{id}", souk.get(&path).bearer(&ADMIN), 200).await.json()["name"], "Walker II");
    let roles = format!("{path}/roles");
    let granted = walk.take("/api/users/{id}/roles", souk.post(&roles, json!({ "role": "admin" })).bearer(&ADMIN), 200).await;
    assert_eq!(granted.json()["roles"], json!(["customer", "admin"]));
    souk.get("/api/cluster").bearer(token).send().await.expect(200);
    let revoked = souk.delete(&format!("{roles}/admin")).bearer(&ADMIN);
    walk.take("/api/users/{id}/roles/{role}", revoked, 204).await;
    souk.get("/api/cluster").bearer(token).send().await.problem(401, "invalid-token");
}

async fn walk_of_a_session(souk: &Souk, walk: &mut Walk, email: &str) -> (Account, String) {
    let me = souk.log_in(email, PASSWORD).await;
    let other = souk.log_in(email, PASSWORD).await;
    let list = walk.take("/api/users/me/sessions", souk.get("/api/users/me/sessions").bearer(&me.token), 200).await.json();
    let current: Vec<_> = list["items"].as_array().unwrap().iter().map(|session| session["current"] == true).collect();
    assert_eq!((current.len(), current.iter().filter(|current| **current).count()), (2, 1), "{list}");
    let others = list["items"].as_array().unwrap().iter().find(|session| session["current"] == false).unwrap();
    let end = souk.delete(&format!("/api/users/me/sessions/{}", text(&others["id"]))).bearer(&me.token);
    walk.take("/api/users/me/sessions/{id}", end, 204).await;
    souk.get("/api/users/me").bearer(&other.token).send().await.problem(401, "invalid-token");

    let other = souk.log_in(email, PASSWORD).await;
    let new_password = json!({ "current_password": PASSWORD, "new_password": "another lantern 8" });
    let change = souk.post("/api/users/me/password", new_password.clone()).bearer(&me.token);
    walk.take("/api/users/me/password", change, 204).await;
    souk.get("/api/users/me").bearer(&me.token).send().await.expect(200);
    souk.get("/api/users/me").bearer(&other.token).send().await.problem(401, "invalid-token");
    souk.post("/api/users/me/password", new_password).bearer(&me.token).send().await.problem(422, "wrong-password");
    let new_email = format!("{}@souk.test", name("walked"));
    let body = json!({ "current_password": "another lantern 8", "email": new_email });
    let changed = walk.take("/api/users/me/email", souk.post("/api/users/me/email", body).bearer(&me.token), 200).await;
    assert_eq!(changed.json()["email"], json!(new_email));
    souk.post("/api/sessions", json!({ "email": email, "password": "another lantern 8" }))
        .send()
        .await
        .problem(401, "wrong-credentials");
    (me, new_email)
}

async fn walk_of_a_vendor(souk: &Souk, walk: &mut Walk, me: &Account) {
    let body = json!({ "label": "warehouse", "scopes": ["catalogue.write"] });
    let key = walk.take("/api/users/me/keys", souk.post("/api/users/me/keys", body).bearer(&me.token), 201).await.json();
    let keys = walk.take("/api/users/me/keys", souk.get("/api/users/me/keys").bearer(&me.token), 200).await.json();
    assert_eq!((&keys["items"][0]["label"], keys["items"][0].get("key")), (&json!("warehouse"), None));

    let body = json!({ "name": "Walker's", "description": "Boots." });
    let shop = walk.take("/api/shops", souk.post("/api/shops", body.clone()).bearer(&me.token), 201).await;
    let path = text(&json!(shop.header("location").unwrap()));
    souk.post("/api/shops", body).bearer(&me.token).send().await.problem(409, "has-shop");
    assert_eq!(walk.take("/api/shops/{id}", souk.get(&path), 200).await.json(), shop.json());
    let changed = souk.patch(&path, json!({ "description": "Boots and socks." })).bearer(&me.token);
    assert_eq!(walk.take("/api/shops/{id}", changed, 200).await.json()["name"], "Walker's");
    souk.post("/api/products", product_body(&[(&name("BOOT"), 100, 1)])).bearer(&text(&key["key"])).send().await.expect(201);
    let revoke = souk.delete(&format!("/api/users/me/keys/{}", text(&key["id"]))).bearer(&me.token);
    walk.take("/api/users/me/keys/{id}", revoke, 204).await;
    let refused = souk.post("/api/products", product_body(&[(&name("BOOT"), 100, 1)])).bearer(&text(&key["key"])).send().await;
    refused.problem(401, "invalid-token");
}

async fn walk_to_the_end(souk: &Souk, walk: &mut Walk, sku: &str, mut me: Account, email: &str) {
    let cart = souk.cart_with(sku, 1).await;
    let order = text(&souk.check_out(&cart, "tok_ok").await.expect(201).json()["id"]);
    let claim = souk.post(&format!("/api/orders/{order}/claim"), json!({ "token": cart.token })).bearer(&me.token);
    let claimed = walk.take("/api/orders/{id}/claim", claim, 200).await.json();
    assert_eq!(claimed["email"], "ada@example.test");
    souk.get(&format!("/api/orders/{order}")).bearer(&cart.token).send().await.problem(404, "not-found");
    souk.delete("/api/users/me").bearer(&me.token).send().await.problem(409, "orders-underway");
    souk.post(&format!("/api/orders/{order}/shipments"), json!({ "carrier": "c" })).bearer(&ADMIN).send().await.expect(201);

    walk.take("/api/sessions", souk.delete("/api/sessions").bearer(&me.token), 204).await;
    me = souk.log_in(email, "another lantern 8").await;
    walk.take("/api/users/me/sessions", souk.delete("/api/users/me/sessions").bearer(&me.token), 204).await;
    souk.get("/api/users/me").bearer(&me.token).send().await.problem(401, "invalid-token");
    me = souk.log_in(email, "another lantern 8").await;
    walk.take("/api/users/me", souk.delete("/api/users/me").bearer(&me.token), 204).await;
    souk.get("/api/users/me").bearer(&me.token).send().await.problem(401, "invalid-token");

    let keys = walk.take("/.well-known/jwks.json", souk.get("/.well-known/jwks.json"), 200).await.json();
    assert_eq!((&keys["keys"][0]["kty"], &keys["keys"][0]["alg"]), (&json!("OKP"), &json!("EdDSA")));
}

#[tokio::test]
async fn every_route_of_the_contract_lets_in_whom_the_table_says_and_nobody_else() {
    let souk = Souk::shared().await;
    let (vendor, _) = souk.vendor().await;
    let customer = souk.account().await;
    let callers: [(&str, Option<&str>, &[Rank]); 4] = [
        ("nobody", None, &[Rank::Guest]),
        ("customer", Some(&customer.token), &[Rank::Customer]),
        ("vendor", Some(&vendor.token), &[Rank::Customer, Rank::Vendor]),
        ("admin", Some(&ADMIN), &[Rank::Admin]),
    ];
    let document = openapi::document();
    let mut seen = BTreeSet::new();
    for (pattern, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let route =
                ROUTES.iter().find(|route| route.pattern == pattern && route.method.as_str().eq_ignore_ascii_case(method));
            let permission = route.unwrap_or_else(|| panic!("{method} {pattern} has no permission")).permission;
            seen.insert(permission.name());
            // Ids of the right form that lead nowhere: what is asked here is who gets as far as that.
            let path = pattern
                .replace("/carts/{id}", "/carts/cart_01ARZ3NDEKTSV4RRFFQ69G5FAV")
                .replace("/orders/{id}", "/orders/ord_01ARZ3NDEKTSV4RRFFQ69G5FAV")
                .replace("/products/{id}", "/products/prod_01ARZ3NDEKTSV4RRFFQ69G5FAV")
                .replace("/flash-sales/{id}", "/flash-sales/fs_01ARZ3NDEKTSV4RRFFQ69G5FAV")
                .replace(['{', '}'], "x");
            for (who, token, ranks) in callers {
                // These would end what the others ask with.
                if token.is_some() && method == "delete" && (pattern.starts_with("/api/users/me") || pattern == "/api/sessions") {
                    continue;
                }
                let mut call = souk.call(&method.to_uppercase(), &path).body("nonsense");
                if let Some(token) = token {
                    call = call.bearer(token);
                }
                let answer = call.send().await;
                let what = format!("{who}: {method} {pattern}: {answer}");
                let reaches: Vec<Reach> = ranks.iter().map(|rank| permission.reach(*rank)).collect();
                match (reaches.iter().all(|reach| *reach == Reach::None), token) {
                    (true, None) => assert_eq!(answer.status, 401, "{what}"),
                    (true, Some(_)) => assert_eq!(answer.status, 403, "{what}"),
                    (false, _) => assert!(!matches!(answer.status, 401 | 403), "{what}"),
                }
            }
        }
    }
    // Pages are none of the contract: whatever they show, they ask for by a route of it.
    seen.extend(PAGES.iter().map(|page| page.permission.name()));
    let all: BTreeSet<&str> = Permission::EVERY.iter().map(|permission| permission.name()).collect();
    assert_eq!(seen, all, "a permission that no route asks for");
}

#[tokio::test]
async fn a_vendor_sells_and_ships_its_own_and_finds_nothing_of_others() {
    let souk = Souk::shared().await;
    let ((mine, shop), (other, other_shop)) = (souk.vendor().await, souk.vendor().await);
    let (sku, others_sku) = (name("MINE"), name("OTHERS"));
    let product =
        souk.post("/api/products", product_body(&[(&sku, 1_000, 50)])).bearer(&mine.token).send().await.expect(201).json();
    assert_eq!(product["shop_id"], json!(shop));
    let path = format!("/api/products/{}", text(&product["id"]));
    souk.post("/api/products", product_body(&[(&others_sku, 300, 50)])).bearer(&other.token).send().await.expect(201);
    let mut elsewhere = product_body(&[(&name("ELSE"), 1, 1)]);
    elsewhere["shop_id"] = json!(other_shop);
    souk.post("/api/products", elsewhere).bearer(&mine.token).send().await.problem(403, "forbidden");

    let adjust = |sku: &str, who: &Account| {
        souk.post(&format!("/api/inventory/{sku}/adjustments"), json!({ "delta": 1, "reason": "r" })).bearer(&who.token)
    };
    adjust(&sku, &mine).send().await.expect(200);
    for call in [
        souk.patch(&path, json!({ "title": "Theirs" })),
        souk.delete(&path),
        souk.patch(&format!("/api/inventory/{sku}"), json!({ "low_stock_threshold": 1 })),
        souk.patch(&format!("/api/shops/{shop}"), json!({ "name": "Theirs" })),
    ] {
        call.bearer(&other.token).send().await.problem(404, "not-found");
    }
    adjust(&sku, &other).send().await.problem(404, "not-found");
    // Not published: its vendor sees it, and nobody else.
    souk.patch(&path, json!({ "published": false })).bearer(&mine.token).send().await.expect(200);
    souk.get(&path).bearer(&mine.token).send().await.expect(200);
    souk.get(&path).bearer(&other.token).send().await.problem(404, "not-found");
    souk.patch(&path, json!({ "published": true })).bearer(&mine.token).send().await.expect(200);

    let mut body = purchase("tok_ok");
    body["items"] = json!([{ "sku": sku, "quantity": 2 }, { "sku": others_sku, "quantity": 1 }]);
    let mixed = souk.post("/api/orders", body.clone()).send().await.expect(201).json();
    let mixed_path = format!("/api/orders/{}", text(&mixed["id"]));
    body["items"] = json!([{ "sku": sku, "quantity": 1 }]);
    let own = souk.post("/api/orders", body).send().await.expect(201);
    let (own_path, position) = (format!("/api/orders/{}", text(&own.json()["id"])), own.position().to_string());

    let part = souk.get(&mixed_path).bearer(&mine.token).send().await.expect(200).json();
    assert_eq!((part["lines"].as_array().unwrap().len(), &part["total"]["amount"]), (1, &json!(2_000)));
    assert_eq!(part["shipping_address"]["city"], "Fes", "whoever ships needs the address");
    let ship = |path: &str, who: &Account| souk.post(&format!("{path}/shipments"), json!({ "carrier": "c" })).bearer(&who.token);
    ship(&mixed_path, &mine).send().await.problem(404, "not-found");
    ship(&own_path, &other).send().await.problem(404, "not-found");
    souk.get(&own_path).bearer(&other.token).send().await.problem(404, "not-found");
    souk.get(&format!("{mixed_path}/history")).bearer(&mine.token).send().await.problem(404, "not-found");
    ship(&own_path, &mine).send().await.expect(201);

    let list = souk.get(&format!("/api/orders?shop={shop}")).bearer(&mine.token).header("souk-at-least", &position);
    let list = list.send().await.expect(200).json();
    let totals: Vec<_> =
        list["items"].as_array().unwrap().iter().map(|order| order["total"]["amount"].as_i64().unwrap()).collect();
    assert_eq!(totals, [1_000, 2_000]);
    souk.get(&format!("/api/orders?shop={shop}")).bearer(&other.token).send().await.problem(404, "not-found");
    let none = souk.get("/api/orders").bearer(&mine.token).send().await.expect(200).json();
    assert_eq!(none["items"], json!([]), "what others bought here is not what the vendor bought");
}

#[tokio::test]
async fn a_guests_cart_comes_along_at_log_in_wherever_the_account_was_before() {
    let souk = Souk::shared().await;
    let (sku, me) = (souk.sku(500, 50).await, souk.account().await);
    let guests = souk.cart_with(&sku, 2).await;
    let log_in = |cart: &crate::server::Cart| {
        let body = json!({
            "email": me.email, "password": PASSWORD, "cart": { "id": cart.id, "token": cart.token },
        });
        souk.post("/api/sessions", body)
    };
    let said = log_in(&guests).send().await.expect(201).json();
    let (token, cart) = (text(&said["access_token"]), format!("/api/carts/{}", text(&said["cart_id"])));
    let seen = souk.get(&cart).bearer(&token).send().await.expect(200).json();
    assert_eq!(seen["lines"][0]["quantity"], 2);
    assert_eq!(souk.get(&guests.path("")).bearer(&guests.token).send().await.expect(200).json()["status"], "merged");
    souk.get(&cart).bearer(&guests.token).send().await.problem(404, "not-found");

    // On another device, as a guest again.
    let more = souk.cart_with(&sku, 3).await;
    let again = log_in(&more).send().await.expect(201).json();
    assert_eq!(again["cart_id"], said["cart_id"]);
    assert_eq!(souk.get(&cart).bearer(&token).send().await.expect(200).json()["lines"][0]["quantity"], 5);
    // What is not the guest's own cart is left where it is, and keeps nobody out.
    let stranger = crate::server::Cart { id: souk.cart_with(&sku, 1).await.id, token: "nonsense".into() };
    assert_eq!(log_in(&stranger).send().await.expect(201).json().get("cart_id"), None);

    let bought = souk.post(&format!("{cart}/checkout"), purchase("tok_ok")).bearer(&token).send().await.expect(201);
    let list = souk.get("/api/orders").bearer(&token).header("souk-at-least", &bought.position().to_string());
    assert_eq!(list.send().await.expect(200).json()["items"][0]["id"], bought.json()["id"]);
    let order = format!("/api/orders/{}", text(&bought.json()["id"]));
    souk.get(&order).bearer(&souk.account().await.token).send().await.problem(404, "not-found");
}

#[tokio::test]
async fn a_refresh_token_that_is_used_twice_ends_its_session_for_everybody() {
    let souk = Souk::shared().await;
    let me = souk.account().await;
    let refresh = |token: &str| souk.post("/api/sessions/refresh", json!({ "refresh_token": token }));
    // The answer was lost: with its key, it can be had again.
    let key = name("refresh-key-of-its-own");
    let first = refresh(&me.refresh).key(&key).send().await.expect(200).json();
    assert_eq!(refresh(&me.refresh).key(&key).send().await.expect(200).json(), first);
    let second = refresh(&text(&first["refresh_token"])).send().await.expect(200).json();
    souk.get("/api/users/me").bearer(&text(&second["access_token"])).send().await.expect(200);

    // A thief has the first one.
    refresh(&text(&first["refresh_token"])).send().await.problem(401, "invalid-token");
    refresh(&text(&second["refresh_token"])).send().await.problem(401, "invalid-token");
    for said in [&first, &second] {
        souk.get("/api/users/me").bearer(&text(&said["access_token"])).send().await.problem(401, "invalid-token");
    }
    // One that was never given out ends nothing.
    let me = souk.log_in(&me.email, PASSWORD).await;
    let (told, _) = me.refresh.rsplit_once('.').unwrap();
    refresh(&format!("{told}.{}", "0".repeat(64))).send().await.problem(401, "invalid-token");
    souk.get("/api/users/me").bearer(&me.token).send().await.expect(200);
}

#[tokio::test]
async fn two_who_sign_up_with_one_address_at_once_make_one_account() {
    let souk = Souk::shared().await;
    for _ in 0..5 {
        let email = format!("{}@souk.test", name("twins"));
        let sign_up =
            |email: String| souk.post("/api/users", json!({ "email": email, "password": PASSWORD, "name": "Twin" })).send();
        let all = tokio::join!(sign_up(email.clone()), sign_up(email.to_uppercase()), sign_up(format!(" {email}")));
        let mut statuses = [all.0.status, all.1.status, all.2.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409, 409]);
        souk.log_in(&email, PASSWORD).await;
    }
}

#[tokio::test]
async fn whoever_guesses_passwords_waits_ever_longer_and_learns_nothing_of_who_is_there() {
    let souk = Souk::start(&["--limit-login", "0"]).await;
    let me = souk.account().await;
    let nobody = format!("{}@souk.test", name("nobody"));
    for email in [&nobody, &me.email] {
        let (mut failures, mut longest) = (0, 0);
        let wrong = souk.post("/api/sessions", json!({ "email": email, "password": "a wrong one" }));
        // Each failure after a wait makes the next one longer.
        eventually(PATIENCE, async || {
            let answer = wrong.clone().send().await;
            match answer.status {
                401 => {
                    answer.problem(401, "wrong-credentials");
                    failures += 1;
                }
                _ => {
                    longest = longest.max(answer.header("retry-after").unwrap().parse::<u64>().unwrap());
                    answer.problem(429, "too-many-attempts");
                }
            }
            (longest >= 4).then_some(())
        })
        .await;
        assert_eq!(failures, 7, "{email}");
    }
    // Also the right one has to wait.
    let right = souk.post("/api/sessions", json!({ "email": me.email, "password": PASSWORD }));
    right.clone().send().await.problem(429, "too-many-attempts");
    eventually(PATIENCE, async || (right.clone().send().await.status == 201).then_some(())).await;
}

/// A token with this header and these claims, signed by nobody.
fn forged(header: &Value, claims: &Value, signature: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{signature}", part(header), part(claims))
}

#[tokio::test]
async fn a_token_that_is_not_ours_opens_nothing() {
    let souk = Souk::shared().await;
    let me = souk.account().await;
    let [header, claims, signature] = me.token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let decoded = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    let (own_header, own_claims) = (decoded(header), decoded(claims));
    let changed = |name: &str, value: Value| {
        let mut claims = own_claims.clone();
        claims[name] = value;
        claims
    };
    let kid = own_header["kid"].clone();
    for token in [
        forged(&json!({ "alg": "none", "typ": "JWT" }), &own_claims, ""),
        forged(&json!({ "alg": "none", "kid": kid, "typ": "JWT" }), &own_claims, signature),
        forged(&json!({ "alg": "HS256", "kid": kid, "typ": "JWT" }), &own_claims, signature),
        forged(&own_header, &changed("sub", json!("operator")), signature),
        forged(&own_header, &changed("roles", json!(["admin"])), signature),
        forged(&own_header, &changed("exp", json!(4_102_444_800_u64)), signature),
        forged(&own_header, &changed("iss", json!("another")), signature),
        forged(&own_header, &changed("aud", json!("another")), signature),
        format!("{header}.{claims}."),
        format!("{header}.{claims}"),
        format!("{}x", me.token),
        me.refresh.clone(),
        format!("{}.", me.token),
    ] {
        souk.get("/api/users/me").bearer(&token).send().await.problem(401, "invalid-token");
        souk.get("/api/cluster").bearer(&token).send().await.problem(401, "invalid-token");
    }
    souk.get("/api/users/me").bearer(&me.token).send().await.expect(200);
}

#[tokio::test]
async fn an_api_key_does_what_its_scopes_say_and_what_everybody_may() {
    let souk = Souk::shared().await;
    let (me, shop) = souk.vendor().await;
    let body = json!({ "label": "reader", "scopes": ["orders.list", "accounts.read"] });
    let key = souk.post("/api/users/me/keys", body).bearer(&me.token).send().await.expect(201).json();
    let key = text(&key["key"]);
    souk.get(&format!("/api/orders?shop={shop}")).bearer(&key).send().await.expect(200);
    souk.get("/api/users/me").bearer(&key).send().await.expect(200);
    souk.get("/api/products").bearer(&key).send().await.expect(200);
    souk.post("/api/products", product_body(&[(&name("KEY"), 1, 1)])).bearer(&key).send().await.problem(403, "forbidden");
    for call in [souk.get("/api/users/me/keys"), souk.delete("/api/users/me"), souk.delete("/api/sessions")] {
        call.bearer(&key).send().await.problem(403, "forbidden");
    }
    for wrong in [json!([]), json!(["orders.everything"]), json!(["accounts.use"])] {
        let body = json!({ "label": "l", "scopes": wrong });
        souk.post("/api/users/me/keys", body).bearer(&me.token).send().await.problem(400, "invalid-body");
    }
    let (start, secret) = key.rsplit_once('.').unwrap();
    let other: String = secret.chars().rev().collect();
    souk.get("/api/users/me").bearer(&format!("{start}.{other}")).send().await.problem(401, "invalid-token");
}

#[tokio::test]
async fn an_account_that_was_deleted_leaves_its_orders_and_nothing_personal() {
    let souk = Souk::shared().await;
    let (sku, me) = (souk.sku(500, 50).await, souk.account().await);
    let mut body = purchase("tok_ok");
    body["items"] = json!([{ "sku": sku, "quantity": 1 }]);
    let order = souk.post("/api/orders", body).bearer(&me.token).key(&name("key")).send().await.expect(201);
    let path = format!("/api/orders/{}", text(&order.json()["id"]));
    assert_eq!(order.json()["email"], "ada@example.test");
    souk.post(&format!("{path}/shipments"), json!({ "carrier": "c" })).bearer(&ADMIN).send().await.expect(201);
    souk.delete("/api/users/me").bearer(&me.token).send().await.expect(204);
    let bare = eventually(PATIENCE, async || {
        let order = souk.order(path.strip_prefix("/api/orders/").unwrap(), &ADMIN).await;
        order.get("email").is_none().then_some(order)
    })
    .await;
    assert_eq!(
        (bare.get("shipping_address"), &bare["total"], &bare["status"]),
        (None, &order.json()["total"], &json!("shipped"))
    );
    souk.get(&format!("/api/users/{}", me.id)).bearer(&ADMIN).send().await.problem(404, "not-found");
    // The address is free again, for another account.
    let again = json!({ "email": me.email, "password": PASSWORD, "name": "Another" });
    let again = eventually(PATIENCE, async || {
        let answer = souk.post("/api/users", again.clone()).send().await;
        (answer.status == 201).then_some(answer)
    });
    assert_ne!(text(&again.await.json()["id"]), me.id);
}

#[tokio::test]
async fn nothing_personal_and_no_secret_is_in_the_data_folder_but_under_seals() {
    let mut souk = Souk::start(&[]).await;
    let (sku, me) = (souk.sku(500, 50).await, souk.account().await);
    let mut body = purchase("tok_ok");
    body["items"] = json!([{ "sku": sku, "quantity": 1 }]);
    for token in [Some(&me.token), None] {
        let mut call = souk.post("/api/orders", body.clone()).key(&name("a-key-that-nobody-guesses"));
        if let Some(token) = token {
            call = call.bearer(token);
        }
        call.send().await.expect(201);
    }
    let log_in = json!({ "email": me.email, "password": PASSWORD });
    let said = souk.post("/api/sessions", log_in).key(&name("another-key-of-that-kind")).send().await.expect(201).json();
    let access = text(&said["access_token"]);
    let secrets = [&me.email, PASSWORD, "Some One", "Ada Buyer", "1 Market Street", "ada@example.test", &me.refresh, &access];
    souk.ask_to_end();
    souk.ended().await;
    let files = souk.files();
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        for secret in secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is in {}", file.display());
        }
    }
}

#[tokio::test]
async fn a_session_that_was_ended_stays_ended_through_kill_9() {
    let mut souk = Souk::start(&[]).await;
    let (ended, kept) = (souk.account().await, souk.account().await);
    souk.delete("/api/sessions").bearer(&ended.token).send().await.expect(204);
    souk.kill();
    souk.start_again().await;
    souk.get("/api/users/me").bearer(&ended.token).send().await.problem(401, "invalid-token");
    souk.get("/api/users/me").bearer(&kept.token).send().await.expect(200);
    let refresh = souk.post("/api/sessions/refresh", json!({ "refresh_token": ended.refresh }));
    refresh.send().await.problem(401, "invalid-token");
}
