//! One question to one endpoint: authorization, redirects, the deadline for the response's head, and what the
//! status means.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{HeaderValue, LOCATION, WWW_AUTHENTICATE};
use hyper::{Method, Response, StatusCode};
use tokio::time::{Instant, timeout};

use crate::oci::{Challenge, ErrorCode, ErrorDocument, MANIFEST_ACCEPT, RangeSpec, Target, Via, media_type};
use crate::routing::{Caller, Route};

use super::auth::{Claim, Right};
use super::body;
use super::budget::{Purpose, Ticket};
use super::error::{Error, Stage};
use super::health::Conduct;
use super::metrics::Kind;
use super::quota::{self, Quota};
use super::redirect::{self, RedirectError};
use super::remote::{Outgoing, Remote, words};
use super::response::{Answer, retry_after};

/// What an endpoint is asked, in the words of the caller's repository.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) kind: Kind,
    pub(super) target: Target,
    /// In place of the target's own query: what the upstream's link to the next page says.
    pub(super) query: Option<String>,
    /// Only these bytes of it.
    pub(super) range: Option<RangeSpec>,
    /// Which proxies the request that leads to this question has come through.
    pub(super) via: Via,
    /// On whose behalf it is asked, where the upstream judges each caller.
    pub(super) caller: Option<Caller>,
    pub(super) purpose: Purpose,
}

/// What is learnt of the endpoint on the way, also where a deadline cuts the way short.
#[derive(Debug, Default)]
struct Course(Mutex<Seen>);

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// The endpoint itself has answered: a silence further on is not its own.
    has_answered: bool,
    /// A redirect has led elsewhere: what fails there is not the endpoint.
    has_led_elsewhere: bool,
    /// A caller's login is being tried: what comes of that says nothing of the endpoint.
    is_at_login: bool,
    quota: Option<Quota>,
}

impl Course {
    /// Locked for a few instructions, never across an await.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question {
    pub(super) fn new(kind: Kind, target: Target, via: &Via, caller: Option<&Caller>) -> Self {
        let (via, caller) = (via.clone(), caller.cloned());
        Self { kind, target, query: None, range: None, via, caller, purpose: Purpose::Pull }
    }

    pub(super) fn of(route: &Route, kind: Kind, target: Target) -> Self {
        Self::new(kind, target, &route.via, route.caller.as_ref())
    }

    pub(super) fn for_purpose(self, purpose: Purpose) -> Self {
        Self { purpose, ..self }
    }

    fn method(&self) -> Method {
        match self.kind {
            Kind::ManifestHead | Kind::BlobHead => Method::HEAD,
            Kind::Manifest | Kind::Blob | Kind::Tags | Kind::Referrers | Kind::Catalog => Method::GET,
        }
    }

    /// A narrow `Accept` makes some registries convert a manifest, which would then be cached for everybody.
    fn accept(&self) -> Option<&'static str> {
        match self.kind {
            Kind::ManifestHead | Kind::Manifest => Some(MANIFEST_ACCEPT),
            Kind::Referrers => Some(media_type::OCI_INDEX),
            Kind::Tags | Kind::Catalog => Some("application/json"),
            Kind::BlobHead | Kind::Blob => None,
        }
    }

    fn is_of_manifest(&self) -> bool {
        matches!(self.kind, Kind::ManifestHead | Kind::Manifest)
    }

    /// What a 404 without a word about it means.
    fn unknown(&self) -> ErrorCode {
        match self.kind {
            Kind::ManifestHead | Kind::Manifest | Kind::Referrers => ErrorCode::ManifestUnknown,
            Kind::BlobHead | Kind::Blob => ErrorCode::BlobUnknown,
            Kind::Tags => ErrorCode::NameUnknown,
            Kind::Catalog => ErrorCode::Unsupported,
        }
    }
}

