//! `[routing]` and `[upstreams."NAME"]`, read and checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::oci::{NodeId, Repository};
use crate::runtime::{Secret, Section};

use super::builtin::{BUILTIN, Builtin, DOCKER_HUB};
use super::credential::Credential;
use super::docker_config::{DockerConfig, Found, server_of};
use super::endpoint::{Access, Endpoint, Rewrite, TlsSettings, Upstream, UpstreamName};
use super::helper::{Helper, Patience};
use super::site::Site;

/// The keys that may stand in an endpoint's table, or directly in the table of an upstream with one endpoint.
const ENDPOINT_KEYS: [&str; 12] = [
    "url",
    "prefix",
    "rewrite",
    "username",
    "password",
    "password_file",
    "credential_helper",
    "credential_server",
    "ca_file",
    "client_certificate",
    "client_key",
    "endpoints",
];

/// The upstreams of this edge.
#[derive(Debug, Clone)]
pub struct RoutingConfig {
    /// Every upstream, in the order of their names.
    pub upstreams: Vec<Upstream>,
    /// The one that requests without a name mean.
    pub default_upstream: Option<UpstreamName>,
    /// What this edge is called in `Via`.
    pub node: NodeId,
    /// What the operator should know before the first request, to be logged at the start.
    pub warnings: Vec<String>,
}

impl RoutingConfig {
    /// Reads `[routing]`, `[upstreams."NAME"]` and `fetch.docker_config`. Every mistake is noted, and every
    /// file that is named is tried.
    pub fn read(root: &Section<'_>) -> Self {
        let routing = root.section("routing");
        let with_builtin = routing.read("builtin", true);
        let docker = read_docker_config(root);
        let mut reader = Reader { docker, patience: read_patience(root), warnings: Vec::new() };
        let mut upstreams: BTreeMap<UpstreamName, Upstream> = BTreeMap::new();

        let tables = root.section("upstreams");
        for builtin in BUILTIN.iter().filter(|_| with_builtin) {
            let section = tables.section(builtin.name);
            if let Some(upstream) = reader.upstream(builtin.name, Some(builtin), &section) {
                upstreams.insert(upstream.name.clone(), upstream);
            }
        }
        for (name, section) in root.named_sections("upstreams") {
            if with_builtin && BUILTIN.iter().any(|builtin| builtin.name == name) {
                continue;
            }
            if let Some(upstream) = reader.upstream(&name, None, &section)
                && upstreams.insert(upstream.name.clone(), upstream).is_some()
            {
                section
                    .mistake("", "another upstream has this name already; names are compared in lower case");
            }
        }
        check_names(&tables, &upstreams);
        Self {
            default_upstream: read_default(&routing, &upstreams),
            node: routing.optional("node_id").unwrap_or_else(random_node),
            upstreams: upstreams.into_values().collect(),
            warnings: reader.warnings,
        }
    }

    /// Whether whoever can reach this edge shares rights of its own.
    pub fn shares_rights(&self) -> bool {
        self.upstreams_sharing_rights().next().is_some()
    }

    /// The upstreams at which whoever can reach this edge shares its rights.
    pub fn upstreams_sharing_rights(&self) -> impl Iterator<Item = &UpstreamName> {
        let shares = |upstream: &&Upstream| {
            // A caller who proves his own right has no use of the edge's credential. But a client certificate goes along
            // with everything that is asked, and opens doors just as a password does.
            let is_lent = upstream.access != Access::Caller;
            let lends = |endpoint: &Endpoint| {
                endpoint.tls.client_identity.is_some() || (is_lent && endpoint.credential.is_some())
            };
            upstream.endpoints.iter().any(lends)
        };
        self.upstreams.iter().filter(shares).map(|upstream| &upstream.name)
    }

    /// Whether callers prove their own rights at any upstream.
    pub fn has_callers(&self) -> bool {
        self.upstreams.iter().any(|upstream| upstream.access == Access::Caller)
    }
}

/// What reading one upstream needs besides its table.
struct Reader {
    docker: Option<(PathBuf, DockerConfig)>,
    patience: Patience,
    warnings: Vec<String>,
}

