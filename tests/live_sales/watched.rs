//! What watchers of one node see.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use souk::actors::board::{Boards, SHOW_EVERY, Threads, admit};
use souk::actors::live::Live;
use souk::domain::flash_sale::{Command, Reply};
use tokio::time::{Instant, timeout};

use crate::shop::{Events, MINUTE_MS, PATIENCE, Shop, Socket, ask, claim, customer, guest, own, picture, sale, until};

#[tokio::test(flavor = "multi_thread")]
async fn however_fast_claims_come_a_watcher_sees_ten_states_a_second_at_most_and_the_last_is_what_the_server_shows() {
    const POURING: Duration = Duration::from_secs(3);
    let shop = Shop::open().await;
    let sale = sale(&shop.runtime, 1_000_000, |_| {}).await;
    let (mut socket, from) = Socket::watch(shop.address, &sale, 0, None).await;
    let begun = Instant::now();
    let pour = |line: u32| {
        let (runtime, sale) = (shop.runtime.clone(), sale.clone());
        async move {
            let mut claims = 0_u64;
            while begun.elapsed() < POURING {
                let claimed = claim(&runtime, &sale, &format!("{line}-{claims}")).await;
                assert!(matches!(claimed, Reply::Claimed { .. }), "{claimed:?}");
                claims += 1;
            }
            claims
        }
    };
    let pours = async {
        let claims = join_all((0..32).map(pour)).await;
        ask(&shop.runtime, &sale, Command::Pause).await;
        claims
    };
    let watches = async {
        let mut seen: Vec<(Duration, Value)> = Vec::new();
        while seen.last().is_none_or(|(_, last)| last["state"]["status"] != "paused") {
            let heard = socket.hear().await;
            assert_eq!(heard["type"], "state");
            assert!(seen.last().is_none_or(|(_, last)| last["seq"].as_u64() < heard["seq"].as_u64()), "{heard}");
            seen.push((begun.elapsed(), heard));
        }
        seen
    };
    let (claims, seen) = tokio::join!(pours, watches);
    let claims: u64 = claims.into_iter().sum();
    let (at, last) = seen.last().unwrap();
    assert!(claims > 10 * seen.len() as u64, "{claims} claims are too few for {} states to be a selection", seen.len());
    assert_eq!((last["seq"].as_u64(), last["state"].clone()), {
        let (seq, state) = picture(&shop.runtime, &sale).await;
        (Some(seq), state)
    });
    let shown = seen.len() as u128;
    assert!(shown <= at.as_millis() / SHOW_EVERY.as_millis() + 2, "{shown} states within {at:?}");
    assert_eq!(last["state"]["held"], claims);
    assert!(last["seq"].as_u64().unwrap() > from);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_from_the_present_on_is_shown_what_is_new_and_one_from_earlier_what_there_is() {
    let shop = Shop::open().await;
    let sale = sale(&shop.runtime, 5, |_| {}).await;
    let (mut earlier, seq) = Socket::watch(shop.address, &sale, 1, None).await;
    let (now, shown) = picture(&shop.runtime, &sale).await;
    assert_eq!(seq, now);
    assert_eq!(
        earlier.hear().await,
        json!({ "type": "state", "topic": format!("flash_sale:{sale}"), "seq": now, "state": shown })
    );
    let (mut present, _) = Socket::watch(shop.address, &sale, None, None).await;
    claim(&shop.runtime, &sale, "ada").await;
    ask(&shop.runtime, &sale, Command::Pause).await;
    let (_, shown) = picture(&shop.runtime, &sale).await;
    for socket in [&mut earlier, &mut present] {
        let heard = socket.hear_until("state", |heard| heard["state"]["status"] == "paused").await;
        assert_eq!(heard["state"], shown);
        assert_eq!((&heard["state"]["available"], &heard["state"]["held"]), (&json!(4), &json!(1)));
    }
    present.say(json!({ "type": "subscribe", "topic": format!("flash_sale:{sale}"), "after": 1_000 })).await;
    assert_eq!(present.hear().await["code"], "already-subscribed");
    present.say(json!({ "type": "unsubscribe", "topic": format!("flash_sale:{sale}") })).await;
    assert_eq!(present.hear().await["type"], "unsubscribed");
    for (topic, after, code) in [
        (format!("flash_sale:{sale}"), 1_000, "invalid-after"),
        ("flash_sale:fs_01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(), 0, "not-found"),
        ("flash_sale:x".to_owned(), 0, "unknown-topic"),
    ] {
        present.say(json!({ "type": "subscribe", "topic": topic, "after": after })).await;
        assert_eq!(present.hear().await["code"], code, "{topic}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_is_watched_by_nobody_who_does_not_own_it() {
    let shop = Shop::open().await;
    let (id, mut terms) = ("fs_01ARZ3NDEKTSV4RRFFQ69G5FAV", crate::shop::terms("SKU", 1, shop.runtime.now()));
    terms.shop = Some("shop_01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned());
    ask(&shop.runtime, id, Command::Create { terms: Box::new(terms) }).await;
    let mut socket = Socket::open(shop.address).await;
    socket.say(json!({ "type": "subscribe", "topic": format!("flash_sale:{id}"), "after": 0 })).await;
    assert_eq!(socket.hear().await["code"], "not-found");
    let (status, _) = Events::open(shop.address, &format!("/api/flash-sales/{id}/events"), None, None).await;
    assert_eq!(status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sale_that_starts_and_ends_by_itself_is_seen_to() {
    let shop = Shop::open().await;
    let now = shop.runtime.now();
    let sale = sale(&shop.runtime, 5, |terms| {
        terms.starts_at = now.plus_ms(10 * MINUTE_MS);
        terms.ends_at = now.plus_ms(20 * MINUTE_MS);
    })
    .await;
    let (mut socket, _) = Socket::watch(shop.address, &sale, 0, None).await;
    let first = socket.hear().await;
    assert_eq!((&first["state"]["status"], &first["state"]["starts_soon"]), (&json!("scheduled"), &json!(false)));
    shop.runtime.clock().advance(minutes(6));
    socket.hear_until("state", |heard| heard["state"]["starts_soon"] == true && heard["state"]["status"] == "scheduled").await;
    shop.runtime.clock().advance(minutes(5));
    socket.hear_until("state", |heard| heard["state"]["status"] == "active").await;
    shop.runtime.clock().advance(minutes(10));
    socket.hear_until("state", |heard| heard["state"]["status"] == "ended").await;
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

fn waiting(place: u32) -> impl Fn(&Value) -> bool {
    move |heard| heard["state"] == "waiting" && heard["place"] == place
}

#[tokio::test(flavor = "multi_thread")]
async fn places_in_line_move_up_and_whose_turn_has_come_hears_of_the_claim_and_the_others_that_it_is_over() {
    let shop = Shop::open().await;
    let sale = sale(&shop.runtime, 1, |_| {}).await;
    claim(&shop.runtime, &sale, "ada").await;
    // One who waits already when they come to watch, and three who first watch.
    claim(&shop.runtime, &sale, "bob").await;
    let mut sockets = BTreeMap::new();
    for token in ["bob", "cleo", "dan", "eve"] {
        sockets.insert(token, Socket::watch(shop.address, &sale, None, Some(token)).await.0);
    }
    let first = sockets.get_mut("bob").unwrap().hear_until("ticket", waiting(1)).await;
    let unknown = json!({ "type": "ticket", "topic": format!("flash_sale:{sale}"), "state": "waiting", "place": 1, "estimated_wait_seconds": null });
    assert_eq!(first, unknown);
    for token in ["cleo", "dan", "eve"] {
        claim(&shop.runtime, &sale, token).await;
    }
    for (token, place) in [("cleo", 2), ("dan", 3), ("eve", 4)] {
        sockets.get_mut(token).unwrap().hear_until("ticket", waiting(place)).await;
    }
    ask(&shop.runtime, &sale, Command::GiveUp { customer: customer("ada"), claim: 0 }).await;
    let admitted = sockets.get_mut("bob").unwrap().hear_until("ticket", |heard| heard["state"] == "admitted").await;
    let ulid = sale.strip_prefix("fs_").unwrap();
    assert_eq!((&admitted["claim_id"], &admitted["quantity"]), (&json!(format!("claim_{ulid}_1")), &json!(1)));
    assert_eq!(admitted["admitted_until"], json!(own(&shop.runtime, &sale, "bob").await.claims[0].until));
    for (token, place) in [("cleo", 1), ("dan", 2), ("eve", 3)] {
        sockets.get_mut(token).unwrap().hear_until("ticket", waiting(place)).await;
    }
    // Somebody leaves; those behind move up, and that it was left is told to whoever else watches as the same customer.
    ask(&shop.runtime, &sale, Command::Leave { customer: customer("dan") }).await;
    sockets.get_mut("dan").unwrap().hear_until("ticket", |heard| heard["state"] == "left").await;
    sockets.get_mut("eve").unwrap().hear_until("ticket", waiting(2)).await;
    // Whoever takes up what is offered before the board has asked is in line no more, and has it.
    ask(&shop.runtime, &sale, Command::GiveUp { customer: customer("bob"), claim: 1 }).await;
    claim(&shop.runtime, &sale, "cleo").await;
    let cleo = sockets.get_mut("cleo").unwrap();
    cleo.hear_until("ticket", |heard| heard["state"] == "admitted" || heard["state"] == "claimed").await;
    // On another connection the same is told at once.
    ask(&shop.runtime, &sale, Command::GiveUp { customer: customer("cleo"), claim: 2 }).await;
    sockets.get_mut("eve").unwrap().hear_until("ticket", |heard| heard["state"] == "admitted").await;
    let (mut again, _) = Socket::watch(shop.address, &sale, None, Some("eve")).await;
    again.hear_until("ticket", |heard| heard["state"] == "admitted").await;
    claim(&shop.runtime, &sale, "finn").await;
    let (mut finn, _) = Socket::watch(shop.address, &sale, None, Some("finn")).await;
    finn.hear_until("ticket", waiting(1)).await;
    ask(&shop.runtime, &sale, Command::Cancel { reason: "tired".to_owned() }).await;
    finn.hear_until("ticket", |heard| heard["state"] == "over").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_and_goes_is_away_and_whoever_comes_back_in_time_has_their_place() {
    let shop = Shop::open().await;
    let sale = sale(&shop.runtime, 1, |_| {}).await;
    for token in ["ada", "bob", "cleo"] {
        claim(&shop.runtime, &sale, token).await;
    }
    let path = format!("/api/flash-sales/{sale}/events");
    let (socket, _) = Socket::watch(shop.address, &sale, None, Some("bob")).await;
    let (status, events) = Events::open(shop.address, &path, Some("bob"), None).await;
    assert_eq!(status, 200);
    let (cleo, _) = Socket::watch(shop.address, &sale, None, Some("cleo")).await;
    let away = async |token: &str| own(&shop.runtime, &sale, token).await.ticket.unwrap().away_until;
    drop(cleo);
    until("cleo is away", async || away("cleo").await).await;
    // One connection of two is enough to be there; that cleo was told of came after it was lost.
    drop(socket);
    let (again, _) = Socket::watch(shop.address, &sale, None, Some("cleo")).await;
    until("cleo is back", async || away("cleo").await.is_none().then_some(())).await;
    assert_eq!(away("bob").await, None);
    drop(events);
    until("bob is away", async || away("bob").await).await;
    assert_eq!(away("cleo").await, None);
    // The grace is over: the next one has the place.
    let mut again = again;
    shop.runtime.clock().advance(minutes(3));
    again.hear_until("ticket", waiting(1)).await;
    assert_eq!(own(&shop.runtime, &sale, "bob").await.ticket, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_over_http_go_on_after_the_last_id_and_bear_the_place_in_line() {
    let shop = Shop::open().await;
    let sale = sale(&shop.runtime, 1, |_| {}).await;
    let path = format!("/api/flash-sales/{sale}/events");
    let (status, mut events) = Events::open(shop.address, &path, None, None).await;
    assert_eq!(status, 200);
    let (kind, id, data) = events.next().await;
    let (seq, shown) = picture(&shop.runtime, &sale).await;
    assert_eq!((kind.as_str(), id, &data["state"]), ("state", Some(seq), &shown));
    claim(&shop.runtime, &sale, "ada").await;
    claim(&shop.runtime, &sale, "bob").await;
    let (seq, shown) = until("the line is seen", async || {
        let (_, id, data) = events.next().await;
        (data["state"]["waiting"] == 1).then(|| (id.unwrap(), data["state"].clone()))
    })
    .await;
    assert_eq!((seq, shown), picture(&shop.runtime, &sale).await);
    let (_, mut mine) = Events::open(shop.address, &path, Some("bob"), Some(&seq.to_string())).await;
    let (kind, id, data) = mine.next().await;
    assert_eq!((kind.as_str(), id, &data["state"], &data["place"]), ("ticket", None, &json!("waiting"), &json!(1)));
    ask(&shop.runtime, &sale, Command::Pause).await;
    let (kind, id, data) = mine.next().await;
    assert_eq!((kind.as_str(), id > Some(seq), &data["state"]["status"]), ("state", true, &json!("paused")));
    for wrong in ["x", "-1"] {
        assert_eq!(Events::open(shop.address, &path, None, Some(wrong)).await.0, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_watch_one_sale_and_all_end_with_the_same_picture_also_the_slow_one() {
    const WATCHERS: usize = 500;
    let shop = Shop::open().await;
    let sale = sale(&shop.runtime, 10_000, |_| {}).await;
    let mut sockets: Vec<Socket> = join_all((0..WATCHERS).map(|_| Socket::watch(shop.address, &sale, 0, None)))
        .await
        .into_iter()
        .map(|(socket, _)| socket)
        .collect();
    // One who takes nothing until all is over.
    let boards = Boards::new(shop.runtime.clone(), Live::start(shop.runtime.journal().clone()), Threads::default());
    let seen = admit(&shop.runtime, &sale, &guest("slow")).await.unwrap().unwrap();
    let (mut slow, place) = boards.join(&sale, seen, 0, Arc::default());
    for round in 0..20 {
        join_all((0..50).map(|number| {
            let token = format!("{round}-{number}");
            let (runtime, sale) = (&shop.runtime, &sale);
            async move { claim(runtime, sale, &token).await }
        }))
        .await;
    }
    let (last, shown) = picture(&shop.runtime, &sale).await;
    let ends = sockets.iter_mut().map(|socket| socket.hear_until("state", |heard| heard["seq"] == last));
    for heard in join_all(ends).await {
        assert_eq!(heard["state"], shown);
    }
    let told = until("the slow one sees the last", async || {
        let told = timeout(PATIENCE, slow.next()).await.expect("nothing is told").unwrap();
        let told: Value = serde_json::from_str(&told.text()).unwrap();
        (told["seq"] == last).then_some(told)
    })
    .await;
    assert_eq!(told["state"], shown);
    assert_eq!(boards.len(), 1);
    drop(place);
    assert_eq!(slow.next().await, None);
    until("the board is taken down", async || boards.is_empty().then_some(())).await;
}
