//! The origin that all subjects stand in front of: enough of a registry for pulls, as cheap as it can be.
//!
//! A process of its own. What it has is listed in a file: `blob DIGEST NUMBER SIZE` and `manifest DIGEST TAG PATH`
//! lines. `GET /sent` tells how many bytes of bodies have left so far. A rate limits all connections together, as a
//! link would.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::children::setting;
use crate::support::clock::{now, pause};
use crate::support::content::{self, BLOCK};

/// A blob of the origin.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) number: u64,
    pub(crate) size: u64,
    pub(crate) digest: String,
}

impl Blob {
    pub(crate) fn new(number: u64, size: u64) -> Self {
        Self { number, size, digest: content::digest(number, size) }
    }

    pub(crate) fn path(&self) -> String {
        format!("/v2/bench/image/blobs/sha256:{}", self.digest)
    }
}

/// A manifest of the origin.
pub(crate) struct Manifest {
    pub(crate) digest: String,
    pub(crate) tag: String,
    pub(crate) bytes: Vec<u8>,
}

impl Manifest {
    /// An image of a few layers, padded to exactly `size` bytes.
    pub(crate) fn new(tag: &str, size: usize) -> Self {
        let layer = |number: u64| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": format!("sha256:{}", content::digest(number, 64)),
                "size": 64,
            })
        };
        let with_padding = |padding: usize| {
            serde_json::json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": format!("sha256:{}", content::digest(1, 64)),
                    "size": 64,
                },
                "layers": (2..10).map(layer).collect::<Vec<_>>(),
                "annotations": { "org.opencontainers.image.description": "x".repeat(padding) },
            })
            .to_string()
            .into_bytes()
        };
        let bytes = with_padding(size.saturating_sub(with_padding(0).len()));
        Self { digest: content::digest_of(&bytes), tag: tag.to_owned(), bytes }
    }

    pub(crate) fn path_by_digest(&self) -> String {
        format!("/v2/bench/image/manifests/sha256:{}", self.digest)
    }

    pub(crate) fn path_by_tag(&self) -> String {
        format!("/v2/bench/image/manifests/{}", self.tag)
    }
}

/// Writes the list of what the origin has; returns its lines' file.
pub(crate) fn write_catalogue(
    directory: &Path,
    blobs: &[Blob],
    manifests: &[Manifest],
) -> std::path::PathBuf {
    let mut lines = String::new();
    for blob in blobs {
        lines += &format!("blob {} {} {}\n", blob.digest, blob.number, blob.size);
    }
    for manifest in manifests {
        let path = directory.join(format!("{}.json", manifest.tag));
        fs::write(&path, &manifest.bytes).expect("room for a manifest");
        lines += &format!("manifest {} {} {}\n", manifest.digest, manifest.tag, path.display());
    }
    let path = directory.join("catalogue");
    fs::write(&path, lines).expect("room for the catalogue");
    path
}

/// How many bytes of bodies the origin has sent.
pub(crate) fn bytes_sent(address: SocketAddr) -> u64 {
    let mut stream = TcpStream::connect(address).expect("the origin listens");
    stream.write_all(b"GET /sent HTTP/1.1\r\n\r\n").expect("the request is sent");
    let mut lines = BufReader::new(stream).lines();
    lines.find_map(|line| line.ok()?.strip_prefix("x-sent: ")?.parse().ok()).expect("a count")
}

struct Origin {
    blobs: HashMap<String, (u64, u64)>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    block: Vec<u8>,
    sent: AtomicU64,
    link: Option<Link>,
}

/// All connections share its bytes per second.
struct Link {
    rate: u64,
    free_at: Mutex<Instant>,
}

impl Link {
    /// Returns when this many bytes may leave.
    fn take(&self, bytes: usize) {
        let wait = {
            let mut free_at = self.free_at.lock().expect("no panic under the lock");
            let start = (*free_at).max(now());
            *free_at = start + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            start.saturating_duration_since(now())
        };
        pause(wait);
    }
}

