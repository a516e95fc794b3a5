//! What is known besides the bytes: tags and their freshness, which repository may see which
//! digest, the last lists of tags, repositories and referrers, what upstreams have granted to callers, and what the
//! images consist of that are kept. Outlives a restart in one redb file.
//!
//! Writes go to memory at once and to the file by a task that commits whatever has queued up, one
//! transaction at a time, so that no pull waits for an `fsync` and a `kill -9` costs milliseconds
//! of metadata: a lost row is asked for upstream again. What the disk refuses is tried again until it takes it.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use equivalent::Equivalent;
use moka::sync::Cache;
use quick_cache::sync::Cache as HotCache;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, TableHandle};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::layout::{Layout, private_file};
use super::{Error, Metrics};
use crate::oci::{Descriptor, Digest, Repository, Tag};
use crate::runtime::{Tasks, Timestamp};

const TAGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tags");
const VISIBILITY: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("visibility");
const GRANTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("grants");
const KEPT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("kept");
const LISTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("lists");
const REFERRERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("referrers");

/// Rows kept in memory per table; a row takes a few hundred bytes.
const CACHED_ROWS: usize = 100_000;
/// Lists are large, and only needed when the upstream is down: 16 MiB of them in memory.
const CACHED_LIST_BYTES: u64 = 16 << 20;
/// Grants that memory knows of what the file may not say yet.
const CACHED_GRANTS: u64 = 100_000;
/// Writes that may wait for a commit. Beyond that they stay in memory only.
const QUEUE: usize = 16_384;
/// Rows in one transaction at most, so that a burst does not hold the file for seconds.
const COMMIT_ROWS: usize = 4096;
/// Clients choose the parameters of a list, and the digest that they want the referrers of, and so its
/// row: when this many are there they make room for new ones all at once. A row above the size is kept in
/// memory only.
const LIST_BOUNDS: Bounds = Bounds { rows: 1000, row_bytes: 512 << 10 };
/// Callers, times the repositories that each may pull from.
const GRANTS_BOUNDS: Bounds = Bounds { rows: 1_000_000, row_bytes: 64 };
const REFERRERS_BOUNDS: Bounds = Bounds { rows: 10_000, row_bytes: 128 << 10 };
/// The keys of other tables are things that exist upstream, and their rows a few hundred bytes.
const USUAL_BOUNDS: Bounds = Bounds { rows: u64::MAX, row_bytes: 512 << 10 };
/// How long the disk is left alone after it has refused rows.
const RETRY: Duration = Duration::from_secs(1);
/// redb's own page cache.
const PAGE_CACHE: usize = 16 << 20;

/// What a tag stood for when the upstream was last asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The manifest.
    pub digest: Digest,
    /// Its size in bytes, where the upstream has said it.
    pub size: Option<u64>,
    /// Its media type, where the upstream has said it.
    pub media_type: Option<String>,
    /// When the upstream was last asked about it: the answer may be as old as the question.
    pub checked_at: Timestamp,
}

/// One page of a list of names, of tags or repositories, as the upstream gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRecord {
    /// The names, in the upstream's order.
    pub entries: Vec<String>,
    /// `n` and `last` of the next page, where there is one.
    pub next: Option<(Option<u32>, Option<String>)>,
    /// When the upstream gave it.
    pub fetched_at: Timestamp,
}

/// What refers to a manifest, as the upstream said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferrersRecord {
    /// Their descriptors, in the upstream's order.
    pub manifests: Vec<Descriptor>,
    /// When the upstream was asked.
    pub fetched_at: Timestamp,
}

/// The scope within which a digest is visible: a repository of an upstream, or the whole upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Only this repository.
    Repository(&'a Repository),
    /// Every repository of an upstream that is declared public.
    Upstream,
}

