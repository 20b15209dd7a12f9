//! Paths and headers that try to be more than one request, another header, or another file.

use std::time::Duration;

use crate::node::Node;
use crate::shopper::buy;

const CLOSED: Duration = Duration::from_secs(20);
/// A second request that somebody tries to smuggle in behind the first.
const SMUGGLED: &str = "GET /health/live HTTP/1.1\r\nhost: souk\r\nx-request-id: smuggled\r\n\r\n";

/// Sends this and returns all that is said until the connection ends.
async fn say(node: &Node, bytes: &[u8]) -> String {
    let mut line = node.connect().await;
    line.write(bytes).await;
    String::from_utf8_lossy(&line.rest(CLOSED).await).into_owned()
}

#[tokio::test]
async fn a_request_of_two_minds_about_its_end_is_refused_and_the_connection_with_it() {
    let node = Node::start(&[]).await;
    let post = "POST /api/carts HTTP/1.1\r\nhost: souk\r\n";
    for (headers, body) in [
        ("content-length: 5\r\ncontent-length: 6\r\n", SMUGGLED.to_owned()),
        ("content-length: 5, 6\r\n", SMUGGLED.to_owned()),
        ("content-length: 2\r\ncontent-length: 2\r\ncontent-length: 3\r\n", SMUGGLED.to_owned()),
        ("content-length: +2\r\n", format!("{{}}{SMUGGLED}")),
        ("content-length: 0x2\r\n", format!("{{}}{SMUGGLED}")),
        ("content-length: 2 \x0b\r\n", format!("{{}}{SMUGGLED}")),
        ("content-length: 99999999999999999999\r\n", SMUGGLED.to_owned()),
        ("transfer-encoding: xchunked\r\n", SMUGGLED.to_owned()),
        ("transfer-encoding: chunked, identity\r\n", SMUGGLED.to_owned()),
        ("transfer-encoding: identity\r\ncontent-length: 2\r\n", format!("{{}}{SMUGGLED}")),
        ("transfer-encoding : chunked\r\n", format!("0\r\n\r\n{SMUGGLED}")),
        (" transfer-encoding: chunked\r\n", format!("0\r\n\r\n{SMUGGLED}")),
        ("x-a: b\r\n transfer-encoding: chunked\r\n", format!("0\r\n\r\n{SMUGGLED}")),
        ("x-a: b\r\n\tfolded\r\n", SMUGGLED.to_owned()),
        ("x-a: b\rtransfer-encoding: chunked\r\n", SMUGGLED.to_owned()),
        ("x-nul: a\0b\r\n", SMUGGLED.to_owned()),
        ("x\0nul: a\r\n", SMUGGLED.to_owned()),
        ("transfer-encoding: chunked\r\n", format!("0x0\r\n\r\n{SMUGGLED}")),
        ("transfer-encoding: chunked\r\n", format!("-1\r\n\r\n{SMUGGLED}")),
        ("transfer-encoding: chunked\r\n", format!("ffffffffffffffffff\r\n{SMUGGLED}")),
    ] {
        let said = say(&node, format!("{post}{headers}\r\n{body}").as_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{headers:?}: {said}");
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{headers:?}: {said}");
        assert!(!said.contains("smuggled"), "{headers:?}: {said}");
        assert!(said.contains("application/problem+json"), "{headers:?}: {said}");
    }
    // A length beside chunks counts for nothing, as the standard has it, and nothing is read after them.
    for headers in ["content-length: 2\r\ntransfer-encoding: chunked\r\n", "transfer-encoding: chunked\r\ncontent-length: 2\r\n"]
    {
        let said = say(&node, format!("{post}{headers}\r\n0\r\n\r\n{SMUGGLED}").as_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 201 ") || said.starts_with("HTTP/1.1 400 "), "{headers:?}: {said}");
        assert!(said.contains("connection: close") && !said.contains("smuggled"), "{headers:?}: {said}");
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{headers:?}: {said}");
    }
    node.is_well().await;
    buy(&node).await;
}

#[tokio::test]
async fn a_path_leads_nowhere_but_to_a_route() {
    let node = Node::start(&[]).await;
    let admin = &node.admin;
    let mut line = node.connect().await;
    for path in [
        "/api/../health/live",
        "/api/%2e%2e/health/live",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/api/products/..;/..;/metrics",
        "/api/products/%2e%2e/cluster",
        "//etc/passwd",
        "/api//products",
        "/API/PRODUCTS",
        "/api/products\\..\\cluster",
        "/api/inventory/%00",
        "/api/inventory/LANTERN-S%00.html",
        "/api/inventory/%c0%ae%c0%ae",
        "/api/inventory/%0d%0aset-cookie:%20a=b",
        "/api/inventory/LANTERN-S%0d%0a%0d%0aHTTP/1.1%20200%20OK",
        "/api/cluster/entities/order/..%2f..%2fkeys/x.pem",
        "/api/cluster/entities/%2e%2e/keys/x.pem",
        "/api/carts/%3Cscript%3E",
        "/%",
        "/%u0041",
    ] {
        let heard = line.ask("GET", path, &format!("authorization: Bearer {admin}\r\n"), "").await;
        assert!(matches!(heard.status, 400 | 404), "{path}: {}", heard.head);
        assert_eq!(heard.header("content-type"), Some("application/problem+json"), "{path}");
        assert!(heard.header("set-cookie").is_none() && !heard.text().contains(admin.as_str()), "{path}: {}", heard.text());
    }
    for path in [
        "/api/inventory/LANTERN-S?x=%0d%0aset-cookie:a",
        "/api/products?q=%00",
        "/api/products?cursor=%2e%2e%2f",
        "/api/products?limit=1%00",
    ] {
        let heard = line.ask("GET", path, "", "").await;
        assert!(matches!(heard.status, 200 | 400) && heard.header("set-cookie").is_none(), "{path}: {}", heard.head);
    }
    // A query or a header of the client's that comes back does so as text and never as a header of its own.
    let heard = line.ask("GET", "/api/products", "x-request-id: a\"><script>\r\n", "").await;
    assert!(!heard.head.contains("script"), "{}", heard.head);
    node.is_well().await;
}

#[tokio::test]
async fn a_target_in_an_unusual_form_is_no_way_in() {
    let node = Node::start(&[]).await;
    let long = format!("/api/products?q={}", "a".repeat(100_000));
    let deep = format!("/{}", "a/".repeat(30_000));
    for (request_line, statuses) in [
        // An absolute form is a path with a host before it, whatever host that is.
        ("GET http://elsewhere.test/api/products?limit=1 HTTP/1.1", &[200][..]),
        ("GET http://elsewhere.test/metrics/../api/cluster HTTP/1.1", &[400, 404]),
        ("GET file:///etc/passwd HTTP/1.1", &[400, 404]),
        ("GET gopher://x/nowhere HTTP/1.1", &[400, 404]),
        // What has no path asks for the front page at most.
        ("GET souk:80 HTTP/1.1", &[200, 400, 404]),
        ("CONNECT elsewhere.test:443 HTTP/1.1", &[400, 404, 405, 501]),
        ("CONNECT /api/products HTTP/1.1", &[400, 404, 405, 501]),
        ("OPTIONS * HTTP/1.1", &[200, 204, 400, 404]),
        ("GET * HTTP/1.1", &[200, 400, 404]),
        ("GET api/products HTTP/1.1", &[400, 404]),
        ("GET ?limit=1 HTTP/1.1", &[200, 400, 404]),
        ("GET /api/products#fragment HTTP/1.1", &[200, 400, 404]),
        ("GET /api/products HTTP/1.1 HTTP/1.1", &[400]),
        ("GET /api/pro ducts HTTP/1.1", &[400]),
        ("GET\t/api/products\tHTTP/1.1", &[400]),
        ("GET /api/products\0 HTTP/1.1", &[400]),
        ("GET /api/products\r HTTP/1.1", &[400]),
        ("TRACE /api/products HTTP/1.1", &[405, 501]),
        ("PRI * HTTP/1.1", &[400, 404, 405, 501]),
        ("G\u{e9}T /api/products HTTP/1.1", &[400]),
        ("GET /api/products HTTP/3.7", &[400, 505]),
        ("GET /api/products", &[400]),
        (&format!("GET {long} HTTP/1.1"), &[414, 431]),
        (&format!("GET {deep} HTTP/1.1"), &[404, 414, 431]),
        (&format!("{} / HTTP/1.1", "A".repeat(70_000)), &[400, 414, 431]),
    ] {
        let said = say(&node, format!("{request_line}\r\nhost: souk\r\nconnection: close\r\n\r\n").as_bytes()).await;
        let shown: String = request_line.chars().take(60).collect();
        let status: u16 = said.split(' ').nth(1).unwrap_or_else(|| panic!("{shown}: {said}")).parse().unwrap();
        assert!(statuses.contains(&status), "{shown}: {said}");
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{shown}: {said}");
        assert!(!said.contains("root:"), "{shown}: {said}");
    }
    node.is_well().await;
    buy(&node).await;
}

#[tokio::test]
async fn a_head_with_too_much_in_it_is_refused() {
    let node = Node::start(&[]).await;
    let many: String = (0..500).map(|n| format!("x-{n}: 1\r\n")).collect();
    let alike = "cookie: a=b\r\n".repeat(5_000);
    for headers in [many, alike, format!("x: {}\r\n", "a".repeat(1_000_000)), format!("{}: a\r\n", "x".repeat(100_000))] {
        let said = say(&node, format!("GET /api/products HTTP/1.1\r\nhost: souk\r\n{headers}\r\n").as_bytes()).await;
        // Whoever goes on sending after the refusal may lose it on its way.
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 431 ") || said.starts_with("HTTP/1.1 400 "), "{said}");
    }
    node.is_well().await;
}
