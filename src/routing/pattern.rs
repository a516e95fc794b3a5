//! Which images something speaks of.

use globset::{GlobBuilder, GlobMatcher};

use super::endpoint::UpstreamName;
use crate::oci::{Repository, Tag};
use crate::runtime::Setting;

/// Images, written as `upstream/repository` or `upstream/repository:tag` with `*` (within a component), `**` and `?`.
#[derive(Debug, Clone)]
pub struct ImagePattern {
    text: String,
    repository: GlobMatcher,
    tag: Option<GlobMatcher>,
}

impl Setting for ImagePattern {
    const EXPECTED: &'static str = "a pattern such as \"docker.io/ci/**\" or \"**:v*\"";
    fn from_text(text: &str) -> Result<Self, String> {
        let (repository, tag) = match text.rsplit_once(':') {
            // A colon before a slash belongs to a port.
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (text, None),
        };
        let glob = |pattern: &str| {
            let glob = GlobBuilder::new(pattern).literal_separator(true).build();
            glob.map(|glob| glob.compile_matcher()).map_err(|error| error.to_string())
        };
        Ok(Self { text: text.to_owned(), repository: glob(repository)?, tag: tag.map(glob).transpose()? })
    }
    fn to_text(&self) -> String {
        self.text.clone()
    }
}

impl ImagePattern {
    /// Whether it speaks of the whole of a repository or some of its tags.
    pub fn matches_repository(&self, upstream: &UpstreamName, repository: &Repository) -> bool {
        self.repository.is_match(format!("{upstream}/{repository}"))
    }

    /// Whether it speaks of a tag of a repository.
    pub fn matches_tag(&self, upstream: &UpstreamName, repository: &Repository, tag: &Tag) -> bool {
        self.matches_repository(upstream, repository)
            && self.tag.as_ref().is_none_or(|pattern| pattern.is_match(tag.as_str()))
    }
}
