//! Shopify's product CSV, read as a stream: the classic columns (`Handle`, `Variant SKU`, …) and those of the current
//! template (`URL handle`, `SKU`, …). Which of the two it is, the header says.
//!
//! # What a file means here
//!
//! - Consecutive rows of one handle are one product. What concerns the product is read from its first row: title,
//!   description, vendor, type, category, tags, names of options, published and status.
//! - A handle that comes back after another product, with a title of its own, is another product that was given the same
//!   name: its handle gets the first of the endings `-2`, `-3`, … that no product before it in the file has, with a note.
//!   The same file always gives the same endings. Without a title such a row is refused, with the line of the handle's
//!   first use: putting it to its product would need the whole file in memory.
//! - `Title` / `Default Title` is Shopify's way to say that there are no options.
//! - A row without option values, price and sku only adds an image: it is counted and passed over.
//! - A blank sku is derived from the handle and the values of the options, e.g. `TREK-SHOES-41-DARK-BLUE`.
//! - A quantity that is blank, or whose tracker column is blank, is 0; a negative one is 0, with a note.
//! - For sale means: published is `TRUE`, and the status is `active` or blank. A column that is absent counts as yes.
//! - A bad row costs its own variant only; a bad first row (no title, unreadable) costs the product. Each is reported
//!   with its line.
//!
//! Memory: one row, one product, and each handle and sku so far with its line (to name both lines of a repetition).
//!
//! It must never do anything but read: whether a product is new, and whose it is, is the importer's question.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::io::{self, Read};

use super::csv_rows::{COLUMNS_MAX, Next, ROW_BYTES_MAX, Row, Rows};
use crate::domain::ids::{self, SKU_CHARS_MAX};
use crate::domain::money::{AMOUNT_MAX, Currency, Money};
use crate::domain::product::{Content, Variant};

/// The largest field, in bytes.
pub const FIELD_BYTES_MAX: usize = 1024 * 1024;
/// The most variants of one product: Shopify's own limit, and what bounds a product in memory.
pub const VARIANTS_MAX: usize = 2048;
/// The longest name or value of an option, in bytes.
pub const OPTION_BYTES_MAX: usize = 255;

const OPTIONS_MAX: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Classic,
    Current,
}

/// Why a file cannot be read at all, or not any further.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the file is empty")]
    Empty,
    #[error("the file is UTF-16; save it as CSV UTF-8")]
    Utf16,
    #[error("the header is larger than {} MiB or has more than {COLUMNS_MAX} columns", ROW_BYTES_MAX / (1024 * 1024))]
    HeaderTooLarge,
    #[error("the header is separated by semicolons; save the file with commas")]
    Semicolons,
    #[error("the header has no column `{classic}` (classic export) or `{current}` (current template); {found}")]
    NotShopify { classic: &'static str, current: &'static str, found: String },
    #[error("the header has no column `{column}`, without which no product can be read")]
    MissingColumn { column: &'static str },
    #[error("the header has the column `{column}` twice")]
    RepeatedColumn { column: String },
    #[error("the file could not be read: {0}")]
    Io(#[from] io::Error),
}

/// What the file says, in its order.
#[derive(Debug)]
pub enum Item {
    Product(ParsedProduct),
    RowError(RowError),
    /// Something was read in another way than it was written; nothing is lost.
    Note(RowNote),
    /// The input broke off; always the last item.
    Broken(ReadError),
}

#[derive(Debug, Clone, PartialEq)]
pub struct ParsedProduct {
    /// Of its first row.
    pub line: u64,
    /// With an empty `shop`, which the file does not know.
    pub content: Content,
    /// By sku.
    pub stock: BTreeMap<String, u32>,
    /// Some of its rows were refused: what is missing here was not necessarily meant to go.
    pub incomplete: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowError {
    pub line: u64,
    /// As the file's header writes it.
    pub column: Option<String>,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowNote {
    pub line: u64,
    pub column: String,
    pub note: String,
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.column {
            Some(column) => write!(f, "line {}, {column}: {}", self.line, self.reason),
            None => write!(f, "line {}: {}", self.line, self.reason),
        }
    }
}

impl fmt::Display for RowNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, {}: {}", self.line, self.column, self.note)
    }
}

/// The columns that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Handle,
    Title,
    Description,
    Vendor,
    Category,
    Type,
    Tags,
    Published,
    Status,
    OptionName(usize),
    OptionValue(usize),
    Sku,
    Price,
    Tracker,
    Quantity,
}

/// Each column that is read: its field, its name in the classic export, its name in the current template.
const COLUMNS: [(Field, &str, &str); 19] = [
    (Field::Handle, "Handle", "URL handle"),
    (Field::Title, "Title", "Title"),
    (Field::Description, "Body (HTML)", "Description"),
    (Field::Vendor, "Vendor", "Vendor"),
    (Field::Category, "Product Category", "Product category"),
    (Field::Type, "Type", "Type"),
    (Field::Tags, "Tags", "Tags"),
    (Field::Published, "Published", "Published on online store"),
    (Field::Status, "Status", "Status"),
    (Field::OptionName(0), "Option1 Name", "Option1 name"),
    (Field::OptionValue(0), "Option1 Value", "Option1 value"),
    (Field::OptionName(1), "Option2 Name", "Option2 name"),
    (Field::OptionValue(1), "Option2 Value", "Option2 value"),
    (Field::OptionName(2), "Option3 Name", "Option3 name"),
    (Field::OptionValue(2), "Option3 Value", "Option3 value"),
    (Field::Sku, "Variant SKU", "SKU"),
    (Field::Price, "Variant Price", "Price"),
    (Field::Tracker, "Variant Inventory Tracker", "Inventory tracker"),
    (Field::Quantity, "Variant Inventory Qty", "Inventory quantity"),
];

