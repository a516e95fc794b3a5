//! Files on their way out of one connection.
//!
//! hyper writes slices of memory. A part of a file is shown to it as a slice of a *decoy*: memory that nobody reads.
//! The [writer](super::file_writer) below hyper knows the decoy by its address and sends the file in its place, with
//! `sendfile(2)`. Where in the decoy a slice begins says which part is meant, so that the two never come out of step.
//!
//! Invariant: a byte of the decoy never reaches the wire. hyper passes over bytes of a part (`Buf::advance`) when they
//! have been written; each must be one that the writer has sent. Should hyper ever copy a part instead, it passes over
//! bytes that nobody has sent, and the connection ends before anything more is written.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Buf;

use crate::store::FileSlice;

/// How much of a part is shown at a time; more than one call sends.
const SHOWN: usize = 1 << 20;
/// Parts that can be told from each other; hyper queues sixteen at most.
const PARTS: u16 = 4096;

/// Memory that is never read, shared by all connections: its pages are never touched, so it takes none.
#[derive(Debug, Clone)]
pub(super) struct Decoy(Arc<Box<[u8]>>);

impl Decoy {
    pub(super) fn new() -> Self {
        Self(Arc::new(vec![0; SHOWN + usize::from(PARTS)].into_boxed_slice()))
    }

    /// The part of a file that `slice` stands for, if it is one of the decoy.
    pub(super) fn part_of(&self, slice: &[u8]) -> Option<u16> {
        let offset = slice.as_ptr().addr().wrapping_sub(self.0.as_ptr().addr());
        if slice.is_empty() || offset >= self.0.len() {
            return None;
        }
        // What lies in the decoy and is no beginning of a part is still no memory to be written.
        Some(u16::try_from(offset).unwrap_or(u16::MAX))
    }

    fn slice(&self, part: u16, len: u64) -> &[u8] {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(SHOWN);
        &self.0[usize::from(part)..usize::from(part) + len]
    }
}

/// The parts of files that hyper has taken from bodies and not yet written.
#[derive(Debug)]
pub(super) struct Outbox {
    decoy: Decoy,
    // A mutex: the body and the writer are of one task, but both must be `Send`.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u16,
    parts: VecDeque<Part>,
    /// Bytes that were sent and that hyper has not passed over yet.
    sent: u64,
    is_broken: bool,
}

#[derive(Debug)]
struct Part {
    number: u16,
    slice: FileSlice,
    sent: u64,
}

impl Outbox {
    pub(super) fn new(decoy: Decoy) -> Self {
        Self { decoy, state: Mutex::default() }
    }

    pub(super) fn decoy(&self) -> &Decoy {
        &self.decoy
    }

    /// Shows a part of a file to hyper.
    pub(super) fn show(self: &Arc<Self>, slice: FileSlice) -> FilePart {
        let mut state = self.lock();
        let number = state.next;
        state.next = (number + 1) % PARTS;
        let left = slice.len();
        state.parts.push_back(Part { number, slice, sent: 0 });
        FilePart { outbox: Arc::clone(self), number, left }
    }

    /// The part of this number, and how much of it was sent.
    ///
    /// # Errors
    /// When there is no such part, or something was copied that should have been sent.
    pub(super) fn part(&self, number: u16) -> io::Result<(FileSlice, u64)> {
        let mut state = self.lock();
        // What stands before it was dropped by hyper, with what it belonged to.
        while state.parts.front().is_some_and(|part| part.number != number) {
            state.parts.pop_front();
        }
        match state.parts.front() {
            Some(part) if !state.is_broken => Ok((part.slice.clone(), part.sent)),
            _ => Err(broken()),
        }
    }

    /// Notes that so much of the part at the front was sent.
    pub(super) fn sent(&self, bytes: u64) {
        let mut state = self.lock();
        state.sent += bytes;
        if let Some(part) = state.parts.front_mut() {
            part.sent += bytes;
            if part.sent >= part.slice.len() {
                state.parts.pop_front();
            }
        }
    }

    /// # Errors
    /// When something was copied that should have been sent.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.lock().is_broken { Err(broken()) } else { Ok(()) }
    }

    fn passed(&self, bytes: u64) {
        let mut state = self.lock();
        match state.sent.checked_sub(bytes) {
            Some(left) => state.sent = left,
            None => state.is_broken = true,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn broken() -> io::Error {
    io::Error::other("a part of a file was copied where it should have been sent")
}

/// A part of a file, as hyper sees it.
#[derive(Debug)]
pub(super) struct FilePart {
    outbox: Arc<Outbox>,
    number: u16,
    left: u64,
}

impl Buf for FilePart {
    fn remaining(&self) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX)
    }

    fn chunk(&self) -> &[u8] {
        self.outbox.decoy.slice(self.number, self.left)
    }

    fn advance(&mut self, count: usize) {
        self.outbox.passed(count as u64);
        self.left = self.left.saturating_sub(count as u64);
    }
}
