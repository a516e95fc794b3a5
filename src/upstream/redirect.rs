//! Where a redirect leads. Pure.

use hyper::Uri;

use crate::routing::Site;

/// Why a redirect is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RedirectError {
    #[error("it redirects without saying where to")]
    NoLocation,
    #[error("it redirects to something that is no URL")]
    NotAUrl,
    #[error("it redirects from https to plain http")]
    Downgrade,
    #[error("it redirects more often than max_redirects allows")]
    TooMany,
}

/// The absolute URL that `location` means, seen from `current`, and its site (RFC 9110 §10.2.2).
pub(super) fn target(current: &Uri, location: &str) -> Result<(Uri, Site), RedirectError> {
    let location = location.split('#').next().unwrap_or_default().trim();
    let text = resolve(current, location).ok_or(RedirectError::NoLocation)?;
    let target: Uri = text.parse().map_err(|_| RedirectError::NotAUrl)?;
    let site = Site::of(&target).map_err(|_| RedirectError::NotAUrl)?;
    if current.scheme_str() == Some("https") && !site.is_secure() {
        return Err(RedirectError::Downgrade);
    }
    Ok((target, site))
}

fn resolve(current: &Uri, location: &str) -> Option<String> {
    let scheme = current.scheme_str()?;
    let authority = current.authority()?;
    if location.is_empty() {
        return None;
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let path = current.path();
    if location.starts_with('?') {
        return Some(format!("{scheme}://{authority}{path}{location}"));
    }
    // A colon before any slash, question mark or hash is the end of a scheme (RFC 3986 §4.2).
    let head = location.split(['/', '?']).next().unwrap_or_default();
    if head.contains(':') {
        return Some(location.to_owned());
    }
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    Some(format!("{scheme}://{authority}{directory}/{location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(current: &str, location: &str) -> Result<String, RedirectError> {
        target(&current.parse().unwrap(), location).map(|(uri, _)| uri.to_string())
    }

    #[test]
    fn every_form_of_location_is_understood() {
        let here = "https://r.example/v2/a/blobs/sha256:1";
        for (location, expected) in [
            ("https://cdn.example/x?sig=1#f", "https://cdn.example/x?sig=1"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("/y?z", "https://r.example/y?z"),
            ("sha256:2", "error"),
            ("other", "https://r.example/v2/a/blobs/other"),
            ("?part=2", "https://r.example/v2/a/blobs/sha256:1?part=2"),
        ] {
            assert_eq!(to(here, location).unwrap_or_else(|_| "error".to_owned()), expected, "{location}");
        }
    }

    #[test]
    fn redirects_to_plain_http_or_to_nowhere_are_refused() {
        assert_eq!(to("https://r.example/", "http://r.example/"), Err(RedirectError::Downgrade));
        assert_eq!(to("http://r.example/", "http://s.example/x").unwrap(), "http://s.example/x");
        assert_eq!(to("http://r.example/", ""), Err(RedirectError::NoLocation));
        for location in ["ftp://x/", "https://user:word@x/", "https://", "https://a b/"] {
            assert_eq!(to("https://r.example/", location), Err(RedirectError::NotAUrl), "{location}");
        }
    }
}
