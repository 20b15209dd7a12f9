use proptest::prelude::*;

use super::customer::guest;
use super::*;
use crate::domain::testing::{Given, Then, at, command_id, eur, given, through_json};

const ORDER: &str = "ord_01M7XTJD39HAVHP9G020ZF53AX";
const OTHER_ORDER: &str = "ord_01M7XTJD39HAVHP9G020ZF53AY";
/// When the sale of the tests starts and ends, after noon.
const START: i64 = 10 * MINUTE_MS;
const END: i64 = START + 60 * MINUTE_MS;

fn terms(quantity: u32, per_customer_limit: u32) -> Terms {
    Terms {
        sku: "LANTERN-S".to_owned(),
        product: "prod".to_owned(),
        shop: None,
        title: "Lantern".to_owned(),
        price: eur(900),
        quantity,
        per_customer_limit,
        per_address_limit: None,
        starts_at: at(START),
        ends_at: at(END),
        claim_ms: CLAIM_MS,
        admission_ms: ADMISSION_MS,
        grace_ms: GRACE_MS,
        guests: true,
    }
}

fn allotted(revision: u64, quantity: u32, sold: u32) -> Allotment {
    Allotment { revision, quantity, sold }
}

fn heard(revision: u64, quantity: u32, sold: u32) -> Command {
    Command::HeardAllotted { allotment: allotted(revision, quantity, sold) }
}

fn draft(terms: Terms) -> Given<FlashSale> {
    given([Event::Created { id: "fs".to_owned(), terms: Box::new(terms) }])
}

fn scheduled(terms: Terms) -> Given<FlashSale> {
    let quantity = terms.quantity;
    draft(terms).after([Command::Approve, heard(1, quantity, 0)])
}

/// On, since this moment.
fn active(terms: Terms) -> Given<FlashSale> {
    scheduled(terms).at(START).after([Command::Elapse])
}

fn on(quantity: u32, per_customer_limit: u32) -> Given<FlashSale> {
    active(terms(quantity, per_customer_limit))
}

fn claim(customer: u64, quantity: u32) -> Command {
    Command::Claim { customer: guest(customer), quantity, address: 0 }
}

fn claimed(claim: ClaimNumber, quantity: u32, until: i64) -> Reply {
    Reply::Claimed { claim, quantity, until: at(until) }
}

fn queued(ticket: TicketNumber, ahead: u32) -> Reply {
    Reply::Queued { ticket, ahead, wait_ms: None }
}

fn reserve(claim: ClaimNumber, order: &str, customer: u64, quantity: u32) -> Command {
    Command::Reserve { claim, order: order.to_owned(), customer: guest(customer), quantity, unit_price: eur(900) }
}

fn release(claim: ClaimNumber, order: &str, customer: u64) -> Command {
    Command::Release { claim, order: order.to_owned(), customer: guest(customer) }
}

fn commit(claim: ClaimNumber, order: &str) -> Command {
    Command::Commit { claim, order: order.to_owned() }
}

fn restock(claim: ClaimNumber, order: &str) -> Command {
    Command::Restock { claim, order: order.to_owned() }
}

fn admitted(tickets: &[(TicketNumber, ClaimNumber, u16)], millis: i64) -> Event {
    let admissions =
        tickets.iter().map(|(ticket, claim, quantity)| Admission { ticket: *ticket, claim: *claim, quantity: *quantity });
    Event::Admitted { admissions: admissions.collect(), at: at(millis), until: at(millis + ADMISSION_MS), admits_from_us: None }
}

/// Each caller's command has an id of its own.
fn does(sale: Given<FlashSale>, id: &str, command: Command) -> Given<FlashSale> {
    sale.by(id).after([command])
}

fn phase_of(sale: &Given<FlashSale>, claim: ClaimNumber) -> ClaimPhase {
    sale.state.book.claims.get(claim).expect("there is such a claim").phase
}

fn events(then: &Then<FlashSale>) -> &[Event] {
    &then.decision().events
}

// Its life ------------------------------------------------------------------------------------------------------------

#[test]
fn a_draft_is_changed_until_it_is_approved_and_then_its_units_are_set_aside_before_it_is_scheduled() {
    let mut other = terms(20, 2);
    other.price = eur(1_000);
    let sale = draft(terms(10, 1));
    sale.when(Command::Create { terms: Box::new(terms(10, 1)) }).then_refused(Rejection::Exists);
    let update = Command::Update { terms: Box::new(other.clone()) };
    let sale = sale.when(update.clone()).then(vec![Event::Updated { terms: Box::new(other) }], Reply::Updated).owing(&[]).and();
    let sale = sale.by("a").when(Command::Approve).then_later(vec![Event::Approved { command: command_id("a") }]);
    let sale = sale.owing(&["allot/1"]).and();
    sale.when(update).then_refused(Rejection::NotNow { status: Status::Arming });
    let sale = sale.when(heard(1, 20, 0));
    let sale = sale.then(vec![Event::Allotted { allotment: allotted(1, 20, 0) }, Event::Scheduled], Reply::Noted);
    let sale = sale.settles(vec![(command_id("a"), Ok(Reply::Scheduled))]).owing(&[]).and();
    sale.when(Command::Approve).then_nothing_but(Reply::Scheduled);
    sale.when(heard(1, 20, 0)).then_nothing_but(Reply::Noted);
}

