//! The whole purchase in a world of its own: carts, orders, inventory items, a flash sale, payments and a provider, with messages that
//! are lost, repeated, late and out of order, answers that never arrive, shoppers who cancel, and time that jumps.
//!
//! The world draws every choice from a list of numbers, so that proptest can shrink a failure to the few that matter.
//! When the choices are used up the world is left in peace until nothing is owed; then the books must balance.

use std::any::Any;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::flash_sale::{ClaimPhase, Customer};
use super::order::{Address, Contact, Owner, Status};
use super::payment::{Method, Provider, ProviderAnswer, ProviderRequest, ProviderStep};
use super::testing::{Choices, Live, ask, at, boxed, eur, fold_in_disorder};
use super::time::MINUTE_MS;
use super::{Cart, CommandId, Debt, Entity, FlashSale, Inventory, Money, Order, Payment, Recipient, Timestamp};
use super::{cart, flash_sale, inventory, order, payment};

const SKUS: [&str; 3] = ["BEAN-1", "CUP-2", "MILL-3"];
const CARTS: usize = 4;
const STOCK: u32 = 12;
/// A sale of some of the first sku's units.
const SALE: &str = "fs_01M7XTJ72XFBZWPK91BJAAFXTS";
const ALLOTMENT: u32 = 2;
const SALE_PRICE: i64 = 999;
const SALE_MS: i64 = 600 * MINUTE_MS;

/// What can be under way to somebody.
#[derive(Clone)]
enum Request {
    Cart(cart::Command),
    Order(order::Command),
    Inventory(inventory::Command),
    FlashSale(flash_sale::Command),
    Payment(payment::Command),
    Provider(ProviderRequest),
}

#[derive(Clone)]
struct Message {
    to: String,
    /// The command's id, or the idempotency key.
    id: CommandId,
    request: Request,
}

/// A payment provider that keeps its word on idempotency keys, whatever else it does.
#[derive(Default)]
struct Bank {
    answers: BTreeMap<CommandId, ProviderAnswer>,
    authorized: BTreeMap<String, Money>,
    captured: BTreeMap<String, Money>,
    refunded: BTreeMap<String, Money>,
    voided: BTreeMap<String, ()>,
}

impl Bank {
    fn handle(&mut self, key: &CommandId, request: ProviderRequest, choices: &mut Choices) -> ProviderAnswer {
        let unavailable = ProviderAnswer::Unavailable { reason: "out of order".to_owned() };
        if choices.one_in(5) {
            return unavailable;
        }
        let answer = match self.answers.get(key) {
            Some(answer) => answer.clone(),
            None => self.carry_out(request, choices),
        };
        self.answers.insert(key.clone(), answer.clone());
        if choices.one_in(5) { unavailable } else { answer }
    }

    fn carry_out(&mut self, request: ProviderRequest, choices: &mut Choices) -> ProviderAnswer {
        let ProviderRequest { payment, step, .. } = request;
        let declined = ProviderAnswer::Declined { reason: "no".to_owned() };
        let is_voided = self.voided.contains_key(&payment);
        match step {
            ProviderStep::Authorize { .. } if is_voided || choices.one_in(4) => return declined,
            ProviderStep::Authorize { amount, .. } => {
                assert_eq!(self.authorized.insert(payment, amount), None, "authorized once");
            }
            ProviderStep::Capture { .. } if choices.one_in(4) => return declined,
            ProviderStep::Capture { amount } => {
                assert!(!is_voided, "a voided payment is not captured");
                assert_eq!(self.authorized.get(&payment), Some(&amount), "what is captured was authorized");
                assert_eq!(self.captured.insert(payment, amount), None, "captured once");
            }
            ProviderStep::Void => {
                assert!(!self.captured.contains_key(&payment), "a captured payment is not voided");
                self.voided.insert(payment, ());
            }
            ProviderStep::Refund { amount } => {
                assert_eq!(self.captured.get(&payment), Some(&amount), "what is refunded was captured");
                assert_eq!(self.refunded.insert(payment, amount), None, "refunded once");
            }
        }
        ProviderAnswer::Approved { reference: "ref".to_owned() }
    }
}

