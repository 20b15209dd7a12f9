//! A small shop, a flash sale and three accounts for an empty data folder, so that a newcomer has something to buy.
//!
//! It goes through the same commands as a vendor would and must never touch a folder that holds anything.

use std::collections::BTreeMap;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use ulid::Ulid;

use crate::actors::{AskError, Caller, Runtime};
use crate::domain::flash_sale::{self, ADMISSION_MS, CLAIM_MS, GRACE_MS, Terms};
use crate::domain::product::{Command, Content, Rejection, Variant};
use crate::domain::time::MINUTE_MS;
use crate::domain::user::Role;
use crate::domain::{CommandId, Currency, FlashSale, Money, Product, Shop, User, ids, shop, user};
use crate::http::identity::Identity;
use crate::http::users::{self, NewAccount};

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// One product of the demo: handle, title, what it is, type, category, price in cents, and its variants by option value
/// with their stock.
struct Sample {
    title: &'static str,
    description: &'static str,
    product_type: &'static str,
    category: &'static [&'static str],
    tags: &'static [&'static str],
    cents: i64,
    option: &'static str,
    /// Option value, sku, units.
    variants: &'static [(&'static str, &'static str, u32)],
}

const SAMPLES: &[Sample] = &[
    Sample {
        title: "Copper Lantern",
        description: "A hand-beaten lantern that throws a lattice of light on the wall.",
        product_type: "Lighting",
        category: &["Home", "Lighting"],
        tags: &["copper", "handmade"],
        cents: 4_900,
        option: "Size",
        variants: &[("Small", "LANTERN-S", 400), ("Large", "LANTERN-L", 150)],
    },
    Sample {
        title: "Wool Kilim",
        description: "Flat-woven, dyed with madder and walnut, no two alike.",
        product_type: "Rugs",
        category: &["Home", "Rugs"],
        tags: &["wool", "handwoven"],
        cents: 18_900,
        option: "Size",
        variants: &[("120 × 180", "KILIM-120", 40), ("160 × 230", "KILIM-160", 25)],
    },
    Sample {
        title: "Mint Tea Glasses, Set of Six",
        description: "Thin glass with a gilded rim, made for pouring from high up.",
        product_type: "Tableware",
        category: &["Kitchen", "Glasses"],
        tags: &["tea", "glass"],
        cents: 2_450,
        option: "Color",
        variants: &[("Emerald", "TEA-EMERALD", 900), ("Amber", "TEA-AMBER", 850), ("Clear", "TEA-CLEAR", 1_200)],
    },
    Sample {
        title: "Saffron Threads, 2 g",
        description: "This year's harvest, in a tin that keeps the light out.",
        product_type: "Spices",
        category: &["Kitchen", "Spices"],
        tags: &["saffron", "spice"],
        cents: 1_690,
        option: "",
        variants: &[("", "SAFFRON-2G", 3_000)],
    },
    Sample {
        title: "Olive Wood Board",
        description: "One piece of an old tree, oiled, with the bark left on one edge.",
        product_type: "Kitchenware",
        category: &["Kitchen", "Boards"],
        tags: &["wood", "handmade"],
        cents: 3_900,
        option: "",
        variants: &[("", "BOARD-OLIVE", 260)],
    },
    Sample {
        title: "Leather Babouches",
        description: "Soft slippers of vegetable-tanned goat leather.",
        product_type: "Footwear",
        category: &["Clothing", "Footwear"],
        tags: &["leather", "handmade"],
        cents: 3_250,
        option: "Size",
        variants: &[
            ("38", "BABOUCHE-38", 120),
            ("40", "BABOUCHE-40", 180),
            ("42", "BABOUCHE-42", 200),
            ("44", "BABOUCHE-44", 90),
        ],
    },
    Sample {
        title: "Cedar Chess Set",
        description: "Turned pieces in a folding box that smells of the Atlas.",
        product_type: "Games",
        category: &["Games"],
        tags: &["wood", "chess"],
        cents: 7_400,
        option: "",
        variants: &[("", "CHESS-CEDAR", 75)],
    },
    Sample {
        title: "Indigo Market Bag",
        description: "Holds a week's vegetables and folds into its own pocket.",
        product_type: "Bags",
        category: &["Clothing", "Bags"],
        tags: &["cotton", "indigo"],
        cents: 1_900,
        option: "",
        variants: &[("", "BAG-INDIGO", 1_500)],
    },
];

const IN_FLIGHT: usize = 4;

/// What is on sale: a sku of the samples, and as much of it as there is in stock and to spare.
const SALE_SKU: &str = "TEA-EMERALD";
const SALE_UNITS: u32 = 100;
const SALE_CENTS: i64 = 1_450;
const SALE_LIMIT: u32 = 2;
/// From the filling of the shop to the start of the sale, and how long that lasts.
const SALE_IN_MS: i64 = 5 * MINUTE_MS;
const SALE_MS: i64 = 60 * MINUTE_MS;

