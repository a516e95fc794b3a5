//! Who asks, and what they may see.
//!
//! Owns the question whether a request may be answered at all ([`Auth::admit`]). Its answer is an [`Admitted`], which only
//! this room makes and without which `pull` gives nothing.
//!
//! Where an upstream is declared `access = "caller"`, every caller proves his own right: the upstream is asked as him,
//! with the login that he offers, for the very thing that he wants. Its word is remembered ([`verdicts`]); a caller
//! without a login may see what the upstream gives to everybody. Elsewhere our own rules decide: what is public here needs
//! nothing, and for the rest there are [`keys`].
//!
//! A login or the secret of a key comes with each request, or once for five minutes: the token service ([`Auth::issue`])
//! seals the one in a token, and names the other.
//!
//! Invariants: what is cached or in flight is given only under a live verdict or a live key; an upstream's yes is believed
//! for `verdict_ttl`, and beyond it only while it cannot be asked, for `grace`; a login is never written down or logged, and
//! sent nowhere but to the upstream that it was given for; the one right that a key or a token can name is to pull.

mod authorization;
mod config;
mod issue;
mod keyed_hash;
pub mod keys;
mod metrics;
mod proof;
mod scopes;
mod signing;
mod token;
mod verdicts;

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

pub use config::AuthConfig;
pub use issue::{Issued, Right};
pub use metrics::Metrics;
pub use proof::Wanted;
pub use token::{LIFETIME as TOKEN_LIFETIME, SERVICE};

use crate::database::Database;
use crate::oci::ErrorCode;
use crate::routing::{Access, Caller, CallerId, ImagePattern, Login, Route, Upstream};
use crate::runtime::{Clock, Tasks};
use crate::store::Store;
use crate::upstream::{self, Client};
use authorization::Authorization;
use keyed_hash::KeyedHash;
use keys::{Key, KeyError, KeyId, KeySecret, KeyStore, LiveKeys, Refused};
use signing::Keyring;
use token::{Granted, Subject, Tokens, Verified};
use verdicts::Verdicts;

/// A pull that may be answered.
#[derive(Debug, Clone)]
pub struct Admitted {
    route: Route,
    by: By,
}

/// What it was admitted by.
#[derive(Debug, Clone)]
enum By {
    /// It is everybody's, or the upstream has said yes.
    All,
    /// Some of the repository is everybody's.
    Public(Arc<[ImagePattern]>),
    Key(Arc<Key>),
}

impl Admitted {
    /// Where it goes, and on whose behalf.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Who has asked; `None` for anybody.
    pub fn who(&self) -> Option<Who> {
        let key = match &self.by {
            By::Key(key) => Some(&**key),
            By::All | By::Public(_) => None,
        };
        who(key, self.route.caller.as_ref())
    }

    /// Whether only some tags of the repository are to be shown.
    pub fn is_partial(&self) -> bool {
        !matches!(self.by, By::All)
    }

    /// Whether a tag of the repository is to be shown.
    pub fn shows(&self, tag: &str) -> bool {
        let Route { upstream, repository, .. } = &self.route;
        match &self.by {
            By::All => true,
            By::Key(key) => scopes::show(&key.scopes, &upstream.name, repository, tag),
            By::Public(patterns) => scopes::show(patterns, &upstream.name, repository, tag),
        }
    }
}

/// Who it is, as logs call him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Whoever has the secret of this key.
    Key(KeyId),
    /// Whoever has this login at the upstream.
    Login(CallerId),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(id) => write!(f, "key:{id}"),
            Self::Login(id) => write!(f, "login:{id}"),
        }
    }
}

/// Whoever may see the list of an upstream's repositories.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// On whose behalf the upstream is asked, where it judges its callers.
    pub caller: Option<Caller>,
    key: Option<Arc<Key>>,
}

impl Visitor {
    /// Whether only some repositories are to be shown.
    pub fn is_partial(&self) -> bool {
        self.key.is_some()
    }

    /// Who has asked; `None` for anybody.
    pub fn who(&self) -> Option<Who> {
        who(self.key.as_deref(), self.caller.as_ref())
    }

    /// Whether a repository is to be shown.
    pub fn shows(&self, upstream: &Upstream, repository: &str) -> bool {
        let reaches = |key: &Arc<Key>| {
            repository.parse().is_ok_and(|name| scopes::reach(&key.scopes, &upstream.name, &name))
        };
        self.key.as_ref().is_none_or(reaches)
    }
}

