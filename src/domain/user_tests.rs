use super::*;
use crate::domain::testing::{Given, Then, at, command_id, given};

const MINUTE: i64 = MINUTE_MS;

fn sealed(text: &str) -> Sealed {
    Sealed(format!("sealed {text}"))
}

fn address(letter: char) -> SealedEmail {
    SealedEmail { hash: EmailHash(letter.to_string().repeat(64)), sealed: sealed(&letter.to_string()) }
}

fn sha256(number: usize) -> String {
    format!("{number:064x}")
}

fn session_id(number: usize) -> String {
    format!("ses_{number:026}")
}

fn key_id(number: usize) -> String {
    format!("key_{number:026}")
}

fn sign_up() -> Command {
    Command::SignUp { email: address('a'), profile: sealed("Ada"), password_hash: sealed("$argon2id$1") }
}

fn requested() -> Event {
    Event::RegistrationRequested {
        id: "me".to_owned(),
        command: command_id("c"),
        email: address('a'),
        profile: sealed("Ada"),
        password_hash: sealed("$argon2id$1"),
    }
}

fn heard(claim: u64, granted: bool) -> Command {
    Command::HeardClaim { claim, granted }
}

fn open(number: usize) -> Command {
    Command::OpenSession {
        session: session_id(number),
        secret_sha256: sha256(number),
        device: sealed("browser"),
        password_version: 1,
    }
}

fn refresh(number: usize, presented: usize, next: usize) -> Command {
    Command::Refresh { session: session_id(number), presented_sha256: sha256(presented), next_sha256: sha256(next) }
}

fn change_email(letter: char) -> Command {
    Command::ChangeEmail { email: address(letter) }
}

fn change_password(password_version: u64, keep: Option<usize>) -> Command {
    Command::ChangePassword { password_hash: sealed("$argon2id$2"), password_version, keep: keep.map(session_id) }
}

fn create_key(number: usize) -> Command {
    Command::CreateApiKey {
        key: key_id(number),
        secret_sha256: sha256(number),
        scopes: BTreeSet::from(["products:write".to_owned()]),
        label: sealed("till"),
    }
}

fn attach(shop: &str) -> Command {
    Command::AttachShop { shop: shop.to_owned() }
}

fn ended(number: usize, because: Ending) -> Event {
    Event::SessionEnded { session: session_id(number), because }
}

fn absent() -> Given<User> {
    given([])
}

fn registering() -> Given<User> {
    given([requested()])
}

fn account() -> Given<User> {
    given([requested(), Event::Created { created_at: at(0) }])
}

fn deleted() -> Given<User> {
    account().after([Command::Delete])
}

/// Everything that only a living account takes.
fn commands() -> Vec<Command> {
    vec![
        Command::ChangeProfile { profile: sealed("Bea") },
        change_email('b'),
        change_password(1, None),
        Command::GrantRole { role: Role::Admin },
        Command::RevokeRole { role: Role::Admin },
        attach("shop_1"),
        open(1),
        refresh(1, 1, 2),
        Command::EndSession { session: session_id(1) },
        Command::EndAllSessions { keep: None },
        create_key(1),
        Command::RevokeApiKey { key: key_id(1) },
    ]
}

#[track_caller]
fn is_invalid(then: Then<User>, expected: &str) {
    match then.result {
        Err(Rejection::Invalid { field, .. }) => assert_eq!(field, expected),
        other => panic!("{expected}: {other:?}"),
    }
}

// Signing up --------------------------------------------------------------------------------------------------------

#[test]
fn a_sign_up_is_answered_when_the_address_has_spoken() {
    let registering = absent().when(sign_up()).then_later(vec![requested()]).owing(&["claim/1"]).and();
    let created = registering.at(5).when(heard(1, true)).then(vec![Event::Created { created_at: at(5) }], Reply::Noted);
    let created = created.settles(vec![(command_id("c"), Ok(Reply::Created))]).owing(&[]).and();
    assert_eq!(created.state.roles(), BTreeSet::from([Role::Customer]));
    created.when(heard(1, true)).then_nothing_but(Reply::Noted);
    created.when(heard(1, false)).then_nothing_but(Reply::Noted);
    created.by("d").when(sign_up()).then_refused(Rejection::Exists);
}

