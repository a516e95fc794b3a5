//! One line of the access log, written without an event of `tracing`.
//!
//! It looks exactly like one: same time, same quoting, same keys. An event with as many fields costs an allocation for
//! each of them, a visit through the layers and a `write` of its own: a fifth of what serving a small manifest costs.
//! Filters decide as they do for events of the target [`ACCESS`].

use std::cell::RefCell;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use super::LogFormat;
use super::lines::Lines;

/// What filters call the access log.
const ACCESS: &str = "clawhub_edge::access";

/// A long line's buffer is not kept.
const KEPT_BUFFER: usize = 8 << 10;

thread_local! {
    // Scratch space: no line allocates.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// What a thread keeps from one line to the next.
struct Scratch {
    text: Vec<u8>,
    clock: Clock,
}

impl Scratch {
    const fn new() -> Self {
        Self { text: Vec::new(), clock: Clock { second: u64::MAX, text: [0; Clock::LENGTH] } }
    }
}

/// Date and time to the second, as text: it is the same for thousands of lines.
struct Clock {
    second: u64,
    text: [u8; Clock::LENGTH],
}

/// Where the lines of the access log go. Clones share it.
#[derive(Debug, Clone)]
pub struct AccessLog {
    pub(super) lines: Lines,
    pub(super) style: Style,
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Text,
    /// Text with the colours of a terminal.
    Colours,
    Json,
}

impl Style {
    pub(super) fn new(format: LogFormat, is_terminal: bool) -> Self {
        match format {
            LogFormat::Text if is_terminal => Self::Colours,
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

impl AccessLog {
    /// Writes one line with these fields, in the order in which they are given; nothing, where the filter does not let
    /// the access log through.
    pub fn write(&self, fields: impl FnOnce(&mut Line<'_>)) {
        if !tracing::enabled!(target: ACCESS, tracing::Level::INFO) {
            return;
        }
        SCRATCH.with_borrow_mut(|Scratch { text, clock }| {
            text.clear();
            text.shrink_to(KEPT_BUFFER);
            let mut line = Line { text, style: self.style };
            line.begin(clock, now());
            fields(&mut line);
            line.end();
            self.lines.push(text, false);
        });
    }
}

/// A line in the making.
#[derive(Debug)]
pub struct Line<'a> {
    text: &'a mut Vec<u8>,
    style: Style,
}

impl Line<'_> {
    /// A text that anybody may have written: quoted and escaped.
    pub fn quoted(&mut self, name: &str, value: &str) {
        self.name(name);
        if is_plain(value) {
            self.text.push(b'"');
            self.text.extend_from_slice(value.as_bytes());
            self.text.push(b'"');
            return;
        }
        // Writing to memory cannot fail.
        let _ = match self.style {
            Style::Text | Style::Colours => write!(self.text, "{value:?}"),
            Style::Json => write!(self.text, "{}", serde_json::Value::from(value)),
        };
    }

    /// A word that is safe as it is: a token, a name of our own.
    pub fn word(&mut self, name: &str, value: &str) {
        self.name(name);
        self.mark();
        self.text.extend_from_slice(value.as_bytes());
        self.mark();
    }

    /// An address with a port.
    pub fn address(&mut self, name: &str, value: SocketAddr) {
        self.name(name);
        self.mark();
        match value {
            // What `Display` says, at a tenth of its cost.
            SocketAddr::V4(address) => {
                for (place, octet) in address.ip().octets().into_iter().enumerate() {
                    if place > 0 {
                        self.text.push(b'.');
                    }
                    self.digits(octet.into());
                }
                self.text.push(b':');
                self.digits(address.port().into());
            }
            SocketAddr::V6(address) => {
                // Writing to memory cannot fail.
                let _ = write!(self.text, "{address}");
            }
        }
        self.mark();
    }

    /// A number.
    pub fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.digits(value);
    }

    fn digits(&mut self, value: u64) {
        self.text.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// What stands around a text that needs no quotes.
    fn mark(&mut self) {
        if self.style == Style::Json {
            self.text.push(b'"');
        }
    }

    fn name(&mut self, name: &str) {
        match self.style {
            Style::Text => {
                self.text.push(b' ');
                self.text.extend_from_slice(name.as_bytes());
                self.text.push(b'=');
            }
            Style::Colours => {
                let _ = write!(self.text, " \x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m");
            }
            Style::Json => {
                self.text.extend_from_slice(b",\"");
                self.text.extend_from_slice(name.as_bytes());
                self.text.extend_from_slice(b"\":");
            }
        }
    }

    fn begin(&mut self, clock: &mut Clock, now: Duration) {
        let (before, after) = match self.style {
            Style::Text => ("", "  INFO clawhub_edge::access: request"),
            Style::Colours => (
                "\x1b[2m",
                "\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2mclawhub_edge::access\x1b[0m\x1b[2m:\x1b[0m request",
            ),
            Style::Json => ("{\"timestamp\":\"", "\",\"level\":\"INFO\",\"message\":\"request\""),
        };
        self.text.extend_from_slice(before.as_bytes());
        clock.push(self.text, now);
        self.text.extend_from_slice(after.as_bytes());
    }

    fn end(&mut self) {
        if self.style == Style::Json {
            self.text.extend_from_slice(b",\"target\":\"clawhub_edge::access\"}");
        }
        self.text.push(b'\n');
    }
}

/// Since 1970-01-01, as `tracing` reads it for its own lines.
#[expect(clippy::disallowed_methods, reason = "the time of a log line decides nothing")]
fn now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

impl Clock {
    const LENGTH: usize = "2026-11-26T18:40:56.".len();

    /// The time as `tracing`'s own lines have it: RFC 3339 with six digits of the second.
    fn push(&mut self, line: &mut Vec<u8>, now: Duration) {
        if self.second != now.as_secs() {
            self.second = now.as_secs();
            self.text = Self::write(now.as_secs());
        }
        line.extend_from_slice(&self.text);
        line.extend_from_slice(&digits::<6>(now.subsec_micros().into()));
        line.push(b'Z');
    }

    fn write(second: u64) -> [u8; Self::LENGTH] {
        let (days, second) = (second / 86_400, second % 86_400);
        let (year, month, day) = civil(days);
        let mut text = *b"....-..-..T..:..:...";
        text[..4].copy_from_slice(&digits::<4>(year));
        for (at, value) in
            [(5, month), (8, day), (11, second / 3600), (14, second / 60 % 60), (17, second % 60)]
        {
            text[at..at + 2].copy_from_slice(&digits::<2>(value));
        }
        text
    }
}

/// Year, month and day of a number of days since 1970-01-01 (H. Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`): a year begins in March there, so that the leap day is its last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + later, month, day)
}

/// `WIDTH` digits, with zeros before them.
fn digits<const WIDTH: usize>(mut value: u64) -> [u8; WIDTH] {
    let mut digits = [b'0'; WIDTH];
    for digit in digits.iter_mut().rev() {
        *digit += (value % 10) as u8;
        value /= 10;
    }
    digits
}

/// Whether a text needs no escape in either format, as nearly every one. It is looked at to its end, which is what lets
/// the compiler look at many bytes at once.
fn is_plain(text: &str) -> bool {
    let is_plain = |byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    text.bytes().fold(true, |all, byte| all & is_plain(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::fmt::MakeWriter;

    /// Our line and `tracing`'s for the same fields, without their times.
    fn both(format: LogFormat, colours: bool, path: &str, client: SocketAddr, number: u64) -> [String; 2] {
        let style = Style::new(format, colours);
        let mut text = Vec::new();
        let mut line = Line { text: &mut text, style };
        line.begin(&mut Scratch::new().clock, now());
        line.quoted("path", path);
        line.address("client", client);
        line.word("method", "GET");
        line.number("status", number);
        line.end();
        let event = Captured::default();
        let builder = tracing_subscriber::fmt().with_writer(event.clone()).with_ansi(colours);
        let emit = || {
            let method = hyper::Method::GET;
            tracing::info!(target: ACCESS, path, %client, %method, status = number, "request");
        };
        match format {
            LogFormat::Text => tracing::subscriber::with_default(builder.finish(), emit),
            LogFormat::Json => {
                let json = builder.json().flatten_event(true).with_current_span(false);
                tracing::subscriber::with_default(json.finish(), emit);
            }
        }
        let event = event.0.lock().unwrap().clone();
        [text, event].map(|line| without_time(std::str::from_utf8(&line).unwrap()))
    }

    fn without_time(line: &str) -> String {
        let at = line.find('T').expect("a date and a time");
        let end = at + line[at..].find('Z').expect("in UTC");
        // Date, time and fraction have the same width in every line.
        assert_eq!(end - at, "T18:40:56.123456".len(), "{line}");
        format!("{}{}", &line[..at - "2026-11-25".len()], &line[end..])
    }

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Captured {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn the_colours_are_those_of_an_event() {
        let [line, event] = both(LogFormat::Text, true, "/v2/", "[::1]:5".parse().unwrap(), 200);
        assert_eq!(line, event);
    }

    proptest! {
        #[test]
        fn the_time_is_that_of_the_clock(first in 0..253_402_300_800_000_u64, later in 0..2000_u64) {
            let mut clock = Scratch::new().clock;
            for millis in [first, first.saturating_sub(later)] {
                let mut text = Vec::new();
                clock.push(&mut text, Duration::from_millis(millis));
                let expected = crate::runtime::Timestamp::from_millis(millis).to_string().replace('Z', "000Z");
                prop_assert_eq!(std::str::from_utf8(&text).unwrap(), expected);
            }
        }

        #[test]
        fn a_line_looks_like_an_event_whatever_a_client_sends(
            path: String,
            client: SocketAddr,
            number: u64,
        ) {
            for format in [LogFormat::Text, LogFormat::Json] {
                let [line, event] = both(format, false, &path, client, number);
                prop_assert_eq!(&line, &event);
                prop_assert_eq!(line.matches('\n').count(), 1, "a line is one line");
            }
        }
    }
}
