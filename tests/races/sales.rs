//! A flash sale, and all who want something of it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use souk::actors::AskError;
use souk::domain::flash_sale::{ClaimNumber, Command, Customer, Own, Rejection, Reply, Status, Terms};
use souk::domain::order::{self, Claimed, Draft, Line, Owner};
use souk::domain::{FlashSale, Timestamp};

use crate::shop::{self, PRODUCT, Shop, all_at_once, eur, until};

const SKU: &str = "a";
const PRICE: i64 = 999;
const CUSTOMERS: u64 = 300;
const UNITS: u32 = 40;

pub fn id(kind: &str, number: u64) -> String {
    format!("{kind}_01M7XTJ72XFBZWPK91B{number:07}")
}

fn owner(number: u64) -> Owner {
    Owner::Account { user: id("usr", number) }
}

pub fn customer(number: u64) -> Customer {
    Customer::of(&owner(number)).unwrap()
}

/// On sale since now, for an hour.
pub fn terms(sku: &str, quantity: u32, now: Timestamp) -> Terms {
    Terms {
        sku: sku.into(),
        product: PRODUCT.into(),
        shop: None,
        title: "A thing".into(),
        price: eur(PRICE),
        quantity,
        per_customer_limit: 1,
        per_address_limit: None,
        starts_at: now,
        ends_at: now.plus_ms(60 * 60_000),
        claim_ms: 5 * 60_000,
        admission_ms: 60_000,
        grace_ms: 60_000,
        guests: true,
    }
}

pub fn claim(number: u64) -> Command {
    Command::Claim { customer: customer(number), quantity: 1, address: 0 }
}

/// An order for one claimed unit.
pub fn draft(sku: &str, sale: &str, claim: ClaimNumber, number: u64, token: &str) -> Draft {
    let line = Line {
        sku: sku.into(),
        product: PRODUCT.into(),
        shop: None,
        title: "A thing".into(),
        quantity: 1,
        unit_price: eur(PRICE),
        total: eur(PRICE),
        claim: Some(Claimed { sale: sale.into(), claim, customer: customer(number) }),
    };
    Draft { owner: owner(number), total: eur(PRICE), lines: vec![line], ..shop::draft(&[], token) }
}

async fn open_sale(shop: &Shop, units: u32) -> String {
    let sale = id("fs", 1);
    shop.stock(SKU, units).await;
    let create = Command::Create { terms: Box::new(terms(SKU, units, shop.runtime.now())) };
    shop.ask::<FlashSale>(&sale, "create", create).await.unwrap();
    assert_eq!(shop.ask::<FlashSale>(&sale, "approve", Command::Approve).await, Ok(Reply::Scheduled));
    sale
}

async fn own(shop: &Shop, sale: &str, number: u64) -> Own {
    let look = Command::Look { customer: Some(customer(number)) };
    match shop.ask::<FlashSale>(sale, "look", look).await {
        Ok(Reply::Shown(shown)) => shown.own.unwrap(),
        other => panic!("{other:?}"),
    }
}

