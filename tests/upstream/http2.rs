//! Upstreams that speak HTTP/2.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clawhub_edge::runtime::crypto_provider;
use clawhub_edge::upstream::{FetchConfig, Purpose};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::origin::{sha256, synthetic_bytes};
use super::tls::{Authority, with_ca};
use super::{Edge, quick};

const MANIFEST: &str = "{\"schemaVersion\":2}";
const SIZE: u64 = 40 << 20;

/// A registry over HTTP/2 alone; counts its connections.
async fn registry(authority: &Authority) -> (String, Arc<AtomicUsize>) {
    let (certificate, key) = authority.leaf("localhost");
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(crypto_provider());
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let mut config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let connections = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&connections);
    let blob = Bytes::from(synthetic_bytes(SIZE, 5));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            let (acceptor, blob) = (acceptor.clone(), blob.clone());
            tokio::spawn(async move {
                let stream = TokioIo::new(acceptor.accept(stream).await.unwrap());
                let service = service_fn(move |request| answer(request, blob.clone()));
                // Whoever leaves ends its connection as it likes.
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(stream, service)
                    .await;
            });
        }
    });
    (url, connections)
}

#[expect(clippy::unused_async, reason = "hyper's services are asynchronous")]
async fn answer(request: Request<Incoming>, blob: Bytes) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.version(), Version::HTTP_2);
    let is_blob = request.uri().path().contains("/blobs/");
    let body = if is_blob { blob } else { Bytes::from(MANIFEST) };
    Ok(Response::new(Full::new(body)))
}

fn edge(url: &str, authority: &Authority, fetch: FetchConfig) -> Edge {
    Edge::configured(&format!("[upstreams.\"x.example\"]\n{}\n", with_ca(url, authority)), fetch)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_questions_and_a_blob_share_one_connection() {
    let authority = Authority::new();
    let (url, connections) = registry(&authority).await;
    let edge = edge(&url, &authority, quick());
    edge.manifest("latest").await.unwrap();
    let blob = synthetic_bytes(SIZE, 5);
    let digest = sha256(&blob);
    let download = edge.fetch(&digest, 0);
    let route = edge.route();
    let questions =
        (0..50).map(|n| {
            let (client, route) = (&edge.client, &route);
            async move {
                client.manifest(route, &format!("tag{n}").parse().unwrap(), Purpose::Pull).await.unwrap()
            }
        });
    let (received, _) = tokio::join!(download, futures_util::future::join_all(questions));
    assert!(received.unwrap() == blob);
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_connection_is_given_up_while_its_transfers_go_on() {
    let authority = Authority::new();
    let (url, connections) = registry(&authority).await;
    let fetch = FetchConfig { connection_max_age: Duration::from_millis(50), ..quick() };
    let edge = edge(&url, &authority, fetch);
    let blob = synthetic_bytes(SIZE, 5);
    let digest = sha256(&blob);
    let mut download = edge.download(&digest, 0).await.unwrap();
    let first = download.next().await.unwrap().unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        edge.manifest("latest").await.unwrap();
    }
    assert_eq!(connections.load(Ordering::Relaxed), 4);
    let rest = super::rest(&mut download).await.unwrap();
    assert!([first.as_ref(), &rest].concat() == blob);
}
