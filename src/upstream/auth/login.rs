//! The login of one endpoint: asked for once for all who need it, and again when it is old or was refused.

use std::time::Duration;

use moka::future::Cache;
use tokio::time::Instant;

use crate::routing::{Credential, CredentialError, Login};

/// An answer of a program that is younger than this is not asked for again, whatever is refused: a repository
/// that the account may not read would otherwise start a program for every request.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// Where the login comes from, and what came last.
#[derive(Debug)]
pub(super) struct LoginSource {
    credential: Option<Credential>,
    /// One entry; the cache makes many callers wait for the same asking, which goes on when one of them leaves.
    known: Cache<(), Known>,
}

#[derive(Debug, Clone)]
struct Known {
    since: Instant,
    outcome: Result<Login, CredentialError>,
}

impl LoginSource {
    pub(super) fn new(credential: Option<Credential>) -> Self {
        Self { credential, known: Cache::new(1) }
    }

    pub(super) fn is_configured(&self) -> bool {
        self.credential.is_some()
    }

    /// The login; after a refusal not the one that was known. `None` where none is configured.
    pub(super) async fn current(&self, was_refused: bool) -> Result<Option<Login>, CredentialError> {
        let Some(credential) = &self.credential else {
            return Ok(None);
        };
        let ask = async { Known { outcome: credential.login().await, since: Instant::now() } };
        let is_spent = |known: &Known| is_spent(credential, known, was_refused);
        let entry = self.known.entry(()).or_insert_with_if(ask, is_spent).await;
        entry.into_value().outcome.map(Some)
    }
}

fn is_spent(credential: &Credential, known: &Known, was_refused: bool) -> bool {
    let Some(fresh_for) = credential.fresh_for() else {
        return false;
    };
    let age = known.since.elapsed();
    if credential.is_costly() && age < LEAST_PAUSE {
        return false;
    }
    was_refused || known.outcome.is_err() || age >= fresh_for
}
