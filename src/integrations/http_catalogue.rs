//! The catalogue of a running node, over its HTTP api.
//!
//! A node that answers "not now" (429, 503) or not at all is asked again, later and later, a bounded number of times.
//! Every request here may be repeated: reads, creations with an `Idempotency-Key`, and changes that say what shall be.
//! A change bears no `If-Match`: an import says that the file is right.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use ulid::Ulid;

use super::http_client::{Answer, Client, ClientError, IDEMPOTENCY_KEY, Limits, Origin, percent_encoded};
use super::import::{Catalogue, CatalogueError};
use crate::domain::Money;
use crate::domain::product::{Content, Variant};

const ATTEMPTS_MAX: u32 = 8;
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Also what is left of a `Retry-After` that asks for more.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

pub struct HttpCatalogue {
    origin: Origin,
    limits: Limits,
    token: Option<String>,
    /// Bounds the connections.
    permits: Semaphore,
    /// Connections that nobody uses now.
    idle: Mutex<Vec<Client>>,
}

impl HttpCatalogue {
    pub fn new(url: &str, token: Option<String>, connections: usize) -> Result<Self, ClientError> {
        let catalogue = HttpCatalogue {
            origin: Origin::parse(url)?,
            limits: Limits::default(),
            token,
            permits: Semaphore::new(connections.max(1)),
            idle: Mutex::new(Vec::new()),
        };
        // Finds an unusable token now and not at the first product.
        catalogue.client()?;
        Ok(catalogue)
    }

    fn client(&self) -> Result<Client, ClientError> {
        if let Some(client) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(client);
        }
        let client = Client::new(self.origin.clone(), self.limits);
        match &self.token {
            Some(token) => client.with_token(token),
            None => Ok(client),
        }
    }

    async fn once(&self, ask: &Ask<'_>) -> Result<Answer, ClientError> {
        // The semaphore is never closed, and callers put a deadline around the product.
        let _permit = self.permits.acquire().await;
        let mut client = self.client()?;
        let answer = match ask {
            Ask::Get { path } => client.get(path, &[]).await,
            Ask::Post { path, key, body } => client.post(path, &[(IDEMPOTENCY_KEY, key.clone())], body.clone()).await,
            Ask::Patch { path, body } => client.patch(path, &[], body.clone()).await,
        };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
        answer
    }

    /// Asks until there is an answer that stays the same when asked again.
    async fn ask(&self, ask: Ask<'_>) -> Result<Answer, CatalogueError> {
        let mut backoff = BACKOFF_FIRST;
        for attempt in 1.. {
            let (reason, asked_to_wait) = match self.once(&ask).await {
                Ok(answer) if !is_passing(answer.status) => return Ok(answer),
                Ok(answer) => (problem(&answer), answer.retry_after()),
                Err(error) => (error.to_string(), None),
            };
            if attempt >= ATTEMPTS_MAX {
                let reason = format!("{} does not answer after {attempt} attempts: {reason}", self.origin);
                return Err(CatalogueError::Unavailable { reason });
            }
            let wait = asked_to_wait.unwrap_or(backoff).min(BACKOFF_MAX);
            // Between one and one and a half times: never sooner than asked, and not all at the same moment.
            sleep(wait + wait.mul_f64(fastrand::f64() / 2.0) + Duration::from_millis(fastrand::u64(0..50))).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        Err(CatalogueError::Unavailable { reason: "no attempt was made".to_owned() })
    }
}

