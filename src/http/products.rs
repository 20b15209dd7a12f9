//! Products: what is sold.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use warp::http::StatusCode;

use super::Door;
use super::answer::Answer;
use super::problem::Problem;
use super::request::{Query, Request, object, objects, objects_present, present};
use crate::actors::permissions::Permission;
use crate::actors::{AskError, Failure, shown};
use crate::domain::money::AMOUNT_MAX;
use crate::domain::product::{
    CATEGORY_LEVELS_MAX, Command, Content, DESCRIPTION_CHARS_MAX, NAME_CHARS_MAX, OPTIONS_MAX, SHOP_DEFAULT, TAGS_MAX,
    VARIANTS_MAX, Variant,
};
use crate::domain::{CommandId, Entity, Money, Product, ids, product};
use crate::read_models::{ProductQuery, ProductSort};

/// How often a change is merged anew because somebody else was first.
const MERGES_MAX: u32 = 8;
/// The values of `sort`.
pub(super) const SORTS: [&str; 5] = ["relevance", "newest", "price", "-price", "title"];
const HANDLE_CHARS_MAX: usize = 80;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewProduct")]
pub(super) struct ProductBody {
    #[serde(default)]
    #[schemars(length(min = 1, max = NAME_CHARS_MAX))]
    shop_id: Option<String>,
    #[serde(default)]
    #[schemars(length(max = NAME_CHARS_MAX), regex(pattern = "^[a-z0-9-]*$"))]
    handle: Option<String>,
    #[schemars(length(min = 1, max = NAME_CHARS_MAX))]
    title: String,
    #[serde(default)]
    #[schemars(length(max = DESCRIPTION_CHARS_MAX))]
    description: String,
    #[serde(default)]
    #[schemars(length(max = NAME_CHARS_MAX))]
    vendor: String,
    #[serde(default, rename = "type")]
    #[schemars(length(max = NAME_CHARS_MAX))]
    product_type: String,
    #[serde(default)]
    #[schemars(length(max = CATEGORY_LEVELS_MAX), inner(length(min = 1, max = NAME_CHARS_MAX)))]
    category: Vec<String>,
    #[serde(default)]
    #[schemars(length(max = TAGS_MAX), inner(length(min = 1, max = NAME_CHARS_MAX)), extend("uniqueItems" = true))]
    tags: Vec<String>,
    #[serde(default)]
    #[schemars(length(max = OPTIONS_MAX), inner(length(min = 1, max = NAME_CHARS_MAX)), extend("uniqueItems" = true))]
    options: Vec<String>,
    #[schemars(length(min = 1, max = VARIANTS_MAX))]
    #[serde(deserialize_with = "objects")]
    variants: Vec<VariantBody>,
    #[serde(default = "yes")]
    published: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewVariant")]
pub(super) struct VariantBody {
    #[schemars(length(max = ids::SKU_CHARS_MAX), regex(pattern = ids::SKU_PATTERN))]
    sku: String,
    #[serde(deserialize_with = "object")]
    price: Money,
    #[serde(default)]
    #[schemars(length(max = OPTIONS_MAX), inner(length(min = 1, max = NAME_CHARS_MAX)))]
    options: Vec<String>,
    /// Initial units, which count only when the sku is new.
    #[serde(default)]
    stock: u32,
}

/// What is given replaces what was; what is left out stays.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ProductPatch")]
pub(super) struct ProductPatch {
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "String", length(min = 1, max = NAME_CHARS_MAX))]
    shop_id: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "String", length(min = 1, max = NAME_CHARS_MAX), regex(pattern = "^[a-z0-9-]*$"))]
    handle: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "String", length(min = 1, max = NAME_CHARS_MAX))]
    title: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "String", length(max = DESCRIPTION_CHARS_MAX))]
    description: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "String", length(max = NAME_CHARS_MAX))]
    vendor: Option<String>,
    #[serde(default, deserialize_with = "present", rename = "type")]
    #[schemars(with = "String", length(max = NAME_CHARS_MAX))]
    product_type: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Vec<String>", length(max = CATEGORY_LEVELS_MAX), inner(length(min = 1, max = NAME_CHARS_MAX)))]
    category: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Vec<String>", length(max = TAGS_MAX), inner(length(min = 1, max = NAME_CHARS_MAX)), extend("uniqueItems" = true))]
    tags: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Vec<String>", length(max = OPTIONS_MAX), inner(length(min = 1, max = NAME_CHARS_MAX)), extend("uniqueItems" = true))]
    options: Option<Vec<String>>,
    #[serde(default, deserialize_with = "objects_present")]
    #[schemars(with = "Vec<VariantBody>", length(min = 1, max = VARIANTS_MAX))]
    variants: Option<Vec<VariantBody>>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "bool")]
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
        Some(_) => return Err(Problem::bad_parameter("sort", format!("expected one of {}", SORTS.join(", ")))),
    };
    let products = ProductQuery {
        q: query.text("q"),
        category: query.text("category"),
        tag: query.text("tag"),
        shop: query.text("shop"),
        min_price: price(&query, "min_price")?,
        max_price: price(&query, "max_price")?,
        in_stock: query.parsed("in_stock", "true or false")?,
        sort,
        limit: query.limit()?,
        cursor: query.cursor()?,
    };
    await_position(&door, &request).await?;
    Answer::json(StatusCode::OK, &door.read_models.products(products).await?)
}

