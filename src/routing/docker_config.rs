//! Docker's `config.json`, as `docker login` and `podman login` write it.
//!
//! Entries are keyed by host (`quay.io`, `localhost:5000`), by URL (`https://ghcr.io`), and for Docker Hub by
//! `https://index.docker.io/v1/`. A host's login is inline (`auth`, or `username` and `password`, or an
//! `identitytoken`) or kept by a helper program: that of the host (`credHelpers`), else that of the file
//! (`credsStore`). Docker asks the latter about every host; this edge asks it only about hosts that have an entry,
//! which `docker login` leaves behind.

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
    /// A login that the helper of this name keeps for this server.
    Helper { name: String, server: String },
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
            let (key, helper) = helpers.iter().find(|(key, _)| names.contains(&normal(key)))?;
            Some(Found::Helper { name: helper.as_str()?.to_owned(), server: key.clone() })
        });
        if helper.is_some() {
            return helper;
        }
        let (key, entry) =
            self.0["auths"].as_object()?.iter().find(|(key, _)| names.contains(&normal(key)))?;
        if inline(entry).is_some() {
            return Some(Found::Login { key: key.clone() });
        }
        if entry.get("registrytoken").is_some() {
            return Some(Found::Unusable { reason: "its login is a token of the registry's own".to_owned() });
        }
        Some(match self.0["credsStore"].as_str().filter(|store| !store.is_empty()) {
            Some(store) => Found::Helper { name: store.to_owned(), server: key.clone() },
            None => Found::Unusable { reason: "its login cannot be read".to_owned() },
        })
    }
}

/// The server's name in a helper's words, where nothing else says it.
pub(super) fn server_of(site: &Site) -> String {
    if HUB_HOSTS.contains(&site.host()) { HUB_KEY.to_owned() } else { site.authority() }
}

/// The inline login under `key` in the file's text.
pub(super) fn login(text: &str, key: &str) -> Option<Login> {
    let value: Value = serde_json::from_str(text).ok()?;
    inline(value.get("auths")?.get(key)?)
}

fn inline(entry: &Value) -> Option<Login> {
    let text = |name: &str| entry[name].as_str().filter(|text| !text.is_empty());
    // Beside it `auth` holds a user name only.
    if let Some(token) = text("identitytoken") {
        return Some(Login::IdentityToken(Secret::new(token)));
    }
    if let Some(auth) = text("auth") {
        let decoded = String::from_utf8(LENIENT.decode(auth.trim()).ok()?).ok()?;
        // docker-compose once wrote trailing NULs into the password.
        let (username, password) = decoded.trim_end_matches('\0').split_once(':')?;
        return Some(Login::password(username, Secret::new(password)));
    }
    Some(Login::password(text("username")?, Secret::new(text("password")?)))
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
            "acr.example": { "auth": "MDAwMDo=", "identitytoken": "refresh" },
            "given.example": { "registrytoken": "x" },
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
            assert_eq!(login(FILE, key).unwrap().basic().unwrap().expose(), basic, "{url}");
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
    fn an_identity_token_is_a_login_too() {
        assert_eq!(find("https://acr.example"), Some(Found::Login { key: "acr.example".to_owned() }));
        assert_eq!(login(FILE, "acr.example"), Some(Login::IdentityToken(Secret::new("refresh"))));
    }

    #[test]
    fn a_hosts_own_helper_comes_before_its_login_and_the_files_helper_after_it() {
        for (url, name, server) in [
            ("https://stored.example", "desktop", "stored.example"),
            ("https://helped.example", "ecr-login", "helped.example"),
            ("https://broken.example", "desktop", "broken.example"),
        ] {
            let helper = Found::Helper { name: name.to_owned(), server: server.to_owned() };
            assert_eq!(find(url), Some(helper), "{url}");
        }
        assert_eq!(find("https://unknown.example"), None, "no entry, no question");
    }

    #[test]
    fn logins_that_cannot_be_used_are_reported() {
        assert!(matches!(find("https://given.example"), Some(Found::Unusable { .. })));
        let file = DockerConfig::parse(r#"{ "auths": { "broken.example": { "auth": "!!" } } }"#).unwrap();
        let found = file.find(&"https://broken.example".parse().unwrap());
        assert!(matches!(found, Some(Found::Unusable { .. })));
        assert!(DockerConfig::parse("[]").is_err());
    }

    #[test]
    fn a_helper_knows_docker_hub_by_its_old_name_and_others_by_their_host() {
        let server = |url: &str| server_of(&url.parse().unwrap());
        assert_eq!(server("https://registry-1.docker.io"), HUB_KEY);
        assert_eq!(server("https://quay.io"), "quay.io");
        assert_eq!(server("http://localhost:5000"), "localhost:5000");
    }
}
