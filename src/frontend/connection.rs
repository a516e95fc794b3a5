//! The life of one connection, from its first byte to its last.
//!
//! What may come before HTTP comes in this order: a PROXY header, where the listener requires one; a `ClientHello`, where
//! it speaks TLS; the preface of HTTP/2, or ALPN. All of it has one deadline, and the connection holds its seat
//! meanwhile. `Upgrade: h2c`, which RFC 9113 (section 3.1) has deprecated, is not answered: HTTP/2 without TLS begins
//! with prior knowledge. A plain connection stays a bare socket in a thin wrapper, never a boxed one.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::client::{Client, Secured, Source};
use super::config::{Limits, ProxyProtocol};
use super::file_writer::{FileSocket, FileWriter};
use super::opening::Opening;
use super::outbox::{Decoy, Outbox};
use super::paced::Paced;
use super::proxy_protocol;
use super::service::{Facet, Service};
use super::tls::{self, Tls};
use super::{http1, http2};
use crate::runtime::{Network, Tasks};

/// Room for the first read: the head of an ordinary request, or a `ClientHello`.
const FIRST_READ: usize = 1024;
/// How long a client that spoke the wrong language may take to read that it did.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a client gets to begin its request when the process drains, counted from the accept: those that have just come
/// out of the kernel's queue are to notice nothing of a restart. It bounds what connections without a request cost a
/// stop.
pub(super) const FIRST_WORD: Duration = Duration::from_secs(1);

/// Said in plain HTTP to a client that begins with TLS. Go's clients (skopeo, Docker, containerd) recognise the five
/// bytes `HTTP/` where a TLS record should be and try http at once where they are allowed to; to an alert or a close
/// containerd would not.
const NO_TLS_HERE: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Connection: close\r\nContent-Length: 37\r\n\r\nthis port speaks plain HTTP, not TLS\n";
/// And the other way round, for people with curl.
const TLS_HERE: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Connection: close\r\nContent-Length: 40\r\n\r\nthis port speaks TLS: ask with https://\n";

/// Resolves with `future`, which is polled only when it has asked for it: not whenever the task that waits is woken by
/// something else. Beside a connection, a request then touches nothing that ends connections, and so none of the locks
/// that all of them share.
pub(super) async fn seldom<F: Future>(future: F) -> F::Output {
    match FuturesUnordered::from_iter([future]).next().await {
        Some(output) => output,
        // It holds one future.
        None => std::future::pending().await,
    }
}

/// A connection as it was accepted.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(TcpStream, Source),
    Unix(UnixStream),
}

/// What a connection carries its bytes over.
trait Socket: FileSocket + Send + 'static {}
impl<S: FileSocket + Send + 'static> Socket for S {}

/// What HTTP is spoken on.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// What holds for every connection of one listener.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) facet: Facet,
    pub(super) limits: Limits,
    pub(super) decoy: Decoy,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) tls_metrics: tls::Metrics,
    pub(super) proxy_protocol: ProxyProtocol,
    pub(super) trusted_proxies: Arc<[Network]>,
    pub(super) seats: Arc<Semaphore>,
    pub(super) service: Arc<Service>,
    pub(super) tasks: Tasks,
}

