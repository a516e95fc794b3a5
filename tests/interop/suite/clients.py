"""skopeo, Podman and containerd, each as its users point it at a mirror.

A client's `pull` gets an image through the edge into a place where nothing is yet, hashes what
arrived, and returns the digests that it holds.
"""

import hashlib
import json
import shutil

from .images import PLATFORM
from .machine import CommandFailed, Process, expect, wait_until


class Skopeo:
    """skopeo with the edge in the image's name: `127.0.0.1:5050/origin.test/apps/layers`."""

    label = "skopeo by path prefix"
    kinds = ("layers", "docker", "umoci", "multi-arch", "zstd", "artifact", "sixty", "large")

    def __init__(self, workspace, edge, upstream_name):
        self._workspace = workspace
        self._home = workspace.home(self._registries_conf(edge, upstream_name))
        self._source = self._source_prefix(edge, upstream_name)

    def pull(self, image, platform=PLATFORM):
        """Copies one platform's image; the digests of manifest, config and layers."""
        return self._copy(image, overrides=[f"--override-arch={platform.split('/')[1]}"])

    def pull_all_platforms(self, image):
        return self._copy(image, options=["--all"])

    def tags(self, repository):
        name = f"docker://{self._source}/{repository}"
        listing = self._workspace.command("skopeo", "list-tags", "--tls-verify=false", name, home=self._home)
        return json.loads(listing)["Tags"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def _copy(self, image, overrides=(), options=()):
        target = self._workspace.folder("pulled")
        try:
            self._workspace.command(
                "skopeo", *overrides, "copy", "--quiet", "--src-tls-verify=false", *options,
                f"docker://{self._source}/{image.reference}", f"dir:{target}",
                home=self._home,
            )
            return {_digest(path) for path in target.iterdir() if path.name != "version"}
        finally:
            shutil.rmtree(target)

    def _registries_conf(self, _edge, _upstream_name):
        return ""

    def _source_prefix(self, edge, upstream_name):
        return edge.prefix(upstream_name)


class SkopeoMirror(Skopeo):
    """skopeo with the upstream in the image's name and the edge as its mirror in registries.conf."""

    label = "skopeo by registries.conf"
    # the same program as above: it need not prove twice what it does with a large layer
    kinds = tuple(kind for kind in Skopeo.kinds if kind != "large")

    def _registries_conf(self, edge, upstream_name):
        return mirror_conf(edge, upstream_name)

    def _source_prefix(self, _edge, upstream_name):
        return upstream_name


class Podman:
    """Podman with the edge as a mirror in registries.conf, and an image store of its own for each pull."""

    label = "Podman by registries.conf"
    # Podman pulls images, not artifacts
    kinds = tuple(kind for kind in Skopeo.kinds if kind != "artifact")

    def __init__(self, workspace, edge, upstream_name):
        self._workspace = workspace
        self._upstream_name = upstream_name
        self._home = workspace.home(mirror_conf(edge, upstream_name))

    def pull(self, image, platform=PLATFORM):
        """Pulls and unpacks; what Podman keeps has a digest of manifest and config, and the layers' inner digests.

        Podman checks a layer against both its digests as it unpacks it and keeps the inner one, which the
        config names: with the config's digest right, its layers are the origin's.
        """
        store = self._workspace.folder("podman")
        name = f"{self._upstream_name}/{image.reference}"
        podman = (
            "podman", "--storage-driver=vfs", f"--root={store}/root", f"--runroot={store}/run", f"--tmpdir={store}/tmp",
            "--events-backend=none", "--cgroup-manager=cgroupfs",
        )
        try:
            self._workspace.command(*podman, "pull", "--quiet", f"--platform={platform}", name, home=self._home)
            facts = json.loads(self._workspace.command(*podman, "image", "inspect", name, home=self._home))[0]
        finally:
            shutil.rmtree(store)
        config = f"sha256:{facts['Id']}"
        expect(len(facts["RootFS"]["Layers"]) == len(image.layers(platform)), f"not every layer: {facts['RootFS']}")
        expect(config == image.config(platform), f"config {config}, the origin has {image.config(platform)}")
        named = {reference.rsplit("@", 1)[1] for reference in facts["RepoDigests"]}
        return named | image.blobs(platform)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Containerd:
    """containerd with a hosts directory: `ctr images pull`, which resolves with HEAD and sends `ns`."""

    label = "containerd by hosts directory"
    kinds = Skopeo.kinds

    def __init__(self, workspace, edge, upstream_name):
        self._workspace = workspace
        self._upstream_name = upstream_name
        self._folder = workspace.folder("containerd")
        self._hosts = self._folder / "hosts"
        self._address = self._folder / "containerd.sock"
        self._content = self._folder / "root/io.containerd.content.v1.content/blobs/sha256"
        self._write_hosts(edge)
        self._write_configuration()
        self._pulls = 0

    def pull(self, image, platform=PLATFORM):
        """Pulls and unpacks into a namespace of its own; every blob that containerd then holds."""
        self._pulls += 1
        name = f"{self._upstream_name}/{image.reference}"
        # an artifact has no root file system to unpack
        verb = ("content", "fetch") if image.kind == "artifact" else ("images", "pull", "--snapshotter=native")
        ctr = ("ctr", f"--address={self._address}", f"--namespace=pull-{self._pulls}")
        try:
            self._workspace.command(*ctr, *verb, f"--hosts-dir={self._hosts}", f"--platform={platform}", name)
            held = self._workspace.command(*ctr, "content", "ls", "--quiet").split()
            return {_digest(self._content / digest.removeprefix("sha256:")) for digest in held}
        finally:
            self._workspace.command(*ctr, "images", "rm", "--sync", name)

    def __enter__(self):
        log = self._workspace.log("containerd")
        # mounts of its own: what it leaves mounted goes with it
        argv = ["unshare", "--mount", "containerd", "--config", self._folder / "containerd.toml"]
        self._daemon = Process(argv, log, self._workspace.environment())
        wait_until(self._is_serving, f"containerd serves, see {log}", 20)
        return self

    def __exit__(self, *_):
        self._daemon.stop()
        shutil.rmtree(self._folder)

    def _is_serving(self):
        try:
            self._workspace.command("ctr", f"--address={self._address}", "--connect-timeout=1s", "version")
        except CommandFailed:
            return False
        return True

    def _write_hosts(self, edge):
        folder = self._hosts / self._upstream_name
        folder.mkdir(parents=True)
        # nothing listens on port 1: what the edge does not answer is not answered at all
        (folder / "hosts.toml").write_text(
            'server = "http://127.0.0.1:1"\n'
            f'[host."http://{edge.location}"]\n'
            '  capabilities = ["pull", "resolve"]\n'
        )

    def _write_configuration(self):
        snapshotters = ("aufs", "btrfs", "devmapper", "overlayfs", "zfs")
        unused = ("grpc.v1.cri", "internal.v1.opt", *(f"snapshotter.v1.{name}" for name in snapshotters))
        (self._folder / "containerd.toml").write_text(
            "version = 2\n"
            f'root = "{self._folder}/root"\n'
            f'state = "{self._folder}/state"\n'
            f"disabled_plugins = {json.dumps([f'io.containerd.{plugin}' for plugin in unused])}\n"
            f'[grpc]\n  address = "{self._address}"\n'
            # no namespace takes a blob from another: every pull asks the edge for all of it
            '[plugins."io.containerd.metadata.v1.bolt"]\n  content_sharing_policy = "isolated"\n'
        )


CLIENTS = (Skopeo, SkopeoMirror, Podman, Containerd)


def copy_between_registries(workspace, source, target):
    """Pushes with skopeo what it pulls."""
    tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
    names = (f"docker://{source}", f"docker://{target}")
    workspace.command("skopeo", "copy", "--quiet", "--preserve-digests", *tls, *names, home=workspace.home())


def mirror_conf(edge, upstream_name):
    """The registries.conf lines that make `edge` the mirror of `upstream_name`; the upstream itself has no address."""
    return (
        f'[[registry]]\nlocation = "{upstream_name}"\n'
        f'[[registry.mirror]]\nlocation = "{edge.prefix(upstream_name)}"\ninsecure = true\n'
    )


def _digest(path):
    with path.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
