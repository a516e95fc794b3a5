//! What the origin was asked, and what it sent, while it is being sent.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;
use super::wire::Request;

/// More requests than any test makes; beyond it the oldest are forgotten.
const LIMIT: usize = 100_000;

/// One request as the log shows it at the moment of asking.
#[derive(Clone, Debug)]
pub struct Logged {
    pub method: String,
    /// As sent, without the query.
    pub path: String,
    /// As sent, without the question mark.
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// 0 until the answer has begun.
    pub status: u16,
    /// Body bytes that the kernel has taken so far, chunk framing not counted.
    pub body_bytes_sent: u64,
    /// The `Range` header.
    pub range: Option<String>,
}

impl Logged {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        super::wire::find(&self.headers, name)
    }

    /// Path and query as sent.
    pub fn target(&self) -> String {
        if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) }
    }
}

/// A logged request whose answer may still be running. Counters are read by tests only, so relaxed is enough.
pub(super) struct Entry {
    request: Logged,
    status: AtomicU16,
    sent: AtomicU64,
}

impl Entry {
    pub(super) fn answered(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn concerns(&self, target: &str) -> bool {
        self.request.target().contains(target)
    }
}

#[derive(Default)]
pub(super) struct Log(Mutex<VecDeque<Arc<Entry>>>);

impl Log {
    pub(super) fn record(&self, request: &Request) -> Arc<Entry> {
        let logged = Logged {
            method: request.method.clone(),
            path: request.path.clone(),
            query: request.query.clone(),
            headers: request.headers.clone(),
            body: request.body.clone(),
            status: 0,
            body_bytes_sent: 0,
            range: request.header("range").map(str::to_owned),
        };
        let entry = Arc::new(Entry { request: logged, status: AtomicU16::new(0), sent: AtomicU64::new(0) });
        let mut entries = lock(&self.0);
        if entries.len() == LIMIT {
            entries.pop_front();
        }
        entries.push_back(Arc::clone(&entry));
        entry
    }

    pub(super) fn requests(&self) -> Vec<Logged> {
        let snapshot = |entry: &Arc<Entry>| Logged {
            status: entry.status.load(Ordering::Relaxed),
            body_bytes_sent: entry.sent.load(Ordering::Relaxed),
            ..entry.request.clone()
        };
        lock(&self.0).iter().map(snapshot).collect()
    }

    pub(super) fn count(&self, method: &str, target: &str) -> usize {
        let counts =
            |entry: &&Arc<Entry>| (method == "*" || entry.request.method == method) && entry.concerns(target);
        lock(&self.0).iter().filter(counts).count()
    }

    pub(super) fn bytes_sent(&self, target: &str) -> u64 {
        let entries = lock(&self.0);
        entries
            .iter()
            .filter(|entry| entry.concerns(target))
            .map(|entry| entry.sent.load(Ordering::Relaxed))
            .sum()
    }

    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }
}
