//! The waiting room: tickets in the order of their arrival, each with its place.
//!
//! Tickets leave at the front when they are admitted, and anywhere when somebody gives up. The place of a ticket is the
//! number of tickets before it that still wait. Kept in chunks that a copy shares until they change: see `claims`.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::claims::Millis;
use super::customer::Customer;
use super::packed::{self, Packed, take};
use super::places::Bits;

const CHUNK: u32 = 1024;

/// A ticket's number in the order of arrival, from 0.
pub type TicketNumber = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    pub customer: Customer,
    /// Units that it waits for.
    pub quantity: u16,
    /// See `Claim::command` and `Claim::address`.
    pub command: u64,
    pub address: u64,
    /// Until when the place is kept for somebody who is gone.
    pub away_until: Option<Millis>,
}

#[derive(Debug, Clone, Default)]
pub struct Line {
    /// From the chunk that holds the front on.
    chunks: VecDeque<Arc<Chunk>>,
    /// The number of the first ticket of the first chunk.
    first: TicketNumber,
    /// The number that the next ticket gets.
    next: TicketNumber,
    waiting: u32,
}

#[derive(Debug, Clone, Default)]
struct Chunk {
    /// `None` where nobody waits any more.
    tickets: Vec<Option<Ticket>>,
    /// The same in a bit for each: to be copied where all places are asked for.
    standing: [u64; (CHUNK / u64::BITS) as usize],
    waiting: u32,
}

impl Chunk {
    fn flip(&mut self, within: usize) {
        if let Some(word) = self.standing.get_mut(within / u64::BITS as usize) {
            *word ^= 1 << (within % u64::BITS as usize);
        }
    }
}

impl Line {
    /// How many wait.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// The number that the next ticket gets.
    pub fn next(&self) -> TicketNumber {
        self.next
    }

    pub fn get(&self, number: TicketNumber) -> Option<&Ticket> {
        let (chunk, within) = self.find(number)?;
        self.chunks.get(chunk)?.tickets.get(within)?.as_ref()
    }

    pub fn get_mut(&mut self, number: TicketNumber) -> Option<&mut Ticket> {
        let (chunk, within) = self.find(number)?;
        Arc::make_mut(self.chunks.get_mut(chunk)?).tickets.get_mut(within)?.as_mut()
    }

    /// How many wait before this ticket; `None` when it does not wait.
    pub fn ahead_of(&self, number: TicketNumber) -> Option<u32> {
        self.get(number)?;
        let (chunk, within) = self.find(number)?;
        let before: u32 = self.chunks.iter().take(chunk).map(|chunk| chunk.waiting).sum();
        let beside = self.chunks.get(chunk)?.tickets.iter().take(within).flatten().count() as u32;
        Some(before + beside)
    }

    /// Who still waits, in a bit for each ticket, and the number of the first.
    pub fn standing(&self) -> (TicketNumber, Bits) {
        (self.first, Bits::of(self.chunks.iter().flat_map(|chunk| chunk.standing)))
    }

    /// Those who wait, from this number on.
    pub fn from(&self, number: TicketNumber) -> impl Iterator<Item = (TicketNumber, &Ticket)> {
        let from_first = number.saturating_sub(self.first);
        let (chunk, within) = (from_first / CHUNK, (from_first % CHUNK) as usize);
        let chunks = self.chunks.iter().skip(chunk as usize);
        let all = (self.first + chunk * CHUNK..).zip(chunks.flat_map(|chunk| &chunk.tickets)).skip(within);
        all.filter_map(|(number, ticket)| Some((number, ticket.as_ref()?)))
    }

    /// Those who wait, from the front.
    pub fn iter(&self) -> impl Iterator<Item = (TicketNumber, &Ticket)> {
        let all = (self.first..).zip(self.chunks.iter().flat_map(|chunk| &chunk.tickets));
        all.filter_map(|(number, ticket)| Some((number, ticket.as_ref()?)))
    }