struct World {
    choices: Choices,
    /// Whether receivers remember the first answer to each command, as the runtime does. Without it messages may be
    /// repeated for as long as they are owed, but not come late.
    remembers: bool,
    now: Timestamp,
    commands: usize,
    carts: BTreeMap<String, Live<Cart>>,
    orders: BTreeMap<String, Live<Order>>,
    items: BTreeMap<String, Live<Inventory>>,
    sales: BTreeMap<String, Live<FlashSale>>,
    payments: BTreeMap<String, Live<Payment>>,
    bank: Bank,
    late: Vec<Message>,
}

fn message<E: Entity>(debt: Debt<E>, owner: &str) -> (Message, super::entity::Hear<E>) {
    let (recipient, id) = (debt.to.clone(), CommandId(format!("{}/{owner}/{}", E::KIND, debt.id)));
    let (request, hear) = debt.into_parts();
    let (to, request) = match recipient {
        Recipient::Entity { kind: Cart::KIND, id } => (id, Request::Cart(*request.downcast().unwrap())),
        Recipient::Entity { kind: Order::KIND, id } => (id, Request::Order(*request.downcast().unwrap())),
        Recipient::Entity { kind: Inventory::KIND, id } => (id, Request::Inventory(*request.downcast().unwrap())),
        Recipient::Entity { kind: FlashSale::KIND, id } => (id, Request::FlashSale(*request.downcast().unwrap())),
        Recipient::Entity { kind: Payment::KIND, id } => (id, Request::Payment(*request.downcast().unwrap())),
        Recipient::Outside { name } => {
            assert_eq!(name, <Provider as super::Outside>::NAME);
            (name.to_owned(), Request::Provider(*request.downcast().unwrap()))
        }
        Recipient::Entity { kind, .. } => panic!("nobody is a {kind}"),
    };
    (Message { to, id, request }, hear)
}

macro_rules! owed {
    ($owed:ident, $entities:expr, $kind:ident) => {
        for entity in $entities.values() {
            for position in 0..$kind::owes(&entity.state).len() {
                $owed.push(($kind::KIND, entity.id.clone(), position));
            }
        }
    };
}

impl World {
    fn new(numbers: Vec<u16>, remembers: bool) -> Self {
        let mut world = World {
            choices: Choices::new(numbers),
            remembers,
            now: at(0),
            commands: 0,
            carts: BTreeMap::new(),
            orders: BTreeMap::new(),
            items: BTreeMap::new(),
            sales: BTreeMap::new(),
            payments: BTreeMap::new(),
            bank: Bank::default(),
            late: Vec::new(),
        };
        for sku in SKUS {
            world.tell_item(sku, inventory::Command::Register { product: "prod".to_owned(), on_hand: STOCK });
            world.tell_item(sku, inventory::Command::SetThreshold { low_stock_threshold: 3 });
        }
        for number in 0..CARTS {
            let owner = Owner::Account { user: format!("user{number}") };
            world.tell_cart(&format!("cart_{number}"), cart::Command::Create { owner });
        }
        world.tell_sale(flash_sale::Command::Create { terms: Box::new(sale_terms()) });
        world.tell_sale(flash_sale::Command::Approve);
        world
    }

    fn next_id(&mut self, who: &str) -> CommandId {
        self.commands += 1;
        CommandId(format!("{who}/{}", self.commands))
    }

    fn tell_item(&mut self, sku: &str, command: inventory::Command) {
        let id = self.next_id("clerk");
        ask(&mut self.items, sku, &id, command, self.now, true);
    }

    fn tell_sale(&mut self, command: flash_sale::Command) {
        let id = self.next_id("somebody");
        ask(&mut self.sales, SALE, &id, command, self.now, true);
        self.check_items();
    }

    fn tell_cart(&mut self, cart: &str, command: cart::Command) {
        let id = self.next_id("shopper");
        ask(&mut self.carts, cart, &id, command, self.now, true);
    }

    fn tell_order(&mut self, order: &str, command: order::Command) {
        let id = self.next_id("shopper");
        ask(&mut self.orders, order, &id, command, self.now, true);
    }

