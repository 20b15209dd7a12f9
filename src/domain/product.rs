//! A product: what is sold, in which variants, at which price. Each variant's sku is claimed at its inventory item.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CommandId, Context, Debt, Decision, Entity, Inventory, Money, ids, inventory, money, turn};

type Turn = turn::Turn<Product>;

/// The shop of everything that names none. No account owns it.
pub const SHOP_DEFAULT: &str = "shop_default";
pub const NAME_CHARS_MAX: usize = 255;
pub const DESCRIPTION_CHARS_MAX: usize = 64 * 1024;
pub const OPTIONS_MAX: usize = 3;
pub const VARIANTS_MAX: usize = 2_048;
pub const TAGS_MAX: usize = 250;
pub const CATEGORY_LEVELS_MAX: usize = 8;

pub struct Product;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Its own id, under which it claims skus.
    pub id: String,
    pub phase: Phase,
    pub content: Content,
    /// Skus of variants that were removed (or never granted) and that are still to be given up.
    pub giving_up: Vec<String>,
    /// The change that waits for its new skus to be claimed.
    pub pending: Option<Pending>,
    /// Counts the drafts that claimed skus, so that a sku claimed anew, or given up anew, is a new message.
    pub drafts: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    #[default]
    Absent,
    /// Waits for its skus; not for sale, not shown.
    Claiming,
    Live,
    Deleted,
}

/// Everything of a product that its vendor writes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Content {
    pub shop: String,
    /// The readable part of its address, e.g. `summit-pro-harness`.
    pub handle: String,
    pub title: String,
    pub description: String,
    pub vendor: String,
    pub product_type: String,
    /// From the general to the special, e.g. `["Kitchen", "Coffee Machines"]`.
    pub category: Vec<String>,
    pub tags: Vec<String>,
    /// The names of the options, at most three, e.g. `["Size", "Color"]`.
    pub options: Vec<String>,
    pub variants: Vec<Variant>,
    pub published: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Variant {
    pub sku: String,
    pub price: Money,
    /// One value for each of the product's options, in their order.
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    pub command: CommandId,
    /// Initial stock of each sku that is still to be claimed.
    pub claims: BTreeMap<String, u32>,
    /// Skus claimed for this change, given up again when another one is refused.
    #[serde(default)]
    pub granted: Vec<String>,
    /// Skus that belong to another product.
    pub refused: Vec<String>,
    /// What the product was before, restored when a claim is refused; `None` for a new product.
    pub before: Option<Box<Content>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Answered when every sku is claimed, or refused as a whole. `stock`: initial units by sku.
    Create {
        content: Content,
        stock: BTreeMap<String, u32>,
    },
    /// Replaces the content; answered at once when it brings no new sku. The same content again changes nothing.
    /// `version`: the caller's If-Match is checked by the runtime's caller, not here.
    Update {
        content: Content,
        stock: BTreeMap<String, u32>,
    },
    Delete,
    HeardClaim {
        sku: String,
        granted: bool,
    },
    HeardGivenUp {
        sku: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Created,
    Updated,
    Unchanged,
    Deleted,
    Noted,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("no such product")]
    Unknown,
    #[error("the product exists already")]
    Exists,
    /// `field`: a JSON Pointer into the content.
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    /// Each field would do by itself, but not beside the others, or with what is there already. `field`: a JSON Pointer into the content.
    #[error("{field}: {message}")]
    Contradictory { field: String, message: String },
    #[error("these skus belong to other products: {}", skus.join(", "))]
    SkusTaken { skus: Vec<String> },
    #[error("another change of this product is still claiming its skus")]
    Busy,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    /// The product is written down and starts to claim its skus.
    #[serde(rename = "product.drafted")]
    Drafted { id: String, command: CommandId, content: Content, stock: BTreeMap<String, u32> },
    #[serde(rename = "product.sku.claimed")]
    SkuClaimed { sku: String },
    #[serde(rename = "product.sku.refused")]
    SkuRefused { sku: String },
    #[serde(rename = "product.sku.given_up")]
    SkuGivenUp { sku: String },
    /// All skus are claimed: the product is in the catalogue. Carries the content for whoever follows.
    #[serde(rename = "product.created")]
    Created { content: Content },
    /// New content that brings new skus waits for their claim.
    #[serde(rename = "product.update_drafted")]
    UpdateDrafted { command: CommandId, content: Content, stock: BTreeMap<String, u32> },
    #[serde(rename = "product.updated")]
    Updated { content: Content },
    /// A claim was refused; the content is what it was before.
    #[serde(rename = "product.update_refused")]
    UpdateRefused { skus: Vec<String> },
    #[serde(rename = "product.deleted")]
    Deleted { reason: String },
}

