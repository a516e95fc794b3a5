//! Which upstream a request means.
//!
//! A client names it in one of four ways, tried in this order: the `ns` parameter (containerd, BuildKit), the
//! `Host` header (an alias that resolves to this edge), the first component of the path (Podman, CRI-O, Docker),
//! or not at all (Docker's `registry-mirrors`), which means the default upstream.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::oci::{NodeId, Repository, Via};

use super::builtin::DOCKER_HUB;
use super::caller::Caller;
use super::config::RoutingConfig;
use super::endpoint::{Access, Upstream, is_normal_name, normal_name};

/// The upstream table, ready for lookups.
#[derive(Debug)]
pub struct Routes {
    upstreams: Vec<Arc<Upstream>>,
    by_name: HashMap<Box<str>, Entry>,
    default: Option<Arc<Upstream>>,
    node: NodeId,
}

#[derive(Debug)]
struct Entry {
    upstream: Arc<Upstream>,
    is_alias: bool,
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub struct Route {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// The repository as that upstream calls it.
    pub repository: Repository,
    /// Which proxies the request has come through; requests to the upstream carry it on.
    pub via: Via,
    /// On whose behalf the upstream is asked; the edge's own where there is none.
    pub caller: Option<Caller>,
}

/// A request names no upstream of this edge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoutingError {
    /// Its `ns` parameter is no configured upstream's name or alias.
    #[error(
        "no upstream is called {ns:?} here; the operator can add it with [upstreams.{ns:?}] in the configuration"
    )]
    UnknownNamespace {
        /// The parameter, cut short.
        ns: String,
    },
    /// Nothing in it names an upstream, and there is no default.
    #[error(
        "{repository} names no upstream of this edge; put one before it (as in docker.io/library/nginx), \
         or let the operator set routing.default_upstream"
    )]
    NoUpstream {
        /// What was asked for.
        repository: Repository,
    },
    /// It names no repository either, and there is no default.
    #[error(
        "this needs an upstream: name one with the parameter ns, or let the operator set routing.default_upstream"
    )]
    NoDefault,
}

impl Routes {
    /// Builds the table.
    pub fn new(config: RoutingConfig) -> Self {
        let upstreams: Vec<Arc<Upstream>> = config.upstreams.into_iter().map(Arc::new).collect();
        let mut by_name = HashMap::new();
        for upstream in &upstreams {
            let names = [&upstream.name].into_iter().map(|name| (name, false));
            for (name, is_alias) in names.chain(upstream.aliases.iter().map(|alias| (alias, true))) {
                let entry = Entry { upstream: Arc::clone(upstream), is_alias };
                by_name.entry(name.as_str().into()).or_insert(entry);
            }
        }
        let default = config
            .default_upstream
            .and_then(|name| by_name.get(name.as_str()).map(|entry: &Entry| Arc::clone(&entry.upstream)));
        Self { upstreams, by_name, default, node: config.node }
    }

    /// Every upstream, in the order of their names.
    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    /// What this edge is called in `Via`.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The upstream that requests without any name mean.
    pub fn default_upstream(&self) -> Option<&Arc<Upstream>> {
        self.default.as_ref()
    }

    /// Finds the upstream of a request from its `ns` parameter, its `Host` header and its repository.
    ///
    /// # Errors
    /// [`RoutingError`] when it names none; nothing unknown is ever dialled.
    pub fn find(
        &self,
        ns: Option<&str>,
        host: Option<&str>,
        repository: &Repository,
    ) -> Result<Route, RoutingError> {
        if let Some(ns) = ns {
            let entry = self.named(ns).ok_or_else(|| RoutingError::UnknownNamespace { ns: shortened(ns) })?;
            return Ok(self.behind(&entry.upstream, repository));
        }
        if let Some(upstream) = host.and_then(|host| self.of_host(host)) {
            return Ok(self.behind(upstream, repository));
        }
        if let Some(entry) = self.first_component(repository)
            && let Some((_, rest)) = repository.strip_first()
        {
            return Ok(route(&entry.upstream, rest));
        }
        match &self.default {
            // A login for a registry whose name is misspelt must not go to another one.
            Some(upstream) if upstream.access != Access::Caller || !begins_with_host(repository) => {
                Ok(route(upstream, repository.clone()))
            }
            _ => Err(RoutingError::NoUpstream { repository: repository.clone() }),
        }
    }

