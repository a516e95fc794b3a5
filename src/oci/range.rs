//! Byte ranges of a blob: what a client asks for and what an upstream says it sent.
//!
//! Source: RFC 9110 §14. A `Range` that is not understood is ignored, as §14.2 demands, so parsing yields an
//! `Option` and never an error.

use std::fmt;
use std::str::FromStr;

use super::excerpt::excerpt;

/// Most ranges of one request; a header with more is ignored.
///
/// containers/storage merges its partial pulls until they fit in 1,024 ranges (`maxNumberMissingChunks`).
const MAX_RANGES: usize = 1024;

/// Bytes `start..end` of some content, the end excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub start: u64,
    /// Offset after the last byte.
    pub end: u64,
}

impl ByteRange {
    /// The bytes `start..end`; empty if `end` is not beyond `start`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }

    /// How many bytes.
    pub const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What both have, or `None` if that is nothing.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let both = Self::new(self.start.max(other.start), self.end.min(other.end));
        (!both.is_empty()).then_some(both)
    }
}

/// As in `Content-Range`: first and last byte, both included. An empty range has no such form.
impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end.saturating_sub(1))
    }
}

/// One element of a `Range` header, as the client wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    /// `first-last`, both included.
    Bounded {
        /// First byte.
        first: u64,
        /// Last byte, not before the first.
        last: u64,
    },
    /// `first-`: from there to the end.
    From {
        /// First byte.
        first: u64,
    },
    /// `-length`: the last bytes.
    Suffix {
        /// How many.
        length: u64,
    },
}

impl RangeSpec {
    fn parse(text: &str) -> Option<Self> {
        match text.split_once('-')? {
            ("", length) => Some(Self::Suffix { length: number(length)? }),
            (first, "") => Some(Self::From { first: number(first)? }),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Bounded { first, last })
            }
        }
    }

    /// The bytes it means in content of `size` bytes, clamped to it; `None` if that is nothing.
    pub fn resolve(&self, size: u64) -> Option<ByteRange> {
        let range = match *self {
            Self::Bounded { first, last } => ByteRange::new(first, last.saturating_add(1).min(size)),
            Self::From { first } => ByteRange::new(first, size),
            Self::Suffix { length } => ByteRange::new(size.saturating_sub(length), size),
        };
        (!range.is_empty()).then_some(range)
    }
}

impl fmt::Display for RangeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bounded { first, last } => write!(f, "{first}-{last}"),
            Self::From { first } => write!(f, "{first}-"),
            Self::Suffix { length } => write!(f, "-{length}"),
        }
    }
}

/// A `Range` header in bytes: at least one element, at most 1,024.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    specs: Vec<RangeSpec>,
}

impl RangeRequest {
    /// Reads a `Range` field; `None` means it is to be ignored: another unit, broken syntax, too many ranges.
    pub fn parse(header_value: &str) -> Option<Self> {
        let (unit, set) = header_value.split_once('=')?;
        if !unit.trim_matches(WHITESPACE).eq_ignore_ascii_case("bytes") {
            return None;
        }
        // Empty list elements are legal (RFC 9110 §5.6.1), so they count against the bound but mean nothing.
        if set.split(',').nth(MAX_RANGES).is_some() {
            return None;
        }
        let elements = set.split(',').map(|element| element.trim_matches(WHITESPACE));
        let specs: Vec<RangeSpec> =
            elements.filter(|element| !element.is_empty()).map(RangeSpec::parse).collect::<Option<_>>()?;
        (!specs.is_empty()).then_some(Self { specs })
    }

    /// The request for `first-`, as a broken transfer is taken up again.
    pub fn from_offset(first: u64) -> Self {
        Self { specs: vec![RangeSpec::From { first }] }
    }

    /// The elements in the client's order.
    pub fn specs(&self) -> &[RangeSpec] {
        &self.specs
    }

    /// What it means for content of `size` bytes.
    ///
    /// Elements past the end are dropped, those across it clamped. The order stays the client's. Overlapping
    /// elements become one (at the place of the first), so the total never exceeds `size`; adjacent ones stay
    /// apart, because containers/image takes the parts of the answer one by one for the chunks it asked for
    /// and fails if there are fewer.
    pub fn resolve(&self, size: u64) -> Resolved {
        let ranges = self.specs.iter().filter_map(|spec| spec.resolve(size)).collect();
        let ranges = merge_overlapping(ranges);
        match ranges.as_slice() {
            [] => Resolved::Unsatisfiable,
            [range] => Resolved::Single(*range),
            _ => Resolved::Several(ranges),
        }
    }
}

