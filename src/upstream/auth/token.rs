//! The token exchange (distribution `docs/spec/auth/token.md` and `oauth.md`): a GET with Basic credentials or
//! none, or the POST of a form.
//!
//! A redirect is never followed: whatever is sent here is for the site that the configuration allows.

use std::fmt::Write as _;
use std::time::Duration;

use hyper::header::{DATE, HeaderValue};
use hyper::http::response::Parts;
use hyper::{Method, StatusCode, Uri};
use serde::Deserialize;
use tokio::time::Instant;

use crate::routing::Login;
use crate::runtime::{Secret, Timestamp};
use crate::upstream::body::{self, Pace, ReadError};
use crate::upstream::error::{Error, Whose};
use crate::upstream::remote::{self, Outgoing, Remote};
use crate::upstream::response;

use super::{TokenService, secret_header};

/// Tokens are a few KiB; the largest known have all groups of a user in them.
const MAX_REPLY: usize = 256 << 10;

/// The specification's default, for services that do not say how long a token lives.
const DEFAULT_LIFETIME: Duration = Duration::from_mins(1);

/// A token is renewed before its end, so that none expires on its way: a tenth of its life, at most this.
const LONGEST_MARGIN: Duration = Duration::from_secs(30);

/// Who this is, to services that ask.
const CLIENT_ID: &str = "clawhub-edge";

/// A token, and for how long it is sent.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    asked_at: Timestamp,
    pub(super) asked: Instant,
    usable_for: Duration,
}

impl Token {
    /// Whether it may still be sent at `now`. Of the two clocks the less favourable counts: the machine's may
    /// have been set, the process's stands still while the machine sleeps.
    pub(super) fn is_fresh(&self, now: Timestamp) -> bool {
        let by_the_clock = now.since(self.asked_at).is_some_and(|age| age < self.usable_for);
        by_the_clock && self.asked.elapsed() < self.usable_for
    }
}

/// What a token service has given.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) token: Token,
    /// What to send next time in place of the refresh token that was sent.
    pub(super) refresh_token: Option<Secret>,
}

/// A token service's "no", with the status if there was one.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: Option<StatusCode>,
    pub(super) error: Error,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { status: None, error }
    }
}

/// How a token is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Grant<'a> {
    /// `GET`, without a login.
    Anonymous,
    /// `GET` with user name and password.
    Basic(&'a Login),
    /// `POST` of user name and password.
    Password { username: &'a str, password: &'a Secret },
    /// `POST` of a refresh token.
    Refresh(&'a Secret),
}

#[derive(Deserialize)]
struct Reply {
    token: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
    expires_in: Option<u64>,
    issued_at: Option<String>,
}

/// Asks for a token. Bounded by its caller's deadline.
pub(super) async fn fetch(
    remote: &Remote,
    service: &TokenService,
    scope: &str,
    grant: Grant<'_>,
    whose: Whose,
) -> Result<Issued, Refusal> {
    let (asked_at, asked) = (remote.now(), Instant::now());
    let not_a_registry = |reason: String| Error::NotARegistry {
        at: remote.place().clone(),
        reason: format!("its token service {} {reason}", service.site),
    };
    let form = form(service, scope, grant);
    let url = if form.is_some() { Some(service.realm.clone()) } else { url(service, scope) };
    let url = url.ok_or_else(|| not_a_registry("has no valid URL".to_owned()))?;
    let basic = match grant {
        Grant::Basic(login) => login.basic(),
        Grant::Anonymous | Grant::Password { .. } | Grant::Refresh(_) => None,
    };
    let authorization = basic.and_then(|basic| secret_header(basic.expose()));
    let request = Outgoing {
        method: if form.is_some() { Method::POST } else { Method::GET },
        accept: None,
        range: None,
        authorization: authorization.as_ref(),
        via: None,
        form: form.as_ref(),
    };
    let response = remote.request(&service.site, url, request).await?;
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        let text = body::drain(body, remote.config()).await;
        let error = refusal(remote, service, &head, &text, whose);
        return Err(Refusal { status: Some(head.status), error });
    }
    let text =
        body::read_all(body, MAX_REPLY, Pace::new(remote.config())).await.map_err(|error| match error {
            ReadError::TooLong => not_a_registry(format!("sends more than {MAX_REPLY} bytes")),
            ReadError::Broken(reason) => unreachable(remote, service, &reason, None),
            ReadError::TooSlow => unreachable(remote, service, "its reply stalls", None),
        })?;
    // serde's message would quote the reply, which holds the token.
    let reply: Reply =
        serde_json::from_slice(&text).map_err(|_| not_a_registry("sends no JSON".to_owned()))?;
    let usable_for = usable_for(reply.expires_in, age_when_sent(&head, reply.issued_at.as_deref()));
    let value = [reply.token, reply.access_token].into_iter().flatten().find(|value| !value.is_empty());
    let header = value
        .and_then(|value| secret_header(&format!("Bearer {value}")))
        .ok_or_else(|| not_a_registry("sends no usable token".to_owned()))?;
    let refresh_token = reply.refresh_token.filter(|token| !token.is_empty()).map(Secret::new);
    Ok(Issued { token: Token { header, asked_at, asked, usable_for }, refresh_token })
}

