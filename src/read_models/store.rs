//! The folder on disk: one sled tree, because only a batch on one tree is atomic, with a position for each model.
//!
//! Everything in it can be rebuilt from the journal, so whatever cannot be used is dropped with a warning. It must never
//! drop a folder that is merely busy (locked by another process) or unreadable for a moment.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use sled::{Batch, Tree};

use super::ReadModelError;
use crate::persistence::Position;

/// Raised when what is stored changes shape: an older folder is then dropped and rebuilt.
const FORMAT: u64 = 2;

const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// How often sled writes its buffers out by itself. What a crash loses is read again from the journal.
const FLUSH_EVERY_MS: u64 = 1_000;

/// How long a folder may be locked before it counts as another process's.
const LOCKED_MAX: Duration = Duration::from_secs(2);
const LOCKED_RETRY: Duration = Duration::from_millis(5);

const FORMAT_KEY: &[u8] = b"!format";
const CATALOGUE_POSITION_KEY: &[u8] = b"!position/catalogue";
const ORDERS_POSITION_KEY: &[u8] = b"!position/orders";
const SALES_POSITION_KEY: &[u8] = b"!position/flash-sales";

/// The first byte of every key that is not one of the above.
pub(super) const PRODUCT: u8 = b'p';
pub(super) const STOCK: u8 = b's';
pub(super) const ORDER: u8 = b'o';
pub(super) const ORDER_BY_USER: u8 = b'u';
pub(super) const ORDER_BY_SHOP: u8 = b'h';
pub(super) const ORDER_BY_STATUS: u8 = b't';
pub(super) const SALE: u8 = b'f';
pub(super) const SALE_BY_START: u8 = b'b';
pub(super) const SALE_BY_STATUS: u8 = b'a';
pub(super) const SALE_BY_SKU: u8 = b'k';
pub(super) const SALE_BY_SHOP: u8 = b'v';

/// Which model a position is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    Catalogue,
    Orders,
    Sales,
}

impl Model {
    fn key(self) -> &'static [u8] {
        match self {
            Model::Catalogue => CATALOGUE_POSITION_KEY,
            Model::Orders => ORDERS_POSITION_KEY,
            Model::Sales => SALES_POSITION_KEY,
        }
    }
}

/// Opens the tree, empty when what was there cannot be used. `highest` is where the journal ends.
pub(super) fn open(dir: &Path, highest: Position) -> Result<Tree, ReadModelError> {
    match open_when_free(dir) {
        Ok(tree) => match unusable(&tree, highest)? {
            None => return Ok(tree),
            Some(why) => tracing::warn!(dir = %dir.display(), why, "rebuilding the read models"),
        },
        Err(error @ (sled::Error::Corruption { .. } | sled::Error::Unsupported(_) | sled::Error::ReportableBug(_))) => {
            tracing::warn!(dir = %dir.display(), %error, "the read models are damaged; rebuilding them");
        }
        Err(error) => return Err(error.into()),
    }
    drop_folder(dir)?;
    let tree = open_when_free(dir)?;
    tree.insert(FORMAT_KEY, &FORMAT.to_be_bytes())?;
    Ok(tree)
}

fn open_as_it_is(dir: &Path) -> Result<Tree, sled::Error> {
    let database = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(Some(FLUSH_EVERY_MS)).open()?;
    database.open_tree("read-models")
}

/// Opens the tree once nobody else has it. sled gives a folder's lock up some moments after its last user is gone.
fn open_when_free(dir: &Path) -> Result<Tree, sled::Error> {
    let give_up = Instant::now() + LOCKED_MAX;
    loop {
        match open_as_it_is(dir) {
            // sled wraps the lock's refusal in text.
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") && Instant::now() < give_up => {
                std::thread::sleep(LOCKED_RETRY);
            }
            opened => return opened,
        }
    }
}

/// Why what is stored cannot be built upon, if so.
fn unusable(tree: &Tree, highest: Position) -> Result<Option<&'static str>, ReadModelError> {
    match number(tree, FORMAT_KEY)? {
        Some(FORMAT) => {}
        None if tree.is_empty() => {
            tree.insert(FORMAT_KEY, &FORMAT.to_be_bytes())?;
        }
        _ => return Ok(Some("they have another format")),
    }
    let mut furthest = Position(0);
    for model in [Model::Catalogue, Model::Orders, Model::Sales] {
        furthest = furthest.max(position(tree, model)?);
    }
    Ok((furthest > highest).then_some("they are ahead of the journal, which must have been replaced"))
}

fn drop_folder(dir: &Path) -> Result<(), ReadModelError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ReadModelError::Unavailable(format!("{} cannot be dropped: {error}", dir.display())))
        }
        _ => Ok(()),
    }
}

/// How far a model had come when it was last written.
pub(super) fn position(tree: &Tree, model: Model) -> Result<Position, ReadModelError> {
    Ok(Position(number(tree, model.key())?.unwrap_or(0)))
}

pub(super) fn put_position(batch: &mut Batch, model: Model, position: Position) {
    batch.insert(model.key(), &position.0.to_be_bytes());
}

fn number(tree: &Tree, key: &[u8]) -> Result<Option<u64>, ReadModelError> {
    Ok(tree.get(key)?.and_then(|bytes| Some(u64::from_be_bytes(bytes.as_ref().try_into().ok()?))))
}

/// The start of a key: its kind, then a text whose length is written before it, so that no text can be the start of
/// another's keys, whatever it contains.
pub(super) fn key(kind: u8, text: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.push(kind);
    // Texts are ids, skus and statuses: far shorter than 64 KiB. A longer one would share its length with others, and
    // still differ from them in its bytes.
    key.extend_from_slice(&(text.len() as u16).to_be_bytes());
    key.extend_from_slice(text.as_bytes());
    key
}

/// The text that `key` was made from, and what stands behind it.
pub(super) fn split(key: &[u8]) -> Option<(&str, &[u8])> {
    let (head, rest) = key.get(1..)?.split_at_checked(2)?;
    let length = usize::from(u16::from_be_bytes(head.try_into().ok()?));
    let (text, rest) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}
