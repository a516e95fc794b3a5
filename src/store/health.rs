//! Whether a directory can be written to.
//!
//! A disk that refuses is left alone for new blobs until a probe has written to it again; what it holds is served
//! for as long as it can be read. Pulls go on meanwhile: from other disks, or passed through.

use std::fs;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use prometheus::IntGauge;

use super::layout::{Layout, private_file};

/// The state of one directory.
#[derive(Debug)]
pub(super) struct Health {
    // The flag is for those who choose a disk, the reason for those who ask why.
    degraded: AtomicBool,
    reason: Mutex<String>,
    gauge: IntGauge,
}

impl Health {
    /// A healthy one; `gauge` says 1 while it is.
    pub(super) fn new(gauge: IntGauge) -> Self {
        gauge.set(1);
        Self { degraded: AtomicBool::new(false), reason: Mutex::default(), gauge }
    }

    pub(super) fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    /// What it suffers from.
    pub(super) fn reason(&self) -> Option<String> {
        self.is_degraded().then(|| self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Notes that the disk has refused a write.
    pub(super) fn degrade(&self, layout: &Layout, reason: &str) {
        reason.clone_into(&mut self.reason.lock().unwrap_or_else(PoisonError::into_inner));
        if !self.degraded.swap(true, Ordering::Relaxed) {
            self.gauge.set(0);
            tracing::error!(
                directory = %layout.root().display(),
                reason,
                "the cache cannot be written to: pulls go on without it, and it is tried again every few seconds"
            );
        }
    }

    /// Notes that the disk takes writes again.
    pub(super) fn recover(&self, layout: &Layout) {
        if self.degraded.swap(false, Ordering::Relaxed) {
            self.gauge.set(1);
            tracing::info!(directory = %layout.root().display(), "the cache can be written to again");
        }
    }
}

/// Writes a small file to the disk and removes it. Blocking.
///
/// # Errors
/// The disk's.
pub(super) fn probe(layout: &Layout) -> io::Result<()> {
    let path = layout.partials().join("probe.tmp");
    let written = private_file().truncate(true).open(&path).and_then(|mut file| {
        file.write_all(&[0; 4096])?;
        file.sync_all()
    });
    let removed = fs::remove_file(&path);
    written.and(removed)
}
