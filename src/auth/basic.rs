//! User name and password of a request (RFC 7617).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use super::Denial;
use crate::routing::Login;
use crate::runtime::Secret;

/// The login that a request offers, if any.
///
/// # Errors
/// [`Denial::Unusable`] where there is an `Authorization` that is none, or several.
pub(super) fn login(headers: &HeaderMap) -> Result<Option<Login>, Denial> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().map_err(|_| Denial::Unusable)?,
        // Another proxy might read the other one.
        (Some(_), Some(_)) => return Err(Denial::Unusable),
    };
    let (scheme, encoded) = value.split_once(' ').ok_or(Denial::Unusable)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(Denial::Unusable);
    }
    let pair = STANDARD.decode(encoded.trim()).map_err(|_| Denial::Unusable)?;
    let pair = String::from_utf8(pair).map_err(|_| Denial::Unusable)?;
    let (username, password) = pair.split_once(':').ok_or(Denial::Unusable)?;
    // Podman sends an empty pair where it has none and is asked for one.
    let is_empty = username.is_empty() && password.is_empty();
    Ok((!is_empty).then(|| Login::password(username, Secret::new(password))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn of(values: &[&str]) -> Result<Option<String>, Denial> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        Ok(login(&headers)?.map(|login| login.basic().unwrap().expose().to_owned()))
    }

    #[test]
    fn a_pair_is_read_however_it_is_written() {
        assert_eq!(of(&[]).unwrap(), None);
        let alice = Some("Basic YWxpY2U6YTpi".to_owned());
        for value in ["Basic YWxpY2U6YTpi", "basic YWxpY2U6YTpi", "BASIC   YWxpY2U6YTpi "] {
            assert_eq!(of(&[value]).unwrap(), alice, "{value}");
        }
        assert_eq!(of(&["Basic Og=="]).unwrap(), None, "Podman's way to say that it has none");
    }

    #[test]
    fn anything_else_is_refused() {
        for values in [
            &["Basic"][..],
            &["Basic ???"],
            &["Basic YWxpY2U="],
            &["Basic /////w=="],
            &["Bearer abc"],
            &["Negotiate abc"],
            &[""],
            &["Basic YWxpY2U6YTpi", "Basic YWxpY2U6YTpi"],
        ] {
            assert!(matches!(of(values), Err(Denial::Unusable)), "{values:?}");
        }
    }
}