impl Entity for Product {
    const KIND: &'static str = "product";
    const SNAPSHOT_FORMAT: u32 = 1;

    type State = State;
    type Command = Command;
    type Event = Event;
    type Reply = Reply;
    type Rejection = Rejection;

    fn decide(state: &State, command: Command, context: &Context<'_>) -> Result<Decision<Self>, Rejection> {
        match command {
            Command::Create { content, stock } => state.create(content, stock, context),
            Command::Update { content, stock } => state.update(content, stock, context),
            Command::Delete => state.delete(),
            Command::HeardClaim { sku, granted } => Ok(state.heard_claim(sku, granted)),
            Command::HeardGivenUp { sku } => Ok(match state.giving_up.contains(&sku) {
                true => Decision::now(vec![Event::SkuGivenUp { sku }], Reply::Noted),
                false => Decision::now(Vec::new(), Reply::Noted),
            }),
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Drafted { id, command, content, stock } => {
                state.id.clone_from(id);
                state.phase = Phase::Claiming;
                state.content = content.clone();
                state.claim(command, stock, None);
            }
            Event::UpdateDrafted { command, content, stock } => {
                let before = std::mem::replace(&mut state.content, content.clone());
                state.claim(command, stock, Some(Box::new(before)));
            }
            Event::SkuClaimed { sku } => {
                if let Some(pending) = &mut state.pending {
                    pending.claims.remove(sku);
                    pending.granted.push(sku.clone());
                }
            }
            Event::SkuRefused { sku } => {
                if let Some(pending) = &mut state.pending {
                    pending.claims.remove(sku);
                    pending.refused.push(sku.clone());
                }
            }
            Event::SkuGivenUp { sku } => state.giving_up.retain(|other| other != sku),
            Event::Created { content } => {
                state.phase = Phase::Live;
                state.content = content.clone();
                state.pending = None;
            }
            Event::Updated { content } => {
                let before =
                    state.pending.take().and_then(|pending| pending.before).map_or_else(|| state.content.skus(), |b| b.skus());
                let kept = content.skus();
                state.giving_up.extend(before.difference(&kept).cloned());
                state.content = content.clone();
            }
            Event::UpdateRefused { .. } => {
                if let Some(pending) = state.pending.take() {
                    state.giving_up.extend(pending.granted);
                    state.content = pending.before.map_or_else(|| state.content.clone(), |before| *before);
                }
            }
            Event::Deleted { .. } => {
                state.phase = Phase::Deleted;
                let owned = match state.pending.take() {
                    Some(pending) => pending.granted,
                    None => state.content.skus().into_iter().collect(),
                };
                state.giving_up.extend(owned);
            }
        }
    }

    fn owes(state: &State) -> Vec<Debt<Self>> {
        let claims = state.pending.iter().flat_map(|pending| &pending.claims);
        let claims = claims.map(|(sku, on_hand)| state.claim_debt(sku, *on_hand));
        claims.chain(state.giving_up.iter().map(|sku| state.give_up_debt(sku))).collect()
    }
}

impl State {
    /// What the product is for everybody else: a change whose skus are not yet claimed does not show.
    pub fn in_force(&self) -> &Content {
        self.pending.as_ref().and_then(|pending| pending.before.as_deref()).unwrap_or(&self.content)
    }

    fn create(
        &self,
        content: Content,
        stock: BTreeMap<String, u32>,
        context: &Context<'_>,
    ) -> Result<Decision<Product>, Rejection> {
        if self.phase != Phase::Absent {
            return Err(Rejection::Exists);
        }
        content.check()?;
        let stock = content.stock_of(&content.skus(), stock)?;
        let (id, command) = (context.id.to_owned(), context.command.clone());
        Ok(Decision::later(vec![Event::Drafted { id, command, content, stock }]))
    }

