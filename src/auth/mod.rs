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
//! A login comes with each request, or once for five minutes: the token service ([`Auth::issue`]) seals it in a token.
//!
//! Invariants: what is cached or in flight is given only under a live verdict; a yes is believed for `verdict_ttl`, and
//! beyond it only while the upstream cannot be asked, for `grace`; a login is never written down or logged, and sent
//! nowhere but to the upstream that it was given for; the one right that a token can name is to pull.

mod authorization;
mod config;
mod issue;
mod keyed_hash;
mod metrics;
mod proof;
mod signing;
mod token;
mod verdicts;

use std::path::Path;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

pub use config::AuthConfig;
pub use issue::Right;
pub use metrics::Metrics;
pub use proof::Wanted;
pub use token::{Issued, LIFETIME as TOKEN_LIFETIME, SERVICE};

use crate::database::Database;
use crate::oci::ErrorCode;
use crate::routing::{Access, Caller, Route, Upstream};
use crate::runtime::{Clock, Tasks};
use crate::store::Store;
use crate::upstream::{self, Client};
use authorization::Authorization;
use keyed_hash::KeyedHash;
use signing::Keyring;
use token::{Fault, Granted, Tokens};
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
    /// The token is none of ours, or its time is over.
    InvalidToken,
    /// The token does not name this right.
    InsufficientScope,
    /// The upstream wants a login, or another one.
    Unauthenticated,
    /// The upstream knows the caller, and says no.
    Forbidden,
    /// The upstream does not have what was asked for, or does not tell this caller.
    Unknown(ErrorCode),
    /// The upstream cannot be asked, and has not said yes within the grace.
    Unavailable(Arc<upstream::Error>),
    /// So many are asked about at once that this one has found no place.
    Busy,
    /// A task of ours died; its panic is in the log.
    Internal,
}

/// Decides who may pull. Shared by all requests.
#[derive(Debug)]
pub struct Auth {
    has_callers: bool,
    hash: Arc<KeyedHash>,
    verdicts: Verdicts,
    tokens: Tokens,
}

/// What decisions are made with.
#[derive(Debug)]
pub struct Parts {
    /// Where what nodes share is kept.
    pub database: Database,
    /// Asks upstreams about their callers.
    pub client: Client,
    /// Keeps what they have said.
    pub store: Store,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What runs beside requests.
    pub tasks: Tasks,
    /// What is counted.
    pub metrics: Metrics,
}

/// Nothing can be decided.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The secret cannot be read or made.
    #[error("the secret in {} cannot be used: {source}; state.directory says where it is kept", path.display())]
    Secret {
        /// Its file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No key can be made to sign tokens with.
    #[error("tokens cannot be signed: {0}")]
    Signing(String),
}

impl Auth {
    /// Reads the secret in the `state` directory, or makes it, and the keys that sign tokens. `has_callers` says whether
    /// any upstream judges its callers.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn open(
        config: AuthConfig,
        state: &Path,
        has_callers: bool,
        parts: Parts,
    ) -> Result<Self, AuthError> {
        let path = state.join("secret");
        let opened = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || KeyedHash::open(&path)).await
        };
        let hash = opened.map_err(std::io::Error::other).flatten();
        let hash = Arc::new(hash.map_err(|source| AuthError::Secret { path, source })?);
        let Parts { database, client, store, clock, tasks, metrics } = parts;
        let keyring = Keyring::open(database, &hash, Arc::clone(&clock), &tasks).await;
        let keyring = keyring.map_err(AuthError::Signing)?;
        let external_url = config.external_url.as_ref().map(ToString::to_string);
        let tokens = Tokens::new(keyring, Arc::clone(&hash), external_url.as_deref(), Arc::clone(&clock));
        let verdicts = Verdicts::new(config, Arc::clone(&hash), client, store, clock, &tasks, metrics);
        Ok(Self { has_callers, hash, verdicts, tokens })
    }

    /// Admits a request without an `Authorization`, if memory alone can tell. Waits for nothing and asks nobody.
    pub fn admit_at_once(&self, route: Route, wanted: Wanted<'_>) -> Option<Admitted> {
        if route.upstream.access != Access::Caller {
            return Some(Admitted(route));
        }
        let route = Route { caller: Some(Caller::anonymous()), ..route };
        self.verdicts.is_granted(&route, wanted).then_some(Admitted(route))
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
        let right = || Granted::Repository(route.upstream.name.clone(), route.repository.clone());
        let caller = self.identify(&route.upstream, headers, right)?;
        let Some(caller) = caller else {
            return Ok(Admitted(route));
        };
        let route = Route { caller: Some(caller), ..route };
        if !self.verdicts.is_granted(&route, wanted) {
            // Boxed: hyper moves the future of every request, and most are answered from memory.
            let judged = Box::pin(self.verdicts.judge(&route, wanted)).await;
            judged.map_err(|denial| match denial {
                // Clients show their login only when they are asked for it.
                Denial::Forbidden | Denial::Unknown(_) if !headers.contains_key(AUTHORIZATION) => {
                    Denial::Unauthenticated
                }
                denial => denial,
            })?;
        }
        Ok(Admitted(route))
    }

    /// Who asks for the list of an upstream's repositories, where it judges its callers.
    ///
    /// # Errors
    /// [`Denial`] says why he does not get it.
    pub fn admit_to_catalog(
        &self,
        upstream: &Upstream,
        headers: &HeaderMap,
    ) -> Result<Option<Caller>, Denial> {
        self.identify(upstream, headers, || Granted::Catalog(upstream.name.clone()))
    }

    /// Whether somebody who asks for nothing in particular has said who he is, where that matters anywhere.
    ///
    /// # Errors
    /// [`Denial`] says why he is not believed.
    pub fn greet(&self, headers: &HeaderMap) -> Result<(), Denial> {
        if !self.has_callers {
            return Ok(());
        }
        match Authorization::read(headers)? {
            Authorization::None => Err(Denial::Unauthenticated),
            // Which upstream it is for is not known yet.
            Authorization::Login(_) => Ok(()),
            Authorization::Token(token) => self.tokens.verify(token).map(|_| ()).map_err(Denial::from),
        }
    }

    /// The keys that tokens are checked with (RFC 7517).
    pub fn jwks(&self) -> String {
        self.tokens.jwks()
    }

    /// On whose behalf an upstream is asked; `None` for the edge, where it judges nobody.
    fn identify(
        &self,
        upstream: &Upstream,
        headers: &HeaderMap,
        right: impl FnOnce() -> Granted,
    ) -> Result<Option<Caller>, Denial> {
        let judges = upstream.access == Access::Caller;
        let caller = match Authorization::read(headers) {
            // What is for everybody is given whatever else comes along.
            _ if !judges => return Ok(None),
            Err(denial) => return Err(denial),
            Ok(Authorization::None) => Caller::anonymous(),
            Ok(Authorization::Login(login)) => {
                Caller::with_login(self.hash.caller(&upstream.name, &login), login)
            }
            Ok(Authorization::Token(token)) => {
                let verified = self.tokens.verify(token)?;
                if !verified.grants(&right()) {
                    return Err(Denial::InsufficientScope);
                }
                match &verified.login {
                    Some((given_for, caller)) if *given_for == upstream.name => caller.clone(),
                    // It was given to another upstream's caller, and says nothing of this one.
                    Some(_) => return Err(Denial::InsufficientScope),
                    None => Caller::anonymous(),
                }
            }
        };
        Ok(Some(caller))
    }
}

impl From<Fault> for Denial {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Invalid | Fault::Expired => Self::InvalidToken,
        }
    }
}
