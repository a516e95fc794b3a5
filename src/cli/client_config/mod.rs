//! `clawhub-edge client-config CLIENT`: the exact files that point a client at this edge.
//!
//! What a client's file says is in [`files`], as pure functions; here the edge's address and the
//! upstreams are found, and the files go where they were asked for. Printed text can be redirected
//! as it is: explanations are comments of the file's own syntax, and go to standard error where it
//! has none.

mod files;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use self::files::{ClientFile, Files, Target};
use super::{say, say_words};
use crate::config::Config;
use crate::frontend::{FrontendConfig, ListenAddress};
use crate::routing::{Site, UpstreamName};

/// Which client, and what to tell it.
#[derive(Debug, Args)]
pub(super) struct ClientConfigArguments {
    /// Client to configure
    client: Client,
    /// How clients reach this edge, as in <https://edge.example.com:5050> [default: from the listeners]
    #[arg(long, value_name = "URL")]
    edge: Option<Address>,
    /// Upstream to pull through the edge; may be given several times [default: every one]
    #[arg(long = "upstream", value_name = "NAME", value_parser = UpstreamName::from_str)]
    upstreams: Vec<UpstreamName>,
    /// Certificate authority of the edge's own certificate, PEM; clients are told to trust it
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Never ask the registry itself when the edge has no answer (containerd, podman, cri-o)
    #[arg(long)]
    no_fallback: bool,
    /// What is pulled through the edge (podman, cri-o)
    #[arg(long, value_name = "WHICH", default_value = "all", conflicts_with = "no_fallback")]
    pull_from_mirror: PullFromMirror,
    /// Print a list of {path, content, check}
    #[arg(long, conflicts_with = "output")]
    json: bool,
    /// Write the files below this directory; "/" is this machine
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
    /// Replace files that are there and differ
    #[arg(long, requires = "output")]
    force: bool,
}

/// The clients whose files are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Client {
    /// containerd 1.6 or newer: Kubernetes, nerdctl, ctr
    Containerd,
    /// Docker Engine
    Docker,
    /// Podman, Buildah and skopeo
    Podman,
    /// CRI-O
    #[value(name = "cri-o")]
    CriO,
    /// BuildKit: buildkitd, docker buildx
    Buildkit,
}

/// What Podman and CRI-O pull through a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PullFromMirror {
    /// Everything
    All,
    /// What is named by digest
    DigestOnly,
    /// What is named by tag
    TagOnly,
}

impl Client {
    /// Whether it can be told to pull through the edge or not at all.
    fn does_without_fallback(self) -> bool {
        match self {
            Self::Containerd | Self::Podman | Self::CriO => true,
            Self::Docker | Self::Buildkit => false,
        }
    }

    fn chooses_what_is_mirrored(self) -> bool {
        match self {
            Self::Podman | Self::CriO => true,
            Self::Containerd | Self::Docker | Self::Buildkit => false,
        }
    }
}

/// Where clients reach the edge.
#[derive(Debug, Clone)]
struct Address(Site);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: hyper::Uri = text.parse().map_err(|_| "a URL is expected".to_owned())?;
        if !matches!(uri.path(), "/" | "") || uri.query().is_some() {
            // OCI distribution-spec: the API is at the root of a host; Docker allows nothing else.
            return Err(
                "clients find a registry only at the root of a host, so the URL has no path".to_owned()
            );
        }
        Site::of(&uri).map(Self).map_err(|reason| reason.to_string())
    }
}

impl ClientConfigArguments {
    pub(super) fn run(&self, config: &Config) -> Result<()> {
        if self.no_fallback && !self.client.does_without_fallback() {
            bail!("this client always asks the registry itself when a mirror has no answer");
        }
        if self.pull_from_mirror != PullFromMirror::All && !self.client.chooses_what_is_mirrored() {
            bail!("only podman and cri-o can choose what they pull through a mirror");
        }
        let files = files::of(self.client, &self.target(config)?);
        if let Some(root) = &self.output {
            self.write(root, &files)?;
            say_words(&files.words);
        } else if self.json {
            say(&serde_json::to_string_pretty(&files.files.iter().map(Listed::of).collect::<Vec<_>>())?);
        } else {
            let printed = if files.words.is_empty() { files.files.len() } else { 1 };
            let contents = files.files.iter().take(printed).map(|file| file.content.trim_end());
            say(&contents.collect::<Vec<_>>().join("\n\n"));
            say_words(&files.words);
        }
        Ok(())
    }

