//! Keys in the database.

use std::sync::Arc;
use std::time::Duration;

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::secret::{KeyId, KeySecret};
use super::{Key, KeySpec};
use crate::auth::keyed_hash::KeyedHash;
use crate::database::Database;
use crate::runtime::{Clock, Setting, Timestamp};

/// Nodes that have not been heard of for so long are not waited for: they have crashed, or do not reach the database.
const SILENT: Duration = Duration::from_secs(15);
/// Nodes that have not been heard of for so long are forgotten.
const GONE: Duration = Duration::from_hours(24);

const COLUMNS: &str = "id, name, hash, previous_hash, previous_until, scopes, networks, created_at, not_before, \
                       expires_at, revoked_at, last_used_at, uses, revision";

/// Reads and changes keys.
#[derive(Debug, Clone)]
pub struct KeyStore {
    database: Database,
    hash: Arc<KeyedHash>,
    clock: Arc<dyn Clock>,
}

/// Why a key could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error("there is no key {0}")]
    Unknown(KeyId),
    /// It was revoked, which is for ever.
    #[error("the key {0} was revoked")]
    Revoked(KeyId),
    /// There is one with this id already.
    #[error("the key {0} is there already")]
    Exists(KeyId),
    /// The database refuses.
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
    /// Its hashes were made with another secret.
    #[error(
        "this node has another secret than the one that the database's keys were made with; nodes that share a database \
         need the same file `secret` in their state directories (state.directory)"
    )]
    Secret,
    /// The machine gives no random bytes.
    #[error("{0}")]
    Random(String),
}

/// Which of the nodes know of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noticed {
    /// Nodes that know.
    pub by: usize,
    /// Nodes that run.
    pub of: usize,
    /// Nodes that have not stopped in an orderly way, and are not heard of.
    pub silent: Vec<String>,
}

impl KeyStore {
    pub(in crate::auth) fn new(database: Database, hash: Arc<KeyedHash>, clock: Arc<dyn Clock>) -> Self {
        Self { database, hash, clock }
    }

