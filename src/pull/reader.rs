//! The bytes of an answer, wherever they come from.

use std::sync::Arc;

use bytes::Bytes;

use super::flight::Follower;
use super::{Error, Puller};
use crate::store::{Blob, Content};

/// Where the bytes of a blob come from.
#[derive(Debug)]
pub(super) enum Source {
    Memory(Bytes),
    Sealed(Arc<Blob>),
    Flight(Follower),
}

impl From<Content> for Source {
    fn from(content: Content) -> Self {
        match content {
            Content::Memory(bytes) => Self::Memory(bytes),
            Content::Disk(blob) => Self::Sealed(blob),
        }
    }
}

/// Reads a blob, or a range of it, from its first byte to its end.
#[derive(Debug)]
pub struct Reader {
    source: Source,
    position: u64,
    /// `None`: to the end of the blob, wherever that is.
    end: Option<u64>,
    puller: Puller,
}

impl Reader {
    pub(super) fn new(source: Source, start: u64, end: Option<u64>, puller: Puller) -> Self {
        Self { source, position: start, end, puller }
    }

    /// Waits until the first byte can be given, so that a failure before it is still an answer of
    /// its own. Cancel safe.
    ///
    /// # Errors
    /// Why it never comes; [`Error::Deadline`] when it does not come in time.
    pub async fn ready(&mut self) -> Result<(), Error> {
        match &mut self.source {
            Source::Memory(_) | Source::Sealed(_) => Ok(()),
            Source::Flight(follower) => {
                let wait = self.puller.fill_config().wait_timeout;
                let ready = follower.readable(self.position, self.end);
                tokio::time::timeout(wait, ready).await.unwrap_or(Err(Error::Deadline(wait)))
            }
        }
    }

    /// The next bytes, at most 256 KiB unless they are in memory as a whole; `None` at the end.
    /// Cancel safe.
    ///
    /// # Errors
    /// The rest cannot be given: the transfer must be broken, not ended.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let next = self.read().await;
        if let (Err(Error::Read(_)), Source::Sealed(blob)) = (&next, &self.source) {
            // The next pull must not find the same damage.
            self.puller.store().distrust(blob).await;
        }
        next
    }

    async fn read(&mut self) -> Result<Option<Bytes>, Error> {
        let bytes = match &mut self.source {
            Source::Memory(bytes) => {
                let end =
                    usize::try_from(self.end.unwrap_or(u64::MAX)).unwrap_or(usize::MAX).min(bytes.len());
                let start = usize::try_from(self.position).unwrap_or(usize::MAX).min(end);
                (start < end).then(|| bytes.slice(start..end))
            }
            Source::Sealed(blob) => {
                let end = self.end.unwrap_or(blob.size()).min(blob.size());
                if self.position < end {
                    Some(blob.read(self.position, end - self.position).await?)
                } else {
                    None
                }
            }
            Source::Flight(follower) => follower.next(self.position, self.end).await?,
        };
        self.position += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        Ok(bytes)
    }
}