/// Columns that both dialects are known to have and that Souk has no use for. Anything else is reported as unknown.
const PASSED_OVER: [&str; 46] = [
    "barcode",
    "charge tax",
    "collection",
    "compare-at price",
    "continue selling when out of stock",
    "cost per item",
    "custom product type",
    "fulfillment service",
    "gift card",
    "image alt text",
    "image position",
    "image src",
    "option1 linked to",
    "option2 linked to",
    "option3 linked to",
    "product image url",
    "published scope",
    "requires shipping",
    "seo description",
    "seo title",
    "standardized product type",
    "tax code",
    "template suffix",
    "unit price base measure",
    "unit price base measure unit",
    "unit price total measure",
    "unit price total measure unit",
    "variant barcode",
    "variant compare at price",
    "variant fulfillment service",
    "variant grams",
    "variant image",
    "variant image url",
    "variant inventory policy",
    "variant requires shipping",
    "variant tax code",
    "variant taxable",
    "variant unit price base measure",
    "variant unit price base measure unit",
    "variant unit price total measure",
    "variant unit price total measure unit",
    "variant weight unit",
    "weight unit for display",
    "weight value (grams)",
    "variant cost",
    "variant id",
];

impl Field {
    fn slot(self) -> usize {
        match self {
            Field::Handle => 0,
            Field::Title => 1,
            Field::Description => 2,
            Field::Vendor => 3,
            Field::Category => 4,
            Field::Type => 5,
            Field::Tags => 6,
            Field::Published => 7,
            Field::Status => 8,
            Field::Sku => 9,
            Field::Price => 10,
            Field::Tracker => 11,
            Field::Quantity => 12,
            Field::OptionName(option) => 13 + option,
            Field::OptionValue(option) => 13 + OPTIONS_MAX + option,
        }
    }
}

/// What the header said.
struct Header {
    dialect: Dialect,
    /// As written in the file.
    names: Vec<String>,
    /// By [`Field::slot`], the column that holds it.
    columns: [Option<usize>; COLUMNS.len()],
    unknown: Vec<String>,
}

impl Header {
    fn read(row: &Row) -> Result<Header, ReadError> {
        if row.field(0).starts_with(b"\xFF\xFE") || row.field(0).starts_with(b"\xFE\xFF") {
            return Err(ReadError::Utf16);
        }
        let names: Vec<String> =
            (0..row.fields()).map(|field| String::from_utf8_lossy(row.field(field)).trim().to_owned()).collect();
        let has = |name: &str| names.iter().any(|found| found.eq_ignore_ascii_case(name));
        let dialect = match (has(COLUMNS[0].2), has(COLUMNS[0].1)) {
            (true, _) => Dialect::Current,
            (false, true) => Dialect::Classic,
            (false, false) if names.len() == 1 && names[0].contains(';') => return Err(ReadError::Semicolons),
            (false, false) => {
                let first: Vec<String> = names.iter().take(5).map(|name| shown(name)).collect();
                let found = format!("it starts with: {}", first.join(", "));
                return Err(ReadError::NotShopify { classic: COLUMNS[0].1, current: COLUMNS[0].2, found });
            }
        };

        let mut header = Header { dialect, columns: [None; COLUMNS.len()], unknown: Vec::new(), names };
        for (index, name) in header.names.iter().enumerate() {
            let known = COLUMNS.iter().find(|column| header.dialect.name_in(column).eq_ignore_ascii_case(name));
            match known {
                Some((field, ..)) if header.columns[field.slot()].is_some() => {
                    return Err(ReadError::RepeatedColumn { column: name.clone() });
                }
                Some((field, ..)) => header.columns[field.slot()] = Some(index),
                None if name.is_empty() || is_passed_over(name) => {}
                None => header.unknown.push(shown(name)),
            }
        }
        for column in &COLUMNS {
            let essential = matches!(column.0, Field::Handle | Field::Title | Field::Price);
            if essential && header.columns[column.0.slot()].is_none() {
                return Err(ReadError::MissingColumn { column: dialect.name_in(column) });
            }
        }
        Ok(header)
    }

    fn has(&self, field: Field) -> bool {
        self.columns[field.slot()].is_some()
    }

    /// The name of a field's column, for messages.
    fn name(&self, field: Field) -> Option<String> {
        self.columns[field.slot()].map(|column| self.names[column].clone())
    }

    /// A field of a row as text without space around it; empty when there is no such column.
    fn text<'row>(&self, row: &'row Row, field: Field) -> Result<&'row str, Fault> {
        let Some(column) = self.columns[field.slot()] else { return Ok("") };
        let bytes = row.field(column);
        if bytes.len() > FIELD_BYTES_MAX {
            return Err(self.fault(field, format!("is larger than {} KiB", FIELD_BYTES_MAX / 1024)));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.trim()),
            Err(_) => Err(self.fault(field, "is not UTF-8; save the file as CSV UTF-8")),
        }
    }

    fn fault(&self, field: Field, reason: impl Into<String>) -> Fault {
        Fault { column: self.name(field), reason: reason.into() }
    }
}

impl Dialect {
    fn name_in(self, column: &(Field, &'static str, &'static str)) -> &'static str {
        match self {
            Dialect::Classic => column.1,
            Dialect::Current => column.2,
        }
    }
}

fn is_passed_over(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    PASSED_OVER.contains(&name.as_str()) || name.starts_with("google shopping /")
}

/// What is wrong with a row, before its line is put to it.
struct Fault {
    column: Option<String>,
    reason: String,
}

