//! The tables, by version.

use sqlx::AnyPool;
use sqlx::SqlStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};

/// What each version adds. Never changed once it has been released: databases remember its checksum.
const VERSIONS: [(&str, &str); 2] = [
    ("signing keys", include_str!("migrations/0001_signing_keys.sql")),
    ("keys", include_str!("migrations/0002_keys.sql")),
];

/// The tables of a database are not those of this version.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A newer version has been here.
    #[error(
        "the database has a schema of version {0}, which a newer clawhub-edge has made; this one knows {known}: \
         use the newer one",
        known = VERSIONS.len()
    )]
    Newer(i64),
    /// It does not answer.
    #[error("the database does not answer: {0}")]
    Unreachable(sqlx::Error),
    /// A version could not be made.
    #[error("the database's tables cannot be made: {0}")]
    Failed(MigrateError),
}

/// Brings the tables to this version. Others that do the same at once wait.
pub(super) async fn migrate(pool: &AnyPool) -> Result<(), SchemaError> {
    let versions = VERSIONS.iter().zip(1..).map(|(&(description, sql), version)| {
        Migration::new(version, description.into(), MigrationType::Simple, SqlStr::from_static(sql), false)
    });
    let migrator = Migrator::with_migrations(versions.collect());
    migrator.run(pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => SchemaError::Newer(version),
        MigrateError::Execute(error @ (sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut)) => {
            SchemaError::Unreachable(error)
        }
        error => SchemaError::Failed(error),
    })
}
