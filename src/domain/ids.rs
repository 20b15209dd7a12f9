//! Ids as people see them: a prefix that says what it is, then a time-ordered ULID. Made outside, checked here.

use ulid::Ulid;

pub const CART: &str = "cart";
pub const ORDER: &str = "ord";
pub const PRODUCT: &str = "prod";

/// The longest sku, in bytes.
pub const SKU_BYTES_MAX: usize = 100;

/// Whether `id` has the form `prefix_ULID`, as every id that Souk gives out has.
pub fn is_id(prefix: &str, id: &str) -> bool {
    id.strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('_'))
        .is_some_and(|ulid| ulid.len() == 26 && Ulid::from_string(ulid).is_ok())
}

/// Whether `sku` can name a stock keeping unit: printable, no space at either end, at most [`SKU_BYTES_MAX`] bytes.
pub fn is_sku(sku: &str) -> bool {
    !sku.is_empty() && sku.len() <= SKU_BYTES_MAX && sku.trim() == sku && !sku.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_its_prefix_and_a_ulid() {
        assert!(is_id(ORDER, "ord_01ARZ3NDEKTSV4RRFFQ69G5FAV"));
        for id in [
            "",
            "ord_",
            "ord_1",
            "cart_01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "ord_01ARZ3NDEKTSV4RRFFQ69G5FAU!",
            "ord01ARZ3NDEKTSV4RRFFQ69G5FAV",
        ] {
            assert!(!is_id(ORDER, id), "{id}");
        }
    }

    #[test]
    fn a_sku_is_short_and_printable() {
        assert!(is_sku("OUT-001-39"));
        assert!(is_sku("red shirt/XL"));
        for sku in ["", " a", "a ", "a\nb", &"x".repeat(101)] {
            assert!(!is_sku(sku), "{sku:?}");
        }
    }
}
