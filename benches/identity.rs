//! What it costs to know who asks: an access token seen before, a new one, and signing one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use souk::domain::Timestamp;
use souk::http::identity::keys::Keys;
use souk::http::identity::keystore::Folder;
use souk::http::identity::passwords::{Password, Passwords};
use souk::http::identity::seals::Vault;
use souk::http::identity::tokens::{Subject, Tokens};

fn subject() -> Subject {
    Subject {
        user: "usr_01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
        session: "ses_01ARZ3NDEKTSV4RRFFQ69G5FAW".into(),
        roles: vec!["customer".into(), "vendor".into()],
        shop: Some("shop_01ARZ3NDEKTSV4RRFFQ69G5FAX".into()),
    }
}

fn tokens(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let now = Timestamp::from_millis(1_800_000_000_000);
    let tokens = Tokens::new(Arc::new(Keys::open(folder.path(), now).unwrap()), "https://souk.test", "souk");
    let subject = subject();
    let token = tokens.sign(&subject, now).unwrap().token;
    tokens.verify(&token, now).unwrap();
    criterion.bench_function("tokens: verify one seen before", |bench| {
        bench.iter(|| tokens.verify(black_box(&token), now).unwrap());
    });
    criterion.bench_function("tokens: verify one for the first time", |bench| {
        // Each bears an id of its own.
        let new = || tokens.sign(&subject, now).unwrap().token;
        bench.iter_batched(new, |token| tokens.verify(&token, now).unwrap(), BatchSize::SmallInput);
    });
    criterion.bench_function("tokens: sign", |bench| {
        bench.iter(|| tokens.sign(black_box(&subject), now).unwrap());
    });
}

fn passwords(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let passwords = Passwords::start().unwrap();
    let hash = runtime.block_on(passwords.hash("correct horse".into())).unwrap();
    let mut group = criterion.benchmark_group("passwords");
    group.sample_size(20);
    group.bench_function("verify", |bench| {
        bench.iter(|| runtime.block_on(passwords.verify(Password::from("correct horse"), &hash)).unwrap());
    });
    group.finish();
}

fn seals(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::new(Arc::new(Folder::new(folder.path())));
    let text = runtime.block_on(vault.seal("usr_1", b"shopper@souk.test")).unwrap();
    criterion.bench_function("seals: open with a key in memory", |bench| {
        bench.iter(|| vault.open_seal_now("usr_1", black_box(&text)).unwrap().unwrap());
    });
}

criterion_group!(benches, tokens, passwords, seals);
criterion_main!(benches);
