//! Who is at the other end of a connection, and for whom it speaks.
//!
//! An address in a header is believed only from a trusted proxy, and only as far as trusted proxies wrote it: the
//! rightmost address that is none of theirs. Everything further left may be the client's own invention.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::runtime::Network;
use hyper::HeaderMap;
use hyper::header::{self, HeaderName};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Where a connection, or what it speaks for, comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// An address with a port.
    Socket(SocketAddr),
    /// An address that a proxy wrote into a header.
    Forwarded(IpAddr),
    /// A process on this machine, through a Unix socket.
    Unix,
}

impl Source {
    /// An IPv4 address stays one on a socket that takes both families.
    pub(super) fn socket(address: SocketAddr) -> Self {
        Self::Socket(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// Whether it is among the trusted proxies. The other end of a Unix socket is as soon as any are named: only who
    /// may open its file comes in there.
    pub(super) fn is_trusted(self, proxies: &[Network]) -> bool {
        match self {
            Self::Socket(address) => proxies.iter().any(|network| network.contains(address.ip())),
            Self::Forwarded(ip) => proxies.iter().any(|network| network.contains(ip)),
            Self::Unix => !proxies.is_empty(),
        }
    }
}

impl Source {
    /// Its address, where it has one.
    pub(super) fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Socket(address) => Some(address.ip()),
            Self::Forwarded(ip) => Some(ip),
            Self::Unix => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Forwarded(ip) => ip.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// What is known of a connection over TLS.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) version: &'static str,
    /// Who the client is by its certificate, which was verified.
    pub(super) certificate: Option<String>,
}

/// The other end of a connection.
#[derive(Debug)]
pub(super) struct Client {
    /// The peer of the socket, or whom a PROXY header named.
    pub(super) source: Source,
    pub(super) tls: Option<Arc<Secured>>,
    pub(super) trusted_proxies: Arc<[Network]>,
}

impl Client {
    /// Whom a request with these headers comes from, as well as it is known.
    pub(super) fn of_request(&self, headers: &HeaderMap) -> Source {
        self.told(headers).0.unwrap_or(self.source)
    }

    /// From which address a request with these headers comes, where that decides about a right: `None` where a trusted proxy
    /// hides it, or speaks so that it cannot be understood.
    pub(super) fn address(&self, headers: &HeaderMap) -> Option<IpAddr> {
        match self.told(headers) {
            (_, true) => None,
            (told, false) => told.unwrap_or(self.source).ip(),
        }
    }

    /// Whom trusted proxies name, and whether there is somebody behind him whom they do not.
    fn told(&self, headers: &HeaderMap) -> (Option<Source>, bool) {
        if !self.source.is_trusted(&self.trusted_proxies) {
            return (None, false);
        }
        let has = |name: &HeaderName| headers.contains_key(name);
        let values = |name: HeaderName| {
            headers.get_all(name).into_iter().map(|value| value.to_str().unwrap_or_default())
        };
        let by_forwarded = self.walk(values(header::FORWARDED).flat_map(elements).map(forwarded_for));
        let by_x_forwarded = self.walk(values(X_FORWARDED_FOR).flat_map(|value| value.split(',')));
        match (has(&header::FORWARDED), has(&X_FORWARDED_FOR)) {
            (false, false) => (None, false),
            (true, false) => by_forwarded,
            (false, true) => by_x_forwarded,
            (true, true) if by_forwarded == by_x_forwarded => by_forwarded,
            // A proxy writes one of the two and lets the other pass: what the client made up is one of them.
            (true, true) => (None, true),
        }
    }

    /// From the last hop to the first, as long as trusted proxies speak; and whether they hide what comes then.
    fn walk<'h>(&self, hops: impl Iterator<Item = &'h str>) -> (Option<Source>, bool) {
        let hops: Vec<_> = hops.collect();
        let mut told = None;
        for hop in hops.into_iter().rev() {
            // "unknown" and obfuscated names hide what a trusted proxy has seen: no further.
            let Some(ip) = node(hop.trim()) else { return (told, true) };
            let source = Source::Forwarded(ip);
            told = Some(source);
            if !source.is_trusted(&self.trusted_proxies) {
                break;
            }
        }
        (told, false)
    }
}

/// The elements of a `Forwarded` value. Quoted commas only occur in what is no address.
fn elements(value: &str) -> impl DoubleEndedIterator<Item = &str> {
    value.split(',')
}

/// The `for` of one element (RFC 7239, section 5.2); an element without one hides its client, which is not the same
/// as no element: what stands left of it was not written by a proxy that is known.
fn forwarded_for(element: &str) -> &str {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let mut named = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    named.next().map_or("", |(_, node)| node.trim().trim_matches('"'))
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` and `[2001:db8::1]:80`.
fn node(text: &str) -> Option<IpAddr> {
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let ip = text.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip())).or_else(bracketed);
    ip.map(|ip: IpAddr| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Setting as _;

    fn client(source: &str, proxies: &[&str]) -> Client {
        let source = match source {
            "unix" => Source::Unix,
            address => Source::socket(address.parse().unwrap()),
        };
        let trusted_proxies = proxies.iter().map(|network| Network::from_text(network).unwrap()).collect();
        Client { source, tls: None, trusted_proxies }
    }

    fn seen(client: &Client, headers: &[(&str, &str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        client.of_request(&map).to_string()
    }

    #[test]
    fn a_client_cannot_name_itself() {
        let stranger = client("203.0.113.9:4000", &["10.0.0.0/8"]);
        assert_eq!(seen(&stranger, &[("x-forwarded-for", "1.2.3.4")]), "203.0.113.9:4000");
        let nobody_trusted = client("unix", &[]);
        assert_eq!(seen(&nobody_trusted, &[("forwarded", "for=1.2.3.4")]), "unix");
    }

    #[test]
    fn the_rightmost_address_that_no_trusted_proxy_has_is_the_client() {
        let proxied = client("[::ffff:10.0.0.1]:4000", &["10.0.0.0/8", "2001:db8::/32"]);
        for (value, expected) in [
            ("198.51.100.7", "198.51.100.7"),
            ("1.2.3.4, 198.51.100.7", "198.51.100.7"),
            ("1.2.3.4, 198.51.100.7, 10.1.1.1", "198.51.100.7"),
            ("198.51.100.7:1234,10.1.1.1:99", "198.51.100.7"),
            ("::ffff:198.51.100.7", "198.51.100.7"),
            ("10.2.2.2, 10.1.1.1", "10.2.2.2"),
            ("unknown, 10.1.1.1", "10.1.1.1"),
            ("nonsense", "10.0.0.1:4000"),
        ] {
            assert_eq!(seen(&proxied, &[("x-forwarded-for", value)]), expected, "{value}");
        }
        let lines = [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "198.51.100.7")];
        assert_eq!(seen(&proxied, &lines), "198.51.100.7");
        assert_eq!(seen(&proxied, &[]), "10.0.0.1:4000");
    }

    #[test]
    fn forwarded_is_read_as_its_rfc_writes_it() {
        let proxied = client("unix", &["10.0.0.0/8"]);
        for (value, expected) in [
            ("for=198.51.100.7;proto=https;by=10.0.0.1", "198.51.100.7"),
            ("proto=https; For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=1.2.3.4, for=198.51.100.7, for=\"10.0.0.5:80\"", "198.51.100.7"),
            ("for=_hidden", "unix"),
            ("for=1.2.3.4, proto=https", "unix"),
        ] {
            assert_eq!(seen(&proxied, &[("forwarded", value)]), expected, "{value}");
        }
    }

    #[test]
    fn an_address_that_a_proxy_hides_opens_nothing() {
        let mut map = HeaderMap::new();
        let proxied = client("10.0.0.1:4000", &["10.0.0.0/24"]);
        let address = |map: &HeaderMap| proxied.address(map).map(|ip| ip.to_string());
        assert_eq!(address(&map).as_deref(), Some("10.0.0.1"), "the proxy itself");
        map.insert("x-forwarded-for", "203.0.113.5".parse().unwrap());
        assert_eq!(address(&map).as_deref(), Some("203.0.113.5"));
        map.insert("forwarded", "for=1.1.1.1".parse().unwrap());
        assert_eq!(address(&map), None, "two that disagree");
        map.remove("forwarded");
        for hidden in [&b"unknown"[..], b"\xff", b"\xff, 203.0.113.5, 10.0.0.7", b"unknown, 10.0.0.7", b""] {
            map.insert("x-forwarded-for", hyper::header::HeaderValue::from_bytes(hidden).unwrap());
            assert_eq!(address(&map), None, "{hidden:?}");
        }
        let stranger = client("203.0.113.9:1", &["10.0.0.0/24"]);
        assert_eq!(stranger.address(&map).unwrap().to_string(), "203.0.113.9");
    }

    #[test]
    fn two_headers_that_disagree_are_believed_neither() {
        let proxied = client("10.0.0.1:4000", &["10.0.0.1"]);
        let both = |one, other| [("forwarded", one), ("x-forwarded-for", other)];
        assert_eq!(seen(&proxied, &both("for=198.51.100.7", "198.51.100.7")), "198.51.100.7");
        assert_eq!(seen(&proxied, &both("for=1.2.3.4", "198.51.100.7")), "10.0.0.1:4000");
    }
}
