//! An inventory item as its clients see it, for the search for an order of steps that explains what they saw.
//!
//! A read shows on hand and available, and both at one moment. What changes them is known from what the clients asked for and
//! heard: adjustments, holds by adding to a cart, purchases, cancellations, deleted carts. So the state is these two
//! numbers, and each change moves them by a known amount at some moment between two times:
//!
//! | asked for | moves (on hand, available) | between |
//! |---|---|---|
//! | adjustment | +d, +d | request and answer |
//! | add to a cart | 0, −q | request and answer |
//! | checkout of a cart, paid | −q, 0 | request and the first sight of `paid` |
//! | order without a cart, paid | 0, −q and then −q, 0 | as above |
//! | checkout of a cart, failed | 0, +q, and then 0, −q′ (its cart asks for the units again) | request and answer; any time later |
//! | order without a cart, failed | 0, −q and then 0, +q | request and answer |
//! | cancellation of a paid order | +q, +q | request and the first sight of `refunded` |
//! | deleted cart | 0, +q | request and any time later |
//!
//! That a hold becomes a reservation moves neither number and is not seen. What is left out, and why:
//!
//! - A refusal ("only 2 left") may rest on units that were being taken by a write that then failed
//!   (`docs/runtime.md`, "Rejections are not remembered"), so it proves nothing about the order of things that did happen.
//! - Holds that run out: no run lasts 15 minutes. When a run's clocks were set ahead by so much, only on hand is looked at.
//! - How many of a failed checkout's units its cart got again (q′) is taken from the cart as it is found in the end.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::facts::{Facts, Order};
use crate::history::{Asked, History, Outcome, Wish};
use crate::linearizable::{Call, Effect, Model, Verdict, judge, order_alike};
use crate::purchase::lines;

/// How many states the search may look at for one sku.
const LOOKS_MAX: usize = 3_000_000;

pub struct Stock {
    pub initial: i64,
    /// Whether holds may have run out meanwhile.
    pub holds_expire: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    on_hand: i64,
    available: i64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    Move { on_hand: i64, available: i64 },
    See { on_hand: i64, available: i64 },
}

impl Model for Stock {
    type State = State;
    type Step = Step;

    fn initial(&self) -> State {
        State { on_hand: self.initial, available: self.initial }
    }

    fn apply(&self, state: &State, step: &Step) -> Vec<State> {
        match *step {
            Step::Move { on_hand, available } => {
                let available = if self.holds_expire { 0 } else { state.available + available };
                let next = State { on_hand: state.on_hand + on_hand, available };
                if next.on_hand < 0 || next.available < 0 { Vec::new() } else { vec![next] }
            }
            Step::See { on_hand, available } => {
                let fits = on_hand == state.on_hand && (self.holds_expire || available == state.available);
                if fits { vec![*state] } else { Vec::new() }
            }
        }
    }
}

/// One sku's verdict, with the call that nothing explains in words.
#[derive(Debug)]
pub struct Judged {
    pub sku: String,
    pub calls: usize,
    pub verdict: Verdict,
    pub stuck: String,
}

/// Judges each sku by itself.
pub fn judge_stock(history: &History, facts: &Facts, given: &BTreeMap<String, u64>, holds_expire: bool) -> Vec<Judged> {
    let mut collector = Collector {
        facts,
        paid_seen: BTreeMap::new(),
        refunded_seen: BTreeMap::new(),
        added: BTreeMap::new(),
        calls: BTreeMap::new(),
    };
    collector.look_for_ends(history);
    history.wishes.values().for_each(|wish| collector.collect(wish));
    // What an order did of which nobody knows the id cannot be told.
    let is_purchase = |wish: &Wish| wish.is("POST", "/api/carts/*/checkout") || wish.is("POST", "/api/orders");
    let has_lost = history.wishes.values().any(|wish| is_purchase(wish) && wish.known().is_none());
    let mut judged = Vec::new();
    for (sku, units) in given {
        let model = Stock { initial: i64::try_from(*units).unwrap(), holds_expire };
        let mut calls = collector.calls.remove(sku).unwrap_or_default();
        if holds_expire {
            calls.iter_mut().for_each(|call| {
                if let Step::Move { available, .. } = &mut call.step {
                    *available = 0;
                }
            });
        }
        order_alike(&mut calls, |step| match *step {
            Step::Move { on_hand, available } => Some((on_hand, available)),
            Step::See { .. } => None,
        });
        let verdict = match has_lost {
            true => Verdict::Undecided { looked_at: 0 },
            false => judge(&model, &calls, LOOKS_MAX),
        };
        let stuck = match verdict {
            Verdict::Not { stuck, .. } => format!("{:?}", calls[stuck]),
            Verdict::Linearizable | Verdict::Undecided { .. } => String::new(),
        };
        judged.push(Judged { sku: sku.clone(), calls: calls.len(), verdict, stuck });
    }
    judged
}

