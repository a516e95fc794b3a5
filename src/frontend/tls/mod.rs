//! TLS towards clients: several certificates chosen by name, client certificates, and files that change.
//!
//! A listener's [`Tls`] is one rustls configuration at a time. Renewed files make a new one, which the next
//! handshakes use; connections that stand keep theirs, so that a rotation drops none. Files are compared by their
//! content every few seconds: that sees Kubernetes' symlink swaps, renames and rewrites in place alike, on every
//! file system. A pair that does not parse or fit leaves the old one in use.

mod certificate;
mod config;
mod reload;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use prometheus::{IntCounterVec, IntGaugeVec};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::runtime::{Timestamp, crypto_provider};
use crate::telemetry::{self, counters, gauges};

pub use certificate::leaf_names;
pub(super) use certificate::owner;
use certificate::{Certificate, Choice};
pub use config::{CertificateFiles, ClientCertificates, TlsConfig};
pub(super) use reload::Reloader;

/// Sessions of TLS 1.2 clients that take no tickets. One is about 200 bytes.
const SESSIONS: usize = 1024;

/// A file that TLS needs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It holds something else than it should.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key are not of the same pair.
    #[error("{}: is not the key of {}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// rustls refuses what the files hold.
    #[error("TLS cannot be set up: {0}")]
    Refused(#[from] rustls::Error),
}

impl TlsError {
    fn malformed(path: &Path, reason: &dyn std::fmt::Display) -> Self {
        Self::Malformed { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// What TLS counts.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    pub(super) handshakes: IntCounterVec,
    reloads: IntCounterVec,
    expiry: IntGaugeVec,
}

impl Metrics {
    pub(super) fn register(metrics: &telemetry::Metrics) -> Self {
        Self {
            handshakes: counters(
                metrics,
                "tls_handshakes_total",
                "TLS handshakes of clients, by outcome.",
                &["outcome"],
            ),
            reloads: counters(
                metrics,
                "tls_reloads_total",
                "Changes of certificate files that were noticed, by outcome.",
                &["outcome"],
            ),
            expiry: gauges(
                metrics,
                "tls_certificate_expiry_timestamp_seconds",
                "When the certificate in use ends, in seconds since the Unix epoch.",
                &["certificate"],
            ),
        }
    }
}

/// TLS of one listener, as it is now.
#[derive(Debug)]
pub(super) struct Tls {
    // A lock held for the clone of an `Arc`: one per handshake, which costs a thousand times as much.
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// What the next handshake uses.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, config: ServerConfig) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }
}

/// The content of all files of one listener.
#[derive(Clone, PartialEq, Eq)]
struct Material {
    /// Certificate and key, in the order of the configuration.
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
    client_ca: Option<Vec<u8>>,
}

impl Material {
    fn read(config: &TlsConfig) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
        };
        let pairs =
            config.certificates.iter().map(|files| Ok((read(&files.certificate)?, read(&files.key)?)));
        let client_ca = config.client_ca_file.as_deref().map(read);
        Ok(Self { pairs: pairs.collect::<Result<_, TlsError>>()?, client_ca: client_ca.transpose()? })
    }

    fn certificates(&self, config: &TlsConfig) -> Result<Arc<[Certificate]>, TlsError> {
        let pairs = config.certificates.iter().zip(&self.pairs);
        pairs.map(|(files, (certificate, key))| Certificate::parse(files, certificate, key)).collect()
    }
}

/// What lets a client resume: kept over a renewal, so that it costs nobody a full handshake.
#[derive(Debug, Clone)]
struct Resumption {
    tickets: Arc<dyn ProducesTickets>,
    sessions: Arc<dyn StoresServerSessions>,
}

impl Resumption {
    fn new() -> Result<Self, TlsError> {
        Ok(Self { tickets: aws_lc_rs::Ticketer::new()?, sessions: ServerSessionMemoryCache::new(SESSIONS) })
    }
}

fn server_config(
    config: &TlsConfig,
    client_ca: Option<&[u8]>,
    certificates: &Arc<[Certificate]>,
    resumption: &Resumption,
) -> Result<ServerConfig, TlsError> {
    let provider = crypto_provider();
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match (client_ca, &config.client_ca_file) {
        (Some(pem), Some(path)) => {
            let roots = Arc::new(roots(path, pem)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = match config.client_certificates {
                ClientCertificates::Required => verifier,
                ClientCertificates::Optional => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(
                verifier.build().map_err(|error| TlsError::malformed(path, &error))?,
            )
        }
        _ => builder.with_no_client_auth(),
    };
    let mut built = builder.with_cert_resolver(Arc::new(Choice::new(Arc::clone(certificates))));
    built.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    built.ticketer = Arc::clone(&resumption.tickets);
    built.session_storage = Arc::clone(&resumption.sessions);
    Ok(built)
}

fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| TlsError::malformed(path, &error))?;
        roots.add(certificate).map_err(|error| TlsError::malformed(path, &error))?;
    }
    if roots.is_empty() {
        return Err(TlsError::malformed(path, &"there is no certificate in it"));
    }
    Ok(roots)
}

/// What is noteworthy about a certificate, for people.
fn remark(certificate: &Certificate, now: Timestamp) -> Option<String> {
    (certificate.expires <= now)
        .then(|| format!("{}: the certificate ended on {}", certificate.file.display(), certificate.expires))
}
