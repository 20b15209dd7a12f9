//! The catalogue: products that are live and published, with what is left of each variant, to be searched and browsed.
//!
//! It answers from memory. Sled holds each product as it is shown and each sku's stock, so that a start need not read the
//! whole journal. Stock is exact in memory at every moment and is written down only now and then.
//!
//! A product without variants cannot be bought and is not shown. One that its vendor hides keeps its place among the
//! newest for when it is shown again. Prices are compared as numbers of minor units, whatever their currency.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sled::{Batch, Tree};

use super::follower::FoldError;
use super::records::{Unfoldable, briefs};
use super::store::{self, Model, PRODUCT, STOCK};
use super::{Page, ReadModelError, cursor, page_items};
use crate::domain::Money;
use crate::domain::product::Content;
use crate::persistence::{Committed, EntityKey, Position, Version};

const PRODUCT_PREFIX: &str = "product/";
const INVENTORY_PREFIX: &str = "inventory/";
/// sled wants small values: a longer product is stored in pieces.
const PIECE_BYTES: usize = 32 * 1024;
/// Different words of a query that are looked at; the rest is taken as matching.
const QUERY_WORDS_MAX: usize = 32;
/// How much of a title counts when sorting. It is in the cursor.
const TITLE_SORTED_CHARS: usize = 64;
/// Stands before and after each step of a category's path.
const STEP: &str = " > ";

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProductQuery {
    /// Words that must all occur, each at least as the beginning of a word of the product.
    pub q: Option<String>,
    /// The beginning of a category's path: `Kitchen` or `Kitchen > Coffee Machines`, in any case.
    pub category: Option<String>,
    pub tag: Option<String>,
    /// A shop's id.
    pub shop: Option<String>,
    /// Some variant costs at least this, in minor units.
    pub min_price: Option<i64>,
    /// The same variant costs at most this.
    pub max_price: Option<i64>,
    pub in_stock: Option<bool>,
    pub sort: ProductSort,
    /// 0 stands for the default.
    pub limit: usize,
    pub cursor: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ProductSort {
    /// Most words of the query in the title first, then the newest. Without a query the same as `newest`.
    #[default]
    #[serde(rename = "relevance")]
    Relevance,
    #[serde(rename = "newest")]
    Newest,
    /// The cheapest variant's price, lowest first.
    #[serde(rename = "price")]
    PriceUp,
    /// The cheapest variant's price, highest first.
    #[serde(rename = "-price")]
    PriceDown,
    #[serde(rename = "title")]
    Title,
}

/// A product as a list shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProductSummary {
    pub id: String,
    pub shop_id: String,
    pub handle: String,
    pub title: String,
    pub vendor: String,
    #[serde(rename = "type")]
    pub product_type: String,
    pub category: Vec<String>,
    pub tags: Vec<String>,
    /// The cheapest and the dearest variant.
    pub price_from: Money,
    pub price_to: Money,
    /// Whether any variant is available.
    pub in_stock: bool,
    pub variants: Vec<VariantSummary>,
    /// The product's version that brought this content.
    pub version: Version,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VariantSummary {
    pub sku: String,
    pub price: Money,
    pub options: Vec<String>,
    pub available: u32,
}

impl ProductSummary {
    /// As of an event; `None` when there is nothing to buy. The stock is filled in when it is shown.
    fn of(id: &str, version: Version, content: Content) -> Option<Self> {
        let variants: Vec<_> = content
            .variants
            .into_iter()
            .map(|variant| VariantSummary { sku: variant.sku, price: variant.price, options: variant.options, available: 0 })
            .collect();
        let prices = || variants.iter().map(|variant| variant.price);
        Some(ProductSummary {
            id: id.to_owned(),
            shop_id: content.shop,
            handle: content.handle,
            title: content.title,
            vendor: content.vendor,
            product_type: content.product_type,
            category: content.category,
            tags: content.tags,
            price_from: prices().min_by_key(|price| price.amount)?,
            price_to: prices().max_by_key(|price| price.amount)?,
            in_stock: false,
            variants,
            version,
        })
    }
}

// ---- Folding -------------------------------------------------------------------------------------------------------

/// What is left of a sku, shared between the fold, which sets it, and the variants that show it.
type Left = Arc<AtomicU32>;

/// The fold of product and inventory events.
pub(super) struct Catalogue {
    loaded_at: Position,
    index: Arc<RwLock<Index>>,
    stock: HashMap<Arc<str>, Left>,
    /// Changes of the round under way, not yet shown.
    changes: Vec<Change>,
    unwritten_products: HashSet<EntityKey>,
    unwritten_stock: HashSet<Arc<str>>,
}

struct Change {
    entity: EntityKey,
    at: Position,
    /// `None`: it is gone.
    becomes: Option<Shown>,
}

struct Shown {
    published: bool,
    summary: ProductSummary,
    stored: Box<[u8]>,
}

#[derive(Deserialize)]
struct WithContent {
    content: Content,
}

#[derive(Deserialize)]
struct WithOnHand {
    on_hand: u32,
}

#[derive(Deserialize)]
struct WithAvailable {
    available: u32,
}

impl Catalogue {
    pub(super) fn load(tree: &Tree) -> Result<Self, ReadModelError> {
        let mut catalogue = Catalogue {
            loaded_at: store::position(tree, Model::Catalogue)?,
            index: Arc::default(),
            stock: HashMap::new(),
            changes: Vec::new(),
            unwritten_products: HashSet::new(),
            unwritten_stock: HashSet::new(),
        };
        let damaged = || ReadModelError::Unavailable("the stored catalogue is damaged; delete the folder to rebuild it".into());
        for entry in tree.scan_prefix([STOCK]) {
            let (key, value) = entry?;
            let (sku, _) = store::split(&key).ok_or_else(damaged)?;
            let available = u32::from_be_bytes(value.as_ref().try_into().map_err(|_| damaged())?);
            catalogue.stock.insert(sku.into(), Arc::new(AtomicU32::new(available)));
        }
        let mut whole: Option<(String, Vec<u8>)> = None;
        for entry in tree.scan_prefix([PRODUCT]) {
            let (key, piece) = entry?;
            let (id, _) = store::split(&key).ok_or_else(damaged)?;
            match &mut whole {
                Some((of, bytes)) if of == id => bytes.extend_from_slice(&piece),
                _ => {
                    if let Some((id, bytes)) = whole.replace((id.to_owned(), piece.to_vec())) {
                        catalogue.restore(&id, &bytes).ok_or_else(damaged)?;
                    }
                }
            }
        }
        if let Some((id, bytes)) = whole {
            catalogue.restore(&id, &bytes).ok_or_else(damaged)?;
        }
        Ok(catalogue)
    }

    fn restore(&mut self, id: &str, bytes: &[u8]) -> Option<()> {
        let (since, rest) = bytes.split_at_checked(8)?;
        let (published, stored) = rest.split_first()?;
        let summary: ProductSummary = serde_json::from_slice(stored).ok()?;
        let since = u64::from_be_bytes(since.try_into().ok()?);
        let shown = Shown { published: *published == 1, summary, stored: stored.into() };
        let left = self.left_of(&shown.summary);
        self.index.write().ok()?.put(id, since, shown, left);
        Some(())
    }

    pub(super) fn index(&self) -> Arc<RwLock<Index>> {
        Arc::clone(&self.index)
    }

    pub(super) fn loaded_at(&self) -> Position {
        self.loaded_at
    }

    pub(super) fn cares(entity: &EntityKey) -> bool {
        entity.as_str().starts_with(INVENTORY_PREFIX) || entity.as_str().starts_with(PRODUCT_PREFIX)
    }

    pub(super) fn fold(&mut self, committed: &Committed) -> Result<(), FoldError> {
        match committed.entity.as_str().starts_with(INVENTORY_PREFIX) {
            true => Ok(self.fold_inventory(committed)?),
            false => self.fold_product(committed),
        }
    }

    fn fold_product(&mut self, committed: &Committed) -> Result<(), FoldError> {
        for (version, brief) in (committed.batch.first..).zip(briefs(committed)?) {
            let becomes = match &*brief.event_type {
                "product.created" | "product.updated" => {
                    let content = brief.data::<WithContent>(committed)?.content;
                    let published = content.published;
                    match ProductSummary::of(committed.entity.id(), version, content) {
                        Some(summary) => {
                            let stored = serde_json::to_vec(&summary)?.into_boxed_slice();
                            Some(Shown { published, summary, stored })
                        }
                        None => None,
                    }
                }
                "product.deleted" => None,
                "product.drafted"
                | "product.sku.claimed"
                | "product.sku.refused"
                | "product.sku.given_up"
                | "product.update_drafted"
                | "product.update_refused" => continue,
                _ => return Err(brief.unknown(committed).into()),
            };
            self.changes.push(Change { entity: committed.entity.clone(), at: committed.batch.position, becomes });
        }
        Ok(())
    }

    /// Only the batch's last word on what is available matters.
    fn fold_inventory(&mut self, committed: &Committed) -> Result<(), Unfoldable> {
        let mut available = None;
        for brief in briefs(committed)?.iter().rev() {
            match &*brief.event_type {
                "inventory.created" if available.is_none() => {
                    available = Some(brief.data::<WithOnHand>(committed)?.on_hand);
                }
                "inventory.low_stock"
                | "inventory.hold.placed"
                | "inventory.hold.released"
                | "inventory.hold.expired"
                | "inventory.reserved"
                | "inventory.released"
                | "inventory.allotted"
                | "stock.decreased"
                | "stock.increased"
                    if available.is_none() =>
                {
                    available = Some(brief.data::<WithAvailable>(committed)?.available);
                }
                "inventory.created"
                | "inventory.low_stock"
                | "inventory.hold.placed"
                | "inventory.hold.released"
                | "inventory.hold.expired"
                | "inventory.reserved"
                | "inventory.released"
                | "inventory.allotted"
                | "stock.decreased"
                | "stock.increased"
                | "inventory.updated"
                | "inventory.closed" => {}
                _ => return Err(brief.unknown(committed)),
            }
        }
        if let Some(available) = available {
            let (sku, left) = self.left(committed.entity.id());
            if left.swap(available, Ordering::Relaxed) != available {
                self.unwritten_stock.insert(sku);
            }
        }
        Ok(())
    }

    fn left(&mut self, sku: &str) -> (Arc<str>, Left) {
        if let Some((sku, left)) = self.stock.get_key_value(sku) {
            return (Arc::clone(sku), Arc::clone(left));
        }
        let (sku, left): (Arc<str>, Left) = (sku.into(), Arc::default());
        self.stock.insert(Arc::clone(&sku), Arc::clone(&left));
        (sku, left)
    }

    fn left_of(&mut self, summary: &ProductSummary) -> Box<[Left]> {
        summary.variants.iter().map(|variant| self.left(&variant.sku).1).collect()
    }

    /// Makes the round's changes visible.
    pub(super) fn show(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let changes: Vec<_> = std::mem::take(&mut self.changes)
            .into_iter()
            .map(|change| {
                let left = change.becomes.as_ref().map(|shown| self.left_of(&shown.summary)).unwrap_or_default();
                (change, left)
            })
            .collect();
        // Poisoned only by a fold that panicked here, and no fold outlives that.
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for (Change { entity, at, becomes }, left) in changes {
            match becomes {
                Some(shown) => index.put(entity.id(), at.0, shown, left),
                None => index.remove(entity.id()),
            }
            self.unwritten_products.insert(entity);
        }
    }

    /// How many products and skus memory knows better than the disk.
    pub(super) fn unwritten(&self) -> usize {
        self.unwritten_products.len() + self.unwritten_stock.len()
    }

    /// Puts all that is unwritten into a batch.
    pub(super) fn write(&mut self, tree: &Tree, batch: &mut Batch) -> Result<(), sled::Error> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        for entity in self.unwritten_products.drain() {
            let start = store::key(PRODUCT, entity.id());
            for stale in tree.scan_prefix(&start).keys() {
                batch.remove(stale?);
            }
            let Some(entry) = index.entry(entity.id()) else { continue };
            let head = [&entry.since.to_be_bytes()[..], &[u8::from(entry.keys.is_some())]].concat();
            let whole = [&head, &*entry.stored].concat();
            for (number, piece) in (0_u16..).zip(whole.chunks(PIECE_BYTES)) {
                batch.insert([start.as_slice(), &number.to_be_bytes()].concat(), piece);
            }
        }
        for sku in self.unwritten_stock.drain() {
            let available = self.stock.get(&sku).map_or(0, |left| left.load(Ordering::Relaxed));
            batch.insert(store::key(STOCK, &sku), &available.to_be_bytes());
        }
        Ok(())
    }
}

