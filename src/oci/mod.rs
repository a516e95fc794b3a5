//! The specifications as pure types: what a registry's clients and servers say to each other.
//!
//! Owns the grammars of the OCI distribution-spec and image-spec v1.1.1, of Docker's image names, and of the
//! HTTP fields a registry lives by (ranges, challenges, links). Everything else in this crate receives these
//! types already checked, so no other module looks at raw text again.
//!
//! Invariant: no I/O, no clock, no async, and no panic on any input. Every parser is bounded and
//! property-tested, because all of its input comes from a network. A value that exists is valid: constructors
//! are the parsers, and [`Verified`] can only be made by hashing.
//!
//! Left out: HTTP status codes (the frontend decides them) and anything about pushing, which is only
//! recognised so that it can be refused.

/// Serialises a type as the text it displays as, and reads it back through its own parser.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl ::serde::Serialize for $type {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $type {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as ::serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(::serde::de::Error::custom)
            }
        }
    };
}

mod challenge;
mod concat;
mod descriptor;
mod digest;
mod error;
mod excerpt;
mod image_reference;
mod link;
mod manifest;
pub mod media_type;
mod name;
mod percent;
mod range;
mod request;
mod scope;
mod sha256;
mod via;

pub use challenge::{Challenge, Scheme};
pub use concat::concat;
pub use descriptor::{Descriptor, Platform, PlatformError};
pub use digest::{Algorithm, Digest, DigestError, Hasher, HasherStateError, Mismatch, Verified};
pub use error::{ErrorCode, ErrorDocument, ErrorEntry};
pub use excerpt::excerpt;
pub use image_reference::{ImageReference, ImageReferenceError};
pub use link::{next_link, next_page_link};
pub use manifest::{ImageIndex, ImageManifest, MAX_MANIFEST_SIZE, Manifest, ManifestError};
pub use media_type::{MANIFEST_ACCEPT, essence};
pub use name::{NameError, Reference, ReferenceError, Repository, Tag};
pub use percent::encode as percent_encode;
pub use range::{ByteRange, ContentRange, RangeError, RangeRequest, RangeSpec, Resolved};
pub use request::{ApiRequest, Page, RequestError, Target};
pub use scope::PullScope;
pub use via::{NodeId, Via};
