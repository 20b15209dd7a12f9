//! A small run that is right, and each way of doctoring it that a check must find.

use serde_json::json;

use super::*;
use crate::facts::{Cart, Item, Record};
use crate::history::{Heard, Line, Seeks};

const MS: u64 = 1_000;

fn ok(etag: u64, answer: Value) -> Outcome {
    Outcome::Ok { status: 200, etag: Some(etag), position: None, replayed: false, answer }
}

fn unknown() -> Outcome {
    Outcome::Unknown { why: "the connection broke".into() }
}

fn refused(status: u16) -> Outcome {
    Outcome::Refused { status, replayed: false, problem: json!({ "type": "short" }) }
}

fn attempt(wish: u64, from_ms: u64, method: &str, path: &str, body: Value, outcome: Outcome) -> Line {
    Line::Asked(Asked {
        client: "ada".into(),
        wish,
        asked_us: from_ms * MS,
        answered_us: (from_ms + 5) * MS,
        address: "http://127.0.0.1:1".into(),
        method: method.into(),
        path: path.into(),
        key: (method == "POST").then(|| format!("key-{wish}")),
        body,
        seeks: None,
        outcome,
    })
}

/// A page of the list of orders, read for the first order.
fn listed(order: Value, next_cursor: Value) -> Line {
    let page = ok(0, json!({ "items": [order], "next_cursor": next_cursor }));
    let mut line = attempt(40, 200, "GET", "/api/orders?limit=50", Value::Null, page);
    if let Line::Asked(asked) = &mut line {
        asked.seeks = Some(Seeks { order: "ord_1".into(), status: "paid".into(), position: 12 });
    }
    line
}

fn heard(topic: &str, records: &[Record]) -> Vec<Line> {
    let line = |record: &Record| {
        let (seq, event_type) = (record.version, record.event_type.clone());
        Line::Heard(Heard { client: "eve".into(), topic: topic.into(), at_us: seq * MS, seq, event_type })
    };
    records.iter().map(line).collect()
}

fn records(events: Vec<(&str, Value)>) -> Vec<Record> {
    let record = |(version, (event_type, data)): (u64, (&str, Value))| Record { version, event_type: event_type.into(), data };
    (1..).zip(events).map(record).collect()
}

fn cart(status: &str, quantity: u64) -> Value {
    json!({ "id": "cart_1", "status": status, "lines": [{ "sku": "A", "quantity": quantity }] })
}

fn order(id: &str, status: &str) -> Value {
    let cart = (id == "ord_1").then_some("cart_1");
    let lines = [json!({ "sku": "A", "quantity": 2 })];
    json!({ "id": id, "status": status, "lines": lines, "total": { "amount": 14, "currency": "EUR" }, "cart_id": cart })
}

fn item(on_hand: u64, held: u64) -> Value {
    json!({ "sku": "A", "on_hand": on_hand, "reserved": 0, "held": held, "available": on_hand - held })
}

fn lines() -> Vec<Line> {
    let order_history = records(vec![("order.created", json!({})), ("order.paid", json!({}))]);
    let mut lines = vec![
        attempt(
            0,
            0,
            "POST",
            "/api/carts",
            json!({}),
            ok(1, json!({ "id": "cart_1", "status": "open", "lines": [], "token": "t" })),
        ),
        attempt(1, 10, "POST", "/api/carts/cart_1/items", json!({ "sku": "A", "quantity": 2 }), unknown()),
        attempt(1, 20, "POST", "/api/carts/cart_1/items", json!({ "sku": "A", "quantity": 2 }), ok(4, cart("open", 2))),
        attempt(2, 30, "POST", "/api/carts/cart_1/checkout", json!({}), ok(2, order("ord_1", "paid"))),
        attempt(3, 40, "POST", "/api/inventory/A/adjustments", json!({ "delta": 3, "reason": "r" }), ok(6, item(11, 0))),
        attempt(4, 50, "POST", "/api/inventory/A/adjustments", json!({ "delta": -2, "reason": "s" }), unknown()),
        attempt(5, 60, "GET", "/api/inventory/A", Value::Null, ok(7, item(9, 0))),
        attempt(6, 70, "POST", "/api/orders", json!({}), ok(2, order("ord_2", "paid"))),
        attempt(7, 80, "POST", "/api/orders/ord_2/cancel", json!({}), ok(5, order("ord_2", "cancelled"))),
        attempt(
            8,
            90,
            "POST",
            "/api/carts",
            json!({}),
            ok(1, json!({ "id": "cart_2", "status": "open", "lines": [], "token": "t" })),
        ),
        attempt(9, 100, "POST", "/api/carts/cart_2/items", json!({ "sku": "A", "quantity": 1 }), {
            let mut shown = cart("open", 1);
            shown["id"] = json!("cart_2");
            ok(4, shown)
        }),
        attempt(10, 110, "POST", "/api/carts/cart_2/items", json!({ "sku": "A", "quantity": 99 }), refused(409)),
        attempt(10, 120, "POST", "/api/carts/cart_2/items", json!({ "sku": "A", "quantity": 99 }), refused(409)),
    ];
    lines.push(listed(order("ord_2", "paid"), json!("00ff")));
    lines.push(listed(order("ord_1", "paid"), Value::Null));
    lines.extend(heard("order:ord_1", &order_history));
    lines
}

