//! Manifests: what an image consists of, and which documents are refused.
//!
//! Source: image-spec v1.1.1 `manifest.md` and `image-index.md`; distribution `docs/spec/manifest-v2-2.md`.
//!
//! Invariant: the media type is a function of the body alone, so a cached manifest needs no type beside it and
//! cannot be served under another. A body that two clients could read differently is refused: both lists
//! at once (CVE-2021-41190), a key twice, or a key that only a case-insensitive reader (every Go client)
//! takes for another one.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::descriptor::{Descriptor, null_is_default};
use super::digest::Digest;
use super::excerpt::{excerpt, excerpt_of_bytes};
use super::media_type::{self, DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

/// Largest manifest in bytes, the size distribution-spec v1.1.1 asks registries to accept at least.
pub const MAX_MANIFEST_SIZE: usize = 4 * 1024 * 1024;

/// A manifest that can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one lives per request; a box would be an allocation for nothing"
)]
pub enum Manifest {
    /// One image, or one artifact in the form of an image.
    Image(ImageManifest),
    /// A list of manifests.
    Index(ImageIndex),
}

/// An OCI image manifest or Docker's schema 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageManifest {
    /// One of the two image manifest types of [`media_type`](super::media_type).
    pub media_type: &'static str,
    /// The configuration; of an artifact, often the empty object.
    pub config: Descriptor,
    /// The layers from the base up; of an artifact, its files.
    pub layers: Vec<Descriptor>,
    /// The manifest that this one is about (a signature names the image it signs).
    pub subject: Option<Descriptor>,
    /// The kind of artifact; images have none.
    pub artifact_type: Option<String>,
    /// Free-form notes of the publisher.
    pub annotations: BTreeMap<String, String>,
}

/// An OCI image index or a Docker manifest list. Serialises to the JSON of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "IndexDocument")]
pub struct ImageIndex {
    /// One of the two index types of [`media_type`](super::media_type).
    pub media_type: &'static str,
    /// The manifests in the publisher's order.
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one is about.
    pub subject: Option<Descriptor>,
    /// The kind of artifact; image indexes have none.
    pub artifact_type: Option<String>,
    /// Free-form notes of the publisher.
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads a manifest and refuses what must not be cached.
    ///
    /// `content_type` is the answer's header: an error if it names another manifest type than the body is, no
    /// matter otherwise (registries send `application/json`, `text/plain` and nothing at all). Fields that
    /// are not known are ignored.
    ///
    /// # Errors
    /// [`ManifestError`]; the same body never parses later.
    pub fn parse(body: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        if body.len() > MAX_MANIFEST_SIZE {
            return Err(ManifestError::TooLarge { size: body.len() });
        }
        check_keys(body)?;
        let document: Document = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
        let declared = content_type.and_then(media_type::known_manifest);
        let actual = document.actual_type()?;
        if let Some(declared) = declared {
            document.check_header(declared, actual)?;
        }
        let manifest = document.into_manifest(actual)?;
        manifest.check_sizes()?;
        Ok(manifest)
    }

    /// What it is to be served as: the body's own `mediaType`, else the OCI type of its shape.
    pub fn media_type(&self) -> &'static str {
        match self {
            Self::Image(image) => image.media_type,
            Self::Index(index) => index.media_type,
        }
    }

    /// What it names, in order: the configuration and the layers, or the manifests. Not the subject, which a
    /// pull does not need.
    pub fn children(&self) -> impl Iterator<Item = &Descriptor> {
        let (config, rest) = match self {
            Self::Image(image) => (Some(&image.config), &image.layers),
            Self::Index(index) => (None, &index.manifests),
        };
        config.into_iter().chain(rest)
    }

    /// The manifest that this one is about.
    pub fn subject(&self) -> Option<&Descriptor> {
        match self {
            Self::Image(image) => image.subject.as_ref(),
            Self::Index(index) => index.subject.as_ref(),
        }
    }

    /// The kind of artifact as the referrers API lists it: the `artifactType`, for an image without one the
    /// type of its configuration (distribution-spec v1.1.1 "Listing Referrers").
    pub fn artifact_type(&self) -> Option<&str> {
        match self {
            Self::Image(image) => Some(image.artifact_type.as_deref().unwrap_or(&image.config.media_type)),
            Self::Index(index) => index.artifact_type.as_deref(),
        }
    }

    /// The publisher's notes.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Image(image) => &image.annotations,
            Self::Index(index) => &index.annotations,
        }
    }

    /// The descriptor under which a referrers list names this manifest, given its address and length in bytes.
    pub fn to_referrer(&self, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            artifact_type: self.artifact_type().map(str::to_owned),
            annotations: self.annotations().clone(),
            ..Descriptor::new(self.media_type(), digest, size)
        }
    }

    /// One digest has one size.
    fn check_sizes(&self) -> Result<(), ManifestError> {
        let mut sizes = HashMap::new();
        for child in self.children() {
            if *sizes.entry(child.digest).or_insert(child.size) != child.size {
                return Err(ManifestError::Malformed { reason: format!("{} has two sizes", child.digest) });
            }
        }
        Ok(())
    }
}

