"""The images of the suite, and what the origin holds of them.

All are made here from nothing, by `recipe`, and pushed into the storage directory of a docker-registry:

    layers       five layers of 4 MiB, built by buildah                                  (OCI)
    umoci        layers added one by one by umoci                                        (OCI)
    docker       the first one again, as Docker schema 2                                 (Docker)
    docker-list  a manifest list of Docker images                                        (Docker)
    multi-arch   an index of three platforms that share one layer                        (OCI)
    nested       an index of an index of an index of two platforms                       (OCI)
    attested     an index of an image and its provenance, built by BuildKit              (OCI)
    zstd         two layers compressed by zstd                                           (OCI)
    chunked      a zstd:chunked layer of 128 files, written by skopeo                    (OCI)
    estargz      two eStargz layers, written by BuildKit                                 (OCI)
    foreign      a layer that the registry has not, with the URL of a host that has      (Docker)
    empty-layer  layers without any file among others                                    (OCI)
    no-layer     an image without a layer                                                (OCI)
    sixty        sixty small layers                                                      (OCI)
    large        one layer of 600 MB                                                     (OCI)
    signed       an image with cosign's signature, attestation and SBOM                  (OCI)
    signature    its signature by tag, as cosign lays it out                             (OCI)
    attestation  its attestation by tag, as cosign lays it out                           (OCI)
    referred     an image with a signature, an SBOM and an attestation that refer to it  (OCI)
    artifact     a bill of materials that is no image                                    (OCI)
    sbom         a bill of materials with an artifact type and an empty config           (OCI)
    helm         a Helm chart and its provenance                                         (OCI)
    wasm         a WebAssembly component                                                 (OCI)
    model        a language model: weights, a tokenizer, a licence                       (OCI)
    chunked-next the same with eight of 128 files changed, for partial pulls             (OCI)
    many-tags    one small image under 2,000 tags                                        (OCI)

The filled directory is kept under a hash of the recipe, so that the next run only opens it.
"""

import json
from dataclasses import dataclass
from functools import cached_property

MIB = 1024 * 1024
LARGE_LAYER_SIZE = 600_000_000
LAYER_COUNT = 60
TAG_COUNT = 2_000
PLATFORM = "linux/amd64"
PLATFORMS = (PLATFORM, "linux/arm64", "linux/s390x")
# where the foreign layer is, as its manifest says; a scenario listens there
FOREIGN_PORT = 19_871

# in the order of the list above, without those that only one scenario is for
KINDS = (
    "layers", "umoci", "docker", "docker-list", "multi-arch", "nested", "attested", "zstd", "chunked", "estargz",
    "foreign", "empty-layer", "no-layer", "sixty", "large", "signed", "signature", "attestation", "referred",
    "artifact", "sbom", "helm", "wasm", "model",
)  # fmt: skip
# what has no root file system to unpack
ARTIFACT_KINDS = ("signature", "attestation", "artifact", "sbom", "helm", "wasm", "model")


class Library:
    """A filled registry storage directory, opened."""

    def __init__(self, folder):
        self.storage = folder / "registry"
        # what the host of the foreign layer serves
        self.foreign = folder / "foreign"
        entries = json.loads((folder / "catalog.json").read_text())
        self._images = {entry["kind"]: Image(self, **entry) for entry in entries}

    def __getitem__(self, kind):
        return self._images[kind]

    def images(self, *kinds):
        return [self[kind] for kind in kinds]

    def blob(self, digest):
        """The path of a blob or manifest in the origin's own storage."""
        hex_digest = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / hex_digest[:2] / hex_digest / "data"

    def size(self, digest):
        return self.blob(digest).stat().st_size


@dataclass(frozen=True)
class Image:
    """One tag of the origin; everything else is read from the manifest that it points at."""

    library: Library
    kind: str
    repository: str
    tag: str
    digest: str

    @property
    def reference(self):
        return f"{self.repository}:{self.tag}"

    @property
    def is_artifact(self):
        return self.kind in ARTIFACT_KINDS

    @property
    def is_index(self):
        return "manifests" in self.document

    @cached_property
    def document(self):
        return self._read(self.digest)

    def manifest(self, platform=PLATFORM):
        """The digest of the manifest that a client of `platform` ends at."""
        return self._path(self.digest, platform)[-1]

    def manifests(self, platform=PLATFORM):
        """Every manifest that a pull for `platform` reads: the indexes, where there are any, and its own."""
        return set(self._path(self.digest, platform))

    def config(self, platform=PLATFORM):
        return self._read(self.manifest(platform))["config"]["digest"]

    def layers(self, platform=PLATFORM):
        return [layer["digest"] for layer in self._read(self.manifest(platform))["layers"]]

    def blobs(self, platform=PLATFORM):
        """Config and layers of one platform."""
        return {self.config(platform), *self.layers(platform)}

    def metadata(self):
        """All manifests below the tag with their configs, and what is said about platforms: provenance and the like."""
        about = [entry for entry in self.document.get("manifests", ()) if _is_attestation(entry)]
        return self._below(self.digest, with_layers=False).union(*(self._below(entry["digest"]) for entry in about))

    def everything(self):
        """All manifests and blobs below the tag, of every platform and of what belongs to none."""
        return self._below(self.digest)

    def _path(self, digest, platform):
        """The manifests from `digest` down to that of `platform`; empty where there is none."""
        document = self._read(digest)
        if "manifests" not in document:
            return [digest]
        for entry in document["manifests"]:
            named = entry.get("platform")
            if named and f"{named['os']}/{named['architecture']}" != platform:
                continue
            if path := self._path(entry["digest"], platform):
                return [digest, *path]
        return []

    def _below(self, digest, with_layers=True):
        document = self._read(digest)
        if "manifests" in document:
            return {digest}.union(*(self._below(entry["digest"], with_layers) for entry in document["manifests"]))
        layers = document["layers"] if with_layers else ()
        return {digest, document["config"]["digest"], *(layer["digest"] for layer in layers)}

    def _read(self, digest):
        return json.loads(self.library.blob(digest).read_bytes())


def _is_attestation(entry):
    """Whether BuildKit lists the manifest as a note about another one."""
    return "vnd.docker.reference.digest" in entry.get("annotations", {})
