use super::*;
use crate::domain::testing::{Given, at, command_id, eur, given};

fn line(sku: &str, quantity: u32, price: i64) -> Line {
    Line {
        sku: sku.to_owned(),
        product: "prod".to_owned(),
        shop: None,
        title: sku.to_owned(),
        quantity,
        unit_price: eur(price),
        total: eur(price * i64::from(quantity)),
        claim: None,
    }
}

fn draft_of(lines: Vec<Line>) -> Draft {
    let text = || "x".to_owned();
    let total = eur(lines.iter().map(|line| line.total.amount).sum());
    Draft {
        owner: Owner::Account { user: text() },
        cart: Some("cart".to_owned()),
        lines,
        total,
        contact: Contact::Plain {
            email: None,
            shipping_address: Address {
                name: text(),
                line1: text(),
                line2: None,
                city: text(),
                postal_code: text(),
                country: "AT".to_owned(),
            },
        },
        payment: Method { provider: "sandbox".to_owned(), token: text() },
    }
}

fn draft() -> Draft {
    draft_of(vec![line("a", 2, 100), line("b", 1, 50)])
}

fn place() -> Command {
    Command::Place { draft: draft() }
}

fn cancel() -> Command {
    Command::Cancel { reason: "regret".to_owned() }
}

fn ship() -> Command {
    Command::Ship { carrier: "post".to_owned(), tracking_number: None }
}

fn sku(sku: &str) -> String {
    sku.to_owned()
}

fn heard_each(heard: fn(String) -> Command) -> [Command; 2] {
    [heard(sku("a")), heard(sku("b"))]
}

fn pending() -> Given<Order> {
    given([]).id("ord_1").after([place()])
}

fn reserved() -> Given<Order> {
    pending().after(heard_each(|sku| Command::HeardReserved { sku }))
}

fn authorized() -> Given<Order> {
    reserved().after([Command::HeardAuthorized])
}

fn committed() -> Given<Order> {
    authorized().after(heard_each(|sku| Command::HeardCommitted { sku }))
}

fn paid() -> Given<Order> {
    committed().after([Command::HeardCaptured])
}

fn concluded(status: Status, reason: Option<Reason>) -> Vec<(CommandId, Result<Reply, Rejection>)> {
    vec![(command_id("c"), Ok(Reply::Concluded(Outcome { order: "ord_1".to_owned(), status, reason })))]
}

fn requested() -> Reason {
    Reason::Requested { message: "regret".to_owned() }
}

fn declined() -> Reason {
    Reason::PaymentDeclined { message: "no".to_owned() }
}

#[test]
fn a_placed_order_reserves_each_line() {
    let (id, command) = ("ord_1".to_owned(), command_id("c"));
    let created = Event::Created { id, command, draft: draft(), placed_at: at(0) };
    let order = given::<Order>([]).id("ord_1").when(place()).then_later(vec![created]);
    order.owing(&["reserve/a", "reserve/b"]);
}

#[test]
fn a_draft_that_does_not_add_up_is_refused_with_the_place_of_the_fault() {
    type Spoil = fn(&mut Draft);
    let cases: [(&str, Spoil); 11] = [
        ("/lines", |draft| draft.lines.clear()),
        ("/lines", |draft| draft.lines = vec![line("a", 1, 1); 101]),
        ("/lines/1/sku", |draft| draft.lines[1].sku = sku("a")),
        ("/lines/0/quantity", |draft| draft.lines[0].quantity = 0),
        ("/lines/0/quantity", |draft| draft.lines[0].quantity = 10_001),
        ("/lines/0/total", |draft| draft.lines[0].total = eur(1)),
        ("/lines/0/unit_price", |draft| draft.lines[0].unit_price = eur(-1)),
        ("/total", |draft| draft.total = eur(251)),
        ("/total", |draft| draft.lines[1] = Line { unit_price: usd(50), total: usd(50), ..line("b", 1, 50) }),
        ("/shipping_address/city", |draft| *place_of(draft) = Address { city: " ".to_owned(), ..place_of(draft).clone() }),
        ("/shipping_address/country", |draft| *place_of(draft) = Address { country: "at".to_owned(), ..place_of(draft).clone() }),
    ];
    for (at, spoil) in cases {
        let mut draft = draft();
        spoil(&mut draft);
        match given::<Order>([]).when(Command::Place { draft }).result {
            Err(Rejection::Invalid { field, .. }) => assert_eq!(field, at),
            other => panic!("{at}: {other:?}"),
        }
    }
}