type Write = (TableDefinition<'static, &'static str, &'static [u8]>, String, Option<Vec<u8>>);

/// The metadata of one cache directory.
#[derive(Debug, Clone)]
pub struct Metadata {
    file: Arc<MetadataFile>,
    writes: mpsc::Sender<Write>,
    // Bounded and concurrent, and what falls out is still in the file. These two are asked by every hit.
    // `None` is a tag that was removed and whose row may not be gone from the file yet.
    tags: Arc<HotCache<OwnTagKey, Option<Arc<TagRecord>>>>,
    visible: Arc<HotCache<OwnVisibilityKey, Timestamp>>,
    // moka weighs and counts in the background.
    lists: Cache<String, Arc<ListRecord>>,
    referrers: Cache<String, Arc<ReferrersRecord>>,
    // `None` is one that was taken back and whose row may not be gone from the file yet.
    grants: Cache<String, Option<Timestamp>>,
    metrics: Arc<Metrics>,
}

impl Metadata {
    /// Opens or creates the file; one that cannot be read is put in quarantine. Blocking.
    pub(super) fn open(layout: &Layout, tasks: &Tasks, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let path = layout.metadata();
        let database = match open_database(&path) {
            Ok(database) => database,
            // A disk that refuses is no reason to throw away what is on it.
            Err(redb::Error::Io(source)) if !is_damage(source.kind()) => {
                return Err(Error::file(&path, source));
            }
            Err(error) if path.exists() => {
                layout.put_in_quarantine(&path, &format!("metadata unreadable: {error}"));
                open_database(&path).map_err(|error| Error::metadata(&path, error))?
            }
            Err(error) => return Err(Error::metadata(&path, error)),
        };
        let file = Arc::new(MetadataFile { path, database: RwLock::new(Some(database)) });
        let (writes, receiver) = mpsc::channel(QUEUE);
        let (writer, draining) = (Arc::clone(&file), tasks.clone());
        tasks.spawn("metadata", write_behind(writer, receiver, draining));
        Ok(Self {
            file,
            writes,
            tags: Arc::new(HotCache::new(CACHED_ROWS)),
            visible: Arc::new(HotCache::new(CACHED_ROWS)),
            lists: Cache::builder()
                .max_capacity(CACHED_LIST_BYTES)
                .weigher(|_: &String, list: &Arc<ListRecord>| {
                    let bytes: usize = list.entries.iter().map(|entry| entry.len() + 24).sum();
                    u32::try_from(bytes).unwrap_or(u32::MAX)
                })
                .build(),
            referrers: Cache::builder()
                .max_capacity(CACHED_LIST_BYTES)
                .weigher(|_: &String, record: &Arc<ReferrersRecord>| {
                    let notes = record.manifests.iter().flat_map(|manifest| &manifest.annotations);
                    let notes: usize = notes.map(|(name, value)| name.len() + value.len() + 48).sum();
                    u32::try_from(256 + notes + record.manifests.len() * 384).unwrap_or(u32::MAX)
                })
                .build(),
            grants: Cache::new(CACHED_GRANTS),
            metrics,
        })
    }

    /// What memory knows of a tag.
    pub fn recent_tag(&self, upstream: &str, repository: &Repository, tag: &Tag) -> Option<Arc<TagRecord>> {
        self.tags.get(&TagKey { upstream, repository: repository.as_str(), tag: tag.as_str() }).flatten()
    }

    /// What is known of a tag.
    pub async fn tag(&self, upstream: &str, repository: &Repository, tag: &Tag) -> Option<Arc<TagRecord>> {
        let key = TagKey { upstream, repository: repository.as_str(), tag: tag.as_str() };
        if let Some(record) = self.tags.get(&key) {
            return record;
        }
        let record = Arc::new(self.read::<TagRecord>(TAGS, key.row()).await?);
        // What was noted while the file was read is newer than what it says.
        let known = self.tags.get_or_insert_with(&key.own(), || Ok::<_, Infallible>(Some(record)));
        known.unwrap_or_else(|never| match never {})
    }

    /// Notes what a tag stands for, unless something newer is known: a slow answer must not take a
    /// tag back. What claims to come from after `now` is from before the clock was set back.
    pub fn set_tag(
        &self,
        upstream: &str,
        repository: &Repository,
        tag: &Tag,
        record: TagRecord,
        now: Timestamp,
    ) {
        let key = TagKey { upstream, repository: repository.as_str(), tag: tag.as_str() };
        let known = self.recent_tag(upstream, repository, tag);
        if known.is_some_and(|known| record.checked_at < known.checked_at && known.checked_at <= now) {
            return;
        }
        self.write(TAGS, &key.row(), Some(&record));
        self.tags.insert(key.own(), Some(Arc::new(record)));
    }

    /// Forgets a tag that is gone upstream.
    pub fn remove_tag(&self, upstream: &str, repository: &Repository, tag: &Tag) {
        let key = TagKey { upstream, repository: repository.as_str(), tag: tag.as_str() };
        self.write::<TagRecord>(TAGS, &key.row(), None);
        self.tags.insert(key.own(), None);
    }

    /// Whether memory knows that the upstream has answered for this digest within this scope.
    pub fn is_known_visible(&self, upstream: &str, scope: Scope<'_>, digest: &Digest) -> bool {
        self.visible.get(&VisibilityKey { upstream, scope: scope.as_str(), digest }).is_some()
    }

    /// Whether the upstream has ever answered for this digest within this scope.
    pub async fn is_visible(&self, upstream: &str, scope: Scope<'_>, digest: &Digest) -> bool {
        if self.is_known_visible(upstream, scope, digest) {
            return true;
        }
        let key = VisibilityKey { upstream, scope: scope.as_str(), digest };
        match self.read::<Timestamp>(VISIBILITY, key.row()).await {
            Some(proven_at) => {
                self.visible.insert(key.own(), proven_at);
                true
            }
            None => false,
        }
    }

    /// Notes that the upstream has answered for this digest within this scope.
    pub fn set_visible(&self, upstream: &str, scope: Scope<'_>, digest: &Digest, now: Timestamp) {
        if !self.is_known_visible(upstream, scope, digest) {
            let key = VisibilityKey { upstream, scope: scope.as_str(), digest };
            self.write(VISIBILITY, &key.row(), Some(&now));
            self.visible.insert(key.own(), now);
        }
    }

    /// When an upstream has last granted this, which a keyed hash stands for.
    pub async fn grant(&self, hash: &str) -> Option<Timestamp> {
        match self.grants.get(hash) {
            Some(known) => known,
            None => self.read(GRANTS, hash.to_owned()).await,
        }
    }

    /// Notes that an upstream has granted this.
    pub fn set_grant(&self, hash: &str, now: Timestamp) {
        self.write(GRANTS, hash, Some(&now));
        self.grants.insert(hash.to_owned(), Some(now));
    }

    /// Forgets that an upstream has granted this.
    pub fn remove_grant(&self, hash: &str) {
        self.write::<Timestamp>(GRANTS, hash, None);
        self.grants.insert(hash.to_owned(), None);
    }

    /// Forgets what was granted before that. Blocking.
    pub fn forget_grants(&self, before: Timestamp) {
        let forgotten = self.file.with(|database| {
            let transaction = database.begin_write()?;
            let is_newer = |row: &[u8]| serde_json::from_slice::<Timestamp>(row).is_ok_and(|at| at >= before);
            transaction.open_table(GRANTS)?.retain(|_, row| is_newer(row))?;
            transaction.commit()?;
            Ok(())
        });
        if let Err(error) = forgotten {
            tracing::debug!(%error, "old grants could not be removed");
        }
    }

    /// The last page of this name that an upstream gave.
    pub async fn list(&self, upstream: &str, name: &str) -> Option<Arc<ListRecord>> {
        let key = key(&[upstream, name]);
        if let Some(record) = self.lists.get(&key) {
            return Some(record);
        }
        self.read(LISTS, key).await.map(Arc::new)
    }

    /// Keeps a page of a list.
    pub fn set_list(&self, upstream: &str, name: &str, record: Arc<ListRecord>) {
        let key = key(&[upstream, name]);
        self.write(LISTS, &key, Some(&*record));
        self.lists.insert(key, record);
    }

    /// What the upstream last said refers to a digest.
    pub async fn referrers(
        &self,
        upstream: &str,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<Arc<ReferrersRecord>> {
        let key = key(&[upstream, repository.as_str(), &digest.to_string()]);
        if let Some(record) = self.referrers.get(&key) {
            return Some(record);
        }
        let record = Arc::new(self.read::<ReferrersRecord>(REFERRERS, key.clone()).await?);
        // What was noted while the file was read is newer than what it says.
        Some(self.referrers.entry(key).or_insert_with(|| record).into_value())
    }

    /// Keeps what refers to a digest.
    pub fn set_referrers(
        &self,
        upstream: &str,
        repository: &Repository,
        digest: &Digest,
        record: Arc<ReferrersRecord>,
    ) {
        let key = key(&[upstream, repository.as_str(), &digest.to_string()]);
        self.write(REFERRERS, &key, Some(&*record));
        self.referrers.insert(key, record);
    }

    /// What the images consist of that are kept. Blocking.
    pub(super) fn kept(&self) -> HashMap<String, HashSet<Digest>> {
        self.file.with(read_kept).unwrap_or_else(|error| {
            tracing::warn!(%error, "which images are kept could not be read; their next pull says it again");
            HashMap::new()
        })
    }

    /// Notes what a kept image consists of; nothing, if it is not kept any more.
    pub(super) fn set_kept(&self, name: &str, digests: &HashSet<Digest>) {
        self.write(KEPT, name, Some(digests).filter(|digests| !digests.is_empty()));
    }

    async fn read<T: DeserializeOwned + Send + 'static>(
        &self,
        table: TableDefinition<'static, &'static str, &'static [u8]>,
        key: String,
    ) -> Option<T> {
        let file = Arc::clone(&self.file);
        let read = move || file.with(|database| read_row(database, table, &key));
        let row = tokio::task::spawn_blocking(read).await.ok()?;
        row.unwrap_or_else(|error| {
            tracing::warn!(%error, "metadata could not be read; the upstream is asked instead");
            None
        })
    }

    fn write<T: Serialize>(
        &self,
        table: TableDefinition<'static, &'static str, &'static [u8]>,
        key: &str,
        row: Option<&T>,
    ) {
        // Serialising these records cannot fail; should it ever, the row is only forgotten.
        let row = row.and_then(|row| serde_json::to_vec(row).ok());
        // In place of one that is too long stands none: an older one would say what is no longer true.
        let row = row.filter(|row| row.len() <= bounds(table.name()).row_bytes);
        if self.writes.try_send((table, key.to_owned(), row)).is_err() {
            self.metrics.metadata_dropped.inc();
        }
    }
}

/// The file, and its database while it is good.
#[derive(Debug)]
struct MetadataFile {
    path: PathBuf,
    // A readers-writer lock: written only when the file is opened anew, which takes that nobody uses it.
    database: RwLock<Option<Database>>,
}

impl MetadataFile {
    fn with<T>(&self, use_it: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().map_or_else(|| Err(io::Error::other("the file is not open").into()), use_it)
    }

    /// Writes all of the rows or none. redb takes no more of them after a failure, and the file may have been deleted:
    /// it is then opened anew. Blocking.
    fn commit(&self, writes: &[Write]) -> Result<(), redb::Error> {
        if self.path.exists()
            && let Ok(()) = self.with(|database| commit(database, writes))
        {
            return Ok(());
        }
        {
            let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
            // Closed first: it holds a lock on the file.
            *database = None;
            *database = Some(open_database(&self.path)?);
        }
        self.with(|database| commit(database, writes))
    }
}

/// How much a table may hold.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    rows: u64,
    row_bytes: usize,
}

