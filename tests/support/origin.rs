//! An origin registry that misbehaves on demand, for tests that run the real edge against it.
//!
//! ```text
//!  Origin ── server   listen, vanish, come back          port   the address that stays ours; SilentHost
//!    │         └── wire   HTTP/1.1 by hand, byte-exact      ▲
//!    │              ├── log       what was asked and sent   │
//!    │              ├── fault     rules, Gate            proxy  CuttingProxy: the same breaks for any TCP
//!    │              ├── auth      Basic, Bearer, /token
//!    │              └── registry ── content   what exists, in which repository
//! ```
//!
//! It lives in the runtime of the test: a test that blocks its only thread blocks the origin too. All state is behind
//! one `Arc`, every method takes `&self`, and nothing but a configured delay or rate ever waits for time to pass.
//!
//! ```ignore
//! let origin = Origin::start().await;
//! let digest = origin.add_synthetic_blob("library/app", 600 << 20, 7);
//! let half = Gate::new();
//! origin.fault(Fault::on("GET", &digest).times(1).gate_at(300 << 20, &half).reset_at(300 << 20));
//! // … start a pull …
//! half.reached().await;
//! assert_eq!(origin.bytes_sent(&digest), 300 << 20);
//! half.open();
//! ```

#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test crate uses another part of it")]
#![allow(clippy::format_push_string, reason = "a message head is no hot path")]

mod auth;
mod content;
mod fault;
mod forward;
mod log;
mod port;
mod proxy;
mod registry;
mod server;
mod wire;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;

pub use auth::BearerConfig;
pub use content::{sha256, synthetic_bytes};
pub use fault::{Fault, Gate};
pub use forward::ForwardProxy;
pub use log::Logged;
pub use port::SilentHost;
pub use proxy::CuttingProxy;

use auth::Auth;
use fault::Instead;
use log::Log;
use port::Port;
use registry::{Answer, Registry, Route};
use server::{Ending, Server, Service};
use wire::{Pacer, Request};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Layers are uncompressed as far as anyone is told, so that their digests are their `diff_ids`.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A registry on 127.0.0.1. Dropping it closes everything.
pub struct Origin {
    port: Port,
    shared: Arc<Shared>,
    server: Server,
}

/// An image as [`Origin::add_image`] made it.
#[derive(Clone, Debug)]
pub struct Image {
    pub manifest_digest: String,
    pub manifest: Bytes,
    pub config_digest: String,
    pub layer_digests: Vec<String>,
}

/// What all connections of an origin see.
struct Shared {
    url: String,
    log: Log,
    pacer: Pacer,
    black_hole: watch::Sender<bool>,
    /// Held for the moment of a decision, never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    registry: Registry,
    auth: Auth,
    faults: Vec<Fault>,
}

/// Where it listens.
impl Origin {
    /// An empty registry on a free port of 127.0.0.1, open to everybody.
    #[expect(clippy::unused_async, reason = "says that it needs the runtime")]
    pub async fn start() -> Self {
        let port = Port::reserve().expect("loopback has free ports");
        let shared = Shared {
            url: format!("http://{}", port.addr()),
            log: Log::default(),
            pacer: Pacer::new(None),
            black_hole: watch::Sender::new(false),
            state: Mutex::default(),
        };
        let origin = Self { port, shared: Arc::new(shared), server: Server::default() };
        origin.server.start(&origin.port, &origin.shared);
        origin
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        self.shared.url.clone()
    }

    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Resets every open connection and refuses new ones; both are done when this returns. The port stays reserved.
    pub async fn vanish(&self) {
        self.server.stop().await;
    }

    /// Listens again where it was before, with all its content, faults and log.
    #[expect(clippy::unused_async, reason = "the counterpart of vanish")]
    pub async fn come_back(&self) {
        self.server.start(&self.port, &self.shared);
    }

    /// While on, connections are accepted and requests logged, with status 0, but no byte is sent, not even of answers
    /// that have begun. Turned off, everything goes on where it was. For connects that hang, see [`SilentHost`].
    pub fn black_hole(&self, on: bool) {
        self.shared.black_hole.send_replace(on);
    }

