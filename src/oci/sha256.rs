//! SHA-256 on processors without instructions for it.
//!
//! Those are Intel's servers before Ice Lake, many small boards, and older desktops. There `sha2` has portable code, and
//! aws-lc, by which this program speaks TLS, has assembly that takes 3.2 CPU-seconds per GiB in place of 6.2 (Intel Xeon
//! of the second Scalable generation). So whole blocks go through aws-lc, and everything else stays with `sha2`, whose
//! state can be saved.

use aws_lc_sys::SHA256_TransformBlocks;
use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest as _, Sha256};

const BLOCK: usize = 64;

/// For less, taking the state apart and putting it together again is not worth it.
const WORTHWHILE: usize = 2 << 10;

// How `sha2` 0.11 writes a state: the words, then how many blocks there were, both in little endian.
const WORDS: usize = 8;
const COUNT: std::ops::Range<usize> = 32..40;

/// Adds the next bytes.
pub(super) fn update(hasher: &mut Sha256, bytes: &[u8]) {
    if bytes.len() < WORTHWHILE || has_instructions() {
        hasher.update(bytes);
    } else {
        update_by_blocks(hasher, bytes);
    }
}

fn update_by_blocks(hasher: &mut Sha256, bytes: &[u8]) {
    let open = usize::from(hasher.serialize()[COUNT.end]);
    let (head, rest) = bytes.split_at(((BLOCK - open) % BLOCK).min(bytes.len()));
    hasher.update(head);
    let (blocks, tail) = rest.as_chunks::<BLOCK>();
    if blocks.is_empty() {
        return hasher.update(tail);
    }
    let mut state = hasher.serialize();
    let (saved, _) = state.as_mut_slice().as_chunks_mut::<4>();
    let mut words = [0; WORDS];
    for (word, saved) in words.iter_mut().zip(&*saved) {
        *word = u32::from_le_bytes(*saved);
    }
    transform(&mut words, blocks);
    for (word, saved) in words.iter().zip(saved) {
        *saved = word.to_le_bytes();
    }
    let mut count = [0; COUNT.end - COUNT.start];
    count.copy_from_slice(&state[COUNT]);
    let count = u64::from_le_bytes(count) + blocks.len() as u64;
    state[COUNT].copy_from_slice(&count.to_le_bytes());
    match Sha256::deserialize(&state) {
        Ok(next) => {
            *hasher = next;
            hasher.update(tail);
        }
        // It is its own state with other words, which may be any.
        Err(_) => hasher.update(rest),
    }
}

#[expect(unsafe_code, reason = "aws-lc has no safe interface to a hash that goes on from a given state")]
fn transform(words: &mut [u32; WORDS], blocks: &[[u8; BLOCK]]) {
    // SAFETY: it reads as many blocks of 64 bytes as it is told of, which are all of the slice, and reads and writes eight
    // words, which the array has. It keeps neither pointer.
    unsafe { SHA256_TransformBlocks(words.as_mut_ptr(), blocks.as_ptr().cast(), blocks.len()) }
}

fn has_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("sha");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("sha2");
    // For others aws-lc has nothing better.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return true;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;
    use proptest::prelude::*;

    #[test]
    fn a_known_digest() {
        let mut hasher = Sha256::new();
        update_by_blocks(&mut hasher, &vec![b'a'; 1_000_000]);
        // FIPS 180-2, appendix B.3.
        let expected = "sha256:cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
        assert_eq!(Digest::Sha256(hasher.finalize().into()).to_string(), expected);
    }

    proptest! {
        #[test]
        fn it_is_what_sha2_computes_wherever_the_bytes_are_parted(
            bytes in prop::collection::vec(any::<u8>(), 0..5000),
            parts in prop::collection::vec((0..700usize, any::<bool>()), 0..20),
        ) {
            let (mut hasher, mut rest) = (Sha256::new(), &bytes[..]);
            for (length, by_blocks) in parts {
                let (part, behind) = rest.split_at(length.min(rest.len()));
                if by_blocks { update_by_blocks(&mut hasher, part) } else { hasher.update(part) }
                rest = behind;
            }
            update_by_blocks(&mut hasher, rest);
            prop_assert_eq!(hasher.finalize(), Sha256::digest(&bytes));
        }
    }
}