impl Reader {
    fn upstream(&mut self, name: &str, builtin: Option<&Builtin>, section: &Section<'_>) -> Option<Upstream> {
        let name: UpstreamName = match name.parse() {
            Ok(name) => name,
            Err(reason) => {
                section.mistake("", reason);
                return None;
            }
        };
        let known = builtin.map_or(&[][..], |builtin| builtin.aliases);
        let aliases =
            section.list::<String>("aliases", known.iter().map(|&alias| alias.to_owned()).collect());
        let default_url = builtin.map_or_else(|| format!("https://{name}"), |builtin| builtin.url.to_owned());
        Some(Upstream {
            aliases: parse_each(section, "aliases", &aliases),
            access: section.read("access", Access::Edge),
            realms: read_realms(section),
            endpoints: self.endpoints(&default_url, section),
            name,
        })
    }

    fn endpoints(&mut self, default_url: &str, section: &Section<'_>) -> Vec<Endpoint> {
        let tables = section.sections("endpoints");
        if tables.is_empty() {
            return self.endpoint(Some(default_url), section).into_iter().collect();
        }
        for key in ENDPOINT_KEYS.iter().filter(|key| **key != "endpoints" && section.has(key)) {
            section.mistake(key, "belongs into a table of [[endpoints]], since this upstream has some");
            // Read all the same, so that it is not reported a second time as unknown.
            section.optional::<String>(key);
        }
        tables.iter().filter_map(|table| self.endpoint(None, table)).collect()
    }

    fn endpoint(&mut self, default_url: Option<&str>, section: &Section<'_>) -> Option<Endpoint> {
        let url = match default_url {
            Some(default) => Some(section.read("url", default.to_owned())),
            None => section.required("url"),
        };
        let site = url.and_then(|url| match url.parse::<Site>() {
            Ok(site) => Some(site),
            Err(reason) => {
                section.mistake("url", reason.to_string());
                None
            }
        });
        let prefix = section.optional::<String>("prefix").and_then(|text| {
            let parsed = text.trim_matches('/').parse::<Repository>();
            parsed.map_err(|reason| section.mistake("prefix", reason.to_string())).ok()
        });
        let rewrites = section.sections("rewrite").iter().filter_map(read_rewrite).collect();
        let own = read_credential(section);
        let helper = section.optional::<String>("credential_helper");
        let server = section.optional::<String>("credential_server");
        let tls = read_tls(section);
        let site = site?;
        if !site.is_secure() && tls != TlsSettings::default() {
            section.mistake("url", "is plain HTTP, so the TLS files of this endpoint would never be used");
        }
        if helper.is_none() && server.is_some() {
            section.mistake("credential_server", "is what a `credential_helper` is asked for; there is none");
        }
        let credential = match helper {
            Some(_) if own.is_some() => {
                section.mistake("credential_helper", "either this or `username`, not both");
                None
            }
            Some(name) => {
                let server = server.unwrap_or_else(|| server_of(&site));
                match Helper::find(&name, server, self.patience) {
                    Ok(helper) => Some(Credential::Helper(helper)),
                    Err(reason) => {
                        section.mistake("credential_helper", reason);
                        None
                    }
                }
            }
            None => own.or_else(|| self.docker_credential(&site)),
        };
        Some(Endpoint { site, prefix, rewrites, credential, tls })
    }

    fn docker_credential(&mut self, site: &Site) -> Option<Credential> {
        let (path, config) = self.docker.as_ref()?;
        let reason = match config.find(site)? {
            Found::Login { key } => return Some(Credential::DockerConfig { path: path.clone(), key }),
            Found::Helper { name, server } => match Helper::find(&name, server, self.patience) {
                Ok(helper) => return Some(Credential::Helper(helper)),
                Err(reason) => reason,
            },
            Found::Unusable { reason } => reason,
        };
        let path = path.display();
        self.warnings.push(format!(
            "{site} is asked without a credential: {path} has an entry for it, but {reason}; \
             set username and password_file for this endpoint instead"
        ));
        None
    }
}

/// Edges that are not told their names must still tell themselves from each other.
fn random_node() -> NodeId {
    let name = format!("clawhub-edge-{:08x}", fastrand::u32(..));
    name.parse().expect("letters, digits and hyphens")
}

