//! How a command reaches the edge that serves this machine's cache: over TCP, TLS or a Unix socket.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::frontend::{
    ClientCertificates, ListenAddress, ListenConfig, ProxyProtocol, TlsConfig, leaf_names,
};
use crate::runtime::crypto_provider;

/// A way to one of this machine's own listeners.
#[derive(Clone)]
pub(super) enum Way {
    Tcp(SocketAddr),
    Unix(PathBuf),
    Tls(SocketAddr, ServerName<'static>, Arc<ClientConfig>),
}

impl Way {
    /// The simplest way to one of these listeners.
    ///
    /// # Errors
    /// When there is none that a command can take.
    pub(super) fn to(listeners: &[ListenConfig]) -> Result<Self> {
        let open = |listener: &&ListenConfig| listener.proxy_protocol == ProxyProtocol::Off;
        let mut ways = Vec::new();
        for listener in listeners.iter().filter(open) {
            match (&listener.address, &listener.tls) {
                (ListenAddress::Tcp(address), None) => ways.push((0, Self::Tcp(reachable(*address)))),
                (ListenAddress::Unix(path), None) => ways.push((1, Self::Unix(path.clone()))),
                (ListenAddress::Tcp(address), Some(tls)) if !wants_certificate(tls) => {
                    ways.push((2, Self::tls(reachable(*address), tls)?));
                }
                // Where systemd's sockets are is not in the configuration.
                (ListenAddress::Systemd(_), _)
                | (ListenAddress::Tcp(_) | ListenAddress::Unix(_), Some(_)) => {}
            }
        }
        let way = ways.into_iter().min_by_key(|(rank, _)| *rank);
        let Some((_, way)) = way else {
            bail!(
                "a command cannot pull through any of its listeners (sockets of systemd, PROXY protocol, client \
                 certificates): give the edge another, such as \"127.0.0.1:5050\" or \"unix:/run/clawhub-edge/edge.sock\""
            )
        };
        Ok(way)
    }

    /// Sends one request on a connection of its own.
    ///
    /// # Errors
    /// What went wrong on the way there.
    pub(super) async fn ask(&self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>> {
        match self {
            Self::Tcp(address) => send(TcpStream::connect(address).await?, request).await,
            Self::Unix(path) => send(UnixStream::connect(path).await?, request).await,
            Self::Tls(address, name, config) => {
                let stream = TcpStream::connect(address).await?;
                send(TlsConnector::from(Arc::clone(config)).connect(name.clone(), stream).await?, request)
                    .await
            }
        }
    }

    fn tls(address: SocketAddr, tls: &TlsConfig) -> Result<Self> {
        let mut known = Vec::new();
        for files in &tls.certificates {
            known.push(
                CertificateDer::from_pem_file(&files.certificate)
                    .with_context(|| files.certificate.display().to_string())?,
            );
        }
        let name = known
            .first()
            .map(leaf_names)
            .unwrap_or_default()
            .into_iter()
            .find_map(|name| name.try_into().ok());
        let name = name.unwrap_or_else(|| ServerName::from(address.ip()));
        let provider = crypto_provider();
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Own { known, provider }))
            .with_no_client_auth();
        Ok(Self::Tls(address, name, Arc::new(config)))
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls(address, _, _) => write!(f, "https://{address}"),
        }
    }
}

fn wants_certificate(tls: &TlsConfig) -> bool {
    tls.client_ca_file.is_some() && tls.client_certificates == ClientCertificates::Required
}

/// How this machine reaches one of its own listeners.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It carries one answer and ends with it; a failure is the answer's too.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

/// Believes the certificates that the configuration of this very edge names, and no others: whoever signed them and
/// whatever they are called, they are what the listener on this machine shows.
#[derive(Debug)]
struct Own {
    known: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Own {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.known.iter().any(|known| known == end_entity) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
