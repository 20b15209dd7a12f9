//! Accounts: one for each address and one shop for each, whoever else wants them at the same moment; and what is ended
//! stays ended.

use std::collections::BTreeSet;
use std::sync::Mutex;

use souk::actors::AskError;
use souk::domain::email::EmailHash;
use souk::domain::user::{self, Phase, Rejection, Reply, Sealed, SealedEmail, Vault, VaultAnswer, VaultRequest};
use souk::domain::{Email, Entity, Shop as ShopKind, User, shop};
use souk::integrations::{Call, Integration};

use crate::faulty::Fault;
use crate::shop::{Answer, Shop, all_at_once, until};

const SESSION: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV";

/// Whose keys were destroyed; the first attempt for each is told that it cannot be done now.
#[derive(Default)]
pub struct Keys {
    asked: Mutex<BTreeSet<String>>,
    destroyed: Mutex<BTreeSet<String>>,
}

impl Integration<Vault> for Keys {
    async fn carry(&self, VaultRequest { user }: VaultRequest, _: Call) -> VaultAnswer {
        if self.asked.lock().unwrap().insert(user.clone()) {
            return VaultAnswer::Unavailable { reason: "as told".into() };
        }
        self.destroyed.lock().unwrap().insert(user);
        VaultAnswer::Destroyed
    }
}

fn sealed() -> Sealed {
    Sealed("sealed".into())
}

fn email(letter: &str) -> SealedEmail {
    SealedEmail { hash: EmailHash(letter.repeat(64)), sealed: sealed() }
}

fn sha256(secret: u32) -> String {
    format!("{secret:064x}")
}

async fn sign_up(shop: &Shop, user: &str, letter: &str) -> Answer<User> {
    let command = user::Command::SignUp { email: email(letter), profile: sealed(), password_hash: sealed() };
    shop.ask::<User>(user, &format!("sign up {user}"), command).await
}

async fn refresh(shop: &Shop, user: &str, command_id: &str, presented: u32, next: u32) -> Answer<User> {
    let (presented_sha256, next_sha256) = (sha256(presented), sha256(next));
    let command = user::Command::Refresh { session: SESSION.into(), presented_sha256, next_sha256 };
    shop.ask::<User>(user, command_id, command).await
}

/// An account with a session, whose secret is number 1.
async fn logged_in(shop: &Shop, user: &str, letter: &str) {
    assert_eq!(sign_up(shop, user, letter).await, Ok(Reply::Created));
    let open =
        user::Command::OpenSession { session: SESSION.into(), secret_sha256: sha256(1), device: sealed(), password_version: 1 };
    assert_eq!(shop.ask::<User>(user, "open", open).await, Ok(Reply::SessionOpened));
}