    /// Bytes per second of all bodies together; `None` for no limit, as at the start.
    pub fn limit_rate(&self, bytes_per_second: Option<u64>) {
        self.shared.pacer.set(bytes_per_second);
    }

    pub fn connections_open(&self) -> usize {
        self.server.open()
    }

    /// Connections accepted since the start.
    pub fn connections_accepted(&self) -> usize {
        self.server.accepted()
    }
}

/// What it holds. Everything is visible through the repository it was added to, and no other.
impl Origin {
    /// Returns the digest.
    pub fn add_blob(&self, repo: &str, bytes: impl Into<Bytes>) -> String {
        self.state().registry.add_blob(repo, bytes.into())
    }

    /// A blob of [`synthetic_bytes`] that is made while it is sent. Its digest is computed here, once per size and seed.
    pub fn add_synthetic_blob(&self, repo: &str, size: u64, seed: u64) -> String {
        self.state().registry.add_synthetic_blob(repo, size, seed)
    }

    pub fn remove_blob(&self, repo: &str, digest: &str) {
        self.state().registry.remove_blob(repo, digest);
    }

    /// Any bytes as a manifest, valid or not. Returns the digest.
    pub fn add_manifest(
        &self,
        repo: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> String {
        self.state().registry.add_manifest(repo, tag, media_type, bytes.into())
    }

    /// Also takes away the tags that point to it.
    pub fn remove_manifest(&self, repo: &str, digest: &str) {
        self.state().registry.remove_manifest(repo, digest);
    }

    /// Makes the tag if need be.
    pub fn move_tag(&self, repo: &str, tag: &str, digest: &str) {
        self.state().registry.move_tag(repo, tag, digest);
    }

    pub fn remove_tag(&self, repo: &str, tag: &str) {
        self.state().registry.remove_tag(repo, tag);
    }

    /// An OCI image for linux/amd64 with these opaque layers.
    pub fn add_image(&self, repo: &str, tag: &str, layers: Vec<Bytes>) -> Image {
        let digests: Vec<_> = layers.into_iter().map(|layer| self.add_blob(repo, layer)).collect();
        self.add_image_of(repo, tag, &digests)
    }

    /// An OCI image for linux/amd64 with layers that are blobs of the repository already, synthetic ones for instance.
    pub fn add_image_of(&self, repo: &str, tag: &str, layer_digests: &[String]) -> Image {
        let rootfs = json!({ "type": "layers", "diff_ids": layer_digests });
        let config = json!({ "architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs });
        let config_digest = self.add_blob(repo, config.to_string());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.descriptor(OCI_CONFIG, &config_digest),
            "layers": layer_digests.iter().map(|digest| self.descriptor(OCI_LAYER, digest)).collect::<Vec<_>>(),
        });
        let manifest = Bytes::from(manifest.to_string());
        let manifest_digest = self.add_manifest(repo, Some(tag), OCI_MANIFEST, manifest.clone());
        Image { manifest_digest, manifest, config_digest, layer_digests: layer_digests.to_vec() }
    }

    /// An OCI index of images of the same repository, each with its `os/architecture[/variant]`. Returns the digest.
    pub fn add_index(&self, repo: &str, tag: &str, images: &[(&Image, &str)]) -> String {
        let manifests: Vec<_> = images.iter().map(|(image, name)| entry(image, name)).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        self.add_manifest(repo, Some(tag), OCI_INDEX, index.to_string())
    }

    /// Gives the subject a referrers API with these descriptors, perhaps none; without, it answers 404.
    pub fn add_referrers(&self, repo: &str, subject: &str, descriptors: Vec<Value>) {
        self.state().registry.add_referrers(repo, subject, descriptors);
    }

    fn descriptor(&self, media_type: &str, digest: &str) -> Value {
        let size = self.state().registry.blob_len(digest).expect("the blob was added before");
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }
}

fn entry(image: &Image, platform: &str) -> Value {
    let mut parts = platform.split('/');
    let (os, architecture) = (parts.next(), parts.next());
    let mut platform = json!({ "os": os, "architecture": architecture });
    if let Some(variant) = parts.next() {
        platform["variant"] = variant.into();
    }
    let (digest, size) = (&image.manifest_digest, image.manifest.len());
    json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": platform })
}

/// Who may pull. The last `require_…` counts.
impl Origin {
    pub fn require_nothing(&self) {
        self.state().auth.require_nothing();
    }

