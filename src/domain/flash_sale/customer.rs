//! Who buys in a flash sale, in sixteen bytes: a sale may know a million of them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use ulid::Ulid;

use crate::domain::ids;
use crate::domain::order::Owner;

/// An account's ULID, or a guest by the first half of its token's SHA-256. The highest bit says which: no ULID has it before
/// the year 6429.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Customer(u128);

const GUEST: u128 = 1 << 127;
/// Hex digits of a guest's hash that are kept.
const GUEST_DIGITS: usize = 32;

impl Customer {
    /// `None` where the owner is not as the door makes one.
    pub fn of(owner: &Owner) -> Option<Self> {
        match owner {
            Owner::Account { user } => Customer::account(user),
            Owner::Guest { token_sha256 } => Customer::guest(token_sha256.get(..GUEST_DIGITS)?),
        }
    }

    pub fn to_bits(self) -> u128 {
        self.0
    }

    pub fn from_bits(bits: u128) -> Self {
        Customer(bits)
    }

    fn account(user: &str) -> Option<Self> {
        ulid(ids::USER, user).map(u128::from).filter(|bits| bits & GUEST == 0).map(Customer)
    }

    fn guest(digits: &str) -> Option<Self> {
        let joined = |hash: u128, digit: u8| Some(hash << 4 | u128::from(char::from(digit).to_digit(16)?));
        let hash = digits.bytes().try_fold(0, joined).filter(|_| digits.len() == GUEST_DIGITS)?;
        Some(Customer(hash | GUEST))
    }

    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("guest_") {
            Some(digits) => Customer::guest(digits),
            None => Customer::account(text),
        }
    }
}

/// The ULID of an id with this prefix.
pub fn ulid(prefix: &str, id: &str) -> Option<Ulid> {
    let rest = id.strip_prefix(prefix)?.strip_prefix('_')?;
    Ulid::from_string(rest).ok().filter(|_| rest.len() == 26)
}

impl fmt::Display for Customer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 & GUEST {
            0 => write!(f, "{}_{}", ids::USER, Ulid::from(self.0)),
            _ => write!(f, "guest_{:032x}", self.0),
        }
    }
}

impl fmt::Debug for Customer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// By hand: each claim's record bears one.
impl Serialize for Customer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = *b"guest_00000000000000000000000000000000";
        if self.0 & GUEST == 0 {
            return serializer.collect_str(self);
        }
        let mut rest = self.0;
        for place in text.iter_mut().rev().take(GUEST_DIGITS) {
            *place = char::from_digit((rest & 0xf) as u32, 16).map_or(b'0', |digit| digit as u8);
            rest >>= 4;
        }
        serializer.serialize_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl<'de> Deserialize<'de> for Customer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Customer;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an account's id or guest_ and 32 hex digits")
            }
            fn visit_str<Error: de::Error>(self, text: &str) -> Result<Customer, Error> {
                Customer::parse(text).ok_or_else(|| Error::custom("not a customer"))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
pub fn guest(number: u64) -> Customer {
    Customer(GUEST | u128::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::testing::through_json;

    #[test]
    fn accounts_and_guests_are_told_apart_and_survive_json() {
        let account = Owner::Account { user: "usr_01M7XTJ72XFBZWPK91BJAAFXTS".to_owned() };
        let guest = Owner::Guest { token_sha256: "8f05".repeat(16) };
        for (owner, text) in
            [(account, "usr_01M7XTJ72XFBZWPK91BJAAFXTS".to_owned()), (guest, format!("guest_{}", "8f05".repeat(8)))]
        {
            let customer = Customer::of(&owner).unwrap();
            assert_eq!(customer.to_string(), text);
            assert_eq!(serde_json::to_value(customer).unwrap(), text);
            assert_eq!(through_json(&customer), customer);
        }
    }

    #[test]
    fn what_is_nobody_is_refused() {
        for text in ["", "usr_1", "guest_", "guest_+a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a", "ord_01M7XTJ72XFBZWPK91BJAAFXTS"] {
            assert_eq!(Customer::parse(text), None, "{text}");
        }
        assert_eq!(Customer::of(&Owner::Guest { token_sha256: "é".repeat(32) }), None);
    }
}