    pub fn push(&mut self, ticket: Ticket) {
        if self.chunks.back().is_none_or(|chunk| chunk.tickets.len() as u32 >= CHUNK) {
            if self.chunks.is_empty() {
                self.first = self.next;
            }
            self.chunks.push_back(Arc::default());
        }
        if let Some(chunk) = self.chunks.back_mut().map(Arc::make_mut) {
            chunk.flip(chunk.tickets.len());
            chunk.tickets.push(Some(ticket));
            chunk.waiting += 1;
            self.next += 1;
            self.waiting += 1;
        }
    }

    pub fn remove(&mut self, number: TicketNumber) -> Option<Ticket> {
        let (index, within) = self.find(number)?;
        let chunk = Arc::make_mut(self.chunks.get_mut(index)?);
        let ticket = chunk.tickets.get_mut(within)?.take()?;
        chunk.flip(within);
        chunk.waiting -= 1;
        self.waiting -= 1;
        while self.chunks.front().is_some_and(|chunk| chunk.waiting == 0 && chunk.tickets.len() as u32 == CHUNK) {
            self.chunks.pop_front();
            self.first += CHUNK;
        }
        Some(ticket)
    }

    /// The chunk that holds this number, and where in it.
    fn find(&self, number: TicketNumber) -> Option<(usize, usize)> {
        let from_first = number.checked_sub(self.first)?;
        Some(((from_first / CHUNK) as usize, (from_first % CHUNK) as usize))
    }

    /// Leaves a gap where nobody waits.
    fn skip_to(&mut self, number: TicketNumber) {
        if self.waiting == 0 {
            self.chunks.clear();
            self.next = number;
        }
        while self.next < number {
            if self.chunks.back().is_none_or(|chunk| chunk.tickets.len() as u32 >= CHUNK) {
                self.chunks.push_back(Arc::default());
            }
            if let Some(chunk) = self.chunks.back_mut().map(Arc::make_mut) {
                chunk.tickets.push(None);
            }
            self.next += 1;
        }
    }
}

impl PartialEq for Line {
    fn eq(&self, other: &Line) -> bool {
        self.next == other.next && self.iter().eq(other.iter())
    }
}

/// In JSON: the number of the next ticket, and those who wait.
impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Waiting<'a>(&'a Line);
        impl Serialize for Waiting<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                packed::serialize(self.0.iter().map(|(number, ticket)| Numbered(number, *ticket)), serializer)
            }
        }
        (self.next, Waiting(self)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Waiting(Line);
        impl<'de> Deserialize<'de> for Waiting {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let mut line = Line::default();
                packed::deserialize(deserializer, |Numbered(number, ticket)| {
                    line.skip_to(number);
                    line.push(ticket);
                })?;
                Ok(Waiting(line))
            }
        }
        let (next, Waiting(mut line)): (TicketNumber, Waiting) = Deserialize::deserialize(deserializer)?;
        line.skip_to(next);
        Ok(line)
    }
}

struct Numbered(TicketNumber, Ticket);

const IS_AWAY: u8 = 1;

