//! Logs and metrics: how the process tells what it does.
//!
//! Every room owns a struct of its counters and registers it here; nothing is static. Labels come
//! from closed sets (upstream names, outcomes), never from what a client sends.

mod line;
mod lines;
mod log;
mod registry;

pub use line::{AccessLog, Line};
pub use log::{Log, LogConfig, LogFormat};
pub use registry::{Buckets, Metrics, counter, counters, gauge, gauges, histogram};