#[test]
fn a_sign_up_with_an_address_that_is_taken_leaves_nothing_that_can_be_read() {
    let refused = registering().when(heard(1, false)).then(vec![Event::RegistrationRefused], Reply::Noted);
    let refused = refused.settles(vec![(command_id("c"), Err(Rejection::EmailTaken))]).owing(&["release/1", "destroy-key"]).and();
    let text = serde_json::to_string(&refused.state).unwrap();
    assert!(!text.contains("sealed "), "{text}");
    refused.when(sign_up()).then_refused(Rejection::Exists);
    let gone = refused.when(Command::HeardDestroyed).then(vec![Event::SealDestroyed], Reply::Noted).owing(&["release/1"]).and();
    assert!(User::is_at_rest(&gone.after([Command::HeardReleased { claim: 1 }]).state));
}

#[test]
fn nobody_can_use_an_account_that_is_not_there_yet_or_never_will_be() {
    let places = [absent(), registering(), given([requested(), Event::RegistrationRefused])];
    for place in places {
        assert_eq!(place.state.roles(), BTreeSet::new());
        for command in commands().into_iter().chain([Command::Delete]) {
            place.when(command).then_refused(Rejection::Unknown);
        }
    }
}

#[test]
fn what_is_not_sealed_or_hashed_is_refused() {
    let with = |email: SealedEmail, profile: Sealed, password_hash: Sealed| Command::SignUp { email, profile, password_hash };
    let plain = SealedEmail { hash: EmailHash("ada@example.com".to_owned()), sealed: sealed("a") };
    let long = || Sealed("x".repeat(SEALED_BYTES_MAX + 1));
    is_invalid(absent().when(with(plain.clone(), sealed("p"), sealed("h"))), "email");
    is_invalid(absent().when(with(address('a'), Sealed::default(), sealed("h"))), "profile");
    is_invalid(absent().when(with(address('a'), sealed("p"), long())), "password_hash");
    is_invalid(account().when(Command::ChangeEmail { email: plain }), "email");
    is_invalid(account().when(Command::ChangeProfile { profile: long() }), "profile");
    let password = Command::ChangePassword { password_hash: long(), password_version: 1, keep: None };
    is_invalid(account().when(password), "password_hash");
    let session = |session: &str, secret_sha256: &str, device: Sealed| Command::OpenSession {
        session: session.to_owned(),
        secret_sha256: secret_sha256.to_owned(),
        device,
        password_version: 1,
    };
    is_invalid(account().when(session("x", &sha256(1), sealed("d"))), "session");
    is_invalid(account().when(session(&session_id(1), "secret", sealed("d"))), "secret_sha256");
    is_invalid(account().when(session(&session_id(1), &sha256(1), long())), "device");
}

// Profile and e-mail ------------------------------------------------------------------------------------------------

#[test]
fn a_new_profile_leaves_the_address_as_it_is_also_while_that_is_changing() {
    let change = Command::ChangeProfile { profile: sealed("Bea") };
    let updated = || Event::Updated { email: address('a'), claim: 1, profile: sealed("Bea") };
    account().when(change.clone()).then(vec![updated()], Reply::Updated).owing(&[]);
    let changing = account().after([change_email('b')]);
    let changing = changing.when(change).then(vec![updated()], Reply::Updated).owing(&["claim/2"]).and();
    let changed = Event::Updated { email: address('b'), claim: 2, profile: sealed("Bea") };
    changing.when(heard(2, true)).then(vec![changed], Reply::Noted).owing(&["release/1"]);
}

