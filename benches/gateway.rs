//! What stands before and after every handler: budgets, the client's address, compression.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::hint::black_box;
use std::net::IpAddr;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt;
use serde_json::{Value, json};
use souk::http::answer::Answer;
use souk::http::client_address::{Peer, Proxies};
use souk::http::compression::Wanted;
use souk::http::limits::{Budget, Limits, Quotas, Who};
use warp::http::header::{HeaderMap, HeaderValue};
use warp::http::{StatusCode, header};

fn address(number: u32) -> Who {
    Who::Address(IpAddr::from(number.to_be_bytes()))
}

fn limits(criterion: &mut Criterion) {
    let limits = Limits::new(Quotas::default());
    criterion.bench_function("limits: one address again and again", |bench| {
        let who = address(1);
        bench.iter(|| black_box(limits.spend(Budget::Reads, &who)));
    });
    let mut number = 0_u32;
    criterion.bench_function("limits: another address each time", |bench| {
        bench.iter(|| {
            number = number.wrapping_add(1);
            black_box(limits.spend(Budget::Reads, &address(number)))
        });
    });
}

fn client(criterion: &mut Criterion) {
    let proxies = Proxies { trusted: vec!["10.0.0.0/8".parse().unwrap()], ..Proxies::default() };
    let peer = Peer { address: "10.0.0.1".parse().unwrap(), secure: false };
    let mut headers = HeaderMap::new();
    headers.insert("x-forwarded-for", HeaderValue::from_static("203.0.113.7, 198.51.100.1, 10.0.0.2"));
    criterion.bench_function("client address: behind two proxies", |bench| {
        bench.iter(|| black_box(proxies.client(peer, &headers)));
    });
}

/// A page of a list of products, about as large as the demo's.
fn page() -> Vec<u8> {
    let product = |number: u32| {
        let variant = |size: &str| {
            json!({ "sku": format!("THING-{number}-{size}"), "price": { "amount": 900 + 37 * number, "currency": "EUR" },
                "options": [size], "available": number * 7 % 50 })
        };
        json!({ "id": format!("prod_{:026}", number * 7_919), "shop_id": "shop_souk", "handle": format!("thing-{number}"),
            "title": format!("Thing number {number}"), "description": "Hand made of brass and coloured glass, with a candle holder.",
            "vendor": "Souk", "type": "Lamp", "tags": ["brass", "glass"], "options": ["Size"],
            "variants": [variant("S"), variant("M"), variant("L")], "published": true, "version": 3 })
    };
    let items: Vec<Value> = (0..20).map(product).collect();
    serde_json::to_vec(&json!({ "items": items, "next_cursor": null })).unwrap()
}

fn compression(criterion: &mut Criterion) {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate, br"));
    let page = page();
    let mut group = criterion.benchmark_group("compression");
    group.throughput(Throughput::Bytes(page.len() as u64));
    group.bench_function(format!("a page of {} bytes", page.len()), |bench| {
        bench.iter(|| {
            let answer = Answer::bytes(StatusCode::OK, "application/json", page.clone());
            // Small enough to be compressed on the spot.
            black_box(Wanted::of(&headers).apply(answer).now_or_never().unwrap())
        });
    });
}

criterion_group!(benches, limits, client, compression);
criterion_main!(benches);
