//! Proving who asks, the edge or one of its callers: Basic and Bearer, for one endpoint.
//!
//! The endpoint's first challenge is remembered, so that later requests carry their token straight away.
//! Tokens are cached by whom they were issued for and by scope; whoever needs one that is being fetched waits for the same fetch.
//!
//! A login may expire as a token does (a cloud's password, a refresh token), so a refusal, by the endpoint or by
//! its token service, is answered once with what the login's source says then.

mod login;
mod realm;
mod token;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::{StatusCode, Uri};
use moka::future::Cache;
use tokio::time::Instant;

use crate::oci::{Challenge, Repository, Scheme};
use crate::routing::{Caller, CallerId, Credential, Login, Site};
use crate::runtime::Secret;

use super::error::{Error, Place, Whose};
use super::remote::Remote;

use login::LoginSource;
use token::{Grant, Issued, Refusal, Token};

/// Scopes per endpoint: one per repository that is pulled from it within a day, and for each caller who proves his right.
const MAX_TOKENS: u64 = 10_000;
const FORGET_TOKENS_AFTER: Duration = Duration::from_hours(24);

/// How long a demand is believed although it refuses callers.
const BELIEVED_FOR: Duration = Duration::from_mins(1);

/// What the catalogue's rights are called, by every registry that has one.
const CATALOG_SCOPE: &str = "registry:catalog:*";

/// What one endpoint demands and has been given.
#[derive(Debug)]
pub(super) struct Auth {
    place: Place,
    login: LoginSource,
    /// Further sites that may issue tokens.
    realms: Vec<Site>,
    memory: Mutex<Memory>,
    tokens: Cache<(Option<CallerId>, String), TokenSlot>,
}

/// Held for a few instructions, never across an await.
#[derive(Debug, Default)]
struct Memory {
    demand: Option<Demand>,
    /// When the demand was learnt.
    learnt: Option<Instant>,
    rotated: Option<Rotated>,
    /// The token service that takes a password by POST only.
    posting: Option<Site>,
}

/// A token service has replaced the refresh token of the configuration. Each is sent to that service only.
#[derive(Debug)]
struct Rotated {
    site: Site,
    service: Option<String>,
    original: Secret,
    current: Secret,
}

/// What an authorization is wanted for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Right<'a> {
    Pull(&'a Repository),
    Catalog,
}

/// What an authorization is wanted for, and for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) right: Right<'a>,
    /// The edge itself, where there is none.
    pub(super) caller: Option<&'a Caller>,
    /// A token that was asked for before that does not do.
    pub(super) since: Option<Instant>,
}

/// What the last challenge demanded.
#[derive(Debug, Clone)]
enum Demand {
    Basic,
    Bearer(Arc<TokenService>),
}

/// Where tokens come from, checked against the configuration.
#[derive(Debug)]
struct TokenService {
    site: Site,
    realm: Uri,
    service: Option<String>,
    scope: ScopeRule,
}

/// How the scope of a repository is written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ScopeRule {
    /// The text before and after the repository's name, as the challenge had it.
    Around(String, String),
    /// The same for every repository (`aws` at public.ecr.aws).
    Fixed(String),
}

/// A failed fetch is kept only for those who waited for it; the next one tries again.
type TokenSlot = Result<Token, Error>;

impl TokenService {
    fn named(&self) -> Option<&str> {
        self.service.as_deref().filter(|name| !name.is_empty())
    }
}

impl Auth {
    pub(super) fn new(place: Place, credential: Option<Credential>, realms: Vec<Site>) -> Self {
        let tokens = Cache::builder().max_capacity(MAX_TOKENS).time_to_live(FORGET_TOKENS_AFTER).build();
        Self { place, login: LoginSource::new(credential), realms, memory: Mutex::default(), tokens }
    }

    pub(super) fn has_credential(&self) -> bool {
        self.login.is_configured()
    }

