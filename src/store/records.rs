//! What outlives a restart of the index: one row per sealed blob, in a redb file beside the blobs.
//!
//! Rows are written behind: a task commits whatever has queued up, so that no fill waits for an `fsync` and a
//! `kill -9` costs the rows of some milliseconds. A blob without a row is hashed before it is served, so a lost row
//! costs time and never correctness. When the disk refuses, the file is opened again for the next rows.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::sync::mpsc;

use super::eviction::History;
use super::index::Sealed;
use super::layout::private_file;
use crate::oci::{Algorithm, Digest};
use crate::runtime::Tasks;

/// By algorithm and hash.
const SEALED: TableDefinition<'_, &[u8], &[u8; ROW]> = TableDefinition::new("sealed");
/// Size, charge, cost, dependents, frequency, last use.
const ROW: usize = 27;
/// Rows that may wait for a commit; what does not fit is dropped.
const QUEUE: usize = 65_536;
/// Rows in one transaction at most.
const COMMIT_ROWS: usize = 4096;
/// redb's own page cache: rows are written in passing and read once.
const PAGE_CACHE: usize = 4 << 20;

/// One row, or that there is none any more.
type Write = (Digest, Option<(Sealed, History)>);

/// Where rows are handed over.
#[derive(Debug)]
pub(super) struct Records {
    path: PathBuf,
    writes: mpsc::Sender<Write>,
    // A mutex: taken once, by the start.
    receiver: Mutex<Option<mpsc::Receiver<Write>>>,
}

impl Records {
    /// The rows of the file at `path`. They queue up until the file has been [read](Self::start).
    pub(super) fn new(path: PathBuf) -> Self {
        let (writes, receiver) = mpsc::channel(QUEUE);
        Self { path, writes, receiver: Mutex::new(Some(receiver)) }
    }

    /// Starts the task that hands every row of the file to `found`, in batches, calls `read`, and then writes what
    /// is handed over until `tasks` drains. Once.
    pub(super) fn start(
        &self,
        tasks: &Tasks,
        found: impl FnMut(Vec<(Digest, Sealed, History)>) + Send + 'static,
        read: impl FnOnce() + Send + 'static,
    ) {
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(receiver) = receiver else { return };
        let (path, draining) = (self.path.clone(), tasks.clone());
        tasks.spawn("records", async move {
            let reading = path.clone();
            let read_rows = tokio::task::spawn_blocking(move || {
                read_all(&reading, found);
                read();
            });
            if read_rows.await.is_ok() {
                write_behind(path, receiver, draining).await;
            }
        });
    }

    /// Has the row of a blob written. Whether there was room in the queue.
    pub(super) fn set(&self, digest: Digest, sealed: Sealed, history: History) -> bool {
        self.writes.try_send((digest, Some((sealed, history)))).is_ok()
    }

    /// Has the row of a blob removed.
    pub(super) fn remove(&self, digest: Digest) {
        // A row without its file is found out by the next start.
        let _ = self.writes.try_send((digest, None));
    }

    /// Whether so many rows can be handed over without a loss.
    pub(super) fn has_room(&self, rows: usize) -> bool {
        self.writes.capacity() >= rows
    }
}

/// Hands every row of the file at `path` to `found`, in batches. A file that cannot be read is removed, since
/// everything in it can be had again. Blocking.
fn read_all(path: &Path, mut found: impl FnMut(Vec<(Digest, Sealed, History)>)) {
    let read = |found: &mut dyn FnMut(Vec<(Digest, Sealed, History)>)| -> Result<(), redb::Error> {
        let database = open(path)?;
        let table = database.begin_read()?.open_table(SEALED)?;
        let mut batch = Vec::with_capacity(COMMIT_ROWS);
        for row in table.iter()? {
            let (key, row) = row?;
            if let Some((digest, (sealed, history))) = decode_key(key.value()).zip(decode(row.value())) {
                batch.push((digest, sealed, history));
            }
            if batch.len() == COMMIT_ROWS {
                found(std::mem::replace(&mut batch, Vec::with_capacity(COMMIT_ROWS)));
            }
        }
        found(batch);
        Ok(())
    };
    if let Err(error) = read(&mut found) {
        tracing::warn!(path = %path.display(), %error, "what was sealed is not known; every blob is verified before it is served");
        // Where it cannot be removed either, the writer says so.
        let _ = std::fs::remove_file(path);
    }
}

fn open(path: &Path) -> Result<Database, redb::Error> {
    let file = private_file().read(true).truncate(false).open(path)?;
    let database =
        Database::builder().set_cache_size(PAGE_CACHE).create_with_backend(FileBackend::new(file)?)?;
    let transaction = database.begin_write()?;
    transaction.open_table(SEALED)?;
    transaction.commit()?;
    Ok(database)
}