impl ImageManifest {
    /// Bytes of configuration and layers together, each counted as often as it is named.
    pub fn total_size(&self) -> u64 {
        self.layers.iter().fold(self.config.size, |sum, layer| sum.saturating_add(layer.size))
    }
}

impl ImageIndex {
    /// An OCI index of these manifests, as a referrers answer is one.
    pub fn of(manifests: Vec<Descriptor>) -> Self {
        Self {
            media_type: OCI_INDEX,
            manifests,
            subject: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The index with only the manifests of this artifact type.
    #[must_use]
    pub fn filtered(mut self, artifact_type: &str) -> Self {
        self.manifests.retain(|manifest| manifest.artifact_type.as_deref() == Some(artifact_type));
        self
    }

    /// The index as JSON. Not byte for byte what was parsed: never serve it under the parsed one's digest.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an index has string keys only")
    }
}

/// Why a body is no manifest that can be cached and served. None of these mend themselves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// More bytes than [`MAX_MANIFEST_SIZE`].
    #[error("the manifest has {size} bytes, {MAX_MANIFEST_SIZE} are allowed")]
    TooLarge {
        /// Bytes found.
        size: usize,
    },
    /// Not a JSON object: most often the page of a proxy or captive portal, so nothing the registry said.
    #[error("not a JSON object but {beginning:?}")]
    NotJson {
        /// The first characters, on one line.
        beginning: String,
    },
    /// Docker's manifest schema 1, whose digest is not over its bytes.
    #[error("docker manifest schema 1 is obsolete and refused: push the image again with a current client")]
    Schema1,
    /// A manifest of a type that is not served.
    #[error("unsupported manifest type {media_type:?}")]
    Unsupported {
        /// The type the body or the header names, cut short.
        media_type: String,
    },
    /// The type that was declared contradicts the body.
    #[error("declared as {declared} but the body is {actual}")]
    Mislabelled {
        /// The type of the header or of the body's `mediaType`.
        declared: String,
        /// What the body is.
        actual: String,
    },
    /// Clients could read it in two ways.
    #[error("ambiguous manifest: {reason}")]
    Ambiguous {
        /// What makes it so.
        reason: String,
    },
    /// JSON, but not the fields of a manifest.
    #[error("malformed manifest: {reason}")]
    Malformed {
        /// The first thing wrong.
        reason: String,
    },
}

/// Every field of every manifest type, as it stands in the body.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
}

