//! The one composition root: settings become a running edge.

mod service_manager;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::Notify;

use crate::auth::{self, Auth};
use crate::config::Config;
use crate::database::{Database, Durability};
use crate::frontend::{self, Endpoint, Listeners, PassedSockets, Service};
use crate::pull::{self, Puller};
use crate::routing::Routes;
use crate::runtime::{Clock, SystemClock, Tasks};
use crate::store::{self, Store};
use crate::telemetry::{self, Log};
use crate::upstream;

pub use service_manager::ServiceManager;

/// Descriptors that clients' connections must leave.
const RESERVED_DESCRIPTORS: u64 = 1024;

/// A running edge.
#[derive(Debug)]
pub struct App {
    endpoints: Vec<Endpoint>,
    reload: Arc<Notify>,
    store: Store,
    database: Database,
    tasks: Tasks,
    metrics: telemetry::Metrics,
    drain_timeout: Duration,
}

impl App {
    /// Opens the store, binds the listeners or takes the `passed` sockets for them, and begins to serve.
    ///
    /// # Errors
    /// What keeps it from serving, with what to do about it.
    pub async fn start(mut config: Config, passed: PassedSockets, log: &Log) -> Result<Self> {
        let descriptors = raise_descriptor_limit();
        let tasks = Tasks::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let metrics = telemetry::Metrics::new();
        log.register(&metrics);
        let limits = &mut config.frontend.limits;
        // A connection takes two descriptors at most, its own and that of a flight; the rest is for
        // open blobs, upstreams and the cache itself.
        let seats =
            usize::try_from(descriptors.saturating_sub(RESERVED_DESCRIPTORS) / 2).unwrap_or(usize::MAX);
        if seats < limits.max_connections {
            tracing::info!(
                max_connections = seats,
                descriptors,
                "fewer connections than configured: raise the limit of open files"
            );
            limits.max_connections = seats.max(1);
        }
        // The address first: a second edge on the same port must not touch the cache.
        let listeners = Listeners::bind(&config.frontend, passed, &clock, &metrics)?;
        if let Some(exposure) = config.check_exposure(&listeners.exposed()) {
            bail!("{exposure}");
        }
        let store = {
            let (config, clock) = (config.store.clone(), Arc::clone(&clock));
            let metrics = store::Metrics::register(&metrics);
            tokio::task::spawn_blocking(move || Store::open(&config, clock, metrics)).await??
        };
        for warning in config.routing.warnings.iter().chain(&config.about_logins()) {
            tracing::warn!("{warning}");
        }
        let has_callers = config.routing.has_callers();
        let routes = Routes::new(config.routing);
        let client_metrics =
            upstream::Metrics::register(metrics.registry()).context("registering metrics")?;
        let client = upstream::Client::new(config.fetch, &routes, Arc::clone(&clock), client_metrics)?;
        let database = Database::open(&config.database, Durability::Relaxed).await?;
        let external_url = config.auth.external_url.clone();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let parts = auth::Parts {
            node: format!("{host}:{}", store.directory().display()),
            database: database.clone(),
            client: client.clone(),
            store: store.clone(),
            clock: Arc::clone(&clock),
            tasks: tasks.clone(),
            metrics: auth::Metrics::register(&metrics),
        };
        let auth = Auth::open(config.auth, &config.state, has_callers, parts).await?;
        let puller = Puller::new(
            store.clone(),
            client,
            config.tags,
            config.fill,
            clock,
            &tasks,
            pull::Metrics::register(&metrics),
        );
        let accounts = frontend::Accounts::register(&metrics, log.access().clone());
        let service =
            Arc::new(Service::new(routes, auth, external_url, puller, &tasks, metrics.clone(), accounts));
        let endpoints = listeners.endpoints();
        let reload = Arc::new(Notify::new());
        listeners.serve(&service, &tasks, &reload);
        let drain_timeout = config.frontend.limits.drain_timeout;
        Ok(Self { endpoints, reload, store, database, tasks, metrics, drain_timeout })
    }

    /// Where pulls are answered.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Looks at the certificate files now, in place of within seconds.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Where the cache lies.
    pub fn cache_directory(&self) -> &std::path::Path {
        self.store.directory()
    }

    /// How the service manager learns about this edge; it may outlive it.
    pub fn service_manager(&self) -> ServiceManager {
        ServiceManager::new(&self.endpoints, self.tasks.clone(), self.metrics.clone())
    }

    /// Stops accepting, lets answers under way finish within the drain time-out, and leaves the
    /// cache in order. What is still being fetched then is resumed by the next start.
    pub async fn stop(self) {
        let stragglers = self.tasks.drain(self.drain_timeout).await;
        if stragglers > 0 {
            tracing::warn!(tasks = stragglers, "stopped before everything had ended");
        }
        self.store.close().await;
        self.database.close().await;
    }
}

/// Every connection, flight and open blob takes a descriptor: allow as many as the system does.
/// Returns how many that are.
fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it was");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
