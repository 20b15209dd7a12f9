use proptest::prelude::*;

use super::*;
use crate::domain::testing::{Given, Live, Then, at, command_id, eur, given};

const DAY: i64 = 24 * 60 * MINUTE_MS;

fn offer() -> Offer {
    Offer { product: "prod".to_owned(), shop: None, title: "Cup".to_owned(), price: eur(100) }
}

fn add(sku: &str, quantity: u32) -> Command {
    Command::Add { sku: sku.to_owned(), quantity, offer: offer() }
}

fn set(sku: &str, quantity: u32) -> Command {
    Command::Set { sku: sku.to_owned(), quantity }
}

fn remove(sku: &str) -> Command {
    Command::Remove { sku: sku.to_owned() }
}

fn held(sku: &str, revision: u64, quantity: u32) -> Command {
    Command::HeardHeld { sku: sku.to_owned(), revision, quantity, expires_at: at(DAY) }
}

fn short(sku: &str, revision: u64, available: u32) -> Command {
    Command::HeardShort { sku: sku.to_owned(), revision, available }
}

fn guest() -> order::Owner {
    order::Owner::Guest { token_sha256: "hash".to_owned() }
}

fn user() -> order::Owner {
    order::Owner::Account { user: "user".to_owned() }
}

fn open() -> Given<Cart> {
    given([Event::Created { id: "me".to_owned(), owner: user() }])
}

/// A cart with two of sku `a` in it.
fn filled() -> Given<Cart> {
    open().after([add("a", 2), held("a", 1, 2)])
}

fn asked(sku: &str, revision: u64, quantity: u32, covers: usize) -> Event {
    Event::HoldAsked { sku: sku.to_owned(), asked: Asked { revision, quantity, covers, absorb: None } }
}

fn added(sku: &str, quantity: u32, answered: usize) -> Event {
    Event::ItemAdded { sku: sku.to_owned(), quantity, held_until: at(DAY), answered }
}

fn queued(sku: &str, command: &str, change: QuantityChange) -> Event {
    let change = Change { command: Some(command_id(command)), change, absorb: None };
    Event::ItemRequested { sku: sku.to_owned(), offer: offer(), change }
}

fn told(command: &str, quantity: u32) -> (CommandId, Result<Reply, Rejection>) {
    (command_id(command), Ok(Reply::Quantity(quantity)))
}

fn told_short(command: &str, requested: u32, available: u32) -> (CommandId, Result<Reply, Rejection>) {
    (command_id(command), Err(Rejection::Short { sku: "a".to_owned(), requested, available }))
}

fn address() -> order::Address {
    let text = || "x".to_owned();
    let country = "AT".to_owned();
    order::Address { name: text(), line1: text(), line2: None, city: text(), postal_code: text(), country }
}

fn checkout_at(price: i64) -> Command {
    Command::Checkout {
        order: "ord_1".to_owned(),
        payment: payment::Method { provider: "sandbox".to_owned(), token: "tok".to_owned() },
        contact: order::Contact::Plain { email: None, shipping_address: address() },
        expected_total: None,
        prices: BTreeMap::from([("a".to_owned(), eur(price))]),
        claimed: None,
    }
}

fn outcome(status: order::Status) -> order::Outcome {
    order::Outcome { order: "ord_1".to_owned(), status, reason: None }
}

fn quantity_of(then: &Then<Cart>, sku: &str) -> Option<u32> {
    then.state.lines.get(sku).map(|line| line.quantity)
}

#[test]
fn a_cart_is_created_once_and_unknown_before() {
    let create = || Command::Create { owner: guest() };
    let created = Event::Created { id: "me".to_owned(), owner: guest() };
    let cart = given::<Cart>([]).when(create()).then(vec![created], Reply::Created).and();
    cart.when(create()).then_refused(Rejection::Exists);
    for command in [add("a", 1), set("a", 1), remove("a"), checkout_at(1), Command::Delete] {
        given::<Cart>([]).when(command).then_refused(Rejection::Unknown);
    }
}

