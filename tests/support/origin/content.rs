//! What the origin serves: bytes held in memory, or bytes made while they are sent.
//!
//! A synthetic blob is one random block repeated for ever, with its page number stamped into the first eight bytes
//! of every 4 KiB page: no two pages are alike, so a page written to the wrong offset changes the digest, and making
//! it costs a `memcpy`, which stays fast in unoptimised test builds.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

const BLOCK: usize = 1 << 20;
const PAGE: u64 = 4096;
/// The filler that `Fault::extend_by` appends.
const PADDING: u8 = 0xEE;

/// `sha256:<hex>` of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    named(&Sha256::digest(bytes))
}

/// The bytes of `Origin::add_synthetic_blob(_, size, seed)`, for comparison. A smaller blob of the same seed is a
/// prefix of a larger one.
pub fn synthetic_bytes(size: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).expect("a test compares what fits in memory")];
    Synthetic::new(size, seed).read_at(0, &mut bytes);
    bytes
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

fn named(digest: &[u8]) -> String {
    format!("sha256:{}", hex(digest))
}

/// The content of one blob, manifest or document; cheap to clone.
#[derive(Clone)]
pub(super) enum Content {
    Held(Bytes),
    Made(Synthetic),
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Held(bytes) => bytes.len() as u64,
            Self::Made(synthetic) => synthetic.size,
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) {
        match self {
            Self::Held(bytes) => {
                let start = usize::try_from(offset).expect("it is inside of what memory holds");
                buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
            }
            Self::Made(synthetic) => synthetic.read_at(offset, buffer),
        }
    }
}

/// A content as one answer shows it: perhaps shorter, longer or with a wrong byte.
pub(super) struct Body {
    pub(super) content: Content,
    /// The length that the client is told; beyond the content comes padding.
    pub(super) len: u64,
    /// The absolute offset of the byte that is flipped.
    pub(super) flipped: Option<u64>,
}

impl From<Content> for Body {
    fn from(content: Content) -> Self {
        Self { len: content.len(), content, flipped: None }
    }
}

impl Body {
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) {
        let real = self.content.len().saturating_sub(offset).min(buffer.len() as u64);
        let (inside, beyond) = buffer.split_at_mut(usize::try_from(real).expect("at most a buffer's length"));
        if !inside.is_empty() {
            self.content.read_at(offset, inside);
        }
        beyond.fill(PADDING);
        if let Some(at) = self.flipped.and_then(|at| at.checked_sub(offset))
            && let Some(byte) = usize::try_from(at).ok().and_then(|at| buffer.get_mut(at))
        {
            *byte ^= 0xFF;
        }
    }
}

/// Deterministic pseudo-random bytes of any length in 1 MiB of memory.
#[derive(Clone)]
pub(super) struct Synthetic {
    size: u64,
    block: Arc<[u8]>,
}

impl Synthetic {
    pub(super) fn new(size: u64, seed: u64) -> Self {
        let mut block = vec![0; BLOCK];
        fastrand::Rng::with_seed(seed).fill(&mut block);
        Self { size, block: block.into() }
    }

    /// Makes and hashes every byte once.
    pub(super) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; BLOCK];
        let mut offset = 0;
        while offset < self.size {
            let piece = (self.size - offset).min(BLOCK as u64);
            let part = &mut buffer[..usize::try_from(piece).expect("at most a block")];
            self.read_at(offset, part);
            hash.update(&*part);
            offset += piece;
        }
        named(&hash.finalize())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) {
        let mut start = usize::try_from(offset % BLOCK as u64).expect("less than a block");
        let mut rest = &mut *buffer;
        while !rest.is_empty() {
            let piece = rest.len().min(BLOCK - start);
            let (now, later) = rest.split_at_mut(piece);
            now.copy_from_slice(&self.block[start..start + piece]);
            (rest, start) = (later, 0);
        }
        let end = offset + buffer.len() as u64;
        for page in offset / PAGE..end.div_ceil(PAGE) {
            stamp(page, offset, buffer);
        }
    }
}

/// Writes what of the page's number falls into `buffer`, which begins at `offset`.
fn stamp(page: u64, offset: u64, buffer: &mut [u8]) {
    let number = page.to_le_bytes();
    let at = page * PAGE;
    let skipped = offset.saturating_sub(at).min(8);
    let start = usize::try_from((at + skipped).saturating_sub(offset)).expect("inside of the buffer");
    let number = &number[usize::try_from(skipped).expect("at most eight")..];
    let count = number.len().min(buffer.len().saturating_sub(start));
    if count > 0 {
        buffer[start..start + count].copy_from_slice(&number[..count]);
    }
}
