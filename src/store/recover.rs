//! What a start finds on the disk.
//!
//! Never fatal: what is whole is indexed, what can be resumed is left in place, what is odd goes to quarantine with a
//! log line. The records say what there is; the walk over the directories behind them finds what they do not say,
//! while pulls are already answered.

use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Error;
use super::disk::Disk;
use super::journal::Journal;
use super::layout::{Layout, digest_of, journal_of, write_file};
use super::partial::remove_files;
use super::sealed::is_durable;
use crate::oci::{Algorithm, Digest};

/// Written to the boot file by a stop after which every sealed blob carries its durable mark.
const CLEAN: &str = "clean";

/// Which boot of the machine wrote what is in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Boot {
    /// Any; the directory was left in order.
    Clean,
    /// This one: what was written is still there, or will be.
    Same,
    /// Another one: a power loss may have taken what does not carry the durable mark.
    Other,
}

impl Boot {
    /// Reads the boot file. Blocking.
    pub(super) fn read(layout: &Layout, boot_id: &str) -> Self {
        match fs::read_to_string(layout.boot()) {
            Ok(text) if text.trim() == CLEAN => Self::Clean,
            Ok(text) if text.trim() == boot_id => Self::Same,
            _ => Self::Other,
        }
    }
}

/// Blobs that something is to be done about.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// May have lost bytes in a power failure, or nothing is known of them: to be hashed before first use.
    pub(super) suspects: Vec<Digest>,
    /// No sync has reached them yet.
    pub(super) unsynced: Vec<PathBuf>,
}

/// Notes that blobs without a durable mark are to be trusted for as long as this boot lasts.
/// Only once no suspects are left: a restart must find them again. Blocking.
///
/// # Errors
/// The disk's.
pub(super) fn note_boot(layout: &Layout, boot_id: &str) -> Result<(), Error> {
    write_file(&layout.boot(), boot_id.as_bytes()).map_err(|source| Error::directory(&layout.boot(), source))
}

/// Notes that everything sealed is durable, at the end of an orderly stop. Blocking.
pub(super) fn leave_clean(layout: &Layout) {
    if let Err(error) = write_file(&layout.boot(), CLEAN.as_bytes()) {
        tracing::debug!(%error, "the clean mark could not be written");
    }
}

impl Disk {
    /// Looks at the blobs in flight and at the quarantine. Blocking.
    pub(super) fn recover_partials(&self) {
        for entry in entries(&self.layout.partials()) {
            self.recover_partial(&entry.path());
        }
        for entry in entries(&self.layout.quarantine()) {
            if let Ok(metadata) = entry.metadata() {
                self.found_quarantined(&metadata);
            }
        }
    }

