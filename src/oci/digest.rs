//! Content by its hash: digests, the hasher whose state survives a restart, and the proof that bytes match.
//!
//! Invariant: a [`Verified`] exists only for bytes that were hashed and matched, so a function that takes one
//! cannot be handed unchecked content.
//!
//! Only SHA-256 and SHA-512 are known, the two algorithms the image-spec registers as a matter of course
//! (image-spec v1.1.1 `descriptor.md` "Registered Algorithms"). A digest is `Copy` and holds raw bytes: it is
//! the key of nearly every map in this crate.

use std::fmt;
use std::str::FromStr;

use arrayvec::ArrayString;
use bytes::Bytes;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest as _, Sha256, Sha512};

use super::concat::concat;
use super::excerpt::excerpt;
use super::sha256;

/// A hash algorithm that content may be addressed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, the algorithm nearly every image uses.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Every algorithm there is, for code that lays out one directory or counter for each.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The name as it stands before the colon of a digest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the hexadecimal part in characters.
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.as_str() == text)
            .ok_or_else(|| DigestError::UnsupportedAlgorithm { algorithm: excerpt(text, 32) })
    }
}

/// The address of content: an algorithm and the hash of the bytes.
///
/// Text form `sha256:<64 lower-case hex digits>` (image-spec v1.1.1 `descriptor.md` "Digests"); `Display`,
/// `Debug` and serde all use it. Ordered by algorithm, then by bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// The 32 bytes of a SHA-256.
    Sha256([u8; 32]),
    /// The 64 bytes of a SHA-512.
    Sha512([u8; 64]),
}

impl Digest {
    /// The digest of `bytes`, hashed on the calling thread.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Which algorithm made it.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw hash: 32 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// The first eight bytes of the hash as a number, for tables that may take one digest for another.
    pub fn prefix(&self) -> u64 {
        self.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// The part after the colon: lower-case hex, [`Algorithm::hex_len`] characters.
    pub fn hex(&self) -> String {
        encode_hex(self.as_bytes(), &mut [0; MAX_HEX]).to_owned()
    }

    /// The text form, on the stack.
    pub fn text(&self) -> ArrayString<MAX_TEXT> {
        concat(&[self.algorithm().as_str(), ":", encode_hex(self.as_bytes(), &mut [0; MAX_HEX])])
    }

    /// The tag under which registries without a referrers API keep the referrers of this digest:
    /// `sha256-<hex>`, cut to the specification's lengths (distribution-spec v1.1.1 "Referrers Tag Schema").
    pub fn referrers_tag(&self) -> String {
        let hex = self.hex();
        // At most 32 characters of algorithm, 64 of hash; both names here are shorter than 32.
        format!("{}-{}", self.algorithm(), &hex[..hex.len().min(64)])
    }

    /// Hashes `bytes` and, if they are the content of this digest, returns them as proof.
    ///
    /// # Errors
    /// [`Mismatch`] if they are other bytes. The same bytes never match later; another source may have others.
    #[allow(
        clippy::result_large_err,
        reason = "two digests, two bytes over the default bound; rare and never nested"
    )]
    pub fn verify(&self, bytes: Bytes) -> Result<Verified, Mismatch> {
        let actual = Self::of(self.algorithm(), &bytes);
        if actual == *self {
            Ok(Verified { digest: actual, bytes })
        } else {
            Err(Mismatch { expected: *self, actual })
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError::NoAlgorithm)?;
        let algorithm: Algorithm = algorithm.parse()?;
        if hex.len() != algorithm.hex_len() {
            return Err(DigestError::WrongLength {
                algorithm,
                expected: algorithm.hex_len(),
                actual: hex.len(),
            });
        }
        match algorithm {
            Algorithm::Sha256 => decode_hex(hex).map(Self::Sha256),
            Algorithm::Sha512 => decode_hex(hex).map(Self::Sha512),
        }
        .ok_or(DigestError::NotHex)
    }
}

serde_as_text!(Digest);

/// Why a text is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no colon.
    #[error("a digest is written <algorithm>:<hex>")]
    NoAlgorithm,
    /// The part before the colon names no known algorithm.
    #[error("unsupported digest algorithm {algorithm:?}; sha256 and sha512 are supported")]
    UnsupportedAlgorithm {
        /// What was named, cut short.
        algorithm: String,
    },
    /// The part after the colon has the wrong number of characters.
    #[error("a {algorithm} digest has {expected} hex digits, this one has {actual}")]
    WrongLength {
        /// The algorithm named.
        algorithm: Algorithm,
        /// Characters wanted.
        expected: usize,
        /// Bytes found.
        actual: usize,
    },
    /// The part after the colon has something other than `0-9a-f` in it.
    #[error("a digest's hash is lower-case hexadecimal")]
    NotHex,
}

/// Bytes that are proven to be the content of their digest. Made only by [`Digest::verify`].
#[derive(Clone, PartialEq, Eq)]
pub struct Verified {
    digest: Digest,
    bytes: Bytes,
}

