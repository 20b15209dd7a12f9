//! The promises, each as a check over what the clients saw and what the quiet shop's API says. A check returns what it found
//! wrong, in words; each is shown here to find something in a run that was doctored.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::facts::{Facts, Order};
use crate::history::{Asked, History, Outcome, Wish};
use crate::linearizable::Verdict;
use crate::stock::{Judged, judge_stock};

/// Findings of one kind that are told; the others are counted.
const TOLD_MAX: usize = 5;

/// A whole run.
#[derive(Debug, Clone)]
pub struct Run {
    pub history: History,
    pub facts: Facts,
    /// Units of each sku at the beginning.
    pub given: BTreeMap<String, u64>,
    /// Whether a clock was set ahead by so much that holds may have run out.
    pub holds_expire: bool,
}

type Check = fn(&Run) -> Vec<String>;

const CHECKS: [(&str, Check); 12] = [
    ("every request is answered in the end", answered),
    ("nothing is refused that could not be", refusals),
    ("every acknowledged write is there", acknowledged),
    ("an adjustment counts once", adjustments),
    ("given = sold + left + held", balanced),
    ("every capture has its order and its sum", captured),
    ("every order is settled", settled),
    ("nobody has an order that nobody was told of", invented),
    ("a list shows what its reader was told of", listed),
    ("a subscriber sees each event once and in order", followed),
    ("a key has one answer", one_answer),
    ("what was seen is not unseen", monotonic),
];

/// What a run was judged to be.
pub struct Judgement {
    pub findings: Vec<String>,
    pub stock: Vec<Judged>,
}

impl Judgement {
    /// How many skus' histories were too much to search.
    pub fn undecided(&self) -> usize {
        self.stock.iter().filter(|judged| matches!(judged.verdict, Verdict::Undecided { .. })).count()
    }
}

/// Every check, and the search for an order of steps of each sku.
pub fn judge(run: &Run) -> Judgement {
    let mut findings = Vec::new();
    for (promise, check) in CHECKS {
        let found = check(run);
        findings.extend(found.iter().take(TOLD_MAX).map(|what| format!("{promise}: {what}")));
        if found.len() > TOLD_MAX {
            findings.push(format!("{promise}: and {} more", found.len() - TOLD_MAX));
        }
    }
    let stock = judge_stock(&run.history, &run.facts, &run.given, run.holds_expire);
    for judged in &stock {
        if let Verdict::Not { explained, state, .. } = &judged.verdict {
            let Judged { sku, calls, stuck, .. } = judged;
            findings.push(format!(
                "an item is linearizable: {sku}: {explained} of {calls} steps lead to {state}, and nothing to {stuck}"
            ));
        }
    }
    Judgement { findings, stock }
}

fn name(wish: &Wish) -> String {
    let Asked { client, method, path, asked_us, .. } = wish.first();
    format!("{client} at {} ms: {method} {path}", asked_us / 1000)
}

/// Whoever asked more than once wanted to know.
fn answered(run: &Run) -> Vec<String> {
    let wishes = run.history.wishes.values();
    let given_up = wishes.filter(|wish| wish.attempts.len() > 1 && wish.known().is_none());
    given_up.map(|wish| format!("{} was given up after {} attempts", name(wish), wish.attempts.len())).collect()
}

fn refusals(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    let deletions = || run.history.wished("DELETE", "/api/carts/*");
    for wish in run.history.wishes.values() {
        for attempt in &wish.attempts {
            let Outcome::Refused { status, problem, .. } = &attempt.outcome else { continue };
            // Too little of something is left, or the cart was deleted meanwhile.
            let is_short = *status == 409 && attempt.method == "POST" && !wish.is("POST", "/api/orders/*/cancel");
            let is_deleted =
                |deletion: &Wish| deletion.segment(2) == wish.segment(2) && deletion.first().asked_us <= attempt.answered_us;
            let is_gone = *status == 404 && wish.segment(1) == "carts" && attempt.method != "POST" && deletions().any(is_deleted);
            if !is_short && !is_gone {
                found.push(format!("{}: {status} {problem}", name(wish)));
            }
        }
    }
    found
}