    /// New skus are claimed before anything shows. While old ones are still being given up no new one is claimed, so
    /// that no message of giving up can overtake a claim of the same sku.
    fn update(
        &self,
        content: Content,
        stock: BTreeMap<String, u32>,
        context: &Context<'_>,
    ) -> Result<Decision<Product>, Rejection> {
        self.is_at_rest()?;
        content.check()?;
        if content.shop != self.content.shop {
            return Err(contradictory("/shop", "a product stays in its shop"));
        }
        let added: BTreeSet<String> = content.skus().difference(&self.content.skus()).cloned().collect();
        let stock = content.stock_of(&added, stock)?;
        if content == self.content {
            return Ok(Decision::now(Vec::new(), Reply::Unchanged));
        }
        if added.is_empty() {
            return Ok(Decision::now(vec![Event::Updated { content }], Reply::Updated));
        }
        if !self.giving_up.is_empty() {
            return Err(Rejection::Busy);
        }
        let command = context.command.clone();
        Ok(Decision::later(vec![Event::UpdateDrafted { command, content, stock }]))
    }

    fn delete(&self) -> Result<Decision<Product>, Rejection> {
        self.is_at_rest()?;
        Ok(Decision::now(vec![Event::Deleted { reason: "requested".to_owned() }], Reply::Deleted))
    }

    fn is_at_rest(&self) -> Result<(), Rejection> {
        match self.phase {
            Phase::Absent | Phase::Deleted => Err(Rejection::Unknown),
            Phase::Claiming | Phase::Live if self.pending.is_some() => Err(Rejection::Busy),
            Phase::Claiming | Phase::Live => Ok(()),
        }
    }

    fn heard_claim(&self, sku: String, granted: bool) -> Decision<Product> {
        let mut turn = Turn::on(self);
        if self.pending.as_ref().is_some_and(|pending| pending.claims.contains_key(&sku)) {
            turn.emit(if granted { Event::SkuClaimed { sku } } else { Event::SkuRefused { sku } });
            conclude(&mut turn);
        }
        turn.now(Reply::Noted)
    }

    fn claim(&mut self, command: &CommandId, stock: &BTreeMap<String, u32>, before: Option<Box<Content>>) {
        self.drafts += 1;
        let (command, claims) = (command.clone(), stock.clone());
        self.pending = Some(Pending { command, claims, granted: Vec::new(), refused: Vec::new(), before });
    }

    fn claim_debt(&self, sku: &str, on_hand: u32) -> Debt<Product> {
        let register = inventory::Command::Register { product: self.id.clone(), on_hand };
        let heard = sku.to_owned();
        Debt::tell::<Inventory>(format!("register/{}/{sku}", self.drafts), sku, register, move |answer| {
            let granted = match answer {
                Ok(_) => true,
                Err(inventory::Rejection::Taken { .. }) => false,
                Err(_) => return None,
            };
            Some(Command::HeardClaim { sku: heard, granted })
        })
    }

    fn give_up_debt(&self, sku: &str) -> Debt<Product> {
        let deregister = inventory::Command::Deregister { product: self.id.clone() };
        let heard = sku.to_owned();
        Debt::tell::<Inventory>(format!("deregister/{}/{sku}", self.drafts), sku, deregister, move |answer| {
            answer.ok().map(|_| Command::HeardGivenUp { sku: heard })
        })
    }
}

/// Once every claim is answered: all granted, and the change is made; one refused, and none of it is.
fn conclude(turn: &mut Turn) {
    let Some(pending) = turn.state.pending.clone().filter(|pending| pending.claims.is_empty()) else { return };
    let (command, skus) = (pending.command, pending.refused);
    let content = turn.state.content.clone();
    match (pending.before.is_some(), skus.is_empty()) {
        (false, true) => {
            turn.emit(Event::Created { content });
            turn.settle(command, Ok(Reply::Created));
        }
        (true, true) => {
            turn.emit(Event::Updated { content });
            turn.settle(command, Ok(Reply::Updated));
        }
        (is_update, false) => {
            turn.emit(match is_update {
                true => Event::UpdateRefused { skus: skus.clone() },
                false => Event::Deleted { reason: format!("skus taken: {}", skus.join(", ")) },
            });
            turn.settle(command, Err(Rejection::SkusTaken { skus }));
        }
    }
}

fn invalid(field: impl Into<String>, message: impl Into<String>) -> Rejection {
    Rejection::Invalid { field: field.into(), message: message.into() }
}

fn contradictory(field: impl Into<String>, message: impl Into<String>) -> Rejection {
    Rejection::Contradictory { field: field.into(), message: message.into() }
}

/// Refuses text that is empty or longer than [`NAME_CHARS_MAX`].
fn check_name(field: impl FnOnce() -> String, text: &str) -> Result<(), Rejection> {
    match text.chars().count() {
        1..=NAME_CHARS_MAX => Ok(()),
        _ => Err(invalid(field(), format!("must have 1 to {NAME_CHARS_MAX} characters"))),
    }
}