/// The product whose rows are being read.
struct Draft {
    product: ParsedProduct,
    /// For each of the product's options, which of the three option columns holds it.
    option_columns: Vec<usize>,
    /// The line of each variant, in their order.
    variant_lines: Vec<u64>,
    /// Its first row was refused: its other rows are passed over.
    refused: bool,
    /// The handle of its rows, which its own may differ from by an ending.
    written_handle: String,
}

/// Where a handle stands in the file.
struct Used {
    /// Of its first row.
    line: u64,
    /// The first ending that was not tried yet.
    next_ending: u32,
}

pub struct Reader<R> {
    rows: Rows<R>,
    row: Row,
    header: Header,
    currency: Currency,
    /// The handles of the products so far.
    handles: HashMap<String, Used>,
    /// The line of each sku.
    skus: HashMap<String, u64>,
    open: Option<Draft>,
    /// What one row gave, handed out one by one: at most a product and a few words about its row.
    ready: VecDeque<Item>,
    skipped_image_rows: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header. Prices are in `currency`, which the file does not say.
    pub fn new(input: R, currency: Currency) -> Result<Self, ReadError> {
        let (mut rows, mut row) = (Rows::new(input), Row::default());
        let header = match rows.read(&mut row)? {
            Next::Row => Header::read(&row)?,
            Next::TooLarge => return Err(ReadError::HeaderTooLarge),
            Next::End => return Err(ReadError::Empty),
        };
        Ok(Reader {
            rows,
            row,
            header,
            currency,
            handles: HashMap::new(),
            skus: HashMap::new(),
            open: None,
            ready: VecDeque::new(),
            skipped_image_rows: 0,
            ended: false,
        })
    }

    pub fn dialect(&self) -> Dialect {
        self.header.dialect
    }

    /// Columns that neither dialect is known to have; nothing is read from them.
    pub fn unknown_columns(&self) -> &[String] {
        &self.header.unknown
    }

    /// How many rows only added an image, so far.
    pub fn skipped_image_rows(&self) -> u64 {
        self.skipped_image_rows
    }

    /// Reads one row into the open product, or opens the next.
    fn take_row(&mut self) {
        if self.row.is_blank() {
            return;
        }
        let (found, expected) = (self.row.fields(), self.header.names.len());
        if found != expected {
            let reason = format!("has {found} fields where the header has {expected}; a quote or comma may be missing");
            return self.refuse_row(Fault { column: None, reason });
        }
        let handle = match self.header.text(&self.row, Field::Handle) {
            Ok("") => return self.refuse_row(self.header.fault(Field::Handle, "is empty")),
            Ok(handle) => handle.to_owned(),
            Err(fault) => return self.refuse_row(fault),
        };

        let continues = self.open.as_ref().is_some_and(|draft| draft.written_handle == handle);
        let draft = if continues { self.open.take() } else { None };
        let draft = match draft {
            Some(draft) => draft,
            None => {
                self.close();
                match self.begin(handle) {
                    Some(draft) => draft,
                    None => return,
                }
            }
        };
        let draft = self.open.insert(draft);
        if draft.refused {
            return;
        }
        let first = draft.product.line == self.row.line;
        match read_variant(&self.header, &self.row, self.currency, draft, first) {
            Ok(None) => self.skipped_image_rows += 1,
            Ok(Some(read)) => match self.skus.get(&read.variant.sku) {
                Some(line) => {
                    let reason = format!("`{}` is already the sku of line {line}", read.variant.sku);
                    self.refuse_row(self.header.fault(Field::Sku, reason));
                }
                None => {
                    self.skus.insert(read.variant.sku.clone(), self.row.line);
                    draft.variant_lines.push(self.row.line);
                    draft.product.stock.insert(read.variant.sku.clone(), read.stock);
                    draft.product.content.variants.push(read.variant);
                    if let Some((field, note)) = read.note {
                        self.note(field, note);
                    }
                }
            },
            Err(fault) => self.refuse_row(fault),
        }
    }

    /// Opens a product at its first row; `None` when there is nothing to open.
    fn begin(&mut self, handle: String) -> Option<Draft> {
        if is_image_only(&self.header, &self.row) && matches!(self.header.text(&self.row, Field::Title), Ok("")) {
            self.skipped_image_rows += 1;
            return None;
        }
        let line = self.row.line;
        let own_handle = self.own_handle(&handle)?;
        self.handles.insert(own_handle.clone(), Used { line, next_ending: 2 });

        let content = Content { handle: own_handle, ..Content::default() };
        let product = ParsedProduct { line, content, stock: BTreeMap::new(), incomplete: false };
        let (option_columns, variant_lines) = (Vec::new(), Vec::new());
        let mut draft = Draft { product, option_columns, variant_lines, refused: false, written_handle: handle };
        match read_first_row(&self.header, &self.row, &mut draft) {
            Ok(notes) => notes.into_iter().for_each(|(field, note)| self.note(field, note)),
            Err(fault) => {
                let reason = format!("{}; the product `{}` was not read", fault.reason, shown(&draft.product.content.handle));
                self.refuse_row(Fault { reason, ..fault });
                draft.refused = true;
            }
        }
        Some(draft)
    }

    /// The handle of the product that begins here: the one written, or one with an ending when that is taken; `None` when
    /// the row does not say that it is another product.
    fn own_handle(&mut self, handle: &str) -> Option<String> {
        let Some(used) = self.handles.get(handle) else { return Some(handle.to_owned()) };
        let (first, mut ending) = (used.line, used.next_ending);
        if matches!(self.header.text(&self.row, Field::Title), Ok("")) {
            let reason = format!(
                "`{}` was already used at line {first}; the rows of one product stand together, and another product \
                 needs a title of its own",
                shown(handle)
            );
            self.refuse_row(self.header.fault(Field::Handle, reason));
            return None;
        }
        while self.handles.contains_key(&format!("{handle}-{ending}")) {
            ending += 1;
        }
        if let Some(used) = self.handles.get_mut(handle) {
            used.next_ending = ending + 1;
        }
        let own = format!("{handle}-{ending}");
        let note = format!("`{}` was already used at line {first}; this other product is `{}`", shown(handle), shown(&own));
        self.note(Field::Handle, note);
        Some(own)
    }