fn bounds(table: &str) -> Bounds {
    match table {
        table if table == LISTS.name() => LIST_BOUNDS,
        table if table == REFERRERS.name() => REFERRERS_BOUNDS,
        table if table == GRANTS.name() => GRANTS_BOUNDS,
        _ => USUAL_BOUNDS,
    }
}

/// The parts joined by NUL, which no upstream, repository, tag or digest contains.
fn key(parts: &[&str]) -> String {
    parts.join("\0")
}

/// A tag, as it is looked up: without copying anything.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TagKey<'a> {
    upstream: &'a str,
    repository: &'a str,
    tag: &'a str,
}

/// The same, as it is kept. Texts hash like what they are borrowed as.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct OwnTagKey {
    upstream: Arc<str>,
    repository: Arc<str>,
    tag: Arc<str>,
}

impl TagKey<'_> {
    fn row(&self) -> String {
        key(&[self.upstream, self.repository, self.tag])
    }

    fn own(&self) -> OwnTagKey {
        OwnTagKey { upstream: self.upstream.into(), repository: self.repository.into(), tag: self.tag.into() }
    }
}

impl Equivalent<OwnTagKey> for TagKey<'_> {
    fn equivalent(&self, own: &OwnTagKey) -> bool {
        *self.tag == *own.tag && *self.repository == *own.repository && *self.upstream == *own.upstream
    }
}