struct Collector<'a> {
    facts: &'a Facts,
    /// When somebody first saw that the order was paid, and that it was refunded.
    paid_seen: BTreeMap<String, u64>,
    refunded_seen: BTreeMap<String, u64>,
    /// What was put into each cart.
    added: BTreeMap<String, BTreeMap<String, i64>>,
    calls: BTreeMap<String, Vec<Call<Step>>>,
}

impl Collector<'_> {
    fn look_for_ends(&mut self, history: &History) {
        for asked in history.known() {
            let Some(answer) = asked.outcome.answer() else { continue };
            let Some(order) = answer["id"].as_str().filter(|id| id.starts_with("ord_")) else { continue };
            let note = |seen: &mut BTreeMap<String, u64>| {
                let first = seen.entry(order.to_owned()).or_insert(u64::MAX);
                *first = (*first).min(asked.answered_us);
            };
            match answer["status"].as_str().unwrap_or("") {
                "paid" | "shipped" => note(&mut self.paid_seen),
                "refunded" => {
                    note(&mut self.paid_seen);
                    note(&mut self.refunded_seen);
                }
                _ => {}
            }
        }
    }

    fn push(&mut self, sku: &str, step: Step, asked_us: u64, effect: Effect, after: Option<usize>) -> usize {
        let calls = self.calls.entry(sku.to_owned()).or_default();
        calls.push(Call { step, asked_us, effect, after });
        calls.len() - 1
    }

    fn collect(&mut self, wish: &Wish) {
        if wish.is("GET", "/api/inventory/*") {
            wish.attempts.iter().for_each(|attempt| {
                self.sees(wish.segment(2), attempt, attempt.asked_us, None);
            });
        } else if wish.is("POST", "/api/inventory/*/adjustments") {
            self.adjusts(wish);
        } else if wish.is("POST", "/api/carts/*/items") {
            self.adds(wish);
        } else if wish.is("POST", "/api/carts/*/checkout") || wish.is("POST", "/api/orders") {
            self.orders(wish);
        } else if wish.is("POST", "/api/orders/*/cancel") {
            self.cancels(wish);
        } else if wish.is("DELETE", "/api/carts/*") {
            self.deletes(wish);
        }
    }

    fn sees(&mut self, sku: &str, attempt: &Asked, asked_us: u64, after: Option<usize>) -> Option<usize> {
        let answer = attempt.outcome.answer()?;
        let number = |name: &str| answer[name].as_i64();
        let step = Step::See { on_hand: number("on_hand")?, available: number("available")? };
        Some(self.push(sku, step, asked_us, Effect::By(attempt.answered_us), after))
    }

    /// By when the wish had its effect; `None` when it was refused.
    fn effect(wish: &Wish) -> Option<Effect> {
        match wish.known() {
            Some(known) if known.outcome.answer().is_some() => Some(Effect::By(known.answered_us)),
            Some(_) => None,
            None => Some(Effect::Perhaps),
        }
    }

    fn adjusts(&mut self, wish: &Wish) {
        let (sku, asked_us) = (wish.segment(2), wish.first().asked_us);
        let delta = wish.first().body["delta"].as_i64().unwrap();
        let Some(effect) = Self::effect(wish) else { return };
        let adjusted = self.push(sku, Step::Move { on_hand: delta, available: delta }, asked_us, effect, None);
        // The answer shows the item at some moment after the change.
        if let Some(known) = wish.known() {
            self.sees(sku, known, asked_us, Some(adjusted));
        }
    }

    fn adds(&mut self, wish: &Wish) {
        let body = &wish.first().body;
        let (sku, quantity) = (body["sku"].as_str().unwrap(), body["quantity"].as_i64().unwrap());
        let Some(effect) = Self::effect(wish) else { return };
        if effect != Effect::Perhaps {
            let cart = self.added.entry(wish.segment(2).to_owned()).or_default();
            *cart.entry(sku.to_owned()).or_default() += quantity;
        }
        let hold = Step::Move { on_hand: 0, available: -quantity };
        self.push(sku, hold, wish.first().asked_us, effect, None);
    }

    fn orders(&mut self, wish: &Wish) {
        let Some(known) = wish.known() else { return };
        let (id, short) = match &known.outcome {
            Outcome::Ok { answer, .. } => (&answer["id"], Vec::new()),
            Outcome::Refused { problem, .. } => (&problem["order_id"], problem["short"].as_array().cloned().unwrap_or_default()),
            Outcome::Unknown { .. } => return,
        };
        let Some(id) = id.as_str() else { return };
        let Some(order) = self.facts.orders.get(id) else { return };
        let facts = self.facts;
        let cart =
            order.shown["cart_id"].as_str().map(|cart| facts.carts.get(cart).map_or(Value::Null, |cart| cart.shown.clone()));
        let asked_us = wish.first().asked_us;
        // An answer that says how it ended comes when nothing is bound any more.
        let concluded = match known.outcome.status() {
            Some(202) | None => Effect::Sometime,
            Some(_) => Effect::By(known.answered_us),
        };
        for (sku, quantity) in order.lines() {
            let quantity = i64::try_from(quantity).unwrap();
            let is_short = short.iter().any(|short| short["sku"] == sku.as_str());
            if order.was_paid() || was_paid_once(order) {
                let paid = self.paid_seen.get(id).map_or(Effect::Sometime, |us| Effect::By(*us));
                let reserved = cart.is_none().then(|| {
                    let reserve = Step::Move { on_hand: 0, available: -quantity };
                    self.push(&sku, reserve, asked_us, paid, None)
                });
                self.push(&sku, Step::Move { on_hand: -quantity, available: 0 }, asked_us, paid, reserved);
            } else if !is_short {
                let reserved = cart.is_none().then(|| {
                    let reserve = Step::Move { on_hand: 0, available: -quantity };
                    self.push(&sku, reserve, asked_us, concluded, None)
                });
                let release = Step::Move { on_hand: 0, available: quantity };
                let released = self.push(&sku, release, asked_us, concluded, reserved);
                let again =
                    cart.as_ref().filter(|cart| !cart.is_null()).map_or(0, |cart| lines(cart).get(&sku).copied().unwrap_or(0));
                if again > 0 {
                    let hold = Step::Move { on_hand: 0, available: -i64::try_from(again).unwrap() };
                    self.push(&sku, hold, asked_us, Effect::Sometime, Some(released));
                }
            }
        }
    }

    fn cancels(&mut self, wish: &Wish) {
        let id = wish.segment(2);
        let Some(order) = self.facts.orders.get(id).filter(|order| order.status() == "refunded") else { return };
        let effect = self.refunded_seen.get(id).map_or(Effect::Sometime, |us| Effect::By(*us));
        for (sku, quantity) in order.lines() {
            let quantity = i64::try_from(quantity).unwrap();
            self.push(&sku, Step::Move { on_hand: quantity, available: quantity }, wish.first().asked_us, effect, None);
        }
    }

    fn deletes(&mut self, wish: &Wish) {
        let cart = wish.segment(2);
        let is_deleted = self.facts.carts.get(cart).is_some_and(|cart| cart.shown.is_null());
        if !is_deleted {
            return;
        }
        let held = self.added.remove(cart).unwrap_or_default();
        for (sku, quantity) in held {
            let release = Step::Move { on_hand: 0, available: quantity };
            self.push(&sku, release, wish.first().asked_us, Effect::Sometime, None);
        }
    }
}