#[test]
fn an_addition_is_answered_when_its_hold_is() {
    let cart = open().when(add("a", 2)).then_later(vec![queued("a", "c", QuantityChange::Add(2)), asked("a", 1, 2, 1)]);
    let cart = cart.owing(&["hold/a/1"]).and();
    let cart = cart.when(held("a", 1, 2)).then(vec![added("a", 2, 1)], Reply::Noted);
    cart.settles(vec![told("c", 2)]).owing(&[]);
}

#[test]
fn changes_queue_behind_one_ask_and_are_answered_in_their_order() {
    let cart = open().after([add("a", 2)]).by("d").when(add("a", 3)).then_later(vec![queued("a", "d", QuantityChange::Add(3))]);
    let cart = cart.and().by("e").after([set("a", 4)]);
    let cart = cart.when(held("a", 1, 2)).then(vec![added("a", 2, 1), asked("a", 2, 4, 2)], Reply::Noted);
    let cart = cart.settles(vec![told("c", 2)]).owing(&["hold/a/2"]).and();
    cart.when(held("a", 1, 2)).then_nothing_but(Reply::Noted);
    cart.when(held("a", 2, 4)).then(vec![added("a", 4, 2)], Reply::Noted).settles(vec![told("d", 5), told("e", 4)]);
}

#[test]
fn a_quantity_that_is_set_is_an_update() {
    let cart = filled().when(set("a", 9)).then_later(vec![queued("a", "c", QuantityChange::Set(9)), asked("a", 2, 9, 1)]).and();
    let updated = Event::Updated { sku: "a".to_owned(), quantity: 9, held_until: at(DAY), answered: 1 };
    cart.when(held("a", 2, 9)).then(vec![updated], Reply::Noted).settles(vec![told("c", 9)]);
}

#[test]
fn a_faulty_addition_is_refused() {
    let usd = || super::super::Currency::EUR;
    let price = Money::new(1, "USD".parse().unwrap());
    let foreign = Command::Add { sku: "b".to_owned(), quantity: 1, offer: Offer { price, ..offer() } };
    filled().when(foreign).then_refused(Rejection::CurrencyDiffers { cart: usd(), offer: price.currency });
    let cheap = Command::Add { sku: "b".to_owned(), quantity: 1, offer: Offer { price: eur(-1), ..offer() } };
    let cases = [
        ("/quantity", add("a", 0)),
        ("/quantity", add("a", 9_999)),
        ("/quantity", set("a", 10_001)),
        ("/sku", add(" ", 1)),
        ("/price", cheap),
    ];
    for (at, command) in cases {
        match filled().when(command).result {
            Err(Rejection::Invalid { field, .. }) => assert_eq!(field, at),
            other => panic!("{at}: {other:?}"),
        }
    }
    filled().when(set("b", 1)).then_refused(Rejection::NoSuchLine { sku: "b".to_owned() });
    filled().when(remove("b")).then_refused(Rejection::NoSuchLine { sku: "b".to_owned() });
}

#[test]
fn lines_and_queued_changes_are_bounded() {
    let full = open().after((0..LINES_MAX).map(|line| add(&format!("sku{line}"), 1)));
    full.when(add("one more", 1)).then_refused(Rejection::TooManyLines);
    let mut busy = open();
    for change in 0..CHANGES_MAX {
        busy = busy.by(&format!("c{change}")).after([add("a", 1)]);
    }
    busy.when(add("a", 1)).then_refused(Rejection::Busy);
}

#[test]
fn of_what_is_short_the_oldest_that_fits_is_kept() {
    let cart = filled().by("x").after([add("a", 1)]).by("big").after([add("a", 7)]).by("small").after([add("a", 1)]);
    let cart = cart.when(held("a", 2, 3)).and();
    let refused = Event::ItemRefused { sku: "a".to_owned(), available: 5, refused: vec![0], reduced: vec![] };
    let cart = cart.when(short("a", 3, 5)).then(vec![refused, asked("a", 4, 4, 1)], Reply::Noted);
    let cart = cart.settles(vec![told_short("big", 10, 5)]).and();
    cart.when(held("a", 4, 4)).then(vec![added("a", 4, 1)], Reply::Noted).settles(vec![told("small", 4)]);
}

