//! One endpoint as the client knows it: its connections, what it demands, and how it fares.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderValue, PROXY_AUTHORIZATION, RANGE,
    USER_AGENT, VIA,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::oci::{ErrorDocument, NodeId, RangeSpec, Via};
use crate::routing::{Endpoint, Site, TlsSettings, Upstream};
use crate::runtime::{Clock, Secret, Timestamp};

use super::auth::Auth;
use super::body::chain;
use super::budget::Budget;
use super::config::FetchConfig;
use super::connect::{ClientError, Clients, HttpClient};
use super::error::{Error, Place, Stage};
use super::health::Health;
use super::metrics::Metrics;
use super::proxy::Proxies;

const AGENT: &str = concat!("clawhub-edge/", env!("CARGO_PKG_VERSION"));

/// What every endpoint is asked with.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: FetchConfig,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) node: NodeId,
    pub(super) proxies: Arc<Proxies>,
}

/// One request on its way out, besides where it goes.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) method: Method,
    pub(super) accept: Option<&'static str>,
    pub(super) range: Option<RangeSpec>,
    pub(super) authorization: Option<&'a HeaderValue>,
    /// For endpoints only: which proxies have been passed.
    pub(super) via: Option<&'a Via>,
    /// For token services only: a form that is posted.
    pub(super) form: Option<&'a Secret>,
}

/// One endpoint.
#[derive(Debug)]
pub(super) struct Remote {
    shared: Arc<Shared>,
    place: Place,
    endpoint: Endpoint,
    /// Presents the client certificate, if there is one.
    own: HttpClient,
    /// Presents none: for token services elsewhere and redirect targets.
    foreign: HttpClient,
    pub(super) auth: Auth,
    pub(super) health: Health,
    pub(super) budget: Budget,
    /// Bounds the transfers of blobs, which may last for hours; everything else is short.
    downloads: Arc<Semaphore>,
}

impl Remote {
    pub(super) fn new(
        shared: &Arc<Shared>,
        upstream: &Upstream,
        endpoint: &Endpoint,
        clients: &mut Clients<'_>,
    ) -> Result<Self, ClientError> {
        let place = Place { upstream: upstream.name.clone(), endpoint: endpoint.site.clone() };
        let metrics = &shared.metrics;
        let without_identity = TlsSettings { client_identity: None, ..endpoint.tls.clone() };
        Ok(Self {
            shared: Arc::clone(shared),
            own: clients.client(&endpoint.tls)?,
            foreign: clients.client(&without_identity)?,
            auth: Auth::new(place.clone(), endpoint.credential.clone(), upstream.realms.clone()),
            health: Health::new(place.clone(), upstream.endpoints.len() > 1, metrics.endpoint_up(&place)),
            budget: Budget::new(
                shared.config.quota_reserve,
                metrics.quota_limit(&place),
                metrics.quota_remaining(&place),
            ),
            downloads: Arc::new(Semaphore::new(shared.config.max_downloads_per_endpoint)),
            endpoint: endpoint.clone(),
            place,
        })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn config(&self) -> &FetchConfig {
        &self.shared.config
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub(super) fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    pub(super) fn has_credential(&self) -> bool {
        self.auth.has_credential()
    }

    /// A place among the downloads of this endpoint.
    pub(super) async fn download_permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        let limit = self.config().give_up_after;
        let acquired = timeout(limit, Arc::clone(&self.downloads).acquire_owned()).await;
        // The semaphore is never closed, so only the wait can fail.
        acquired.ok().and_then(Result::ok).ok_or_else(|| self.timed_out(Stage::Queue, limit))
    }

    /// Sends one request to `site`, which must be the site of `url`, and waits for the response's head.
    pub(super) async fn request(
        &self,
        site: &Site,
        url: Uri,
        outgoing: Outgoing<'_>,
    ) -> Result<Response<Incoming>, Error> {
        let for_proxy = self.shared.proxies.authorization(&url);
        let mut request = Request::builder()
            .method(outgoing.method)
            .uri(url)
            .header(USER_AGENT, AGENT)
            // The digest is over the bytes as they are.
            .header(ACCEPT_ENCODING, "identity");
        if let Some(accept) = outgoing.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(range) = outgoing.range {
            request = request.header(RANGE, format!("bytes={range}"));
        }
        if let Some(via) = outgoing.via {
            request = request.header(VIA, via.through(&self.shared.node));
        }
        if let Some(authorization) = outgoing.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(authorization) = for_proxy {
            request = request.header(PROXY_AUTHORIZATION, authorization);
        }
        if outgoing.form.is_some() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let body = outgoing.form.map_or_else(Bytes::new, |form| form.expose().to_owned().into());
        let request = request.body(Full::new(body)).map_err(|error| self.unreachable(chain(&error)))?;
        let client = if *site == self.endpoint.site { &self.own } else { &self.foreign };
        client.request(request).await.map_err(|error| self.transport_error(&error, site))
    }

    pub(super) fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable { at: self.place.clone(), reason, retry_after: None }
    }

    pub(super) fn not_a_registry(&self, reason: String) -> Error {
        Error::NotARegistry { at: self.place.clone(), reason }
    }

    pub(super) fn corrupt(&self, reason: String) -> Error {
        Error::Corrupt { at: self.place.clone(), reason }
    }

    pub(super) fn timed_out(&self, stage: Stage, after: Duration) -> Error {
        Error::TimedOut { at: self.place.clone(), stage, after }
    }

    fn transport_error(&self, error: &hyper_util::client::legacy::Error, site: &Site) -> Error {
        let is_late = causes(error)
            .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
            .any(|error| error.kind() == std::io::ErrorKind::TimedOut);
        if error.is_connect() && is_late {
            return self.timed_out(Stage::Connect, self.config().connect_timeout);
        }
        let reason = chain(error);
        if *site == self.endpoint.site {
            self.unreachable(reason)
        } else {
            self.unreachable(format!("{site}, where it sends its callers: {reason}"))
        }
    }
}

/// The status and what the upstream's error document says, made fit for a message.
pub(super) fn words(status: StatusCode, body: &[u8]) -> String {
    let summary = ErrorDocument::parse(body).map(|document| document.summary()).unwrap_or_default();
    if summary.is_empty() { status.to_string() } else { format!("{}, {summary}", status.as_u16()) }
}

fn causes<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}
