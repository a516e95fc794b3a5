//! One flight per digest and upstream, however many clients and repositories wait.
//!
//! Invariant: a digest is in [`Flights`] from the start of its fill task to the end of it, so that no
//! two tasks ever work on the same files. What one upstream has sent is not verified before its
//! end, so the clients of another one do not follow it; they share the sealed blob.
//! Followers read the growing file instead of a channel, so a slow client never holds bytes in
//! memory and any offset can join. (What no disk takes passes through a bounded [`Window`] instead.) Each says which bytes it wants, and the fill fetches those and no
//! others. The tail is withheld until the digest is right: whoever has the last byte has a verified
//! blob.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::Error;
use super::reader::{Chunk, MIN_SLICE};
use super::window::{Look, Window};
use crate::oci::{ByteRange, Digest};
use crate::routing::UpstreamName;
use crate::store::{Arrived, Blob, PartialFile, RangeSet};

/// How much of the end is withheld until the digest is right. One byte would do; with this much,
/// a small blob is verified before a client sees any of it.
pub(super) const TAIL: u64 = 64 << 10;

/// The whole blob, however large it is.
pub(super) const WHOLE: ByteRange = ByteRange::new(0, u64::MAX);

/// How far a flight has come.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// The upstream has not answered yet.
    Starting,
    /// Bytes arrive in the file.
    Filling(PartialFile),
    /// Complete and verified.
    Sealed(Arc<Blob>),
    /// No disk takes it: what is not in the file, if there is one, passes through the window.
    Passing(Option<PartialFile>),
    /// As before, but complete and verified, with this size.
    Passed(Option<PartialFile>, u64),
    /// Nobody follows any more: what has arrived is being kept for a later flight.
    Parking,
    /// Ended without a blob.
    Failed(Error),
}

/// What followers watch.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    pub(super) phase: Phase,
    pub(super) size: Option<u64>,
    pub(super) arrived: RangeSet,
    /// Where the window ends, once there is one.
    pub(super) reached: u64,
}

/// What a follower may do at its position.
#[derive(Debug)]
enum Step {
    ReadPartial(PartialFile, u64),
    ReadSealed(Arc<Blob>, u64),
    /// The window is to be looked into, up to this position.
    Pass(u64),
    Give(Bytes),
    End,
    Wait,
    Fail(Error),
}

impl Progress {
    /// What a reader that stands at `position` and stops at `end` (`None`: at the end of the blob)
    /// may do now. What passes by waits for passengers only.
    fn step(&self, position: u64, end: Option<u64>, is_aboard: bool) -> Step {
        match &self.phase {
            Phase::Starting | Phase::Parking => Step::Wait,
            Phase::Failed(error) => Step::Fail(error.clone()),
            Phase::Sealed(blob) => match end.unwrap_or(blob.size()).min(blob.size()) {
                end if position < end => Step::ReadSealed(Arc::clone(blob), end - position),
                _ => Step::End,
            },
            Phase::Filling(file) => {
                // An inner range ends where it ends; the end of the blob, also of an empty one, comes
                // only with the seal.
                if end.is_some_and(|end| position >= end && self.size.is_none_or(|size| end < size)) {
                    return Step::End;
                }
                let arrived = self.arrived.contiguous_end(position);
                let served = match (end, self.size) {
                    (Some(end), Some(size)) if end < size => end.min(arrived),
                    // Without a known size the end could be anywhere: it is wherever we are now.
                    (_, size) => arrived.min(size.unwrap_or(arrived).saturating_sub(TAIL)),
                };
                if position < served {
                    Step::ReadPartial(file.clone(), served - position)
                } else {
                    Step::Wait
                }
            }
            Phase::Passing(file) => {
                let is_inner = end.is_some_and(|end| self.size.is_some_and(|size| end < size));
                if !is_inner && !is_aboard {
                    return Step::Fail(Error::PassedBy);
                }
                let limit = match end {
                    Some(end) if is_inner => end,
                    _ => self.size.unwrap_or(self.reached).saturating_sub(TAIL),
                };
                if is_inner && position >= limit {
                    Step::End
                } else {
                    self.pass(file.as_ref(), position, limit)
                }
            }
            Phase::Passed(file, size) => match end.unwrap_or(*size).min(*size) {
                end if position >= end => Step::End,
                end if end == *size && !is_aboard => Step::Fail(Error::PassedBy),
                end => self.pass(file.as_ref(), position, end),
            },
        }
    }

