//! A model of the journal's stream, as one life of a node reaches it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use souk::persistence::jetstream::stream::{Extent, JetStream, Message, NoAnswer, PublishError, Stored, Which};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::world::{Life, Logged, State, World};

const WRONG_SEQUENCE: u64 = 10_071;
const IN_FLIGHT: u64 = 10_164;
/// Of the servers' answers about what is stored.
const PATIENCE: Duration = Duration::from_millis(500);

pub struct Servers {
    pub world: Arc<World>,
    pub life: Life,
}

enum Landed {
    At(u64),
    Refused(u64),
    Silence,
}

impl Servers {
    /// A copy arrives: this happens whether or not anybody still waits for it.
    fn land(world: &World, message: &Message) -> Landed {
        let mut state = world.lock();
        let refused = state.weather.refused;
        if !state.has_leader() {
            return Landed::Silence;
        }
        if state.chance(refused) {
            return Landed::Refused(IN_FLIGHT);
        }
        let newest = state.newest.get(&message.subject).copied().unwrap_or(0);
        if newest != message.after {
            let code = if state.chance(200) { IN_FLIGHT } else { WRONG_SEQUENCE };
            return Landed::Refused(code);
        }
        let sequence = state.log.len() as u64 + 1;
        let stored =
            Stored { sequence, subject: message.subject.clone(), head: Some(message.head), payload: message.payload.clone() };
        state.newest.insert(message.subject.clone(), sequence);
        let now = Instant::now();
        let shown = [now, now + state.delay(), now + state.delay()];
        state.log.push(Logged { stored: stored.clone(), shown });
        state.republish(&stored);
        Landed::At(sequence)
    }

    async fn answer<T>(&self, ask: impl FnOnce(&mut State) -> Option<T>, within: Duration) -> Result<T, NoAnswer> {
        self.world.awake(self.life).await;
        let begun = Instant::now();
        let (there, back, lost) = {
            let mut state = self.world.lock();
            let lost = state.is_cut(self.life) || state.loses() || state.loses();
            (state.delay(), state.delay(), lost)
        };
        let silence = async || {
            tokio::time::sleep(within.saturating_sub(begun.elapsed())).await;
            self.world.awake(self.life).await;
            Err(NoAnswer("silence".into()))
        };
        if lost || there + back >= within {
            return silence().await;
        }
        tokio::time::sleep(there).await;
        let Some(answer) = ask(&mut self.world.lock()) else { return silence().await };
        tokio::time::sleep(back).await;
        self.world.awake(self.life).await;
        Ok(answer)
    }
}

impl State {
    fn republish(&mut self, stored: &Stored) {
        for life in 0..self.lives.len() {
            if self.is_cut(life) {
                continue;
            }
            for index in 0..self.lives[life].tails.len() {
                let tail = self.lives[life].tails[index].clone();
                let copies = usize::from(!self.loses())
                    + usize::from({
                        let doubled = self.weather.doubled;
                        self.chance(doubled)
                    });
                for _ in 0..copies {
                    let (delay, tail, stored) = (self.delay(), tail.clone(), stored.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(delay).await;
                        let _ = tail.send(stored);
                    });
                }
            }
        }
    }

    /// The log as the leader knows it, or a leader that was deposed and does not know.
    fn led(&mut self) -> Option<usize> {
        let (length, until) = self.deposed;
        match Instant::now() < until && self.chance(300) {
            true => Some(length),
            false => self.has_leader().then_some(self.log.len()),
        }
    }
}