impl Document {
    /// What the body is: the type it names, else the OCI type of its shape.
    fn actual_type(&self) -> Result<&'static str, ManifestError> {
        match self.schema_version {
            None | Some(2) => {}
            Some(1) => return Err(ManifestError::Schema1),
            Some(other) => {
                return Err(ManifestError::Malformed { reason: format!("schemaVersion {other}") });
            }
        }
        match (self.named_type()?, self.shape()?) {
            (None, Some(shape)) => Ok(shape),
            (None, None) => {
                let reason =
                    "it has neither an image's config and layers nor an index's manifests".to_owned();
                Err(ManifestError::Malformed { reason })
            }
            (Some(named), Some(shape)) if !same_kind(named, shape) => {
                Err(ManifestError::Mislabelled { declared: named.to_owned(), actual: shape.to_owned() })
            }
            (Some(named), _) => Ok(named),
        }
    }

    /// The body's `mediaType`, if it is one that is served.
    fn named_type(&self) -> Result<Option<&'static str>, ManifestError> {
        let Some(named) = self.media_type.as_deref().filter(|named| !named.is_empty()) else {
            return Ok(None);
        };
        match SERVED.into_iter().find(|served| *served == named) {
            Some(served) => Ok(Some(served)),
            None if media_type::is_schema1(named) => Err(ManifestError::Schema1),
            None => Err(ManifestError::Unsupported { media_type: excerpt(named, 100) }),
        }
    }

    /// The OCI type that has such fields; an error if there are those of both.
    fn shape(&self) -> Result<Option<&'static str>, ManifestError> {
        match (self.config.is_some() || self.layers.is_some(), self.manifests.is_some()) {
            (true, true) => {
                let reason = "it has the fields of an image and of an index".to_owned();
                Err(ManifestError::Ambiguous { reason })
            }
            (true, false) => Ok(Some(OCI_MANIFEST)),
            (false, true) => Ok(Some(OCI_INDEX)),
            (false, false) => Ok(None),
        }
    }

    /// A header that names a manifest type must name the body's. Where the body leaves its type to the header,
    /// the same kind is enough: an OCI reader and a Docker reader see the same fields.
    fn check_header(&self, declared: &'static str, actual: &'static str) -> Result<(), ManifestError> {
        let names_itself = self.media_type.as_deref().is_some_and(|named| !named.is_empty());
        if declared == actual || (!names_itself && same_kind(declared, actual)) {
            return Ok(());
        }
        Err(ManifestError::Mislabelled { declared: declared.to_owned(), actual: actual.to_owned() })
    }

    fn into_manifest(self, media_type: &'static str) -> Result<Manifest, ManifestError> {
        let Self { config, layers, manifests, subject, annotations, .. } = self;
        let artifact_type = self.artifact_type.filter(|kind| !kind.is_empty());
        if media_type::is_index(media_type) {
            let manifests = manifests.unwrap_or_default();
            return Ok(Manifest::Index(ImageIndex {
                media_type,
                manifests,
                subject,
                artifact_type,
                annotations,
            }));
        }
        let config =
            config.ok_or_else(|| ManifestError::Malformed { reason: "it has no config".to_owned() })?;
        let layers = layers.unwrap_or_default();
        Ok(Manifest::Image(ImageManifest { media_type, config, layers, subject, artifact_type, annotations }))
    }
}

/// The manifest types that are served.
const SERVED: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// Whether both are images, or both are lists.
fn same_kind(a: &str, b: &str) -> bool {
    (media_type::is_image(a) && media_type::is_image(b))
        || (media_type::is_index(a) && media_type::is_index(b))
}

/// An index as it is written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexDocument {
    schema_version: u64,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl From<ImageIndex> for IndexDocument {
    fn from(index: ImageIndex) -> Self {
        let ImageIndex { media_type, manifests, subject, artifact_type, annotations } = index;
        Self { schema_version: 2, media_type, manifests, subject, artifact_type, annotations }
    }
}

/// The keys whose meaning must be the same to every reader.
const FIELDS: [&str; 8] =
    ["schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "artifactType", "annotations"];

/// The names of a JSON object's members, in order, repeated ones included.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(KeysVisitor)
    }
}

struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
        let mut keys = Vec::new();
        while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
            keys.push(key);
        }
        Ok(Keys(keys))
    }
}

/// Refuses what is no object, and keys that one reader takes for a field and another does not.
fn check_keys(body: &[u8]) -> Result<(), ManifestError> {
    let Ok(Keys(keys)) = serde_json::from_slice(body) else {
        return Err(ManifestError::NotJson { beginning: excerpt_of_bytes(body, 80) });
    };
    for field in FIELDS {
        let mut spellings = keys.iter().filter(|key| folds_to(key, field));
        let reason = match (spellings.next(), spellings.next()) {
            (_, Some(second)) => format!("{field} is there twice, once as {:?}", excerpt(second, 32)),
            (Some(only), None) if only != field => format!("{:?} is not quite {field}", excerpt(only, 32)),
            _ => continue,
        };
        return Err(ManifestError::Ambiguous { reason });
    }
    Ok(())
}

/// Whether Go's `encoding/json`, which ignores case, reads `key` as `field`. Of the letters outside of ASCII,
/// it folds only the long s and the Kelvin sign into ASCII ones, and no field has a k.
fn folds_to(key: &str, field: &str) -> bool {
    let fold = |c: char| if c == 'ſ' { 's' } else { c.to_ascii_lowercase() };
    key.chars().map(fold).eq(field.chars().map(fold))
}

fn malformed(error: &serde_json::Error) -> ManifestError {
    ManifestError::Malformed { reason: excerpt(&error.to_string(), 160) }
}

