//! The task behind a flight: upstream → hash → file → followers.
//!
//! The front is fetched by one download, hashed as it comes; ranges far ahead of it that somebody wants are
//! brought by up to [`MAX_PIECES`] pieces into the same file, and hashed once the front has come to them.
//! [`schedule`](super::schedule) says what is fetched next. An upstream that ignores ranges is asked for
//! everything in order. What has arrived is never written again: a reader may have it already.
//!
//! A blob that no disk takes, from the beginning or from somewhere in the middle, is passed on
//! ([`passage`](super::passage)) from the first byte that is not in the file.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::config::OnAbandon;
use super::flight::{Flight, Phase, WHOLE};
use super::passage::{self, Passage};
use super::piece::{PieceError, PieceJob};
use super::schedule::{Fetch, Speed, next_fetch};
use super::{Error, Puller};
use crate::oci::{ByteRange, Digest, Hasher};
use crate::routing::Route;
use crate::store::{self, Blob, Partial, RangeSet, Salvage, SealError};
use crate::upstream::{self, Download, Purpose};

/// How long less than a block may wait for more before it is written. Long enough to gather a
/// block at line rate, short enough not to be felt.
pub(super) const LINGER: Duration = Duration::from_millis(4);

/// How often the speed of a fill is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Ranges that are fetched ahead of the front at once, as many as clients ask for at once; each holds half
/// a MiB.
const MAX_PIECES: usize = 8;

/// The longest range of one request for a piece: what comes beyond the start of a later one is thrown away, so
/// it must not be much; and a request costs a round trip or two.
const PIECE: u64 = 32 << 20;

/// Pieces that may fail one after the other before the flight does, where nothing else gets on; between them
/// it rests, twice as long each time.
const PIECE_FAILURES: u32 = 4;
const PIECE_REST: Duration = Duration::from_millis(250);

/// Runs one flight to its end and tells its followers. `proven` is the blob's size, where the upstream has
/// already answered for it.
pub(super) async fn run(
    puller: Puller,
    flight: Arc<Flight>,
    route: Route,
    digest: Digest,
    proven: Option<u64>,
) {
    let landing = Landing { puller: &puller, flight: &flight, outcome: None };
    puller.metrics().flights.inc();
    let outcome = fill(&puller, &flight, &route, &digest, proven).await;
    puller.metrics().count_fill(&outcome);
    match &outcome {
        Ok(Some(blob)) => {
            tracing::debug!(%digest, upstream = %route.upstream.name, size_bytes = blob.size(), "sealed");
        }
        Ok(None) => tracing::debug!(%digest, upstream = %route.upstream.name, "passed through"),
        Err(Error::Unknown(_) | Error::Abandoned) => {
            tracing::debug!(%digest, upstream = %route.upstream.name, "fill ended without a blob");
        }
        Err(error) => tracing::warn!(
            %digest,
            upstream = %route.upstream.name,
            repository = %route.repository,
            %error,
            "fill failed"
        ),
    }
    landing.land(outcome);
}

/// Ends the flight exactly once, also when the fill panics: a digest must not stay in the map
/// without a task behind it.
struct Landing<'a> {
    puller: &'a Puller,
    flight: &'a Arc<Flight>,
    outcome: Option<Result<Option<Arc<Blob>>, Error>>,
}

impl Landing<'_> {
    fn land(mut self, outcome: Result<Option<Arc<Blob>>, Error>) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.puller.metrics().flights.dec();
        let phase = match self.outcome.take().unwrap_or(Err(Error::Internal)) {
            Ok(Some(blob)) => Some(Phase::Sealed(blob)),
            // Who still reads has been told what passes, or fetches for himself.
            Ok(None) => None,
            Err(error) => Some(Phase::Failed(error)),
        };
        self.puller.flights().land(self.flight, phase);
    }
}

