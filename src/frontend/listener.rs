//! Accepting connections, and letting them go.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use super::address::{Endpoint, ListenAddress};
use super::bind::{self, BindError, Socket};
use super::config::{FrontendConfig, Limits, ListenConfig, ProxyProtocol};
use super::connection::Terms;
use super::outbox::Decoy;
use super::passed::PassedSockets;
use super::service::{Facet, Service};
use super::tls::{self, Reloader, Tls};
use crate::runtime::{Clock, Network, Tasks};
use crate::telemetry;

/// A failed accept (descriptors or memory exhausted) is tried again after this long; at once would
/// be a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections at once to a listener for metrics and probes.
const OPERATOR_CONNECTIONS: usize = 64;

/// The bound listeners, before they serve.
#[derive(Debug)]
pub struct Listeners {
    bound: Vec<Listener>,
    reloaders: Vec<Reloader>,
    tls_metrics: tls::Metrics,
    limits: Limits,
}

#[derive(Debug)]
struct Listener {
    socket: Socket,
    endpoint: Endpoint,
    is_exposed: bool,
    facet: Facet,
    tls: Option<Arc<Tls>>,
    proxy_protocol: ProxyProtocol,
    trusted_proxies: Arc<[Network]>,
}

impl Listeners {
    /// Binds every configured address, or takes the socket that systemd passes for it. Without a configured one, the
    /// passed sockets are what is served.
    ///
    /// # Errors
    /// Names the address that cannot be had, or the file that TLS cannot use.
    pub fn bind(
        config: &FrontendConfig,
        passed: PassedSockets,
        clock: &Arc<dyn Clock>,
        metrics: &telemetry::Metrics,
    ) -> Result<Self, BindError> {
        let mut configured = match bind::as_listeners(&passed) {
            passed if config.is_default && !passed.is_empty() => passed,
            _ => config.listen.clone(),
        };
        let pulls = configured.len();
        configured.extend(config.metrics_address.map(ListenConfig::plain));
        let tls_metrics = tls::Metrics::register(metrics);
        let mut reloaders = Vec::new();
        let mut bound = Vec::new();
        for (socket, index) in bind::sockets(&configured, passed)? {
            let listen = &configured[index];
            let refused = |source| BindError::Refused { address: listen.address.clone(), source };
            let address = socket.address().map_err(refused)?;
            let reloader = match &listen.tls {
                Some(tls) => Some(Reloader::load(tls, &tls_metrics, clock)?),
                None => None,
            };
            bound.push(Listener {
                is_exposed: listen.is_exposed_at(&address),
                endpoint: Endpoint { address, tls: reloader.is_some() },
                socket,
                facet: match &config.metrics_address {
                    Some(_) if index >= pulls => Facet::Metrics,
                    Some(_) => Facet::Pull,
                    None => Facet::Everything,
                },
                tls: reloader.as_ref().map(Reloader::tls),
                proxy_protocol: listen.proxy_protocol,
                trusted_proxies: listen.trusted_proxies.iter().copied().collect(),
            });
            reloaders.extend(reloader);
        }
        Ok(Self { bound, reloaders, tls_metrics, limits: config.limits.clone() })
    }

    /// Where pulls are answered.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.pulls().map(|listener| listener.endpoint.clone()).collect()
    }

    /// Those that others reach without being asked who they are.
    pub fn exposed(&self) -> Vec<ListenAddress> {
        let exposed = self.pulls().filter(|listener| listener.is_exposed);
        exposed.map(|listener| listener.endpoint.address.clone()).collect()
    }

    fn pulls(&self) -> impl Iterator<Item = &Listener> {
        self.bound.iter().filter(|listener| listener.facet != Facet::Metrics)
    }

    /// Serves until the process drains; connections under way then finish their answer. Every
    /// listener and connection is a task. Certificates are looked at again whenever `reload` says so.
    pub fn serve(self, service: &Arc<Service>, tasks: &Tasks, reload: &Arc<Notify>) {
        let seats = Arc::new(Semaphore::new(self.limits.max_connections.min(Semaphore::MAX_PERMITS)));
        // Clients that take every seat must not keep the probes out.
        let operator_seats = Arc::new(Semaphore::new(OPERATOR_CONNECTIONS));
        if !self.reloaders.is_empty() {
            tasks.spawn("reload", Reloader::run(self.reloaders, Arc::clone(reload), tasks.clone()));
        }
        let decoy = Decoy::new();
        for listener in self.bound {
            let is_operators = listener.facet == Facet::Metrics;
            if is_operators {
                tracing::info!(listen = %listener.endpoint, "metrics have a listener of their own");
            }
            let terms = Arc::new(Terms {
                decoy: decoy.clone(),
                facet: listener.facet,
                limits: self.limits.clone(),
                tls: listener.tls,
                tls_metrics: self.tls_metrics.clone(),
                proxy_protocol: listener.proxy_protocol,
                trusted_proxies: listener.trusted_proxies,
                seats: Arc::clone(if is_operators { &operator_seats } else { &seats }),
                service: Arc::clone(service),
                tasks: tasks.clone(),
            });
            tasks.spawn_vital("accept", accept(listener.socket, terms));
        }
    }
}

async fn accept(socket: Socket, terms: Arc<Terms>) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = terms.tasks.draining() => return,
        };
        match accepted {
            Ok(accepted) => {
                // Without a seat one client waits here, and the next ones in the kernel's queue. A drain frees
                // seats, so that the one that has been accepted gets its answer.
                let seat = tokio::select! {
                    seat = Arc::clone(&terms.seats).acquire_owned() => seat,
                    () = terms.tasks.aborting() => return,
                };
                let serving = Arc::clone(&terms);
                terms.tasks.spawn("connection", async move {
                    let connections = serving.service.accounts().connections.clone();
                    connections.inc();
                    serving.serve(accepted).await;
                    connections.dec();
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
