//! Proving who asks: Basic and Bearer, for one endpoint.
//!
//! The endpoint's first challenge is remembered, so that later requests carry their token straight away.
//! Tokens are cached by scope; whoever needs one that is being fetched waits for the same fetch.

mod realm;
mod token;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderValue;
use moka::future::Cache;
use tokio::time::Instant;

use crate::oci::{Challenge, Repository, Scheme};
use crate::routing::{Credential, Login, Site};
use crate::runtime::Timestamp;

use super::error::{Error, Place};
use super::remote::Remote;

/// Scopes per endpoint: one per repository that is pulled from it within a day.
const MAX_TOKENS: u64 = 10_000;
const FORGET_TOKENS_AFTER: Duration = Duration::from_hours(24);

/// How long a password that can be rotated is used without looking at its file.
const LOGIN_FRESH_FOR: Duration = Duration::from_secs(30);

/// What one endpoint demands and has been given.
#[derive(Debug)]
pub(super) struct Auth {
    place: Place,
    credential: Option<Credential>,
    /// Further sites that may issue tokens.
    realms: Vec<Site>,
    memory: Mutex<Memory>,
    tokens: Cache<String, TokenSlot>,
}

/// Held for a few instructions, never across an await.
#[derive(Debug, Default)]
struct Memory {
    demand: Option<Demand>,
    login: Option<(Instant, Login)>,
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
#[derive(Debug, PartialEq, Eq)]
enum ScopeRule {
    /// The text before and after the repository's name, as the challenge had it.
    Around(String, String),
    /// The same for every repository (`aws` at public.ecr.aws).
    Fixed(String),
}

/// A failed fetch is kept only for those who waited for it; the next one tries again.
type TokenSlot = Result<Token, Error>;

#[derive(Debug, Clone)]
struct Token {
    header: HeaderValue,
    fresh_until: Timestamp,
}

impl Auth {
    pub(super) fn new(place: Place, credential: Option<Credential>, realms: Vec<Site>) -> Self {
        let tokens = Cache::builder().max_capacity(MAX_TOKENS).time_to_live(FORGET_TOKENS_AFTER).build();
        Self { place, credential, realms, memory: Mutex::default(), tokens }
    }

    pub(super) fn has_credential(&self) -> bool {
        self.credential.is_some()
    }

    /// The `Authorization` to send before any challenge, from what the last one demanded. Nothing at first.
    pub(super) async fn in_advance(
        &self,
        remote: &Remote,
        repository: &Repository,
    ) -> Result<Option<HeaderValue>, Error> {
        let Some(demand) = self.lock().demand.clone() else {
            return Ok(None);
        };
        match self.satisfy(remote, &demand, repository, None).await {
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
        repository: &Repository,
        challenges: &[Challenge],
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        let demand = self.understand(challenges, repository)?;
        self.lock().demand = Some(demand.clone());
        self.satisfy(remote, &demand, repository, rejected).await
    }

    /// Another `Authorization` than the `rejected` one, for an answer without a challenge (403); `None` if
    /// there can be no other.
    pub(super) async fn renew(
        &self,
        remote: &Remote,
        repository: &Repository,
        rejected: &HeaderValue,
    ) -> Option<HeaderValue> {
        let demand = self.lock().demand.clone()?;
        self.satisfy(remote, &demand, repository, Some(rejected)).await.ok()
    }

    fn understand(&self, challenges: &[Challenge], repository: &Repository) -> Result<Demand, Error> {
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
                scope: ScopeRule::learn(bearer.scope(), repository),
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
        repository: &Repository,
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        match demand {
            Demand::Basic => self.basic(rejected).await,
            Demand::Bearer(service) => self.token(remote, service, repository, rejected).await,
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
        let header = secret_header(login.basic().expose())
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
        repository: &Repository,
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        let scope = service.scope.of(repository);
        let now = remote.now();
        let fetch = async {
            // A login that was just refused may have been rotated.
            let login = self.login(rejected.is_some()).await?;
            let result = token::fetch(remote, service, &scope, login.as_ref()).await;
            remote.metrics().token_exchanged(&self.place.upstream, &result);
            result
        };
        let is_spent = |slot: &TokenSlot| match slot {
            Ok(token) => token.fresh_until <= now || rejected == Some(&token.header),
            Err(_) => true,
        };
        let entry = self.tokens.entry_by_ref(&scope).or_insert_with_if(fetch, is_spent).await;
        entry.into_value().map(|token| token.header)
    }

    /// The user name and password, read again where they can change and are old or `must_be_new`.
    async fn login(&self, must_be_new: bool) -> Result<Option<Login>, Error> {
        let Some(credential) = &self.credential else {
            return Ok(None);
        };
        let is_fresh = |read_at: &Instant| {
            !credential.can_change() || (!must_be_new && read_at.elapsed() < LOGIN_FRESH_FOR)
        };
        if let Some((_, login)) = self.lock().login.as_ref().filter(|(read_at, _)| is_fresh(read_at)) {
            return Ok(Some(login.clone()));
        }
        let login = credential
            .login()
            .await
            .map_err(|error| Error::Misconfigured { at: self.place.clone(), reason: error.to_string() })?;
        self.lock().login = Some((Instant::now(), login.clone()));
        Ok(Some(login))
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ScopeRule {
    /// Turns the scope of a challenge for `repository` into one for any repository.
    fn learn(scope: Option<&str>, repository: &Repository) -> Self {
        let Some(scope) = scope.filter(|scope| !scope.is_empty()) else {
            return Self::Around("repository:".to_owned(), ":pull".to_owned());
        };
        let name = format!(":{repository}:");
        match scope.split_once(&name) {
            Some((before, after)) => Self::Around(format!("{before}:"), format!(":{after}")),
            None => Self::Fixed(scope.to_owned()),
        }
    }

    fn of(&self, repository: &Repository) -> String {
        match self {
            Self::Around(before, after) => format!("{before}{repository}{after}"),
            Self::Fixed(scope) => scope.clone(),
        }
    }
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
                ScopeRule::learn(scope, &repository("a/b")).of(&repository("c/d")),
                expected,
                "{scope:?}"
            );
        }
        let odd = ScopeRule::learn(Some("repository:repository:pull"), &repository("repository"));
        assert_eq!(odd.of(&repository("pull")), "repository:pull:pull");
    }
}
