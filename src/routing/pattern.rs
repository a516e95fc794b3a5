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
        // Classes and alternatives could reach over a slash.
        if let Some(odd) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-/:*?".contains(*c))) {
            return Err(format!("{odd:?} is in no name, and stands for nothing here"));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn reaches(pattern: &str, upstream: &str, repository: &str) -> bool {
        let pattern = ImagePattern::from_text(pattern).unwrap();
        pattern.matches_repository(&upstream.parse().unwrap(), &repository.parse().unwrap())
    }

    #[test]
    fn a_star_stays_within_a_component_and_an_upstream_is_part_of_the_pattern() {
        assert!(reaches("docker.io/team-a/*", "docker.io", "team-a/x"));
        assert!(!reaches("docker.io/team-a/*", "docker.io", "team-a/x/y"));
        assert!(reaches("docker.io/team-a/**", "docker.io", "team-a/x/y"));
        for (upstream, repository) in [
            ("quay.io", "team-a/x"),
            ("docker.io", "team-b/x"),
            ("docker.io", "team-a2/x"),
            ("docker.io", "team-a"),
        ] {
            assert!(!reaches("docker.io/team-a/**", upstream, repository), "{upstream} {repository}");
        }
        assert!(reaches("localhost:5000/a", "localhost:5000", "a"));
        assert!(reaches("**:v*", "quay.io", "a/b"));
    }

    #[test]
    fn what_could_reach_over_a_slash_is_no_pattern() {
        for pattern in
            ["docker.io/team-a[!0-9]*", "docker.io/{a,b}", "docker.io/a\\*", "docker.io/!a", "docker.io/a b"]
        {
            assert!(ImagePattern::from_text(pattern).is_err(), "{pattern}");
        }
    }
}