/// Whether its units had left the stock before it was cancelled.
fn was_paid_once(order: &Order) -> bool {
    order.history.iter().any(|record| record.event_type == "order.paid")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: i64 = 10;

    fn by(on_hand: i64, available: i64, asked_us: u64, answered_us: u64) -> Call<Step> {
        Call { step: Step::Move { on_hand, available }, asked_us, effect: Effect::By(answered_us), after: None }
    }

    fn later(on_hand: i64, available: i64, asked_us: u64) -> Call<Step> {
        Call { effect: Effect::Sometime, ..by(on_hand, available, asked_us, 0) }
    }

    fn see(on_hand: i64, available: i64, asked_us: u64, answered_us: u64) -> Call<Step> {
        Call { step: Step::See { on_hand, available }, asked_us, effect: Effect::By(answered_us), after: None }
    }

    fn after(cause: usize, call: Call<Step>) -> Call<Step> {
        Call { after: Some(cause), ..call }
    }

    #[test]
    fn what_clients_may_see_of_an_item_is_told_from_what_they_may_not() {
        let hold_and_buy = || [by(0, -2, 0, 1), by(-2, 0, 2, 5)];
        let table: Vec<(&str, bool, Vec<Call<Step>>)> = vec![
            ("a hold takes from what is available", true, vec![by(0, -2, 0, 1), see(10, 8, 2, 3)]),
            ("a hold that is not seen", false, vec![by(0, -2, 0, 1), see(10, 10, 2, 3)]),
            ("a purchase is seen before it is answered", true, [hold_and_buy().to_vec(), vec![see(8, 8, 3, 4)]].concat()),
            ("a purchase is not seen before it is answered", true, [hold_and_buy().to_vec(), vec![see(10, 8, 3, 4)]].concat()),
            ("a paid purchase that is not seen", false, [hold_and_buy().to_vec(), vec![see(10, 8, 6, 7)]].concat()),
            ("a purchase before it was asked for", false, [hold_and_buy().to_vec(), vec![see(8, 8, 1, 1)]].concat()),
            ("more is held than there is", false, vec![by(0, -6, 0, 1), by(0, -6, 0, 1)]),
            ("the last units go to one after they came free", true, vec![by(0, -10, 0, 1), later(0, 10, 2), by(0, -6, 3, 4)]),
            ("a deleted cart gives back late", true, vec![by(0, -2, 0, 1), later(0, 2, 2), see(10, 8, 3, 4), see(10, 10, 5, 6)]),
            ("a deleted cart gives back once", false, vec![by(0, -2, 0, 1), later(0, 2, 2), see(10, 10, 3, 4), see(10, 8, 5, 6)]),
            (
                "a failed checkout gives back and takes again",
                true,
                vec![by(0, -2, 0, 1), by(0, 2, 2, 5), after(1, later(0, -2, 2)), see(10, 10, 3, 4), see(10, 8, 6, 7)],
            ),
            (
                "a failed checkout that takes again without giving back",
                false,
                vec![by(0, -2, 0, 1), by(0, 2, 2, 9), after(1, later(0, -2, 2)), see(10, 6, 3, 4)],
            ),
            ("an adjustment is seen in its own answer", true, vec![by(5, 5, 0, 3), after(0, see(15, 15, 0, 3))]),
            ("an adjustment is missing in its own answer", false, vec![by(5, 5, 0, 3), after(0, see(10, 10, 0, 3))]),
            ("a node that wakes up shows what was", false, vec![by(5, 5, 0, 1), see(15, 15, 2, 3), see(10, 10, 4, 5)]),
        ];
        for (name, expected, calls) in table {
            let verdict = judge(&Stock { initial: GIVEN, holds_expire: false }, &calls, LOOKS_MAX);
            assert_eq!(verdict == Verdict::Linearizable, expected, "{name}: {verdict:?}");
        }
    }

    #[test]
    fn when_holds_may_run_out_only_what_is_on_hand_is_looked_at() {
        let model = Stock { initial: GIVEN, holds_expire: true };
        let judged = |calls: &[Call<Step>]| judge(&model, calls, LOOKS_MAX);
        assert_eq!(judged(&[by(0, 0, 0, 1), see(10, 3, 2, 3)]), Verdict::Linearizable);
        assert!(matches!(judged(&[by(-2, 0, 0, 1), see(10, 3, 2, 3)]), Verdict::Not { .. }));
    }
}
