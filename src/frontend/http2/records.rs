//! TLS records of one connection, sent together.
//!
//! h2 writes and flushes every frame by itself, so that each 16 KiB would leave with a system call and a packet of its
//! own, which costs as much as encrypting them. Here a flush behind a large write is put off, and what it would have
//! sent waits in rustls until there are 64 KiB of it. h2 flushes once more when it has nothing left to write (its
//! `poll_complete` asks again after every large frame): that flush is not put off, so nothing waits for what may not
//! come.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use crate::frontend::paced::Paced;

/// A write of at least this much is a frame of a body; everything smaller is flushed when h2 says so.
const LARGE: usize = 8 << 10;

/// What rustls holds for the socket at most: a batch, and the frame that completes it.
const BUFFER: usize = super::BATCH + (32 << 10);

/// A TLS connection that sends large writes in batches.
pub(super) struct Records<S> {
    tls: TlsStream<Paced<S>>,
    /// The last thing written was large, and no flush has been put off for it.
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
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Records<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.may_wait = buf.len() >= LARGE;
        self.holding(super::BATCH).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.may_wait = bufs.iter().map(|buf| buf.len()).sum::<usize>() >= LARGE;
        self.holding(super::BATCH).poll_write_vectored(cx, bufs)
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
