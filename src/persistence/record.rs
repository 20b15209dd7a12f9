//! The form of a record on disk and on the wire: CloudEvents 1.0 in JSON, which a person can read.
//!
//! A batch's payload is one JSON object: when the entity must next wake, the answers that its commands got, and the
//! events. Written by hand for speed, read by serde; what was ever written must stay readable.

use std::borrow::Cow;

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, de, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::journal::{EntityKey, Version, Wake};
use crate::domain::{CommandId, Timestamp};

/// The CloudEvents `source` of every record.
const SOURCE: &str = "/souk";

/// Who caused an event, and when.
#[derive(Debug, Clone, Copy)]
pub struct Cause<'a> {
    pub command: &'a CommandId,
    /// The request or message that started it all.
    pub correlation: &'a str,
    pub asker: &'a str,
    pub time: Timestamp,
}

/// Builds one batch's payload record by record.
pub struct PayloadWriter {
    events: Vec<u8>,
    answers: Vec<u8>,
    count: u32,
    envelope: Option<Envelope>,
}

/// What records of one entity have in common, as it is written.
struct Envelope {
    entity: EntityKey,
    /// Up to the version in the record's id.
    before_version: Vec<u8>,
    /// From there to its time.
    before_time: Vec<u8>,
}

impl Envelope {
    fn of(entity: &EntityKey) -> Result<Self, serde_json::Error> {
        let mut before_version = format!("{{\"specversion\":\"1.0\",\"source\":\"{SOURCE}\",\"id\":").into_bytes();
        serde_json::to_writer(&mut before_version, entity.as_str())?;
        // The id goes on with the version.
        before_version.pop();
        before_version.push(b'/');
        let mut before_time = b"\",\"subject\":".to_vec();
        serde_json::to_writer(&mut before_time, entity.id())?;
        before_time.extend_from_slice(b",\"time\":");
        Ok(Envelope { entity: entity.clone(), before_version, before_time })
    }
}

/// Ids, nearly always, in which there is nothing to escape: that is faster seen than done.
fn text(out: &mut Vec<u8>, text: &str) -> Result<(), serde_json::Error> {
    let is_plain = text.bytes().fold(true, |so_far, byte| so_far & (byte >= b' ') & (byte != b'"') & (byte != b'\\'));
    if !is_plain {
        return serde_json::to_writer(out, text);
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
    Ok(())
}

impl Default for PayloadWriter {
    fn default() -> Self {
        PayloadWriter { events: Vec::with_capacity(1024), answers: Vec::new(), count: 0, envelope: None }
    }
}

impl PayloadWriter {
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The size that the payload has so far, in bytes.
    pub fn bytes(&self) -> usize {
        self.events.len() + self.answers.len()
    }

    /// Adds an event, tagged by serde as `type` and `data`.
    pub fn event<E: Serialize>(
        &mut self,
        entity: &EntityKey,
        version: Version,
        cause: Cause<'_>,
        event: &E,
    ) -> Result<(), serde_json::Error> {
        let envelope = match self.envelope.take().filter(|envelope| envelope.entity == *entity) {
            Some(envelope) => envelope,
            None => Envelope::of(entity)?,
        };
        let out = &mut self.events;
        if self.count > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&envelope.before_version);
        serde_json::to_writer(&mut *out, &version)?;
        out.extend_from_slice(&envelope.before_time);
        self.envelope = Some(envelope);
        serde_json::to_writer(&mut *out, &cause.time)?;
        out.extend_from_slice(b",\"entityversion\":");
        serde_json::to_writer(&mut *out, &version)?;
        out.extend_from_slice(b",\"causationid\":");
        text(out, &cause.command.0)?;
        out.extend_from_slice(b",\"correlationid\":");
        text(out, cause.correlation)?;
        out.extend_from_slice(b",\"askedby\":");
        text(out, cause.asker)?;
        // The event's own object is continued into the envelope: its `type` and `data` become attributes.
        let brace = out.len();
        serde_json::to_writer(&mut *out, event)?;
        if let Some(byte) = out.get_mut(brace) {
            *byte = b',';
        }
        self.count += 1;
        Ok(())
    }

    /// Adds the answer that a command got.
    pub fn answer<A: Serialize>(&mut self, command: &CommandId, answer: &A) -> Result<(), serde_json::Error> {
        if !self.answers.is_empty() {
            self.answers.push(b',');
        }
        serde_json::to_writer(&mut self.answers, &AnswerOut { command, answer })
    }

    /// The payload: all that was added, with when to wake.
    pub fn finish(self, wake: Wake) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = Vec::with_capacity(self.events.len() + self.answers.len() + 64);
        out.extend_from_slice(b"{\"wake_at\":");
        match wake {
            Wake::Now => out.extend_from_slice(b"\"now\""),
            Wake::At(at) => serde_json::to_writer(&mut out, &at)?,
            Wake::Never => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"answers\":[");
        out.extend_from_slice(&self.answers);
        out.extend_from_slice(b"],\"events\":[");
        out.extend_from_slice(&self.events);
        out.extend_from_slice(b"]}");
        Ok(out)
    }
}

/// When a payload says that its entity must wake.
pub fn wake_of(payload: &[u8]) -> Result<Wake, serde_json::Error> {
    #[derive(Deserialize)]
    struct Said<'a> {
        #[serde(borrow)]
        wake_at: Option<Cow<'a, str>>,
    }
    let Said { wake_at } = serde_json::from_slice(payload)?;
    match wake_at.as_deref() {
        None => Ok(Wake::Never),
        Some("now") => Ok(Wake::Now),
        Some(at) => Timestamp::parse(at).map(Wake::At).ok_or_else(|| de::Error::custom(format_args!("{at:?} is no time"))),
    }
}

