//! Forward proxies: which hosts are reached through one, and the connection that leads there.
//!
//! `https` goes through a tunnel (CONNECT), plain HTTP is sent to the proxy as it is, and a SOCKS5 proxy carries
//! both. The proxy's password goes to the proxy alone: into the CONNECT, the SOCKS handshake, or the header of a
//! plain request, which the proxy takes off. It is in no message.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::runtime::{Secret, Section};

use super::connect::BoxError;

/// Which proxies there are. A proxy's URL may hold a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    for_https: Option<Secret>,
    for_http: Option<Secret>,
    /// Hosts, domains and networks that are reached without.
    exceptions: Option<Vec<String>>,
    /// What the environment says counts no more.
    is_decided: bool,
    /// Whether this machine itself is never reached through one.
    spares_loopback: bool,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        let (for_https, for_http) = (None, None);
        Self { for_https, for_http, exceptions: None, is_decided: false, spares_loopback: true }
    }
}

impl ProxyConfig {
    /// Reads `proxy`, `no_proxy` and `proxy_loopback` of `[fetch]`.
    pub(super) fn read(section: &Section<'_>) -> Self {
        let given = section.has("no_proxy");
        let exceptions = section.list::<String>("no_proxy", Vec::new());
        let mut config = Self {
            exceptions: given.then_some(exceptions),
            spares_loopback: !section.read("proxy_loopback", false),
            ..Self::default()
        };
        if let Some(url) = section.optional::<Secret>("proxy") {
            config.is_decided = true;
            match check(&url) {
                Ok(url) => (config.for_https, config.for_http) = (url.clone(), url),
                Err(reason) => section.mistake("proxy", reason),
            }
        }
        config
    }

    /// Takes from the environment what the settings have left open, by the names that curl and others read.
    /// What cannot be used is noted as a mistake of `section`.
    pub fn inherit(&mut self, environment: &BTreeMap<String, String>, section: &Section<'_>) {
        let variable = |name: &str| {
            let names = [name.to_owned(), name.to_ascii_lowercase()];
            names.into_iter().find_map(|name| Some((environment.get(&name)?.clone(), name)))
        };
        let proxy = |name: &str| {
            let (url, name) = variable(name)?;
            let url = check(&Secret::new(url));
            url.unwrap_or_else(|reason| {
                section.mistake("proxy", format!("{name} of the environment: {reason}"));
                None
            })
        };
        if !self.is_decided {
            self.for_https = proxy("HTTPS_PROXY").or_else(|| proxy("ALL_PROXY"));
            self.for_http = proxy("HTTP_PROXY").or_else(|| proxy("ALL_PROXY"));
        }
        if self.exceptions.is_none() {
            let text = variable("NO_PROXY").map(|(text, _)| text);
            self.exceptions = text.map(|text| text.split(',').map(|item| item.trim().to_owned()).collect());
        }
    }
}

/// A usable URL of a proxy; `None` where it is empty, which means that there is none.
fn check(url: &Secret) -> Result<Option<Secret>, &'static str> {
    let text = url.expose().trim();
    if text.is_empty() {
        return Ok(None);
    }
    let uri: Uri = text.parse().map_err(|_| "a URL such as \"http://proxy.example:3128\" is expected")?;
    match uri.scheme_str() {
        None | Some("http" | "socks5" | "socks5h") => {}
        Some("https") => return Err("a proxy that is itself reached by TLS is not supported; use http://"),
        Some(_) => return Err("a proxy's URL begins with http://, socks5:// or socks5h://"),
    }
    match uri.host() {
        Some(host) if !host.is_empty() => Ok(Some(Secret::new(text))),
        _ => Err("the URL names no host"),
    }
}

/// Which request goes through which proxy.
pub(super) struct Proxies {
    matcher: Matcher,
    spares_loopback: bool,
}

