//! One connection's socket, with a deadline on every write, and with what was read before it was clear what the
//! connection is.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::file_writer::FileSocket;
use crate::store::FileSlice;

/// A socket whose peer must accept something within a time-out, or the connection ends. Without
/// it a client that stops reading holds its connection, its buffers and its seat for ever.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    /// The beginning, to be read again.
    head: Bytes,
    timeout: Duration,
    /// Armed only while a write waits: an unhindered write costs no timer.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Writes of less are not tried.
    least: usize,
}

impl<S> Paced<S> {
    /// A stream whose first bytes were read already: they are `head`.
    pub(super) fn new(stream: S, head: Bytes, timeout: Duration) -> Self {
        Self { stream, head, timeout, stalled: None, least: 0 }
    }

    /// Has writes of less than so many bytes wait, and nobody be woken for them: whoever writes comes back with more, or
    /// with a `least` of zero.
    pub(super) fn hold(&mut self, least: usize) {
        self.least = least;
    }

    fn pace<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let timeout = self.timeout;
        let stalled =
            self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client accepts nothing")))
    }
}

impl<S: FileSocket> Paced<S> {
    /// Has the socket hold back what fills no packet, or send that.
    pub(super) fn cork(&self, on: bool) {
        self.stream.cork(on);
    }

    /// How much the socket may hold beyond what is on its way.
    pub(super) fn allow_unsent(&self, bytes: u32) {
        self.stream.allow_unsent(bytes);
    }

    /// Sends of these bytes of a file's slice as many as the client takes at once.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slice: &FileSlice,
        bytes: Range<u64>,
    ) -> Poll<io::Result<usize>> {
        let outcome = self.stream.poll_send(cx, slice, bytes);
        self.pace(cx, outcome)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.head.is_empty() {
            let length = self.head.len().min(buf.remaining());
            buf.put_slice(&self.head[..length]);
            self.head.advance(length);
            if self.head.is_empty() {
                self.head = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.len() < self.least {
            return Poll::Pending;
        }
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.pace(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.least > 0 && bufs.iter().map(|buf| buf.len()).sum::<usize>() < self.least {
            return Poll::Pending;
        }
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.pace(cx, outcome)
    }

    /// hyper then queues the frames of a body by pointer instead of copying them.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn what_was_read_before_is_read_again_first() {
        let mut paced = Paced::new(&b"world"[..], Bytes::from_static(b"hello, "), Duration::MAX);
        let mut text = String::new();
        paced.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello, world");
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_cut_off_and_a_slow_one_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut server =
            Paced::new(listener.accept().await.unwrap().0, Bytes::new(), Duration::from_millis(200));
        let block = vec![0; 1 << 20];
        let writing = tokio::spawn(async move {
            loop {
                if let Err(error) = server.write_all(&block).await {
                    return error.kind();
                }
            }
        });
        let mut buffer = vec![0; 1 << 20];
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            client.read_exact(&mut buffer).await.unwrap();
        }
        assert_eq!(writing.await.unwrap(), io::ErrorKind::TimedOut);
    }
}
