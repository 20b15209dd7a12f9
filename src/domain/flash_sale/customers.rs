//! What a sale knows of each of its customers, told from its claims and its line.
//!
//! In shards that a copy shares until they change: whoever is told at the door that there is nothing to be had is looked up
//! in such a copy first. Trees and not hash tables, because a million entries that are moved at once would hold up a claim.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::claims::{ClaimNumber, Link};
use super::customer::Customer;

const SHARDS: usize = 1024;

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Known {
    pub last_claim: Option<Link>,
    pub ticket: Option<Link>,
    /// Offered, claimed, being paid or sold.
    pub units: u32,
}

type Shard = BTreeMap<Customer, Known>;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Customers {
    /// None at all while nobody is known.
    shards: Vec<Arc<Shard>>,
}

impl Customers {
    /// Nothing of somebody who is not known.
    pub fn get(&self, customer: Customer) -> Known {
        self.shards.get(place(customer)).and_then(|shard| shard.get(&customer)).copied().unwrap_or_default()
    }

    pub fn knows(&self, customer: Customer) -> bool {
        self.shards.get(place(customer)).is_some_and(|shard| shard.contains_key(&customer))
    }

    /// Whoever has nothing after the change is not known any more.
    pub fn change(&mut self, customer: Customer, change: impl FnOnce(&mut Known)) {
        if self.shards.is_empty() {
            self.shards.resize_with(SHARDS, Arc::default);
        }
        if let Some(shard) = self.shards.get_mut(place(customer)).map(Arc::make_mut) {
            let known = shard.entry(customer).or_default();
            change(known);
            if *known == Known::default() {
                shard.remove(&customer);
            }
        }
    }

    /// All at once, from their claims in the order of their numbers, each with the units that it binds. Hands the claim
    /// before it to each that has one.
    pub fn of(claims: impl Iterator<Item = (ClaimNumber, Customer, u32)>, mut link: impl FnMut(ClaimNumber, Link)) -> Self {
        let mut sorted = vec![Vec::new(); SHARDS];
        for (number, customer, units) in claims {
            if let Some(shard) = sorted.get_mut(place(customer)) {
                shard.push((customer, number, units));
            }
        }
        if sorted.iter().all(Vec::is_empty) {
            return Customers::default();
        }
        let mut shard_of = |mut claims: Vec<(Customer, ClaimNumber, u32)>| {
            claims.sort_unstable();
            let mut shard: Vec<(Customer, Known)> = Vec::with_capacity(claims.len());
            for (customer, number, units) in claims {
                match shard.last_mut() {
                    Some((last, known)) if *last == customer => {
                        if let Some(before) = known.last_claim {
                            link(number, before);
                        }
                        known.last_claim = Link::to(number);
                        known.units += units;
                    }
                    _ => shard.push((customer, Known { last_claim: Link::to(number), ticket: None, units })),
                }
            }
            Arc::new(shard.into_iter().collect::<Shard>())
        };
        Customers { shards: sorted.into_iter().map(&mut shard_of).collect() }
    }
}

/// The lower bits of a ULID and of a hash are as good as random.
fn place(customer: Customer) -> usize {
    customer.to_bits() as usize % SHARDS
}

#[cfg(test)]
mod tests {
    use super::super::customer::guest;
    use super::*;

    #[test]
    fn a_copy_does_not_change_and_who_has_nothing_is_not_known() {
        let mut customers = Customers::default();
        assert!(!customers.knows(guest(1)));
        customers.change(guest(1), |known| known.ticket = Link::to(7));
        let copy = customers.clone();
        customers.change(guest(1), |known| known.ticket = None);
        customers.change(guest(2), |known| known.units = 1);
        assert_eq!((copy.knows(guest(1)), copy.knows(guest(2))), (true, false));
        assert_eq!((customers.knows(guest(1)), customers.knows(guest(2))), (false, true));
        assert_eq!(copy.get(guest(1)).ticket, Link::to(7));
        assert_eq!(customers.get(guest(1)), Known::default());
    }

    #[test]
    fn told_at_once_they_are_as_told_one_by_one_with_their_claims_linked() {
        let claims: Vec<_> = (0..5_000).map(|number: u32| (number, guest(u64::from(number * 7 % 3_000)), number % 3)).collect();
        let (mut one_by_one, mut links) = (Customers::default(), Vec::new());
        for (number, customer, units) in &claims {
            one_by_one.change(*customer, |known| {
                links.extend(known.last_claim.map(|before| (*number, before)));
                known.last_claim = Link::to(*number);
                known.units += units;
            });
        }
        let mut linked = Vec::new();
        let at_once = Customers::of(claims.into_iter(), |number, before| linked.push((number, before)));
        linked.sort_unstable_by_key(|(number, _)| *number);
        assert_eq!((at_once == one_by_one, linked), (true, links));
    }
}
