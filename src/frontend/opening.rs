//! What the first bytes of a connection say that it is.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The connection preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The record type of a TLS handshake, with which every `ClientHello` begins (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// The language of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// A `ClientHello`.
    Tls,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else: HTTP/1.1 answers for what is none.
    Http1,
}

impl Opening {
    /// Judges by the first bytes; `None` while they may still become one or the other.
    pub(super) fn recognise(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [] => None,
            [TLS_HANDSHAKE, ..] => Some(Self::Tls),
            _ if bytes.starts_with(PREFACE) => Some(Self::Http2),
            _ if PREFACE.starts_with(bytes) => None,
            _ => Some(Self::Http1),
        }
    }

    /// Reads until it is clear what the connection is, or the client has no more to say. What was read is in
    /// `head`, which holds what was read before.
    pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S, head: &mut BytesMut) -> io::Result<Self> {
        loop {
            if let Some(opening) = Self::recognise(head) {
                return Ok(opening);
            }
            if stream.read_buf(head).await? == 0 {
                return if head.is_empty() {
                    Err(io::ErrorKind::UnexpectedEof.into())
                } else {
                    Ok(Self::Http1)
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_tells_most_and_the_preface_is_waited_for() {
        for (bytes, expected) in [
            (&b""[..], None),
            (b"\x16", Some(Opening::Tls)),
            (b"\x16\x03\x01\x02\x00\x01", Some(Opening::Tls)),
            (b"G", Some(Opening::Http1)),
            (b"P", None),
            (b"PUT /v2/", Some(Opening::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\n", None),
            (b"PRI * HTTP/1.1\r\n\r\n", Some(Opening::Http1)),
            (PREFACE, Some(Opening::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Some(Opening::Http2)),
            (b"\x80\x2e\x01", Some(Opening::Http1)),
        ] {
            assert_eq!(Opening::recognise(bytes), expected, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn what_was_read_is_kept_and_a_silent_end_is_an_error() {
        let mut head = BytesMut::from(&b"PRI * HT"[..]);
        let mut rest = &b"TP/2.0\r\n\r\nSM\r\n\r\nx"[..];
        assert_eq!(Opening::read(&mut rest, &mut head).await.unwrap(), Opening::Http2);
        assert_eq!(&head[24..], b"x");
        assert!(Opening::read(&mut &b""[..], &mut BytesMut::new()).await.is_err());
        let mut cut = BytesMut::new();
        assert_eq!(Opening::read(&mut &b"PRI"[..], &mut cut).await.unwrap(), Opening::Http1);
    }
}
