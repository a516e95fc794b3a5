//! A cache directory with very many small blobs, as the edge itself would have left it.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::statvfs;

use crate::support::clock::now;
use crate::support::content::digest_of;
use crate::support::pages::forget_pages;

/// The size of a blob, and what it takes of the edge's budget: a block and what the entry takes.
const SIZE: usize = 512;
pub(crate) const CHARGE: u64 = 4096 + 256;
/// Writers at once: creating files is the work of the kernel, one after the other in each directory.
const WRITERS: u64 = 4;
const SAY_EVERY: u64 = 200_000;
/// Removers at once. Where a file system discards the blocks of each removed file, removing one waits for the disk.
const REMOVERS: usize = 32;

/// What a file system lacks for so many blobs, if it lacks anything.
pub(crate) fn lack(directory: &Path, blobs: u64) -> Option<String> {
    let stats = statvfs(directory).expect("a directory of ours");
    // A tenth more for directories and the catalogue. Where there is no limit to files, it has none to tell.
    let (inodes, bytes) = (blobs + blobs / 10, blobs * CHARGE * 11 / 10);
    let (free, room) = (stats.f_favail, stats.f_bavail * stats.f_frsize);
    if stats.f_files > 0 && free < inodes {
        return Some(format!("{inodes} inodes are needed and {free} are free"));
    }
    (room < bytes).then(|| format!("{} MiB are needed and {} MiB are free", bytes >> 20, room >> 20))
}

/// Writes so many blobs into a cache directory, each whole, in its place and with the mark of a synced one.
pub(crate) fn write_blobs(cache: &Path, blobs: u64) {
    let shards = cache.join("blobs/sha256");
    for shard in 0..256 {
        fs::create_dir_all(shards.join(format!("{shard:02x}"))).expect("a directory");
    }
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (shards, written) = (&shards, &written);
            scope.spawn(move || {
                let mut bytes = [0; SIZE];
                for number in (writer..blobs).step_by(WRITERS as usize) {
                    bytes[..8].copy_from_slice(&number.to_le_bytes());
                    write_blob(shards, &bytes);
                    let so_far = written.fetch_add(1, Ordering::Relaxed) + 1;
                    if so_far.is_multiple_of(SAY_EVERY) {
                        eprintln!("scale: {so_far} of {blobs} blobs written");
                    }
                }
            });
        }
    });
    rustix::fs::sync();
}

/// Removes a cache directory.
pub(crate) fn remove(cache: &Path) {
    let shards = fs::read_dir(cache.join("blobs/sha256")).into_iter().flatten().flatten();
    let shards: Mutex<Vec<PathBuf>> = Mutex::new(shards.map(|shard| shard.path()).collect());
    let next = || shards.lock().expect("no panic under the lock").pop();
    std::thread::scope(|scope| {
        for _ in 0..REMOVERS {
            scope.spawn(|| {
                while let Some(shard) = next() {
                    fs::remove_dir_all(shard).expect("a directory of ours");
                }
            });
        }
    });
    fs::remove_dir_all(cache).expect("a directory of ours");
}

/// Microseconds that the kernel takes to remove a file of this size, of so many in a row.
pub(crate) fn unlink_micros(directory: &Path, files: u64) -> f64 {
    let path = |number: u64| directory.join(number.to_string());
    for number in 0..files {
        fs::write(path(number), [1; SIZE]).expect("room for a file");
    }
    rustix::fs::sync();
    let started = now();
    for number in 0..files {
        fs::remove_file(path(number)).expect("a file of ours");
    }
    started.elapsed().as_secs_f64() / files as f64 * 1e6
}

fn write_blob(shards: &Path, bytes: &[u8]) {
    let digest = digest_of(bytes);
    let path = shards.join(&digest[..2]).join(digest);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path);
    file.expect("room for a blob").write_all(bytes).expect("room for a blob");
}

/// The catalogue is read from the disk the next time, as after a boot of the machine.
pub(crate) fn forget_catalogue(cache: &Path) {
    rustix::fs::sync();
    for name in ["catalogue.redb", "metadata.redb"] {
        if let Ok(file) = File::open(cache.join(name)) {
            forget_pages(&file);
        }
    }
}
