//! HTTP/2 on one connection.
//!
//! Many streams share it, so what HTTP/1.1 has per connection is here per stream: a seat (each stream beside the first
//! takes one of its own), the deadline on writing, and its own end by `RST_STREAM`. hyper shows neither the streams
//! nor their windows; it runs every stream on an executor of ours, which gives up a stream whose client accepts
//! nothing, and hands its frames down as they are, which tell how much of them has left (see [`delivery`]).

mod delivery;
mod records;
mod streams;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;

use self::delivery::StreamBody;
use self::records::Records;
use self::streams::Streams;
use super::client::Client;
use super::connection::{Stream, Terms, seldom};
use super::paced::Paced;

/// Requests have no bodies that are read, so the least that RFC 9113 knows is enough.
const RECEIVE_WINDOW: u32 = 65_535;
/// What one stream may have queued beyond the frame in hand: one of 256 KiB, so two in all, as with HTTP/1.1.
const SEND_BUFFER: usize = 256 << 10;
/// What is sent over TLS at a stretch, where there is so much: as much as one packet on its way through the kernel takes.
const BATCH: usize = 64 << 10;
/// A client that is gone is noticed within a minute, whatever its streams wait for.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams that the client has reset before they were accepted, and those that were reset for a mistake of its: more
/// ends the connection (CVE-2023-44487).
const PENDING_RESETS: usize = 20;
const LOCAL_RESETS: usize = 100;

/// How long an idle client may take to answer a GOAWAY.
const LEAVE: Duration = Duration::from_secs(1);

/// Why a connection is to end.
enum Ending {
    Drain,
    Idle,
    /// The client opens streams only to reset them.
    Flood,
}

/// As [`serve`], over TLS.
pub(super) async fn serve_secure<S>(
    tls: TlsStream<Paced<S>>,
    client: Arc<Client>,
    terms: &Arc<Terms>,
) -> hyper::Result<()>
where
    S: Stream,
{
    serve(Records::new(tls), client, terms).await
}

/// Serves until the client leaves, is idle for too long or misbehaves, or the process drains; the answers under way are
/// finished.
pub(super) async fn serve<I: Stream>(io: I, client: Arc<Client>, terms: &Arc<Terms>) -> hyper::Result<()> {
    let limits = &terms.limits;
    let streams = Arc::new(Streams::new(terms.tasks.clone(), limits.write_timeout));
    let mut builder = http2::Builder::new(streams::Executor(Arc::clone(&streams)));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(u32::try_from(limits.max_header_size.as_usize()).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .initial_stream_window_size(RECEIVE_WINDOW)
        .initial_connection_window_size(RECEIVE_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    let handler = {
        let (terms, streams) = (Arc::clone(terms), Arc::clone(&streams));
        service_fn(move |request| {
            let (terms, streams, client) = (Arc::clone(&terms), Arc::clone(&streams), Arc::clone(&client));
            async move { Ok::<_, Infallible>(answer(request, &client, &terms, &streams).await) }
        })
    };
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), handler));
    let ending = seldom(async {
        tokio::select! {
            () = terms.tasks.draining() => Ending::Drain,
            () = streams.requests.idle_for(limits.header_timeout) => Ending::Idle,
            () = streams.flooded() => Ending::Flood,
        }
    });
    let ending = tokio::select! {
        // First, what has arrived: a drain must not close over a request that is already here.
        biased;
        ended = connection.as_mut() => return ended,
        ending = ending => ending,
    };
    if let Ending::Flood = ending {
        tracing::debug!("an HTTP/2 client takes back most of what it asks for");
        return Ok(());
    }
    // GOAWAY: the streams under way finish, an idle connection closes at once.
    connection.as_mut().graceful_shutdown();
    let overdue = async {
        if let Ending::Drain = ending {
            std::future::pending::<()>().await;
        }
        sleep(LEAVE).await;
        // A request may have crossed the GOAWAY: it is answered.
        streams.requests.idle_for(LEAVE).await;
    };
    tokio::select! {
        ended = connection => ended,
        () = terms.tasks.aborting() => Ok(()),
        () = overdue => Ok(()),
    }
}

async fn answer(
    request: Request<Incoming>,
    client: &Client,
    terms: &Terms,
    streams: &Streams,
) -> Response<StreamBody> {
    let request = with_host(request);
    // The first stream sits on its connection's seat.
    let seat = if streams.requests.open() > 1 {
        match timeout(terms.limits.header_timeout, Arc::clone(&terms.seats).acquire_owned()).await {
            Ok(Ok(seat)) => Some(seat),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => {
                let refusal = terms.service.refuse_for_load(request, client);
                return refusal.map(|body| StreamBody::new(body, None));
            }
        }
    } else {
        None
    };
    let response = terms.service.answer(request, client, terms.facet).await;
    response.map(|body| StreamBody::new(body, seat))
}

/// What HTTP/1.1 says in `Host`, HTTP/2 says in `:authority`; the rooms behind know the former (RFC 9113, section 8.3.1).
fn with_host(mut request: Request<Incoming>) -> Request<Incoming> {
    let authority =
        request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(authority) = authority {
        request.headers_mut().insert(header::HOST, authority);
    }
    request
}
