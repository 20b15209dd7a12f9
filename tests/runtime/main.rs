//! What the entity runtime promises, on the real embedded journal, with a small entity made for it and a journal that
//! fails on command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod faulty;
mod neighbours;
mod notices;
mod promises;
mod tally;
