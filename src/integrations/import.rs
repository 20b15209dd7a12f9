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
    fn create(&self, content: Content, stock: BTreeMap<String, u32>) -> impl Future<Output = Result<(), CatalogueError>> + Send;

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
            let reason = format!("one of its skus belongs to product {product_id} of another shop");
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;
    use crate::domain::Currency;

    const CLASSIC: &str = include_str!("../../tests/fixtures/shopify-classic.csv");

    /// A catalogue in memory, which refuses what Souk's refuses: a sku of another product.
    #[derive(Default)]
    struct Shelf {
        inner: Mutex<Inner>,
        under_way: AtomicUsize,
        most_under_way: AtomicUsize,
        /// Fails every call after this many creations.
        breaks_after: Option<usize>,
    }

    #[derive(Default)]
    struct Inner {
        products: Vec<Content>,
        by_sku: HashMap<String, usize>,
        stock: HashMap<String, u32>,
    }

    impl Inner {
        fn put(&mut self, id: usize, content: Content, stock: BTreeMap<String, u32>) -> Result<(), CatalogueError> {
            let taken = |sku: &str| self.by_sku.get(sku).is_some_and(|owner| *owner != id);
            if let Some(variant) = content.variants.iter().find(|variant| taken(&variant.sku)) {
                return Err(CatalogueError::Refused { reason: format!("{} is taken", variant.sku) });
            }
            self.by_sku.retain(|_, owner| *owner != id);
            self.by_sku.extend(content.variants.iter().map(|variant| (variant.sku.clone(), id)));
            self.stock.extend(stock);
            match self.products.get_mut(id) {
                Some(product) => *product = content,
                None => self.products.push(content),
            }
            Ok(())
        }
    }

    impl Catalogue for &Shelf {
        async fn find_by_sku(&self, sku: &str) -> Result<Option<(String, Content)>, CatalogueError> {
            let inner = self.inner.lock().unwrap();
            Ok(inner.by_sku.get(sku).map(|id| (id.to_string(), inner.products[*id].clone())))
        }

        async fn create(&self, content: Content, stock: BTreeMap<String, u32>) -> Result<(), CatalogueError> {
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_under_way.fetch_max(now, Ordering::SeqCst);
            tokio::task::yield_now().await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            let mut inner = self.inner.lock().unwrap();
            let id = inner.products.len();
            if self.breaks_after.is_some_and(|after| id >= after) {
                return Err(CatalogueError::Unavailable { reason: "gone".to_owned() });
            }
            inner.put(id, content, stock)
        }

        async fn update(&self, id: &str, content: Content, stock: BTreeMap<String, u32>) -> Result<(), CatalogueError> {
            self.inner.lock().unwrap().put(id.parse().unwrap(), content, stock)
        }
    }

    impl Shelf {
        fn stock(&self, sku: &str) -> Option<u32> {
            self.inner.lock().unwrap().stock.get(sku).copied()
        }

        fn product(&self, sku: &str) -> Content {
            let inner = self.inner.lock().unwrap();
            inner.products[inner.by_sku[sku]].clone()
        }
    }

    async fn import_for(shelf: &Shelf, shop: &str, text: impl Into<String>) -> Result<ImportReport, ImportError> {
        let reader = Reader::new(io::Cursor::new(text.into()), Currency::EUR).unwrap();
        Importer::new(shelf, Some(shop.to_owned())).run(reader, |_| {}).await
    }

    async fn import(shelf: &Shelf, text: impl Into<String>) -> ImportReport {
        import_for(shelf, "shop_1", text).await.unwrap()
    }

    fn counts(report: &ImportReport) -> (u64, u64, u64, u64) {
        (report.created, report.updated, report.unchanged, report.row_errors_count)
    }

    const HEADER: &str = "Handle,Title,Option1 Name,Option1 Value,Variant SKU,Variant Price,Variant Inventory Qty\n";

    #[tokio::test]
    async fn importing_the_same_file_again_changes_nothing_and_resets_no_stock() {
        let shelf = Shelf::default();
        let report = import(&shelf, CLASSIC).await;
        assert_eq!(counts(&report), (3, 0, 0, 1));
        assert_eq!((report.variants, report.skipped_image_rows, report.notes_count), (5, 1, 1));
        assert_eq!(report.unknown_columns, ["Märkte"]);
        assert_eq!(shelf.product("POT-1").shop, "shop_1");

        shelf.inner.lock().unwrap().stock.insert("POT-1".to_owned(), 2);
        assert_eq!(counts(&import(&shelf, CLASSIC).await), (0, 0, 3, 1));
        assert_eq!(shelf.stock("POT-1"), Some(2));

        let text = report.to_string();
        assert!(text.starts_with("3 products with 5 variants: 3 created, 0 updated, 0 unchanged\n"), "{text}");
        assert!(text.contains("columns that were not read: Märkte\n"), "{text}");
        assert!(text.contains("  line 8, Variant Price: "), "{text}");
    }

    #[tokio::test]
    async fn a_changed_product_is_updated_and_only_its_new_skus_get_stock() {
        let shelf = Shelf::default();
        import(&shelf, format!("{HEADER}a,A,Size,S,A-S,5,10\n")).await;
        let report = import(&shelf, format!("{HEADER}a,A,Size,XS,A-XS,5,7\na,,,S,A-S,6,99\n")).await;
        assert_eq!(counts(&report), (0, 1, 0, 0));
        assert_eq!((shelf.stock("A-S"), shelf.stock("A-XS")), (Some(10), Some(7)));
        assert_eq!(shelf.product("A-S").variants[1].price.amount, 600);
    }

    #[tokio::test]
    async fn a_row_with_an_error_takes_no_variant_off_the_shelf() {
        let shelf = Shelf::default();
        import(&shelf, format!("{HEADER}a,A,Size,S,A-S,5,1\na,,,M,A-M,5,1\na,,,L,A-L,5,1\n")).await;
        let typo = format!("{HEADER}a,A,Size,S,A-S,4,1\na,,,M,A-M,oops,1\na,,,L,A-L,5,1\n");
        assert_eq!(counts(&import(&shelf, typo.clone()).await), (0, 1, 0, 1));
        let skus: Vec<String> = shelf.product("A-S").variants.into_iter().map(|variant| variant.sku).collect();
        assert_eq!(skus, ["A-S", "A-M", "A-L"]);
        assert_eq!(counts(&import(&shelf, typo).await), (0, 0, 1, 1));

        let shorter = format!("{HEADER}a,A,Size,S,A-S,4,1\n");
        assert_eq!(counts(&import(&shelf, shorter).await), (0, 1, 0, 0));
        assert_eq!(shelf.product("A-S").variants.len(), 1, "a file without errors says what there is");
    }

    #[tokio::test]
    async fn another_shops_product_is_never_touched() {
        let shelf = Shelf::default();
        import(&shelf, format!("{HEADER}a,A,,,A,5,1\n")).await;
        let report = import_for(&shelf, "shop_2", format!("{HEADER}a,Mine,,,A,1,1\nb,B,,,B,1,1\n")).await.unwrap();
        assert_eq!(counts(&report), (1, 0, 0, 1));
        assert!(report.row_errors[0].to_string().starts_with("line 2: one of its skus belongs to product 0 of another shop"));
        assert_eq!(shelf.product("A").title, "A");
    }

    #[tokio::test]
    async fn what_the_catalogue_refuses_is_an_error_at_the_products_line_and_the_rest_goes_on() {
        let shelf = Shelf::default();
        import(&shelf, format!("{HEADER}a,A,,,A,5,1\nb,B,,,B,5,1\n")).await;
        let report = import(&shelf, format!("{HEADER}a,A,Size,S,A,5,1\na,,,M,B,5,1\nc,C,,,C,5,1\n")).await;
        assert_eq!(counts(&report), (1, 0, 0, 1));
        assert_eq!(report.row_errors[0].to_string(), "line 2: B is taken");
    }

    #[tokio::test]
    async fn a_catalogue_that_fails_stops_the_import_and_running_it_again_goes_on() {
        let text = file_of(200, 1);
        let mut shelf = Shelf { breaks_after: Some(50), ..Shelf::default() };
        let Err(ImportError::Stopped { reason, report }) = import_for(&shelf, "shop_1", text.clone()).await else {
            panic!("it went on");
        };
        assert!(reason.ends_with(": gone"), "{reason}");
        assert_eq!(report.created, 50);
        shelf.breaks_after = None;
        assert_eq!(counts(&import(&shelf, text).await), (150, 0, 50, 0));
    }

    #[tokio::test]
    async fn errors_past_the_bound_are_counted_and_not_kept() {
        let rows: String = (0..KEPT_MAX + 500).map(|number| format!("p{number},,,,,,1\n")).collect();
        let report = import(&Shelf::default(), format!("{HEADER}keep,Keep,,,K,1,1\n{rows}x,X,,,X,bad,1\n")).await;
        // Rows without title, price and option are images; what is left is X, twice.
        assert_eq!((report.skipped_image_rows, report.row_errors_count), (1500, 2));
        let rows: String = (0..KEPT_MAX + 500).map(|number| format!("p{number},,,,,1,1\n")).collect();
        let report = import(&Shelf::default(), format!("{HEADER}{rows}")).await;
        assert_eq!((report.row_errors.len(), report.row_errors_count), (KEPT_MAX, 1500));
        assert!(report.to_string().ends_with("  … and 1480 more\n"), "{report}");
    }

    fn file_of(products: usize, variants: usize) -> String {
        let mut text = HEADER.to_owned();
        for product in 0..products {
            text.push_str(&format!("p{product},Product {product},Size,0,P{product}-0,19.99,5\n"));
            (1..variants).for_each(|size| text.push_str(&format!("p{product},,,{size},P{product}-{size},19.99,5\n")));
        }
        text
    }

    #[tokio::test]
    async fn twenty_thousand_variants_stream_through_in_seconds_with_a_bounded_number_under_way() {
        let (shelf, started) = (Shelf::default(), Instant::now());
        let report = import(&shelf, file_of(5000, 4)).await;
        assert_eq!((report.created, report.variants), (5000, 20_000));
        assert!(shelf.most_under_way.load(Ordering::SeqCst) <= IN_FLIGHT);
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}
