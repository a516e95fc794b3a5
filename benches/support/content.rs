//! Synthetic blobs: one block of random bytes, repeated, told apart by the number in their first bytes.

use sha2::{Digest, Sha256};

/// How much is repeated, and the most that is written at once.
pub(crate) const BLOCK: usize = 1 << 20;

/// The block that every blob repeats.
pub(crate) fn block() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(42);
    std::iter::repeat_with(|| random.u8(..)).take(BLOCK).collect()
}

/// The first block of the blob with this number. Number 0 is the plain block.
pub(crate) fn first_block(number: u64) -> Vec<u8> {
    let mut block = block();
    if number > 0 {
        block[..8].copy_from_slice(&number.to_le_bytes());
    }
    block
}

/// The SHA-256 of a blob, in hexadecimal.
pub(crate) fn digest(number: u64, size: u64) -> String {
    let (first, block) = (first_block(number), block());
    let mut hasher = Sha256::new();
    let mut left = size;
    while left > 0 {
        let part = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
        hasher.update(if left == size { &first[..part] } else { &block[..part] });
        left -= part as u64;
    }
    hex(&hasher.finalize())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The SHA-256 of bytes at hand, in hexadecimal.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