impl Remote {
    /// Asks, and gives the response once its head is there and its status is a success (or 416 to a range).
    pub(super) async fn ask(&self, question: &Question) -> Result<Answer, Error> {
        let ticket = match self.admit(question) {
            Ok(ticket) => ticket,
            Err(wait) => {
                self.metrics().quota_refused(&self.place().upstream, question.purpose);
                return Err(Error::RateLimited { at: self.place().clone(), retry_after: Some(wait) });
            }
        };
        let pass = self.health.enter()?;
        let began = Instant::now();
        let course = Course::default();
        let result = timeout(self.config().header_timeout, self.exchange(question, &course)).await;
        let elapsed = began.elapsed();
        let result = result.unwrap_or_else(|_| Err(self.timed_out(Stage::Headers, elapsed)));
        let seen = *course.seen();
        let conduct = match &result {
            Err(_) if seen.is_at_login => None,
            Err(error @ Error::TimedOut { .. }) if !seen.has_answered => Some(Conduct::Silent(error.clone())),
            Err(error @ Error::Unreachable { .. }) if !seen.has_led_elsewhere => {
                Some(Conduct::Failed(error.clone()))
            }
            _ => Some(Conduct::Answered),
        };
        // Dropped without one, it decides nothing.
        if let Some(conduct) = conduct {
            pass.settle(conduct);
        }
        if let Some(ticket) = ticket.filter(|_| seen.has_answered) {
            ticket.answered(seen.quota);
        }
        self.metrics().answered(&self.place().upstream, question.kind, elapsed, &result);
        result
    }

