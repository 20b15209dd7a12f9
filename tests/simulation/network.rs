//! A model of what passes between members, as one life of a node sees it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use souk::cluster::wire::{Answer, AskError, Entry, Incoming, Name, Outcome, PutError, Wire, WireError};
use tokio::sync::{mpsc, oneshot};

use crate::world::{Life, World};

const REGISTER_PATIENCE: Duration = Duration::from_millis(500);

pub struct Network {
    pub world: Arc<World>,
    pub life: Life,
}

impl Network {
    fn stream_of<T: Send + 'static>(&self, receiver: mpsc::UnboundedReceiver<T>) -> BoxStream<'static, T> {
        let (world, life) = (self.world.clone(), self.life);
        stream::unfold((receiver, world), move |(mut receiver, world)| async move {
            let next = receiver.recv().await?;
            world.awake(life).await;
            Some((next, (receiver, world)))
        })
        .boxed()
    }
}

impl Wire for Network {
    fn broadcast(&self, beat: Bytes) {
        if self.world.lock().lives[self.life].is_dead {
            return;
        }
        let (world, life) = (self.world.clone(), self.life);
        // What a frozen process was about to say is said when it wakes.
        tokio::spawn(async move {
            world.awake(life).await;
            let mut sends = Vec::new();
            {
                let mut state = world.lock();
                if state.is_cut(life) {
                    return;
                }
                for other in 0..state.lives.len() {
                    for index in 0..state.lives[other].ears.len() {
                        let doubled = state.weather.doubled;
                        let copies = usize::from(!state.loses()) + usize::from(state.chance(doubled));
                        for _ in 0..copies {
                            sends.push((state.delay(), other, state.lives[other].ears[index].clone()));
                        }
                    }
                }
            }
            for (delay, other, ear) in sends {
                let (world, beat) = (world.clone(), beat.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    if !world.lock().is_cut(other) {
                        let _ = ear.send(beat);
                    }
                });
            }
        });
    }

    fn hear(&self) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, WireError>> {
        Box::pin(async move {
            self.world.awake(self.life).await;
            let (sender, receiver) = mpsc::unbounded_channel();
            self.world.lock().lives[self.life].ears.push(sender);
            Ok(self.stream_of(receiver))
        })
    }

    fn ask<'a>(&'a self, member: &'a Name, payload: Bytes, patience: Duration) -> BoxFuture<'a, Result<Bytes, AskError>> {
        Box::pin(async move {
            self.world.awake(self.life).await;
            let (tell, heard) = oneshot::channel();
            let tell = Arc::new(std::sync::Mutex::new(Some(tell)));
            let (sends, nobody) = {
                let mut state = self.world.lock();
                // Two processes may listen under one name for a while: either may get it.
                let listening: Vec<Life> = (0..state.lives.len())
                    .filter(|life| {
                        !state.is_cut(*life) && state.lives[*life].name == member.as_str() && state.lives[*life].desk.is_some()
                    })
                    .collect();
                let cut = state.is_cut(self.life);
                let mut sends = Vec::new();
                if !cut && !listening.is_empty() {
                    let other = listening[state.rng.usize(0..listening.len())];
                    let doubled = state.weather.doubled;
                    let copies = usize::from(!state.loses()) + usize::from(state.chance(doubled));
                    for _ in 0..copies {
                        let desk = state.lives[other].desk.clone().unwrap();
                        sends.push((state.delay(), state.delay(), state.loses(), other, desk));
                    }
                }
                (sends, !cut && listening.is_empty())
            };
            if nobody {
                return Err(AskError::NoSuchMember(member.clone()));
            }
            for (there, back, lost_back, other, desk) in sends {
                let (world, tell, payload) = (self.world.clone(), tell.clone(), payload.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(there).await;
                    if world.lock().is_cut(other) {
                        return;
                    }
                    let answering = world.clone();
                    let answer = Answer::new(move |outcome| {
                        Box::pin(async move {
                            answering.awake(other).await;
                            // It is on its way; whether it arrives, nobody there hears.
                            tokio::spawn(async move {
                                tokio::time::sleep(back).await;
                                if !lost_back
                                    && !answering.lock().is_cut(other)
                                    && let Some(tell) = tell.lock().unwrap().take()
                                {
                                    let _ = tell.send(outcome);
                                }
                            });
                        })
                    });
                    let _ = desk.send(Incoming { payload, patience, answer });
                });
            }
            let heard = tokio::time::timeout(patience, async {
                match heard.await {
                    Ok(outcome) => outcome,
                    Err(_) => std::future::pending().await,
                }
            })
            .await;
            self.world.awake(self.life).await;
            match heard {
                Ok(Outcome::Answered(answer)) => Ok(answer),
                Ok(Outcome::Overloaded) => Err(AskError::Overloaded(member.clone())),
                Err(_) => Err(AskError::TimedOut(member.clone())),
            }
        })
    }

    fn listen<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<BoxStream<'static, Incoming>, WireError>> {
        Box::pin(async move {
            self.world.awake(self.life).await;
            let (sender, receiver) = mpsc::unbounded_channel();
            self.world.lock().lives[self.life].desk = Some(sender);
            Ok(self.stream_of(receiver))
        })
    }

    fn put<'a>(&'a self, member: &'a Name, expected: u64, payload: Bytes) -> BoxFuture<'a, Result<u64, PutError>> {
        Box::pin(async move {
            self.world.awake(self.life).await;
            let (there, back, lost_there, lost_back) = {
                let mut state = self.world.lock();
                let cut = state.is_cut(self.life);
                (state.delay(), state.delay(), cut || state.loses(), state.loses())
            };
            let (tell, heard) = oneshot::channel();
            if !lost_there {
                let (world, name) = (self.world.clone(), member.as_str().to_owned());
                tokio::spawn(async move {
                    tokio::time::sleep(there).await;
                    let put = {
                        let mut state = world.lock();
                        let newest = state.register.get(&name).map_or(0, |(sequence, _)| *sequence);
                        match (state.has_leader(), newest == expected) {
                            (false, _) => return,
                            (true, false) => Err(PutError::Changed),
                            (true, true) => {
                                state.register_sequence += 1;
                                let sequence = state.register_sequence;
                                state.register.insert(name, (sequence, payload));
                                Ok(sequence)
                            }
                        }
                    };
                    tokio::time::sleep(back).await;
                    if !lost_back {
                        let _ = tell.send(put);
                    }
                });
            }
            let heard = tokio::time::timeout(REGISTER_PATIENCE, async {
                match heard.await {
                    Ok(put) => put,
                    Err(_) => std::future::pending().await,
                }
            })
            .await;
            self.world.awake(self.life).await;
            heard.unwrap_or_else(|_| Err(PutError::Unknown("silence".into())))
        })
    }

    fn read(&self) -> BoxFuture<'_, Result<Vec<Entry>, WireError>> {
        Box::pin(async move {
            self.world.awake(self.life).await;
            let (delay, lost) = {
                let mut state = self.world.lock();
                (state.delay(), state.is_cut(self.life) || state.loses() || !state.has_leader())
            };
            tokio::time::sleep(if lost { REGISTER_PATIENCE } else { delay }).await;
            let entries = self
                .world
                .lock()
                .register
                .iter()
                .map(|(name, (sequence, payload))| Entry {
                    member: Name::parse(name).unwrap(),
                    sequence: *sequence,
                    payload: payload.clone(),
                })
                .collect();
            self.world.awake(self.life).await;
            if lost { Err(WireError("silence".into())) } else { Ok(entries) }
        })
    }
}
