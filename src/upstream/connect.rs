//! Connections: TLS settings, and one pooled HTTP client for each of them.
//!
//! A client certificate is part of a TLS setting, so whoever is not meant to see it (token services elsewhere,
//! redirect targets) is reached by a client of another setting, not by the same one with care.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Builder, Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::Instant;
use tower_service::Service;

use crate::routing::TlsSettings;
use crate::runtime::crypto_provider;

use super::config::FetchConfig;
use super::proxy::{Proxies, Way, Wire};

/// Only token services are sent bodies, which are small.
type Pool = Client<Connector, Full<Bytes>>;

/// An HTTP client whose pool is replaced from time to time. A connection of HTTP/2 that is always busy would
/// otherwise live for ever, and never notice that its host's name has come to mean other machines.
///
/// What is under way on an old connection goes on to its end. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct HttpClient(Arc<Renewing>);

struct Renewing {
    builder: Builder,
    connector: Connector,
    max_age: Duration,
    /// The pool and its beginning. Held for a few instructions, never across an await.
    current: Mutex<(Instant, Pool)>,
}

impl HttpClient {
    fn new(builder: Builder, connector: Connector, max_age: Duration) -> Self {
        let current = Mutex::new((Instant::now(), builder.build(connector.clone())));
        Self(Arc::new(Renewing { builder, connector, max_age, current }))
    }

    pub(super) fn request(&self, request: Request<Full<Bytes>>) -> ResponseFuture {
        let mut current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0.elapsed() >= self.0.max_age {
            *current = (Instant::now(), self.0.builder.build(self.0.connector.clone()));
        }
        current.1.request(request)
    }
}

impl std::fmt::Debug for Renewing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewing").field("max_age", &self.max_age).finish_non_exhaustive()
    }
}

/// The most that one read takes from a connection of HTTP/1.1, and so about the largest frame of a body.
/// hyper's buffer begins at 8 KiB and doubles up to this while reads fill it, so small answers stay small.
/// CPU-seconds per GiB received over loopback: 0.75 with 64 KiB, 0.65 with 128, 0.43 with 512, 0.40 with 1024;
/// a fill holds up to three of them, and sixty-four fills behind a thousand slow readers took 201 MiB with 512 KiB, 173 with 384.
const READ_BUFFER: usize = 384 << 10;

/// HTTP/2 windows: one stream fills a path of 4 MiB bandwidth-delay product (330 Mbit/s at 100 ms), and eight
/// stalled streams do not stop the others.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
const MAX_FRAME: u32 = 256 << 10;

/// An HTTP/2 connection that died in its sleep is found before the next request waits for it.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// The registry client cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A file of TLS settings cannot be used.
    #[error("{file}: {reason}")]
    Tls {
        /// The file, or what it is about.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// One client per distinct TLS setting.
#[derive(Debug)]
pub(super) struct Clients<'c> {
    config: &'c FetchConfig,
    proxies: Arc<Proxies>,
    roots: RootCertStore,
    built: HashMap<TlsSettings, HttpClient>,
}

impl<'c> Clients<'c> {
    /// Reads the machine's trust store; Mozilla's stands in where there is none.
    pub(super) fn new(config: &'c FetchConfig, proxies: &Arc<Proxies>) -> Self {
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::debug!(%error, "a certificate of the machine's trust store was skipped");
        }
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            tracing::info!("this machine has no trust store; the built-in roots of Mozilla are used");
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Self { config, proxies: Arc::clone(proxies), roots, built: HashMap::new() }
    }

    /// The client of a setting, shared with all endpoints of the same setting.
    pub(super) fn client(&mut self, settings: &TlsSettings) -> Result<HttpClient, ClientError> {
        if let Some(client) = self.built.get(settings) {
            return Ok(client.clone());
        }
        let client = self.build(settings)?;
        self.built.insert(settings.clone(), client.clone());
        Ok(client)
    }

    fn build(&self, settings: &TlsSettings) -> Result<HttpClient, ClientError> {
        let limit = self.config.connect_timeout;
        let connector = Connector::new(self.tls(settings)?, Arc::clone(&self.proxies), limit);
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(self.config.idle_timeout)
            .pool_max_idle_per_host(self.config.idle_connections)
            .http1_max_buf_size(READ_BUFFER)
            .http2_adaptive_window(false)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_frame_size(MAX_FRAME)
            .http2_keep_alive_interval(PING_EVERY)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_keep_alive_while_idle(true);
        Ok(HttpClient::new(builder, connector, self.config.connection_max_age))
    }

    fn tls(&self, settings: &TlsSettings) -> Result<ClientConfig, ClientError> {
        let mut roots = self.roots.clone();
        if let Some(file) = &settings.ca_file {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| failed(file, &error))?;
            }
        }
        let provider = crypto_provider();
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| ClientError::Tls { file: "TLS".to_owned(), reason: error.to_string() })?
            .with_root_certificates(roots);
        match &settings.client_identity {
            None => Ok(builder.with_no_client_auth()),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, &error))?;
                builder.with_client_auth_cert(chain, key_der).map_err(|error| failed(certificate, &error))
            }
        }
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let certificates = CertificateDer::pem_file_iter(file).map_err(|error| failed(file, &error))?;
    certificates.collect::<Result<_, _>>().map_err(|error| failed(file, &error))
}

fn failed(file: &Path, error: &dyn std::error::Error) -> ClientError {
    ClientError::Tls { file: file.display().to_string(), reason: error.to_string() }
}

type Stream = MaybeHttpsStream<Wire>;
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connects by TCP, through a proxy where there is one, and, for https, TLS with ALPN; all of it within one deadline.
#[derive(Clone)]
pub(super) struct Connector {
    https: HttpsConnector<Way>,
    limit: Duration,
}

impl Connector {
    fn new(tls: ClientConfig, proxies: Arc<Proxies>, limit: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(TCP_KEEPALIVE));
        // Several addresses share the time, so that a dead first one leaves some to the others.
        tcp.set_connect_timeout(Some(limit));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(Way::new(tcp, proxies));
        Self { https, limit }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.https.call(uri);
        let limit = self.limit;
        Box::pin(async move {
            let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection in time");
            tokio::time::timeout(limit, connecting).await.map_err(|_| late())?
        })
    }
}