impl Content {
    fn skus(&self) -> BTreeSet<String> {
        self.variants.iter().map(|variant| variant.sku.clone()).collect()
    }

    /// The initial stock of each of `wanted`; none stated means none there.
    fn stock_of(&self, wanted: &BTreeSet<String>, stock: BTreeMap<String, u32>) -> Result<BTreeMap<String, u32>, Rejection> {
        let skus = self.skus();
        if let Some(stray) = stock.keys().find(|sku| !skus.contains(*sku)) {
            let pointer = stray.replace('~', "~0").replace('/', "~1");
            return Err(invalid(format!("/stock/{pointer}"), "no variant has this sku"));
        }
        Ok(wanted.iter().map(|sku| (sku.clone(), stock.get(sku).copied().unwrap_or(0))).collect())
    }

    fn check(&self) -> Result<(), Rejection> {
        check_name(|| "/shop".to_owned(), &self.shop)?;
        check_name(|| "/title".to_owned(), &self.title)?;
        check_name(|| "/handle".to_owned(), &self.handle)?;
        if !self.handle.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err(invalid("/handle", "must be made of a-z, 0-9 and -"));
        }
        if self.description.chars().count() > DESCRIPTION_CHARS_MAX {
            return Err(invalid("/description", format!("must have at most {DESCRIPTION_CHARS_MAX} characters")));
        }
        for (field, text) in [("/vendor", &self.vendor), ("/product_type", &self.product_type)] {
            if text.chars().count() > NAME_CHARS_MAX {
                return Err(invalid(field, format!("must have at most {NAME_CHARS_MAX} characters")));
            }
        }
        check_names("/category", &self.category, CATEGORY_LEVELS_MAX)?;
        check_names("/tags", &self.tags, TAGS_MAX)?;
        check_distinct("/tags", &self.tags)?;
        check_names("/options", &self.options, OPTIONS_MAX)?;
        check_distinct("/options", &self.options)?;
        self.check_variants()
    }

    fn check_variants(&self) -> Result<(), Rejection> {
        let Some(first) = self.variants.first().filter(|_| self.variants.len() <= VARIANTS_MAX) else {
            return Err(invalid("/variants", format!("must be 1 to {VARIANTS_MAX}")));
        };
        let (mut skus, mut combinations) = (BTreeSet::new(), BTreeSet::new());
        for (index, variant) in self.variants.iter().enumerate() {
            let at = |field: &str| format!("/variants/{index}/{field}");
            self.check_variant(variant, first.price.currency, &at)?;
            if !skus.insert(&variant.sku) {
                return Err(contradictory(at("sku"), "another variant has this sku"));
            }
            if !combinations.insert(&variant.options) {
                return Err(contradictory(at("options"), "another variant has these options"));
            }
        }
        Ok(())
    }

    fn check_variant(&self, variant: &Variant, currency: money::Currency, at: &dyn Fn(&str) -> String) -> Result<(), Rejection> {
        if !ids::is_sku(&variant.sku) {
            let chars = ids::SKU_CHARS_MAX;
            return Err(invalid(at("sku"), format!("must be 1 to {chars} printable characters without space at either end")));
        }
        if !(0..=money::AMOUNT_MAX).contains(&variant.price.amount) {
            return Err(invalid(at("price/amount"), format!("must be 0 to {}", money::AMOUNT_MAX)));
        }
        if variant.price.currency != currency {
            return Err(contradictory(at("price/currency"), format!("must be {currency} as in the other variants")));
        }
        if variant.options.len() != self.options.len() {
            let message = format!("must have one value for each of the {} options", self.options.len());
            return Err(contradictory(at("options"), message));
        }
        for (position, value) in variant.options.iter().enumerate() {
            check_name(|| at(&format!("options/{position}")), value)?;
        }
        Ok(())
    }
}

fn check_names(list: &str, names: &[String], most: usize) -> Result<(), Rejection> {
    if names.len() > most {
        return Err(invalid(list, format!("must be at most {most}")));
    }
    names.iter().enumerate().try_for_each(|(index, name)| check_name(|| format!("{list}/{index}"), name))
}

fn check_distinct(list: &str, names: &[String]) -> Result<(), Rejection> {
    let mut seen = BTreeSet::new();
    match names.iter().position(|name| !seen.insert(name)) {
        Some(index) => Err(invalid(format!("{list}/{index}"), "is there twice")),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "product_tests.rs"]
mod tests;
