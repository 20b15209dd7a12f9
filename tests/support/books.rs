//! The books that must balance whatever happened: what the entities say, what the journal says, what the bank did.

use std::collections::BTreeMap;
use std::time::Duration;

use souk::actors::Runtime;
use souk::domain::order::{self, Status};
use souk::domain::{Cart, Entity, FlashSale, Inventory, Order, Payment, cart, flash_sale, inventory, payment};
use souk::persistence::Journal;

use crate::bank::Bank;
use crate::ledger::Ledger;
use crate::sale::Life;

async fn states<E: Entity>(runtime: &Runtime, ledger: &Ledger) -> BTreeMap<String, E::State>
where
    E::State: Clone,
{
    let mut states = BTreeMap::new();
    for id in ledger.ids(E::KIND) {
        // A write that fails takes those who look with it: they look again.
        let state = loop {
            match runtime.view::<E, _>(&id, |state, _| state.clone()).await {
                Ok(state) => break state,
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        states.insert(id, state);
    }
    states
}

/// Everything that must agree at the end: what the entities say, what the journal says, what the bank did.
pub struct Books {
    pub now: souk::domain::Timestamp,
    pub items: BTreeMap<String, inventory::State>,
    pub carts: BTreeMap<String, cart::State>,
    pub orders: BTreeMap<String, order::State>,
    pub payments: BTreeMap<String, payment::State>,
    pub sales: BTreeMap<String, flash_sale::State>,
    captured: BTreeMap<String, usize>,
    refunded: BTreeMap<String, usize>,
    voided: BTreeMap<String, usize>,
    authorized: BTreeMap<String, usize>,
    pub ledger: Ledger,
}

impl Books {
    pub async fn read(runtime: &Runtime, journal: &dyn Journal, bank: &Bank) -> Books {
        let ledger = Ledger::read(journal).await;
        Books {
            now: runtime.now(),
            items: states::<Inventory>(runtime, &ledger).await,
            carts: states::<Cart>(runtime, &ledger).await,
            orders: states::<Order>(runtime, &ledger).await,
            payments: states::<Payment>(runtime, &ledger).await,
            sales: states::<FlashSale>(runtime, &ledger).await,
            captured: bank.approved("capture"),
            refunded: bank.approved("refund"),
            voided: bank.approved("void"),
            authorized: bank.approved("authorize"),
            ledger,
        }
    }

    pub fn with_status(&self, status: Status) -> Vec<&order::State> {
        self.orders.values().filter(|order| order.status == status).collect()
    }

    pub fn ended(order: &order::State) -> bool {
        !matches!(order.status, Status::Absent | Status::Pending | Status::Reserved)
    }

    /// The first thing that is not at its end.
    pub fn unrest(&self) -> Option<String> {
        let owes = |who: &str, owed: usize| (owed > 0).then(|| format!("{who} owes {owed}"));
        let orders = self.orders.iter().filter_map(|(id, order)| match Books::ended(order) {
            false => Some(format!("{id} is {:?}", order.status)),
            true => owes(id, Order::owes(order).len()),
        });
        let payments = self.payments.iter().filter_map(|(id, payment)| owes(id, Payment::owes(payment).len()));
        let carts = self.carts.iter().filter_map(|(id, cart)| owes(id, Cart::owes(cart).len()));
        let sales = self.sales.iter().filter_map(|(id, sale)| owes(id, FlashSale::owes(sale).len()));
        orders.chain(payments).chain(carts).chain(sales).next()
    }

    /// Checks that nothing was lost, invented, or left half done. `stock`: the units that there were of each sku.
    #[track_caller]
    pub fn assert_balanced(&self, stock: &[(&str, u32)]) {
        assert_eq!(self.unrest(), None);
        self.assert_stock(stock);
        self.assert_money();
        self.assert_once();
        self.sales.keys().for_each(|sale| self.assert_sale(sale));
    }

    /// At every moment of its life the sale's units were somebody's or free, in the order of the line, and what it has sold
    /// is what orders have paid and what the inventory item knows.
    #[track_caller]
    fn assert_sale(&self, id: &str) {
        let records = self.ledger.records.iter().filter(|entry| entry.id == id);
        let state = Life::of(id, records.map(|entry| (entry.event_type.as_str(), &entry.data))).state;
        assert_eq!(state, self.sales[id], "{id} is what the journal says");
        let bought =
            self.orders.values().filter(|order| matches!(order.status, Status::Paid | Status::Shipped | Status::Delivered));
        let lines = bought.flat_map(|order| &order.draft.as_ref().unwrap().lines);
        let claimed = lines.filter(|line| line.claim.as_ref().is_some_and(|claimed| claimed.sale == id));
        let (terms, book) = (state.book.terms.as_ref().unwrap(), &state.book);
        assert_eq!(book.sold, claimed.map(|line| line.quantity).sum::<u32>(), "{id}: sold is what orders have paid");
        let told = self.items[&terms.sku].allotments.get(id).map(|allotment| (allotment.quantity, allotment.sold));
        let quantity = if book.is_closed() { book.sold } else { terms.quantity };
        assert_eq!(told, Some((quantity, book.sold)), "{id}: what the item knows");
    }

    #[track_caller]
    fn assert_stock(&self, stock: &[(&str, u32)]) {
        for (sku, units) in stock {
            let item = &self.items[*sku];
            let bought =
                self.orders.values().filter(|order| matches!(order.status, Status::Paid | Status::Shipped | Status::Delivered));
            let lines = bought.flat_map(|order| &order.draft.as_ref().unwrap().lines);
            let sold: u32 = lines.filter(|line| line.sku == *sku).map(|line| line.quantity).sum();
            assert_eq!(item.on_hand + sold, *units, "{sku}: on hand and sold make the stock");
            assert_eq!(item.reservations, BTreeMap::new(), "{sku}: nothing is reserved for ever");
            assert!(item.held <= u64::from(item.on_hand), "{sku}: no more is held than there is");
            for (cart, hold) in item.holds.iter().filter(|(_, hold)| hold.expires_at > self.now) {
                let line = self.carts[cart].lines.get(*sku).map_or(0, |line| line.quantity);
                assert_eq!(line, hold.quantity, "{sku} is held for {cart}, which has as much in it");
            }
        }
    }

    #[track_caller]
    fn assert_money(&self) {
        let (captures, refunds) = (self.ledger.count("payment.success"), self.ledger.count("payment.refunded"));
        for (id, order) in &self.orders {
            let payment = order::payment_id(id);
            let (bought, gone_back) = match order.status {
                Status::Paid | Status::Shipped | Status::Delivered => (1, 0),
                Status::Refunded => (1, 1),
                _ => (0, 0),
            };
            let times = |counts: &BTreeMap<String, usize>| counts.get(&payment).copied().unwrap_or(0);
            assert_eq!(times(&captures), bought, "{id} is {:?}: payment.success", order.status);
            assert_eq!(times(&refunds), gone_back, "{id} is {:?}: payment.refunded", order.status);
            assert_eq!(times(&self.captured), bought, "{id} is {:?}: captured at the bank", order.status);
            assert_eq!(times(&self.refunded), gone_back, "{id} is {:?}: refunded at the bank", order.status);
            if times(&self.authorized) > 0 && bought == 0 {
                assert_eq!(times(&self.voided), 1, "{id} is {:?}: what was authorized is voided", order.status);
            }
        }
        let ordered: Vec<_> = self.orders.keys().map(|order| order::payment_id(order)).collect();
        for payment in captures.keys().chain(self.captured.keys()) {
            assert!(ordered.contains(payment), "{payment} is captured without an order");
        }
    }

    /// However often a step was asked for, it is in the journal once.
    #[track_caller]
    fn assert_once(&self) {
        let mut counts = Vec::new();
        for (event_type, field) in [
            ("inventory.reserved", "order"),
            ("inventory.released", "order"),
            ("stock.decreased", "order"),
            ("stock.increased", "order"),
            ("cart.checked_out", "order"),
            ("cart.completed", "order"),
            ("order.line.reserved", "sku"),
            ("order.line.committed", "sku"),
            ("order.line.released", "sku"),
            ("order.line.restocked", "sku"),
            ("payment.failed", "step"),
        ] {
            counts.push((event_type, self.ledger.count_by(event_type, field)));
        }
        for event_type in [
            "order.created",
            "order.paid",
            "order.payment_failed",
            "order.cancelled",
            "order.refunded",
            "payment.created",
            "payment.authorized",
            "payment.capture_requested",
            "payment.success",
            "payment.voided",
            "payment.refunded",
        ] {
            counts.push((event_type, self.ledger.count(event_type)));
        }
        for (event_type, by_whom) in counts {
            let twice = by_whom.iter().find(|(_, times)| **times > 1);
            assert_eq!(twice, None, "{event_type} happens once");
        }
    }
}