impl Proxies {
    pub(super) fn new(config: &ProxyConfig) -> Self {
        let url = |url: &Option<Secret>| url.as_ref().map_or_else(String::new, |url| url.expose().to_owned());
        let exceptions = config.exceptions.as_deref().unwrap_or_default().join(",");
        let matcher = Matcher::builder()
            .https(url(&config.for_https))
            .http(url(&config.for_http))
            .no(exceptions)
            .build();
        Self { matcher, spares_loopback: config.spares_loopback }
    }

    fn of(&self, url: &Uri) -> Option<Intercept> {
        let spared = self.spares_loopback && url.host().is_none_or(is_this_machine);
        if spared { None } else { self.matcher.intercept(url) }
    }

    /// What a request in plain HTTP must carry for its proxy.
    pub(super) fn authorization(&self, url: &Uri) -> Option<HeaderValue> {
        let is_plain = url.scheme_str() == Some("http");
        let proxy = self.of(url).filter(|_| is_plain)?;
        proxy.basic_auth().cloned()
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies").finish_non_exhaustive()
    }
}

fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    let name = host.to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The way to a proxy, or through it, could not be had.
#[derive(Debug, thiserror::Error)]
#[error("the proxy {proxy}")]
struct ProxyError {
    /// Its URL, without user name and password.
    proxy: Uri,
    source: BoxError,
}

/// Connects by TCP to whatever comes first on the way: the host itself, or its proxy.
#[derive(Clone)]
pub(super) struct Way {
    tcp: HttpConnector,
    proxies: Arc<Proxies>,
}

impl Way {
    pub(super) fn new(tcp: HttpConnector, proxies: Arc<Proxies>) -> Self {
        Self { tcp, proxies }
    }
}

impl Service<Uri> for Way {
    type Response = Wire;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Wire, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let mut tcp = self.tcp.clone();
        let Some(proxy) = self.proxies.of(&url) else {
            let connecting = tcp.call(url);
            return Box::pin(async move { Ok(Wire::straight(connecting.await?)) });
        };
        Box::pin(async move {
            let address = proxy.uri().clone();
            through(tcp, &proxy, url).await.map_err(|source| ProxyError { proxy: address, source }.into())
        })
    }
}

async fn through(mut tcp: HttpConnector, proxy: &Intercept, url: Uri) -> Result<Wire, BoxError> {
    let address = proxy.uri().clone();
    match address.scheme_str() {
        Some(scheme @ ("socks5" | "socks5h")) => {
            // The name is resolved here or there, as curl has it.
            let mut socks = SocksV5::new(address.clone(), tcp).local_dns(scheme == "socks5");
            if let Some((user, password)) = proxy.raw_auth() {
                socks = socks.with_auth(user.to_owned(), password.to_owned());
            }
            Ok(Wire::straight(socks.call(url).await.map_err(|error| error.to_string())?))
        }
        _ if url.scheme_str() == Some("https") => {
            let mut tunnel = Tunnel::new(address, tcp);
            if let Some(authorization) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(authorization.clone());
            }
            Ok(Wire::straight(tunnel.call(url).await?))
        }
        _ => Ok(Wire { io: tcp.call(address).await?, ends_at_proxy: true }),
    }
}

/// A connection; hyper writes whole URLs into requests to a proxy.
pub(super) struct Wire {
    io: TokioIo<TcpStream>,
    ends_at_proxy: bool,
}

impl Wire {
    fn straight(io: TokioIo<TcpStream>) -> Self {
        Self { io, ends_at_proxy: false }
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.ends_at_proxy)
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Settings;
    use std::path::Path;

    /// The proxies of some lines of `[fetch]` and some variables, and the mistakes.
    fn proxies(lines: &str, environment: &[(&str, &str)]) -> (Proxies, String) {
        let text = format!("[fetch]\n{lines}\n");
        let settings = Settings::new(Some((Path::new("edge.toml"), &text)), [], BTreeMap::new());
        let section = settings.root().section("fetch");
        let mut config = ProxyConfig::read(&section);
        let pairs = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        config.inherit(&pairs.collect(), &section);
        assert!(!format!("{config:?}").contains("hidden"), "{config:?}");
        let mistakes = settings.finish().err().map(|mistakes| mistakes.to_string());
        (Proxies::new(&config), mistakes.unwrap_or_default())
    }

