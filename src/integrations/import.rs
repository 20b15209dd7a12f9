//! `souk import`: brings the products of a Shopify file into a catalogue, and the same file again changes nothing.
//!
//! A thread reads the file and hands products over a bounded channel; a bounded number of them is under way at once.
//! Each product is found by its skus (a handle is only the readable part of an address):
//!
//! - none of its skus is known: the product is created, with its stock;
//! - one is: the product that has it is made equal to the file. It is left alone when it is equal already. Stock is
//!   given only to skus that are new to it: what has been sold since is not forgotten by importing the file again;
//! - some of the product's rows were refused: variants that the catalogue has and the file could not give are kept. A
//!   typing error in a price must not take a variant off the shelf.
//!
//! What the catalogue refuses becomes an error at the product's line. A catalogue that does not answer ends the import;
//! running it again goes on where it stopped.
//!
//! It must never hold more of the file than what is under way, and never decide what a valid product is.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io::Read;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::shopify_csv::{Item, ParsedProduct, ReadError, Reader, RowError, RowNote};
use crate::domain::product::Content;

/// Products on their way into the catalogue at once, unless told otherwise.
pub const IN_FLIGHT: usize = 64;
/// Items that wait between the reading thread and the catalogue.
const READ_AHEAD: usize = 128;
/// How many row errors and how many notes the report holds; more are only counted, so that a file of nothing but
/// errors doesn't fill the memory.
pub const KEPT_MAX: usize = 1000;
/// Past this a product counts as unanswered, whatever the catalogue's own timeouts and retries are.
const PRODUCT_DEADLINE: Duration = Duration::from_secs(300);

/// Where products are brought to. Small, so that a running node, a stopped node's journal and a test are all one.
pub trait Catalogue: Send + Sync {
    /// The product that has this sku, with its id.
    fn find_by_sku(&self, sku: &str) -> impl Future<Output = Result<Option<(String, Content)>, CatalogueError>> + Send;

    /// `stock`: initial units by sku.
    fn create(
        &self,
        content: Content,
        stock: BTreeMap<String, u32>,
    ) -> impl Future<Output = Result<(), CatalogueError>> + Send;

    /// Replaces the content. `stock` has only skus that the product did not have.
    fn update(
        &self,
        product_id: &str,
        content: Content,
        stock: BTreeMap<String, u32>,
    ) -> impl Future<Output = Result<(), CatalogueError>> + Send;
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// This product cannot be taken as it is; others can.
    #[error("{reason}")]
    Refused { reason: String },
    /// Nothing can be brought in now.
    #[error("{reason}")]
    Unavailable { reason: String },
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("the import stopped: {reason}\n{report}\nRun it again to go on: what is already there is not imported twice.")]
    Stopped { reason: String, report: Box<ImportReport> },
}

/// What came of an import. All counts are products unless they say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportReport {
    pub created: u64,
    pub updated: u64,
    pub unchanged: u64,
    /// Variants of the products above.
    pub variants: u64,
    /// By line, the first [`KEPT_MAX`].
    pub row_errors: Vec<RowError>,
    pub row_errors_count: u64,
    /// By line, the first [`KEPT_MAX`].
    pub notes: Vec<RowNote>,
    pub notes_count: u64,
    pub unknown_columns: Vec<String>,
    pub skipped_image_rows: u64,
}

impl ImportReport {
    pub fn products(&self) -> u64 {
        self.created + self.updated + self.unchanged
    }

    fn add_error(&mut self, error: RowError) {
        self.row_errors_count += 1;
        if self.row_errors.len() < KEPT_MAX {
            self.row_errors.push(error);
        }
    }