#[test]
fn units_that_are_not_to_be_had_make_it_a_draft_again_that_can_be_approved_once_more() {
    let why = inventory::Rejection::Short { requested: 10, available: 3 };
    let refused = Command::HeardNotAllotted { revision: 1, why: why.clone() };
    let sale = draft(terms(10, 1)).by("a").after([Command::Approve]);
    let sale = sale.when(refused.clone()).then(vec![Event::Refused { why: why.clone() }], Reply::Noted);
    let sale = sale.settles(vec![(command_id("a"), Err(Rejection::NotAllotted { why }))]).owing(&[]).and();
    assert_eq!(sale.state.book.status, Status::Draft);
    let sale = sale.by("b").when(Command::Approve).then_later(vec![Event::Approved { command: command_id("b") }]);
    sale.owing(&["allot/2"]).and().when(refused).then_nothing_but(Reply::Noted);
}

#[test]
fn one_that_is_cancelled_while_its_units_are_being_set_aside_gives_them_back() {
    let sale = draft(terms(10, 1)).by("a").after([Command::Approve]);
    let cancel = Command::Cancel { reason: "no".to_owned() };
    let sale = sale.when(cancel).then(vec![Event::Cancelled { reason: "no".to_owned() }], Reply::Cancelled);
    let sale = sale.settles(vec![(command_id("a"), Err(Rejection::Over))]).owing(&["allot/2"]).and();
    let late = sale.when(heard(1, 10, 0)).owing(&["allot/2"]).and();
    late.when(heard(2, 0, 0)).owing(&[]);
    sale.when(heard(2, 0, 0)).owing(&[]);
}

#[test]
fn bad_terms_are_refused_with_the_field_that_is_wrong() {
    type Change = fn(&mut Terms);
    let cases: [(&str, Change); 10] = [
        ("/sku", |terms| terms.sku = String::new()),
        ("/price", |terms| terms.price = eur(-1)),
        ("/quantity", |terms| terms.quantity = 0),
        ("/quantity", |terms| terms.quantity = QUANTITY_MAX + 1),
        ("/per_customer_limit", |terms| terms.per_customer_limit = 0),
        ("/per_address_limit", |terms| terms.per_address_limit = Some(0)),
        ("/claim_seconds", |terms| terms.claim_ms = 0),
        ("/grace_seconds", |terms| terms.grace_ms = DEADLINE_MS_MAX + SECOND_MS),
        ("/ends_at", |terms| terms.ends_at = terms.starts_at),
        ("/ends_at", |terms| (terms.starts_at, terms.ends_at) = (at(-2), at(-1))),
    ];
    for (wrong, change) in cases {
        let mut terms = terms(10, 1);
        change(&mut terms);
        let then = given::<FlashSale>([]).when(Command::Create { terms: Box::new(terms) });
        let Err(Rejection::Invalid { field, .. }) = &then.result else { panic!("{wrong}: {:?}", then.result) };
        assert_eq!(field, wrong);
    }
}

#[test]
fn it_starts_and_ends_by_itself_and_tells_those_who_are_to_come_a_little_before() {
    let sale = scheduled(terms(10, 1));
    assert_eq!(FlashSale::due(&sale.state), Some(at(START - SOON_MS)));
    let sale = sale.at(START - SOON_MS).when(Command::Elapse);
    let sale = sale.then(vec![Event::StartingSoon { starts_at: at(START) }], Reply::Noted).and();
    assert_eq!(FlashSale::due(&sale.state), Some(at(START)));
    let sale = sale.at(START - 1);
    sale.when(Command::Elapse).then_nothing_but(Reply::Noted);
    sale.when(claim(1, 1)).then_refused(Rejection::NotStarted { starts_at: at(START) });
    let sale = sale.at(START).when(Command::Elapse).then(vec![Event::Started], Reply::Noted).and();
    assert_eq!(FlashSale::due(&sale.state), Some(at(END)));
    sale.when(Command::Elapse);
    let sale = sale.at(END);
    sale.when(claim(1, 1)).then_refused(Rejection::Over);
    let sale = sale.when(Command::Elapse).then(vec![Event::Ended], Reply::Noted).owing(&["allot/2"]).and();
    assert_eq!(FlashSale::due(&sale.state), None);
    let sale = sale.when(heard(2, 0, 0)).owing(&[]);
    assert!(FlashSale::is_at_rest(&sale.state));
}

