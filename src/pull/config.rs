//! `[tags]` and `[fill]`.

use std::time::Duration;

use crate::oci::{Repository, Tag};
use crate::routing::{ImagePattern, UpstreamName};
use crate::runtime::{Bytes, Percent, Section, Setting, keyword_setting};

/// For how long a tag may be answered without asking the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// This long after the upstream last confirmed it; zero asks every time.
    For(Duration),
    /// The tag is declared immutable.
    Forever,
}

impl Setting for Ttl {
    const EXPECTED: &'static str = "a duration such as \"5m\", \"0\" or \"forever\"";
    fn from_text(text: &str) -> Result<Self, String> {
        if text == "forever" {
            return Ok(Self::Forever);
        }
        Duration::from_text(text).map(Self::For)
    }
    fn to_text(&self) -> String {
        match self {
            Self::For(duration) => duration.to_text(),
            Self::Forever => "forever".to_owned(),
        }
    }
}

/// How long a tag is believed, asked for again and used without an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagPolicy {
    /// How long it is answered without asking.
    pub ttl: Ttl,
    /// After the TTL, for how long it is still answered at once while the upstream is asked behind
    /// the client's back (RFC 5861, section 3).
    pub stale_while_revalidate: Duration,
    /// After the TTL, for how long it is answered when the upstream cannot be asked (RFC 5861,
    /// section 4).
    pub stale_if_error: Duration,
    /// Whether everything of the image that has arrived stays in the cache.
    pub keep: bool,
}

/// `[tags]`.
#[derive(Debug, Clone)]
pub struct TagConfig {
    default: TagPolicy,
    rules: Vec<(ImagePattern, TagPolicy)>,
    /// How long "there is no such thing" is believed.
    pub negative_ttl: Duration,
    /// How long a client waits for a revalidation when there is something stale to give.
    pub revalidate_timeout: Duration,
}

impl TagConfig {
    /// Reads the section. The first rule that matches a tag decides.
    pub fn read(section: &Section<'_>) -> Self {
        let default = TagPolicy {
            ttl: section.read("ttl", Ttl::For(Duration::from_mins(5))),
            stale_while_revalidate: section.read("stale_while_revalidate", Duration::ZERO),
            stale_if_error: section.read("stale_if_error", Duration::from_hours(720)),
            keep: false,
        };
        let rules = section.sections("rules").into_iter().filter_map(|rule| {
            let policy = TagPolicy {
                ttl: rule.optional("ttl").unwrap_or(default.ttl),
                stale_while_revalidate: rule
                    .optional("stale_while_revalidate")
                    .unwrap_or(default.stale_while_revalidate),
                stale_if_error: rule.optional("stale_if_error").unwrap_or(default.stale_if_error),
                keep: rule.optional("keep").unwrap_or(false),
            };
            Some((rule.required("match")?, policy))
        });
        Self {
            default,
            rules: rules.collect(),
            negative_ttl: section.read("negative_ttl", Duration::from_secs(1)),
            revalidate_timeout: section.read("revalidate_timeout", Duration::from_secs(3)),
        }
    }

    /// Whether any rule says that images are kept.
    pub fn keeps_any(&self) -> bool {
        self.rules.iter().any(|(_, policy)| policy.keep)
    }

    /// What holds for a tag.
    pub fn policy(&self, upstream: &UpstreamName, repository: &Repository, tag: &Tag) -> TagPolicy {
        self.rules
            .iter()
            .find(|(pattern, _)| pattern.matches_tag(upstream, repository, tag))
            .map_or(self.default, |(_, policy)| *policy)
    }
}

/// What becomes of a fill that nobody waits for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAbandon {
    /// It goes on once enough has arrived, if anybody has ever wanted its end.
    Finish,
    /// It stops; what has arrived is kept for the next pull.
    Cancel,
}

keyword_setting!(
    OnAbandon,
    "\"finish\" or \"cancel\"",
    "finish" => OnAbandon::Finish,
    "cancel" => OnAbandon::Cancel,
);

/// `[fill]`.
#[derive(Debug, Clone)]
pub struct FillConfig {
    /// What becomes of a fill without clients.
    pub on_abandon: OnAbandon,
    /// The share that must have arrived for a fill without clients to be finished.
    pub finish_after: Percent,
    /// How long a fill without clients waits for one to come back before it is judged: clients
    /// that lost their connection reconnect at once.
    pub abandon_grace: Duration,
    /// Whether an inner range of a blob in flight is answered before its digest is known.
    pub unverified_ranges: bool,
    /// How long a request waits for the first byte that it asked for.
    pub wait_timeout: Duration,
    /// Fetches at once from one upstream, fills and the ranges ahead of them; each holds 2.5 MiB at most. More
    /// wait for their turn.
    pub max_concurrent: usize,
    /// The largest blob that is accepted.
    pub max_blob_size: Bytes,
}

impl FillConfig {
    /// Reads the section.
    pub fn read(section: &Section<'_>) -> Self {
        let config = Self {
            on_abandon: section.read("on_abandon", OnAbandon::Finish),
            finish_after: section.read("finish_after", Percent::new(25)),
            abandon_grace: section.read("abandon_grace", Duration::from_secs(2)),
            unverified_ranges: section.read("unverified_ranges", true),
            wait_timeout: section.read("wait_timeout", Duration::from_mins(10)),
            max_concurrent: section.read("max_concurrent", 64),
            max_blob_size: section.read("max_blob_size", Bytes::gib(256)),
        };
        if config.max_concurrent == 0 {
            section.mistake("max_concurrent", "must be at least 1");
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Overrides, Settings};
    use std::path::Path;

    #[test]
    fn the_first_rule_that_matches_a_tag_decides() {
        let text = r#"
            [tags]
            ttl = "5m"
            [[tags.rules]]
            match = "docker.io/ci/**"
            ttl = "0"
            [[tags.rules]]
            match = "**:v*"
            ttl = "forever"
        "#;
        let settings = Settings::new(Some((Path::new("t"), text)), [], Overrides::new());
        let config = TagConfig::read(&settings.root().section("tags"));
        settings.finish().unwrap();
        for (upstream, repository, tag, ttl) in [
            ("docker.io", "ci/app/web", "v1", Ttl::For(Duration::ZERO)),
            ("docker.io", "library/nginx", "v1", Ttl::Forever),
            ("quay.io", "ci/app", "latest", Ttl::For(Duration::from_mins(5))),
        ] {
            let policy = config.policy(
                &upstream.parse().unwrap(),
                &repository.parse().unwrap(),
                &tag.parse().unwrap(),
            );
            assert_eq!(policy.ttl, ttl, "{upstream}/{repository}:{tag}");
        }
    }
}
