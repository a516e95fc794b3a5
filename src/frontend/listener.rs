//! Accepting connections, and letting them go.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::config::{FrontendConfig, Limits};
use super::connection::Paced;
use super::service::{Facet, Service};
use crate::runtime::Tasks;

/// A failed accept (descriptors or memory exhausted) is tried again after this long; at once would
/// be a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections at once to a listener for metrics and probes.
const OPERATOR_CONNECTIONS: usize = 64;

/// The bound listeners, before they serve.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<(TcpListener, Facet)>,
    limits: Limits,
}

/// A listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

impl Listeners {
    /// Binds every configured address.
    ///
    /// # Errors
    /// Names the address that cannot be had.
    pub async fn bind(config: &FrontendConfig) -> Result<Self, BindError> {
        let pull = if config.metrics_address.is_some() { Facet::Pull } else { Facet::Everything };
        let pulls = config.listen.iter().map(|listen| (listen.address, pull));
        let metrics = config.metrics_address.map(|address| (address, Facet::Metrics));
        let mut sockets = Vec::new();
        for (address, facet) in pulls.chain(metrics) {
            let socket = TcpListener::bind(address).await.map_err(|source| BindError { address, source })?;
            sockets.push((socket, facet));
        }
        Ok(Self { sockets, limits: config.limits.clone() })
    }

    /// The addresses at which pulls are answered.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let pulls = self.sockets.iter().filter(|(_, facet)| *facet != Facet::Metrics);
        pulls.filter_map(|(socket, _)| socket.local_addr().ok()).collect()
    }

    /// Serves until the process drains; connections under way then finish their answer. Every
    /// listener and connection is a task.
    pub fn serve(self, service: &Arc<Service>, tasks: &Tasks) {
        let seats = Arc::new(Semaphore::new(self.limits.max_connections.min(Semaphore::MAX_PERMITS)));
        // Clients that take every seat must not keep the probes out.
        let operator_seats = Arc::new(Semaphore::new(OPERATOR_CONNECTIONS));
        for (socket, facet) in self.sockets {
            let accepting = Accepting {
                socket,
                facet,
                seats: Arc::clone(if facet == Facet::Metrics { &operator_seats } else { &seats }),
                service: Arc::clone(service),
                tasks: tasks.clone(),
                limits: self.limits.clone(),
            };
            tasks.spawn_vital("accept", accepting.run());
        }
    }
}

struct Accepting {
    socket: TcpListener,
    facet: Facet,
    seats: Arc<Semaphore>,
    service: Arc<Service>,
    tasks: Tasks,
    limits: Limits,
}

impl Accepting {
    async fn run(self) {
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = self.tasks.draining() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Without a seat one client waits here, and the next ones in the kernel's queue.
                    let seat = tokio::select! {
                        seat = Arc::clone(&self.seats).acquire_owned() => seat,
                        () = self.tasks.draining() => return,
                    };
                    let (service, tasks) = (Arc::clone(&self.service), self.tasks.clone());
                    let connection =
                        connection(stream, peer, self.facet, service, tasks, self.limits.clone());
                    self.tasks.spawn("connection", async move {
                        connection.await;
                        drop(seat);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    facet: Facet,
    service: Arc<Service>,
    tasks: Tasks,
    limits: Limits,
) {
    let metrics = Arc::clone(service.metrics());
    metrics.connections.inc();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "TCP_NODELAY");
    }
    let io = TokioIo::new(Paced::new(stream, limits.write_timeout));
    let handler = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, std::convert::Infallible>(service.answer(request, peer, facet).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.max_header_size.as_usize())
        .max_buf_size(limits.max_header_size.as_usize().max(WRITE_BUFFER));
    let mut connection = std::pin::pin!(builder.serve_connection(io, handler));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tasks.draining() => {
            // Finishes the answer under way and closes; an idle connection closes at once.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = tasks.aborting() => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, error = &error as &dyn std::error::Error, "connection ended early");
    }
    metrics.connections.dec();
}

/// hyper's bound on what one connection queues for writing before it asks for more: two frames of
/// 256 KiB. With one, a follower of a fill costs 3 % more CPU per byte.
const WRITE_BUFFER: usize = 512 << 10;
