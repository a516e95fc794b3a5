//! `multipart/byteranges`: several ranges in one answer (RFC 9110 §14.6).
//!
//! Podman's partial pulls of zstd:chunked and eStargz layers ask for hundreds of ranges at once, and take the
//! parts one by one for the chunks that they asked for.

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use hyper::header::HeaderValue;

use crate::oci::{ByteRange, ContentRange};
use crate::pull::{self, Chunk, Reader};

/// The frame around several ranges of one blob.
#[derive(Debug, Clone)]
pub(super) struct Multipart {
    boundary: String,
    /// Of the whole blob.
    size: u64,
}

impl Multipart {
    /// With a boundary that no content has: 128 random bits.
    pub(super) fn of(size: u64) -> Self {
        Self { boundary: format!("{:032x}", fastrand::u128(..)), size }
    }

    pub(super) fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// How long the body is with these ranges.
    pub(super) fn length(&self, ranges: &[ByteRange]) -> u64 {
        let heads =
            ranges.iter().enumerate().map(|(index, range)| self.head(*range, index == 0).len() as u64);
        heads.sum::<u64>() + ranges.iter().map(ByteRange::len).sum::<u64>() + self.end().len() as u64
    }

    /// The ranges that `reader` reads, the first of which is `first`, each behind its head; with `files` as slices of
    /// files where there are any.
    pub(super) fn stream(
        self,
        reader: Reader,
        first: ByteRange,
        files: bool,
    ) -> impl Stream<Item = Result<Chunk, pull::Error>> + Send {
        let head = self.head(first, true);
        let memory = |bytes| Ok(Chunk::Memory(bytes));
        unfold(Some((self, reader, Some(head))), move |state| async move {
            let (multipart, mut reader, head) = state?;
            if let Some(head) = head {
                return Some((memory(head), Some((multipart, reader, None))));
            }
            match reader.next(files).await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some((multipart, reader, None)))),
                Ok(None) => Some(match reader.next_range() {
                    Some(range) => (memory(multipart.head(range, false)), Some((multipart, reader, None))),
                    None => (memory(multipart.end()), None),
                }),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// What stands before a range.
    fn head(&self, range: ByteRange, is_first: bool) -> Bytes {
        let line_end = if is_first { "" } else { "\r\n" };
        let boundary = &self.boundary;
        let content_range = ContentRange { range: Some(range), size: Some(self.size) };
        format!(
            "{line_end}--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {content_range}\r\n\r\n"
        )
        .into()
    }

    /// What stands behind the last one.
    fn end(&self) -> Bytes {
        format!("\r\n--{}--\r\n", self.boundary).into()
    }
}

/// The value of a header, which is ASCII by construction.
impl From<&Multipart> for HeaderValue {
    fn from(multipart: &Multipart) -> Self {
        Self::from_str(&multipart.content_type()).expect("a hexadecimal boundary")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_looks_as_the_rfc_shows_it() {
        let multipart = Multipart { boundary: "THIS".to_owned(), size: 8000 };
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let head =
            "--THIS\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 500-999/8000\r\n\r\n";
        assert_eq!(text(multipart.head(ByteRange::new(500, 1000), true)), head);
        assert_eq!(text(multipart.head(ByteRange::new(500, 1000), false)), format!("\r\n{head}"));
        assert_eq!(text(multipart.end()), "\r\n--THIS--\r\n");
        let ranges = [ByteRange::new(0, 10), ByteRange::new(500, 1000)];
        let framing = multipart.head(ranges[0], true).len() + 2 + head.len() + multipart.end().len();
        assert_eq!(multipart.length(&ranges), framing as u64 + 510);
        assert_eq!(HeaderValue::from(&multipart), "multipart/byteranges; boundary=THIS");
    }
}
