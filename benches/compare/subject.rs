//! The caches that are compared, each as a child with its committed configuration.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::children::{Child, Ground, free_address};
use crate::support::usage::{self, Usage};

const EDGE_CONFIG: &str = include_str!("peers/edge.toml");
const NGINX_CONFIG: &str = include_str!("peers/nginx.conf");
const VARNISH_CONFIG: &str = include_str!("peers/varnish.vcl");
const REGISTRY_CONFIG: &str = include_str!("peers/registry.yml");

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Kind {
    Edge,
    /// With descriptors and sizes of its files remembered (`open_file_cache`).
    Nginx,
    /// Without: each hit opens its file.
    PlainNginx,
    Varnish,
    Registry,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Edge => "ClawHub Edge",
            Self::Nginx => "nginx",
            Self::PlainNginx => "nginx without open_file_cache",
            Self::Varnish => "Varnish",
            Self::Registry => "docker-registry",
        }
    }

    /// The program, and the Debian package that it comes from.
    fn program(self) -> (&'static str, &'static str) {
        match self {
            Self::Edge => ("clawhub-edge", "clawhub-edge"),
            Self::Nginx | Self::PlainNginx => ("nginx", "nginx"),
            Self::Varnish => ("varnishd", "varnish"),
            Self::Registry => ("docker-registry", "docker-registry"),
        }
    }

    /// What the program says about its version.
    pub(crate) fn version(self, edge: &Path) -> String {
        let (program, flag) = match self {
            Self::Edge => (edge, "--version"),
            Self::Nginx | Self::PlainNginx => (Path::new("nginx"), "-v"),
            Self::Varnish => (Path::new("varnishd"), "-V"),
            Self::Registry => (Path::new("docker-registry"), "--version"),
        };
        let output = Command::new(program).arg(flag).env("PATH", search_path()).output();
        let said = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        String::from_utf8_lossy(&said).lines().next().unwrap_or("unknown").to_owned()
    }
}

/// Debian keeps daemons where users have no path.
fn search_path() -> String {
    format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Fails with the line that installs them unless all peers are there.
pub(crate) fn require(kinds: &[Kind]) -> Result<(), String> {
    let path = search_path();
    let installed =
        |program: &str| path.split(':').any(|directory| Path::new(directory).join(program).exists());
    let missing: Vec<&str> = kinds
        .iter()
        .filter(|kind| **kind != Kind::Edge && !installed(kind.program().0))
        .map(|kind| kind.program().1)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    Err(format!(
        "{packages} not installed; install it with: apt-get install --no-install-recommends {packages}"
    ))
}

/// What a subject gets beside its configuration.
#[derive(Default, Clone)]
pub(crate) struct Setup {
    /// Certificate and key, for TLS in place of plaintext.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    /// Further directives of nginx's `http` block.
    pub(crate) nginx_directives: &'static str,
    /// Varnish's memory for objects.
    pub(crate) varnish_storage: Option<&'static str>,
    /// Further tables of the edge's configuration.
    pub(crate) edge_tables: String,
    /// A cache directory for the edge that is there already.
    pub(crate) edge_cache: Option<PathBuf>,
}

/// A cache in front of the origin.
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    pub(crate) directory: PathBuf,
    children: Vec<Child>,
}

