//! One cart, many hands.

use std::collections::BTreeSet;

use souk::actors::AskError;
use souk::domain::order::{Reason, Status};
use souk::domain::{Cart, Inventory, cart};

use crate::shop::{Shop, all_at_once, checkout, guest};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_parallel_adds_come_to_the_sum_of_the_accepted_ones_and_so_does_the_hold() {
    const ADDS: u32 = 100;
    let shop = Shop::open().await;
    // Enough for about three quarters of them.
    shop.stock("a", 150).await;
    shop.ask::<Cart>("cart_1", "create", cart::Command::Create { owner: guest() }).await.unwrap();
    let adds = (0..ADDS).map(|n| {
        let shop = shop.clone();
        async move { (n % 3 + 1, shop.add("cart_1", &format!("add {n}"), "a", n % 3 + 1).await) }
    });
    let (mut accepted, mut refused) = (0, 0);
    for (quantity, answer) in all_at_once(adds).await {
        match answer {
            Ok(cart::Reply::Quantity(_)) => accepted += quantity,
            Err(AskError::Rejected(cart::Rejection::Short { .. } | cart::Rejection::Busy)) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 0 && accepted > 0);
    shop.comes_to_rest().await;
    let (cart, item) = (shop.state::<Cart>("cart_1").await, shop.state::<Inventory>("a").await);
    assert_eq!(cart.lines["a"].quantity, accepted);
    assert_eq!(item.holds["cart_1"].quantity, accepted);
    assert_eq!((item.held, item.on_hand), (u64::from(accepted), 150));
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_parallel_merges_of_one_guest_cart_merge_it_once() {
    let shop = Shop::open().await;
    shop.stock("a", 10).await;
    shop.stock("b", 10).await;
    shop.fill_cart("cart_guest", "a", 2).await.unwrap();
    shop.add("cart_guest", "b too", "b", 3).await.unwrap();
    shop.fill_cart("cart_mine", "a", 1).await.unwrap();
    let merges = (0..20).map(|n| {
        let shop = shop.clone();
        let merge = cart::Command::Merge { from: "cart_guest".into() };
        async move { shop.ask::<Cart>("cart_mine", &format!("merge {n}"), merge).await }
    });
    assert!(all_at_once(merges).await.into_iter().all(|answer| answer == Ok(cart::Reply::Merged)));
    shop.comes_to_rest().await;
    let mine = shop.state::<Cart>("cart_mine").await;
    assert_eq!((mine.lines["a"].quantity, mine.lines["b"].quantity), (3, 3));
    for (sku, units) in [("a", 3), ("b", 3)] {
        let item = shop.state::<Inventory>(sku).await;
        assert_eq!((item.held, item.holds["cart_mine"].quantity, item.holds.len()), (units, units as u32, 1), "{sku}");
    }
    let ledger = shop.ledger().await;
    assert_eq!(ledger.count("cart.merged").get("cart_mine"), Some(&1));
    assert_eq!(ledger.count("cart.handed_over").get("cart_guest"), Some(&1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_cart_that_twenty_carts_want_to_merge_goes_to_one_of_them() {
    let shop = Shop::open().await;
    shop.stock("a", 10).await;
    shop.fill_cart("cart_guest", "a", 4).await.unwrap();
    let merges = (0..20).map(|n| {
        let shop = shop.clone();
        async move {
            let id = format!("cart_{n}");
            shop.ask::<Cart>(&id, "create", cart::Command::Create { owner: guest() }).await.unwrap();
            (id.clone(), shop.ask::<Cart>(&id, "merge", cart::Command::Merge { from: "cart_guest".into() }).await)
        }
    });
    let mut winners = Vec::new();
    for (id, answer) in all_at_once(merges).await {
        match answer {
            Ok(cart::Reply::Merged) => winners.push(id),
            Err(AskError::Rejected(cart::Rejection::NotMergeable)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(winners.len(), 1);
    shop.comes_to_rest().await;
    assert_eq!(shop.state::<Cart>(&winners[0]).await.lines["a"].quantity, 4);
    assert_eq!(shop.state::<Inventory>("a").await.held, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_sent_fifty_times_makes_one_order_and_gets_fifty_equal_answers() {
    for (token, status) in [("tok_ok", Status::Paid), ("tok_declined", Status::PaymentFailed)] {
        let shop = Shop::open().await;
        shop.stock("a", 10).await;
        shop.fill_cart("cart_1", "a", 2).await.unwrap();
        let sent = (0..50).map(|_| {
            let shop = shop.clone();
            async move { shop.ask::<Cart>("cart_1", "the one checkout", checkout("ord_1", token, &["a"])).await }
        });
        let answers = all_at_once(sent).await;
        let Ok(cart::Reply::Concluded(outcome)) = &answers[0] else { panic!("{:?}", answers[0]) };
        assert_eq!((outcome.order.as_str(), outcome.status), ("ord_1", status));
        assert!(answers.iter().all(|answer| *answer == answers[0]));
        shop.comes_to_rest().await;
        let books = shop.books().await;
        assert_eq!(books.orders.keys().collect::<Vec<_>>(), ["ord_1"]);
        books.assert_balanced(&[("a", 10)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn different_checkouts_of_one_cart_at_once_make_one_order() {
    let shop = Shop::open().await;
    shop.stock("a", 10).await;
    shop.fill_cart("cart_1", "a", 2).await.unwrap();
    let sent = (0..20).map(|n| {
        let shop = shop.clone();
        let (order, command) = (format!("ord_{n}"), format!("checkout {n}"));
        async move { shop.ask::<Cart>("cart_1", &command, checkout(&order, "tok_ok", &["a"])).await }
    });
    let mut orders = BTreeSet::new();
    for answer in all_at_once(sent).await {
        match answer {
            Ok(cart::Reply::Concluded(outcome)) => assert!(orders.insert(outcome.order)),
            Err(AskError::Rejected(cart::Rejection::CheckingOut { .. } | cart::Rejection::Closed { .. })) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(orders.len(), 1);
    shop.comes_to_rest().await;
    shop.books().await.assert_balanced(&[("a", 10)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cart_whose_payment_was_declined_can_be_used_again() {
    let shop = Shop::open().await;
    shop.stock("a", 2).await;
    shop.fill_cart("cart_1", "a", 2).await.unwrap();
    let declined = shop.check_out("cart_1", "ord_1", "tok_declined", &["a"]).await;
    assert!(matches!(declined.reason, Some(Reason::PaymentDeclined { .. })), "{declined:?}");
    assert_eq!(declined.status, Status::PaymentFailed);
    shop.comes_to_rest().await;
    assert_eq!(shop.state::<Inventory>("a").await.holds["cart_1"].quantity, 2, "it holds its units anew");
    assert_eq!(shop.check_out("cart_1", "ord_2", "tok_ok", &["a"]).await.status, Status::Paid);
    shop.comes_to_rest().await;
    shop.books().await.assert_balanced(&[("a", 2)]);
}
