//! One batch on its way to being durable.
//!
//! Every copy of a batch that is sent carries the same expectation (`after`), and what a subject's newest sequence was
//! once it never is again. So at most one of the copies is stored, whatever becomes of them, and to send another is
//! always safe. What takes care is what the writer is told. The orders of events, time running down:
//!
//! ```text
//!  stored                  conflict                  acknowledgement lost         leader lost
//!
//!  send ──▶ stored         send ──▶ refused          send ──▶ stored              send ──▶ (nobody)
//!  ◀── sequence            look ──▶ who is after     (silence) ✂                  (silence)
//!  Ok                      ◀── another write         look ──▶ who is after        look ──▶ (silence), again …
//!                          Conflict                  ◀── this write               look ──▶ who is after: nobody
//!                                                    Ok                           send ──▶ stored
//!                                                                                 ◀── sequence: Ok
//!
//!  refused by a copy that is still on its way          this write stored, another on top of it
//!
//!  send ──▶ (slow)                                     send ──▶ stored
//!  (silence)                                           (silence)      a new owner writes after it
//!  look ──▶ who is after: nobody                       look ──▶ who is after
//!  send ──▶ refused (10164), the first lands           ◀── this write, though it is not the newest
//!  look ──▶ who is after: this write                   Ok
//!  Ok
//! ```
//!
//! A leader of several servers says 10164 also for a moment after it has acknowledged the message before: the first few
//! of these, when no copy can be on its way, only lead to another copy.
//!
//! "Who is after" asks the leader for the first message of the subject behind `after`. Committed messages never go, so
//! an answer that names one is true whoever gives it. "Nobody" may come from a leader that was deposed without knowing:
//! it only leads to another copy. An answer that can be had neither way until the end is `Unknown`, unless no copy can
//! have been stored, which is then `NotWritten`.

use std::time::Duration;

use tokio::time::Instant;

use super::pace::{Backoff, Dice, ask_anew};
use super::stream::{JetStream, Message, NoAnswer, PublishError, Which};
use crate::persistence::journal::{AppendError, Position, Version};

/// For how long an acknowledgement is awaited before the stream is looked at.
const ACK_MS: u64 = 1_000;
/// From the first copy to the last look.
const WRITE_MS: u64 = 9_000;
const LAST_LOOK_MS: u64 = 500;
/// The leader says so of a subject whose last message it has acknowledged and not yet put away.
const STILL_BUSY: u64 = 10_164;
/// So often it is believed without a look.
const BUSY_MAX: u32 = 3;
/// A leader that does not know the batch that this one follows is behind, for so long; then the batch is gone.
const BEHIND_MS: u64 = 2_000;

/// What the stream holds behind the message that ours is to follow.
enum After {
    Nobody,
    /// Nor is there what ours is to follow.
    Behind {
        actual: Version,
    },
    Ours(u64),
    Theirs {
        actual: Version,
    },
    /// Something that cannot be read: it may be anybody's.
    Damaged,
}

pub async fn write(stream: &dyn JetStream, dice: &Dice, message: &Message) -> Result<Position, AppendError> {
    let begun = Instant::now();
    let expected = message.head.first - 1;
    let mut backoff = Backoff::default();
    let mut copy_may_land = false;
    let mut behind_since = None;
    let mut busy = 0;
    loop {
        let left = Duration::from_millis(WRITE_MS).saturating_sub(begun.elapsed());
        let refused = match stream.publish(message, left.min(Duration::from_millis(ACK_MS))).await {
            Ok(sequence) => return Ok(Position(sequence)),
            Err(PublishError::Refused { code, what }) if !copy_may_land => {
                return Err(AppendError::NotWritten(format!("the server refuses it: {what} ({code})")));
            }
            Err(error) => error,
        };
        if let PublishError::WrongSequence { code: STILL_BUSY } = refused
            && !copy_may_land
            && busy < BUSY_MAX
        {
            // Nothing of ours is under way, so there is nothing to look for yet.
            busy += 1;
            backoff.wait(dice).await;
            continue;
        }
        copy_may_land |= matches!(refused, PublishError::Lost(_));
        // What never left changed nothing, and there is nobody to be asked.
        let mut looks = copy_may_land || !matches!(refused, PublishError::NotSent(_));
        // Without an answer there is no sense in another copy: what is not heard is not stored either.
        loop {
            let mut again = false;
            if looks {
                let left = Duration::from_millis(WRITE_MS).saturating_sub(begun.elapsed());
                let within = backoff.patience().min(left.max(Duration::from_millis(LAST_LOOK_MS)));
                match ask_anew(within, |within| look(stream, message, within)).await {
                    Ok(After::Ours(sequence)) => return Ok(Position(sequence)),
                    Ok(After::Theirs { actual }) => return Err(AppendError::Conflict { expected, actual }),
                    Ok(After::Damaged) => {
                        return Err(AppendError::Unknown("what follows the entity's newest batch cannot be read".into()));
                    }
                    Ok(After::Nobody) => behind_since = None,
                    Ok(After::Behind { actual }) => {
                        let since = *behind_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= Duration::from_millis(BEHIND_MS) && !copy_may_land {
                            return Err(AppendError::Conflict { expected, actual });
                        }
                    }
                    Err(NoAnswer(_)) => again = true,
                }
            }
            if begun.elapsed() >= Duration::from_millis(WRITE_MS) {
                return Err(match copy_may_land {
                    true => AppendError::Unknown(refused.to_string()),
                    false => AppendError::NotWritten(refused.to_string()),
                });
            }
            backoff.wait(dice).await;
            if !again {
                break;
            }
            looks = true;
        }
    }
}

