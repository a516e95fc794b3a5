//! The rest of a fill that no disk takes: upstream → hash → window → passengers.
//!
//! It begins where the file ends, if there is one, and goes on in order to the end of the blob: only its digest can
//! say that it is right. Nothing of it is kept, so it ends as soon as nobody wants the end of the blob. Ranges
//! beside it, and readers who come when their bytes have passed by, fetch for themselves ([`super::refetch`]).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::fill::{Front, FrontNews};
use super::flight::{Flight, Phase};
use super::window::FRAME;
use super::{Error, Puller};
use crate::oci::{ByteRange, Digest, Hasher, Mismatch};
use crate::routing::Route;
use crate::store::PartialFile;
use crate::upstream::{self, Download};

/// A blob on its way past.
pub(super) struct Passage<'f> {
    pub(super) puller: &'f Puller,
    pub(super) flight: &'f Arc<Flight>,
    pub(super) route: &'f Route,
    pub(super) digest: &'f Digest,
    /// What came before the window.
    pub(super) file: Option<PartialFile>,
    /// Everything before `position` went into it.
    pub(super) hasher: Hasher,
    pub(super) position: u64,
    pub(super) size: Option<u64>,
    pub(super) front: Front,
    /// The upstream has answered for the blob.
    pub(super) is_answered: bool,
}

impl Passage<'_> {
    /// Lets everything pass: first `unwritten`, which ends at the position, then `frame`, then what comes.
    pub(super) async fn run(mut self, unwritten: Vec<Bytes>, frame: Bytes) -> Result<(), Error> {
        let first = self.position - unwritten.iter().map(|bytes| bytes.len() as u64).sum::<u64>();
        let reach = if self.file.is_some() { 0 } else { first };
        self.flight.window.open(first, reach, unwritten);
        if self.is_answered {
            self.publish();
        }
        self.pass(frame).await?;
        let flight = Arc::clone(self.flight);
        if self.transfer().await? {
            self.arrive().await?;
        }
        flight.window.close();
        Ok(())
    }

    fn publish(&self) {
        let phase = Phase::Passing(self.file.clone());
        self.flight.publish(|progress| {
            (progress.phase, progress.size, progress.reached) = (phase, self.size, self.position);
        });
    }

    /// Moves the bytes. Whether anybody still wants the end of them.
    async fn transfer(&mut self) -> Result<bool, Error> {
        let (puller, flight) = (self.puller, self.flight);
        let mut deserted = pin!(flight.deserted(Duration::ZERO));
        while self.size != Some(self.position) {
            if self.is_answered && puller.flights().end_if_unwanted(flight) {
                return Ok(false);
            }
            if self.front.is_idle() {
                self.open();
            }
            let news = tokio::select! {
                news = self.front.news() => news?,
                () = flight.stirred() => continue,
                () = deserted.as_mut() => {
                    if puller.flights().park_if_abandoned(flight) {
                        return Err(Error::Abandoned);
                    }
                    deserted.set(flight.deserted(Duration::ZERO));
                    continue;
                }
                () = puller.aborting() => return Err(Error::Abandoned),
            };
            match news {
                FrontNews::Opened(opened) => self.opened(opened)?,
                FrontNews::Bytes(Some(frame)) => {
                    puller.metrics().filled_bytes.inc_by(frame.len() as u64);
                    self.pass(frame).await?;
                }
                FrontNews::Bytes(None) => self.ended()?,
            }
        }
        Ok(true)
    }

    fn open(&mut self) {
        let bytes = ByteRange::new(self.position, u64::MAX);
        let size = self.size.filter(|_| self.is_answered);
        self.front = Front::open(self.puller, self.route, *self.digest, bytes, size);
    }

    fn opened(&mut self, opened: Result<Box<Download>, upstream::Error>) -> Result<(), Error> {
        self.front = Front::Idle;
        let download = opened?;
        let said = download.size();
        if !self.is_answered {
            self.puller.set_visible(self.route, self.digest);
            if self.position > 0 && said.is_some() && self.size.is_some() && said != self.size {
                // What an earlier fill left is of another blob.
                (self.position, self.size, self.file) = (0, said, None);
                self.hasher = Hasher::new(self.digest.algorithm());
                self.flight.window.open(0, 0, Vec::new());
                self.is_answered = true;
                self.publish();
                return Ok(());
            }
        }
        self.size = said.or(self.size);
        let largest = self.puller.fill_config().max_blob_size.as_u64();
        if self.size.is_some_and(|size| size > largest) {
            return Err(Error::TooLarge(largest));
        }
        if !self.is_answered {
            self.is_answered = true;
            self.publish();
        }
        self.front = Front::Streaming { end: u64::MAX, download };
        Ok(())
    }

    /// The download has brought everything that it was asked for.
    fn ended(&mut self) -> Result<(), Error> {
        if let Front::Streaming { download, .. } = &self.front {
            if let Some(size) = download.size() {
                self.size = Some(size);
            } else if download.offset() != self.position {
                return Err(Error::Internal);
            }
        }
        self.front = Front::Idle;
        Ok(())
    }

    /// Hashes the bytes and gives them to the passengers, at the pace of the slowest.
    async fn pass(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        let largest = self.size.unwrap_or(self.puller.fill_config().max_blob_size.as_u64());
        if self.position + bytes.len() as u64 > largest {
            return Err(Error::TooLarge(largest));
        }
        self.hasher.update(&bytes);
        while !bytes.is_empty() {
            let frame = bytes.split_to(bytes.len().min(FRAME));
            tokio::select! {
                () = self.flight.window.room(frame.len()) => {}
                () = self.puller.aborting() => return Err(Error::Abandoned),
            }
            self.flight.window.add(&frame);
            self.position += frame.len() as u64;
            let reached = self.position;
            self.flight.publish(|progress| progress.reached = reached);
        }
        Ok(())
    }

    /// Everything has come: if it is right, the passengers get the rest.
    async fn arrive(self) -> Result<(), Error> {
        let actual = self.hasher.finish();
        if actual != *self.digest {
            return Err(Error::Corrupt(Arc::new(Mismatch { expected: *self.digest, actual })));
        }
        linger(self.puller, self.flight, self.file, self.position).await
    }
}

/// Holds a blob that is complete and verified, but not sealed, for as long as somebody reads it.
pub(super) async fn linger(
    puller: &Puller,
    flight: &Arc<Flight>,
    file: Option<PartialFile>,
    size: u64,
) -> Result<(), Error> {
    if file.is_none() {
        // The next one may find room; who has a seat here keeps it. A file could still be resumed by the next
        // flight, which must not write into what is read here.
        puller.flights().end(flight);
    }
    flight.publish(|progress| {
        (progress.phase, progress.size, progress.reached) = (Phase::Passed(file, size), Some(size), size);
    });
    loop {
        tokio::select! {
            () = flight.deserted(Duration::ZERO) => {
                if puller.flights().park_if_abandoned(flight) {
                    return Ok(());
                }
            }
            () = puller.aborting() => return Err(Error::Abandoned),
        }
    }
}
