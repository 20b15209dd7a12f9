//! Where a request comes from: the peer of the connection, or the client that trusted proxies name.
//!
//! A proxy appends the address that it saw to what it was sent, so only the right end of the list is its own word, and only
//! if the connection comes from that proxy. The list is walked from the right for as long as addresses are those of
//! trusted proxies; the first other one is the client. Whatever stands left of it was sent by that client and may be a lie.
//!
//! One header is read and never the other: a proxy that writes the one passes on the other as the client wrote it.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Once;

use warp::http::header::{FORWARDED, HeaderMap, HeaderName};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// No honest chain of proxies is longer.
const HOPS_MAX: usize = 16;

/// The far end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub address: IpAddr,
    /// Whether the connection is TLS.
    pub secure: bool,
}

/// Who has sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
    /// Whether it came over TLS, to us or to the proxy.
    pub secure: bool,
}

/// A range of addresses: `10.0.0.0/8`, `2001:db8::/32`, or one address alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// As bits of IPv6, with IPv4 mapped into it.
    bits: u128,
    mask: u128,
}

#[derive(Debug, thiserror::Error)]
#[error("expected an address or a range of them: 10.0.0.1, 10.0.0.0/8, 2001:db8::/32")]
pub struct NotANetwork;

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix: u32 = match prefix {
            None => bits_max,
            Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => prefix.parse().map_err(|_| NotANetwork)?,
            Some(_) => return Err(NotANetwork),
        };
        let host_bits = bits_max.checked_sub(prefix).ok_or(NotANetwork)?;
        let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
        Ok(Network { bits: bits(address) & mask, mask })
    }
}

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        bits(address) & self.mask == self.bits
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Where proxies write whom they speak for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProxyHeader {
    #[default]
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// The proxies that are believed; none unless an operator says so.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    pub trusted: Vec<Network>,
    pub header: ProxyHeader,
}

impl Proxies {
    fn trust(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// Who has sent this request.
    pub fn client(&self, peer: Peer, headers: &HeaderMap) -> Client {
        let direct = Client { address: peer.address.to_canonical(), secure: peer.secure };
        if !self.trust(peer.address) {
            self.warn_of_a_proxy(direct.address, headers);
            return direct;
        }
        match self.header {
            ProxyHeader::XForwardedFor => {
                let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
                let hops = lines.flat_map(|line| {
                    let line = line.to_str().unwrap_or("");
                    line.rsplit(',').map(|hop| node(hop.trim()))
                });
                let proto = headers.get_all(X_FORWARDED_PROTO).iter().next_back();
                let proto = proto.and_then(|line| line.to_str().ok()?.rsplit(',').next());
                Client { address: self.walk(direct.address, hops), secure: secure(peer, proto) }
            }
            ProxyHeader::Forwarded => {
                let lines = headers.get_all(FORWARDED).iter().rev();
                // A line that cannot be read says nothing, whichever part of it cannot: a quote that somebody opened on
                // the left could swallow what the proxy wrote.
                let elements = lines.flat_map(|line| match line.to_str().ok().and_then(elements) {
                    Some(elements) => elements.into_iter().rev().map(Some).collect(),
                    None => vec![None],
                });
                let elements: Vec<Option<Element>> = elements.take(HOPS_MAX).collect();
                let proto = elements.first().and_then(|nearest| nearest.as_ref()?.proto.as_deref());
                let hops = elements.iter().map(|element| node(element.as_ref()?.client.as_deref()?));
                Client { address: self.walk(direct.address, hops), secure: secure(peer, proto) }
            }
        }
    }

    /// Behind a proxy that is not named, all clients share that proxy's budgets, which an operator should hear once.
    fn warn_of_a_proxy(&self, peer: IpAddr, headers: &HeaderMap) {
        static WARNED: Once = Once::new();
        let beside_us = match peer {
            IpAddr::V4(address) => address.is_loopback() || address.is_private(),
            IpAddr::V6(address) => address.is_loopback() || address.is_unique_local(),
        };
        if beside_us && (headers.contains_key(X_FORWARDED_FOR) || headers.contains_key(FORWARDED)) {
            WARNED.call_once(|| {
                tracing::warn!(%peer, "a proxy speaks for others and is not believed: if it is yours, name it with --trusted-proxy");
            });
        }
    }

    /// From the nearest proxy outwards. What is no address ends the walk where it is.
    fn walk(&self, peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut client = peer;
        for hop in hops.take(HOPS_MAX) {
            match hop {
                Some(address) => client = address,
                None => break,
            }
            if !self.trust(client) {
                break;
            }
        }
        client
    }
}

fn secure(peer: Peer, proto: Option<&str>) -> bool {
    peer.secure || proto.is_some_and(|proto| proto.trim().eq_ignore_ascii_case("https"))
}

/// An address, perhaps with a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn node(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bare {
        Some(bare) => IpAddr::V6(bare.parse().ok()?),
        None => text.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip())).ok()?,
    };
    Some(address.to_canonical())
}

