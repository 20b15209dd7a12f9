use super::*;
use crate::domain::flash_sale::{Offer, OwnTicket};

const SALE: &str = "fs_01M7XTJ72XFBZWPK91BJAAFXTS";

fn guest(number: u8) -> Customer {
    Customer::of(&Owner::Guest { token_sha256: format!("{number:02x}").repeat(32) }).unwrap()
}

fn line() -> Line {
    Line { sale: SALE.into(), topic: format!("flash_sale:{SALE}"), ..Line::default() }
}

fn in_line(ticket: TicketNumber, ahead: u32, tickets_from: TicketNumber) -> Own {
    let ticket = Some(OwnTicket { ticket, quantity: 1, ahead, wait_ms: Some(1_500), away_until: None });
    Own { ticket, tickets_from, claims_from: 1, ..Own::default() }
}

fn nothing(tickets_from: TicketNumber) -> Own {
    Own { tickets_from, claims_from: 1, ..Own::default() }
}

/// The line with these tickets in it, up to this number.
fn places(waiting: &[TicketNumber], tickets_from: TicketNumber) -> Places {
    let mut places = Places { tickets_from, claims_from: 1, pace_us: Some(2_000_000), is_all: true, ..Places::default() };
    waiting.iter().for_each(|ticket| places.waiting.set(*ticket));
    places
}

fn told(own: &mut watch::Receiver<Option<Utf8Bytes>>) -> String {
    assert!(own.has_changed().unwrap(), "nothing was told");
    let text = own.borrow_and_update().clone().unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    match value["state"].as_str().unwrap() {
        "waiting" => format!("{} of {}", value["place"], value["estimated_wait_seconds"]),
        state => state.to_owned(),
    }
}

fn is_silent(own: &watch::Receiver<Option<Utf8Bytes>>) -> bool {
    !own.has_changed().unwrap()
}

#[tokio::test]
async fn a_place_is_told_when_it_changes_and_not_when_only_the_estimate_does() {
    let mut line = line();
    let (_, mut own) = line.join(Some((guest(1), Status::Active, in_line(4, 2, 9))), Arc::default());
    assert_eq!(told(&mut own), "3 of 2");
    line.note(&places(&[2, 3, 4, 5], 9));
    assert!(is_silent(&own));
    line.note(&places(&[3, 4, 5], 9));
    assert_eq!(told(&mut own), "2 of 4");
    // Another connection of the same customer hears at once what this one knows.
    let (_, mut another) = line.join(Some((guest(1), Status::Active, in_line(4, 1, 9))), Arc::default());
    assert_eq!(told(&mut another), "2 of 4");
    assert!(is_silent(&own));
    assert_eq!(line.to_ask_from(), Some((9, 1)));
    line.note(&Places { is_closed: true, ..places(&[], 9) });
    assert_eq!(line.to_ask_from(), None, "a sale that is over may leave memory");
    assert_eq!((told(&mut own), told(&mut another)), ("over".to_owned(), "over".to_owned()));
}

#[tokio::test]
async fn whoever_comes_to_the_line_while_they_watch_is_found_and_so_is_whose_turn_comes_before_they_were_seen_in_it() {
    let mut line = line();
    let (_, mut first) = line.join(Some((guest(1), Status::Active, nothing(3))), Arc::default());
    let (_, mut second) = line.join(Some((guest(2), Status::Active, nothing(3))), Arc::default());
    assert_eq!(line.from, Some((3, 1)));
    let offer = Offer { claim: 1, customer: guest(2), quantity: 1, until: Timestamp::from_millis(0) };
    line.note(&Places { newcomers: vec![(3, guest(1)), (4, guest(9))], offers: vec![offer], ..places(&[3, 4], 5) });
    assert_eq!((told(&mut first), told(&mut second)), ("1 of 2".to_owned(), "admitted".to_owned()));
    assert_eq!(line.from, Some((5, 1)));
}