async fn look(stream: &dyn JetStream, message: &Message, within: Duration) -> Result<After, NoAnswer> {
    let follower = stream.ask_leader(&message.subject, Which::From(message.after + 1), within).await?;
    if let Some(stored) = follower {
        return Ok(match stored.head {
            None => After::Damaged,
            Some(head) if head.write == message.head.write => After::Ours(stored.sequence),
            Some(_) => After::Theirs { actual: version_at_end(stream, message, within).await? },
        });
    }
    if message.after == 0 {
        return Ok(After::Nobody);
    }
    let newest = stream.ask_leader(&message.subject, Which::Last, within).await?;
    match newest {
        Some(stored) if stored.sequence >= message.after => Ok(After::Nobody),
        newest => Ok(After::Behind { actual: newest.and_then(|stored| stored.head).map_or(0, |head| head.last()) }),
    }
}

async fn version_at_end(stream: &dyn JetStream, message: &Message, within: Duration) -> Result<Version, NoAnswer> {
    let newest = stream.ask_leader(&message.subject, Which::Last, within).await?;
    Ok(newest.and_then(|stored| stored.head).map_or(0, |head| head.last()))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use futures_util::future::BoxFuture;
    use futures_util::stream::BoxStream;
    use tokio::sync::watch;

    use super::super::envelope::{Head, WriteId};
    use super::super::stream::{Extent, Stored};
    use super::*;

    const OURS: WriteId = WriteId(1);
    const THEIRS: WriteId = WriteId(2);
    /// Where the batch stands that ours is to follow.
    const AFTER: u64 = 10;

    /// What becomes of one copy.
    #[derive(Clone, Copy)]
    enum Fate {
        Acknowledged,
        /// Stored, and its acknowledgement lost.
        StoredSilently,
        /// Nothing is heard, and it lands when the next look has been answered.
        LandsLate,
        Vanishes,
        Refused(u64),
        NotSent,
        TooLarge,
    }

    /// One subject on a server that does as it is told, and as a server does when it was told nothing.
    struct Server {
        copies: Mutex<VecDeque<Fate>>,
        /// Looks that are not answered.
        deaf: Mutex<u32>,
        /// Nor are those that come before this.
        leads_from: Mutex<Option<Instant>>,
        stored: Mutex<Vec<(u64, WriteId)>>,
        late: Mutex<Vec<WriteId>>,
        published: Mutex<u32>,
    }

    impl Server {
        fn new(copies: &[Fate], stored: &[(u64, WriteId)]) -> Server {
            Server {
                copies: Mutex::new(copies.iter().copied().collect()),
                deaf: Mutex::new(0),
                leads_from: Mutex::default(),
                stored: Mutex::new(stored.to_vec()),
                late: Mutex::default(),
                published: Mutex::new(0),
            }
        }

        /// Stores a copy as JetStream does: on top of what it names, or not at all.
        fn land(&self, write: WriteId) -> Option<u64> {
            let mut stored = self.stored.lock().unwrap();
            let newest = stored.last().map_or(0, |(sequence, _)| *sequence);
            (newest == AFTER).then(|| {
                stored.push((newest + 3, write));
                newest + 3
            })
        }
    }

    impl JetStream for Server {
        fn publish<'a>(&'a self, message: &'a Message, within: Duration) -> BoxFuture<'a, Result<u64, PublishError>> {
            Box::pin(async move {
                *self.published.lock().unwrap() += 1;
                let copy = self.copies.lock().unwrap().pop_front().unwrap_or(Fate::Acknowledged);
                let silence = async {
                    tokio::time::sleep(within).await;
                    Err(PublishError::Lost("silence".into()))
                };
                match copy {
                    Fate::Acknowledged => self.land(message.head.write).ok_or(PublishError::WrongSequence { code: 10_071 }),
                    Fate::StoredSilently => {
                        self.land(message.head.write);
                        silence.await
                    }
                    Fate::LandsLate => {
                        self.late.lock().unwrap().push(message.head.write);
                        silence.await
                    }
                    Fate::Vanishes => silence.await,
                    Fate::Refused(code) => Err(PublishError::WrongSequence { code }),
                    Fate::NotSent => Err(PublishError::NotSent("no connection".into())),
                    Fate::TooLarge => Err(PublishError::Refused { code: 10_054, what: "too large".into() }),
                }
            })
        }

        fn ask_leader<'a>(
            &'a self,
            _: &'a str,
            which: Which,
            within: Duration,
        ) -> BoxFuture<'a, Result<Option<Stored>, NoAnswer>> {
            Box::pin(async move {
                {
                    let mut deaf = self.deaf.lock().unwrap();
                    let leads = self.leads_from.lock().unwrap().is_none_or(|from| Instant::now() >= from);
                    if *deaf == 0 && leads {
                        let stored = self.stored.lock().unwrap().clone();
                        let found = match which {
                            Which::Last => stored.last().copied(),
                            Which::From(from) => stored.iter().copied().find(|(sequence, _)| *sequence >= from),
                        };
                        for write in self.late.lock().unwrap().drain(..) {
                            self.land(write);
                        }
                        let head = |write, first| Some(Head { first, count: 1, wake: 0, crc: 0, write });
                        return Ok(found.map(|(sequence, write)| {
                            let version = stored.iter().filter(|(other, _)| *other <= sequence).count() as u64;
                            Stored { sequence, subject: "s".into(), head: head(write, version), payload: Bytes::new() }
                        }));
                    }
                    *deaf = deaf.saturating_sub(1);
                }
                tokio::time::sleep(within).await;
                Err(NoAnswer("silence".into()))
            })
        }

        fn ask_any<'a>(&'a self, _: Option<&'a str>, _: u64, _: usize) -> BoxFuture<'a, Result<Vec<Stored>, NoAnswer>> {
            unreachable!("a write asks the leader")
        }

        fn ask_newest<'a>(&'a self, _: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Stored>, NoAnswer>> {
            unreachable!()
        }

        fn proven_end(&self, _: Duration) -> BoxFuture<'_, Result<u64, NoAnswer>> {
            unreachable!()
        }

        fn extent(&self) -> BoxFuture<'_, Result<Extent, NoAnswer>> {
            unreachable!()
        }

        fn tail(&self) -> BoxFuture<'_, Result<BoxStream<'static, Stored>, NoAnswer>> {
            unreachable!()
        }

        fn connections(&self) -> watch::Receiver<u64> {
            unreachable!()
        }

        fn message_bytes_max(&self) -> usize {
            unreachable!()
        }
    }

    struct Heard {
        result: Result<Position, AppendError>,
        took: Duration,
        published: u32,
        /// How often our write is in the stream now.
        stored: usize,
    }

    async fn heard_of(server: Server) -> Heard {
        let head = Head { first: 2, count: 1, wake: 0, crc: 0, write: OURS };
        let message = Message { subject: Arc::from("s"), head, payload: Bytes::new(), after: AFTER };
        let begun = Instant::now();
        let result = write(&server, &Dice::new(1), &message).await;
        let stored = server.stored.lock().unwrap().iter().filter(|(_, write)| *write == OURS).count();
        Heard { result, took: begun.elapsed(), published: *server.published.lock().unwrap(), stored }
    }

    const BEFORE: (u64, WriteId) = (AFTER, WriteId(0));

    #[tokio::test(start_paused = true)]
    async fn a_stored_batch_is_acknowledged_whatever_became_of_its_copies() {
        use Fate::{Acknowledged, LandsLate, NotSent, Refused, StoredSilently, Vanishes};
        let cases: [(&str, &[Fate], u32); 9] = [
            ("at once", &[Acknowledged], 1),
            ("its acknowledgement was lost", &[StoredSilently], 1),
            ("the copy was lost", &[Vanishes], 2),
            ("no connection at first", &[NotSent, NotSent], 3),
            ("no connection, then a lost acknowledgement", &[NotSent, StoredSilently], 2),
            ("refused while the first is on its way", &[LandsLate, Refused(10_164)], 2),
            ("refused by a leader that has just changed", &[Refused(10_071), Refused(10_164)], 3),
            ("the first lands behind the look", &[LandsLate, Acknowledged], 2),
            ("several silences", &[Vanishes, Vanishes, Vanishes], 4),
        ];
        for (case, copies, published) in cases {
            let heard = heard_of(Server::new(copies, &[BEFORE])).await;
            assert_eq!(heard.result, Ok(Position(AFTER + 3)), "{case}");
            assert_eq!((heard.published, heard.stored), (published, 1), "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_somebody_else_wrote_first_is_a_conflict_by_either_code() {
        use Fate::{Acknowledged, NotSent, Refused, Vanishes};
        for copies in [&[Acknowledged][..], &[Refused(10_071)], &[Refused(10_164)], &[Vanishes], &[NotSent, Refused(10_164)]] {
            let heard = heard_of(Server::new(copies, &[BEFORE, (14, THEIRS), (17, THEIRS)])).await;
            assert_eq!(heard.result, Err(AppendError::Conflict { expected: 1, actual: 3 }));
            assert_eq!(heard.stored, 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_another_was_built_upon_is_not_taken_for_a_conflict() {
        for copies in [&[Fate::Vanishes][..], &[Fate::Refused(10_071)]] {
            let heard = heard_of(Server::new(copies, &[BEFORE, (13, OURS), (15, THEIRS)])).await;
            assert_eq!(heard.result, Ok(Position(13)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_until_the_end_it_is_unknown_or_not_written_by_what_may_have_happened() {
        let deaf = |copies: &[Fate]| {
            let server = Server::new(copies, &[BEFORE]);
            *server.deaf.lock().unwrap() = u32::MAX;
            server
        };
        let heard = heard_of(deaf(&[Fate::StoredSilently])).await;
        assert!(matches!(heard.result, Err(AppendError::Unknown(_))), "{:?}", heard.result);
        assert_eq!((heard.published, heard.stored), (1, 1), "what is not looked at is not sent again");
        let heard = heard_of(Server::new(&[Fate::NotSent; 1_000], &[BEFORE])).await;
        assert!(matches!(heard.result, Err(AppendError::NotWritten(_))), "{:?}", heard.result);
        assert_eq!(heard.stored, 0);
        let heard = heard_of(Server::new(&[Fate::Refused(10_164); 1_000], &[BEFORE])).await;
        assert!(matches!(heard.result, Err(AppendError::NotWritten(_))), "{:?}", heard.result);
        let heard = heard_of(Server::new(&[Fate::TooLarge], &[BEFORE])).await;
        assert!(matches!(heard.result, Err(AppendError::NotWritten(why)) if why.contains("too large")));
        let heard = heard_of(Server::new(&[Fate::Vanishes; 1_000], &[BEFORE])).await;
        assert!(matches!(heard.result, Err(AppendError::Unknown(_))), "{:?}", heard.result);
        let bounds = Duration::from_millis(WRITE_MS)..Duration::from_millis(WRITE_MS + 4_000);
        assert!(bounds.contains(&heard.took), "{:?}", heard.took);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_is_to_follow_what_is_gone_is_a_conflict_in_the_end() {
        let heard = heard_of(Server::new(&[Fate::Refused(10_071); 1_000], &[(4, THEIRS)])).await;
        assert_eq!(heard.result, Err(AppendError::Conflict { expected: 1, actual: 1 }));
        assert!(heard.took >= Duration::from_millis(BEHIND_MS), "{:?}", heard.took);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_comes_back_is_found_within_a_second() {
        for away_ms in (0..WRITE_MS - 1_000).step_by(50).map(Duration::from_millis) {
            let server = Server::new(&[Fate::Vanishes], &[BEFORE]);
            *server.leads_from.lock().unwrap() = Some(Instant::now() + away_ms);
            let heard = heard_of(server).await;
            assert_eq!((heard.result, heard.stored), (Ok(Position(AFTER + 3)), 1));
            let found_by = away_ms.max(Duration::from_millis(ACK_MS)) + Duration::from_secs(1);
            assert!(heard.took <= found_by, "away for {away_ms:?}, found after {:?}", heard.took);
        }
    }
}