fn acknowledged(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    let mut carts: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    let mut is_over: BTreeSet<&str> = BTreeSet::new();
    for wish in run.history.wishes.values() {
        let granted = wish.granted();
        let id = granted.map(|(_, answer)| answer["id"].as_str().unwrap_or(""));
        if wish.is("POST", "/api/carts") {
            id.into_iter().for_each(|id| drop(carts.insert(id, BTreeMap::new())));
        } else if wish.is("POST", "/api/carts/*/items") {
            if let (Some((_, answer)), Some(lines)) = (granted, carts.get_mut(wish.segment(2))) {
                *lines = crate::purchase::lines(answer);
            } else if wish.known().is_none() {
                is_over.insert(wish.segment(2));
            }
        } else if wish.is("DELETE", "/api/carts/*") {
            is_over.insert(wish.segment(2));
            let is_there = run.facts.carts.get(wish.segment(2)).is_some_and(|cart| !cart.shown.is_null());
            if wish.known().is_some() && is_there {
                found.push(format!("{}: the cart is there", name(wish)));
            }
        } else if wish.is("POST", "/api/carts/*/checkout") || wish.is("POST", "/api/orders") {
            is_over.insert(wish.segment(2));
            if let Some((attempt, answer)) = granted {
                found.extend(order_is_as_far(run, wish, attempt, answer));
            }
        } else if wish.is("POST", "/api/orders/*/cancel") && granted.is_some() {
            let status = run.facts.orders.get(wish.segment(2)).map_or("missing", Order::status);
            if status != "refunded" {
                found.push(format!("{}: the order is {status}", name(wish)));
            }
        }
    }
    for (id, lines) in carts.iter().filter(|(id, _)| !is_over.contains(*id)) {
        let shown = run.facts.carts.get(*id).map_or(&Value::Null, |cart| &cart.shown);
        if shown.is_null() || shown["status"] != "open" || crate::purchase::lines(shown) != *lines {
            found.push(format!("{id} had {lines:?} and is {shown}"));
        }
    }
    found
}

fn order_is_as_far(run: &Run, wish: &Wish, attempt: &Asked, answer: &Value) -> Option<String> {
    let id = answer["id"].as_str().unwrap_or("");
    let status = run.facts.orders.get(id).map_or("missing", Order::status);
    let said = answer["status"].as_str().unwrap_or("");
    let is_as_far = match said {
        "pending" | "reserved" => status != "missing",
        "paid" => ["paid", "refunded"].contains(&status),
        other => status == other,
    };
    (!is_as_far)
        .then(|| format!("{}: {id} was said to be {said} at {} ms and is {status}", name(wish), attempt.answered_us / 1000))
}

fn adjustments(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    let mut made: BTreeMap<(&str, &str), Vec<i64>> = BTreeMap::new();
    for (sku, item) in &run.facts.items {
        for record in item.history.iter().filter(|record| record.data["order"].is_null()) {
            let sign = match record.event_type.as_str() {
                "stock.increased" => 1,
                "stock.decreased" => -1,
                _ => continue,
            };
            let reason = record.data["reason"].as_str().unwrap_or("");
            made.entry((sku, reason)).or_default().push(sign * record.data["quantity"].as_i64().unwrap_or(0));
        }
    }
    for wish in run.history.wished("POST", "/api/inventory/*/adjustments") {
        let body = &wish.first().body;
        let made = made.remove(&(wish.segment(2), body["reason"].as_str().unwrap_or(""))).unwrap_or_default();
        let delta = body["delta"].as_i64().unwrap_or(0);
        let is_right = match wish.known().map(|known| &known.outcome) {
            Some(Outcome::Ok { .. }) => made == [delta],
            Some(_) => made.is_empty(),
            None => made.is_empty() || made == [delta],
        };
        if !is_right {
            let known = wish.known().map(|known| &known.outcome);
            found.push(format!("{} by {delta} was answered {known:?}, and the journal has {made:?}", name(wish)));
        }
    }
    found.extend(made.iter().map(|((sku, reason), deltas)| format!("{sku}: nobody asked for {reason:?} {deltas:?}")));
    found
}

