//! Bytes on their way past: what a fill holds in memory when no disk takes them.
//!
//! The window is the last stretch of a blob, at most [`CAPACITY`] bytes of it. Who reads the blob to its end is a
//! passenger: what the slowest of them has not read stays, and the fill waits for room, so that the upstream sends
//! no faster than they read. What all have read stays too while there is room: who comes then still shares the
//! fetch. A passenger who stands still while others wait is put off ([`PATIENCE`]).
//!
//! Positions are those of the blob. Passengers are registered from the moment they follow a flight, because one may
//! be busy with what it was given when the disk fails.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// What a window holds. A fill whose disk fails brings two blocks of 1 MiB, the one whose write has failed and the one
/// that gathers; and it is 20 ms at 800 Mbit/s, so that neither side waits for each other's wake-ups. One window for
/// each fill at once makes 128 MiB per upstream at most.
pub(super) const CAPACITY: usize = 2 << 20;
/// The most that is added or given at a time.
pub(super) const FRAME: usize = 256 << 10;
/// Frames that are smaller together than this become one, so that the frames of a window are few.
const SMALL: usize = 4 << 10;
/// How long a passenger may stand still while others wait for him. His connection may do so for longer, and a client
/// that was broken off comes back for the rest.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A stretch of a blob in memory, and those who read it.
#[derive(Debug, Default)]
pub(super) struct Window {
    // A mutex: taken once for each frame and each read of one, never across an await.
    ring: Mutex<Ring>,
    /// Something has happened that may have made room.
    stirred: Notify,
}

#[derive(Debug, Default)]
struct Ring {
    stage: Stage,
    /// Of the first byte that is held.
    start: u64,
    /// Each with its offset.
    frames: VecDeque<(u64, Bytes)>,
    held: usize,
    passengers: HashMap<u64, Passenger>,
    last: u64,
}

#[derive(Debug, Default, Clone, Copy)]
enum Stage {
    /// The disk takes everything.
    #[default]
    Unused,
    /// It began at `first`; what lies between `reach` and there can be read elsewhere.
    Open { first: u64, reach: u64 },
    /// Nothing is to be had any more.
    Closed,
}

#[derive(Debug)]
struct Passenger {
    position: u64,
    /// Reads to the end of the blob, so that nothing may pass by.
    is_aboard: bool,
    /// Has read all there is.
    waits: bool,
    moved_at: Instant,
}

/// What there is at a position.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// These bytes.
    Bytes(Bytes),
    /// Nothing yet.
    NotYet,
    /// It has passed by, or will without waiting.
    Gone,
}

impl Ring {
    fn end(&self) -> u64 {
        self.start + self.held as u64
    }

    /// Whether nothing behind `position` has passed by.
    fn is_within_reach(&self, position: u64) -> bool {
        match self.stage {
            Stage::Unused => true,
            Stage::Open { first, reach } => {
                position >= self.start || (self.start == first && position >= reach)
            }
            Stage::Closed => false,
        }
    }

    fn append(&mut self, frame: Bytes) {
        let end = self.end();
        // Who still waits says so when it has been woken.
        self.passengers.values_mut().for_each(|passenger| passenger.waits = false);
        self.held += frame.len();
        match self.frames.back_mut() {
            Some((_, last)) if last.len() + frame.len() <= SMALL => {
                *last = [last.as_ref(), &frame].concat().into();
            }
            _ => self.frames.push_back((end, frame)),
        }
    }

    /// Lets go of what all passengers have read, as far as room is needed for `len` bytes. Whether there is room.
    fn make_room(&mut self, len: usize) -> bool {
        let aboard = self.passengers.values().filter(|passenger| passenger.is_aboard);
        let slowest = aboard.map(|passenger| passenger.position).min().unwrap_or(u64::MAX);
        while self.held + len > CAPACITY {
            match self.frames.front() {
                Some((start, frame)) if start + frame.len() as u64 <= slowest => {
                    self.start += frame.len() as u64;
                    self.held -= frame.len();
                    self.frames.pop_front();
                }
                Some(_) => return false,
                None => return true,
            }
        }
        true
    }

