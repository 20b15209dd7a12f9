//! What a caller holds, and what that opens. Tokens themselves are never kept, compared or logged: only their SHA-256 is.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};

use super::Failure;
use super::permissions::{Permission, Rank, Reach};
use crate::domain::order::{Draft, Owner};

/// The account that everything is done under that the operator of a node does from its own machine.
pub const OPERATOR: &str = "operator";

/// Recognises callers by the token that they bear.
pub trait Gate: Send + Sync {
    /// No token is nobody, and one that is not of an account may be a guest's.
    fn recognise<'a>(&'a self, token: Option<&'a str>) -> BoxFuture<'a, Result<Credential, NotRecognised>>;

    /// Whether what this account was recognised by still counts, for those who stay long. In doubt it does.
    fn still_counts<'a>(&'a self, account: &'a Account) -> BoxFuture<'a, bool>;
}

/// Why a token that was shown is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotRecognised {
    #[error("{0}")]
    Refused(&'static str),
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Who a caller has shown to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Credential {
    #[default]
    Nobody,
    /// Whoever bears a token that is no account's.
    Bearer {
        token_sha256: String,
    },
    Account(Arc<Account>),
}

/// An account as it was when its token was last looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub user: Arc<str>,
    /// `None` for an API key and for the operator.
    pub session: Option<String>,
    /// `Customer` is among them.
    pub ranks: Vec<Rank>,
    pub shop: Option<String>,
    /// What an API key is for.
    pub key: Option<Key>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub id: Arc<str>,
    pub scopes: Vec<Permission>,
}

/// How far a permission reaches for a caller, over all that it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reaches {
    pub own: bool,
    pub shop: bool,
    pub all: bool,
}

impl Reaches {
    pub fn nothing(self) -> bool {
        self == Reaches::default()
    }

    fn with(mut self, reach: Reach) -> Self {
        match reach {
            Reach::None => {}
            Reach::Own => self.own = true,
            Reach::Shop => self.shop = true,
            Reach::All => self.all = true,
        }
        self
    }
}

impl Credential {
    pub fn guest(token: &str) -> Self {
        Credential::Bearer { token_sha256: sha256_hex(token.as_bytes()) }
    }

    pub fn account(&self) -> Option<&Account> {
        match self {
            Credential::Account(account) => Some(account),
            Credential::Nobody | Credential::Bearer { .. } => None,
        }
    }

    /// The shop that the caller owns.
    pub fn shop(&self) -> Option<&str> {
        self.account().and_then(|account| account.shop.as_deref())
    }

    pub fn reaches(&self, permission: Permission) -> Reaches {
        match self {
            Credential::Nobody | Credential::Bearer { .. } => Reaches::default().with(permission.reach(Rank::Guest)),
            // What everybody may, every key may.
            Credential::Account(account) if !account.has_scope(permission) => {
                Reaches { own: false, ..Reaches::default().with(permission.reach(Rank::Guest)) }
            }
            Credential::Account(account) => {
                account.ranks.iter().fold(Reaches::default(), |reaches, rank| reaches.with(permission.reach(*rank)))
            }
        }
    }

    /// Whether the caller is the owner.
    pub fn owns(&self, owner: &Owner) -> bool {
        match (owner, self) {
            (Owner::Guest { token_sha256 }, Credential::Bearer { token_sha256: shown }) => {
                same(token_sha256.as_bytes(), shown.as_bytes())
            }
            (Owner::Account { user }, Credential::Account(account)) => **user == *account.user,
            _ => false,
        }
    }

    /// Whether the permission reaches this order, each of its lines or only some.
    pub fn reaches_order(&self, permission: Permission, draft: &Draft) -> bool {
        let reaches = self.reaches(permission);
        let whole = || match self.shop() {
            // What concerns the whole order is a shop's only when the whole order is.
            Some(shop) if permission != Permission::OrderRead => {
                draft.lines.iter().all(|line| line.shop.as_deref() == Some(shop))
            }
            Some(shop) => draft.lines.iter().any(|line| line.shop.as_deref() == Some(shop)),
            None => false,
        };
        reaches.all || (reaches.own && self.owns(&draft.owner)) || (reaches.shop && whole())
    }

    /// Tells this caller from every other: an account is the same whatever it was recognised by.
    pub fn name(&self) -> &str {
        match self {
            Credential::Nobody => "anonymous",
            Credential::Bearer { token_sha256 } => token_sha256,
            Credential::Account(account) => &account.user,
        }
    }

    /// How records name this caller.
    pub fn asker(&self) -> Arc<str> {
        match self {
            Credential::Nobody | Credential::Bearer { .. } => "guest".into(),
            Credential::Account(account) => Arc::clone(&account.user),
        }
    }
}

impl Account {
    fn has_scope(&self, permission: Permission) -> bool {
        self.key.as_ref().is_none_or(|key| permission.is_for_keys() && key.scopes.contains(&permission))
    }
}

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// In lower case.
pub fn hex(bytes: &[u8]) -> String {
    let (words, rest) = bytes.as_chunks();
    let mut text = Vec::with_capacity(bytes.len() * 2);
    for word in words {
        text.extend_from_slice(&digits(u32::from_be_bytes(*word)));
    }
    for byte in rest {
        text.extend(digits(u32::from(*byte)).into_iter().skip(6));
    }
    String::from_utf8(text).unwrap_or_default()
}

