//! What a start finds on the disk.
//!
//! Never fatal: what is whole is indexed, what can be resumed is left in place, what is odd goes
//! to quarantine with a log line.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Error;
use super::journal::Journal;
use super::layout::{Layout, digest_of, write_file};
use super::partial::remove_files;
use super::sealed::is_durable;
use crate::oci::{Algorithm, Digest};

/// Written to the boot file by a stop after which every sealed blob carries its durable mark.
const CLEAN: &str = "clean";

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// Sealed blobs and their sizes.
    pub(super) blobs: HashMap<Digest, u64>,
    /// Sealed blobs that may have lost bytes in a power failure, or of which nothing is known: to be
    /// hashed before first use.
    pub(super) suspects: HashSet<Digest>,
    /// Sealed blobs that this boot has not lost, and that no sync has reached yet.
    pub(super) unsynced: Vec<Digest>,
    /// How many blobs in flight can be resumed.
    pub(super) resumable: usize,
}

/// Reads the tree. Blocking.
///
/// `sizes` is what the metadata says of the sealed blobs: a file of another size is damaged, and one
/// that it does not know is hashed before it is trusted.
pub(super) fn recover(
    layout: &Layout,
    boot_id: &str,
    sizes: &HashMap<Digest, u64>,
) -> Result<Recovered, Error> {
    let trusted = matches!(fs::read_to_string(layout.boot()), Ok(text) if text.trim() == boot_id || text.trim() == CLEAN);
    let mut recovered = Recovered::default();
    read_blobs(layout, trusted, sizes, &mut recovered);
    read_partials(layout, &mut recovered);
    if recovered.suspects.is_empty() {
        note_boot(layout, boot_id).map_err(|source| Error::directory(&layout.boot(), source))?;
    }
    tracing::info!(
        blobs = recovered.blobs.len(),
        bytes = recovered.blobs.values().sum::<u64>(),
        resumable = recovered.resumable,
        to_verify = recovered.suspects.len(),
        "cache recovered"
    );
    Ok(recovered)
}

/// Notes that blobs without a durable mark are to be trusted for as long as this boot lasts.
/// Only once no suspects are left: a restart must find them again. Blocking.
pub(super) fn note_boot(layout: &Layout, boot_id: &str) -> io::Result<()> {
    write_file(&layout.boot(), boot_id.as_bytes())
}

/// Notes that everything sealed is durable, at the end of an orderly stop. Blocking.
pub(super) fn leave_clean(layout: &Layout) {
    if let Err(error) = write_file(&layout.boot(), CLEAN.as_bytes()) {
        tracing::debug!(%error, "the clean mark could not be written");
    }
}

fn read_blobs(layout: &Layout, trusted: bool, sizes: &HashMap<Digest, u64>, recovered: &mut Recovered) {
    for entry in entries(&layout.blobs()) {
        let name = entry.file_name();
        let Some(algorithm) =
            Algorithm::ALL.iter().find(|algorithm| name.to_str() == Some(algorithm.as_str()))
        else {
            layout.put_in_quarantine(&entry.path(), "not a digest algorithm");
            continue;
        };
        for shard in entries(&entry.path()) {
            for file in entries(&shard.path()) {
                read_blob(layout, algorithm.as_str(), &shard, &file, trusted, sizes, recovered);
            }
        }
    }
}

fn read_blob(
    layout: &Layout,
    algorithm: &str,
    shard: &DirEntry,
    file: &DirEntry,
    trusted: bool,
    sizes: &HashMap<Digest, u64>,
    recovered: &mut Recovered,
) {
    let (name, shard) = (file.file_name(), shard.file_name());
    let digest = name.to_str().and_then(|hex| digest_of(algorithm, hex));
    let in_its_shard = name.to_string_lossy().starts_with(&*shard.to_string_lossy());
    match (digest, file.metadata()) {
        (Some(digest), Ok(metadata)) if metadata.is_file() && in_its_shard => {
            let (size, sealed) = (metadata.len(), sizes.get(&digest).copied());
            if sealed.is_some_and(|sealed| sealed != size) {
                layout.put_in_quarantine(&file.path(), "not of the size that was sealed");
                return;
            }
            recovered.blobs.insert(digest, size);
            let durable = is_durable(metadata.permissions().mode());
            if sealed.is_none() || (!trusted && !durable) {
                recovered.suspects.insert(digest);
            } else if !durable {
                recovered.unsynced.push(digest);
            }
        }
        (_, Err(error)) => tracing::warn!(path = %file.path().display(), %error, "unreadable, left out"),
        _ => layout.put_in_quarantine(&file.path(), "not a blob in its place"),
    }
}

fn read_partials(layout: &Layout, recovered: &mut Recovered) {
    for entry in entries(&layout.partials()) {
        let path = entry.path();
        // <algorithm>-<hex>-<upstream>
        let digest = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| {
            let (algorithm, rest) = stem.split_once('-')?;
            digest_of(algorithm, rest.split_once('-')?.0)
        });
        match (digest, path.extension().and_then(|extension| extension.to_str())) {
            (Some(digest), Some("data")) => read_partial(layout, &digest, &path, recovered),
            // A journal whose data is gone speaks of nothing; one with data is read with it.
            (Some(_), Some("journal")) if !path.with_extension("data").exists() => remove(&[path]),
            (Some(_), Some("journal")) => {}
            (_, Some("tmp")) => remove(&[path]),
            _ => layout.put_in_quarantine(&path, "not part of a blob in flight"),
        }
    }
}

fn read_partial(layout: &Layout, digest: &Digest, data: &Path, recovered: &mut Recovered) {
    let files = [data.with_extension("journal"), data.to_owned()];
    if recovered.blobs.contains_key(digest) {
        remove(&files);
        return;
    }
    match Journal::read(&files[0]) {
        Ok(checkpoint) if checkpoint.digest == *digest => recovered.resumable += 1,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Ended before its first checkpoint: there is nothing to resume.
            remove(&files);
        }
        Ok(_) | Err(_) => {
            layout.put_in_quarantine(&files[0], "unreadable journal");
            layout.put_in_quarantine(&files[1], "data of an unreadable journal");
        }
    }
}

fn remove(paths: &[std::path::PathBuf]) {
    if let Err(error) = remove_files(paths) {
        tracing::warn!(path = %paths[0].display(), %error, "could not be removed");
    }
}

fn entries(directory: &Path) -> Vec<DirEntry> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.filter_map(Result::ok).collect(),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %directory.display(), %error, "unreadable, left out");
            }
            Vec::new()
        }
    }
}
