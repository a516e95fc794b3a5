//! The configuration: a file, the environment and flags become checked settings.
//!
//! Every room owns its own section's type and its checks; this module gathers them, adds the
//! checks that concern several, and reports every mistake at once.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::auth::AuthConfig;
use crate::database::DatabaseConfig;
use crate::frontend::{FrontendConfig, ListenAddress};
use crate::pull::{FillConfig, TagConfig};
use crate::routing::{Access, RoutingConfig};
use crate::runtime::{Mistakes, Overrides, Section, Settings, Timestamp};
use crate::store::StoreConfig;
use crate::telemetry::LogConfig;
use crate::upstream::FetchConfig;

/// Names the configuration file.
pub const CONFIG_VARIABLE: &str = "CLAWHUB_EDGE_CONFIG";
/// Read when nothing else is named and it exists.
const SYSTEM_FILE: &str = "/etc/clawhub-edge/clawhub-edge.toml";

/// Checked settings of the whole process.
#[derive(Debug)]
pub struct Config {
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// `[log]`.
    pub log: LogConfig,
    /// `[store]`.
    pub store: StoreConfig,
    /// `[routing]` and `[upstreams]`.
    pub routing: RoutingConfig,
    /// `[fetch]`.
    pub fetch: FetchConfig,
    /// `[tags]`.
    pub tags: TagConfig,
    /// `[fill]`.
    pub fill: FillConfig,
    /// `[[listen]]`, `[limits]` and `[metrics]`.
    pub frontend: FrontendConfig,
    /// `[auth]`.
    pub auth: AuthConfig,
    /// `[database]`.
    pub database: DatabaseConfig,
    /// `state.directory`: where what no other machine could make anew is kept, such as secrets.
    pub state: PathBuf,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Everything that is wrong in it.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
}

impl Config {
    /// Reads the file (or the one that the environment names, or the system's, or none), the
    /// environment and the flags.
    ///
    /// # Errors
    /// Every mistake, with file, line and key.
    pub fn load(
        file: Option<&Path>,
        environment: &BTreeMap<String, String>,
        overrides: Overrides,
    ) -> Result<Self, ConfigError> {
        let file = file.map(Path::to_owned).or_else(|| file_of(environment));
        let text = match &file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?,
            None => String::new(),
        };
        let source = file.as_deref().map(|path| (path, text.as_str()));
        let settings = Settings::new(source, environment.clone(), overrides);
        settings.allow_variable(CONFIG_VARIABLE);
        let mut config = Self::read(&settings.root(), file.clone(), environment);
        config.fetch.proxy.inherit(environment, &settings.root().section("fetch"));
        settings.finish()?;
        Ok(config)
    }

    /// What is odd but keeps nothing from working.
    pub fn warnings(&self, now: Timestamp) -> Vec<String> {
        let mut warnings = self.routing.warnings.clone();
        warnings.extend(self.frontend.warnings(now));
        warnings.extend(self.about_logins());
        warnings
    }

    /// Where logins travel so that others may read them, and where keys say less than they seem to.
    pub fn about_logins(&self) -> Vec<String> {
        if !self.routing.has_callers() && self.auth.anonymous != Some(false) {
            return Vec::new();
        }
        let by_listeners = self.frontend.listen.iter().filter(|listen| listen.is_open_to_ears()).map(|listen| {
            format!(
                "logins and keys come in clear to {}: give it a certificate and a key, unless a proxy on this machine \
                 speaks TLS for it",
                listen.address
            )
        });
        let judging = self.routing.upstreams.iter().filter(|upstream| upstream.access == Access::Caller);
        let sites = judging.flat_map(|upstream| upstream.endpoints.iter().map(|endpoint| &endpoint.site));
        let by_upstreams = sites
            .filter(|site| !site.is_secure() && !site.is_loopback())
            .map(|site| format!("logins of callers go in clear to {site}: use https"));
        let open = self
            .routing
            .upstreams
            .iter()
            .filter(|upstream| upstream.access == Access::Open && self.auth.anonymous == Some(false));
        let of_open = open.map(|upstream| {
            format!(
                "{0} is declared open: a key for any of its repositories shows what all of them have, by digest; \
                 access = \"edge\" keeps them apart",
                upstream.name
            )
        });
        by_listeners.chain(by_upstreams).chain(of_open).collect()
    }

    fn read(root: &Section<'_>, file: Option<PathBuf>, environment: &BTreeMap<String, String>) -> Self {
        let auth = root.section("auth");
        let tags = TagConfig::read(&root.section("tags"));
        let state =
            root.section("state").optional("directory").unwrap_or_else(|| state_directory(environment));
        let config = Self {
            file,
            log: LogConfig::read(&root.section("log")),
            store: StoreConfig::read(&root.section("store"), CACHE.of(environment)),
            database: DatabaseConfig::read(&root.section("database"), &state),
            state,
            auth: AuthConfig::read(root, tags.revalidate_timeout),
            routing: RoutingConfig::read(root),
            fetch: FetchConfig::read(&root.section("fetch")),
            tags,
            fill: FillConfig::read(&root.section("fill")),
            frontend: FrontendConfig::read(root),
        };
        if let Some(exposure) = config.check_exposure(&config.frontend.exposed()) {
            auth.mistake("anonymous", exposure);
        }
        config
    }

    /// An upstream credential behind a listener that others reach, without anybody being asked who
    /// they are, gives everybody what that credential may pull. Says so if one of these listeners is such a one; where
    /// systemd's sockets are is known only at the start.
    pub fn check_exposure(&self, exposed: &[ListenAddress]) -> Option<String> {
        if self.auth.anonymous.is_some() || exposed.is_empty() || !self.routing.shares_rights() {
            return None;
        }
        let addresses = exposed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Some(format!(
            "everybody who reaches {addresses} could pull what the upstream credentials may pull. \
             Listen on a loopback address or a Unix socket only, or require client certificates there, \
             or remove the credentials, or let every caller prove his own rights there (access = \"caller\"), or set \
             auth.anonymous = false and make keys for those who may (clawhub-edge keys create), or set \
             auth.anonymous = true to allow it"
        ))
    }
}