/// A connection that ended before it came to HTTP.
#[derive(Debug, thiserror::Error)]
enum Unopened {
    #[error("the PROXY header is refused: {0}")]
    Proxy(#[from] proxy_protocol::Malformed),
    #[error("it does not come from a trusted proxy")]
    Untrusted,
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    #[error("it speaks another language than this listener")]
    Language,
    #[error("it said too little in time")]
    Late,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A connection that is ready for HTTP.
enum Open<S> {
    Http1(Paced<S>, Client),
    Http2(Paced<S>, Client),
    Tls(Box<TlsStream<Paced<S>>>, Client),
}

impl Terms {
    /// Serves one connection to its end.
    pub(super) async fn serve(self: Arc<Self>, accepted: Accepted) {
        match accepted {
            Accepted::Tcp(stream, source) => self.converse(stream, source).await,
            Accepted::Unix(stream) => self.converse(stream, Source::Unix).await,
        }
    }

    async fn converse<S: Socket>(self: &Arc<Self>, stream: S, source: Source) {
        let accepted = Instant::now();
        let opened = tokio::select! {
            opened = timeout(self.limits.header_timeout, self.open(stream, source)) => opened,
            // It has asked for nothing, although it had the time.
            () = async {
                self.tasks.draining().await;
                sleep_until(accepted + FIRST_WORD).await;
            } => return,
        };
        let ended = match opened.unwrap_or(Err(Unopened::Late)) {
            Ok(Open::Http1(io, client)) => {
                let outbox = Arc::new(Outbox::new(self.decoy.clone()));
                let io = FileWriter::new(io, Arc::clone(&outbox));
                http1::serve(io, Some(outbox), Arc::new(client), self).await
            }
            Ok(Open::Http2(io, client)) => http2::serve(io, Arc::new(client), self).await,
            Ok(Open::Tls(io, client)) => {
                if io.get_ref().1.alpn_protocol() == Some(b"h2") {
                    http2::serve_secure(*io, Arc::new(client), self).await
                } else {
                    http1::serve(*io, None, Arc::new(client), self).await
                }
            }
            Err(error) => {
                tracing::debug!(peer = %source, %error, "a connection was not opened");
                return;
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %source, error = &error as &dyn std::error::Error, "connection ended early");
        }
    }

    async fn open<S: Socket>(&self, mut stream: S, mut source: Source) -> Result<Open<S>, Unopened> {
        let mut head = BytesMut::with_capacity(FIRST_READ);
        if self.proxy_protocol == ProxyProtocol::Required {
            source = self.proxied(&mut stream, &mut head, source).await?.unwrap_or(source);
        }
        let opening = Opening::read(&mut stream, &mut head).await?;
        let client = Client { source, tls: None, trusted_proxies: Arc::clone(&self.trusted_proxies) };
        match (&self.tls, opening) {
            (Some(tls), Opening::Tls) => self.secure(tls, stream, head.freeze(), client).await,
            (Some(_), Opening::Http1 | Opening::Http2) => {
                farewell(&mut stream, TLS_HERE).await;
                Err(Unopened::Language)
            }
            (None, Opening::Tls) => {
                farewell(&mut stream, NO_TLS_HERE).await;
                Err(Unopened::Language)
            }
            (None, Opening::Http1) => Ok(Open::Http1(self.paced(stream, head.freeze()), client)),
            (None, Opening::Http2) => Ok(Open::Http2(self.paced(stream, head.freeze()), client)),
        }
    }

    fn paced<S>(&self, stream: S, head: Bytes) -> Paced<S> {
        Paced::new(stream, head, self.limits.write_timeout)
    }

    /// Whom the PROXY header at the beginning names, if it names anybody. What follows it stays in `head`.
    async fn proxied<S: Socket>(
        &self,
        stream: &mut S,
        head: &mut BytesMut,
        source: Source,
    ) -> Result<Option<Source>, Unopened> {
        // On a Unix socket the file's permissions have said who may speak.
        if source != Source::Unix && !source.is_trusted(&self.trusted_proxies) {
            return Err(Unopened::Untrusted);
        }
        loop {
            if let Some(header) = proxy_protocol::parse(head)? {
                let _ = head.split_to(header.length);
                return Ok(header.source.map(Source::socket));
            }
            // The parser wants no more than `MAX_HEADER`, so this buffer ends there.
            head.reserve(FIRST_READ);
            if stream.read_buf(head).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    async fn secure<S: Socket>(
        &self,
        tls: &Tls,
        stream: S,
        head: Bytes,
        mut client: Client,
    ) -> Result<Open<S>, Unopened> {
        let accepted = TlsAcceptor::from(tls.current()).accept(self.paced(stream, head)).await;
        let outcome = if accepted.is_ok() { "done" } else { "failed" };
        self.tls_metrics.handshakes.with_label_values(&[outcome]).inc();
        let stream = accepted.map_err(Unopened::Handshake)?;
        client.tls = Some(Arc::new(secured(stream.get_ref().1)));
        Ok(Open::Tls(Box::new(stream), client))
    }
}

fn secured(connection: &ServerConnection) -> Secured {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        // None that is configured.
        Some(_) | None => "TLS",
    };
    let leaf = connection.peer_certificates().and_then(<[_]>::first);
    Secured { version, certificate: leaf.and_then(tls::owner) }
}

/// Answers, and reads what the client has still to say: a close with unread bytes is a reset, which would take the
/// answer with it.
async fn farewell<S: Socket>(stream: &mut S, answer: &[u8]) {
    let farewell = async {
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        let mut rest = [0; FIRST_READ];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // The client is gone or slow: either way there is nothing left to say.
    let _ = timeout(FAREWELL, farewell).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_farewells_have_the_length_that_they_promise() {
        for answer in [NO_TLS_HERE, TLS_HERE] {
            let text = std::str::from_utf8(answer).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            assert_eq!(length, body.len().to_string());
        }
    }
}
