//! Proving who asks: Basic and Bearer, for one endpoint.
//!
//! The endpoint's first challenge is remembered, so that later requests carry their token straight away.
//! Tokens are cached by scope; whoever needs one that is being fetched waits for the same fetch.
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

use crate::oci::{Challenge, Repository, Scheme};
use crate::routing::{Credential, Login, Site};
use crate::runtime::Secret;

use super::error::{Error, Place};
use super::remote::Remote;

use login::LoginSource;
use token::{Grant, Issued, Refusal, Token};

/// Scopes per endpoint: one per repository that is pulled from it within a day.
const MAX_TOKENS: u64 = 10_000;
const FORGET_TOKENS_AFTER: Duration = Duration::from_hours(24);

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
    tokens: Cache<String, TokenSlot>,
}

/// Held for a few instructions, never across an await.
#[derive(Debug, Default)]
struct Memory {
    demand: Option<Demand>,
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
        right: Right<'_>,
    ) -> Result<Option<HeaderValue>, Error> {
        let Some(demand) = self.lock().demand.clone() else {
            return Ok(None);
        };
        match self.satisfy(remote, &demand, right, None).await {
            Ok(header) => Ok(Some(header)),
            Err(error) => {
                // The demand may be outdated (a token service that has moved): the next request asks again.
                self.lock().demand = None;
                Err(error)
            }
        }
    }

    /// The `Authorization` that answers a 401, other than the one that was `rejected`.
    pub(super) async fn answer(
        &self,
        remote: &Remote,
        right: Right<'_>,
        challenges: &[Challenge],
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        let demand = self.understand(challenges, right)?;
        self.lock().demand = Some(demand.clone());
        self.satisfy(remote, &demand, right, rejected).await
    }

    /// Another `Authorization` than the `rejected` one, for an answer without a challenge (403); `None` if
    /// there can be no other.
    pub(super) async fn renew(
        &self,
        remote: &Remote,
        right: Right<'_>,
        rejected: &HeaderValue,
    ) -> Option<HeaderValue> {
        let demand = self.lock().demand.clone()?;
        self.satisfy(remote, &demand, right, Some(rejected)).await.ok()
    }

    fn understand(&self, challenges: &[Challenge], right: Right<'_>) -> Result<Demand, Error> {
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
                scope: match right {
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
            has_credential: self.has_credential(),
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
        right: Right<'_>,
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        match demand {
            Demand::Basic => self.basic(rejected).await,
            Demand::Bearer(service) => self.token(remote, service, right, rejected).await,
        }
    }

    async fn basic(&self, rejected: Option<&HeaderValue>) -> Result<HeaderValue, Error> {
        let refused = |detail: &str| Error::Unauthorized {
            at: self.place.clone(),
            has_credential: self.has_credential(),
            detail: detail.to_owned(),
        };
        let Some(login) = self.login(rejected.is_some()).await? else {
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
        right: Right<'_>,
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        let scope = service.scope.of(right);
        let now = remote.now();
        let fetch = async {
            let result = self.issue(remote, service, &scope, rejected.is_some()).await;
            remote.metrics().token_exchanged(&self.place.upstream, &result);
            result
        };
        let is_spent = |slot: &TokenSlot| match slot {
            Ok(token) => !token.is_fresh(now) || rejected == Some(&token.header),
            Err(_) => true,
        };
        let entry = self.tokens.entry_by_ref(&scope).or_insert_with_if(fetch, is_spent).await;
        entry.into_value().map(|token| token.header)
    }

    /// A new token; `was_refused` if the last one was.
    async fn issue(
        &self,
        remote: &Remote,
        service: &TokenService,
        scope: &str,
        was_refused: bool,
    ) -> Result<Token, Error> {
        let login = self.login(was_refused).await?;
        let result = self.exchange(remote, service, scope, login.as_ref()).await;
        if !matches!(result, Err(Error::Unauthorized { .. })) {
            return result;
        }
        // It may have expired, or been rotated, since it was read.
        let newer = self.login(true).await?;
        if newer == login { result } else { self.exchange(remote, service, scope, newer.as_ref()).await }
    }

    async fn exchange(
        &self,
        remote: &Remote,
        service: &TokenService,
        scope: &str,
        login: Option<&Login>,
    ) -> Result<Token, Error> {
        let issued = match login {
            None => token::fetch(remote, service, scope, Grant::Anonymous).await,
            Some(Login::IdentityToken(original)) => self.refresh(remote, service, scope, original).await,
            Some(login @ Login::Password { username, password }) => {
                let post = Grant::Password { username, password };
                let must_post = self.lock().posting.as_ref() == Some(&service.site);
                let first = if must_post { post } else { Grant::Basic(login) };
                match token::fetch(remote, service, scope, first).await {
                    Err(refusal) if !must_post && wants_another_method(&refusal) => {
                        let issued = token::fetch(remote, service, scope, post).await;
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
            match token::fetch(remote, service, scope, Grant::Refresh(&sent)).await {
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

    /// The login, not the known one after a refusal.
    async fn login(&self, was_refused: bool) -> Result<Option<Login>, Error> {
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
