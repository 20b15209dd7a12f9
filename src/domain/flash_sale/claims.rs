//! All claims that a flash sale ever granted, in the order of their numbers.
//!
//! A million of them must fit into memory beside each other, and be copied aside in microseconds for a snapshot: hence
//! fixed sizes, and chunks that a copy shares until they change.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU128};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ulid::Ulid;

use super::customer::{Customer, ulid};
use super::packed::{self, Packed, take};
use crate::domain::{Timestamp, ids};

/// Claims to a chunk: what a change copies at most, once after each snapshot.
const CHUNK: usize = 1024;

/// A claim's place among the claims of its sale, from 0.
pub type ClaimNumber = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub customer: Customer,
    pub phase: ClaimPhase,
    /// What one customer can claim at once fits: see `PER_CUSTOMER_MAX`.
    pub quantity: u16,
    /// Until when it can be taken up (offered) or paid (held).
    pub until: Millis,
    /// The order that pays for it.
    pub order: Option<OrderNumber>,
    /// A hash of the command that it was granted to: the same command again has no second effect.
    pub command: u64,
    /// A hash of the network address that it was made from; 0 where none is limited.
    pub address: u64,
    /// The customer's claim before this one, if it had one. Told by the order of the claims.
    pub previous: Option<Link>,
}

/// The phase, and which of the fields that most claims lack it has.
const HAS_ORDER: u8 = 0x10;
const HAS_ADDRESS: u8 = 0x20;
const PHASE: u8 = 0x0f;

/// Numbers are little endian: phase, customer, quantity, until, command, and if there are any order and address.
impl Packed for Claim {
    fn pack(&self, out: &mut Vec<u8>) {
        let has = |has: bool, bit: u8| if has { bit } else { 0 };
        out.push(self.phase.number() | has(self.order.is_some(), HAS_ORDER) | has(self.address != 0, HAS_ADDRESS));
        out.extend_from_slice(&self.customer.to_bits().to_le_bytes());
        out.extend_from_slice(&self.quantity.to_le_bytes());
        out.extend_from_slice(&self.until.0.to_le_bytes());
        out.extend_from_slice(&self.command.to_le_bytes());
        if let Some(OrderNumber(order)) = self.order {
            out.extend_from_slice(&order.get().to_le_bytes());
        }
        if self.address != 0 {
            out.extend_from_slice(&self.address.to_le_bytes());
        }
    }

    fn unpack(bytes: &mut &[u8]) -> Option<Self> {
        let [head] = take(bytes)?;
        let phase = ClaimPhase::of_number(head & PHASE)?;
        let customer = Customer::from_bits(u128::from_le_bytes(take(bytes)?));
        let quantity = u16::from_le_bytes(take(bytes)?);
        let until = Millis(i64::from_le_bytes(take(bytes)?));
        let command = u64::from_le_bytes(take(bytes)?);
        let order = match head & HAS_ORDER {
            0 => None,
            _ => Some(OrderNumber(NonZeroU128::new(u128::from_le_bytes(take(bytes)?))?)),
        };
        let address = match head & HAS_ADDRESS {
            0 => 0,
            _ => u64::from_le_bytes(take(bytes)?),
        };
        Some(Claim { customer, phase, quantity, until, order, command, address, previous: None })
    }
}

/// A claim's number in four bytes, with room for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link(NonZeroU32);

impl Link {
    pub fn to(number: ClaimNumber) -> Option<Self> {
        NonZeroU32::new(number.wrapping_add(1)).map(Link)
    }

    pub fn number(self) -> ClaimNumber {
        self.0.get() - 1
    }
}

/// An order's id in sixteen bytes, with room for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderNumber(NonZeroU128);

impl OrderNumber {
    pub fn parse(id: &str) -> Option<Self> {
        NonZeroU128::new(ulid(ids::ORDER, id)?.into()).map(OrderNumber)
    }
}

impl fmt::Display for OrderNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", ids::ORDER, Ulid::from(self.0.get()))
    }
}

/// A moment in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub i64);

impl From<Timestamp> for Millis {
    fn from(at: Timestamp) -> Self {
        Millis(at.as_millis())
    }
}