fn read_default(routing: &Section<'_>, upstreams: &BTreeMap<UpstreamName, Upstream>) -> Option<UpstreamName> {
    let is_given = routing.has("default_upstream");
    let text = routing.read("default_upstream", DOCKER_HUB.to_owned());
    if text.is_empty() {
        return None;
    }
    let name = text.parse::<UpstreamName>().ok().filter(|name| upstreams.contains_key(name));
    if name.is_none() && is_given {
        routing.mistake("default_upstream", format!("there is no upstream {text:?}; \"\" means none"));
    }
    name
}

/// Realms are hosts, reached by TLS; plain HTTP has to be spelled out as a URL.
fn read_realms(section: &Section<'_>) -> Vec<Site> {
    let texts = section.list::<String>("realms", Vec::new());
    let urls: Vec<String> = texts
        .into_iter()
        .map(|text| if text.contains("://") { text } else { format!("https://{text}") })
        .collect();
    parse_each(section, "realms", &urls)
}

fn read_rewrite(section: &Section<'_>) -> Option<Rewrite> {
    let pattern = section.required::<String>("match");
    let replacement = section.required::<String>("replace");
    match Regex::new(&pattern?) {
        Ok(pattern) => Some(Rewrite::new(pattern, replacement?)),
        Err(reason) => {
            section.mistake("match", format!("is no regular expression: {reason}"));
            None
        }
    }
}

fn read_credential(section: &Section<'_>) -> Option<Credential> {
    let username = section.optional::<String>("username");
    let password = section.optional::<Secret>("password");
    let password_file = section.optional::<PathBuf>("password_file");
    match (username, password, password_file) {
        (None, None, None) => None,
        (Some(_), Some(_), Some(_)) => {
            section.mistake("password_file", "either this or `password`, not both");
            None
        }
        (Some(username), Some(password), None) => Some(Credential::Fixed { username, password }),
        (Some(username), None, Some(password_file)) => {
            if let Err(reason) = std::fs::read_to_string(&password_file) {
                section.mistake(
                    "password_file",
                    format!("{} cannot be read: {reason}", password_file.display()),
                );
            }
            Some(Credential::File { username, password_file })
        }
        (Some(_), None, None) => {
            section.mistake("username", "needs a `password_file` or `password`");
            None
        }
        (None, _, _) => {
            section.mistake("username", "is missing; a password alone is no credential");
            None
        }
    }
}

fn read_tls(section: &Section<'_>) -> TlsSettings {
    let ca_file = section.optional::<PathBuf>("ca_file");
    let certificate = section.optional::<PathBuf>("client_certificate");
    let key = section.optional::<PathBuf>("client_key");
    for (name, file) in [("ca_file", &ca_file), ("client_certificate", &certificate)] {
        if let Some(Err(reason)) = file.as_deref().map(check_certificates) {
            section.mistake(name, reason);
        }
    }
    if let Some(Err(reason)) = key.as_deref().map(PrivateKeyDer::from_pem_file) {
        section.mistake("client_key", format!("no private key in PEM form can be read from it: {reason}"));
    }
    if certificate.is_some() != key.is_some() {
        section.mistake("client_certificate", "`client_certificate` and `client_key` need each other");
    }
    TlsSettings { ca_file, client_identity: certificate.zip(key) }
}

fn check_certificates(path: &Path) -> Result<(), String> {
    let failed = |reason| format!("no certificate in PEM form can be read from it: {reason}");
    let certificates = CertificateDer::pem_file_iter(path).map_err(|reason| failed(reason.to_string()))?;
    let count =
        certificates.collect::<Result<Vec<_>, _>>().map_err(|reason| failed(reason.to_string()))?.len();
    if count == 0 { Err(failed("it holds none".to_owned())) } else { Ok(()) }
}

fn read_patience(root: &Section<'_>) -> Patience {
    let fetch = root.section("fetch");
    let time_out = fetch.read("helper_timeout", Duration::from_secs(10));
    if time_out.is_zero() {
        fetch.mistake("helper_timeout", "must be longer than nothing");
    }
    Patience { time_out, fresh_for: fetch.read("helper_ttl", Duration::from_mins(10)) }
}

fn read_docker_config(root: &Section<'_>) -> Option<(PathBuf, DockerConfig)> {
    let fetch = root.section("fetch");
    let path = fetch.optional::<PathBuf>("docker_config")?;
    let text = std::fs::read_to_string(&path).map_err(|reason| reason.to_string());
    match text.and_then(|text| DockerConfig::parse(&text)) {
        Ok(config) => Some((path, config)),
        Err(reason) => {
            fetch.mistake("docker_config", format!("{} cannot be read: {reason}", path.display()));
            None
        }
    }
}