fn price(query: &Query<'_>, name: &str) -> Result<Option<i64>, Problem> {
    let expected = "an amount in minor units";
    match query.parsed(name, expected)? {
        Some(price) if !(0..=AMOUNT_MAX).contains(&price) => Err(Problem::bad_parameter(name, format!("expected {expected}"))),
        price => Ok(price),
    }
}

/// A list shows what its reader has already written.
pub async fn await_position(door: &Door, request: &Request) -> Result<(), Problem> {
    let Some(position) = request.at_least()? else { return Ok(()) };
    let journal = door.runtime.journal();
    let in_vain = async {
        match position > journal.highest() && journal.end().await.is_ok_and(|end| position > end) {
            true => (),
            false => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        reached = door.read_models.reached(position, door.config.read_model_wait) => match reached {
            true => Ok(()),
            false => Err(Problem::behind()),
        },
        () = in_vain => Err(Problem::nothing_written_there()),
    }
}

pub async fn get(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::PRODUCT)?;
    show(&door, &request, id, StatusCode::OK, false).await
}

async fn show(door: &Door, request: &Request, id: &str, status: StatusCode, hidden_too: bool) -> Result<Answer, Problem> {
    let own_id = id.to_owned();
    let (reaches, own_shop) =
        (request.credential.reaches(Permission::CatalogueWrite), request.credential.shop().map(str::to_owned));
    let look = move |state: &<Product as Entity>::State, version| {
        let sells = |shop: &str| reaches.all || (reaches.shop && own_shop.as_deref() == Some(shop));
        let shown = shown::product(&own_id, state, version)
            .filter(|product| product.published || hidden_too || sells(product.shop_id))?;
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

/// The shop that the caller may write for: its own, or for an admin the one that is asked for.
fn shop_of(request: &Request, wanted: Option<String>) -> Result<Option<String>, Problem> {
    match (request.credential.reaches(Permission::CatalogueWrite).all, request.credential.shop(), wanted) {
        (true, _, wanted) => Ok(wanted),
        (false, Some(own), Some(wanted)) if wanted != own => Err(Problem::forbidden("this is not your shop: leave /shop_id out")),
        (false, Some(own), _) => Ok(Some(own.to_owned())),
        (false, None, _) => Err(Problem::forbidden("open a shop first: POST /api/shops")),
    }
}

pub async fn create(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let body: ProductBody = request.json()?;
    let shop = shop_of(&request, body.shop_id)?;
    let (variants, stock) = split(body.variants);
    let id = request.new_id(ids::PRODUCT);
    let content = Content {
        shop: shop.unwrap_or_else(|| SHOP_DEFAULT.into()),
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
    let mut patch: ProductPatch = request.json()?;
    if patch.shop_id.is_some() {
        patch.shop_id = shop_of(&request, patch.shop_id)?;
    }
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