fn balanced(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    for (sku, given) in &run.given {
        let Some(item) = run.facts.items.get(sku) else {
            found.push(format!("{sku} is missing"));
            continue;
        };
        let units = |name: &str| item.shown[name].as_i64().unwrap_or(i64::MIN);
        let adjusted = run.history.wished("POST", "/api/inventory/*/adjustments").filter(|wish| wish.segment(2) == sku);
        let adjusted = adjusted.map(|wish| {
            let body = &wish.first().body;
            let is_made = match wish.known() {
                Some(known) => known.outcome.answer().is_some(),
                None => item.history.iter().any(|record| record.data["reason"] == body["reason"]),
            };
            if is_made { body["delta"].as_i64().unwrap_or(0) } else { 0 }
        });
        let given = i64::try_from(*given).unwrap() + adjusted.sum::<i64>();
        let of = |lines: BTreeMap<String, u64>| i64::try_from(lines.get(sku).copied().unwrap_or(0)).unwrap();
        let is_sold = |order: &&Order| ["paid", "shipped"].contains(&order.status());
        let sold: i64 = run.facts.orders.values().filter(is_sold).map(|order| of(order.lines())).sum();
        let held: i64 = run.facts.carts.values().map(|cart| of(cart.holds())).sum();
        if units("on_hand") != given - sold {
            found.push(format!("{sku}: {given} given, {sold} sold, and {} on hand", units("on_hand")));
        }
        if units("reserved") != 0 || (units("held") != held && !run.holds_expire) {
            found.push(format!(
                "{sku}: carts hold {held}, orders 0, and the item says {} and {}",
                units("held"),
                units("reserved")
            ));
        }
        if units("available") != units("on_hand") - units("held") - units("reserved") {
            found.push(format!("{sku}: {}", item.shown));
        }
        found.extend(sold_twice(run, sku));
    }
    found
}

/// Each order takes its units out once, and puts them back once if it is refunded.
fn sold_twice(run: &Run, sku: &str) -> Vec<String> {
    let mut moved: BTreeMap<&str, (Vec<u64>, Vec<u64>)> = BTreeMap::new();
    for record in &run.facts.items[sku].history {
        let Some(order) = record.data["order"].as_str() else { continue };
        let quantity = record.data["quantity"].as_u64().unwrap_or(0);
        match record.event_type.as_str() {
            "stock.decreased" => moved.entry(order).or_default().0.push(quantity),
            "stock.increased" => moved.entry(order).or_default().1.push(quantity),
            _ => {}
        }
    }
    let mut found = Vec::new();
    for (id, order) in &run.facts.orders {
        let Some(units) = order.lines().get(sku).copied() else { continue };
        let out = if order.was_paid() { vec![units] } else { Vec::new() };
        let back = if order.status() == "refunded" { vec![units] } else { Vec::new() };
        let is = moved.remove(id.as_str()).unwrap_or_default();
        if is != (out.clone(), back.clone()) {
            found.push(format!("{sku}: {id} is {} with {units}: out and back are {is:?}", order.status()));
        }
    }
    found.extend(moved.iter().map(|(order, units)| format!("{sku}: {units:?} went to {order}, which does not list it")));
    found
}

