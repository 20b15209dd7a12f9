//! What every journal promises, and what the embedded one promises besides.
//!
//! `promises` is written against `dyn Journal`: another store runs the same sentences by handing in its own `Opener`.

#[path = "journal/embedded.rs"]
mod embedded;
#[path = "journal/promises.rs"]
mod promises;
