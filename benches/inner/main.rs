//! The inner loops: what a hit does for every request, and a fill for every byte.
//!
//! `cargo bench --bench inner` prints the time of each; a name behind `--` picks some of them.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clawhub_edge::auth::keys::KeySpec;
use clawhub_edge::auth::{self, Auth, AuthConfig, Right, Wanted};
use clawhub_edge::database::{Database, DatabaseConfig, Durability};
use clawhub_edge::oci::{
    Algorithm, ApiRequest, Digest, Hasher, Manifest, RangeRequest, Reference, Repository, Verified,
};
use clawhub_edge::routing::{ImagePattern, Login, Routes, RoutingConfig};
use clawhub_edge::runtime::{Bytes, Clock, Setting as _, Settings, SystemClock, Tasks};
use clawhub_edge::store::eviction::{Class, Object};
use clawhub_edge::store::{Amount, DiskConfig, Metrics, RangeSet, Store, StoreConfig};
use clawhub_edge::telemetry;
use clawhub_edge::upstream::{self, FetchConfig};
use divan::counter::BytesCount;
use divan::{AllocProfiler, Bencher};
use futures_util::FutureExt as _;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const PATH: &str = "/v2/docker.io/library/nginx/manifests/stable";
const BLOB: &str = "/v2/library/nginx/blobs/sha256:\
                    b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c";

/// An image index of eight platforms, 1.7 KB.
fn index() -> Vec<u8> {
    let entry = |number: usize| {
        let digest = Digest::of(Algorithm::Sha256, &number.to_le_bytes());
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1000 + number,
            "platform": { "architecture": "amd64", "os": "linux" },
        })
    };
    let manifests: Vec<_> = (0..8).map(entry).collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    index.to_string().into_bytes()
}

#[divan::bench]
fn request_by_tag() -> ApiRequest {
    ApiRequest::parse(black_box(PATH), black_box(Some("ns=docker.io"))).expect("a pull")
}

#[divan::bench]
fn request_by_digest() -> ApiRequest {
    ApiRequest::parse(black_box(BLOB), None).expect("a pull")
}

#[divan::bench]
fn digest_to_text(bencher: Bencher<'_, '_>) {
    let digest = Digest::of(Algorithm::Sha256, b"");
    bencher.bench(|| black_box(&digest).text());
}

#[divan::bench]
fn manifest(bencher: Bencher<'_, '_>) {
    let body = index();
    bencher
        .counter(BytesCount::new(body.len()))
        .bench(|| Manifest::parse(black_box(&body), None).expect("an index"));
}

#[divan::bench]
fn several_ranges() -> clawhub_edge::oci::Resolved {
    let request = RangeRequest::parse(black_box("bytes=0-1023,4096-8191,-512")).expect("ranges");
    request.resolve(black_box(1 << 30))
}

#[divan::bench]
fn route(bencher: Bencher<'_, '_>) {
    let settings = Settings::new(None::<(&Path, &str)>, [], std::collections::BTreeMap::new());
    let routes = Routes::new(RoutingConfig::read(&settings.root()));
    let repository: Repository = "docker.io/library/nginx".parse().expect("a name");
    bencher.bench(|| routes.find(None, black_box(Some("edge.example:5050")), black_box(&repository)));
}

/// How somebody shows that he may pull.
#[derive(Clone, Copy, Debug)]
enum Shown {
    /// Nothing, of what is for everybody.
    Nothing,
    Key,
    Token,
}