/// One hop of a `Forwarded` line.
#[derive(Debug, Default)]
struct Element {
    client: Option<String>,
    proto: Option<String>,
}

/// The hops of a line, or `None` when any of it breaks the grammar of RFC 7239, 4.
fn elements(line: &str) -> Option<Vec<Element>> {
    let mut elements = vec![Element::default()];
    let mut rest = line;
    loop {
        rest = rest.trim_start();
        if let Some(pair) = rest.find(['=', ',', ';']).filter(|at| rest.as_bytes().get(*at) == Some(&b'=')) {
            let (name, after) = rest.split_at_checked(pair)?;
            let (value, after) = value(after.strip_prefix('=')?)?;
            let element = elements.last_mut()?;
            let known = match name.to_ascii_lowercase().as_str() {
                "for" => Some(&mut element.client),
                "proto" => Some(&mut element.proto),
                name if is_token(name) => None,
                _ => return None,
            };
            if let Some(known) = known {
                // Each parameter once in an element.
                if known.replace(value).is_some() {
                    return None;
                }
            }
            rest = after.trim_start();
        }
        match rest.chars().next() {
            None => return Some(elements),
            Some(';') => {}
            Some(',') => elements.push(Element::default()),
            Some(_) => return None,
        }
        rest = rest.get(1..)?;
    }
}

