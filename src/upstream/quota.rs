//! What the head of a response says about the number of requests that are left. Pure.
//!
//! Three spellings are in use: `ratelimit-remaining: 97;w=21600` (Docker Hub and other gateways, with or without the
//! window), `RateLimit: "default";r=97;t=50` with its policy (draft-ietf-httpapi-ratelimit-headers), and
//! `x-ratelimit-remaining`.

use std::time::Duration;

use hyper::header::HeaderMap;

use crate::runtime::Timestamp;

/// A reset that is larger than this is a date in seconds since 1970, not a time to wait.
const FIRST_DATE: u64 = 1_000_000_000;

/// A quota in the words of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Quota {
    pub(super) remaining: u64,
    /// How many there are in a window.
    pub(super) limit: Option<u64>,
    /// How long a window is.
    pub(super) window: Option<Duration>,
    /// When all of them are there again.
    pub(super) resets_in: Option<Duration>,
}

/// The quota of an answer that came at `now`; `None` if it says none.
pub(super) fn read(headers: &HeaderMap, now: Timestamp) -> Option<Quota> {
    structured(headers).or_else(|| plain(headers, "", now)).or_else(|| plain(headers, "x-", now))
}

fn plain(headers: &HeaderMap, prefix: &str, now: Timestamp) -> Option<Quota> {
    let text = |name: &str| headers.get(format!("{prefix}ratelimit-{name}"))?.to_str().ok();
    let number = |name: &str| text(name).and_then(leading_number);
    let window =
        [text("limit"), text("remaining")].into_iter().flatten().find_map(|text| parameter(text, "w"));
    let resets_in = number("reset").map(|reset| match reset.checked_sub(FIRST_DATE) {
        None => reset,
        Some(_) => reset.saturating_sub(now.as_millis() / 1000),
    });
    Some(Quota {
        remaining: number("remaining")?,
        limit: number("limit"),
        window: window.map(Duration::from_secs),
        resets_in: resets_in.map(Duration::from_secs),
    })
}

/// Of several quotas the one that ends first.
fn structured(headers: &HeaderMap) -> Option<Quota> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let stated = text("ratelimit")?;
    let policies = text("ratelimit-policy").unwrap_or_default();
    if let Some(remaining) = member(stated, "remaining") {
        // As the drafts before the eighth had it: limit=100, remaining=97, reset=50.
        let window = parameter(policies, "w").map(Duration::from_secs);
        let resets_in = member(stated, "reset").map(Duration::from_secs);
        return Some(Quota { remaining, limit: member(stated, "limit"), window, resets_in });
    }
    let quotas = stated.split(',').filter_map(|item| {
        let policy = policies.split(',').find(|policy| name(policy) == name(item)).unwrap_or_default();
        Some(Quota {
            remaining: parameter(item, "r")?,
            limit: parameter(policy, "q"),
            window: parameter(policy, "w").map(Duration::from_secs),
            resets_in: parameter(item, "t").map(Duration::from_secs),
        })
    });
    quotas.min_by_key(|quota| quota.remaining)
}

fn name(item: &str) -> &str {
    item.split(';').next().unwrap_or_default().trim()
}

/// `;key=number` of an item.
fn parameter(item: &str, key: &str) -> Option<u64> {
    item.split(';').skip(1).find_map(|pair| value(pair, key))
}

/// `key=number` of a dictionary.
fn member(dictionary: &str, key: &str) -> Option<u64> {
    dictionary.split(',').find_map(|pair| value(pair, key))
}

fn value(pair: &str, key: &str) -> Option<u64> {
    let (name, value) = pair.split_once('=')?;
    if name.trim() == key { leading_number(value) } else { None }
}

fn leading_number(text: &str) -> Option<u64> {
    let text = text.trim_start();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    type Lines<'a> = &'a [(&'a str, &'a str)];

    fn headers(lines: Lines<'_>) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            let name: HeaderName = name.parse().unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(pair).collect()
    }

    #[test]
    fn every_spelling_of_a_quota_is_understood() {
        let quota = |remaining, limit, window: Option<u64>, resets_in: Option<u64>| {
            let (window, resets_in) = (window.map(Duration::from_secs), resets_in.map(Duration::from_secs));
            Some(Quota { remaining, limit, window, resets_in })
        };
        let cases: [(Lines<'_>, Option<Quota>); 9] = [
            (
                &[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "97;w=21600")],
                quota(97, Some(100), Some(21_600), None),
            ),
            (
                &[("RateLimit-Limit", "600"), ("RateLimit-Remaining", "0"), ("RateLimit-Reset", "30")],
                quota(0, Some(600), None, Some(30)),
            ),
            (
                &[("RateLimit", "\"default\";r=50;t=30"), ("RateLimit-Policy", "\"default\";q=100;w=60")],
                quota(50, Some(100), Some(60), Some(30)),
            ),
            (
                &[
                    ("RateLimit", "\"hour\";r=9, \"day\";r=3"),
                    ("RateLimit-Policy", "\"hour\";q=10, \"day\";q=50"),
                ],
                quota(3, Some(50), None, None),
            ),
            (&[("RateLimit", "limit=100, remaining=50, reset=5")], quota(50, Some(100), None, Some(5))),
            (
                &[
                    ("X-RateLimit-Limit", "5000"),
                    ("X-RateLimit-Remaining", "4999"),
                    ("X-RateLimit-Reset", "1700000060"),
                ],
                quota(4999, Some(5000), None, Some(60)),
            ),
            (&[("x-ratelimit-remaining", "7")], quota(7, None, None, None)),
            (&[("ratelimit-limit", "100")], None),
            (&[("ratelimit-remaining", "unlimited")], None),
        ];
        let now = Timestamp::from_millis(1_700_000_000_000);
        for (lines, expected) in cases {
            assert_eq!(read(&headers(lines), now), expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(value in "[ -~]{0,40}") {
            for name in ["ratelimit", "ratelimit-policy", "ratelimit-remaining", "x-ratelimit-reset"] {
                let lines = [(name, value.as_str()), ("x-ratelimit-remaining", "1")];
                let _ = read(&headers(&lines), Timestamp::from_millis(0));
            }
        }
    }
}
