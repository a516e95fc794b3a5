//! What goes on behind the pulls, a task for each directory: reading what is in it, making room, noting what was
//! used, and trying a disk again that has refused.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Store;
use super::disk::Disk;
use super::recover::{self, Boot, Doubts};

/// How often the file system is looked at, of which others take their share, too.
const LOOK: Duration = Duration::from_secs(5);
/// How often a disk that has refused is tried again.
const PROBE: Duration = Duration::from_secs(2);
/// How often it is written down what was used: so much of recency a `kill -9` costs.
const RECORD: Duration = Duration::from_mins(1);

impl Store {
    /// Starts the work for one directory.
    pub(super) fn keep_house(&self, disk: &Arc<Disk>) {
        let background = &self.0.background;
        disk.start(background);
        let (store, loading) = (self.clone(), Arc::clone(disk));
        background.spawn("recover", async move { store.recover(loading).await });
        let (store, keeping) = (self.clone(), Arc::clone(disk));
        background.spawn("housekeeping", async move { store.housekeeping(keeping).await });
    }

    /// Finds what the records do not say, and removes every doubt.
    async fn recover(&self, disk: Arc<Disk>) {
        disk.read().await;
        let note_boot = |disk: Arc<Disk>| {
            let boot_id = Arc::clone(&self.0.boot_id);
            async move {
                let noted =
                    tokio::task::spawn_blocking(move || recover::note_boot(&disk.layout, &boot_id)).await;
                if let Ok(Err(error)) = noted {
                    tracing::warn!(%error, "the next start verifies again");
                }
            }
        };
        if *disk.boot() != Boot::Other {
            note_boot(Arc::clone(&disk)).await;
        }
        let scanning = Arc::clone(&disk);
        let Ok(doubts) = tokio::task::spawn_blocking(move || scanning.scan()).await else { return };
        let had_doubts = !doubts.suspects.is_empty();
        if !self.verify(doubts).await {
            return;
        }
        if *disk.boot() == Boot::Other {
            note_boot(disk).await;
        }
        self.0.doubtful.fetch_sub(1, Ordering::AcqRel);
        if had_doubts {
            tracing::info!("every blob of doubt was verified");
        }
    }

    /// Has synced what no sync has reached, and hashes what may have lost bytes, so that this happens once. Whether
    /// there was time for all of it.
    async fn verify(&self, doubts: Doubts) -> bool {
        for path in doubts.unsynced {
            self.0.durability.push(path);
        }
        for digest in doubts.suspects {
            if self.0.background.is_draining() {
                return false;
            }
            self.blob(&digest).await;
        }
        true
    }

    async fn housekeeping(&self, disk: Arc<Disk>) {
        let background = self.0.background.clone();
        let mut next_record = Instant::now() + RECORD;
        loop {
            let pause = if disk.health.is_degraded() { PROBE } else { LOOK };
            tokio::select! {
                () = disk.wanted() => {}
                () = sleep_until(Instant::now() + pause) => {}
                () = background.draining() => return,
            }
            let (keeping, records) = (Arc::clone(&disk), Instant::now() >= next_record);
            let kept = tokio::task::spawn_blocking(move || keep_house_once(&keeping, records));
            match kept.await {
                Ok(false) => {}
                Ok(true) => self.note_kept_again(),
                Err(error) => {
                    let directory = disk.layout.root().display();
                    tracing::error!(%directory, %error, "housekeeping has failed");
                }
            }
            if records {
                next_record = Instant::now() + RECORD;
            }
        }
    }

    /// The rows were lost with the directory, and nothing would say them again while the images are known to be kept.
    fn note_kept_again(&self) {
        for (name, digests) in self.0.images.kept() {
            self.0.metadata.set_kept(&name, &digests);
        }
    }
}

/// Whether the directory was made anew. Blocking.
fn keep_house_once(disk: &Disk, records: bool) -> bool {
    let is_new = disk.health.is_degraded() && disk.probe();
    if is_new {
        // Whatever was in the directory is gone with it.
        disk.scan();
    }
    disk.measure();
    while let Some(gone) = disk.evict() {
        tracing::debug!(directory = %disk.layout.root().display(), blobs = gone.len(), "evicted");
        disk.measure();
    }
    if records {
        disk.record_use();
    }
    is_new
}
