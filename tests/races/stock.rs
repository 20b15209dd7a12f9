//! Who gets the last unit.

use std::collections::BTreeMap;
use std::sync::Arc;

use souk::actors::AskError;
use souk::domain::order::{Outcome, Reason, Status};
use souk::domain::{Inventory, Order, cart, inventory, order};

use tokio::task::JoinHandle;

use crate::shop::{PAST_HOLDS, Shop, all_at_once, draft, until};

const CARTS: usize = 1_000;

fn count<T: Ord>(all: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    for one in all {
        *counts.entry(one).or_default() += 1;
    }
    counts
}

/// What a buyer of the last unit can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Paid,
    SoldOut,
}

fn told(outcome: &Outcome) -> Told {
    match (outcome.status, &outcome.reason) {
        (Status::Paid, None) => Told::Paid,
        (Status::Cancelled, Some(Reason::OutOfStock { short })) if short[0].available == 0 => Told::SoldOut,
        other => panic!("neither paid nor cleanly refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_carts_that_want_one_unit_make_one_paid_order() {
    let shop = Shop::open().await;
    shop.stock("a", 1).await;
    let buyers = (0..CARTS).map(|n| {
        let shop = shop.clone();
        async move {
            let cart = format!("cart_{n}");
            match shop.fill_cart(&cart, "a", 1).await {
                Ok(_) => told(&shop.check_out(&cart, &format!("ord_{n}"), "tok_ok", &["a"]).await),
                Err(AskError::Rejected(cart::Rejection::Short { available: 0, .. })) => Told::SoldOut,
                Err(other) => panic!("not a clean refusal: {other:?}"),
            }
        }
    });
    let told = count(all_at_once(buyers).await);
    assert_eq!(told, BTreeMap::from([(Told::Paid, 1), (Told::SoldOut, CARTS - 1)]));
    shop.comes_to_rest().await;
    let books = shop.books().await;
    books.assert_balanced(&[("a", 1)]);
    assert_eq!(books.items["a"].on_hand, 0);
    assert_eq!(books.ledger.count("payment.success").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_carts_checking_out_one_unit_at_once_make_one_paid_order_and_nine_hundred_ninety_nine_clean_refusals() {
    let shop = Shop::open().await;
    shop.stock("a", CARTS as u32).await;
    let fill = (0..CARTS).map(|n| {
        let shop = shop.clone();
        async move { shop.fill_cart(&format!("cart_{n}"), "a", 1).await.unwrap() }
    });
    all_at_once(fill).await;
    // All holds run out and all units but one are lost: every cart still shows its line, and one can have it.
    shop.runtime.clock().advance(PAST_HOLDS);
    let lost = inventory::Command::Adjust { delta: 1 - CARTS as i64, reason: "water damage".into() };
    shop.ask::<Inventory>("a", "lost", lost).await.unwrap();

    let buyers = (0..CARTS).map(|n| {
        let shop = shop.clone();
        async move { told(&shop.check_out(&format!("cart_{n}"), &format!("ord_{n}"), "tok_ok", &["a"]).await) }
    });
    let told = count(all_at_once(buyers).await);
    assert_eq!(told, BTreeMap::from([(Told::Paid, 1), (Told::SoldOut, CARTS - 1)]));
    shop.comes_to_rest().await;
    let books = shop.books().await;
    books.assert_balanced(&[("a", 1)]);
    assert_eq!(books.items["a"].on_hand, 0);
    assert_eq!(books.with_status(Status::Paid).len(), 1);
    assert_eq!(books.ledger.count("payment.success").len(), 1);
    assert_eq!(books.payments.len(), 1, "nobody was even asked for money but the one");
}

/// Buys `quantity` with or without a cart. Whoever does not pay hears only when the deadline has passed: the answer to
/// come is given back.
async fn buy(shop: Arc<Shop>, name: String, quantity: u32, manner: Manner) -> Option<JoinHandle<Outcome>> {
    let token = if manner == Manner::NeverPays { "tok_error" } else { "tok_ok" };
    let (order, cart) = (format!("ord_{name}"), format!("cart_{name}"));
    let is_direct = name.ends_with('7');
    if !is_direct {
        match shop.fill_cart(&cart, "a", quantity).await {
            Ok(_) => {}
            Err(AskError::Rejected(cart::Rejection::Short { .. })) => return None,
            Err(other) => panic!("not a clean refusal: {other:?}"),
        }
    }
    if manner == Manner::NeverChecksOut {
        return None;
    }
    let outcome = tokio::spawn(async move {
        match is_direct {
            true => shop.place(&order, draft(&[("a", quantity)], token)).await,
            false => shop.check_out(&cart, &order, token, &["a"]).await,
        }
    });
    if manner == Manner::NeverPays {
        return Some(outcome);
    }
    let outcome = outcome.await.unwrap();
    let is_clean = matches!((outcome.status, &outcome.reason), (Status::Paid, None) | (_, Some(Reason::OutOfStock { .. })));
    assert!(is_clean, "{outcome:?}");
    None
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Pays,
    NeverPays,
    NeverChecksOut,
}

#[tokio::test(flavor = "multi_thread")]
async fn after_all_deadlines_what_is_sold_and_what_is_available_make_the_stock_though_thirty_percent_never_pay() {
    const UNITS: u32 = 40;
    let seed = std::env::var("SOUK_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SOUK_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let shop = Shop::open().await;
    shop.stock("a", UNITS).await;
    let (mut sold_before, mut asked_unpaid) = (0, 0);
    // What those who did not pay had to give back is sold to the buyers of the next wave.
    for wave in 0..3 {
        let buyers: Vec<_> = (0..10 * UNITS)
            .map(|n| {
                let manner = match random.u32(0..100) {
                    0..15 => Manner::NeverPays,
                    15..30 => Manner::NeverChecksOut,
                    _ => Manner::Pays,
                };
                buy(shop.clone(), format!("{wave}_{n}"), random.u32(1..=4), manner)
            })
            .collect();
        let unpaid: Vec<_> = all_at_once(buyers).await.into_iter().flatten().collect();
        asked_unpaid += unpaid.len();
        until("nobody waits for anything but money", || async {
            let orders = shop.books().await.orders;
            let unpaid = orders.values().filter(|order| order.draft.as_ref().unwrap().payment.token == "tok_error");
            unpaid.count() == asked_unpaid && orders.values().all(|order| order.status != Status::Pending)
        })
        .await;
        shop.passes_all_deadlines().await;
        for outcome in unpaid {
            let outcome = outcome.await.unwrap();
            assert!(matches!(outcome.reason, Some(Reason::Unpaid | Reason::OutOfStock { .. })), "{outcome:?}");
        }
        let books = shop.books().await;
        books.assert_balanced(&[("a", UNITS)]);
        let item = &books.items["a"];
        let sold = UNITS - item.on_hand;
        println!("wave {wave}: {sold} of {UNITS} sold, {} orders", books.orders.len());
        assert_eq!((item.held, item.reserved, item.available()), (0, 0, UNITS - sold));
        assert!(sold >= sold_before);
        sold_before = sold;
    }
    assert!(sold_before > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_lines_of_one_sku_are_checked_together() {
    let shop = Shop::open().await;
    shop.stock("a", 5).await;
    // In an order the door has merged them; one that has not is refused as a whole.
    let outcome = shop.place("ord_1", draft(&[("a", 3 + 3)], "tok_ok")).await;
    let Some(Reason::OutOfStock { short }) = outcome.reason else { panic!("{outcome:?}") };
    assert_eq!((short[0].requested, short[0].available), (6, 5));
    let place = order::Command::Place { draft: draft(&[("a", 3), ("a", 3)], "tok_ok") };
    let refused = shop.ask::<Order>("ord_2", "ord_2", place).await;
    let Err(AskError::Rejected(order::Rejection::Invalid { field, .. })) = refused else { panic!("{refused:?}") };
    assert_eq!(field, "/lines/1/sku");

    // In a cart the second add is checked against what the first one has.
    shop.fill_cart("cart_1", "a", 3).await.unwrap();
    let second = shop.add("cart_1", "again", "a", 3).await;
    let short = cart::Rejection::Short { sku: "a".into(), requested: 6, available: 5 };
    assert_eq!(second, Err(AskError::Rejected(short)));
    assert_eq!(shop.check_out("cart_1", "ord_3", "tok_ok", &["a"]).await.status, Status::Paid);
    shop.comes_to_rest().await;
    shop.books().await.assert_balanced(&[("a", 5)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_take_two_things_in_opposite_order_both_end() {
    const ROUNDS: usize = 25;
    let shop = Shop::open().await;
    let skus: Vec<(String, String)> = (0..ROUNDS).map(|n| (format!("a{n}"), format!("b{n}"))).collect();
    for (a, b) in &skus {
        shop.stock(a, 1).await;
        shop.stock(b, 1).await;
    }
    let takers =
        skus.iter().enumerate().flat_map(|(n, (a, b))| [(n, "ab", a.clone(), b.clone()), (n, "ba", b.clone(), a.clone())]);
    let takers: Vec<_> = takers
        .map(|(n, way, first, second)| {
            let shop = shop.clone();
            async move { (n, shop.place(&format!("ord_{n}{way}"), draft(&[(&first, 1), (&second, 1)], "tok_ok")).await) }
        })
        .collect();
    let mut paid = vec![0; ROUNDS];
    for (n, outcome) in all_at_once(takers).await {
        match (outcome.status, &outcome.reason) {
            (Status::Paid, None) => paid[n] += 1,
            (Status::Cancelled, Some(Reason::OutOfStock { .. })) => {}
            other => panic!("{other:?}"),
        }
    }
    println!("of {ROUNDS} pairs, {} had a winner", paid.iter().sum::<usize>());
    assert!(paid.iter().all(|paid| *paid <= 1), "{paid:?}");
    shop.comes_to_rest().await;
    let stock: Vec<(&str, u32)> = skus.iter().flat_map(|(a, b)| [(a.as_str(), 1), (b.as_str(), 1)]).collect();
    shop.books().await.assert_balanced(&stock);
}