fn place_of(draft: &mut Draft) -> &mut Address {
    match &mut draft.contact {
        Contact::Plain { shipping_address, .. } => shipping_address,
        Contact::Sealed { .. } => panic!("sealed"),
    }
}

#[test]
fn a_guests_order_becomes_an_accounts_once_and_for_good() {
    let contact = |key: &str| Contact::Sealed { contact: SealedContact { key: key.to_owned(), sealed: "s".to_owned() } };
    let claim = |user: &str| Command::Claim { user: user.to_owned(), contact: contact(user) };
    let guests = Draft { owner: Owner::Guest { token_sha256: "00".to_owned() }, contact: contact("guests"), ..draft() };
    let created = Event::Created { id: "ord_1".to_owned(), command: command_id("c"), draft: guests.clone(), placed_at: at(0) };
    let claimed = Event::Claimed { user: "ada".to_owned(), contact: contact("ada") };
    let order = given::<Order>([created]).id("ord_1").when(claim("ada")).then(vec![claimed], Reply::Claimed);
    let draft = order.state.draft.clone().unwrap();
    assert_eq!((draft.owner, draft.contact), (Owner::Account { user: "ada".to_owned() }, contact("ada")));
    let order = order.and().when(claim("ada")).then(vec![], Reply::Claimed).and();
    order.when(claim("eve")).then_refused(Rejection::NotClaimable);
    // Its cart may still be waiting for the outcome, and knows nothing of the claim.
    order.by("c").when(Command::Place { draft: guests }).then_later(vec![]);
    given::<Order>([]).when(claim("ada")).then_refused(Rejection::Unknown);
}

fn usd(amount: i64) -> Money {
    Money::new(amount, "USD".parse().unwrap())
}

#[test]
fn placing_the_same_order_again_waits_with_the_first_and_another_draft_is_refused() {
    let other = Command::Place { draft: draft_of(vec![line("a", 1, 1)]) };
    pending().when(other).then_refused(Rejection::Exists);
    pending().when(place()).then_later(vec![]);
    let order = pending().by("d").when(place()).then_later(vec![Event::PlacedAgain { command: command_id("d") }]);
    assert_eq!(order.state.waiting, [command_id("c"), command_id("d")]);
    let outcome = Outcome { order: "ord_1".to_owned(), status: Status::Paid, reason: None };
    paid().when(place()).then_nothing_but(Reply::Concluded(outcome));
}

#[test]
fn with_every_line_reserved_the_payment_is_next() {
    let order = pending().when(Command::HeardReserved { sku: sku("a") });
    let order = order.then(vec![Event::LineReserved { sku: sku("a") }], Reply::Noted).owing(&["reserve/b"]).and();
    let events = vec![Event::LineReserved { sku: sku("b") }, Event::Updated { status: Status::Reserved }];
    order.when(Command::HeardReserved { sku: sku("b") }).then(events, Reply::Noted).owing(&["authorize"]);
}

#[test]
fn a_refused_line_cancels_the_order_and_it_concludes_when_everything_is_released() {
    let order = pending().after([Command::HeardReserved { sku: sku("a") }]);
    let order = order.when(Command::HeardRefused { sku: sku("b"), available: 0 });
    let reason = Reason::OutOfStock { short: vec![Short { sku: sku("b"), requested: 1, available: 0 }] };
    let events = vec![Event::LineRefused { sku: sku("b"), available: 0 }, Event::Cancelled { reason: reason.clone() }];
    let order = order.then(events, Reply::Noted).settles(vec![]).owing(&["release/a", "release/b"]).and();
    let order = order.after([Command::HeardReleased { sku: sku("a") }]).when(Command::HeardReleased { sku: sku("b") });
    order.settles(concluded(Status::Cancelled, Some(reason))).owing(&[]);
}

#[test]
fn an_authorized_order_commits_and_captures_at_once_and_is_then_paid() {
    let order = reserved().when(Command::HeardAuthorized).then(vec![Event::PaymentAuthorized], Reply::Noted);
    order.owing(&["commit/a", "commit/b", "capture"]);
    let order = committed().when(Command::HeardCaptured);
    let order = order.then(vec![Event::PaymentCaptured, Event::Paid { total: eur(250) }], Reply::Noted);
    order.settles(concluded(Status::Paid, None)).owing(&[]);
}