fn who(key: Option<&Key>, caller: Option<&Caller>) -> Option<Who> {
    let login = || Some(Who::Login(caller.filter(|caller| caller.login().is_some())?.id()));
    key.map(|key| Who::Key(key.id.clone())).or_else(login)
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
    /// The key does not do, or there is none such.
    Key(Option<KeyId>, Refused),
    /// A login or a key is wanted, or another one.
    Unauthenticated,
    /// The upstream knows the caller, and says no.
    Forbidden,
    /// The upstream does not have what was asked for, or does not tell this caller.
    Unknown(ErrorCode),
    /// The upstream cannot be asked, and has not said yes within the grace.
    Unavailable(Arc<upstream::Error>),
    /// The database cannot say whether there is such a key.
    NoDatabase,
    /// So many are asked about at once that this one has found no place.
    Busy,
    /// A task of ours died; its panic is in the log.
    Internal,
}

impl Denial {
    /// As logs say it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unusable => "unusable_authorization",
            Self::InvalidToken => "invalid_token",
            Self::InsufficientScope => "insufficient_scope",
            Self::Key(_, Refused::Unknown) => "key_unknown",
            Self::Key(_, Refused::Revoked) => "key_revoked",
            Self::Key(_, Refused::Expired) => "key_expired",
            Self::Key(_, Refused::NotYet) => "key_not_valid_yet",
            Self::Key(_, Refused::Network) => "key_of_another_network",
            Self::Key(_, Refused::Scope) => "key_of_another_scope",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden_upstream",
            Self::Unknown(_) => "unknown_upstream",
            Self::Unavailable(_) => "upstream_unavailable",
            Self::NoDatabase => "database_unavailable",
            Self::Busy => "busy",
            Self::Internal => "internal",
        }
    }

    /// Whose key it was.
    pub fn who(&self) -> Option<Who> {
        match self {
            Self::Key(id, _) => id.clone().map(Who::Key),
            _ => None,
        }
    }
}

/// Decides who may pull. Shared by all requests.
#[derive(Debug)]
pub struct Auth {
    has_callers: bool,
    public: Public,
    hash: Arc<KeyedHash>,
    verdicts: Verdicts,
    tokens: Tokens,
    keys: LiveKeys,
    metrics: Arc<Metrics>,
}

/// What needs no key.
#[derive(Debug)]
struct Public {
    is_everything: bool,
    patterns: Arc<[ImagePattern]>,
}

impl Public {
    fn by(&self) -> By {
        if self.is_everything { By::All } else { By::Public(Arc::clone(&self.patterns)) }
    }

    fn includes(&self, route: &Route, wanted: Wanted<'_>) -> bool {
        let Route { upstream, repository, .. } = route;
        self.is_everything || scopes::allow(&self.patterns, &upstream.name, repository, wanted)
    }

    fn reaches(&self, route: &Route) -> bool {
        let Route { upstream, repository, .. } = route;
        self.is_everything || scopes::reach(&self.patterns, &upstream.name, repository)
    }
}

/// What decisions are made with.
#[derive(Debug)]
pub struct Parts {
    /// What other nodes call this one; the same after a restart.
    pub node: String,
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
    /// The keys cannot be read.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// No key can be made to sign tokens with.
    #[error("tokens cannot be signed: {0}")]
    Signing(String),
}

/// The keys of the edge whose `state` directory this is. Its secret is made where there is none.
///
/// # Errors
/// [`AuthError::Secret`].
pub async fn open_keys(
    state: &Path,
    database: Database,
    clock: Arc<dyn Clock>,
) -> Result<KeyStore, AuthError> {
    Ok(KeyStore::new(database, open_secret(state).await?, clock))
}

async fn open_secret(state: &Path) -> Result<Arc<KeyedHash>, AuthError> {
    let path = state.join("secret");
    let opened = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || KeyedHash::open(&path)).await
    };
    let hash = opened.map_err(std::io::Error::other).flatten();
    Ok(Arc::new(hash.map_err(|source| AuthError::Secret { path, source })?))
}

