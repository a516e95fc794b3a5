//! Media types of manifests, configurations and layers, and what is asked of an upstream.
//!
//! Source: image-spec v1.1.1 `media-types.md`; distribution `docs/spec/manifest-v2-2.md` for Docker's own.

/// OCI image index: a list of manifests, usually one for each platform.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest; also the form of every other artifact since OCI 1.1.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, uncompressed tar.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// The content `{}`, standing in where an artifact has no configuration.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// The short-lived artifact manifest of the OCI 1.1 release candidates, withdrawn before 1.1.
pub const OCI_ARTIFACT_MANIFEST: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// Docker manifest list (schema 2).
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image manifest (schema 2).
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer that lies at its own URLs, not in the registry (old Windows base layers).
pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
/// Docker manifest schema 1, obsolete.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// Docker manifest schema 1 with its signature, obsolete.
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// The one `Accept` of every manifest request to an upstream, whatever the client asked for.
///
/// What is cached serves every client, so the answer must not depend on the first one. All four forms are named
/// because a registry that misses one converts the manifest (to another digest) or answers 404. The wildcard,
/// as containerd sends it too, keeps registries from hiding what is left, which is then refused with a
/// message of its own; its weight keeps them from preferring it.
pub const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     */*;q=0.1";

/// A `Content-Type` without its parameters: `application/json; charset=utf-8` is `application/json`.
///
/// The case is kept; media types compare case-insensitively (RFC 9110 §8.3.1).
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim_matches([' ', '\t'])
}

/// Whether it is one of the two image manifests that are served.
pub fn is_image(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether it is one of the two lists of manifests that are served.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Whether it is one of the two obsolete schema 1 manifests.
pub fn is_schema1(media_type: &str) -> bool {
    matches!(media_type, DOCKER_SCHEMA1 | DOCKER_SCHEMA1_SIGNED)
}

/// Whether a layer of this type may be missing from the registry because it is fetched from its `urls`
/// (image-spec v1.1.1 `layer.md` "Non-Distributable Layers").
pub fn is_nondistributable(media_type: &str) -> bool {
    media_type == DOCKER_FOREIGN_LAYER
        || media_type.starts_with("application/vnd.oci.image.layer.nondistributable.v1.tar")
}

/// The manifest type, served or not, that a `Content-Type` names; `None` for everything else.
pub(super) fn known_manifest(content_type: &str) -> Option<&'static str> {
    let essence = essence(content_type);
    [
        OCI_INDEX,
        OCI_MANIFEST,
        DOCKER_LIST,
        DOCKER_MANIFEST,
        DOCKER_SCHEMA1,
        DOCKER_SCHEMA1_SIGNED,
        OCI_ARTIFACT_MANIFEST,
    ]
    .into_iter()
    .find(|known| essence.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_no_part_of_a_media_type() {
        for (header, bare) in [
            ("application/json; charset=utf-8", "application/json"),
            (" text/html ;q=1", "text/html"),
            ("", ""),
            (";", ""),
        ] {
            assert_eq!(essence(header), bare);
        }
    }

    #[test]
    fn every_served_form_is_asked_for_and_schema_1_is_not() {
        let accepted: Vec<&str> = MANIFEST_ACCEPT.split(',').map(essence).collect();
        assert_eq!(accepted, [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*"]);
    }
}