    /// Makes a key, with this secret or a new one, which is known to nobody afterwards but the caller.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn create(
        &self,
        spec: KeySpec,
        secret: Option<KeySecret>,
    ) -> Result<(Key, KeySecret), KeyError> {
        let secret = match secret {
            Some(secret) => secret,
            None => KeySecret::new().map_err(KeyError::Random)?,
        };
        let now = self.clock.now();
        let mut key = Key {
            id: secret.id().clone(),
            name: spec.name,
            scopes: spec.scopes,
            networks: spec.networks,
            created_at: now,
            not_before: spec.not_before,
            expires_at: spec.expires_at,
            revoked_at: None,
            last_used_at: None,
            uses: 0,
            previous_until: None,
            hash: self.hash.key(&secret),
            previous_hash: None,
            revision: 0,
        };
        let mut change = self.database.pool().begin().await?;
        key.revision = next_revision(&mut change).await?;
        if find(&mut change, &key.id).await?.is_some() {
            return Err(KeyError::Exists(key.id));
        }
        sqlx::query(
            "INSERT INTO keys (id, name, hash, scopes, networks, created_at, not_before, expires_at, uses, revision) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9)",
        )
        .bind(key.id.as_str())
        .bind(&key.name)
        .bind(&key.hash)
        .bind(texts(&key.scopes))
        .bind(texts(&key.networks))
        .bind(millis(key.created_at))
        .bind(key.not_before.map(millis))
        .bind(key.expires_at.map(millis))
        .bind(key.revision)
        .execute(&mut *change)
        .await?;
        change.commit().await?;
        Ok((key, secret))
    }

    /// Every key, by the time when it was made.
    ///
    /// # Errors
    /// [`KeyError::Database`].
    pub async fn list(&self) -> Result<Vec<Key>, KeyError> {
        let rows = sqlx::query(sql(format!("SELECT {COLUMNS} FROM keys ORDER BY created_at, id")));
        let rows = rows.fetch_all(self.database.pool()).await?;
        Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
    }

    /// One key.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn get(&self, id: &KeyId) -> Result<Key, KeyError> {
        self.find(id).await?.ok_or_else(|| KeyError::Unknown(id.clone()))
    }

    pub(super) async fn find(&self, id: &KeyId) -> Result<Option<Key>, sqlx::Error> {
        let row = sqlx::query(sql(format!("SELECT {COLUMNS} FROM keys WHERE id = $1"))).bind(id.as_str());
        let row = self.database.within(row.fetch_optional(self.database.pool())).await?;
        row.as_ref().map(read).transpose()
    }

    /// Gives a key another secret, this or a new one; the one before works for `overlap` more.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn rotate(
        &self,
        id: &KeyId,
        overlap: Duration,
        secret: Option<KeySecret>,
    ) -> Result<(Key, KeySecret), KeyError> {
        let secret = match secret {
            Some(secret) => secret,
            None => KeySecret::random(id.clone()).map_err(KeyError::Random)?,
        };
        let mut change = self.database.pool().begin().await?;
        let revision = next_revision(&mut change).await?;
        let key = find(&mut change, id).await?.ok_or_else(|| KeyError::Unknown(id.clone()))?;
        if key.revoked_at.is_some() {
            return Err(KeyError::Revoked(id.clone()));
        }
        let until = self.clock.now().after(overlap);
        sqlx::query(
            "UPDATE keys SET previous_hash = hash, previous_until = $1, hash = $2, revision = $3 WHERE id = $4",
        )
        .bind(millis(until))
        .bind(self.hash.key(&secret))
        .bind(revision)
        .bind(id.as_str())
        .execute(&mut *change)
        .await?;
        change.commit().await?;
        Ok((self.get(id).await?, secret))
    }

    /// Ends a key for ever, with the tokens that were issued for it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn revoke(&self, id: &KeyId) -> Result<Key, KeyError> {
        let mut change = self.database.pool().begin().await?;
        let revision = next_revision(&mut change).await?;
        let key = find(&mut change, id).await?.ok_or_else(|| KeyError::Unknown(id.clone()))?;
        if key.revoked_at.is_none() {
            sqlx::query("UPDATE keys SET revoked_at = $1, revision = $2 WHERE id = $3")
                .bind(millis(self.clock.now()))
                .bind(revision)
                .bind(id.as_str())
                .execute(&mut *change)
                .await?;
            change.commit().await?;
        }
        self.get(id).await
    }

    /// How many of the running nodes know the keys as they were at this revision of one.
    ///
    /// # Errors
    /// [`KeyError::Database`].
    pub async fn noticed(&self, key: &Key) -> Result<Noticed, KeyError> {
        let oldest = millis(self.clock.now().before(SILENT));
        let rows = sqlx::query("SELECT id, seen, at FROM nodes");
        let rows = self.database.within(rows.fetch_all(self.database.pool())).await?;
        let mut noticed = Noticed { by: 0, of: 0, silent: Vec::new() };
        for row in rows {
            let (seen, at): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
            if at < oldest {
                noticed.silent.push(row.try_get(0)?);
                continue;
            }
            noticed.of += 1;
            noticed.by += usize::from(seen >= key.revision);
        }
        Ok(noticed)
    }

    /// The revision of the newest change.
    pub(super) async fn revision(&self) -> Result<i64, sqlx::Error> {
        let row = sqlx::query("SELECT value FROM counters WHERE name = 'keys'");
        self.database.within(row.fetch_one(self.database.pool())).await?.try_get(0)
    }

    /// The ids of the keys that have changed after a revision.
    pub(super) async fn changed_since(&self, revision: i64) -> Result<Vec<String>, sqlx::Error> {
        let rows = sqlx::query("SELECT id FROM keys WHERE revision > $1").bind(revision);
        let rows = self.database.within(rows.fetch_all(self.database.pool())).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// Notes up to which revision this node knows the keys, and forgets nodes that are gone.
    pub(super) async fn note_node(&self, node: &str, seen: i64) -> Result<(), sqlx::Error> {
        let now = self.clock.now();
        let note = sqlx::query(
            "INSERT INTO nodes (id, seen, at) VALUES ($1, $2, $3) \
             ON CONFLICT (id) DO UPDATE SET seen = excluded.seen, at = excluded.at",
        )
        .bind(node)
        .bind(seen)
        .bind(millis(now));
        self.database.within(note.execute(self.database.pool())).await?;
        let forget = sqlx::query("DELETE FROM nodes WHERE at < $1").bind(millis(now.before(GONE)));
        self.database.within(forget.execute(self.database.pool())).await.map(drop)
    }

    /// Forgets this node, which ends.
    pub(super) async fn remove_node(&self, node: &str) -> Result<(), sqlx::Error> {
        let remove = sqlx::query("DELETE FROM nodes WHERE id = $1").bind(node);
        self.database.within(remove.execute(self.database.pool())).await.map(drop)
    }

    /// Counts uses of keys, all of them or none.
    pub(super) async fn note_uses(&self, uses: &[(KeyId, u64, Timestamp)]) -> Result<(), sqlx::Error> {
        let note = async {
            let mut change = self.database.pool().begin().await?;
            for (id, count, last) in uses {
                sqlx::query("UPDATE keys SET uses = uses + $1, last_used_at = $2 WHERE id = $3")
                    .bind(i64::try_from(*count).unwrap_or(i64::MAX))
                    .bind(millis(*last))
                    .bind(id.as_str())
                    .execute(&mut *change)
                    .await?;
            }
            change.commit().await
        };
        self.database.within(note).await
    }

    /// Sees to it that the hashes of the database are made with the secret of this node.
    ///
    /// # Errors
    /// [`KeyError::Secret`] where they are made with another one.
    pub async fn check_secret(&self) -> Result<(), KeyError> {
        let fingerprint = self.hash.fingerprint();
        let claim = sqlx::query(
            "INSERT INTO secrets (fingerprint) SELECT $1 WHERE NOT EXISTS (SELECT 1 FROM secrets)",
        );
        let claim = claim.bind(&fingerprint).execute(self.database.pool());
        self.database.within(claim).await?;
        let row = sqlx::query("SELECT fingerprint FROM secrets WHERE fingerprint = $1").bind(&fingerprint);
        let row = self.database.within(row.fetch_optional(self.database.pool())).await?;
        row.map(drop).ok_or(KeyError::Secret)
    }
}

