//! The rehearsal against a service that is honest, and against ones that are not: it must tell them apart.

// Clippy's allowance for tests does not reach the functions beside them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use souk::rehearse::RehearseError;
use souk::rehearse::checkout::{self, CheckoutArgs, Report};
use support::{Asked, Told, serve, told};

/// How the service behaves.
#[derive(Clone, Copy, PartialEq)]
enum Conduct {
    Honest,
    /// Takes some orders without taking their units from the stock.
    Oversells,
    /// Captures some payments twice.
    CapturesTwice,
    /// Answers 202 first.
    Deliberates,
    /// Carries checkouts out, but some first answers come too late.
    LosesAnswers,
    NeverReleases,
    NeverAnswers,
    NeverAnswersCheckouts,
}

#[derive(Default)]
struct Shop {
    stock: BTreeMap<String, i64>,
    /// The sku in each cart.
    carts: Vec<String>,
    orders: Vec<Order>,
    answers: BTreeMap<String, usize>,
}

struct Order {
    sku: String,
    reads: u32,
}

fn order_body(number: usize, order: &Order, paid: bool) -> Value {
    json!({
        "id": format!("ord_{number}"),
        "status": if paid { "paid" } else { "reserved" },
        "lines": [{ "sku": order.sku, "quantity": 1, "unit_price": { "amount": 1, "currency": "EUR" } }],
    })
}

