//! Writes what hyper writes, and sends files where it [means](super::outbox) files.

use std::future::Future;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::appetite::Appetite;
use super::outbox::Outbox;
use super::paced::Paced;
use crate::store::FileSlice;

/// So much is sent at a stretch before others get their turn: tokio's budget counts polls, not bytes, and a fast client
/// of a hot file never makes us wait.
const STRETCH: u64 = 4 << 20;

/// A socket that takes files.
pub(super) trait FileSocket: AsyncRead + AsyncWrite + Unpin {
    /// Sends of these bytes of the slice as many as the socket takes at once.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slice: &FileSlice,
        bytes: Range<u64>,
    ) -> Poll<io::Result<usize>>;

    /// Has it hold back what fills no packet, or send that.
    fn cork(&self, on: bool);

    /// How much it may hold beyond what is on its way.
    fn allow_unsent(&self, bytes: u32);
}

/// What stands below hyper on a connection without TLS.
pub(super) struct FileWriter<S> {
    io: Paced<S>,
    outbox: Arc<Outbox>,
    /// The part that is being sent, and up to where it waits for no disk.
    warm: (u16, u64),
    warming: Option<Pin<Box<dyn Future<Output = io::Result<u64>> + Send>>>,
    /// What was sent since somebody else had a turn.
    stretch: u64,
    /// Whether the socket holds back what fills no packet: `sendfile` gives it 64 KiB at a time, and what each has over
    /// whole packets would leave as one of its own. At an MTU of 1500 a byte to one client then costs 13 % (cubic) to 30 %
    /// (bbr) more of the machine. Only bbr on loopback, whose packets take 64 KiB, does better without.
    is_corked: bool,
    appetite: Appetite,
}