fn captured(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    for (id, order) in &run.facts.orders {
        let total = &order.shown["total"];
        let sums = |event_type: &str| -> Vec<&Value> {
            order.payment.iter().filter(|record| record.event_type == event_type).map(|record| &record.data["amount"]).collect()
        };
        let captured = if order.was_paid() { vec![total] } else { Vec::new() };
        let refunded = if order.status() == "refunded" { vec![total] } else { Vec::new() };
        if sums("payment.success") != captured || sums("payment.refunded") != refunded {
            let (taken, returned) = (sums("payment.success"), sums("payment.refunded"));
            found.push(format!("{id} over {total} is {}: taken {taken:?}, given back {returned:?}", order.status()));
        }
        for (event_type, expected) in [("order.paid", usize::from(order.was_paid())), ("order.refunded", refunded.len())] {
            let count = order.history.iter().filter(|record| record.event_type == event_type).count();
            if count != expected {
                found.push(format!("{id} is {} with {count} of {event_type}", order.status()));
            }
        }
    }
    found
}

fn settled(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    for (id, order) in &run.facts.orders {
        if !order.is_settled || ["pending", "reserved", "missing"].contains(&order.status()) {
            found.push(format!("{id} is {}", order.shown));
        }
    }
    let carts = run.facts.carts.iter().filter(|(_, cart)| !cart.is_settled);
    found.extend(carts.map(|(id, cart)| format!("{id} is {}", cart.shown)));
    if run.facts.set_aside != serde_json::json!([]) {
        found.push(format!("set aside: {}", run.facts.set_aside));
    }
    found
}

fn invented(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    let told: BTreeSet<&str> = run.history.known().filter_map(|asked| asked.outcome.answer()?["id"].as_str()).collect();
    // Whoever gave up was not told, and may have an order all the same.
    let is_purchase = |wish: &Wish| wish.is("POST", "/api/carts/*/checkout") || wish.is("POST", "/api/orders");
    let mut given_up = run.history.wishes.values().filter(|wish| is_purchase(wish) && wish.known().is_none()).count();
    for (id, status) in &run.facts.listed {
        if told.contains(id.as_str()) || status == "cancelled" {
            continue;
        }
        match given_up {
            0 => found.push(format!("{id} is {status}")),
            _ => given_up -= 1,
        }
    }
    for (id, order) in &run.facts.orders {
        let listed = run.facts.listed.get(id).map(String::as_str);
        if !order.shown.is_null() && listed != Some(order.status()) {
            found.push(format!("{id} is {} and listed as {listed:?}", order.status()));
        }
    }
    found
}

fn listed(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    for attempt in run.history.known() {
        let (Some(seeks), Some(page)) = (&attempt.seeks, attempt.outcome.answer()) else { continue };
        let is_it = |order: &&Value| order["id"] == seeks.order.as_str();
        let is_right = match page["items"].as_array().into_iter().flatten().find(is_it) {
            Some(order) => seeks.status != "paid" || order["status"] == "paid",
            // It may be on the next page, which is read too.
            None => !page["next_cursor"].is_null(),
        };
        if !is_right {
            let Asked { client, address, path, asked_us, .. } = attempt;
            found.push(format!("{client} at {} ms at {address}{path} does not find {seeks:?}", asked_us / 1000));
        }
    }
    found
}

fn followed(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    for ((client, topic), heard) in &run.history.followed {
        let (kind, id) = topic.split_once(':').unwrap_or(("", ""));
        let records = match kind {
            "order" => run.facts.orders.get(id).map(|order| &order.history),
            "cart" => run.facts.carts.get(id).map(|cart| &cart.history),
            _ => None,
        };
        // Whoever follows a cart that is deleted is not let in again.
        let is_gone = kind == "cart" && run.facts.carts.get(id).is_none_or(|cart| cart.shown.is_null());
        let records = records.map(Vec::as_slice).unwrap_or_default();
        let heard: Vec<(u64, &str)> = heard.iter().map(|heard| (heard.seq, heard.event_type.as_str())).collect();
        let expected: Vec<(u64, &str)> = records.iter().map(|record| (record.version, record.event_type.as_str())).collect();
        let is_right = if is_gone { expected.starts_with(&heard) } else { heard == expected };
        if !is_right {
            let same = heard.iter().zip(&expected).take_while(|(heard, expected)| heard == expected).count();
            let (then, instead) = (heard.get(same), expected.get(same));
            found.push(format!("{client} of {topic}: after {same} of {} comes {then:?}, not {instead:?}", expected.len()));
        }
    }
    found
}

