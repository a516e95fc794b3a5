//! Where everything lies below the cache directory, and who owns it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Error;
use crate::oci::Digest;

/// The version of the tree below; a directory with another one is refused, never converted blindly.
const LAYOUT_VERSION: &str = "1";

/// Paths below one cache directory. The tree is drawn in the documentation of [`super`].
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

/// The journal beside the data of a blob in flight.
pub(super) fn journal_of(data: &Path) -> PathBuf {
    data.with_extension("journal")
}

/// The exclusive ownership of a cache directory; released when dropped or when the process dies.
#[derive(Debug)]
pub(super) struct Ownership {
    _lock: File,
}

impl Layout {
    /// Creates the directories that are missing (0700) and checks the layout's version.
    pub(super) fn create(root: &Path) -> Result<Self, Error> {
        let layout = Self { root: root.to_owned() };
        for directory in [layout.root.clone(), layout.blobs(), layout.partials(), layout.quarantine()] {
            create_directory(&directory).map_err(|source| Error::directory(&directory, source))?;
        }
        let version = layout.root.join("VERSION");
        match fs::read_to_string(&version) {
            Ok(found) if found.trim() == LAYOUT_VERSION => {}
            Ok(found) => {
                let found = found.trim().to_owned();
                return Err(Error::Layout { directory: layout.root, found, expected: LAYOUT_VERSION });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_file(&version, format!("{LAYOUT_VERSION}\n").as_bytes())
                    .map_err(|source| Error::directory(&version, source))?;
            }
            Err(source) => return Err(Error::directory(&version, source)),
        }
        Ok(layout)
    }

    /// Takes the directory for this process alone.
    pub(super) fn own(&self) -> Result<Ownership, Error> {
        let path = self.root.join("LOCK");
        let mut lock = private_file()
            .read(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| Error::directory(&path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // The owner's pid is a courtesy of the message; without it the message still holds.
                let _ = lock.read_to_string(&mut owner);
                return Err(Error::Owned { directory: self.root.clone(), owner: owner.trim().to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(Error::directory(&path, source)),
        }
        let write_pid = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write_pid(&mut lock).map_err(|source| Error::directory(&path, source))?;
        Ok(Ownership { _lock: lock })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(super) fn metadata(&self) -> PathBuf {
        self.root.join("metadata.redb")
    }

    /// What is known of each sealed blob.
    pub(super) fn catalogue(&self) -> PathBuf {
        self.root.join("catalogue.redb")
    }

    /// Which boot of the machine this directory was last used in, and how it was left.
    pub(super) fn boot(&self) -> PathBuf {
        self.root.join("BOOT")
    }

    /// The final place of a blob. Two hexadecimal digits of fan-out keep a directory of a million
    /// blobs at four thousand entries.
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.blobs().join(digest.algorithm().as_str()).join(&hex[..2]).join(hex)
    }

    /// The data of a blob in flight. It belongs to one upstream: what another one has sent of the
    /// same digest is not verified yet, and must not reach this one's clients.
    pub(super) fn partial(&self, digest: &Digest, upstream: &str) -> PathBuf {
        let upstream = crc32fast::hash(upstream.as_bytes());
        self.partials().join(format!("{}-{}-{upstream:08x}.data", digest.algorithm().as_str(), digest.hex()))
    }

    /// Its journal.
    #[cfg(test)]
    pub(super) fn journal(&self, digest: &Digest, upstream: &str) -> PathBuf {
        journal_of(&self.partial(digest, upstream))
    }

    /// Where a small object is written before it is moved to its place.
    pub(super) fn temporary(&self, digest: &Digest) -> PathBuf {
        self.partials().join(format!("{}-{:08x}.tmp", digest.hex(), fastrand::u32(..)))
    }

    /// Moves `path` out of the way, keeping it for the operator to look at. Whether that was possible.
    pub(super) fn put_in_quarantine(&self, path: &Path, reason: &str) -> bool {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let target = self.quarantine().join(format!("{name}.{:08x}", fastrand::u32(..)));
        match fs::rename(path, &target) {
            Ok(()) => {
                tracing::warn!(path = %path.display(), moved_to = %target.display(), reason, "quarantined");
                true
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, reason, "could not be quarantined; it is not served");
                false
            }
        }
    }
}

/// The digest that a file in `blobs/<algorithm>/<xx>/` or `partial/` is named after.
pub(super) fn digest_of(algorithm: &str, hex: &str) -> Option<Digest> {
    format!("{algorithm}:{hex}").parse().ok()
}

/// Creates a directory and its parents, readable by nobody else.
pub(super) fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Options for a file that only this user may read and write.
pub(super) fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// Replaces a small file as a whole, on the disk too: a reader sees the old or the new one, never a
/// part, and after a power loss never an older one.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    let mut file = private_file().truncate(true).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Moves a file to its place, creating the directory when it is the first one there.
pub(super) fn rename_into(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = to.parent() {
                create_directory(parent)?;
            }
            fs::rename(from, to)
        }
        result => result,
    }
}