#[tokio::test]
async fn a_ticket_that_is_gone_without_an_offer_is_looked_for_and_one_that_is_newer_than_the_line_is_not() {
    let mut line = line();
    let (_, mut gone) = line.join(Some((guest(1), Status::Active, in_line(0, 0, 2))), Arc::default());
    let (_, mut newer) = line.join(Some((guest(2), Status::Active, in_line(7, 1, 8))), Arc::default());
    told(&mut gone);
    told(&mut newer);
    line.note(&places(&[], 2));
    assert_eq!(line.take_unknown(), [guest(1)]);
    assert!(line.take_unknown().is_empty() && is_silent(&newer));
    line.note_own(guest(1), Some((Status::Active, nothing(2))));
    assert_eq!(told(&mut gone), "left");
}

#[tokio::test]
async fn who_was_looked_at_before_the_line_was_is_looked_at_again() {
    let mut line = line();
    let _first = line.join(Some((guest(1), Status::Active, nothing(5))), Arc::default());
    let _late = line.join(Some((guest(2), Status::Active, nothing(4))), Arc::default());
    assert_eq!(line.take_unknown(), [guest(2)]);
    line.note_own(guest(2), None);
    assert_eq!(line.take_unknown(), [guest(2)], "as long as nothing is said");
}

#[tokio::test(start_paused = true)]
async fn only_the_last_connection_of_somebody_in_line_is_missed_and_only_after_a_moment() {
    let mut line = line();
    let (first, _own) = line.join(Some((guest(1), Status::Active, in_line(0, 0, 2))), Arc::default());
    let (second, _own) = line.join(Some((guest(1), Status::Active, in_line(0, 0, 2))), Arc::default());
    let (stranger, _own) = line.join(Some((guest(2), Status::Active, nothing(2))), Arc::default());
    let (nobody, _own) = line.join(None, Arc::default());
    line.leave(first);
    line.leave(stranger);
    line.leave(nobody);
    tokio::time::advance(GONE_AFTER).await;
    assert!(line.take_due().is_empty());
    line.leave(second);
    assert!(line.take_due().is_empty() && !line.is_done());
    // Back before it was told, and gone again.
    let (third, _own) = line.join(Some((guest(1), Status::Active, in_line(0, 0, 2))), Arc::default());
    tokio::time::advance(GONE_AFTER).await;
    assert!(line.take_due().is_empty());
    line.leave(third);
    tokio::time::advance(GONE_AFTER).await;
    let [(customer, presence)] = line.take_due()[..] else { panic!("one is gone") };
    assert_eq!((customer, presence.is_here), (guest(1), false));
    assert!(line.is_done());
    line.tell_again(customer, presence);
    assert!(!line.is_done() && line.take_due().is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    let [(customer, presence)] = line.take_due()[..] else { panic!("it is told again") };
    // By now they are here: that they were gone is told no more.
    let (_, _own) = line.join(Some((guest(1), Status::Active, in_line(0, 0, 2))), Arc::default());
    line.tell_again(customer, presence);
    assert!(line.take_due().is_empty());
    // The sale takes them to be gone, which they are not.
    let mut seen = places(&[0], 2);
    seen.away.set(0);
    line.note(&seen);
    let [(customer, presence)] = line.take_due()[..] else { panic!("they are here") };
    assert_eq!((customer, presence.is_here), (guest(1), true));
}

#[test]
fn a_sale_is_asked_once_at_a_time_in_the_order_of_what_was_written_and_none_is_forgotten() {
    let due = Due::default();
    let [a, b, c] = ["a", "b", "c"].map(Board::new);
    let asked = |most| due.take(most).iter().map(|board| board.sale.clone()).collect::<Vec<_>>();
    [&a, &b, &a, &c].into_iter().for_each(|board| due.add(board));
    assert_eq!(asked(2), ["a", "b"]);
    // Written to while it is asked, and before that is answered.
    [&a, &a, &b].into_iter().for_each(|board| due.add(board));
    assert_eq!(asked(9), ["c"]);
    assert!(asked(9).is_empty());
    b.is_asked.store(false, Ordering::Release);
    assert_eq!(asked(9), ["b"]);
    a.is_asked.store(false, Ordering::Release);
    assert_eq!((asked(0), asked(9)), (vec![], vec!["a".to_owned()]));
    assert!(asked(9).is_empty());
}