/// The decision about a pull that memory can make, as each of a hot image's requests needs it.
#[divan::bench(args = [Shown::Nothing, Shown::Key, Shown::Token], sample_size = 1000)]
fn admit(bencher: Bencher<'_, '_>, shown: Shown) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let settings = Settings::new(None::<(&Path, &str)>, [], std::collections::BTreeMap::new());
    let (root, metrics, tasks) = (settings.root(), telemetry::Metrics::new(), Tasks::new());
    let routes = Routes::new(RoutingConfig::read(&root));
    let route = routes.find(None, None, &"team-a/app".parse().expect("a name")).expect("a route");
    let reference: Reference = "stable".parse().expect("a tag");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (auth, headers) = runtime.block_on(async {
        let config = StoreConfig::read(&root.section("store"), directory.path().join("cache"));
        let store = Store::open(&config, Arc::clone(&clock), Metrics::register(&metrics)).expect("a store");
        let client_metrics = upstream::Metrics::register(metrics.registry()).expect("metrics");
        let client =
            upstream::Client::new(FetchConfig::default(), &routes, Arc::clone(&clock), client_metrics);
        let database = DatabaseConfig::read(&root.section("database"), directory.path());
        let database = Database::open(&database, Durability::Full).await.expect("a database");
        let keys =
            auth::open_keys(directory.path(), database.clone(), Arc::clone(&clock)).await.expect("keys");
        let spec = KeySpec {
            name: "bench".to_owned(),
            scopes: vec![ImagePattern::from_text("docker.io/team-a/**").expect("a pattern")],
            networks: Vec::new(),
            not_before: None,
            expires_at: None,
        };
        let (_, secret) = keys.create(spec, None).await.expect("a key");
        let parts = auth::Parts {
            node: "bench".to_owned(),
            database,
            client: client.expect("a client"),
            store,
            clock,
            tasks: tasks.clone(),
            metrics: auth::Metrics::register(&metrics),
        };
        let mut config = AuthConfig::read(&root, Duration::ZERO);
        config.anonymous = Some(matches!(shown, Shown::Nothing));
        let auth = Auth::open(config, directory.path(), false, parts).await.expect("an auth");
        let login = Login::password("bench", secret.text().clone());
        let basic = login.basic().expect("a password").expose().to_owned();
        let rights = [Right::Pull(route.clone())];
        let token = auth.issue(Some(login), None, &rights).await.expect("a token").token;
        let authorization = match shown {
            Shown::Nothing => None,
            Shown::Key => Some(basic),
            Shown::Token => Some(format!("Bearer {}", token.expose())),
        };
        let mut headers = HeaderMap::new();
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.parse().expect("a header"));
        }
        (auth, headers)
    });
    let wanted = Wanted::Manifest(&reference);
    // Whatever has to be looked up is.
    runtime.block_on(auth.admit(route.clone(), &headers, None, wanted)).expect("he may");
    let _entered = runtime.enter();
    bencher.bench_local(|| {
        let admitted = auth.admit(black_box(route.clone()), black_box(&headers), None, wanted);
        admitted.now_or_never().expect("memory knows").expect("he may")
    });
}

/// What a fill does with what it has received.
#[divan::bench(args = [64 << 10, 256 << 10])]
fn hash(bencher: Bencher<'_, '_>, length: usize) {
    let frame = vec![7; length];
    let mut hasher = Hasher::new(Algorithm::Sha256);
    bencher.counter(BytesCount::new(length)).bench_local(|| hasher.update(black_box(&frame)));
}

/// A blob of 4 GiB that arrives in blocks of 1 MiB from four places.
#[divan::bench]
fn arriving_ranges() -> RangeSet {
    let mut arrived = RangeSet::new();
    for block in 0..1024_u64 {
        for place in 0..4 {
            let start = (place * 1024 + block) << 20;
            arrived.insert(start, start + (1 << 20));
        }
    }
    arrived
}

/// A look-up in the memory tier, with what it notes for the eviction.
#[divan::bench]
fn hit_in_memory(bencher: Bencher<'_, '_>) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let config = StoreConfig {
        disks: vec![DiskConfig::new(directory.path().to_owned(), Amount::Bytes(Bytes::gib(1)))],
        memory: Bytes::mib(64),
        memory_max_object: Bytes::kib(256),
    };
    let metrics = Metrics::register(&telemetry::Metrics::new());
    let (store, verified) = {
        let _entered = runtime.enter();
        let store = Store::open(&config, Arc::new(SystemClock), metrics).expect("a store");
        (store, verified(index()))
    };
    let digest = verified.digest();
    runtime.block_on(store.put(verified, Duration::from_millis(50))).expect("room");
    bencher.bench(|| futures_util::future::FutureExt::now_or_never(store.get(black_box(&digest))).is_some());
    runtime.block_on(store.close());
}

fn verified(bytes: Vec<u8>) -> Verified {
    Digest::of(Algorithm::Sha256, &bytes).verify(bytes.into()).expect("its own digest")
}

/// One victim among a hundred thousand, and what takes its place.
#[divan::bench]
fn eviction(bencher: Bencher<'_, '_>) {
    let mut policy = clawhub_edge::store::eviction::Algorithm::default().policy();
    let object = |key: u64| Object {
        key,
        bytes: 1_000 + key * 7919 % 50_000_000,
        class: Class::Layer,
        cost: 1.0,
        dependents: 1,
    };
    for slot in 0..100_000 {
        policy.insert(slot, &object(slot.into()), None, slot / 10);
    }
    let mut now = 10_000;
    bencher.bench_local(|| {
        now += 1;
        if let Some(victim) = policy.victim(now, &mut |_| true) {
            policy.remove(victim);
            policy.insert(victim, &object(now.into()), None, now);
        }
    });
}
