//! What the patterns of a key, or of what is public, speak of.

use super::proof::Wanted;
use crate::oci::{Reference, Repository, Tag};
use crate::routing::{ImagePattern, UpstreamName};

/// Whether this may be pulled. By a digest, whatever tags the patterns name: who knows one has been told by somebody who may.
pub(super) fn allow(
    patterns: &[ImagePattern],
    upstream: &UpstreamName,
    repository: &Repository,
    wanted: Wanted<'_>,
) -> bool {
    match wanted {
        Wanted::Manifest(Reference::Tag(tag)) => names_tag(patterns, upstream, repository, tag),
        Wanted::Manifest(Reference::Digest(_)) | Wanted::Blob(_) | Wanted::Tags | Wanted::Referrers(_) => {
            reach(patterns, upstream, repository)
        }
    }
}

/// Whether anything of this repository may be pulled.
pub(super) fn reach(patterns: &[ImagePattern], upstream: &UpstreamName, repository: &Repository) -> bool {
    patterns.iter().any(|pattern| pattern.matches_repository(upstream, repository))
}

/// Whether this tag is to be seen.
pub(super) fn show(
    patterns: &[ImagePattern],
    upstream: &UpstreamName,
    repository: &Repository,
    tag: &str,
) -> bool {
    tag.parse().is_ok_and(|tag| names_tag(patterns, upstream, repository, &tag))
}

fn names_tag(patterns: &[ImagePattern], upstream: &UpstreamName, repository: &Repository, tag: &Tag) -> bool {
    patterns.iter().any(|pattern| pattern.matches_tag(upstream, repository, tag))
}