    /// Puts off those who have stood still for too long and hold up others. When the next one will have.
    fn put_off(&mut self, full_since: Instant) -> Option<Instant> {
        let front = self.frames.front().map_or(self.start, |(start, frame)| start + frame.len() as u64);
        if !self.passengers.values().any(|passenger| passenger.is_aboard && passenger.waits) {
            return None;
        }
        let now = Instant::now();
        let mut next = None;
        for passenger in self.passengers.values_mut() {
            if !passenger.is_aboard || passenger.waits || passenger.position >= front {
                continue;
            }
            let due = passenger.moved_at.max(full_since) + PATIENCE;
            if due <= now {
                passenger.is_aboard = false;
            } else {
                next = Some(next.map_or(due, |next: Instant| next.min(due)));
            }
        }
        next
    }
}

impl Window {
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a reader at `position`; `to_the_end` if it reads to the end of the blob, and is a passenger then
    /// unless something has passed by already.
    pub(super) fn board(&self, position: u64, to_the_end: bool) -> u64 {
        let mut ring = self.lock();
        let is_aboard = to_the_end && ring.is_within_reach(position);
        ring.last += 1;
        let seat = ring.last;
        let passenger = Passenger { position, is_aboard, waits: false, moved_at: Instant::now() };
        ring.passengers.insert(seat, passenger);
        seat
    }

    /// A reader reads to the end of the blob from now on, or does not any more.
    pub(super) fn set_aboard(&self, seat: u64, to_the_end: bool) {
        let mut ring = self.lock();
        let position = ring.passengers.get(&seat).map_or(0, |passenger| passenger.position);
        let is_aboard = to_the_end && ring.is_within_reach(position);
        if let Some(passenger) = ring.passengers.get_mut(&seat) {
            passenger.is_aboard = is_aboard;
        }
        self.stirred.notify_one();
    }

    /// A reader has read everything before `position`. Whether it is a passenger.
    pub(super) fn note(&self, seat: u64, position: u64) -> bool {
        let mut ring = self.lock();
        let Some(passenger) = ring.passengers.get_mut(&seat) else { return false };
        if passenger.position != position {
            (passenger.position, passenger.moved_at, passenger.waits) = (position, Instant::now(), false);
            self.stirred.notify_one();
        }
        passenger.is_aboard
    }

    /// A reader has nothing to read where it stands.
    pub(super) fn note_waiting(&self, seat: u64) {
        if let Some(passenger) = self.lock().passengers.get_mut(&seat)
            && !passenger.waits
        {
            passenger.waits = true;
            self.stirred.notify_one();
        }
    }

    /// A reader has gone.
    pub(super) fn leave(&self, seat: u64) {
        self.lock().passengers.remove(&seat);
        self.stirred.notify_one();
    }

    /// Begins to hold bytes: `frames` come first, from `first` on. Passengers before `reach` are put off.
    pub(super) fn open(&self, first: u64, reach: u64, frames: Vec<Bytes>) {
        let mut ring = self.lock();
        ring.stage = Stage::Open { first, reach };
        ring.frames.clear();
        (ring.start, ring.held) = (first, 0);
        for frame in frames {
            ring.append(frame);
        }
        let ring = &mut *ring;
        for passenger in ring.passengers.values_mut() {
            passenger.is_aboard &= passenger.position >= reach;
            passenger.waits = false;
        }
    }

    /// Lets go of everything.
    pub(super) fn close(&self) {
        let mut ring = self.lock();
        ring.stage = Stage::Closed;
        ring.frames.clear();
        (ring.start, ring.held) = (ring.end(), 0);
    }

    /// Waits until `len` bytes, at most [`FRAME`], can be added. Cancel safe, but the patience begins anew.
    pub(super) async fn room(&self, len: usize) {
        let full_since = Instant::now();
        loop {
            let next = {
                let mut ring = self.lock();
                if ring.make_room(len) {
                    return;
                }
                let next = ring.put_off(full_since);
                if ring.make_room(len) {
                    return;
                }
                next
            };
            match next {
                // Whether somebody has moved or the time is over, it is looked at again.
                Some(next) => drop(timeout_at(next, self.stirred.notified()).await),
                None => self.stirred.notified().await,
            }
        }
    }

    /// Adds bytes at the end, for which there is room. They are copied: a frame of the network's may be a small part
    /// of a large buffer, which it would keep.
    pub(super) fn add(&self, frame: &[u8]) {
        self.lock().append(Bytes::copy_from_slice(frame));
    }