    /// The `Authorization` to send before any challenge, from what the last one demanded. Nothing at first.
    pub(super) async fn in_advance(
        &self,
        remote: &Remote,
        claim: Claim<'_>,
    ) -> Result<Option<HeaderValue>, Error> {
        let Some(demand) = self.lock().demand.clone() else {
            return Ok(None);
        };
        if matches!(demand, Demand::Basic) && !self.has_login(claim.caller) {
            // What was refused once may be given elsewhere.
            return Ok(None);
        }
        match self.satisfy(remote, &demand, claim, None).await {
            Ok(header) => Ok(Some(header)),
            Err(error) => {
                let mut memory = self.lock();
                let is_old = memory.learnt.is_none_or(|learnt| learnt.elapsed() > BELIEVED_FOR);
                // The demand may be outdated (a token service that has moved): the next request asks again. But whoever
                // has a wrong login does not make everybody ask.
                if is_old || !error.is_of_caller() {
                    memory.demand = None;
                }
                Err(error)
            }
        }
    }

    /// The `Authorization` that answers a 401, other than the one that was `rejected`.
    pub(super) async fn answer(
        &self,
        remote: &Remote,
        claim: Claim<'_>,
        challenges: &[Challenge],
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        let demand = self.understand(challenges, claim)?;
        {
            let mut memory = self.lock();
            (memory.demand, memory.learnt) = (Some(demand.clone()), Some(Instant::now()));
        }
        self.satisfy(remote, &demand, claim, rejected).await
    }

    /// Another `Authorization` than the `rejected` one, for an answer without a challenge (403); `None` if
    /// there can be no other.
    pub(super) async fn renew(
        &self,
        remote: &Remote,
        claim: Claim<'_>,
        rejected: &HeaderValue,
    ) -> Option<HeaderValue> {
        let demand = self.lock().demand.clone()?;
        self.satisfy(remote, &demand, claim, Some(rejected)).await.ok()
    }

    /// Whose credential answers for somebody: a caller has his own, or none, and the edge's is not for him.
    pub(super) fn whose(&self, caller: Option<&Caller>) -> Whose {
        match caller {
            Some(_) => Whose::Caller,
            None if self.has_credential() => Whose::Edge,
            None => Whose::Nobody,
        }
    }

    /// Whether somebody has anything to prove himself with.
    pub(super) fn has_login(&self, caller: Option<&Caller>) -> bool {
        caller.map_or(self.has_credential(), |caller| caller.login().is_some())
    }

