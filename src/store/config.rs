//! `[store]` and `[[store.disks]]`.

use std::path::PathBuf;

use super::eviction::Algorithm;
use crate::runtime::{Bytes, Percent, Section, Setting, keyword_setting};

/// So many bytes, or a share of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// A number of bytes.
    Bytes(Bytes),
    /// A share of the whole.
    Share(Percent),
}

impl Amount {
    /// How many bytes it is of a file system of `total` bytes; never more than that.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.as_u64().min(total),
            Self::Share(share) => share.of(total),
        }
    }
}

impl Setting for Amount {
    const EXPECTED: &'static str = "a size such as \"200GiB\" or a share such as \"80%\"";
    fn from_text(text: &str) -> Result<Self, String> {
        if text.trim_end().ends_with('%') {
            text.parse().map(Self::Share)
        } else {
            text.parse().map(Self::Bytes)
        }
    }
    fn to_text(&self) -> String {
        match self {
            Self::Bytes(bytes) => bytes.to_string(),
            Self::Share(share) => share.to_string(),
        }
    }
}

keyword_setting!(
    Algorithm,
    "\"worth\", \"sieve\", \"s3-fifo\" or \"lru\"",
    "worth" => Algorithm::Worth,
    "sieve" => Algorithm::Sieve,
    "s3-fifo" => Algorithm::S3Fifo,
    "lru" => Algorithm::Lru,
);

/// One directory of the cache and its budget.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// Where it is; one process owns it.
    pub directory: PathBuf,
    /// What the cache may take there, metadata and blobs in flight included.
    pub capacity: Amount,
    /// What it leaves free for the rest of the machine.
    pub reserve: Amount,
    /// Above this share of the capacity blobs are evicted.
    pub high_watermark: Percent,
    /// Down to this share.
    pub low_watermark: Percent,
    /// Which.
    pub eviction: Algorithm,
}

impl DiskConfig {
    /// A directory of this capacity, with everything else as it is unless told otherwise.
    pub fn new(directory: PathBuf, capacity: Amount) -> Self {
        Self {
            directory,
            capacity,
            reserve: Amount::Share(Percent::new(5)),
            high_watermark: Percent::new(95),
            low_watermark: Percent::new(90),
            eviction: Algorithm::Worth,
        }
    }
}

/// Where the cache lies, how large it may be and how much memory it takes.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The directories; the first has the metadata.
    pub disks: Vec<DiskConfig>,
    /// Budget of the memory tier.
    pub memory: Bytes,
    /// The largest object that the memory tier takes.
    pub memory_max_object: Bytes,
}

impl StoreConfig {
    /// Reads the section; `directory` is where the cache goes unless told otherwise.
    pub fn read(section: &Section<'_>, directory: PathBuf) -> Self {
        let memory = section.read("memory", Bytes::mib(64));
        let memory_max_object = section.read("memory_max_object", Bytes::kib(256));
        if memory_max_object > memory {
            section.mistake("memory_max_object", "is larger than store.memory, so that nothing would fit");
        }
        let disk = section.section("disk");
        let default = DiskConfig::new(directory, Amount::Share(Percent::new(80)));
        let first = DiskConfig {
            directory: section.optional("directory").unwrap_or(default.directory),
            capacity: disk.read("capacity", default.capacity),
            reserve: disk.read("reserve", default.reserve),
            high_watermark: disk.read("high_watermark", default.high_watermark),
            low_watermark: disk.read("low_watermark", default.low_watermark),
            eviction: disk.read("eviction", default.eviction),
        };
        if first.low_watermark > first.high_watermark {
            disk.mistake("low_watermark", "is above store.disk.high_watermark");
        }
        let further = section.sections("disks").into_iter().filter_map(|disk| {
            Some(DiskConfig {
                capacity: disk.optional("capacity").unwrap_or(first.capacity),
                reserve: disk.optional("reserve").unwrap_or(first.reserve),
                directory: disk.required("directory")?,
                ..first.clone()
            })
        });
        let disks: Vec<_> = std::iter::once(first.clone()).chain(further).collect();
        for (at, disk) in disks.iter().enumerate() {
            if disks[..at].iter().any(|other| other.directory == disk.directory) {
                section.mistake("disks", format!("{} is named twice", disk.directory.display()));
            }
        }
        Self { disks, memory, memory_max_object }
    }
}
