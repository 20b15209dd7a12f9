use proptest::prelude::*;

use super::*;
use crate::domain::Decision;
use crate::domain::testing::{Given, Live, at, command_id, given};

fn created(on_hand: u32) -> Given<Inventory> {
    given([Event::Created { product: "prod".to_owned(), on_hand }])
}

fn hold(cart: &str, quantity: u32, revision: u64) -> Command {
    Command::Hold { cart: cart.to_owned(), quantity, revision, absorb: None }
}

fn reserve(order: &str, cart: Option<&str>, quantity: u32) -> Command {
    Command::Reserve { order: order.to_owned(), cart: cart.map(str::to_owned), quantity }
}

fn release(order: &str) -> Command {
    Command::Release { order: order.to_owned() }
}

fn commit(order: &str) -> Command {
    Command::Commit { order: order.to_owned() }
}

fn restock(order: &str, quantity: u32) -> Command {
    Command::Restock { order: order.to_owned(), quantity }
}

fn allot(revision: u64, quantity: u32, sold: u32) -> Command {
    Command::Allot { sale: "fs".to_owned(), allotment: Allotment { revision, quantity, sold } }
}

fn allotted(revision: u64, quantity: u32, sold: u32) -> Reply {
    Reply::Allotted(Allotment { revision, quantity, sold })
}

fn adjust(delta: i64) -> Command {
    Command::Adjust { delta, reason: "counted".to_owned() }
}

fn held(quantity: u32) -> Reply {
    Reply::Held { quantity, expires_at: (quantity > 0).then(|| at(HOLD_MS)) }
}

fn placed(cart: &str, quantity: u32, revision: u64, available: u32) -> Event {
    Event::HoldPlaced { cart: cart.to_owned(), quantity, revision, expires_at: at(HOLD_MS), available }
}

#[test]
fn a_new_sku_is_created_for_its_product_and_registering_again_changes_nothing() {
    let register = |product: &str| Command::Register { product: product.to_owned(), on_hand: 7 };
    let item = given::<Inventory>([]).when(register("prod"));
    let item = item.then(vec![Event::Created { product: "prod".to_owned(), on_hand: 7 }], Reply::Registered).and();
    item.when(register("prod")).then_nothing_but(Reply::Registered);
    item.when(register("other")).then_refused(Rejection::Taken { product: "prod".to_owned() });
}

#[test]
fn a_sku_that_was_given_up_goes_to_the_next_product_with_its_stock() {
    let deregister = |product: &str| Command::Deregister { product: product.to_owned() };
    let updated = |product: Option<&str>| Event::Updated { product: product.map(str::to_owned), low_stock_threshold: 0 };
    created(7).when(deregister("other")).then_nothing_but(Reply::Deregistered);
    let item = created(7).when(deregister("prod")).then(vec![updated(None)], Reply::Deregistered).and();
    item.when(deregister("prod")).then_nothing_but(Reply::Deregistered);
    item.when(hold("cart", 1, 1)).then_refused(Rejection::Unknown);
    item.when(reserve("ord", None, 1)).then_refused(Rejection::Unknown);
    let item = item.when(Command::Register { product: "new".to_owned(), on_hand: 99 });
    let item = item.then(vec![updated(Some("new"))], Reply::Registered);
    assert_eq!(item.state.on_hand, 7);
}

#[test]
fn a_sku_that_nobody_registered_is_unknown() {
    let commands = [adjust(1), Command::SetThreshold { low_stock_threshold: 1 }, hold("cart", 1, 1), reserve("ord", None, 1)];
    for command in commands {
        given::<Inventory>([]).when(command).then_refused(Rejection::Unknown);
    }
}

#[test]
fn stock_is_adjusted_but_never_below_what_is_promised_nor_past_its_bound() {
    let (reason, order) = ("counted".to_owned(), None);
    let item = created(10).after([hold("cart", 3, 1), reserve("ord", None, 4)]);
    item.when(adjust(0)).then_nothing_but(Reply::Adjusted);
    item.when(adjust(-4)).then_refused(Rejection::BelowCommitted { committed: 7 });
    item.when(adjust(i64::MIN)).then_refused(Rejection::BelowCommitted { committed: 7 });
    item.when(adjust(i64::from(u32::MAX))).then_refused(Rejection::TooMany);
    item.when(adjust(i64::MAX)).then_refused(Rejection::TooMany);
    let decreased = Event::Decreased { quantity: 3, reason: reason.clone(), order: order.clone(), on_hand: 7, available: 0 };
    item.when(adjust(-3)).then(vec![decreased], Reply::Adjusted);
    let increased = Event::Increased { quantity: 5, reason, order, until: None, on_hand: 15, available: 8 };
    item.when(adjust(5)).then(vec![increased], Reply::Adjusted);
}

