//! What every other room stands on: time, tasks, backoff, sizes and the reading of settings.
//!
//! Nothing here knows about registries. Wall-clock time comes only from [`Clock`], so that a test
//! can set it; durations are measured with `tokio::time::Instant`, which a test can pause.

mod backoff;
mod clock;
mod coalesce;
mod crypto;
mod network;
mod quantity;
mod secret;
mod settings;
mod tasks;

pub use backoff::Backoff;
pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use coalesce::Coalesce;
pub use crypto::crypto_provider;
pub use network::Network;
pub use quantity::{Bytes, Percent};
pub use secret::Secret;
pub(crate) use settings::keyword_setting;
pub use settings::{Mistake, Mistakes, Origin, Overrides, Section, Setting, Settings};
pub use tasks::Tasks;
