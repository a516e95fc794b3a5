//! What each client's files say.
//!
//! Sources: containerd `docs/hosts.md` and `core/remotes/docker/config/hosts.go`; moby
//! `daemon/hosts.go`; `containers-registries.conf(5)` and `containers-certs.d(5)`; BuildKit
//! `docs/buildkitd.toml.md` and `util/resolver/resolver.go`. All of them try a mirror first and the
//! registry itself when the mirror fails, unless they are told that the mirror *is* the registry.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Client, PullFromMirror};
use crate::routing::{Site, UpstreamName};

const DOCKER_HUB: &str = "docker.io";

/// Images that are known to be there, small, and pulled anonymously.
const EXAMPLES: [(&str, &str, &str); 7] = [
    (DOCKER_HUB, "library/alpine", "latest"),
    ("quay.io", "prometheus/busybox", "latest"),
    ("ghcr.io", "linuxcontainers/alpine", "latest"),
    ("gcr.io", "distroless/static", "latest"),
    ("registry.k8s.io", "pause", "3.10"),
    ("mcr.microsoft.com", "hello-world", "latest"),
    ("public.ecr.aws", "docker/library/alpine", "latest"),
];

/// What the files are to say.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) edge: Site,
    pub(super) upstreams: Vec<UpstreamName>,
    /// Whether a request that names no upstream means Docker Hub.
    pub(super) docker_hub_is_default: bool,
    /// The certificates that vouch for the edge, PEM.
    pub(super) ca: Option<String>,
    pub(super) no_fallback: bool,
    pub(super) pull_from_mirror: PullFromMirror,
}

/// The files of one client.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) files: Vec<ClientFile>,
    /// What JSON has no comments for. A client with such words has its first file printed alone.
    pub(super) words: Vec<String>,
}

/// One file.
#[derive(Debug)]
pub(super) struct ClientFile {
    pub(super) path: String,
    pub(super) content: String,
    /// A command that shows whether it works.
    pub(super) check: String,
}

/// The files that point `client` at the edge.
pub(super) fn of(client: Client, target: &Target) -> Files {
    let files = match client {
        Client::Containerd => containerd(target),
        Client::Docker => return docker(target),
        Client::Podman | Client::CriO => containers(client, target),
        Client::Buildkit => buildkit(target),
    };
    Files { files, words: Vec::new() }
}

/// Whether clients take the name for a registry, and not for a repository of Docker Hub.
pub(super) fn is_registry(name: &UpstreamName) -> bool {
    is_host(name.as_str())
}

pub(super) fn is_docker_hub(name: &UpstreamName) -> bool {
    name.as_str() == DOCKER_HUB
}

fn is_host(text: &str) -> bool {
    text.contains(['.', ':']) || text == "localhost"
}

fn containerd(target: &Target) -> Vec<ClientFile> {
    const DIRECTORY: &str = "/etc/containerd/certs.d";
    let notes = format!(
        "# containerd 1.6 or newer. No restart is needed, if its own configuration (/etc/containerd/config.toml)\n\
         # names this directory:\n\
         #   version = 3                                              # containerd 2\n\
         #   [plugins.\"io.containerd.cri.v1.images\".registry]\n\
         #     config_path = \"{DIRECTORY}\"\n\
         # or\n\
         #   version = 2                                              # containerd 1\n\
         #   [plugins.\"io.containerd.grpc.v1.cri\".registry]\n\
         #     config_path = \"{DIRECTORY}\"\n"
    );
    let pull = format!("ctr images pull --hosts-dir={DIRECTORY}");
    let mut files: Vec<_> = (target.upstreams.iter())
        .map(|upstream| target.hosts_file(DIRECTORY, &notes, &pull, upstream))
        .collect();
    files.extend(target.ca_file(DIRECTORY));
    files
}

