//! Money: taken once, given back in full, whatever the provider does.

use std::collections::BTreeMap;
use std::time::Duration;

use souk::actors::Caller;
use souk::domain::order::{self, Reason, Status};
use souk::domain::{Cart, CommandId, Inventory, Order, Payment, cart, payment};
use souk::integrations::breaker::State;

use crate::bank::Says;
use crate::shop::{PAST_UNPAID, Shop, checkout, draft, until};

/// Past the moment when an attempt of a debt is taken for dead.
const PAST_ATTEMPT: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn an_unpaid_order_is_cancelled_by_its_own_timer_and_gives_everything_back() {
    let shop = Shop::open().await;
    shop.stock("a", 5).await;
    let place = order::Command::Place { draft: draft(&[("a", 3)], "tok_error") };
    let placed = {
        let shop = shop.clone();
        tokio::spawn(async move { shop.ask::<Order>("ord_1", "place", place).await })
    };
    until("it is reserved", || async { shop.state::<Order>("ord_1").await.status == Status::Reserved }).await;
    shop.runtime.clock().advance(Duration::from_secs(29 * 60));
    until("the provider is asked again", || async { shop.bank.keys().len() > 1 }).await;
    assert_eq!(shop.state::<Order>("ord_1").await.status, Status::Reserved, "not before its time");
    shop.runtime.clock().advance(Duration::from_secs(61));
    let Ok(order::Reply::Concluded(outcome)) = placed.await.unwrap() else { panic!("no outcome") };
    assert_eq!((outcome.status, outcome.reason), (Status::Cancelled, Some(Reason::Unpaid)));
    shop.comes_to_rest().await;
    let books = shop.books().await;
    books.assert_balanced(&[("a", 5)]);
    assert_eq!(books.items["a"].available(), 5);
    assert_eq!(books.payments["pay_1"].phase, payment::Phase::Voided);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cart_whose_provider_is_out_stays_pending_then_is_cancelled_and_voided_and_can_be_used_again() {
    let shop = Shop::open().await;
    shop.stock("a", 2).await;
    shop.fill_cart("cart_1", "a", 2).await.unwrap();
    let asked = {
        let shop = shop.clone();
        tokio::spawn(async move { shop.ask::<Cart>("cart_1", "checkout", checkout("ord_1", "tok_error", &["a"])).await })
    };
    until("the provider was asked", || async { !shop.bank.keys().is_empty() }).await;
    assert_eq!(shop.state::<Order>("ord_1").await.status, Status::Reserved);
    assert!(!asked.is_finished());
    shop.runtime.clock().advance(PAST_UNPAID);
    let Ok(cart::Reply::Concluded(outcome)) = asked.await.unwrap() else { panic!("no outcome") };
    assert_eq!((outcome.status, outcome.reason), (Status::Cancelled, Some(Reason::Unpaid)));
    shop.comes_to_rest().await;
    assert_eq!(shop.state::<Payment>("pay_1").await.phase, payment::Phase::Voided);
    assert_eq!(shop.state::<Cart>("cart_1").await.phase, cart::Phase::Open);
    assert_eq!(shop.check_out("cart_1", "ord_2", "tok_ok", &["a"]).await.status, Status::Paid);
    shop.comes_to_rest().await;
    shop.books().await.assert_balanced(&[("a", 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_cancelled_after_its_payment_is_refunded_and_restocked() {
    let shop = Shop::open().await;
    shop.stock("a", 5).await;
    shop.stock("b", 5).await;
    assert_eq!(shop.place("ord_1", draft(&[("a", 3), ("b", 1)], "tok_ok")).await.status, Status::Paid);
    assert_eq!(shop.state::<Inventory>("a").await.on_hand, 2);
    // However many ask at once, and though each has a command of its own.
    let cancels = (0..20).map(|n| {
        let shop = shop.clone();
        let cancel = order::Command::Cancel { reason: "too large".into() };
        async move { shop.ask::<Order>("ord_1", &format!("cancel {n}"), cancel).await }
    });
    assert!(crate::shop::all_at_once(cancels).await.into_iter().all(|answer| answer == Ok(order::Reply::Cancelled)));
    shop.comes_to_rest().await;
    let books = shop.books().await;
    assert_eq!(books.orders["ord_1"].status, Status::Refunded);
    books.assert_balanced(&[("a", 5), ("b", 5)]);
    assert_eq!((books.items["a"].on_hand, books.items["b"].on_hand), (5, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_provider_is_waited_for_and_a_declined_payment_gives_everything_back() {
    let shop = Shop::open().await;
    shop.stock("a", 5).await;
    let (slow, declined) = tokio::join!(
        shop.place("ord_slow", draft(&[("a", 2)], "tok_slow")),
        shop.place("ord_declined", draft(&[("a", 3)], "tok_declined")),
    );
    assert_eq!(slow.status, Status::Paid);
    assert_eq!(declined.status, Status::PaymentFailed);
    shop.comes_to_rest().await;
    let books = shop.books().await;
    books.assert_balanced(&[("a", 5)]);
    assert_eq!(books.items["a"].available(), 3);
}

/// Runs one purchase against a provider that follows the script, and checks that every key was settled with one effect.
async fn survives(script: &[Says]) {
    let shop = Shop::open().await;
    shop.stock("a", 5).await;
    shop.bank.script(script.iter().copied());
    let place = order::Command::Place { draft: draft(&[("a", 2)], "tok_ok") };
    let placed = {
        let shop = shop.clone();
        tokio::spawn(async move { shop.ask::<Order>("ord_1", "place", place).await })
    };
    // Whoever is not answered in time is asked again: time is set ahead whenever the provider keeps silent.
    let mut heard = 0;
    until("the order is settled", || {
        let asked = shop.bank.keys().len();
        if asked > heard && script.get(asked - 1).is_some_and(|says| matches!(says, Says::NeverHeard | Says::AnswerLost)) {
            heard = asked;
            shop.runtime.clock().advance(PAST_ATTEMPT);
        }
        std::future::ready(placed.is_finished())
    })
    .await;
    let Ok(order::Reply::Concluded(outcome)) = placed.await.unwrap() else { panic!("no outcome of {script:?}") };
    assert_eq!(outcome.status, Status::Paid, "{script:?}");
    shop.comes_to_rest().await;
    shop.books().await.assert_balanced(&[("a", 5)]);
    let mut times = BTreeMap::new();
    for key in shop.bank.keys() {
        *times.entry(key).or_insert(0) += 1;
    }
    let keys: Vec<&str> = times.keys().map(String::as_str).collect();
    assert_eq!(keys, ["payment/pay_1:authorize", "payment/pay_1:capture"], "the same key each time");
    assert!(times.values().sum::<usize>() >= script.len().max(2), "{times:?} after {script:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_outcome_is_unknown_is_asked_for_again_with_the_same_key_and_captured_once() {
    use Says::{AnswerLost, Answers, CarriedOutButUnknown, NeverHeard, Unknown};
    for script in [
        // Of the authorization…
        vec![NeverHeard],
        vec![AnswerLost],
        vec![CarriedOutButUnknown, Unknown, CarriedOutButUnknown],
        vec![Unknown, NeverHeard, AnswerLost],
        // …and of the capture.
        vec![Answers, NeverHeard],
        vec![Answers, AnswerLost],
        vec![Answers, CarriedOutButUnknown, Unknown, CarriedOutButUnknown],
        vec![AnswerLost, Answers, AnswerLost, NeverHeard, CarriedOutButUnknown],
    ] {
        survives(&script).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_that_is_out_is_left_alone_and_every_order_is_paid_once_it_is_back() {
    const ORDERS: usize = 12;
    let (shop, providers) = Shop::behind_a_breaker().await;
    shop.stock("a", 100).await;
    let breaker = || providers.breakers().next().unwrap();
    shop.bank.is_out(true);
    let orders = (0..ORDERS).map(|n| {
        let shop = shop.clone();
        tokio::spawn(async move { shop.place(&format!("ord_{n}"), draft(&[("a", 1)], "tok_ok")).await })
    });
    let orders: Vec<_> = orders.collect();
    until("the bank is left alone", || async { breaker().state == State::Open && breaker().refused as usize > ORDERS }).await;
    assert!(breaker().failed as usize <= shop.bank.keys().len());
    assert!(orders.iter().all(|order| !order.is_finished()), "nobody is told that it was declined");
    // Each asks again and again, and next to nothing of it gets to the bank.
    let (asked, refused) = (shop.bank.keys().len(), breaker().refused);
    until("more is refused", || async { breaker().refused >= refused + 20 }).await;
    assert!(shop.bank.keys().len() <= asked + 5, "{} calls after {asked}", shop.bank.keys().len());

    shop.bank.is_out(false);
    for order in orders {
        assert_eq!(order.await.unwrap().status, Status::Paid);
    }
    assert_eq!(breaker().state, State::Closed);
    shop.comes_to_rest().await;
    shop.books().await.assert_balanced(&[("a", 100)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_to_the_bank_bears_the_trace_of_the_request_that_led_to_it() {
    let shop = Shop::open().await;
    shop.stock("a", 5).await;
    let place = |n: u32, trace: &'static str| {
        let place = order::Command::Place { draft: draft(&[("a", 1)], "tok_ok") };
        let caller = Caller::new(CommandId(format!("place {n}")), "guest", trace);
        shop.runtime.ask::<Order>(if n == 1 { "ord_1" } else { "ord_2" }, place, caller)
    };
    let traces = ["4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"];
    let (first, second) = tokio::join!(place(1, traces[0]), place(2, traces[1]));
    assert!(first.is_ok() && second.is_ok());
    let expected = [("pay_1".to_owned(), traces[0].into()), ("pay_2".to_owned(), traces[1].into())];
    assert_eq!(shop.bank.traces(), expected.into());
}