fn facts() -> Facts {
    let total = json!({ "amount": { "amount": 14, "currency": "EUR" } });
    let sold = |order: &str| ("stock.decreased", json!({ "order": order, "quantity": 2, "reason": "sold" }));
    let mut facts = Facts { set_aside: json!([]), ..Facts::default() };
    facts.orders.insert(
        "ord_1".into(),
        Order {
            shown: order("ord_1", "paid"),
            is_settled: true,
            history: records(vec![("order.created", json!({})), ("order.paid", json!({}))]),
            payment: records(vec![("payment.created", json!({})), ("payment.success", total.clone())]),
        },
    );
    facts.orders.insert(
        "ord_2".into(),
        Order {
            shown: order("ord_2", "refunded"),
            is_settled: true,
            history: records(vec![("order.paid", json!({})), ("order.cancelled", json!({})), ("order.refunded", json!({}))]),
            payment: records(vec![("payment.success", total.clone()), ("payment.refunded", total)]),
        },
    );
    facts.listed = [("ord_1", "paid"), ("ord_2", "refunded")].map(|(id, status)| (id.into(), status.into())).into();
    facts.carts.insert("cart_1".into(), Cart { shown: cart("checked_out", 2), is_settled: true, history: Vec::new() });
    facts.carts.insert("cart_2".into(), Cart { shown: cart("open", 1), is_settled: true, history: Vec::new() });
    let history = records(vec![
        sold("ord_1"),
        ("stock.increased", json!({ "order": null, "quantity": 3, "reason": "r" })),
        ("stock.decreased", json!({ "order": null, "quantity": 2, "reason": "s" })),
        sold("ord_2"),
        ("stock.increased", json!({ "order": "ord_2", "quantity": 2, "reason": "restocked" })),
    ]);
    facts.items.insert("A".into(), Item { shown: item(9, 1), history });
    facts
}

fn run(lines: Vec<Line>, facts: Facts) -> Run {
    Run { history: History::of(lines), facts, given: BTreeMap::from([("A".to_owned(), 10)]), holds_expire: false }
}

#[test]
fn a_run_that_is_right_has_no_findings() {
    let judgement = judge(&run(lines(), facts()));
    assert_eq!(judgement.findings, Vec::<String>::new());
    assert_eq!((judgement.undecided(), judgement.stock.len()), (0, 1));
    assert_eq!(judgement.stock[0].calls, 10);
}

/// The wish's last attempt, to be doctored.
fn last(lines: &mut [Line], number: u64) -> &mut Asked {
    let found = lines.iter_mut().rev().find_map(|line| match line {
        Line::Asked(asked) if asked.wish == number => Some(asked),
        _ => None,
    });
    found.unwrap()
}

fn outcome(lines: &mut [Line], number: u64, outcome: Outcome) {
    last(lines, number).outcome = outcome;
}

fn order_of<'a>(facts: &'a mut Facts, id: &str) -> &'a mut Order {
    facts.orders.get_mut(id).unwrap()
}

fn item_of(facts: &mut Facts) -> &mut Item {
    facts.items.get_mut("A").unwrap()
}