/// Who asks, as far as a request tells.
enum Identity {
    Anybody,
    /// A login that is none of our keys.
    Login(Login),
    Token(Arc<Verified>),
    Key(Arc<Key>),
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
        let hash = open_secret(state).await?;
        let Parts { node, database, client, store, clock, tasks, metrics } = parts;
        let metrics = Arc::new(metrics);
        let is_ready = database.is_ready();
        let keyring = Keyring::open(database.clone(), &hash, Arc::clone(&clock), &tasks).await;
        let keyring = keyring.map_err(AuthError::Signing)?;
        let external_url = config.external_url.as_ref().map(ToString::to_string);
        let tokens = Tokens::new(keyring, Arc::clone(&hash), external_url.as_deref(), Arc::clone(&clock));
        let public =
            Public { is_everything: config.anonymous != Some(false), patterns: config.public.clone().into() };
        let key_store = KeyStore::new(database, Arc::clone(&hash), Arc::clone(&clock));
        if is_ready {
            key_store.check_secret().await?;
        }
        let keys =
            LiveKeys::new(key_store, Arc::clone(&hash), Arc::clone(&clock), config.grace, node, &tasks);
        let verdicts =
            Verdicts::new(config, Arc::clone(&hash), client, store, clock, &tasks, Arc::clone(&metrics));
        Ok(Self { has_callers, public, hash, verdicts, tokens, keys, metrics })
    }

    /// Admits a request without an `Authorization`, if memory alone can tell. Waits for nothing and asks nobody.
    pub fn admit_at_once(&self, route: Route, wanted: Wanted<'_>) -> Option<Admitted> {
        if route.upstream.access != Access::Caller {
            return self.public.includes(&route, wanted).then(|| Admitted { route, by: self.public.by() });
        }
        let route = Route { caller: Some(Caller::anonymous()), ..route };
        self.verdicts.is_granted(&route, wanted).then_some(Admitted { route, by: By::All })
    }

    /// Admits a request with these headers, from this address, which wants `wanted` of the route's repository. Where its
    /// upstream judges its callers and has not done so for this one, it is asked.
    ///
    /// # Errors
    /// [`Denial`] says why not.
    pub async fn admit(
        &self,
        route: Route,
        headers: &HeaderMap,
        from: Option<IpAddr>,
        wanted: Wanted<'_>,
    ) -> Result<Admitted, Denial> {
        let is_judged = route.upstream.access == Access::Caller;
        if !is_judged && self.public.includes(&route, wanted) {
            // Whatever else comes along.
            return Ok(Admitted { route, by: self.public.by() });
        }
        let right = || Granted::Repository(route.upstream.name.clone(), route.repository.clone());
        let identity = Box::pin(self.identify(headers, from, right)).await?;
        if is_judged {
            let caller = self.caller(&route.upstream, identity)?;
            let route = Route { caller: Some(caller), ..route };
            self.judge(&route, headers, wanted).await?;
            return Ok(Admitted { route, by: By::All });
        }
        let Identity::Key(key) = identity else { return Err(Denial::Unauthenticated) };
        if !scopes::allow(&key.scopes, &route.upstream.name, &route.repository, wanted) {
            return Err(self.refuse(&key.id, Refused::Scope));
        }
        self.keys.used(&key);
        Ok(Admitted { route, by: By::Key(key) })
    }

    /// Admits somebody to the list of an upstream's repositories.
    ///
    /// # Errors
    /// [`Denial`] says why he does not get it.
    pub async fn admit_to_catalog(
        &self,
        upstream: &Upstream,
        headers: &HeaderMap,
        from: Option<IpAddr>,
    ) -> Result<Visitor, Denial> {
        let is_judged = upstream.access == Access::Caller;
        if !is_judged && self.public.is_everything {
            return Ok(Visitor { caller: None, key: None });
        }
        let identity = self.identify(headers, from, || Granted::Catalog(upstream.name.clone())).await?;
        if is_judged {
            let caller = Some(self.caller(upstream, identity)?);
            return Ok(Visitor { caller, key: None });
        }
        let Identity::Key(key) = identity else { return Err(Denial::Unauthenticated) };
        self.keys.used(&key);
        Ok(Visitor { caller: None, key: Some(key) })
    }

    /// Whether somebody who asks for nothing in particular has said who he is, where that matters anywhere.
    ///
    /// # Errors
    /// [`Denial`] says why he is not believed.
    pub async fn greet(&self, headers: &HeaderMap, from: Option<IpAddr>) -> Result<(), Denial> {
        if !self.has_callers && self.public.is_everything {
            return Ok(());
        }
        match Authorization::read(headers)? {
            Authorization::None => Err(Denial::Unauthenticated),
            Authorization::Login(login) => match self.of_login(login, from).await? {
                // Which upstream it is for is not known yet.
                Identity::Login(_) if !self.has_callers => Err(Denial::Unauthenticated),
                _ => Ok(()),
            },
            Authorization::Token(token) => {
                let verified = self.tokens.verify(token)?;
                if let Subject::Key(id) = &verified.subject {
                    self.living(id, from).await?;
                }
                Ok(())
            }
        }
    }

    /// The keys that tokens are checked with (RFC 7517).
    pub fn jwks(&self) -> String {
        self.tokens.jwks()
    }

    /// Who asks for this right, believed.
    async fn identify(
        &self,
        headers: &HeaderMap,
        from: Option<IpAddr>,
        right: impl FnOnce() -> Granted,
    ) -> Result<Identity, Denial> {
        match Authorization::read(headers)? {
            Authorization::None => Ok(Identity::Anybody),
            Authorization::Login(login) => self.of_login(login, from).await,
            Authorization::Token(token) => {
                let verified = self.tokens.verify(token)?;
                if !verified.grants(&right()) {
                    return Err(Denial::InsufficientScope);
                }
                match &verified.subject {
                    Subject::Key(id) => self.living(id, from).await.map(Identity::Key),
                    Subject::Anybody | Subject::Caller(..) => Ok(Identity::Token(verified)),
                }
            }
        }
    }

    /// Who offers this login: a key, if it looks like the secret of one.
    async fn of_login(&self, login: Login, from: Option<IpAddr>) -> Result<Identity, Denial> {
        let (Login::Password { password: secret, .. } | Login::IdentityToken(secret)) = &login;
        if !secret.expose().starts_with(keys::PREFIX) {
            return Ok(Identity::Login(login));
        }
        let Ok(secret) = secret.expose().parse::<KeySecret>() else {
            self.metrics.refused(Refused::Unknown.as_str());
            return Err(Denial::Key(None, Refused::Unknown));
        };
        let found = self.keys.of_secret(&secret).await.map_err(|_| Denial::NoDatabase)?;
        let key = found.map_err(|refused| self.refuse(secret.id(), refused))?;
        self.check(key, from).map(Identity::Key)
    }

    /// A key that somebody was given a token for, if it is still good.
    async fn living(&self, id: &KeyId, from: Option<IpAddr>) -> Result<Arc<Key>, Denial> {
        let found = self.keys.find(id).await.map_err(|_| Denial::NoDatabase)?;
        self.check(found.ok_or_else(|| self.refuse(id, Refused::Unknown))?, from)
    }

    fn check(&self, key: Arc<Key>, from: Option<IpAddr>) -> Result<Arc<Key>, Denial> {
        match key.check(self.keys.now(), from) {
            Ok(()) => Ok(key),
            Err(refused) => Err(self.refuse(&key.id, refused)),
        }
    }

    fn refuse(&self, id: &KeyId, refused: Refused) -> Denial {
        self.metrics.refused(refused.as_str());
        Denial::Key(Some(id.clone()), refused)
    }

    /// On whose behalf an upstream is asked that judges its callers.
    fn caller(&self, upstream: &Upstream, identity: Identity) -> Result<Caller, Denial> {
        match identity {
            // Our keys say nothing of what the upstream lets their owners do: no more than anybody.
            Identity::Anybody | Identity::Key(_) => Ok(Caller::anonymous()),
            Identity::Login(login) => Ok(Caller::with_login(self.hash.caller(&upstream.name, &login), login)),
            Identity::Token(verified) => match &verified.subject {
                Subject::Caller(given_for, caller) if *given_for == upstream.name => Ok(caller.clone()),
                // It was given to another upstream's caller, and says nothing of this one.
                Subject::Caller(..) => Err(Denial::InsufficientScope),
                Subject::Anybody | Subject::Key(_) => Ok(Caller::anonymous()),
            },
        }
    }

    async fn judge(&self, route: &Route, headers: &HeaderMap, wanted: Wanted<'_>) -> Result<(), Denial> {
        if self.verdicts.is_granted(route, wanted) {
            return Ok(());
        }
        // Boxed: hyper moves the future of every request, and most are answered from memory.
        let judged = Box::pin(self.verdicts.judge(route, wanted)).await;
        judged.map_err(|denial| match denial {
            // Clients show their login only when they are asked for it.
            Denial::Forbidden | Denial::Unknown(_) if !headers.contains_key(AUTHORIZATION) => {
                Denial::Unauthenticated
            }
            denial => denial,
        })
    }
}