impl Verified {
    /// The digest the bytes were checked against.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The checked bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The checked bytes, without the proof.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified").field("digest", &self.digest).field("length", &self.bytes.len()).finish()
    }
}

/// Content is not what its digest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("content does not match its digest: expected {expected}, got {actual}")]
pub struct Mismatch {
    /// The digest that was asked for.
    pub expected: Digest,
    /// The digest of the bytes that came.
    pub actual: Digest,
}

/// A digest in the making, over bytes that arrive in order.
///
/// Its state can be saved and picked up by another process, so a fill that continues after a restart does not
/// read again what it already wrote. Cloning forks the computation.
#[derive(Clone)]
pub struct Hasher {
    state: State,
    hashed: u64,
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Self {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        };
        Self { state, hashed: 0 }
    }

    /// Continues a computation saved by [`Hasher::state`].
    ///
    /// Its counts are checked; other damage ends in a wrong digest, which the final comparison catches.
    ///
    /// # Errors
    /// [`HasherStateError`] if they are not a state of `algorithm`: start again from the first byte.
    pub fn resume(algorithm: Algorithm, state: &[u8]) -> Result<Self, HasherStateError> {
        let broken = HasherStateError { algorithm };
        let (hashed, state) = state.split_first_chunk().ok_or(broken)?;
        let hashed = u64::from_le_bytes(*hashed);
        if !counts_to(algorithm, state, hashed) {
            return Err(broken);
        }
        let state = match algorithm {
            Algorithm::Sha256 => restore(state).map(State::Sha256),
            Algorithm::Sha512 => restore(state).map(State::Sha512),
        };
        Ok(Self { state: state.ok_or(broken)?, hashed })
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(hasher) => sha256::update(hasher, bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
        self.hashed = self.hashed.saturating_add(bytes.len() as u64);
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self.state {
            State::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            State::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }

    /// Which algorithm it computes.
    pub fn algorithm(&self) -> Algorithm {
        match self.state {
            State::Sha256(_) => Algorithm::Sha256,
            State::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// How many bytes were added, those before a resume included: the offset of the byte it wants next.
    pub fn hashed(&self) -> u64 {
        self.hashed
    }

    /// The computation so far, for [`Hasher::resume`]: the count of bytes (8 bytes, little endian), then the
    /// state as `sha2` 0.11 writes it. About 120 bytes for SHA-256, 230 for SHA-512.
    ///
    /// It contains up to one block of the content in the clear.
    pub fn state(&self) -> Vec<u8> {
        let mut saved = self.hashed.to_le_bytes().to_vec();
        match &self.state {
            State::Sha256(hasher) => saved.extend_from_slice(&hasher.serialize()),
            State::Sha512(hasher) => saved.extend_from_slice(&hasher.serialize()),
        }
        saved
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher")
            .field("algorithm", &self.algorithm())
            .field("hashed", &self.hashed)
            .finish_non_exhaustive()
    }
}

/// Saved bytes are not the state of a hasher of this algorithm and version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a saved {algorithm} state")]
pub struct HasherStateError {
    /// The algorithm that was to be resumed.
    pub algorithm: Algorithm,
}

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

/// Whether both counters inside a saved state (whole blocks, bytes of the open one) say `hashed`.
///
/// `sha2` believes them, and multiplies: a damaged one would overflow. Its layout is the hash words, the block
/// count in little endian, then a byte with the open block's length and that block.
fn counts_to(algorithm: Algorithm, state: &[u8], hashed: u64) -> bool {
    let (words, counter, block) = match algorithm {
        Algorithm::Sha256 => (32, 8, 64),
        Algorithm::Sha512 => (64, 16, 128),
    };
    let Some((blocks, open)) = state.get(words..).and_then(|rest| rest.split_at_checked(counter)) else {
        return false;
    };
    let mut expected = [0; 16];
    expected[..8].copy_from_slice(&(hashed / block).to_le_bytes());
    // SHA-256 ends with the length in bits, as 64 of them.
    hashed <= u64::MAX / 8
        && *blocks == expected[..counter]
        && open.first().is_some_and(|&length| u64::from(length) == hashed % block)
}

fn restore<H: SerializableState>(state: &[u8]) -> Option<H> {
    let state = SerializedState::<H>::try_from(state).ok()?;
    H::deserialize(&state).ok()
}

/// Hexadecimal digits of the longest hash.
const MAX_HEX: usize = 128;
/// The longest text form.
const MAX_TEXT: usize = "sha512:".len() + MAX_HEX;

/// The two digits of every byte: one look-up instead of two and their shifts.
const HEX_PAIRS: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [digits[byte >> 4], digits[byte & 0x0f]];
        byte += 1;
    }
    pairs
};

/// `bytes`, which are at most half as many as `hex` has room for, in lower-case hex.
fn encode_hex<'a>(bytes: &[u8], hex: &'a mut [u8; MAX_HEX]) -> &'a str {
    let (pairs, _) = hex.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = HEX_PAIRS[usize::from(*byte)];
    }
    // The digits are ASCII.
    std::str::from_utf8(&hex[..2 * bytes.len()]).unwrap_or_default()
}

