//! Percent-encoding, as paths and queries need it (RFC 3986 §2.1; WHATWG URL §5 for `+` in forms).

use std::borrow::Cow;

/// A path segment decoded, or `None` for a broken escape or bytes that are not UTF-8.
pub(super) fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let (&[high, low], after) = tail.split_first_chunk::<2>()?;
            bytes.push(hex_value(high)? << 4 | hex_value(low)?);
            rest = after;
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// A query's key or value decoded; `+` is a space.
pub(super) fn decode_form(text: &str) -> Option<String> {
    decode(&text.replace('+', "%20")).map(Cow::into_owned)
}

/// A text as it stands in the path of a URL, or as a query's key or value: everything but RFC 3986 "unreserved", `/` and `:`
/// escaped.
pub fn encode(text: impl AsRef<[u8]>) -> String {
    let text = text.as_ref();
    let mut encoded = String::with_capacity(text.len());
    for &byte in text {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                encoded.push(char::from(byte));
            }
            _ => {
                encoded.push('%');
                encoded.push(hex_digit(byte >> 4));
                encoded.push(hex_digit(byte & 0x0f));
            }
        }
    }
    encoded
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn hex_digit(value: u8) -> char {
    char::from(b"0123456789ABCDEF"[usize::from(value & 0x0f)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn broken_escapes_are_refused() {
        for broken in ["%", "%4", "%zz", "a%2", "%ff", "%c3%28"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }

    proptest! {
        #[test]
        fn encoding_is_undone_by_decoding(text: String) {
            let encoded = encode(&text);
            prop_assert_eq!(decode(&encoded).map(Cow::into_owned), Some(text.clone()));
            prop_assert_eq!(decode_form(&encoded), Some(text));
        }

        #[test]
        fn decoding_never_panics(text in "[%+a-f0-9\\PC]{0,24}") {
            let _ = decode(&text);
            let _ = decode_form(&text);
        }
    }
}
