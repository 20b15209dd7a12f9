//! Who may do what: one table, asked for each route and each topic.
//!
//! A permission is what a route asks for; a role is what an account has; the table says how far each role's permission
//! reaches. It must never look at an entity: whose a thing is, its caller finds out.

/// What an account is. A caller who is not signed in is a guest and nothing else; everybody who is signed in is at least a
/// customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    Guest,
    Customer,
    /// The owner of one shop.
    Vendor,
    Admin,
}

/// How far a permission reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    None,
    /// What the caller owns: by its account, or as a guest by the token that its making returned.
    Own,
    /// What belongs to the caller's shop.
    Shop,
    All,
}

/// Whether a permission can be given to an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    May,
    /// Asks for a person who has logged in.
    Never,
}

macro_rules! permissions {
    ($($permission:ident $name:literal $guest:ident $customer:ident $vendor:ident $admin:ident $keys:ident;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Permission { $($permission),* }

        impl Permission {
            pub const EVERY: &[Permission] = &[$(Permission::$permission),*];

            /// As API keys and documents name it.
            pub fn name(self) -> &'static str {
                match self { $(Permission::$permission => $name),* }
            }

            fn row(self) -> ([Reach; 4], Keys) {
                match self {
                    $(Permission::$permission =>
                        ([Reach::$guest, Reach::$customer, Reach::$vendor, Reach::$admin], Keys::$keys)),*
                }
            }
        }
    };
}

#[rustfmt::skip]
permissions! {
//  permission      name                guest  customer  vendor  admin  API keys
    Ask             "public"            All    All       All     All    May;
    Visit           "pages"             All    All       All     All    Never;
    LiveConnect     "live.connect"      All    All       All     All    May;
    CatalogueRead   "catalogue.read"    All    All       All     All    May;
    CatalogueWrite  "catalogue.write"   None   None      Shop    All    May;
    StockRead       "stock.read"        All    All       All     All    May;
    StockWrite      "stock.write"       None   None      Shop    All    May;
    CartMake        "carts.make"        All    All       All     All    May;
    CartUse         "carts.use"         Own    Own       Own     Own    May;
    OrderPlace      "orders.place"      All    All       All     All    May;
    OrderList       "orders.list"       None   Own       Shop    All    May;
    OrderRead       "orders.read"       Own    Own       Shop    All    May;
    OrderFollow     "orders.follow"     Own    Own       Shop    All    May;
    OrderCancel     "orders.cancel"     Own    Own       Shop    All    May;
    OrderShip       "orders.ship"       None   None      Shop    All    May;
    OrderClaim      "orders.claim"      None   All       All     All    Never;
    AccountMake     "accounts.make"     All    All       All     All    Never;
    AccountRead     "accounts.read"     None   Own       Own     Own    May;
    AccountUse      "accounts.use"      None   Own       Own     Own    Never;
    AccountGovern   "accounts.govern"   None   None      None    All    Never;
    SessionMake     "sessions.make"     All    All       All     All    Never;
    SaleRead        "sales.read"        All    All       All     All    May;
    SaleWrite       "sales.write"       None   None      Shop    All    May;
    SaleApprove     "sales.approve"     None   None      None    All    May;
    SaleBuy         "sales.buy"         All    All       All     All    May;
    ShopMake        "shops.make"        None   All       All     All    Never;
    ShopRead        "shops.read"        All    All       All     All    May;
    ShopWrite       "shops.write"       None   None      Shop    All    May;
    NodeRead        "node.read"         None   None      None    All    May;
    NodeRepair      "node.repair"       None   None      None    All    Never;
}

impl Permission {
    /// How far it reaches for this rank alone.
    pub fn reach(self, rank: Rank) -> Reach {
        let ([guest, customer, vendor, admin], _) = self.row();
        match rank {
            Rank::Guest => guest,
            Rank::Customer => customer,
            Rank::Vendor => vendor,
            Rank::Admin => admin,
        }
    }

    /// Whether an API key can have it.
    pub fn is_for_keys(self) -> bool {
        self.row().1 == Keys::May
    }

    pub fn parse(name: &str) -> Option<Permission> {
        Self::EVERY.iter().copied().find(|permission| permission.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_permission_has_a_name_of_its_own_that_leads_back_to_it() {
        let names: BTreeSet<_> = Permission::EVERY.iter().map(|permission| permission.name()).collect();
        assert_eq!(names.len(), Permission::EVERY.len());
        for permission in Permission::EVERY {
            assert_eq!(Permission::parse(permission.name()), Some(*permission));
        }
        assert_eq!(Permission::parse("orders"), None);
    }

    #[test]
    fn a_guest_changes_nothing_of_a_shop_and_only_admins_see_the_node() {
        use Permission as P;
        for permission in [
            P::CatalogueWrite,
            P::StockWrite,
            P::OrderShip,
            P::ShopWrite,
            P::SaleWrite,
            P::SaleApprove,
            P::AccountUse,
            P::AccountGovern,
        ] {
            assert_eq!(permission.reach(Rank::Guest), Reach::None, "{permission:?}");
        }
        for permission in [P::NodeRead, P::NodeRepair, P::AccountGovern] {
            for rank in [Rank::Guest, Rank::Customer, Rank::Vendor] {
                assert_eq!(permission.reach(rank), Reach::None, "{permission:?}");
            }
        }
        // What is a person's own is no admin's: not the cart, not the account.
        for permission in [P::CartUse, P::AccountUse, P::AccountRead] {
            assert_eq!(permission.reach(Rank::Admin), Reach::Own, "{permission:?}");
        }
    }

    #[test]
    fn no_api_key_can_reach_for_an_account_or_make_another_key() {
        for permission in Permission::EVERY.iter().filter(|permission| permission.name().starts_with("accounts.")) {
            assert_eq!(permission.is_for_keys(), *permission == Permission::AccountRead, "{permission:?}");
        }
        assert!(!Permission::SessionMake.is_for_keys());
    }
}
