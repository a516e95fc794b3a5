//! The calls of the registry client.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{StatusCode, Uri};
use serde::Deserialize;
use tokio::time::sleep;

use crate::oci::{
    Algorithm, ApiRequest, ByteRange, Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, Page, RangeSpec,
    Reference, Target, Via, next_link,
};
use crate::routing::{Caller, Route, Routes, Upstream, UpstreamName};
use crate::runtime::{Backoff, Clock};

use super::body::{Pace, ReadError, read_all};
use super::budget::Purpose;
use super::config::FetchConfig;
use super::connect::{ClientError, Clients};
use super::download::Download;
use super::error::{Error, Place, Stage};
use super::exchange::Question;
use super::metrics::{Kind, Metrics};
use super::plan::{Plan, Step};
use super::proxy::Proxies;
use super::remote::{Remote, Shared};
use super::response::Answer;

/// Pages of one list of referrers; the largest known lists have dozens of entries.
const MAX_REFERRERS_PAGES: usize = 64;
const MAX_REFERRERS_BYTES: usize = 16 << 20;

/// A page of tags or repositories: 128 or 255 bytes each, and as many as any registry sends at once.
const MAX_LIST_BODY: usize = 8 << 20;

/// The endpoints of one upstream, in order.
pub(super) type Remotes = Arc<[Arc<Remote>]>;

/// Asks upstreams. Cheap to clone; all clones share connections, tokens and what is known of endpoints.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
    remotes: Arc<HashMap<UpstreamName, Remotes>>,
}

/// What a manifest HEAD says. Registries may leave out any of it; then only a GET can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHead {
    /// The digest it claims.
    pub digest: Option<Digest>,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// Its `Content-Type`.
    pub media_type: Option<String>,
}

/// A manifest as it came.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    /// At most [`MAX_MANIFEST_SIZE`] bytes. Asked for by digest, they have that digest.
    pub body: Bytes,
    /// Its `Content-Type`.
    pub content_type: Option<String>,
    /// The digest of the header, if there is one; it has been checked against the body.
    pub digest: Option<Digest>,
}

/// What a blob HEAD says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobHead {
    /// Its size in bytes, if it was said.
    pub size: Option<u64>,
}

/// A part of a repository's tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPage {
    /// In the upstream's order. Not checked to be valid tags.
    pub tags: Vec<String>,
    /// What to ask for to get the rest; `None` at the end.
    pub next: Option<Page>,
}

/// A part of the names of an upstream's repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogPage {
    /// As this edge's clients name them, in the upstream's order. Not checked to be valid names.
    pub repositories: Vec<String>,
    /// What to ask for to get the rest; `None` at the end.
    pub next: Option<Page>,
}

