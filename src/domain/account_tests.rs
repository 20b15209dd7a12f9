//! Accounts in a world of their own: people who sign up with the same addresses, change them, open shops and leave, with
//! messages that are lost, repeated, late and out of order, and answers that never arrive.
//!
//! As in `saga_tests.rs`, every choice comes from a list of numbers; when it is used up the world is left in peace until
//! nothing is owed, and then everybody must have what is theirs.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::email::EmailHash;
use super::testing::{Choices, Live, ask, at, boxed, fold_in_disorder};
use super::time::MINUTE_MS;
use super::user::{Phase, Role, Sealed, SealedEmail, Vault, VaultAnswer, VaultRequest};
use super::{CommandId, Debt, Email, Entity, Outside, Recipient, Shop, Timestamp, User};
use super::{email, shop, user};

const ADDRESSES: usize = 3;
/// A message that is older is under way no more.
const LATE_MS: i64 = 10 * MINUTE_MS;

#[derive(Clone)]
enum Request {
    User(user::Command),
    Email(email::Command),
    Shop(shop::Command),
    Vault(VaultRequest),
}

#[derive(Clone)]
struct Message {
    to: String,
    id: CommandId,
    request: Request,
    sent_at: Timestamp,
}

struct World {
    choices: Choices,
    /// Whether receivers remember the first answer to each command, as the runtime does.
    remembers: bool,
    now: Timestamp,
    commands: usize,
    users: BTreeMap<String, Live<User>>,
    emails: BTreeMap<String, Live<Email>>,
    shops: BTreeMap<String, Live<Shop>>,
    /// Whose keys are in the vault.
    keys: BTreeSet<String>,
    late: Vec<Message>,
}

fn address(number: usize) -> SealedEmail {
    SealedEmail { hash: EmailHash(number.to_string().repeat(64)), sealed: Sealed("sealed".to_owned()) }
}

impl World {
    fn new(numbers: Vec<u16>, remembers: bool) -> Self {
        World {
            choices: Choices::new(numbers),
            remembers,
            now: at(0),
            commands: 0,
            users: BTreeMap::new(),
            emails: BTreeMap::new(),
            shops: BTreeMap::new(),
            keys: BTreeSet::new(),
            late: Vec::new(),
        }
    }

    fn next_id(&mut self, who: &str) -> CommandId {
        self.commands += 1;
        CommandId(format!("{who}/{}", self.commands))
    }

    fn tell_user(&mut self, user: &str, command: user::Command) {
        let id = self.next_id("person");
        ask(&mut self.users, user, &id, command, self.now, true);
    }

    // Messages ------------------------------------------------------------------------------------------------------

    fn message<E: Entity>(&self, debt: Debt<E>, owner: &str) -> (Message, super::entity::Hear<E>) {
        let (recipient, id) = (debt.to.clone(), CommandId(format!("{}/{owner}/{}", E::KIND, debt.id)));
        let (request, hear) = debt.into_parts();
        let (to, request) = match recipient {
            Recipient::Entity { kind: User::KIND, id } => (id, Request::User(*request.downcast().unwrap())),
            Recipient::Entity { kind: Email::KIND, id } => (id, Request::Email(*request.downcast().unwrap())),
            Recipient::Entity { kind: Shop::KIND, id } => (id, Request::Shop(*request.downcast().unwrap())),
            Recipient::Outside { name: Vault::NAME } => (String::new(), Request::Vault(*request.downcast().unwrap())),
            recipient => panic!("nobody is {recipient:?}"),
        };
        (Message { to, id, request, sent_at: self.now }, hear)
    }

    fn deliver(&mut self, message: Message) -> Option<Box<dyn Any + Send>> {
        let Message { to, id, request, .. } = message;
        let (now, remembers) = (self.now, self.remembers);
        let answer = match request {
            Request::User(command) => ask(&mut self.users, &to, &id, command, now, remembers).map(boxed),
            Request::Email(command) => ask(&mut self.emails, &to, &id, command, now, remembers).map(boxed),
            Request::Shop(command) => ask(&mut self.shops, &to, &id, command, now, remembers).map(boxed),
            Request::Vault(request) => Some(boxed(self.shred(&request.user))),
        };
        self.check_addresses();
        answer
    }

    fn shred(&mut self, user: &str) -> VaultAnswer {
        if self.choices.one_in(4) {
            return VaultAnswer::Unavailable { reason: "out of order".to_owned() };
        }
        self.keys.remove(user);
        VaultAnswer::Destroyed
    }

    /// Attempts one debt: the message may be lost, repeated now or later, and so may its answer.
    fn attempt<E: Entity>(&mut self, debt: Debt<E>, owner: &str) -> Option<E::Command> {
        let (message, hear) = self.message(debt, owner);
        if self.choices.one_in(6) {
            self.late.push(message.clone());
        }
        if self.choices.one_in(8) {
            return None;
        }
        if self.choices.one_in(8) {
            self.deliver(message.clone());
        }
        let answer = self.deliver(message)?;
        if self.choices.one_in(6) { None } else { hear(answer) }
    }

