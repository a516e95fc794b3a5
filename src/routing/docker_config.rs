//! Docker's `config.json`, as `docker login` and `podman login` write it.
//!
//! Entries are keyed by host (`quay.io`, `localhost:5000`), by URL (`https://ghcr.io`), and for Docker Hub by
//! `https://index.docker.io/v1/`. A host's login is inline (`auth`, or `username` and `password`), in a helper
//! program, or an identity token; only inline ones are used, the others are reported.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

use crate::runtime::Secret;

use super::credential::Login;
use super::site::Site;

/// Docker Hub's key, whatever its host is called today.
const HUB_KEY: &str = "https://index.docker.io/v1/";
const HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Logins are written with and without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What the file says about one host.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// An inline login, under this key.
    Login { key: String },
    /// A login that this edge cannot use, and why.
    Unusable { reason: String },
}

/// A `config.json` that has been read once.
#[derive(Debug)]
pub(super) struct DockerConfig(Value);

impl DockerConfig {
    /// Reads the file's text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if value.is_object() { Ok(Self(value)) } else { Err("it is not a JSON object".to_owned()) }
    }

    /// What the file says about an endpoint; `None` when it says nothing.
    pub(super) fn find(&self, site: &Site) -> Option<Found> {
        let names = names_of(site);
        let helper = self.0["credHelpers"].as_object().and_then(|helpers| {
            helpers
                .iter()
                .find(|(key, _)| names.contains(&normal(key)))
                .and_then(|(_, helper)| helper.as_str())
        });
        if let Some(helper) = helper {
            return Some(unusable(format!("its login is kept by the helper docker-credential-{helper}")));
        }
        let (key, entry) =
            self.0["auths"].as_object()?.iter().find(|(key, _)| names.contains(&normal(key)))?;
        if inline(entry).is_some() {
            return Some(Found::Login { key: key.clone() });
        }
        if entry.get("identitytoken").is_some() || entry.get("registrytoken").is_some() {
            return Some(unusable("its login is an identity token".to_owned()));
        }
        match self.0["credsStore"].as_str() {
            Some(store) => {
                Some(unusable(format!("its login is kept by the helper docker-credential-{store}")))
            }
            None => Some(unusable("its login cannot be read".to_owned())),
        }
    }
}

/// The inline login under `key` in the file's text.
pub(super) fn login(text: &str, key: &str) -> Option<Login> {
    let value: Value = serde_json::from_str(text).ok()?;
    inline(value.get("auths")?.get(key)?)
}

fn inline(entry: &Value) -> Option<Login> {
    let text = |name: &str| entry[name].as_str().filter(|text| !text.is_empty());
    if let Some(auth) = text("auth") {
        let decoded = String::from_utf8(LENIENT.decode(auth.trim()).ok()?).ok()?;
        // docker-compose once wrote trailing NULs into the password.
        let (username, password) = decoded.trim_end_matches('\0').split_once(':')?;
        return Some(Login::new(username, Secret::new(password)));
    }
    Some(Login::new(text("username")?, Secret::new(text("password")?)))
}

fn unusable(reason: String) -> Found {
    Found::Unusable { reason }
}

fn names_of(site: &Site) -> Vec<String> {
    if HUB_HOSTS.contains(&site.host()) {
        return HUB_HOSTS.iter().map(|host| (*host).to_owned()).chain([normal(HUB_KEY)]).collect();
    }
    let with_port = format!("{}:{}", site.host(), site.port());
    vec![site.authority(), with_port]
}

/// `https://ghcr.io/v2/` and `ghcr.io` are one host. A longer path names a namespace, which is something else.
fn normal(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    key.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
        "auths": {
            "https://index.docker.io/v1/": { "auth": "aHViOnB3OndpdGg6Y29sb25z" },
            "quay.io": { "username": "quay", "password": "secret" },
            "https://Ghcr.io/v2/": { "auth": "Z2g6cHc" },
            "localhost:5000": { "auth": "bG9jYWw6cHc=" },
            "acr.example": { "auth": "", "identitytoken": "x" },
            "stored.example": {},
            "helped.example": { "auth": "Z2g6cHc=" },
            "broken.example": { "auth": "!!" },
            "shared.example/team": { "auth": "Z2g6cHc=" }
        },
        "credsStore": "desktop",
        "credHelpers": { "helped.example": "ecr-login" }
    }"#;

    fn find(url: &str) -> Option<Found> {
        DockerConfig::parse(FILE).unwrap().find(&url.parse().unwrap())
    }

    #[test]
    fn every_way_to_write_a_login_is_found_for_its_endpoint() {
        let cases = [
            ("https://registry-1.docker.io", "https://index.docker.io/v1/", "Basic aHViOnB3OndpdGg6Y29sb25z"),
            ("https://quay.io", "quay.io", "Basic cXVheTpzZWNyZXQ="),
            ("https://ghcr.io", "https://Ghcr.io/v2/", "Basic Z2g6cHc="),
            ("http://localhost:5000", "localhost:5000", "Basic bG9jYWw6cHc="),
        ];
        for (url, key, basic) in cases {
            assert_eq!(find(url), Some(Found::Login { key: key.to_owned() }), "{url}");
            assert_eq!(login(FILE, key).unwrap().basic().expose(), basic, "{url}");
        }
    }

    #[test]
    fn a_login_goes_to_no_other_host_or_port() {
        for url in
            ["https://localhost", "https://localhost:5001", "https://sub.quay.io", "https://shared.example"]
        {
            assert_eq!(find(url), None, "{url}");
        }
    }

    #[test]
    fn logins_that_need_a_helper_are_reported_with_its_name() {
        for (url, part) in [
            ("https://acr.example", "identity token"),
            ("https://stored.example", "docker-credential-desktop"),
            ("https://helped.example", "docker-credential-ecr-login"),
        ] {
            let Some(Found::Unusable { reason }) = find(url) else { panic!("{url} is usable") };
            assert!(reason.contains(part), "{reason}");
        }
        assert!(matches!(find("https://broken.example"), Some(Found::Unusable { .. })));
        assert!(DockerConfig::parse("[]").is_err());
    }
}