#[test]
fn a_paused_sale_grants_nothing_and_a_resumed_one_goes_on_with_the_line() {
    let sale = does(does(on(1, 1), "a", claim(1, 1)), "b", claim(2, 1)).at(START);
    let sale = sale.when(Command::Pause).then(vec![Event::Paused], Reply::Paused).and().at(START);
    sale.when(Command::Pause).then_nothing_but(Reply::Paused);
    sale.when(claim(3, 1)).then_refused(Rejection::Paused);
    let given_up = Command::GiveUp { customer: guest(1), claim: 0 };
    let sale = sale.when(given_up).then(vec![Event::ClaimReleased { claim: 0 }], Reply::GivenUp).and().at(START);
    let resumed = sale.when(Command::Resume);
    let resumed = resumed.then(vec![Event::Resumed, admitted(&[(0, 1, 1)], START)], Reply::Resumed).and().at(START);
    let paused = resumed.after([Command::Pause]).by("c");
    assert!(paused.when(claim(2, 1)).result.is_ok(), "what was offered before can be taken up");
}

// Buying --------------------------------------------------------------------------------------------------------------

#[test]
fn a_claim_is_granted_while_there_are_units_and_within_the_limit_of_a_customer() {
    let sale = does(on(5, 3), "a", claim(1, 2));
    assert_eq!((sale.state.book.free(), sale.state.book.held()), (3, 2));
    let sale = sale.at(START).by("b");
    sale.when(claim(1, 4)).then_refused(invalid("/quantity", "must be 1 to 3"));
    sale.when(claim(1, 0)).then_refused(invalid("/quantity", "must be 1 to 3"));
    sale.when(claim(1, 2)).then_refused(Rejection::OverLimit { limit: 3, left: 1 });
    let sale = does(does(sale, "c", claim(1, 1)), "d", claim(2, 1)).at(START + 1).by("e");
    sale.when(claim(3, 2)).then_refused(Rejection::Short { requested: 2, available: 1 });
    let then = sale.when(claim(3, 1));
    assert_eq!(then.decision().reply, super::super::Reply::Now(claimed(3, 1, START + 1 + CLAIM_MS)));
    assert_eq!(then.state.book.free(), 0);
}

#[test]
fn the_same_command_again_has_no_second_effect_whatever_became_of_the_first() {
    let sale = does(on(5, 3), "a", claim(1, 1)).by("a").at(START + 9);
    sale.when(claim(1, 1)).then_nothing_but(claimed(0, 1, START + CLAIM_MS));
    let sale = does(sale, "r", reserve(0, ORDER, 1, 1)).by("a").at(START + 9);
    sale.when(claim(1, 1)).then_nothing_but(claimed(0, 1, START + CLAIM_MS));
    let sale = does(sale, "x", release(0, ORDER, 1)).by("a").at(START + 9);
    sale.when(claim(1, 1)).then_refused(Rejection::ClaimOver);
    assert!(sale.by("b").when(claim(1, 1)).result.is_ok(), "another command is another claim");
}

#[test]
fn units_that_one_address_has_count_against_its_limit_in_line_too() {
    let mut terms = terms(2, 2);
    terms.per_address_limit = Some(2);
    let from = |customer, address| Command::Claim { customer: guest(customer), quantity: 1, address };
    let sale = does(does(active(terms), "a", from(1, 7)), "b", from(2, 8));
    let sale = does(sale, "c", from(3, 7)).at(START).by("d");
    sale.when(from(4, 7)).then_refused(Rejection::OverAddressLimit);
    assert!(sale.when(from(4, 8)).result.is_ok());
    let sale = does(sale, "e", Command::Leave { customer: guest(3) }).at(START).by("f");
    assert!(sale.when(from(4, 7)).result.is_ok(), "whoever left no longer counts");
}

