//! The registry behind the wire: what each repository holds and what a request gets. No I/O, no faults.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use serde_json::{Value, json};

use super::content::{Body, Content, Synthetic, sha256};
use super::wire::Request;

/// One answer before any fault bends it.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Body,
    /// Whether a Range of the request applies.
    pub(super) ranged: bool,
}

impl Answer {
    pub(super) fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        Self::of(status, content_type, Content::Held(body.into()))
    }

    pub(super) fn json(document: &Value) -> Self {
        Self::new(200, "application/json", document.to_string())
    }

    /// The error document of the distribution specification.
    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        let document = json!({ "errors": [{ "code": code, "message": message, "detail": null }] });
        Self { status, ..Self::json(&document) }
    }

    /// Just these headers, as a thing that is no registry would send.
    pub(super) fn canned(status: u16, headers: &[(String, String)], body: &Bytes) -> Self {
        Self { status, headers: headers.to_vec(), body: Content::Held(body.clone()).into(), ranged: false }
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    /// Replaces the header of this name.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.headers.retain(|(own, _)| !own.eq_ignore_ascii_case(name));
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        super::wire::find(&self.headers, name)
    }

    fn of(status: u16, content_type: &str, content: Content) -> Self {
        let headers = [("Docker-Distribution-API-Version", "registry/2.0"), ("Content-Type", content_type)];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self { status, headers, body: content.into(), ranged: false }
    }

    fn addressed(content_type: &str, content: Content, digest: &str) -> Self {
        Self::of(200, content_type, content)
            .with("Docker-Content-Digest", digest)
            .with("ETag", &format!("\"{digest}\""))
    }
}

#[derive(Default)]
struct Repository {
    blobs: HashSet<String>,
    manifests: HashMap<String, (String, Bytes)>,
    tags: BTreeMap<String, String>,
    /// By subject; a subject that is absent has no referrers API.
    referrers: HashMap<String, Vec<Value>>,
}

/// All repositories of one origin.
#[derive(Default)]
pub(super) struct Registry {
    repositories: HashMap<String, Repository>,
    /// Blobs are stored once and seen only through the repositories that list them.
    blobs: HashMap<String, Content>,
    /// Digests of synthetic blobs by size and seed: hashing 600 MB twice would be felt.
    synthetic: HashMap<(u64, u64), String>,
}

impl Registry {
    pub(super) fn add_blob(&mut self, repo: &str, bytes: Bytes) -> String {
        let digest = sha256(&bytes);
        self.insert_blob(repo, digest, Content::Held(bytes))
    }

    pub(super) fn add_synthetic_blob(&mut self, repo: &str, size: u64, seed: u64) -> String {
        let synthetic = Synthetic::new(size, seed);
        let digest = self.synthetic.entry((size, seed)).or_insert_with(|| synthetic.digest()).clone();
        self.insert_blob(repo, digest, Content::Made(synthetic))
    }

    pub(super) fn remove_blob(&mut self, repo: &str, digest: &str) {
        self.repository(repo).blobs.remove(digest);
    }

    pub(super) fn add_manifest(
        &mut self,
        repo: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: Bytes,
    ) -> String {
        let digest = sha256(&bytes);
        let repository = self.repository(repo);
        repository.manifests.insert(digest.clone(), (media_type.to_owned(), bytes));
        if let Some(tag) = tag {
            repository.tags.insert(tag.to_owned(), digest.clone());
        }
        digest
    }

    pub(super) fn remove_manifest(&mut self, repo: &str, digest: &str) {
        let repository = self.repository(repo);
        repository.manifests.remove(digest);
        repository.tags.retain(|_, tagged| tagged != digest);
    }

    pub(super) fn move_tag(&mut self, repo: &str, tag: &str, digest: &str) {
        self.repository(repo).tags.insert(tag.to_owned(), digest.to_owned());
    }

    pub(super) fn remove_tag(&mut self, repo: &str, tag: &str) {
        self.repository(repo).tags.remove(tag);
    }

    pub(super) fn add_referrers(&mut self, repo: &str, subject: &str, descriptors: Vec<Value>) {
        self.repository(repo).referrers.entry(subject.to_owned()).or_default().extend(descriptors);
    }

    /// The length of a blob, for descriptors.
    pub(super) fn blob_len(&self, digest: &str) -> Option<u64> {
        self.blobs.get(digest).map(Content::len)
    }

