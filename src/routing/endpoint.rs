//! Upstreams and the endpoints that they are reached by.

use std::borrow::Borrow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use regex::Regex;

use crate::oci::{NameError, Repository};
use crate::runtime::keyword_setting;

use super::credential::Credential;
use super::site::{Site, normal_host};

/// The name of an upstream as clients write it before a repository: a host, perhaps with a port.
/// Lower case; cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamName(Arc<str>);

impl UpstreamName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UpstreamName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let host_fits = !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            && host.starts_with(|c: char| c.is_ascii_alphanumeric());
        if host_fits && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
            Ok(Self(normal_name(text).into()))
        } else {
            Err("a name is a host such as \"registry.example\" or \"registry.example:5000\"".to_owned())
        }
    }
}

impl fmt::Display for UpstreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UpstreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for UpstreamName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Who may see what an upstream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The operator declares that everything of this upstream is public: nothing has to be proven.
    Open,
    /// It is asked as the edge. A repository sees a digest only after its own upstream has answered for it.
    Edge,
    /// Each caller proves with his own login that the upstream lets him pull from the repository, besides.
    Caller,
}

keyword_setting!(
    Access,
    "\"edge\" (every repository proves what it may see), \"caller\" (and every caller what he may) or \"open\" (everything of this upstream is public)",
    "open" => Access::Open,
    "edge" => Access::Edge,
    "caller" => Access::Caller,
);

/// One registry as clients know it.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its name.
    pub name: UpstreamName,
    /// Other names for it, in `ns`, in the `Host` header and before a repository.
    pub aliases: Vec<UpstreamName>,
    /// Who may see what it holds.
    pub access: Access,
    /// Where it answers, in the order in which they are asked; at least one.
    pub endpoints: Vec<Endpoint>,
    /// Further sites that may issue tokens for it, besides those of the endpoints' own domain.
    pub realms: Vec<Site>,
}

/// One address of an upstream.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Scheme, host and port.
    pub site: Site,
    /// What stands before every repository there, such as a Harbor proxy project.
    pub prefix: Option<Repository>,
    /// How repositories are called there; the first rule that matches applies, before the prefix.
    pub rewrites: Vec<Rewrite>,
    /// The edge's own credential for this endpoint.
    pub credential: Option<Credential>,
    /// Private CA and client certificate.
    pub tls: TlsSettings,
}

impl Endpoint {
    /// An anonymous endpoint with nothing special about it.
    pub fn new(site: Site) -> Self {
        Self { site, prefix: None, rewrites: Vec::new(), credential: None, tls: TlsSettings::default() }
    }

    /// What `repository` is called at this endpoint.
    ///
    /// # Errors
    /// [`RewriteError`] when a rule or the prefix makes something that is no repository name.
    pub fn repository(&self, repository: &Repository) -> Result<Repository, RewriteError> {
        let failed = |result: String| {
            move |reason: NameError| RewriteError { repository: repository.clone(), result, reason }
        };
        let renamed = match self.rewrites.iter().find_map(|rule| rule.apply(repository)) {
            Some(text) => text.parse().map_err(failed(text))?,
            None => repository.clone(),
        };
        match &self.prefix {
            Some(prefix) => {
                renamed.with_prefix(prefix.as_str()).map_err(failed(format!("{prefix}/{renamed}")))
            }
            None => Ok(renamed),
        }
    }
}

/// A rule that renames repositories.
#[derive(Clone, Debug)]
pub struct Rewrite {
    pattern: Regex,
    replacement: String,
}

impl Rewrite {
    /// Replaces what `pattern` matches; `$1` in `replacement` stands for its first group.
    pub fn new(pattern: Regex, replacement: impl Into<String>) -> Self {
        Self { pattern, replacement: replacement.into() }
    }

    fn apply(&self, repository: &Repository) -> Option<String> {
        let text = repository.as_str();
        let replaced = || self.pattern.replace(text, self.replacement.as_str()).into_owned();
        self.pattern.is_match(text).then(replaced)
    }
}

/// A rewrite made something that is no repository name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`rewrite` and `prefix` make {result:?} of {repository}: {reason}")]
pub struct RewriteError {
    /// The repository before.
    pub repository: Repository,
    /// The text after.
    pub result: String,
    /// What is wrong with it.
    pub reason: NameError,
}

/// The TLS files of an endpoint. Endpoints with the same files share their connections' settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsSettings {
    /// Certificates to trust besides the machine's own, PEM.
    pub ca_file: Option<PathBuf>,
    /// Client certificate chain and private key, PEM.
    pub client_identity: Option<(PathBuf, PathBuf)>,
}

/// A name as it is compared: lower case, the host without a trailing dot.
pub(super) fn normal_name(text: &str) -> String {
    match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => format!("{}:{port}", normal_host(host)),
        _ => normal_host(text),
    }
}

/// Whether [`normal_name`] would change nothing; `false` where that is not plain to see.
pub(super) fn is_normal_name(text: &str) -> bool {
    let mut pairs = text.bytes().zip(text.bytes().skip(1));
    !text.bytes().any(|byte| byte.is_ascii_uppercase())
        && !text.ends_with('.')
        && !pairs.any(|pair| pair == (b'.', b':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_plainly_normal_is_left_as_it_is() {
        for name in
            ["quay.io", "localhost:5050", "[::1]:5050", "QUAY.io", "quay.io.", "quay.io.:5000", "", ":", "."]
        {
            assert!(!is_normal_name(name) || normal_name(name) == name, "{name}");
        }
        assert!(is_normal_name("quay.io") && is_normal_name("127.0.0.1:5050"));
    }

    fn repository(text: &str) -> Repository {
        text.parse().unwrap()
    }

    #[test]
    fn an_endpoint_behind_a_proxy_project_gets_its_own_names() {
        let mut endpoint = Endpoint::new("https://harbor.example".parse().unwrap());
        endpoint.prefix = Some(repository("dockerhub-proxy"));
        let name = |endpoint: &Endpoint, text| endpoint.repository(&repository(text)).unwrap().to_string();
        assert_eq!(name(&endpoint, "library/nginx"), "dockerhub-proxy/library/nginx");
        endpoint.rewrites = vec![
            Rewrite::new(Regex::new("^library/(.*)$").unwrap(), "$1"),
            Rewrite::new(Regex::new("^(.*)$").unwrap(), "other/$1"),
        ];
        assert_eq!(name(&endpoint, "library/nginx"), "dockerhub-proxy/nginx");
        assert_eq!(name(&endpoint, "grafana/loki"), "dockerhub-proxy/other/grafana/loki");
    }

    #[test]
    fn a_rewrite_to_no_repository_name_is_an_error_and_no_request() {
        let mut endpoint = Endpoint::new("https://harbor.example".parse().unwrap());
        endpoint.rewrites = vec![Rewrite::new(Regex::new("^(.*)$").unwrap(), "../$1?x=")];
        let error = endpoint.repository(&repository("library/nginx")).unwrap_err();
        assert!(error.to_string().contains("library/nginx"), "{error}");
    }

    #[test]
    fn names_are_hosts() {
        for name in ["docker.io", "localhost:5000", "corp", "REGISTRY.example."] {
            assert!(name.parse::<UpstreamName>().is_ok(), "{name}");
        }
        for name in ["", "a/b", "a b", ":5000", "a:0", "a:x", "https://a", "-a", "a@b"] {
            assert!(name.parse::<UpstreamName>().is_err(), "{name}");
        }
        assert_eq!("REGISTRY.example.:80".parse::<UpstreamName>().unwrap().as_str(), "registry.example:80");
    }
}
