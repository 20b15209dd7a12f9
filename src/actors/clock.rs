//! The one clock of a node. The domain is handed its time; nothing else reads the system's.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use crate::domain::Timestamp;

/// The system's clock, which a rehearsal of deadlines may set ahead.
#[derive(Debug, Default)]
pub struct Clock {
    ahead_ms: AtomicI64,
    moved: Notify,
}

impl Clock {
    pub fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(millis).plus_ms(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Sets the clock ahead; timers that are thereby due fire at once.
    pub fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
        self.moved.notify_one();
    }

    /// Resolves when the clock was set ahead.
    pub async fn moved(&self) {
        self.moved.notified().await;
    }
}
