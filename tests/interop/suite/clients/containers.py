"""The clients of the containers/image library: skopeo, Podman, buildah, and what CRI-O is made of."""

import json
import shutil

from ..images import ARTIFACT_KINDS, PLATFORM
from ..machine import expect
from .base import Client, digests_in

_NOT_AN_IMAGE = "it pulls images into a store of images, and this is none"
_NESTED = "it takes an index in an index for an image"


def registries_conf(client, *options):
    """The registries.conf lines that make the cache of `client` the mirror of its upstream, which nothing else reaches."""
    return "\n".join(client.cache.client_files(client.configured_as, client.upstream_name, *options).values())


class Skopeo(Client):
    """skopeo with the cache in the image's name: `127.0.0.1:5050/origin.test/apps/layers`."""

    label = "skopeo by path prefix"
    limits = {"nested": _NESTED}

    def __init__(self, workspace, cache, upstream_name=None):
        super().__init__(workspace, cache, upstream_name)
        self._home = workspace.home(self._registries_conf())

    def pull(self, image, platform=PLATFORM):
        """Copies one platform's image; the digests of manifest, config and layers."""
        return self._copy(image, overrides=[f"--override-arch={platform.split('/')[1]}"])

    def pull_everything(self, image):
        return self._copy(image, options=["--all"])

    def copy(self, image, target):
        """Copies all that is below a tag to another registry, by the digests that it has."""
        options = ("--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false")
        names = (f"docker://{self._name(image)}", f"docker://{target}")
        self.workspace.command("skopeo", "copy", "--quiet", *options, *names, home=self._home)

    def tags(self, repository):
        name = f"docker://{self.cache.prefix(self.upstream_name)}/{repository}"
        listing = self.workspace.command("skopeo", "list-tags", "--tls-verify=false", name, home=self._home)
        return json.loads(listing)["Tags"]

    def _copy(self, image, overrides=(), options=()):
        target = self.workspace.folder("pulled")
        try:
            self.workspace.command(
                "skopeo", *overrides, "copy", "--quiet", "--src-tls-verify=false", *options,
                f"docker://{self._name(image)}", f"dir:{target}",
                home=self._home,
            )  # fmt: skip
            (target / "version").unlink()
            return digests_in(target)
        finally:
            shutil.rmtree(target)

    def _registries_conf(self):
        return ""

    def _name(self, image):
        return self.name_by_path(image)


class SkopeoMirror(Skopeo):
    """skopeo with the upstream in the image's name and the cache as its mirror in registries.conf."""

    label = "skopeo by registries.conf"
    configured_as = "podman"

    def _registries_conf(self):
        return registries_conf(self)

    def _name(self, image):
        return self.name(image)


class _Store(Client):
    """A client with the cache as a mirror in registries.conf, and an image store of its own for each pull.

    The store checks a layer against both its digests as it unpacks it and keeps the inner one, which the config
    names: with the config's digest right, its layers are the origin's.
    """

    configured_as = "podman"
    _options = ()
    limits = {
        "nested": _NESTED,
        **dict.fromkeys(ARTIFACT_KINDS, _NOT_AN_IMAGE),
    }

    def __init__(self, workspace, cache, upstream_name=None):
        super().__init__(workspace, cache, upstream_name)
        self._home = workspace.home(registries_conf(self, *self._options))

    def pull(self, image, platform=PLATFORM):
        """Pulls and unpacks; the digests of manifest and config as the store has them, and the layers that these prove."""
        store = self.workspace.folder("store")
        try:
            manifests, config, layers = self._pull(store, self.name(image), platform)
        finally:
            shutil.rmtree(store)
        expect(config == image.config(platform), f"config {config}, the origin has {image.config(platform)}")
        expect(len(layers) == len(image.layers(platform)), f"not every layer: {layers}")
        return manifests | image.blobs(platform)

    def pull_as(self, name, registries_conf):
        """Pulls what a user calls `name` when registries.conf has these lines; the digests of its manifests."""
        store, home = self.workspace.folder("store"), self._home
        self._home = self.workspace.home(registries_conf)
        try:
            manifests, _, _ = self._pull(store, name, PLATFORM)
            return manifests
        finally:
            self._home = home
            shutil.rmtree(store)

    def _pull(self, store, name, platform):
        """The digests of the manifests, of the config, and the layers' inner digests."""
        raise NotImplementedError


