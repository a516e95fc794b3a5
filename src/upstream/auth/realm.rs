//! Which token services may be asked. Pure.
//!
//! A challenge is the upstream's word, or that of whoever sits in between: a hostile `realm` would be handed
//! the credential (CVE-2026-33540). So a token service must share the endpoint's registrable domain and TLS,
//! or be named in the configuration.

use hyper::Uri;

use crate::routing::Site;

/// A realm that is not asked, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Scheme, host and port only: the rest is whatever the sender wanted to see in a log.
    pub(super) realm: String,
    pub(super) reason: &'static str,
}

/// The URL of a token service and its site, if `endpoint` or the configured `realms` allow it.
pub(super) fn check(realm: &str, endpoint: &Site, realms: &[Site]) -> Result<(Uri, Site), Refusal> {
    let not_a_url = || Refusal { realm: shown(realm), reason: "its realm is no URL" };
    // A fragment is not sent.
    let text = realm.split('#').next().unwrap_or_default();
    let uri: Uri = text.parse().map_err(|_| not_a_url())?;
    let site = Site::of(&uri).map_err(|_| not_a_url())?;
    match refusal(&site, endpoint, realms) {
        None => Ok((uri, site)),
        Some(reason) => Err(Refusal { realm: site.to_string(), reason }),
    }
}

fn refusal(site: &Site, endpoint: &Site, realms: &[Site]) -> Option<&'static str> {
    if realms.contains(site) {
        return None;
    }
    if site.is_secure() {
        let is_related =
            site.host() == endpoint.host() || same_registrable_domain(site.host(), endpoint.host());
        return (!is_related).then_some("it is on another domain than the endpoint");
    }
    if endpoint.is_secure() {
        return Some("it would send the credential over plain HTTP");
    }
    (site.host() != endpoint.host()).then_some("plain HTTP is allowed on the endpoint's own host only")
}

/// Whether both are names below one domain that somebody registered (`auth.docker.io` and
/// `registry-1.docker.io`), by the Public Suffix List. Addresses and names of private networks never are.
fn same_registrable_domain(one: &str, other: &str) -> bool {
    let domain = |host: &str| -> Option<String> {
        if host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok() {
            return None;
        }
        let domain = psl::domain(host.as_bytes())?;
        let is_public = domain.suffix().is_known();
        is_public.then(|| String::from_utf8_lossy(domain.as_bytes()).into_owned())
    };
    domain(one).is_some_and(|one| domain(other) == Some(one))
}

fn shown(realm: &str) -> String {
    let start: String = realm.chars().take_while(|c| !matches!(c, '?' | '#')).take(100).collect();
    format!("{start:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_allowed(realm: &str, endpoint: &str, realms: &[&str]) -> bool {
        let realms: Vec<Site> = realms.iter().map(|realm| realm.parse().unwrap()).collect();
        check(realm, &endpoint.parse().unwrap(), &realms).is_ok()
    }

    #[test]
    fn the_token_services_of_real_registries_are_asked() {
        for (realm, endpoint) in [
            ("https://auth.docker.io/token", "https://registry-1.docker.io"),
            ("https://quay.io/v2/auth", "https://quay.io"),
            ("https://ghcr.io/token", "https://ghcr.io"),
            ("https://gcr.io/v2/token", "https://gcr.io"),
            ("https://public.ecr.aws/token/", "https://public.ecr.aws"),
            ("https://gitlab.com/jwt/auth", "https://registry.gitlab.com"),
            ("https://harbor.corp/service/token", "https://harbor.corp"),
            ("https://harbor.corp:8443/service/token", "https://harbor.corp"),
            ("http://127.0.0.1:5001/token", "http://127.0.0.1:5000"),
            ("https://127.0.0.1:5001/token", "http://127.0.0.1:5000"),
            ("https://[::1]:1/token", "https://[::1]"),
        ] {
            assert!(is_allowed(realm, endpoint, &[]), "{realm} for {endpoint}");
        }
    }

    #[test]
    fn a_hostile_realm_is_refused() {
        for (realm, endpoint) in [
            ("https://evil.example/token", "https://registry-1.docker.io"),
            ("https://docker.io.evil.example/token", "https://registry-1.docker.io"),
            ("https://registry-1.docker.io@evil.example/token", "https://registry-1.docker.io"),
            ("https://evildocker.io/token", "https://registry-1.docker.io"),
            ("http://auth.docker.io/token", "https://registry-1.docker.io"),
            ("https://other.github.io/token", "https://registry.github.io"),
            ("https://evil.corp/token", "https://harbor.corp"),
            ("https://evil.internal.corp/token", "https://harbor.internal.corp"),
            ("https://evil.co.uk/token", "https://registry.co.uk"),
            ("https://127.0.0.2/token", "https://127.0.0.1"),
            ("https://2.0.0.1/token", "https://1.0.0.1"),
            ("http://127.0.0.2/token", "http://127.0.0.1"),
            ("http://auth.example.com/token", "http://registry.example.com"),
            ("ftp://quay.io/token", "https://quay.io"),
            ("/token", "https://quay.io"),
            ("", "https://quay.io"),
        ] {
            assert!(!is_allowed(realm, endpoint, &[]), "{realm} for {endpoint}");
        }
    }

    #[test]
    fn a_configured_realm_is_asked_as_it_is_configured() {
        let endpoint = "https://registry.corp";
        assert!(is_allowed("https://login.idp.example/t", endpoint, &["https://login.idp.example"]));
        assert!(!is_allowed("http://login.idp.example/t", endpoint, &["https://login.idp.example"]));
        assert!(!is_allowed("https://login.idp.example:8443/t", endpoint, &["https://login.idp.example"]));
        assert!(is_allowed("http://idp.corp:5001/t", "http://r.corp", &["http://idp.corp:5001"]));
    }

    #[test]
    fn a_refusal_shows_no_query() {
        let endpoint = "https://quay.io".parse().unwrap();
        for realm in ["https://evil.example/token?password=secret", "evil token?password=secret"] {
            let refusal = check(realm, &endpoint, &[]).unwrap_err();
            assert!(!refusal.realm.contains("secret"), "{refusal:?}");
        }
    }

    proptest! {
        #[test]
        fn only_names_below_one_registered_domain_are_related(
            one in "[a-z]{10,14}", other in "[a-z]{10,14}", sub in "([a-z]{1,4}\\.){0,2}",
            suffix in prop::sample::select(vec!["com", "io", "co.uk", "dev"]),
        ) {
            prop_assume!(one != other);
            let host = |sub: &str, name: &str| format!("{sub}{name}.{suffix}");
            prop_assert!(same_registrable_domain(&host("auth.", &one), &host(&sub, &one)));
            prop_assert!(!same_registrable_domain(&host(&sub, &one), &host(&sub, &other)));
        }

        #[test]
        fn any_realm_is_judged_without_panic(realm in "\\PC{0,60}") {
            let _ = check(&realm, &"https://quay.io".parse().unwrap(), &[]);
        }
    }
}
