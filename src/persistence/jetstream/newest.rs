//! Where an entity's newest batch stands, so that nothing is missing that was acknowledged before it was asked.
//!
//! A leader that was deposed without knowing it goes on answering for some seconds, and no answer of its says which
//! server gave it. Hence in two steps:
//!
//! 1. The stream's end, from a leader that a quorum followed *after* the question: then no other leader had acknowledged
//!    anything by the time of the question that this one does not know. On a quiet stream a leader hears of its followers
//!    once a second. All who ask at the same time share one proof.
//! 2. The newest message of the entity, from any replica that is shown to know that end: it is asked in the same breath
//!    for a subject that was written there, and must know that message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::envelope::Subjects;
use super::pace::{Backoff, Dice};
use super::stream::{JetStream, NoAnswer};
use super::tail::Tail;
use crate::persistence::journal::{EntityKey, Position, ReadError};

/// Longer than a leader of a quiet stream needs to hear of its followers.
pub const PROOF_MS: u64 = 2_500;
/// From the question to giving up.
const NEWEST_MS: u64 = 4_000;

/// The last proof: how many had asked when it was begun, and what it said.
#[derive(Clone)]
struct Proof {
    ticket: u64,
    end: Result<u64, NoAnswer>,
}

/// Proofs of the stream's end, one at a time for all who ask.
pub struct Proofs {
    tickets: AtomicU64,
    asked: Notify,
    proven: watch::Sender<Proof>,
}

impl Proofs {
    pub fn new() -> Arc<Proofs> {
        let nothing = Proof { ticket: 0, end: Ok(0) };
        Arc::new(Proofs { tickets: AtomicU64::new(0), asked: Notify::new(), proven: watch::Sender::new(nothing) })
    }

    /// Serves those who ask, for as long as it is polled.
    pub async fn run(self: Arc<Proofs>, stream: Arc<dyn JetStream>) {
        loop {
            self.asked.notified().await;
            // Whoever asks after this has to wait for the next one.
            let ticket = self.tickets.load(Ordering::SeqCst);
            let end = stream.proven_end(Duration::from_millis(PROOF_MS)).await;
            self.proven.send_replace(Proof { ticket, end });
            if self.tickets.load(Ordering::SeqCst) > ticket {
                self.asked.notify_one();
            }
        }
    }

    /// All that was acknowledged before this was called is at this sequence or before it.
    pub async fn end(&self) -> Result<u64, NoAnswer> {
        let mut proven = self.proven.subscribe();
        let ticket = self.tickets.fetch_add(1, Ordering::SeqCst) + 1;
        self.asked.notify_one();
        let waited = proven.wait_for(|proof| proof.ticket >= ticket);
        match tokio::time::timeout(Duration::from_millis(PROOF_MS * 2), waited).await {
            Ok(Ok(proof)) => proof.end.clone(),
            Ok(Err(_)) | Err(_) => Err(NoAnswer("the end of the journal cannot be proven".into())),
        }
    }
}

pub async fn newest(
    stream: &dyn JetStream,
    subjects: &Subjects,
    dice: &Dice,
    tail: &Tail,
    proofs: &Proofs,
    entity: &EntityKey,
) -> Result<Position, ReadError> {
    let begun = Instant::now();
    let unreadable = |error: NoAnswer| ReadError::Unreadable(error.to_string());
    let end = proofs.end().await.map_err(unreadable)?;
    if end == 0 {
        return Ok(Position(0));
    }
    let subject = subjects.of(entity);
    let mut backoff = Backoff::default();
    let mut why = NoAnswer("every replica is behind".into());
    while begun.elapsed() < Duration::from_millis(NEWEST_MS) {
        match witness(stream, subjects, tail, end).await {
            Ok(Some(witness)) => match stream.ask_newest(&[&subject, &witness]).await {
                Ok(messages) if messages.iter().any(|stored| stored.sequence >= end) => {
                    let ours = messages.iter().find(|stored| stored.subject == subject);
                    return Ok(Position(ours.map_or(0, |stored| stored.sequence)));
                }
                Ok(_) => {}
                Err(error) => why = error,
            },
            Ok(None) => {}
            Err(error) => why = error,
        }
        backoff.wait(dice).await;
    }
    Err(unreadable(why))
}

/// A subject whose newest message is at `end` or after it.
async fn witness(stream: &dyn JetStream, subjects: &Subjects, tail: &Tail, end: u64) -> Result<Option<Arc<str>>, NoAnswer> {
    if let Some((entity, sequence)) = tail.newest()
        && sequence >= end
    {
        return Ok(Some(subjects.of(&entity)));
    }
    let page = stream.ask_any(None, end, 1).await?;
    Ok(page.into_iter().next().map(|stored| stored.subject))
}