    fn understand(&self, challenges: &[Challenge], claim: Claim<'_>) -> Result<Demand, Error> {
        if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme == Scheme::Bearer) {
            let (realm, site) =
                realm::check(bearer.realm().unwrap_or_default(), &self.place.endpoint, &self.realms)
                    .map_err(|refusal| Error::RealmRefused {
                        at: self.place.clone(),
                        realm: refusal.realm,
                        reason: refusal.reason.to_owned(),
                    })?;
            return Ok(Demand::Bearer(Arc::new(TokenService {
                site,
                realm,
                service: bearer.service().map(str::to_owned),
                scope: match claim.right {
                    Right::Pull(repository) => ScopeRule::learn(bearer.scope(), repository),
                    // It says nothing about repositories, of which more may be known already.
                    Right::Catalog => self.known_scope_rule(),
                },
            })));
        }
        if challenges.iter().any(|challenge| challenge.scheme == Scheme::Basic) {
            return Ok(Demand::Basic);
        }
        let schemes: Vec<_> = challenges.iter().map(|challenge| challenge.scheme.as_str()).collect();
        Err(Error::Unauthorized {
            at: self.place.clone(),
            whose: self.whose(claim.caller),
            detail: match schemes.as_slice() {
                [] => "401 without a challenge".to_owned(),
                schemes => format!("it wants the scheme {}, which is not supported", schemes.join(" or ")),
            },
        })
    }

    async fn satisfy(
        &self,
        remote: &Remote,
        demand: &Demand,
        claim: Claim<'_>,
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        match demand {
            Demand::Basic => self.basic(claim, rejected).await,
            Demand::Bearer(service) => self.token(remote, service, claim, rejected).await,
        }
    }

    async fn basic(&self, claim: Claim<'_>, rejected: Option<&HeaderValue>) -> Result<HeaderValue, Error> {
        let refused = |detail: &str| Error::Unauthorized {
            at: self.place.clone(),
            whose: self.whose(claim.caller),
            detail: detail.to_owned(),
        };
        let Some(login) = self.login(claim.caller, rejected.is_some()).await? else {
            return Err(refused("it wants a user name and password"));
        };
        let basic = login.basic().ok_or_else(|| {
            refused("it wants a user name and password, the credential is an identity token")
        })?;
        let header = secret_header(basic.expose())
            .ok_or_else(|| refused("the user name or password cannot be sent in a header"))?;
        if rejected == Some(&header) {
            Err(refused("user name and password are refused"))
        } else {
            Ok(header)
        }
    }

    async fn token(
        &self,
        remote: &Remote,
        service: &TokenService,
        claim: Claim<'_>,
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        let scope = service.scope.of(claim.right);
        let now = remote.now();
        let fetch = async {
            let result = self.issue(remote, service, &scope, claim.caller, rejected.is_some()).await;
            remote.metrics().token_exchanged(&self.place.upstream, &result);
            result
        };
        let is_spent = |slot: &TokenSlot| match slot {
            Ok(token) => {
                let is_too_old = claim.since.is_some_and(|since| token.asked < since);
                is_too_old || !token.is_fresh(now) || rejected == Some(&token.header)
            }
            Err(_) => true,
        };
        let slot = (claim.caller.map(Caller::id), scope.clone());
        let entry = self.tokens.entry(slot).or_insert_with_if(fetch, is_spent).await;
        entry.into_value().map(|token| token.header)
    }

    /// A new token; `was_refused` if the last one was.
    async fn issue(
        &self,
        remote: &Remote,
        service: &TokenService,
        scope: &str,
        caller: Option<&Caller>,
        was_refused: bool,
    ) -> Result<Token, Error> {
        let login = self.login(caller, was_refused).await?;
        let whose = self.whose(caller);
        let result = self.exchange(remote, service, scope, login.as_ref(), whose).await;
        if whose == Whose::Caller || !matches!(result, Err(Error::Unauthorized { .. })) {
            return result;
        }
        // It may have expired, or been rotated, since it was read.
        let newer = self.login(caller, true).await?;
        if newer == login {
            result
        } else {
            self.exchange(remote, service, scope, newer.as_ref(), whose).await
        }
    }

    async fn exchange(
        &self,
        remote: &Remote,
        service: &TokenService,
        scope: &str,
        login: Option<&Login>,
        whose: Whose,
    ) -> Result<Token, Error> {
        let fetch = async |grant| token::fetch(remote, service, scope, grant, whose).await;
        let issued = match login {
            None => fetch(Grant::Anonymous).await,
            // Where it is replaced, that is for the caller to learn.
            Some(Login::IdentityToken(token)) if whose == Whose::Caller => fetch(Grant::Refresh(token)).await,
            Some(Login::IdentityToken(original)) => self.refresh(remote, service, scope, original).await,
            Some(login @ Login::Password { username, password }) => {
                let post = Grant::Password { username, password };
                let must_post = self.lock().posting.as_ref() == Some(&service.site);
                let first = if must_post { post } else { Grant::Basic(login) };
                match fetch(first).await {
                    Err(refusal) if !must_post && wants_another_method(&refusal) => {
                        let issued = fetch(post).await;
                        if issued.is_ok() {
                            self.lock().posting = Some(service.site.clone());
                        }
                        issued
                    }
                    issued => issued,
                }
            }
        };
        issued.map(|issued| issued.token).map_err(|refusal| refusal.error)
    }

    /// Exchanges the newest refresh token that is known; if it is refused, what another exchange has got
    /// meanwhile, and at last the one of the configuration.
    async fn refresh(
        &self,
        remote: &Remote,
        service: &TokenService,
        scope: &str,
        original: &Secret,
    ) -> Result<Issued, Refusal> {
        let mut sent = self.rotated(service, original).unwrap_or_else(|| original.clone());
        loop {
            match token::fetch(remote, service, scope, Grant::Refresh(&sent), Whose::Edge).await {
                Ok(issued) => {
                    if let Some(current) = issued.refresh_token.as_ref().filter(|token| **token != sent) {
                        self.lock().rotated = Some(Rotated {
                            site: service.site.clone(),
                            service: service.service.clone(),
                            original: original.clone(),
                            current: current.clone(),
                        });
                    }
                    return Ok(issued);
                }
                Err(refusal) if sent != *original && matches!(refusal.error, Error::Unauthorized { .. }) => {
                    let newer = self.rotated(service, original).filter(|newer| *newer != sent);
                    sent = newer.unwrap_or_else(|| original.clone());
                    if sent == *original {
                        self.lock().rotated = None;
                    }
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    fn rotated(&self, service: &TokenService, original: &Secret) -> Option<Secret> {
        let memory = self.lock();
        let rotated = memory.rotated.as_ref()?;
        let is_its_own = rotated.site == service.site
            && rotated.service == service.service
            && rotated.original == *original;
        is_its_own.then(|| rotated.current.clone())
    }

    fn known_scope_rule(&self) -> ScopeRule {
        match &self.lock().demand {
            Some(Demand::Bearer(service)) => service.scope.clone(),
            Some(Demand::Basic) | None => ScopeRule::usual(),
        }
    }

    /// The caller's login, or the edge's; of that, not the known one after a refusal.
    async fn login(&self, caller: Option<&Caller>, was_refused: bool) -> Result<Option<Login>, Error> {
        if let Some(caller) = caller {
            return Ok(caller.login().cloned());
        }
        let current = self.login.current(was_refused).await;
        current.map_err(|error| Error::Misconfigured { at: self.place.clone(), reason: error.to_string() })
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ScopeRule {
    /// Turns the scope of a challenge for `repository` into one for any repository.
    fn learn(scope: Option<&str>, repository: &Repository) -> Self {
        let Some(scope) = scope.filter(|scope| !scope.is_empty()) else {
            return Self::usual();
        };
        let name = format!(":{repository}:");
        match scope.split_once(&name) {
            Some((before, after)) => Self::Around(format!("{before}:"), format!(":{after}")),
            None => Self::Fixed(scope.to_owned()),
        }
    }

    fn usual() -> Self {
        Self::Around("repository:".to_owned(), ":pull".to_owned())
    }

    fn of(&self, right: Right<'_>) -> String {
        match (self, right) {
            (Self::Around(before, after), Right::Pull(repository)) => format!("{before}{repository}{after}"),
            (Self::Around(..), Right::Catalog) => CATALOG_SCOPE.to_owned(),
            (Self::Fixed(scope), _) => scope.clone(),
        }
    }
}

fn wants_another_method(refusal: &Refusal) -> bool {
    matches!(refusal.status, Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED))
}

/// A header value that shows itself as `Sensitive` and is never put into an HPACK table.
fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scope_of_one_repository_tells_that_of_the_others() {
        let repository = |text: &str| text.parse::<Repository>().unwrap();
        let cases = [
            (Some("repository:a/b:pull"), "repository:c/d:pull"),
            (Some("repository:a/b:pull,push"), "repository:c/d:pull,push"),
            (None, "repository:c/d:pull"),
            (Some(""), "repository:c/d:pull"),
            (Some("aws"), "aws"),
        ];
        for (scope, expected) in cases {
            assert_eq!(
                ScopeRule::learn(scope, &repository("a/b")).of(Right::Pull(&repository("c/d"))),
                expected,
                "{scope:?}"
            );
        }
        let odd = ScopeRule::learn(Some("repository:repository:pull"), &repository("repository"));
        assert_eq!(odd.of(Right::Pull(&repository("pull"))), "repository:pull:pull");
    }
}