impl From<Millis> for Timestamp {
    fn from(Millis(at): Millis) -> Self {
        Timestamp::from_millis(at)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClaimPhase {
    /// Its units are set aside for whoever is next in line, to be taken up.
    #[serde(rename = "o")]
    Offered,
    /// Its units are the customer's to pay.
    #[serde(rename = "h")]
    Held,
    /// An order is being paid.
    #[serde(rename = "p")]
    Paying,
    #[serde(rename = "s")]
    Sold,
    /// Not taken up or not paid in time.
    #[serde(rename = "x")]
    Expired,
    /// Given up, declined or cancelled.
    #[serde(rename = "r")]
    Released,
    /// Sold, and refunded.
    #[serde(rename = "b")]
    Returned,
}

/// Each phase by its number when packed, which is for ever.
const PHASES: [ClaimPhase; 7] = [
    ClaimPhase::Offered,
    ClaimPhase::Held,
    ClaimPhase::Paying,
    ClaimPhase::Sold,
    ClaimPhase::Expired,
    ClaimPhase::Released,
    ClaimPhase::Returned,
];

impl ClaimPhase {
    fn number(self) -> u8 {
        self as u8
    }

    fn of_number(number: u8) -> Option<Self> {
        PHASES.get(usize::from(number)).copied()
    }

    /// Whether its units are neither free nor given back.
    pub fn binds(self) -> bool {
        matches!(self, ClaimPhase::Offered | ClaimPhase::Held | ClaimPhase::Paying | ClaimPhase::Sold)
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Claims {
    chunks: Vec<Arc<Vec<Claim>>>,
}

impl Claims {
    pub fn len(&self) -> ClaimNumber {
        let last = self.chunks.last().map_or(0, |chunk| chunk.len());
        (self.chunks.len().saturating_sub(1) * CHUNK + last) as ClaimNumber
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub fn get(&self, number: ClaimNumber) -> Option<&Claim> {
        let number = number as usize;
        self.chunks.get(number / CHUNK)?.get(number % CHUNK)
    }

    pub fn get_mut(&mut self, number: ClaimNumber) -> Option<&mut Claim> {
        let number = number as usize;
        Arc::make_mut(self.chunks.get_mut(number / CHUNK)?).get_mut(number % CHUNK)
    }

    pub fn push(&mut self, claim: Claim) {
        match self.chunks.last_mut().filter(|chunk| chunk.len() < CHUNK) {
            Some(chunk) => Arc::make_mut(chunk).push(claim),
            None => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(claim);
                self.chunks.push(Arc::new(chunk));
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (ClaimNumber, &Claim)> {
        (0..).zip(self.chunks.iter().flat_map(|chunk| chunk.iter()))
    }
}

impl Serialize for Claims {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        packed::serialize(self.iter().map(|(_, claim)| *claim), serializer)
    }
}

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut claims = Claims::default();
        packed::deserialize(deserializer, |claim| claims.push(claim))?;
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::super::customer::guest;
    use super::*;
    use crate::domain::testing::{at, through_json};

    fn claim(number: u64) -> Claim {
        Claim {
            customer: guest(number),
            phase: ClaimPhase::Held,
            quantity: 1,
            until: at(0).into(),
            order: None,
            command: number,
            address: 0,
            previous: None,
        }
    }

    #[test]
    fn a_claim_is_small() {
        assert!(size_of::<Claim>() <= 64, "{} bytes", size_of::<Claim>());
    }

    #[test]
    fn claims_are_found_by_their_number_and_a_copy_does_not_change() {
        let mut claims = Claims::default();
        (0..3_000).for_each(|number| claims.push(claim(number)));
        assert_eq!(claims.len(), 3_000);
        let copy = claims.clone();
        claims.get_mut(2_047).unwrap().phase = ClaimPhase::Sold;
        assert_eq!(claims.get(2_047).unwrap().phase, ClaimPhase::Sold);
        assert_eq!(copy.get(2_047).unwrap().phase, ClaimPhase::Held);
        assert_eq!(claims.get(3_000), None);
        assert!(claims.iter().all(|(number, claim)| claim.command == u64::from(number)));
    }

    #[test]
    fn claims_survive_json_with_all_that_they_bear() {
        let mut claims = Claims::default();
        for number in 0..2_500 {
            let order = number % 3 == 0;
            claims.push(Claim {
                phase: PHASES[number as usize % PHASES.len()],
                quantity: (number % 7) as u16 + 1,
                until: Millis(number as i64 * 1_000_000_007),
                order: order.then(|| OrderNumber(NonZeroU128::new((u128::from(number) << 64) | 1).unwrap())),
                address: if number % 2 == 0 { u64::MAX - number } else { 0 },
                ..claim(number)
            });
        }
        assert_eq!(through_json(&claims), claims);
        assert_eq!(through_json(&Claims::default()), Claims::default());
    }

    #[test]
    fn a_claim_weighs_less_than_fifty_bytes_in_a_snapshot() {
        let mut claims = Claims::default();
        (0..10_000).for_each(|number| claims.push(claim(number)));
        let bytes = serde_json::to_vec(&claims).unwrap().len();
        assert!(bytes < 50 * 10_000, "{bytes} bytes");
    }

    #[test]
    fn each_phase_has_a_number_of_its_own() {
        for phase in PHASES {
            assert_eq!(ClaimPhase::of_number(phase.number()), Some(phase));
        }
        assert_eq!(ClaimPhase::of_number(PHASES.len() as u8), None);
    }

    #[test]
    fn what_is_no_claim_is_refused() {
        let whole = serde_json::to_string(&{
            let mut claims = Claims::default();
            claims.push(claim(1));
            claims
        })
        .unwrap();
        for damaged in [whole.replace("\"]", "AA\"]"), whole.replace("[\"", "[\"_"), r#"["D"]"#.to_owned(), r#"[7]"#.to_owned()] {
            assert!(serde_json::from_str::<Claims>(&damaged).is_err(), "{damaged}");
        }
    }
}
