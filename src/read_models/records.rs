//! What a follower reads of a batch: each record's type, and its data only when asked for.
//!
//! The rest of the envelope and the answers are passed over unparsed: this runs for every batch of every order.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::persistence::{Committed, Version};

/// Why a batch could not be folded, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the record at {entity} from version {first}, position {position}, cannot be read: {what}")]
pub(super) struct Unfoldable {
    entity: String,
    first: Version,
    position: u64,
    what: String,
}

impl Unfoldable {
    pub(super) fn new(committed: &Committed, what: impl ToString) -> Self {
        Unfoldable {
            entity: committed.entity.to_string(),
            first: committed.batch.first,
            position: committed.batch.position.0,
            what: what.to_string(),
        }
    }
}

#[derive(Deserialize)]
struct Records<'a> {
    #[serde(borrow)]
    events: Vec<Brief<'a>>,
}

/// A record without its envelope.
#[derive(Deserialize)]
pub(super) struct Brief<'a> {
    #[serde(borrow, rename = "type")]
    pub event_type: Cow<'a, str>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

/// The records of a batch, oldest first.
pub(super) fn briefs(committed: &Committed) -> Result<Vec<Brief<'_>>, Unfoldable> {
    let records: Records<'_> =
        serde_json::from_slice(&committed.batch.payload).map_err(|error| Unfoldable::new(committed, error))?;
    if records.events.len() != committed.batch.count as usize {
        return Err(Unfoldable::new(
            committed,
            format!("it has {} records and not {}", records.events.len(), committed.batch.count),
        ));
    }
    Ok(records.events)
}

impl<'a> Brief<'a> {
    pub(super) fn data<T: Deserialize<'a>>(&self, committed: &Committed) -> Result<T, Unfoldable> {
        let data = self.data.map_or("null", RawValue::get);
        serde_json::from_str(data).map_err(|error| Unfoldable::new(committed, format!("{}: {error}", self.event_type)))
    }

    /// For a type that the model neither folds nor knows to be none of its business.
    pub(super) fn unknown(&self, committed: &Committed) -> Unfoldable {
        Unfoldable::new(committed, format!("the event type {} is unknown", self.event_type))
    }
}
