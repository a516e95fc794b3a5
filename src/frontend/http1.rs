//! HTTP/1.1 on one connection.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::body::Http1Body;
use super::client::Client;
use super::connection::{FIRST_WORD, Stream, Terms};
use super::outbox::Outbox;

/// hyper's bound on what one connection queues for writing before it asks for more: two frames of
/// 256 KiB. With one, a follower of a fill costs 3 % more CPU per byte.
const WRITE_BUFFER: usize = 512 << 10;

/// Serves until the client leaves or the process drains; the answer under way is finished. With an `outbox`, which is
/// that of a [`FileWriter`](super::file_writer::FileWriter) below, files are sent without being read.
pub(super) async fn serve<I: Stream>(
    io: I,
    outbox: Option<Arc<Outbox>>,
    client: Arc<Client>,
    terms: &Terms,
) -> hyper::Result<()> {
    let (service, facet) = (Arc::clone(&terms.service), terms.facet);
    let asked = Arc::new(Notify::new());
    let asking = Arc::clone(&asked);
    let handler = service_fn(move |request| {
        // Kept until somebody waits: the drain asks whether there was a first request.
        asking.notify_one();
        let (service, client, outbox) = (Arc::clone(&service), Arc::clone(&client), outbox.clone());
        async move {
            let response = service.answer(request, &client, facet).await;
            Ok::<_, Infallible>(response.map(|body| Http1Body::new(body, outbox)))
        }
    });
    let head = terms.limits.max_header_size.as_usize();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(terms.limits.header_timeout)
        .max_header_size(head)
        .max_buf_size(head.max(WRITE_BUFFER));
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), handler));
    tokio::select! {
        // First, what has arrived: a drain must not close over a request that is already here.
        biased;
        ended = connection.as_mut() => ended,
        () = async {
            terms.tasks.draining().await;
            // hyper closes a connection whose first request it has not parsed yet, be it here in part or whole.
            let _ = timeout(FIRST_WORD, asked.notified()).await;
        } => {
            // Finishes the answer under way and closes; an idle connection closes at once.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = terms.tasks.aborting() => Ok(()),
            }
        }
    }
}
