//! Lists: page by page, and never behind what their reader has written.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::server::{ADMIN, Souk, name, product_body, text};

/// All items of a list by its cursors, each of them once.
async fn walk(souk: &Souk, path: &str, position: u64) -> Vec<Value> {
    let mut items: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    loop {
        let call = souk.get(&format!("{path}{cursor}")).bearer(&ADMIN).header("souk-at-least", &position.to_string());
        let page = call.send().await.expect(200).json();
        items.extend(page["items"].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => {
                let next = souk::integrations::http_client::percent_encoded(next);
                cursor = format!("{}cursor={next}", if path.contains('?') { "&" } else { "?" });
            }
            None => break,
        }
        assert!(items.len() < 10_000, "{path}: the list has no end");
    }
    let ids: BTreeSet<&str> = items.iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), items.len(), "{path}: an item came twice");
    items
}

#[tokio::test]
async fn the_pages_of_a_list_hold_each_product_once_in_every_order() {
    let souk = Souk::shared().await;
    let tag = name("walked");
    let (mut position, mut made) = (0, BTreeMap::new());
    for index in 0..23_i64 {
        let sku = name("WALK");
        let mut body = product_body(&[(&sku, 100 * (index % 5 + 1), 1)]);
        body["tags"] = json!([tag]);
        body["title"] = json!(format!("Walk {}", index % 7));
        let answer = souk.post("/api/products", body).bearer(&ADMIN).send().await.expect(201);
        position = answer.position();
        made.insert(text(&answer.json()["id"]), 100 * (index % 5 + 1));
    }
    for sort in ["newest", "price", "-price", "title", "relevance"] {
        for limit in [1, 7, 23, 100] {
            let items = walk(&souk, &format!("/api/products?tag={tag}&sort={sort}&limit={limit}"), position).await;
            assert_eq!(items.len(), made.len(), "{sort} {limit}");
            assert!(items.iter().all(|item| made.contains_key(item["id"].as_str().unwrap())));
            let prices: Vec<i64> = items.iter().map(|item| item["price_from"]["amount"].as_i64().unwrap()).collect();
            match sort {
                "price" => assert!(prices.is_sorted()),
                "-price" => assert!(prices.iter().rev().is_sorted()),
                _ => {}
            }
        }
    }
    let first = souk.get(&format!("/api/products?tag={tag}")).send().await.expect(200).json();
    assert_eq!(first["items"].as_array().unwrap().len(), 20, "the default");
    let dear = walk(&souk, &format!("/api/products?tag={tag}&min_price=300&max_price=400"), position).await;
    assert_eq!(dear.len(), made.values().filter(|cents| (300..=400).contains(*cents)).count());
    let all: BTreeSet<String> = walk(&souk, "/api/products?limit=100", position).await.iter().map(|i| text(&i["id"])).collect();
    assert!(made.keys().all(|id| all.contains(id)));
}

#[tokio::test]
async fn a_list_shows_what_its_reader_has_written() {
    let souk = Souk::shared().await;
    let sku = souk.sku(100, 100).await;
    for _ in 0..15 {
        let tag = name("own");
        let mut body = product_body(&[(&name("OWN"), 100, 1)]);
        body["tags"] = json!([tag]);
        let created = souk.post("/api/products", body).bearer(&ADMIN).send().await.expect(201);
        let found = walk(&souk, &format!("/api/products?tag={tag}"), created.position()).await;
        assert_eq!(found.len(), 1);
        let path = format!("/api/products/{}", text(&found[0]["id"]));
        let deleted = souk.delete(&path).bearer(&ADMIN).send().await.expect(204);
        assert!(walk(&souk, &format!("/api/products?tag={tag}"), deleted.position()).await.is_empty());

        let cart = souk.cart_with(&sku, 1).await;
        let paid = souk.check_out(&cart, "tok_ok").await.expect(201);
        let list = souk.get("/api/orders?limit=100&status=paid").bearer(&ADMIN);
        let list = list.header("souk-at-least", &paid.position().to_string()).send().await.expect(200).json();
        assert!(list["items"].as_array().unwrap().iter().any(|order| order["id"] == paid.json()["id"]), "{list}");
    }
    let future = souk.get("/api/products").header("souk-at-least", "18446744073709551615").send().await;
    future.problem(409, "nothing-written-there");
}

#[tokio::test]
async fn the_history_of_an_order_comes_in_pages() {
    let souk = Souk::shared().await;
    let sku = souk.sku(100, 100).await;
    let cart = souk.cart_with(&sku, 1).await;
    let id = text(&souk.check_out(&cart, "tok_ok").await.expect(201).json()["id"]);
    let path = format!("/api/orders/{id}/history");
    let whole = souk.get(&path).bearer(&cart.token).send().await.expect(200).json();
    for limit in 1..4 {
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let call = souk.get(&format!("{path}?limit={limit}{cursor}")).bearer(&cart.token);
            let page = call.send().await.expect(200).json();
            items.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(&json!(items), &whole["items"], "limit {limit}");
    }
    souk.get(&format!("{path}?cursor=18446744073709551615")).bearer(&cart.token).send().await.expect(200);
}