    /// What a reader may do that may read up to `limit`.
    fn pass(&self, file: Option<&PartialFile>, position: u64, limit: u64) -> Step {
        let arrived = self.arrived.contiguous_end(position);
        match file {
            Some(file) if position < arrived && position < limit => {
                Step::ReadPartial(file.clone(), arrived.min(limit) - position)
            }
            _ if position >= limit => Step::Wait,
            _ => Step::Pass(limit),
        }
    }
}

/// What followers want, and how many want it.
#[derive(Debug, Default)]
struct Wants {
    counts: BTreeMap<ByteRange, usize>,
    /// The keys, which the fill looks at for every block.
    ranges: Arc<[ByteRange]>,
}

impl Wants {
    /// Whether something is wanted that was not before.
    fn add(&mut self, ranges: &[ByteRange]) -> bool {
        let before = self.counts.len();
        for range in ranges {
            *self.counts.entry(*range).or_default() += 1;
        }
        self.have_changed(before)
    }

    /// Whether something is wanted no more.
    fn remove(&mut self, ranges: &[ByteRange]) -> bool {
        let before = self.counts.len();
        for range in ranges {
            if let Some(count) = self.counts.get_mut(range) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(range);
                }
            }
        }
        self.have_changed(before)
    }

    fn have_changed(&mut self, before: usize) -> bool {
        let changed = self.counts.len() != before;
        if changed {
            self.ranges = self.counts.keys().copied().collect();
        }
        changed
    }
}

/// What a flight fetches, and from where.
type Key = (UpstreamName, Digest);

/// One fetch of one blob.
#[derive(Debug)]
pub(super) struct Flight {
    key: Key,
    /// On whose behalf the upstream is asked: its answer is the proof of this scope and no other.
    pub(super) scope: String,
    // A watch: followers need the latest state, not every change, and a slow one costs nothing.
    progress: watch::Sender<Progress>,
    followers: AtomicUsize,
    left: Notify,
    // A mutex: two operations per follower.
    wants: Mutex<Wants>,
    /// Something has happened that the fill should look at: another want, or bytes that a piece has brought.
    stirred: Notify,
    /// Used once no disk takes the blob.
    pub(super) window: Window,
}