/// A digest within a scope, as it is looked up.
#[derive(Debug, PartialEq, Eq, Hash)]
struct VisibilityKey<'a> {
    upstream: &'a str,
    scope: &'a str,
    digest: &'a Digest,
}

/// The same, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct OwnVisibilityKey {
    upstream: Arc<str>,
    scope: Arc<str>,
    digest: Digest,
}

impl VisibilityKey<'_> {
    fn row(&self) -> String {
        key(&[self.upstream, self.scope, &self.digest.to_string()])
    }

    fn own(&self) -> OwnVisibilityKey {
        OwnVisibilityKey { upstream: self.upstream.into(), scope: self.scope.into(), digest: *self.digest }
    }
}

impl Equivalent<OwnVisibilityKey> for VisibilityKey<'_> {
    fn equivalent(&self, own: &OwnVisibilityKey) -> bool {
        *self.digest == own.digest && *self.scope == *own.scope && *self.upstream == *own.upstream
    }
}

impl Scope<'_> {
    /// No repository is called `*`.
    fn as_str(&self) -> &str {
        match self {
            Self::Repository(repository) => repository.as_str(),
            Self::Upstream => "*",
        }
    }
}

fn is_damage(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn open_database(path: &Path) -> Result<Database, redb::Error> {
    let file = private_file().read(true).truncate(false).open(path)?;
    let database =
        Database::builder().set_cache_size(PAGE_CACHE).create_with_backend(FileBackend::new(file)?)?;
    let transaction = database.begin_write()?;
    for table in [TAGS, VISIBILITY, LISTS, REFERRERS, GRANTS, KEPT] {
        transaction.open_table(table)?;
    }
    transaction.commit()?;
    Ok(database)
}

fn read_row<T: DeserializeOwned>(
    database: &Database,
    table: TableDefinition<'static, &'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<T>, redb::Error> {
    let table = database.begin_read()?.open_table(table)?;
    let row = table.get(key)?;
    // A row of an older layout reads as absent.
    Ok(row.and_then(|row| serde_json::from_slice(row.value()).ok()))
}

fn read_kept(database: &Database) -> Result<HashMap<String, HashSet<Digest>>, redb::Error> {
    let table = database.begin_read()?.open_table(KEPT)?;
    let mut kept = HashMap::new();
    for row in table.iter()? {
        let (name, digests) = row?;
        if let Ok(digests) = serde_json::from_slice(digests.value()) {
            kept.insert(name.value().to_owned(), digests);
        }
    }
    Ok(kept)
}

async fn write_behind(file: Arc<MetadataFile>, mut receiver: mpsc::Receiver<Write>, draining: Tasks) {
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
        let writes = Arc::new(std::mem::take(&mut batch));
        let mut is_first = true;
        loop {
            let (file, rows) = (Arc::clone(&file), Arc::clone(&writes));
            match tokio::task::spawn_blocking(move || file.commit(&rows)).await {
                Ok(Err(error)) if is_first => {
                    tracing::warn!(%error, "metadata cannot be written; it is kept in memory and tried again");
                }
                Ok(Err(error)) => tracing::debug!(%error, "metadata still cannot be written"),
                Ok(Ok(())) | Err(_) => break,
            }
            is_first = false;
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = draining.draining() => return,
            }
        }
    }
}

