//! A line as it was at one moment, small enough to be carried to another node: from it everybody's place can be told.
//!
//! It names only those who are new since the last time, so that whoever asks again and again hears of each once.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::claims::ClaimNumber;
use super::customer::Customer;
use super::line::TicketNumber;
use crate::domain::Timestamp;

/// Newcomers, and offers, that are named at once.
pub const NEWS_MAX: usize = 4_000;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Places {
    /// The ticket that the first bits belong to.
    pub first: TicketNumber,
    /// Whose turn has not come, and who has not left.
    pub waiting: Bits,
    /// Those of them who are not connected.
    pub away: Bits,
    /// How far apart admissions are to be expected, in microseconds.
    pub pace_us: Option<i64>,
    /// The sale is over, and so is the line.
    pub is_closed: bool,
    /// Who still waits of those who came.
    pub newcomers: Vec<(TicketNumber, Customer)>,
    /// What was offered and not yet taken up.
    pub offers: Vec<Offer>,
    /// From where on to ask the next time.
    pub tickets_from: TicketNumber,
    pub claims_from: ClaimNumber,
    /// There is no more to be told now.
    pub is_all: bool,
}

/// Units for somebody whose turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    pub claim: ClaimNumber,
    pub customer: Customer,
    pub quantity: u32,
    pub until: Timestamp,
}

/// How long whoever has so many before them will wait.
pub fn wait_ms(ahead: u32, pace_us: i64) -> i64 {
    (i64::from(ahead) + 1).saturating_mul(pace_us) / 1_000
}

impl Places {
    pub fn is_away(&self, ticket: TicketNumber) -> bool {
        ticket.checked_sub(self.first).is_some_and(|bit| self.away.has(bit))
    }

    pub fn wait_ms(&self, ahead: u32) -> Option<i64> {
        self.pace_us.map(|pace_us| wait_ms(ahead, pace_us))
    }

    /// Tells how many wait before a ticket; `None` when it does not wait.
    pub fn ahead(&self) -> impl Fn(TicketNumber) -> Option<u32> {
        let (first, ranks) = (self.first, self.waiting.ranks());
        move |ticket| ranks.of(ticket.checked_sub(first)?)
    }
}

/// Numbers from 0, in a bit for each. In JSON: base64 of the bytes, the lowest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bits(Vec<u64>);

impl Bits {
    pub fn of(words: impl Iterator<Item = u64>) -> Self {
        Bits(words.collect())
    }

    pub fn set(&mut self, bit: u32) {
        let (word, within) = split(bit);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << within;
        }
    }

    pub fn has(&self, bit: u32) -> bool {
        let (word, within) = split(bit);
        self.0.get(word).is_some_and(|word| word >> within & 1 == 1)
    }

    pub fn ranks(&self) -> Ranks {
        let mut before = 0;
        let counted = self.0.iter().map(|word| {
            let all = before + word.count_ones();
            (std::mem::replace(&mut before, all), *word)
        });
        Ranks(counted.collect())
    }
}

fn split(bit: u32) -> (usize, u32) {
    ((bit / u64::BITS) as usize, bit % u64::BITS)
}

/// Each word with the number of bits before it.
pub struct Ranks(Vec<(u32, u64)>);

impl Ranks {
    /// How many bits before this one are set; `None` when it is not.
    pub fn of(&self, bit: u32) -> Option<u32> {
        let (word, within) = split(bit);
        let (before, word) = self.0.get(word)?;
        (word >> within & 1 == 1).then(|| before + (word & ((1 << within) - 1)).count_ones())
    }
}

impl Serialize for Bits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let bytes = BASE64_STANDARD.decode(text.as_bytes()).map_err(de::Error::custom)?;
        let (words, rest) = bytes.as_chunks();
        match rest {
            [] => Ok(Bits(words.iter().map(|word| u64::from_le_bytes(*word)).collect())),
            _ => Err(de::Error::custom("bits come in words of eight bytes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::testing::through_json;

    #[test]
    fn bits_survive_json_and_know_how_many_come_before() {
        let mut bits = Bits::default();
        for bit in [0, 3, 63, 64, 200] {
            bits.set(bit);
        }
        let read = through_json(&bits);
        assert_eq!(read, bits);
        let ranks = read.ranks();
        for (bit, before) in [(0, Some(0)), (1, None), (3, Some(1)), (63, Some(2)), (64, Some(3)), (200, Some(4)), (999, None)] {
            assert_eq!(ranks.of(bit), before, "{bit}");
            assert_eq!(read.has(bit), before.is_some(), "{bit}");
        }
        assert!(serde_json::from_str::<Bits>("\"AAAA\"").is_err());
        assert!(serde_json::from_str::<Bits>("\"?\"").is_err());
    }
}
