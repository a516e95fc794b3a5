//! `[auth]`.

use std::time::Duration;

use crate::routing::{ImagePattern, Site};
use crate::runtime::Section;

/// Who may pull without a key, and how long an upstream's word about a caller counts.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// How clients reach this edge, or the nodes of a fleet; else it is what each of them calls it.
    pub external_url: Option<Site>,
    /// Whether whoever has no key may pull whatever an upstream does not judge its callers for; where it is not said,
    /// he may, and an edge that others reach lends nobody its credentials.
    pub anonymous: Option<bool>,
    /// What he may pull even so.
    pub public: Vec<ImagePattern>,
    /// How long a yes is believed.
    pub verdict_ttl: Duration,
    /// How long a no is.
    pub denial_ttl: Duration,
    /// How long after the last yes a caller is still admitted while the upstream cannot be asked.
    pub grace: Duration,
    /// How long a caller within the grace waits for the upstream.
    pub patience: Duration,
}

impl AuthConfig {
    /// Reads `external_url` and `[auth]`; a caller within the grace has the same `patience` as one with a stale tag.
    pub fn read(root: &Section<'_>, patience: Duration) -> Self {
        let section = root.section("auth");
        let external_url = root.optional::<String>("external_url").and_then(|url| {
            let parsed = url.parse::<Site>();
            parsed.map_err(|reason| root.mistake("external_url", reason.to_string())).ok()
        });
        let config = Self {
            external_url,
            anonymous: section.optional("anonymous"),
            public: section.list("public", Vec::new()),
            verdict_ttl: section.read("verdict_ttl", Duration::from_mins(5)),
            denial_ttl: section.read("denial_ttl", Duration::from_secs(30)),
            grace: section.read("grace", Duration::from_hours(24)),
            patience,
        };
        if !config.public.is_empty() && config.anonymous != Some(false) {
            section.mistake("public", "says what needs no key, and nothing does without `anonymous = false`");
        }
        if config.verdict_ttl.is_zero() {
            section
                .mistake("verdict_ttl", "must be longer than nothing: a pull of an image is many requests");
        }
        config
    }
}