#[test]
fn a_line_of_which_nothing_can_be_had_disappears() {
    let refused = Event::ItemRefused { sku: "a".to_owned(), available: 0, refused: vec![0], reduced: vec![] };
    let cart = open().after([add("a", 1)]).when(short("a", 1, 0)).then(vec![refused], Reply::Noted);
    let cart = cart.settles(vec![told_short("c", 1, 0)]).owing(&[]);
    assert_eq!(quantity_of(&cart, "a"), None);
}

#[test]
fn what_is_in_the_cart_stays_when_more_is_refused() {
    let cart = filled().after([add("a", 9)]).when(short("a", 2, 5)).settles(vec![told_short("c", 11, 5)]).owing(&[]);
    assert_eq!(quantity_of(&cart, "a"), Some(2));
    cart.and().when(short("a", 1, 0)).then_nothing_but(Reply::Noted);
}

#[test]
fn removing_is_done_at_once_and_the_hold_is_given_up_until_heard() {
    let removed = Event::ItemRemoved { sku: "a".to_owned() };
    let gone = Err(Rejection::NoSuchLine { sku: "a".to_owned() });
    let cart = filled().by("d").after([add("a", 1)]).when(remove("a")).then(vec![removed.clone()], Reply::Removed);
    let cart = cart.settles(vec![(command_id("d"), gone)]).owing(&["hold/a/3"]).and();
    filled().when(set("a", 0)).then(vec![removed], Reply::Removed);
    let heard = |revision| Command::HeardReleased { sku: "a".to_owned(), revision };
    cart.when(heard(2)).then_nothing_but(Reply::Noted);
    cart.when(heard(3)).then(vec![Event::HoldReleased { sku: "a".to_owned() }], Reply::Noted).owing(&[]);
}

#[test]
fn adding_again_what_was_removed_replaces_the_release_unless_it_is_refused() {
    let cart = filled().after([remove("a")]).when(add("a", 1)).owing(&["hold/a/3"]).and();
    cart.when(held("a", 3, 1)).owing(&[]);
    cart.when(short("a", 3, 0)).owing(&["hold/a/2"]);
}

#[test]
fn using_the_cart_renews_the_holds_that_would_soon_run_out() {
    let cart = filled().at(DAY - RENEW_BELOW_MS + 1);
    let cart = cart.when(add("b", 1));
    let cart = cart.then_later(vec![queued("b", "c", QuantityChange::Add(1)), asked("a", 2, 2, 0), asked("b", 3, 1, 1)]).and();
    let updated = Event::Updated { sku: "a".to_owned(), quantity: 2, held_until: at(DAY), answered: 0 };
    cart.when(held("a", 2, 2)).then(vec![updated], Reply::Noted).settles(vec![]);
    let cart = cart.when(short("a", 2, 1)).owing(&["hold/a/4", "hold/b/3"]).and();
    assert_eq!(quantity_of(&cart.when(held("a", 4, 1)), "a"), Some(1));
    let cart = cart.when(short("a", 4, 0));
    assert_eq!(quantity_of(&cart, "a"), None);
}

fn merge() -> Command {
    Command::Merge { from: "guest".to_owned() }
}

fn handed(sku: &str, quantity: u32) -> HandedOver {
    HandedOver { sku: sku.to_owned(), quantity, offer: Offer { title: "from the guest".to_owned(), ..offer() } }
}

fn heard_handed_over(lines: Vec<HandedOver>) -> Command {
    Command::HeardHandedOver { from: "guest".to_owned(), lines }
}