fn refusal(remote: &Remote, service: &TokenService, head: &Parts, text: &[u8], whose: Whose) -> Error {
    let at = remote.place().clone();
    let retry_after = response::retry_after(&head.headers, remote.now());
    let words = oauth_code(text)
        .map_or_else(|| remote::words(head.status, text), |code| format!("{}, {code}", head.status.as_u16()));
    match head.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
            Error::Unauthorized { at, whose, detail: format!("the token service {}: {words}", service.site) }
        }
        StatusCode::TOO_MANY_REQUESTS => Error::RateLimited { at, retry_after },
        status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            unreachable(remote, service, &words, retry_after)
        }
        _ => {
            Error::NotARegistry { at, reason: format!("its token service {} answers {words}", service.site) }
        }
    }
}

/// The code of an OAuth 2.0 error (RFC 6749 §5.2), such as `invalid_grant`.
fn oauth_code(text: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Document {
        error: String,
    }
    let Document { error } = serde_json::from_slice(text).ok()?;
    let is_code = error.len() <= 64 && error.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    is_code.then_some(error)
}

fn unreachable(
    remote: &Remote,
    service: &TokenService,
    reason: &str,
    retry_after: Option<Duration>,
) -> Error {
    let reason = format!("the token service {}: {reason}", service.site);
    Error::Unreachable { at: remote.place().clone(), reason, retry_after }
}

/// How long a token is sent, counted from the request for it.
fn usable_for(expires_in: Option<u64>, age: Duration) -> Duration {
    let lifetime = expires_in.map_or(DEFAULT_LIFETIME, Duration::from_secs).saturating_sub(age);
    lifetime.saturating_sub((lifetime / 10).min(LONGEST_MARGIN))
}

/// How old a token was already when it was sent: `expires_in` counts from `issued_at`. That is another machine's
/// clock, so it is compared with what the same answer calls its date.
fn age_when_sent(head: &Parts, issued_at: Option<&str>) -> Duration {
    let age = || {
        let issued_at: jiff::Timestamp = issued_at?.parse().ok()?;
        let date = head.headers.get(DATE)?.to_str().ok()?;
        let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
        Duration::try_from(date.duration_since(issued_at)).ok()
    };
    age().unwrap_or_default()
}

/// What is posted, where the grant is one of a form.
fn form(service: &TokenService, scope: &str, grant: Grant<'_>) -> Option<Secret> {
    let (kind, proof) = match grant {
        Grant::Anonymous | Grant::Basic(_) => return None,
        Grant::Password { username, password } => {
            ("password", vec![("username", username), ("password", password.expose())])
        }
        Grant::Refresh(token) => ("refresh_token", vec![("refresh_token", token.expose())]),
    };
    let named = service.named().map(|name| ("service", name));
    let fields = [("grant_type", kind)].into_iter().chain(named);
    let fields = fields.chain([("scope", scope), ("client_id", CLIENT_ID)]).chain(proof);
    let mut text = String::new();
    for (name, value) in fields {
        let separator = if text.is_empty() { "" } else { "&" };
        append(&mut text, separator, name, value);
    }
    Some(Secret::new(text))
}

/// The realm with service and scope added to whatever query it has.
fn url(service: &TokenService, scope: &str) -> Option<Uri> {
    let mut text = service.realm.to_string();
    let mut separator = if service.realm.query().is_some() { "&" } else { "?" };
    let named = service.named().map(|name| ("service", name));
    // Several scopes in one challenge are separated by spaces, and sent one by one.
    for (name, value) in named.into_iter().chain(scope.split(' ').map(|scope| ("scope", scope))) {
        append(&mut text, separator, name, value);
        separator = "&";
    }
    text.parse().ok()
}

