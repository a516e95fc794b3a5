//! Foreign text made fit for an error message or a log line: short, one line, no control characters.

/// The first `limit` characters of `text`, with whatever could disturb a terminal or a log replaced by `·`,
/// and an ellipsis where something was cut off.
pub fn excerpt(text: &str, limit: usize) -> String {
    let mut rest = text.chars();
    let mut short: String = rest.by_ref().take(limit).map(harmless).collect();
    if rest.next().is_some() {
        short.push('…');
    }
    short
}

/// [`excerpt`] of bytes that need not be text.
pub(super) fn excerpt_of_bytes(bytes: &[u8], limit: usize) -> String {
    // A character takes at most four bytes, so nothing beyond this can be shown.
    let head = &bytes[..bytes.len().min(limit.saturating_mul(4).saturating_add(4))];
    excerpt(String::from_utf8_lossy(head).trim_ascii_start(), limit)
}

fn harmless(c: char) -> char {
    match c {
        // The second group reorders or hides what follows it (Unicode bidirectional and zero-width controls).
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => '·',
        c if c.is_control() => '·',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_page_of_html_becomes_one_short_line() {
        assert_eq!(excerpt_of_bytes(b"\r\n<html>\n<body>", 9), "<html>·<b…");
    }

    proptest! {
        #[test]
        fn an_excerpt_is_short_and_on_one_line(bytes: Vec<u8>, limit in 0_usize..40) {
            let short = excerpt_of_bytes(&bytes, limit);
            prop_assert!(short.chars().count() <= limit + 1);
            prop_assert!(!short.chars().any(char::is_control));
        }
    }
}