#[test]
fn a_merge_is_answered_when_the_lines_are_held_here() {
    let requested = |command: &str| Event::MergeRequested { from: "guest".to_owned(), command: command_id(command) };
    let cart = filled().when(merge()).then_later(vec![requested("c")]).owing(&["merge/guest"]).and();
    cart.when(merge()).then_later(vec![]);
    let cart = cart.by("d").when(merge()).then_later(vec![requested("d")]).and();
    let cart = cart.when(heard_handed_over(vec![handed("a", 3), handed("b", 1)])).settles(vec![]);
    let cart = cart.owing(&["hold/a/2", "hold/b/3"]).and();
    assert_eq!(cart.state.lines["a"].offer.title, "Cup");
    let absorb = Some("guest".to_owned());
    assert_eq!(cart.state.lines["a"].asked, Some(Asked { revision: 2, quantity: 5, covers: 1, absorb }));
    cart.when(Command::HandOver { into: "third".to_owned() }).then_refused(Rejection::Busy);
    let cart = cart.when(held("a", 2, 5)).settles(vec![]).and();
    let cart = cart.when(held("b", 3, 1));
    let cart = cart.settles(vec![(command_id("c"), Ok(Reply::Merged)), (command_id("d"), Ok(Reply::Merged))]).and();
    cart.when(merge()).then_nothing_but(Reply::Merged);
    cart.when(heard_handed_over(vec![handed("a", 3)])).then_nothing_but(Reply::Noted);
}

#[test]
fn a_merged_line_is_reduced_to_what_fits() {
    let cart = filled().after([merge(), heard_handed_over(vec![handed("a", 8)])]);
    let refused = Event::ItemRefused { sku: "a".to_owned(), available: 6, refused: vec![], reduced: vec![(0, 4)] };
    let ask = Asked { revision: 3, quantity: 6, covers: 1, absorb: Some("guest".to_owned()) };
    let ask = Event::HoldAsked { sku: "a".to_owned(), asked: ask };
    let cart = cart.when(short("a", 2, 6)).then(vec![refused, ask], Reply::Noted).and();
    cart.when(held("a", 3, 6)).settles(vec![(command_id("c"), Ok(Reply::Merged))]);
    let none = cart.when(short("a", 3, 2));
    assert_eq!(quantity_of(&none, "a"), Some(2));
    none.settles(vec![(command_id("c"), Ok(Reply::Merged))]).owing(&[]);
}

#[test]
fn two_merged_holds_are_taken_over_one_after_the_other() {
    let second = Command::HeardHandedOver { from: "other".to_owned(), lines: vec![handed("a", 1)] };
    let cart = open().after([merge(), Command::Merge { from: "other".to_owned() }]);
    let cart = cart.after([heard_handed_over(vec![handed("a", 1)]), second]).when(held("a", 1, 1)).and();
    let absorb = Some("other".to_owned());
    assert_eq!(cart.state.lines["a"].asked, Some(Asked { revision: 2, quantity: 2, covers: 1, absorb }));
}

#[test]
fn a_cart_that_cannot_be_merged_is_told_so() {
    open().when(Command::Merge { from: "me".to_owned() }).then_refused(Rejection::NotMergeable);
    let refused = || Command::HeardNotHandedOver { from: "guest".to_owned() };
    open().when(refused()).then_nothing_but(Reply::Noted);
    let cart = open().after([merge()]).when(refused());
    let cart = cart.then(vec![Event::MergeRefused { from: "guest".to_owned() }], Reply::Noted);
    cart.settles(vec![(command_id("c"), Err(Rejection::NotMergeable))]).owing(&[]);
}

#[test]
fn what_has_no_room_or_another_currency_is_left_behind_in_a_merge() {
    let foreign = HandedOver { offer: Offer { price: Money::new(1, "USD".parse().unwrap()), ..offer() }, ..handed("b", 1) };
    let cart = filled().after([merge()]).when(heard_handed_over(vec![foreign]));
    cart.settles(vec![(command_id("c"), Ok(Reply::Merged))]).owing(&[]);
    let full = open().after((0..LINES_MAX).map(|line| add(&format!("sku{line}"), 1)));
    let full = full.after([merge()]).when(heard_handed_over(vec![handed("x", 1), handed("sku0", 1)]));
    assert_eq!((full.state.lines.len(), full.state.lines["sku0"].changes.len()), (LINES_MAX, 2));
}