fn append(text: &mut String, separator: &str, name: &str, value: &str) {
    text.push_str(separator);
    text.push_str(name);
    text.push('=');
    encode(value, text);
}

/// Percent-encodes what RFC 3986 does not let stand in a query value, keeping `:`, `/` and `,` readable.
fn encode(value: &str, text: &mut String) {
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b',' => {
                text.push(char::from(byte));
            }
            _ => {
                // Writing to a String never fails.
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ScopeRule;
    use super::*;

    fn service(realm: &str, name: Option<&str>) -> TokenService {
        TokenService {
            site: "https://a.example".parse().unwrap(),
            realm: realm.parse().unwrap(),
            service: name.map(str::to_owned),
            scope: ScopeRule::Fixed(String::new()),
        }
    }

    #[test]
    fn service_and_scope_are_added_to_the_realms_own_query() {
        let text = |realm, name, scope| url(&service(realm, name), scope).unwrap().to_string();
        assert_eq!(
            text("https://a.example/t", Some("r & s"), "repository:x/y:pull"),
            "https://a.example/t?service=r%20%26%20s&scope=repository:x/y:pull"
        );
        assert_eq!(text("https://a.example/t?a=b", None, "p q"), "https://a.example/t?a=b&scope=p&scope=q");
    }

    #[test]
    fn a_form_holds_what_the_grant_needs_and_no_more() {
        let text = |name, grant| form(&service("https://a.example/t", name), "repository:x:pull", grant);
        let secret = Secret::new("a&b=c+d");
        assert_eq!(
            text(Some("r s"), Grant::Refresh(&secret)).unwrap().expose(),
            "grant_type=refresh_token&service=r%20s&scope=repository:x:pull&client_id=clawhub-edge\
             &refresh_token=a%26b%3Dc%2Bd"
        );
        assert_eq!(
            text(None, Grant::Password { username: "me", password: &secret }).unwrap().expose(),
            "grant_type=password&scope=repository:x:pull&client_id=clawhub-edge&username=me\
             &password=a%26b%3Dc%2Bd"
        );
        assert_eq!(text(None, Grant::Anonymous), None);
    }

    #[test]
    fn a_token_is_renewed_before_its_end() {
        let seconds = |expires_in, age| usable_for(expires_in, Duration::from_secs(age)).as_secs();
        assert_eq!(seconds(None, 0), 54);
        assert_eq!(seconds(Some(300), 0), 270);
        assert_eq!(seconds(Some(43_200), 0), 43_170);
        assert_eq!(seconds(Some(0), 0), 0);
        assert_eq!(seconds(Some(300), 200), 90);
        assert_eq!(seconds(Some(300), 301), 0);
        assert!(seconds(Some(u64::MAX), 0) > 1_000_000);
    }

    #[test]
    fn the_age_of_a_token_is_told_by_its_services_clock_alone() {
        let age = |date: &str, issued_at| {
            let response = hyper::Response::builder().header(DATE, date).body(()).unwrap();
            age_when_sent(&response.into_parts().0, issued_at).as_secs()
        };
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(age(date, Some("1994-11-06T08:47:37Z")), 120);
        assert_eq!(age(date, Some("1994-11-06T08:49:37.5+00:00")), 0, "in its own future");
        assert_eq!(age(date, Some("yesterday")), 0);
        assert_eq!(age(date, None), 0);
        assert_eq!(age("whenever", Some("1994-11-06T08:47:37Z")), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_never_prolongs_a_tokens_life() {
        let at = |seconds: u64| Timestamp::from_millis(seconds * 1000);
        let token = Token {
            header: HeaderValue::from_static("Bearer x"),
            asked_at: at(10_000),
            asked: Instant::now(),
            usable_for: Duration::from_mins(1),
        };
        assert!(token.is_fresh(at(10_059)));
        assert!(!token.is_fresh(at(10_060)), "also after a sleep of the machine");
        assert!(!token.is_fresh(at(9_999)), "set back: nothing is known of its age");
        tokio::time::advance(Duration::from_mins(1)).await;
        assert!(!token.is_fresh(at(10_001)), "set back a little");
    }

    #[test]
    fn only_the_code_of_an_oauth_error_is_repeated() {
        assert_eq!(
            oauth_code(br#"{"error":"invalid_grant","error_description":"x"}"#).unwrap(),
            "invalid_grant"
        );
        assert_eq!(oauth_code(br#"{"error":"The token <x> is wrong"}"#), None);
        assert_eq!(oauth_code(b"<html>"), None);
    }
}