    fn way(proxies: &Proxies, url: &str) -> String {
        let proxy = proxies.of(&url.parse().unwrap());
        proxy.map_or_else(|| "straight".to_owned(), |proxy| proxy.uri().to_string())
    }

    #[test]
    fn the_environment_is_read_as_curl_reads_it_and_settings_win_over_it() {
        let environment = [
            ("https_proxy", "http://secure:1"),
            ("ALL_PROXY", "other:2"),
            ("NO_PROXY", "corp.example, 10.0.0.0/8"),
        ];
        let (read, mistakes) = proxies("", &environment);
        assert_eq!(mistakes, "");
        for (url, expected) in [
            ("https://quay.io", "http://secure:1/"),
            ("http://quay.io", "http://other:2/"),
            ("https://registry.corp.example", "straight"),
            ("https://notcorp.example", "http://secure:1/"),
            ("http://10.1.2.3:5000", "straight"),
            ("https://11.1.2.3", "http://secure:1/"),
        ] {
            assert_eq!(way(&read, url), expected, "{url}");
        }
        let (set, _) = proxies("proxy = \"http://set:3\"\nno_proxy = [\"quay.io\"]", &environment);
        assert_eq!(way(&set, "https://ghcr.io"), "http://set:3/");
        assert_eq!(way(&set, "https://registry.corp.example"), "http://set:3/");
        assert_eq!(way(&set, "https://quay.io"), "straight");
        let (none, _) = proxies("proxy = \"\"", &environment);
        assert_eq!(way(&none, "https://ghcr.io"), "straight");
    }

    #[test]
    fn this_machine_is_reached_without_unless_told() {
        let line = "proxy = \"http://proxy:1\"";
        for url in ["http://localhost:5000", "https://127.0.0.1", "http://[::1]:5000", "http://a.LOCALHOST"] {
            assert_eq!(way(&proxies(line, &[]).0, url), "straight", "{url}");
            let told = proxies(&format!("{line}\nproxy_loopback = true"), &[]).0;
            assert_eq!(way(&told, url), "http://proxy:1/", "{url}");
        }
        assert_eq!(way(&proxies(line, &[]).0, "https://localhost.example"), "http://proxy:1/");
    }

    #[test]
    fn a_proxys_password_is_for_the_proxy_and_shown_nowhere() {
        let (proxies, _) = proxies("proxy = \"http://me:hid%20den@proxy:1\"", &[]);
        let plain = "http://registry.example/v2/".parse().unwrap();
        assert_eq!(proxies.authorization(&plain).unwrap(), "Basic bWU6aGlkIGRlbg==");
        assert!(proxies.authorization(&plain).unwrap().is_sensitive());
        assert_eq!(proxies.authorization(&"https://registry.example/v2/".parse().unwrap()), None);
        assert!(!way(&proxies, "https://registry.example").contains("hid"));
    }

    #[test]
    fn what_is_no_proxy_is_a_mistake_that_shows_no_password() {
        for (url, expected) in [
            ("https://me:hidden@proxy", "TLS is not supported"),
            ("ftp://me:hidden@proxy", "begins with http://"),
            ("http://me:hidden@pro xy", "a URL such as"),
        ] {
            let (_, by_setting) = proxies(&format!("proxy = \"{url}\""), &[]);
            let (_, by_variable) = proxies("", &[("HTTPS_PROXY", url)]);
            for mistakes in [by_setting, by_variable.clone()] {
                assert!(mistakes.contains(expected) && !mistakes.contains("hidden"), "{mistakes}");
            }
            assert!(by_variable.contains("HTTPS_PROXY of the environment"), "{by_variable}");
        }
    }
}
