//! Listening that can stop as a crash would, and start again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::lock;
use super::port::Port;

/// How a connection ends.
pub(super) enum Ending {
    /// With a FIN behind the last byte.
    Close,
    /// With a RST.
    Reset,
}

/// What answers the connections of a [`Server`].
pub(super) trait Service: Send + Sync + 'static {
    /// Talks until the connection shall end.
    fn serve(&self, stream: &mut TcpStream) -> impl Future<Output = Ending> + Send;
}

/// A listener and its connections, which all end with it.
#[derive(Default)]
pub(super) struct Server {
    running: Mutex<Option<Running>>,
    counts: Arc<Counts>,
}

/// Dropping it aborts the listener's task, and with that every connection.
struct Running {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    accepted: AtomicUsize,
}

impl Server {
    /// Listens, if it does not already.
    pub(super) fn start<S: Service>(&self, port: &Port, service: &Arc<S>) {
        let mut running = lock(&self.running);
        if running.is_some() {
            return;
        }
        let listener = port.listen().expect("the port is kept for this server");
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(service), Arc::clone(&self.counts), stopped));
        *running = Some(Running { stop, tasks });
    }

    /// Refuses new connections and resets the open ones; both are done when this returns.
    pub(super) async fn stop(&self) {
        let taken = lock(&self.running).take();
        if let Some(mut running) = taken {
            running.stop.send_replace(true);
            while running.tasks.join_next().await.is_some() {}
        }
    }

    pub(super) fn open(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }

    pub(super) fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::Relaxed)
    }
}

async fn accept<S: Service>(
    listener: TcpListener,
    service: Arc<S>,
    counts: Arc<Counts>,
    mut stopped: watch::Receiver<bool>,
) {
    let stop = stopped.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("a test has file descriptors to spare");
                counts.accepted.fetch_add(1, Ordering::Relaxed);
                connections.spawn(connection(stream, Arc::clone(&service), Open::new(&counts), stop.clone()));
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection<S: Service>(
    mut stream: TcpStream,
    service: Arc<S>,
    _open: Open,
    mut stopped: watch::Receiver<bool>,
) {
    // Both may fail on a connection that the peer has already reset, which then needs neither.
    let _ = stream.set_nodelay(true);
    let ending = tokio::select! {
        ending = service.serve(&mut stream) => ending,
        _ = stopped.wait_for(|stopped| *stopped) => Ending::Reset,
    };
    let _ = match ending {
        Ending::Close => stream.shutdown().await,
        Ending::Reset => stream.set_zero_linger(),
    };
}

/// Counts a connection while it is open, however its task ends.
struct Open(Arc<Counts>);

impl Open {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