#[cfg(test)]
mod tests {
    use super::super::Algorithm;
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str, size: u64) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":{size}}}"#)
    }

    /// An image whose configuration and layer are both the empty blob.
    fn image(fields: &str) -> String {
        let (config, layer) = (descriptor(media_type::OCI_CONFIG, 0), descriptor(media_type::OCI_LAYER, 0));
        format!(r#"{{"schemaVersion":2,{fields}"config":{config},"layers":[{layer}]}}"#)
    }

    fn index(fields: &str) -> String {
        let entry = descriptor(OCI_MANIFEST, 7);
        format!(r#"{{"schemaVersion":2,{fields}"manifests":[{entry}]}}"#)
    }

    fn parse(body: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(body.as_bytes(), None)
    }

    fn named(media_type: &str) -> String {
        format!(r#""mediaType":"{media_type}","#)
    }

    #[test]
    fn the_media_type_comes_from_the_body_alone() {
        for media_type in [OCI_MANIFEST, DOCKER_MANIFEST] {
            let body = image(&named(media_type));
            for header in
                [None, Some("application/json; charset=utf-8"), Some("text/plain"), Some(media_type)]
            {
                let manifest = Manifest::parse(body.as_bytes(), header).unwrap();
                assert_eq!(manifest.media_type(), media_type);
                assert_eq!(manifest.children().count(), 2);
            }
        }
        for media_type in [OCI_INDEX, DOCKER_LIST] {
            assert_eq!(parse(&index(&named(media_type))).unwrap().media_type(), media_type);
        }
        assert_eq!(parse(&image("")).unwrap().media_type(), OCI_MANIFEST);
        assert_eq!(parse(&index("")).unwrap().media_type(), OCI_INDEX);
        let docker = Manifest::parse(image("").as_bytes(), Some(DOCKER_MANIFEST)).unwrap();
        assert_eq!(docker.media_type(), OCI_MANIFEST);
    }

    #[test]
    fn a_header_or_a_name_that_contradicts_the_body_is_refused() {
        for (body, header) in [
            (image(&named(OCI_MANIFEST)), Some(DOCKER_MANIFEST)),
            (image(&named(OCI_MANIFEST)), Some(OCI_INDEX)),
            (image(""), Some(DOCKER_LIST)),
            (image(""), Some(media_type::DOCKER_SCHEMA1_SIGNED)),
            (image(&named(OCI_INDEX)), None),
            (index(&named(DOCKER_MANIFEST)), None),
            (index(""), Some("APPLICATION/vnd.oci.image.manifest.v1+json; charset=utf-8")),
        ] {
            let error = Manifest::parse(body.as_bytes(), header).unwrap_err();
            assert!(matches!(error, ManifestError::Mislabelled { .. }), "{header:?} {error}");
        }
    }

    #[test]
    fn what_two_clients_could_read_differently_is_refused() {
        let config = descriptor(media_type::OCI_CONFIG, 0);
        for body in [
            image(r#""manifests":[],"#),
            index(r#""layers":[],"#),
            index(&format!(r#""config":{config},"#)),
            image(r#""layers":[],"#),
            image(r#""Layers":[],"#),
            image(r#""MANIFESTS":[],"#),
            image(r#""manifeſtſ":[],"#),
            image(&format!("{}{}", named(OCI_MANIFEST), named(OCI_INDEX))),
        ] {
            let error = parse(&body).unwrap_err();
            assert!(matches!(error, ManifestError::Ambiguous { .. }), "{body} {error}");
        }
    }

    #[test]
    fn schema_1_is_refused_with_advice() {
        let bodies = [
            r#"{"schemaVersion":1,"name":"a","fsLayers":[{"blobSum":"x"}],"signatures":[]}"#,
            r#"{"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws"}"#,
        ];
        for body in bodies {
            assert_eq!(parse(body), Err(ManifestError::Schema1));
        }
        assert!(ManifestError::Schema1.to_string().contains("push the image again"));
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_its_beginning() {
        for (body, beginning) in [
            ("<html>\r\n<title>Sign in</title>", "<html>··<title>Sign in</title>"),
            ("", ""),
            ("[]", "[]"),
            ("{\"schemaVersion\":2", "{\"schemaVersion\":2"),
            ("{} {}", "{} {}"),
        ] {
            assert_eq!(parse(body), Err(ManifestError::NotJson { beginning: beginning.to_owned() }));
        }
        let page = Manifest::parse(&[b'<'; 1000], Some("text/html")).unwrap_err().to_string();
        assert!(page.len() < 120, "{page}");
    }

    #[test]
    fn a_manifest_with_broken_fields_is_malformed() {
        let layer = descriptor(media_type::OCI_LAYER, 5);
        for body in [
            "{}".to_owned(),
            r#"{"errors":[]}"#.to_owned(),
            r#"{"schemaVersion":3,"manifests":[]}"#.to_owned(),
            r#"{"layers":[]}"#.to_owned(),
            r#"{"manifests":[{"digest":"x"}]}"#.to_owned(),
            image("").replace("\"size\":0", "\"size\":-1"),
            image("").replace("sha256:e3", "sha256:E3"),
            image("").replace("\"size\":0", "\"size\":0,\"size\":0"),
            format!(r#"{{"config":{},"layers":[{layer}]}}"#, descriptor(media_type::OCI_CONFIG, 6)),
        ] {
            let error = parse(&body).unwrap_err();
            assert!(matches!(error, ManifestError::Malformed { .. }), "{body} {error}");
        }
    }

    #[test]
    fn other_types_and_sizes_are_refused() {
        let artifact = parse(&format!(r#"{{{}"blobs":[]}}"#, named(media_type::OCI_ARTIFACT_MANIFEST)));
        assert!(matches!(artifact, Err(ManifestError::Unsupported { .. })));
        let size = MAX_MANIFEST_SIZE + 1;
        assert_eq!(Manifest::parse(&vec![b' '; size], None), Err(ManifestError::TooLarge { size }));
    }

    #[test]
    fn an_artifact_is_an_image_with_a_type_and_a_subject() {
        let subject = descriptor(OCI_MANIFEST, 9);
        let fields = format!(
            r#""artifactType":"application/x","subject":{subject},"annotations":{{"a":"b"}},"extra":[1],"#
        );
        let body = image(&fields).replace(media_type::OCI_CONFIG, media_type::OCI_EMPTY);
        let manifest = parse(&body).unwrap();
        assert_eq!(manifest.artifact_type(), Some("application/x"));
        assert_eq!(manifest.subject().map(|subject| subject.size), Some(9));
        let digest = Digest::of(Algorithm::Sha256, body.as_bytes());
        let referrer = manifest.to_referrer(digest, 1);
        assert_eq!(referrer.artifact_type.as_deref(), Some("application/x"));
        assert_eq!(referrer.annotations["a"], "b");
        let index = ImageIndex::of(vec![referrer, Descriptor::new(OCI_MANIFEST, digest, 1)]);
        assert_eq!(index.clone().filtered("application/x").manifests.len(), 1);
        assert_eq!(parse(&index.to_json()), Ok(Manifest::Index(index)));
    }

    #[test]
    fn an_image_without_an_artifact_type_is_listed_by_its_configuration() {
        assert_eq!(
            parse(&image(r#""artifactType":"","#)).unwrap().artifact_type(),
            Some(media_type::OCI_CONFIG)
        );
    }

    #[test]
    fn lists_that_go_writes_as_null_are_empty() {
        let empty = parse(r#"{"schemaVersion":2,"manifests":[],"layers":null}"#).unwrap();
        assert_eq!((empty.media_type(), empty.children().count()), (OCI_INDEX, 0));
        let null =
            parse(&format!(r#"{{{}"manifests":null,"annotations":null}}"#, named(DOCKER_LIST))).unwrap();
        assert_eq!((null.media_type(), null.children().count()), (DOCKER_LIST, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_body_is_read_without_panic(body: Vec<u8>, header in prop::option::of("\\PC{0,40}")) {
            prop_assert!(Manifest::parse(&body, header.as_deref()).is_err());
        }

        #[test]
        fn a_damaged_manifest_is_read_without_panic(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut body = image(&named(OCI_MANIFEST)).into_bytes();
            let at = at.index(body.len());
            body[at] = byte;
            let _ = Manifest::parse(&body, Some(OCI_MANIFEST));
            body.truncate(cut.index(body.len()));
            prop_assert!(Manifest::parse(&body, None).is_err());
        }

        #[test]
        fn an_index_survives_its_json(sizes in prop::collection::vec(any::<u64>(), 0..6)) {
            let entry = |size: u64| Descriptor::new(OCI_MANIFEST, Digest::of(Algorithm::Sha512, &size.to_le_bytes()), size);
            let index = ImageIndex::of(sizes.into_iter().map(entry).collect());
            prop_assert_eq!(parse(&index.to_json()), Ok(Manifest::Index(index)));
        }
    }
}