#[test]
fn an_order_of_nothing_to_pay_skips_the_payment() {
    let order = given::<Order>([]).id("ord_1").after([Command::Place { draft: draft_of(vec![line("a", 1, 0)]) }]);
    let order = order.when(Command::HeardReserved { sku: sku("a") }).owing(&["commit/a"]).and();
    order.when(cancel()).then_refused(Rejection::InPayment);
    let order = order.when(Command::HeardCommitted { sku: sku("a") });
    let events = vec![Event::LineCommitted { sku: sku("a") }, Event::Paid { total: eur(0) }];
    let order = order.then(events, Reply::Noted).owing(&[]).and().after([cancel()]);
    let events = vec![Event::LineRestocked { sku: sku("a") }, Event::Refunded { total: eur(0) }];
    order.when(Command::HeardRestocked { sku: sku("a") }).then(events, Reply::Noted).owing(&[]);
}

#[test]
fn a_declined_payment_releases_the_lines() {
    let order = reserved().when(Command::HeardDeclined { reason: "no".to_owned() });
    let order = order.then(vec![Event::PaymentFailed { reason: declined() }], Reply::Noted).owing(&["release/a", "release/b"]);
    let order = order.and().after([Command::HeardReleased { sku: sku("a") }]).when(Command::HeardReleased { sku: sku("b") });
    let order = order.settles(concluded(Status::PaymentFailed, Some(declined()))).owing(&[]).and();
    order.when(cancel()).then_refused(Rejection::NotCancellable { status: Status::PaymentFailed });
}

#[test]
fn a_failed_capture_waits_for_the_commits_and_then_restocks_them() {
    let failed = Event::PaymentCaptureFailed { reason: "no".to_owned() };
    let heard = Command::HeardCaptureFailed { reason: "no".to_owned() };
    authorized().when(heard.clone()).then(vec![failed.clone()], Reply::Noted).owing(&["commit/a", "commit/b"]);
    let order = committed().when(heard).then(vec![failed, Event::PaymentFailed { reason: declined() }], Reply::Noted);
    let order = order.owing(&["restock/a", "restock/b"]).and().after([Command::HeardRestocked { sku: sku("a") }]);
    let order = order.when(Command::HeardRestocked { sku: sku("b") });
    order.settles(concluded(Status::PaymentFailed, Some(declined()))).owing(&[]);
}

#[test]
fn an_order_can_be_cancelled_until_its_payment_is_authorized() {
    let cancelled = || vec![Event::Cancelled { reason: requested() }];
    given::<Order>([]).when(cancel()).then_refused(Rejection::Unknown);
    pending().when(cancel()).then(cancelled(), Reply::Cancelled).owing(&["release/a", "release/b"]);
    reserved().when(cancel()).then(cancelled(), Reply::Cancelled).owing(&["release/a", "release/b", "void"]);
    authorized().when(cancel()).then_refused(Rejection::InPayment);
    let order = pending().after([cancel()]);
    order.when(cancel()).then_nothing_but(Reply::Cancelled);
    order.when(Command::HeardReserved { sku: sku("a") }).then_nothing_but(Reply::Noted);
    order.when(Command::HeardAuthorized).then_nothing_but(Reply::Noted);
}

#[test]
fn a_voided_order_owes_nothing_more() {
    let order = reserved().after([cancel()]).after(heard_each(|sku| Command::HeardReleased { sku }));
    order.when(Command::HeardVoided).then(vec![Event::PaymentVoided], Reply::Noted).owing(&[]);
}

#[test]
fn a_paid_order_that_is_cancelled_is_refunded_and_restocked() {
    let order = paid().when(cancel()).then(vec![Event::Cancelled { reason: requested() }], Reply::Cancelled);
    let order = order.owing(&["restock/a", "restock/b", "refund"]).and();
    let order = order.after(heard_each(|sku| Command::HeardRestocked { sku }));
    let order = order.when(Command::HeardRefunded);
    let events = vec![Event::PaymentRefunded, Event::Refunded { total: eur(250) }];
    order.then(events, Reply::Noted).owing(&[]).and().when(cancel()).then_nothing_but(Reply::Cancelled);
}

#[test]
fn only_a_paid_order_ships_and_only_once() {
    given::<Order>([]).when(ship()).then_refused(Rejection::Unknown);
    reserved().when(ship()).then_refused(Rejection::NotShippable { status: Status::Reserved });
    let shipment = Shipment { carrier: "post".to_owned(), tracking_number: None, shipped_at: at(0) };
    let order = paid().when(ship()).then(vec![Event::Shipped { shipment }], Reply::Shipped).and();
    order.when(ship()).then_refused(Rejection::NotShippable { status: Status::Shipped });
    order.when(cancel()).then_refused(Rejection::NotCancellable { status: Status::Shipped });
}