    fn deliver(&mut self, message: Message) -> Option<Box<dyn Any + Send>> {
        let Message { to, id, request } = message;
        let (now, remembers) = (self.now, self.remembers);
        let answer = match request {
            Request::Cart(command) => ask(&mut self.carts, &to, &id, command, now, remembers).map(boxed),
            Request::Order(command) => ask(&mut self.orders, &to, &id, command, now, remembers).map(boxed),
            Request::Inventory(command) => ask(&mut self.items, &to, &id, command, now, remembers).map(boxed),
            Request::FlashSale(command) => ask(&mut self.sales, &to, &id, command, now, remembers).map(boxed),
            Request::Payment(command) => ask(&mut self.payments, &to, &id, command, now, remembers).map(boxed),
            Request::Provider(request) => Some(boxed(self.bank.handle(&id, request, &mut self.choices))),
        };
        self.check_items();
        answer
    }

    /// Attempts one debt: the message may be lost, repeated now or much later, and so may its answer.
    fn attempt<E: Entity>(&mut self, debt: Debt<E>, owner: &str) -> Option<E::Command> {
        let (message, hear) = message(debt, owner);
        if self.choices.one_in(8) {
            return None;
        }
        if self.remembers && self.choices.one_in(8) {
            self.late.push(message.clone());
        }
        if self.choices.one_in(8) {
            self.deliver(message.clone());
        }
        let answer = self.deliver(message)?;
        if self.choices.one_in(8) { None } else { hear(answer) }
    }

    /// Hands an answer to its debtor, now and then twice.
    fn hear(&mut self, owner: &str, heard: Request) {
        for _ in 0..1 + usize::from(self.choices.one_in(8)) {
            let id = self.next_id("heard");
            self.deliver(Message { to: owner.to_owned(), id, request: heard.clone() });
        }
    }

    fn owed(&self) -> Vec<(&'static str, String, usize)> {
        let mut owed = Vec::new();
        owed!(owed, self.carts, Cart);
        owed!(owed, self.orders, Order);
        owed!(owed, self.sales, FlashSale);
        owed!(owed, self.payments, Payment);
        owed
    }

