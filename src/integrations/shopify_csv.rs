//! Shopify's product CSV, read as a stream: the classic columns (`Handle`, `Variant SKU`, …) and those of the current
//! template (`URL handle`, `SKU`, …). Which of the two it is, the header says.
//!
//! # What a file means here
//!
//! - Consecutive rows of one handle are one product. What concerns the product is read from its first row: title,
//!   description, vendor, type, category, tags, names of options, published and status.
//! - A handle that comes back after another product is refused, row by row, with the line of its first use. Merging it
//!   would need the whole file in memory, and in real files it is usually a second product that was given the same name.
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
use crate::domain::ids::{self, SKU_BYTES_MAX};
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
                let shown: Vec<String> = names.iter().take(5).map(|name| name.chars().take(40).collect()).collect();
                let found = format!("it starts with: {}", shown.join(", "));
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
                None => header.unknown.push(name.clone()),
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
}

pub struct Reader<R> {
    rows: Rows<R>,
    row: Row,
    header: Header,
    currency: Currency,
    /// The line on which each handle was first used.
    handles: HashMap<String, u64>,
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

        let continues = self.open.as_ref().is_some_and(|draft| draft.product.content.handle == handle);
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
        if let Some(first) = self.handles.get(&handle) {
            let reason = format!(
                "`{handle}` was already used at line {first}; the rows of one product stand together, and another \
                 product needs a handle of its own"
            );
            self.refuse_row(self.header.fault(Field::Handle, reason));
            return None;
        }
        self.handles.insert(handle.clone(), line);

        let content = Content { handle, ..Content::default() };
        let product = ParsedProduct { line, content, stock: BTreeMap::new(), incomplete: false };
        let mut draft = Draft { product, option_columns: Vec::new(), variant_lines: Vec::new(), refused: false };
        match read_first_row(&self.header, &self.row, &mut draft) {
            Ok(notes) => notes.into_iter().for_each(|(field, note)| self.note(field, note)),
            Err(fault) => {
                let reason = format!("{}; the product `{}` was not read", fault.reason, draft.product.content.handle);
                self.refuse_row(Fault { reason, ..fault });
                draft.refused = true;
            }
        }
        Some(draft)
    }

    /// Hands the open product out.
    fn close(&mut self) {
        let Some(draft) = self.open.take() else { return };
        if draft.refused {
            return;
        }
        if draft.product.content.variants.is_empty() {
            let reason = format!("no variant of `{}` could be read, so it was left out", draft.product.content.handle);
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
fn read_variant(header: &Header, row: &Row, currency: Currency, draft: &Draft, first: bool) -> Result<Option<ReadVariant>, Fault> {
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
            true => format!("`{}` has no options, so it has one variant, that of line {line}", content.handle),
            false => format!("`{}` is already the variant of line {line}", options.join(" / ")),
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
        _ => return Err(header.fault(Field::Sku, format!("a sku is printable and at most {SKU_BYTES_MAX} bytes long"))),
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