    /// Finds the upstream of a request that names no repository, from its `ns` parameter and its `Host` header.
    ///
    /// # Errors
    /// [`RoutingError`] as for [`Routes::find`].
    pub fn upstream(&self, ns: Option<&str>, host: Option<&str>) -> Result<&Arc<Upstream>, RoutingError> {
        if let Some(ns) = ns {
            let entry = self.named(ns).ok_or_else(|| RoutingError::UnknownNamespace { ns: shortened(ns) })?;
            return Ok(&entry.upstream);
        }
        let by_host = host.and_then(|host| self.of_host(host));
        by_host.or(self.default.as_ref()).ok_or(RoutingError::NoDefault)
    }

    fn named(&self, name: &str) -> Option<&Entry> {
        // Nearly every name arrives in its normal form already, and nearly every `Host` names nobody.
        let found = self.by_name.get(name);
        if found.is_some() || is_normal_name(name) {
            found
        } else {
            self.by_name.get(normal_name(name).as_str())
        }
    }

    /// What the first component of the repository names, before anything is taken off.
    fn first_component(&self, repository: &Repository) -> Option<&Entry> {
        self.by_name.get(repository.components().next()?)
    }

    /// The whole header names an upstream, or its host without the port is an alias. A *name* never matches
    /// without its port: an upstream that is called `localhost` must not catch requests to `localhost:5050`.
    pub fn of_host(&self, host: &str) -> Option<&Arc<Upstream>> {
        if let Some(entry) = self.named(host) {
            return Some(&entry.upstream);
        }
        let (host, _port) = host.rsplit_once(':')?;
        self.named(host).filter(|entry| entry.is_alias).map(|entry| &entry.upstream)
    }

    /// The upstream is known already; a prefix that names it once more (BuildKit sends both) is taken off.
    fn behind(&self, upstream: &Arc<Upstream>, repository: &Repository) -> Route {
        let named_again =
            self.first_component(repository).filter(|entry| Arc::ptr_eq(&entry.upstream, upstream));
        match named_again.and_then(|_| repository.strip_first()) {
            Some((_, rest)) => route(upstream, rest),
            None => route(upstream, repository.clone()),
        }
    }
}

fn route(upstream: &Arc<Upstream>, repository: Repository) -> Route {
    let is_short = !repository.as_str().contains('/');
    let repository = if is_short && upstream.name.as_str() == DOCKER_HUB {
        // Only a name within eight characters of the limit cannot take the prefix; Docker Hub has none of those.
        repository.with_prefix("library").unwrap_or(repository)
    } else {
        repository
    };
    Route { upstream: Arc::clone(upstream), repository, via: Via::default(), caller: None }
}

/// Whether the first component looks like a registry's name (distribution `reference`).
fn begins_with_host(repository: &Repository) -> bool {
    let mut components = repository.components();
    let first = components.next().unwrap_or_default();
    components.next().is_some() && (first == "localhost" || first.contains(['.', ':']))
}

