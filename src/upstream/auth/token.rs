//! The token exchange (distribution `docs/spec/auth/token.md`): one GET with Basic credentials or none.

use std::fmt::Write as _;
use std::time::Duration;

use hyper::{Method, StatusCode, Uri};
use serde::Deserialize;

use crate::routing::Login;
use crate::runtime::Timestamp;
use crate::upstream::body::{self, Pace, ReadError};
use crate::upstream::error::Error;
use crate::upstream::remote::{self, Outgoing, Remote};
use crate::upstream::response;

use super::{Token, TokenService, secret_header};

/// Tokens are a few KiB; the largest known have all groups of a user in them.
const MAX_REPLY: usize = 256 << 10;

/// The specification's default, for services that do not say how long a token lives.
const DEFAULT_LIFETIME: Duration = Duration::from_mins(1);

/// A token is renewed before its end, so that none expires on its way: a tenth of its life, at most this.
const LONGEST_MARGIN: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Reply {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Asks for a token. Bounded by its caller's deadline.
pub(super) async fn fetch(
    remote: &Remote,
    service: &TokenService,
    scope: &str,
    login: Option<&Login>,
) -> Result<Token, Error> {
    let asked_at = remote.now();
    let authorization = login.and_then(|login| secret_header(login.basic().expose()));
    let not_a_registry = |reason: String| Error::NotARegistry {
        at: remote.place().clone(),
        reason: format!("its token service {} {reason}", service.site),
    };
    let url = url(service, scope).ok_or_else(|| not_a_registry("has no valid URL".to_owned()))?;
    let request = Outgoing {
        method: Method::GET,
        accept: None,
        range: None,
        authorization: authorization.as_ref(),
        via: None,
    };
    let response = remote.request(&service.site, url, request).await?;
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        let text = body::drain(body, remote.config()).await;
        return Err(refusal(remote, service, &head, &text));
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
    let value = [reply.token, reply.access_token].into_iter().flatten().find(|value| !value.is_empty());
    let header = value
        .and_then(|value| secret_header(&format!("Bearer {value}")))
        .ok_or_else(|| not_a_registry("sends no usable token".to_owned()))?;
    Ok(Token { header, fresh_until: fresh_until(asked_at, reply.expires_in) })
}

fn refusal(
    remote: &Remote,
    service: &TokenService,
    head: &hyper::http::response::Parts,
    text: &[u8],
) -> Error {
    let at = remote.place().clone();
    let retry_after = response::retry_after(&head.headers, remote.now());
    let words = remote::words(head.status, text);
    match head.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => Error::Unauthorized {
            at,
            has_credential: remote.has_credential(),
            detail: format!("the token service {}: {words}", service.site),
        },
        StatusCode::TOO_MANY_REQUESTS => Error::RateLimited { at, retry_after },
        status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            unreachable(remote, service, &words, retry_after)
        }
        _ => {
            Error::NotARegistry { at, reason: format!("its token service {} answers {words}", service.site) }
        }
    }
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

fn fresh_until(asked_at: Timestamp, expires_in: Option<u64>) -> Timestamp {
    let lifetime = expires_in.map_or(DEFAULT_LIFETIME, Duration::from_secs);
    let usable = lifetime.saturating_sub((lifetime / 10).min(LONGEST_MARGIN));
    let millis = u64::try_from(usable.as_millis()).unwrap_or(u64::MAX);
    // Counted from the request: `issued_at` is another machine's clock.
    Timestamp::from_millis(asked_at.as_millis().saturating_add(millis))
}

/// The realm with service and scope added to whatever query it has.
fn url(service: &TokenService, scope: &str) -> Option<Uri> {
    let mut text = service.realm.to_string();
    let mut separator = if service.realm.query().is_some() { '&' } else { '?' };
    let named = service.service.as_deref().filter(|name| !name.is_empty()).map(|name| ("service", name));
    // Several scopes in one challenge are separated by spaces, and sent one by one.
    for (name, value) in named.into_iter().chain(scope.split(' ').map(|scope| ("scope", scope))) {
        text.push(separator);
        text.push_str(name);
        text.push('=');
        encode(value, &mut text);
        separator = '&';
    }
    text.parse().ok()
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

    #[test]
    fn service_and_scope_are_added_to_the_realms_own_query() {
        let service = |realm: &str, name: Option<&str>| TokenService {
            site: "https://a.example".parse().unwrap(),
            realm: realm.parse().unwrap(),
            service: name.map(str::to_owned),
            scope: ScopeRule::Fixed(String::new()),
        };
        let text = |realm, name, scope| url(&service(realm, name), scope).unwrap().to_string();
        assert_eq!(
            text("https://a.example/t", Some("r & s"), "repository:x/y:pull"),
            "https://a.example/t?service=r%20%26%20s&scope=repository:x/y:pull"
        );
        assert_eq!(text("https://a.example/t?a=b", None, "p q"), "https://a.example/t?a=b&scope=p&scope=q");
    }

    #[test]
    fn a_token_is_renewed_before_its_end() {
        let until = |expires_in| fresh_until(Timestamp::from_millis(0), expires_in).as_millis() / 1000;
        assert_eq!(until(None), 54);
        assert_eq!(until(Some(300)), 270);
        assert_eq!(until(Some(43_200)), 43_170);
        assert_eq!(until(Some(0)), 0);
        assert!(until(Some(u64::MAX)) > 1_000_000);
    }
}