#[test]
fn a_cart_hands_its_accepted_lines_over_once() {
    let hand_over = |into: &str| Command::HandOver { into: into.to_owned() };
    let lines = vec![HandedOver { sku: "a".to_owned(), quantity: 2, offer: offer() }];
    let cart = filled().by("d").after([add("a", 5), add("b", 1)]).when(hand_over("user"));
    let event = Event::HandedOver { into: "user".to_owned(), lines: lines.clone() };
    let reply = Reply::HandedOver { lines };
    let because = "its lines went to cart user".to_owned();
    let closed = || (command_id("d"), Err(Rejection::Closed { because: because.clone() }));
    let cart = cart.then(vec![event], reply.clone()).settles(vec![closed(), closed()]).owing(&["hold/b/4"]).and();
    cart.when(hand_over("user")).then_nothing_but(reply);
    cart.when(hand_over("other")).then_refused(Rejection::NotMergeable);
    cart.when(add("a", 1)).then_refused(Rejection::Closed { because });
    given::<Cart>([]).when(hand_over("user")).then_refused(Rejection::NotMergeable);
    open().after([merge()]).when(hand_over("user")).then_refused(Rejection::NotMergeable);
    let order = "ord_1".to_owned();
    filled().after([checkout_at(100)]).when(hand_over("user")).then_refused(Rejection::CheckingOut { order });
}

#[test]
fn a_checkout_is_answered_with_the_orders_outcome() {
    let cart = filled().when(checkout_at(100)).owing(&["place/ord_1"]);
    let [Event::CheckedOut { draft, .. }] = cart.decision().events.as_slice() else { panic!("{:?}", cart.decision()) };
    assert_eq!((draft.total, draft.lines.len(), draft.cart.as_deref()), (eur(200), 1, Some("me")));
    let cart = cart.and();
    let order = "ord_1".to_owned();
    for command in [add("a", 1), remove("a"), checkout_at(100), Command::Delete] {
        cart.when(command).then_refused(Rejection::CheckingOut { order: order.clone() });
    }
    let paid = outcome(order::Status::Paid);
    let heard = || Command::HeardOutcome { outcome: outcome(order::Status::Paid) };
    let cart = cart.when(heard()).then(vec![Event::Completed { order }], Reply::Noted);
    let cart = cart.settles(vec![(command_id("c"), Ok(Reply::Concluded(paid)))]).owing(&[]).and();
    cart.when(heard()).then_nothing_but(Reply::Noted);
    cart.when(checkout_at(100)).then_refused(Rejection::Closed { because: "it became order ord_1".to_owned() });
}

#[test]
fn a_failed_order_opens_the_cart_again_and_its_lines_are_held_anew() {
    let failed = outcome(order::Status::PaymentFailed);
    let cart = filled().after([checkout_at(100)]).when(Command::HeardOutcome { outcome: failed.clone() });
    let events = vec![Event::Reopened { outcome: failed.clone() }, asked("a", 2, 2, 0)];
    let cart = cart.then(events, Reply::Noted).settles(vec![(command_id("c"), Ok(Reply::Concluded(failed)))]).and();
    assert_eq!(quantity_of(&cart.when(held("a", 2, 2)), "a"), Some(2));
    let cart = cart.when(short("a", 2, 1)).owing(&["hold/a/3"]).and();
    assert_eq!(quantity_of(&cart.when(held("a", 3, 1)), "a"), Some(1));
    assert_eq!(quantity_of(&cart.when(short("a", 3, 0)), "a"), None);
}

