//! TLS records of one connection, sent together.
//!
//! h2 writes and flushes every frame by itself, so that each 16 KiB would leave with a system call and a packet of its
//! own, which costs as much as encrypting them. Here a flush behind the payload of a large frame is put off, and what it
//! would have sent waits in rustls until there are 64 KiB of it. h2 flushes once more when it has nothing left to write
//! (its `poll_complete` asks again after every frame whose payload it has not copied): that flush is not put off, so
//! nothing waits for what may not come. Frames that it has gathered in a buffer of its own are flushed only once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use crate::frontend::paced::Paced;

/// A payload of at least this much is part of a body; everything smaller is flushed when h2 says so.
const LARGE: usize = 8 << 10;

/// What rustls holds for the socket at most: a batch, and the frame that completes it.
const BUFFER: usize = super::BATCH + (32 << 10);

/// A TLS connection that sends large writes in batches.
pub(super) struct Records<S> {
    tls: TlsStream<Paced<S>>,
    /// The last thing written was a large payload, and no flush has been put off for it.
    may_wait: bool,
}

impl<S: Unpin> Records<S> {
    pub(super) fn new(mut tls: TlsStream<Paced<S>>) -> Self {
        tls.get_mut().1.set_buffer_limit(Some(BUFFER));
        Self { tls, may_wait: false }
    }

    /// The stream below, which sends nothing less than this by itself.
    fn holding(&mut self, least: usize) -> Pin<&mut TlsStream<Paced<S>>> {
        self.tls.get_mut().0.hold(least);
        Pin::new(&mut self.tls)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Records<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.holding(0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Records<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A payload has its frame's head before it; what h2 has copied comes as one piece.
        self.may_wait = bufs.len() > 1 && bufs.last().is_some_and(|payload| payload.len() >= LARGE);
        match self.holding(super::BATCH).poll_write_vectored(cx, bufs) {
            // Who waits for room waits for the socket, and not for a batch.
            Poll::Pending => self.holding(0).poll_write_vectored(cx, bufs),
            written @ Poll::Ready(_) => written,
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.may_wait) {
            return Poll::Ready(Ok(()));
        }
        self.holding(0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.holding(0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::time::timeout;
    use tokio_rustls::{TlsAcceptor, TlsConnector, client};

    use crate::runtime::crypto_provider;

    const HEAD: [u8; 9] = [1; 9];

    /// Both ends of a connection of which this many bytes may be on their way.
    async fn pair(room: usize) -> (Records<DuplexStream>, client::TlsStream<DuplexStream>) {
        let own = rcgen::generate_simple_self_signed(["edge.test".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(crypto_provider());
        let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let server = server.with_single_cert(vec![own.cert.der().clone()], key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(crypto_provider());
        let client = client.with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let (near, far) = tokio::io::duplex(room);
        let near = Paced::new(near, Bytes::new(), Duration::from_secs(20));
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let connector = TlsConnector::from(Arc::new(client));
        let name = ServerName::try_from("edge.test").unwrap();
        let (accepted, connected) = tokio::join!(acceptor.accept(near), connector.connect(name, far));
        (Records::new(accepted.unwrap()), connected.unwrap())
    }

    async fn arrives(client: &mut client::TlsStream<DuplexStream>, size: usize) -> bool {
        let mut bytes = vec![0; size];
        timeout(Duration::from_millis(200), client.read_exact(&mut bytes)).await.is_ok()
    }

    #[tokio::test]
    async fn what_h2_has_gathered_leaves_with_its_one_flush() {
        let (mut records, mut client) = pair(1 << 20).await;
        for size in [100, LARGE, 16 << 10] {
            assert_eq!(records.write_vectored(&[IoSlice::new(&vec![7; size])]).await.unwrap(), size);
            records.flush().await.unwrap();
            assert!(arrives(&mut client, size).await, "{size} bytes");
        }
    }

    #[tokio::test]
    async fn a_large_payload_waits_for_more_or_for_another_flush() {
        let (mut records, mut client) = pair(1 << 20).await;
        let payload = vec![7; 16 << 10];
        let size = HEAD.len() + payload.len();
        for frames in [1, 2, 8] {
            for _ in 0..frames {
                let bufs = [IoSlice::new(&HEAD), IoSlice::new(&payload)];
                assert_eq!(records.write_vectored(&bufs).await.unwrap(), size);
                records.flush().await.unwrap();
            }
            if frames == 1 {
                assert!(!arrives(&mut client, 1).await);
            }
            records.flush().await.unwrap();
            assert!(arrives(&mut client, frames * size).await, "{frames} frames");
        }
    }

    #[tokio::test]
    async fn who_waits_for_room_is_woken_whatever_waits_in_front() {
        let (mut records, mut client) = pair(4 << 10).await;
        let payload = vec![7; 16 << 10];
        let mut sent = 0;
        // Until nothing more is taken: many small records, of which one call hands over only some, then large ones.
        for size in std::iter::repeat_n(50, 300).chain(std::iter::repeat_n(payload.len(), 50)) {
            let bufs = [IoSlice::new(&HEAD), IoSlice::new(&payload[..size])];
            match timeout(Duration::from_millis(20), records.write_vectored(&bufs)).await {
                Ok(written) => sent += written.unwrap(),
                Err(_) => break,
            }
            let _ = timeout(Duration::ZERO, records.flush()).await;
        }
        let writing = async {
            let bufs = [IoSlice::new(&HEAD), IoSlice::new(&payload)];
            sent += records.write_vectored(&bufs).await.unwrap();
            records.flush().await.unwrap();
            records.flush().await.unwrap();
            records.shutdown().await.unwrap();
            sent
        };
        let mut received = Vec::new();
        let (sent, read) = timeout(Duration::from_secs(20), async {
            tokio::join!(writing, client.read_to_end(&mut received))
        })
        .await
        .unwrap();
        read.unwrap();
        assert_eq!(received.len(), sent);
    }
}
