//! The keys that sign tokens: made when there are none, replaced before they are old, shared by all nodes.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::signature::Ed25519KeyPair;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use sqlx::Row as _;

use super::keyed_hash::{KeyedHash, Sealer};
use crate::database::Database;
use crate::runtime::{Clock, Tasks, Timestamp};

/// How long a key signs.
const SIGNS_FOR: Duration = Duration::from_hours(24 * 30);
/// How long it is known beyond that: longer than any token lives.
const KNOWN_FOR: Duration = Duration::from_hours(24 * 31);
/// How often the database is asked for the keys of others.
const REFRESH: Duration = Duration::from_mins(1);
/// The same, while it has not answered yet.
const RETRY: Duration = Duration::from_secs(2);

/// EdDSA (RFC 8037) with Ed25519: 64 bytes a signature, and the fastest to check.
pub(super) const ALGORITHM: Algorithm = Algorithm::EdDSA;

/// Everything that is known of the keys at one time.
#[derive(Debug)]
pub(super) struct Keys {
    /// The one that signs.
    pub(super) id: String,
    pub(super) signing: EncodingKey,
    known: HashMap<String, DecodingKey>,
    /// The public ones as RFC 7517 writes them.
    pub(super) jwks: String,
}

impl Keys {
    pub(super) fn find(&self, id: &str) -> Option<&DecodingKey> {
        self.known.get(id)
    }
}

/// The keys of this node or fleet.
#[derive(Debug)]
pub(super) struct Keyring {
    database: Database,
    sealer: Sealer,
    clock: Arc<dyn Clock>,
    // Read by every token that memory does not know yet, written once in a month.
    keys: RwLock<Arc<Keys>>,
}

/// One key with its private part.
#[derive(Clone)]
struct KeyPair {
    id: String,
    signing: EncodingKey,
    public: Jwk,
    pkcs8: Vec<u8>,
    created_at: Timestamp,
}

/// What keeps the keys from being read or made.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error("a key cannot be made: {0}")]
    Key(String),
}

