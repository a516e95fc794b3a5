//! `[store]`.

use std::path::PathBuf;

use crate::runtime::{Bytes, Section};

/// Where the cache lies and how much memory it takes.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The cache directory; one process owns it.
    pub directory: PathBuf,
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
        Self { directory: section.optional("directory").unwrap_or(directory), memory, memory_max_object }
    }
}
