//! Traces: from a caller's `traceparent` to the journal, the provider and the collector.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Souk, eventually, text};
use crate::support::{serve, told};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

#[tokio::test]
async fn a_trace_leads_from_a_request_over_its_entities_to_the_provider_and_to_the_collector() {
    let heard: Arc<Mutex<Vec<Value>>> = Arc::default();
    let noted = Arc::clone(&heard);
    let collector = serve(move |asked| {
        let noted = Arc::clone(&noted);
        async move {
            assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/v1/traces"));
            noted.lock().unwrap().push(asked.body);
            told(200, json!({}))
        }
    });
    let souk = Souk::start(&["--otlp", &collector.await]).await;
    let sku = souk.sku(100, 10).await;
    let cart = souk.cart_with(&sku, 1).await;
    let header = format!("00-{TRACE}-{PARENT}-01");
    let checkout =
        souk.post(&cart.path("/checkout"), crate::server::purchase("tok_ok")).bearer(&cart.token).header("traceparent", &header);
    let order = checkout.send().await.expect(201);
    assert!(order.header("traceparent").is_none(), "the standard has it for requests only");
    let id = text(&order.json()["id"]);
    let history = souk.get(&format!("/api/orders/{id}/history")).bearer(&cart.token).send().await.expect(200).json();
    assert!(history["items"].as_array().is_some_and(|items| !items.is_empty()), "{history}");

    let spans = || {
        let heard = heard.lock().unwrap();
        let all = heard.iter().flat_map(|body| body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone());
        all.filter(|span| span["traceId"] == TRACE).collect::<Vec<Value>>()
    };
    let named = |spans: &[Value], name: &str| spans.iter().filter(|span| span["name"] == name).cloned().collect::<Vec<_>>();
    // The request itself; the authorization and the capture, which came of it.
    let spans = eventually(Duration::from_secs(10), async || Some(spans()).filter(|spans| spans.len() >= 3)).await;
    let (requests, calls) = (named(&spans, "request"), named(&spans, "call"));
    assert_eq!((requests.len(), calls.len()), (1, 2), "{spans:?}");
    assert_eq!(requests[0]["parentSpanId"], PARENT);
    let attributes = requests[0]["attributes"].to_string();
    assert!(attributes.contains("\"/api/carts/{id}/checkout\"") && attributes.contains("\"201\""), "{attributes}");
    let keys: Vec<String> = calls.iter().map(|call| call["attributes"].to_string()).collect();
    assert!(keys.iter().any(|key| key.contains(":authorize")) && keys.iter().any(|key| key.contains(":capture")), "{keys:?}");
    assert!(!heard.lock().unwrap().iter().any(|body| body.to_string().contains(&cart.token)), "a token in a span");
}

#[tokio::test]
async fn a_collector_that_is_out_holds_up_nobody() {
    let souk = Souk::start(&["--otlp", "http://127.0.0.1:9"]).await;
    let sku = souk.sku(100, 10).await;
    let cart = souk.cart_with(&sku, 1).await;
    souk.check_out(&cart, "tok_ok").await.expect(201);
}