impl Client {
    /// Sets up the connections' settings for every endpoint; connects to none yet.
    ///
    /// # Errors
    /// [`ClientError`] when a certificate or key cannot be used.
    pub fn new(
        config: FetchConfig,
        routes: &Routes,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, ClientError> {
        let node = routes.node().clone();
        let proxies = Arc::new(Proxies::new(&config.proxy));
        let shared = Arc::new(Shared { config, clock, metrics, node, proxies });
        let mut clients = Clients::new(&shared.config, &shared.proxies);
        let mut remotes = HashMap::new();
        for upstream in routes.upstreams() {
            let endpoints = upstream.endpoints.iter();
            let of_upstream: Result<Vec<_>, _> = endpoints
                .map(|endpoint| Remote::new(&shared, upstream, endpoint, &mut clients).map(Arc::new))
                .collect();
            remotes.insert(upstream.name.clone(), Remotes::from(of_upstream?));
        }
        Ok(Self { shared, remotes: Arc::new(remotes) })
    }

    /// What a manifest is, without its body. Registries that refuse HEAD are asked with GET.
    ///
    /// # Errors
    /// [`Error`]; [`Error::is_retryable`] says whether asking again later can help. [`Error::RateLimited`] also,
    /// and without a request, when so little of the quota is left that this purpose goes without.
    pub async fn head_manifest(
        &self,
        route: &Route,
        reference: &Reference,
        purpose: Purpose,
    ) -> Result<ManifestHead, Error> {
        let target = Target::Manifest { repository: route.repository.clone(), reference: reference.clone() };
        let question = Question::of(route, Kind::ManifestHead, target).for_purpose(purpose);
        let mut rounds = self.rounds(&route.upstream)?;
        while let Some(remote) = rounds.next().await {
            match manifest_head(&remote, &question, reference).await {
                Ok(head) => return Ok(head),
                Err(Error::Refused { status: 405 | 501, .. }) => {
                    return self.manifest(route, reference, purpose).await.map(ManifestHead::from);
                }
                Err(error) => rounds.failed(error),
            }
        }
        Err(rounds.verdict())
    }

    /// A manifest, whole and checked against every digest that is known of it.
    ///
    /// # Errors
    /// As [`Client::head_manifest`]; [`Error::Corrupt`] when the body is not what its digest says.
    pub async fn manifest(
        &self,
        route: &Route,
        reference: &Reference,
        purpose: Purpose,
    ) -> Result<FetchedManifest, Error> {
        let target = Target::Manifest { repository: route.repository.clone(), reference: reference.clone() };
        let question = Question::of(route, Kind::Manifest, target).for_purpose(purpose);
        let mut rounds = self.rounds(&route.upstream)?;
        while let Some(remote) = rounds.next().await {
            match manifest(&remote, &question, reference).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => rounds.failed(error),
            }
        }
        Err(rounds.verdict())
    }

    /// Whether a repository has a blob, and its size.
    ///
    /// # Errors
    /// As [`Client::head_manifest`].
    pub async fn head_blob(
        &self,
        route: &Route,
        digest: &Digest,
        purpose: Purpose,
    ) -> Result<BlobHead, Error> {
        let target = Target::Blob { repository: route.repository.clone(), digest: *digest };
        let question = Question::of(route, Kind::BlobHead, target).for_purpose(purpose);
        let mut rounds = self.rounds(&route.upstream)?;
        while let Some(remote) = rounds.next().await {
            match blob_head(&remote, &question, digest).await {
                Ok(head) => return Ok(head),
                Err(error) => rounds.failed(error),
            }
        }
        Err(rounds.verdict())
    }

    /// Whether a repository gives a blob: its first byte is asked for and thrown away. (Who may push may HEAD, and storage
    /// behind a redirect may refuse a HEAD to a URL that was signed for GET.)
    ///
    /// # Errors
    /// As [`Client::head_manifest`].
    pub async fn try_blob(&self, route: &Route, digest: &Digest, purpose: Purpose) -> Result<(), Error> {
        let target = Target::Blob { repository: route.repository.clone(), digest: *digest };
        let range = RangeSpec::Bounded { first: 0, last: 0 };
        let question =
            Question { range: Some(range), ..Question::of(route, Kind::Blob, target).for_purpose(purpose) };
        let mut rounds = self.rounds(&route.upstream)?;
        while let Some(remote) = rounds.next().await {
            match try_blob(&remote, &question, digest).await {
                Ok(()) => return Ok(()),
                Err(error) => rounds.failed(error),
            }
        }
        Err(rounds.verdict())
    }

    /// Begins to fetch these bytes of a blob; `u64::MAX` stands for its end, wherever that is. Returns once
    /// the first response's head is there. Where `size` is known, an endpoint that says another one is not
    /// believed.
    ///
    /// # Errors
    /// As [`Client::head_manifest`], and as quickly.
    pub async fn download(
        &self,
        route: &Route,
        digest: &Digest,
        bytes: ByteRange,
        size: Option<u64>,
    ) -> Result<Download, Error> {
        let mut rounds = self.rounds(&route.upstream)?;
        let remotes = Arc::clone(&rounds.remotes);
        let begun = Download::begin(remotes, route, *digest, bytes);
        while let Some(index) = rounds.next_index().await {
            match begun.open(index, bytes.start, size).await {
                Ok(opened) => return Ok(begun.streaming(index, opened)),
                Err(error) => rounds.failed(error),
            }
        }
        Err(rounds.verdict())
    }

