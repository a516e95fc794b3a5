//! The bytes of an answer, wherever they come from.

use std::sync::Arc;

use bytes::Bytes;

use super::flight::Follower;
use super::refetch::{Errand, Refetch};
use super::{Error, Puller};
use crate::oci::ByteRange;
use crate::store::{Blob, Content, FileSlice};

/// Less than this is read: a copy of it costs less than a call of its own.
pub(super) const MIN_SLICE: u64 = 16 << 10;

/// Where the bytes of a blob come from.
#[derive(Debug)]
pub(super) enum Source {
    Memory(Bytes),
    Sealed(Arc<Blob>),
    Flight(Follower),
    Refetch(Box<Refetch>),
}

impl From<Content> for Source {
    fn from(content: Content) -> Self {
        match content {
            Content::Memory(bytes) => Self::Memory(bytes),
            Content::Disk(blob) => Self::Sealed(blob),
        }
    }
}

/// Some of the bytes of an answer.
#[derive(Debug)]
pub enum Chunk {
    /// In memory.
    Memory(Bytes),
    /// In a file, to be sent as they are.
    File(FileSlice),
}

impl Chunk {
    fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(slice) => slice.len(),
        }
    }
}

/// Reads a blob, or ranges of it one after the other, each from its first byte to its end.
#[derive(Debug)]
pub struct Reader {
    source: Source,
    position: u64,
    /// `None`: to the end of the blob, wherever that is.
    end: Option<u64>,
    /// The ranges after this one, the next one last.
    rest: Vec<ByteRange>,
    puller: Puller,
    /// Where this range began.
    begin: u64,
    /// For what passes by before it was read.
    errand: Option<Errand>,
}

impl Reader {
    /// Reads everything.
    pub(super) fn whole(source: Source, size: Option<u64>, puller: Puller, errand: Option<Errand>) -> Self {
        Self { source, position: 0, end: size, rest: Vec::new(), puller, begin: 0, errand }
    }

    /// Reads `ranges`, beginning with the first.
    pub(super) fn of(
        source: Source,
        mut ranges: Vec<ByteRange>,
        puller: Puller,
        errand: Option<Errand>,
    ) -> Self {
        ranges.reverse();
        let first = ranges.pop().unwrap_or(ByteRange::new(0, 0));
        let (begin, end) = (first.start, Some(first.end));
        Self { source, position: begin, end, rest: ranges, puller, begin, errand }
    }

    /// Goes on to the next range, if there is one.
    pub fn next_range(&mut self) -> Option<ByteRange> {
        let range = self.rest.pop()?;
        (self.position, self.begin, self.end) = (range.start, range.start, Some(range.end));
        if let (Source::Refetch(_), Some(errand)) = (&self.source, &self.errand) {
            self.source = Source::Refetch(Box::new(errand.fetch(self.position, self.end)));
        }
        Some(range)
    }

    /// Waits until the first byte can be given, so that a failure before it is still an answer of
    /// its own. Cancel safe.
    ///
    /// # Errors
    /// Why it never comes; [`Error::Deadline`] when it does not come in time.
    pub async fn ready(&mut self) -> Result<(), Error> {
        let wait = self.puller.fill_config().wait_timeout;
        let ready = async {
            loop {
                match &mut self.source {
                    Source::Memory(_) | Source::Sealed(_) => return Ok(()),
                    Source::Flight(follower) => match follower.readable(self.position, self.end).await {
                        Err(Error::PassedBy) if self.refetches() => {}
                        ready => return ready,
                    },
                    Source::Refetch(refetch) => return refetch.ready().await,
                }
            }
        };
        tokio::time::timeout(wait, ready).await.unwrap_or(Err(Error::Deadline(wait)))
    }

    /// Goes on with a fetch of its own, if the reader then still gets what the digest vouches for: the beginning of
    /// one transfer and the end of another may be right each, and not together.
    fn refetches(&mut self) -> bool {
        let Some(errand) = &self.errand else { return false };
        if self.position != self.begin && !errand.is_unverified(self.end) {
            return false;
        }
        self.source = Source::Refetch(Box::new(errand.fetch(self.position, self.end)));
        true
    }

    /// The next bytes of this range, `None` at its end. With `files`, what is in a file comes as a slice of it, as
    /// far as there is one; without, at most 256 KiB are read unless they are in memory as a whole. Cancel safe.
    ///
    /// # Errors
    /// The rest cannot be given: the transfer must be broken, not ended.
    pub async fn next(&mut self, files: bool) -> Result<Option<Chunk>, Error> {
        let mut next = self.read(files).await;
        if matches!(next, Err(Error::PassedBy)) && self.refetches() {
            next = self.read(files).await;
        }
        if let (Err(Error::Read(_)), Source::Sealed(blob)) = (&next, &self.source) {
            // The next pull must not find the same damage.
            self.puller.store().distrust(blob).await;
        }
        next
    }

    async fn read(&mut self, files: bool) -> Result<Option<Chunk>, Error> {
        let chunk = match &mut self.source {
            Source::Memory(bytes) => {
                let end =
                    usize::try_from(self.end.unwrap_or(u64::MAX)).unwrap_or(usize::MAX).min(bytes.len());
                let start = usize::try_from(self.position).unwrap_or(usize::MAX).min(end);
                (start < end).then(|| Chunk::Memory(bytes.slice(start..end)))
            }
            Source::Sealed(blob) => {
                let left = self.end.unwrap_or(blob.size()).min(blob.size()).saturating_sub(self.position);
                match left {
                    0 => None,
                    left if files && left >= MIN_SLICE => Some(Chunk::File(blob.slice(self.position, left))),
                    left => Some(Chunk::Memory(blob.read(self.position, left).await?)),
                }
            }
            Source::Flight(follower) => {
                let wait = self.puller.fill_config().wait_timeout;
                follower.next(self.position, self.end, wait, files).await?
            }
            Source::Refetch(refetch) => refetch.next().await?.map(Chunk::Memory),
        };
        self.position += chunk.as_ref().map_or(0, Chunk::len);
        Ok(chunk)
    }
}