/// Exactly `N` bytes of lower-case hex; the length is checked by the caller.
fn decode_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let (pairs, _) = hex.as_bytes().as_chunks::<2>();
    // Every digit is looked at, whatever those before it were: no branch for each of them.
    let mut all = 0;
    for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
        let (high, low) = (NIBBLES[usize::from(high)], NIBBLES[usize::from(low)]);
        all |= high | low;
        *byte = high << 4 | low & 0xf;
    }
    (all < 0x10).then_some(bytes)
}

/// The value of each lower-case hexadecimal digit; 0xff where a byte is none.
const NIBBLES: [u8; 256] = {
    let mut values = [0xff; 256];
    let mut value = 0_u8;
    while value < 16 {
        values[b"0123456789abcdef"[value as usize] as usize] = value;
        value += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn algorithms() -> impl Strategy<Value = Algorithm> {
        prop_oneof![Just(Algorithm::Sha256), Just(Algorithm::Sha512)]
    }

    #[test]
    fn the_digest_of_nothing_is_the_well_known_one() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"").to_string(), EMPTY);
        assert_eq!(format!("{:?}", Digest::of(Algorithm::Sha256, b"")), EMPTY);
        let sha512 = Digest::of(Algorithm::Sha512, b"abc").to_string();
        assert!(sha512.starts_with("sha512:ddaf35a193617abacc417349ae204131"), "{sha512}");
    }

    #[test]
    fn the_message_says_what_is_wrong_with_a_digest() {
        let cases = [
            ("e3b0c442", "<algorithm>:<hex>"),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", "\"md5\""),
            ("SHA256:e3b0", "\"SHA256\""),
            ("sha256:e3b0", "64 hex digits, this one has 4"),
            ("sha512:e3b0", "128 hex digits"),
            ("sha256:", "this one has 0"),
            ("sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855", "lower-case"),
            ("sha256:g3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "hexadecimal"),
        ];
        for (text, part) in cases {
            let message = text.parse::<Digest>().expect_err(text).to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn only_matching_bytes_become_verified() {
        let digest: Digest = EMPTY.parse().unwrap();
        let verified = digest.verify(Bytes::new()).unwrap();
        assert_eq!((verified.digest(), verified.bytes().len()), (digest, 0));
        let mismatch = digest.verify(Bytes::from_static(b"<html>")).unwrap_err();
        assert_eq!(mismatch.expected, digest);
        assert_eq!(mismatch.actual, Digest::of(Algorithm::Sha256, b"<html>"));
    }

    #[test]
    fn the_referrers_tag_fits_the_tag_grammar_for_both_algorithms() {
        for algorithm in Algorithm::ALL {
            let tag = Digest::of(algorithm, b"x").referrers_tag();
            assert_eq!(tag.len(), 6 + 1 + 64);
            assert!(tag.parse::<super::super::Tag>().is_ok());
        }
    }

    #[test]
    fn a_state_of_the_wrong_shape_is_refused() {
        let state = Hasher::new(Algorithm::Sha256).state();
        assert!(Hasher::resume(Algorithm::Sha512, &state).is_err());
        assert!(Hasher::resume(Algorithm::Sha256, &state[1..]).is_err());
        assert!(Hasher::resume(Algorithm::Sha256, &[]).is_err());
        let most = [u64::MAX.to_le_bytes().as_slice(), &state[8..]].concat();
        assert!(Hasher::resume(Algorithm::Sha256, &most).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_hash_saved_and_resumed_anywhere_equals_the_straight_hash(
            algorithm in algorithms(),
            content in prop::collection::vec(any::<u8>(), 0..700),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(content.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.push(content.len());
            let mut hasher = Hasher::new(algorithm);
            let mut start = 0;
            for end in cuts {
                hasher.update(&content[start..end]);
                hasher = Hasher::resume(algorithm, &hasher.state()).unwrap();
                prop_assert_eq!(hasher.hashed(), end as u64);
                start = end;
            }
            prop_assert_eq!(hasher.finish(), Digest::of(algorithm, &content));
        }

        #[test]
        fn a_damaged_state_never_panics(
            algorithm in algorithms(),
            hashed in 0_usize..300,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(&vec![7; hashed]);
            let mut state = hasher.state();
            for (at, byte) in damage {
                let at = at.index(state.len());
                state[at] = byte;
            }
            if let Ok(mut hasher) = Hasher::resume(algorithm, &state) {
                hasher.update(&[0; 300]);
                hasher.finish();
            }
        }

        #[test]
        fn a_digest_survives_its_text_and_json(algorithm in algorithms(), content: Vec<u8>) {
            let digest = Digest::of(algorithm, &content);
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
            let json = serde_json::to_string(&digest).unwrap();
            prop_assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        }

        #[test]
        fn any_text_is_a_digest_only_if_it_is_its_own_display(
            text in "(sha256|sha512|[a-z+.]{0,8}):?([0-9a-fA-F]{60,66}|\\PC{0,70})",
        ) {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }
    }
}
