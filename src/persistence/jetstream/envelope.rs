//! The form of a batch as a message: its subject, its headers, and what its checksum covers.
//!
//! The payload is the batch's own, unchanged. What was ever written must stay readable.

use std::sync::Arc;

use super::stream::{Message, Stored};
use crate::domain::Timestamp;
use crate::persistence::journal::{Append, Batch, Committed, EntityKey, Position, ReadError, Version, Wake};
use crate::persistence::nats::Prefix;
use crate::persistence::token;

pub const FIRST: &str = "Souk-First";
pub const COUNT: &str = "Souk-Count";
pub const WAKE: &str = "Souk-Wake";
pub const CRC: &str = "Souk-Crc";
pub const WRITE: &str = "Souk-Write";
/// More than all headers of a message weigh together, the server's own included.
pub const HEADERS_MAX_BYTES: usize = 1_024;
/// As in the embedded journal. Escaped it is three times as long at most, and still a subject that the server takes.
pub const ENTITY_KEY_MAX_BYTES: usize = 1_024;

const WAKE_NOW: i64 = i64::MIN;
const WAKE_NEVER: i64 = i64::MAX;

/// Says which of two equal messages is whose: no two writes share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteId(pub u128);

/// What a message's headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub first: Version,
    pub count: u32,
    pub wake: i64,
    pub crc: u32,
    pub write: WriteId,
}