    /// Hands an answer to its debtor, now and then twice.
    fn hear(&mut self, to: String, request: Request) {
        for _ in 0..1 + usize::from(self.choices.one_in(8)) {
            let id = self.next_id("heard");
            let message = Message { to: to.clone(), id, request: request.clone(), sent_at: self.now };
            self.deliver(message);
        }
    }

    fn owed(&self) -> Vec<(&'static str, String, usize)> {
        let debts = |kind: &'static str, id: &str, count: usize| {
            let id = id.to_owned();
            (0..count).map(move |position| (kind, id.clone(), position))
        };
        let users = self.users.values().flat_map(|user| debts(User::KIND, &user.id, User::owes(&user.state).len()));
        let shops = self.shops.values().flat_map(|shop| debts(Shop::KIND, &shop.id, Shop::owes(&shop.state).len()));
        users.chain(shops).collect()
    }

    fn pay_off(&mut self, (kind, owner, position): (&'static str, String, usize)) {
        let heard = if kind == User::KIND {
            let debt = User::owes(&self.users[&owner].state).remove(position);
            self.attempt(debt, &owner).map(Request::User)
        } else {
            let debt = Shop::owes(&self.shops[&owner].state).remove(position);
            self.attempt(debt, &owner).map(Request::Shop)
        };
        if let Some(heard) = heard {
            self.hear(owner, heard);
        }
    }

    // What happens --------------------------------------------------------------------------------------------------

    fn sign_up(&mut self, address_number: usize) {
        let user = format!("usr_{}", self.users.len());
        self.keys.insert(user.clone());
        let sealed = Sealed("sealed".to_owned());
        let command = user::Command::SignUp { email: address(address_number), profile: sealed.clone(), password_hash: sealed };
        self.tell_user(&user, command);
    }

    fn any_user(&mut self) -> Option<String> {
        let position = self.choices.below(self.users.len());
        self.users.keys().nth(position).cloned()
    }

    /// The door lets only who is logged in open a shop.
    fn open_shop(&mut self, owner: String) {
        if matches!(self.users[&owner].state.phase, Phase::Active | Phase::Deleted) {
            let shop = format!("shop_{}", self.shops.len());
            let content = shop::Content { name: "Lamps".to_owned(), description: String::new() };
            let id = self.next_id("person");
            ask(&mut self.shops, &shop, &id, shop::Command::Open { owner, content }, self.now, true);
        }
    }

    fn live(&mut self) {
        let Some(user) = self.any_user() else { return };
        let number = self.choices.below(ADDRESSES);
        match self.choices.below(8) {
            0..=3 => self.tell_user(&user, user::Command::ChangeEmail { email: address(number) }),
            4 | 5 => self.tell_user(&user, user::Command::Delete),
            6 => self.tell_user(&user, user::Command::ChangeProfile { profile: Sealed("sealed anew".to_owned()) }),
            _ => self.open_shop(user),
        }
    }

    fn step(&mut self) {
        match self.choices.below(16) {
            0..=8 => {
                let mut owed = self.owed();
                if !owed.is_empty() {
                    let position = self.choices.below(owed.len());
                    self.pay_off(owed.swap_remove(position));
                }
            }
            9 if !self.late.is_empty() => {
                let position = self.choices.below(self.late.len());
                let message = self.late.swap_remove(position);
                self.deliver(message);
            }
            10 => {
                self.now = self.now.plus_ms([1, MINUTE_MS, LATE_MS / 2, LATE_MS + 1][self.choices.below(4)]);
                self.late.retain(|message| self.now.since_ms(message.sent_at) <= LATE_MS);
            }
            11 | 12 => {
                let number = self.choices.below(ADDRESSES);
                self.sign_up(number);
            }
            _ => self.live(),
        }
    }

    /// From here on nothing is lost, and all that is owed is paid off.
    fn come_to_rest(&mut self) {
        // The late ones last: whatever they find must have been made safe against them.
        self.pay_all();
        for message in std::mem::take(&mut self.late) {
            self.deliver(message);
        }
        self.pay_all();
    }

    fn pay_all(&mut self) {
        for round in 0..5_000 {
            let mut owed = self.owed();
            if owed.is_empty() {
                return;
            }
            let debt = owed.swap_remove(round % owed.len());
            self.pay_off(debt);
        }
        panic!("never comes to rest: {:?}", self.owed());
    }

    // What must hold ------------------------------------------------------------------------------------------------

    fn active(&self) -> impl Iterator<Item = &Live<User>> {
        self.users.values().filter(|user| user.state.is_active())
    }

    /// At every moment: an address has one account at most, and that is the one that holds it.
    fn check_addresses(&self) {
        let mut seen = BTreeSet::new();
        for user in self.active() {
            let hash = &user.state.email.as_ref().unwrap().hash;
            assert!(seen.insert(hash), "two accounts have {hash}");
            let holder = self.emails[&hash.0].state.holder.as_ref();
            assert_eq!(holder.map(|holder| &holder.user), Some(&user.id), "{hash} is held by another than has it");
        }
    }

    fn check_everybody(&self) {
        self.check_addresses();
        for email in self.emails.values() {
            if let Some(holder) = &email.state.holder {
                let user = &self.users[&holder.user].state;
                let own = user.email.as_ref().map(|own| own.hash.0.as_str());
                assert!(user.is_active() && own == Some(&email.id), "{} is held for ever by nobody: {holder:?}", email.id);
                assert_eq!(user.claim, holder.claim);
            }
            email.assert_replays();
        }
        for user in self.users.values() {
            assert_eq!(user.waiting.len(), 0, "{:?} of {} wait for ever", user.waiting, user.id);
            let state = &user.state;
            let is_gone = matches!(state.phase, Phase::Refused | Phase::Deleted);
            assert!(is_gone || state.is_active(), "{} is {:?}", user.id, state.phase);
            assert!(state.change.is_none() && state.releasing.is_empty() && User::is_at_rest(state) == is_gone);
            assert_eq!(self.keys.contains(&user.id), !is_gone, "the key of {}, which is {:?}", user.id, state.phase);
            assert!(!is_gone || !serde_json::to_string(state).unwrap().contains("sealed"), "{state:?}");
            if let Some(shop) = &state.shop {
                assert!(self.shops[shop].state.is_open() && self.shops[shop].state.owner == user.id, "{} has {shop}", user.id);
                assert!(state.roles().contains(&Role::Vendor));
            }
            user.assert_replays();
        }
        for shop in self.shops.values() {
            assert_eq!(shop.waiting.len(), 0, "{:?} of {} wait for ever", shop.waiting, shop.id);
            assert!(!matches!(shop.state.phase, shop::Phase::Opening { .. }), "{} never opens", shop.id);
            let owned = self.users[&shop.state.owner].state.shop.as_ref() == Some(&shop.id);
            assert_eq!(shop.state.is_open(), owned, "{} is {:?}", shop.id, shop.state.phase);
            shop.assert_replays();
        }
    }
}