#[derive(Serialize)]
struct AnswerOut<'a, A> {
    command: &'a CommandId,
    answer: &'a A,
}

/// A payload read back; borrows from its bytes.
#[derive(Debug, Deserialize)]
pub struct Payload<'a> {
    #[serde(borrow, default)]
    pub answers: Vec<AnswerIn<'a>>,
    #[serde(borrow)]
    pub events: Vec<Record<'a>>,
}

#[derive(Debug, Deserialize)]
pub struct AnswerIn<'a> {
    pub command: CommandId,
    #[serde(borrow)]
    pub answer: &'a RawValue,
}

/// One event in its envelope.
#[derive(Debug, Deserialize)]
pub struct Record<'a> {
    /// As it was written: a replay has no use for it, and to read it would cost more than all the rest.
    #[serde(borrow)]
    pub time: Cow<'a, str>,
    #[serde(rename = "entityversion")]
    pub version: Version,
    #[serde(borrow, rename = "causationid")]
    pub causation: Cow<'a, str>,
    #[serde(borrow, rename = "correlationid")]
    pub correlation: Cow<'a, str>,
    #[serde(borrow, rename = "askedby")]
    pub asker: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    pub event_type: Cow<'a, str>,
    #[serde(borrow, default)]
    pub data: Option<&'a RawValue>,
}

impl<'a> Payload<'a> {
    pub fn parse(payload: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(payload)
    }
}

/// The records of a payload as the JSON texts that they are, to be handed on unchanged.
pub fn raw_records(payload: &[u8]) -> Result<Vec<&RawValue>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        #[serde(borrow)]
        events: Vec<&'a RawValue>,
    }
    serde_json::from_slice::<Raw<'_>>(payload).map(|raw| raw.events)
}

impl Record<'_> {
    /// The event itself, as the kind's own type.
    pub fn event<E: DeserializeOwned>(&self) -> Result<E, serde_json::Error> {
        E::deserialize(TypeAndData { event_type: &self.event_type, data: self.data })
    }
}

/// Shows `type` and `data` to serde as the adjacently tagged object that they were, without building that object.
struct TypeAndData<'a> {
    event_type: &'a str,
    data: Option<&'a RawValue>,
}

impl<'de> Deserializer<'de> for TypeAndData<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_map(Entries { event_type: Some(self.event_type), data: self.data, at_type: true })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Entries<'a> {
    event_type: Option<&'a str>,
    data: Option<&'a RawValue>,
    at_type: bool,
}

impl<'a> MapAccess<'a> for Entries<'a> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        let key = match (self.event_type, self.data) {
            (Some(_), _) => "type",
            (None, Some(_)) => "data",
            (None, None) => return Ok(None),
        };
        seed.deserialize(StrDeserializer::<Self::Error>::new(key)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value, Self::Error> {
        if std::mem::take(&mut self.at_type) {
            return seed.deserialize(StrDeserializer::<Self::Error>::new(self.event_type.take().unwrap_or_default()));
        }
        match self.data.take() {
            Some(data) => seed.deserialize(data),
            None => Err(serde::de::Error::custom("an event has one type and one data")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "type", content = "data")]
    enum Event {
        #[serde(rename = "thing.made")]
        Made { name: String, size: u32 },
        #[serde(rename = "thing.gone")]
        Gone,
    }

    fn cause<'a>(command: &'a CommandId) -> Cause<'a> {
        Cause { command, correlation: "req-1", asker: "admin \"the boss\"", time: Timestamp::from_millis(1_795_219_199_999) }
    }

    #[test]
    fn a_payload_is_cloud_events_and_reads_back_as_it_was() {
        let entity = EntityKey::new("thing", "a\"b/ü");
        let command = CommandId::from("c-1");
        let mut writer = PayloadWriter::default();
        let events = [Event::Made { name: "x\n".into(), size: 3 }, Event::Gone];
        for (version, event) in (7..).zip(&events) {
            writer.event(&entity, version, cause(&command), event).unwrap();
        }
        writer.answer(&command, &Ok::<_, ()>("done")).unwrap();
        let bytes = writer.finish(Wake::Now).unwrap();

        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["wake_at"], "now");
        let envelope = &json["events"][0];
        for (attribute, value) in [
            ("specversion", "1.0"),
            ("source", "/souk"),
            ("id", "thing/a\"b/ü/7"),
            ("subject", "a\"b/ü"),
            ("type", "thing.made"),
            ("time", "2026-11-20T23:59:59.999Z"),
            ("causationid", "c-1"),
            ("correlationid", "req-1"),
            ("askedby", "admin \"the boss\""),
        ] {
            assert_eq!(envelope[attribute], value, "{attribute}");
        }

        let payload = Payload::parse(&bytes).unwrap();
        let read: Vec<Event> = payload.events.iter().map(|record| record.event().unwrap()).collect();
        assert_eq!(read, events);
        assert_eq!(payload.events[1].version, 8);
        assert_eq!(payload.answers[0].answer.get(), r#"{"Ok":"done"}"#);
        assert_eq!(raw_records(&bytes).unwrap().len(), 2);
    }

    #[test]
    fn an_unknown_event_type_is_an_error_and_not_a_guess() {
        let record = r#"{"time":"2026-01-01T00:00:00Z","entityversion":1,"causationid":"","correlationid":"","askedby":"","type":"thing.lost"}"#;
        let record: Record<'_> = serde_json::from_str(record).unwrap();
        assert!(record.event::<Event>().is_err());
    }
}