/// What can be put in a `Range` field.
impl fmt::Display for RangeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes=")?;
        for (index, spec) in self.specs.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{spec}")?;
        }
        Ok(())
    }
}

/// The bytes a [`RangeRequest`] means in content of known size. Every range lies within it and is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// One range: 206 with `Content-Range`.
    Single(ByteRange),
    /// Two or more that do not overlap, in the client's order: 206 with `multipart/byteranges`.
    Several(Vec<ByteRange>),
    /// Nothing of it exists: 416 with `Content-Range: bytes */size`.
    Unsatisfiable,
}

/// A `Content-Range` field in bytes: `bytes 0-9/100`, `bytes 0-9/*` or `bytes */100` (RFC 9110 §14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The bytes sent; `None` with a 416.
    pub range: Option<ByteRange>,
    /// The whole content's size in bytes; `None` if the sender does not know it.
    pub size: Option<u64>,
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range {
            Some(range) => write!(f, "bytes {range}/")?,
            None => f.write_str("bytes */")?,
        }
        match self.size {
            Some(size) => write!(f, "{size}"),
            None => f.write_str("*"),
        }
    }
}

/// A range must lie within its size; one of the two must be there.
impl FromStr for ContentRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        parse_content_range(text).ok_or_else(|| RangeError { text: excerpt(text, 64) })
    }
}

/// A text is no `Content-Range` in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid Content-Range {text:?}")]
pub struct RangeError {
    /// The text, cut short.
    pub text: String,
}

const WHITESPACE: [char; 2] = [' ', '\t'];

/// Digits only. What exceeds 64 bits is beyond the end of any content, so it saturates.
fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// Unites what overlaps, keeping the order of first mention.
fn merge_overlapping(ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    // Sorted by offset, so that each range can only overlap the group before it.
    let mut by_offset: Vec<(usize, ByteRange)> = ranges.into_iter().enumerate().collect();
    by_offset.sort_unstable_by_key(|&(index, range)| (range, index));
    let mut merged: Vec<(usize, ByteRange)> = Vec::with_capacity(by_offset.len());
    for (index, range) in by_offset {
        match merged.last_mut() {
            Some((first, group)) if range.start < group.end => {
                group.end = group.end.max(range.end);
                *first = index.min(*first);
            }
            _ => merged.push((index, range)),
        }
    }
    merged.sort_unstable_by_key(|&(index, _)| index);
    merged.into_iter().map(|(_, range)| range).collect()
}