/// The origin's process.
pub(crate) fn run() -> ExitCode {
    let mut origin = Origin {
        blobs: HashMap::new(),
        manifests: HashMap::new(),
        block: content::block(),
        sent: AtomicU64::new(0),
        link: setting("rate").parse().ok().map(|rate| Link { rate, free_at: Mutex::new(now()) }),
    };
    for line in fs::read_to_string(setting("catalogue")).expect("a catalogue").lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["blob", digest, number, size] => {
                let number = number.parse().expect("a number");
                origin.blobs.insert(digest.to_owned(), (number, size.parse().expect("a size")));
            }
            ["manifest", digest, tag, path] => {
                let bytes = fs::read(path).expect("the manifest's bytes");
                origin.manifests.insert(format!("sha256:{digest}"), (digest.to_owned(), bytes.clone()));
                origin.manifests.insert(tag.to_owned(), (digest.to_owned(), bytes));
            }
            _ => panic!("not a line of a catalogue: {line}"),
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!("{}", listener.local_addr().expect("a bound address"));
    let origin = Arc::new(origin);
    for stream in listener.incoming().flatten() {
        let origin = Arc::clone(&origin);
        // A peer that has gone ends the thread; nothing else is to be done about it.
        std::thread::spawn(move || origin.serve(stream));
    }
    ExitCode::SUCCESS
}

impl Origin {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        while let Some(request) = lines.next().transpose()? {
            let mut range = None;
            while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
                let line = line.to_ascii_lowercase();
                range = line.strip_prefix("range: bytes=").map(str::to_owned).or(range);
            }
            self.answer(&mut stream, &request, range.as_deref())?;
        }
        Ok(())
    }

    fn answer(&self, stream: &mut TcpStream, request: &str, range: Option<&str>) -> io::Result<()> {
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = path.split('?').next().unwrap_or_default();
        let body = method != "HEAD";
        if path == "/sent" {
            let count = self.sent.load(Ordering::Relaxed);
            return write!(stream, "HTTP/1.1 200 OK\r\nx-sent: {count}\r\ncontent-length: 0\r\n\r\n");
        }
        if path == "/v2/" {
            let api = "docker-distribution-api-version: registry/2.0";
            return write!(stream, "HTTP/1.1 200 OK\r\n{api}\r\ncontent-length: 0\r\n\r\n");
        }
        let last = path.rsplit('/').next().unwrap_or_default();
        if let Some((digest, bytes)) = self.manifests.get(last).filter(|_| path.contains("/manifests/")) {
            let mut answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.oci.image.manifest.v1+json\r\n\
                 content-length: {}\r\ndocker-content-digest: sha256:{digest}\r\n\r\n",
                bytes.len()
            )
            .into_bytes();
            answer.extend_from_slice(if body { bytes } else { &[] });
            return stream.write_all(&answer);
        }
        let digest = last.strip_prefix("sha256:").filter(|_| path.contains("/blobs/"));
        let Some((digest, &(number, size))) = digest.and_then(|digest| self.blobs.get_key_value(digest))
        else {
            return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        };
        let (start, end) = range.and_then(|range| bounds(range, size)).unwrap_or((0, size));
        let status = if range.is_some() {
            format!("206 Partial Content\r\ncontent-range: bytes {start}-{}/{size}", end - 1)
        } else {
            "200 OK".to_owned()
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\n\
             accept-ranges: bytes\r\ndocker-content-digest: sha256:{digest}\r\n\r\n",
            end - start
        )?;
        if body { self.send(stream, number, start, end) } else { Ok(()) }
    }

    fn send(&self, stream: &mut TcpStream, number: u64, start: u64, end: u64) -> io::Result<()> {
        let first = if start < BLOCK as u64 { content::first_block(number) } else { Vec::new() };
        // A limited link sends in pieces of 1 ms, an unlimited one whole blocks.
        let piece =
            self.link.as_ref().map_or(BLOCK, |link| usize::try_from(link.rate / 1000).unwrap_or(BLOCK));
        let mut at = start;
        while at < end {
            let block = if at < BLOCK as u64 { &first } else { &self.block };
            let from = usize::try_from(at % BLOCK as u64).unwrap_or(0);
            let left = usize::try_from(end - at).unwrap_or(BLOCK);
            let part = &block[from..BLOCK.min(from + piece.min(left))];
            if let Some(link) = &self.link {
                link.take(part.len());
            }
            stream.write_all(part)?;
            at += part.len() as u64;
            self.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The half-open range that `a-b` or `a-` stands for.
fn bounds(range: &str, size: u64) -> Option<(u64, u64)> {
    let (start, end) = range.split_once('-')?;
    let end = if end.is_empty() { size } else { end.parse::<u64>().ok()?.saturating_add(1).min(size) };
    Some((start.parse().ok()?, end)).filter(|(start, end)| start < end)
}
