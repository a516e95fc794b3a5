//! Image names as people write them, made canonical the way Docker does.
//!
//! Source: `distribution/reference` (`ParseDockerRef`, `splitDockerDomain`): `nginx` is
//! `docker.io/library/nginx:latest`; the part before the first slash is a registry if it has a dot or a colon
//! or is `localhost`. One difference: Docker also takes a bare word with a capital (`User/app`) for a registry,
//! which is a mistake far more often than a host, and is refused here.

use std::fmt;
use std::str::FromStr;

use super::digest::DigestError;
use super::excerpt::excerpt;
use super::name::{NameError, Reference, Repository, Tag};

const DOCKER_HUB: &str = "docker.io";

/// Longest text looked at: a host name, a repository, a tag and a digest at their limits.
const MAX_LENGTH: usize = 1024;

/// A full image name.
///
/// `Display` writes the canonical form `registry/repository[:tag][@digest]`, which parses to an equal value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageReference {
    /// Host and, where given, port of the registry, in lower case; `docker.io` where none was named.
    pub registry: String,
    /// The repository there; Docker Hub's official images carry their `library/`.
    pub repository: Repository,
    /// What to pull: the digest if one was given, else the tag, else `latest`.
    pub reference: Reference,
    /// The tag written beside a digest. It is a note only: the digest decides.
    pub tag: Option<Tag>,
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.reference, &self.tag) {
            (Reference::Tag(tag), _) => write!(f, ":{tag}"),
            (Reference::Digest(digest), None) => write!(f, "@{digest}"),
            (Reference::Digest(digest), Some(tag)) => write!(f, ":{tag}@{digest}"),
        }
    }
}

impl FromStr for ImageReference {
    type Err = ImageReferenceError;

    fn from_str(text: &str) -> Result<Self, ImageReferenceError> {
        if text.len() > MAX_LENGTH {
            return Err(ImageReferenceError::TooLong { length: text.len() });
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(ImageReferenceError::Digest)?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(name);
        let tag = tag.map(str::parse).transpose().map_err(ImageReferenceError::Tag)?;
        let (registry, repository) = split_registry(name)?;
        let (reference, tag) = match digest {
            Some(digest) => (Reference::Digest(digest), tag),
            None => (Reference::Tag(tag.unwrap_or_else(Tag::latest)), None),
        };
        Ok(Self { registry, repository, reference, tag })
    }
}

serde_as_text!(ImageReference);

/// Why a text is no image name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageReferenceError {
    /// More text than any image name needs.
    #[error("the image name has {length} characters, {MAX_LENGTH} are allowed")]
    TooLong {
        /// Bytes found.
        length: usize,
    },
    /// The part before the first slash is neither a host nor a repository component.
    #[error("invalid registry {registry:?}")]
    Registry {
        /// The part, cut short.
        registry: String,
    },
    /// The repository is outside of its grammar.
    #[error("invalid repository: {0}")]
    Repository(#[source] NameError),
    /// 64 hex digits, which Docker takes for an image id.
    #[error("64 hex digits are an image id, not the name of a repository")]
    ImageId,
    /// The tag is outside of its grammar.
    #[error("{0}")]
    Tag(#[source] NameError),
    /// What follows the `@` is no digest.
    #[error("invalid digest: {0}")]
    Digest(#[source] DigestError),
}

/// A colon after the last slash begins a tag; one before it, a port.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    }
}

fn split_registry(name: &str) -> Result<(String, Repository), ImageReferenceError> {
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if names_a_registry(first) => (first.to_ascii_lowercase(), rest),
        _ => (DOCKER_HUB.to_owned(), name),
    };
    if !is_host(&registry) {
        return Err(ImageReferenceError::Registry { registry: excerpt(&registry, 64) });
    }
    if path == name && path.len() == 64 && path.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')) {
        return Err(ImageReferenceError::ImageId);
    }
    let registry = if registry == "index.docker.io" { DOCKER_HUB.to_owned() } else { registry };
    let repository: Repository = path.parse().map_err(ImageReferenceError::Repository)?;
    if registry == DOCKER_HUB && !path.contains('/') {
        let official = repository.with_prefix("library").map_err(ImageReferenceError::Repository)?;
        return Ok((registry, official));
    }
    Ok((registry, repository))
}

fn names_a_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

/// `host[:port]`, the host being dotted labels or an IPv6 address in brackets.
fn is_host(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let is_address = |address: &str| address.parse::<std::net::Ipv6Addr>().is_ok();
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    port.is_none_or(is_port) && bracketed.map_or_else(|| host.split('.').all(is_label), is_address)
}

fn is_label(label: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    label.starts_with(edge)
        && label.ends_with(edge)
        && label.len() <= 63
        && label.chars().all(|c| edge(c) || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn familiar_names_become_canonical_as_docker_does_it() {
        let cases = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/library/nginx:1", "docker.io/library/nginx:1"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("GHCR.io/a/b", "ghcr.io/a/b:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("[2001:db8::1]/x:1", "[2001:db8::1]/x:1"),
            ("quay.io/a/b/c:t", "quay.io/a/b/c:t"),
        ];
        for (familiar, canonical) in cases {
            assert_eq!(familiar.parse::<ImageReference>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn a_digest_wins_over_the_tag_beside_it() {
        let image: ImageReference = format!("nginx:1.27@{DIGEST}").parse().unwrap();
        assert_eq!(image.reference.to_string(), DIGEST);
        assert_eq!(image.tag.as_ref().map(Tag::as_str), Some("1.27"));
        assert_eq!(image.to_string(), format!("docker.io/library/nginx:1.27@{DIGEST}"));
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        let image_id = "a".repeat(64);
        for text in [
            "",
            ":",
            "@",
            "/",
            "nginx:",
            "nginx@",
            "nginx@sha256:beef",
            "a//b",
            "https://a.b/c",
            "-a.b/c",
            "a.b:x/c",
            "a.b:99999/c",
            "[::g]/x",
            "user/App",
            "User/app",
            ".a/b",
            "a.b/",
            &image_id,
        ] {
            assert!(text.parse::<ImageReference>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_a_fixed_point(
            text in "(([a-z]{1,4}\\.){1,2}[a-z]{2}(:[0-9]{1,4})?/)?[a-z0-9]{1,5}(/[a-z0-9]{1,5}){0,2}(:[a-z0-9_][a-z0-9.-]{0,5})?(@sha256:[0-9a-f]{64})?",
        ) {
            let image: ImageReference = text.parse().unwrap();
            prop_assert_eq!(image.to_string().parse::<ImageReference>().unwrap(), image);
        }

        #[test]
        fn whatever_parses_is_canonical_after_one_round(text in "[a-zA-Z0-9.:/@_\\[\\]-]{0,20}") {
            if let Ok(image) = text.parse::<ImageReference>() {
                prop_assert_eq!(image.to_string().parse::<ImageReference>(), Ok(image));
            }
        }

        #[test]
        fn any_text_parses_or_fails_without_panic(text: String) {
            let _ = text.parse::<ImageReference>();
        }
    }
}