    fn target(&self, config: &Config) -> Result<Target> {
        let edge = match &self.edge {
            Some(Address(site)) => site.clone(),
            None => own_address(&config.frontend)?,
        };
        let ca = match &self.ca {
            Some(path) => {
                ensure!(edge.is_secure(), "{edge} is plain HTTP, which has no use for --ca");
                let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                ensure!(
                    text.contains("-----BEGIN CERTIFICATE-----"),
                    "{}: no PEM certificate",
                    path.display()
                );
                Some(text)
            }
            None => None,
        };
        Ok(Target {
            upstreams: self.chosen(config)?,
            docker_hub_is_default: config.routing.default_upstream.as_ref().is_some_and(files::is_docker_hub),
            edge,
            ca,
            no_fallback: self.no_fallback,
            pull_from_mirror: self.pull_from_mirror,
        })
    }

    fn chosen(&self, config: &Config) -> Result<Vec<UpstreamName>> {
        let configured = || config.routing.upstreams.iter().map(|upstream| &upstream.name);
        if self.upstreams.is_empty() {
            // A name that is no host to a client ("corp") is one for paths only.
            return Ok(configured().filter(|name| files::is_registry(name)).cloned().collect());
        }
        for name in &self.upstreams {
            // An edge elsewhere has a configuration of its own.
            if self.edge.is_none() && configured().all(|known| known != name) {
                let known = configured().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                bail!("there is no upstream {name} here, only {known}");
            }
            ensure!(
                files::is_registry(name),
                "clients take {name} for a repository of Docker Hub, and not for a registry; \
                 pull by path instead"
            );
        }
        Ok(self.upstreams.clone())
    }

    fn write(&self, root: &Path, files: &Files) -> Result<()> {
        let placed: Vec<_> = files
            .files
            .iter()
            .map(|file| (root.join(file.path.trim_start_matches('/')), &file.content))
            .collect();
        if !self.force {
            for (path, content) in &placed {
                let differs = std::fs::read_to_string(path).is_ok_and(|there| there != **content);
                ensure!(!differs, "{} is there and differs; merge them, or use --force", path.display());
            }
        }
        for (path, content) in &placed {
            let shown = || path.display().to_string();
            std::fs::create_dir_all(path.parent().unwrap_or(root)).with_context(shown)?;
            std::fs::write(path, content).with_context(shown)?;
            say(&shown());
        }
        Ok(())
    }
}

/// A file as `--json` lists it.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    path: &'a str,
    content: &'a str,
    check: &'a str,
}

impl<'a> Listed<'a> {
    fn of(file: &'a ClientFile) -> Self {
        Self { path: &file.path, content: &file.content, check: &file.check }
    }
}

/// How others reach the first listener that they can reach, else how this machine does.
fn own_address(frontend: &FrontendConfig) -> Result<Site> {
    let listeners = || {
        frontend.listen.iter().filter_map(|listen| match listen.address {
            ListenAddress::Tcp(address) if address.port() != 0 => Some((address, listen.tls.is_some())),
            ListenAddress::Tcp(_) | ListenAddress::Unix(_) | ListenAddress::Systemd(_) => None,
        })
    };
    let is_reached_by_others = |(address, _): &(SocketAddr, bool)| !address.ip().is_loopback();
    let listener = listeners().find(is_reached_by_others).or_else(|| listeners().next());
    let (address, tls) = listener.context("no listener says how clients reach it; use --edge")?;
    let scheme = if tls { "https" } else { "http" };
    let url = if address.ip().is_unspecified() {
        let name = rustix::system::uname();
        format!("{scheme}://{}:{}", name.nodename().to_string_lossy(), address.port())
    } else {
        format!("{scheme}://{address}")
    };
    url.parse().with_context(|| format!("{url}; use --edge"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_is_at_the_root_of_a_host() {
        for good in ["http://edge:5050", "https://edge.example/", "http://[::1]:5050", "https://10.0.0.5"] {
            assert!(good.parse::<Address>().is_ok(), "{good}");
        }
        for bad in ["edge:5050", "ftp://edge", "https://edge/path", "https://me@edge", "https://edge/?a"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