async fn fill(
    puller: &Puller,
    flight: &Arc<Flight>,
    route: &Route,
    digest: &Digest,
    proven: Option<u64>,
) -> Result<Option<Arc<Blob>>, Error> {
    let turn = turn(puller, flight, route).await?;
    if puller.store().contains(digest).await {
        // An earlier flight landed between this one's look at the store and its start.
        puller.prove_blob(route, digest, Purpose::Pull).await?;
        if let Some(blob) = puller.store().blob(digest).await {
            return Ok(Some(blob));
        }
    }
    let partial = match puller.store().partial(*digest, route.upstream.name.as_str()).await {
        Ok(partial) => partial,
        Err(error) => {
            note_passage(puller, route, digest, &error);
            let passage = Passage {
                puller,
                flight,
                route,
                digest,
                file: None,
                hasher: Hasher::new(digest.algorithm()),
                position: 0,
                size: proven,
                front: Front::Idle,
                is_answered: proven.is_some(),
            };
            passage.run(Vec::new(), Bytes::new()).await?;
            return Ok(None);
        }
    };
    let speed = Speed::from(partial.arrived().len());
    let mut fill = Fill {
        puller,
        flight,
        route,
        digest,
        partial,
        turn: Turn::Held(turn),
        front: Front::Idle,
        pieces: Pieces::new(),
        speed,
        is_answered: false,
        is_in_order: false,
        is_wanted_to_the_end: false,
        is_spoiled: false,
        frame: Bytes::new(),
    };
    let mut outcome = fill.begin(proven).await;
    if outcome.is_ok() {
        outcome = fill.transfer().await;
    }
    // Nobody else may write into the file when it is sealed, parked or gone.
    fill.pieces.stop().await;
    if let Err(Error::Store(error)) = &outcome {
        note_passage(puller, route, digest, error);
        return fill.pass_on().await.map(|()| None);
    }
    let partial = fill.partial;
    match outcome {
        Ok(()) => {
            let (file, size) = (partial.file(), partial.position());
            match partial.seal().await {
                Ok(blob) => Ok(Some(blob)),
                Err(SealError::Mismatch(mismatch)) => Err(Error::Corrupt(Arc::new(mismatch))),
                // All of it is in the file, and right.
                Err(SealError::Store(error)) => {
                    note_passage(puller, route, digest, &error);
                    flight.window.open(size, 0, Vec::new());
                    passage::linger(puller, flight, Some(file), size).await.map(|()| None)
                }
            }
        }
        Err(error) if error.spoils_partial() => {
            partial.discard().await;
            Err(error)
        }
        Err(error) => {
            partial.park().await;
            Err(error)
        }
    }
}

/// Notes that a blob is not kept; what is wrong with the disk is in the log of the store.
fn note_passage(puller: &Puller, route: &Route, digest: &Digest, error: &store::Error) {
    puller.metrics().count_passage(error);
    tracing::info!(%digest, upstream = %route.upstream.name, %error, "a blob is passed through");
}

/// Waits for a turn, for as long as somebody follows.
async fn turn(puller: &Puller, flight: &Flight, route: &Route) -> Result<OwnedSemaphorePermit, Error> {
    let mut turn = pin!(puller.fill_turn(&route.upstream.name));
    loop {
        tokio::select! {
            turn = turn.as_mut() => return turn,
            () = flight.deserted(puller.fill_config().abandon_grace) => {
                if puller.flights().park_if_abandoned(flight) {
                    return Err(Error::Abandoned);
                }
            }
            () = puller.aborting() => return Err(Error::Abandoned),
        }
    }
}

/// One fill on its way.
#[expect(clippy::struct_excessive_bools, reason = "four facts that come about independently of each other")]
struct Fill<'f> {
    puller: &'f Puller,
    flight: &'f Arc<Flight>,
    route: &'f Route,
    digest: &'f Digest,
    partial: Partial,
    turn: Turn,
    front: Front,
    pieces: Pieces,
    speed: Speed,
    /// The upstream has answered for the blob, so that what is here may be read.
    is_answered: bool,
    /// The upstream ignores ranges: everything is fetched from the front.
    is_in_order: bool,
    /// Somebody has wanted the end of the blob, so that finishing it is in somebody's interest.
    is_wanted_to_the_end: bool,
    /// What is in the file was contradicted, and could not be thrown away.
    is_spoiled: bool,
    /// What has come and did not fit into the gathering block.
    frame: Bytes,
}