/// All ask at once; who got a claim, and who a place in line.
async fn all_claim(
    shop: &Arc<Shop>,
    sale: &str,
    customers: std::ops::Range<u64>,
) -> (BTreeMap<ClaimNumber, u64>, BTreeMap<u32, u64>) {
    let answers = all_at_once(customers.clone().map(|number| {
        let (shop, sale) = (shop.clone(), sale.to_owned());
        async move { shop.ask::<FlashSale>(&sale, &format!("claim {number}"), claim(number)).await }
    }))
    .await;
    let (mut claims, mut tickets) = (BTreeMap::new(), BTreeMap::new());
    for (number, answer) in customers.zip(answers) {
        let before = match answer {
            Ok(Reply::Claimed { claim, quantity: 1, .. }) => claims.insert(claim, number),
            Ok(Reply::Queued { ticket, .. }) => tickets.insert(ticket, number),
            other => panic!("customer {number} heard {other:?}"),
        };
        assert_eq!(before, None, "nobody has what another has");
    }
    (claims, tickets)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_who_want_forty_units_get_forty_claims_and_the_others_a_place_each_in_the_line() {
    let shop = Shop::open().await;
    let sale = open_sale(&shop, UNITS).await;
    let (claims, tickets) = all_claim(&shop, &sale, 0..CUSTOMERS).await;
    assert!(claims.keys().copied().eq(0..UNITS));
    assert!(tickets.keys().copied().eq(0..CUSTOMERS as u32 - UNITS));

    // Half of the claims are paid, the other half is declined, all at once: those units are the next ones' in line.
    let outcomes = all_at_once(claims.iter().map(|(claim, number)| {
        let token = if claim % 2 == 0 { "tok_ok" } else { "tok_declined" };
        let (shop, order, draft) = (shop.clone(), id("ord", *number), draft(SKU, &sale, *claim, *number, token));
        async move { shop.place(&order, draft).await.status }
    }))
    .await;
    let paid = outcomes.iter().filter(|status| **status == order::Status::Paid).count();
    assert_eq!(paid, UNITS as usize / 2, "{outcomes:?}");
    for (ticket, number) in &tickets {
        let own = own(&shop, &sale, *number).await;
        match *ticket < UNITS / 2 {
            true => assert_eq!((own.claims.len(), own.ticket), (1, None), "ticket {ticket} was admitted"),
            false => assert_eq!(own.ticket.map(|waiting| waiting.ahead), Some(ticket - UNITS / 2), "the place of {ticket}"),
        }
    }
    shop.ask::<FlashSale>(&sale, "cancel", Command::Cancel { reason: "over".into() }).await.unwrap();
    shop.comes_to_rest().await;
    let books = shop.books().await;
    books.assert_balanced(&[(SKU, UNITS)]);
    assert_eq!((books.items[SKU].on_hand, books.items[SKU].allotted), (UNITS / 2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_customer_who_asks_a_hundred_times_at_once_has_one_claim() {
    let shop = Shop::open().await;
    let sale = open_sale(&shop, UNITS).await;
    let answers = all_at_once((0..100).map(|ask| {
        let (shop, sale) = (shop.clone(), sale.clone());
        async move { shop.ask::<FlashSale>(&sale, &format!("ask {ask}"), claim(7)).await }
    }))
    .await;
    let over = Err(AskError::Rejected(Rejection::OverLimit { limit: 1, left: 0 }));
    assert_eq!(answers.iter().filter(|answer| **answer == over).count(), 99, "{answers:?}");
    assert_eq!(own(&shop, &sale, 7).await.claims.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_two_orders_of_its_customer_want_at_once_is_paid_once() {
    let shop = Shop::open().await;
    let sale = open_sale(&shop, UNITS).await;
    for round in 0..20 {
        let (claims, _) = all_claim(&shop, &sale, round..round + 1).await;
        let claim = *claims.keys().next().unwrap();
        let outcomes = all_at_once((0..2).map(|half| {
            let (shop, order) = (shop.clone(), id("ord", 1_000 + 2 * round + half));
            let draft = draft(SKU, &sale, claim, round, "tok_ok");
            async move { shop.place(&order, draft).await.status }
        }))
        .await;
        let counts = [order::Status::Paid, order::Status::Cancelled].map(|told| outcomes.iter().filter(|s| **s == told).count());
        assert_eq!(counts, [1, 1], "{outcomes:?}");
    }
    shop.comes_to_rest().await;
    shop.books().await.assert_balanced(&[(SKU, UNITS)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_keeps_the_line_in_its_order_and_nobody_is_in_it_twice() {
    let shop = Shop::open().await;
    let sale = open_sale(&shop, UNITS).await;
    let (claims, tickets) = all_claim(&shop, &sale, 0..CUSTOMERS).await;
    let mut shop = Arc::into_inner(shop).unwrap();
    shop.crash().await;
    let shop = Arc::new(shop);
    // Everybody asks once more, under another command.
    let (again, places) = all_claim_again(&shop, &sale).await;
    assert_eq!(again, BTreeSet::from_iter(claims.values().copied()), "whoever has a claim can have no more");
    assert_eq!(places, tickets, "whoever waits has the place that they had");
    // Nobody pays; the units go down the line in the end, and nothing is left over.
    for _ in 0..4 {
        shop.runtime.clock().advance(Duration::from_secs(301));
        until("what ran out is offered to the next", || async {
            let state = shop.state::<FlashSale>(&sale).await;
            state.book.held() == UNITS && state.book.free() == 0
        })
        .await;
    }
    shop.runtime.clock().advance(Duration::from_secs(3_600));
    until("the sale is over", || async { shop.state::<FlashSale>(&sale).await.book.status == Status::Ended }).await;
    shop.comes_to_rest().await;
    let books = shop.books().await;
    books.assert_balanced(&[(SKU, UNITS)]);
    assert_eq!(books.items[SKU].available(), UNITS, "all that was not sold is for sale again");
}

async fn all_claim_again(shop: &Arc<Shop>, sale: &str) -> (BTreeSet<u64>, BTreeMap<u32, u64>) {
    let answers = all_at_once((0..CUSTOMERS).map(|number| {
        let (shop, sale) = (shop.clone(), sale.to_owned());
        async move { shop.ask::<FlashSale>(&sale, &format!("again {number}"), claim(number)).await }
    }))
    .await;
    let (mut refused, mut places) = (BTreeSet::new(), BTreeMap::new());
    for (number, answer) in (0..CUSTOMERS).zip(answers) {
        match answer {
            Err(AskError::Rejected(Rejection::OverLimit { limit: 1, left: 0 })) => drop(refused.insert(number)),
            Ok(Reply::Queued { ticket, .. }) => assert_eq!(places.insert(ticket, number), None),
            other => panic!("customer {number} heard {other:?}"),
        }
    }
    (refused, places)
}