#[test]
fn a_claim_that_is_not_paid_in_time_is_the_next_one_s_at_once() {
    let sale = does(does(does(on(2, 1), "a", claim(1, 1)), "b", claim(2, 1)), "c", claim(3, 1));
    let sale = does(sale, "d", claim(4, 1)).at(START);
    sale.clone().by("d").when(claim(4, 1)).then_nothing_but(queued(1, 1));
    let sale = does(sale, "r", reserve(1, ORDER, 2, 1));
    assert_eq!(FlashSale::due(&sale.state), Some(at(START + CLAIM_MS)));
    let late = START + CLAIM_MS;
    let sale = sale.at(late).when(Command::Elapse);
    let sale = sale.then(vec![Event::ClaimsExpired { claims: vec![0] }, admitted(&[(0, 2, 1)], late)], Reply::Noted).and();
    assert_eq!(
        (phase_of(&sale, 0), phase_of(&sale, 1), phase_of(&sale, 2)),
        (ClaimPhase::Expired, ClaimPhase::Paying, ClaimPhase::Offered)
    );
    // Whoever is offered it has a minute to take it up, and then the whole time to pay.
    let sale = sale.at(late + ADMISSION_MS - 1).by("e");
    sale.when(claim(3, 1)).then(
        vec![Event::Claimed {
            claim: 2,
            customer: guest(3),
            quantity: 1,
            until: at(late + ADMISSION_MS - 1 + CLAIM_MS),
            command: hash(&command_id("e")),
            address: 0,
            admits_from_us: None,
        }],
        claimed(2, 1, late + ADMISSION_MS - 1 + CLAIM_MS),
    );
    let sale = sale.at(late + ADMISSION_MS);
    sale.when(claim(3, 1)).then_refused(Rejection::ClaimOver);
    let next = late + ADMISSION_MS;
    let then = sale.when(Command::Elapse);
    then.then(vec![Event::ClaimsExpired { claims: vec![2] }, admitted(&[(1, 3, 1)], next)], Reply::Noted);
}

#[test]
fn whoever_is_offered_more_than_they_take_leaves_the_rest_to_the_next() {
    let sale = does(does(does(on(3, 3), "a", claim(1, 3)), "b", claim(2, 3)), "c", claim(3, 2)).at(START);
    let sale = does(sale, "g", Command::GiveUp { customer: guest(1), claim: 0 }).at(START).by("d");
    assert_eq!(phase_of(&sale, 1), ClaimPhase::Offered);
    let then = sale.when(claim(2, 1));
    assert!(matches!(events(&then), [Event::Claimed { claim: 1, quantity: 1, .. }, Event::Admitted { admissions, .. }]
        if admissions[..] == [Admission { ticket: 1, claim: 2, quantity: 2 }]));
    assert_eq!((then.state.book.free(), then.state.book.held()), (0, 3));
}

#[test]
fn whoever_wants_more_than_there_is_when_their_turn_comes_is_offered_what_there_is() {
    let sale = does(does(does(on(2, 2), "a", claim(1, 1)), "b", claim(2, 1)), "c", claim(3, 2)).at(START);
    let then = sale.when(Command::GiveUp { customer: guest(2), claim: 1 });
    assert_eq!(events(&then), [Event::ClaimReleased { claim: 1 }, admitted(&[(0, 2, 1)], START)]);
}

#[test]
fn units_that_come_back_with_nobody_in_line_are_there_for_all() {
    let sale = does(on(1, 1), "a", claim(1, 1)).at(START);
    let then = sale.when(Command::GiveUp { customer: guest(1), claim: 0 });
    assert_eq!(events(&then), [Event::ClaimReleased { claim: 0 }, Event::AvailableAgain { available: 1 }]);
    then.and().at(START).when(Command::GiveUp { customer: guest(1), claim: 0 }).then_nothing_but(Reply::GivenUp);
    sale.when(Command::GiveUp { customer: guest(2), claim: 0 }).then_refused(Rejection::ClaimOver);
}

#[test]
fn a_place_in_line_is_kept_for_a_while_for_whoever_is_gone_and_then_is_the_next_one_s() {
    let sale = does(does(does(on(1, 1), "a", claim(1, 1)), "b", claim(2, 1)), "c", claim(3, 1)).at(START);
    let (away, back) = (Command::Away { customer: guest(2) }, Command::Back { customer: guest(2) });
    let gone = sale.when(away.clone());
    let gone = gone.then(vec![Event::TicketAway { ticket: 0, until: at(START + GRACE_MS) }], Reply::Noted).and().at(START + 1);
    gone.when(away.clone()).then_nothing_but(Reply::Noted);
    let returned = gone.when(back.clone()).then(vec![Event::TicketBack { ticket: 0 }], Reply::Noted).and();
    returned.when(back).then_nothing_but(Reply::Noted);
    assert_eq!(FlashSale::due(&returned.state), Some(at(START + CLAIM_MS)));
    assert_eq!(FlashSale::due(&gone.state), Some(at(START + GRACE_MS)));
    let lapsed = gone.at(START + GRACE_MS).when(Command::Elapse);
    let lapsed = lapsed.then(vec![Event::TicketsLeft { tickets: vec![0] }], Reply::Noted).and().at(START + GRACE_MS);
    lapsed.clone().by("c").when(claim(3, 1)).then_nothing_but(queued(1, 0));
    lapsed.when(Command::Away { customer: guest(9) }).then_nothing_but(Reply::Noted);
}

