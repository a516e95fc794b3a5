//! Scheme, host and port: what decides who may see a credential.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use hyper::Uri;
use hyper::http::uri::{Authority, Scheme};

/// One web origin (RFC 6454): two URLs share it when scheme, host and port are the same.
///
/// The host is lower case and without a trailing dot; the port is always explicit. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Site {
    secure: bool,
    host: Arc<str>,
    port: u16,
}

impl Site {
    /// The site of a URL.
    ///
    /// # Errors
    /// [`SiteError`] when the URL is not absolute, not HTTP, or carries a user name: nobody who means well
    /// writes `https://registry@elsewhere/`.
    pub fn of(uri: &Uri) -> Result<Self, SiteError> {
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(SiteError::Scheme),
        };
        let authority = uri.authority().ok_or(SiteError::Host)?;
        if authority.as_str().contains('@') {
            return Err(SiteError::UserInfo);
        }
        let host = normal_host(authority.host());
        if host.is_empty() {
            return Err(SiteError::Host);
        }
        let port = match authority.port() {
            Some(port) => port.as_str().parse().map_err(|_| SiteError::Host)?,
            // Something stands where the port belongs, and is none.
            None if authority.as_str() != authority.host() => return Err(SiteError::Host),
            None => Self::default_port(secure),
        };
        Ok(Self { secure, host: host.into(), port })
    }

    /// Whether it is reached by TLS.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether it is on this machine, as far as its name tells.
    pub fn is_loopback(&self) -> bool {
        let address = self.host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        &*self.host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
    }

    /// The host name or address; IPv6 addresses in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host`, or `host:port` where the port is not the scheme's own.
    pub fn authority(&self) -> String {
        if self.port == Self::default_port(self.secure) {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The URL of a path and query (`/v2/…`) of this site, or `None` where that is no valid URL.
    pub fn url(&self, path_and_query: &str) -> Option<Uri> {
        Uri::builder()
            .scheme(if self.secure { Scheme::HTTPS } else { Scheme::HTTP })
            .authority(self.authority().parse::<Authority>().ok()?)
            .path_and_query(path_and_query)
            .build()
            .ok()
    }

    fn default_port(secure: bool) -> u16 {
        if secure { 443 } else { 80 }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.secure { "https" } else { "http" }, self.authority())
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads `https://host[:port]`, with or without a final slash; a path is a mistake.
impl FromStr for Site {
    type Err = SiteError;

    fn from_str(text: &str) -> Result<Self, SiteError> {
        let uri: Uri = text.parse().map_err(|_| SiteError::Url)?;
        let site = Self::of(&uri)?;
        match uri.path_and_query().map_or("/", |path| path.as_str()) {
            "/" | "" => Ok(site),
            path => {
                Err(SiteError::Path { advice: path.trim_matches('/').trim_start_matches("v2/").to_owned() })
            }
        }
    }
}

/// Why a text does not name a site.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// Not a URL at all.
    #[error("a URL such as \"https://registry.example\" is expected")]
    Url,
    /// Neither `https` nor `http`.
    #[error("a URL begins with https:// (or http:// for plain HTTP)")]
    Scheme,
    /// No host, or a port that is none.
    #[error("the URL has no valid host and port")]
    Host,
    /// A user name or password before the host.
    #[error("a URL must not carry a user name or password; use `username` and `password_file`")]
    UserInfo,
    /// Something after the host.
    #[error("a URL has no path here; to put a path before every repository, use prefix = \"{advice}\"")]
    Path {
        /// The path as a prefix.
        advice: String,
    },
}

/// Lower case, without a trailing dot.
pub(super) fn normal_host(host: &str) -> String {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(text: &str) -> Site {
        text.parse().unwrap()
    }

    #[test]
    fn the_same_site_is_the_same_however_it_is_written() {
        assert_eq!(site("https://Registry.Example./"), site("https://registry.example:443"));
        assert_eq!(site("http://[::1]:80"), site("http://[::1]"));
        assert_ne!(site("https://registry.example"), site("http://registry.example"));
        assert_ne!(site("https://registry.example"), site("https://registry.example:8443"));
        assert_eq!(site("https://registry.example:8443").to_string(), "https://registry.example:8443");
    }

    #[test]
    fn what_is_no_site_is_refused_with_advice() {
        for text in
            ["registry.example", "ftp://x", "https://", "https://x:0x50", "https://x:99999", "https://x:"]
        {
            assert!(text.parse::<Site>().is_err(), "{text}");
        }
        assert_eq!("https://a@b".parse::<Site>(), Err(SiteError::UserInfo));
        let advice = "https://harbor.example/v2/proxy".parse::<Site>().unwrap_err().to_string();
        assert!(advice.contains("prefix = \"proxy\""), "{advice}");
    }

    #[test]
    fn urls_are_built_from_the_site_alone() {
        let url = site("https://registry.example:8443").url("/v2/a/tags/list?n=1").unwrap();
        assert_eq!(url.to_string(), "https://registry.example:8443/v2/a/tags/list?n=1");
        assert_eq!(site("http://h").url("/v2/").unwrap().to_string(), "http://h/v2/");
    }
}
