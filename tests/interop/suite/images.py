"""The images of the suite: how they are made, and what the origin holds of them.

All are made here from nothing, with buildah, umoci, skopeo and zstd, and pushed into the storage
directory of a docker-registry:

    layers       five layers of 4 MiB, built by buildah                  (OCI)
    umoci        layers added one by one by umoci                        (OCI)
    docker       the first one again, as Docker schema 2                 (Docker)
    multi-arch   an index of three platforms that share one layer        (OCI)
    zstd         two layers compressed by zstd                           (OCI)
    artifact     a bill of materials that is no image                    (OCI)
    sixty        sixty small layers                                      (OCI)
    large        one layer of 600 MB                                     (OCI)
    many-tags    one small image under 2,000 tags                        (OCI)

The filled directory is kept under a hash of this file, so that the next run only opens it.
"""

import fcntl
import gzip
import hashlib
import io
import json
import random
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from . import wire
from .machine import expect
from .origin import Origin

MIB = 1024 * 1024
LARGE_LAYER_SIZE = 600_000_000
LAYER_COUNT = 60
TAG_COUNT = 2_000
PLATFORM = "linux/amd64"
PLATFORMS = (PLATFORM, "linux/arm64", "linux/s390x")

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_ZSTD_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"


# What the origin holds


class Library:
    """A filled registry storage directory, opened."""

    def __init__(self, folder):
        self.storage = folder / "registry"
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

    @cached_property
    def document(self):
        return self._read(self.digest)

    def manifest(self, platform=PLATFORM):
        """The digest of the manifest that a client of `platform` ends at."""
        if "manifests" not in self.document:
            return self.digest
        return next(
            entry["digest"]
            for entry in self.document["manifests"]
            if f"{entry['platform']['os']}/{entry['platform']['architecture']}" == platform
        )

    def manifests(self, platform=PLATFORM):
        """Every manifest that a pull for `platform` reads: the index, where there is one, and its own."""
        return {self.digest, self.manifest(platform)}

    def config(self, platform=PLATFORM):
        return self._read(self.manifest(platform))["config"]["digest"]

    def layers(self, platform=PLATFORM):
        return [layer["digest"] for layer in self._read(self.manifest(platform))["layers"]]

    def blobs(self, platform=PLATFORM):
        """Config and layers of one platform."""
        return {self.config(platform), *self.layers(platform)}

    def all_platforms(self):
        """What a pull of every platform reads."""
        platforms = PLATFORMS if "manifests" in self.document else (PLATFORM,)
        return set().union(*(self.manifests(each) | self.blobs(each) for each in platforms))

    def _read(self, digest):
        return json.loads(self.library.blob(digest).read_bytes())


# How it is made


def open_library(cache, workspace):
    """The library under `cache`, made first where it is missing; older recipes' libraries are removed."""
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"v{_recipe()}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            print("making the images, once", flush=True)
            for stale in cache.glob("v*"):
                shutil.rmtree(stale)
            _make(cache / "partial", workspace).rename(folder)
    return Library(folder)


def _recipe():
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def _make(folder, workspace):
    shutil.rmtree(folder, ignore_errors=True)
    storage = folder / "registry"
    storage.mkdir(parents=True)
    with Origin(workspace, storage, writable=True) as origin:
        catalog = _Maker(workspace, origin).fill()
    (folder / "catalog.json").write_text(json.dumps(catalog, indent=2))
    return folder


