//! Ids as people see them: a prefix that says what it is, then a time-ordered ULID. Made outside, checked here.

use ulid::Ulid;

pub const CART: &str = "cart";
pub const ORDER: &str = "ord";
pub const PRODUCT: &str = "prod";
pub const SHOP: &str = "shop";
pub const USER: &str = "usr";
pub const SESSION: &str = "ses";
pub const API_KEY: &str = "key";
pub const FLASH_SALE: &str = "fs";
/// A claim in a flash sale: the sale's ULID and the claim's number in it.
pub const CLAIM: &str = "claim";

/// The ids of each kind, as regular expressions.
pub const CART_PATTERN: &str = "^cart_[0-7][0-9A-HJKMNP-TV-Z]{25}$";
pub const ORDER_PATTERN: &str = "^ord_[0-7][0-9A-HJKMNP-TV-Z]{25}$";
pub const PRODUCT_PATTERN: &str = "^prod_[0-7][0-9A-HJKMNP-TV-Z]{25}$";
pub const SHOP_PATTERN: &str = "^shop_[0-7][0-9A-HJKMNP-TV-Z]{25}$";
pub const USER_PATTERN: &str = "^usr_[0-7][0-9A-HJKMNP-TV-Z]{25}$";
pub const SESSION_PATTERN: &str = "^ses_[0-7][0-9A-HJKMNP-TV-Z]{25}$";
pub const FLASH_SALE_PATTERN: &str = "^fs_[0-7][0-9A-HJKMNP-TV-Z]{25}$";
pub const CLAIM_PATTERN: &str = "^claim_[0-7][0-9A-HJKMNP-TV-Z]{25}_(0|[1-9][0-9]{0,8})$";
pub const API_KEY_PATTERN: &str = "^key_[0-7][0-9A-HJKMNP-TV-Z]{25}$";

/// The longest sku, in characters.
pub const SKU_CHARS_MAX: usize = 100;
/// What [`is_sku`] asks for besides the length, as a regular expression for those who make skus elsewhere.
pub const SKU_PATTERN: &str =
    r"^[^\s\u0000-\u001f\u007f-\u009f]([^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f])?$";

/// Whether `id` has the form `prefix_ULID`, as every id that Souk gives out has.
pub fn is_id(prefix: &str, id: &str) -> bool {
    id.strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('_'))
        .is_some_and(|ulid| ulid.len() == 26 && Ulid::from_string(ulid).is_ok())
}

/// The id of a flash sale's claim.
pub fn claim(sale: &str, number: u32) -> String {
    let ulid = sale.split_once('_').map_or(sale, |(_, ulid)| ulid);
    [CLAIM, "_", ulid, "_", &number.to_string()].concat()
}

/// The flash sale of a claim with this id, and the claim's number in it.
pub fn parse_claim(id: &str) -> Option<(String, u32)> {
    let (ulid, digits) = id.strip_prefix(CLAIM)?.strip_prefix('_')?.split_once('_')?;
    let sale = format!("{FLASH_SALE}_{ulid}");
    let number = digits.parse().ok()?;
    // In one way only: what is compared as text must be the same.
    (is_id(FLASH_SALE, &sale) && claim(&sale, number) == id).then_some((sale, number))
}

/// Whether `sku` can name a stock keeping unit: printable, no space at either end, at most [`SKU_CHARS_MAX`] characters.
pub fn is_sku(sku: &str) -> bool {
    (1..=SKU_CHARS_MAX).contains(&sku.chars().count()) && sku.trim() == sku && !sku.chars().any(char::is_control)
}

/// Whether `text` is 32 bytes in lower-case hex, as a SHA-256 is written.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
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
    fn a_claim_leads_to_its_sale_and_is_written_in_one_way() {
        let sale = "fs_01ARZ3NDEKTSV4RRFFQ69G5FAV";
        for number in [0, 7, 19_999_999] {
            assert_eq!(parse_claim(&claim(sale, number)), Some((sale.to_owned(), number)));
        }
        assert_eq!(claim(sale, 7), "claim_01ARZ3NDEKTSV4RRFFQ69G5FAV_7");
        for wrong in [
            "",
            "claim_01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "claim_01ARZ3NDEKTSV4RRFFQ69G5FAV_",
            "claim_01ARZ3NDEKTSV4RRFFQ69G5FAV_07",
            "claim_01ARZ3NDEKTSV4RRFFQ69G5FAV_+7",
            "claim_01ARZ3NDEKTSV4RRFFQ69G5FAV_-1",
            "claim_01ARZ3NDEKTSV4RRFFQ69G5FAV_4294967296",
            "claim_01ARZ3NDEKTSV4RRFFQ69G5FAV_7_7",
            "claim_7_01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "fs_01ARZ3NDEKTSV4RRFFQ69G5FAV_7",
        ] {
            assert_eq!(parse_claim(wrong), None, "{wrong}");
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

    #[test]
    fn a_hash_is_64_lower_case_hex_digits() {
        assert!(is_sha256(&"0a".repeat(32)));
        for text in ["".to_owned(), "0a".repeat(31), "0A".repeat(32), "0g".repeat(32), "é".repeat(32)] {
            assert!(!is_sha256(&text), "{text}");
        }
    }
}