#[test]
fn a_hold_becomes_exactly_what_the_cart_says_last() {
    let item = created(10).when(hold("cart", 4, 1)).then(vec![placed("cart", 4, 1, 6)], held(4)).and();
    item.when(hold("cart", 10, 2)).then(vec![placed("cart", 10, 2, 0)], held(10));
    item.when(hold("cart", 11, 2)).then_refused(Rejection::Short { requested: 11, available: 10 });
    item.when(hold("other", 7, 1)).then_refused(Rejection::Short { requested: 7, available: 6 });
    let released = Event::HoldReleased { cart: "cart".to_owned(), available: 10 };
    item.when(hold("cart", 0, 2)).then(vec![released], held(0));
    item.when(hold("other", 0, 2)).then_nothing_but(held(0));
}

#[test]
fn an_older_or_repeated_word_about_a_hold_changes_nothing_and_does_not_renew_it() {
    let item = created(10).after([hold("cart", 4, 5)]).at(1_000);
    item.when(hold("cart", 4, 5)).then_nothing_but(held(4));
    item.when(hold("cart", 9, 4)).then_nothing_but(held(4));
    item.when(hold("cart", 0, 4)).then_nothing_but(held(4));
}

#[test]
fn a_merged_carts_hold_is_taken_over_in_the_same_step() {
    let item = created(10).after([hold("guest", 6, 1), hold("cart", 2, 1)]);
    let take = |quantity| Command::Hold { cart: "cart".to_owned(), quantity, revision: 2, absorb: Some("guest".to_owned()) };
    let released = Event::HoldReleased { cart: "guest".to_owned(), available: 8 };
    item.when(take(8)).then(vec![released, placed("cart", 8, 2, 2)], held(8));
    item.when(take(11)).then_refused(Rejection::Short { requested: 11, available: 10 });
}

#[test]
fn a_hold_that_ran_out_is_swept_before_anything_is_decided() {
    let item = created(10).after([hold("cart", 10, 1)]);
    assert_eq!(Inventory::due(&item.state), Some(at(HOLD_MS)));
    assert_eq!((item.state.available_at(at(HOLD_MS - 1)), item.state.available_at(at(HOLD_MS))), (0, 10));
    item.when(Command::Expire).then_nothing_but(Reply::Expired);
    let expired = Event::HoldExpired { cart: "cart".to_owned(), available: 10 };
    let item = item.at(HOLD_MS);
    item.when(Command::Expire).then(vec![expired.clone()], Reply::Expired);
    let reserved = Event::Reserved { order: "ord".to_owned(), cart: None, quantity: 9, available: 1 };
    item.when(reserve("ord", None, 9)).then(vec![expired, reserved], Reply::Reserved);
}

#[test]
fn an_order_reserves_out_of_its_carts_hold_and_gives_the_surplus_back() {
    let item = created(10).after([hold("cart", 8, 1)]);
    let reserved =
        |quantity, available| Event::Reserved { order: "ord".to_owned(), cart: Some("cart".to_owned()), quantity, available };
    item.when(reserve("ord", Some("cart"), 11)).then_refused(Rejection::Short { requested: 11, available: 10 });
    item.when(reserve("ord", Some("other"), 3)).then_refused(Rejection::Short { requested: 3, available: 2 });
    item.when(reserve("ord", Some("cart"), 10)).then(vec![reserved(10, 0)], Reply::Reserved);
    let item = item.when(reserve("ord", Some("cart"), 5)).then(vec![reserved(5, 5)], Reply::Reserved).and();
    assert!(item.state.holds.is_empty());
    item.when(reserve("ord", Some("cart"), 5)).then_nothing_but(Reply::Reserved);
}

#[test]
fn a_release_frees_the_units_once() {
    let item = created(10).after([reserve("ord", None, 4)]);
    let released = Event::Released { order: "ord".to_owned(), available: 10 };
    let item = item.when(release("ord")).then(vec![released], Reply::Released);
    assert_eq!(item.state.reserved, 0);
}

#[test]
fn a_release_that_overtook_its_reservation_has_it_refused() {
    let until = at(CLOSED_AFTER_RELEASE_MS);
    let item = created(10).when(release("ord")).then(vec![Event::Closed { order: "ord".to_owned(), until }], Reply::Released);
    let item = item.and();
    item.when(release("ord")).then_nothing_but(Reply::Released);
    item.when(reserve("ord", None, 1)).then_refused(Rejection::Closed);
}

