//! One request, one answer.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::time::Instant;

use super::access_log::{self, Answered, Record, RequestId};
use super::accounts::{Accounts, Kind};
use super::body::ResponseBody;
use super::client::Client;
use super::head::Head;
use super::headers::{Headers, OCI_FILTERS_APPLIED, OCI_NAMESPACE, REQUEST_ID, WireHead, etag};
use super::multipart::Multipart;
use super::partial_list::PartialList;
use super::referrers;
use super::respond::{Decision, Refusal};
use super::tokens;
use crate::auth::{Admitted, Auth, Denial, Wanted};
use crate::oci::{
    ApiRequest, ByteRange, ContentRange, Digest, ErrorDocument, Page, RangeRequest, Reference, Repository,
    RequestError, Resolved, Target, Via, media_type, next_page_link,
};
use crate::pull::{self, BlobAnswer, Freshness, Puller, Reader, Want};
use crate::routing::{Route, Routes, Site};
use crate::runtime::Tasks;
use crate::telemetry;
use crate::upstream;

const OCTET_STREAM: HeaderValue = HeaderValue::from_static("application/octet-stream");
const OCI_INDEX: HeaderValue = HeaderValue::from_static(media_type::OCI_INDEX);
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const PROMETHEUS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Headers of an answer, those of `finish` included.
const USUAL_HEADERS: usize = 10;

/// A request id that a client may choose: longer ones are replaced.
const MAX_REQUEST_ID: usize = 128;

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Facet {
    /// Pulls, health and metrics.
    Everything,
    /// Pulls and health.
    Pull,
    /// Health and metrics.
    Metrics,
}

/// Answers requests. Shared by all connections.
#[derive(Debug)]
pub struct Service {
    routes: Routes,
    auth: Auth,
    external_url: Option<Site>,
    puller: Puller,
    tasks: Tasks,
    exposition: telemetry::Metrics,
    accounts: Arc<Accounts>,
}

/// An answer before its common headers.
pub(super) struct Answer(
    // Boxed: it goes through many hands, and each move of its 250 bytes costs more than one allocation.
    Box<Draft>,
);

pub(super) struct Draft {
    response: Response<ResponseBody>,
    /// How long the body of a GET is, where that is known.
    length: Option<u64>,
    freshness: Option<Freshness>,
    decision: Decision,
}

/// An answer that memory gave, without its head.
pub(super) struct AtOnce {
    pub(super) id: RequestId,
    pub(super) started: Instant,
    pub(super) answered: Answered,
    pub(super) body: Bytes,
}

impl Answer {
    fn new(status: StatusCode, body: ResponseBody) -> Self {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        // Enough for a manifest or a range: the map is allocated once and never grows.
        response.headers_mut().reserve(USUAL_HEADERS);
        Self(Box::new(Draft { response, length: None, freshness: None, decision: Decision::default() }))
    }

    pub(super) fn text(status: StatusCode, content_type: HeaderValue, text: impl Into<Bytes>) -> Self {
        let text: Bytes = text.into();
        let length = text.len() as u64;
        Self::new(status, ResponseBody::whole(text)).header(header::CONTENT_TYPE, content_type).length(length)
    }

    fn length(mut self, length: u64) -> Self {
        self.0.length = Some(length);
        self
    }

    /// Sets a header; a value that is none, which can only come from an upstream, is left out.
    pub(super) fn header(mut self, name: HeaderName, value: impl TryInto<HeaderValue>) -> Self {
        if let Ok(value) = value.try_into() {
            self.0.response.headers_mut().insert(name, value);
        }
        self
    }

    /// Notes what was decided, for the access log.
    fn decided(mut self, decision: Decision) -> Self {
        self.0.decision = decision;
        self
    }

    fn digest(mut self, digest: &Digest) -> Self {
        self.0.response.headers_mut().entity(digest);
        self
    }

    fn freshness(mut self, freshness: &Freshness) -> Self {
        self.0.freshness = Some(*freshness);
        self
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let document = ErrorDocument::single(refusal.code, refusal.message).to_json();
        let reason = refusal.decision.reason.or_else(|| Some(refusal.code.as_str()));
        let answer = Self::text(refusal.status, JSON, document)
            .decided(Decision { reason, who: refusal.decision.who });
        match refusal.retry_after {
            Some(after) => answer.header(header::RETRY_AFTER, after.as_secs().max(1)),
            None => answer,
        }
    }
}

