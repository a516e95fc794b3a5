//! What systemd is told: readiness, status, and that the process is alive.
//!
//! Invariant: `WATCHDOG=1` is sent only after the runtime has proven that it can still serve. A ping
//! from a thread of its own would go on while nothing else does, so each one waits for
//! - a task that is spawned for it: some worker takes tasks, and the timers run;
//! - blocking work of that task: the pool in which disks are read and written is not stuck behind a
//!   disk that never answers;
//! - the accept loops, which must not have ended.
//!
//! Not proven: that *every* worker takes tasks (one of several that never returns makes the edge
//! slow, and the others steal its tasks), and that a connection gets a seat. Clients that take all
//! seats are a load and not a hang; a watchdog that kills for load makes it worse.
//!
//! While the edge drains, the stop time-out is extended as long as the runtime answers. Outside of
//! systemd (no `NOTIFY_SOCKET`) nothing is sent, and nothing is asked.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::frontend::Endpoint;
use crate::runtime::Tasks;
use crate::telemetry;

/// How often the status is looked at where no watchdog sets the pace: it is for people.
const STATUS_INTERVAL: Duration = Duration::from_secs(30);
/// How often a drain says that it goes on.
const DRAIN_INTERVAL: Duration = Duration::from_secs(5);
/// What each such message asks for: two of them may be late.
const DRAIN_EXTENSION: Duration = Duration::from_secs(15);

/// The way to the service manager of this process, if it has one.
#[derive(Debug)]
pub struct ServiceManager {
    is_there: bool,
    listens_on: String,
    tasks: Tasks,
    metrics: telemetry::Metrics,
}

impl ServiceManager {
    pub(super) fn new(endpoints: &[Endpoint], tasks: Tasks, metrics: telemetry::Metrics) -> Self {
        let listens_on = endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let is_there = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self { is_there, listens_on, tasks, metrics }
    }

    /// Says that pulls are answered.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready, NotifyState::Status(&self.status("Serves"))]);
    }

    /// Says that files are being read again; [`ServiceManager::ready`] follows.
    pub fn reloading(&self) {
        // systemd 253 and newer tell by the time which reload is meant.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "no monotonic time"),
        }
    }

    /// Keeps the watchdog content and the status true until it is dropped.
    pub async fn serving(&self) -> Infallible {
        // Half of what systemd waits for, as sd_watchdog_enabled(3) recommends.
        let interval = sd_notify::watchdog_enabled().map_or(STATUS_INTERVAL, |limit| limit / 2);
        let mut told = String::new();
        let mut failures = self.failures();
        loop {
            self.prove_alive().await;
            let mut status = self.status("Serves");
            let failed = std::mem::replace(&mut failures, self.failures());
            if failures > failed {
                status += "; the cache's disk fails, pulls pass through";
            }
            if status == told {
                tell(&[NotifyState::Watchdog]);
            } else {
                tell(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
                told = status;
            }
            self.pause(interval).await;
        }
    }

    /// Says that the edge drains, and asks for time while it does, until it is dropped.
    pub async fn stopping(&self) -> Infallible {
        tell(&[NotifyState::Stopping]);
        loop {
            self.prove_alive().await;
            let extension = u32::try_from(DRAIN_EXTENSION.as_micros()).unwrap_or(u32::MAX);
            tell(&[
                NotifyState::ExtendTimeoutUsec(extension),
                NotifyState::Watchdog,
                NotifyState::Status(&self.status("Drains")),
            ]);
            self.pause(DRAIN_INTERVAL).await;
        }
    }

    /// Returns once the runtime has shown that it works; never, if it does not.
    async fn prove_alive(&self) {
        if self.is_there {
            let probe = tokio::spawn(async { tokio::task::spawn_blocking(|| ()).await });
            let answered = probe.await.is_ok_and(|blocking| blocking.is_ok());
            if !answered || self.tasks.has_lost_a_vital_one() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn pause(&self, interval: Duration) {
        if self.is_there {
            tokio::time::sleep(interval).await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    fn status(&self, does: &str) -> String {
        let connections = self.metrics.sum("http_connections", None);
        let fills = self.metrics.sum("flights", None);
        format!("{does} on {}: connections {connections}, fetches under way {fills}", self.listens_on)
    }

    /// Fills that the cache's disk has ended.
    fn failures(&self) -> f64 {
        self.metrics.sum("fills_total", Some(("outcome", "disk")))
    }
}

fn tell(states: &[NotifyState<'_>]) {
    // Its socket may be full or gone; whoever depends on the messages notices that they are missing.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, mpsc};

    /// One worker and one blocking thread, so that one that hangs is all of them.
    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap()
    }

    fn manager(tasks: &Tasks) -> Arc<ServiceManager> {
        let mut manager = ServiceManager::new(&[], tasks.clone(), telemetry::Metrics::new());
        manager.is_there = true;
        Arc::new(manager)
    }

    /// Asked from outside of the workers, as the process's main thread does. The runtime's own timers
    /// stand still with its workers.
    fn is_alive(runtime: &tokio::runtime::Runtime, manager: &Arc<ServiceManager>) -> bool {
        let (alive, answer) = mpsc::channel();
        let (handle, manager) = (runtime.handle().clone(), Arc::clone(manager));
        std::thread::spawn(move || {
            handle.block_on(manager.prove_alive());
            let _ = alive.send(());
        });
        answer.recv_timeout(Duration::from_millis(500)).is_ok()
    }

    #[test]
    fn a_worker_or_a_blocking_pool_that_hangs_is_not_alive_until_it_goes_on() {
        let runtime = runtime();
        let manager = manager(&Tasks::new());
        assert!(is_alive(&runtime, &manager));
        let (release, hung) = mpsc::channel::<()>();
        let pool = runtime.spawn_blocking(move || hung.recv());
        assert!(!is_alive(&runtime, &manager), "the blocking pool hangs");
        drop(release);
        let _ = runtime.block_on(pool);
        assert!(is_alive(&runtime, &manager));
        let (release, hung) = mpsc::channel::<()>();
        let worker = runtime.spawn(async move { hung.recv() });
        assert!(!is_alive(&runtime, &manager), "the worker hangs");
        drop(release);
        let _ = runtime.block_on(worker);
        assert!(is_alive(&runtime, &manager));
    }

    #[test]
    fn an_edge_that_accepts_nobody_is_not_alive() {
        let (runtime, tasks) = (runtime(), Tasks::new());
        let manager = manager(&tasks);
        runtime.block_on(async { tasks.spawn_vital("accept", async {}).await }).unwrap();
        assert!(!is_alive(&runtime, &manager));
    }
}
