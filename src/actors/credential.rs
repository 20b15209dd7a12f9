//! What a caller holds, and what that opens. Tokens themselves are never kept, compared or logged: only their SHA-256 is.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::domain::order::Owner;

/// The longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// Recognises callers by the token that they bear.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    admin_token_sha256: Option<[u8; 32]>,
}

/// Who a caller has shown to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credential {
    token_sha256: Option<String>,
    admin: bool,
}

impl Gate {
    /// Without a hash nobody is an admin.
    pub fn new(admin_token_sha256: Option<[u8; 32]>) -> Self {
        Gate { admin_token_sha256 }
    }

    pub fn has_admin(&self) -> bool {
        self.admin_token_sha256.is_some()
    }

    pub fn recognise(&self, token: Option<&str>) -> Credential {
        let Some(token) = token.filter(|token| !token.is_empty() && token.len() <= TOKEN_BYTES_MAX) else {
            return Credential::default();
        };
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let admin = self.admin_token_sha256.is_some_and(|expected| same(&expected, &hash));
        Credential { token_sha256: Some(hex(&hash)), admin }
    }
}

impl Credential {
    pub fn is_admin(&self) -> bool {
        self.admin
    }

    pub fn is_anonymous(&self) -> bool {
        self.token_sha256.is_none()
    }

    /// The hash of the token shown, in hex.
    pub fn token_sha256(&self) -> Option<&str> {
        self.token_sha256.as_deref()
    }

    /// Whether this is the token that the owner got.
    pub fn owns(&self, owner: &Owner) -> bool {
        match (owner, &self.token_sha256) {
            (Owner::Guest { token_sha256 }, Some(shown)) => same(token_sha256.as_bytes(), shown.as_bytes()),
            _ => false,
        }
    }

    /// How records name this caller.
    pub fn asker(&self) -> &'static str {
        if self.admin { "admin" } else { "guest" }
    }
}

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Equality whose time does not tell where two values differ.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |difference, (l, r)| difference | (l ^ r)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_what_bears_its_hash_and_nothing_else() {
        let gate = Gate::new(Some(Sha256::digest(b"secret").into()));
        let guest = gate.recognise(Some("t1"));
        let own = Owner::Guest { token_sha256: sha256_hex(b"t1") };
        let other = Owner::Guest { token_sha256: sha256_hex(b"t2") };
        assert!(guest.owns(&own) && !guest.owns(&other) && !guest.is_admin());
        assert!(gate.recognise(Some("secret")).is_admin());
        assert!(!gate.recognise(None).owns(&own) && gate.recognise(Some("")).is_anonymous());
        assert!(!Gate::default().recognise(Some("")).is_admin());
        assert!(!guest.owns(&Owner::Account { user: "t1".into() }));
    }
}