    /// Hands the open product out.
    fn close(&mut self) {
        let Some(draft) = self.open.take() else { return };
        if draft.refused {
            return;
        }
        if draft.product.content.variants.is_empty() {
            let reason = format!("no variant of `{}` could be read, so it was left out", shown(&draft.product.content.handle));
            self.ready.push_back(Item::RowError(RowError { line: draft.product.line, column: None, reason }));
            return;
        }
        self.ready.push_back(Item::Product(draft.product));
    }

    fn refuse_row(&mut self, fault: Fault) {
        if let Some(draft) = &mut self.open {
            draft.product.incomplete = true;
        }
        let Fault { column, reason } = fault;
        self.ready.push_back(Item::RowError(RowError { line: self.row.line, column, reason }));
    }

    fn note(&mut self, field: Field, note: String) {
        let column = self.header.name(field).unwrap_or_default();
        self.ready.push_back(Item::Note(RowNote { line: self.row.line, column, note }));
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            if self.ended {
                return None;
            }
            match self.rows.read(&mut self.row) {
                Ok(Next::Row) => self.take_row(),
                Ok(Next::TooLarge) => {
                    let limit = ROW_BYTES_MAX / (1024 * 1024);
                    let reason = format!("is larger than {limit} MiB; the quote that ends a field may be missing");
                    self.refuse_row(Fault { column: None, reason });
                }
                Ok(Next::End) => {
                    self.close();
                    self.ended = true;
                }
                // The product that was being read may lack variants, so it is not handed out.
                Err(error) => {
                    self.open = None;
                    self.ended = true;
                    return Some(Item::Broken(error.into()));
                }
            }
        }
    }
}

/// What only the first row of a product says.
fn read_first_row(header: &Header, row: &Row, draft: &mut Draft) -> Result<Vec<(Field, String)>, Fault> {
    let text = |field| header.text(row, field);
    let content = &mut draft.product.content;
    content.title = match text(Field::Title)? {
        "" => return Err(header.fault(Field::Title, "the first row of a product needs a title")),
        title => title.to_owned(),
    };
    content.description = text(Field::Description)?.to_owned();
    content.vendor = text(Field::Vendor)?.to_owned();
    content.product_type = text(Field::Type)?.to_owned();
    content.category = pieces(text(Field::Category)?.split(" > "));
    let mut tags = pieces(text(Field::Tags)?.split(','));
    let mut seen = std::collections::HashSet::new();
    tags.retain(|tag| seen.insert(tag.clone()));
    content.tags = tags;

    let mut notes = Vec::new();
    let published = match text(Field::Published)? {
        "" => !header.has(Field::Published),
        said if said.eq_ignore_ascii_case("true") => true,
        said if said.eq_ignore_ascii_case("false") => false,
        said => {
            notes.push((Field::Published, format!("`{}` is neither TRUE nor FALSE; read as FALSE", shown(said))));
            false
        }
    };
    let active = match text(Field::Status)? {
        "" => true,
        said if said.eq_ignore_ascii_case("active") => true,
        said if ["draft", "archived", "unlisted"].iter().any(|known| said.eq_ignore_ascii_case(known)) => false,
        said => {
            notes.push((Field::Status, format!("`{}` is not a status; read as draft", shown(said))));
            false
        }
    };
    content.published = published && active;

    let only_default = text(Field::OptionName(0))?.eq_ignore_ascii_case("Title")
        && text(Field::OptionValue(0))?.eq_ignore_ascii_case("Default Title");
    for option in 0..OPTIONS_MAX {
        let name = text(Field::OptionName(option))?;
        if name.is_empty() || (option == 0 && only_default) {
            continue;
        }
        if name.len() > OPTION_BYTES_MAX {
            return Err(header.fault(Field::OptionName(option), format!("is longer than {OPTION_BYTES_MAX} bytes")));
        }
        if content.options.iter().any(|other| other == name) {
            return Err(header.fault(Field::OptionName(option), format!("`{}` names two options", shown(name))));
        }
        content.options.push(name.to_owned());
        draft.option_columns.push(option);
    }
    Ok(notes)
}

struct ReadVariant {
    variant: Variant,
    stock: u32,
    note: Option<(Field, String)>,
}

fn is_image_only(header: &Header, row: &Row) -> bool {
    let blank = |field| matches!(header.text(row, field), Ok(""));
    blank(Field::Sku) && blank(Field::Price) && (0..OPTIONS_MAX).all(|option| blank(Field::OptionValue(option)))
}