impl Flight {
    pub(super) fn publish(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    /// Tells the followers what has arrived by now.
    pub(super) fn publish_arrived(&self, arrived: &Arrived) {
        // Copied under the lock of the progress, or an older state could overtake a newer one.
        self.publish(|progress| arrived.copy_to(&mut progress.arrived));
    }

    /// What followers want, in the order of the offsets.
    pub(super) fn wants(&self) -> Arc<[ByteRange]> {
        Arc::clone(&self.lock_wants().ranges)
    }

    /// Wants these ranges, until as many are wanted no more.
    pub(super) fn want(&self, ranges: &[ByteRange]) {
        if self.lock_wants().add(ranges) {
            self.stir();
        }
    }

    fn want_no_more(&self, ranges: &[ByteRange]) {
        if self.lock_wants().remove(ranges) {
            self.stir();
        }
    }

    fn lock_wants(&self) -> MutexGuard<'_, Wants> {
        self.wants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the fill look at what has changed.
    pub(super) fn stir(&self) {
        self.stirred.notify_one();
    }

    /// Resolves when the fill was stirred since it last looked. Cancel safe.
    pub(super) async fn stirred(&self) {
        self.stirred.notified().await;
    }

    /// Resolves when nobody follows any more, and still nobody does after `grace`.
    pub(super) async fn deserted(&self, grace: Duration) {
        loop {
            self.abandoned().await;
            tokio::time::sleep(grace).await;
            if self.followers.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }

    async fn abandoned(&self) {
        loop {
            let left = self.left.notified();
            if self.followers.load(Ordering::Acquire) == 0 {
                return;
            }
            left.await;
        }
    }
}

/// The flights under way.
#[derive(Debug, Default)]
pub(super) struct Flights {
    // A mutex over a map: two operations per fill and one per joiner, never across an await.
    map: Mutex<HashMap<Key, Arc<Flight>>>,
}

impl Flights {
    /// A follower of the flight of `digest` from `upstream`, and the flight itself when it was
    /// started by this call; the caller then runs its fill.
    pub(super) fn join_or_start(
        &self,
        upstream: &UpstreamName,
        digest: Digest,
        scope: &str,
        wanted: Vec<ByteRange>,
    ) -> (Follower, Option<Arc<Flight>>) {
        let key = (upstream.clone(), digest);
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = map.get(&key) {
            return (Follower::of(flight, wanted), None);
        }
        let flight = Arc::new(Flight {
            key: key.clone(),
            scope: scope.to_owned(),
            progress: watch::Sender::new(Progress {
                phase: Phase::Starting,
                size: None,
                arrived: RangeSet::new(),
                reached: 0,
            }),
            followers: AtomicUsize::new(0),
            left: Notify::new(),
            wants: Mutex::default(),
            stirred: Notify::new(),
            window: Window::default(),
        });
        map.insert(key, Arc::clone(&flight));
        (Follower::of(&flight, wanted), Some(flight))
    }

    /// The scope on whose behalf a flight of `digest` from `upstream` runs, if there is one, and the size of
    /// the blob where the upstream has said it.
    pub(super) fn look(&self, upstream: &UpstreamName, digest: &Digest) -> Option<(String, Option<u64>)> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let flight = map.get(&(upstream.clone(), *digest))?;
        Some((flight.scope.clone(), flight.progress.borrow().size))
    }

    /// Ends the flight and tells its followers. Without a phase they have been told; only who has joined while it was
    /// parking does not know yet that he has to start anew.
    pub(super) fn land(&self, flight: &Flight, phase: Option<Phase>) {
        self.end(flight);
        flight.publish(|progress| match phase {
            Some(phase) => progress.phase = phase,
            None if matches!(progress.phase, Phase::Parking) => {
                progress.phase = Phase::Failed(Error::Abandoned);
            }
            None => {}
        });
    }

    /// Takes the flight out, so that the next request starts anew or finds the sealed blob.
    pub(super) fn end(&self, flight: &Flight) {
        remove(&mut self.map.lock().unwrap_or_else(PoisonError::into_inner), flight);
    }

    /// Takes the flight out if nobody wants the end of the blob. Joining happens under the same lock.
    pub(super) fn end_if_unwanted(&self, flight: &Flight) -> bool {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let is_unwanted = flight.wants().iter().all(|want| want.end != WHOLE.end);
        if is_unwanted {
            remove(&mut map, flight);
        }
        is_unwanted
    }

    /// Lets the flight park if nobody follows it. Joining happens under the same lock: who joins
    /// after this waits for the end of the flight, and then starts the next one.
    pub(super) fn park_if_abandoned(&self, flight: &Flight) -> bool {
        let _map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        if flight.followers.load(Ordering::Acquire) > 0 {
            return false;
        }
        flight.publish(|progress| progress.phase = Phase::Parking);
        true
    }
}

/// Removes this flight, but not one that has begun since it was removed before.
fn remove(map: &mut HashMap<Key, Arc<Flight>>, flight: &Flight) {
    if map.get(&flight.key).is_some_and(|there| std::ptr::eq(Arc::as_ptr(there), flight)) {
        map.remove(&flight.key);
    }
}

/// A reader's seat in a flight. Leaving is dropping.
#[derive(Debug)]
pub(super) struct Follower {
    flight: Arc<Flight>,
    progress: watch::Receiver<Progress>,
    wanted: Vec<ByteRange>,
    /// In the window, should there be one.
    seat: u64,
}

/// Whether somebody who wants these ranges wants the end of the blob.
fn is_to_the_end(wanted: &[ByteRange]) -> bool {
    wanted.iter().any(|want| want.end == WHOLE.end)
}

impl Follower {
    fn of(flight: &Arc<Flight>, wanted: Vec<ByteRange>) -> Self {
        flight.followers.fetch_add(1, Ordering::AcqRel);
        flight.want(&wanted);
        let first = wanted.first().map_or(0, |want| want.start);
        let seat = flight.window.board(first, is_to_the_end(&wanted));
        Self { progress: flight.progress.subscribe(), flight: Arc::clone(flight), wanted, seat }
    }

