//! Money: whole minor units of one currency. Floating point is never used, and two currencies are never added.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An amount in minor units (cents for EUR) of an ISO 4217 currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Money {
    #[schemars(range(min = 0, max = AMOUNT_MAX))]
    pub amount: i64,
    pub currency: Currency,
}

/// The largest amount that a price, a line or an order may have, in minor units: far above any real one, far below
/// where sums of 64 bits overflow.
pub const AMOUNT_MAX: i64 = 1_000_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MoneyError {
    #[error("{left} and {right} cannot be added")]
    CurrenciesDiffer { left: Currency, right: Currency },
    #[error("the amount is larger than {AMOUNT_MAX} minor units")]
    TooLarge,
}

impl Money {
    pub const fn new(amount: i64, currency: Currency) -> Self {
        Money { amount, currency }
    }

    pub const fn zero(currency: Currency) -> Self {
        Money { amount: 0, currency }
    }

    pub fn plus(self, other: Money) -> Result<Money, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::CurrenciesDiffer { left: self.currency, right: other.currency });
        }
        Money::within(self.amount.checked_add(other.amount), self.currency)
    }

    pub fn times(self, quantity: u32) -> Result<Money, MoneyError> {
        Money::within(self.amount.checked_mul(i64::from(quantity)), self.currency)
    }

    /// The sum of amounts of one currency; zero of `currency` when there are none.
    pub fn sum(currency: Currency, amounts: impl IntoIterator<Item = Money>) -> Result<Money, MoneyError> {
        amounts.into_iter().try_fold(Money::zero(currency), Money::plus)
    }

    fn within(amount: Option<i64>, currency: Currency) -> Result<Money, MoneyError> {
        match amount {
            Some(amount) if amount.abs() <= AMOUNT_MAX => Ok(Money { amount, currency }),
            _ => Err(MoneyError::TooLarge),
        }
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (units, digits) = (10_i64.pow(self.currency.minor_digits()), self.currency.minor_digits() as usize);
        let sign = if self.amount < 0 { "-" } else { "" };
        let (whole, part) = (self.amount.abs() / units, self.amount.abs() % units);
        match digits {
            0 => write!(f, "{sign}{whole} {}", self.currency),
            _ => write!(f, "{sign}{whole}.{part:0digits$} {}", self.currency),
        }
    }
}

/// An ISO 4217 alphabetic code, e.g. `EUR`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency([u8; 3]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a currency is one of the three-letter codes of ISO 4217, such as EUR")]
pub struct NotACurrency;

/// The circulating currencies of ISO 4217 with the number of digits of their minor unit (its list one, 2024).
const CURRENCIES: [(&str, &[&str]); 3] = [
    ("0", &["BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"]),
    ("3", &["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"]),
    (
        "2",
        &[
            "AED", "AFN", "ALL", "AMD", "ANG", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BGN", "BMD", "BND",
            "BOB", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHF", "CNY", "COP", "CRC", "CUP", "CVE", "CZK",
            "DKK", "DOP", "DZD", "EGP", "ERN", "ETB", "EUR", "FJD", "FKP", "GBP", "GEL", "GHS", "GIP", "GMD", "GTQ", "GYD",
            "HKD", "HNL", "HTG", "HUF", "IDR", "ILS", "INR", "IRR", "JMD", "KES", "KGS", "KHR", "KPW", "KYD", "KZT", "LAK",
            "LBP", "LKR", "LRD", "LSL", "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU", "MUR", "MVR", "MWK", "MXN",
            "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD", "PAB", "PEN", "PGK", "PHP", "PKR", "PLN", "QAR", "RON",
            "RSD", "RUB", "SAR", "SBD", "SCR", "SDG", "SEK", "SGD", "SHP", "SLE", "SOS", "SRD", "SSP", "STN", "SVC", "SYP",
            "SZL", "THB", "TJS", "TMT", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "USD", "UYU", "UZS", "VES", "WST", "XCD",
            "YER", "ZAR", "ZMW", "ZWG",
        ],
    ),
];

impl Currency {
    pub const EUR: Currency = Currency(*b"EUR");

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???")
    }

    /// Digits after the decimal point when written in major units: 2 for EUR, 0 for JPY, 3 for KWD.
    pub fn minor_digits(&self) -> u32 {
        match CURRENCIES.iter().find(|(_, codes)| codes.contains(&self.as_str())) {
            Some(("0", _)) => 0,
            Some(("3", _)) => 3,
            _ => 2,
        }
    }
}

impl FromStr for Currency {
    type Err = NotACurrency;

    fn from_str(text: &str) -> Result<Self, NotACurrency> {
        let known = CURRENCIES.iter().any(|(_, codes)| codes.contains(&text));
        let code: Result<[u8; 3], _> = text.as_bytes().try_into();
        match code {
            Ok(code) if known => Ok(Currency(code)),
            _ => Err(NotACurrency),
        }
    }
}

impl JsonSchema for Currency {
    fn schema_name() -> Cow<'static, str> {
        "Currency".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut codes: Vec<&str> = CURRENCIES.iter().flat_map(|(_, codes)| codes.iter().copied()).collect();
        codes.sort_unstable();
        json_schema!({ "type": "string", "description": "An ISO 4217 alphabetic code.", "enum": codes })
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Code;
        impl de::Visitor<'_> for Code {
            type Value = Currency;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a currency code of ISO 4217")
            }
            fn visit_str<Error: de::Error>(self, text: &str) -> Result<Currency, Error> {
                text.parse().map_err(Error::custom)
            }
        }
        deserializer.deserialize_str(Code)
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_written_in_the_digits_of_its_currency() {
        for (amount, code, text) in [
            (1999, "EUR", "19.99 EUR"),
            (5, "EUR", "0.05 EUR"),
            (-150, "USD", "-1.50 USD"),
            (1999, "JPY", "1999 JPY"),
            (1999, "KWD", "1.999 KWD"),
        ] {
            assert_eq!(Money::new(amount, code.parse().unwrap()).to_string(), text);
        }
    }

    #[test]
    fn two_currencies_are_never_added() {
        let (eur, usd) = (Money::new(1, Currency::EUR), Money::new(1, "USD".parse().unwrap()));
        assert!(matches!(eur.plus(usd), Err(MoneyError::CurrenciesDiffer { .. })));
        assert_eq!(eur.plus(eur), Ok(Money::new(2, Currency::EUR)));
    }

    #[test]
    fn amounts_past_the_bound_are_refused_instead_of_wrapping() {
        let most = Money::new(AMOUNT_MAX, Currency::EUR);
        assert_eq!(most.plus(Money::new(1, Currency::EUR)), Err(MoneyError::TooLarge));
        assert_eq!(Money::new(i64::MAX, Currency::EUR).times(3), Err(MoneyError::TooLarge));
    }

    #[test]
    fn only_codes_of_iso_4217_are_currencies() {
        for text in ["eur", "EU", "EURO", "XXX", "", "€"] {
            assert_eq!(text.parse::<Currency>(), Err(NotACurrency), "{text}");
        }
    }
}