#[test]
fn sold_units_leave_the_stock_once_and_come_back_once() {
    let item = created(10).after([reserve("ord", None, 4)]);
    let order = Some("ord".to_owned());
    let sold = Event::Decreased { quantity: 4, reason: "sold".to_owned(), order: order.clone(), on_hand: 6, available: 6 };
    let item = item.when(commit("ord")).then(vec![sold], Reply::Committed).and();
    item.when(commit("ord")).then_nothing_but(Reply::Committed);
    let (reason, until) = ("restocked".to_owned(), Some(at(CLOSED_AFTER_RESTOCK_MS)));
    let back = Event::Increased { quantity: 4, reason, order, until, on_hand: 10, available: 10 };
    let item = item.when(restock("ord", 4)).then(vec![back], Reply::Restocked).and();
    item.when(restock("ord", 4)).then_nothing_but(Reply::Restocked);
}

#[test]
fn closed_orders_are_forgotten_when_their_time_has_passed() {
    let item = created(10).after([release("a"), release("b")]).at(CLOSED_AFTER_RELEASE_MS);
    let item = item.when(release("c"));
    assert_eq!(item.state.closed.keys().collect::<Vec<_>>(), ["c"]);
    assert_eq!(item.state.closings.len(), 1);
}

#[test]
fn low_stock_is_told_once_for_each_crossing() {
    let low = |available| Event::LowStock { available, low_stock_threshold: 3 };
    let item = created(5).when(Command::SetThreshold { low_stock_threshold: 3 });
    let updated = Event::Updated { product: Some("prod".to_owned()), low_stock_threshold: 3 };
    let item = item.then(vec![updated], Reply::ThresholdSet).and();
    item.when(Command::SetThreshold { low_stock_threshold: 3 }).then_nothing_but(Reply::ThresholdSet);
    let item = item.when(hold("a", 2, 1)).then(vec![placed("a", 2, 1, 3), low(3)], held(2)).and();
    let item = item.when(hold("b", 1, 1)).then(vec![placed("b", 1, 1, 2)], held(1)).and();
    let item = item.after([hold("a", 0, 2)]);
    item.when(hold("a", 1, 3)).then(vec![placed("a", 1, 3, 3), low(3)], held(1));
}

#[test]
fn low_stock_is_told_when_a_swept_hold_is_taken_again_in_the_same_step() {
    let item = created(5).after([Command::SetThreshold { low_stock_threshold: 3 }, hold("a", 4, 1)]).at(HOLD_MS);
    let then = item.when(reserve("ord", None, 4));
    assert!(matches!(
        then.decision().events.as_slice(),
        [Event::HoldExpired { .. }, Event::Reserved { .. }, Event::LowStock { .. }]
    ));
}

#[test]
fn a_threshold_of_zero_is_never_told() {
    created(1).when(hold("a", 1, 1)).then(vec![placed("a", 1, 1, 0)], held(1));
}

#[test]
fn ten_thousand_holds_are_decided_on_without_adding_them_up() {
    let placed_before = (0..10_000).map(|cart| placed(&format!("cart{cart}"), 1, 1, 19_999 - cart));
    let created = Event::Created { product: "prod".to_owned(), on_hand: 20_000 };
    let item = given::<Inventory>(std::iter::once(created).chain(placed_before));
    let Decision { events, .. } = item.when(hold("last", 1, 1)).result.unwrap();
    assert_eq!(events, [placed("last", 1, 1, 9_999)]);
}