class _Maker:
    """Makes every image and pushes it to a writable origin."""

    def __init__(self, workspace, origin):
        self._workspace = workspace
        self._origin = origin
        self._random = random.Random(2026)
        self._catalog = []

    def fill(self):
        """Returns the catalog of what was pushed."""
        built = self._built_by_buildah()
        self._push("layers", built, "--preserve-digests")
        self._push("docker", built, "--format=v2s2")
        self._push("umoci", self._built_by_umoci(), "--preserve-digests")
        self._push("multi-arch", self._multi_arch(), "--preserve-digests", "--all")
        self._push("zstd", self._zstd(), "--preserve-digests")
        self._push("artifact", self._artifact(), "--preserve-digests")
        self._push("sixty", self._sixty_layers(), "--preserve-digests")
        self._push("large", self._large(), "--preserve-digests")
        self._push("many-tags", self._tiny(), "--preserve-digests")
        self._tag_many_times()
        return self._catalog

    def _push(self, kind, layout, *options):
        print(f"  {kind}", flush=True)
        repository = f"apps/{kind}"
        target = f"docker://{self._origin.location}/{repository}:latest"
        self._workspace.command(
            "skopeo", "copy", "--quiet", "--dest-tls-verify=false", *options, f"oci:{layout}:latest", target,
            home=self._workspace.home(),
        )
        answer = wire.ask(self._origin.port, "HEAD", f"/v2/{repository}/manifests/latest")
        wire.expect_status(answer, 200)
        digest = answer.headers["Docker-Content-Digest"]
        self._catalog.append({"kind": kind, "repository": repository, "tag": "latest", "digest": digest})

    def _tag_many_times(self):
        path = "/v2/apps/many-tags/manifests"
        manifest = wire.ask(self._origin.port, "GET", f"{path}/latest").body

        def tag(number):
            name = f"v{number // 100}.{number % 100}"
            return wire.ask(self._origin.port, "PUT", f"{path}/{name}", body=manifest, Content_Type=_MANIFEST).status

        with ThreadPoolExecutor(8) as pool:
            # `latest` is one of the 2,000
            statuses = set(pool.map(tag, range(TAG_COUNT - 1)))
        expect(statuses == {201}, f"the origin answered {statuses} to new tags")

    def _built_by_buildah(self):
        context = self._workspace.folder("context")
        steps = ["FROM scratch"]
        for number in range(5):
            (context / f"file-{number}").write_bytes(self._random.randbytes(4 * MIB))
            steps.append(f"COPY file-{number} /opt/file-{number}")
        (context / "Containerfile").write_text("\n".join([*steps, 'CMD ["/opt/file-0"]']))

        home, layout = self._workspace.home(), self._workspace.folder("buildah-layout")
        store = self._workspace.folder("buildah-store")
        buildah = ("buildah", "--storage-driver=vfs", f"--root={store}/root", f"--runroot={store}/run")
        self._workspace.command(
            *buildah, "build", "--layers", "--isolation=chroot", "--timestamp=0", "--tag=interop", context, home=home
        )
        self._workspace.command(*buildah, "push", "--quiet", "interop", f"oci:{layout}:latest", home=home)
        return layout

    def _built_by_umoci(self):
        source = self._workspace.folder("umoci")
        layout = source / "layout"
        image = f"--image={layout}:latest"
        self._workspace.command("umoci", "init", "--layout", layout)
        self._workspace.command("umoci", "new", image)
        for number in range(3):
            (source / "file").write_bytes(self._random.randbytes(MIB))
            self._workspace.command("umoci", "insert", image, source / "file", f"/opt/file-{number}")
        settings = ("--architecture=amd64", "--os=linux", "--config.cmd=/opt/file-0")
        self._workspace.command("umoci", "config", image, *settings)
        return layout

    def _multi_arch(self):
        layout = _Layout(self._workspace.folder("multi-arch"))
        shared = layout.layer({"etc/release": b"interop\n", "opt/shared": self._random.randbytes(2 * MIB)})
        return layout.index(
            layout.image([shared, layout.layer({"opt/own": self._random.randbytes(MIB)})], platform)
            for platform in PLATFORMS
        )

    def _zstd(self):
        layout = _Layout(self._workspace.folder("zstd"))
        return layout.index(
            [layout.image([layout.layer({f"opt/file-{n}": self._random.randbytes(MIB)}, _zstd) for n in range(2)])]
        )

    def _artifact(self):
        layout = _Layout(self._workspace.folder("artifact"))
        document = json.dumps({"spdxVersion": "SPDX-2.3", "name": "interop"}).encode()
        return layout.index(
            [
                layout.manifest(
                    config=layout.add(b"{}", "application/vnd.example.sbom.config.v1+json"),
                    layers=[layout.add(document, "application/spdx+json")],
                )
            ]
        )

    def _sixty_layers(self):
        layout = _Layout(self._workspace.folder("sixty"))
        layers = [layout.layer({f"opt/file-{n}": self._random.randbytes(20_000)}) for n in range(LAYER_COUNT)]
        return layout.index([layout.image(layers)])

    def _large(self):
        layout = _Layout(self._workspace.folder("large"))
        files = {f"opt/file-{n}": self._random.randbytes(LARGE_LAYER_SIZE // 10) for n in range(10)}
        return layout.index([layout.image([layout.layer(files)])])

    def _tiny(self):
        layout = _Layout(self._workspace.folder("tiny"))
        return layout.index([layout.image([layout.layer({"opt/tiny": b"tiny\n"})])])


def _gzip(tar):
    # random bytes do not shrink, so storing them saves a minute and unpacks at once
    return gzip.compress(tar, compresslevel=0, mtime=0), _GZIP_LAYER


def _zstd(tar):
    result = subprocess.run(["zstd", "--quiet", "--stdout"], input=tar, capture_output=True, check=True)
    return result.stdout, _ZSTD_LAYER


class _Layout:
    """An OCI image layout on disk; its folder is what skopeo reads."""

    def __init__(self, folder):
        self._folder = folder
        self._diff_ids = {}
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add(self, content, media_type):
        """Writes a blob and returns its descriptor."""
        hex_digest = hashlib.sha256(content).hexdigest()
        (self._folder / "blobs/sha256" / hex_digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{hex_digest}", "size": len(content)}

    def layer(self, files, compress=_gzip):
        """A layer of `files`, path to content."""
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            for path, content in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        plain = tar.getvalue()
        descriptor = self.add(*compress(plain))
        self._diff_ids[descriptor["digest"]] = f"sha256:{hashlib.sha256(plain).hexdigest()}"
        return descriptor

    def image(self, layers, platform=PLATFORM):
        """The descriptor of an image of `layers`."""
        system, architecture = platform.split("/")
        config = {
            "os": system,
            "architecture": architecture,
            "config": {"Cmd": ["/opt/file-0"]},
            "rootfs": {"type": "layers", "diff_ids": [self._diff_ids[layer["digest"]] for layer in layers]},
            "history": [{"created_by": "interop"} for _ in layers],
        }
        descriptor = self.manifest(self.add(json.dumps(config).encode(), _CONFIG), layers)
        return descriptor | {"platform": {"os": system, "architecture": architecture}}

    def manifest(self, config, layers):
        document = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}
        return self.add(json.dumps(document).encode(), _MANIFEST)

    def index(self, manifests):
        """Tags `manifests` as `latest`, through an index of their own if there are several; returns the folder."""
        manifests = list(manifests)
        if len(manifests) == 1:
            top = manifests[0]
        else:
            document = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": manifests}
            top = self.add(json.dumps(document).encode(), _INDEX)
        entry = {key: top[key] for key in ("mediaType", "digest", "size")}
        entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
        (self._folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        return self._folder