/// Docker's containerd image store, the default of new installations since Docker Engine 29, reads
/// hosts files from the directory of its certificates; its older store looks at certificates only.
fn docker(target: &Target) -> Files {
    const DIRECTORY: &str = "/etc/docker/certs.d";
    let location = target.location();
    let is_mirror = target.docker_hub_is_default && target.upstreams.iter().any(is_docker_hub);
    let others: Vec<_> = target.upstreams.iter().filter(|name| !(is_mirror && is_docker_hub(name))).collect();
    let daemon = Daemon {
        registry_mirrors: is_mirror.then(|| target.edge.to_string()).into_iter().collect(),
        insecure_registries: (!target.edge.is_secure()).then(|| location.clone()).into_iter().collect(),
    };
    let checked = target.upstreams.iter().find(|_| is_mirror).filter(|name| is_docker_hub(name));
    let check = match (checked, others.first()) {
        (Some(hub), _) => target.check("docker pull", DIRECTORY, hub),
        (None, Some(other)) => target.check_path("docker pull", DIRECTORY, other),
        (None, None) => target.curl(DIRECTORY, None),
    };
    let mut words = vec![format!(
        "/etc/docker/daemon.json: keep what is there already and add this; then `systemctl reload docker`."
    )];
    if !is_mirror {
        words.push(if target.docker_hub_is_default {
            "Docker Hub is not among the upstreams, so there is no registry mirror.".to_owned()
        } else {
            "Docker's mirror requests do not say that they mean Docker Hub, and routing.default_upstream is \
             another registry: so there is no registry mirror."
                .to_owned()
        });
    }
    if let Some(other) = others.first() {
        words
            .push(format!("Other registries are pulled by path: `docker pull {location}/{}`.", image(other)));
        words.push(format!(
            "Docker Engine 29 or newer with its containerd image store (`docker info` says \
             io.containerd.snapshotter.v1) also pulls them by their own names, if {DIRECTORY}/NAME/hosts.toml \
             says so; --output and --json have these files."
        ));
    }
    if target.ca.is_some() {
        words.push(format!("The certificate authority goes to {DIRECTORY}/{location}/ca.crt."));
    }
    words.push(format!("To check: {check}"));
    let json = serde_json::to_string_pretty(&daemon).expect("a struct of strings is valid JSON");
    let mut files =
        vec![ClientFile { path: "/etc/docker/daemon.json".to_owned(), content: format!("{json}\n"), check }];
    let notes = "# Docker Engine 29 or newer with its containerd image store. No restart is needed.\n";
    files.extend(others.iter().map(|other| target.hosts_file(DIRECTORY, notes, "docker pull", other)));
    files.extend(target.ca_file(DIRECTORY));
    Files { files, words }
}

/// The part of Docker's `daemon.json` that is about mirrors.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Daemon {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    registry_mirrors: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    insecure_registries: Vec<String>,
}

fn containers(client: Client, target: &Target) -> Vec<ClientFile> {
    const PATH: &str = "/etc/containers/registries.conf.d/50-clawhub-edge.conf";
    const DIRECTORY: &str = "/etc/containers/certs.d";
    let (notes, pull) = if client == Client::CriO {
        (
            "# CRI-O reads the files of containers/image. After a change: systemctl reload crio\n",
            "crictl pull",
        )
    } else {
        ("# Podman, Buildah and skopeo; CRI-O as well. Nothing needs a restart.\n", "podman pull")
    };
    let check = target
        .upstreams
        .first()
        .map_or_else(|| target.curl(DIRECTORY, None), |upstream| target.check(pull, DIRECTORY, upstream));
    let mut content = format!("# {PATH}\n{notes}{}", shown(&check));
    for upstream in &target.upstreams {
        content += &target.registry(upstream);
    }
    let mut files = vec![ClientFile { path: PATH.to_owned(), content, check }];
    files.extend(target.ca_file(DIRECTORY));
    files
}

fn buildkit(target: &Target) -> Vec<ClientFile> {
    const PATH: &str = "/etc/buildkit/buildkitd.toml";
    const CA: &str = "/etc/buildkit/clawhub-edge-ca.crt";
    let location = target.location();
    let first = target.upstreams.first();
    let image = first.map_or_else(|| "REGISTRY/REPOSITORY:TAG".to_owned(), image);
    let create = format!("docker buildx create --name edge --buildkitd-config {PATH}");
    let build = format!("printf 'FROM {image}\\n' | docker buildx build --builder edge -");
    let check = format!("{create} && {build} && {}", target.curl_with(Some(CA), first));
    let mut content = format!(
        "# {PATH}\n\
         # BuildKit. Keep what is there already, add this and restart buildkitd, or make a builder with it as below.\n\
         # A loopback address here means the builder's own network, which may be a container's.\n{}",
        shown(&check)
    );
    for upstream in &target.upstreams {
        write_to(&mut content, format_args!("\n[registry.\"{upstream}\"]\n"));
        write_to(&mut content, format_args!("mirrors = [\"{location}/{upstream}\"]\n"));
    }
    // The mirror's own table says how it is reached; without it BuildKit tries TLS and gives up silently.
    write_to(
        &mut content,
        format_args!("\n[registry.\"{location}\"]\nhttp = {}\n", !target.edge.is_secure()),
    );
    if target.ca.is_some() {
        write_to(&mut content, format_args!("ca = [\"{CA}\"]\n"));
    }
    let mut files = vec![ClientFile { path: PATH.to_owned(), content, check }];
    files.extend(target.ca_file_at(CA));
    files
}

impl Target {
    /// The edge as it stands before a repository. Without a dot or a port clients would take it for a
    /// repository of Docker Hub.
    fn location(&self) -> String {
        let authority = self.edge.authority();
        if is_host(&authority) { authority } else { format!("{authority}:{}", self.edge.port()) }
    }