#[derive(Debug, Clone)]
enum Step {
    Tell(Command),
    Pass(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let cart = || prop::sample::select(vec!["a", "b", "c"]);
    let order = || prop::sample::select(vec!["x", "y", "z"]);
    let absorb = prop::option::weighted(0.2, cart().prop_map(str::to_owned));
    let hold = (cart(), 0_u32..12, 1_u64..40, absorb);
    let hold =
        hold.prop_map(|(cart, quantity, revision, absorb)| Command::Hold { cart: cart.to_owned(), quantity, revision, absorb });
    let tell = prop_oneof![
        4 => hold,
        2 => (order(), prop::option::of(cart()), 1_u32..12).prop_map(|(order, cart, quantity)| reserve(order, cart, quantity)),
        1 => order().prop_map(release),
        1 => order().prop_map(commit),
        1 => (order(), 0_u32..5).prop_map(|(order, quantity)| restock(order, quantity)),
        2 => (1_u64..20, 0_u32..8, 0_u32..8).prop_map(|(revision, kept, sold)| allot(revision, kept + sold, sold)),
        1 => (-30_i64..30).prop_map(adjust),
        1 => (0_u32..9).prop_map(|low_stock_threshold| Command::SetThreshold { low_stock_threshold }),
        1 => Just(Command::Deregister { product: "prod".to_owned() }),
        1 => Just(Command::Register { product: "prod".to_owned(), on_hand: 20 }),
        1 => Just(Command::Expire),
    ];
    let step = prop_oneof![8 => tell.prop_map(Step::Tell), 1 => (0..2 * HOLD_MS).prop_map(Step::Pass)];
    prop::collection::vec(step, 0..120)
}

fn told_available(record: &str) -> Option<u64> {
    serde_json::from_str::<serde_json::Value>(record).unwrap()["data"]["available"].as_u64()
}

/// What the stock should be, from the commands' point of view.
fn counted(journal: &[String]) -> u32 {
    let mut sold = 0;
    journal.iter().fold(0, |on_hand, record| match serde_json::from_str(record).unwrap() {
        Event::Allotted { allotment, .. } => on_hand + std::mem::replace(&mut sold, allotment.sold) - allotment.sold,
        Event::Created { on_hand, .. } => on_hand,
        Event::Decreased { quantity, .. } => on_hand - quantity,
        Event::Increased { quantity, .. } => on_hand + quantity,
        _ => on_hand,
    })
}

proptest! {
    #[test]
    fn whatever_happens_nothing_is_promised_twice_and_the_sums_are_right(steps in steps()) {
        let mut item = Live::<Inventory>::new("sku");
        let mut now = at(0);
        item.handle(&command_id("register"), Command::Register { product: "prod".to_owned(), on_hand: 20 }, now);
        for step in steps {
            let records = item.journal.len();
            match step {
                Step::Pass(millis) => now = now.plus_ms(millis),
                Step::Tell(command) => drop(item.handle(&command_id("c"), command, now)),
            }
            let state = &item.state;
            let held: u64 = state.holds.values().map(|hold| u64::from(hold.quantity)).sum();
            let reserved: u64 = state.reservations.values().copied().map(u64::from).sum();
            let allotted: u64 = state.allotments.values().map(|allotment| u64::from(allotment.quantity - allotment.sold)).sum();
            prop_assert_eq!((held, reserved, allotted), (state.held, state.reserved, state.allotted));
            prop_assert!(held + reserved + allotted <= u64::from(state.on_hand));
            prop_assert_eq!(state.on_hand, counted(&item.journal));
            prop_assert_eq!(state.expiries.len(), state.holds.len());
            prop_assert_eq!(state.closings.len(), state.closed.len());
            prop_assert_eq!(Inventory::due(state), state.holds.values().map(|hold| hold.expires_at).min());
            if let Some(available) = item.journal[records..].iter().rev().find_map(|record| told_available(record)) {
                prop_assert_eq!(available, u64::from(state.available()));
            }
        }
        item.assert_replays();
    }
}

#[test]
fn a_sale_s_units_are_kept_aside_until_they_are_sold_or_come_back() {
    // What the sale says, one after the other; then what is on hand and available.
    let words = [
        (allot(1, 6, 0), 10, 2),
        (allot(2, 6, 4), 6, 2),
        // One was refunded while the sale was on.
        (allot(3, 6, 3), 7, 2),
        // It ended: three were sold, one of them is refunded afterwards.
        (allot(4, 3, 3), 7, 5),
        (allot(5, 2, 2), 8, 6),
    ];
    let mut item = created(10).after([hold("cart", 1, 1), reserve("ord", None, 1)]);
    for (word, on_hand, available) in words {
        item = item.after([word.clone()]);
        assert_eq!((item.state.on_hand, item.state.available()), (on_hand, available), "{word:?}");
        let Command::Allot { allotment, .. } = word else { unreachable!() };
        item.when(allot(allotment.revision, 9, 9)).then_nothing_but(Reply::Allotted(allotment));
    }
    item.when(adjust(-7)).then_refused(Rejection::BelowCommitted { committed: 2 });
}

#[test]
fn a_sale_gets_no_more_than_is_available_and_its_late_first_word_is_not_heard_after_its_last() {
    let item = created(10).after([hold("cart", 3, 1)]);
    item.when(allot(1, 8, 0)).then_refused(Rejection::Short { requested: 8, available: 7 });
    let item = item.after([allot(2, 0, 0)]);
    item.when(allot(1, 5, 0)).then_nothing_but(allotted(2, 0, 0));
    given::<Inventory>([]).when(allot(1, 1, 0)).then_refused(Rejection::Unknown);
}