    /// A part of a repository's tags.
    ///
    /// # Errors
    /// As [`Client::head_manifest`].
    pub async fn tags(&self, route: &Route, page: &Page, purpose: Purpose) -> Result<TagPage, Error> {
        let target = Target::Tags { repository: route.repository.clone(), page: page.clone() };
        let question = Question::of(route, Kind::Tags, target).for_purpose(purpose);
        let mut rounds = self.rounds(&route.upstream)?;
        while let Some(remote) = rounds.next().await {
            match tags(&remote, &question, page).await {
                Ok(tags) => return Ok(tags),
                Err(error) => rounds.failed(error),
            }
        }
        Err(rounds.verdict())
    }

    /// A part of the names of an upstream's repositories, as its catalogue says. Those that `rewrite` rules rename
    /// are named as the upstream does.
    ///
    /// # Errors
    /// As [`Client::head_manifest`]. [`Error::NotFound`] or [`Error::Refused`] where the upstream has no catalogue,
    /// [`Error::Unauthorized`] or [`Error::Forbidden`] where it is not for this edge.
    pub async fn catalog(
        &self,
        upstream: &Upstream,
        via: &Via,
        caller: Option<&Caller>,
        page: &Page,
    ) -> Result<CatalogPage, Error> {
        let mut rounds = self.rounds(upstream)?;
        while let Some(remote) = rounds.next().await {
            match catalog(&remote, via, caller, page).await {
                Ok(catalog) => return Ok(catalog),
                Err(error) => rounds.failed(error),
            }
        }
        Err(rounds.verdict())
    }

    /// Everything that refers to a digest, by the upstream's referrers API, whatever its pages.
    ///
    /// # Errors
    /// As [`Client::head_manifest`]; [`Error::NotFound`], [`Error::Refused`] or [`Error::NotARegistry`] where the
    /// upstream has no such API. A list that begins and cannot be had whole is none of these.
    pub async fn referrers(&self, route: &Route, digest: &Digest) -> Result<Vec<Descriptor>, Error> {
        let (repository, digest) = (route.repository.clone(), *digest);
        let target = Target::Referrers { repository, digest, artifact_type: None, page: Page::default() };
        let mut question = Question::of(route, Kind::Referrers, target);
        let mut rounds = self.rounds(&route.upstream)?;
        while let Some(remote) = rounds.next().await {
            match referrers(&remote, &mut question).await {
                Ok(manifests) => return Ok(manifests),
                Err(error) => rounds.failed(error),
            }
        }
        Err(rounds.verdict())
    }

    /// What a manifest costs of the quota of its upstream, as the time until there is another one for it: 216 s at
    /// 100 in six hours. Nothing where the upstream states no quota.
    pub fn quota_price(&self, upstream: &Upstream) -> Duration {
        let remotes = self.remotes.get(&upstream.name).into_iter().flat_map(|remotes| remotes.iter());
        remotes.map(|remote| remote.budget.price()).max().unwrap_or_default()
    }

    fn rounds(&self, upstream: &Upstream) -> Result<Rounds, Error> {
        let remotes = self.remotes.get(&upstream.name).filter(|remotes| !remotes.is_empty());
        let Some(remotes) = remotes.map(Arc::clone) else {
            return Err(Error::Misconfigured {
                at: unknown_place(upstream),
                reason: "this client was set up without it".to_owned(),
            });
        };
        let config = &self.shared.config;
        let backoff = Backoff::new(config.backoff, config.backoff_cap);
        Ok(Rounds { plan: Plan::for_call(remotes.len(), config.attempts, backoff), remotes })
    }
}

