//! API keys: what somebody may pull who shows a secret.
//!
//! A key names the images that may be pulled with it and nothing else; there is no action but to pull. The database has a
//! keyed hash of its secret ([`store`]). Nodes know the keys that are used on them by heart, and learn within a second
//! what has become of them ([`live`]).

mod live;
mod secret;
mod store;

use std::net::IpAddr;

use serde::Serialize;

pub use secret::{KeyId, KeySecret, PREFIX};
pub use store::{KeyError, KeyStore, Noticed};

pub(super) use live::LiveKeys;

use crate::routing::ImagePattern;
use crate::runtime::{Network, Setting, Timestamp};

/// What a key is to be.
#[derive(Debug, Clone)]
pub struct KeySpec {
    /// For people.
    pub name: String,
    /// What may be pulled with it; at least one pattern.
    pub scopes: Vec<ImagePattern>,
    /// From where; everywhere if there is none.
    pub networks: Vec<Network>,
    /// Since when; at once if it is not said.
    pub not_before: Option<Timestamp>,
    /// Until when; for ever if it is not said.
    pub expires_at: Option<Timestamp>,
}

/// A key, without its secret.
#[derive(Debug, Clone, Serialize)]
pub struct Key {
    /// Its id.
    #[serde(serialize_with = "as_text")]
    pub id: KeyId,
    /// For people.
    pub name: String,
    /// What may be pulled with it.
    #[serde(serialize_with = "as_settings")]
    pub scopes: Vec<ImagePattern>,
    /// From where; everywhere if there is none.
    #[serde(serialize_with = "as_settings")]
    pub networks: Vec<Network>,
    /// When it was made.
    #[serde(serialize_with = "as_text")]
    pub created_at: Timestamp,
    /// Since when it is good; from the first if it is not said.
    #[serde(serialize_with = "as_optional_text")]
    pub not_before: Option<Timestamp>,
    /// Until when.
    #[serde(serialize_with = "as_optional_text")]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(serialize_with = "as_optional_text")]
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, to within seconds.
    #[serde(serialize_with = "as_optional_text")]
    pub last_used_at: Option<Timestamp>,
    /// How many requests it was shown with.
    pub uses: u64,
    /// Until when the secret before its last rotation works.
    #[serde(serialize_with = "as_optional_text")]
    pub previous_until: Option<Timestamp>,
    #[serde(skip)]
    pub(super) hash: String,
    #[serde(skip)]
    pub(super) previous_hash: Option<String>,
    #[serde(skip)]
    pub(super) revision: i64,
}

/// Why a key does not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is no such key, or the secret is another.
    Unknown,
    /// It was revoked.
    Revoked,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYet,
    /// It is not for this network.
    Network,
    /// It is not for this image.
    Scope,
}

impl Refused {
    /// As a label of metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::NotYet => "not_yet",
            Self::Network => "network",
            Self::Scope => "scope",
        }
    }
}

impl Key {
    /// Whether it is good at this time, from this address.
    pub(super) fn check(&self, now: Timestamp, from: Option<IpAddr>) -> Result<(), Refused> {
        if self.revoked_at.is_some() {
            Err(Refused::Revoked)
        } else if self.expires_at.is_some_and(|end| end <= now) {
            Err(Refused::Expired)
        } else if self.not_before.is_some_and(|begin| now < begin) {
            Err(Refused::NotYet)
        } else if !self.networks.is_empty()
            && !from.is_some_and(|from| self.networks.iter().any(|network| network.contains(from)))
        {
            Err(Refused::Network)
        } else {
            Ok(())
        }
    }
}

fn as_text<S: serde::Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[expect(clippy::ref_option, reason = "serde gives it so")]
fn as_optional_text<S: serde::Serializer>(
    value: &Option<impl std::fmt::Display>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

fn as_settings<S: serde::Serializer>(values: &[impl Setting], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(Setting::to_text))
}
