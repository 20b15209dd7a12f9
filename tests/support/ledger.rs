//! What the journal alone says, from its first record to its last.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use souk::persistence::record::Payload;
use souk::persistence::{Journal, Position};

/// Every record, as (entity kind, entity id, event type, data).
#[derive(Default)]
pub struct Ledger {
    pub records: Vec<Entry>,
}

pub struct Entry {
    pub kind: String,
    pub id: String,
    pub event_type: String,
    pub data: serde_json::Value,
}

impl Ledger {
    pub async fn read(journal: &dyn Journal) -> Ledger {
        // What the store says, and not what a node knows that may be cut off from it.
        let highest = loop {
            match journal.end().await {
                Ok(end) => break end,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let mut ledger = Ledger::default();
        if highest == Position(0) {
            return ledger;
        }
        let mut follower = journal.follow(Position(0));
        loop {
            let committed = follower.next().await.expect("a follower does not end").expect("the journal can be read");
            for record in Payload::parse(&committed.batch.payload).unwrap().events {
                ledger.records.push(Entry {
                    kind: committed.entity.kind().to_owned(),
                    id: committed.entity.id().to_owned(),
                    event_type: record.event_type.to_string(),
                    data: record.data.map_or(serde_json::Value::Null, |data| serde_json::from_str(data.get()).unwrap()),
                });
            }
            if committed.batch.position >= highest {
                return ledger;
            }
        }
    }

    pub fn ids(&self, kind: &str) -> BTreeSet<String> {
        self.records.iter().filter(|entry| entry.kind == kind).map(|entry| entry.id.clone()).collect()
    }

    /// How often this event is recorded, by entity.
    pub fn count(&self, event_type: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for entry in self.records.iter().filter(|entry| entry.event_type == event_type) {
            *counts.entry(entry.id.clone()).or_default() += 1;
        }
        counts
    }

    /// How often this event is recorded, by what its data says under `field`.
    pub fn count_by(&self, event_type: &str, field: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for entry in self.records.iter().filter(|entry| entry.event_type == event_type) {
            if let Some(value) = entry.data[field].as_str() {
                *counts.entry(format!("{} {value}", entry.id)).or_default() += 1;
            }
        }
        counts
    }
}