    /// `hosts.toml` of one registry, in the directory that containerd looks for hosts in.
    fn hosts_file(&self, directory: &str, notes: &str, pull: &str, upstream: &UpstreamName) -> ClientFile {
        let path = format!("{directory}/{upstream}/hosts.toml");
        let check = self.check(pull, directory, upstream);
        let edge = &self.edge;
        let mut content = format!("# {path}\n{notes}{}\n", shown(&check));
        let mut settings = "capabilities = [\"pull\", \"resolve\"]\n".to_owned();
        if self.ca.is_some() {
            // Relative to this file, so that the directory can stand anywhere.
            write_to(&mut settings, format_args!("ca = \"../{}/ca.crt\"\n", self.location()));
        }
        // Without a `server`, the registry itself comes last. containerd 1.6 insists on a host table.
        let body = if self.no_fallback {
            format!("server = \"{edge}\"\n{settings}\n[host]\n")
        } else {
            format!("[host.\"{edge}\"]\n{settings}")
        };
        content.push_str(&body);
        ClientFile { path, content, check }
    }

    /// The tables of one registry in `registries.conf`.
    fn registry(&self, upstream: &UpstreamName) -> String {
        let location = format!("{}/{upstream}", self.location());
        // "Insecure" is how containers/image says plain HTTP. It would also accept any certificate.
        let insecure = if self.edge.is_secure() { "" } else { "insecure = true\n" };
        if self.no_fallback {
            return format!("\n[[registry]]\nprefix = \"{upstream}\"\nlocation = \"{location}\"\n{insecure}");
        }
        let which = match self.pull_from_mirror {
            PullFromMirror::All => "",
            PullFromMirror::DigestOnly => "pull-from-mirror = \"digest-only\"\n",
            PullFromMirror::TagOnly => "pull-from-mirror = \"tag-only\"\n",
        };
        format!(
            "\n[[registry]]\nlocation = \"{upstream}\"\n\
             [[registry.mirror]]\nlocation = \"{location}\"\n{insecure}{which}"
        )
    }

    /// The certificate authority, where clients look for one by the edge's host and port.
    fn ca_file(&self, directory: &str) -> Option<ClientFile> {
        self.ca_file_at(&self.ca_path(directory))
    }

    fn ca_file_at(&self, path: &str) -> Option<ClientFile> {
        Some(ClientFile {
            path: path.to_owned(),
            // PEM ignores what stands before its first line.
            content: format!("# {path}\n{}", self.ca.as_ref()?),
            check: format!("openssl x509 -in {path} -noout -subject -enddate"),
        })
    }

    fn ca_path(&self, directory: &str) -> String {
        format!("{directory}/{}/ca.crt", self.location())
    }

    /// A pull by the registry's own name, and the edge's answer to whether it was the one that was asked.
    fn check(&self, pull: &str, directory: &str, upstream: &UpstreamName) -> String {
        format!("{pull} {} && {}", image(upstream), self.curl(directory, Some(upstream)))
    }

    /// A pull by the edge's name.
    fn check_path(&self, pull: &str, directory: &str, upstream: &UpstreamName) -> String {
        let image = format!("{}/{}", self.location(), image(upstream));
        format!("{pull} {image} && {}", self.curl(directory, Some(upstream)))
    }

    fn curl(&self, directory: &str, upstream: Option<&UpstreamName>) -> String {
        self.curl_with(Some(&self.ca_path(directory)), upstream)
    }

    fn curl_with(&self, ca_path: Option<&str>, upstream: Option<&UpstreamName>) -> String {
        let trust = ca_path.filter(|_| self.ca.is_some()).map(|path| format!(" --cacert {path}"));
        let trust = trust.unwrap_or_default();
        match upstream {
            Some(upstream) => {
                let (repository, tag) = example(upstream);
                let url = format!("{}/v2/{repository}/manifests/{tag}?ns={upstream}", self.edge);
                format!("curl -sI{trust} '{url}' | grep -i '^cache-status'")
            }
            None => format!("curl -sI{trust} {}/v2/", self.edge),
        }
    }
}

fn image(upstream: &UpstreamName) -> String {
    let (repository, tag) = example(upstream);
    format!("{upstream}/{repository}:{tag}")
}

/// Repository and tag to try.
fn example(upstream: &UpstreamName) -> (&'static str, &'static str) {
    let known = EXAMPLES.iter().find(|(name, ..)| *name == upstream.as_str());
    known.map_or(("REPOSITORY", "TAG"), |(_, repository, tag)| (repository, tag))
}

fn shown(check: &str) -> String {
    format!("# To check, and see a hit:\n#   {check}\n")
}

fn write_to(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = text.write_fmt(arguments);
}
