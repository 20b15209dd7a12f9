//! A journal of these tests: a vector of real payloads, followed as the real one is. It can be made unreadable.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use serde::Serialize;
use tokio::sync::watch;

use crate::domain::{CommandId, Timestamp};
use crate::persistence::journal::Done;
use crate::persistence::record::{Cause, PayloadWriter};
use crate::persistence::{Append, AppendError, Batch, Committed, EntityKey, Journal, Position, ReadError, Version, Wake};

pub(super) struct VecJournal {
    batches: std::sync::Arc<Mutex<Vec<Committed>>>,
    versions: Mutex<HashMap<EntityKey, Version>>,
    length: watch::Sender<usize>,
    /// How many streams will fail at once.
    pub failing: AtomicUsize,
}

impl VecJournal {
    pub(super) fn new() -> Self {
        VecJournal { batches: Default::default(), versions: Default::default(), length: watch::channel(0).0, failing: 0.into() }
    }

    /// Writes what one entity writes at once.
    pub(super) fn put<E: Serialize>(&self, kind: &str, id: &str, events: &[E]) -> Position {
        let entity = EntityKey::new(kind, id);
        let expected = self.versions.lock().unwrap().get(&entity).copied().unwrap_or(0);
        let command = CommandId::from("command");
        let cause = Cause { command: &command, correlation: "request", asker: "guest", time: Timestamp::from_millis(1) };
        let mut writer = PayloadWriter::default();
        for (version, event) in (expected + 1..).zip(events) {
            writer.event(&entity, version, cause, event).unwrap();
        }
        writer.answer(&command, &Ok::<_, ()>("an answer")).unwrap();
        let count = writer.count();
        let payload = writer.finish(Wake::Never).unwrap().into();
        self.store(Append { entity, expected, after: Position(0), count, payload, wake: Wake::Never })
    }

    /// Writes bytes as they are.
    pub(super) fn put_raw(&self, kind: &str, id: &str, payload: &'static str) -> Position {
        let entity = EntityKey::new(kind, id);
        self.store(Append {
            entity,
            expected: 0,
            after: Position(0),
            count: 1,
            payload: payload.as_bytes().into(),
            wake: Wake::Never,
        })
    }

    /// The batch that was written last.
    pub(super) fn newest_batch(&self) -> Committed {
        self.batches.lock().unwrap().last().unwrap().clone()
    }

    fn store(&self, append: Append) -> Position {
        let Append { entity, expected, count, payload, .. } = append;
        let mut batches = self.batches.lock().unwrap();
        let position = Position(batches.len() as u64 + 1);
        self.versions.lock().unwrap().insert(entity.clone(), expected + u64::from(count));
        batches.push(Committed { entity, batch: Batch { first: expected + 1, count, position, payload } });
        self.length.send_replace(batches.len());
        position
    }
}

impl Journal for VecJournal {
    fn append(&self, append: Append, done: Done) {
        let actual = self.versions.lock().unwrap().get(&append.entity).copied().unwrap_or(0);
        match append.expected == actual {
            true => done(Ok(self.store(append))),
            false => done(Err(AppendError::Conflict { expected: append.expected, actual })),
        }
    }

    fn read<'a>(
        &'a self,
        entity: &'a EntityKey,
        from: Version,
        _: Position,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Batch>, ReadError>> {
        let batches = self.batches.lock().unwrap();
        let of_entity = batches.iter().filter(|committed| committed.entity == *entity && committed.batch.last() >= from);
        let read = of_entity.map(|committed| committed.batch.clone()).take(limit).collect();
        Box::pin(async move { Ok(read) })
    }

    fn newest<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Position, ReadError>> {
        let batches = self.batches.lock().unwrap();
        let newest = batches.iter().rfind(|committed| committed.entity == *entity).map(|committed| committed.batch.position);
        Box::pin(async move { Ok(newest.unwrap_or_default()) })
    }

    fn follow(&self, after: Position) -> BoxStream<'static, Result<Committed, ReadError>> {
        if self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return stream::iter([Err(ReadError::Unreadable("no leader".into()))]).boxed();
        }
        let batches = std::sync::Arc::clone(&self.batches);
        let state = (batches, self.length.subscribe(), after.0 as usize);
        stream::unfold(state, |(batches, mut length, at)| async move {
            length.wait_for(|length| *length > at).await.ok()?;
            let next = batches.lock().unwrap()[at].clone();
            Some((Ok(next), (batches, length, at + 1)))
        })
        .boxed()
    }

    fn end(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(std::future::ready(Ok(self.highest())))
    }

    fn highest(&self) -> Position {
        Position(self.batches.lock().unwrap().len() as u64)
    }

    fn agenda<'a>(
        &'a self,
        _after: Option<&'a EntityKey>,
        _limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(EntityKey, Wake)>, ReadError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