impl From<FetchedManifest> for ManifestHead {
    fn from(manifest: FetchedManifest) -> Self {
        let digest = manifest.digest.unwrap_or_else(|| Digest::of(Algorithm::Sha256, &manifest.body));
        Self {
            digest: Some(digest),
            size: Some(manifest.body.len() as u64),
            media_type: manifest.content_type,
        }
    }
}

/// One call's way over the endpoints of an upstream.
struct Rounds {
    remotes: Remotes,
    plan: Plan,
}

impl Rounds {
    async fn next(&mut self) -> Option<Arc<Remote>> {
        let index = self.next_index().await?;
        Some(Arc::clone(&self.remotes[index]))
    }

    /// The endpoint to ask next, after the wait that is due before it.
    async fn next_index(&mut self) -> Option<usize> {
        loop {
            match self.plan.step() {
                Step::Ask(index) => return Some(index),
                Step::Wait(wait) => sleep(wait).await,
                Step::GiveUp => return None,
            }
        }
    }

    fn failed(&mut self, error: Error) {
        // What is tried next may well succeed; a final failure is logged by whoever answers for it.
        tracing::debug!(upstream = %error.place().upstream, %error, "an endpoint failed");
        self.plan.failed(error);
    }

    /// Once there is nothing left to ask.
    fn verdict(self) -> Error {
        self.plan.verdict().expect("an upstream has an endpoint, and every one was asked and has failed")
    }
}

async fn manifest_head(
    remote: &Remote,
    question: &Question,
    reference: &Reference,
) -> Result<ManifestHead, Error> {
    let answer = remote.ask(question).await?;
    check_head(remote, &answer, reference.digest().as_ref())?;
    Ok(ManifestHead {
        digest: answer.digest(),
        size: answer.length(),
        media_type: answer.content_type().map(str::to_owned),
    })
}

async fn manifest(
    remote: &Remote,
    question: &Question,
    reference: &Reference,
) -> Result<FetchedManifest, Error> {
    let answer = remote.ask(question).await?;
    check_head(remote, &answer, reference.digest().as_ref())?;
    let claimed = answer.digest();
    let content_type = answer.content_type().map(str::to_owned);
    let mut body = read(remote, answer, MAX_MANIFEST_SIZE).await?;
    let expected = [reference.digest(), claimed];
    for digest in expected.iter().flatten() {
        let verified =
            digest.verify(body).map_err(|mismatch| remote.corrupt(format!("a manifest: {mismatch}")))?;
        body = verified.into_bytes();
    }
    Ok(FetchedManifest { body, content_type, digest: claimed })
}

async fn blob_head(remote: &Remote, question: &Question, digest: &Digest) -> Result<BlobHead, Error> {
    let answer = remote.ask(question).await?;
    if let Some(oddity) = answer.blob_oddity(digest) {
        return Err(remote.not_a_registry(oddity));
    }
    if let Some(contradiction) = answer.contradiction(digest) {
        return Err(remote.corrupt(contradiction));
    }
    Ok(BlobHead { size: answer.length() })
}

async fn try_blob(remote: &Remote, question: &Question, digest: &Digest) -> Result<(), Error> {
    let answer = remote.ask(question).await?;
    match answer.blob_oddity(digest) {
        // A range that an empty blob does not have.
        _ if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE => Ok(()),
        Some(oddity) => Err(remote.not_a_registry(oddity)),
        None => Ok(()),
    }
}

#[derive(Deserialize)]
struct TagList {
    name: Option<String>,
    /// `null` where a repository has none, by some registries.
    tags: Option<Vec<String>>,
}