/// Enough of a client's text to recognise it in an error.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Settings;
    use proptest::prelude::*;
    use std::path::Path;

    fn routes(text: &str) -> Routes {
        let settings =
            Settings::new(Some((Path::new("edge.toml"), text)), [], std::collections::BTreeMap::new());
        let config = RoutingConfig::read(&settings.root());
        settings.finish().unwrap();
        Routes::new(config)
    }

    fn find(routes: &Routes, ns: Option<&str>, host: Option<&str>, repository: &str) -> String {
        match routes.find(ns, host, &repository.parse().unwrap()) {
            Ok(route) => format!("{} {}", route.upstream.name, route.repository),
            Err(error) => format!("error {error}"),
        }
    }

    #[test]
    fn a_request_names_its_upstream_by_ns_then_host_then_prefix_then_not_at_all() {
        let routes =
            routes("[upstreams.\"corp.example\"]\naliases = [\"mirror.corp\", \"edge.corp:8443\"]\n");
        let cases = [
            (Some("quay.io"), None, "a/b", "quay.io a/b"),
            (Some("QUAY.io"), Some("mirror.corp"), "ghcr.io/a/b", "quay.io ghcr.io/a/b"),
            (Some("docker.io"), None, "nginx", "docker.io library/nginx"),
            (Some("registry-1.docker.io"), None, "library/nginx", "docker.io library/nginx"),
            (Some("docker.io"), None, "docker.io/nginx", "docker.io library/nginx"),
            (Some("docker.io"), None, "index.docker.io/a/b", "docker.io a/b"),
            (None, Some("mirror.corp"), "a/b", "corp.example a/b"),
            (None, Some("Mirror.corp:5050"), "a/b", "corp.example a/b"),
            (None, Some("mirror.corp"), "corp.example/a", "corp.example a"),
            (None, Some("mirror.corp"), "ghcr.io/a", "corp.example ghcr.io/a"),
            (None, Some("edge.corp:8443"), "a/b", "corp.example a/b"),
            (None, Some("edge.corp:9999"), "a/b", "docker.io a/b"),
            (None, Some("quay.io"), "a/b", "quay.io a/b"),
            (None, Some("quay.io:5050"), "a/b", "docker.io a/b"),
            (None, Some("[::1]:5050"), "quay.io/a/b", "quay.io a/b"),
            (None, Some("localhost:5050"), "docker.io/nginx", "docker.io library/nginx"),
            (None, None, "ghcr.io/a", "ghcr.io a"),
            (None, None, "nginx", "docker.io library/nginx"),
            (None, None, "quay.io", "docker.io library/quay.io"),
            (None, None, "unknown.example/a", "docker.io unknown.example/a"),
        ];
        for (ns, host, repository, expected) in cases {
            assert_eq!(find(&routes, ns, host, repository), expected, "{ns:?} {host:?} {repository}");
        }
    }

    #[test]
    fn an_unknown_ns_is_refused_and_says_how_to_add_it() {
        let routes = routes("");
        for ns in ["evil.example", "127.0.0.1:80", "", "http://quay.io", "quay.io:5000"] {
            let answer = find(&routes, Some(ns), Some("quay.io"), "quay.io/a/b");
            assert!(answer.starts_with("error") && answer.contains("[upstreams."), "{answer}");
        }
        assert!(find(&routes, Some(&"x".repeat(10_000)), None, "a").len() < 400);
    }

    #[test]
    fn what_looks_like_a_registry_does_not_go_to_a_default_that_gets_logins() {
        let judging = routes("[upstreams.\"docker.io\"]\naccess = \"caller\"\n");
        for (repository, expected) in [
            ("unknown.example/a", "error"),
            ("localhost/a", "error"),
            ("a/b", "docker.io a/b"),
            ("quay.io/a", "quay.io a"),
            ("a.b", "docker.io library/a.b"),
        ] {
            assert!(find(&judging, None, None, repository).starts_with(expected), "{repository}");
        }
    }

    #[test]
    fn without_a_default_a_bare_repository_is_refused() {
        let routes = routes("[routing]\ndefault_upstream = \"\"\n");
        assert!(find(&routes, None, None, "library/nginx").starts_with("error"));
        assert_eq!(find(&routes, None, None, "docker.io/nginx"), "docker.io library/nginx");
    }

    proptest! {
        #[test]
        fn only_configured_upstreams_are_ever_found(
            ns in prop::option::of("[a-z.:/@\\[\\]]{0,12}"),
            host in prop::option::of("[a-z.:/@\\[\\]]{0,12}"),
            repository in "[a-z]{1,6}(\\.io)?(/[a-z]{1,4}){0,2}",
        ) {
            let routes = routes("[upstreams.quay]\nurl = \"http://127.0.0.1:1\"\n");
            if let Ok(route) = routes.find(ns.as_deref(), host.as_deref(), &repository.parse().unwrap()) {
                prop_assert!(routes.upstreams().iter().any(|known| Arc::ptr_eq(known, &route.upstream)));
                prop_assert!(repository.ends_with(route.repository.as_str()) || route.repository.as_str().ends_with(&repository));
            }
        }
    }
}