    /// What a reader may have that stands at `position` and may read up to `limit`; at most [`FRAME`] bytes.
    pub(super) fn look(&self, seat: u64, position: u64, limit: u64) -> Look {
        let is_aboard = self.note(seat, position);
        let ring = self.lock();
        if position < ring.start || !matches!(ring.stage, Stage::Open { .. }) {
            return Look::Gone;
        }
        let index = ring.frames.partition_point(|(start, _)| *start <= position);
        let frame = index.checked_sub(1).and_then(|index| ring.frames.get(index));
        let found = frame.and_then(|(start, frame)| {
            let from = usize::try_from(position - start).ok()?;
            let limit = usize::try_from(limit.saturating_sub(*start)).unwrap_or(usize::MAX);
            let to = frame.len().min(limit).min(from + FRAME);
            (from < to).then(|| frame.slice(from..to))
        });
        match found {
            Some(bytes) => Look::Bytes(bytes),
            None if is_aboard => {
                drop(ring);
                self.note_waiting(seat);
                Look::NotYet
            }
            // Who is no passenger might miss it, too.
            None => Look::Gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn byte(offset: u64) -> u8 {
        u8::try_from(offset % 251).unwrap()
    }

    fn bytes(start: u64, len: usize) -> Bytes {
        (start..start + len as u64).map(byte).collect::<Vec<_>>().into()
    }

    fn held(window: &Window) -> usize {
        let ring = window.lock();
        assert_eq!(ring.held, ring.frames.iter().map(|(_, frame)| frame.len()).sum::<usize>());
        ring.held
    }

    /// Adds as long as there is room at once; returns the new end.
    async fn add_all(window: &Window, mut end: u64, until: u64) -> u64 {
        while end < until {
            let len = FRAME.min(usize::try_from(until - end).unwrap());
            let room = tokio::time::timeout(Duration::ZERO, window.room(len)).await;
            if room.is_err() {
                return end;
            }
            window.add(&bytes(end, len));
            end += len as u64;
        }
        end
    }

    const CAP: u64 = CAPACITY as u64;

    #[tokio::test(start_paused = true)]
    async fn who_comes_inside_the_window_shares_it_and_who_comes_later_does_not() {
        let window = Window::default();
        let first = window.board(0, true);
        window.open(0, 0, Vec::new());
        assert_eq!(add_all(&window, 0, 2 * CAP).await, CAP, "it is full");
        let second = window.board(0, true);
        assert!(window.note(second, 0));
        window.note(first, CAP);
        assert_eq!(add_all(&window, CAP, 2 * CAP).await, CAP, "the second holds it");
        window.note(second, CAP);
        assert_eq!(add_all(&window, CAP, CAP + 1).await, CAP + 1);
        let late = window.board(0, true);
        assert!(!window.note(late, 0), "what it needs has passed by");
        assert_eq!(window.look(late, 0, u64::MAX), Look::Gone);
        assert_eq!(add_all(&window, CAP + 1, 2 * CAP).await, 2 * CAP, "and it holds nobody up");
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_the_file_before_the_window_holds_it_until_he_has_come_there() {
        let window = Window::default();
        let seat = window.board(0, true);
        window.open(5 * CAP, 0, vec![bytes(5 * CAP, 100)]);
        let end = add_all(&window, 5 * CAP + 100, 9 * CAP).await;
        assert!(end <= 6 * CAP);
        let joined = window.board(3, true);
        assert!(window.note(joined, 3), "the file has what comes before the window");
        window.leave(joined);
        window.note(seat, end);
        assert!(add_all(&window, end, end + CAP).await > end);
        let late = window.board(3, true);
        assert!(!window.note(late, 3), "there is a gap now");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_file_everybody_before_the_window_is_put_off() {
        let window = Window::default();
        let (behind, inside) = (window.board(7, true), window.board(100, true));
        window.open(100, 100, Vec::new());
        assert!(!window.note(behind, 7) && window.note(inside, 100));
        let inner = window.board(100, false);
        assert_eq!(add_all(&window, 100, 200).await, 200);
        assert_eq!(window.look(inner, 100, 150), Look::Bytes(bytes(100, 50)), "a limit is kept");
        window.close();
        assert_eq!(window.look(inside, 100, u64::MAX), Look::Gone);
        assert_eq!(held(&window), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_passenger_who_stands_still_is_put_off_once_others_wait_for_him() {
        let window = Window::default();
        let (laggard, reader) = (window.board(0, true), window.board(0, true));
        window.open(0, 0, Vec::new());
        assert_eq!(add_all(&window, 0, 2 * CAP).await, CAP);
        // Nobody waits: both may take as long as their connections do.
        let alone = tokio::time::timeout(10 * PATIENCE, window.room(FRAME)).await;
        assert!(alone.is_err(), "nobody is put off");
        assert_eq!(window.look(reader, CAP, u64::MAX), Look::NotYet);
        let begin = Instant::now();
        window.room(FRAME).await;
        assert_eq!(begin.elapsed(), PATIENCE);
        assert!(!window.note(laggard, 0) && window.note(reader, CAP));
        window.add(&bytes(CAP, FRAME));
        assert_eq!(window.look(laggard, 0, u64::MAX), Look::Gone);
        assert_eq!(window.look(reader, CAP, u64::MAX), Look::Bytes(bytes(CAP, FRAME)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_passenger_who_moves_is_waited_for() {
        let window = Window::default();
        let (slow, quick) = (window.board(0, true), window.board(0, true));
        window.open(0, 0, Vec::new());
        assert_eq!(add_all(&window, 0, CAP).await, CAP);
        assert_eq!(window.look(quick, CAP, u64::MAX), Look::NotYet);
        for step in 1..=FRAME as u64 / 1024 {
            let room =
                tokio::time::timeout(PATIENCE.saturating_sub(Duration::from_secs(1)), window.room(FRAME))
                    .await;
            assert!(room.is_err(), "no room before he has read the frame");
            assert!(window.note(slow, step * 1024), "put off after {step} steps");
        }
        window.room(FRAME).await;
    }

    #[test]
    fn small_frames_become_few() {
        let window = Window::default();
        window.open(0, 0, Vec::new());
        for offset in 0..3 * SMALL as u64 {
            window.add(&[byte(offset)]);
        }
        assert_eq!(window.lock().frames.len(), 3);
        let seat = window.board(0, true);
        assert_eq!(window.look(seat, 10, u64::MAX), Look::Bytes(bytes(10, SMALL - 10)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Readers that come, read a little, and leave in random order, before a fill that adds what there is room for.
        #[test]
        fn every_passenger_gets_exactly_the_bytes_and_memory_is_bounded(
            first in 0..2 * CAP,
            has_file in any::<bool>(),
            steps in prop::collection::vec((0u8..8, 0usize..6, 1usize..FRAME), 1..200),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.unwrap().block_on(async {
                let window = Window::default();
                let mut readers: Vec<(u64, u64)> = vec![(window.board(0, true), 0)];
                let initial = 700_000;
                window.open(first, if has_file { 0 } else { first }, vec![bytes(first, initial)]);
                let mut end = first + initial as u64;
                for (action, who, len) in steps {
                    match action {
                        0..4 => {
                            let room = tokio::time::timeout(Duration::from_millis(1), window.room(len)).await;
                            if room.is_ok() {
                                window.add(&bytes(end, len));
                                end += len as u64;
                            }
                        }
                        4 if readers.len() < 6 => readers.push((window.board(end / 2, true), end / 2)),
                        5 if readers.len() > 3 => window.leave(readers.swap_remove(who % readers.len()).0),
                        _ if readers.is_empty() => {}
                        _ => {
                            let count = readers.len();
                            let (seat, position) = &mut readers[who % count];
                            let is_aboard = window.note(*seat, *position);
                            if has_file && *position < first {
                                *position = first;
                                continue;
                            }
                            match window.look(*seat, *position, end - 1) {
                                Look::Bytes(got) => {
                                    assert_eq!(&got, &bytes(*position, got.len()));
                                    *position += got.len() as u64;
                                    assert!(*position < end, "beyond the limit");
                                }
                                Look::NotYet => assert!(*position >= end - 1),
                                Look::Gone => assert!(!is_aboard, "a passenger has lost bytes"),
                            }
                        }
                    }
                    assert!(held(&window) <= CAPACITY.max(initial));
                }
            });
        }
    }
}
