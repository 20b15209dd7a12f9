//! Where a page ended, as an opaque text: the sort key of its last item, bound to the list that it was given out for.
//!
//! Because it holds a key and not a count, items that come and go between two pages neither repeat nor hide others. The
//! digest keeps clients from building on its inside and catches accidents; it protects no secret, so it has no key.

use sha2::{Digest, Sha256};

use super::ReadModelError;

const DIGEST_BYTES: usize = 8;
/// The longest cursor that is looked at.
const CURSOR_CHARS_MAX: usize = 1_024;

/// `scope` is everything that must be the same on the next page: the filters and the sort.
pub(super) fn seal(scope: &[u8], key: &[u8]) -> String {
    let digest = digest(scope, key);
    let mut text = String::with_capacity(2 * (DIGEST_BYTES + key.len()));
    for byte in digest.iter().chain(key) {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
    }
    text
}

pub(super) fn open(scope: &[u8], cursor: &str) -> Result<Vec<u8>, ReadModelError> {
    let bytes = unhex(cursor).ok_or(ReadModelError::BadCursor)?;
    let (found, key) = bytes.split_at_checked(DIGEST_BYTES).ok_or(ReadModelError::BadCursor)?;
    if found != digest(scope, key) {
        return Err(ReadModelError::BadCursor);
    }
    Ok(key.to_vec())
}

fn digest(scope: &[u8], key: &[u8]) -> [u8; DIGEST_BYTES] {
    let mut sha = Sha256::new();
    sha.update((scope.len() as u64).to_be_bytes());
    sha.update(scope);
    sha.update(key);
    let mut digest = [0; DIGEST_BYTES];
    for (to, from) in digest.iter_mut().zip(sha.finalize()) {
        *to = from;
    }
    digest
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() > CURSOR_CHARS_MAX || !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cursor_breaks_its_reader() {
        let own = seal(b"list", b"key");
        crate::hostile::feed("cursors", vec![own.clone().into_bytes()], move |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            assert!(open(b"list", text).is_err() || text == own, "a cursor that was not given out opens");
        });
    }

    #[test]
    fn a_cursor_opens_only_for_its_own_list_and_only_unchanged() {
        let cursor = seal(b"list", b"key");
        assert_eq!(open(b"list", &cursor), Ok(b"key".to_vec()));
        assert_eq!(open(b"other", &cursor), Err(ReadModelError::BadCursor));
        for at in 0..cursor.len() {
            let mut tampered = cursor.clone().into_bytes();
            tampered[at] = if tampered[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(open(b"list", std::str::from_utf8(&tampered).unwrap()), Err(ReadModelError::BadCursor), "{at}");
        }
        for text in ["", "a", "zz", "00", "é", &cursor.to_uppercase(), &"0".repeat(2_000)] {
            assert_eq!(open(b"list", text), Err(ReadModelError::BadCursor), "{text}");
        }
    }
}