    fn add_note(&mut self, note: RowNote) {
        self.notes_count += 1;
        if self.notes.len() < KEPT_MAX {
            self.notes.push(note);
        }
    }
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to see what is wrong with a file; the rest is usually more of the same.
        const SHOWN: usize = 20;
        writeln!(
            f,
            "{} products with {} variants: {} created, {} updated, {} unchanged",
            self.products(),
            self.variants,
            self.created,
            self.updated,
            self.unchanged
        )?;
        if self.skipped_image_rows > 0 {
            writeln!(f, "{} rows only had an image and were passed over", self.skipped_image_rows)?;
        }
        if !self.unknown_columns.is_empty() {
            writeln!(f, "columns that were not read: {}", self.unknown_columns.join(", "))?;
        }
        if self.notes_count > 0 {
            writeln!(f, "{} values were read in another way than written:", self.notes_count)?;
            self.notes.iter().take(SHOWN).try_for_each(|note| writeln!(f, "  {note}"))?;
            write_rest(f, self.notes_count, SHOWN.min(self.notes.len()))?;
        }
        if self.row_errors_count > 0 {
            writeln!(f, "{} errors; what they name was not imported:", self.row_errors_count)?;
            self.row_errors.iter().take(SHOWN).try_for_each(|error| writeln!(f, "  {error}"))?;
            write_rest(f, self.row_errors_count, SHOWN.min(self.row_errors.len()))?;
        }
        Ok(())
    }
}

fn write_rest(f: &mut fmt::Formatter<'_>, all: u64, shown: usize) -> fmt::Result {
    match all.saturating_sub(shown as u64) {
        0 => Ok(()),
        rest => writeln!(f, "  … and {rest} more"),
    }
}

pub struct Importer<C> {
    catalogue: C,
    /// The shop that the products belong to. `None` leaves it to the catalogue, which knows whose token it was given.
    shop: Option<String>,
    in_flight: usize,
}

enum Outcome {
    Created,
    Updated,
    Unchanged,
}

/// What one item of the file came to.
enum Settled {
    Product { line: u64, variants: u64, outcome: Result<Outcome, CatalogueError> },
    RowError(RowError),
    Note(RowNote),
    Broken(ReadError),
}

impl<C: Catalogue> Importer<C> {
    pub fn new(catalogue: C, shop: Option<String>) -> Self {
        Importer { catalogue, shop, in_flight: IN_FLIGHT }
    }

    /// At least one.
    pub fn with_in_flight(mut self, products: usize) -> Self {
        self.in_flight = products.max(1);
        self
    }

    pub fn catalogue(&self) -> &C {
        &self.catalogue
    }

