//! An origin as cheap as it can be: threads that write one repeated block.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::process::{now, pause, setting};

const BLOCK: usize = 1 << 20;

/// The blob that is pulled: one block of random bytes, repeated.
pub(crate) struct Blob {
    pub(crate) size: u64,
    pub(crate) digest: String,
}

impl Blob {
    pub(crate) fn synthetic(size: u64) -> Self {
        let block = block();
        let mut hasher = Sha256::new();
        let mut left = size;
        while left > 0 {
            let part = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
            hasher.update(&block[..part]);
            left -= part as u64;
        }
        let digest =
            hasher.finalize().iter().fold(String::new(), |digest, byte| format!("{digest}{byte:02x}"));
        Self { size, digest }
    }

    pub(crate) fn path(&self) -> String {
        format!("/v2/bench/blob/blobs/sha256:{}", self.digest)
    }
}

fn block() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(42);
    std::iter::repeat_with(|| random.u8(..)).take(BLOCK).collect()
}

/// How many bytes of the blob the origin has sent.
pub(crate) fn bytes_sent(address: SocketAddr) -> u64 {
    let mut stream = TcpStream::connect(address).expect("the origin listens");
    stream.write_all(b"GET /sent HTTP/1.1\r\n\r\n").expect("the request is sent");
    let mut lines = BufReader::new(stream).lines();
    lines.find_map(|line| line.ok()?.strip_prefix("x-sent: ")?.parse().ok()).expect("a count")
}

/// The origin's process.
pub(crate) fn run() -> ExitCode {
    let size: u64 = setting("size").parse().expect("a size");
    let digest = setting("digest");
    let rate: Option<u64> = setting("rate").parse().ok();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!("{}", listener.local_addr().expect("a bound address"));
    let (block, sent) = (Arc::new(block()), Arc::new(AtomicU64::new(0)));
    for stream in listener.incoming().flatten() {
        let (block, sent, digest) = (Arc::clone(&block), Arc::clone(&sent), digest.clone());
        std::thread::spawn(move || answer(stream, size, &digest, rate, &block, &sent));
    }
    ExitCode::SUCCESS
}

fn answer(mut stream: TcpStream, size: u64, digest: &str, rate: Option<u64>, block: &[u8], sent: &AtomicU64) {
    let Ok(reading) = stream.try_clone() else { return };
    let mut lines = BufReader::new(reading).lines();
    while let Some(Ok(request)) = lines.next() {
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        if request.contains("/sent") {
            let count = sent.load(Ordering::Relaxed);
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nx-sent: {count}\r\ncontent-length: 0\r\n\r\n");
            return;
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {size}\r\n\
             docker-content-digest: sha256:{digest}\r\n\r\n"
        );
        // A peer that has gone ends the thread; nothing else is to be done about it.
        if stream.write_all(head.as_bytes()).is_err() || send(&mut stream, size, rate, block, sent).is_err() {
            return;
        }
    }
}

fn send(
    stream: &mut TcpStream,
    size: u64,
    rate: Option<u64>,
    block: &[u8],
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let started = now();
    let mut done = 0;
    while done < size {
        let start = usize::try_from(done % BLOCK as u64).unwrap_or(0);
        // A limited origin sends in pieces of 1 ms, an unlimited one whole blocks.
        let piece = rate.map_or(BLOCK, |rate| usize::try_from(rate / 1000).unwrap_or(BLOCK));
        let end = BLOCK.min(start + piece).min(start + usize::try_from(size - done).unwrap_or(BLOCK));
        stream.write_all(&block[start..end])?;
        done += (end - start) as u64;
        sent.fetch_add((end - start) as u64, Ordering::Relaxed);
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(done as f64 / rate as f64);
            if let Some(wait) = due.checked_sub(started.elapsed()) {
                pause(wait);
            }
        }
    }
    Ok(())
}
