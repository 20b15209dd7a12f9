//! One entity as the journal alone tells it, with neither actor nor snapshot: for an operator who wants to know why.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::record::{Payload, raw_records};
use super::{Batch, EntityKey, Journal, Position, ReadError, Version};
use crate::domain::{Entity, EveryKind, every_kind};

/// What the journal tells of an entity.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
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

type Fold = fn(&EntityKey, &[Batch], Version) -> Result<(Version, serde_json::Value), ReadError>;

/// Finds the fold of the kind with this name.
struct Folds<'a> {
    kind: &'a str,
    found: Option<(Fold, &'static [&'static str])>,
    known: Vec<&'static str>,
}

impl EveryKind for Folds<'_> {
    fn kind<E: Entity>(&mut self) {
        self.known.push(E::KIND);
        if E::KIND == self.kind {
            self.found = Some((fold::<E>, E::HIDDEN));
        }
    }
}

fn fold<E: Entity>(key: &EntityKey, batches: &[Batch], until: Version) -> Result<(Version, serde_json::Value), ReadError> {
    let corrupt = |what: serde_json::Error| ReadError::Corrupt { place: key.to_string(), what: what.to_string() };
    let mut state = E::State::default();
    let mut version = 0;
    for batch in batches {
        let records = Payload::parse(&batch.payload).map_err(corrupt)?.events;
        for record in records.into_iter().filter(|record| record.version <= until) {
            E::evolve(&mut state, &record.event().map_err(corrupt)?);
            version = record.version;
        }
    }
    Ok((version, serde_json::to_value(&state).map_err(corrupt)?))
}

/// Takes the values of these fields out, wherever they are.
fn hide(hidden: &[&str], value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| match hidden.contains(&name.as_str()) {
            true => *value = "(hidden)".into(),
            false => hide(hidden, value),
        }),
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| hide(hidden, item)),
        _ => {}
    }
}

/// Reads one entity from the journal, with neither actor nor snapshot: all of its life, or what it was until a version.
pub async fn inspect(journal: &dyn Journal, kind: &str, id: &str, until: Option<Version>) -> Result<Inspection, InspectError> {
    const READ_BATCHES: usize = 1_000;
    let mut folds = Folds { kind, found: None, known: Vec::new() };
    every_kind(&mut folds);
    let Some((fold, hidden)) = folds.found else {
        return Err(InspectError::NoSuchKind { kind: kind.to_owned(), known: folds.known });
    };
    let key = EntityKey::new(kind, id);
    let mut batches: Vec<Batch> = Vec::new();
    loop {
        let (from, near) = batches.last().map_or((1, Position(0)), |batch| (batch.last() + 1, batch.position));
        let page = journal.read(&key, from, near, READ_BATCHES).await?;
        let done = page.len() < READ_BATCHES;
        batches.extend(page);
        if done {
            break;
        }
    }
    let until = until.unwrap_or(Version::MAX);
    let (version, mut state) = fold(&key, &batches, until)?;
    hide(hidden, &mut state);
    if version == 0 {
        return Err(InspectError::Unknown { kind: kind.to_owned(), id: id.to_owned() });
    }
    let corrupt = |what: serde_json::Error| ReadError::Corrupt { place: key.to_string(), what: what.to_string() };
    let mut history = Vec::new();
    for batch in batches.iter().take_while(|batch| batch.first <= until) {
        let left = usize::try_from(until - batch.first).map_or(usize::MAX, |left| left.saturating_add(1));
        for record in raw_records(&batch.payload).map_err(corrupt)?.into_iter().take(left) {
            let mut record = serde_json::from_str(record.get()).map_err(corrupt)?;
            hide(hidden, &mut record);
            history.push(record);
        }
    }
    Ok(Inspection { kind: kind.to_owned(), id: id.to_owned(), version, state, history })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::email::EmailHash;
    use crate::domain::user::{ApiKey, Change, Sealed, SealedEmail, Session, State};
    use crate::domain::{CommandId, Timestamp, User};
    use crate::hostile;

    #[test]
    fn neither_a_seal_nor_a_hash_of_a_secret_is_shown_to_who_inspects() {
        let sealed = || Sealed("secret".to_owned());
        let email = SealedEmail { hash: EmailHash("hash".to_owned()), sealed: sealed() };
        let (secret_sha256, created_at) = ("secret".to_owned(), Timestamp::default());
        let session =
            Session { secret_sha256: secret_sha256.clone(), device: sealed(), opened_at: created_at, used_at: created_at };
        let api_key = ApiKey { secret_sha256, scopes: ["products:write".to_owned()].into(), label: sealed(), created_at };
        let mut state = serde_json::to_value(State {
            email: Some(email.clone()),
            change: Some(Change { command: CommandId::from("c"), email, claim: 2 }),
            profile: sealed(),
            password_hash: sealed(),
            sessions: [("ses_1".to_owned(), session)].into(),
            api_keys: [("key_1".to_owned(), api_key)].into(),
            ..State::default()
        })
        .unwrap();
        assert_eq!(state.to_string().matches("secret\"").count(), 8);
        hide(User::HIDDEN, &mut state);
        assert!(!state.to_string().contains("secret\""), "{state}");
        assert_eq!(state["api_keys"]["key_1"]["scopes"][0], "products:write");
        assert_eq!(state["email"]["hash"], "hash");
    }

    /// What is on file of each type of event, in a payload each.
    fn golden() -> Vec<Vec<u8>> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
        files.map(|record| format!(r#"{{"wake_at":null,"answers":[],"events":[{record}]}}"#).into_bytes()).collect()
    }

    #[test]
    fn no_record_breaks_its_reader_or_the_entity_that_it_is_of() {
        struct Everything<'a>(&'a EntityKey, &'a [Batch]);
        impl EveryKind for Everything<'_> {
            fn kind<E: Entity>(&mut self) {
                let _ = fold::<E>(self.0, self.1, Version::MAX);
            }
        }
        let mut good = golden();
        // Whole lives, so that what changes is met in states that are not empty.
        let records =
            |payload: &Vec<u8>| raw_records(payload).unwrap().iter().map(|raw| raw.get().to_owned()).collect::<Vec<_>>();
        let all: Vec<String> = good.iter().flat_map(records).collect();
        for kind in ["cart.", "order.", "inventory.", "stock.", "payment.", "product.", "request.", "user.", "email.", "shop."] {
            let of_kind: Vec<&str> =
                all.iter().map(String::as_str).filter(|r| r.contains(&format!("\"type\":\"{kind}"))).collect();
            good.push(format!(r#"{{"answers":[],"events":[{}]}}"#, of_kind.join(",")).into_bytes());
        }
        hostile::feed("records", good, |bytes| {
            let batch = Batch { first: 1, count: 1, position: Position(1), payload: bytes.to_vec().into() };
            every_kind(&mut Everything(&EntityKey::new("cart", "x"), &[batch]));
            let _ = raw_records(bytes);
        });
    }
}
