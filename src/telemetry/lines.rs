//! Log lines on their way to standard error.
//!
//! Whoever logs only appends to a buffer; one thread writes it out. A line that comes after a quiet moment is written at
//! once, under load they gather for [`GATHER`] or until there are [`BATCH`] of them, so that a thousand lines cost one
//! `write` instead of a thousand. Warnings and errors do not wait. Neither does anybody for a slow reader: once
//! [`CAPACITY`] is waiting, lines are dropped and counted. Lines stay whole and in their order, and an orderly end and a
//! panic write out what is there; a `kill -9` loses what has gathered.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long lines gather after a write.
const GATHER: Duration = Duration::from_millis(100);
/// This many bytes are written without waiting for more.
const BATCH: usize = 64 << 10;
/// This many bytes wait for a slow reader: the access log of half a second at 40,000 requests per second.
const CAPACITY: usize = 8 << 20;
/// How long the end of the process waits for a slow reader.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// The buffer between those who log and the thread that writes. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    // A mutex: a line is copied within it, a batch is taken out by swapping two vectors. Nobody writes to a file
    // while holding it.
    state: Mutex<State>,
    /// There is something to write.
    wake: Condvar,
    /// Something has been written.
    written: Condvar,
    dropped: IntCounter,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// What the writer does, so that nobody wakes it in vain.
    writer: Writer,
    /// Write now, do not gather.
    urgent: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Writer {
    #[default]
    Writing,
    /// Has just written; only a full batch or an urgent line is a reason to write again.
    Gathering,
    /// Any line is.
    Idle,
}

impl Lines {
    /// Begins to write lines to `sink`. What the sink refuses is lost.
    pub(super) fn to(sink: impl Write + Send + 'static) -> Self {
        let dropped = IntCounter::new("log_lines_dropped_total", "Log lines that nobody read in time.")
            .expect("a constant, valid name");
        let lines = Self(Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            written: Condvar::new(),
            dropped,
        }));
        let writing = lines.clone();
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writing.write_out(sink))
            .expect("a process that begins can start a thread");
        lines
    }

    /// How many lines were dropped.
    pub(super) fn dropped(&self) -> &IntCounter {
        &self.0.dropped
    }

    /// Takes a whole line. Never waits for the reader.
    pub(super) fn push(&self, line: &[u8], urgent: bool) {
        let mut state = self.state();
        let before = state.waiting.len();
        if before + line.len() > CAPACITY {
            drop(state);
            self.0.dropped.inc();
            return;
        }
        state.waiting.extend_from_slice(line);
        state.urgent |= urgent;
        let wake = match state.writer {
            Writer::Writing => false,
            Writer::Gathering => urgent || (before < BATCH && state.waiting.len() >= BATCH),
            Writer::Idle => before == 0 || urgent,
        };
        drop(state);
        if wake {
            self.0.wake.notify_one();
        }
    }

    /// Returns when everything is written, or the reader is too slow. Blocking.
    pub(super) fn flush(&self) {
        let mut state = self.state();
        state.urgent = true;
        self.0.wake.notify_one();
        let unwritten = |state: &mut State| !state.waiting.is_empty() || state.writer == Writer::Writing;
        drop(self.0.written.wait_timeout_while(state, FLUSH_LIMIT, unwritten));
    }

    fn write_out(&self, mut sink: impl Write) {
        let mut batch = Vec::new();
        loop {
            self.take(&mut batch);
            // Nobody is left to tell.
            let _ = sink.write_all(&batch).and_then(|()| sink.flush());
            batch.clear();
            // The buffer of a burst is not kept.
            batch.shrink_to(2 * BATCH);
            let mut state = self.state();
            state.writer = Writer::Gathering;
            self.0.written.notify_all();
            let too_few = |state: &mut State| state.waiting.len() < BATCH && !state.urgent;
            let waited = self.0.wake.wait_timeout_while(state, GATHER, too_few);
            drop(waited);
        }
    }

    /// Waits for lines and puts them into `batch`, which is empty.
    fn take(&self, batch: &mut Vec<u8>) {
        let mut state = self.state();
        while state.waiting.is_empty() {
            state.writer = Writer::Idle;
            state.urgent = false;
            self.0.written.notify_all();
            state = self.0.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.writer = Writer::Writing;
        state.urgent = false;
        std::mem::swap(&mut state.waiting, batch);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One event of `tracing`.
#[derive(Debug)]
pub(super) struct EventWriter<'a> {
    lines: &'a Lines,
    urgent: bool,
}

impl Write for EventWriter<'_> {
    /// `tracing` hands over an event as a whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.push(line, self.urgent);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = EventWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        EventWriter { lines: self, urgent: false }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        EventWriter { lines: self, urgent: *metadata.level() <= Level::WARN }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A sink whose every write waits for a permission and then shows what was written.
    struct Valve {
        open: Receiver<()>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Valve {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // A test that is over permits everything.
            let _ = self.open.recv();
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn valve() -> (Lines, Sender<()>, Receiver<Vec<u8>>) {
        let ((permit, open), (written, batches)) = (channel(), channel());
        (Lines::to(Valve { open, written }), permit, batches)
    }

    #[test]
    fn a_line_after_a_quiet_moment_is_written_at_once_and_a_burst_in_one_batch() {
        let (lines, permit, batches) = valve();
        lines.push(b"first\n", false);
        for line in [&b"second\n"[..], b"third\n"] {
            // The writer has the first line, or takes all three.
            lines.push(line, false);
        }
        drop(permit);
        lines.flush();
        let written: Vec<u8> = batches.try_iter().flatten().collect();
        assert_eq!(written, b"first\nsecond\nthird\n");
    }

    #[test]
    fn a_slow_reader_costs_lines_and_never_time() {
        let (lines, permit, batches) = valve();
        let line = vec![b'x'; 1 << 20];
        let pushed = 2 * (CAPACITY >> 20) + 1;
        // What the writer has taken already does not count: two capacities are more than fits.
        for _ in 0..pushed {
            lines.push(&line, false);
        }
        assert!(lines.dropped().get() > 0);
        drop(permit);
        lines.flush();
        let written: usize = batches.try_iter().map(|batch| batch.len()).sum();
        let dropped = usize::try_from(lines.dropped().get()).unwrap();
        assert_eq!(written + (dropped << 20), pushed << 20);
    }

    #[test]
    fn a_flush_does_not_wait_for_a_reader_that_is_stuck() {
        let (lines, _permit, _batches) = valve();
        lines.push(b"never read\n", true);
        lines.flush();
    }

    #[test]
    fn lines_of_many_threads_stay_whole() {
        let (lines, permit, batches) = valve();
        drop(permit);
        std::thread::scope(|scope| {
            for letter in b'a'..b'e' {
                let lines = &lines;
                scope.spawn(move || {
                    let mut line = vec![letter; 99];
                    line.push(b'\n');
                    for _ in 0..1000 {
                        lines.push(&line, letter == b'a');
                    }
                });
            }
        });
        lines.flush();
        let written: Vec<u8> = batches.try_iter().flatten().collect();
        let whole = |line: &[u8]| line.len() == 99 && line.iter().all(|byte| *byte == line[0]);
        let mut seen = 0;
        for line in written.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            assert!(whole(line), "{line:?}");
            seen += 1;
        }
        assert_eq!(seen, 4000);
    }
}