fn commit(database: &Database, writes: &[Write]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for (table, key, row) in writes {
        let (name, bound) = (table.name(), bounds(table.name()).rows);
        let mut table = transaction.open_table(*table)?;
        if table.len()? >= bound {
            if name == GRANTS.name() {
                // Whoever can make many must not have those of others forgotten.
                if row.is_some() && table.get(key.as_str())?.is_none() {
                    continue;
                }
            } else {
                table.retain(|_, _| false)?;
            }
        }
        match row {
            Some(row) => table.insert(key.as_str(), row.as_slice())?,
            None => table.remove(key.as_str())?,
        };
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use std::hash::BuildHasher as _;

    #[test]
    fn what_is_looked_up_is_found_as_it_is_kept() {
        let hasher = std::hash::RandomState::new();
        let tag = TagKey { upstream: "docker.io", repository: "library/nginx", tag: "latest" };
        assert!(tag.equivalent(&tag.own()));
        assert_eq!(hasher.hash_one(&tag), hasher.hash_one(tag.own()));
        for other in [
            TagKey { upstream: "quay.io", ..tag },
            TagKey { repository: "library/nginx2", ..tag },
            TagKey { tag: "1", ..tag },
            // The same letters, cut elsewhere.
            TagKey { repository: "library/nginxl", tag: "atest", ..tag },
        ] {
            assert!(!other.equivalent(&tag.own()), "{other:?}");
        }
        let (one, two) = (Digest::of(Algorithm::Sha256, b"1"), Digest::of(Algorithm::Sha256, b"2"));
        let right = VisibilityKey { upstream: "docker.io", scope: "*", digest: &one };
        assert!(right.equivalent(&right.own()));
        assert_eq!(hasher.hash_one(&right), hasher.hash_one(right.own()));
        for other in [
            VisibilityKey { upstream: "quay.io", ..right },
            VisibilityKey { scope: "library/nginx", ..right },
            VisibilityKey { digest: &two, ..right },
        ] {
            assert!(!other.equivalent(&right.own()), "{other:?}");
        }
    }
}