#[test]
fn whoever_asks_for_all_places_hears_of_each_newcomer_and_each_offer_once() {
    let places = |sale: &Given<FlashSale>, tickets_from, claims_from| {
        let asked = sale.clone().at(START + 1).when(Command::Places { tickets_from, claims_from });
        assert!(events(&asked).is_empty());
        match asked.result.unwrap().reply {
            crate::domain::Reply::Now(Reply::Places(places)) => *places,
            other => panic!("{other:?}"),
        }
    };
    let sale =
        ["a", "b", "c", "d"].into_iter().zip(1..).fold(on(1, 1), |sale, (id, customer)| does(sale, id, claim(customer, 1)));
    let sale = sale.at(START).after([Command::Away { customer: guest(3) }]);
    let seen = places(&sale, 0, 0);
    assert_eq!(seen.newcomers, [(0, guest(2)), (1, guest(3)), (2, guest(4))]);
    assert_eq!((seen.offers.len(), seen.is_all, seen.is_closed, seen.tickets_from, seen.claims_from), (0, true, false, 3, 1));
    assert_eq!([0, 1, 2, 3].map(seen.ahead()), [Some(0), Some(1), Some(2), None]);
    assert_eq!([0, 1, 2].map(|ticket| seen.is_away(ticket)), [false, true, false]);
    assert_eq!(places(&sale, 3, 1).newcomers, []);
    let sale = does(sale.at(START).after([Command::GiveUp { customer: guest(1), claim: 0 }]), "e", claim(5, 1));
    let next = places(&sale, 3, 1);
    assert_eq!(next.newcomers, [(3, guest(5))]);
    let until = at(START + ADMISSION_MS);
    assert_eq!(next.offers, [Offer { claim: 1, customer: guest(2), quantity: 1, until }]);
    assert_eq!([0, 1, 2, 3].map(next.ahead()), [None, Some(0), Some(1), Some(2)]);
    assert_eq!(places(&sale, next.tickets_from, next.claims_from).offers, []);
    assert_eq!(through_json(&next), next);
    let over = sale.at(END).after([Command::Elapse]);
    assert!(places(&over, 0, 0).is_closed);
}

#[test]
fn an_operator_s_rate_lets_so_many_in_and_makes_the_others_wait() {
    let tuning = Tuning { admissions_per_s: Some(10), challenge_bits: 0 };
    let sale = on(100, 1).after([Command::Tune { tuning }]);
    // What a tenth of a second may catch up with, and the one that is due.
    let sale = does(does(sale.at(START), "a", claim(1, 1)), "b", claim(2, 1));
    let sale = does(does(sale.at(START), "c", claim(3, 1)), "d", claim(4, 1)).at(START);
    assert_eq!((sale.state.book.claims.len(), sale.state.book.line.waiting()), (2, 2));
    let due = FlashSale::due(&sale.state).unwrap();
    assert!((at(START + 90)..=at(START + 110)).contains(&due), "{due}");
    let sale = sale.at(START + 101).after([Command::Elapse]);
    assert_eq!((sale.state.book.offered, sale.state.book.line.waiting()), (1, 1));
    let sale = sale.at(START + 202).after([Command::Elapse]);
    assert_eq!((sale.state.book.offered, sale.state.book.line.waiting()), (2, 0));
    let Reply::Queued { wait_ms, .. } = (match does(sale, "e", claim(5, 1)).by("e").when(claim(5, 1)).result.unwrap().reply {
        crate::domain::Reply::Now(reply) => reply,
        crate::domain::Reply::Later => panic!("a claim is answered at once"),
    }) else {
        panic!("there is a rate")
    };
    assert_eq!(wait_ms, Some(101), "as far apart as they were admitted lately");
}

#[test]
fn a_draft_is_nobody_s_to_see_and_neither_is_one_that_is_not_there() {
    given::<FlashSale>([]).when(claim(1, 1)).then_refused(Rejection::Unknown);
    draft(terms(1, 1)).when(claim(1, 1)).then_refused(Rejection::Unknown);
    draft(terms(1, 1)).when(Command::Remind { customer: guest(1) }).then_refused(Rejection::Unknown);
}

#[test]
fn whoever_asks_to_be_reminded_is_once() {
    let remind = Command::Remind { customer: guest(1) };
    let sale = scheduled(terms(1, 1));
    let sale = sale.when(remind.clone());
    let sale = sale.then(vec![Event::ReminderRequested { customer: guest(1) }], Reply::Reminded).and();
    sale.when(remind).then_nothing_but(Reply::Reminded);
}

// Paying --------------------------------------------------------------------------------------------------------------