fn parse_content_range(text: &str) -> Option<ContentRange> {
    let (unit, rest) = text.trim_matches(WHITESPACE).split_once(WHITESPACE)?;
    let (range, size) = rest.trim_matches(WHITESPACE).split_once('/')?;
    let range = match range {
        "*" => None,
        range => match RangeSpec::parse(range)? {
            RangeSpec::Bounded { first, last } => Some(ByteRange::new(first, last.checked_add(1)?)),
            RangeSpec::From { .. } | RangeSpec::Suffix { .. } => return None,
        },
    };
    let size = match size {
        "*" => None,
        size => Some(number(size)?),
    };
    let consistent = match (range, size) {
        (Some(range), Some(size)) => range.end <= size,
        (None, None) => false,
        _ => true,
    };
    (unit.eq_ignore_ascii_case("bytes") && consistent).then_some(ContentRange { range, size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resolve(header: &str, size: u64) -> Option<Resolved> {
        RangeRequest::parse(header).map(|request| request.resolve(size))
    }

    fn single(start: u64, end: u64) -> Resolved {
        Resolved::Single(ByteRange::new(start, end))
    }

    #[test]
    fn one_range_is_clamped_to_the_content() {
        for (header, size, resolved) in [
            ("bytes=0-9", 100, single(0, 10)),
            ("bytes=90-200", 100, single(90, 100)),
            ("bytes=5-", 100, single(5, 100)),
            ("bytes=-10", 100, single(90, 100)),
            ("bytes=-200", 100, single(0, 100)),
            ("Bytes = 0-0", 1, single(0, 1)),
            ("bytes=0-99999999999999999999999", 7, single(0, 7)),
            ("bytes=, 1-2 ,", 7, single(1, 3)),
            ("bytes=100-", 100, Resolved::Unsatisfiable),
            ("bytes=-0", 100, Resolved::Unsatisfiable),
            ("bytes=0-", 0, Resolved::Unsatisfiable),
            ("bytes=-5", 0, Resolved::Unsatisfiable),
        ] {
            assert_eq!(resolve(header, size), Some(resolved), "{header}");
        }
    }

    #[test]
    fn a_range_that_is_not_understood_is_ignored() {
        let many = format!("bytes={}", "0-0,".repeat(MAX_RANGES));
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-2",
            "bytes=1-2,x",
            "items=0-1",
            "bytes=+1-2",
            "bytes=1--2",
            "bytes=1 - 2",
            "bytes=0x1-2",
            &many,
        ] {
            assert_eq!(RangeRequest::parse(header), None, "{header}");
        }
    }

    #[test]
    fn several_ranges_keep_the_order_and_number_that_partial_pulls_count_on() {
        let several = |ranges: &[(u64, u64)]| {
            Some(Resolved::Several(ranges.iter().map(|&(start, end)| ByteRange::new(start, end)).collect()))
        };
        assert_eq!(resolve("bytes=50-59,0-9", 100), several(&[(50, 60), (0, 10)]));
        assert_eq!(resolve("bytes=0-9,10-19", 100), several(&[(0, 10), (10, 20)]));
        assert_eq!(resolve("bytes=50-59,0-9,55-69", 100), several(&[(50, 70), (0, 10)]));
        assert_eq!(resolve("bytes=0-9,5-14,900-", 100), Some(single(0, 15)));
        assert_eq!(resolve("bytes=0-,0-,0-", 100), Some(single(0, 100)));
    }

    #[test]
    fn content_ranges_that_contradict_themselves_are_refused() {
        for text in ["bytes 0-9/100", "bytes 0-9/*", "bytes */100", "bytes 0-9/10"] {
            assert_eq!(text.parse::<ContentRange>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "bytes",
            "bytes */*",
            "bytes 0-9",
            "bytes 0-10/10",
            "bytes 9-0/10",
            "bytes 0-/10",
            "bytes -5/10",
            "items 0-9/10",
            "bytes=0-9/10",
            "bytes 0-18446744073709551615/*",
        ] {
            assert!(text.parse::<ContentRange>().is_err(), "{text}");
        }
    }

    fn specs() -> impl Strategy<Value = RangeSpec> {
        let offset = || prop_oneof![0_u64..40, Just(u64::MAX), any::<u64>()];
        prop_oneof![
            (offset(), offset()).prop_map(|(a, b)| RangeSpec::Bounded { first: a.min(b), last: a.max(b) }),
            offset().prop_map(|first| RangeSpec::From { first }),
            offset().prop_map(|length| RangeSpec::Suffix { length }),
        ]
    }

    proptest! {
        #[test]
        fn a_range_header_survives_its_text(specs in prop::collection::vec(specs(), 1..9)) {
            let request = RangeRequest { specs };
            prop_assert_eq!(RangeRequest::parse(&request.to_string()), Some(request));
        }

        #[test]
        fn resolved_ranges_cover_what_was_asked_within_the_size_and_once(
            specs in prop::collection::vec(specs(), 1..9),
            size in 0_u64..40,
        ) {
            let ranges = match (RangeRequest { specs: specs.clone() }).resolve(size) {
                Resolved::Single(range) => vec![range],
                Resolved::Several(ranges) => { prop_assert!(ranges.len() > 1); ranges }
                Resolved::Unsatisfiable => Vec::new(),
            };
            let contains = |range: &ByteRange, byte: u64| range.start <= byte && byte < range.end;
            for byte in 0..size {
                let asked = specs.iter().filter_map(|spec| spec.resolve(size)).any(|range| contains(&range, byte));
                let sent = ranges.iter().filter(|range| contains(range, byte)).count();
                prop_assert_eq!(sent, usize::from(asked), "byte {}", byte);
            }
            prop_assert!(ranges.iter().all(|range| !range.is_empty() && range.end <= size));
        }

        #[test]
        fn a_content_range_survives_its_text(start in 0..u64::MAX, length in 1..u64::MAX, more: Option<u64>) {
            let end = start.saturating_add(length);
            let size = more.map(|more| end.saturating_add(more));
            let sent = ContentRange { range: Some(ByteRange::new(start, end)), size };
            prop_assert_eq!(sent.to_string().parse(), Ok(sent));
        }

        #[test]
        fn any_header_is_read_without_panic(header in "(bytes)?[= ]?[0-9,*/ -]{0,30}|\\PC{0,20}") {
            let _ = RangeRequest::parse(&header);
            let _ = header.parse::<ContentRange>();
        }
    }
}