#[test]
fn each_promise_that_is_broken_is_found_by_its_own_check() {
    type Doctor = fn(&mut Vec<Line>, &mut Facts);
    let table: Vec<(&str, &str, Doctor)> = vec![
        ("every request is answered", "never an answer", |lines, _| outcome(lines, 1, unknown())),
        ("nothing is refused", "a cart that is lost", |lines, _| outcome(lines, 2, refused(404))),
        ("nothing is refused", "a cart that is there and not found", |lines, _| {
            lines.push(attempt(30, 200, "GET", "/api/carts/cart_2", Value::Null, refused(404)));
        }),
        ("nothing is refused", "a token that is not known any more", |lines, _| outcome(lines, 5, refused(401))),
        ("nothing is refused", "a paid order that cannot be cancelled", |lines, _| outcome(lines, 7, refused(409))),
        ("every acknowledged write", "an order is lost", |_, facts| drop(facts.orders.remove("ord_1"))),
        ("every acknowledged write", "an order is back where it was", |_, facts| {
            order_of(facts, "ord_1").shown["status"] = json!("payment_failed")
        }),
        ("every acknowledged write", "a cancellation is lost", |_, facts| {
            order_of(facts, "ord_2").shown["status"] = json!("paid")
        }),
        ("every acknowledged write", "a line is lost", |_, facts| {
            facts.carts.get_mut("cart_2").unwrap().shown["lines"] = json!([])
        }),
        ("every acknowledged write", "a cart is lost", |_, facts| drop(facts.carts.remove("cart_2"))),
        ("every acknowledged write", "a deleted cart is there", |lines, _| {
            lines.push(attempt(20, 200, "DELETE", "/api/carts/cart_2", Value::Null, ok(9, Value::Null)));
        }),
        ("an adjustment counts once", "it is lost", |_, facts| drop(item_of(facts).history.remove(1))),
        ("an adjustment counts once", "it counts twice", |_, facts| {
            let again = item_of(facts).history[1].clone();
            item_of(facts).history.push(again);
        }),
        ("an adjustment counts once", "one of unknown outcome counts twice", |_, facts| {
            let again = item_of(facts).history[2].clone();
            item_of(facts).history.push(again);
        }),
        ("an adjustment counts once", "it was refused", |lines, _| outcome(lines, 3, refused(409))),
        ("an adjustment counts once", "nobody asked for it", |_, facts| item_of(facts).history[1].data["reason"] = json!("x")),
        ("given = sold", "a unit is missing", |_, facts| item_of(facts).shown = item(8, 1)),
        ("given = sold", "a unit is sold twice", |_, facts| item_of(facts).shown = item(10, 1)),
        ("given = sold", "a hold stays behind", |_, facts| item_of(facts).shown = item(9, 2)),
        ("given = sold", "a reservation stays behind", |_, facts| item_of(facts).shown["reserved"] = json!(1)),
        ("given = sold", "an order takes its units twice", |_, facts| {
            let again = item_of(facts).history[0].clone();
            item_of(facts).history.push(again);
        }),
        ("given = sold", "units of an order that does not want them", |_, facts| {
            item_of(facts).history[0].data["order"] = json!("ord_9")
        }),
        ("given = sold", "a refunded order's units do not come back", |_, facts| drop(item_of(facts).history.remove(4))),
        ("every capture", "money is taken twice", |_, facts| {
            let again = order_of(facts, "ord_1").payment[1].clone();
            order_of(facts, "ord_1").payment.push(again);
        }),
        ("every capture", "another sum is taken", |_, facts| {
            order_of(facts, "ord_1").payment[1].data["amount"]["amount"] = json!(15)
        }),
        ("every capture", "nothing is taken", |_, facts| order_of(facts, "ord_1").payment.clear()),
        ("every capture", "money is not given back", |_, facts| drop(order_of(facts, "ord_2").payment.pop())),
        ("every capture", "it is paid twice", |_, facts| {
            let again = order_of(facts, "ord_1").history[1].clone();
            order_of(facts, "ord_1").history.push(again);
        }),
        ("every order is settled", "one hangs", |_, facts| order_of(facts, "ord_1").shown["status"] = json!("reserved")),
        ("every order is settled", "one still owes", |_, facts| order_of(facts, "ord_2").is_settled = false),
        ("every order is settled", "a cart is being checked out", |_, facts| {
            facts.carts.get_mut("cart_1").unwrap().is_settled = false
        }),
        ("every order is settled", "an entity is set aside", |_, facts| facts.set_aside = json!([{ "kind": "cart" }])),
        ("nobody has an order", "one more", |_, facts| drop(facts.listed.insert("ord_7".into(), "paid".into()))),
        ("nobody has an order", "the list is wrong", |_, facts| drop(facts.listed.insert("ord_1".into(), "pending".into()))),
        ("nobody has an order", "the list lacks one", |_, facts| drop(facts.listed.remove("ord_1"))),
        ("a list shows", "it lacks the order", |lines, _| lines.push(listed(order("ord_2", "paid"), Value::Null))),
        ("a list shows", "it has the order as it was", |lines, _| lines.push(listed(order("ord_1", "reserved"), Value::Null))),
        ("nothing is refused", "a list that knows of no such position", |lines, _| {
            lines.push(listed(Value::Null, Value::Null));
            outcome(lines, 40, refused(409));
        }),
        ("a subscriber sees", "one event twice", |lines, _| lines.extend(lines.last().cloned())),
        ("a subscriber sees", "one event less", |lines, _| drop(lines.pop())),
        ("a subscriber sees", "one event of another type", |_, facts| {
            order_of(facts, "ord_1").history[1].event_type = "order.cancelled".into()
        }),
        ("a subscriber sees", "the events in another order", |lines, _| {
            let count = lines.len();
            if let Line::Heard(heard) = &mut lines[count - 2] {
                heard.at_us = 10 * MS;
            }
        }),
        ("a key has one answer", "yes, then no", |lines, _| {
            lines.push(attempt(2, 200, "POST", "/api/carts/cart_1/checkout", json!({}), refused(409)));
        }),
        ("a key has one answer", "two orders", |lines, _| {
            lines.push(attempt(2, 200, "POST", "/api/carts/cart_1/checkout", json!({}), ok(2, order("ord_2", "paid"))));
        }),
        ("a key has one answer", "no, then another no", |lines, _| {
            let problem = json!({ "type": "empty" });
            outcome(lines, 10, Outcome::Refused { status: 409, replayed: false, problem });
        }),
        ("a key has one answer", "two answers that were kept", |lines, _| {
            for etag in [2, 3] {
                let answer = json!({ "id": "ord_1", "lines": [], "status": if etag == 2 { "paid" } else { "refunded" } });
                let kept = Outcome::Ok { status: 201, etag: Some(etag), position: None, replayed: true, answer };
                if etag == 2 {
                    outcome(lines, 2, kept);
                } else {
                    lines.push(attempt(2, 200, "POST", "/api/carts/cart_1/checkout", json!({}), kept));
                }
            }
        }),
        ("what was seen is not unseen", "a stale read of a cart", |lines, _| {
            lines.push(attempt(30, 200, "GET", "/api/carts/cart_1", Value::Null, ok(3, cart("open", 2))));
        }),
        ("what was seen is not unseen", "a deleted cart", |lines, _| {
            lines.push(attempt(30, 200, "DELETE", "/api/carts/cart_1", Value::Null, ok(9, Value::Null)));
            lines.push(attempt(31, 210, "GET", "/api/carts/cart_1", Value::Null, ok(9, cart("open", 2))));
        }),
        ("what was seen is not unseen", "a stale read of an item", |lines, _| {
            lines.push(attempt(30, 200, "GET", "/api/inventory/A", Value::Null, ok(6, item(9, 0))));
        }),
        ("an item is linearizable", "a stale read of an item", |lines, _| outcome(lines, 5, ok(7, item(8, 2)))),
        ("an item is linearizable", "an adjustment that its own answer lacks", |lines, _| outcome(lines, 3, ok(6, item(8, 0)))),
    ];
    for (promise, what, doctor) in table {
        let (mut lines, mut facts) = (lines(), facts());
        doctor(&mut lines, &mut facts);
        let findings = judge(&run(lines, facts)).findings;
        assert!(findings.iter().any(|finding| finding.starts_with(promise)), "{promise}: {what}: {findings:?}");
    }
}

#[test]
fn an_old_answer_that_was_kept_is_no_stale_read_but_counts_as_seen() {
    let mut lines = lines();
    let kept = Outcome::Ok { status: 200, etag: Some(1), position: None, replayed: true, answer: cart("open", 2) };
    lines.push(attempt(1, 200, "POST", "/api/carts/cart_1/items", json!({}), kept));
    assert_eq!(monotonic(&run(lines, facts())), Vec::<String>::new());
}

#[test]
fn whoever_asked_once_and_does_not_know_is_not_owed_an_answer() {
    let mut lines = lines();
    lines.retain(|line| !matches!(line, Line::Asked(asked) if asked.wish == 1 && asked.outcome == unknown()));
    outcome(&mut lines, 1, unknown());
    assert_eq!(answered(&run(lines, facts())), Vec::<String>::new());
}
