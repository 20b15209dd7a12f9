//! A journal that fails, stalls, or stores and says that it failed, as told; otherwise the real one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use souk::persistence::journal::Done;
use souk::persistence::{Append, AppendError, Batch, Committed, EntityKey, Journal, Position, ReadError, Version, Wake};

/// What becomes of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    NotWritten,
    /// Not stored: somebody else was first.
    Conflict,
    /// Stored, and said to be unknown.
    StoredButUnknown,
    /// Kept back until the stall ends.
    Stall,
}

type Rule = Box<dyn FnMut(&Append) -> Fault + Send>;

pub struct Faulty {
    inner: Arc<dyn Journal>,
    rule: Mutex<Rule>,
    stalled: Mutex<Vec<(Append, Done)>>,
    pub appends: AtomicU64,
    /// Whether it says neither what an entity's newest batch is nor who must be woken.
    pub is_mute: AtomicBool,
    /// Nothing can be read.
    pub unreadable: AtomicBool,
    /// How often that was said.
    pub unread: AtomicU64,
}

impl Faulty {
    pub fn over(inner: Arc<dyn Journal>) -> Arc<Self> {
        Arc::new(Faulty {
            inner,
            rule: Mutex::new(Box::new(|_| Fault::None)),
            stalled: Mutex::default(),
            appends: AtomicU64::new(0),
            is_mute: AtomicBool::new(false),
            unreadable: AtomicBool::new(false),
            unread: AtomicU64::new(0),
        })
    }

    pub fn rule(&self, rule: impl FnMut(&Append) -> Fault + Send + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }

    pub fn stalled(&self) -> usize {
        self.stalled.lock().unwrap().len()
    }

    /// Ends every fault and lets through what was kept back.
    pub fn heal(&self) {
        self.rule(|_| Fault::None);
        let stalled = std::mem::take(&mut *self.stalled.lock().unwrap());
        for (append, done) in stalled {
            self.inner.append(append, done);
        }
    }
}

impl Journal for Faulty {
    fn append(&self, append: Append, done: Done) {
        self.appends.fetch_add(1, Ordering::SeqCst);
        let fault = (self.rule.lock().unwrap())(&append);
        match fault {
            Fault::None => self.inner.append(append, done),
            Fault::NotWritten => done(Err(AppendError::NotWritten("as told".into()))),
            Fault::Conflict => {
                done(Err(AppendError::Conflict { expected: append.expected, actual: append.expected + 1 }));
            }
            Fault::StoredButUnknown => self
                .inner
                .append(append, Box::new(|stored| done(stored.and_then(|_| Err(AppendError::Unknown("as told".into())))))),
            Fault::Stall => self.stalled.lock().unwrap().push((append, done)),
        }
    }

    fn read<'a>(
        &'a self,
        entity: &'a EntityKey,
        from: Version,
        near: Position,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Batch>, ReadError>> {
        if self.unreadable.load(Ordering::SeqCst) {
            self.unread.fetch_add(1, Ordering::SeqCst);
            return Box::pin(std::future::ready(Err(ReadError::Unreadable("as told".into()))));
        }
        self.inner.read(entity, from, near, limit)
    }

    fn newest<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Position, ReadError>> {
        match self.is_mute.load(Ordering::SeqCst) {
            true => Box::pin(std::future::ready(Err(ReadError::Unreadable("as told".into())))),
            false => self.inner.newest(entity),
        }
    }

    fn follow(&self, after: Position) -> BoxStream<'static, Result<Committed, ReadError>> {
        self.inner.follow(after)
    }

    fn end(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(std::future::ready(Ok(self.highest())))
    }

    fn highest(&self) -> Position {
        self.inner.highest()
    }

    fn agenda<'a>(
        &'a self,
        after: Option<&'a EntityKey>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(EntityKey, Wake)>, ReadError>> {
        match self.is_mute.load(Ordering::SeqCst) {
            true => Box::pin(std::future::ready(Err(ReadError::Unreadable("as told".into())))),
            false => self.inner.agenda(after, limit),
        }
    }
}