// ---- Searching -----------------------------------------------------------------------------------------------------

/// A place in the order of a list: compared as bytes.
type Key = Arc<[u8]>;
type Slot = u32;

/// The catalogue in memory: slots of products, the lists they are sorted in, and which words occur in which.
#[derive(Default)]
pub(super) struct Index {
    slots: Vec<Option<Entry>>,
    free: Vec<Slot>,
    by_id: HashMap<Arc<str>, Slot>,
    newest: BTreeMap<Key, Slot>,
    by_price: BTreeMap<Key, Slot>,
    by_title: BTreeMap<Key, Slot>,
    /// For each word the slots it occurs in, ascending; the lowest bit says whether it is in the title.
    words: BTreeMap<Box<str>, Vec<u64>>,
    /// The same for what must be equal as a whole; see [`Facet`].
    facets: HashMap<Box<str>, Vec<u64>>,
}

/// Compact, since there may be many: the summary stays serialized until it is shown.
struct Entry {
    id: Arc<str>,
    /// The position at which it came into the catalogue. No two products share one.
    since: u64,
    /// Where it stands in the lists; `None` while its vendor hides it.
    keys: Option<Keys>,
    /// Each variant's price and what is left of it.
    variants: Box<[(i64, Left)]>,
    stored: Box<[u8]>,
}