class Podman(_Store):
    label = "Podman by registries.conf"

    def _pull(self, store, name, platform):
        podman = (
            "podman", "--storage-driver=vfs", f"--root={store}/root", f"--runroot={store}/run", f"--tmpdir={store}/tmp",
            "--events-backend=none", "--cgroup-manager=cgroupfs",
        )  # fmt: skip
        self.workspace.command(*podman, "pull", "--quiet", f"--platform={platform}", name, home=self._home)
        facts = json.loads(self.workspace.command(*podman, "image", "inspect", name, home=self._home))[0]
        manifests = {reference.rsplit("@", 1)[1] for reference in facts["RepoDigests"]}
        return manifests, f"sha256:{facts['Id']}", facts["RootFS"]["Layers"] or []


class PodmanPartial(Podman):
    """Podman as its documentation sets it up for partial pulls, with one image store for all pulls."""

    def __init__(self, workspace, cache):
        super().__init__(workspace, cache)
        self._store = workspace.folder("store")
        self._configuration = self._store / "storage.conf"
        self._configuration.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self._store}/root"\nrunroot = "{self._store}/run"\n'
            '[storage.options]\npull_options = {enable_partial_images = "true", use_hard_links = "false"}\n'
        )

    def pull(self, image, platform=PLATFORM):
        """The digests of the files that are then in the image: a partial pull has no digest of a whole layer to check."""
        self._podman("pull", "--quiet", f"--platform={platform}", self.name(image))
        mounted = self._podman("image", "mount", self.name(image)).strip()
        try:
            return digests_in(mounted)
        finally:
            self._podman("image", "unmount", self.name(image))

    def __exit__(self, *_):
        self._podman("image", "rm", "--all", "--force")
        shutil.rmtree(self._store)

    def _podman(self, *argv):
        podman = ("podman", f"--tmpdir={self._store}/tmp", "--events-backend=none", "--cgroup-manager=cgroupfs")
        settings = str(self._configuration)
        return self.workspace.command(*podman, *argv, home=self._home, CONTAINERS_STORAGE_CONF=settings)


class Buildah(_Store):
    """buildah as a build begins: `buildah from`, and an image without a command runs `buildah pull`."""

    label = "buildah by registries.conf"
    # the edge in the registry's place, not as its mirror
    _options = ("--no-fallback",)

    def _pull(self, store, name, platform):
        buildah = ("buildah", "--storage-driver=vfs", f"--root={store}/root", f"--runroot={store}/run")
        system, architecture = platform.split("/")
        # `from` pulls, and makes the container that a build works in
        choice = (f"--os={system}", f"--arch={architecture}")
        container = self.workspace.command(*buildah, "from", "--quiet", *choice, name, home=self._home).strip()
        facts = json.loads(self.workspace.command(*buildah, "inspect", container, home=self._home))
        return {facts["FromImageDigest"]}, f"sha256:{facts['FromImageID']}", facts["OCIv1"]["rootfs"]["diff_ids"] or []


class CriO(_Store):
    """The libraries that CRI-O and Podman pull with, in this year's version (`tests/interop/tools/containers-pull`)."""

    label = "CRI-O's library by registries.conf"
    configured_as = "cri-o"

    def _pull(self, store, name, platform):
        configuration = store / "storage.conf"
        configuration.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{store}/root"\nrunroot = "{store}/run"\n')
        printed = self.workspace.command(
            self.workspace.tool("containers-pull"), f"-arch={platform.split('/')[1]}", name,
            home=self._home,
            CONTAINERS_STORAGE_CONF=str(configuration),
            CONTAINERS_REGISTRIES_CONF=str(self._home / ".config/containers/registries.conf"),
        )  # fmt: skip
        facts = json.loads(printed)
        return {facts["manifest"]}, facts["config"], facts["layers"] or []