    pub fn require_basic(&self, user: &str, password: &str) {
        self.state().auth.require_basic(&[(user, password)]);
    }

    /// User names and passwords.
    pub fn require_basic_of(&self, users: &[(&str, &str)]) {
        self.state().auth.require_basic(users);
    }

    /// Tokens come from `GET /token` of this origin, and are good for the repositories of their scopes.
    pub fn require_bearer(&self, config: BearerConfig) {
        self.state().auth.require_bearer(config);
    }

    /// Only these users read repositories with this prefix: others get a token without the scope, or 403 with Basic.
    pub fn restrict(&self, repo_prefix: &str, users: &[&str]) {
        self.state().auth.restrict(repo_prefix, users);
    }

    /// Takes back what was restricted with this prefix.
    pub fn unrestrict(&self, repo_prefix: &str) {
        self.state().auth.unrestrict(repo_prefix);
    }

    /// Every token issued so far is answered with `invalid_token`.
    pub fn revoke_tokens(&self) {
        self.state().auth.revoke_tokens();
    }
}

/// What goes wrong.
impl Origin {
    /// Adds a rule behind those there are; per request the first that takes it acts, alone.
    pub fn fault(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Requests from now on are answered well; broken transfers that run stay broken.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }
}

/// What it saw. Targets are substrings of path and query as sent; `""` is everything.
impl Origin {
    /// Every request in order of arrival, credentials included.
    pub fn requests(&self) -> Vec<Logged> {
        self.shared.log.requests()
    }

    /// Requests of a method, `*` for any.
    pub fn count(&self, method: &str, target: &str) -> usize {
        self.shared.log.count(method, target)
    }

    /// Body bytes that the kernel has taken, also of transfers that still run or broke.
    pub fn bytes_sent(&self, target: &str) -> u64 {
        self.shared.log.bytes_sent(target)
    }

    pub fn clear_log(&self) {
        self.shared.log.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }
}

impl Service for Shared {
    async fn serve(&self, stream: &mut TcpStream) -> Ending {
        wire::serve(stream, self).await
    }
}

impl Shared {
    async fn out_of_black_hole(&self) {
        let mut hole = self.black_hole.subscribe();
        hole.wait_for(|on| !on).await.expect("the origin holds the sender");
    }

    /// The rule that takes this request, or one that does nothing.
    fn fault_for(&self, request: &Request) -> Fault {
        let mut state = lock(&self.state);
        let challenged = self.refusal(&state, request).is_some();
        let taken =
            state.faults.iter_mut().find_map(|fault| fault.takes(request, challenged).then(|| fault.clone()));
        taken.unwrap_or_default()
    }

    fn answer(&self, request: &Request, fault: &Fault) -> Answer {
        match &fault.instead {
            Some(Instead::Respond { status, headers, body }) => Answer::canned(*status, headers, body),
            Some(Instead::Redirect { base }) => {
                let mark = if request.query.is_empty() { "?" } else { "&" };
                let location = format!("{base}{}{mark}redirected=1", request.target());
                Answer::canned(307, &[("Location".to_owned(), location)], &Bytes::new())
            }
            None => {
                let mut state = lock(&self.state);
                if request.path == "/token" {
                    return state.auth.issue(request);
                }
                self.refusal(&state, request).unwrap_or_else(|| state.registry.answer(request))
            }
        }
    }

    fn refusal(&self, state: &State, request: &Request) -> Option<Answer> {
        let path = request.decoded_path();
        let repository = Route::parse(&path).map(|(name, _)| name).or_else(|| path.strip_prefix("/v2/"));
        let repository = repository.filter(|name| !name.is_empty());
        path.starts_with("/v2").then(|| state.auth.refusal(request, repository, &self.url)).flatten()
    }
}

/// A panic elsewhere in the test shall not hide behind a poisoned lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