#[test]
fn a_new_address_is_claimed_before_the_old_one_is_released() {
    let requested = Event::EmailChangeRequested { command: command_id("c"), email: address('b'), claim: 2 };
    let changing = account().when(change_email('b')).then_later(vec![requested]).owing(&["claim/2"]).and();
    changing.when(change_email('e')).then_refused(Rejection::Busy);
    changing.when(heard(1, true)).then_nothing_but(Reply::Noted);
    let updated = Event::Updated { email: address('b'), claim: 2, profile: sealed("Ada") };
    let changed = changing.when(heard(2, true)).then(vec![updated], Reply::Noted).owing(&["release/1"]);
    let changed = changed.settles(vec![(command_id("c"), Ok(Reply::Updated))]).and();
    changed.when(Command::HeardReleased { claim: 2 }).then_nothing_but(Reply::Noted);
    let released = Event::EmailReleased { claim: 1 };
    let settled = changed.when(Command::HeardReleased { claim: 1 }).then(vec![released], Reply::Noted).owing(&[]).and();
    let back = Event::EmailChangeRequested { command: command_id("c"), email: address('a'), claim: 3 };
    settled.when(change_email('a')).then_later(vec![back]).owing(&["claim/3"]);
}

#[test]
fn a_new_address_that_is_taken_changes_nothing() {
    let changing = account().after([change_email('b')]);
    let refused = changing.when(heard(2, false)).then(vec![Event::EmailChangeRefused { claim: 2 }], Reply::Noted);
    let refused = refused.settles(vec![(command_id("c"), Err(Rejection::EmailTaken))]).owing(&["release/2"]).and();
    assert_eq!(refused.state.email, Some(address('a')));
    refused.when(heard(2, true)).then_nothing_but(Reply::Noted);
    let again = Event::EmailChangeRequested { command: command_id("c"), email: address('b'), claim: 3 };
    refused.when(change_email('b')).then_later(vec![again]).owing(&["claim/3", "release/2"]);
}

#[test]
fn addresses_that_do_not_hear_of_it_are_not_given_up_without_end() {
    let mut account = account();
    for (claim, letter) in (2..).zip("bcdefab".chars()).take(RELEASING_MAX) {
        account = account.after([change_email(letter), heard(claim, claim % 2 == 0)]);
    }
    account.when(change_email('b')).then_refused(Rejection::Busy);
    account.after([Command::HeardReleased { claim: 3 }]).when(change_email('b')).decision();
}

#[test]
fn an_address_that_only_is_written_differently_is_changed_at_once() {
    let email = SealedEmail { sealed: sealed("A"), ..address('a') };
    let updated = Event::Updated { email: email.clone(), claim: 1, profile: sealed("Ada") };
    account().when(Command::ChangeEmail { email }).then(vec![updated], Reply::Updated).owing(&[]);
}

// Password and roles ------------------------------------------------------------------------------------------------

#[test]
fn a_new_password_ends_every_session_but_the_one_that_set_it() {
    let two = account().after([open(1), open(2)]);
    let changed = |kept| Event::PasswordChanged { password_hash: sealed("$argon2id$2"), kept };
    let kept = Some(session_id(2));
    let one = two.when(change_password(1, Some(2))).then(vec![changed(kept)], Reply::PasswordChanged).and();
    assert_eq!(one.state.sessions.keys().collect::<Vec<_>>(), [&session_id(2)]);
    let none = two.when(change_password(1, Some(9))).then(vec![changed(None)], Reply::PasswordChanged).and();
    assert_eq!(none.state.sessions.len(), 0);
}

#[test]
fn a_password_that_was_verified_before_it_changed_opens_nothing() {
    let changed = account().after([change_password(1, None)]);
    changed.when(open(1)).then_refused(Rejection::PasswordChanged);
    changed.when(change_password(1, None)).then_refused(Rejection::PasswordChanged);
    changed.when(change_password(2, None)).decision();
}

