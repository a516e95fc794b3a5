//! The head of a request that asks for nothing unusual.

use std::mem::MaybeUninit;

use hyper::Method;

use super::headers::is_printable;

/// Ordinary clients send five headers.
const MAX_HEADERS: usize = 16;

/// The whole head of a GET or HEAD on HTTP/1.1 that has no body, as it stands in the bytes that have arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    /// The one `Host`.
    pub(super) host: &'a str,
    pub(super) user_agent: Option<&'a str>,
}

/// What the bytes are that a connection brings between two answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrived<'a> {
    /// One head, of a form in which nearly every pull comes.
    Ordinary(Head<'a>),
    /// One whole head without a body, and nothing behind it.
    Whole,
    /// Anything else: a part of a head, a body, more than one request, what is no HTTP.
    Other,
}

impl<'a> Arrived<'a> {
    /// Reads them with the parser and the strictness of hyper, so that what is one request here is one there.
    pub(super) fn read(bytes: &'a [u8]) -> Self {
        // The parser need not begin what it cannot finish.
        if !bytes.ends_with(b"\r\n\r\n") {
            return Self::Other;
        }
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(bytes, &mut headers);
        if parsed != Ok(httparse::Status::Complete(bytes.len())) || request.version != Some(1) {
            return Self::Other;
        }
        let method = match request.method {
            Some("GET") => Method::GET,
            Some("HEAD") => Method::HEAD,
            _ => return Self::Other,
        };
        let (mut host, mut user_agent) = (None, None);
        let mut is_ordinary = true;
        for header in request.headers {
            match Meaning::of(header.name) {
                Meaning::Host => is_ordinary &= host.replace(header.value).is_none(),
                Meaning::UserAgent => is_ordinary &= user_agent.replace(header.value).is_none(),
                Meaning::Preference => {}
                Meaning::Connection if header.value.eq_ignore_ascii_case(b"keep-alive") => {}
                Meaning::Connection | Meaning::Framing => return Self::Other,
                Meaning::Unknown => is_ordinary = false,
            }
        }
        let user_agent = user_agent.map(plain);
        match (request.path.filter(|path| is_plain_target(path)), host.and_then(plain), user_agent) {
            (Some(target), Some(host), None | Some(Some(_))) if is_ordinary => {
                let split = target.split_once('?');
                let (path, query) = split.map_or((target, None), |(path, query)| (path, Some(query)));
                Self::Ordinary(Head { method, path, query, host, user_agent: user_agent.flatten() })
            }
            _ => Self::Whole,
        }
    }
}

/// What a header means to somebody who only wants to know whether a request is ordinary.
enum Meaning {
    Host,
    UserAgent,
    /// It says which of several answers is liked best, and a manifest has but one.
    Preference,
    Connection,
    /// Something follows the head, or the connection becomes something else.
    Framing,
    Unknown,
}

impl Meaning {
    fn of(name: &str) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is("host") => Self::Host,
            6 if is("accept") => Self::Preference,
            15 if is("accept-encoding") => Self::Preference,
            10 if is("user-agent") => Self::UserAgent,
            10 if is("connection") => Self::Connection,
            6 if is("expect") => Self::Framing,
            7 if is("upgrade") => Self::Framing,
            14 if is("content-length") => Self::Framing,
            17 if is("transfer-encoding") => Self::Framing,
            _ => Self::Unknown,
        }
    }
}

/// A value of printable characters.
fn plain(value: &[u8]) -> Option<&str> {
    if is_printable(value) { str::from_utf8(value).ok() } else { None }
}