impl JetStream for Servers {
    fn publish<'a>(&'a self, message: &'a Message, within: Duration) -> BoxFuture<'a, Result<u64, PublishError>> {
        Box::pin(async move {
            self.world.awake(self.life).await;
            let (there, back, lost_there, lost_back, not_sent) = {
                let mut state = self.world.lock();
                let cut = state.is_cut(self.life);
                let not_sent = cut && state.chance(300);
                (state.delay(), state.delay(), cut || state.loses(), state.loses(), not_sent)
            };
            if not_sent {
                return Err(PublishError::NotSent("no connection".into()));
            }
            let (tell, heard) = oneshot::channel();
            if !lost_there {
                let (world, message) = (self.world.clone(), message.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(there).await;
                    let landed = Servers::land(&world, &message);
                    tokio::time::sleep(back).await;
                    if !lost_back {
                        let _ = tell.send(landed);
                    }
                });
            }
            let heard = tokio::time::timeout(within, async {
                match heard.await {
                    Ok(Landed::At(sequence)) => Ok(sequence),
                    Ok(Landed::Refused(code)) => Err(PublishError::WrongSequence { code }),
                    Ok(Landed::Silence) | Err(_) => std::future::pending().await,
                }
            })
            .await;
            self.world.awake(self.life).await;
            heard.unwrap_or_else(|_| Err(PublishError::Lost("silence".into())))
        })
    }

    fn ask_leader<'a>(
        &'a self,
        subject: &'a str,
        which: Which,
        within: Duration,
    ) -> BoxFuture<'a, Result<Option<Stored>, NoAnswer>> {
        Box::pin(self.answer(
            move |state| {
                let length = state.led()?;
                let mut of_subject = state.log[..length].iter().map(|logged| &logged.stored).filter(|s| *s.subject == *subject);
                Some(match which {
                    Which::Last => of_subject.next_back().cloned(),
                    Which::From(from) => of_subject.find(|stored| stored.sequence >= from).cloned(),
                })
            },
            within,
        ))
    }

    fn ask_any<'a>(&'a self, subject: Option<&'a str>, from: u64, limit: usize) -> BoxFuture<'a, Result<Vec<Stored>, NoAnswer>> {
        Box::pin(self.answer(
            move |state| {
                let (replica, now) = (state.rng.usize(0..3), Instant::now());
                let shown = state.log.iter().take_while(|logged| logged.shown[replica] <= now).map(|logged| &logged.stored);
                let wanted =
                    shown.filter(|stored| stored.sequence >= from && subject.is_none_or(|subject| *stored.subject == *subject));
                Some(wanted.take(limit).cloned().collect())
            },
            PATIENCE,
        ))
    }

    fn ask_newest<'a>(&'a self, subjects: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Stored>, NoAnswer>> {
        Box::pin(self.answer(
            move |state| {
                let (replica, now) = (state.rng.usize(0..3), Instant::now());
                let shown: Vec<_> = state.log.iter().take_while(|logged| logged.shown[replica] <= now).collect();
                let newest = |subject: &&str| shown.iter().rev().map(|l| &l.stored).find(|stored| *stored.subject == **subject);
                Some(subjects.iter().filter_map(newest).cloned().collect())
            },
            PATIENCE,
        ))
    }

    fn proven_end(&self, within: Duration) -> BoxFuture<'_, Result<u64, NoAnswer>> {
        Box::pin(self.answer(|state| state.has_leader().then_some(state.log.len() as u64), within))
    }

    fn extent(&self) -> BoxFuture<'_, Result<Extent, NoAnswer>> {
        Box::pin(self.answer(
            |state| {
                let last = state.led()? as u64;
                Some(Extent { first: 1, last, identity: "the stream".into() })
            },
            PATIENCE,
        ))
    }

    fn tail(&self) -> BoxFuture<'_, Result<BoxStream<'static, Stored>, NoAnswer>> {
        Box::pin(async move {
            self.world.awake(self.life).await;
            let (sender, receiver) = mpsc::unbounded_channel();
            self.world.lock().lives[self.life].tails.push(sender);
            let (world, life) = (self.world.clone(), self.life);
            let heard = stream::unfold((receiver, world), move |(mut receiver, world)| async move {
                let stored = receiver.recv().await?;
                world.awake(life).await;
                Some((stored, (receiver, world)))
            });
            Ok(heard.boxed())
        })
    }

    fn connections(&self) -> watch::Receiver<u64> {
        self.world.lock().lives[self.life].connections.subscribe()
    }

    fn message_bytes_max(&self) -> usize {
        1 << 20
    }
}
