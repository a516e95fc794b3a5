//! A fetch for one reader alone, of what has passed through before he came.
//!
//! The reader drives it: the upstream sends as fast as he takes. What he wants to the end of the blob comes with
//! everything before it, because only the digest of all of it can say that the end is right; until then the tail is
//! withheld. An inner range comes as it is, unless the configuration wants it verified: then all of it is withheld.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::flight::TAIL;
use super::window::CAPACITY;
use super::{Error, Puller};
use crate::oci::{ByteRange, Digest, Hasher, Mismatch};
use crate::routing::Route;
use crate::upstream::Download;

/// What is needed to fetch a blob once more.
#[derive(Debug, Clone)]
pub(super) struct Errand {
    pub(super) puller: Puller,
    pub(super) route: Route,
    pub(super) digest: Digest,
    /// Where anybody has said it.
    pub(super) size: Option<u64>,
    /// Whether inner ranges are withheld until the digest is known.
    pub(super) is_verified_first: bool,
}

impl Errand {
    /// Whether a reader of this range sees its bytes before the digest is known.
    pub(super) fn is_unverified(&self, end: Option<u64>) -> bool {
        !self.is_verified_first && end.is_some_and(|end| self.size.is_some_and(|size| end < size))
    }

    /// Fetches from `start` to `end`; `None`: to the end of the blob, wherever that is.
    pub(super) fn fetch(&self, start: u64, end: Option<u64>) -> Refetch {
        let end = end.or(self.size);
        let keep = ByteRange::new(start, end.unwrap_or(u64::MAX));
        let is_inner = end.is_some_and(|end| self.size.is_some_and(|size| end < size));
        let (bytes, hasher, withheld) = match (is_inner, self.is_verified_first) {
            (true, false) => (keep, None, 0),
            (true, true) => (whole(), Some(Hasher::new(self.digest.algorithm())), keep.len()),
            (false, _) => (whole(), Some(Hasher::new(self.digest.algorithm())), TAIL),
        };
        let errand = self.clone();
        let opening = async move {
            let Errand { puller, route, digest, size, .. } = errand;
            let turn = puller.fill_turn(&route.upstream.name).await?;
            let download = puller.client().download(&route, &digest, bytes, size).await?;
            puller.set_visible(&route, &digest);
            puller.metrics().refetches.inc();
            Ok((turn, Box::new(download)))
        };
        Refetch {
            digest: self.digest,
            most: self.size.unwrap_or(self.puller.fill_config().max_blob_size.as_u64()),
            wait: self.puller.fill_config().wait_timeout,
            keep,
            position: bytes.start,
            hasher,
            withheld: usize::try_from(withheld).unwrap_or(usize::MAX),
            held: BytesMut::new(),
            state: State::Opening(Box::pin(opening)),
        }
    }

    /// The whole blob in memory, verified, where it is small enough.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub(super) async fn fetch_small(&self) -> Result<Option<Bytes>, Error> {
        let Some(size) = self.size.filter(|size| *size <= CAPACITY as u64) else { return Ok(None) };
        let mut whole = BytesMut::with_capacity(usize::try_from(size).unwrap_or_default());
        let mut fetch = self.fetch(0, None);
        while let Some(bytes) = fetch.next().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok(Some(whole.freeze()))
    }
}

const fn whole() -> ByteRange {
    ByteRange::new(0, u64::MAX)
}

/// One reader's own fetch.
pub(super) struct Refetch {
    digest: Digest,
    /// More bytes than this are not accepted.
    most: u64,
    wait: Duration,
    keep: ByteRange,
    /// Of the next byte that comes.
    position: u64,
    /// Of everything before the position; nothing where it is not verified.
    hasher: Option<Hasher>,
    /// So much at the end of what is kept is not given before the digest is known.
    withheld: usize,
    /// What is kept and was not given yet. Copied: a frame of the network's may be a small part of a large buffer.
    held: BytesMut,
    state: State,
}

enum State {
    Opening(Pin<Box<dyn Future<Output = Result<Opened, Error>> + Send>>),
    Streaming(Opened),
    /// All has come, and is right.
    Ended,
    Failed(Error),
}

type Opened = (OwnedSemaphorePermit, Box<Download>);

impl Refetch {
    /// The next bytes; `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// The rest cannot be given. It is repeated by further calls.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        self.ready().await?;
        let len = self.givable();
        Ok((len > 0).then(|| self.held.split_to(len).freeze()))
    }

    /// Waits until there is something to give, or the end. Cancel safe.
    ///
    /// # Errors
    /// Why there is nothing to come.
    pub(super) async fn ready(&mut self) -> Result<(), Error> {
        while self.givable() == 0 {
            let news = match &mut self.state {
                State::Ended => return Ok(()),
                State::Failed(error) => return Err(error.clone()),
                State::Opening(opening) => match timeout(self.wait, opening.as_mut()).await {
                    Ok(Ok(opened)) => {
                        self.state = State::Streaming(opened);
                        continue;
                    }
                    Ok(Err(error)) => Err(error),
                    Err(_) => return Err(Error::Deadline(self.wait)),
                },
                State::Streaming((_, download)) => download.next().await.map_err(Error::from),
            };
            let taken = match news {
                Ok(Some(bytes)) => self.take(&bytes),
                Ok(None) => self.end(),
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                self.state = State::Failed(error);
            }
        }
        Ok(())
    }

    fn givable(&self) -> usize {
        match self.state {
            State::Ended => self.held.len(),
            State::Opening(_) | State::Streaming(_) => self.held.len().saturating_sub(self.withheld),
            State::Failed(_) => 0,
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let start = self.position;
        let end = start + bytes.len() as u64;
        if end > self.most {
            return Err(Error::TooLarge(self.most));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        let (from, to) = (self.keep.start.clamp(start, end), self.keep.end.clamp(start, end));
        let within = |at: u64| usize::try_from(at - start).unwrap_or(bytes.len());
        if from < to {
            self.held.extend_from_slice(&bytes[within(from)..within(to)]);
        }
        self.position = end;
        Ok(())
    }

    fn end(&mut self) -> Result<(), Error> {
        if self.keep.end != u64::MAX && self.position < self.keep.end {
            return Err(Error::Internal);
        }
        if let Some(hasher) = self.hasher.take() {
            let actual = hasher.finish();
            if actual != self.digest {
                return Err(Error::Corrupt(std::sync::Arc::new(Mismatch { expected: self.digest, actual })));
            }
        }
        // The turn is given back with the download.
        self.state = State::Ended;
        Ok(())
    }
}

impl fmt::Debug for Refetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refetch")
            .field("digest", &self.digest)
            .field("keep", &self.keep)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