    /// Answers a request that auth and faults have let through.
    pub(super) fn answer(&self, request: &Request) -> Answer {
        if request.method != "GET" && request.method != "HEAD" {
            return Answer::error(405, "UNSUPPORTED", "this origin is read-only");
        }
        let path = request.decoded_path();
        if path == "/v2/" || path == "/v2" {
            return Answer::json(&json!({}));
        }
        if path == "/v2/_catalog" {
            return self.catalog(request);
        }
        let Some((name, route)) = Route::parse(&path) else {
            return Answer::error(404, "NAME_UNKNOWN", "no such path");
        };
        let Some(repository) = self.repositories.get(name) else {
            return Answer::error(404, "NAME_UNKNOWN", "repository name not known to registry");
        };
        match route {
            Route::Manifest(reference) => repository.manifest(reference),
            Route::Blob(digest) => self.blob(repository, digest),
            Route::Tags => repository.tags(name, request),
            Route::Referrers(digest) => repository.referrers(digest),
        }
    }

    fn catalog(&self, request: &Request) -> Answer {
        let mut names: Vec<_> = self.repositories.keys().map(String::as_str).collect();
        names.sort_unstable();
        let last = request.parameter("last").unwrap_or_default();
        let limit = request.parameter("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
        let mut rest = names.into_iter().filter(|name| *name > last.as_str());
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let answer = Answer::json(&json!({ "repositories": page }));
        match (page.last(), rest.next()) {
            (Some(name), Some(_)) => {
                answer.with("Link", &format!("</v2/_catalog?last={name}&n={limit}>; rel=\"next\""))
            }
            _ => answer,
        }
    }

    fn blob(&self, repository: &Repository, digest: &str) -> Answer {
        let content = self.blobs.get(digest).filter(|_| repository.blobs.contains(digest));
        let Some(content) = content else {
            return Answer::error(404, "BLOB_UNKNOWN", "blob unknown to registry");
        };
        let answer = Answer::addressed("application/octet-stream", content.clone(), digest);
        Answer { ranged: true, ..answer.with("Accept-Ranges", "bytes") }
    }

    fn insert_blob(&mut self, repo: &str, digest: String, content: Content) -> String {
        self.repository(repo).blobs.insert(digest.clone());
        self.blobs.insert(digest.clone(), content);
        digest
    }

    fn repository(&mut self, repo: &str) -> &mut Repository {
        self.repositories.entry(repo.to_owned()).or_default()
    }
}

impl Repository {
    fn manifest(&self, reference: &str) -> Answer {
        let digest = if reference.contains(':') {
            Some(reference)
        } else {
            self.tags.get(reference).map(String::as_str)
        };
        match digest.and_then(|digest| Some((digest, self.manifests.get(digest)?))) {
            Some((digest, (media_type, bytes))) => {
                Answer::addressed(media_type, Content::Held(bytes.clone()), digest)
            }
            None => Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
        }
    }

    fn tags(&self, name: &str, request: &Request) -> Answer {
        let last = request.parameter("last").unwrap_or_default();
        let limit = request.parameter("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
        let mut rest = self.tags.keys().filter(|tag| **tag > last);
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let answer = Answer::json(&json!({ "name": name, "tags": page }));
        match (page.last(), rest.next()) {
            (Some(tag), Some(_)) => {
                answer.with("Link", &format!("</v2/{name}/tags/list?last={tag}&n={limit}>; rel=\"next\""))
            }
            _ => answer,
        }
    }

    fn referrers(&self, digest: &str) -> Answer {
        let Some(descriptors) = self.referrers.get(digest) else {
            return Answer::error(404, "UNSUPPORTED", "no referrers API");
        };
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": descriptors });
        Answer::new(200, media_type, index.to_string())
    }
}

/// The part of a `/v2/` path behind the repository name.
pub(super) enum Route<'a> {
    Manifest(&'a str),
    Blob(&'a str),
    Tags,
    Referrers(&'a str),
}

impl<'a> Route<'a> {
    pub(super) fn parse(path: &'a str) -> Option<(&'a str, Self)> {
        let path = path.strip_prefix("/v2/")?;
        if let Some(name) = path.strip_suffix("/tags/list") {
            return Some((name, Self::Tags));
        }
        let (rest, last) = path.rsplit_once('/')?;
        let (name, kind) = rest.rsplit_once('/')?;
        match kind {
            "manifests" => Some((name, Self::Manifest(last))),
            "blobs" => Some((name, Self::Blob(last))),
            "referrers" => Some((name, Self::Referrers(last))),
            _ => None,
        }
    }
}
