//! What skus cost now: from the inventory item to its product to the variant.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;

use super::Door;
use crate::actors::Failure;
use crate::domain::cart::Offer;
use crate::domain::{Entity, Inventory, Product, product};

/// The offer of a sku; `None` when it is not for sale.
pub async fn offer(door: &Door, sku: &str) -> Result<Option<Offer>, Failure> {
    let product_of = |state: &<Inventory as Entity>::State, _| state.product.clone();
    let Some(id) = door.runtime.view::<Inventory, _>(sku, product_of).await? else { return Ok(None) };
    let (sku, product_id) = (sku.to_owned(), id.clone());
    let look = move |state: &<Product as Entity>::State, _| {
        let content = state.in_force();
        if state.phase != product::Phase::Live || !content.published {
            return None;
        }
        let variant = content.variants.iter().find(|variant| variant.sku == sku)?;
        let title = match variant.options.is_empty() {
            true => content.title.clone(),
            false => format!("{} ({})", content.title, variant.options.join(", ")),
        };
        Some(Offer { product: product_id, shop: Some(content.shop.clone()), title, price: variant.price })
    };
    door.runtime.view::<Product, _>(&id, look).await
}

/// The offers of all these skus, asked for at once; a sku that is not for sale is absent.
pub async fn offers(door: &Door, skus: impl IntoIterator<Item = String>) -> Result<BTreeMap<String, Offer>, Failure> {
    let asked = skus.into_iter().map(|sku| async move {
        let offer = offer(door, &sku).await?;
        Ok::<_, Failure>(offer.map(|offer| (sku, offer)))
    });
    Ok(try_join_all(asked).await?.into_iter().flatten().collect())
}