fn live_through(numbers: Vec<u16>, remembers: bool) -> World {
    let mut world = World::new(numbers, remembers);
    while !world.choices.is_over() {
        world.step();
    }
    world.come_to_rest();
    world.check_everybody();
    world
}

#[test]
fn the_world_is_eventful_enough_to_prove_something() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..60 {
        let world = live_through((0..800).map(|_| random.u16(..)).collect(), round % 2 == 0);
        let users = world.users.values().flat_map(|user| &user.journal);
        let emails = world.emails.values().flat_map(|email| &email.journal);
        let shops = world.shops.values().flat_map(|shop| &shop.journal);
        for record in users.chain(emails).chain(shops) {
            let record: serde_json::Value = serde_json::from_str(record).unwrap();
            *seen.entry(record["type"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    for event in [
        "user.registration.refused",
        "user.created",
        "user.updated",
        "user.email.change_requested",
        "user.email.change_refused",
        "user.email.released",
        "user.shop.attached",
        "user.shop.closed",
        "user.deleted",
        "user.seal.destroyed",
        "email.claimed",
        "email.released",
        "email.closed",
        "shop.created",
        "shop.opening.refused",
        "shop.closed",
    ] {
        assert!(seen.contains_key(event), "{event} never happens: {seen:#?}");
    }
}

#[test]
fn any_event_can_be_folded_into_any_state() {
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..20 {
        let world = live_through((0..800).map(|_| random.u16(..)).collect(), true);
        fold_in_disorder(&world.users, &mut random);
        fold_in_disorder(&world.emails, &mut random);
        fold_in_disorder(&world.shops, &mut random);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn an_address_has_one_account_at_most_and_is_held_for_ever_by_nobody_else(
        numbers in prop::collection::vec(any::<u16>(), 0..800),
        remembers in any::<bool>(),
    ) {
        let _ = live_through(numbers, remembers);
    }

    #[test]
    fn of_sign_ups_at_the_same_moment_exactly_one_wins(
        numbers in prop::collection::vec(any::<u16>(), 0..100),
        crowd in 2_usize..6,
        remembers in any::<bool>(),
    ) {
        let mut world = World::new(numbers, remembers);
        (0..crowd).for_each(|_| world.sign_up(0));
        while !world.choices.is_over() {
            let mut owed = world.owed();
            let position = world.choices.below(owed.len());
            if !owed.is_empty() {
                world.pay_off(owed.swap_remove(position));
            }
        }
        world.come_to_rest();
        world.check_everybody();
        prop_assert_eq!(world.active().count(), 1);
        let won: Vec<_> = world.users.values().flat_map(|user| &user.answers).filter(|(_, answer)| answer.is_ok()).collect();
        prop_assert_eq!(won.iter().filter(|(_, answer)| *answer == Ok(user::Reply::Created)).count(), 1);
    }
}