#[test]
fn an_admin_is_made_and_unmade_and_loses_its_sessions() {
    let role = Role::Admin;
    let admin = account().after([open(1)]);
    let admin = admin.when(Command::GrantRole { role }).then(vec![Event::RoleGranted { role }], Reply::RoleGranted).and();
    assert_eq!(admin.state.roles(), BTreeSet::from([Role::Customer, Role::Admin]));
    admin.when(Command::GrantRole { role }).then_nothing_but(Reply::RoleGranted);
    let plain = admin.when(Command::RevokeRole { role }).then(vec![Event::RoleRevoked { role }], Reply::RoleRevoked).and();
    assert_eq!(plain.state.roles(), BTreeSet::from([Role::Customer]));
    assert_eq!(plain.state.sessions.len(), 0);
    plain.when(Command::RevokeRole { role }).then_nothing_but(Reply::RoleRevoked);
    for role in [Role::Customer, Role::Vendor] {
        plain.when(Command::GrantRole { role }).then_refused(Rejection::NotGrantable { role });
        plain.when(Command::RevokeRole { role }).then_refused(Rejection::NotGrantable { role });
    }
}

#[test]
fn an_account_is_a_vendor_by_its_one_shop() {
    let shop = "shop_1".to_owned();
    let vendor = account().when(attach("shop_1")).then(vec![Event::ShopAttached { shop: shop.clone() }], Reply::ShopAttached);
    let vendor = vendor.and();
    assert_eq!(vendor.state.roles(), BTreeSet::from([Role::Customer, Role::Vendor]));
    vendor.when(attach("shop_1")).then_nothing_but(Reply::ShopAttached);
    vendor.when(attach("shop_2")).then_refused(Rejection::HasShop { shop });
}

// Sessions ----------------------------------------------------------------------------------------------------------

#[test]
fn a_session_is_opened_once_under_its_id() {
    let opened =
        Event::SessionOpened { session: session_id(1), secret_sha256: sha256(1), device: sealed("browser"), opened_at: at(0) };
    let one = account().when(open(1)).then(vec![opened], Reply::SessionOpened).and();
    one.when(open(1)).then_nothing_but(Reply::SessionOpened);
    one.after([refresh(1, 1, 2)]).when(open(1)).then_refused(Rejection::IdTaken);
}

#[test]
fn a_refresh_swaps_the_secret_and_prolongs_the_session() {
    let one = account().after([open(1)]).at(SESSION_UNUSED_MS - 1);
    let refreshed =
        Event::SessionRefreshed { session: session_id(1), secret_sha256: sha256(2), used_at: at(SESSION_UNUSED_MS - 1) };
    let one = one.when(refresh(1, 1, 2)).then(vec![refreshed], Reply::Refreshed).and().at(SESSION_UNUSED_MS);
    one.when(refresh(1, 2, 3)).decision();
    one.when(refresh(7, 2, 3)).then_refused(Rejection::NoSuchSession);
    is_invalid(one.when(refresh(1, 2, 2)), "next_sha256");
    let plain = Command::Refresh { session: session_id(1), presented_sha256: sha256(2), next_sha256: "secret".to_owned() };
    is_invalid(one.when(plain), "next_sha256");
}

#[test]
fn a_secret_that_was_spent_ends_its_session_however_long_ago_and_no_other() {
    let mut account = account().after([open(1), open(2)]);
    for number in 0..100 {
        let presented = if number == 0 { 1 } else { 100 + number };
        account = account.after([refresh(1, presented, 101 + number)]);
    }
    for spent in [1, 101, 199] {
        let over = account.when(refresh(1, spent, 500)).then_later(vec![ended(1, Ending::Reused)]);
        let over = over.settles(vec![(command_id("c"), Err(Rejection::Reused))]).and();
        over.when(refresh(1, 200, 501)).then_refused(Rejection::NoSuchSession);
        over.when(refresh(2, 2, 501)).decision();
    }
    account.when(refresh(1, 200, 501)).decision();
}

