"""How the images are made: with buildah, umoci, skopeo, BuildKit and zstd, and by hand where no tool makes them."""

import base64
import gzip
import hashlib
import io
import json
import random
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import wire
from .buildkit import BuildKitDaemon
from .cache import cached
from .images import FOREIGN_PORT, LARGE_LAYER_SIZE, LAYER_COUNT, MIB, PLATFORM, PLATFORMS, TAG_COUNT, Library
from .machine import expect
from .origin import Origin

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_EMPTY = "application/vnd.oci.empty.v1+json"
_GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_ZSTD_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

_SPDX = json.dumps({"spdxVersion": "SPDX-2.3", "name": "interop"}).encode()


def open_library(cache, workspace):
    """The library under `cache`, made first where it is missing; older recipes' libraries are removed."""
    return Library(cached(cache, "v", _hash(), lambda folder: _make(folder, workspace)))


def _hash():
    sources = (Path(__file__), Path(__file__).with_name("images.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def _make(folder, workspace):
    print("making the images, once", flush=True)
    storage = folder / "registry"
    storage.mkdir(parents=True)
    # a registry takes manifests with URLs only if it is told which
    urls = f"validation: {{manifests: {{urls: {{allow: ['^http://127.0.0.1:{FOREIGN_PORT}/']}}}}}}"
    with Origin(workspace, storage, writable=True, extra=urls) as origin:
        catalog = _Maker(workspace, origin, folder / "foreign").fill()
    (folder / "catalog.json").write_text(json.dumps(catalog, indent=2))


class _Maker:
    """Makes every image and pushes it to a writable origin."""

    def __init__(self, workspace, origin, foreign):
        self._workspace = workspace
        self._origin = origin
        self._foreign_host = foreign
        self._random = random.Random(2026)
        self._catalog = []

    def fill(self):
        """Returns the catalog of what was pushed."""
        self._made_by_tools()
        self._images()
        self._signed()
        self._referred()
        self._artifacts()
        self._many_tags()
        return self._catalog

    # what tools make

    def _made_by_tools(self):
        built = self._built_by_buildah()
        self._copy("layers", built, "--preserve-digests")
        self._copy("docker", built, "--format=v2s2")
        self._copy("umoci", self._built_by_umoci(), "--preserve-digests")
        platforms = self._multi_arch()
        self._copy("docker-list", platforms, "--all", "--format=v2s2")
        # the layers are many small files: only then is there something to leave out of a partial pull
        files = {f"opt/file-{number:03}": self._random.randbytes(64 * 1024) for number in range(128)}
        self._copy("chunked", self._release(files), "--dest-compress-format=zstd:chunked")
        files |= {f"opt/file-{number:03}": self._random.randbytes(64 * 1024) for number in range(8)}
        self._copy("chunked-next", self._release(files), "--dest-compress-format=zstd:chunked")
        with BuildKitDaemon(self._workspace) as daemon:
            self._build(daemon, "attested", "--opt=attest:provenance=mode=min")
            self._build(daemon, "estargz", options="compression=estargz,force-compression=true")

    def _copy(self, kind, layout, *options):
        target = f"docker://{self._origin.location}/apps/{kind}:latest"
        self._workspace.command(
            "skopeo", "copy", "--quiet", "--dest-tls-verify=false", *options, f"oci:{layout}:latest", target,
            home=self._workspace.home(),
        )
        self._enter(kind)

    def _build(self, daemon, kind, *arguments, options=""):
        context = self._workspace.folder(kind)
        for number in range(2):
            (context / f"file-{number}").write_bytes(self._random.randbytes(MIB))
        steps = ("FROM scratch", "COPY file-0 /opt/file-0", "COPY file-1 /opt/file-1", 'CMD ["/opt/file-0"]')
        (context / "Dockerfile").write_text("\n".join(steps))
        push = f"name={self._origin.location}/apps/{kind}:latest,push=true,registry.insecure=true,oci-mediatypes=true"
        output = ",".join(filter(None, ("type=image", push, options)))
        daemon.build(context, f"--opt=platform={PLATFORM}", f"--output={output}", *arguments)
        self._enter(kind)

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

    # images by hand

    def _images(self):
        self._push("multi-arch", self._platforms)
        self._push("nested", self._nested)
        self._push("zstd", lambda layout: layout.image(self._layers(layout, 2, MIB, _zstd)))
        self._push("foreign", self._foreign)
        self._push("empty-layer", self._empty_layers)
        self._push("no-layer", lambda layout: layout.image([]))
        self._push("sixty", lambda layout: layout.image(self._layers(layout, LAYER_COUNT, 20_000)))
        self._push("large", self._large)

    def _layers(self, layout, count, size, compress=None):
        return [
            layout.layer({f"opt/file-{number}": self._random.randbytes(size)}, compress or _gzip)
            for number in range(count)
        ]

    def _platforms(self, layout, platforms=PLATFORMS):
        shared = layout.layer({"etc/release": b"interop\n", "opt/shared": self._random.randbytes(2 * MIB)})
        return layout.index(
            layout.image([shared, layout.layer({"opt/own": self._random.randbytes(MIB)})], platform)
            for platform in platforms
        )

    def _multi_arch(self):
        """A layout on disk, for skopeo."""
        layout = _Layout(self._workspace.folder("docker-list"))
        return layout.tagged(self._platforms(layout))

    def _nested(self, layout):
        innermost = self._platforms(layout, PLATFORMS[:2])
        return layout.index([layout.index([innermost])])

    def _release(self, files):
        layout = _Layout(self._workspace.folder("release"))
        return layout.tagged(layout.image([layout.layer(files)]))

    def _foreign(self, layout):
        own = layout.layer({"opt/own": self._random.randbytes(MIB)})
        foreign = layout.layer({"opt/foreign": self._random.randbytes(MIB)})
        hex_digest = foreign["digest"].removeprefix("sha256:")
        self._foreign_host.mkdir()
        layout.hand_over(foreign, self._foreign_host / hex_digest)
        layers = [
            foreign | {"mediaType": _DOCKER_FOREIGN_LAYER, "urls": [f"http://127.0.0.1:{FOREIGN_PORT}/{hex_digest}"]},
            own | {"mediaType": _DOCKER_LAYER},
        ]
        return layout.image(layers, media_types=(_DOCKER_MANIFEST, _DOCKER_CONFIG))

    def _empty_layers(self, layout):
        empty = layout.layer({}, lambda tar: (gzip.compress(tar, mtime=0), _GZIP_LAYER))
        own = layout.layer({"opt/own": self._random.randbytes(MIB)})
        return layout.image([empty, own, empty])

    def _large(self, layout):
        files = {f"opt/file-{n}": self._random.randbytes(LARGE_LAYER_SIZE // 10) for n in range(10)}
        return layout.image([layout.layer(files)])

    # images and what is said about them

    def _signed(self):
        """An image, and its signature, attestation and SBOM under tags that cosign derives from its digest."""
        image = self._push("signed", lambda layout: layout.image(self._layers(layout, 2, MIB)))
        tag = image.replace(":", "-")
        claim = {"critical": {"image": {"docker-manifest-digest": image}, "type": "cosign container image signature"}}
        self._push(
            "signature", lambda layout: self._cosign_image(layout, claim, "application/vnd.dev.cosign.simplesigning.v1+json",
                {"dev.cosignproject.cosign/signature": self._signature()}),
            repository="apps/signed", tag=f"{tag}.sig",
        )  # fmt: skip
        envelope = {"payloadType": "application/vnd.in-toto+json", "payload": _base64(_SPDX), "signatures": []}
        self._push(
            "attestation", lambda layout: self._cosign_image(layout, envelope, "application/vnd.dsse.envelope.v1+json",
                {"predicateType": "https://spdx.dev/Document"}),
            repository="apps/signed", tag=f"{tag}.att",
        )  # fmt: skip
        self._push(
            "cosign-sbom", lambda layout: self._cosign_image(layout, json.loads(_SPDX), "text/spdx+json", {}),
            repository="apps/signed", tag=f"{tag}.sbom",
        )  # fmt: skip

    def _cosign_image(self, layout, document, media_type, annotations):
        """An image whose one layer is a document, in cosign's way: the layer is named in the config as if it were a tar."""
        layer = layout.add(json.dumps(document).encode(), media_type)
        layout.set_inner_digest(layer, layer["digest"])
        return layout.image([layer | {"annotations": annotations}], platform=None)

    def _signature(self):
        return _base64(self._random.randbytes(71))

    def _referred(self):
        """An image and what refers to it, listed under the tag that stands in for a referrers API."""
        image = self._push("referred", lambda layout: layout.image(self._layers(layout, 2, MIB)))
        manifest = wire.ask(self._origin.port, "GET", f"/v2/apps/referred/manifests/{image}")
        subject = {"mediaType": _MANIFEST, "digest": image, "size": len(manifest.body)}

        def referrers(layout):
            about = (
                ("application/vnd.example.signature.v1", "application/octet-stream", self._random.randbytes(71)),
                ("application/spdx+json", "application/spdx+json", _SPDX),
                ("application/vnd.in-toto+json", "application/vnd.in-toto+json", b'{"_type": "statement"}'),
            )
            return layout.index(
                layout.artifact(artifact_type, [layout.add(content, media_type)], subject=subject)
                for artifact_type, media_type, content in about
            )

        self._push("referrers", referrers, repository="apps/referred", tag=image.replace(":", "-"))

    def _artifacts(self):
        self._push("artifact", lambda layout: layout.manifest(
            layout.add(b"{}", "application/vnd.example.sbom.config.v1+json"), [layout.add(_SPDX, "application/spdx+json")]
        ))  # fmt: skip
        self._push("sbom", lambda layout: layout.artifact(
            "application/vnd.cyclonedx+json",
            [layout.add(b'{"bomFormat": "CycloneDX", "specVersion": "1.6"}', "application/vnd.cyclonedx+json")],
        ))  # fmt: skip
        self._push("helm", self._helm_chart)
        self._push("wasm", lambda layout: layout.manifest(
            layout.add(b'{"architecture": "wasm", "os": "wasip2"}', "application/vnd.wasm.config.v0+json"),
            # the shortest module: magic number and version
            [layout.add(b"\0asm\x01\0\0\0", "application/wasm")],
        ))  # fmt: skip
        self._push("model", self._model)

    def _helm_chart(self, layout):
        chart = {"name": "interop", "version": "1.0.0", "apiVersion": "v2"}
        archive, _ = _gzip(_tar({"interop/Chart.yaml": json.dumps(chart).encode()}))
        return layout.manifest(
            layout.add(json.dumps(chart).encode(), "application/vnd.cncf.helm.config.v1+json"),
            [
                layout.add(archive, "application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
                layout.add(b"-----BEGIN PGP SIGNED MESSAGE-----\n", "application/vnd.cncf.helm.chart.provenance.v1.prov"),
            ],
        )

    def _model(self, layout):
        parts = (
            ("weight", self._random.randbytes(8 * MIB)),
            ("weight.config", b'{"vocab_size": 32000}'),
            ("doc", b"Apache-2.0\n"),
        )
        layers = [
            layout.add(content, f"application/vnd.cncf.model.{part}.v1.raw")
            | {"annotations": {"org.cncf.model.filepath": part}}
            for part, content in parts
        ]
        config = layout.add(b'{"descriptor": {"name": "interop"}}', "application/vnd.cncf.model.config.v1+json")
        return layout.manifest(config, layers, artifactType="application/vnd.cncf.model.manifest.v1+json")

    def _many_tags(self):
        self._push("many-tags", lambda layout: layout.image([layout.layer({"opt/tiny": b"tiny\n"})]))
        path = "/v2/apps/many-tags/manifests"
        manifest = wire.ask(self._origin.port, "GET", f"{path}/latest").body

        def tag(number):
            name = f"v{number // 100}.{number % 100}"
            return wire.ask(self._origin.port, "PUT", f"{path}/{name}", body=manifest, Content_Type=_MANIFEST).status

        with ThreadPoolExecutor(8) as pool:
            # `latest` is one of the 2,000
            statuses = set(pool.map(tag, range(TAG_COUNT - 1)))
        expect(statuses == {201}, f"the origin answered {statuses} to new tags")

    # how they reach the origin

    def _push(self, kind, compose, repository=None, tag="latest"):
        """Pushes what `compose` makes of an empty layout, and returns its digest."""
        repository = repository or f"apps/{kind}"
        layout = _Layout(self._workspace.folder(kind))
        top = compose(layout)
        for descriptor, content in layout.blobs():
            self._upload(repository, descriptor, content)
        # in the order in which they were made: what is named is there before what names it
        for descriptor, content in layout.manifests():
            self._put(repository, descriptor["digest"], descriptor, content)
        self._put(repository, tag, top, layout.read(top))
        return self._enter(kind, repository, tag)

    def _upload(self, repository, descriptor, content):
        session = wire.ask(self._origin.port, "POST", f"/v2/{repository}/blobs/uploads/")
        wire.expect_status(session, 202)
        place = session.headers["Location"].split(self._origin.location, 1)[1]
        answer = wire.ask(
            self._origin.port, "PUT", f"{place}&digest={descriptor['digest']}", body=content,
            Content_Type="application/octet-stream",
        )
        wire.expect_status(answer, 201)

    def _put(self, repository, reference, descriptor, content):
        path = f"/v2/{repository}/manifests/{reference}"
        answer = wire.ask(self._origin.port, "PUT", path, body=content, Content_Type=descriptor["mediaType"])
        wire.expect_status(answer, 201)

    def _enter(self, kind, repository=None, tag="latest"):
        print(f"  {kind}", flush=True)
        repository = repository or f"apps/{kind}"
        answer = wire.ask(self._origin.port, "HEAD", f"/v2/{repository}/manifests/{tag}")
        wire.expect_status(answer, 200)
        digest = answer.headers["Docker-Content-Digest"]
        self._catalog.append({"kind": kind, "repository": repository, "tag": tag, "digest": digest})
        return digest


def _base64(content):
    return base64.b64encode(content).decode()


def _gzip(tar):
    # random bytes do not shrink, so storing them saves a minute and unpacks at once
    return gzip.compress(tar, compresslevel=0, mtime=0), _GZIP_LAYER


def _zstd(tar):
    result = subprocess.run(["zstd", "--quiet", "--stdout"], input=tar, capture_output=True, check=True)
    return result.stdout, _ZSTD_LAYER


def _tar(files):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        # Podman's partial pull opens files in parallel and makes no folder that is not named
        for folder in sorted({str(parent) for path in files for parent in Path(path).parents} - {"."}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    # without Python's padding to whole records, which a writer of zstd:chunked does not reproduce
    return tar.getvalue()[: archive.offset]


class _Layout:
    """An OCI image layout on disk: blobs and manifests in the order in which they were added."""

    def __init__(self, folder):
        self._folder = folder
        self._inner_digests = {}
        self._descriptors = {}
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add(self, content, media_type):
        """Writes a blob and returns its descriptor."""
        hex_digest = hashlib.sha256(content).hexdigest()
        descriptor = {"mediaType": media_type, "digest": f"sha256:{hex_digest}", "size": len(content)}
        self._path(descriptor).write_bytes(content)
        self._descriptors[descriptor["digest"]] = descriptor
        return descriptor

    def read(self, descriptor):
        return self._path(descriptor).read_bytes()

    def blobs(self):
        return ((each, self.read(each)) for each in self._descriptors.values() if not _is_manifest(each))

    def manifests(self):
        return ((each, self.read(each)) for each in self._descriptors.values() if _is_manifest(each))

    def hand_over(self, descriptor, path):
        """Moves a blob to `path`: it is named by this layout's manifests, and not among its blobs."""
        shutil.move(self._path(self._descriptors.pop(descriptor["digest"])), path)

    def layer(self, files, compress=_gzip):
        """A layer of `files`, path to content."""
        plain = _tar(files)
        descriptor = self.add(*compress(plain))
        self.set_inner_digest(descriptor, f"sha256:{hashlib.sha256(plain).hexdigest()}")
        return descriptor

    def set_inner_digest(self, descriptor, digest):
        """What the config of an image with this layer calls it."""
        self._inner_digests[descriptor["digest"]] = digest

    def image(self, layers, platform=PLATFORM, media_types=(_MANIFEST, _CONFIG)):
        """The descriptor of an image of `layers`."""
        system, architecture = platform.split("/") if platform else ("", "")
        manifest_type, config_type = media_types
        config = {
            "os": system,
            "architecture": architecture,
            "config": {"Cmd": ["/opt/file-0"]} if platform else {},
            "rootfs": {"type": "layers", "diff_ids": [self._inner_digests[layer["digest"]] for layer in layers]},
            "history": [{"created_by": "interop"} for _ in layers],
        }
        descriptor = self.manifest(self.add(json.dumps(config).encode(), config_type), layers, manifest_type)
        return descriptor | ({"platform": {"os": system, "architecture": architecture}} if platform else {})

    def artifact(self, artifact_type, layers, **more):
        """The descriptor of an artifact in the form that image-spec 1.1 gives to what has no config."""
        descriptor = self.manifest(self.add(b"{}", _EMPTY), layers, artifactType=artifact_type, **more)
        return descriptor | {"artifactType": artifact_type}

    def manifest(self, config, layers, media_type=_MANIFEST, **more):
        document = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers, **more}
        return self.add(json.dumps(document).encode(), media_type)

    def index(self, manifests):
        document = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": list(manifests)}
        return self.add(json.dumps(document).encode(), _INDEX)

    def tagged(self, top):
        """Tags `top` as `latest`; returns the folder, which is what skopeo reads."""
        entry = {key: top[key] for key in ("mediaType", "digest", "size")}
        entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
        (self._folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        return self._folder

    def _path(self, descriptor):
        return self._folder / "blobs/sha256" / descriptor["digest"].removeprefix("sha256:")


def _is_manifest(descriptor):
    return descriptor["mediaType"] in (_INDEX, _MANIFEST, _DOCKER_MANIFEST)
