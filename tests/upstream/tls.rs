//! Private CAs and client certificates.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use clawhub_edge::runtime::crypto_provider;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::Edge;
use super::origin::{ForwardProxy, sha256};

const BODY: &str = "{\"schemaVersion\":2}";

/// A certificate authority and the files that an operator would have.
pub(super) struct Authority {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { directory: tempfile::tempdir().unwrap(), issuer };
        std::fs::write(authority.file("ca.pem"), authority.issuer.pem()).unwrap();
        let (certificate, key) = authority.leaf("edge");
        std::fs::write(authority.file("client.pem"), certificate.pem()).unwrap();
        std::fs::write(authority.file("client.key"), key.serialize_pem()).unwrap();
        authority
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    pub(super) fn leaf(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        Arc::new(roots)
    }
}

/// A TLS server that answers every request with one response and notes who showed a certificate.
struct Server {
    url: String,
    /// Per request: whether a client certificate was shown.
    seen: Arc<Mutex<Vec<bool>>>,
}

impl Server {
    fn start(authority: &Authority, client_is_required: bool, response: impl Into<String>) -> Self {
        let verifier = WebPkiClientVerifier::builder_with_provider(authority.roots(), crypto_provider());
        let verifier = if client_is_required { verifier } else { verifier.allow_unauthenticated() };
        let (certificate, key) = authority.leaf("localhost");
        let config = ServerConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let (config, response) = (Arc::new(config), response.into());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let seen = Arc::<Mutex<Vec<bool>>>::default();
        let noted = Arc::clone(&seen);
        // Ends with the process: nothing else connects to this port.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(connection, stream.unwrap());
                let mut request = [0; 8192];
                let mut length = 0;
                while !request[..length].ends_with(b"\r\n\r\n") {
                    match stream.read(&mut request[length..]) {
                        Ok(read) if read > 0 => length += read,
                        _ => break,
                    }
                }
                if length > 0 {
                    noted.lock().unwrap().push(stream.conn.peer_certificates().is_some());
                    let _ = stream.write_all(response.as_bytes());
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                }
            }
        });
        Self { url, seen }
    }

    fn seen(&self) -> Vec<bool> {
        self.seen.lock().unwrap().clone()
    }
}

fn ok() -> String {
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len())
}

pub(super) fn with_ca(url: &str, authority: &Authority) -> String {
    format!("url = \"{url}\"\nca_file = {:?}", authority.file("ca.pem"))
}

fn with_identity(url: &str, authority: &Authority) -> String {
    let (certificate, key) = (authority.file("client.pem"), authority.file("client.key"));
    format!("{}\nclient_certificate = {certificate:?}\nclient_key = {key:?}", with_ca(url, authority))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_ca_is_trusted_where_it_is_configured_and_nowhere_else() {
    let authority = Authority::new();
    let server = Server::start(&authority, false, ok());
    let trusting = Edge::with(&with_ca(&server.url, &authority));
    assert_eq!(trusting.manifest(&sha256(BODY.as_bytes())).await.unwrap().body, BODY);
    let error = Edge::of(std::slice::from_ref(&server.url)).manifest("latest").await.unwrap_err();
    assert_eq!(error.kind(), "unreachable");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_to_its_endpoint() {
    let authority = Authority::new();
    let server = Server::start(&authority, true, ok());
    Edge::with(&with_identity(&server.url, &authority)).manifest("latest").await.unwrap();
    assert_eq!(server.seen(), [true]);
    let without = Edge::with(&with_ca(&server.url, &authority));
    assert_eq!(without.manifest("latest").await.unwrap_err().kind(), "unreachable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_never_shown_to_another_host() {
    let authority = Authority::new();
    let storage = Server::start(&authority, false, ok());
    let redirect = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nConnection: close\r\nLocation: {}/x?signature=s\r\nContent-Length: 0\r\n\r\n",
        storage.url
    );
    let server = Server::start(&authority, true, redirect);
    Edge::with(&with_identity(&server.url, &authority)).manifest("latest").await.unwrap();
    assert_eq!((server.seen(), storage.seen()), (vec![true], vec![false]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_plain_http_is_refused() {
    let authority = Authority::new();
    let redirect = "HTTP/1.1 307 Temporary Redirect\r\nConnection: close\r\n\
                    Location: http://localhost:1/x?signature=s\r\nContent-Length: 0\r\n\r\n";
    let server = Server::start(&authority, false, redirect);
    let error = Edge::with(&with_ca(&server.url, &authority)).manifest("latest").await.unwrap_err();
    assert_eq!(error.kind(), "not_a_registry");
    assert!(!error.to_string().contains("signature"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_through_a_proxys_tunnel_and_is_checked_as_ever() {
    let authority = Authority::new();
    let server = Server::start(&authority, true, ok());
    let address = server.url.replace("https://localhost", "127.0.0.1").parse().unwrap();
    let proxy = ForwardProxy::start(address, Some("Basic bWU6cHJveHktd29yZA=="));
    let url = format!("http://me:proxy-word@{}", proxy.addr());
    super::proxy::edge(&with_identity(&server.url, &authority), &url).manifest("latest").await.unwrap();
    assert_eq!(server.seen(), [true]);
    let port = address.port();
    let head = proxy.heads().concat();
    assert!(head.starts_with(&format!("CONNECT localhost:{port} HTTP/1.1\r\n")), "{head}");
    let elsewhere = format!("url = \"https://elsewhere.test\"\nca_file = {:?}", authority.file("ca.pem"));
    let error = super::proxy::edge(&elsewhere, &url).manifest("latest").await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}
