//! Hot manifests on HTTP/1.1, answered below hyper.
//!
//! Most requests of a busy edge ask for a small manifest that memory has. What hyper does around such an answer costs
//! more than the answer, so that what is ordinary has an express lane: one whole head without a body, which memory alone
//! can answer. The answer is the one that [`Service`] gives through hyper, made of the same parts. Everything else goes
//! up to hyper untouched, and hyper never learns of what was answered here.
//!
//! Invariants: nothing overtakes an answer of hyper's, and no byte of a body is ever read as a request. So the lane is
//! open between answers only: when every head that went up has been answered in full and hyper has flushed, which it
//! does only after it has written everything. It closes for good as soon as anything goes up that is not exactly one
//! whole head without a body.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use hyper::Version;
use hyper::header::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::access_log::{COMPLETE, Entry, Record, Request};
use super::client::Client;
use super::head::{Arrived, Head};
use super::headers::WireHead;
use super::requests::{Open, Requests};
use super::service::{AtOnce, Service};

/// What stands between hyper and the socket of one connection.
pub(super) struct Express<I> {
    io: I,
    /// `None` where there is none, and once it is closed for good.
    lane: Option<Lane>,
    unsent: Option<Unsent>,
}

/// Who answers, and whether it may now.
pub(super) struct Lane {
    service: Arc<Service>,
    client: Arc<Client>,
    requests: Arc<Requests>,
    /// Requests that have come so far.
    arrived: u64,
    /// Whether hyper has one of them.
    is_above: bool,
    /// The longest head that hyper would read.
    max_header_size: usize,
}

/// What the socket has not taken yet of an answer.
struct Unsent {
    head: Bytes,
    body: Bytes,
    record: Record,
    _open: Open,
}

impl Lane {
    pub(super) fn new(
        service: Arc<Service>,
        client: Arc<Client>,
        requests: Arc<Requests>,
        max_header_size: usize,
    ) -> Self {
        Self { service, client, requests, arrived: 0, is_above: false, max_header_size }
    }

    /// Whether one whole head may be answered here.
    fn is_open_for(&self, head: &[u8]) -> bool {
        !self.is_above && head.len() <= self.max_header_size
    }

    /// Notes that hyper has written everything that it has.
    fn flushed(&mut self) {
        if self.is_above && self.requests.answered() == Some(self.arrived) {
            self.is_above = false;
        }
    }

    /// Logs an answer that has left as a whole.
    fn complete(&self, asked: &Head<'_>, answer: &AtOnce) {
        let accounts = self.service.accounts();
        accounts.sent_bytes.inc_by(answer.answered.promised);
        let entry = Entry {
            id: answer.id.as_str(),
            client: self.client.source,
            version: Version::HTTP_11,
            tls: self.client.tls.as_deref(),
            method: asked.method.as_str(),
            path: asked.path,
            query: asked.query,
            range: None,
            user_agent: asked.user_agent,
            started: answer.started,
            answered: &answer.answered,
            sent: answer.answered.promised,
            outcome: COMPLETE,
        };
        entry.write(accounts);
    }