async fn answer(conduct: Conduct, shop: Arc<Mutex<Shop>>, asked: Asked) -> Told {
    if conduct == Conduct::NeverAnswers || (conduct == Conduct::NeverAnswersCheckouts && asked.path.ends_with("/checkout")) {
        return std::future::pending().await;
    }
    let (told, late) = decide(conduct, &mut shop.lock().unwrap(), &asked);
    if late {
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    told
}

fn decide(conduct: Conduct, shop: &mut Shop, asked: &Asked) -> (Told, bool) {
    let number = |text: &str| text.rsplit('_').next().unwrap_or("").parse::<usize>().unwrap();
    let cart_token = |cart: &str| format!("Bearer token_{cart}");
    let told = match (asked.method.as_str(), asked.segments().as_slice()) {
        ("GET", ["api", "products"]) => match asked.path.contains("cursor=next") {
            false => told(200, json!({ "items": [{ "variants": [{ "sku": "A" }] }], "next_cursor": "next" })),
            true => told(200, json!({ "items": [{ "variants": [{ "sku": "B/2" }] }], "next_cursor": null })),
        },
        ("GET", ["api", "inventory", sku]) => {
            let on_hand = *shop.stock.entry(sku.replace("%2F", "/")).or_default();
            let reserved = i64::from(conduct == Conduct::NeverReleases);
            let available = on_hand - reserved;
            told(200, json!({ "on_hand": on_hand, "reserved": reserved, "held": 0, "available": available }))
        }
        ("POST", ["api", "inventory", sku, "adjustments"]) => {
            assert_eq!(asked.header("authorization"), "Bearer admin");
            *shop.stock.entry(sku.replace("%2F", "/")).or_default() += asked.body["delta"].as_i64().unwrap();
            told(200, json!({}))
        }
        ("POST", ["api", "carts"]) => {
            shop.carts.push(String::new());
            let id = format!("cart_{}", shop.carts.len() - 1);
            told(201, json!({ "id": id, "token": format!("token_{id}"), "lines": [] }))
        }
        ("POST", ["api", "carts", cart, "items"]) => {
            assert_eq!(asked.header("authorization"), cart_token(cart));
            shop.carts[number(cart)] = asked.body["sku"].as_str().unwrap().to_owned();
            told(201, json!({}))
        }
        ("POST", ["api", "carts", cart, "checkout"]) => {
            assert_eq!(asked.header("authorization"), cart_token(cart));
            let key = asked.header("idempotency-key").to_owned();
            if let Some(order) = shop.answers.get(&key) {
                return (told(201, order_body(*order, &shop.orders[*order], true)), false);
            }
            let sku = shop.carts[number(cart)].clone();
            let order = shop.orders.len();
            let on_hand = shop.stock.entry(sku.clone()).or_default();
            if *on_hand == 0 {
                return (told(409, json!({ "title": "Out of stock", "detail": format!("cart {cart}") })), false);
            }
            *on_hand -= i64::from(conduct != Conduct::Oversells || !order.is_multiple_of(3));
            shop.answers.insert(key, order);
            shop.orders.push(Order { sku, reads: 0 });
            let body = order_body(order, &shop.orders[order], conduct != Conduct::Deliberates);
            let header = Some(("location", format!("/api/orders/ord_{order}")));
            let status = if conduct == Conduct::Deliberates { 202 } else { 201 };
            return (Told { status, header, body }, conduct == Conduct::LosesAnswers && order.is_multiple_of(5));
        }
        ("GET", ["api", "orders", id]) => {
            assert!(asked.header("authorization").starts_with("Bearer token_cart_"));
            let order = &mut shop.orders[number(id)];
            order.reads += 1;
            told(200, order_body(number(id), order, conduct != Conduct::Deliberates || order.reads > 1))
        }
        ("GET", ["api", "orders", id, "history"]) => {
            let captured = json!({ "type": "order.payment.captured" });
            let twice = conduct == Conduct::CapturesTwice && number(id).is_multiple_of(4);
            match (asked.path.contains("cursor=c"), twice) {
                (false, _) => told(200, json!({ "items": [{ "type": "order.created" }, captured], "next_cursor": "c" })),
                (true, true) => told(200, json!({ "items": [captured], "next_cursor": null })),
                (true, false) => told(200, json!({ "items": [{ "type": "order.paid" }], "next_cursor": null })),
            }
        }
        (method, path) => panic!("unexpected {method} {path:?}"),
    };
    (told, false)
}

fn args(url: String) -> CheckoutArgs {
    CheckoutArgs {
        buyers: 4,
        seconds: 1,
        url,
        token: Some("admin".to_owned()),
        skus: vec![],
        stock: None,
        timeout_seconds: 1,
        settle_seconds: 1,
        json: true,
    }
}

async fn rehearse_with(conduct: Conduct, change: impl FnOnce(&mut CheckoutArgs)) -> Result<Report, RehearseError> {
    let shop = Arc::new(Mutex::new(Shop::default()));
    let url = serve(move |asked| answer(conduct, Arc::clone(&shop), asked)).await;
    let mut args = args(url);
    change(&mut args);
    checkout::run(&args).await
}

async fn rehearse(conduct: Conduct) -> Report {
    rehearse_with(conduct, |_| {}).await.unwrap()
}

#[tokio::test]
async fn an_honest_service_passes() {
    let report = rehearse(Conduct::Honest).await;
    assert!(report.passed, "{report}");
    let books = report.books.as_ref().unwrap();
    assert!(report.orders_paid > 10 && books.sold == report.orders_paid as i64, "{report}");
    assert_eq!((report.skus, books.before, books.added), (2, 0, 200_000));
    assert_eq!(books.histories_checked as u64, report.orders_paid.min(books.histories_checked as u64));
    assert!(books.histories_checked > 10 && books.histories_checked <= checkout::HISTORIES_MAX);
    assert_eq!((report.refusals.len(), report.errors.len(), report.unknown), (0, 0, 0));
    assert!(report.steps.iter().all(|step| step.took.count == report.orders_paid), "{report}");
    assert!(report.to_string().contains("The books balance"), "{report}");
    assert_eq!(serde_json::to_value(&report).unwrap()["steps"][0]["p50_us"].as_u64(), Some(report.steps[0].took.p50_us));
}

#[tokio::test]
async fn units_that_were_sold_and_are_still_there_are_found() {
    let report = rehearse(Conduct::Oversells).await;
    assert!(!report.passed);
    let books = report.books.as_ref().unwrap();
    assert!(!books.differences.is_empty() && books.sold + books.left > books.before + books.added, "{report}");
    assert!(report.to_string().contains("THE BOOKS DO NOT BALANCE"));
}

#[tokio::test]
async fn a_payment_that_was_captured_twice_is_found() {
    let report = rehearse(Conduct::CapturesTwice).await;
    let books = report.books.as_ref().unwrap();
    assert!(!report.passed && books.differences.is_empty());
    assert!(books.captured_wrongly.values().all(|captures| *captures == 2) && !books.captured_wrongly.is_empty());
}

#[tokio::test]
async fn a_reservation_that_is_never_released_is_found() {
    let report = rehearse(Conduct::NeverReleases).await;
    assert!(!report.passed);
    assert_eq!(report.books.unwrap().still_reserved, 2);
}

#[tokio::test]
async fn an_order_that_settles_later_is_followed_to_its_end() {
    let report = rehearse(Conduct::Deliberates).await;
    assert!(report.passed && report.orders_paid >= 4, "{report}");
    assert!(report.steps[4].took.p50_us > 200_000, "{report}");
}

#[tokio::test]
async fn stock_that_runs_out_is_a_refusal_and_the_books_still_balance() {
    let report = rehearse_with(Conduct::Honest, |args| {
        args.skus = vec!["A".to_owned()];
        args.stock = Some(7);
    })
    .await
    .unwrap();
    assert!(report.passed, "{report}");
    assert_eq!((report.orders_paid, report.books.as_ref().map(|books| books.left)), (7, Some(0)));
    assert!(report.refusals["checkout: 409: Out of stock"] > 0);
}

#[tokio::test]
async fn a_purchase_whose_answer_was_lost_is_learned_of_by_its_key() {
    let report = rehearse(Conduct::LosesAnswers).await;
    assert!(report.passed && report.unknown == 0, "{report}");
    assert!(report.errors["checkout: no answer within 1000 ms"] > 0, "{report}");
}

#[tokio::test]
async fn a_service_that_hangs_ends_the_rehearsal_in_time_and_fails_it() {
    let started = Instant::now();
    let report = rehearse_with(Conduct::NeverAnswers, |args| {
        args.token = None;
        args.skus = vec!["A".to_owned()];
    });
    let report = report.await.unwrap();
    assert!(!report.passed && report.books.is_none() && report.orders_paid == 0);
    assert!(report.errors["create cart: no answer within 1000 ms"] >= 4, "{report}");
    let report = rehearse(Conduct::NeverAnswersCheckouts).await;
    assert!(!report.passed && report.unknown >= 4, "{report}");
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());

    let with_token = rehearse_with(Conduct::NeverAnswers, |_| {}).await;
    assert!(matches!(with_token, Err(RehearseError::Client(_))));
}

#[tokio::test]
async fn a_service_that_is_not_there_fails_the_rehearsal() {
    let mut args = args("http://127.0.0.1:1".to_owned());
    args.token = None;
    args.skus = vec!["A".to_owned()];
    let report = checkout::run(&args).await.unwrap();
    assert!(!report.passed && report.errors.keys().all(|reason| reason.contains("cannot connect")), "{report}");
    // It pauses, longer and longer: four buyers do not knock thousands of times in a second.
    assert!(report.errors.values().sum::<u64>() < 100, "{report}");
}