#[test]
fn an_order_takes_its_customer_s_claim_up_and_no_other() {
    let sale = does(on(2, 2), "a", claim(1, 1)).at(START);
    sale.when(reserve(0, ORDER, 2, 1)).then_refused(Rejection::ClaimOver);
    sale.when(reserve(9, ORDER, 1, 1)).then_refused(Rejection::ClaimOver);
    sale.when(reserve(0, ORDER, 1, 2)).then_refused(invalid("/claim_id", "was for another quantity or price"));
    sale.at(START + CLAIM_MS).when(reserve(0, ORDER, 1, 1)).then_refused(Rejection::ClaimOver);
    let sale = does(on(2, 2), "a", claim(1, 1)).at(START);
    let started = Event::CheckoutStarted { claim: 0, order: ORDER.to_owned() };
    let sale = sale.when(reserve(0, ORDER, 1, 1)).then(vec![started], Reply::Reserved).and().at(START);
    sale.when(reserve(0, ORDER, 1, 1)).then_nothing_but(Reply::Reserved);
    sale.when(reserve(0, OTHER_ORDER, 1, 1)).then_refused(Rejection::ClaimOver);
    sale.when(release(0, OTHER_ORDER, 1)).then_nothing_but(Reply::Released);
    sale.when(commit(0, OTHER_ORDER)).then_refused(Rejection::ClaimOver);
    sale.when(Command::GiveUp { customer: guest(1), claim: 0 }).then_refused(Rejection::InPayment);
    let sale = sale.at(START + CLAIM_MS);
    sale.when(Command::Elapse).then_nothing_but(Reply::Noted);
}

#[test]
fn what_is_paid_is_sold_and_the_item_hears_of_it() {
    let sale = does(does(on(1, 1), "a", claim(1, 1)), "b", reserve(0, ORDER, 1, 1)).at(START);
    let sold = sale.when(commit(0, ORDER)).then(vec![Event::Sold { claim: 0 }, Event::SoldOut], Reply::Committed);
    let sale = sold.owing(&["allot/2"]).and().at(START);
    sale.when(commit(0, ORDER)).then_nothing_but(Reply::Committed);
    sale.when(release(0, ORDER, 1)).then_nothing_but(Reply::Released);
    sale.clone().by("z").when(claim(2, 1)).then_refused(Rejection::SoldOut);
    let sale = sale.when(heard(2, 1, 1)).owing(&[]).and().at(START);
    // Refunded while the sale is on: somebody else may have it.
    let back = vec![Event::Returned { claim: 0 }, Event::AvailableAgain { available: 1 }];
    let sale = sale.when(restock(0, ORDER)).then(back, Reply::Restocked).owing(&["allot/3"]).and().at(START);
    assert_eq!(sale.state.book.status, Status::Active);
    sale.when(restock(0, ORDER)).then_nothing_but(Reply::Restocked);
    assert!(sale.by("z").when(claim(2, 1)).result.is_ok());
}

#[test]
fn a_declined_order_hands_its_units_to_the_next_even_when_its_release_comes_first() {
    let sale = does(does(on(1, 1), "a", claim(1, 1)), "b", claim(2, 1)).at(START);
    let events = || vec![Event::ClaimReleased { claim: 0 }, admitted(&[(0, 1, 1)], START)];
    let first = sale.when(release(0, ORDER, 1)).then(events(), Reply::Released).and().at(START);
    first.when(reserve(0, ORDER, 1, 1)).then_refused(Rejection::ClaimOver);
    sale.when(release(0, ORDER, 2)).then_nothing_but(Reply::Released);
    let paying = does(sale, "r", reserve(0, ORDER, 1, 1)).at(START);
    paying.when(release(0, ORDER, 1)).then(events(), Reply::Released);
}

#[test]
fn what_is_being_paid_when_the_sale_ends_may_still_be_and_the_rest_goes_back() {
    let sale = does(does(on(10, 2), "a", claim(1, 2)), "b", claim(2, 1));
    let sale = does(does(sale, "c", claim(3, 1)), "r", reserve(0, ORDER, 1, 2));
    let sale = does(sale, "s", reserve(1, OTHER_ORDER, 2, 1)).at(END);
    let sale = sale.when(Command::Elapse).then(vec![Event::Ended], Reply::Noted).owing(&["allot/2"]).and().at(END);
    assert_eq!(sale.state.book.word(), Some(allotted(2, 3, 0)));
    assert_eq!(phase_of(&sale, 2), ClaimPhase::Expired);
    let sale = sale.after([commit(0, ORDER), release(1, OTHER_ORDER, 2)]);
    assert_eq!(sale.state.book.word(), Some(allotted(2, 2, 2)));
    let sale = sale.after([heard(2, 3, 0)]);
    assert_eq!(sale.state.book.word(), Some(allotted(3, 2, 2)));
    let sale = sale.after([heard(3, 2, 2)]);
    assert!(FlashSale::is_at_rest(&sale.state));
    let sale = sale.after([restock(0, ORDER)]);
    assert_eq!(sale.state.book.word(), Some(allotted(4, 0, 0)));
}