/// Its right to fetch: given back while nothing is missing of what is wanted, so that a client that reads a
/// few ranges slowly holds up nobody else's fill.
enum Turn {
    Held(OwnedSemaphorePermit),
    Released,
    Awaited(Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, Error>> + Send>>),
}

impl Turn {
    /// Cancel safe; never resolves unless it is awaited.
    async fn comes(&mut self) -> Result<(), Error> {
        let Self::Awaited(turn) = self else { return std::future::pending().await };
        *self = Self::Held(turn.as_mut().await?);
        Ok(())
    }
}

/// What brings the next bytes at the front.
pub(super) enum Front {
    Idle,
    Opening { end: u64, opening: Opening },
    Streaming { end: u64, download: Box<Download> },
}

pub(super) type Opening = Pin<Box<dyn Future<Output = Result<Box<Download>, upstream::Error>> + Send>>;

/// What the front has to say.
pub(super) enum FrontNews {
    Opened(Result<Box<Download>, upstream::Error>),
    Bytes(Option<Bytes>),
}

impl Front {
    /// Asks for `bytes` of a blob of this size.
    pub(super) fn open(
        puller: &Puller,
        route: &Route,
        digest: Digest,
        bytes: ByteRange,
        size: Option<u64>,
    ) -> Self {
        let (client, route) = (puller.client().clone(), route.clone());
        let opening =
            Box::pin(async move { client.download(&route, &digest, bytes, size).await.map(Box::new) });
        Self::Opening { end: bytes.end, opening }
    }