struct Keys {
    newest: Key,
    price: Key,
    title: Key,
}

impl Keys {
    fn of(since: u64, summary: &ProductSummary) -> Self {
        let since = since.to_be_bytes();
        // Flipping the sign bit makes signed numbers sort as bytes.
        let price = (summary.price_from.amount as u64 ^ (1 << 63)).to_be_bytes();
        let title: String = lower(&summary.title).take(TITLE_SORTED_CHARS).collect();
        Keys {
            newest: since.as_slice().into(),
            price: [price, since].concat().into(),
            title: [title.as_bytes(), &[0], &since].concat().into(),
        }
    }
}

/// What a product is filed under besides its words.
enum Facet<'a> {
    Shop(&'a str),
    Tag(&'a str),
    /// The first steps of its category.
    Category(&'a [String]),
}

impl Facet<'_> {
    fn text(&self) -> Box<str> {
        match self {
            Facet::Shop(shop) => format!("shop {shop}"),
            Facet::Tag(tag) => format!("tag {}", lower(tag.trim()).collect::<String>()),
            Facet::Category(steps) => {
                let steps: Vec<String> = steps.iter().map(|step| lower(step.trim()).collect()).collect();
                format!("category {}", steps.join(STEP))
            }
        }
        .into()
    }
}

fn lower(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

/// The words of a text: runs of letters and digits. An apostrophe belongs to its word and is not written.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '\'' || c == '’'))
        .map(|word| lower(word).filter(|c| c.is_alphanumeric()).collect::<String>())
        .filter(|word| !word.is_empty())
}

/// All words of a product, and whether each is in its title.
fn words_of(summary: &ProductSummary) -> BTreeMap<String, bool> {
    let mut all = BTreeMap::new();
    let texts = [&summary.vendor, &summary.product_type];
    let skus = summary.variants.iter().map(|variant| &variant.sku);
    for text in texts.into_iter().chain(&summary.tags).chain(&summary.category).chain(skus) {
        all.extend(words(text).map(|word| (word, false)));
    }
    all.extend(words(&summary.title).map(|word| (word, true)));
    all
}

fn facets_of(summary: &ProductSummary) -> HashSet<Box<str>> {
    let tags = summary.tags.iter().map(|tag| Facet::Tag(tag).text());
    let categories =
        (1..=summary.category.len()).filter_map(|steps| Some(Facet::Category(summary.category.get(..steps)?).text()));
    tags.chain(categories).chain([Facet::Shop(&summary.shop_id).text()]).collect()
}

/// A slot with a mark, as it stands in a posting list.
fn posting(slot: Slot, mark: bool) -> u64 {
    u64::from(slot) << 1 | u64::from(mark)
}

fn file(list: &mut Vec<u64>, posting: u64) {
    if let Err(place) = list.binary_search(&posting) {
        list.insert(place, posting);
    }
}

/// Takes a posting out; whether the list is then empty.
fn unfile(list: &mut Vec<u64>, posting: u64) -> bool {
    if let Ok(place) = list.binary_search(&posting) {
        list.remove(place);
    }
    list.is_empty()
}

impl Index {
    fn entry(&self, id: &str) -> Option<&Entry> {
        self.at(*self.by_id.get(id)?)
    }

    fn at(&self, slot: Slot) -> Option<&Entry> {
        self.slots.get(slot as usize)?.as_ref()
    }

    /// `at` counts only when the product is new here.
    fn put(&mut self, id: &str, at: u64, shown: Shown, left: Box<[Left]>) {
        let (slot, id, since) = match self.take(id) {
            Some((slot, entry)) => (slot, entry.id, entry.since),
            None => {
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.slots.push(None);
                    // Slots are counted in 32 bits; four thousand million products do not fit into memory.
                    (self.slots.len() - 1) as Slot
                });
                let id: Arc<str> = id.into();
                self.by_id.insert(Arc::clone(&id), slot);
                (slot, id, at)
            }
        };
        let Shown { published, summary, stored } = shown;
        let keys = published.then(|| Keys::of(since, &summary));
        if let Some(keys) = &keys {
            self.newest.insert(Arc::clone(&keys.newest), slot);
            self.by_price.insert(Arc::clone(&keys.price), slot);
            self.by_title.insert(Arc::clone(&keys.title), slot);
            for (word, in_title) in words_of(&summary) {
                file(self.words.entry(word.into()).or_default(), posting(slot, in_title));
            }
            for facet in facets_of(&summary) {
                file(self.facets.entry(facet).or_default(), posting(slot, false));
            }
        }
        let variants = summary.variants.iter().map(|variant| variant.price.amount).zip(left).collect();
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(Entry { id, since, keys, variants, stored });
        }
    }

    fn remove(&mut self, id: &str) {
        if let Some((slot, entry)) = self.take(id) {
            self.by_id.remove(&entry.id);
            self.free.push(slot);
        }
    }

    /// Takes a product out of its slot and out of all lists; the slot stays its own.
    fn take(&mut self, id: &str) -> Option<(Slot, Entry)> {
        let slot = *self.by_id.get(id)?;
        let entry = self.slots.get_mut(slot as usize)?.take()?;
        if let Some(keys) = &entry.keys {
            self.newest.remove(&keys.newest);
            self.by_price.remove(&keys.price);
            self.by_title.remove(&keys.title);
            // It was written by `put` from a summary, so it reads as one.
            if let Ok(summary) = serde_json::from_slice::<ProductSummary>(&entry.stored) {
                for (word, in_title) in words_of(&summary) {
                    if self.words.get_mut(word.as_str()).is_some_and(|list| unfile(list, posting(slot, in_title))) {
                        self.words.remove(word.as_str());
                    }
                }
                for facet in facets_of(&summary) {
                    if self.facets.get_mut(&facet).is_some_and(|list| unfile(list, posting(slot, false))) {
                        self.facets.remove(&facet);
                    }
                }
            }
        }
        Some((slot, entry))
    }

    pub(super) fn page(&self, query: &ProductQuery) -> Result<Page<ProductSummary>, ReadModelError> {
        let limit = page_items(query.limit);
        let terms = Terms::of(query);
        let scope = terms.scope(query)?;
        let after = query.cursor.as_deref().map(|cursor| cursor::open(&scope, cursor)).transpose()?;
        let matches = self.matches(&terms);

        // One more than the page, to know whether there is a next.
        let mut found = match &matches {
            Some(matches) => self.pick(matches, query, after.as_deref(), limit + 1),
            None => self.walk(query, after.as_deref(), limit + 1),
        };
        let more = found.len() > limit;
        found.truncate(limit);
        let next_cursor = match found.last() {
            Some((place, _)) if more => Some(cursor::seal(&scope, place)),
            _ => None,
        };
        let items = found.iter().map(|(_, slot)| self.summary(*slot)).collect::<Result<_, _>>()?;
        Ok(Page { items, next_cursor })
    }

    fn summary(&self, slot: Slot) -> Result<ProductSummary, ReadModelError> {
        let damaged = |what: &str| ReadModelError::Unavailable(format!("the catalogue is damaged: {what}"));
        let entry = self.at(slot).ok_or_else(|| damaged("an empty slot"))?;
        let mut summary: ProductSummary = serde_json::from_slice(&entry.stored).map_err(|error| damaged(&error.to_string()))?;
        for (variant, (_, left)) in summary.variants.iter_mut().zip(&entry.variants) {
            variant.available = left.load(Ordering::Relaxed);
        }
        summary.in_stock = summary.variants.iter().any(|variant| variant.available > 0);
        Ok(summary)
    }

    /// What words and facets leave; `None` when the query has neither.
    fn matches(&self, terms: &Terms) -> Option<Matches> {
        let mut matches: Option<Matches> = None;
        for facet in &terms.facets {
            let mut found = Bits::new(self.slots.len());
            for posting in self.facets.get(facet).into_iter().flatten() {
                found.set(posting >> 1);
            }
            Matches::narrow(&mut matches, found, None);
        }
        for word in &terms.words {
            let (mut found, mut in_title) = (Bits::new(self.slots.len()), Bits::new(self.slots.len()));
            let from = (Bound::Included(word.as_str()), Bound::Unbounded);
            for (_, list) in self.words.range::<str, _>(from).take_while(|(is, _)| is.starts_with(word.as_str())) {
                for posting in list {
                    found.set(posting >> 1);
                    if posting & 1 == 1 {
                        in_title.set(posting >> 1);
                    }
                }
            }
            Matches::narrow(&mut matches, found, Some(in_title));
        }
        matches
    }

    /// Looks at all that match and takes the first `count` after `after`.
    fn pick(&self, matches: &Matches, query: &ProductQuery, after: Option<&[u8]>, count: usize) -> Vec<(Vec<u8>, Slot)> {
        let mut found: Vec<(u8, &[u8], Slot)> = Vec::new();
        let ranked = query.sort == ProductSort::Relevance;
        let up = query.sort.is_up();
        let (after_rank, after_key) = match after {
            Some(place) if ranked => place.split_first().map_or((0, place), |(rank, key)| (*rank, key)),
            Some(place) => (0, place),
            None => (0, [].as_slice()),
        };
        for slot in matches.all.iter() {
            let Some((entry, keys)) = self.at(slot).and_then(|entry| Some((entry, entry.keys.as_ref()?))) else { continue };
            let rank = if ranked { matches.rank(slot) } else { 0 };
            let key: &[u8] = match query.sort {
                ProductSort::Relevance | ProductSort::Newest => &keys.newest,
                ProductSort::PriceUp | ProductSort::PriceDown => &keys.price,
                ProductSort::Title => &keys.title,
            };
            let (this, place) = ((rank, key), (after_rank, after_key));
            let is_after = after.is_none() || if up { this > place } else { this < place };
            if is_after && entry.fits(query) {
                found.push((rank, key, slot));
            }
        }
        let order = |a: &(u8, &[u8], Slot), b: &(u8, &[u8], Slot)| if up { a.cmp(b) } else { b.cmp(a) };
        if found.len() > count {
            found.select_nth_unstable_by(count, order);
            found.truncate(count);
        }
        found.sort_unstable_by(order);
        let place = |rank: u8, key: &[u8]| if ranked { [&[rank], key].concat() } else { key.to_vec() };
        found.into_iter().map(|(rank, key, slot)| (place(rank, key), slot)).collect()
    }

    /// Walks the sorted list from `after` until `count` products fit.
    fn walk(&self, query: &ProductQuery, after: Option<&[u8]>, count: usize) -> Vec<(Vec<u8>, Slot)> {
        let list = match query.sort {
            ProductSort::Relevance | ProductSort::Newest => &self.newest,
            ProductSort::PriceUp | ProductSort::PriceDown => &self.by_price,
            ProductSort::Title => &self.by_title,
        };
        let up = query.sort.is_up();
        let bounds = match after {
            Some(place) if up => (Bound::Excluded(place), Bound::Unbounded),
            Some(place) => (Bound::Unbounded, Bound::Excluded(place)),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let mut range = list.range::<[u8], _>(bounds);
        std::iter::from_fn(|| if up { range.next() } else { range.next_back() })
            .filter(|(_, slot)| self.at(**slot).is_some_and(|entry| entry.fits(query)))
            .take(count)
            .map(|(key, slot)| (key.to_vec(), *slot))
            .collect()
    }
}