impl Head {
    /// The headers' names and texts.
    pub fn texts(&self) -> [(&'static str, String); 5] {
        [
            (FIRST, self.first.to_string()),
            (COUNT, self.count.to_string()),
            (WAKE, self.wake.to_string()),
            (CRC, format!("{:08x}", self.crc)),
            (WRITE, format!("{:032x}", self.write.0)),
        ]
    }

    /// From the texts of the headers; `None` when one is missing or makes no sense.
    pub fn from_texts<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Option<Head> {
        let head = Head {
            first: text(FIRST)?.parse().ok()?,
            count: text(COUNT)?.parse().ok()?,
            wake: text(WAKE)?.parse().ok()?,
            crc: u32::from_str_radix(text(CRC)?, 16).ok()?,
            write: WriteId(u128::from_str_radix(text(WRITE)?, 16).ok()?),
        };
        let ends = head.first.checked_add(u64::from(head.count));
        (head.first > 0 && head.count > 0 && ends.is_some()).then_some(head)
    }

    pub fn last(&self) -> Version {
        self.first + u64::from(self.count) - 1
    }
}

pub fn wake_to_i64(wake: Wake) -> i64 {
    match wake {
        Wake::Now => WAKE_NOW,
        Wake::At(moment) => moment.as_millis(),
        Wake::Never => WAKE_NEVER,
    }
}

pub fn wake_from_i64(wake: i64) -> Wake {
    match wake {
        WAKE_NOW => Wake::Now,
        WAKE_NEVER => Wake::Never,
        millis => Wake::At(Timestamp::from_millis(millis)),
    }
}

/// The checksum binds a payload to its entity, its place there and its wake.
fn checksum(key: &EntityKey, first: Version, count: u32, wake: i64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.as_str().as_bytes());
    hasher.update(&[0]);
    hasher.update(&first.to_le_bytes());
    hasher.update(&count.to_le_bytes());
    hasher.update(&wake.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// Where a shop's batches are: the subjects of its entities.
#[derive(Debug, Clone)]
pub struct Subjects {
    journal: Arc<str>,
}

impl Subjects {
    pub fn new(prefix: &Prefix) -> Subjects {
        Subjects { journal: format!("{prefix}.j.").into() }
    }

    /// One subject for each entity: `P.j.<kind>.<id>`.
    pub fn of(&self, entity: &EntityKey) -> Arc<str> {
        let mut subject = String::with_capacity(self.journal.len() + entity.as_str().len() + 1);
        subject.push_str(&self.journal);
        token::push_entity(entity, &mut subject);
        subject.into()
    }

    /// The entity of a subject; `None` when it is not one that `of` makes.
    pub fn entity(&self, subject: &str) -> Option<EntityKey> {
        token::entity(subject.strip_prefix(&*self.journal)?)
    }

    pub fn message(&self, append: &Append, write: WriteId) -> Message {
        let Append { entity, expected, after, count, payload, wake } = append;
        let (first, wake) = (expected + 1, wake_to_i64(*wake));
        let crc = checksum(entity, first, *count, wake, payload);
        let head = Head { first, count: *count, wake, crc, write };
        Message { subject: self.of(entity), head, payload: payload.clone(), after: after.0 }
    }

    /// A stored message as the batch that it is, with its wake.
    pub fn batch(&self, stored: &Stored) -> Result<(Committed, Wake), ReadError> {
        let corrupt = |what: &str| ReadError::Corrupt { place: place(stored), what: what.into() };
        let entity = self.entity(&stored.subject).ok_or_else(|| corrupt("its subject names no entity"))?;
        let head = stored.head.ok_or_else(|| corrupt("its headers are missing or damaged"))?;
        if checksum(&entity, head.first, head.count, head.wake, &stored.payload) != head.crc {
            return Err(corrupt("the checksum does not match"));
        }
        let position = Position(stored.sequence);
        let batch = Batch { first: head.first, count: head.count, position, payload: stored.payload.clone() };
        Ok((Committed { entity, batch }, wake_from_i64(head.wake)))
    }
}

/// For messages to people.
pub fn place(stored: &Stored) -> String {
    format!("position {} ({})", stored.sequence, stored.subject)
}

/// A payload may be as large as this where the server takes messages of `message_bytes`.
pub fn payload_bytes_max(message_bytes: usize) -> usize {
    message_bytes.saturating_sub(HEADERS_MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn subjects() -> Subjects {
        Subjects::new(&Prefix::default())
    }

    #[test]
    fn any_key_is_a_subject_of_its_own_and_comes_back() {
        let keys = [
            ("cart", "01KAJ4Y3-x_y", "souk.j.cart.01KAJ4Y3-x_y"),
            ("inventory", "a.b c/*>=", "souk.j.inventory.a=2Eb=20c=2F=2A=3E=3D"),
            ("email", "ü@x", "souk.j.email.=C3=BC=40x"),
            ("cart", "", "souk.j.cart.="),
            ("cart", "=", "souk.j.cart.=3D"),
            ("", "\r\n\0", "souk.j.=.=0D=0A=00"),
        ];
        for (kind, id, subject) in keys {
            let key = EntityKey::new(kind, id);
            assert_eq!(&*subjects().of(&key), subject);
            assert_eq!(subjects().entity(subject), Some(key));
        }
        for foreign in ["souk.t.cart.a", "souk.j.cart", "souk.j.cart.a.b", "souk.j.cart.=2e", "souk.j.cart.=41", "souk.j..a", "x"]
        {
            assert_eq!(subjects().entity(foreign), None, "{foreign}");
        }
    }

    fn stored(head: impl FnOnce(&mut Head)) -> Stored {
        let append = Append {
            entity: EntityKey::new("cart", "a"),
            expected: 4,
            after: Position(9),
            count: 2,
            payload: Bytes::from_static(b"{}"),
            wake: Wake::Now,
        };
        let mut message = subjects().message(&append, WriteId(7));
        head(&mut message.head);
        Stored { sequence: 12, subject: message.subject, head: Some(message.head), payload: message.payload }
    }

    #[test]
    fn a_change_to_anything_that_matters_is_noticed() {
        let (committed, wake) = subjects().batch(&stored(|_| {})).unwrap();
        assert_eq!(committed.entity, EntityKey::new("cart", "a"));
        let batch = Batch { first: 5, count: 2, position: Position(12), payload: Bytes::from_static(b"{}") };
        assert_eq!((committed.batch, wake), (batch, Wake::Now));

        let mut damaged = vec![
            stored(|head| head.first = 6),
            stored(|head| head.count = 3),
            stored(|head| head.wake = 0),
            stored(|head| head.crc ^= 1),
        ];
        damaged.push(Stored { subject: "souk.j.cart.b".into(), ..stored(|_| {}) });
        damaged.push(Stored { payload: Bytes::from_static(b"[]"), ..stored(|_| {}) });
        damaged.push(Stored { head: None, ..stored(|_| {}) });
        damaged.push(Stored { subject: "souk.j.cart".into(), ..stored(|_| {}) });
        for stored in damaged {
            match subjects().batch(&stored) {
                Err(ReadError::Corrupt { place, .. }) => assert!(place.contains("position 12"), "{place}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn headers_come_back_as_they_were_and_nonsense_does_not() {
        let head = Head { first: u64::MAX - 3, count: 2, wake: WAKE_NOW, crc: 0xab, write: WriteId(1 << 100) };
        let texts = head.texts();
        assert!(texts.iter().map(|(name, text)| name.len() + text.len() + 4).sum::<usize>() < HEADERS_MAX_BYTES / 2);
        let read = |change: Option<(&str, &'static str)>| {
            Head::from_texts(|name| match change {
                Some((changed, text)) if changed == name => Some(text),
                _ => texts.iter().find(|(of, _)| *of == name).map(|(_, text)| text.as_str()),
            })
        };
        assert_eq!(read(None), Some(head));
        for (name, text) in
            [(FIRST, "0"), (FIRST, "18446744073709551615"), (COUNT, "0"), (COUNT, "-1"), (WAKE, ""), (CRC, "xyz"), (WRITE, "ü")]
        {
            assert_eq!(read(Some((name, text))), None, "{name}: {text}");
        }
        assert_eq!(Head::from_texts(|_| None), None);
    }
}