impl<S: FileSocket> FileWriter<S> {
    pub(super) fn new(io: Paced<S>, outbox: Arc<Outbox>) -> Self {
        Self {
            io,
            outbox,
            warm: (u16::MAX, 0),
            warming: None,
            stretch: 0,
            is_corked: false,
            appetite: Appetite::new(Instant::now()),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, number: u16) -> Poll<io::Result<usize>> {
        let (slice, at) = self.outbox.part(number)?;
        if self.stretch >= STRETCH {
            self.stretch = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Poll::Ready(warm) = self.poll_warm(cx, number, &slice, at)? else {
            // What there is must not wait for a disk.
            self.cork(false);
            return Poll::Pending;
        };
        self.cork(true);
        let Poll::Ready(sent) = self.io.poll_send(cx, &slice, at..warm)? else {
            self.stretch = 0;
            return Poll::Pending;
        };
        self.stretch += sent as u64;
        if let Some(allowed) = self.appetite.takes(sent as u64, Instant::now) {
            self.io.allow_unsent(allowed);
        }
        self.outbox.sent(sent as u64);
        Poll::Ready(Ok(sent))
    }

    fn cork(&mut self, on: bool) {
        if self.is_corked != on {
            self.is_corked = on;
            self.io.cork(on);
        }
    }

    /// Sees to it that what is sent next is in the page cache, and returns up to where it is: a socket that does not
    /// block does not keep `sendfile` from waiting for the disk. What is cold is read while what is warm goes out.
    fn poll_warm(
        &mut self,
        cx: &mut Context<'_>,
        number: u16,
        slice: &FileSlice,
        at: u64,
    ) -> Poll<io::Result<u64>> {
        if self.warm.0 != number {
            (self.warm, self.warming) = ((number, 0), None);
            if let Some(allowed) = self.appetite.begin(Instant::now()) {
                self.io.allow_unsent(allowed);
            }
        }
        if self.warming.is_none() && !slice.is_enough(at, self.warm.1) {
            let from = self.warm.1.max(at);
            self.warm.1 = slice.resident_to(from);
            if self.warm.1 == from {
                self.warming = Some(Box::pin(slice.clone().read_ahead(from)));
            }
        }
        if let Some(warming) = &mut self.warming {
            match warming.as_mut().poll(cx) {
                Poll::Ready(warm) => (self.warm.1, self.warming) = (warm?, None),
                Poll::Pending if at < self.warm.1 => {}
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(self.warm.1))
    }
}

impl<S: FileSocket> AsyncWrite for FileWriter<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.outbox.decoy().part_of(buf).is_some() {
            return self.poll_write_vectored(cx, &[IoSlice::new(buf)]);
        }
        self.outbox.check()?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.outbox.check()?;
        let part = |buf: &IoSlice<'_>| self.outbox.decoy().part_of(buf);
        let plain = bufs.iter().take_while(|buf| part(buf).is_none()).count();
        if bufs[..plain].iter().any(|buf| !buf.is_empty()) {
            return Pin::new(&mut self.io).poll_write_vectored(cx, &bufs[..plain]);
        }
        match bufs.get(plain).and_then(part) {
            Some(number) => self.poll_send(cx, number),
            None => Poll::Ready(Ok(0)),
        }
    }

    /// hyper then queues the frames of a body by pointer instead of copying them.
    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper has no more to write for now.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cork(false);
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S: FileSocket> AsyncRead for FileWriter<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

/// Whether a socket takes more now. If not, the kernel tells when it does: a `sendfile` that ended early for another reason
/// (a signal, a bad page, the end of a file that was cut off) asks it for nothing.
fn is_writable(socket: BorrowedFd<'_>) -> bool {
    let mut sockets = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
    // Where it cannot be said, the next attempt finds out.
    poll(&mut sockets, Some(&Timespec::default())).is_err() || !sockets[0].revents().is_empty()
}

/// Sends on a socket of tokio's that is ready, and waits where it is not.
macro_rules! file_socket {
    ($socket:ty, $cork:expr, $allow_unsent:expr) => {
        impl FileSocket for $socket {
            fn poll_send(
                &mut self,
                cx: &mut Context<'_>,
                slice: &FileSlice,
                bytes: Range<u64>,
            ) -> Poll<io::Result<usize>> {
                use std::os::fd::AsFd as _;
                loop {
                    ready!(self.poll_write_ready(cx))?;
                    let mut sent = None;
                    let send = || {
                        let (taken, is_all) = slice.send(self.as_fd(), bytes.clone())?;
                        sent = Some(taken);
                        // So that the next attempt waits, and is no system call in vain.
                        if is_all || is_writable(self.as_fd()) {
                            Ok(())
                        } else {
                            Err(io::ErrorKind::WouldBlock.into())
                        }
                    };
                    let outcome = self.try_io(tokio::io::Interest::WRITABLE, send);
                    if let Some(sent) = sent {
                        return Poll::Ready(Ok(sent));
                    }
                    if let Err(error) = outcome
                        && error.kind() != io::ErrorKind::WouldBlock
                    {
                        return Poll::Ready(Err(error));
                    }
                }
            }

            fn cork(&self, on: bool) {
                $cork(self, on);
            }

            fn allow_unsent(&self, bytes: u32) {
                $allow_unsent(self, bytes);
            }
        }
    };
}
// A connection that is gone says so when it is written to.
file_socket!(
    tokio::net::TcpStream,
    |socket, on| {
        let _ = rustix::net::sockopt::set_tcp_cork(socket, on);
    },
    |socket, bytes| {
        let _ = SockRef::from(socket).set_tcp_notsent_lowat(bytes);
    }
);
file_socket!(tokio::net::UnixStream, |_, _| {}, |_, _| {});

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::future::poll_fn;
    use std::time::Duration;

    use bytes::{Buf as _, Bytes};
    use hyper::Response;
    use hyper::header::{CONTENT_LENGTH, HeaderValue};
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use crate::frontend::appetite::MOST_UNSENT;
    use crate::frontend::bind::UNSENT;
    use crate::frontend::body::{Http1Body, ResponseBody};
    use crate::frontend::outbox::Decoy;
    use crate::frontend::requests::Requests;
    use crate::oci::{Algorithm, Digest};
    use crate::pull::Chunk;
    use crate::runtime::{Clock, SystemClock};
    use crate::store::{Amount, Blob, DiskConfig, Metrics, Store, StoreConfig};

    const SIZE: usize = 1 << 20;

    /// A sealed blob in a store of its own.
    struct Fixture {
        _directory: tempfile::TempDir,
        path: std::path::PathBuf,
        bytes: Vec<u8>,
        blob: Arc<Blob>,
    }

    async fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            disks: vec![DiskConfig::new(
                directory.path().to_owned(),
                Amount::Bytes(crate::runtime::Bytes::gib(1)),
            )],
            memory: crate::runtime::Bytes::mib(1),
            memory_max_object: crate::runtime::Bytes::kib(1),
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let metrics = Metrics::register(&crate::telemetry::Metrics::new());
        let store = Store::open(&config, clock, metrics).unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(1..)).take(SIZE).collect();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let mut partial = store.partial(digest, "origin.test").await.unwrap();
        partial.write_all(Bytes::from(bytes.clone())).await.unwrap();
        let blob = partial.seal().await.unwrap();
        let path = directory.path().join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex());
        Fixture { _directory: directory, path, bytes, blob }
    }

    /// A connection that takes little at once: the edge's end and the client's.
    async fn connected() -> (TcpStream, TcpStream) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(8 << 10).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener: TcpListener = socket.listen(1).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, client)
    }

    /// Answers one connection with these chunks, as the edge does. Small buffers, so that every write is a part.
    async fn answer(
        chunks: Vec<Chunk>,
        length: Option<usize>,
        vectored: bool,
    ) -> (TcpStream, tokio::task::JoinHandle<bool>) {
        let (stream, mut client) = connected().await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let outbox = Arc::new(Outbox::new(Decoy::new()));
        let paced = Paced::new(stream, Bytes::new(), Duration::from_secs(20));
        let writer = FileWriter::new(paced, Arc::clone(&outbox));
        let chunks = std::sync::Mutex::new(Some(chunks));
        let service = service_fn(move |_| {
            let body = ResponseBody::of(chunks.lock().unwrap().take().unwrap_or_default());
            let open = Arc::new(Requests::new()).begin();
            let mut response = Response::new(Http1Body::new(body, Some(Arc::clone(&outbox)), open));
            if let Some(length) = length {
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            async move { Ok::<_, Infallible>(response) }
        });
        let served = tokio::spawn(async move {
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.writev(vectored).serve_connection(TokioIo::new(writer), service).await.is_ok()
        });
        (client, served)
    }

    async fn body(mut client: TcpStream) -> Vec<u8> {
        let mut answer = Vec::new();
        // A reset is the end of a broken answer.
        let _ = client.read_to_end(&mut answer).await;
        let head =
            answer.windows(4).position(|window| window == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
        answer.split_off(head)
    }

    /// Undoes the chunked transfer coding.
    fn dechunked(mut body: &[u8]) -> Vec<u8> {
        let mut whole = Vec::new();
        while let Some(end) = body.windows(2).position(|window| window == b"\r\n") {
            let len = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
            whole.extend_from_slice(&body[end + 2..end + 2 + len]);
            body = &body[end + 2 + len + 2..];
        }
        whole
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn memory_and_files_leave_in_their_order_byte_for_byte(
            pieces in prop::collection::vec((any::<bool>(), 0..SIZE, 1..SIZE), 1..8),
            has_length: bool,
        ) {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let fixture = fixture().await;
                let (mut chunks, mut expected) = (Vec::new(), Vec::new());
                for (is_file, start, len) in pieces {
                    let end = (start + len).min(SIZE);
                    expected.extend_from_slice(&fixture.bytes[start..end]);
                    chunks.push(if is_file {
                        Chunk::File(fixture.blob.slice(start as u64, (end - start) as u64))
                    } else {
                        Chunk::Memory(Bytes::copy_from_slice(&fixture.bytes[start..end]))
                    });
                }
                let (client, served) = answer(chunks, has_length.then_some(expected.len()), true).await;
                let body = body(client).await;
                let body = if has_length { body } else { dechunked(&body) };
                assert!(body == expected, "{} of {} bytes", body.len(), expected.len());
                assert!(served.await.unwrap());
            });
        }
    }

    /// A socket that is never full.
    struct Bottomless;

    impl AsyncRead for Bottomless {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Bottomless {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl FileSocket for Bottomless {
        fn poll_send(
            &mut self,
            _: &mut Context<'_>,
            _: &FileSlice,
            bytes: Range<u64>,
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(usize::try_from(bytes.end - bytes.start).unwrap()))
        }

        fn cork(&self, _: bool) {}

        fn allow_unsent(&self, _: u32) {}
    }

    #[tokio::test]
    async fn a_client_that_is_never_full_lets_others_have_their_turn() {
        let fixture = fixture().await;
        let outbox = Arc::new(Outbox::new(Decoy::new()));
        let paced = Paced::new(Bottomless, Bytes::new(), Duration::from_secs(20));
        let mut writer = FileWriter::new(paced, Arc::clone(&outbox));
        let parts: Vec<_> = (0..20).map(|_| outbox.show(fixture.blob.slice(0, SIZE as u64))).collect();
        let mut numbers = parts.iter().map(|part| outbox.decoy().part_of(part.chunk()).unwrap());
        for _ in 0..3 {
            let stretch = poll_fn(|cx| {
                let sends = numbers.by_ref().map(|number| writer.poll_send(cx, number));
                let sent = sends.map_while(|sent| match sent {
                    Poll::Ready(sent) => Some(sent.unwrap() as u64),
                    Poll::Pending => None,
                });
                Poll::Ready(sent.sum::<u64>())
            });
            assert_eq!(stretch.await, STRETCH);
        }
    }

    #[tokio::test]
    async fn the_kernel_may_hold_more_for_a_fast_client() {
        let (near, _far) = connected().await;
        for bytes in [MOST_UNSENT, UNSENT] {
            near.allow_unsent(bytes);
            assert_eq!(SockRef::from(&near).tcp_notsent_lowat().unwrap(), bytes);
        }
    }

    #[tokio::test]
    async fn a_full_socket_is_waited_for_without_another_attempt() {
        let fixture = fixture().await;
        let (mut near, mut far) = connected().await;
        let slice = fixture.blob.slice(0, SIZE as u64);
        let size = SIZE as u64;
        let first = poll_fn(|cx| near.poll_send(cx, &slice, 0..size)).await.unwrap();
        assert!(first < SIZE, "the socket is small");
        // tokio knows that it is full, and `sendfile` is not asked.
        assert!(near.try_io(tokio::io::Interest::WRITABLE, || Ok(())).is_err());
        let mut sent = first as u64;
        let mut received = vec![0; SIZE];
        let reading = far.read_exact(&mut received);
        let sending = async {
            while sent < size {
                sent += poll_fn(|cx| near.poll_send(cx, &slice, sent..size)).await.unwrap() as u64;
            }
        };
        let (read, ()) = tokio::join!(reading, sending);
        read.unwrap();
        assert!(received == fixture.bytes);
    }

    #[tokio::test]
    async fn a_writer_that_copies_ends_the_connection_and_sends_nothing_of_the_decoy() {
        let fixture = fixture().await;
        let chunks = vec![Chunk::File(fixture.blob.slice(0, SIZE as u64))];
        let (client, served) = answer(chunks, Some(SIZE), false).await;
        let body = body(client).await;
        assert!(body.len() < SIZE);
        assert!(!body.contains(&0), "a byte of the decoy has left");
        assert!(!served.await.unwrap());
    }

    #[tokio::test]
    async fn a_file_that_is_cut_off_breaks_the_answer_and_is_not_served_again() {
        let fixture = fixture().await;
        std::fs::set_permissions(&fixture.path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::File::options().write(true).open(&fixture.path).unwrap().set_len(SIZE as u64 / 2).unwrap();
        let (client, served) =
            answer(vec![Chunk::File(fixture.blob.slice(0, SIZE as u64))], Some(SIZE), true).await;
        let body = body(client).await;
        assert!(body == fixture.bytes[..body.len()] && body.len() <= SIZE / 2);
        assert!(!served.await.unwrap());
        assert!(fixture.blob.is_damaged());
    }
}
