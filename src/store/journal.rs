//! What a restart must know of a blob in flight.
//!
//! The journal is one small file beside the partial data with two slots, written in turn: how far
//! the data is hashed, the state of the hash there, and which ranges have arrived. A torn slot
//! leaves the other one. Replacing the file by rename would be simpler, and costs forty times as
//! much: ext4 writes a file to the disk when it replaces another. A checkpoint never claims more
//! than was written to the data before it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::layout::private_file;
use super::ranges::RangeSet;
use crate::oci::Digest;

/// Where the second slot begins.
const SLOT: usize = 64 << 10;

/// Ranges in one checkpoint at most: with two offsets of twenty digits each they fit into a slot. What lies
/// in further ones is fetched again after a restart.
pub(super) const MAX_RANGES: usize = 1000;

/// The journal of one blob in flight, for its one writer.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// Created by the first checkpoint: most blobs are complete before they need one.
    file: Option<File>,
    next: u64,
}

impl Journal {
    /// A journal without a file yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None, next: 0 }
    }

    /// Opens the file, if there is one, with the newest checkpoint in it. Blocking.
    ///
    /// # Errors
    /// The disk's. A file without a readable checkpoint is none.
    pub(super) fn open(path: PathBuf) -> io::Result<(Self, Option<Checkpoint>)> {
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let newest = file.as_ref().map_or(Ok(None), newest)?;
        let next = newest.as_ref().map_or(0, |checkpoint| checkpoint.sequence + 1);
        Ok((Self { path, file, next }, newest))
    }

    /// The newest checkpoint of a file that must have one. Blocking.
    ///
    /// # Errors
    /// The disk's, or `InvalidData` where neither slot holds a whole checkpoint.
    pub(super) fn read(path: &Path) -> io::Result<Checkpoint> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "no whole checkpoint");
        newest(&File::open(path)?)?.ok_or_else(invalid)
    }

    /// Writes a checkpoint over the older slot. Blocking.
    pub(super) fn save(&mut self, mut checkpoint: Checkpoint) -> io::Result<()> {
        checkpoint.sequence = self.next;
        let record = checkpoint.to_record()?;
        if record.len() > SLOT {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too many ranges for a checkpoint"));
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => private_file().read(true).truncate(false).open(&self.path)?,
        };
        self.file.insert(file).write_all_at(&record, self.next % 2 * SLOT as u64)?;
        self.next += 1;
        Ok(())
    }
}

fn newest(file: &File) -> io::Result<Option<Checkpoint>> {
    let mut slot = vec![0; SLOT];
    let mut newest: Option<Checkpoint> = None;
    for at in 0..2 {
        let read = file.read_at(&mut slot, at * SLOT as u64)?;
        let Some(checkpoint) = Checkpoint::from_record(&slot[..read]) else { continue };
        if newest.as_ref().is_none_or(|newest| newest.sequence < checkpoint.sequence) {
            newest = Some(checkpoint);
        }
    }
    Ok(newest)
}

/// One checkpoint of a blob in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    pub(super) digest: Digest,
    /// Total size in bytes, where the upstream has said it.
    pub(super) size: Option<u64>,
    pub(super) arrived: RangeSet,
    /// How many bytes from the front went into `state`.
    pub(super) hashed: u64,
    /// The hash state, base64.
    pub(super) state: String,
    /// The boot during which the data was written: after a power loss the page cache may have
    /// taken bytes with it that the journal counts, so the state is not trusted then.
    pub(super) boot_id: String,
    /// Counts the checkpoints of this blob; set when one is saved.
    pub(super) sequence: u64,
}

impl Checkpoint {
    /// The CRC-32 of the JSON text, a space, the JSON text and a line feed.
    fn to_record(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_string(self)?;
        Ok(format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())).into_bytes())
    }

    /// The checkpoint at the beginning of a slot, if it is whole and agrees with itself.
    fn from_record(slot: &[u8]) -> Option<Self> {
        let record = &slot[..slot.iter().position(|byte| *byte == b'\n')?];
        let (checksum, json) = std::str::from_utf8(record).ok()?.split_once(' ')?;
        if u32::from_str_radix(checksum, 16).ok()? != crc32fast::hash(json.as_bytes()) {
            return None;
        }
        let checkpoint: Self = serde_json::from_str(json).ok()?;
        let in_bounds = checkpoint.size.is_none_or(|size| checkpoint.hashed <= size);
        let arrived =
            checkpoint.arrived.is_well_formed() && checkpoint.arrived.contiguous_end(0) >= checkpoint.hashed;
        (in_bounds && arrived).then_some(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};
    use proptest::prelude::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            digest: Digest::of(Algorithm::Sha256, b"x"),
            size: Some(100),
            arrived: RangeSet::prefix(60),
            hashed: 50,
            state: "c3RhdGU=".to_owned(),
            boot_id: "b".to_owned(),
            sequence: 0,
        }
    }

    #[test]
    fn the_newest_checkpoint_survives_the_disk_and_a_claim_beyond_the_data_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (mut journal, none) = Journal::open(path.clone()).unwrap();
        assert_eq!(none, None);
        for hashed in [10, 20, 30] {
            journal.save(Checkpoint { hashed, ..checkpoint() }).unwrap();
        }
        assert_eq!(Journal::read(&path).unwrap(), Checkpoint { hashed: 30, sequence: 2, ..checkpoint() });
        for wrong in [
            Checkpoint { hashed: 61, ..checkpoint() },
            Checkpoint { size: Some(49), ..checkpoint() },
            Checkpoint { arrived: RangeSet::new(), ..checkpoint() },
        ] {
            assert_eq!(Checkpoint::from_record(&wrong.to_record().unwrap()), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_torn_slot_leaves_the_checkpoint_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (mut journal, _) = Journal::open(path.clone()).unwrap();
        journal.save(Checkpoint { hashed: 10, ..checkpoint() }).unwrap();
        journal.save(Checkpoint { hashed: 20, ..checkpoint() }).unwrap();
        journal.file.unwrap().write_all_at(b"torn", SLOT as u64 + 20).unwrap();
        let (mut journal, found) = Journal::open(path.clone()).unwrap();
        assert_eq!(found.unwrap().hashed, 10);
        journal.save(Checkpoint { hashed: 30, ..checkpoint() }).unwrap();
        assert_eq!(Journal::read(&path).unwrap().hashed, 30);
    }

    proptest! {
        #[test]
        fn a_torn_or_flipped_record_is_refused(at in 0usize..400, flip in 0u8..8) {
            let record = checkpoint().to_record().unwrap();
            let at = at.min(record.len() - 1);
            prop_assert_eq!(Checkpoint::from_record(&record[..at]), None);
            let mut flipped = record.clone();
            flipped[at] ^= 1 << flip;
            // Upper-case hexadecimal digits mean the same checksum.
            let same = flipped.eq_ignore_ascii_case(&record);
            prop_assert!(same || Checkpoint::from_record(&flipped).is_none());
        }
    }
}