    fn recover_partial(&self, path: &Path) {
        // <algorithm>-<hex>-<upstream>
        let digest = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| {
            let (algorithm, rest) = stem.split_once('-')?;
            digest_of(algorithm, rest.split_once('-')?.0)
        });
        match (digest, path.extension().and_then(|extension| extension.to_str())) {
            (Some(digest), Some("data")) => self.recover_data(&digest, path),
            // A journal whose data is gone speaks of nothing; one with data is read with it.
            (Some(_), Some("journal")) if !path.with_extension("data").exists() => remove(&[path.to_owned()]),
            (Some(_), Some("journal")) => {}
            (_, Some("tmp")) => remove(&[path.to_owned()]),
            _ => self.put_in_quarantine(path, "not part of a blob in flight"),
        }
    }

    fn recover_data(&self, digest: &Digest, data: &Path) {
        let files = [journal_of(data), data.to_owned()];
        if self.layout.blob(digest).exists() {
            remove(&files);
            return;
        }
        match Journal::read(&files[0]) {
            Ok(checkpoint) if checkpoint.digest == *digest => self.found_partial(data.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Ended before its first checkpoint: there is nothing to resume.
                remove(&files);
            }
            Ok(_) | Err(_) => {
                self.put_in_quarantine(&files[0], "unreadable journal");
                self.put_in_quarantine(&files[1], "data of an unreadable journal");
            }
        }
    }

    /// Walks over the sealed blobs: takes up those that no record speaks of, and forgets those whose files are
    /// gone. Blocking.
    pub(super) fn scan(&self) -> Doubts {
        let (mut doubts, mut seen) = (Doubts::default(), Vec::new());
        for entry in entries(&self.layout.blobs()) {
            let name = entry.file_name();
            let Some(algorithm) =
                Algorithm::ALL.iter().find(|algorithm| name.to_str() == Some(algorithm.as_str()))
            else {
                self.put_in_quarantine(&entry.path(), "not a digest algorithm");
                continue;
            };
            for shard in entries(&entry.path()) {
                for file in entries(&shard.path()) {
                    self.scan_file(algorithm.as_str(), &shard, &file, &mut seen, &mut doubts);
                }
            }
        }
        self.visit(|digests| {
            for digest in digests {
                let is_seen = self.slot(&digest).is_some_and(|slot| seen.get(slot).copied().unwrap_or(false));
                if !is_seen && is_gone(&self.layout.blob(&digest)) {
                    self.forget(&digest);
                }
            }
        });
        self.scanned();
        let (blobs, bytes) = self.total();
        tracing::info!(
            directory = %self.layout.root().display(),
            blobs,
            bytes,
            to_verify = doubts.suspects.len(),
            "cache recovered"
        );
        doubts
    }

    fn scan_file(
        &self,
        algorithm: &str,
        shard: &DirEntry,
        file: &DirEntry,
        seen: &mut Vec<bool>,
        doubts: &mut Doubts,
    ) {
        let (name, shard) = (file.file_name(), shard.file_name());
        let digest = name.to_str().and_then(|hex| digest_of(algorithm, hex));
        let in_its_shard = name.to_string_lossy().starts_with(&*shard.to_string_lossy());
        let Some(digest) = digest.filter(|_| in_its_shard) else {
            self.put_in_quarantine(&file.path(), "not a blob in its place");
            return;
        };
        let is_known = self.slot(&digest).is_some();
        if !is_known || *self.boot() != Boot::Clean {
            // Evicted, or the disk fails: whoever asks for it finds out.
            let Ok(metadata) = file.metadata() else { return };
            if !metadata.is_file() {
                self.put_in_quarantine(&file.path(), "not a blob in its place");
                return;
            }
            self.doubt(digest, &metadata, file.path(), doubts);
        }
        if let Some(slot) = self.slot(&digest) {
            if seen.len() <= slot {
                seen.resize((slot + 1).next_power_of_two(), false);
            }
            seen[slot] = true;
        }
    }

    fn doubt(&self, digest: Digest, metadata: &Metadata, path: PathBuf, doubts: &mut Doubts) {
        let is_durable = is_durable(metadata.permissions().mode());
        match self.size(&digest) {
            None => {
                if self.meet(digest).is_some() {
                    doubts.suspects.push(digest);
                }
            }
            Some(size) if size != metadata.len() => {
                self.set_aside(&digest, "not of the size that was sealed");
            }
            Some(_) if !is_durable && *self.boot() == Boot::Other => doubts.suspects.push(digest),
            Some(_) if !is_durable => doubts.unsynced.push(path),
            Some(_) => {}
        }
    }
}

fn is_gone(path: &Path) -> bool {
    matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

fn remove(paths: &[PathBuf]) {
    if let Err(error) = remove_files(paths) {
        tracing::warn!(path = %paths[0].display(), %error, "could not be removed");
    }
}

/// What is in a directory, one after the other: it may be a million.
fn entries(directory: &Path) -> impl Iterator<Item = DirEntry> + use<> {
    let read = match fs::read_dir(directory) {
        Ok(entries) => Some(entries),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %directory.display(), %error, "unreadable, left out");
            }
            None
        }
    };
    read.into_iter().flatten().filter_map(Result::ok)
}