    fn pay_off(&mut self, (kind, owner, position): (&'static str, String, usize)) {
        let heard = match kind {
            Cart::KIND => {
                let debt = Cart::owes(&self.carts[&owner].state).remove(position);
                self.attempt(debt, &owner).map(Request::Cart)
            }
            Order::KIND => {
                let debt = Order::owes(&self.orders[&owner].state).remove(position);
                self.attempt(debt, &owner).map(Request::Order)
            }
            FlashSale::KIND => {
                let debt = FlashSale::owes(&self.sales[&owner].state).remove(position);
                self.attempt(debt, &owner).map(Request::FlashSale)
            }
            _ => {
                let debt = Payment::owes(&self.payments[&owner].state).remove(position);
                self.attempt(debt, &owner).map(Request::Payment)
            }
        };
        if let Some(heard) = heard {
            self.hear(&owner, heard);
        }
    }

    fn pass_time(&mut self, millis: i64) {
        self.now = self.now.plus_ms(millis);
        self.orders.values_mut().for_each(|order| order.elapse(self.now));
        self.items.values_mut().for_each(|item| item.elapse(self.now));
        self.sales.values_mut().for_each(|sale| sale.elapse(self.now));
        self.check_items();
    }

    /// Somebody wants something of the sale, or pays for what they have of it.
    fn claim(&mut self) {
        let number = self.choices.below(CARTS);
        if self.choices.one_in(2) {
            return self.buy_claimed(number);
        }
        let customer = customer(number);
        let claims = self.sales[SALE].state.book.claims().len().max(1);
        let claim = self.choices.below(claims as usize) as u32;
        let quantity = 1 + self.choices.below(2) as u32;
        let command = match self.choices.below(12) {
            0..=6 => flash_sale::Command::Claim { customer, quantity, address: 0 },
            7 => flash_sale::Command::GiveUp { customer, claim },
            8 => flash_sale::Command::Leave { customer },
            9 => flash_sale::Command::Away { customer },
            10 => flash_sale::Command::Back { customer },
            _ if self.choices.one_in(10) => flash_sale::Command::Cancel { reason: "no".to_owned() },
            _ => flash_sale::Command::Remind { customer },
        };
        self.tell_sale(command);
    }

    /// An order without a cart.
    fn buy_claimed(&mut self, number: usize) {
        let cart::Command::Checkout { order, payment, contact, claimed: Some(line), .. } = self.checkout(number) else { return };
        let owner = Owner::Account { user: format!("user{number}") };
        let draft = order::Draft { owner, cart: None, total: line.total, lines: vec![*line], contact, payment };
        self.tell_order(&order, order::Command::Place { draft });
    }

    /// A line for what this customer has claimed and not paid.
    fn claimed(&mut self, number: usize) -> Option<Box<order::Line>> {
        let claims = self.sales[SALE].state.book.claims();
        let is_its = |claim: &flash_sale::Claim| claim.customer == customer(number) && claim.phase == ClaimPhase::Held;
        let (claim, quantity) =
            claims.iter().find(|(_, claim)| is_its(claim)).map(|(n, claim)| (n, u32::from(claim.quantity)))?;
        let (unit_price, total) = (eur(SALE_PRICE), eur(SALE_PRICE * i64::from(quantity)));
        let claim = Some(order::Claimed { sale: SALE.to_owned(), claim, customer: customer(number) });
        let (sku, product, title) = (SKUS[0].to_owned(), "prod".to_owned(), "Bean".to_owned());
        Some(Box::new(order::Line { sku, product, shop: None, title, quantity, unit_price, total, claim }))
            .filter(|_| !self.choices.one_in(3))
    }

    fn shop(&mut self) {
        let number = self.choices.below(CARTS);
        let cart = format!("cart_{number}");
        let sku = SKUS[self.choices.below(SKUS.len())].to_owned();
        let quantity = 1 + self.choices.below(5) as u32;
        let price = eur(if sku == SKUS[2] { 0 } else { 1_999 });
        let command = match self.choices.below(8) {
            0..=3 => {
                let offer = cart::Offer { product: "prod".to_owned(), shop: None, title: sku.clone(), price };
                cart::Command::Add { sku, quantity, offer }
            }
            4 => cart::Command::Set { sku, quantity },
            5 => cart::Command::Remove { sku },
            6 => cart::Command::Merge { from: format!("cart_{}", self.choices.below(CARTS)) },
            _ => self.checkout(number),
        };
        self.tell_cart(&cart, command);
    }

    fn checkout(&mut self, number: usize) -> cart::Command {
        let text = || "x".to_owned();
        let claimed = self.claimed(number);
        cart::Command::Checkout {
            order: format!("ord_01M7XTJD39HAVHP9G020{:06}", self.commands),
            payment: Method { provider: "bank".to_owned(), token: text() },
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
            expected_total: None,
            prices: SKUS.iter().map(|sku| ((*sku).to_owned(), eur(if *sku == SKUS[2] { 0 } else { 1_999 }))).collect(),
            claimed,
        }
    }

    fn step(&mut self) {
        match self.choices.below(18) {
            16..=17 => self.claim(),
            0..=8 => {
                let mut owed = self.owed();
                if !owed.is_empty() {
                    let position = self.choices.below(owed.len());
                    self.pay_off(owed.swap_remove(position));
                }
            }
            9 if !self.late.is_empty() => {
                let position = self.choices.below(self.late.len());
                let message = self.late.swap_remove(position);
                self.deliver(message);
            }
            10 => {
                let minutes = [0, 1, 6, 11, 16, 31][self.choices.below(6)];
                self.pass_time(minutes * MINUTE_MS + 7);
            }
            11 if !self.orders.is_empty() => {
                let position = self.choices.below(self.orders.len());
                let order = self.orders.keys().nth(position).cloned().unwrap_or_default();
                let command = match self.choices.below(4) {
                    0 => order::Command::Ship { carrier: "post".to_owned(), tracking_number: None },
                    _ => order::Command::Cancel { reason: "changed my mind".to_owned() },
                };
                self.tell_order(&order, command);
            }
            _ => self.shop(),
        }
    }

    /// From here on nothing is lost, declined or late, and all that is owed is paid off.
    fn come_to_rest(&mut self) {
        match self.commands % 2 {
            0 => self.tell_sale(flash_sale::Command::Cancel { reason: "over".to_owned() }),
            _ => self.pass_time(SALE_MS),
        }
        for message in std::mem::take(&mut self.late) {
            self.deliver(message);
        }
        for round in 0..3_000 {
            // A sale that was set aside only now may be over already.
            self.pass_time(0);
            let mut owed = self.owed();
            if owed.is_empty() {
                return;
            }
            let debt = owed.swap_remove(round % owed.len());
            self.pay_off(debt);
        }
        panic!("never comes to rest: {:?}", self.owed());
    }

    fn check_items(&self) {
        for item in self.items.values() {
            let state = &item.state;
            let held: u64 = state.holds.values().map(|hold| u64::from(hold.quantity)).sum();
            let reserved: u64 = state.reservations.values().copied().map(u64::from).sum();
            assert_eq!((held, reserved), (state.held, state.reserved), "{}", item.id);
            assert!(held + reserved + state.allotted <= u64::from(state.on_hand), "{} is oversold: {state:?}", item.id);
        }
        for sale in self.sales.values().filter(|sale| !sale.state.book.is_closed()) {
            let book = &sale.state.book;
            assert_eq!(book.sold + book.held() + book.free(), ALLOTMENT);
        }
    }

    fn check_books(&self) {
        let is_bought = |order: &&Live<Order>| matches!(order.state.status, Status::Paid | Status::Shipped);
        for sku in SKUS {
            let lines = self.orders.values().filter(is_bought).flat_map(|order| &order.state.draft.as_ref().unwrap().lines);
            let sold: u32 = lines.filter(|line| line.sku == sku).map(|line| line.quantity).sum();
            let state = &self.items[sku].state;
            assert_eq!(state.on_hand + sold, STOCK, "stock of {sku}");
            assert_eq!(state.reservations, BTreeMap::new(), "reservations of {sku}");
            assert_eq!(state.allotted, 0, "kept aside of {sku}");
        }
        let claimed = self.orders.values().filter(is_bought).flat_map(|order| &order.state.draft.as_ref().unwrap().lines);
        let bought: u32 = claimed.filter(|line| line.claim.is_some()).map(|line| line.quantity).sum();
        let book = &self.sales[SALE].state.book;
        assert_eq!((book.sold, book.held()), (bought, 0), "what was sold in the sale");
        let sum = |amounts: &BTreeMap<String, Money>| amounts.values().map(|money| money.amount).sum::<i64>();
        let paid: i64 =
            self.orders.values().filter(is_bought).map(|order| order.state.draft.as_ref().unwrap().total.amount).sum();
        assert_eq!(sum(&self.bank.captured) - sum(&self.bank.refunded), paid, "money");
        for (payment, _) in self.bank.authorized.iter().filter(|(payment, _)| !self.bank.captured.contains_key(*payment)) {
            let phase = self.payments[payment].state.phase;
            let is_ended = self.bank.voided.contains_key(payment) || phase == payment::Phase::CaptureFailed;
            assert!(is_ended, "{payment} is authorized for ever: {phase:?}");
        }
    }

    fn check_everybody(&self) {
        for order in self.orders.values() {
            let status = order.state.status;
            let is_ended =
                matches!(status, Status::Paid | Status::Shipped | Status::Refunded | Status::Cancelled | Status::PaymentFailed);
            assert!(is_ended, "{} is {status:?}", order.id);
            assert_eq!(Order::due(&order.state), None);
            order.assert_replays();
        }
        for cart in self.carts.values() {
            assert!(!matches!(cart.state.phase, cart::Phase::CheckingOut { .. }), "{}", cart.id);
            assert_eq!(cart.waiting.len(), 0, "{:?} of {} wait for ever", cart.waiting, cart.id);
            cart.assert_replays();
            self.check_holds(cart);
        }
        for payment in self.payments.values() {
            assert_eq!(payment.waiting.len(), 0, "{:?} of {} wait for ever", payment.waiting, payment.id);
            payment.assert_replays();
        }
        assert!(self.orders.values().all(|order| order.waiting.is_empty()), "everybody has heard of an order's outcome");
        self.items.values().for_each(Live::assert_replays);
        self.sales.values().for_each(Live::assert_replays);
    }

    /// What an open cart says it has is what the items hold for it. Only a copy of a refused hold that arrives long after
    /// its refusal can hold more, until its lease ends; it can never hold less.
    fn check_holds(&self, cart: &Live<Cart>) {
        if cart.state.phase != cart::Phase::Open {
            return;
        }
        for (sku, line) in &cart.state.lines {
            assert!(line.quantity > 0 && line.changes.is_empty() && line.asked.is_none(), "{sku} of {}: {line:?}", cart.id);
            if line.held_until.is_some_and(|held_until| held_until > self.now) {
                let held = self.items[sku].state.holds.get(&cart.id).map_or(0, |hold| hold.quantity);
                let is_backed = if self.remembers { held >= line.quantity } else { held == line.quantity };
                assert!(is_backed, "{sku} of {}: {held} held for {line:?}", cart.id);
            }
        }
        for sku in SKUS.iter().filter(|sku| !cart.state.lines.contains_key(**sku)) {
            let hold = self.items[*sku].state.holds.get(&cart.id).filter(|hold| hold.expires_at > self.now);
            assert!(self.remembers || hold.is_none(), "{sku} is held for {} though not in it: {hold:?}", cart.id);
        }
    }
}

fn customer(number: usize) -> Customer {
    Customer::of(&Owner::Account { user: format!("usr_01M7XTJ72XFBZWPK91BJAAF{number:03}") }).unwrap()
}

fn sale_terms() -> flash_sale::Terms {
    flash_sale::Terms {
        sku: SKUS[0].to_owned(),
        product: "prod".to_owned(),
        shop: None,
        title: "Bean".to_owned(),
        price: eur(SALE_PRICE),
        quantity: ALLOTMENT,
        per_customer_limit: 2,
        per_address_limit: None,
        starts_at: at(MINUTE_MS),
        ends_at: at(SALE_MS),
        claim_ms: 60 * MINUTE_MS,
        admission_ms: flash_sale::ADMISSION_MS,
        grace_ms: flash_sale::GRACE_MS,
        guests: true,
    }
}

fn live_through(numbers: Vec<u16>, remembers: bool) -> World {
    let mut world = World::new(numbers, remembers);
    while !world.choices.is_over() {
        world.step();
    }
    world.come_to_rest();
    world.check_everybody();
    world.check_books();
    world
}

#[test]
fn the_world_is_eventful_enough_to_prove_something() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..60 {
        let numbers = (0..1_500).map(|_| random.u16(..)).collect();
        let world = live_through(numbers, true);
        for order in world.orders.values() {
            let why = order.state.reason.as_ref().map(|reason| serde_json::to_value(reason).unwrap()["kind"].to_string());
            *seen.entry(format!("{:?} {}", order.state.status, why.unwrap_or_default())).or_default() += 1;
        }
        let journals = world.carts.values().map(|cart| &cart.journal).chain(world.items.values().map(|item| &item.journal));
        let journals = journals.chain(world.sales.values().map(|sale| &sale.journal));
        for record in journals.flatten() {
            let record: serde_json::Value = serde_json::from_str(record).unwrap();
            *seen.entry(record["type"].to_string()).or_default() += 1;
        }
    }
    for end in [
        "Paid ",
        "Shipped ",
        r#"Refunded "requested""#,
        r#"Cancelled "requested""#,
        r#"Cancelled "unpaid""#,
        r#"Cancelled "out_of_stock""#,
        r#"PaymentFailed "payment_declined""#,
        r#""cart.merged""#,
        r#""cart.reopened""#,
        r#""cart.item.refused""#,
        r#""inventory.hold.expired""#,
        r#""inventory.closed""#,
        r#""inventory.low_stock""#,
        r#""stock.increased""#,
        r#""inventory.allotted""#,
        r#""flash_sale.admitted""#,
        r#""flash_sale.claim_expired""#,
        r#""flash_sale.claim_released""#,
        r#""flash_sale.sold""#,
        r#""flash_sale.sold_out""#,
        r#""flash_sale.returned""#,
        r#""flash_sale.available_again""#,
        r#""flash_sale.ended""#,
    ] {
        assert!(seen.contains_key(end), "{end} never happens: {seen:#?}");
    }
}

#[test]
fn any_event_can_be_folded_into_any_state() {
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..20 {
        let world = live_through((0..1_500).map(|_| random.u16(..)).collect(), true);
        fold_in_disorder(&world.carts, &mut random);
        fold_in_disorder(&world.orders, &mut random);
        fold_in_disorder(&world.items, &mut random);
        fold_in_disorder(&world.sales, &mut random);
        fold_in_disorder(&world.payments, &mut random);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_purchase_ends_and_the_books_balance_whatever_the_network_does(
        numbers in prop::collection::vec(any::<u16>(), 0..1200),
    ) {
        let _ = live_through(numbers, true);
    }

    #[test]
    fn receivers_recognise_what_they_are_asked_again_without_remembering_command_ids(
        numbers in prop::collection::vec(any::<u16>(), 0..1200),
    ) {
        let _ = live_through(numbers, false);
    }
}