/// The variant of a row; `None` when the row only adds an image.
fn read_variant(
    header: &Header,
    row: &Row,
    currency: Currency,
    draft: &Draft,
    first: bool,
) -> Result<Option<ReadVariant>, Fault> {
    if !first && is_image_only(header, row) {
        return Ok(None);
    }
    let content = &draft.product.content;
    if content.variants.len() >= VARIANTS_MAX {
        return Err(Fault { column: None, reason: format!("a product has at most {VARIANTS_MAX} variants") });
    }
    let options = read_option_values(header, row, draft)?;
    if let Some(twin) = content.variants.iter().position(|other| other.options == options) {
        let line = draft.variant_lines[twin];
        let reason = match options.is_empty() {
            true => format!("`{}` has no options, so it has one variant, that of line {line}", shown(&content.handle)),
            false => format!("`{}` is already the variant of line {line}", shown(&options.join(" / "))),
        };
        return Err(header.fault(Field::OptionValue(0), reason));
    }
    let price = match header.text(row, Field::Price)? {
        "" => return Err(header.fault(Field::Price, "is empty")),
        text => minor_units(text, currency).map_err(|reason| header.fault(Field::Price, reason))?,
    };
    let sku = match header.text(row, Field::Sku)? {
        "" => {
            let derived = derived_sku(&content.handle, &options);
            if !ids::is_sku(&derived) {
                return Err(header.fault(Field::Sku, "is empty, and the handle and options give no usable sku either"));
            }
            derived
        }
        sku if ids::is_sku(sku) => sku.to_owned(),
        _ => return Err(header.fault(Field::Sku, format!("a sku is printable and at most {SKU_CHARS_MAX} characters long"))),
    };
    let (stock, note) = read_stock(header, row)?;
    let variant = Variant { sku, price: Money::new(price, currency), options };
    Ok(Some(ReadVariant { variant, stock, note: note.map(|note| (Field::Quantity, note)) }))
}

fn read_option_values(header: &Header, row: &Row, draft: &Draft) -> Result<Vec<String>, Fault> {
    let content = &draft.product.content;
    let mut values = Vec::with_capacity(draft.option_columns.len());
    for option in 0..OPTIONS_MAX {
        let field = Field::OptionValue(option);
        let value = header.text(row, field)?;
        let name = draft.option_columns.iter().position(|column| *column == option).map(|index| &content.options[index]);
        match (name, value) {
            (Some(name), "") => return Err(header.fault(field, format!("no value for the option `{}`", shown(name)))),
            (Some(_), value) if value.len() > OPTION_BYTES_MAX => {
                return Err(header.fault(field, format!("is longer than {OPTION_BYTES_MAX} bytes")));
            }
            (Some(_), value) => values.push(value.to_owned()),
            (None, "") => {}
            (None, value) if content.options.is_empty() && value.eq_ignore_ascii_case("Default Title") => {}
            (None, value) => {
                let reason = format!("`{}` belongs to no option that the product's first row names", shown(value));
                return Err(header.fault(field, reason));
            }
        }
    }
    Ok(values)
}

fn read_stock(header: &Header, row: &Row) -> Result<(u32, Option<String>), Fault> {
    let tracked = !header.has(Field::Tracker) || !header.text(row, Field::Tracker)?.is_empty();
    let text = header.text(row, Field::Quantity)?;
    if text.is_empty() || !tracked {
        return Ok((0, None));
    }
    match text.parse::<i64>() {
        Ok(quantity) if quantity < 0 => Ok((0, Some(format!("{quantity} was read as 0")))),
        Ok(quantity) => match u32::try_from(quantity) {
            Ok(quantity) => Ok((quantity, None)),
            Err(_) => Err(header.fault(Field::Quantity, format!("{quantity} is more than {}", u32::MAX))),
        },
        Err(_) => Err(header.fault(Field::Quantity, format!("`{}` is not a whole number", shown(text)))),
    }
}

/// Decimal text in major units as whole minor units, exactly: digits are moved, never computed with.
fn minor_units(text: &str, currency: Currency) -> Result<i64, String> {
    let digits = currency.minor_digits() as usize;
    if text.starts_with('-') {
        return Err(format!("`{}` is negative", shown(text)));
    }
    if text.contains(',') || text.contains('\'') || text.split_whitespace().count() > 1 {
        return Err(format!("`{}`: write it as 1299.00, with a point and without thousand separators", shown(text)));
    }
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let all_digits = |piece: &str| !piece.is_empty() && piece.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(part) {
        return Err(format!("`{}` is not an amount such as 19.99", shown(text)));
    }
    if text.contains('.') && part.len() > digits {
        return Err(format!("`{}` has more than the {digits} decimal places of {currency}", shown(text)));
    }
    let part = if text.contains('.') { part } else { "" };
    match format!("{whole}{part:0<digits$}").parse::<i64>() {
        Ok(amount) if amount <= AMOUNT_MAX => Ok(amount),
        _ => Err(format!("`{}` is too large", shown(text))),
    }
}

/// `Trek Shoes`, `[41, Dark blue]` → `TREK-SHOES-41-DARK-BLUE`.
fn derived_sku(handle: &str, options: &[String]) -> String {
    let mut sku = String::new();
    for piece in std::iter::once(handle).chain(options.iter().map(String::as_str)) {
        for word in piece.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()) {
            if !sku.is_empty() {
                sku.push('-');
            }
            sku.extend(word.chars().flat_map(char::to_uppercase));
        }
    }
    sku
}

fn pieces<'text>(pieces: impl Iterator<Item = &'text str>) -> Vec<String> {
    pieces.map(str::trim).filter(|piece| !piece.is_empty()).map(str::to_owned).collect()
}

