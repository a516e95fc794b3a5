//! What a restart must know of a blob in flight.
//!
//! The journal is one small file beside the partial data, replaced as a whole at most once a
//! second: how far the data is hashed, the state of the hash there, and which ranges have arrived.
//! It never claims more than was written before it.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::layout::write_file;
use super::ranges::RangeSet;
use crate::oci::Digest;

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
}

impl Checkpoint {
    /// Writes the checkpoint: the CRC-32 of the JSON text, a space, the JSON text.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let json = serde_json::to_string(self)?;
        write_file(path, format!("{:08x} {json}", crc32fast::hash(json.as_bytes())).as_bytes())
    }

    /// Reads a checkpoint back; anything that is not exactly one is an error.
    pub(super) fn load(path: &Path) -> io::Result<Self> {
        Self::parse(&std::fs::read_to_string(path)?)
    }

    fn parse(text: &str) -> io::Result<Self> {
        let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
        let (checksum, json) = text.split_once(' ').ok_or_else(|| invalid("no checksum"))?;
        if u32::from_str_radix(checksum, 16).ok() != Some(crc32fast::hash(json.as_bytes())) {
            return Err(invalid("wrong checksum"));
        }
        let checkpoint: Self = serde_json::from_str(json)?;
        let in_bounds = checkpoint.size.is_none_or(|size| checkpoint.hashed <= size);
        if !checkpoint.arrived.is_well_formed()
            || !in_bounds
            || checkpoint.arrived.contiguous_end(0) < checkpoint.hashed
        {
            return Err(invalid("contradicts itself"));
        }
        Ok(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use proptest::prelude::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            digest: Digest::of(Algorithm::Sha256, b"x"),
            size: Some(100),
            arrived: RangeSet::prefix(60),
            hashed: 50,
            state: "c3RhdGU=".to_owned(),
            boot_id: "b".to_owned(),
        }
    }

    #[test]
    fn a_checkpoint_survives_the_disk_and_a_claim_beyond_the_data_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        checkpoint().save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint());
        for wrong in [
            Checkpoint { hashed: 61, ..checkpoint() },
            Checkpoint { size: Some(49), ..checkpoint() },
            Checkpoint { arrived: RangeSet::new(), ..checkpoint() },
        ] {
            wrong.save(&path).unwrap();
            assert!(Checkpoint::load(&path).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_torn_or_flipped_journal_is_refused(cut in 0usize..200, flip in 0u8..8) {
            let json = serde_json::to_string(&checkpoint()).unwrap();
            let text = format!("{:08x} {json}", crc32fast::hash(json.as_bytes()));
            let cut = cut.min(text.len() - 1);
            prop_assert!(Checkpoint::parse(&text[..cut]).is_err());
            let mut flipped = text.clone().into_bytes();
            flipped[cut] ^= 1 << flip;
            if let Ok(flipped) = String::from_utf8(flipped) {
                // Upper-case hexadecimal digits mean the same checksum.
                prop_assert!(Checkpoint::parse(&flipped).is_err() || flipped.eq_ignore_ascii_case(&text));
            }
        }
    }
}