impl ProductSort {
    fn is_up(self) -> bool {
        matches!(self, ProductSort::PriceUp | ProductSort::Title)
    }
}

impl Entry {
    /// Whether price and stock are as asked for.
    fn fits(&self, query: &ProductQuery) -> bool {
        let dear_enough = |price: i64| query.min_price.is_none_or(|min| price >= min);
        let cheap_enough = |price: i64| query.max_price.is_none_or(|max| price <= max);
        self.variants.iter().any(|(price, _)| dear_enough(*price) && cheap_enough(*price))
            && query.in_stock.is_none_or(|asked| asked == self.variants.iter().any(|(_, left)| left.load(Ordering::Relaxed) > 0))
    }
}

/// What a query looks up, in the form in which the index has it.
struct Terms {
    words: Vec<String>,
    facets: Vec<Box<str>>,
}

impl Terms {
    fn of(query: &ProductQuery) -> Self {
        let mut asked: Vec<String> = words(query.q.as_deref().unwrap_or_default()).collect();
        asked.sort_unstable();
        asked.dedup();
        asked.truncate(QUERY_WORDS_MAX);
        let given = |text: &Option<String>| text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        let steps: Vec<String> = given(&query.category).iter().flat_map(|path| path.split('>')).map(str::to_owned).collect();
        let category = (!steps.is_empty()).then(|| Facet::Category(&steps).text());
        let tag = given(&query.tag).map(|tag| Facet::Tag(&tag).text());
        let shop = given(&query.shop).map(|shop| Facet::Shop(&shop).text());
        Terms { words: asked, facets: [category, tag, shop].into_iter().flatten().collect() }
    }

