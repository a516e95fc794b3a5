//! What the benchmarks share: real clocks, the cost of processes and of the machine, the content of blobs, the page
//! cache.

#![allow(dead_code, reason = "each benchmark uses another part of it")]

pub(crate) mod clock;
pub(crate) mod content;
pub(crate) mod pages;
pub(crate) mod usage;