fn file_of(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let named = environment.get(CONFIG_VARIABLE).map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(SYSTEM_FILE)).filter(|path| path.exists()))
}

/// A directory of one purpose: systemd's, the user's, or the system's.
struct DefaultDirectory {
    of_systemd: &'static str,
    of_users: &'static str,
    at_home: &'static str,
    of_system: &'static str,
}

const CACHE: DefaultDirectory = DefaultDirectory {
    of_systemd: "CACHE_DIRECTORY",
    of_users: "XDG_CACHE_HOME",
    at_home: ".cache/clawhub-edge",
    of_system: "/var/cache/clawhub-edge",
};

const STATE: DefaultDirectory = DefaultDirectory {
    of_systemd: "STATE_DIRECTORY",
    of_users: "XDG_STATE_HOME",
    at_home: ".local/state/clawhub-edge",
    of_system: "/var/lib/clawhub-edge",
};

/// Where the state is. Commands that are run beside the service find it where the service has it, if they may read it.
fn state_directory(environment: &BTreeMap<String, String>) -> PathBuf {
    let default = STATE.of(environment);
    let of_system = Path::new(STATE.of_system);
    let is_told = environment.contains_key(STATE.of_systemd);
    let is_there = |directory: &Path| std::fs::File::open(directory.join("secret")).is_ok();
    if !is_told && !is_there(&default) && is_there(of_system) { of_system.to_owned() } else { default }
}

impl DefaultDirectory {
    fn of(&self, environment: &BTreeMap<String, String>) -> PathBuf {
        let directory = |variable: &str| {
            let path = environment.get(variable).map(PathBuf::from)?;
            path.is_absolute().then_some(path)
        };
        directory(self.of_systemd)
            .or_else(|| Some(directory(self.of_users)?.join("clawhub-edge")))
            .or_else(|| Some(directory("HOME")?.join(self.at_home)))
            .unwrap_or_else(|| PathBuf::from(self.of_system))
    }
}

#[cfg(test)]
mod tests;