    /// As whom a question is asked: a caller's proof with his own login, and whatever else with the edge's credential,
    /// if it has one.
    fn asks_as<'q>(&self, question: &'q Question) -> Option<&'q Caller> {
        let is_his = question.purpose == Purpose::Proof || !self.has_credential();
        question.caller.as_ref().filter(|_| is_his)
    }

    /// What a caller asks with his own login is counted against his own quota, which is not known here.
    fn has_own_quota(&self, question: &Question) -> bool {
        self.asks_as(question).is_some_and(|caller| caller.login().is_some())
    }

    fn admit(&self, question: &Question) -> Result<Option<Ticket<'_>>, Duration> {
        if self.has_own_quota(question) {
            return Ok(None);
        }
        self.budget.admit(question.kind, question.purpose).map(Some)
    }

    async fn exchange(&self, question: &Question, course: &Course) -> Result<Answer, Error> {
        let misconfigured = |reason: String| Error::Misconfigured { at: self.place().clone(), reason };
        let renamed = question.target.repository().map(|asked| self.endpoint().repository(asked));
        let repository = renamed.transpose().map_err(|error| misconfigured(error.to_string()))?;
        let (target, right) = match &repository {
            Some(repository) => {
                (question.target.clone().with_repository(repository.clone()), Right::Pull(repository))
            }
            None => (question.target.clone(), Right::Catalog),
        };
        let mut path = target.path_and_query();
        if let Some(query) = &question.query {
            path = format!("{}?{query}", path.split('?').next().unwrap_or_default());
        }

        let caller = self.asks_as(question);
        let since = (question.purpose == Purpose::Proof).then(Instant::now);
        let claim = Claim { right, caller, since };
        let has_login = caller.is_some_and(|caller| caller.login().is_some());
        let at_login = |is_at_login| course.seen().is_at_login = is_at_login && has_login;
        at_login(true);
        let mut authorization = self.auth.in_advance(self, claim).await?;
        at_login(false);
        let answer = self.follow(question, &path, authorization.as_ref(), course).await?;
        // One retry: a challenge is answered once, and what is refused is renewed once.
        let retry = match answer.status() {
            _ if answer.is_from_elsewhere => None,
            StatusCode::UNAUTHORIZED => {
                let challenges = challenges(&answer);
                match (&authorization, challenges.as_slice()) {
                    (None, []) => None,
                    (Some(refused), []) => self.auth.renew(self, claim, refused).await,
                    (refused, challenges) => {
                        at_login(true);
                        Some(self.auth.answer(self, claim, challenges, refused.as_ref()).await?)
                    }
                }
            }
            // Some registries answer an expired token so.
            StatusCode::FORBIDDEN if self.auth.has_login(caller) => match &authorization {
                Some(refused) => {
                    at_login(true);
                    self.auth.renew(self, claim, refused).await
                }
                None => None,
            },
            _ => None,
        };
        at_login(false);
        if retry.is_none() {
            return self.judge(question, answer).await;
        }
        authorization = retry;
        body::drain(answer.response.into_body(), self.config()).await;
        let answer = self.follow(question, &path, authorization.as_ref(), course).await?;
        self.judge(question, answer).await
    }

    /// Sends the request and follows redirects. `Authorization` is for the endpoint's own site; once a
    /// redirect has left it, nothing is sent along any more, even if another one leads back.
    async fn follow(
        &self,
        question: &Question,
        path: &str,
        authorization: Option<&HeaderValue>,
        course: &Course,
    ) -> Result<Answer, Error> {
        let odd = |error: RedirectError| self.not_a_registry(error.to_string());
        let mut site = self.endpoint().site.clone();
        let mut url =
            site.url(path).ok_or_else(|| self.not_a_registry("its URL cannot be built".to_owned()))?;
        let mut is_elsewhere = false;
        for _ in 0..=self.config().max_redirects {
            let sent = authorization.filter(|_| !is_elsewhere);
            let request = Outgoing {
                method: question.method(),
                accept: question.accept(),
                range: question.range,
                authorization: sent,
                // Whoever a redirect leads to is none of the proxies that could ask us again.
                via: (!is_elsewhere).then_some(&question.via),
                form: None,
            };
            let response = self.request(&site, url.clone(), request).await?;
            if !is_elsewhere {
                self.note(&response, course);
            }
            if !is_redirect(response.status()) {
                return Ok(Answer { response, is_from_elsewhere: is_elsewhere });
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            (url, site) = redirect::target(&url, location.unwrap_or_default()).map_err(odd)?;
            is_elsewhere |= site != self.endpoint().site;
            course.seen().has_led_elsewhere = is_elsewhere;
            // Read to its end, or the connection could not be used again.
            body::drain(response.into_body(), self.config()).await;
        }
        Err(odd(RedirectError::TooMany))
    }

    fn note(&self, response: &Response<Incoming>, course: &Course) {
        let mut seen = course.seen();
        seen.has_answered = true;
        // A challenge speaks of the quota of somebody else, who has no credential.
        if response.status() != StatusCode::UNAUTHORIZED {
            seen.quota = quota::read(response.headers(), self.now());
        }
    }

    /// What a status means.
    async fn judge(&self, question: &Question, answer: Answer) -> Result<Answer, Error> {
        let status = answer.status();
        let is_asked_for = match status {
            StatusCode::OK => true,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => question.range.is_some(),
            _ => false,
        };
        if is_asked_for {
            return Ok(answer);
        }
        let wait = retry_after(answer.headers(), self.now());
        let is_from_elsewhere = answer.is_from_elsewhere;
        let body = body::drain(answer.response.into_body(), self.config()).await;
        Err(self.refusal(question, status, wait, is_from_elsewhere, &body))
    }

    fn refusal(
        &self,
        question: &Question,
        status: StatusCode,
        retry_after: Option<Duration>,
        is_from_elsewhere: bool,
        body: &[u8],
    ) -> Error {
        let at = self.place().clone();
        let detail = words(status, body);
        match status {
            StatusCode::NOT_FOUND => {
                Error::NotFound { at, code: code_of(body).unwrap_or(question.unknown()) }
            }
            // The redirect's signature was refused: the endpoint gives a new one.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if is_from_elsewhere => Error::Unreachable {
                at,
                reason: format!("the storage it redirects to answers {status}"),
                retry_after,
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(question, status, body),
            StatusCode::TOO_MANY_REQUESTS => {
                let is_counted = question.is_of_manifest() && !self.has_own_quota(question);
                if let Some(wait) = retry_after.filter(|_| is_counted) {
                    self.budget.keep_quiet(wait);
                }
                Error::RateLimited { at, retry_after }
            }
            // No registry answers so: a proxy on the way does, to plain HTTP.
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => Error::Misconfigured {
                at,
                reason: "the proxy on the way wants a user name and password, or others".to_owned(),
            },
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                Error::Unreachable { at, reason: format!("it answers {detail}"), retry_after }
            }
            status if status.is_client_error() => Error::Refused { at, status: status.as_u16(), detail },
            status => self.not_a_registry(format!("it answers {status}")),
        }
    }

    fn denied(&self, question: &Question, status: StatusCode, body: &[u8]) -> Error {
        let (at, whose) = (self.place().clone(), self.auth.whose(self.asks_as(question)));
        let detail = words(status, body);
        if status == StatusCode::FORBIDDEN {
            Error::Forbidden { at, whose, detail }
        } else {
            Error::Unauthorized { at, whose, detail }
        }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn challenges(answer: &Answer) -> Vec<Challenge> {
    let values = answer.headers().get_all(WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(Challenge::parse_all).collect()
}

/// The code of an error document, where it says what is missing.
fn code_of(body: &[u8]) -> Option<ErrorCode> {
    let code = ErrorDocument::parse(body)?.errors.first()?.code;
    matches!(code, ErrorCode::BlobUnknown | ErrorCode::ManifestUnknown | ErrorCode::NameUnknown)
        .then_some(code)
}