#[test]
fn what_is_on_its_way_arrives_once_and_nothing_else_does() {
    given::<Order>([]).when(Command::Deliver).then_refused(Rejection::Unknown);
    paid().when(Command::Deliver).then_refused(Rejection::NotDeliverable { status: Status::Paid });
    let order = paid().when(ship()).and().when(Command::Deliver);
    let order = order.then(vec![Event::Delivered { delivered_at: at(0) }], Reply::Delivered).and();
    order.when(Command::Deliver).then_refused(Rejection::NotDeliverable { status: Status::Delivered });
    order.when(cancel()).then_refused(Rejection::NotCancellable { status: Status::Delivered });
}

#[test]
fn an_order_that_is_not_paid_in_time_cancels_itself() {
    assert_eq!(Order::due(&reserved().state), Some(at(UNPAID_MS)));
    assert_eq!((Order::due(&authorized().state), Order::due(&paid().state)), (None, None));
    pending().at(UNPAID_MS - 1).when(Command::Expire).then_nothing_but(Reply::Noted);
    authorized().at(UNPAID_MS).when(Command::Expire).then_nothing_but(Reply::Noted);
    let order = reserved().at(UNPAID_MS).when(Command::Expire);
    order.then(vec![Event::Cancelled { reason: Reason::Unpaid }], Reply::Noted).owing(&["release/a", "release/b", "void"]);
}

#[test]
fn a_purchase_is_a_saga_that_ends_once_and_what_follows_is_no_part_of_it() {
    let heard = |heard: fn(String) -> Command| heard_each(heard);
    let ends = |order: &Given<Order>| Order::saga(&order.state).map(|saga| saga.ending);
    assert_eq!(ends(&given([])), None);
    for under_way in [pending(), reserved(), authorized(), committed(), reserved().after([cancel()])] {
        assert_eq!(Order::saga(&under_way.state), Some(Saga { begun: at(0), ending: None }));
    }
    for completed in [paid(), paid().after([ship()])] {
        assert_eq!(ends(&completed), Some(Some(SagaEnding::Completed)));
    }
    let released = heard(|sku| Command::HeardReleased { sku });
    let cancelled = pending().after([cancel()]).after(released.clone());
    let declined = reserved().after([Command::HeardDeclined { reason: "no".to_owned() }]).after(released);
    let restocked = heard(|sku| Command::HeardRestocked { sku });
    let uncaptured = committed().after([Command::HeardCaptureFailed { reason: "no".to_owned() }]);
    assert_eq!(ends(&uncaptured), Some(None));
    for compensated in [cancelled, declined, uncaptured.after(restocked.clone())] {
        assert_eq!(ends(&compensated), Some(Some(SagaEnding::Compensated)));
    }
    let refunding = paid().after([cancel()]);
    assert_eq!(ends(&refunding), None);
    assert_eq!(ends(&refunding.after([Command::HeardRefunded]).after(restocked)), None);
}

#[test]
fn an_answer_that_comes_twice_is_noted() {
    let order = paid();
    let heard: [fn(String) -> Command; 5] = [
        |sku| Command::HeardReserved { sku },
        |sku| Command::HeardRefused { sku, available: 1 },
        |sku| Command::HeardReleased { sku },
        |sku| Command::HeardCommitted { sku },
        |sku| Command::HeardRestocked { sku },
    ];
    for heard in heard {
        order.when(heard(sku("a"))).then_nothing_but(Reply::Noted);
        order.when(heard(sku("no such line"))).then_nothing_but(Reply::Noted);
    }
    let reason = || "no".to_owned();
    let payment = [
        Command::HeardAuthorized,
        Command::HeardDeclined { reason: reason() },
        Command::HeardCaptured,
        Command::HeardCaptureFailed { reason: reason() },
        Command::HeardVoided,
        Command::HeardRefunded,
    ];
    for heard in payment {
        order.when(heard).then_nothing_but(Reply::Noted);
    }
}

#[test]
fn any_refusal_of_an_item_or_a_payment_is_understood() {
    assert_eq!((left(inventory::Rejection::Unknown), left(inventory::Rejection::Closed)), (0, 0));
    assert_eq!(left(inventory::Rejection::Short { requested: 5, available: 3 }), 3);
    assert!(matches!(hear_authorize(Err(payment::Rejection::Differs)), Some(Command::HeardDeclined { .. })));
    assert!(matches!(hear_capture(Err(payment::Rejection::Differs)), Some(Command::HeardCaptureFailed { .. })));
    assert_eq!(payment_id("ord_1"), "pay_1");
}