async fn tags(remote: &Remote, question: &Question, page: &Page) -> Result<TagPage, Error> {
    let answer = remote.ask(question).await?;
    check_head(remote, &answer, None)?;
    let link = answer.link().and_then(next_link);
    let body = read(remote, answer, MAX_LIST_BODY).await?;
    let list: TagList = serde_json::from_slice(&body)
        .map_err(|error| remote.not_a_registry(format!("a list of tags that cannot be read: {error}")))?;
    if list.name.is_none() && list.tags.is_none() {
        return Err(remote.not_a_registry("a list of tags with neither a name nor tags".to_owned()));
    }
    let tags = list.tags.unwrap_or_default();
    let next = link.and_then(|link| next_page(&link, page, tags.last()));
    Ok(TagPage { tags, next })
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

async fn catalog(
    remote: &Remote,
    via: &Via,
    caller: Option<&Caller>,
    page: &Page,
) -> Result<CatalogPage, Error> {
    let prefix = remote.endpoint().prefix.as_ref().map(|prefix| format!("{prefix}/")).unwrap_or_default();
    // Behind a prefix the list begins and ends in the middle of the endpoint's own.
    let last = page.last.as_ref().map(|last| format!("{prefix}{last}"));
    let last = last.or_else(|| Some(prefix.clone()).filter(|prefix| !prefix.is_empty()));
    let asked = Page { n: page.n, last };
    let question = Question::new(Kind::Catalog, Target::Catalog { page: asked.clone() }, via, caller)
        .for_purpose(if caller.is_some() { Purpose::Proof } else { Purpose::Pull });
    let answer = remote.ask(&question).await?;
    check_head(remote, &answer, None)?;
    let link = answer.link().and_then(next_link);
    let body = read(remote, answer, MAX_LIST_BODY).await?;
    let list: Catalog = serde_json::from_slice(&body)
        .map_err(|error| remote.not_a_registry(format!("a catalogue that cannot be read: {error}")))?;
    let names = list.repositories.unwrap_or_default();
    let next = link.and_then(|link| next_page(&link, &asked, names.last())).and_then(|next| {
        let last = next.last?.strip_prefix(&prefix)?.to_owned();
        Some(Page { n: next.n, last: Some(last) })
    });
    let own = names.iter().filter_map(|name| name.strip_prefix(&prefix).map(str::to_owned));
    Ok(CatalogPage { repositories: own.collect(), next })
}

/// The page that a link leads to. Some registries page by tokens of their own; the last entry of this page,
/// which every registry of the specification understands, stands in for those.
fn next_page(link: &str, current: &Page, last_entry: Option<&String>) -> Option<Page> {
    let query = link.split_once('?').map(|(_, query)| query).unwrap_or_default();
    let path = link.parse::<Uri>().ok().map(|uri| uri.path().to_owned()).unwrap_or_default();
    let page = match ApiRequest::parse(&path, Some(query)).map(|request| request.target) {
        Ok(Target::Tags { page, .. } | Target::Catalog { page }) if page.last.is_some() => page,
        _ => Page { n: current.n, last: Some(last_entry?.clone()) },
    };
    // A link back to this page would be followed for ever.
    (page.last != current.last).then_some(page)
}

/// Every page, one after the other.
async fn referrers(remote: &Remote, question: &mut Question) -> Result<Vec<Descriptor>, Error> {
    let (mut manifests, mut bytes) = (Vec::new(), 0);
    question.query = None;
    for _ in 0..MAX_REFERRERS_PAGES {
        let is_first = question.query.is_none();
        let answer = remote.ask(question).await.and_then(|answer| {
            check_head(remote, &answer, None)?;
            Ok(answer)
        });
        let answer = match answer {
            Ok(answer) => answer,
            // Only the first page can say that there is no such list.
            Err(error) if is_first => return Err(error),
            Err(error) => return Err(remote.unreachable(format!("the rest of a list of referrers: {error}"))),
        };
        let unreadable = |reason: String| remote.corrupt(format!("a list of referrers: {reason}"));
        let content_type = answer.content_type().map(str::to_owned);
        let link = answer.link().and_then(next_link);
        let body = read(remote, answer, MAX_MANIFEST_SIZE).await.map_err(|error| match error {
            Error::NotARegistry { reason, .. } => unreadable(reason),
            error => error,
        })?;
        bytes += body.len();
        match Manifest::parse(&body, content_type.as_deref()) {
            Ok(Manifest::Index(index)) => manifests.extend(index.manifests),
            Ok(Manifest::Image(_)) => return Err(unreadable("an image in its place".to_owned())),
            Err(error) => return Err(unreadable(error.to_string())),
        }
        if bytes > MAX_REFERRERS_BYTES {
            return Err(unreadable(format!("more than {MAX_REFERRERS_BYTES} bytes")));
        }
        let next = link.and_then(|link| Some(link.split_once('?')?.1.to_owned()));
        // Only the query is taken from a link: it may hold a token that only the upstream understands, and it
        // cannot lead anywhere else. One that leads back to this page would be followed for ever.
        match next {
            Some(query) if question.query.as_ref() != Some(&query) => question.query = Some(query),
            _ => return Ok(manifests),
        }
    }
    Err(remote.corrupt(format!("a list of referrers with more than {MAX_REFERRERS_PAGES} pages")))
}

fn check_head(remote: &Remote, answer: &Answer, wanted: Option<&Digest>) -> Result<(), Error> {
    if let Some(oddity) = answer.oddity() {
        return Err(remote.not_a_registry(oddity));
    }
    match wanted.and_then(|wanted| answer.contradiction(wanted)) {
        Some(contradiction) => Err(remote.corrupt(contradiction)),
        None => Ok(()),
    }
}

/// A small body, whole, of the length that was declared.
async fn read(remote: &Remote, answer: Answer, limit: usize) -> Result<Bytes, Error> {
    let too_long = || remote.not_a_registry(format!("an answer of more than {limit} bytes"));
    let declared = answer.length();
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(too_long());
    }
    let config = remote.config();
    let body = read_all(answer.response.into_body(), limit, Pace::new(config)).await;
    let body = body.map_err(|error| match error {
        ReadError::TooLong => too_long(),
        ReadError::Broken(reason) => remote.unreachable(format!("the transfer broke: {reason}")),
        ReadError::TooSlow => remote.timed_out(Stage::Body, config.stall_window),
    })?;
    match declared {
        Some(length) if length != body.len() as u64 => {
            Err(remote.corrupt(format!("{length} bytes were declared, {} came", body.len())))
        }
        _ => Ok(body),
    }
}

fn unknown_place(upstream: &Upstream) -> Place {
    let nowhere = || "https://unknown.invalid".parse().expect("a constant, valid URL");
    let endpoint = upstream.endpoints.first().map_or_else(nowhere, |endpoint| endpoint.site.clone());
    Place { upstream: upstream.name.clone(), endpoint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_in_every_form_of_link_and_never_leads_in_circles() {
        let page = |n: Option<u32>, last: Option<&str>| Page { n, last: last.map(str::to_owned) };
        let current = page(Some(2), Some("a"));
        let last = "c".to_owned();
        let cases = [
            ("/v2/x/tags/list?last=c&n=2", Some(page(Some(2), Some("c")))),
            ("https://r.example/v2/x/tags/list?n=5&last=b", Some(page(Some(5), Some("b")))),
            ("/v2/x/tags/list?next_page=opaque", Some(page(Some(2), Some("c")))),
            ("/odd?last=", Some(page(Some(2), Some("c")))),
            ("/v2/x/tags/list?last=a&n=2", None),
        ];
        for (link, expected) in cases {
            assert_eq!(next_page(link, &current, Some(&last)), expected, "{link}");
        }
        assert_eq!(next_page("/odd", &current, None), None);
    }
}