/// Whether a target needs no decoding and means the same to everybody. It is looked at to its end and without branches,
/// so that the compiler can look at many bytes at once.
#[expect(clippy::needless_bitwise_bool, reason = "a lazy operator is a branch for each byte")]
fn is_plain_target(target: &str) -> bool {
    let is_plain = |byte: u8| {
        // Hyphen, full stop, slash, digits and colon stand in a row.
        let in_path = byte.wrapping_sub(b'-') <= b':' - b'-';
        let letter = (byte | 0x20).wrapping_sub(b'a') <= b'z' - b'a';
        in_path | letter | (byte == b'_') | (byte == b'?') | (byte == b'=') | (byte == b'&')
    };
    target.starts_with('/') && target.bytes().fold(true, |all, byte| all & is_plain(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINE: &str = "GET /v2/a/manifests/b HTTP/1.1\r\nHost: edge\r\n";

    fn read(head: &str) -> Arrived<'_> {
        Arrived::read(head.as_bytes())
    }

    #[test]
    fn what_clients_send_is_ordinary() {
        let path = "/v2/a/manifests/b";
        for (head, method, query, user_agent) in [
            (format!("{LINE}\r\n"), Method::GET, None, None),
            (
                "HEAD /v2/a/manifests/b?ns=docker.io HTTP/1.1\r\nhost: edge\r\nUSER-AGENT: containerd/2.1\r\n\
                 Accept: a/b\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nConnection: Keep-Alive\r\n\r\n"
                    .to_owned(),
                Method::HEAD,
                Some("ns=docker.io"),
                Some("containerd/2.1"),
            ),
        ] {
            assert_eq!(read(&head), Arrived::Ordinary(Head { method, path, query, host: "edge", user_agent }));
        }
    }

    #[test]
    fn whatever_says_more_is_for_hyper() {
        for headers in [
            "Authorization: Bearer x\r\n",
            "If-None-Match: \"x\"\r\n",
            "Range: bytes=0-1\r\n",
            "Host: other\r\n",
            "User-Agent: one\r\nUser-Agent: two\r\n",
            "User-Agent: \u{e9}\r\n",
            "X-Forwarded-For: 1.2.3.4\r\n",
            "Via: 1.1 edge\r\n",
        ] {
            assert_eq!(read(&format!("{LINE}{headers}\r\n")), Arrived::Whole, "{headers}");
        }
        for line in [
            "GET /v2/a/manifests/b HTTP/1.1\r\n",
            "GET /v2/a/manifests/%62 HTTP/1.1\r\nHost: edge\r\n",
            "GET /v2/a/manifests/b#c HTTP/1.1\r\nHost: edge\r\n",
            "GET http://edge/v2/a/manifests/b HTTP/1.1\r\nHost: edge\r\n",
        ] {
            assert_eq!(read(&format!("{line}\r\n")), Arrived::Whole, "{line}");
        }
    }

    #[test]
    fn what_may_be_more_or_less_than_one_request_is_told_from_one() {
        let whole = format!("{LINE}\r\n");
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end]), Arrived::Other, "{end}");
        }
        for other in [
            format!("{whole}{whole}"),
            format!("{whole}\r\n\r\n"),
            format!("{LINE}Content-Length: {}\r\n\r\n", whole.len()),
            format!("{LINE}Content-Length: {}\r\n\r\n{whole}", whole.len()),
            format!("{LINE}content-length: 0\r\n\r\n"),
            format!("{LINE}Transfer-Encoding: chunked\r\n\r\n"),
            format!("{LINE}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            format!("{LINE}Transfer-Encoding : chunked\r\n\r\n"),
            format!("{LINE}X: a\r\n Transfer-Encoding: chunked\r\n\r\n"),
            format!("{LINE}Expect: 100-continue\r\n\r\n"),
            format!("{LINE}Upgrade: h2c\r\n\r\n"),
            format!("{LINE}Connection: close\r\n\r\n"),
            format!("{LINE}Connection: keep-alive, upgrade\r\n\r\n"),
            format!("{LINE}{}\r\n", "Accept: x\r\n".repeat(MAX_HEADERS)),
            whole.replace("GET", "POST"),
            whole.replace("HTTP/1.1", "HTTP/1.0"),
            whole.replace("\r\n", "\n"),
            "\r\n\r\n".to_owned(),
        ] {
            assert_eq!(read(&other), Arrived::Other, "{other}");
        }
    }

    #[test]
    fn a_plain_target_is_made_of_the_bytes_that_need_no_thought() {
        for byte in 0..=u8::MAX {
            let text = [b'/', byte];
            let expected = byte.is_ascii_alphanumeric() || b"-._/:?=&".contains(&byte);
            assert_eq!(str::from_utf8(&text).is_ok_and(is_plain_target), expected, "{byte:#x}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(
            line in "(GET|HEAD|PUT) [/a-z%\\PC]{0,9} HTTP/1.[01]\r\n",
            headers in prop::collection::vec("(Host|Content-Length|X)[ :]{1,3}[\\PC]{0,4}\r\n?", 0..4),
            rest: Vec<u8>,
        ) {
            let mut bytes = format!("{line}{}\r\n", headers.concat()).into_bytes();
            let _ = Arrived::read(&bytes);
            bytes.extend(rest);
            if let Arrived::Ordinary(head) = Arrived::read(&bytes) {
                prop_assert!(bytes.ends_with(b"\r\n\r\n") && head.path.is_ascii());
            }
        }
    }
}
