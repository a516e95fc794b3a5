//! Names inside a registry: repositories, tags, and references that are either a tag or a digest.
//!
//! Grammar: distribution-spec v1.1.1 "Pulling manifests", with the 255-character limit that the specification
//! recommends because clients enforce it. Cloning is one reference count.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::digest::{Digest, DigestError};
use super::excerpt::excerpt;

/// Longest repository name, in bytes.
const MAX_REPOSITORY_LENGTH: usize = 255;

/// Longest tag, in bytes.
const MAX_TAG_LENGTH: usize = 128;

/// Implements what every checked, shared string has.
macro_rules! text_type {
    ($type:ident) => {
        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        serde_as_text!($type);
    };
}

/// The name of a repository, such as `library/nginx`: never empty, at most 255 bytes, no registry host.
///
/// Where a client names the upstream in its path, the first component is that name
/// (`docker.io/library/nginx`); [`Repository::strip_first`] takes it off.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(Arc<str>);

text_type!(Repository);

impl Repository {
    /// The parts between the slashes; at least one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// `prefix/self`.
    ///
    /// # Errors
    /// [`NameError`] if the prefix is no repository name itself or the result is too long.
    pub fn with_prefix(&self, prefix: &str) -> Result<Self, NameError> {
        format!("{prefix}/{self}").parse()
    }

    /// The first component and what follows it, or `None` if there is only one.
    pub fn strip_first(&self) -> Option<(&str, Self)> {
        let (first, rest) = self.0.split_once('/')?;
        Some((first, Self(rest.into())))
    }

    /// What follows `prefix` and a slash, or `None` if the name does not begin with these whole components.
    pub fn strip_prefix(&self, prefix: &str) -> Option<Self> {
        let rest = self.0.strip_prefix(prefix)?.strip_prefix('/')?;
        (!prefix.is_empty()).then(|| Self(rest.into()))
    }
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_length(text, MAX_REPOSITORY_LENGTH)?;
        match text.split('/').find(|component| !is_component(component)) {
            None => Ok(Self(text.into())),
            Some(component) => Err(NameError::Component { component: excerpt(component, 64) }),
        }
    }
}

/// A tag, such as `1.27-alpine`: 1 to 128 characters of `[a-zA-Z0-9._-]`, not beginning with `.` or `-`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

text_type!(Tag);

impl Tag {
    /// The tag that is meant where none is named.
    pub fn latest() -> Self {
        Self("latest".into())
    }

    /// The tag that lists what refers to a manifest, where a registry has no API for it (distribution-spec
    /// v1.1.1 "Referrers Tag Schema"): `sha256-<hex>`.
    pub fn referrers_of(digest: &Digest) -> Self {
        /// Of the hexadecimal part; a longer one is cut.
        const LONGEST: usize = 64;
        let hex = digest.hex();
        Self(format!("{}-{}", digest.algorithm().as_str(), &hex[..hex.len().min(LONGEST)]).into())
    }
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_length(text, MAX_TAG_LENGTH)?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        if text.starts_with(['.', '-']) || !text.bytes().all(allowed) {
            return Err(NameError::Tag { tag: excerpt(text, 64) });
        }
        Ok(Self(text.into()))
    }
}

/// Why a text is no repository name or tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing.
    #[error("the name is empty")]
    Empty,
    /// More bytes than clients accept.
    #[error("the name has {length} characters, {limit} are allowed")]
    TooLong {
        /// Bytes found.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A part of a repository name is outside of the grammar.
    #[error(
        "invalid repository name component {component:?}: lower-case letters and digits, \
         separated by one '.', one or two '_' or any number of '-'"
    )]
    Component {
        /// The part, cut short.
        component: String,
    },
    /// A tag is outside of the grammar.
    #[error("invalid tag {tag:?}: letters, digits, '_', '.' and '-', not beginning with '.' or '-'")]
    Tag {
        /// The tag, cut short.
        tag: String,
    },
}

/// What names a manifest inside a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// A name that may point somewhere else tomorrow.
    Tag(Tag),
    /// The content itself.
    Digest(Digest),
}