async fn write_behind(path: PathBuf, mut receiver: mpsc::Receiver<Write>, draining: Tasks) {
    let mut database = None;
    let mut batch = Vec::new();
    loop {
        let received = tokio::select! {
            biased;
            received = receiver.recv_many(&mut batch, COMMIT_ROWS) => received,
            () = draining.draining() => 0,
        };
        if received == 0 {
            return;
        }
        let (path, writes, held) = (path.clone(), std::mem::take(&mut batch), database.take());
        let committed = tokio::task::spawn_blocking(move || commit(held, &path, &writes)).await;
        match committed {
            Ok(Ok(held)) => database = Some(held),
            // redb takes no more writes after a failed one: the next rows go to the file opened anew.
            Ok(Err(error)) => tracing::debug!(%error, "records could not be written"),
            Err(_) => return,
        }
    }
}

fn commit(database: Option<Database>, path: &Path, writes: &[Write]) -> Result<Database, redb::Error> {
    // A file that was deleted under a running edge takes no more rows.
    let database = match database.filter(|_| path.exists()) {
        Some(database) => database,
        None => open(path)?,
    };
    let transaction = database.begin_write()?;
    let mut table = transaction.open_table(SEALED)?;
    for (digest, row) in writes {
        let key = encode_key(digest);
        match row {
            Some((sealed, history)) => drop(table.insert(key.as_slice(), &encode(sealed, *history))?),
            None => drop(table.remove(key.as_slice())?),
        }
    }
    drop(table);
    transaction.commit()?;
    Ok(database)
}

fn encode_key(digest: &Digest) -> Vec<u8> {
    let algorithm = match digest.algorithm() {
        Algorithm::Sha256 => 0,
        Algorithm::Sha512 => 1,
    };
    let mut key = vec![algorithm];
    key.extend_from_slice(digest.as_bytes());
    key
}

fn decode_key(key: &[u8]) -> Option<Digest> {
    match key.split_first()? {
        (0, hash) => Some(Digest::Sha256(hash.try_into().ok()?)),
        (1, hash) => Some(Digest::Sha512(hash.try_into().ok()?)),
        _ => None,
    }
}

fn encode(sealed: &Sealed, history: History) -> [u8; ROW] {
    let mut row = [0; ROW];
    row[..8].copy_from_slice(&sealed.size.to_le_bytes());
    row[8..16].copy_from_slice(&sealed.charge.to_le_bytes());
    row[16..20].copy_from_slice(&sealed.cost.unwrap_or(f32::NAN).to_le_bytes());
    row[20..22].copy_from_slice(&sealed.dependents.to_le_bytes());
    row[22] = history.frequency;
    row[23..].copy_from_slice(&history.last_used.to_le_bytes());
    row
}

fn decode(row: &[u8; ROW]) -> Option<(Sealed, History)> {
    let (size, rest) = row.split_first_chunk()?;
    let (charge, rest) = rest.split_first_chunk()?;
    let (cost, rest) = rest.split_first_chunk()?;
    let (dependents, rest) = rest.split_first_chunk()?;
    let (frequency, last_used) = rest.split_first()?;
    let cost = f32::from_le_bytes(*cost);
    let sealed = Sealed {
        size: u64::from_le_bytes(*size),
        charge: u64::from_le_bytes(*charge),
        cost: (!cost.is_nan()).then_some(cost),
        dependents: u16::from_le_bytes(*dependents),
    };
    let history =
        History { frequency: *frequency, last_used: u32::from_le_bytes(last_used.try_into().ok()?) };
    Some((sealed, history))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reads_back_as_it_was_written() {
        for cost in [Some(2.5), None] {
            let sealed = Sealed { size: 1 << 40, charge: 12345, cost, dependents: 7 };
            let history = History { frequency: 9, last_used: 1 << 31 };
            assert_eq!(decode(&encode(&sealed, history)), Some((sealed, history)));
        }
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"x");
            assert_eq!(decode_key(&encode_key(&digest)), Some(digest));
        }
    }

    #[tokio::test]
    async fn rows_are_there_after_a_restart_and_a_damaged_file_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalogue.redb");
        let tasks = Tasks::new();
        let records = Records::new(path.clone());
        records.start(&tasks, |rows| assert!(rows.is_empty()), || ());
        let digest = |n: u32| Digest::of(Algorithm::Sha256, &n.to_le_bytes());
        let sealed = Sealed { size: 1, charge: 2, cost: None, dependents: 0 };
        for n in 0..5000 {
            assert!(records.set(digest(n), sealed, History { frequency: 1, last_used: n }));
        }
        records.remove(digest(17));
        tasks.drain(std::time::Duration::from_secs(10)).await;
        let mut rows = Vec::new();
        read_all(&path, |batch| rows.extend(batch));
        assert_eq!(rows.len(), 4999);
        std::fs::write(&path, "not a database").unwrap();
        rows.clear();
        read_all(&path, |batch| rows.extend(batch));
        assert!(rows.is_empty() && !path.exists());
    }
}
