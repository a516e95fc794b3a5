//! The control store: what the nodes of a fleet have to agree on.
//!
//! Owns the connection to the database, SQLite beside the edge or PostgreSQL for several nodes, and its schema. The rooms
//! that keep something in it own their statements, which are the same for both.
//!
//! Invariants: nothing that a request waits for asks the database where memory can tell; a schema that a newer version
//! has made is left alone; every wait for it ends.

mod config;
mod schema;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::str::FromStr as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use sqlx::AnyPool;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers};
use tokio::time::timeout;

pub use config::{DatabaseConfig, DatabaseUrl};
pub use schema::SchemaError;

use crate::oci::percent_encode;

/// How long a statement waits for a connection, and for its answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the tables may take, other nodes included that make them.
const MIGRATION: Duration = Duration::from_secs(30);
/// Connections of one node at most; what they do is seldom and short. SQLite has one writer, and a reader that does not wait
/// for it.
const SHARED_CONNECTIONS: u32 = 4;
const OWN_CONNECTIONS: u32 = 2;

/// The database of this node or fleet. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Database {
    pool: AnyPool,
    options: AnyConnectOptions,
    is_shared: bool,
    is_migrated: Arc<AtomicBool>,
}

/// What a power loss may take of what was written to a file of SQLite's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Nothing.
    Full,
    /// The last seconds: a node counts and says that it runs every few of them, and a flash disk is not to wear out for that.
    Relaxed,
}

/// The database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The file beside the edge cannot be made.
    #[error("{}: {source}; state.directory says where it is kept", path.display())]
    File {
        /// The file or its directory.
        path: std::path::PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `database.url` is none.
    #[error("database.url cannot be used: {0}")]
    Url(sqlx::Error),
    /// Its tables are not those of this version.
    #[error(transparent)]
    Schema(#[from] SchemaError),
}

impl Database {
    /// Opens it, and brings its tables to this version. One that is shared and cannot be reached now is reached later.
    ///
    /// # Errors
    /// [`DatabaseError`], where waiting would not help.
    pub async fn open(config: &DatabaseConfig, durability: Durability) -> Result<Self, DatabaseError> {
        // Needed once in a process, whatever is opened.
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(install_default_drivers);
        let (url, is_shared) = match &config.url {
            DatabaseUrl::Postgres(url) => (url.expose().to_owned(), true),
            DatabaseUrl::File(path) => {
                make_private(path).map_err(|source| DatabaseError::File { path: path.clone(), source })?;
                (format!("sqlite://{}", percent_encode(path.as_os_str().as_bytes())), false)
            }
        };
        let options = AnyConnectOptions::from_str(&url).map_err(DatabaseError::Url)?;
        let connections = if is_shared { SHARED_CONNECTIONS } else { OWN_CONNECTIONS };
        let pool =
            connecting(is_shared, durability).max_connections(connections).connect_lazy_with(options.clone());
        let database = Self { pool, options, is_shared, is_migrated: Arc::default() };
        match database.ready().await {
            Err(SchemaError::Unreachable(error)) if is_shared => {
                tracing::warn!(%error, "the database cannot be reached; it is tried again");
            }
            // Another process may just have made the same tables.
            Err(SchemaError::Failed(_)) if !is_shared => database.ready().await?,
            ready => ready?,
        }
        Ok(database)
    }

    /// Sees to it, once, that its tables are those of this version; of several nodes one does, and the others wait.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub async fn ready(&self) -> Result<(), SchemaError> {
        if self.is_ready() {
            return Ok(());
        }
        // A connection of its own, closed whatever comes of it: the lock that keeps others out ends with it.
        let own = connecting(self.is_shared, Durability::Full)
            .max_connections(1)
            .connect_lazy_with(self.options.clone());
        let migrated = timeout(MIGRATION, schema::migrate(&own)).await;
        let _ = timeout(PATIENCE, own.close()).await;
        migrated.unwrap_or(Err(SchemaError::Unreachable(sqlx::Error::PoolTimedOut)))?;
        self.is_migrated.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether it has answered yet, with the tables of this version.
    pub fn is_ready(&self) -> bool {
        self.is_migrated.load(Ordering::Acquire)
    }

    /// What a statement gives, unless the database takes too long: a connection that has gone silent would keep its user
    /// waiting for as long as TCP hopes.
    ///
    /// # Errors
    /// [`sqlx::Error`]; [`sqlx::Error::PoolTimedOut`] also when it took too long.
    pub async fn within<T>(
        &self,
        statement: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        timeout(PATIENCE, statement).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    /// Where statements are executed.
    pub fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Whether other nodes may use it too.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Closes it once what runs has ended, or soon.
    pub async fn close(&self) {
        let _ = timeout(PATIENCE, self.pool.close()).await;
    }
}

fn connecting(is_shared: bool, durability: Durability) -> AnyPoolOptions {
    AnyPoolOptions::new().acquire_timeout(PATIENCE).after_connect(move |connection, _| {
        Box::pin(async move {
            if !is_shared {
                // A reader never waits, and a kill -9 loses nothing that was committed.
                sqlx::query("PRAGMA journal_mode = WAL").execute(&mut *connection).await?;
                if durability == Durability::Relaxed {
                    sqlx::query("PRAGMA synchronous = NORMAL").execute(&mut *connection).await?;
                }
                sqlx::query("PRAGMA busy_timeout = 3000").execute(&mut *connection).await?;
            }
            Ok(())
        })
    })
}

/// Makes the file and its directory, for the owner alone. Blocking, but a matter of microseconds and done once.
fn make_private(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::Row as _;

    #[tokio::test]
    async fn the_file_is_made_for_its_owner_alone_and_keeps_what_is_written() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("an odd name?#%/clawhub-edge.db");
        let config = DatabaseConfig { url: DatabaseUrl::File(path.clone()) };
        let database = Database::open(&config, Durability::Full).await.unwrap();
        assert!(!database.is_shared());
        let insert = "INSERT INTO signing_keys (id, sealed, created_at) VALUES ($1, $2, $3)";
        sqlx::query(insert).bind("a").bind("b").bind(7_i64).execute(database.pool()).await.unwrap();
        database.close().await;
        let again = Database::open(&config, Durability::Full).await.unwrap();
        let row = sqlx::query("SELECT created_at FROM signing_keys WHERE id = $1").bind("a");
        assert_eq!(row.fetch_one(again.pool()).await.unwrap().get::<i64, _>(0), 7);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[tokio::test]
    async fn a_schema_of_a_newer_version_is_left_alone_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let config = DatabaseConfig { url: DatabaseUrl::File(directory.path().join("edge.db")) };
        let database = Database::open(&config, Durability::Full).await.unwrap();
        let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                     VALUES (9999, 'from the future', TRUE, x'00', 0)";
        sqlx::query(newer).execute(database.pool()).await.unwrap();
        database.close().await;
        let error = Database::open(&config, Durability::Full).await.unwrap_err().to_string();
        assert!(error.contains("9999") && error.contains("newer"), "{error}");
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_made_says_what_to_set() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let config = DatabaseConfig { url: DatabaseUrl::File(directory.path().join("file/edge.db")) };
        let error = Database::open(&config, Durability::Full).await.unwrap_err().to_string();
        assert!(error.contains("state.directory"), "{error}");
    }
}