enum Ask<'a> {
    Get { path: &'a str },
    Post { path: &'a str, key: HeaderValue, body: Bytes },
    Patch { path: &'a str, body: Bytes },
}

impl Catalogue for HttpCatalogue {
    async fn find_by_sku(&self, sku: &str) -> Result<Option<(String, Content)>, CatalogueError> {
        let path = format!("/api/inventory/{}", percent_encoded(sku));
        let answer = self.ask(Ask::Get { path: &path }).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let item: InventoryItem = read(&accepted(answer, Whose::Everything)?)?;
        let Some(product_id) = item.product_id else { return Ok(None) };
        let path = format!("/api/products/{}", percent_encoded(&product_id));
        let answer = self.ask(Ask::Get { path: &path }).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let product: ProductAnswer = read(&accepted(answer, Whose::Everything)?)?;
        Ok(Some((product_id, product.into_content())))
    }

    async fn create(&self, content: Content, stock: BTreeMap<String, u32>) -> Result<(), CatalogueError> {
        let key = HeaderValue::from_str(&format!("import-{}", Ulid::new()))
            .map_err(|error| CatalogueError::Refused { reason: error.to_string() })?;
        let shop_id = (!content.shop.is_empty()).then_some(content.shop.as_str());
        let body = written(&ProductBody::of(&content, &stock, shop_id))?;
        let answer = self.ask(Ask::Post { path: "/api/products", key, body }).await?;
        accepted(answer, Whose::Everything).map(drop)
    }

    async fn update(&self, product_id: &str, content: Content, stock: BTreeMap<String, u32>) -> Result<(), CatalogueError> {
        let body = written(&ProductBody::of(&content, &stock, None))?;
        let path = format!("/api/products/{}", percent_encoded(product_id));
        let answer = self.ask(Ask::Patch { path: &path, body }).await?;
        accepted(answer, Whose::OneProduct).map(drop)
    }
}

/// What a missing permission stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// This token can import nothing.
    Everything,
    /// The product is another shop's.
    OneProduct,
}

fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

fn accepted(answer: Answer, whose: Whose) -> Result<Answer, CatalogueError> {
    let status = answer.status;
    if status.is_success() {
        return Ok(answer);
    }
    let reason = problem(&answer);
    let forbids_all = status == StatusCode::FORBIDDEN && whose == Whose::Everything;
    if status == StatusCode::UNAUTHORIZED || forbids_all || !status.is_client_error() {
        return Err(CatalogueError::Unavailable { reason });
    }
    Err(CatalogueError::Refused { reason })
}

fn read<'answer, T: Deserialize<'answer>>(answer: &'answer Answer) -> Result<T, CatalogueError> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| CatalogueError::Unavailable { reason: format!("the node's answer was not understood: {error}") })
}

fn written(body: &ProductBody<'_>) -> Result<Bytes, CatalogueError> {
    let bytes = serde_json::to_vec(body).map_err(|error| CatalogueError::Refused { reason: error.to_string() })?;
    Ok(bytes.into())
}

/// What an answer that is no success says to a person (RFC 9457), in one line.
fn problem(answer: &Answer) -> String {
    #[derive(Deserialize)]
    struct Problem {
        title: Option<String>,
        detail: Option<String>,
        #[serde(default)]
        errors: Vec<FieldProblem>,
    }
    #[derive(Deserialize)]
    struct FieldProblem {
        pointer: String,
        message: String,
    }
    let mut parts = vec![answer.status.to_string()];
    if let Ok(problem) = serde_json::from_slice::<Problem>(&answer.body) {
        parts.extend(problem.title);
        parts.extend(problem.detail);
        parts.extend(problem.errors.into_iter().take(5).map(|error| format!("{} {}", error.pointer, error.message)));
    }
    parts.join(": ")
}

#[derive(Deserialize)]
struct InventoryItem {
    product_id: Option<String>,
}

/// A product as the api shows it; only what a content has.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct ProductAnswer {
    shop_id: String,
    handle: String,
    title: String,
    description: Option<String>,
    vendor: Option<String>,
    #[serde(rename = "type")]
    product_type: Option<String>,
    category: Vec<String>,
    tags: Vec<String>,
    options: Vec<String>,
    variants: Vec<VariantAnswer>,
    published: bool,
}

#[derive(Deserialize)]
struct VariantAnswer {
    sku: String,
    price: Price,
    #[serde(default)]
    options: Vec<String>,
}

/// Not [`Money`], which refuses fields that a later api may add to a price.
#[derive(Deserialize)]
struct Price {
    amount: i64,
    currency: crate::domain::Currency,
}

impl ProductAnswer {
    fn into_content(self) -> Content {
        let variant = |variant: VariantAnswer| Variant {
            sku: variant.sku,
            price: Money::new(variant.price.amount, variant.price.currency),
            options: variant.options,
        };
        Content {
            shop: self.shop_id,
            handle: self.handle,
            title: self.title,
            description: self.description.unwrap_or_default(),
            vendor: self.vendor.unwrap_or_default(),
            product_type: self.product_type.unwrap_or_default(),
            category: self.category,
            tags: self.tags,
            options: self.options,
            variants: self.variants.into_iter().map(variant).collect(),
            published: self.published,
        }
    }
}

#[derive(Serialize)]
struct ProductBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    shop_id: Option<&'a str>,
    handle: &'a str,
    title: &'a str,
    description: &'a str,
    vendor: &'a str,
    #[serde(rename = "type")]
    product_type: &'a str,
    category: &'a [String],
    tags: &'a [String],
    options: &'a [String],
    variants: Vec<VariantBody<'a>>,
    published: bool,
}

#[derive(Serialize)]
struct VariantBody<'a> {
    sku: &'a str,
    price: Money,
    options: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    stock: Option<u32>,
}

impl<'a> ProductBody<'a> {
    fn of(content: &'a Content, stock: &BTreeMap<String, u32>, shop_id: Option<&'a str>) -> Self {
        let variant = |variant: &'a Variant| VariantBody {
            sku: &variant.sku,
            price: variant.price,
            options: &variant.options,
            stock: stock.get(&variant.sku).copied(),
        };
        ProductBody {
            shop_id,
            handle: &content.handle,
            title: &content.title,
            description: &content.description,
            vendor: &content.vendor,
            product_type: &content.product_type,
            category: &content.category,
            tags: &content.tags,
            options: &content.options,
            variants: content.variants.iter().map(variant).collect(),
            published: content.published,
        }
    }
}
