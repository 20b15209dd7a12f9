//! The import into a node over HTTP, against a server that has only what the import needs.

// Clippy's allowance for tests does not reach the functions beside them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use clap::{Args, Command, FromArgMatches};
use serde_json::{Value, json};
use souk::integrations::import::{ImportError, ImportReport};
use souk::integrations::import_command::{Destination, ImportArgs, ImportCommandError};
use support::{Asked, Told, serve, told};

const CLASSIC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/shopify-classic.csv");

#[derive(Default)]
struct Node {
    products: Vec<Value>,
    keys: Vec<String>,
    changes: Vec<Value>,
}

fn answer(node: &Mutex<Node>, asked: &Asked) -> Told {
    assert_eq!(asked.header("authorization"), "Bearer vendor");
    let mut node = node.lock().unwrap();
    match (asked.method.as_str(), asked.segments().as_slice()) {
        ("GET", ["api", "inventory", sku]) => {
            let has = |product: &Value| product["variants"].as_array().unwrap().iter().any(|variant| variant["sku"] == *sku);
            match node.products.iter().position(has) {
                Some(id) => told(200, json!({ "sku": sku, "product_id": format!("prod_{id}"), "on_hand": 1 })),
                None => told(404, json!({ "title": "No such sku" })),
            }
        }
        ("GET", ["api", "products", id]) => {
            let mut product = node.products[id[5..].parse::<usize>().unwrap()].clone();
            product["id"] = json!(id);
            product["added_by_a_later_version"] = json!(true);
            told(200, product)
        }
        ("POST", ["api", "products"]) => {
            let mut product = asked.body.clone();
            if product["handle"] == "old-lamp" {
                let errors = json!([{ "pointer": "/title", "message": "is not allowed" }]);
                return told(400, json!({ "title": "The product is not valid", "errors": errors }));
            }
            assert!(product.get("shop_id").is_none(), "a vendor's shop is known from the token");
            product["shop_id"] = json!("shop_1");
            node.keys.push(asked.header("idempotency-key").to_owned());
            node.products.push(product);
            told(201, json!({}))
        }
        ("PATCH", ["api", "products", id]) => {
            node.changes.push(asked.body.clone());
            let product = &mut node.products[id[5..].parse::<usize>().unwrap()];
            for (field, value) in asked.body.as_object().unwrap() {
                product[field] = value.clone();
            }
            told(200, json!({}))
        }
        (method, path) => panic!("unexpected {method} {path:?}"),
    }
}

fn args(words: &[&str]) -> ImportArgs {
    let command = ImportArgs::augment_args(Command::new("import"));
    ImportArgs::from_arg_matches(&command.get_matches_from([&["import"], words].concat())).unwrap()
}

async fn import(url: &str) -> Result<ImportReport, ImportCommandError> {
    args(&[CLASSIC, "--url", url, "--token", "vendor"]).into_node(url).await
}

#[tokio::test]
async fn products_are_created_then_left_alone_then_changed() {
    let node = Arc::new(Mutex::new(Node::default()));
    let served = Arc::clone(&node);
    let url = serve(move |asked| {
        let told = answer(&served, &asked);
        async move { told }
    })
    .await;

    let report = import(&url).await.unwrap();
    assert_eq!((report.created, report.unchanged, report.row_errors_count), (2, 0, 2));
    let refused = report.row_errors[1].to_string();
    assert_eq!(refused, "line 10: 400 Bad Request: The product is not valid: /title is not allowed");
    {
        let node = node.lock().unwrap();
        assert!(node.keys.iter().all(|key| key.starts_with("import-")) && node.keys[0] != node.keys[1]);
        let pot = node.products.iter().find(|product| product["handle"] == "clay-teapot").unwrap();
        assert_eq!(pot["type"], "Teapot");
        let variant = json!({ "sku": "POT-1", "price": { "amount": 4990, "currency": "EUR" }, "options": [], "stock": 12 });
        assert_eq!(pot["variants"], json!([variant]));
    }

    assert_eq!(import(&url).await.unwrap().unchanged, 2);

    node.lock().unwrap().products.iter_mut().for_each(|product| product["title"] = json!("Another"));
    assert_eq!(import(&url).await.unwrap().updated, 2);
    let node = node.lock().unwrap();
    assert!(node.changes.iter().all(|change| change.get("shop_id").is_none() && change["title"] != "Another"));
    assert!(node.changes.iter().all(|change| change["variants"][0].get("stock").is_none()), "stock is never reset");
}

#[tokio::test]
async fn a_busy_node_is_asked_again_with_the_same_key() {
    let (asks, seen) = (AtomicU32::new(0), Arc::new(Mutex::new(BTreeMap::<String, u32>::new())));
    let (node, keys) = (Arc::new(Mutex::new(Node::default())), Arc::clone(&seen));
    let url = serve(move |asked| {
        if asked.method == "POST" {
            *keys.lock().unwrap().entry(asked.header("idempotency-key").to_owned()).or_default() += 1;
        }
        let busy = asks.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        let told = match busy {
            true => Told { status: 503, header: Some(("retry-after", "0".to_owned())), body: json!({ "title": "Overloaded" }) },
            false => answer(&node, &asked),
        };
        async move { told }
    })
    .await;
    assert_eq!(import(&url).await.unwrap().created, 2);
    assert_eq!(seen.lock().unwrap().len(), 3, "one key for each product, however often it was sent");
}

#[tokio::test]
async fn a_token_that_is_refused_stops_the_import_at_once() {
    let url = serve(|_| async { told(401, json!({ "title": "The token has expired" })) }).await;
    match import(&url).await {
        Err(ImportCommandError::Import(ImportError::Stopped { reason, .. })) => {
            assert!(reason.contains("401 Unauthorized: The token has expired"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_url_wins_over_the_data_folder() {
    assert_eq!(args(&["a.csv", "--url", "http://a"]).destination(), Destination::Node { url: "http://a" });
    assert_eq!(args(&["a.csv"]).destination(), Destination::DataFolder("./data".as_ref()));
}
