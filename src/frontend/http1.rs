//! HTTP/1.1 on one connection.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::body::Http1Body;
use super::client::Client;
use super::connection::{FIRST_WORD, Stream, Terms, seldom};
use super::express::{Express, Lane};
use super::outbox::Outbox;
use super::requests::Requests;
use super::service::Facet;

/// hyper's bound on what one connection queues for writing before it asks for more: two frames of
/// 256 KiB. With one, a follower of a fill costs 3 % more CPU per byte.
const WRITE_BUFFER: usize = 512 << 10;

/// Serves until the client leaves, asks nothing for too long, or the process drains; the answer under way is finished.
/// With an `outbox`, which is that of a [`FileWriter`](super::file_writer::FileWriter) below, files are sent without
/// being read.
///
/// The deadline on a request's head is ours: hyper's sets a timer for each request, which takes the lock of the runtime's
/// timers twice.
pub(super) async fn serve<I: Stream>(
    io: I,
    outbox: Option<Arc<Outbox>>,
    client: Arc<Client>,
    terms: &Terms,
) -> hyper::Result<()> {
    let (service, facet) = (Arc::clone(&terms.service), terms.facet);
    let requests = Arc::new(Requests::new());
    let head = terms.limits.max_header_size.as_usize();
    let asked = Arc::clone(&requests);
    // Metrics' own listener has no manifests, and may not ask for certificates as the others do.
    let lane = (facet != Facet::Metrics)
        .then(|| Lane::new(Arc::clone(&service), Arc::clone(&client), Arc::clone(&requests), head));
    let io = Express::new(io, lane);
    let handler = service_fn(move |request| {
        let open = asked.begin();
        let (service, client, outbox) = (Arc::clone(&service), Arc::clone(&client), outbox.clone());
        async move {
            let response = service.answer(request, &client, facet).await;
            Ok::<_, Infallible>(response.map(|body| Http1Body::new(body, outbox, open)))
        }
    });
    let mut builder = http1::Builder::new();
    builder.max_header_size(head).max_buf_size(head.max(WRITE_BUFFER));
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), handler));
    let ending = seldom(async {
        tokio::select! {
            () = terms.tasks.draining() => {
                // hyper closes a connection whose first request it has not parsed yet, be it here in part or whole.
                let _ = timeout(FIRST_WORD, requests.asked()).await;
                false
            }
            () = requests.idle_for(terms.limits.header_timeout) => true,
        }
    });
    let is_idle = tokio::select! {
        // First, what has arrived: a drain must not close over a request that is already here.
        biased;
        ended = connection.as_mut() => return ended,
        is_idle = ending => is_idle,
    };
    if is_idle {
        return Ok(());
    }
    // Finishes the answer under way and closes; an idle connection closes at once.
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        ended = connection => ended,
        () = terms.tasks.aborting() => Ok(()),
        // hyper waits for the rest of a head that it has a part of.
        () = requests.idle_for(terms.limits.header_timeout) => Ok(()),
    }
}