/// Numbers are little endian: whether its holder is away, its number, customer, quantity, command, address, and if so until
/// when.
impl Packed for Numbered {
    fn pack(&self, out: &mut Vec<u8>) {
        let Numbered(number, Ticket { customer, quantity, command, address, away_until }) = self;
        out.push(if away_until.is_some() { IS_AWAY } else { 0 });
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&customer.to_bits().to_le_bytes());
        out.extend_from_slice(&quantity.to_le_bytes());
        out.extend_from_slice(&command.to_le_bytes());
        out.extend_from_slice(&address.to_le_bytes());
        if let Some(Millis(until)) = away_until {
            out.extend_from_slice(&until.to_le_bytes());
        }
    }

    fn unpack(bytes: &mut &[u8]) -> Option<Self> {
        let [head] = take(bytes)?;
        let number = TicketNumber::from_le_bytes(take(bytes)?);
        let customer = Customer::from_bits(u128::from_le_bytes(take(bytes)?));
        let quantity = u16::from_le_bytes(take(bytes)?);
        let command = u64::from_le_bytes(take(bytes)?);
        let address = u64::from_le_bytes(take(bytes)?);
        let away_until = match head {
            0 => None,
            IS_AWAY => Some(Millis(i64::from_le_bytes(take(bytes)?))),
            _ => return None,
        };
        Some(Numbered(number, Ticket { customer, quantity, command, address, away_until }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::customer::guest;
    use super::*;
    use crate::domain::testing::through_json;

    fn ticket(number: u32) -> Ticket {
        Ticket { customer: guest(u64::from(number)), quantity: 1, command: 0, address: 0, away_until: None }
    }

    fn line(tickets: u32) -> Line {
        let mut line = Line::default();
        (0..tickets).for_each(|number| line.push(ticket(number)));
        line
    }

    #[test]
    fn a_place_is_how_many_still_wait_before() {
        let mut line = line(5_000);
        for number in (0..2_000).chain([2_500, 4_998]) {
            assert_eq!(line.remove(number), Some(ticket(number)));
            assert_eq!(line.remove(number), None);
        }
        assert_eq!((line.waiting(), line.next()), (2_998, 5_000));
        for (number, ahead) in
            [(1_999, None), (2_000, Some(0)), (2_499, Some(499)), (2_500, None), (2_501, Some(500)), (4_999, Some(2_997))]
        {
            assert_eq!(line.ahead_of(number), ahead, "{number}");
        }
        assert_eq!(line.iter().next(), Some((2_000, &ticket(2_000))));
        assert_eq!(line.chunks.len(), 4, "whole chunks that are done are forgotten");
    }

    #[test]
    fn a_line_survives_json_with_its_numbers() {
        for gone in [0..0, 0..1_500, 10..20, 0..3_000] {
            let mut line = line(3_000);
            for number in gone.clone() {
                line.remove(number);
            }
            if let Some(ticket) = line.get_mut(2_999) {
                (ticket.command, ticket.address, ticket.away_until) = (u64::MAX, 7, Some(Millis(1_000)));
            }
            let read = through_json(&line);
            assert_eq!((read.waiting(), read.next()), (line.waiting(), line.next()), "{gone:?}");
            assert!(read.iter().eq(line.iter()), "{gone:?}");
            assert!((0..3_000).all(|number| read.ahead_of(number) == line.ahead_of(number)), "{gone:?}");
        }
    }

    #[test]
    fn the_bits_of_a_line_say_who_stands_in_it_and_whoever_came_from_a_number_on_is_listed() {
        for gone in [0..0, 0..1_500, 10..20, 2_000..3_000, 0..3_000] {
            let mut line = line(3_000);
            for number in gone.clone() {
                line.remove(number);
            }
            for line in [&line, &through_json(&line)] {
                let (first, bits) = line.standing();
                let ranks = bits.ranks();
                for number in 0..3_000_u32 {
                    let ahead = number.checked_sub(first).and_then(|bit| ranks.of(bit));
                    assert_eq!(ahead, line.ahead_of(number), "{gone:?} {number}");
                }
                for from in [0, 1, 999, 1_024, 1_600, 2_999, 3_000, 4_000] {
                    let listed: Vec<_> = line.from(from).map(|(number, _)| number).collect();
                    let waiting: Vec<_> = line.iter().map(|(number, _)| number).filter(|number| *number >= from).collect();
                    assert_eq!(listed, waiting, "{gone:?} from {from}");
                }
            }
        }
    }

    #[test]
    fn a_copy_does_not_change() {
        let mut line = line(10);
        let copy = line.clone();
        line.remove(0);
        assert_eq!((copy.waiting(), line.waiting()), (10, 9));
    }
}
