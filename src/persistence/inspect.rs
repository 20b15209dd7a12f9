//! One entity as the journal alone tells it, with neither actor nor snapshot: for an operator who wants to know why.

use serde::{Deserialize, Serialize};

use super::record::{Payload, raw_records};
use super::{Batch, EntityKey, Journal, ReadError, Version};
use crate::domain::{Entity, EveryKind, every_kind};

/// What the journal tells of an entity.
#[derive(Debug, Serialize, Deserialize)]
pub struct Inspection {
    pub kind: String,
    pub id: String,
    pub version: Version,
    pub state: serde_json::Value,
    /// The records, oldest first, as they are stored.
    pub history: Vec<serde_json::Value>,
}

#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("there is no kind {kind:?}; the kinds are {}", known.join(", "))]
    NoSuchKind { kind: String, known: Vec<&'static str> },
    #[error("the journal knows no {kind} {id}")]
    Unknown { kind: String, id: String },
    #[error(transparent)]
    Read(#[from] ReadError),
}

type Fold = fn(&EntityKey, &[Batch]) -> Result<(Version, serde_json::Value), ReadError>;

/// Finds the fold of the kind with this name.
struct Folds<'a> {
    kind: &'a str,
    found: Option<Fold>,
    known: Vec<&'static str>,
}

impl EveryKind for Folds<'_> {
    fn kind<E: Entity>(&mut self) {
        self.known.push(E::KIND);
        if E::KIND == self.kind {
            self.found = Some(fold::<E>);
        }
    }
}

fn fold<E: Entity>(key: &EntityKey, batches: &[Batch]) -> Result<(Version, serde_json::Value), ReadError> {
    let corrupt = |what: serde_json::Error| ReadError::Corrupt { place: key.to_string(), what: what.to_string() };
    let mut state = E::State::default();
    let mut version = 0;
    for batch in batches {
        for record in Payload::parse(&batch.payload).map_err(corrupt)?.events {
            E::evolve(&mut state, &record.event().map_err(corrupt)?);
            version = record.version;
        }
    }
    Ok((version, serde_json::to_value(&state).map_err(corrupt)?))
}

/// Reads one entity from the journal, with neither actor nor snapshot.
pub async fn inspect(journal: &dyn Journal, kind: &str, id: &str) -> Result<Inspection, InspectError> {
    const READ_BATCHES: usize = 1_000;
    let mut folds = Folds { kind, found: None, known: Vec::new() };
    every_kind(&mut folds);
    let Some(fold) = folds.found else {
        return Err(InspectError::NoSuchKind { kind: kind.to_owned(), known: folds.known });
    };
    let key = EntityKey::new(kind, id);
    let mut batches: Vec<Batch> = Vec::new();
    loop {
        let from = batches.last().map_or(1, |batch| batch.last() + 1);
        let page = journal.read(&key, from, READ_BATCHES).await?;
        let done = page.len() < READ_BATCHES;
        batches.extend(page);
        if done {
            break;
        }
    }
    let (version, state) = fold(&key, &batches)?;
    if version == 0 {
        return Err(InspectError::Unknown { kind: kind.to_owned(), id: id.to_owned() });
    }
    let corrupt = |what: serde_json::Error| ReadError::Corrupt { place: key.to_string(), what: what.to_string() };
    let mut history = Vec::new();
    for batch in &batches {
        for record in raw_records(&batch.payload).map_err(corrupt)? {
            history.push(serde_json::from_str(record.get()).map_err(corrupt)?);
        }
    }
    Ok(Inspection { kind: kind.to_owned(), id: id.to_owned(), version, state, history })
}