#[test]
fn an_order_that_refuses_to_be_placed_opens_the_cart_again() {
    let heard = hear_outcome("ord_1".to_owned(), Err(order::Rejection::Exists));
    let cart = filled().after([checkout_at(100)]).after(heard);
    assert_eq!(cart.state.phase, Phase::Open);
}

#[test]
fn a_checkout_waits_until_the_cart_is_quiet_and_has_something_in_it() {
    open().when(checkout_at(100)).then_refused(Rejection::Empty);
    filled().after([add("b", 1)]).when(checkout_at(100)).then_refused(Rejection::Busy);
    filled().after([merge()]).when(checkout_at(100)).then_refused(Rejection::Busy);
}

#[test]
fn changed_prices_are_told_once_and_then_borne() {
    let change = |now| vec![PriceChange { sku: "a".to_owned(), was: eur(100), now }];
    let cart = filled().when(checkout_at(120));
    let cart = cart.then_later(vec![Event::Repriced { changes: change(Some(eur(120))) }]);
    let told = Rejection::PricesChanged { changes: change(Some(eur(120))) };
    let cart = cart.settles(vec![(command_id("c"), Err(told))]).and();
    cart.when(checkout_at(120)).owing(&["place/ord_1"]);
    let mut gone = checkout_at(100);
    if let Command::Checkout { prices, .. } = &mut gone {
        prices.clear();
    }
    filled().when(gone).then_refused(Rejection::PricesChanged { changes: change(None) });
}

#[test]
fn faulty_terms_are_refused_with_the_place_of_the_fault() {
    let spoil = |spoil: fn(&mut order::Address, &mut Option<String>, &mut Option<Money>)| {
        let mut command = checkout_at(100);
        if let Command::Checkout { contact: order::Contact::Plain { shipping_address, email }, expected_total, .. } = &mut command
        {
            spoil(shipping_address, email, expected_total);
        }
        command
    };
    let total = spoil(|_, _, total| *total = Some(eur(199)));
    filled().when(total).then_refused(Rejection::TotalDiffers { expected: eur(199), actual: eur(200) });
    let guests = given([Event::Created { id: "me".to_owned(), owner: guest() }]).after([add("a", 2), held("a", 1, 2)]);
    let cases = [
        ("/email", guests.when(checkout_at(100))),
        ("/email", filled().when(spoil(|_, email, _| *email = Some("nobody".to_owned())))),
        ("/shipping_address/name", filled().when(spoil(|address, _, _| address.name.clear()))),
        ("/shipping_address/line2", filled().when(spoil(|address, _, _| address.line2 = Some("x".repeat(256))))),
        ("/shipping_address/country", filled().when(spoil(|address, _, _| address.country = "Austria".to_owned()))),
    ];
    for (at, then) in cases {
        match then.result {
            Err(Rejection::Invalid { field, .. }) => assert_eq!(field, at),
            other => panic!("{at}: {other:?}"),
        }
    }
}

#[test]
fn a_deleted_cart_gives_its_holds_up_and_all_who_wait_hear() {
    let cart = filled().by("d").after([add("b", 1), merge()]).when(Command::Delete).then(vec![Event::Deleted], Reply::Deleted);
    let because = "it was deleted".to_owned();
    let closed = || (command_id("d"), Err(Rejection::Closed { because: because.clone() }));
    let cart = cart.settles(vec![closed(), closed()]).owing(&["hold/a/3", "hold/b/4"]).and();
    cart.when(Command::Delete).then_nothing_but(Reply::Deleted);
    cart.when(add("a", 1)).then_refused(Rejection::Closed { because });
}

#[test]
fn a_sku_that_is_gone_counts_as_none_available() {
    let heard = hear_hold("a".to_owned(), 1, Err(inventory::Rejection::Unknown));
    assert_eq!(heard, short("a", 1, 0));
}