#[test]
fn a_session_unused_for_its_time_is_over_and_swept_when_the_next_one_opens() {
    let late = account().after([open(1)]).at(1).after([open(2)]).at(SESSION_UNUSED_MS);
    late.when(refresh(1, 1, 3)).then_refused(Rejection::NoSuchSession);
    assert!(late.state.session(&session_id(1), at(SESSION_UNUSED_MS)).is_none());
    let left: Vec<_> = late.state.sessions_at(at(SESSION_UNUSED_MS)).map(|(id, _)| id.clone()).collect();
    assert_eq!(left, [session_id(2)]);
    let opened = late.when(open(3));
    assert_eq!(opened.decision().events.first(), Some(&ended(1, Ending::Expired)));
    assert_eq!(opened.state.sessions.keys().cloned().collect::<Vec<_>>(), [session_id(2), session_id(3)]);
}

#[test]
fn the_session_unused_for_longest_gives_way_to_one_too_many() {
    let mut full = account();
    for number in 0..SESSIONS_MAX {
        full = full.at(number as i64 * MINUTE).after([open(number)]);
    }
    let full = full.at(60 * MINUTE).after([refresh(0, 0, 777)]);
    let opened = full.when(open(99));
    assert_eq!(opened.decision().events.first(), Some(&ended(1, Ending::Displaced)));
    assert_eq!(opened.state.sessions.len(), SESSIONS_MAX);
    assert!(opened.state.sessions.contains_key(&session_id(0)) && opened.state.sessions.contains_key(&session_id(99)));
}

#[test]
fn a_session_is_ended_alone_or_with_all_the_others() {
    let two = account().after([open(1), open(2)]);
    let end = Command::EndSession { session: session_id(1) };
    let one = two.when(end.clone()).then(vec![ended(1, Ending::LoggedOut)], Reply::SessionsEnded).and();
    one.when(end).then_nothing_but(Reply::SessionsEnded);
    let keep = Some(session_id(2));
    one.when(Command::EndAllSessions { keep: keep.clone() }).then_nothing_but(Reply::SessionsEnded);
    let others = two.when(Command::EndAllSessions { keep: keep.clone() });
    let one = others.then(vec![Event::SessionsEnded { kept: keep }], Reply::SessionsEnded).and();
    assert_eq!(one.state.sessions.keys().collect::<Vec<_>>(), [&session_id(2)]);
    let all = two.when(Command::EndAllSessions { keep: Some(session_id(9)) });
    let none = all.then(vec![Event::SessionsEnded { kept: None }], Reply::SessionsEnded).and();
    none.when(Command::EndAllSessions { keep: None }).then_nothing_but(Reply::SessionsEnded);
}

// Keys --------------------------------------------------------------------------------------------------------------

#[test]
fn a_key_is_created_and_revoked() {
    let created = Event::ApiKeyCreated {
        key: key_id(1),
        secret_sha256: sha256(1),
        scopes: BTreeSet::from(["products:write".to_owned()]),
        label: sealed("till"),
        created_at: at(0),
    };
    let one = account().when(create_key(1)).then(vec![created], Reply::ApiKeyCreated).and();
    one.when(create_key(1)).then_nothing_but(Reply::ApiKeyCreated);
    let Command::CreateApiKey { key, scopes, label, .. } = create_key(1) else { panic!("a key is created") };
    let another = Command::CreateApiKey { key, secret_sha256: sha256(2), scopes, label };
    one.when(another).then_refused(Rejection::IdTaken);
    let revoke = Command::RevokeApiKey { key: key_id(1) };
    let none = one.when(revoke.clone()).then(vec![Event::ApiKeyRevoked { key: key_id(1) }], Reply::ApiKeyRevoked).and();
    assert_eq!(none.state.api_keys.len(), 0);
    none.when(revoke).then_nothing_but(Reply::ApiKeyRevoked);
}