#[test]
fn a_claim_that_was_taken_up_does_not_hide_offers_behind_it_that_run_out() {
    let sale = does(does(on(2, 1), "a", claim(1, 1)), "b", claim(2, 1));
    let sale = does(does(sale, "c", claim(3, 1)), "d", claim(4, 1)).at(START);
    let sale = does(sale, "e", Command::GiveUp { customer: guest(1), claim: 0 });
    let sale = does(sale, "f", Command::GiveUp { customer: guest(2), claim: 1 }).at(START);
    assert_eq!((phase_of(&sale, 2), phase_of(&sale, 3)), (ClaimPhase::Offered, ClaimPhase::Offered));
    // The second takes up first, then a third waits: the queue has one in the middle that is no offer any more.
    let sale = does(sale, "g", claim(4, 1)).at(START + ADMISSION_MS);
    let then = sale.when(Command::Elapse);
    assert_eq!(events(&then), [Event::ClaimsExpired { claims: vec![2] }, Event::AvailableAgain { available: 1 }]);
}

#[test]
fn more_than_a_step_s_worth_runs_out_in_several_steps_that_follow_at_once() {
    let count = STEP_MAX as u32 + 10;
    let mut sale = on(count, 1);
    for customer in 0..count {
        sale = does(sale, &format!("c{customer}"), claim(customer.into(), 1));
    }
    let sale = sale.at(START + CLAIM_MS).after([Command::Elapse]);
    assert_eq!(sale.state.book.held(), 10);
    assert!(FlashSale::due(&sale.state).unwrap() <= at(START + CLAIM_MS));
    assert_eq!(sale.after([Command::Elapse]).state.book.held(), 0);
}

// Whatever happens ------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Step {
    Claim { customer: u64, quantity: u32 },
    GiveUp { customer: u64, claim: u32 },
    Leave { customer: u64 },
    Away { customer: u64 },
    Back { customer: u64 },
    Reserve { claim: u32, order: u8 },
    Release { claim: u32, order: u8 },
    Commit { claim: u32, order: u8 },
    Restock { claim: u32, order: u8 },
    Pass { millis: i64 },
    PauseOrResume,
    Rate(Option<u32>),
}

fn steps() -> impl Strategy<Value = Step> {
    let (customer, claim, order) = (0..8u64, 0..12u32, 0..6u8);
    prop_oneof![
        8 => (customer.clone(), 1..4u32).prop_map(|(customer, quantity)| Step::Claim { customer, quantity }),
        2 => (customer.clone(), claim.clone()).prop_map(|(customer, claim)| Step::GiveUp { customer, claim }),
        1 => customer.clone().prop_map(|customer| Step::Leave { customer }),
        1 => customer.clone().prop_map(|customer| Step::Away { customer }),
        1 => customer.prop_map(|customer| Step::Back { customer }),
        5 => (claim.clone(), order.clone()).prop_map(|(claim, order)| Step::Reserve { claim, order }),
        2 => (claim.clone(), order.clone()).prop_map(|(claim, order)| Step::Release { claim, order }),
        4 => (claim.clone(), order.clone()).prop_map(|(claim, order)| Step::Commit { claim, order }),
        1 => (claim, order).prop_map(|(claim, order)| Step::Restock { claim, order }),
        4 => prop_oneof![1..1_000i64, 1_000..CLAIM_MS].prop_map(|millis| Step::Pass { millis }),
        1 => Just(Step::PauseOrResume),
        1 => prop_oneof![Just(None), (1..5u32).prop_map(Some)].prop_map(Step::Rate),
    ]
}

// At the door ---------------------------------------------------------------------------------------------------------

fn told_at_the_door(sale: &Given<FlashSale>, customer: u64) -> Option<Rejection> {
    FlashSale::notice(&sale.state)?.refuses(&claim(customer, 1))
}

