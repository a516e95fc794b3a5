//! Descriptors: how one piece of content names another, and the platform an image is for.
//!
//! Source: image-spec v1.1.1 `descriptor.md` and `image-index.md`. Lists and maps that Go programs write as
//! `null` are read as empty.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;
use super::excerpt::excerpt;
use super::media_type;

/// A typed, sized link to content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: String,
    /// The content's address.
    pub digest: Digest,
    /// The content's length in bytes.
    pub size: u64,
    /// For a manifest inside an index: the platform its image runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// For a manifest inside an index: the kind of artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Free-form notes of the publisher.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Where else the content lies. Chosen by the publisher, so never dialled on its word alone.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
}

impl Descriptor {
    /// A descriptor with the three fields every one has.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
            urls: Vec::new(),
        }
    }

    /// Whether it leads to another manifest or index that is served.
    pub fn is_manifest(&self) -> bool {
        media_type::is_image(&self.media_type) || media_type::is_index(&self.media_type)
    }

    /// Whether the registry may rightly not have the content ([`media_type::is_nondistributable`]).
    pub fn is_nondistributable(&self) -> bool {
        media_type::is_nondistributable(&self.media_type)
    }
}

/// What an image runs on. Text form `os/architecture[/variant]`, as in `linux/arm64/v8`.
///
/// Values are Go's `GOOS` and `GOARCH` (image-spec v1.1.1 `image-index.md` "platform"). Nothing is required
/// of what an upstream sends; parsing from text requires both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// CPU architecture, as `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// Operating system, as `linux`.
    #[serde(default)]
    pub os: String,
    /// Version of the architecture, as `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Version of the operating system; Windows images depend on it.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features the operating system must have, as `win32k`.
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
}

impl Platform {
    /// Whether an image for this platform is among what `wanted` names.
    ///
    /// A variant or version that `wanted` leaves out matches any. `arm64` without a variant is `v8`, `arm` is
    /// `v7`, as containerd's `platforms` package normalises them.
    pub fn matches(&self, wanted: &Self) -> bool {
        let same_variant =
            wanted.variant.is_none() || self.variant_or_default() == wanted.variant_or_default();
        let same_version = wanted.os_version.is_none() || self.os_version == wanted.os_version;
        self.os == wanted.os && self.architecture == wanted.architecture && same_variant && same_version
    }

    fn variant_or_default(&self) -> Option<&str> {
        let default = match self.architecture.as_str() {
            "arm64" => Some("v8"),
            "arm" => Some("v7"),
            _ => None,
        };
        self.variant.as_deref().filter(|variant| !variant.is_empty()).or(default)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let error = || PlatformError { text: excerpt(text, 64) };
        let parts: Vec<String> = text.split('/').map(str::to_ascii_lowercase).collect();
        let is_word = |part: &String| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        };
        if text.len() > 128 || !parts.iter().all(is_word) {
            return Err(error());
        }
        match parts.as_slice() {
            [os, architecture] => Ok(normalised(os, architecture, None)),
            [os, architecture, variant] => Ok(normalised(os, architecture, Some(variant))),
            _ => Err(error()),
        }
    }
}

/// Other common names of an architecture become Go's.
fn normalised(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
    let (architecture, implied) = match architecture {
        "x86_64" | "x86-64" => ("amd64", None),
        "aarch64" => ("arm64", None),
        "armhf" => ("arm", Some("v7")),
        "armel" => ("arm", Some("v6")),
        "i386" => ("386", None),
        other => (other, None),
    };
    Platform {
        architecture: architecture.to_owned(),
        os: os.to_owned(),
        variant: variant.or(implied).map(str::to_owned),
        ..Platform::default()
    }
}

/// A text is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform {text:?}: write os/architecture or os/architecture/variant, as in linux/arm64/v8")]
pub struct PlatformError {
    /// The text, cut short.
    pub text: String,
}

/// Go writes a nil slice or map as `null`.
pub(super) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::super::Algorithm;
    use super::*;
    use proptest::prelude::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn a_descriptor_reads_and_writes_the_specs_field_names() {
        let digest = Digest::of(Algorithm::Sha256, b"{}");
        let json = format!(
            r#"{{"mediaType":"a/b","digest":"{digest}","size":2,"platform":{{"architecture":"amd64","os":"windows","os.version":"10.0.1"}},"artifactType":"c/d"}}"#
        );
        let descriptor: Descriptor = serde_json::from_str(&json).unwrap();
        assert_eq!(descriptor.platform.as_ref().unwrap().os_version.as_deref(), Some("10.0.1"));
        assert_eq!(serde_json::to_string(&descriptor).unwrap(), json);
    }

    #[test]
    fn what_go_writes_as_null_is_empty() {
        let digest = Digest::of(Algorithm::Sha256, b"{}");
        let json = format!(
            r#"{{"mediaType":"a/b","digest":"{digest}","size":2,"urls":null,"annotations":null,"platform":null,"data":"e30="}}"#
        );
        assert_eq!(serde_json::from_str::<Descriptor>(&json).unwrap(), Descriptor::new("a/b", digest, 2));
    }

    #[test]
    fn a_negative_or_repeated_size_is_an_error() {
        let digest = Digest::of(Algorithm::Sha256, b"{}");
        for sizes in
            [r#""size":-1"#, r#""size":1,"size":2"#, r#""size":1.5"#, r#""size":18446744073709551616"#]
        {
            let json = format!(r#"{{"mediaType":"a/b","digest":"{digest}",{sizes}}}"#);
            assert!(serde_json::from_str::<Descriptor>(&json).is_err(), "{sizes}");
        }
    }

    #[test]
    fn a_platform_matches_what_containerd_would_run() {
        for (have, want, matches) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm", "linux/arm/v7", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/arm64", "linux/aarch64", true),
            ("linux/amd64/v3", "linux/amd64", true),
            ("linux/amd64", "linux/amd64/v3", false),
            ("windows/amd64", "linux/amd64", false),
        ] {
            assert_eq!(platform(have).matches(&platform(want)), matches, "{have} {want}");
        }
    }

    #[test]
    fn a_text_that_names_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64", "linux/*"] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_platform_survives_its_text(text in "[a-z]{1,7}/[a-z0-9]{1,8}(/v[0-9])?") {
            prop_assert_eq!(platform(&platform(&text).to_string()), platform(&text));
        }

        #[test]
        fn any_text_parses_or_fails_without_panic(text: String) {
            let _ = text.parse::<Platform>();
        }
    }
}