impl Service {
    /// A service over the routes, who may use them, and the puller. `external_url` is how clients reach it, else it is what
    /// each of them calls it; `exposition` is what `/metrics` shows.
    pub fn new(
        routes: Routes,
        auth: Auth,
        external_url: Option<Site>,
        puller: Puller,
        tasks: &Tasks,
        exposition: telemetry::Metrics,
        accounts: Accounts,
    ) -> Self {
        let (tasks, accounts) = (tasks.clone(), Arc::new(accounts));
        Self { routes, auth, external_url, puller, tasks, exposition, accounts }
    }

    pub(super) fn auth(&self) -> &Auth {
        &self.auth
    }

    pub(super) fn routes(&self) -> &Routes {
        &self.routes
    }

    pub(super) fn external_url(&self) -> Option<&Site> {
        self.external_url.as_ref()
    }

    pub(super) fn accounts(&self) -> &Arc<Accounts> {
        &self.accounts
    }

    /// Answers one request; failures are answers too.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        client: &Client,
        facet: Facet,
    ) -> Response<ResponseBody> {
        // A pull has no body; what a write brings is not read.
        let (parts, body) = request.into_parts();
        let log = log_request(&parts, client);
        let (kind, answer) = match self.operator_answer(&parts, facet) {
            Some(answer) => (Kind::Operator, answer),
            None if tokens::is_path(parts.uri.path()) => {
                (Kind::Token, Box::pin(self.token_answer(&parts, body, client)).await)
            }
            None => self.api_answer(&parts, client).await,
        };
        self.finish(log, kind, answer)
    }

    /// Answers a request for a manifest that memory has, and writes the head of the answer; `None` for whatever takes
    /// more. It is the answer that [`answer`](Self::answer) gives.
    pub(super) fn at_once(&self, asked: &Head<'_>, wire: &mut WireHead) -> Option<AtOnce> {
        let started = Instant::now();
        // While the process drains, hyper tells the client that the connection ends. Blobs are read by it alone.
        if self.tasks.is_draining() || !asked.path.contains("/manifests/") {
            return None;
        }
        let request = ApiRequest::parse(asked.path, asked.query).ok()?;
        let Target::Manifest { repository, reference } = &request.target else { return None };
        let route = self.routes.find(request.ns.as_deref(), Some(asked.host), repository).ok()?;
        let admitted = self.auth.admit_at_once(route, Wanted::Manifest(reference))?;
        let manifest = self.puller.hot_manifest(&admitted, reference)?;
        let id = RequestId::random();
        wire.manifest(&manifest);
        if let Some(ns) = &request.ns {
            wire.text(OCI_NAMESPACE, ns);
        }
        wire.common(&id, Some(&manifest.freshness));
        wire.number(header::CONTENT_LENGTH, manifest.size);
        if !wire.end(started) {
            return None;
        }
        let body = manifest.body.filter(|_| asked.method == Method::GET).unwrap_or_default();
        let answered = Answered {
            status: StatusCode::OK,
            freshness: Some(manifest.freshness),
            decision: Decision::default(),
            promised: body.len() as u64,
            head_after: started.elapsed(),
        };
        self.accounts.count(Kind::Manifest, answered.status, answered.head_after);
        Some(AtOnce { id, started, answered, body })
    }

    /// Refuses one request because there is no seat for it.
    pub(super) fn refuse_for_load(
        &self,
        request: Request<Incoming>,
        client: &Client,
    ) -> Response<ResponseBody> {
        let (parts, _) = request.into_parts();
        let log = log_request(&parts, client);
        self.finish(log, Kind::Refused, Refusal::overload().into())
    }

    /// Health and metrics.
    fn operator_answer(&self, parts: &Parts, facet: Facet) -> Option<Answer> {
        let readable = matches!(parts.method, Method::GET | Method::HEAD);
        let answer = match parts.uri.path() {
            "/readyz" if readable && self.tasks.is_draining() => {
                Answer::text(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n")
            }
            "/livez" if readable => Answer::text(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" if readable => Answer::text(StatusCode::OK, TEXT, self.readiness()),
            "/metrics" if readable && facet != Facet::Pull => {
                Answer::text(StatusCode::OK, PROMETHEUS, self.exposition.expose())
            }
            _ if facet == Facet::Metrics => {
                Answer::text(StatusCode::NOT_FOUND, TEXT, "see /metrics, /livez, /readyz\n")
            }
            _ => return None,
        };
        Some(answer)
    }

    /// An edge whose disk refuses still answers pulls, so that it stays ready; what it suffers from is said.
    fn readiness(&self) -> String {
        let degraded = self.puller.degraded();
        if degraded.is_empty() {
            return "ok\n".to_owned();
        }
        let lines = degraded.iter().map(|(directory, reason)| {
            format!("degraded: {} cannot be written to: {reason}\n", directory.display())
        });
        lines.collect()
    }

    /// The pull API, with the kind of request for the counters.
    async fn api_answer(&self, parts: &Parts, client: &Client) -> (Kind, Answer) {
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            let answer = Answer::from(Refusal::unsupported_method()).header(header::ALLOW, "GET, HEAD");
            return (Kind::Write, answer);
        }
        let via = via(parts);
        if via.is_loop(self.routes.node()) {
            return (Kind::Invalid, Refusal::request_loop().into());
        }
        let request = match ApiRequest::parse(parts.uri.path(), parts.uri.query()) {
            Ok(request) => request,
            Err(error) => return (Kind::Invalid, Refusal::from(&error).into()),
        };
        let kind = match &request.target {
            Target::Base => Kind::Base,
            Target::Manifest { .. } => Kind::Manifest,
            Target::Blob { .. } => Kind::Blob,
            Target::Tags { .. } => Kind::Tags,
            Target::Referrers { .. } => Kind::Referrers,
            Target::Catalog { .. } => Kind::Catalog,
            Target::Upload { .. } => Kind::Write,
        };
        let answer = self.target_answer(parts, &request, via, client).await.unwrap_or_else(|refusal| {
            let challenge = (refusal.status == StatusCode::UNAUTHORIZED)
                .then(|| self.challenge(parts, client, &request, refusal.token_error));
            let answer = Answer::from(refusal);
            match challenge.flatten() {
                Some(challenge) => answer.header(header::WWW_AUTHENTICATE, challenge.to_string()),
                None => answer,
            }
        });
        let answer = match &request.ns {
            Some(ns) => answer.header(OCI_NAMESPACE, ns.as_str()),
            None => answer,
        };
        (kind, answer)
    }

    async fn target_answer(
        &self,
        parts: &Parts,
        request: &ApiRequest,
        via: Via,
        client: &Client,
    ) -> Result<Answer, Refusal> {
        let ns = request.ns.as_deref();
        let from = client.address(&parts.headers);
        let admit = async |repository, wanted| {
            let route =
                self.routes.find(ns, host(parts), repository).map_err(|error| Refusal::from(&error))?;
            let upstream = Arc::clone(&route.upstream);
            let route = Route { via: via.clone(), ..route };
            let admitted = self.auth.admit(route, &parts.headers, from, wanted).await;
            admitted.map_err(|denial| deny(&denial, upstream.name.as_str()))
        };
        // hyper moves the future of every request, so all but that of a hot manifest are boxed.
        match &request.target {
            Target::Base => Box::pin(self.base(parts, from)).await,
            Target::Manifest { repository, reference } => {
                let admitted = admit(repository, Wanted::Manifest(reference)).await?;
                by(&admitted, self.manifest(parts, &admitted, reference).await)
            }
            Target::Blob { repository, digest } => {
                let admitted = admit(repository, Wanted::Blob(digest)).await?;
                by(&admitted, Box::pin(self.blob(parts, &admitted, digest)).await)
            }
            Target::Tags { repository, page } => {
                let admitted = admit(repository, Wanted::Tags).await?;
                by(&admitted, Box::pin(self.tags(&admitted, repository, page, ns)).await)
            }
            Target::Referrers { repository, digest, .. } => {
                let admitted = admit(repository, Wanted::Referrers(digest)).await?;
                by(&admitted, Box::pin(self.referrers(&admitted, digest, &request.target, ns)).await)
            }
            Target::Catalog { page } => Box::pin(self.catalog(parts, page, ns, &via, from)).await,
            Target::Upload { .. } => Err(Refusal::unsupported_method()),
        }
    }

    /// Where some callers have to say who they are, everybody is told so here: Podman, CRI-O and Docker learn it nowhere
    /// else.
    async fn base(&self, parts: &Parts, from: Option<IpAddr>) -> Result<Answer, Refusal> {
        let greeted = self.auth.greet(&parts.headers, from).await;
        greeted.map_err(|denial| Refusal::of_denial(&denial, "this registry"))?;
        Ok(Answer::text(StatusCode::OK, JSON, "{}"))
    }

    async fn manifest(
        &self,
        parts: &Parts,
        admitted: &Admitted,
        reference: &Reference,
    ) -> Result<Answer, Refusal> {
        let want = if parts.method == Method::HEAD { Want::Head } else { Want::Body };
        let mut manifest = match self.puller.hot_manifest(admitted, reference) {
            Some(manifest) => manifest,
            None => {
                let asked = Box::pin(self.puller.manifest(admitted, reference, want)).await;
                asked.map_err(|error| refuse(&error))?
            }
        };
        if matches_etag(parts, &manifest.digest) {
            return Ok(not_modified(&manifest.digest, &manifest.freshness));
        }
        let body = manifest.body.take().filter(|_| want == Want::Body);
        let mut answer =
            Answer::new(StatusCode::OK, body.map_or_else(ResponseBody::empty, ResponseBody::whole));
        answer.0.response.headers_mut().manifest(&manifest);
        Ok(answer.length(manifest.size).freshness(&manifest.freshness))
    }

    async fn blob(&self, parts: &Parts, admitted: &Admitted, digest: &Digest) -> Result<Answer, Refusal> {
        if parts.method == Method::HEAD || parts.headers.contains_key(header::IF_NONE_MATCH) {
            let head = self.puller.head_blob(admitted, digest).await.map_err(|error| refuse(&error))?;
            if matches_etag(parts, digest) {
                return Ok(not_modified(digest, &head.freshness));
            }
            if parts.method == Method::HEAD {
                let answer = blob_answer(StatusCode::OK, head.size, ResponseBody::empty());
                return Ok(answer.digest(digest).freshness(&head.freshness));
            }
        }
        let range = requested_range(parts, digest);
        let blob = self.puller.blob(admitted, digest, range.as_ref()).await;
        let mut blob = blob.map_err(|error| refuse(&error))?;
        let freshness = blob.freshness;
        if parts.version < Version::HTTP_11 {
            // Without a length such a body ends with the connection, and a broken one looks whole.
            blob.known_size().await.map_err(|error| refuse(&error))?;
        }
        let answer = match range {
            None => whole(blob).await?,
            Some(range) => {
                let size = blob.known_size().await.map_err(|error| refuse(&error))?;
                match range.resolve(size) {
                    Resolved::Single(range) => part(blob, range, size).await?,
                    Resolved::Several(ranges) => parts_of(blob, ranges, size).await?,
                    Resolved::Unsatisfiable => {
                        let content_range = ContentRange { range: None, size: Some(size) };
                        let refusal = Answer::from(Refusal::unsatisfiable_range(size));
                        return Ok(refusal.header(header::CONTENT_RANGE, content_range.to_string()));
                    }
                }
            }
        };
        Ok(answer.digest(digest).freshness(&freshness))
    }

    async fn tags(
        &self,
        admitted: &Admitted,
        repository: &Repository,
        page: &Page,
        ns: Option<&str>,
    ) -> Result<Answer, Refusal> {
        let mut reading = PartialList::new(page, admitted.is_partial());
        let list = loop {
            let list = self.puller.tags(admitted, reading.asked()).await.map_err(|error| refuse(&error))?;
            if let Some(list) = reading.shown(list, |tag| admitted.shows(tag))? {
                break list;
            }
        };
        // The client's own name of the repository: it may carry the upstream's as a prefix.
        let document = serde_json::json!({ "name": repository.as_str(), "tags": list.entries }).to_string();
        let answer = Answer::text(StatusCode::OK, JSON, document).freshness(&list.freshness);
        Ok(match list.next {
            Some(next) => {
                let next = Target::Tags { repository: repository.clone(), page: next };
                answer.header(header::LINK, next_page_link(&next, ns))
            }
            None => answer,
        })
    }

    /// The repositories of one upstream, under the names that it gives them.
    async fn catalog(
        &self,
        parts: &Parts,
        page: &Page,
        ns: Option<&str>,
        via: &Via,
        from: Option<IpAddr>,
    ) -> Result<Answer, Refusal> {
        let upstream = self.routes.upstream(ns, host(parts)).map_err(|error| Refusal::from(&error))?;
        let visitor = self.auth.admit_to_catalog(upstream, &parts.headers, from).await;
        let visitor = visitor.map_err(|denial| deny(&denial, upstream.name.as_str()))?;
        let mut reading = PartialList::new(page, visitor.is_partial());
        let list = loop {
            let list = self.puller.catalog(upstream, visitor.caller.as_ref(), via, reading.asked()).await;
            let list =
                list.map_err(
                    |error| if has_no_catalog(&error) { Refusal::no_catalog() } else { refuse(&error) },
                )?;
            if let Some(list) = reading.shown(list, |name| visitor.shows(upstream, name))? {
                break list;
            }
        };
        let document = serde_json::json!({ "repositories": list.entries }).to_string();
        let decision = Decision { who: visitor.who(), reason: None };
        let answer =
            Answer::text(StatusCode::OK, JSON, document).freshness(&list.freshness).decided(decision);
        Ok(match list.next {
            Some(page) => answer.header(header::LINK, next_page_link(&Target::Catalog { page }, ns)),
            None => answer,
        })
    }

    async fn referrers(
        &self,
        admitted: &Admitted,
        digest: &Digest,
        target: &Target,
        ns: Option<&str>,
    ) -> Result<Answer, Refusal> {
        let Target::Referrers { artifact_type, page, .. } = target else {
            return Err(Refusal::from(&RequestError::NotFound));
        };
        let found = self.puller.referrers(admitted, digest).await.map_err(|error| refuse(&error))?;
        let list = referrers::page(found.manifests(), artifact_type.as_deref(), page);
        let mut answer = Answer::text(StatusCode::OK, OCI_INDEX, list.document).freshness(&found.freshness);
        if artifact_type.is_some() {
            answer = answer.header(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
        }
        if let Some(next) = list.next {
            let next = target.clone().with_page(next);
            answer = answer.header(header::LINK, next_page_link(&next, ns));
        }
        Ok(answer)
    }

    fn finish(&self, log: access_log::Request, kind: Kind, answer: Answer) -> Response<ResponseBody> {
        let Draft { mut response, length, freshness, decision } = *answer.0;
        let status = response.status();
        // hyper says how long a body is that goes out as a whole.
        let is_said = log.method != Method::HEAD && response.body().size_hint().exact() == length;
        let headers = response.headers_mut();
        headers.common(&log.id, freshness.as_ref());
        if let Some(length) = length.filter(|_| !is_said) {
            headers.number(header::CONTENT_LENGTH, length);
        }
        if !matches!(log.method, Method::GET | Method::HEAD) && log.version < Version::HTTP_2 {
            // The body that such a request brings was not read, so nothing can follow it.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let promised = if log.method == Method::HEAD { 0 } else { length.unwrap_or(0) };
        let head_after = log.started.elapsed();
        self.accounts.count(kind, status, head_after);
        if kind == Kind::Operator {
            // Probes and scrapes would bury the pulls.
            return response;
        }
        let answered = Answered { status, freshness, decision, promised, head_after };
        let record = Record::new(log, answered, Arc::clone(&self.accounts));
        response.map(|body| body.recorded(record))
    }
}

/// The refusal for an error of a pull; the cause goes to the log here, where it is handled.
fn refuse(error: &crate::pull::Error) -> Refusal {
    let refusal = Refusal::from(error);
    if refusal.status.is_server_error() {
        tracing::warn!(%error, status = refusal.status.as_u16(), "pull failed");
    } else {
        tracing::debug!(%error, status = refusal.status.as_u16(), "pull refused");
    }
    refusal
}

/// Notes who has asked.
fn by(admitted: &Admitted, outcome: Result<Answer, Refusal>) -> Result<Answer, Refusal> {
    let Some(who) = admitted.who() else { return outcome };
    match outcome {
        Ok(answer) => Ok(answer.decided(Decision { who: Some(who), reason: None })),
        Err(refusal) => {
            let decision = Decision { who: Some(who), ..refusal.decision };
            Err(Refusal { decision, ..refusal })
        }
    }
}

/// The refusal of somebody who is not admitted; the access log says why.
fn deny(denial: &Denial, upstream: &str) -> Refusal {
    if let Denial::Unavailable(error) = denial {
        tracing::warn!(%error, "whether a caller may pull cannot be asked");
    }
    Refusal::of_denial(denial, upstream)
}

fn blob_answer(status: StatusCode, length: Option<u64>, body: ResponseBody) -> Answer {
    let mut answer = Answer::new(status, body)
        .header(header::CONTENT_TYPE, OCTET_STREAM)
        .header(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer.0.length = length;
    answer
}

async fn whole(blob: BlobAnswer) -> Result<Answer, Refusal> {
    let size = blob.size();
    let mut reader = blob.whole();
    reader.ready().await.map_err(|error| refuse(&error))?;
    Ok(blob_answer(StatusCode::OK, size, ResponseBody::stream(reader)))
}

async fn part(blob: BlobAnswer, range: ByteRange, size: u64) -> Result<Answer, Refusal> {
    let reader = ranges(blob, vec![range]).await?;
    let content_range = ContentRange { range: Some(range), size: Some(size) };
    Ok(blob_answer(StatusCode::PARTIAL_CONTENT, Some(range.len()), ResponseBody::stream(reader))
        .header(header::CONTENT_RANGE, content_range.to_string()))
}

/// Whom the client means to talk to: HTTP/2 says it in the request's own authority.
pub(super) fn host(parts: &Parts) -> Option<&str> {
    let authority = parts.uri.authority().map(hyper::http::uri::Authority::as_str);
    authority.or_else(|| parts.headers.get(header::HOST)?.to_str().ok())
}

/// Whether an upstream answers like one that does not list its repositories, as most public ones.
fn has_no_catalog(error: &pull::Error) -> bool {
    match error {
        pull::Error::Unknown(_) => true,
        pull::Error::Upstream(error) => matches!(**error, upstream::Error::Refused { .. }),
        _ => false,
    }
}

/// Which proxies the request has come through.
fn via(parts: &Parts) -> Via {
    Via::received(parts.headers.get_all(header::VIA).iter().filter_map(|value| value.to_str().ok()))
}

async fn parts_of(blob: BlobAnswer, several: Vec<ByteRange>, size: u64) -> Result<Answer, Refusal> {
    let multipart = Multipart::of(size);
    let (length, content_type, first) =
        (multipart.length(&several), HeaderValue::from(&multipart), several[0]);
    let reader = ranges(blob, several).await?;
    let body = ResponseBody::multipart(multipart, reader, first);
    let mut answer = blob_answer(StatusCode::PARTIAL_CONTENT, Some(length), body);
    answer.0.response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(answer)
}

/// A reader whose first byte is there.
async fn ranges(blob: BlobAnswer, ranges: Vec<ByteRange>) -> Result<Reader, Refusal> {
    let mut reader = blob.ranges(ranges).await.map_err(|error| refuse(&error))?;
    reader.ready().await.map_err(|error| refuse(&error))?;
    Ok(reader)
}

/// The range that a client asks for, if it is to be honoured: `If-Range` with another entity than
/// this one means the whole (RFC 9110, section 13.1.5).
fn requested_range(parts: &Parts, digest: &Digest) -> Option<RangeRequest> {
    let range = parts.headers.get(header::RANGE)?.to_str().ok()?;
    let same_entity = match parts.headers.get(header::IF_RANGE) {
        Some(condition) => condition.to_str().is_ok_and(|condition| condition == &*etag(digest)),
        None => true,
    };
    if same_entity { RangeRequest::parse(range) } else { None }
}

fn not_modified(digest: &Digest, freshness: &Freshness) -> Answer {
    Answer::new(StatusCode::NOT_MODIFIED, ResponseBody::empty()).digest(digest).freshness(freshness)
}

/// Whether `If-None-Match` names this entity. The comparison is the weak one (RFC 9110, 13.1.2);
/// `*` matches whatever exists.
fn matches_etag(parts: &Parts, digest: &Digest) -> bool {
    if !parts.headers.contains_key(header::IF_NONE_MATCH) {
        return false;
    }
    let etag = etag(digest);
    parts
        .headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|candidate| candidate == "*" || candidate.trim_start_matches("W/") == &*etag)
}

fn log_request(parts: &Parts, client: &Client) -> access_log::Request {
    let id = parts.headers.get(REQUEST_ID).filter(|id| {
        let id = id.as_bytes();
        !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.iter().all(u8::is_ascii_graphic)
    });
    access_log::Request {
        id: id.cloned().map_or_else(RequestId::random, RequestId::Given),
        client: client.of_request(&parts.headers),
        version: parts.version,
        tls: client.tls.clone(),
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        range: parts.headers.get(header::RANGE).cloned(),
        user_agent: parts.headers.get(header::USER_AGENT).cloned(),
        started: Instant::now(),
    }
}
