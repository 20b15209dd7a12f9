//! What a purchase says over HTTP, and how what comes back is read.

use std::collections::BTreeMap;

use serde_json::{Value, json};

pub fn purchase(token: &str) -> Value {
    json!({
        "payment": { "provider": "sandbox", "token": token },
        "shipping_address": { "name": "Ada", "line1": "1 Way", "city": "Fez", "postal_code": "30000", "country": "MA" },
        "email": "ada@souk.test",
    })
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

/// Units by sku.
pub fn lines(shown: &Value) -> BTreeMap<String, u64> {
    let lines = shown["lines"].as_array().unwrap_or_else(|| panic!("no lines in {shown}"));
    lines.iter().map(|line| (text(&line["sku"]), line["quantity"].as_u64().unwrap())).collect()
}