/// The statements are made of constants alone.
fn sql(text: String) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(text)
}

/// Takes the next revision; others that change a key wait until this change is there or gone.
async fn next_revision(change: &mut Transaction<'_, Any>) -> Result<i64, sqlx::Error> {
    let row = sqlx::query("UPDATE counters SET value = value + 1 WHERE name = 'keys' RETURNING value");
    row.fetch_one(&mut **change).await?.try_get(0)
}

async fn find(change: &mut Transaction<'_, Any>, id: &KeyId) -> Result<Option<Key>, sqlx::Error> {
    let row = sqlx::query(sql(format!("SELECT {COLUMNS} FROM keys WHERE id = $1"))).bind(id.as_str());
    row.fetch_optional(&mut **change).await?.as_ref().map(read).transpose()
}

fn read(row: &AnyRow) -> Result<Key, sqlx::Error> {
    let odd = |column: &str, error: String| sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: error.into(),
    };
    let text = |column| row.try_get::<String, _>(column);
    let at = |column| row.try_get::<i64, _>(column).map(timestamp);
    let perhaps_at = |column| row.try_get::<Option<i64>, _>(column).map(|at| at.map(timestamp));
    Ok(Key {
        id: text("id")?.parse().map_err(|error| odd("id", error))?,
        name: text("name")?,
        scopes: settings(&text("scopes")?).map_err(|error| odd("scopes", error))?,
        networks: settings(&text("networks")?).map_err(|error| odd("networks", error))?,
        created_at: at("created_at")?,
        not_before: perhaps_at("not_before")?,
        expires_at: perhaps_at("expires_at")?,
        revoked_at: perhaps_at("revoked_at")?,
        last_used_at: perhaps_at("last_used_at")?,
        uses: row.try_get::<i64, _>("uses")?.try_into().unwrap_or_default(),
        previous_until: perhaps_at("previous_until")?,
        hash: text("hash")?,
        previous_hash: row.try_get("previous_hash")?,
        revision: row.try_get("revision")?,
    })
}

fn texts(values: &[impl Setting]) -> String {
    values.iter().map(Setting::to_text).collect::<serde_json::Value>().to_string()
}

fn settings<T: Setting>(text: &str) -> Result<Vec<T>, String> {
    let texts: Vec<String> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    texts.iter().map(|text| T::from_text(text)).collect()
}

fn millis(at: Timestamp) -> i64 {
    i64::try_from(at.as_millis()).unwrap_or(i64::MAX)
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(millis).unwrap_or_default())
}