#[test]
fn an_account_has_so_many_keys_and_no_more() {
    let full = account().after((0..API_KEYS_MAX).map(create_key));
    full.when(create_key(99)).then_refused(Rejection::TooManyApiKeys);
    full.after([Command::RevokeApiKey { key: key_id(0) }]).when(create_key(99)).decision();
}

#[test]
fn a_keys_scopes_are_names_and_not_many() {
    let too_many: Vec<String> = (0..=SCOPES_MAX).map(|number| format!("s{number}")).collect();
    let cases: [&[String]; 5] =
        [&[], &too_many, &["x".repeat(SCOPE_BYTES_MAX + 1)], &["Products Write".to_owned()], &[String::new()]];
    for scopes in cases {
        let Command::CreateApiKey { key, secret_sha256, label, .. } = create_key(1) else { panic!("a key is created") };
        let scopes = scopes.iter().cloned().collect();
        is_invalid(account().when(Command::CreateApiKey { key, secret_sha256, scopes, label }), "scopes");
    }
}

// Deletion ----------------------------------------------------------------------------------------------------------

#[test]
fn a_deleted_account_holds_nothing_personal_and_takes_no_command() {
    let full = account().after([open(1), create_key(1), Command::GrantRole { role: Role::Admin }]);
    let gone = full.when(Command::Delete).then(vec![Event::Deleted], Reply::Deleted).owing(&["release/1", "destroy-key"]).and();
    let gone = gone.after([Command::HeardReleased { claim: 1 }, Command::HeardDestroyed]);
    let left = State { id: "me".to_owned(), phase: Phase::Deleted, claim: 1, claims: 1, ..State::default() };
    assert_eq!(gone.state, left);
    assert!(User::is_at_rest(&gone.state) && gone.state.roles().is_empty());
    for command in commands().into_iter().chain([sign_up()]) {
        gone.when(command).then_refused(Rejection::Deleted);
    }
}

#[test]
fn a_deletion_asked_for_again_is_answered_the_same() {
    deleted().by("d").when(Command::Delete).then_nothing_but(Reply::Deleted).owing(&["release/1", "destroy-key"]);
    let heard = Command::HeardReleased { claim: 1 };
    let released = deleted().when(heard.clone()).then(vec![Event::EmailReleased { claim: 1 }], Reply::Noted).and();
    released.when(heard).then_nothing_but(Reply::Noted);
    let destroyed = released.when(Command::HeardDestroyed).then(vec![Event::SealDestroyed], Reply::Noted).owing(&[]).and();
    destroyed.when(Command::HeardDestroyed).then_nothing_but(Reply::Noted);
    destroyed.when(Command::Delete).then_nothing_but(Reply::Deleted).owing(&[]);
}

#[test]
fn a_deletion_during_a_change_of_address_gives_up_both() {
    let changing = account().by("e").after([change_email('b')]).by("c");
    let gone = changing.when(Command::Delete).then(vec![Event::Deleted], Reply::Deleted);
    let gone = gone.settles(vec![(command_id("e"), Err(Rejection::Deleted))]);
    let gone = gone.owing(&["release/1", "release/2", "destroy-key"]).and();
    gone.when(heard(2, true)).then_nothing_but(Reply::Noted);
    gone.when(heard(2, false)).then_nothing_but(Reply::Noted);
}

#[test]
fn a_vendor_that_is_deleted_closes_its_shop() {
    let gone = account().after([attach("shop_1")]).when(Command::Delete).then(vec![Event::Deleted], Reply::Deleted);
    let gone = gone.owing(&["release/1", "close-shop", "destroy-key"]).and();
    gone.when(attach("shop_1")).then_refused(Rejection::Deleted);
    let closed = gone.when(Command::HeardShopClosed).then(vec![Event::ShopClosed], Reply::Noted).and();
    closed.when(Command::HeardShopClosed).then_nothing_but(Reply::Noted).owing(&["release/1", "destroy-key"]);
    account().after([attach("shop_1")]).when(Command::HeardShopClosed).then_nothing_but(Reply::Noted);
}