/// What happens to a cart beside other carts that want the same units.
#[derive(Debug, Clone)]
enum Step {
    Tell(usize, Command),
    /// One message is delivered, perhaps twice, and its answer heard unless it is lost.
    Deliver {
        which: usize,
        is_repeated: bool,
        is_lost: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sku = || prop::sample::select(vec!["a", "b"]);
    let tell = prop_oneof![
        4 => (sku(), 1_u32..6).prop_map(|(sku, quantity)| add(sku, quantity)),
        2 => (sku(), 0_u32..8).prop_map(|(sku, quantity)| set(sku, quantity)),
        1 => sku().prop_map(remove),
    ];
    let deliver = (any::<usize>(), prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    let deliver = deliver.prop_map(|(which, is_repeated, is_lost)| Step::Deliver { which, is_repeated, is_lost });
    prop::collection::vec(
        prop_oneof![1 => (0_usize..2, tell).prop_map(|(cart, tell)| Step::Tell(cart, tell)), 1 => deliver],
        0..80,
    )
}

struct Shop {
    carts: Vec<Live<Cart>>,
    items: BTreeMap<String, Live<Inventory>>,
    commands: usize,
}

impl Shop {
    fn opened() -> Self {
        let mut shop = Shop { carts: vec![Live::new("one"), Live::new("two")], items: BTreeMap::new(), commands: 0 };
        for sku in ["a", "b"] {
            let mut item = Live::new(sku);
            let register = inventory::Command::Register { product: "prod".to_owned(), on_hand: 9 };
            item.handle(&command_id("register"), register, at(0));
            shop.items.insert(sku.to_owned(), item);
        }
        for cart in 0..2 {
            shop.tell(cart, Command::Create { owner: user() });
        }
        shop
    }

    fn tell(&mut self, cart: usize, command: Command) {
        self.commands += 1;
        self.carts[cart].handle(&CommandId(format!("c{}", self.commands)), command, at(0));
    }

    fn owed(&self) -> Vec<(usize, Debt<Cart>)> {
        let carts = self.carts.iter().enumerate();
        carts.flat_map(|(cart, live)| Cart::owes(&live.state).into_iter().map(move |debt| (cart, debt))).collect()
    }

    fn deliver(&mut self, which: usize, is_repeated: bool, is_lost: bool) {
        let mut owed = self.owed();
        if owed.is_empty() {
            return;
        }
        let (cart, debt) = owed.swap_remove(which % owed.len());
        let super::super::Recipient::Entity { id: sku, .. } = debt.to.clone() else { panic!("{debt:?}") };
        let id = CommandId(format!("{}/{}", self.carts[cart].id, debt.id));
        let (request, hear) = debt.into_parts();
        let request: inventory::Command = *request.downcast().unwrap();
        let item = self.items.get_mut(&sku).unwrap();
        if is_repeated {
            item.handle(&id, request.clone(), at(0));
        }
        let answer = item.handle(&id, request, at(0)).unwrap();
        if let Some(heard) = hear(Box::new(answer)).filter(|_| !is_lost) {
            self.tell(cart, heard);
        }
    }
}

proptest! {
    #[test]
    fn when_all_is_quiet_a_cart_has_what_is_held_for_it_and_everybody_is_answered(steps in steps()) {
        let mut shop = Shop::opened();
        for step in steps {
            match step {
                Step::Tell(cart, command) => shop.tell(cart, command),
                Step::Deliver { which, is_repeated, is_lost } => shop.deliver(which, is_repeated, is_lost),
            }
        }
        for round in 0..1_000 {
            shop.deliver(round, false, false);
        }
        prop_assert_eq!(shop.owed().len(), 0, "nothing is owed any more");
        for cart in &shop.carts {
            prop_assert!(cart.waiting.is_empty(), "{:?} wait for ever", cart.waiting);
            cart.assert_replays();
            for (sku, item) in &shop.items {
                let in_cart = cart.state.lines.get(sku).map_or(0, |line| line.quantity);
                let held = item.state.holds.get(&cart.id).map_or(0, |hold| hold.quantity);
                prop_assert_eq!(in_cart, held, "{} of {}", sku, cart.id);
            }
        }
    }
}
