//! A private certificate authority, what it signs, and clients that trust it.

#![allow(dead_code, unreachable_pub, reason = "each test crate uses another part of it")]

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use clawhub_edge::runtime::crypto_provider;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Pair {
    /// Writes both into a directory, as an operator would have them. Returns the keys of a listener.
    pub fn write(&self, directory: &Path, name: &str) -> String {
        let (certificate, key) =
            (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
        std::fs::write(&certificate, &self.certificate).expect("there is room for a certificate");
        std::fs::write(&key, &self.key).expect("there is room for a key");
        keys(&certificate, &key)
    }

    /// What a client sees of it.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("rcgen writes PEM")
    }
}

/// The keys of a listener with these files.
pub fn keys(certificate: &Path, key: &Path) -> String {
    format!("certificate = \"{}\"\nkey = \"{}\"", certificate.display(), key.display())
}

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("a certificate") }
    }

    /// A certificate for these names.
    pub fn certify(&self, names: &[&str]) -> Pair {
        self.sign(names, |_| {})
    }

    /// One that has ended long ago.
    pub fn certify_in_the_past(&self, names: &[&str]) -> Pair {
        self.sign(names, |params| {
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(2001, 1, 1);
        })
    }

    fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// Writes the authority's own certificate; returns the path as TOML has it.
    pub fn write(&self, directory: &Path, name: &str) -> String {
        let path = directory.join(name);
        std::fs::write(&path, self.issuer.pem()).expect("there is room for a certificate");
        format!("\"{}\"", path.display())
    }

    /// A client that trusts this authority, with a certificate of its own or without.
    pub fn client(&self, identity: Option<&Pair>) -> ClientConfig {
        self.client_of(rustls::ALL_VERSIONS, identity)
    }

    /// The same for some versions of TLS.
    pub fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<&Pair>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a certificate");
        let builder = ClientConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("rcgen writes PEM");
                builder.with_client_auth_cert(vec![pair.der()], key).expect("a pair")
            }
        }
    }
}

/// A connection whose handshake is done.
///
/// # Errors
/// What the handshake says.
pub async fn connect(
    addr: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    TlsConnector::from(Arc::clone(config)).connect(name, stream).await
}

/// One GET of HTTP/1.1 on a stream of any kind, read to the end of the connection.
///
/// # Errors
/// What the stream says.
pub async fn get<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, path: &str) -> io::Result<Vec<u8>> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The body of what [`get`] returned, of an answer with 200.
pub fn body(answer: &[u8]) -> &[u8] {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..end]));
    &answer[end + 4..]
}
