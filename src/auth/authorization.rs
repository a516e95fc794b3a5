//! What a request says about who sends it (RFC 9110, section 11.6.2).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use super::Denial;
use crate::routing::Login;
use crate::runtime::Secret;

/// A cloud's token for a password, or one of ours with such a login in it; what is longer is none that a registry takes.
const MAX_LOGIN: usize = 8 << 10;
const MAX_TOKEN: usize = 16 << 10;

/// What a request offers.
#[derive(Debug)]
pub(super) enum Authorization<'h> {
    /// Nothing.
    None,
    /// User name and password (RFC 7617).
    Login(Login),
    /// A token (RFC 6750).
    Token(&'h str),
}

impl<'h> Authorization<'h> {
    /// Reads what the headers hold.
    ///
    /// # Errors
    /// [`Denial::Unusable`] where there is an `Authorization` that is neither, or several.
    pub(super) fn read(headers: &'h HeaderMap) -> Result<Self, Denial> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = match (values.next(), values.next()) {
            (None, _) => return Ok(Self::None),
            (Some(value), None) if value.len() <= MAX_TOKEN => {
                value.to_str().map_err(|_| Denial::Unusable)?
            }
            // Of several, another proxy might read the other one.
            (Some(_), _) => return Err(Denial::Unusable),
        };
        let (scheme, given) = value.split_once(' ').ok_or(Denial::Unusable)?;
        let given = given.trim();
        if scheme.eq_ignore_ascii_case("bearer") && !given.is_empty() {
            Ok(Self::Token(given))
        } else if scheme.eq_ignore_ascii_case("basic") && given.len() <= MAX_LOGIN {
            basic(given).ok_or(Denial::Unusable)
        } else {
            Err(Denial::Unusable)
        }
    }
}

/// A pair of user name and password; nothing where both are empty, which Podman sends where it is asked for a login and has
/// none. `None` where it is no pair.
fn basic(encoded: &str) -> Option<Authorization<'_>> {
    let pair = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (username, password) = pair.split_once(':')?;
    let is_empty = username.is_empty() && password.is_empty();
    Some(if is_empty {
        Authorization::None
    } else {
        Authorization::Login(Login::password(username, Secret::new(password)))
    })
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
        Ok(match Authorization::read(&headers)? {
            Authorization::None => None,
            Authorization::Login(login) => Some(login.basic().unwrap().expose().to_owned()),
            Authorization::Token(token) => Some(format!("the token {token}")),
        })
    }

    #[test]
    fn a_pair_is_read_however_it_is_written() {
        assert_eq!(of(&[]).unwrap(), None);
        let alice = Some("Basic YWxpY2U6YTpi".to_owned());
        for value in ["Basic YWxpY2U6YTpi", "basic YWxpY2U6YTpi", "BASIC   YWxpY2U6YTpi "] {
            assert_eq!(of(&[value]).unwrap(), alice, "{value}");
        }
        assert_eq!(of(&["Basic Og=="]).unwrap(), None, "Podman's way to say that it has none");
        assert_eq!(of(&["bearer  abc.d"]).unwrap().unwrap(), "the token abc.d");
    }

    #[test]
    fn anything_else_is_refused() {
        for values in [
            &["Basic"][..],
            &["Basic ???"],
            &["Basic YWxpY2U="],
            &["Basic /////w=="],
            &["Bearer"],
            &["Bearer "],
            &["Basic YWxpY2U6YTpi", "Bearer abc"],
            &["Negotiate abc"],
            &[""],
            &["Basic YWxpY2U6YTpi", "Basic YWxpY2U6YTpi"],
        ] {
            assert!(matches!(of(values), Err(Denial::Unusable)), "{values:?}");
        }
    }
}
