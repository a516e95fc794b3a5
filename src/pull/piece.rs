//! A part of a blob that is fetched ahead of the fill's front.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fill::LINGER;
use super::flight::Flight;
use super::{Error, Puller};
use crate::oci::{ByteRange, Digest};
use crate::routing::Route;
use crate::store::Piece;

/// Everything that one such fetch needs; it runs as a task of its own.
pub(super) struct PieceJob {
    pub(super) puller: Puller,
    pub(super) flight: Arc<Flight>,
    pub(super) route: Route,
    pub(super) digest: Digest,
    pub(super) piece: Piece,
    /// Where to end. It moves forward when another fetch begins before it.
    pub(super) end: Arc<AtomicU64>,
    /// The size of the blob, on which the upstream must agree.
    pub(super) size: u64,
    pub(super) stop: CancellationToken,
    /// Its share of the fills at once; none where it uses the flight's own.
    pub(super) _turn: Option<OwnedSemaphorePermit>,
}

/// Why a piece was not brought.
#[derive(Debug, thiserror::Error)]
pub(super) enum PieceError {
    /// The upstream sends the whole blob, whatever is asked for.
    #[error("the upstream ignores ranges")]
    RangeIgnored,
    /// It could not be had or kept.
    #[error(transparent)]
    Pull(#[from] Error),
}

impl PieceJob {
    /// Brings the bytes. Ends early, and well, when it is stopped.
    pub(super) async fn run(mut self) -> Result<(), PieceError> {
        let stop = self.stop.clone();
        let bytes = ByteRange::new(self.piece.position(), self.end.load(Ordering::Acquire));
        let opening = self.puller.client().download(&self.route, &self.digest, bytes, Some(self.size));
        let mut download = tokio::select! {
            opened = opening => opened.map_err(Error::from)?,
            () = stop.cancelled() => return Ok(()),
        };
        if download.ignores_range() {
            return Err(PieceError::RangeIgnored);
        }
        let mut frame = Bytes::new();
        let mut ended = false;
        let begin = self.piece.position();
        let mut linger = pin!(tokio::time::sleep(LINGER));
        loop {
            let left = self.end.load(Ordering::Acquire).saturating_sub(self.piece.position());
            frame.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            ended |= left == 0;
            if !frame.is_empty() && self.piece.has_room() {
                self.piece.push(&mut frame);
            }
            // As at the front: the first bytes go out at once, after that blocks gather.
            let is_first = self.piece.position() - self.piece.gathered() as u64 == begin;
            if ended || is_first || !self.piece.has_room() || linger.is_elapsed() {
                self.piece.start_write();
            }
            let lingers = self.piece.gathered() > 0 && !self.piece.is_writing() && !linger.is_elapsed();
            if ended && frame.is_empty() && self.piece.is_idle() {
                return Ok(());
            }
            tokio::select! {
                written = self.piece.written() => {
                    written.map_err(Error::from)?;
                    self.flight.publish_arrived(self.piece.arrived());
                    self.flight.stir();
                    linger.as_mut().reset(Instant::now() + LINGER);
                }
                () = linger.as_mut(), if lingers => {}
                next = download.next(), if !ended && frame.is_empty() && self.piece.has_room() => {
                    match next.map_err(Error::from)? {
                        Some(next) => {
                            if self.piece.gathered() == 0 && !self.piece.is_writing() {
                                linger.as_mut().reset(Instant::now() + LINGER);
                            }
                            self.puller.metrics().filled_bytes.inc_by(next.len() as u64);
                            frame = next;
                        }
                        None => ended = true,
                    }
                }
                () = stop.cancelled(), if !ended => {
                    frame.clear();
                    ended = true;
                }
            }
        }
    }
}