fn parse_each<T: std::str::FromStr>(section: &Section<'_>, key: &str, texts: &[String]) -> Vec<T>
where
    T::Err: std::fmt::Display,
{
    let parse = |text: &String| {
        text.parse().map_err(|reason| section.mistake(key, format!("{text:?}: {reason}"))).ok()
    };
    texts.iter().filter_map(parse).collect()
}

/// A name must mean one upstream only.
fn check_names(tables: &Section<'_>, upstreams: &BTreeMap<UpstreamName, Upstream>) {
    let mut owners: BTreeMap<&UpstreamName, &UpstreamName> =
        upstreams.keys().map(|name| (name, name)).collect();
    for upstream in upstreams.values() {
        for alias in &upstream.aliases {
            if let Some(other) = owners.insert(alias, &upstream.name)
                && *other != upstream.name
            {
                let section = tables.section(upstream.name.as_str());
                section.mistake("aliases", format!("{alias} already means the upstream {other}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Settings;

    fn read_with(text: &str, environment: &[(&str, &str)]) -> (RoutingConfig, String) {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let settings = Settings::new(Some((Path::new("edge.toml"), text)), environment, BTreeMap::new());
        let config = RoutingConfig::read(&settings.root());
        let mistakes = settings.finish().err().map(|mistakes| mistakes.to_string());
        (config, mistakes.unwrap_or_default())
    }

    fn read(text: &str) -> RoutingConfig {
        let (config, mistakes) = read_with(text, &[]);
        assert_eq!(mistakes, "");
        config
    }

    fn upstream<'c>(config: &'c RoutingConfig, name: &str) -> &'c Upstream {
        config.upstreams.iter().find(|upstream| upstream.name.as_str() == name).unwrap()
    }

    #[test]
    fn the_public_registries_are_there_without_configuration() {
        let config = read("");
        let names: Vec<_> = config.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
        let expected = [
            "docker.io",
            "gcr.io",
            "ghcr.io",
            "mcr.microsoft.com",
            "public.ecr.aws",
            "quay.io",
            "registry.k8s.io",
        ];
        assert_eq!(names, expected);
        assert_eq!(config.default_upstream.as_ref().unwrap().as_str(), "docker.io");
        assert_eq!(
            upstream(&config, "docker.io").endpoints[0].site.to_string(),
            "https://registry-1.docker.io"
        );
        assert!(!config.shares_rights());
    }

    #[test]
    fn the_public_registries_can_be_left_out() {
        let config =
            read("[routing]\nbuiltin = false\n[upstreams.\"docker.io\"]\nurl = \"http://127.0.0.1:5001\"\n");
        assert_eq!(config.upstreams.len(), 1);
        assert_eq!(config.default_upstream.unwrap().as_str(), "docker.io");
        let nothing = read("[routing]\nbuiltin = false\n");
        assert!(nothing.upstreams.is_empty() && nothing.default_upstream.is_none());
    }

    #[test]
    fn a_builtin_upstream_takes_a_credential_from_the_environment() {
        let environment = [
            ("CLAWHUB_EDGE_UPSTREAMS_DOCKER_IO_USERNAME", "robot"),
            ("CLAWHUB_EDGE_UPSTREAMS_DOCKER_IO_PASSWORD", "word"),
        ];
        let (config, mistakes) = read_with("", &environment);
        assert_eq!(mistakes, "");
        assert!(config.shares_rights());
        let names: Vec<_> = config.upstreams_sharing_rights().map(UpstreamName::as_str).collect();
        assert_eq!(names, ["docker.io"]);
        assert_eq!(upstream(&config, "docker.io").endpoints[0].site.host(), "registry-1.docker.io");
        assert!(!format!("{config:?}").contains("word"));
    }

    #[test]
    fn several_endpoints_are_kept_in_their_order() {
        let config = read(
            r#"
            [upstreams."docker.io"]
            access = "open"
            realms = ["auth.corp", "http://auth.corp:5001"]
            [[upstreams."docker.io".endpoints]]
            url = "https://harbor.corp/"
            prefix = "/proxy/"
            rewrite = [{ match = "^library/(.*)$", replace = "$1" }]
            [[upstreams."docker.io".endpoints]]
            url = "http://mirror.corp:5000"
            "#,
        );
        let hub = upstream(&config, "docker.io");
        assert_eq!(hub.access, Access::Open);
        assert_eq!(hub.aliases.len(), 2, "the built-in aliases stay");
        let sites: Vec<_> = hub.endpoints.iter().map(|endpoint| endpoint.site.to_string()).collect();
        assert_eq!(sites, ["https://harbor.corp", "http://mirror.corp:5000"]);
        let nginx = "library/nginx".parse().unwrap();
        assert_eq!(hub.endpoints[0].repository(&nginx).unwrap().as_str(), "proxy/nginx");
        let realms: Vec<_> = hub.realms.iter().map(Site::to_string).collect();
        assert_eq!(realms, ["https://auth.corp", "http://auth.corp:5001"]);
    }

    #[test]
    fn every_mistake_of_an_upstream_is_reported_at_once() {
        let (_, mistakes) = read_with(
            r#"
            [routing]
            default_upstream = "nowhere.example"
            [upstreams."Bad Name"]
            [upstreams."a.example"]
            url = "https://a.example/v2/project"
            acess = "open"
            access = "public"
            aliases = ["quay.io"]
            rewrite = [{ match = "(", replace = "" }]
            username = "robot"
            ca_file = "/nonexistent/ca.pem"
            client_key = "/nonexistent/key.pem"
            [upstreams."b.example"]
            url = "https://b.example"
            password = "alone"
            [[upstreams."b.example".endpoints]]
            prefix = "x"
            [upstreams."c.example"]
            username = "robot"
            password_file = "/nonexistent/password"
            [upstreams."d.example"]
            credential_helper = "nonexistent"
            [upstreams."e.example"]
            credential_server = "alone"
            [upstreams."f.example"]
            credential_helper = "/bin/true"
            username = "robot"
            password = "word"
            "#,
            &[],
        );
        for expected in [
            "edge.toml:3: routing.default_upstream: there is no upstream",
            "upstreams.Bad Name: a name is a host",
            "a.example.url: a URL has no path here; to put a path before every repository, use prefix = \"project\"",
            "a.example.acess: unknown key; did you mean",
            "a.example.access: expected \"edge\" (every",
            "a.example.aliases: quay.io already means",
            "rewrite[0].match: is no regular expression",
            "a.example.username: needs a `password_file`",
            "a.example.ca_file: no certificate",
            "a.example.client_key: no private key",
            "a.example.client_certificate: `client_certificate` and `client_key` need each other",
            "b.example.url: belongs into a table of [[endpoints]]",
            "b.example.password: belongs into a table of [[endpoints]]",
            "b.example.endpoints[0].url: is missing",
            "c.example.password_file: /nonexistent/password cannot be read",
            "d.example.credential_helper: no folder of PATH has the program docker-credential-nonexistent",
            "e.example.credential_server: is what",
            "f.example.credential_helper: either this or",
        ] {
            assert!(mistakes.contains(expected), "{expected} is missing in\n{mistakes}");
        }
    }

    #[test]
    fn logins_of_docker_are_used_for_their_endpoints_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let text = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"},"ghcr.io":{}},"credsStore":"nonexistent"}"#;
        std::fs::write(&path, text).unwrap();
        let config = read(&format!("[fetch]\ndocker_config = {path:?}\n"));
        let names: Vec<_> = config.upstreams_sharing_rights().map(UpstreamName::as_str).collect();
        assert_eq!(names, ["docker.io"]);
        assert_eq!(config.warnings.len(), 1);
        let expected = ["https://ghcr.io", "docker-credential-nonexistent"];
        assert!(expected.iter().all(|part| config.warnings[0].contains(part)), "{:?}", config.warnings);
        let (_, mistakes) = read_with("[fetch]\ndocker_config = \"/nonexistent\"\n", &[]);
        assert!(mistakes.contains("fetch.docker_config"), "{mistakes}");
    }

    #[test]
    fn a_helper_is_a_credential_like_any_other() {
        let config = read("[upstreams.\"a.example\"]\ncredential_helper = \"/bin/true\"\n");
        let names: Vec<_> = config.upstreams_sharing_rights().map(UpstreamName::as_str).collect();
        assert_eq!(names, ["a.example"]);
    }
}
