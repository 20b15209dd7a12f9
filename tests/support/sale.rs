//! The life of a flash sale by its own records, judged at each of them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use souk::domain::flash_sale::{Claim, ClaimNumber, Event, State, TicketNumber};
use souk::domain::{Entity, FlashSale};

/// What became of it, and what was granted on the way.
#[derive(Default)]
pub struct Life {
    pub state: State,
    /// The first ticket of each customer, by the customer's bits.
    pub tickets: BTreeMap<u128, TicketNumber>,
    /// Units of each claim that could be paid.
    pub granted: BTreeMap<ClaimNumber, u32>,
}

impl Life {
    /// Folds the records, each as its type and its data. At every moment the units are somebody's or free, nobody has more than
    /// their limit, and the line moves in the order of arrival.
    #[track_caller]
    pub fn of<'a>(id: &str, records: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Life {
        let (mut life, mut last_ticket) = (Life::default(), None);
        for (event_type, data) in records {
            let event: Event = serde_json::from_value(json!({ "type": event_type, "data": data })).unwrap();
            match &event {
                Event::Admitted { admissions, .. } => {
                    for admission in admissions {
                        assert!(last_ticket < Some(admission.ticket), "{id} admits in the order of arrival");
                        last_ticket = Some(admission.ticket);
                    }
                }
                Event::Queued { ticket, customer, .. } => drop(life.tickets.entry(customer.to_bits()).or_insert(*ticket)),
                Event::Claimed { claim, quantity, .. } => {
                    let before = life.granted.insert(*claim, (*quantity).into());
                    assert_eq!(before, None, "{id} grants claim {claim} once");
                }
                _ => {}
            }
            FlashSale::evolve(&mut life.state, &event);
            life.assert_balanced(&format!("{id} after {event_type}"));
        }
        life
    }

    #[track_caller]
    fn assert_balanced(&self, when: &str) {
        let book = &self.state.book;
        let Some(terms) = &book.terms else { return };
        let bound = || book.claims().iter().map(|(_, claim)| claim).filter(|claim| claim.phase.binds());
        let units: u32 = bound().map(|claim| u32::from(claim.quantity)).sum();
        assert_eq!(book.sold + book.held(), units, "{when}: what is counted is what is claimed");
        if !book.is_closed() {
            assert_eq!(units + book.free(), terms.quantity, "{when}: sold, held and free are the allotment");
        }
        let mut customers: BTreeMap<u128, u32> = BTreeMap::new();
        bound().for_each(|Claim { customer, quantity, .. }| {
            *customers.entry(customer.to_bits()).or_default() += u32::from(*quantity)
        });
        let most = customers.values().max().copied().unwrap_or(0);
        assert!(most <= terms.per_customer_limit, "{when}: somebody has {most}");
    }
}