    /// Wants other bytes than before.
    pub(super) fn want(&mut self, wanted: Vec<ByteRange>) {
        self.flight.want(&wanted);
        self.flight.want_no_more(&self.wanted);
        self.flight.window.set_aboard(self.seat, is_to_the_end(&wanted));
        self.wanted = wanted;
    }

    /// On whose behalf the flight asks its upstream.
    pub(super) fn scope(&self) -> &str {
        &self.flight.scope
    }

    /// Waits until the upstream has answered, and returns the size where it said one.
    ///
    /// # Errors
    /// Why the flight failed.
    pub(super) async fn answered(&mut self) -> Result<Option<u64>, Error> {
        let waits = |progress: &Progress| matches!(progress.phase, Phase::Starting | Phase::Parking);
        let progress = self.progress.wait_for(|progress| !waits(progress)).await;
        let progress = progress.map_err(|_| Error::Internal)?;
        match &progress.phase {
            Phase::Failed(error) => Err(error.clone()),
            _ => Ok(progress.size),
        }
    }

    /// Whether what arrives is kept, as far as is known by now.
    pub(super) fn is_kept(&self) -> bool {
        !matches!(self.progress.borrow().phase, Phase::Passing(_) | Phase::Passed(..))
    }

    /// Waits until the blob is complete and verified.
    ///
    /// # Errors
    /// Why the flight failed; [`Error::PassedBy`] when the blob is not kept. What is to come then passes by without
    /// this follower.
    pub(super) async fn sealed(&mut self) -> Result<Arc<Blob>, Error> {
        let decided = |progress: &Progress| {
            !matches!(progress.phase, Phase::Starting | Phase::Filling(_) | Phase::Parking)
        };
        let progress = self.progress.wait_for(decided).await.map_err(|_| Error::Internal)?;
        match &progress.phase {
            Phase::Sealed(blob) => Ok(Arc::clone(blob)),
            Phase::Failed(error) => Err(error.clone()),
            Phase::Passing(_) | Phase::Passed(..) => {
                self.flight.window.set_aboard(self.seat, false);
                Err(Error::PassedBy)
            }
            Phase::Starting | Phase::Filling(_) | Phase::Parking => Err(Error::Internal),
        }
    }

    /// Waits until the size of the blob is known for certain.
    ///
    /// # Errors
    /// Why the flight failed.
    pub(super) async fn size(&mut self) -> Result<u64, Error> {
        let known = |progress: &Progress| {
            matches!(progress.phase, Phase::Sealed(_) | Phase::Passed(..) | Phase::Failed(_))
        };
        let progress = self.progress.wait_for(known).await.map_err(|_| Error::Internal)?;
        match &progress.phase {
            Phase::Failed(error) => Err(error.clone()),
            Phase::Sealed(blob) => Ok(blob.size()),
            Phase::Passed(_, size) => Ok(*size),
            Phase::Starting | Phase::Filling(_) | Phase::Passing(_) | Phase::Parking => Err(Error::Internal),
        }
    }

