//! Products: what is sold.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use warp::http::StatusCode;

use super::Door;
use super::answer::Answer;
use super::problem::Problem;
use super::request::{Query, Request, present};
use crate::actors::{AskError, Failure, shown};
use crate::domain::product::{Command, Content, SHOP_DEFAULT, Variant};
use crate::domain::{CommandId, Entity, Money, Product, ids, product};
use crate::read_models::{ProductQuery, ProductSort};

/// How often a change is merged anew because somebody else was first.
const MERGES_MAX: u32 = 8;
const HANDLE_CHARS_MAX: usize = 80;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProductBody {
    #[serde(default)]
    shop_id: Option<String>,
    #[serde(default)]
    handle: Option<String>,
    title: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    vendor: String,
    #[serde(default, rename = "type")]
    product_type: String,
    #[serde(default)]
    category: Vec<String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    options: Vec<String>,
    variants: Vec<VariantBody>,
    #[serde(default = "yes")]
    published: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct VariantBody {
    sku: String,
    price: Money,
    #[serde(default)]
    options: Vec<String>,
    /// Initial units, which count only when the sku is new.
    #[serde(default)]
    stock: u32,
}

/// What is given replaces what was; what is left out stays.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProductPatch {
    #[serde(default, deserialize_with = "present")]
    shop_id: Option<String>,
    #[serde(default, deserialize_with = "present")]
    handle: Option<String>,
    #[serde(default, deserialize_with = "present")]
    title: Option<String>,
    #[serde(default, deserialize_with = "present")]
    description: Option<String>,
    #[serde(default, deserialize_with = "present")]
    vendor: Option<String>,
    #[serde(default, deserialize_with = "present", rename = "type")]
    product_type: Option<String>,
    #[serde(default, deserialize_with = "present")]
    category: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    tags: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    options: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    variants: Option<Vec<VariantBody>>,
    #[serde(default, deserialize_with = "present")]
    published: Option<bool>,
}

impl ProductPatch {
    fn merge(self, content: &mut Content) -> BTreeMap<String, u32> {
        fn set<T>(field: &mut T, given: Option<T>) {
            if let Some(given) = given {
                *field = given;
            }
        }
        let variants = self.variants.map(split);
        set(&mut content.shop, self.shop_id);
        set(&mut content.handle, self.handle);
        set(&mut content.title, self.title);
        set(&mut content.description, self.description);
        set(&mut content.vendor, self.vendor);
        set(&mut content.product_type, self.product_type);
        set(&mut content.category, self.category);
        set(&mut content.tags, self.tags);
        set(&mut content.options, self.options);
        set(&mut content.published, self.published);
        match variants {
            Some((variants, stock)) => {
                content.variants = variants;
                stock
            }
            None => BTreeMap::new(),
        }
    }
}

/// Variants as the domain has them, and the initial stock of each sku.
fn split(variants: Vec<VariantBody>) -> (Vec<Variant>, BTreeMap<String, u32>) {
    let stock = variants.iter().map(|variant| (variant.sku.clone(), variant.stock)).collect();
    let variant = |variant: VariantBody| Variant { sku: variant.sku, price: variant.price, options: variant.options };
    (variants.into_iter().map(variant).collect(), stock)
}

/// The readable part of an address: letters and digits of the title, joined by hyphens. A title in another script gives
/// none; then the product's id stands for it.
fn slug(title: &str, id: &str) -> String {
    let plain: String = title.to_lowercase().chars().map(plain).collect();
    let words: Vec<&str> = plain.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let short: String = words.join("-").chars().take(HANDLE_CHARS_MAX).collect();
    match short.trim_end_matches('-') {
        "" => id.to_lowercase().replace('_', "-"),
        slug => slug.to_owned(),
    }
}

/// A lower-case Latin letter without its marks.
fn plain(letter: char) -> char {
    match letter {
        'à'..='å' | 'ā' | 'ă' | 'ą' => 'a',
        'ç' | 'ć' | 'č' => 'c',
        'è'..='ë' | 'ē' | 'ę' | 'ě' => 'e',
        'ì'..='ï' | 'ī' | 'ı' => 'i',
        'ł' => 'l',
        'ñ' | 'ń' | 'ň' => 'n',
        'ò'..='ö' | 'ø' | 'ō' | 'ő' => 'o',
        'ß' | 'ś' | 'š' | 'ş' => 's',
        'ù'..='ü' | 'ū' | 'ů' | 'ű' => 'u',
        'ý' | 'ÿ' => 'y',
        'ź' | 'ż' | 'ž' => 'z',
        other => other,
    }
}