    /// Where it is to end, if it is under way.
    fn end(&mut self) -> Option<&mut u64> {
        match self {
            Self::Idle => None,
            Self::Opening { end, .. } | Self::Streaming { end, .. } => Some(end),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    /// Cancel safe; never resolves while it is idle.
    pub(super) async fn news(&mut self) -> Result<FrontNews, Error> {
        match self {
            Self::Idle => std::future::pending().await,
            Self::Opening { opening, .. } => Ok(FrontNews::Opened(opening.await)),
            Self::Streaming { download, .. } => Ok(FrontNews::Bytes(download.next().await?)),
        }
    }
}

/// The pieces under way.
struct Pieces {
    /// Their starts, and where they are to end.
    fetches: Vec<(u64, Arc<AtomicU64>)>,
    ends: FuturesUnordered<JoinHandle<(u64, Result<(), PieceError>)>>,
    stop: CancellationToken,
    /// How many have failed since the last one that brought everything, and until when none is started.
    failures: u32,
    rest: Option<Pin<Box<Sleep>>>,
}

/// A fill that dies leaves nobody writing into its file.
impl Drop for Pieces {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Pieces {
    fn new() -> Self {
        let (fetches, ends) = (Vec::new(), FuturesUnordered::new());
        Self { fetches, ends, stop: CancellationToken::new(), failures: 0, rest: None }
    }

    /// One has failed: none is started for a while.
    fn failed(&mut self) {
        let rest = PIECE_REST * 2u32.pow(self.failures.min(PIECE_FAILURES));
        self.failures += 1;
        self.rest = Some(Box::pin(tokio::time::sleep(rest)));
    }

    fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The end of a piece, and why, if it did not bring everything; nothing when the rest after a failure is
    /// over. Cancel safe; never resolves without either.
    async fn news(&mut self) -> Option<Result<(), PieceError>> {
        let rested = async {
            match &mut self.rest {
                Some(rest) => rest.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            Some(ended) = self.ends.next() => Some(ended),
            () = rested => None,
        };
        match ended {
            Some(ended) => Some(self.note(ended)),
            None => {
                self.rest = None;
                None
            }
        }
    }

    fn note(&mut self, ended: Result<(u64, Result<(), PieceError>), JoinError>) -> Result<(), PieceError> {
        // A panic is in the log; which piece it was is not known, so none counts any more.
        let Ok((start, outcome)) = ended else {
            self.fetches.clear();
            return Err(PieceError::Pull(Error::Internal));
        };
        self.fetches.retain(|(other, _)| *other != start);
        outcome
    }

    /// Has all of them write what they have, and waits for it.
    async fn stop(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.ends.next().await {
            if let Err(error) = self.note(ended) {
                tracing::debug!(%error, "a piece ended badly while it was stopped");
            }
        }
        self.stop = CancellationToken::new();
    }
}

impl Fill<'_> {
    /// Decides what the readers may have before anything is fetched.
    async fn begin(&mut self, proven: Option<u64>) -> Result<(), Error> {
        let (held, size) = (self.partial.arrived().ranges(), self.partial.size());
        if let Some(proven) = proven {
            if size.is_some_and(|size| size != proven) || held.end() > proven {
                self.restart().await?;
            }
            return self.answered(Some(proven)).await;
        }
        if size.is_some_and(|size| held.contiguous_end(0) == size) {
            // Everything had arrived when the last process died; the upstream is asked for the right only.
            self.puller.prove_blob(self.route, self.digest, Purpose::Pull).await?;
            return self.answered(size).await;
        }
        Ok(())
    }

    /// The upstream has answered: what is here may be read.
    async fn answered(&mut self, size: Option<u64>) -> Result<(), Error> {
        let largest = self.puller.fill_config().max_blob_size.as_u64();
        if let Some(size) = size {
            if size > largest {
                return Err(Error::TooLarge(largest));
            }
            // It has, also when there is no room for it.
            self.is_answered = true;
            self.partial.expect_size(size).await?;
        }
        self.is_answered = true;
        let partial = &self.partial;
        self.flight.publish(|progress| {
            progress.phase = Phase::Filling(partial.file());
            progress.size = partial.size();
            partial.arrived().copy_to(&mut progress.arrived);
        });
        Ok(())
    }

    async fn restart(&mut self) -> Result<(), Error> {
        self.is_spoiled = true;
        self.partial.restart().await?;
        self.is_spoiled = false;
        Ok(())
    }

    /// Goes on without the disk, from the first byte that is not in the file.
    async fn pass_on(self) -> Result<(), Error> {
        let Self { puller, flight, route, digest, partial, turn, mut front, frame, is_answered, .. } = self;
        let size = partial.size();
        let _turn = match turn {
            Turn::Held(turn) => turn,
            Turn::Released | Turn::Awaited(_) => self::turn(puller, flight, route).await?,
        };
        let salvage = if self.is_spoiled {
            partial.discard().await;
            None
        } else {
            Some(partial.salvage().await.ok_or(Error::Internal)?)
        };
        let (file, hasher, position, unwritten) = match salvage {
            Some(Salvage { hasher, position, unwritten, file }) => (Some(file), hasher, position, unwritten),
            None => (None, Hasher::new(digest.algorithm()), 0, Vec::new()),
        };
        // A download that is to end early, or is not where the bytes end, is of no use.
        let next = position + frame.len() as u64;
        let goes_on = matches!(&front, Front::Streaming { download, .. } if download.offset() == next);
        if !goes_on {
            front = Front::Idle;
        }
        let passage =
            Passage { puller, flight, route, digest, file, hasher, position, size, front, is_answered };
        passage.run(unwritten, frame).await
    }

    /// Moves the bytes. At the end all of them are in the file, and hashed.
    async fn transfer(&mut self) -> Result<(), Error> {
        let (config, flight) = (self.puller.fill_config(), self.flight);
        // Where the present download began: its first bytes go out at once.
        let mut began = self.partial.position();
        let mut stirred = true;
        let mut watched = true;
        let mut draining = false;
        let mut deserted = pin!(flight.deserted(config.abandon_grace));
        let mut linger = pin!(tokio::time::sleep(Duration::ZERO));
        let mut look = pin!(tokio::time::sleep(LOOK));
        loop {
            if stirred && self.frame.is_empty() {
                if self.front.is_idle() {
                    self.partial.start_catch_up();
                }
                self.fetch_what_is_wanted();
                stirred = false;
            }
            if !self.frame.is_empty() && self.partial.has_room() {
                self.partial.push(&mut self.frame);
            }
            // The first bytes go out at once; after that a block gathers while the last one is written.
            let is_first = self.partial.position() - self.partial.gathered() as u64 == began;
            let is_due = self.front.is_idle() || is_first || !self.partial.has_room() || linger.is_elapsed();
            if is_due {
                self.partial.start_write();
            }
            if self.frame.is_empty() && self.is_complete() {
                return Ok(());
            }
            let lingers = self.partial.gathered() > 0 && !self.partial.is_working();
            let wants_more = self.frame.is_empty() && self.partial.has_room();
            tokio::select! {
                worked = self.partial.worked(), if self.partial.is_working() => {
                    worked?;
                    self.flight.publish_arrived(self.partial.arrived());
                    linger.as_mut().reset(Instant::now() + LINGER);
                    stirred = true;
                }
                news = self.front.news(), if wants_more => match news? {
                    FrontNews::Opened(opened) => {
                        began = self.partial.position();
                        self.opened(opened).await?;
                        stirred = true;
                    }
                    FrontNews::Bytes(Some(next)) => {
                        self.puller.metrics().filled_bytes.inc_by(next.len() as u64);
                        if self.partial.gathered() == 0 && !self.partial.is_working() {
                            linger.as_mut().reset(Instant::now() + LINGER);
                        }
                        self.frame = next;
                        stirred |= self.received()?;
                    }
                    FrontNews::Bytes(None) => {
                        self.ended();
                        stirred = true;
                    }
                },
                news = self.pieces.news() => {
                    stirred = true;
                    if let Some(ended) = news {
                        self.piece_ended(ended).await?;
                    }
                }
                turn = self.turn.comes() => {
                    turn?;
                    stirred = true;
                }
                () = flight.stirred() => stirred = true,
                // What was to come soon, and does not, gets a fetch of its own.
                () = look.as_mut(), if self.is_fetching() => {
                    self.speed.observe(self.partial.arrived().len(), LOOK);
                    look.as_mut().reset(Instant::now() + LOOK);
                    stirred = true;
                }
                () = linger.as_mut(), if lingers => {}
                () = deserted.as_mut(), if watched => {
                    if !draining && self.is_worth_finishing() {
                        watched = false;
                        self.flight.want(&[WHOLE]);
                    } else if self.puller.flights().park_if_abandoned(self.flight) {
                        return Err(Error::Abandoned);
                    } else {
                        deserted.set(flight.deserted(config.abandon_grace));
                    }
                }
                // A stop waits for clients, not for bytes that nobody waits for: those are resumed.
                () = self.puller.draining(), if !draining => {
                    (draining, watched) = (true, true);
                    deserted.set(flight.deserted(Duration::ZERO));
                }
                () = self.puller.aborting() => return Err(Error::Abandoned),
            }
        }
    }

    /// Starts the fetches that are due. Nothing that has come may still be on its way to the front.
    fn fetch_what_is_wanted(&mut self) {
        let size = self.partial.size();
        let wants = self.flight.wants();
        self.is_wanted_to_the_end |= wants.iter().any(|want| want.end >= size.unwrap_or(u64::MAX));
        self.cut_front(&wants);
        let arrived = self.partial.arrived().ranges();
        // Without an answer, and where ranges are ignored, whatever is wanted comes from the front.
        let from_the_front = self.is_in_order || !self.is_answered;
        let wants =
            if from_the_front && self.is_missing(&wants, &arrived) { Arc::from([WHOLE]) } else { wants };
        while let Some(next) = next_fetch(&wants, &arrived, &self.fetches(&arrived), size, self.speed) {
            if !self.has_turn() {
                return;
            }
            let is_at_front = next.start == arrived.contiguous_end(self.partial.position());
            if is_at_front && self.front.is_idle() && self.is_at(&arrived) {
                self.end_others_at(next.start);
                self.open_front(if size == Some(next.end) { u64::MAX } else { next.end });
            } else if is_at_front || from_the_front || !self.start_piece(next) {
                // What pieces have brought to the front is hashed first.
                break;
            }
        }
        if self.front.is_idle() && self.pieces.is_empty() && !self.is_missing(&wants, &arrived) {
            self.turn = Turn::Released;
        }
    }

    /// Whether anything of what is wanted is neither there nor comes with the front.
    fn is_missing(&self, wants: &[ByteRange], arrived: &RangeSet) -> bool {
        next_fetch(wants, arrived, &[self.front_fetch()], self.partial.size(), self.speed).is_some()
    }

    /// Ends the front where nobody wants more. What nobody wants at all is for the grace of the abandoned.
    fn cut_front(&mut self, wants: &[ByteRange]) {
        let position = self.partial.position();
        if wants.is_empty() || !self.is_answered || self.is_in_order || self.is_worth_finishing() {
            return;
        }
        let Some(end) = self.front.end() else { return };
        let wanted = wants.iter().filter(|want| want.start < *end && want.end > position);
        *end = wanted.map(|want| want.end).max().unwrap_or(position).min(*end);
        if *end == position && matches!(self.front, Front::Streaming { .. }) {
            self.front = Front::Idle;
        }
    }

    /// Takes note of the end of a piece.
    async fn piece_ended(&mut self, ended: Result<(), PieceError>) -> Result<(), Error> {
        match ended {
            Ok(()) => self.pieces.failures = 0,
            Err(PieceError::RangeIgnored) => self.go_on_in_order().await,
            // The disk refuses the front as well.
            Err(PieceError::Pull(error @ Error::Store(_))) => return Err(error),
            Err(PieceError::Pull(error)) => {
                tracing::debug!(digest = %self.digest, %error, "a part could not be fetched ahead");
                self.pieces.failed();
                if self.pieces.failures > PIECE_FAILURES && self.front.is_idle() && self.pieces.is_empty() {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The upstream ignores ranges: what is wanted comes with everything before it, and is worth keeping.
    async fn go_on_in_order(&mut self) {
        tracing::debug!(digest = %self.digest, upstream = %self.route.upstream.name, "ranges are ignored");
        (self.is_in_order, self.is_wanted_to_the_end) = (true, true);
        self.pieces.stop().await;
    }

    /// Whether it may fetch now; if not, it is told when it may.
    fn has_turn(&mut self) -> bool {
        if matches!(self.turn, Turn::Released) {
            let (puller, upstream) = (self.puller.clone(), self.route.upstream.name.clone());
            self.turn = match puller.try_fill_turn(&upstream) {
                Some(turn) => Turn::Held(turn),
                None => Turn::Awaited(Box::pin(async move { puller.fill_turn(&upstream).await })),
            };
        }
        matches!(self.turn, Turn::Held(_))
    }

    /// Whether the front stands at the first byte that is missing.
    fn is_at(&self, arrived: &RangeSet) -> bool {
        !self.partial.is_working()
            && arrived.contiguous_end(self.partial.position()) == self.partial.position()
    }

    fn fetches(&self, arrived: &RangeSet) -> Vec<Fetch> {
        let pieces = self.pieces.fetches.iter().map(|(start, end)| Fetch {
            start: *start,
            position: arrived.contiguous_end(*start),
            end: end.load(Ordering::Acquire),
        });
        std::iter::once(self.front_fetch()).chain(pieces).collect()
    }

    /// Everything before the front's position is in the file or about to be.
    fn front_fetch(&self) -> Fetch {
        let position = self.partial.position();
        let end = match self.front {
            Front::Idle => position,
            Front::Opening { end, .. } | Front::Streaming { end, .. } => end,
        };
        Fetch { start: 0, position, end }
    }

    /// Fetches under way that would go beyond `start` end there.
    fn end_others_at(&mut self, start: u64) {
        for (begin, end) in &self.pieces.fetches {
            if *begin < start {
                end.fetch_min(start, Ordering::AcqRel);
            }
        }
        if let Some(end) = self.front.end() {
            *end = start.min(*end);
        }
    }

    fn open_front(&mut self, end: u64) {
        let bytes = ByteRange::new(self.partial.position(), end);
        // The size that a first answer says is compared here, because another one is no reason to give up.
        let size = self.partial.size().filter(|_| self.is_answered);
        self.front = Front::open(self.puller, self.route, *self.digest, bytes, size);
    }

    /// The front's download has its answer; from the front once more, if that contradicts what came before.
    async fn opened(&mut self, opened: Result<Box<Download>, upstream::Error>) -> Result<(), Error> {
        let Front::Opening { end, .. } = self.front else { return Ok(()) };
        self.front = Front::Idle;
        let opened = opened.map_err(Error::from);
        let contradicts = match &opened {
            Ok(download) => {
                let known = self.partial.size();
                known.is_some_and(|known| download.size().is_some_and(|said| said != known))
            }
            Err(error) => error.spoils_partial(),
        };
        if contradicts && !self.is_answered && !self.partial.arrived().is_empty() {
            tracing::warn!(
                digest = %self.digest, from = self.partial.position(),
                "a partial blob cannot be resumed and starts over"
            );
            self.restart().await?;
            self.open_front(u64::MAX);
            return Ok(());
        }
        let mut download = opened?;
        if !self.is_answered {
            self.puller.set_visible(self.route, self.digest);
            let size = download.size().or(self.partial.size());
            // Where there is no room for it, it is passed on.
            self.front = Front::Streaming { end, download };
            self.answered(size).await?;
            let Front::Streaming { download: answered, .. } = std::mem::replace(&mut self.front, Front::Idle)
            else {
                return Ok(());
            };
            download = answered;
        }
        if download.ignores_range() && !self.is_in_order {
            self.go_on_in_order().await;
            if end != u64::MAX {
                // It sends all there is: better asked for as such than thrown away behind this part.
                return Ok(());
            }
        }
        self.front = Front::Streaming { end, download };
        Ok(())
    }

    /// Cuts what has come where the front ends. Returns whether it ends there.
    fn received(&mut self) -> Result<bool, Error> {
        let position = self.partial.position();
        let largest = self.partial.size().unwrap_or(self.puller.fill_config().max_blob_size.as_u64());
        let Some(end) = self.front.end() else { return Ok(false) };
        let left = end.saturating_sub(position);
        self.frame.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        if position + self.frame.len() as u64 > largest {
            return Err(Error::TooLarge(largest));
        }
        let ends = self.frame.len() as u64 == left;
        if ends {
            self.front = Front::Idle;
        }
        Ok(ends)
    }

    /// The front's download has brought everything.
    fn ended(&mut self) {
        if let Front::Streaming { download, .. } = &self.front
            && let Some(size) = download.size()
        {
            self.partial.note_size(size);
            self.flight.publish(|progress| progress.size = Some(size));
        }
        self.front = Front::Idle;
    }

    /// Starts to fetch a range ahead of the front, if there is a turn for it.
    fn start_piece(&mut self, range: ByteRange) -> bool {
        let Some(size) = self.partial.size() else { return false };
        if self.pieces.fetches.len() >= MAX_PIECES || self.pieces.rest.is_some() {
            return false;
        }
        // The flight has a turn; it serves the front, or the one piece where the front rests.
        let is_spare = self.front.is_idle() && self.pieces.is_empty();
        let turn = self.puller.try_fill_turn(&self.route.upstream.name);
        if turn.is_none() && !is_spare {
            return false;
        }
        self.end_others_at(range.start);
        let start = range.start;
        let end = Arc::new(AtomicU64::new(range.end.min(start + PIECE)));
        let job = PieceJob {
            puller: self.puller.clone(),
            flight: Arc::clone(self.flight),
            route: self.route.clone(),
            digest: *self.digest,
            piece: self.partial.piece(start),
            end: Arc::clone(&end),
            size,
            stop: self.pieces.stop.clone(),
            _turn: turn,
        };
        let task = self.puller.0.tasks.spawn("piece", async move { (start, job.run().await) });
        self.pieces.fetches.push((start, end));
        self.pieces.ends.push(task);
        true
    }

    fn is_fetching(&self) -> bool {
        self.is_answered && (!self.front.is_idle() || !self.pieces.is_empty())
    }

    fn is_complete(&self) -> bool {
        self.is_answered
            && self.front.is_idle()
            && self.pieces.is_empty()
            && self.partial.size() == Some(self.partial.position())
            && self.partial.is_idle()
    }

    fn is_worth_finishing(&self) -> bool {
        let config = self.puller.fill_config();
        // Without a known size no share can be told; what nobody waits for is then not finished. Nor is what
        // was only ever wanted in parts.
        let arrived = self.partial.arrived().len();
        let enough = self.partial.size().is_some_and(|size| arrived >= config.finish_after.of(size));
        config.on_abandon == OnAbandon::Finish && enough && self.is_wanted_to_the_end
    }
}