/// A value as a message shows it: a stranger's file may have anything of any length there.
fn shown(value: &str) -> String {
    let mut shown: String = value.chars().filter(|letter| !letter.is_control()).take(60).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSIC: &str = include_str!("../../tests/fixtures/shopify-classic.csv");
    const CURRENT: &str = include_str!("../../tests/fixtures/shopify-current.csv");

    #[test]
    fn no_file_breaks_its_reader() {
        let good = vec![CLASSIC.as_bytes().to_vec(), CURRENT.as_bytes().to_vec()];
        crate::hostile::feed("csv", good, |bytes| {
            for currency in ["EUR", "JPY", "KWD"] {
                let Ok(reader) = Reader::new(bytes, currency.parse().unwrap()) else { return };
                for (count, item) in reader.enumerate() {
                    assert!(count <= 4 * bytes.len() + 4, "it does not end");
                    assert!(!matches!(item, Item::Broken(_)), "reading bytes in memory cannot fail");
                }
            }
        });
    }

    #[derive(Default)]
    struct Seen {
        products: Vec<ParsedProduct>,
        errors: Vec<String>,
        notes: Vec<String>,
        images: u64,
    }

    fn read_in(text: &[u8], currency: &str) -> Seen {
        let mut reader = Reader::new(text, currency.parse().unwrap()).unwrap();
        let mut seen = Seen::default();
        for item in reader.by_ref() {
            match item {
                Item::Product(product) => seen.products.push(product),
                Item::RowError(error) => seen.errors.push(error.to_string()),
                Item::Note(note) => seen.notes.push(note.to_string()),
                Item::Broken(error) => panic!("{error}"),
            }
        }
        seen.images = reader.skipped_image_rows();
        seen
    }

    fn read(text: &str) -> Seen {
        read_in(text.as_bytes(), "EUR")
    }

    /// Rows of a small classic file: handle, title, option name, option value, sku, price, quantity.
    fn small(rows: &[&str]) -> Seen {
        let header = "Handle,Title,Option1 Name,Option1 Value,Variant SKU,Variant Price,Variant Inventory Qty";
        read(&[&[header], rows].concat().join("\n"))
    }

    fn skus(product: &ParsedProduct) -> Vec<&str> {
        product.content.variants.iter().map(|variant| variant.sku.as_str()).collect()
    }

    fn error_of(text: &[u8]) -> String {
        Reader::new(text, Currency::EUR).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_classic_export_is_read() {
        let seen = read(CLASSIC);
        let handles: Vec<&str> = seen.products.iter().map(|product| product.content.handle.as_str()).collect();
        assert_eq!(handles, ["clay-teapot", "linen-shirt", "old-lamp"]);

        let pot = &seen.products[0];
        assert_eq!((pot.line, pot.incomplete), (2, false));
        assert_eq!(
            pot.content,
            Content {
                shop: String::new(),
                handle: "clay-teapot".into(),
                title: "Clay Teapot".into(),
                description: "<p>Holds a litre.\r\nMade by hand.</p>".into(),
                vendor: "Kiln & Co".into(),
                product_type: "Teapot".into(),
                category: vec!["Home".into(), "Kitchen".into(), "Teapots".into()],
                tags: vec!["tea".into(), "clay".into(), "handmade".into()],
                options: vec![],
                variants: vec![Variant { sku: "POT-1".into(), price: Money::new(4990, Currency::EUR), options: vec![] }],
                published: true,
            }
        );
        assert_eq!(pot.stock, BTreeMap::from([("POT-1".to_owned(), 12)]));
        assert_eq!(seen.images, 1);

        let shirt = &seen.products[1];
        assert_eq!((shirt.line, shirt.incomplete), (5, true));
        assert_eq!(shirt.content.options, ["Size", "Color"]);
        assert_eq!(skus(shirt), ["SHIRT-S", "LINEN-SHIRT-M-SEA-BLUE", "SHIRT-L"]);
        assert_eq!(shirt.content.variants[1].options, ["M", "Sea Blue"]);
        let prices: Vec<i64> = shirt.content.variants.iter().map(|variant| variant.price.amount).collect();
        assert_eq!(prices, [3500, 3550, 3550]);
        // Negative, then not tracked.
        assert_eq!(shirt.stock.values().copied().collect::<Vec<u32>>(), [0, 0, 3]);
        assert_eq!(seen.notes, ["line 6, Variant Inventory Qty: -2 was read as 0"]);
        assert_eq!(
            seen.errors,
            ["line 8, Variant Price: `1,035.50`: write it as 1299.00, with a point and without thousand separators"]
        );
        assert!(!seen.products[2].content.published, "a draft is not for sale");
    }

    #[test]
    fn the_current_template_is_read_whatever_the_case_of_its_header() {
        let reader = Reader::new(CURRENT.as_bytes(), Currency::EUR).unwrap();
        assert_eq!((reader.dialect(), reader.unknown_columns().len()), (Dialect::Current, 0));
        let seen = read(CURRENT);
        assert_eq!((seen.errors.len(), seen.products.len()), (0, 2));
        let (desk, lamp) = (&seen.products[0], &seen.products[1]);
        assert_eq!(desk.content.category, ["Office", "Desks"]);
        assert_eq!(desk.content.options, ["Width"]);
        assert_eq!(desk.stock, BTreeMap::from([("DESK-120".to_owned(), 4), ("DESK-160".to_owned(), 0)]));
        assert!(desk.content.published);
        assert_eq!((skus(lamp), lamp.content.options.len()), (vec!["PAPER-LAMP"], 0));
        assert!(!lamp.content.published);
    }

    #[test]
    fn unknown_columns_are_reported_and_known_ones_that_we_do_not_use_are_not() {
        let reader = Reader::new(CLASSIC.as_bytes(), Currency::EUR).unwrap();
        assert_eq!((reader.dialect(), reader.unknown_columns()), (Dialect::Classic, &["Märkte".to_owned()][..]));
    }

    #[test]
    fn a_file_that_cannot_be_a_product_file_says_why() {
        for (text, expected) in [
            (&b""[..], "the file is empty"),
            (b"\n\n", "the file is empty"),
            (b"\xFF\xFEH\0a\0", "the file is UTF-16; save it as CSV UTF-8"),
            (b"Handle;Title;Variant Price\n", "separated by semicolons"),
            (
                b"name,price\n",
                "no column `Handle` (classic export) or `URL handle` (current template); it starts with: name, price",
            ),
            (b"Handle,Title\n", "no column `Variant Price`"),
            (b"URL handle,Price\n", "no column `Title`"),
            (b"Handle,Title,title,Variant Price\n", "the column `title` twice"),
        ] {
            assert!(error_of(text).contains(expected), "{} / {expected}", error_of(text));
        }
    }

    #[test]
    fn prices_become_minor_units_exactly_or_not_at_all() {
        for (text, currency, expected) in [
            ("19.99", "EUR", Some(1999)),
            ("20", "EUR", Some(2000)),
            ("20.5", "EUR", Some(2050)),
            ("0", "EUR", Some(0)),
            ("0.07", "EUR", Some(7)),
            ("1999", "JPY", Some(1999)),
            ("1.999", "KWD", Some(1999)),
            ("10000000000.00", "EUR", Some(AMOUNT_MAX)),
            ("10000000000.01", "EUR", None),
            ("99999999999999999999", "EUR", None),
            ("19.999", "EUR", None),
            ("19.9", "JPY", None),
            ("-1", "EUR", None),
            ("+1", "EUR", None),
            ("1,299.00", "EUR", None),
            ("1 299.00", "EUR", None),
            ("1'299.00", "EUR", None),
            ("19,99", "EUR", None),
            ("1e3", "EUR", None),
            (".99", "EUR", None),
            ("19.", "EUR", None),
            ("1.2.3", "EUR", None),
            ("€5", "EUR", None),
            ("NaN", "EUR", None),
        ] {
            assert_eq!(minor_units(text, currency.parse().unwrap()).ok(), expected, "{text} {currency}");
        }
    }

    #[test]
    fn a_bad_row_costs_its_variant_and_a_product_without_variants_is_named() {
        let seen = small(&["a,A,Size,S,A-S,5,1", "a,,,M,A-M,free,1", "a,,,L,A-L,5,many", "b,B,,,B,,1", "c,C,,,C,1,1"]);
        assert_eq!(seen.products.len(), 2);
        assert_eq!((skus(&seen.products[0]), seen.products[0].incomplete), (vec!["A-S"], true));
        assert!(!seen.products[1].incomplete);
        assert_eq!(
            seen.errors,
            [
                "line 3, Variant Price: `free` is not an amount such as 19.99",
                "line 4, Variant Inventory Qty: `many` is not a whole number",
                "line 5, Variant Price: is empty",
                "line 5: no variant of `b` could be read, so it was left out",
            ]
        );
    }

    #[test]
    fn a_product_without_a_title_is_reported_once_and_left_out() {
        let seen = small(&["a,,Size,S,A-S,5,1", "a,,,M,A-M,5,1", "b,B,,,B,1,1"]);
        assert_eq!(seen.products.len(), 1);
        assert_eq!(seen.errors, ["line 2, Title: the first row of a product needs a title; the product `a` was not read"]);
    }

    #[test]
    fn a_handle_that_comes_back_without_a_title_is_refused_with_the_line_of_its_first_use() {
        let seen = small(&["a,A,Size,S,A,5,1", "b,B,,,B,5,1", "a,,,M,A-M,5,1", "a,,,,,,"]);
        assert_eq!(seen.products.iter().map(skus).collect::<Vec<_>>(), [["A"], ["B"]]);
        assert_eq!((seen.errors.len(), seen.notes.len(), seen.images), (1, 0, 1));
        assert!(seen.errors[0].starts_with("line 4, Handle: `a` was already used at line 2"), "{}", seen.errors[0]);
    }

    #[test]
    fn a_handle_that_comes_back_with_a_title_is_another_product_with_a_handle_of_its_own() {
        let rows = [
            "a,A,,,A,5,1",
            "b,B,,,B,5,1",
            "a,Another A,Size,S,,5,1",
            "a,,,M,,5,1",
            "a-3,Written so,,,X,5,1",
            "a,A third A,,,Y,5,1",
            "a-2,Taken by then,,,Z,5,1",
        ];
        let seen = small(&rows);
        let handles: Vec<&str> = seen.products.iter().map(|product| product.content.handle.as_str()).collect();
        assert_eq!(handles, ["a", "b", "a-2", "a-3", "a-4", "a-2-2"]);
        assert_eq!(skus(&seen.products[2]), ["A-2-S", "A-2-M"], "its later rows follow it, and derived skus its own handle");
        assert_eq!((seen.products[2].content.title.as_str(), seen.products[2].line), ("Another A", 4));
        assert_eq!(seen.errors, [""; 0]);
        assert_eq!(
            seen.notes,
            [
                "line 4, Handle: `a` was already used at line 2; this other product is `a-2`",
                "line 7, Handle: `a` was already used at line 2; this other product is `a-4`",
                "line 8, Handle: `a-2` was already used at line 4; this other product is `a-2-2`",
            ]
        );
        let again: Vec<Content> = small(&rows).products.into_iter().map(|product| product.content).collect();
        assert_eq!(again, seen.products.into_iter().map(|product| product.content).collect::<Vec<_>>());
    }

    #[test]
    fn a_repeated_sku_is_an_error_that_names_both_lines() {
        let seen = small(&["a,A,,,SAME,5,1", "b,B,,,SAME,5,1", "c,C,,,,5,1", "d,D,,,C,5,1"]);
        assert_eq!(seen.products.len(), 2);
        assert_eq!(seen.errors[0], "line 3, Variant SKU: `SAME` is already the sku of line 2");
        assert_eq!(seen.errors[2], "line 5, Variant SKU: `C` is already the sku of line 4");
    }

    #[test]
    fn each_variant_has_one_value_for_each_option_and_no_twin() {
        let seen =
            small(&["a,A,Size,S,A-S,5,1", "a,,,,A-X,5,1", "a,,,S,A-S2,5,1", "b,B,,,B,5,1", "b,,,,B-2,5,1", "b,,,41,B-3,5,1"]);
        assert_eq!(
            seen.errors,
            [
                "line 3, Option1 Value: no value for the option `Size`",
                "line 4, Option1 Value: `S` is already the variant of line 2",
                "line 6, Option1 Value: `b` has no options, so it has one variant, that of line 5",
                "line 7, Option1 Value: `41` belongs to no option that the product's first row names",
            ]
        );
    }

    #[test]
    fn a_sku_that_no_inventory_item_can_have_is_an_error() {
        let long = format!("a,A,,,{},5,1", "X".repeat(SKU_CHARS_MAX + 1));
        let seen = small(&[&long, "💐,B,,,,5,1", "über-größe,C,,,,5,1"]);
        assert!(seen.errors[0].starts_with("line 2, Variant SKU: a sku is printable"), "{}", seen.errors[0]);
        assert!(seen.errors[2].starts_with("line 3, Variant SKU: is empty, and"), "{}", seen.errors[2]);
        assert_eq!(skus(&seen.products[0]), ["ÜBER-GRÖSSE"]);
    }

    #[test]
    fn a_row_of_another_width_is_an_error_and_the_next_row_is_read() {
        let seen = small(&["a,A,Size,S,A-S,5,1", "a,,,M", "b,B,,,B,5,1"]);
        assert_eq!(seen.products.len(), 2);
        assert!(seen.products[0].incomplete);
        assert!(seen.errors[0].starts_with("line 3: has 4 fields where the header has 7"), "{}", seen.errors[0]);
    }

    #[test]
    fn a_field_past_its_bound_or_in_another_encoding_is_an_error_of_its_row() {
        let header = b"Handle,Title,Variant Price,Body (HTML)\n".to_vec();
        let big = "x".repeat(FIELD_BYTES_MAX + 1);
        let text = [&header, format!("a,A,1,{big}\n").as_bytes(), b"b,caf\xE9,1,\nc,C,1,ok\n"].concat();
        let seen = read_in(&text, "EUR");
        assert_eq!(seen.products.len(), 1);
        assert_eq!(
            seen.errors,
            [
                "line 2, Body (HTML): is larger than 1024 KiB; the product `a` was not read",
                "line 3, Title: is not UTF-8; save the file as CSV UTF-8; the product `b` was not read",
            ]
        );
    }

    #[test]
    fn what_a_message_shows_of_a_file_is_short_and_does_no_harm_to_a_terminal() {
        let evil = format!("\u{1b}[2J{}", "x".repeat(1000));
        let again = [format!("{evil},C,,,C,5,1"), "d,D,,,D,5,1".to_owned(), format!("{evil},,,,E,5,1")];
        let seen = small(&[&format!("{evil},A,,,A,5,1"), "b,B,,,B,5,1", &again[0], &again[1], &again[2]]);
        assert!(seen.notes[0].len() < 400 && !seen.notes[0].contains('\u{1b}'), "{:?}", seen.notes[0]);
        assert!(seen.errors[0].len() < 400 && !seen.errors[0].contains('\u{1b}'), "{:?}", seen.errors[0]);
        let header = format!("Handle,Title,Variant Price,{evil}\n");
        let reader = Reader::new(header.as_bytes(), Currency::EUR).unwrap();
        assert!(!reader.unknown_columns()[0].contains('\u{1b}'));
    }

    #[test]
    fn a_quote_that_is_never_closed_is_an_error_at_its_row() {
        let seen = small(&["a,A,,,A,5,1", "b,\"B,,,B,5,1", "c,C,,,C,5,1"]);
        assert_eq!(seen.products.len(), 1);
        assert!(seen.errors[0].starts_with("line 3: has 2 fields"), "{}", seen.errors[0]);
    }

    #[test]
    fn published_and_status_decide_whether_it_is_for_sale() {
        for (published, status, expected, notes) in [
            ("TRUE", "Active", true, 0),
            ("true", "", true, 0),
            ("false", "active", false, 0),
            ("", "active", false, 0),
            ("true", "archived", false, 0),
            ("yes", "active", false, 1),
            ("true", "live", false, 1),
        ] {
            let seen = read(&format!("Handle,Title,Variant Price,Published,Status\na,A,1,{published},{status}"));
            assert_eq!((seen.products[0].content.published, seen.notes.len()), (expected, notes), "{published}/{status}");
        }
        assert!(read("Handle,Title,Variant Price\na,A,1").products[0].content.published);
    }

    #[test]
    fn a_product_has_a_bounded_number_of_variants() {
        let mut text = "Handle,Title,Option1 Name,Option1 Value,Variant Price\na,A,N,0,1\n".to_owned();
        (1..VARIANTS_MAX + 5).for_each(|number| text.push_str(&format!("a,,,{number},1\n")));
        let seen = read(&text);
        assert_eq!((seen.products[0].content.variants.len(), seen.errors.len()), (VARIANTS_MAX, 5));
    }

    #[test]
    fn input_that_breaks_off_ends_with_the_reason_and_without_the_half_product() {
        struct Torn<'a>(&'a [u8]);
        impl Read for Torn<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() {
                    return Err(io::Error::other("the disk is gone"));
                }
                self.0.read(buffer)
            }
        }
        let reader = Reader::new(Torn(b"Handle,Title,Variant Price\na,A,1\nb,B,1\n"), Currency::EUR).unwrap();
        let items: Vec<Item> = reader.collect();
        assert!(matches!(&items[..], [Item::Product(_), Item::Broken(ReadError::Io(_))]), "{items:?}");
    }
}
