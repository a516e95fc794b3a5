//! What the blobs here are part of: how many cached images need each, and which are kept whatever happens.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use moka::sync::Cache;

use crate::oci::{Digest, MAX_MANIFEST_SIZE, Manifest};

/// Blobs of cached images that are not here themselves, of which is remembered how many images need them.
const EXPECTED: u64 = 100_000;

/// What is known of the images.
#[derive(Debug)]
pub(super) struct Images {
    // A mutex: taken by evictions and by pulls of images that are kept.
    kept: Mutex<KeptImages>,
    expected: Cache<Digest, u16>,
}

#[derive(Debug, Default)]
struct KeptImages {
    /// By the name of the image, everything that belongs to it.
    images: HashMap<String, HashSet<Digest>>,
    /// How many of them need a blob.
    counts: HashMap<Digest, u32>,
}

impl Default for Images {
    fn default() -> Self {
        Self { kept: Mutex::default(), expected: Cache::new(EXPECTED) }
    }
}

impl Images {
    /// Whether a blob belongs to an image that is kept.
    pub(super) fn is_kept(&self, digest: &Digest) -> bool {
        self.lock().counts.contains_key(digest)
    }

    /// All images that are kept, by their names, with what belongs to each.
    pub(super) fn kept(&self) -> HashMap<String, HashSet<Digest>> {
        self.lock().images.clone()
    }

    /// The images that are kept and need this blob.
    pub(super) fn kept_by(&self, digest: &Digest) -> Vec<String> {
        let kept = self.lock();
        if !kept.counts.contains_key(digest) {
            return Vec::new();
        }
        kept.images
            .iter()
            .filter(|(_, digests)| digests.contains(digest))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Keeps the image of this name, which consists of `digests`; what else it consisted of goes free. Whether
    /// that changes anything.
    pub(super) fn keep(&self, name: &str, digests: HashSet<Digest>) -> bool {
        self.lock().replace(name, digests)
    }

    /// Keeps more of an image that is kept; returns all of it, if that changes anything.
    pub(super) fn keep_more(
        &self,
        name: &str,
        digests: impl Iterator<Item = Digest>,
    ) -> Option<HashSet<Digest>> {
        let mut kept = self.lock();
        let mut all = kept.images.get(name)?.clone();
        all.extend(digests);
        kept.replace(name, all.clone()).then_some(all)
    }

    /// Notes that a blob which is not here is needed by one more cached image.
    pub(super) fn expect(&self, digest: Digest) {
        self.expected
            .entry(digest)
            .and_upsert_with(|entry| entry.map_or(1, |entry| entry.into_value().saturating_add(1)));
    }

    /// How many cached images need a blob that has just arrived.
    pub(super) fn expected_dependents(&self, digest: &Digest) -> u16 {
        self.expected.remove(digest).unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, KeptImages> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeptImages {
    fn replace(&mut self, name: &str, digests: HashSet<Digest>) -> bool {
        let before = self.images.remove(name).unwrap_or_default();
        let has_changed = before != digests;
        for digest in &digests {
            *self.counts.entry(*digest).or_default() += 1;
        }
        for digest in &before {
            if let Some(count) = self.counts.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(digest);
                }
            }
        }
        if !digests.is_empty() {
            self.images.insert(name.to_owned(), digests);
        }
        has_changed
    }
}

/// What the manifest at `path` names, if the file is one. Blocking.
pub(super) fn children(path: &Path, size: u64) -> Vec<Digest> {
    if size > MAX_MANIFEST_SIZE as u64 {
        return Vec::new();
    }
    let Ok(bytes) = std::fs::read(path) else { return Vec::new() };
    if bytes.first() != Some(&b'{') {
        return Vec::new();
    }
    let manifest = Manifest::parse(&bytes, None);
    manifest.map_or_else(|_| Vec::new(), |manifest| manifest.children().map(|child| child.digest).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    #[test]
    fn a_blob_is_kept_for_as_long_as_one_kept_image_needs_it() {
        let images = Images::default();
        images.keep("a", HashSet::from([digest(1), digest(2)]));
        assert!(images.keep("b", HashSet::from([digest(2), digest(3)])));
        assert!(!images.keep("b", HashSet::from([digest(3), digest(2)])), "the same");
        assert_eq!(images.kept_by(&digest(3)), ["b"]);
        images.keep("a", HashSet::new());
        assert!(!images.is_kept(&digest(1)) && images.is_kept(&digest(2)) && images.is_kept(&digest(3)));
        images.keep("b", HashSet::from([digest(4)]));
        assert!(!images.is_kept(&digest(2)) && images.is_kept(&digest(4)));
    }

    #[test]
    fn who_needs_a_blob_is_known_before_it_comes() {
        let images = Images::default();
        images.expect(digest(1));
        images.expect(digest(1));
        assert_eq!((images.expected_dependents(&digest(1)), images.expected_dependents(&digest(1))), (2, 0));
    }
}