/// A token or a quoted string, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ';', ' ', '\t']).unwrap_or(text.len());
        let (token, rest) = text.split_at_checked(end)?;
        return is_token(token).then(|| (token.to_owned(), rest));
    };
    let (mut value, mut chars) = (String::new(), quoted.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, quoted.get(at + 1..)?)),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// By RFC 9110, 5.6.2; addresses without quotes are met as well, which have colons.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:[]".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use warp::http::HeaderValue;

    fn proxies(header: ProxyHeader) -> Proxies {
        let trusted = ["10.0.0.0/8", "2001:db8:ffff::/48", "192.0.2.9"].map(|network| network.parse().unwrap()).to_vec();
        Proxies { trusted, header }
    }

    fn client(header: ProxyHeader, peer: &str, lines: &[(&'static str, &str)]) -> Client {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        proxies(header).client(Peer { address: peer.parse().unwrap(), secure: false }, &headers)
    }

    #[test]
    fn a_network_holds_its_own_addresses_and_no_others() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.9", "192.0.2.9", "192.0.2.8"),
            ("192.0.2.8/31", "192.0.2.9", "192.0.2.10"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "::10.0.0.1"),
            ("0.0.0.0/0", "203.0.113.1", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::1", "::1", "::2"),
            ("::/0", "2001:db8::1", "never"),
        ] {
            let range: Network = network.parse().unwrap();
            assert!(range.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(outside == "never" || !range.contains(outside.parse().unwrap()), "{network} {outside}");
        }
        for wrong in ["", "10", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/-1", "::/129", "host", "10.0.0.0/8/8"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_client_is_the_last_address_that_no_trusted_proxy_has() {
        let cases: [(&str, &[&str], &str); 19] = [
            // Nobody is believed who is not a trusted proxy.
            ("203.0.113.5", &[], "203.0.113.5"),
            ("203.0.113.5", &["198.51.100.1"], "203.0.113.5"),
            ("203.0.113.5", &["10.0.0.1"], "203.0.113.5"),
            // One proxy, a chain, and a chain over several lines.
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["198.51.100.1, 10.0.0.2"], "198.51.100.1"),
            ("10.0.0.1", &["198.51.100.1,10.0.0.2,192.0.2.9"], "198.51.100.1"),
            ("10.0.0.1", &["198.51.100.1", "10.0.0.2"], "198.51.100.1"),
            // What the client wrote itself stands on the left.
            ("10.0.0.1", &["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["10.0.0.7, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
            ("10.0.0.1", &["<script>, , 198.51.100.1"], "198.51.100.1"),
            // IPv6, ports, and addresses of IPv4 in it.
            ("2001:db8:ffff::1", &["2001:db8::7"], "2001:db8::7"),
            ("10.0.0.1", &["[2001:db8::7]:4711, [2001:db8:ffff::2]"], "2001:db8::7"),
            ("::ffff:10.0.0.1", &["198.51.100.1:4711"], "198.51.100.1"),
            ("10.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1"),
            // Garbage ends the walk at the last address that is known.
            ("10.0.0.1", &["198.51.100.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, ,10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["198.51.100.1, \u{fc}"], "10.0.0.1"),
            // Only proxies: the one furthest away.
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ];
        for (peer, lines, expected) in cases {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            let found = client(ProxyHeader::XForwardedFor, peer, &lines);
            assert_eq!(found.address, expected.parse::<IpAddr>().unwrap(), "{peer} {lines:?}");
        }
        let endless = "10.0.0.2,".repeat(5_000) + "10.0.0.3";
        client(ProxyHeader::XForwardedFor, "10.0.0.1", &[("x-forwarded-for", &endless)]);
    }

    #[test]
    fn the_standard_header_is_read_by_its_grammar_and_a_broken_line_says_nothing() {
        let cases: [(&[&str], &str); 21] = [
            (&["for=198.51.100.1"], "198.51.100.1"),
            (&["For=\"198.51.100.1:4711\";proto=https;by=10.0.0.1"], "198.51.100.1"),
            (&["for=\"[2001:db8::7]:4711\""], "2001:db8::7"),
            (&["for=[2001:db8::7]"], "2001:db8::7"),
            (&["proto=http; for=198.51.100.1 , for=10.0.0.2"], "198.51.100.1"),
            (&["for=198.51.100.1", "for=10.0.0.2"], "198.51.100.1"),
            (&["for=1.1.1.1, for=198.51.100.1"], "198.51.100.1"),
            (&["for=198.51.100.1;host=\"a, b; for=1.1.1.1\""], "198.51.100.1"),
            (&["for=198.51.100.1;host=\"a\\\", for=1.1.1.1\""], "198.51.100.1"),
            (&["for=1.1.1.1;x=\"", "for=198.51.100.1"], "198.51.100.1"),
            // A quote that swallows what the proxy wrote, and other ways to break a line.
            (&["for=1.1.1.1, x=\", for=198.51.100.1"], "10.0.0.1"),
            (&["for=1.1.1.1, x=\", for=\"[2001:db8::7]\""], "10.0.0.1"),
            (&["for=1.1.1.1;x=\"\\"], "10.0.0.1"),
            (&["for=1.1.1.1;for=198.51.100.1"], "10.0.0.1"),
            (&["1.1.1.1"], "10.0.0.1"),
            (&["for=1.1.1.1 x"], "10.0.0.1"),
            // Names that hide an address, and nothing at all.
            (&["for=unknown"], "10.0.0.1"),
            (&["for=_hidden"], "10.0.0.1"),
            (&["for=1.1.1.1,proto=https"], "10.0.0.1"),
            (&["for=1.1.1.1,"], "10.0.0.1"),
            (&[""], "10.0.0.1"),
        ];
        for (lines, expected) in cases {
            let lines: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
            let found = client(ProxyHeader::Forwarded, "10.0.0.1", &lines);
            assert_eq!(found.address, expected.parse::<IpAddr>().unwrap(), "{lines:?}");
        }
    }

    #[test]
    fn the_header_that_the_proxy_does_not_write_is_not_read() {
        let both = [("forwarded", "for=1.1.1.1;proto=https"), ("x-forwarded-for", "198.51.100.1"), ("x-forwarded-proto", "http")];
        let found = client(ProxyHeader::XForwardedFor, "10.0.0.1", &both);
        assert_eq!(found, Client { address: "198.51.100.1".parse().unwrap(), secure: false });
        let found = client(ProxyHeader::Forwarded, "10.0.0.1", &both);
        assert_eq!(found, Client { address: "1.1.1.1".parse().unwrap(), secure: true });
    }

    #[test]
    fn a_proxy_says_whether_its_client_spoke_tls() {
        for (peer, proto, secure) in [
            ("10.0.0.1", "https", true),
            ("10.0.0.1", "http, HTTPS", true),
            ("10.0.0.1", "https, http", false),
            ("203.0.113.5", "https", false),
        ] {
            assert_eq!(
                client(ProxyHeader::XForwardedFor, peer, &[("x-forwarded-proto", proto)]).secure,
                secure,
                "{peer} {proto}"
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_it_cannot_choose_who_it_is(sent in "[ -~]{0,60}", split in any::<bool>()) {
            for (header, name, appended) in [
                (ProxyHeader::XForwardedFor, "x-forwarded-for", "198.51.100.1"),
                (ProxyHeader::Forwarded, "forwarded", "for=198.51.100.1"),
                (ProxyHeader::Forwarded, "forwarded", "for=\"198.51.100.1\""),
            ] {
                let found = match split {
                    true => client(header, "10.0.0.1", &[(name, &sent), (name, appended)]),
                    false => client(header, "10.0.0.1", &[(name, &format!("{sent}, {appended}"))]),
                };
                // Its own address, or that of the proxy: nobody else's.
                let own = ["198.51.100.1", "10.0.0.1"].map(|address| address.parse::<IpAddr>().unwrap());
                prop_assert!(own.contains(&found.address), "{sent:?}: {}", found.address);
            }
        }
    }
}