/// Eight hex digits at once: each request writes some.
fn digits(word: u32) -> [u8; 8] {
    // Four bits to each byte, then from number to letter.
    let mut spread = u64::from(word);
    spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    spread = (spread | spread << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let past_nine = (spread + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    (spread + 0x3030_3030_3030_3030 + past_nine * u64::from(b'a' - b'9' - 1)).to_be_bytes()
}

/// Equality whose time does not tell where two values differ.
pub fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |difference, (l, r)| difference | (l ^ r)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(user: &str, ranks: &[Rank], key: Option<&[Permission]>) -> Credential {
        let key = key.map(|scopes| Key { id: "k".into(), scopes: scopes.to_vec() });
        let shop = ranks.contains(&Rank::Vendor).then(|| "shop_1".to_owned());
        Credential::Account(Arc::new(Account { user: user.into(), session: None, ranks: ranks.to_vec(), shop, key }))
    }

    fn draft(owner: Owner, shops: &[&str]) -> Draft {
        let price = crate::domain::Money::new(1, crate::domain::Currency::EUR);
        let line = |shop: &&str| crate::domain::order::Line {
            sku: "s".into(),
            product: "p".into(),
            shop: Some((*shop).to_owned()),
            title: "t".into(),
            quantity: 1,
            unit_price: price,
            total: price,
            claim: None,
        };
        Draft {
            owner,
            cart: None,
            lines: shops.iter().map(line).collect(),
            total: price,
            contact: crate::domain::order::Contact::Sealed {
                contact: crate::domain::order::SealedContact { key: "k".into(), sealed: "s".into() },
            },
            payment: crate::domain::payment::Method { provider: "p".into(), token: "t".into() },
        }
    }

    #[test]
    fn bytes_are_written_as_two_digits_each_however_many_there_are() {
        let bytes: Vec<u8> = (0..=255).collect();
        for count in [0, 1, 3, 4, 5, 32, 256] {
            let bytes = &bytes[256 - count..];
            let expected: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex(bytes), expected);
        }
        assert_eq!(hex(&bytes[..18]), "000102030405060708090a0b0c0d0e0f1011");
    }

    #[test]
    fn a_token_or_an_account_opens_what_is_its_own_and_nothing_else() {
        let guests = |token: &str| Owner::Guest { token_sha256: sha256_hex(token.as_bytes()) };
        let ada = || Owner::Account { user: "ada".into() };
        let (guest, customer) = (Credential::guest("t1"), account("ada", &[Rank::Customer], None));
        assert!(guest.owns(&guests("t1")) && !guest.owns(&guests("t2")) && !guest.owns(&ada()));
        assert!(customer.owns(&ada()) && !customer.owns(&Owner::Account { user: "eve".into() }));
        assert!(!customer.owns(&guests("ada")) && !Credential::Nobody.owns(&guests("")));
        // An account is not taken for a guest because its id is the token's hash.
        assert!(!guest.owns(&Owner::Account { user: sha256_hex(b"t1") }));
    }

    #[test]
    fn an_order_is_reached_by_its_owner_by_its_shops_and_by_an_admin() {
        use Permission as P;
        let ada = || Owner::Account { user: "ada".into() };
        let (whole, part, foreign) = (["shop_1", "shop_1"], ["shop_1", "shop_2"], ["shop_2", "shop_2"]);
        let vendor = account("vic", &[Rank::Customer, Rank::Vendor], None);
        let customer = account("ada", &[Rank::Customer], None);
        let admin = account("root", &[Rank::Customer, Rank::Admin], None);
        let eve = account("eve", &[Rank::Customer], None);
        for (who, permission, shops, reaches) in [
            (&customer, P::OrderRead, foreign, true),
            (&customer, P::OrderCancel, foreign, true),
            (&customer, P::OrderShip, foreign, false),
            (&eve, P::OrderRead, foreign, false),
            (&vendor, P::OrderRead, whole, true),
            (&vendor, P::OrderRead, part, true),
            (&vendor, P::OrderRead, foreign, false),
            (&vendor, P::OrderShip, whole, true),
            (&vendor, P::OrderShip, part, false),
            (&vendor, P::OrderFollow, part, false),
            (&admin, P::OrderShip, part, true),
            (&Credential::Nobody, P::OrderRead, whole, false),
        ] {
            assert_eq!(who.reaches_order(permission, &draft(ada(), &shops)), reaches, "{who:?} {permission:?} {shops:?}");
        }
        // A vendor is a customer too.
        assert!(vendor.reaches_order(P::OrderCancel, &draft(Owner::Account { user: "vic".into() }, &foreign)));
    }

    #[test]
    fn an_api_key_reaches_no_further_than_its_scopes_and_never_where_a_person_is_asked_for() {
        use Permission as P;
        let key = account("ada", &[Rank::Customer, Rank::Admin], Some(&[P::OrderRead, P::AccountUse]));
        assert!(key.reaches(P::OrderRead).all && key.reaches(P::OrderShip).nothing() && key.reaches(P::AccountUse).nothing());
        assert!(key.reaches(P::CatalogueRead).all && key.reaches(P::CartUse).nothing());
    }
}
