//! Durability without stalls: blobs are served at once and synced behind their readers.
//!
//! A sync waits a few seconds: the kernel has then written most of the blob by itself, and the
//! disk is not busy with it while the fill's clients still read and other fills write.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::sealed::make_durable;
use crate::runtime::Tasks;

/// Blobs that may wait for their sync. One that does not fit stays without its mark, which costs a
/// verification after a power loss and nothing else.
const QUEUE: usize = 4096;

/// How long a blob waits for its sync; a stop does not.
const SETTLING: Duration = Duration::from_secs(3);

/// A blob that waits for its sync, which is due at this time. By its path: one that is evicted meanwhile needs none.
type Sealed = (PathBuf, Instant);

/// Where sealed blobs are handed over.
#[derive(Debug, Clone)]
pub(super) struct DurabilityQueue {
    sender: mpsc::Sender<Sealed>,
    /// Blobs without their mark: waiting, refused by the queue or refused by the disk.
    unmarked: Arc<AtomicU64>,
}

impl DurabilityQueue {
    /// Starts the task that syncs one blob after the other until the process drains.
    pub(super) fn start(tasks: &Tasks) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Sealed>(QUEUE);
        let queue = Self { sender, unmarked: Arc::default() };
        let (unmarked, draining) = (Arc::clone(&queue.unmarked), tasks.clone());
        tasks.spawn("durability", async move {
            loop {
                let next = tokio::select! {
                    biased;
                    next = receiver.recv() => next,
                    // Everything queued so far was taken by the branch above.
                    () = draining.draining() => None,
                };
                let Some((path, due)) = next else { break };
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = draining.draining() => {}
                }
                let at = path.clone();
                match tokio::task::spawn_blocking(move || make_durable(&path)).await {
                    Ok(Ok(())) => {
                        unmarked.fetch_sub(1, Ordering::Relaxed);
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(path = %at.display(), %error, "a blob could not be synced; it is verified after a power loss");
                    }
                    Err(_) => break,
                }
            }
        });
        queue
    }

    pub(super) fn push(&self, path: PathBuf) {
        self.unmarked.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.sender.try_send((path, Instant::now() + SETTLING)) {
            tracing::debug!(%error, "a blob stays without its durable mark");
        }
    }

    /// Whether every blob that was handed over carries its mark.
    pub(super) fn is_settled(&self) -> bool {
        self.unmarked.load(Ordering::Relaxed) == 0
    }
}