    /// Waits until the byte at `position` may be read, or there is none. Cancel safe.
    ///
    /// # Errors
    /// Why the flight failed, or [`Error::PassedBy`].
    pub(super) async fn readable(&mut self, position: u64, end: Option<u64>) -> Result<(), Error> {
        loop {
            match self.step(position, end) {
                Step::Wait => self.progress.changed().await.map_err(|_| Error::Internal)?,
                Step::Fail(error) => return Err(error),
                _ => return Ok(()),
            }
        }
    }

    fn step(&mut self, position: u64, end: Option<u64>) -> Step {
        let window = &self.flight.window;
        let is_aboard = window.note(self.seat, position);
        let step = self.progress.borrow_and_update().step(position, end, is_aboard);
        match step {
            Step::Pass(limit) => match window.look(self.seat, position, limit) {
                Look::Bytes(bytes) => Step::Give(bytes),
                Look::NotYet => Step::Wait,
                Look::Gone => Step::Fail(Error::PassedBy),
            },
            Step::Wait => {
                window.note_waiting(self.seat);
                Step::Wait
            }
            other => other,
        }
    }

    /// The next bytes from `position`, or `None` at `end`. Cancel safe.
    ///
    /// # Errors
    /// Why the flight failed, that the file cannot be read, or that nothing has happened for as long as `wait`.
    pub(super) async fn next(
        &mut self,
        position: u64,
        end: Option<u64>,
        wait: Duration,
        files: bool,
    ) -> Result<Option<Chunk>, Error> {
        loop {
            match self.step(position, end) {
                Step::ReadPartial(file, len) if files && len >= MIN_SLICE => {
                    return Ok(Some(Chunk::File(file.slice(position, len))));
                }
                Step::ReadSealed(blob, len) if files && len >= MIN_SLICE => {
                    return Ok(Some(Chunk::File(blob.slice(position, len))));
                }
                Step::ReadPartial(file, len) => {
                    return Ok(Some(Chunk::Memory(file.read(position, len).await?)));
                }
                Step::ReadSealed(blob, len) => {
                    return Ok(Some(Chunk::Memory(blob.read(position, len).await?)));
                }
                Step::Give(bytes) => return Ok(Some(Chunk::Memory(bytes))),
                Step::End => return Ok(None),
                // What passes is looked for by the step itself.
                Step::Pass(_) => return Err(Error::Internal),
                Step::Fail(error) => return Err(error),
                Step::Wait => {
                    let changed = tokio::time::timeout(wait, self.progress.changed()).await;
                    changed.map_err(|_| Error::Deadline(wait))?.map_err(|_| Error::Internal)?;
                }
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.flight.want_no_more(&self.wanted);
        self.flight.window.leave(self.seat);
        if self.flight.followers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.flight.left.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::runtime::{Clock, SystemClock};
    use crate::store::{Amount, DiskConfig, Metrics, Store, StoreConfig};

    fn digest() -> Digest {
        Digest::of(Algorithm::Sha256, b"x")
    }

    fn upstream() -> UpstreamName {
        "origin.test".parse().unwrap()
    }

    async fn filling(directory: &std::path::Path) -> PartialFile {
        let config = StoreConfig {
            disks: vec![DiskConfig::new(directory.to_owned(), Amount::Bytes(crate::runtime::Bytes::gib(1)))],
            memory: crate::runtime::Bytes::mib(1),
            memory_max_object: crate::runtime::Bytes::kib(1),
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let metrics = Metrics::register(&crate::telemetry::Metrics::new());
        let store = Store::open(&config, clock, metrics).unwrap();
        store.partial(digest(), "origin.test").await.unwrap().file()
    }

    #[tokio::test]
    async fn the_tail_is_withheld_until_the_blob_is_sealed() {
        let directory = tempfile::tempdir().unwrap();
        let phase = Phase::Filling(filling(directory.path()).await);
        let size = 10 * TAIL;
        let step = |size, arrived, position, end| {
            let progress =
                Progress { phase: phase.clone(), size, arrived: RangeSet::prefix(arrived), reached: 0 };
            match progress.step(position, end, true) {
                Step::ReadPartial(_, len) => Some(len),
                Step::Wait => None,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            step(Some(size), size, 0, None),
            Some(size - TAIL),
            "all has arrived, the tail is withheld"
        );
        assert_eq!(step(Some(size), size, size - TAIL, None), None);
        assert_eq!(step(Some(size), size, size - 1, Some(size)), None, "a range of the last byte waits");
        assert_eq!(step(Some(size), size, 0, Some(TAIL)), Some(TAIL), "an inner range does not");
        assert_eq!(step(Some(size), size, size - 9, Some(size - 1)), Some(8), "however near the end");
        assert_eq!(step(None, size, 0, None), Some(size - TAIL), "an unknown end is wherever we are");
        assert_eq!(step(Some(TAIL), TAIL - 1, 0, None), None, "a small blob is verified first");
        assert_eq!(step(Some(size), TAIL, 5 * TAIL, Some(6 * TAIL)), None, "a range far ahead waits");
    }

    #[tokio::test]
    async fn a_flight_without_followers_ends_only_if_nobody_joined_meanwhile() {
        let flights = Flights::default();
        let (first, flight) = flights.join_or_start(&upstream(), digest(), "a", vec![WHOLE]);
        let flight = flight.unwrap();
        drop(first);
        flight.deserted(Duration::ZERO).await;
        let (second, started) = flights.join_or_start(&upstream(), digest(), "b", vec![WHOLE]);
        assert!(started.is_none(), "the flight belongs to no client");
        assert!(!flights.park_if_abandoned(&flight));
        drop(second);
        assert!(flights.park_if_abandoned(&flight));
        let (mut late, started) = flights.join_or_start(&upstream(), digest(), "c", vec![WHOLE]);
        assert!(started.is_none(), "no two tasks work on the same files");
        flights.end(&flight);
        flight.publish(|progress| progress.phase = Phase::Failed(Error::Abandoned));
        assert!(matches!(late.answered().await, Err(Error::Abandoned)));
        assert!(
            flights.join_or_start(&upstream(), digest(), "c", vec![WHOLE]).1.is_some(),
            "the next request starts anew"
        );
    }

    #[tokio::test]
    async fn who_joins_what_has_passed_at_its_very_end_starts_anew() {
        let flights = Flights::default();
        let (first, flight) = flights.join_or_start(&upstream(), digest(), "a", vec![WHOLE]);
        let flight = flight.unwrap();
        flight.publish(|progress| progress.phase = Phase::Passed(None, 1));
        drop(first);
        assert!(flights.park_if_abandoned(&flight));
        let (mut late, started) = flights.join_or_start(&upstream(), digest(), "a", vec![WHOLE]);
        assert!(started.is_none());
        flights.land(&flight, None);
        let answered = tokio::time::timeout(Duration::from_secs(10), late.answered()).await;
        assert!(matches!(answered, Ok(Err(Error::Abandoned))), "{answered:?}");
    }

    #[tokio::test]
    async fn followers_learn_of_a_failure() {
        let flights = Flights::default();
        let (mut follower, flight) = flights.join_or_start(&upstream(), digest(), "a", vec![WHOLE]);
        flight.unwrap().publish(|progress| progress.phase = Phase::Failed(Error::Abandoned));
        assert!(matches!(follower.next(0, None, Duration::from_secs(1), false).await, Err(Error::Abandoned)));
        assert!(matches!(follower.answered().await, Err(Error::Abandoned)));
    }
}