#[test]
fn a_stranger_is_told_at_the_door_that_there_is_nothing_and_whoever_has_or_had_something_is_let_in() {
    let starts_at = at(START);
    assert_eq!(told_at_the_door(&draft(terms(1, 1)), 1), None);
    assert_eq!(told_at_the_door(&scheduled(terms(1, 1)), 1), Some(Rejection::NotStarted { starts_at }));
    let sale = on(1, 1);
    assert_eq!(told_at_the_door(&sale, 1), None);
    let sale = does(does(sale, "a", claim(1, 1)), "b", claim(2, 1));
    assert_eq!(told_at_the_door(&sale, 3), None, "there is room in the line");
    let paused = does(sale, "c", Command::Pause);
    assert_eq!([1, 2, 3].map(|customer| told_at_the_door(&paused, customer)), [None, None, Some(Rejection::Paused)]);
    let sale = does(does(paused, "d", Command::Resume), "e", Command::Leave { customer: guest(2) });
    let sale = sale.after([reserve(0, ORDER, 1, 1), commit(0, ORDER)]);
    assert_eq!(
        [1, 2, 3].map(|customer| told_at_the_door(&sale, customer)),
        [None, Some(Rejection::SoldOut), Some(Rejection::SoldOut)]
    );
    let notice = FlashSale::notice(&sale.state).unwrap();
    for other in
        [claim(3, 0), claim(3, 2), Command::Look { customer: None }, Command::Remind { customer: guest(3) }, commit(0, ORDER)]
    {
        assert_eq!(notice.refuses(&other), None, "{other:?}");
    }
    let ended = sale.at(END).after([Command::Elapse]);
    assert_eq!([1, 3].map(|customer| told_at_the_door(&ended, customer)), [None, Some(Rejection::Over)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn whatever_is_asked_the_units_add_up_limits_hold_the_line_keeps_its_order_and_all_of_it_comes_to_an_end(
        asked in prop::collection::vec(steps(), 1..60), quantity in 1..6u32, limit in 1..3u32,
    ) {
        let mut sale = on(quantity, limit);
        let (mut now, mut admitted) = (START, Vec::new());
        let order = |order: u8| format!("ord_01M7XTJD39HAVHP9G020ZF53A{}", (b'A' + order) as char);
        for (position, step) in asked.into_iter().enumerate() {
            let holder = |sale: &Given<FlashSale>, claim| sale.state.book.claims.get(claim).map_or(guest(0), |claim| claim.customer);
            let command = match step {
                Step::Claim { customer, quantity } => claim(customer, quantity),
                Step::GiveUp { customer, claim } => Command::GiveUp { customer: guest(customer), claim },
                Step::Leave { customer } => Command::Leave { customer: guest(customer) },
                Step::Away { customer } => Command::Away { customer: guest(customer) },
                Step::Back { customer } => Command::Back { customer: guest(customer) },
                Step::Reserve { claim, order: by } => {
                    let quantity = sale.state.book.claims.get(claim).map_or(1, |claim| u32::from(claim.quantity));
                    Command::Reserve { claim, order: order(by), customer: holder(&sale, claim), quantity, unit_price: eur(900) }
                }
                Step::Release { claim, order: by } => Command::Release { claim, order: order(by), customer: holder(&sale, claim) },
                Step::Commit { claim, order: by } => commit(claim, &order(by)),
                Step::Restock { claim, order: by } => restock(claim, &order(by)),
                Step::Pass { millis } => {
                    now += millis;
                    Command::Elapse
                }
                Step::PauseOrResume if sale.state.book.status == Status::Paused => Command::Resume,
                Step::PauseOrResume => Command::Pause,
                Step::Rate(admissions_per_s) => Command::Tune { tuning: Tuning { admissions_per_s, challenge_bits: 0 } },
            };
            sale = sale.at(now).by(&format!("c{position}"));
            // As the runtime does: what time has brought comes first.
            for _ in 0..100 {
                if FlashSale::due(&sale.state).is_none_or(|due| due > at(now)) {
                    break;
                }
                let before = sale.state.clone();
                sale = sale.after([Command::Elapse]).at(now).by(&format!("c{position}"));
                prop_assert_ne!(&before, &sale.state, "what is due changes something");
            }
            let refused_at_the_door = FlashSale::notice(&sale.state).and_then(|notice| notice.refuses(&command));
            let then = sale.when(command);
            if let Some(refusal) = refused_at_the_door {
                prop_assert_eq!(then.result.as_ref().err(), Some(&refusal));
            }
            if let Ok(decision) = &then.result {
                for event in &decision.events {
                    if let Event::Admitted { admissions, .. } = event {
                        admitted.extend(admissions.iter().map(|admission| admission.ticket));
                    }
                }
            }
            sale = then.and();
            let book = &sale.state.book;
            prop_assert_eq!(book.sold + book.held() + book.free(), quantity);
            let mut units = BTreeMap::new();
            for (_, claim) in book.claims.iter().filter(|(_, claim)| claim.phase.binds()) {
                *units.entry(claim.customer).or_insert(0) += u32::from(claim.quantity);
            }
            prop_assert!(units.values().all(|units| *units <= limit));
            prop_assert_eq!(units.values().sum::<u32>(), book.sold + book.held());
            prop_assert!(admitted.is_sorted_by(|one, next| one < next), "in the order of arrival: {:?}", admitted);
            let is_on = book.status == Status::Active && book.tuning.admissions_per_s.is_none();
            prop_assert!(!is_on || book.free() == 0 || book.line.waiting() == 0, "nobody waits for what is free");
        }
        let picture = FlashSale::picture(&sale.state).map(|picture| serde_json::to_string(&picture).unwrap());
        prop_assert_eq!(picture, Some(serde_json::to_string(&sale.state).unwrap()));
        let ended = sale.at(END).after([Command::Elapse]);
        let book = &ended.state.book;
        prop_assert!(book.is_closed() && book.offered + book.claimed == 0 && book.line.waiting() == 0);
        let word = book.word();
        prop_assert!(word.is_none_or(|word| word.quantity == book.sold + book.paying && word.sold == book.sold));
    }
}