    /// Imports all that `reader` gives. `progress` is called after each item with the report so far.
    pub async fn run<R: Read + Send + 'static>(
        &self,
        reader: Reader<R>,
        mut progress: impl FnMut(&ImportReport),
    ) -> Result<ImportReport, ImportError> {
        let mut report = ImportReport { unknown_columns: reader.unknown_columns().to_vec(), ..ImportReport::default() };
        let (items, received) = mpsc::channel(READ_AHEAD);
        let reading = tokio::task::spawn_blocking(move || read_into(reader, &items));

        let settled = stream::unfold(received, |mut received| async { received.recv().await.map(|item| (item, received)) })
            .map(|item| self.settle(item))
            .buffer_unordered(self.in_flight);
        let mut settled = std::pin::pin!(settled);
        let mut stopped = None;
        while stopped.is_none()
            && let Some(settled) = settled.next().await
        {
            stopped = note_down(&mut report, settled);
            progress(&report);
        }
        if stopped.is_none() {
            // The channel is closed, so the thread has nothing left to do but to return.
            match reading.await {
                Ok(skipped_image_rows) => report.skipped_image_rows = skipped_image_rows,
                Err(error) => stopped = Some(format!("the file's reader failed: {error}")),
            }
        }
        report.row_errors.sort_by_key(|error| error.line);
        report.notes.sort_by_key(|note| note.line);
        match stopped {
            None => Ok(report),
            Some(reason) => Err(ImportError::Stopped { reason, report: Box::new(report) }),
        }
    }

    async fn settle(&self, item: Item) -> Settled {
        let product = match item {
            Item::Product(product) => product,
            Item::RowError(error) => return Settled::RowError(error),
            Item::Note(note) => return Settled::Note(note),
            Item::Broken(error) => return Settled::Broken(error),
        };
        let (line, variants) = (product.line, product.content.variants.len() as u64);
        let outcome = timeout(PRODUCT_DEADLINE, self.bring_in(product)).await.unwrap_or_else(|_| {
            let reason = format!("the catalogue did not settle a product within {} s", PRODUCT_DEADLINE.as_secs());
            Err(CatalogueError::Unavailable { reason })
        });
        Settled::Product { line, variants, outcome }
    }

    async fn bring_in(&self, product: ParsedProduct) -> Result<Outcome, CatalogueError> {
        let ParsedProduct { mut content, mut stock, incomplete, .. } = product;
        // Any of its skus will do, and in a file that is imported again it is the first.
        let mut found = None;
        for variant in &content.variants {
            found = self.catalogue.find_by_sku(&variant.sku).await?;
            if found.is_some() {
                break;
            }
        }
        let Some((product_id, existing)) = found else {
            content.shop = self.shop.clone().unwrap_or_default();
            self.catalogue.create(content, stock).await?;
            return Ok(Outcome::Created);
        };

        if self.shop.as_ref().is_some_and(|shop| *shop != existing.shop) {
            let reason = format!("a sku of `{}` belongs to product {product_id} of another shop", content.handle);
            return Err(CatalogueError::Refused { reason });
        }
        content.shop.clone_from(&existing.shop);
        if incomplete {
            keep_variants(&mut content, &existing)?;
        }
        if content == existing {
            return Ok(Outcome::Unchanged);
        }
        stock.retain(|sku, _| !existing.variants.iter().any(|variant| variant.sku == *sku));
        self.catalogue.update(&product_id, content, stock).await?;
        Ok(Outcome::Updated)
    }
}

/// Reads the file to its end or until nobody listens; returns how many image rows it passed over.
fn read_into<R: Read>(mut reader: Reader<R>, items: &mpsc::Sender<Item>) -> u64 {
    for item in reader.by_ref() {
        if items.blocking_send(item).is_err() {
            break;
        }
    }
    reader.skipped_image_rows()
}

/// Puts into `content` the variants of `existing` that it lacks, in the order in which they are.
fn keep_variants(content: &mut Content, existing: &Content) -> Result<(), CatalogueError> {
    if content.options != existing.options {
        let reason = "some of its rows have errors, and its options are not those of the product in the catalogue: \
                      correct the rows first";
        return Err(CatalogueError::Refused { reason: reason.to_owned() });
    }
    let mut new = std::mem::take(&mut content.variants);
    for variant in &existing.variants {
        match new.iter().position(|other| other.sku == variant.sku) {
            Some(index) => content.variants.push(new.remove(index)),
            None => content.variants.push(variant.clone()),
        }
    }
    content.variants.append(&mut new);
    Ok(())
}

/// Adds to the report; the reason when the import cannot go on.
fn note_down(report: &mut ImportReport, settled: Settled) -> Option<String> {
    match settled {
        Settled::RowError(error) => report.add_error(error),
        Settled::Note(note) => report.add_note(note),
        Settled::Broken(error) => return Some(error.to_string()),
        Settled::Product { line, outcome: Err(CatalogueError::Refused { reason }), .. } => {
            report.add_error(RowError { line, column: None, reason });
        }
        Settled::Product { line, outcome: Err(CatalogueError::Unavailable { reason }), .. } => {
            return Some(format!("at line {line}: {reason}"));
        }
        Settled::Product { variants, outcome: Ok(outcome), .. } => {
            report.variants += variants;
            match outcome {
                Outcome::Created => report.created += 1,
                Outcome::Updated => report.updated += 1,
                Outcome::Unchanged => report.unchanged += 1,
            }
        }
    }
    None
}