fn one_answer(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    for wish in run.history.wishes.values().filter(|wish| wish.first().key.is_some()) {
        let known: Vec<&Asked> = wish.attempts.iter().filter(|attempt| attempt.outcome.is_known()).collect();
        let Some((first, others)) = known.split_first() else { continue };
        for other in others {
            let is_same = match (&first.outcome, &other.outcome) {
                (Outcome::Ok { answer: one, .. }, Outcome::Ok { answer: two, .. }) => {
                    one["id"] == two["id"] && one["token"] == two["token"]
                }
                (Outcome::Refused { status: one, problem, .. }, Outcome::Refused { status: two, problem: again, .. }) => {
                    one == two && problem["type"] == again["type"]
                }
                _ => false,
            };
            let body = |outcome: &Outcome| match outcome {
                Outcome::Ok { replayed: true, answer, .. } => Some(answer.clone()),
                Outcome::Refused { replayed: true, problem, .. } => Some(problem.clone()),
                _ => None,
            };
            let is_kept = match (body(&first.outcome), body(&other.outcome)) {
                (Some(one), Some(two)) => one == two,
                _ => true,
            };
            if !is_same || !is_kept {
                found.push(format!("{}: first {:?}, then {:?}", name(wish), first.outcome, other.outcome));
            }
        }
    }
    found
}

/// An entity's version never goes back: an answer that was asked for after another had come shows no less.
fn monotonic(run: &Run) -> Vec<String> {
    struct Seen<'a> {
        asked_us: u64,
        answered_us: u64,
        version: u64,
        /// An answer that was kept shows what was.
        is_kept: bool,
        attempt: &'a Asked,
    }
    let mut entities: BTreeMap<&str, Vec<Seen<'_>>> = BTreeMap::new();
    for wish in run.history.wishes.values() {
        for attempt in &wish.attempts {
            let Outcome::Ok { etag: Some(version), replayed, answer, .. } = &attempt.outcome else { continue };
            let Some(entity) = answer["id"].as_str().or(answer["sku"].as_str()) else { continue };
            let Asked { asked_us, answered_us, .. } = *attempt;
            let seen = Seen { asked_us, answered_us, version: *version, is_kept: *replayed, attempt };
            entities.entry(entity).or_default().push(seen);
        }
    }
    let mut found = Vec::new();
    for deletion in run.history.wished("DELETE", "/api/carts/*") {
        let Some(gone_us) = deletion.known().map(|known| known.answered_us) else { continue };
        let seen = entities.get(deletion.segment(2)).into_iter().flatten();
        for seen in seen.filter(|seen| !seen.is_kept && seen.asked_us > gone_us) {
            found.push(format!("{}: seen at {} ms at {}", name(deletion), seen.asked_us / 1000, seen.attempt.address));
        }
    }
    for (entity, seen) in &entities {
        let mut by_answer: Vec<(u64, u64)> = seen.iter().map(|seen| (seen.answered_us, seen.version)).collect();
        by_answer.sort_unstable();
        // The highest version that had been answered by each moment.
        let mut highest = 0;
        by_answer.iter_mut().for_each(|(_, version)| {
            highest = highest.max(*version);
            *version = highest;
        });
        for seen in seen.iter().filter(|seen| !seen.is_kept) {
            let before = by_answer.partition_point(|(answered_us, _)| *answered_us < seen.asked_us);
            let known = before.checked_sub(1).map_or(0, |last| by_answer[last].1);
            if seen.version < known {
                let Asked { client, address, path, .. } = seen.attempt;
                let at = seen.asked_us / 1000;
                found.push(format!(
                    "{entity}: {client} at {at} ms saw version {} at {address}{path} after {known} was seen",
                    seen.version
                ));
            }
        }
    }
    found
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