impl Keyring {
    /// Reads the keys, and makes one where none is young enough. Where the database does not answer, this node signs with
    /// one of its own until it does.
    pub(super) async fn open(
        database: Database,
        hash: &KeyedHash,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, String> {
        let sealer = hash.sealer("signing key");
        let own = KeyPair::make(clock.now()).map_err(|error| error.to_string())?;
        let keys =
            RwLock::new(Arc::new(Keys::of(std::slice::from_ref(&own)).map_err(|error| error.to_string())?));
        let keyring = Arc::new(Self { database, sealer, clock, keys });
        let is_read = keyring.database.is_ready() && keyring.refresh(&own).await;
        let (refreshing, draining) = (Arc::clone(&keyring), tasks.clone());
        tasks.spawn("signing-keys", async move { refreshing.keep_fresh(own, is_read, draining).await });
        Ok(keyring)
    }

    /// What is known now.
    pub(super) fn current(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn keep_fresh(&self, own: KeyPair, mut is_read: bool, tasks: Tasks) {
        loop {
            let pause = if is_read { REFRESH } else { RETRY };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = tasks.draining() => return,
            }
            is_read = self.refresh(&own).await;
        }
    }

    /// Learns the keys of others, and makes the next one when it is time. Whether the database has answered.
    async fn refresh(&self, own: &KeyPair) -> bool {
        match self.read(own).await {
            Ok(keys) => {
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the keys that sign tokens cannot be read; those that are known are used");
                false
            }
        }
    }

    async fn read(&self, own: &KeyPair) -> Result<Keys, Error> {
        // It may not have been there when the edge began.
        self.database.ready().await.map_err(|error| Error::Key(error.to_string()))?;
        let mut pairs = self.stored().await?;
        let now = self.clock.now();
        // A clock that was set back makes no key too old.
        let is_young = |pair: &KeyPair| now.since(pair.created_at).is_none_or(|age| age < SIGNS_FOR);
        if !pairs.iter().any(is_young) {
            let made = KeyPair::make(now)?;
            self.store(&made).await?;
            pairs.push(made);
        }
        // The newest signs that all nodes know; of those made at the first start, the same on all of them.
        pairs.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
        let is_known = |pair: &KeyPair| now.since(pair.created_at).is_some_and(|age| age > REFRESH * 2);
        let signs = pairs.iter().rposition(is_known).unwrap_or_default();
        pairs.swap(0, signs);
        // What this node has signed without the database is good as long as it runs.
        if !pairs.iter().any(|pair| pair.id == own.id) {
            pairs.push(own.clone());
        }
        Keys::of(&pairs)
    }

    async fn stored(&self) -> Result<Vec<KeyPair>, Error> {
        let now = self.clock.now();
        let rows = sqlx::query("SELECT id, sealed, created_at FROM signing_keys");
        let rows = self.database.within(rows.fetch_all(self.database.pool())).await?;
        let mut pairs = Vec::new();
        for row in rows {
            let (id, sealed): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let created_at =
                Timestamp::from_millis(u64::try_from(row.try_get::<i64, _>(2)?).unwrap_or_default());
            if now.since(created_at).is_some_and(|age| age >= KNOWN_FOR) {
                sqlx::query("DELETE FROM signing_keys WHERE id = $1")
                    .bind(&id)
                    .execute(self.database.pool())
                    .await?;
                continue;
            }
            match self.sealer.unseal(&sealed, &id).map(|pkcs8| KeyPair::of(pkcs8, created_at)) {
                Some(pair) => pairs.push(pair?),
                // Tokens of a node with another secret cannot be checked here.
                None => tracing::warn!(
                    key = id,
                    "a key that signs tokens was sealed with another secret; nodes that share a database need the same \
                     file `secret` in their state directories"
                ),
            }
        }
        Ok(pairs)
    }

    async fn store(&self, pair: &KeyPair) -> Result<(), Error> {
        let sealed = self.sealer.seal(&pair.pkcs8, &pair.id).map_err(Error::Key)?;
        sqlx::query("INSERT INTO signing_keys (id, sealed, created_at) VALUES ($1, $2, $3)")
            .bind(&pair.id)
            .bind(sealed)
            .bind(i64::try_from(pair.created_at.as_millis()).unwrap_or(i64::MAX))
            .execute(self.database.pool())
            .await?;
        Ok(())
    }
}

impl KeyPair {
    fn make(now: Timestamp) -> Result<Self, Error> {
        let failed = |_| Error::Key("the machine gives no random bytes".to_owned());
        let pair = Ed25519KeyPair::generate().map_err(failed)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(failed)?;
        Self::of(pkcs8.as_ref().to_vec(), now)
    }

    fn of(pkcs8: Vec<u8>, created_at: Timestamp) -> Result<Self, Error> {
        let failed = |error: jsonwebtoken::errors::Error| Error::Key(error.to_string());
        let signing = EncodingKey::from_ed_der(&pkcs8);
        let mut public = Jwk::from_encoding_key(&signing, ALGORITHM).map_err(failed)?;
        let id = public.thumbprint(ThumbprintHash::SHA256).map_err(failed)?;
        public.common.key_id = Some(id.clone());
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { id, signing, public, pkcs8, created_at })
    }
}

impl Keys {
    /// The first of the pairs signs.
    fn of(pairs: &[KeyPair]) -> Result<Self, Error> {
        let failed = |error: jsonwebtoken::errors::Error| Error::Key(error.to_string());
        let first = pairs.first().ok_or_else(|| Error::Key("there is none".to_owned()))?;
        let known = pairs
            .iter()
            .map(|pair| Ok((pair.id.clone(), DecodingKey::from_jwk(&pair.public).map_err(failed)?)));
        let jwks = JwkSet { keys: pairs.iter().map(|pair| pair.public.clone()).collect() };
        Ok(Self {
            id: first.id.clone(),
            signing: first.signing.clone(),
            known: known.collect::<Result<_, Error>>()?,
            jwks: serde_json::to_string(&jwks).map_err(|error| Error::Key(error.to_string()))?,
        })
    }
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KeyPair").field(&self.id).finish()
    }
}
