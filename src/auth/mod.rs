//! Who asks, and what they may see.
//!
//! Owns the question whether a request may be answered at all ([`Auth::admit`]). Its answer is an [`Admitted`], which only
//! this room makes and without which `pull` gives nothing.
//!
//! Where an upstream is declared `access = "caller"`, every caller proves his own right: the upstream is asked as him,
//! with the login that he offers, for the very thing that he wants. Its word is remembered for each login and
//! repository ([`verdicts`]); a caller without a login may see what the upstream gives to everybody. Elsewhere whoever
//! reaches a listener may pull.
//!
//! Invariants: what is cached or in flight is given only under a live verdict; a yes is believed for `verdict_ttl`, and
//! beyond it only while the upstream cannot be asked, for `grace`; a login is never kept, logged, or sent anywhere but to
//! the upstream that its request names.

mod basic;
mod config;
mod keyed_hash;
mod metrics;
mod proof;
mod verdicts;

use std::path::Path;
use std::sync::Arc;

use hyper::HeaderMap;

pub use config::AuthConfig;
pub use metrics::Metrics;
pub use proof::Wanted;

use crate::oci::ErrorCode;
use crate::routing::{Access, Caller, Route, Upstream};
use crate::runtime::{Clock, Tasks};
use crate::store::Store;
use crate::upstream::{self, Client};
use keyed_hash::KeyedHash;
use verdicts::Verdicts;

/// A pull that may be answered.
#[derive(Debug, Clone)]
pub struct Admitted(Route);

impl Admitted {
    /// Where it goes, and on whose behalf.
    pub fn route(&self) -> &Route {
        &self.0
    }
}

/// Why a pull is not answered.
#[derive(Debug, Clone)]
pub enum Denial {
    /// The request's `Authorization` cannot be read, or is of a kind that is not taken here.
    Unusable,
    /// The upstream wants a login, or another one.
    Unauthenticated,
    /// The upstream knows the caller, and says no.
    Forbidden,
    /// The upstream does not have what was asked for, or does not tell this caller.
    Unknown(ErrorCode),
    /// The upstream cannot be asked, and has not said yes within the grace.
    Unavailable(Arc<upstream::Error>),
    /// A task of ours died; its panic is in the log.
    Internal,
}

/// Decides who may pull. Shared by all requests.
#[derive(Debug)]
pub struct Auth {
    /// Where callers prove their own rights anywhere.
    callers: Option<Callers>,
}

#[derive(Debug)]
struct Callers {
    hash: Arc<KeyedHash>,
    verdicts: Verdicts,
}

/// The secret of an edge cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the secret in {} cannot be used: {source}; state.directory names the directory where it is kept", path.display())]
pub struct SecretError {
    path: std::path::PathBuf,
    source: std::io::Error,
}

impl Auth {
    /// Lets everybody pull everything: no upstream judges its callers.
    pub fn open_to_all() -> Self {
        Self { callers: None }
    }

    /// Decides for upstreams that judge their callers; the secret is made on the first start. Blocking.
    ///
    /// # Errors
    /// [`SecretError`] where the file of the secret cannot be read or made.
    pub fn of_callers(
        config: AuthConfig,
        directory: &Path,
        client: Client,
        store: &Store,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
        metrics: Metrics,
    ) -> Result<Self, SecretError> {
        let path = directory.join("secret");
        let hash = Arc::new(KeyedHash::open(&path).map_err(|source| SecretError { path, source })?);
        let verdicts = Verdicts::new(config, Arc::clone(&hash), client, store.clone(), clock, tasks, metrics);
        Ok(Self { callers: Some(Callers { hash, verdicts }) })
    }

    /// Admits a request without a login, if memory alone can tell. Waits for nothing and asks nobody.
    pub fn admit_at_once(&self, route: Route) -> Option<Admitted> {
        match self.callers_of(&route.upstream) {
            None => Some(Admitted(route)),
            Some(callers) => {
                let route = Route { caller: Some(Caller::anonymous()), ..route };
                callers.verdicts.is_granted(&route).then_some(Admitted(route))
            }
        }
    }

    /// Admits a request with these headers, which wants `wanted` of the route's repository. Where its upstream judges
    /// its callers and has not done so for this one, it is asked.
    ///
    /// # Errors
    /// [`Denial`] says why not.
    pub async fn admit(
        &self,
        route: Route,
        headers: &HeaderMap,
        wanted: Wanted<'_>,
    ) -> Result<Admitted, Denial> {
        let Some(callers) = self.callers_of(&route.upstream) else {
            return Ok(Admitted(route));
        };
        let caller = Some(callers.identify(&route.upstream, headers)?);
        let route = Route { caller, ..route };
        if !callers.verdicts.is_granted(&route) {
            // Boxed: hyper moves the future of every request, and most are answered from memory.
            Box::pin(callers.verdicts.judge(&route, wanted)).await?;
        }
        Ok(Admitted(route))
    }

    /// Who asks something of an upstream itself, where it judges its callers.
    ///
    /// # Errors
    /// [`Denial::Unusable`].
    pub fn caller(&self, upstream: &Upstream, headers: &HeaderMap) -> Result<Option<Caller>, Denial> {
        self.callers_of(upstream).map(|callers| callers.identify(upstream, headers)).transpose()
    }

    /// Whether anything here is not for everybody.
    pub fn asks_callers(&self) -> bool {
        self.callers.is_some()
    }

    fn callers_of(&self, upstream: &Upstream) -> Option<&Callers> {
        self.callers.as_ref().filter(|_| upstream.access == Access::Caller)
    }
}

impl Callers {
    fn identify(&self, upstream: &Upstream, headers: &HeaderMap) -> Result<Caller, Denial> {
        match basic::login(headers)? {
            None => Ok(Caller::anonymous()),
            Some(login) => Ok(Caller::with_login(self.hash.caller(&upstream.name, &login), login)),
        }
    }
}