impl Reference {
    /// The digest, if it is one.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Digest(digest) => Some(*digest),
            Self::Tag(_) => None,
        }
    }

    /// The tag, if it is one.
    pub fn tag(&self) -> Option<&Tag> {
        match self {
            Self::Tag(tag) => Some(tag),
            Self::Digest(_) => None,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A colon makes it a digest: no tag can contain one.
impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl From<Digest> for Reference {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl From<Tag> for Reference {
    fn from(tag: Tag) -> Self {
        Self::Tag(tag)
    }
}

serde_as_text!(Reference);

/// Why a text is neither a tag nor a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It has no colon and is no tag.
    #[error(transparent)]
    Tag(#[from] NameError),
    /// It has a colon and is no digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

fn check_length(text: &str, limit: usize) -> Result<(), NameError> {
    match text.len() {
        0 => Err(NameError::Empty),
        length if length > limit => Err(NameError::TooLong { length, limit }),
        _ => Ok(()),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    let mut rest = component.as_bytes();
    loop {
        let letters = rest.iter().take_while(|byte| alphanumeric(byte)).count();
        if letters == 0 {
            return false;
        }
        rest = &rest[letters..];
        if rest.is_empty() {
            return true;
        }
        let separator;
        (separator, rest) = rest.split_at(rest.iter().take_while(|byte| !alphanumeric(byte)).count());
        if !matches!(separator, b"." | b"_" | b"__") && separator.iter().any(|byte| *byte != b'-') {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REPOSITORY: &str = "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}(/[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}){0,4}";

    #[test]
    fn names_that_registries_really_hold_are_accepted() {
        let names = [
            "nginx",
            "library/nginx",
            "docker.io/library/nginx",
            "a__b/c--d",
            "0",
            "k8s.gcr.io/pause",
            "a---b",
        ];
        for name in names {
            assert_eq!(name.parse::<Repository>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_outside_of_the_grammar_are_refused() {
        let names = [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/B",
            "a..b",
            "a___b",
            "a._b",
            "-a",
            "a-",
            ".a",
            "a.",
            "..",
            "a/../b",
            "localhost:5000/a",
            "a b",
            "a\0",
            "é",
            "a@b",
            "a%2fb",
        ];
        for name in names {
            assert!(name.parse::<Repository>().is_err(), "{name:?}");
        }
        assert_eq!(
            "a".repeat(256).parse::<Repository>(),
            Err(NameError::TooLong { length: 256, limit: 255 })
        );
        assert!("a".repeat(255).parse::<Repository>().is_ok());
    }

    #[test]
    fn the_upstream_in_front_of_a_name_comes_off() {
        let name: Repository = "docker.io/library/nginx".parse().unwrap();
        let (first, rest) = name.strip_first().unwrap();
        assert_eq!((first, rest.as_str()), ("docker.io", "library/nginx"));
        assert_eq!(name.strip_prefix("docker.io/library").unwrap().as_str(), "nginx");
        assert_eq!(name.strip_prefix("docker"), None);
        assert_eq!(name.strip_prefix("docker.io/library/nginx"), None);
        assert!("nginx".parse::<Repository>().unwrap().strip_first().is_none());
    }

    #[test]
    fn tags_keep_to_their_grammar() {
        for tag in ["latest", "1.27", "_x", "V1", &"a".repeat(128)] {
            assert!(tag.parse::<Tag>().is_ok(), "{tag}");
        }
        for tag in ["", ".a", "-a", "a:b", "a/b", "a b", "é", &"a".repeat(129)] {
            assert!(tag.parse::<Tag>().is_err(), "{tag}");
        }
    }

    #[test]
    fn a_colon_decides_between_digest_and_tag() {
        assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
        assert!(matches!("sha256:beef".parse::<Reference>(), Err(ReferenceError::Digest(_))));
        assert!(matches!("sha256@beef".parse::<Reference>(), Err(ReferenceError::Tag(_))));
    }

    proptest! {
        #[test]
        fn every_name_of_the_grammar_survives_its_text(text in REPOSITORY) {
            let name: Repository = text.parse().unwrap();
            prop_assert_eq!(name.to_string(), text.clone());
            prop_assert_eq!(name.components().collect::<Vec<_>>().join("/"), text);
            let json = serde_json::to_string(&name).unwrap();
            prop_assert_eq!(serde_json::from_str::<Repository>(&json).unwrap(), name);
        }

        #[test]
        fn a_prefix_put_on_comes_off_again(text in REPOSITORY, prefix in "[a-z]{1,5}(\\.[a-z]{1,3})?") {
            let name: Repository = text.parse().unwrap();
            let longer = name.with_prefix(&prefix).unwrap();
            prop_assert_eq!(longer.strip_first(), Some((prefix.as_str(), name.clone())));
            prop_assert_eq!(longer.strip_prefix(&prefix), Some(name));
        }

        #[test]
        fn an_accepted_name_has_no_harmful_part(text in "[a-z0-9._/A-Z:%-]{0,12}") {
            if let Ok(name) = text.parse::<Repository>() {
                prop_assert!(name.components().all(|part| !part.is_empty() && !part.starts_with('.')));
                prop_assert!(!text.contains([':', '%']));
            }
        }

        #[test]
        fn any_text_parses_or_fails_without_panic(text: String) {
            let _ = text.parse::<Repository>();
            let _ = text.parse::<Tag>();
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string(), text);
            }
        }
    }
}