    /// What a cursor is bound to: all but the limit, which may change between pages.
    fn scope(&self, query: &ProductQuery) -> Result<Vec<u8>, ReadModelError> {
        let bounds = (query.min_price, query.max_price, query.in_stock);
        serde_json::to_vec(&("products", &self.words, &self.facets, bounds, query.sort))
            .map_err(|error| ReadModelError::Unavailable(error.to_string()))
    }
}

struct Matches {
    all: Bits,
    /// For each word of the query, where it is in the title.
    in_title: Vec<Bits>,
}

impl Matches {
    fn narrow(matches: &mut Option<Matches>, found: Bits, in_title: Option<Bits>) {
        let matches = match matches {
            Some(matches) => {
                matches.all.keep(&found);
                matches
            }
            None => matches.insert(Matches { all: found, in_title: Vec::new() }),
        };
        matches.in_title.extend(in_title);
    }

    /// How many words of the query are in the title.
    fn rank(&self, slot: Slot) -> u8 {
        // At most QUERY_WORDS_MAX.
        self.in_title.iter().filter(|bits| bits.has(slot)).count() as u8
    }
}

/// A set of slots.
struct Bits(Vec<u64>);

impl Bits {
    fn new(slots: usize) -> Self {
        Bits(vec![0; slots.div_ceil(64)])
    }

    fn set(&mut self, slot: u64) {
        if let Some(word) = self.0.get_mut((slot / 64) as usize) {
            *word |= 1 << (slot % 64);
        }
    }

    fn has(&self, slot: Slot) -> bool {
        self.0.get((slot / 64) as usize).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    fn keep(&mut self, others: &Bits) {
        for (word, other) in self.0.iter_mut().zip(&others.0) {
            *word &= other;
        }
    }

    fn iter(&self) -> impl Iterator<Item = Slot> {
        (0..).zip(&self.0).flat_map(|(at, word): (Slot, &u64)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(at * 64 + bit)
            })
        })
    }
}