pub const ACCOUNTS: [&str; 3] = ["admin@souk.test", "vendor@souk.test", "shopper@souk.test"];
pub const PASSWORD: &str = "souk-demo";

/// Puts accounts, a shop and the samples into an empty node and returns how many products they are.
pub async fn fill(runtime: &Runtime, identity: &Identity) -> Result<usize, Failed> {
    let [admin, vendor, shopper] = ACCOUNTS;
    let admin = register(runtime, identity, admin, "Amina").await?;
    runtime.ask::<User>(&admin, user::Command::GrantRole { role: Role::Admin }, caller()).await?;
    let vendor = register(runtime, identity, vendor, "Yusuf").await?;
    register(runtime, identity, shopper, "Sara").await?;

    let shop = format!("{}_{}", ids::SHOP, Ulid::new());
    let content = shop::Content { name: "Bab Doukkala".into(), description: "Made by hand in the old town.".into() };
    runtime.ask::<Shop>(&shop, shop::Command::Open { owner: vendor, content }, caller()).await?;
    let products: Vec<Vec<Terms>> =
        stream::iter(SAMPLES).map(|sample| create(runtime, sample, &shop)).buffer_unordered(IN_FLIGHT).try_collect().await?;
    for terms in products.iter().flatten() {
        put_on_sale(runtime, terms).await?;
    }
    Ok(products.len())
}

async fn put_on_sale(runtime: &Runtime, terms: &Terms) -> Result<(), AskError<flash_sale::Rejection>> {
    let id = format!("{}_{}", ids::FLASH_SALE, Ulid::new());
    let create = flash_sale::Command::Create { terms: Box::new(terms.clone()) };
    runtime.ask::<FlashSale>(&id, create, caller()).await?;
    runtime.ask::<FlashSale>(&id, flash_sale::Command::Approve, caller()).await.map(drop)
}

fn caller() -> Caller {
    Caller::new(CommandId(format!("demo:{}", Ulid::new())), "demo", "demo")
}

async fn register(runtime: &Runtime, identity: &Identity, email: &str, name: &str) -> Result<String, Failed> {
    let user = format!("{}_{}", ids::USER, Ulid::new());
    let new = NewAccount { email: email.into(), password: PASSWORD.to_owned().into(), name: name.into() };
    let made = users::register(runtime, identity, &user, new, caller()).await;
    made.map_err(|problem| format!("{email}: {problem}"))?;
    Ok(user)
}

/// Makes the product, and says what of it is to be put on sale.
async fn create(runtime: &Runtime, sample: &Sample, shop: &str) -> Result<Vec<Terms>, AskError<Rejection>> {
    let id = format!("{}_{}", ids::PRODUCT, Ulid::new());
    let command = Command::Create { content: sample.content(shop), stock: sample.stock() };
    runtime.ask::<Product>(&id, command, caller()).await?;
    let starts_at = runtime.now().plus_ms(SALE_IN_MS);
    let of_sale = sample.variants.iter().filter(|(_, sku, _)| *sku == SALE_SKU);
    let terms = of_sale.map(|(value, sku, _)| Terms {
        sku: (*sku).to_owned(),
        product: id.clone(),
        shop: Some(shop.to_owned()),
        title: format!("{} ({value})", sample.title),
        price: Money::new(SALE_CENTS, Currency::EUR),
        quantity: SALE_UNITS,
        per_customer_limit: SALE_LIMIT,
        per_address_limit: None,
        starts_at,
        ends_at: starts_at.plus_ms(SALE_MS),
        claim_ms: CLAIM_MS,
        admission_ms: ADMISSION_MS,
        grace_ms: GRACE_MS,
        guests: true,
    });
    Ok(terms.collect())
}

impl Sample {
    fn content(&self, shop: &str) -> Content {
        let title = self.title.to_lowercase();
        let words = title.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let has_option = !self.option.is_empty();
        let variants = self.variants.iter().map(|(value, sku, _)| Variant {
            sku: (*sku).to_owned(),
            price: Money::new(self.cents, Currency::EUR),
            options: if has_option { vec![(*value).to_owned()] } else { Vec::new() },
        });
        Content {
            shop: shop.to_owned(),
            handle: words.collect::<Vec<_>>().join("-"),
            title: self.title.to_owned(),
            description: self.description.to_owned(),
            vendor: "Bab Doukkala".to_owned(),
            product_type: self.product_type.to_owned(),
            category: self.category.iter().map(|level| (*level).to_owned()).collect(),
            tags: self.tags.iter().map(|tag| (*tag).to_owned()).collect(),
            options: if has_option { vec![self.option.to_owned()] } else { Vec::new() },
            variants: variants.collect(),
            published: true,
        }
    }

    fn stock(&self) -> BTreeMap<String, u32> {
        self.variants.iter().map(|(_, sku, units)| ((*sku).to_owned(), *units)).collect()
    }
}