impl Subject {
    pub(crate) fn start(ground: &Ground, kind: Kind, edge: &Path, origin: SocketAddr, setup: &Setup) -> Self {
        let directory = ground.directory(&format!("{}-{:08x}", kind.program().0, fastrand::u32(..)));
        let address = free_address();
        let log = directory.join("stderr.log");
        let fill_in = |template: &str| {
            template
                .replace("{directory}", &directory.display().to_string())
                .replace("{address}", &address.to_string())
                .replace("{origin}", &origin.to_string())
                .replace("{origin_host}", &origin.ip().to_string())
                .replace("{origin_port}", &origin.port().to_string())
        };
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).expect("room for a configuration");
            path
        };
        let mut children = Vec::new();
        match kind {
            Kind::Edge => {
                let mut listen = "[[listen]]\naddress = \"{address}\"".to_owned();
                if let Some((certificate, key)) = &setup.tls {
                    let (certificate, key) = (certificate.display(), key.display());
                    listen += &format!("\ncertificate = \"{certificate}\"\nkey = \"{key}\"");
                }
                let mut text = fill_in(&EDGE_CONFIG.replace("{listen}", &listen));
                if let Some(cache) = &setup.edge_cache {
                    let own = directory.join("cache").display().to_string();
                    text = text.replace(&own, &cache.display().to_string());
                }
                let config = write("edge.toml", text + &setup.edge_tables);
                let mut command = Command::new(edge);
                command.arg("--config").arg(config).arg("serve").stdout(Stdio::null());
                children.push(ground.spawn(command, &log));
            }
            Kind::Nginx | Kind::PlainNginx => {
                let tls = setup.tls.as_ref().map_or_else(String::new, |(certificate, key)| {
                    let (certificate, key) = (certificate.display(), key.display());
                    format!(
                        "ssl_certificate {certificate};\nssl_certificate_key {key};\nssl_protocols TLSv1.3;\n\
                         ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;\nssl_buffer_size 16k;"
                    )
                });
                let mut text =
                    NGINX_CONFIG.replace("{tls}", &tls).replace("{directives}", setup.nginx_directives);
                if setup.tls.is_some() {
                    text = text.replace("listen {address}", "listen {address} ssl http2");
                }
                if kind == Kind::PlainNginx {
                    text = text.replace("open_file_cache max", "# open_file_cache max");
                }
                let config = write("nginx.conf", fill_in(&text));
                let mut command = Command::new("nginx");
                command.arg("-p").arg(&directory).arg("-c").arg(config).arg("-e").arg(&log);
                command.env("PATH", search_path()).stdout(Stdio::null());
                children.push(ground.spawn(command, &log));
            }
            Kind::Varnish => {
                let config = write("default.vcl", fill_in(VARNISH_CONFIG));
                let work = directory.join("work");
                let mut command = Command::new("varnishd");
                command
                    .arg("-F")
                    .arg("-f")
                    .arg(config)
                    .args(["-a", &address.to_string()])
                    .arg("-n")
                    .arg(&work);
                command.args(["-s", &format!("malloc,{}", setup.varnish_storage.unwrap_or("2G"))]);
                command.args(["-j", "none", "-T", "none", "-p", "http_gzip_support=off"]);
                command.env("PATH", search_path()).stdout(Stdio::null());
                children.push(ground.spawn(command, &log));
                children[0].listening(address, &log);
                // Its access log is a program of its own, and counted with it.
                let mut command = Command::new("varnishncsa");
                command.arg("-n").arg(&work).arg("-w").arg(directory.join("access.log"));
                command.stdout(Stdio::null());
                children.push(ground.spawn(command, &log));
            }
            Kind::Registry => {
                let config = write("registry.yml", fill_in(REGISTRY_CONFIG));
                let access = fs::File::create(directory.join("access.log")).expect("a log file");
                let mut command = Command::new("docker-registry");
                command.arg("serve").arg(config).env("REGISTRY_PROXY_REMOTEURL", format!("http://{origin}"));
                command.stdout(access);
                children.push(ground.spawn(command, &log));
            }
        }
        children[0].listening(address, &log);
        Self { kind, address, directory, children }
    }

    /// Has it end in an orderly way; dropped, it is killed.
    pub(crate) fn stop(mut self) {
        self.children.iter_mut().for_each(Child::stop);
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::pid).collect()
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage::of_all(&self.pids())
    }

    pub(crate) fn rss_anon(&self) -> u64 {
        usage::tree_rss_anon(&self.pids())
    }

    pub(crate) fn forget_peak(&self) {
        usage::forget_peak(&self.pids());
    }

    pub(crate) fn peak(&self) -> u64 {
        usage::tree_peak(&self.pids())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.children.clear();
        // A cache of gigabytes is not kept until the end.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
