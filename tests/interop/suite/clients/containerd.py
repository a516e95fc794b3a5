"""containerd with a hosts directory: `ctr images pull`, which resolves with HEAD and sends `ns`."""

import json
import shutil

from ..images import MIB, PLATFORM
from ..machine import CommandFailed, Process, wait_until
from .base import Client, digests_in


class Containerd(Client):
    """Debian's containerd, driven by its own `ctr`."""

    label = "containerd 1.6 by hosts directory"
    configured_as = "containerd"
    _options = ()
    _unused = (
        "grpc.v1.cri", "internal.v1.opt",
        *(f"snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "overlayfs", "zfs")),
    )  # fmt: skip
    _configuration = 'version = 2\n[plugins."io.containerd.metadata.v1.bolt"]\n  content_sharing_policy = "isolated"\n'

    def __init__(self, workspace, cache, upstream_name=None):
        super().__init__(workspace, cache, upstream_name)
        self._folder = workspace.folder("containerd")
        self._address = self._folder / "containerd.sock"
        self._content = self._folder / "root/io.containerd.content.v1.content/blobs/sha256"
        self._hosts = self.write_configuration(self._folder, *self._options) / "etc/containerd/certs.d"
        self._write_own_configuration()
        self._pulls = 0

    def pull(self, image, platform=PLATFORM):
        """Pulls and unpacks into a namespace of its own; every blob that containerd then holds."""
        self._pulls += 1
        name = self.name(image)
        # an artifact has no root file system to unpack
        verb = ("content", "fetch") if image.is_artifact else ("images", "pull", "--snapshotter=native")
        ctr = (*self._ctr, f"--namespace=pull-{self._pulls}")
        login = self.workspace.login
        user = (f"--user={login[1]}:{login[2]}",) if login else ()
        try:
            self.workspace.command(*ctr, *verb, *user, f"--hosts-dir={self._hosts}", f"--platform={platform}", name)
            return digests_in(self._content)
        finally:
            self.workspace.command(*ctr, "images", "rm", "--sync", name)

    def __enter__(self):
        log = self.workspace.log("containerd")
        # mounts of its own: what it leaves mounted goes with it
        argv = ("unshare", "--mount", self._program("containerd"), "--config", self._folder / "containerd.toml")
        self._daemon = Process(argv, log, self.workspace.environment())
        wait_until(self._is_serving, f"containerd serves, see {log}", 20)
        return self

    def __exit__(self, *_):
        self._daemon.stop()
        shutil.rmtree(self._folder)

    def _program(self, name):
        return name

    @property
    def _ctr(self):
        return (self._program("ctr"), f"--address={self._address}")

    def _is_serving(self):
        try:
            self.workspace.command(*self._ctr, "--connect-timeout=1s", "version")
        except CommandFailed:
            return False
        return True

    def _write_own_configuration(self):
        (self._folder / "containerd.toml").write_text(
            f'root = "{self._folder}/root"\n'
            f'state = "{self._folder}/state"\n'
            f"disabled_plugins = {json.dumps([f'io.containerd.{plugin}' for plugin in self._unused])}\n"
            f"{self._configuration}"
            f'[grpc]\n  address = "{self._address}"\n'
        )


class ContainerdParallel(Containerd):
    """This year's containerd, which fetches a layer in parallel by open-ended ranges."""

    label = "containerd 2 by hosts directory, parallel layer fetch"
    # of an index, it also reads what it does not pull: other platforms' manifests and configs
    reads_all_metadata = True
    # the edge in the registry's place, not before it
    _options = ("--no-fallback",)
    _unused = (
        "cri.v1.images", "cri.v1.runtime", "grpc.v1.cri", "nri.v1.nri",
        *(f"snapshotter.v1.{name}" for name in ("btrfs", "devmapper", "erofs", "overlayfs", "zfs")),
    )  # fmt: skip
    _configuration = (
        "version = 3\n"
        '[plugins."io.containerd.metadata.v1.bolt"]\n'
        '  content_sharing_policy = "isolated"\n'
        '[plugins."io.containerd.transfer.v1.local"]\n'
        "  max_concurrent_downloads = 8\n"
        f"  concurrent_layer_fetch_buffer = {4 * MIB}\n"
        '[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n'
        f'  platform = "{PLATFORM}"\n'
        '  snapshotter = "native"\n'
        '  differ = "walking"\n'
    )

    def _program(self, name):
        return self.workspace.tool(name)
