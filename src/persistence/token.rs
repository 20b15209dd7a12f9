//! Any text as one token of a subject of NATS: letters, digits, `_` and `-` as they are, every other byte as `=XX`.
//!
//! Subjects and keys that were ever written must be found again: what is here never changes.

use std::fmt::Write;

use super::journal::EntityKey;

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// Any text as one token of a subject. The empty one is `=`, which stands for no other.
fn escape(text: &str, out: &mut String) {
    if text.is_empty() {
        out.push('=');
    }
    for byte in text.bytes() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            // Writing into a string does not fail.
            let _ = write!(out, "={byte:02X}");
        }
    }
}

/// Only what `escape` makes: no two tokens stand for one text.
fn unescape(token: &str) -> Option<String> {
    if token == "=" {
        return Some(String::new());
    }
    let mut bytes = token.bytes();
    let mut text = Vec::with_capacity(token.len());
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'=' {
            let digit = |digit: u8| match digit {
                b'0'..=b'9' => Some(digit - b'0'),
                b'A'..=b'F' => Some(digit - b'A' + 10),
                _ => None,
            };
            let byte = digit(bytes.next()?)? << 4 | digit(bytes.next()?)?;
            (!is_plain(byte)).then_some(byte)?
        } else {
            is_plain(byte).then_some(byte)?
        };
        text.push(byte);
    }
    (!text.is_empty()).then(|| String::from_utf8(text).ok()).flatten()
}

/// An entity's key as two tokens: its kind and its id.
pub fn push_entity(entity: &EntityKey, out: &mut String) {
    escape(entity.kind(), out);
    out.push('.');
    escape(entity.id(), out);
}

/// The entity of two tokens; `None` when they are not what `push_entity` makes.
pub fn entity(tokens: &str) -> Option<EntityKey> {
    let (kind, id) = tokens.split_once('.')?;
    Some(EntityKey::new(&unescape(kind)?, &unescape(id)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_entity_has_two_tokens_of_its_own_and_comes_back() {
        let all = [
            ("cart", "01KAJ4Y3-x_y", "cart.01KAJ4Y3-x_y"),
            ("cart", "a.b", "cart.a=2Eb"),
            ("cart", "a=2Eb", "cart.a=3D2Eb"),
            ("inventory", "a.b c/*>=", "inventory.a=2Eb=20c=2F=2A=3E=3D"),
            ("email", "ü@x", "email.=C3=BC=40x"),
            ("cart", "", "cart.="),
            ("cart", "=", "cart.=3D"),
            ("", "\r\n\0", "=.=0D=0A=00"),
        ];
        for (kind, id, expected) in all {
            let key = EntityKey::new(kind, id);
            let mut tokens = String::new();
            push_entity(&key, &mut tokens);
            assert_eq!(tokens, expected);
            assert_eq!(entity(&tokens), Some(key));
        }
        for foreign in ["cart", "cart.a.b", "cart.=2e", "cart.=41", "cart.=4", "cart.=FF", ".a", "cart.", "cart.ü"] {
            assert_eq!(entity(foreign), None, "{foreign}");
        }
    }
}