    /// What logs an answer later.
    fn record(&self, asked: &Head<'_>, answer: AtOnce) -> Record {
        let request = Request {
            id: answer.id,
            client: self.client.source,
            version: Version::HTTP_11,
            tls: self.client.tls.clone(),
            method: asked.method.clone(),
            // What was answered is one.
            uri: target(asked).parse().unwrap_or_default(),
            range: None,
            user_agent: asked.user_agent.and_then(|agent| HeaderValue::from_str(agent).ok()),
            started: answer.started,
        };
        Record::new(request, answer.answered, Arc::clone(self.service.accounts()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Express<I> {
    pub(super) fn new(io: I, lane: Option<Lane>) -> Self {
        Self { io, lane, unsent: None }
    }

    /// Answers what has arrived, if it is for the lane; whether it was.
    fn answer(&mut self, cx: &mut Context<'_>, arrived: &[u8]) -> io::Result<bool> {
        let Some(lane) = &mut self.lane else {
            return Ok(false);
        };
        let asked = match Arrived::read(arrived) {
            Arrived::Ordinary(head) if lane.is_open_for(arrived) => Some(head),
            Arrived::Whole if lane.is_open_for(arrived) => None,
            Arrived::Ordinary(_) | Arrived::Whole | Arrived::Other => {
                self.lane = None;
                return Ok(false);
            }
        };
        lane.arrived += 1;
        let mut wire = WireHead::new();
        let answer = asked.as_ref().and_then(|asked| lane.service.at_once(asked, &mut wire));
        let (Some(asked), Some(answer)) = (asked, answer) else {
            lane.is_above = true;
            return Ok(false);
        };
        let head = wire.bytes().len();
        let whole = head + answer.body.len();
        let written = if wire.append(&answer.body) {
            Pin::new(&mut self.io).poll_write(cx, wire.bytes())
        } else {
            let bufs = [IoSlice::new(wire.bytes()), IoSlice::new(&answer.body)];
            Pin::new(&mut self.io).poll_write_vectored(cx, &bufs)
        };
        let sent = match written {
            Poll::Ready(Ok(sent)) => sent,
            Poll::Ready(Err(error)) => {
                // Nothing has left, and the log says so.
                drop(lane.record(&asked, answer));
                return Err(error);
            }
            Poll::Pending => 0,
        };
        if sent == whole {
            lane.requests.passed(answer.started);
            lane.complete(&asked, &answer);
        } else {
            let (head, body) = (Bytes::copy_from_slice(&wire.bytes()[..head]), answer.body.clone());
            let open = lane.requests.begin();
            let mut unsent = Unsent { head, body, record: lane.record(&asked, answer), _open: open };
            unsent.advance(sent);
            self.unsent = Some(unsent);
        }
        Ok(true)
    }

    /// Writes what the socket did not take before.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(unsent) = &mut self.unsent {
            let bufs = [IoSlice::new(&unsent.head), IoSlice::new(&unsent.body)];
            let sent = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &bufs))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            unsent.advance(sent);
            if unsent.head.is_empty() && unsent.body.is_empty() {
                self.unsent = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Path and query as they came.
fn target(asked: &Head<'_>) -> String {
    match asked.query {
        Some(query) => format!("{}?{query}", asked.path),
        None => asked.path.to_owned(),
    }
}

impl Unsent {
    fn advance(&mut self, sent: usize) {
        let of_head = sent.min(self.head.len());
        self.head.advance(of_head);
        self.body.advance(sent - of_head);
        self.record.sent(sent - of_head);
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Express<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        loop {
            ready!(this.poll_unsent(cx))?;
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let arrived = &buf.filled()[before..];
            // Nothing is the end.
            if arrived.is_empty() || !this.answer(cx, arrived)? {
                return Poll::Ready(Ok(()));
            }
            buf.set_filled(before);
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Express<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        if let Some(lane) = &mut self.lane {
            lane.flushed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::future::poll_fn;
    use std::path::Path;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use crate::auth::{self, Auth, AuthConfig, Wanted};
    use crate::database::{Database, DatabaseConfig, Durability};
    use crate::frontend::Accounts;
    use crate::frontend::client::Source;
    use crate::oci::{Algorithm, Digest, Reference};
    use crate::pull::{self, FillConfig, Puller, TagConfig, Want};
    use crate::routing::{Routes, RoutingConfig};
    use crate::runtime::{Clock, Settings, SystemClock, Tasks};
    use crate::store::{self, Scope, Store, StoreConfig};
    use crate::telemetry::{self, LogConfig, LogFormat};
    use crate::upstream::{self, FetchConfig};

    const MANIFEST: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "config":{"mediaType":"application/vnd.oci.empty.v1+json",
        "digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;

    /// One connection with a lane, its client's end of it, and what hyper would tell of its requests.
    struct Fixture {
        _directory: tempfile::TempDir,
        express: Express<DuplexStream>,
        far: DuplexStream,
        requests: Arc<Requests>,
        digest: Digest,
    }

    /// A service whose memory has the manifest, as repository `library/app` of the default upstream.
    async fn hot_service(directory: &Path) -> (Arc<Service>, Digest) {
        let settings = Settings::new(None, [], BTreeMap::new());
        let (root, clock): (_, Arc<dyn Clock>) = (settings.root(), Arc::new(SystemClock));
        let (tasks, metrics) = (Tasks::new(), telemetry::Metrics::new());
        let config = StoreConfig::read(&root.section("store"), directory.to_owned());
        let store = Store::open(&config, Arc::clone(&clock), store::Metrics::register(&metrics)).unwrap();
        let routes = Routes::new(RoutingConfig::read(&root));
        let client = upstream::Client::new(
            FetchConfig::default(),
            &routes,
            Arc::clone(&clock),
            upstream::Metrics::register(metrics.registry()).unwrap(),
        )
        .unwrap();
        let digest = Digest::of(Algorithm::Sha256, MANIFEST);
        store.put(digest.verify(Bytes::from_static(MANIFEST)).unwrap(), Duration::ZERO).await.unwrap();
        let route = routes.find(None, None, &"library/app".parse().unwrap()).unwrap();
        let state = directory.join("state");
        let parts = auth::Parts {
            node: "test".to_owned(),
            database: Database::open(
                &DatabaseConfig::read(&root.section("database"), &state),
                Durability::Full,
            )
            .await
            .unwrap(),
            client: client.clone(),
            store: store.clone(),
            clock: Arc::clone(&clock),
            tasks: tasks.clone(),
            metrics: auth::Metrics::register(&metrics),
        };
        let auth = Auth::open(AuthConfig::read(&root, Duration::ZERO), &state, false, parts).await.unwrap();
        let admitted =
            auth.admit_at_once(route.clone(), Wanted::Manifest(&Reference::Digest(digest))).unwrap();
        for scope in [Scope::Repository(&route.repository), Scope::Upstream] {
            store.metadata().set_visible(route.upstream.name.as_str(), scope, &digest, clock.now());
        }
        let puller = Puller::new(
            store,
            client,
            TagConfig::read(&root.section("tags")),
            FillConfig::read(&root.section("fill")),
            clock,
            &tasks,
            pull::Metrics::register(&metrics),
        );
        puller.manifest(&admitted, &Reference::Digest(digest), Want::Body).await.unwrap();
        let log = LogConfig { format: LogFormat::Text, level: "off".to_owned() }.start();
        let accounts = Accounts::register(&metrics, log.access().clone());
        (Arc::new(Service::new(routes, auth, None, puller, &tasks, metrics, accounts)), digest)
    }

    async fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let (service, digest) = hot_service(directory.path()).await;
        let (near, far) = tokio::io::duplex(64 << 10);
        let trusted_proxies = Arc::new([]);
        let client = Arc::new(Client { source: Source::Unix, tls: None, trusted_proxies });
        let requests = Arc::new(Requests::new());
        let express = Express::new(near, Some(Lane::new(service, client, Arc::clone(&requests), 32 << 10)));
        Fixture { _directory: directory, express, far, requests, digest }
    }

    impl Fixture {
        fn manifest(&self) -> String {
            format!("GET /v2/library/app/manifests/{} HTTP/1.1\r\nHost: edge\r\n\r\n", self.digest)
        }

        /// What hyper gets of what the client sends.
        async fn goes_up(&mut self, sent: &str) -> Vec<u8> {
            self.far.write_all(sent.as_bytes()).await.unwrap();
            let mut above = vec![0; 4096];
            let read = tokio::time::timeout(Duration::from_millis(50), self.express.read(&mut above)).await;
            above.truncate(read.map_or(0, Result::unwrap));
            above
        }

        /// What the client has got.
        async fn answered(&mut self) -> Vec<u8> {
            let mut answer = vec![0; 64 << 10];
            let read = tokio::time::timeout(Duration::from_millis(50), self.far.read(&mut answer)).await;
            answer.truncate(read.map_or(0, Result::unwrap));
            answer
        }

        async fn flush(&mut self) {
            poll_fn(|cx| Pin::new(&mut self.express).poll_flush(cx)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_hot_manifest_never_reaches_hyper() {
        let mut fixture = fixture().await;
        for count in 1..=3 {
            let sent = fixture.manifest();
            assert_eq!(fixture.goes_up(&sent).await, b"");
            let answer = fixture.answered().await;
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer.ends_with(MANIFEST));
            assert_eq!(fixture.requests.answered(), Some(count));
        }
    }

    #[tokio::test]
    async fn the_lane_is_open_again_only_when_hyper_has_answered_and_flushed() {
        let mut fixture = fixture().await;
        let other = "GET /v2/ HTTP/1.1\r\nHost: edge\r\n\r\n";
        assert_eq!(fixture.goes_up(other).await, other.as_bytes());
        // Not begun, then not ended, then not flushed.
        fixture.flush().await;
        assert!(fixture.express.lane.as_ref().is_some_and(|lane| lane.is_above));
        let open = fixture.requests.begin();
        fixture.flush().await;
        assert!(fixture.express.lane.as_ref().is_some_and(|lane| lane.is_above));
        drop(open);
        assert!(fixture.express.lane.as_ref().is_some_and(|lane| lane.is_above));
        fixture.flush().await;
        let sent = fixture.manifest();
        assert_eq!(fixture.goes_up(&sent).await, b"");
        assert!(fixture.answered().await.ends_with(MANIFEST));
    }

    #[tokio::test]
    async fn what_comes_while_hyper_answers_goes_up_and_so_does_everything_behind_it() {
        let mut fixture = fixture().await;
        let other = "GET /v2/ HTTP/1.1\r\nHost: edge\r\n\r\n";
        assert_eq!(fixture.goes_up(other).await, other.as_bytes());
        let open = fixture.requests.begin();
        let sent = fixture.manifest();
        assert_eq!(fixture.goes_up(&sent).await, sent.as_bytes());
        drop(open);
        fixture.flush().await;
        assert_eq!(fixture.goes_up(&sent).await, sent.as_bytes());
        assert_eq!(fixture.answered().await, b"");
    }

    #[tokio::test]
    async fn a_part_of_a_head_or_a_body_closes_the_lane() {
        let body = "POST /v2/ HTTP/1.1\r\nHost: edge\r\nContent-Length: 3\r\n\r\n";
        for first in ["GET /v2/", body] {
            let mut fixture = fixture().await;
            assert_eq!(fixture.goes_up(first).await, first.as_bytes());
            drop(fixture.requests.begin());
            fixture.flush().await;
            let sent = fixture.manifest();
            assert_eq!(fixture.goes_up(&sent).await, sent.as_bytes());
            assert_eq!(fixture.answered().await, b"");
        }
    }
}