async fn comes_to_rest(shop: &Shop, user: &str) {
    until("nothing is owed", || async { User::owes(&shop.state::<User>(user).await).is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_forty_sign_ups_with_one_address_at_once_exactly_one_wins() {
    let shop = Shop::open().await;
    let users: Vec<String> = (0..40).map(|number| format!("usr_{number}")).collect();
    let answers = all_at_once(users.iter().cloned().map(|user| {
        let shop = shop.clone();
        async move { sign_up(&shop, &user, "a").await }
    }))
    .await;
    let winners: Vec<_> = users.iter().zip(&answers).filter(|(_, answer)| **answer == Ok(Reply::Created)).collect();
    assert_eq!(winners.len(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| **answer == Err(AskError::Rejected(Rejection::EmailTaken))).count(), 39);
    let holder = shop.state::<Email>(&"a".repeat(64)).await.holder.unwrap();
    assert_eq!(holder.user, *winners[0].0);
    for user in &users {
        comes_to_rest(&shop, user).await;
    }
    let destroyed = shop.keys.destroyed.lock().unwrap().clone();
    assert!(destroyed.len() == 39 && !destroyed.contains(winners[0].0), "only the winner's key is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_shops_opened_at_once_by_one_account_exactly_one_opens() {
    let shop = Shop::open().await;
    assert_eq!(sign_up(&shop, "usr_1", "a").await, Ok(Reply::Created));
    let answers = all_at_once(["shop_1", "shop_2"].map(|id| {
        let shop = shop.clone();
        let content = shop::Content { name: id.to_owned(), description: String::new() };
        let open = shop::Command::Open { owner: "usr_1".into(), content };
        async move { shop.ask::<ShopKind>(id, "open", open).await }
    }))
    .await;
    let own = shop.state::<User>("usr_1").await.shop.unwrap();
    for (id, answer) in ["shop_1", "shop_2"].into_iter().zip(answers) {
        match id == own {
            true => assert_eq!(answer, Ok(shop::Reply::Opened)),
            false => assert_eq!(answer, Err(AskError::Rejected(shop::Rejection::OwnerHasShop { shop: own.clone() }))),
        }
        assert_eq!(shop.state::<ShopKind>(id).await.is_open(), id == own);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_presented_twice_ends_its_session_and_a_crash_brings_it_not_back() {
    let mut shop = std::sync::Arc::into_inner(Shop::open().await).unwrap();
    logged_in(&shop, "usr_1", "a").await;
    assert_eq!(refresh(&shop, "usr_1", "first", 1, 2).await, Ok(Reply::Refreshed));
    assert_eq!(refresh(&shop, "usr_1", "first", 1, 2).await, Ok(Reply::Refreshed), "a repeat gets its first answer");
    let reused = Err(AskError::Rejected(Rejection::Reused));
    assert_eq!(refresh(&shop, "usr_1", "thief", 1, 3).await, reused);
    shop.crash().await;
    assert_eq!(refresh(&shop, "usr_1", "thief", 1, 3).await, reused);
    let over = Err(AskError::Rejected(Rejection::NoSuchSession));
    assert_eq!(refresh(&shop, "usr_1", "owner", 2, 4).await, over);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_present_one_secret_at_once_one_is_refused_and_neither_stays() {
    let shop = Shop::open().await;
    logged_in(&shop, "usr_1", "a").await;
    let answers = all_at_once(["one", "other"].map(|who| {
        let shop = shop.clone();
        async move { refresh(&shop, "usr_1", who, 1, 10 + who.len() as u32).await }
    }))
    .await;
    assert!(answers.contains(&Ok(Reply::Refreshed)), "{answers:?}");
    assert!(answers.contains(&Err(AskError::Rejected(Rejection::Reused))), "{answers:?}");
    assert!(shop.state::<User>("usr_1").await.sessions.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_carried_through_a_crash_and_the_address_is_free_again() {
    let mut shop = std::sync::Arc::into_inner(Shop::open().await).unwrap();
    logged_in(&shop, "usr_1", "a").await;
    // The deletion is the last thing that this process writes.
    let mut is_written = false;
    shop.faulty.rule(move |_| if std::mem::replace(&mut is_written, true) { Fault::Stall } else { Fault::None });
    assert_eq!(shop.ask::<User>("usr_1", "delete", user::Command::Delete).await, Ok(Reply::Deleted));
    until("what it leads to is under way", || async { shop.faulty.stalled() > 0 }).await;
    assert!(shop.ledger().await.count("email.released").is_empty());
    shop.crash().await;
    assert_eq!(shop.ask::<User>("usr_1", "delete", user::Command::Delete).await, Ok(Reply::Deleted));
    comes_to_rest(&shop, "usr_1").await;
    assert!(shop.keys.destroyed.lock().unwrap().contains("usr_1"));
    assert_eq!(shop.state::<User>("usr_1").await.phase, Phase::Deleted);
    assert_eq!(refresh(&shop, "usr_1", "late", 1, 2).await, Err(AskError::Rejected(Rejection::Deleted)));
    assert_eq!(sign_up(&shop, "usr_2", "a").await, Ok(Reply::Created));
}
