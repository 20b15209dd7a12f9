//! The one clock of a node. The domain is handed its time; nothing else reads the system's.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::domain::Timestamp;

/// Where a clock has its time from.
#[derive(Debug, Clone, Copy, Default)]
pub enum Source {
    #[default]
    System,
    /// Counted by the runtime's timer from a moment on: in a simulation, both are made up.
    Counted { from: Instant, at: Timestamp },
}

/// A clock, which a rehearsal of deadlines may set ahead.
#[derive(Debug, Default)]
pub struct Clock {
    source: Source,
    ahead_ms: AtomicI64,
    moved: Notify,
}

impl Clock {
    pub fn new(source: Source) -> Self {
        Clock { source, ..Clock::default() }
    }

    pub fn now(&self) -> Timestamp {
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        let now = match self.source {
            Source::System => Timestamp::from_millis(millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())),
            Source::Counted { from, at } => at.plus_ms(millis(from.elapsed())),
        };
        now.plus_ms(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Sets the clock ahead; timers that are thereby due fire at once.
    pub fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
        self.moved.notify_one();
    }

    /// Sets the clock back, as somebody may the system's: nobody is told.
    pub fn set_back(&self, by: Duration) {
        self.ahead_ms.fetch_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Resolves when the clock was set ahead.
    pub async fn moved(&self) {
        self.moved.notified().await;
    }
}