pub async fn list(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let known = ["q", "category", "tag", "shop", "min_price", "max_price", "in_stock", "sort", "limit", "cursor"];
    let query = Query::parse(&request.query, &known)?;
    let sort = match query.get("sort") {
        None | Some("relevance") => ProductSort::Relevance,
        Some("newest") => ProductSort::Newest,
        Some("price") => ProductSort::PriceUp,
        Some("-price") => ProductSort::PriceDown,
        Some("title") => ProductSort::Title,
        Some(_) => return Err(Problem::bad_parameter("sort", "expected relevance, newest, price, -price or title")),
    };
    let products = ProductQuery {
        q: query.owned("q"),
        category: query.owned("category"),
        tag: query.owned("tag"),
        shop: query.owned("shop"),
        min_price: query.parsed("min_price", "an amount in minor units")?,
        max_price: query.parsed("max_price", "an amount in minor units")?,
        in_stock: query.parsed("in_stock", "true or false")?,
        sort,
        limit: query.limit()?,
        cursor: query.owned("cursor"),
    };
    await_position(&door, &request).await?;
    Answer::json(StatusCode::OK, &door.read_models.products(products).await?)
}

/// A list shows what its reader has already written.
pub async fn await_position(door: &Door, request: &Request) -> Result<(), Problem> {
    match request.at_least()? {
        Some(position) if !door.read_models.reached(position, door.config.read_model_wait).await => Err(Problem::behind()),
        _ => Ok(()),
    }
}

pub async fn get(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::PRODUCT)?;
    show(&door, &request, id, StatusCode::OK, request.credential.is_admin()).await
}

async fn show(door: &Door, request: &Request, id: &str, status: StatusCode, hidden_too: bool) -> Result<Answer, Problem> {
    let own_id = id.to_owned();
    let look = move |state: &<Product as Entity>::State, version| {
        let shown = shown::product(&own_id, state, version).filter(|product| product.published || hidden_too)?;
        Some((Answer::json(status, &shown), version))
    };
    match door.runtime.view::<Product, _>(id, look).await? {
        None => Err(Problem::not_found()),
        Some((_, version)) if status == StatusCode::OK && request.has_version(version) => {
            Ok(Answer::empty(StatusCode::NOT_MODIFIED).etag(version))
        }
        Some((answer, version)) => Ok(answer?.etag(version)),
    }
}

pub async fn create(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let body: ProductBody = request.json()?;
    let (variants, stock) = split(body.variants);
    let id = request.new_id(ids::PRODUCT);
    let content = Content {
        shop: body.shop_id.unwrap_or_else(|| SHOP_DEFAULT.into()),
        handle: body.handle.filter(|handle| !handle.is_empty()).unwrap_or_else(|| slug(&body.title, &id)),
        title: body.title,
        description: body.description,
        vendor: body.vendor,
        product_type: body.product_type,
        category: body.category,
        tags: body.tags,
        options: body.options,
        variants,
        published: body.published,
    };
    let answered = door.runtime.ask::<Product>(&id, Command::Create { content, stock }, request.caller()?).await?;
    let answer = show(&door, &request, &id, StatusCode::CREATED, true).await?;
    Ok(answer.location(&format!("/api/products/{id}")).position(answered.position))
}

pub async fn change(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::PRODUCT)?;
    let patch: ProductPatch = request.json()?;
    let given = request.caller()?;
    for attempt in 0..MERGES_MAX {
        let look = |state: &<Product as Entity>::State, version| {
            (state.phase == product::Phase::Live).then(|| (state.content.clone(), version))
        };
        let Some((mut content, version)) = door.runtime.view::<Product, _>(id, look).await? else {
            return Err(Problem::not_found());
        };
        let stock = patch.clone().merge(&mut content);
        let mut caller = given.clone();
        // The merge is right only for the version that it was made of.
        caller.if_version = Some(given.if_version.unwrap_or(version));
        caller.command = CommandId(format!("{}/{attempt}", request.seed.id));
        match door.runtime.ask::<Product>(id, Command::Update { content, stock }, caller).await {
            Ok(answered) => {
                return Ok(show(&door, &request, id, StatusCode::OK, true).await?.position(answered.position));
            }
            Err(AskError::Failed(Failure::VersionDiffers { .. })) if given.if_version.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Problem::contended())
}

pub async fn delete(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::PRODUCT)?;
    let answered = door.runtime.ask::<Product>(id, Command::Delete, request.caller()?).await?;
    Ok(Answer::empty(StatusCode::NO_CONTENT).position(answered.position))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_made_of_the_title() {
        for (title, handle) in [
            ("Summit Pro Harness", "summit-pro-harness"),
            ("  Café & Küche!  ", "cafe-kuche"),
            ("İstanbul Çay", "i-stanbul-cay"),
            ("فانوس", "prod-01x"),
            ("!!!", "prod-01x"),
            (&"long ".repeat(40), &"long-".repeat(16)[..79]),
        ] {
            assert_eq!(slug(title, "prod_01X"), handle);
        }
    }

    #[test]
    fn a_patch_changes_what_it_names() {
        let patch: ProductPatch =
            serde_json::from_str(r#"{"title":"New","variants":[{"sku":"S","price":{"amount":5,"currency":"EUR"},"stock":3}]}"#)
                .unwrap();
        let mut content = Content { title: "Old".into(), vendor: "V".into(), published: true, ..Content::default() };
        let stock = patch.merge(&mut content);
        assert_eq!((content.title.as_str(), content.vendor.as_str(), content.published), ("New", "V", true));
        assert_eq!((content.variants.len(), stock.get("S")), (1, Some(&3)));
        assert!(serde_json::from_str::<ProductPatch>(r#"{"title":null}"#).is_err());
    }
}
