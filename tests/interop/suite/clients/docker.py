"""Docker Engine, with the cache in `registry-mirrors` or in the image's name."""

import json
import shutil

from ..images import ARTIFACT_KINDS, PLATFORM
from ..machine import CommandFailed, Process, expect, wait_until
from .base import Client, digests_in


class Docker(Client):
    """Debian's Docker Engine with the cache as a mirror of docker.io, the only registry that it has mirrors for.

    Docker checks a layer against both its digests as it unpacks it and keeps the inner one, which the config
    names: with the config's digest right, its layers are the origin's.
    """

    label = "Docker 20.10 by registry-mirrors"
    configured_as = "docker"
    upstream_name = "docker.io"
    limits = {
        "nested": "of an index in an index, it finds no platform",
        "zstd": "it cannot unpack zstd",
        "chunked": "it cannot unpack zstd",
        "foreign": "it follows no URL of a layer",
        **dict.fromkeys(ARTIFACT_KINDS, "it pulls images into a store of images, and this is none"),
    }
    # a mistake of the cache is not to be hidden by another attempt
    _options = ("--storage-driver=vfs", "--max-download-attempts=1")

    def __init__(self, workspace, cache):
        super().__init__(workspace, cache)
        self._folder = workspace.folder("docker")
        self._host = f"unix://{self._folder}/docker.sock"
        self._configuration = self._folder / "etc/docker"
        self._configuration.mkdir(parents=True)
        self._configure()

    def pull(self, image, platform=PLATFORM):
        """Pulls and unpacks; the digests of manifest and config as Docker has them, and the layers that these prove."""
        name = self._name(image)
        try:
            self._docker("pull", "--quiet", f"--platform={platform}", name)
            facts = json.loads(self._docker("image", "inspect", name))[0]
            return self._held(facts, image, platform)
        finally:
            self._forget()

    def __enter__(self):
        log = self.workspace.log("dockerd")
        # mounts of its own: what it leaves mounted goes with it, and its /etc/docker is not the host's
        script = 'mkdir -p /etc/docker && mount --bind "$0" /etc/docker && exec "$@"'
        argv = (
            "unshare", "--mount", "sh", "-c", script, self._configuration, self._program("dockerd"),
            f"--host={self._host}", f"--data-root={self._folder}/data",
            f"--exec-root={self._folder}/exec", f"--pidfile={self._folder}/docker.pid",
            "--bridge=none", "--iptables=false", "--ip-forward=false", *self._options,
        )  # fmt: skip
        self._daemon = Process(argv, log, self._environment())
        wait_until(self._is_serving, f"dockerd serves, see {log}", 30)
        return self

    def __exit__(self, *_):
        self._daemon.stop(patience=20)
        shutil.rmtree(self._folder)

    def log_in(self, username, password):
        """`docker login` at the cache, with a new home directory."""
        home = self.workspace.home()
        login = ("login", f"--username={username}", f"--password={password}", self.cache.location)
        self.workspace.command("docker", f"--host={self._host}", *login, home=home)

    def _program(self, name):
        return name

    def _environment(self):
        # what the mirror does not answer, Docker asks of Docker Hub: nothing listens on port 1
        return self.workspace.environment(self._folder, HTTPS_PROXY="http://127.0.0.1:1")

    def _configure(self):
        self.write_configuration(self._folder)

    def _name(self, image):
        return self.name(image)

    def _held(self, facts, image, platform):
        layers = facts["RootFS"].get("Layers", [])
        config = facts["Id"]
        expect(config == image.config(platform), f"config {config}, the origin has {image.config(platform)}")
        expect(len(layers) == len(image.layers(platform)), f"not every layer: {layers}")
        # of an index, Docker keeps the digest of the index; the manifest named config and layers
        named = {reference.rsplit("@", 1)[1] for reference in facts["RepoDigests"]}
        expect(named == {image.digest}, f"{named}, the tag is {image.digest}")
        return named | {image.manifest(platform)} | image.blobs(platform)

    def _forget(self):
        self._docker("image", "prune", "--all", "--force")

    def _docker(self, *argv):
        self.workspace.log_in(self._folder)
        return self.workspace.command("docker", f"--host={self._host}", *argv, home=self._folder)

    def _is_serving(self):
        try:
            self._docker("version")
        except CommandFailed:
            return False
        return True


class DockerByPath(Docker):
    """Debian's Docker Engine with the cache in the image's name."""

    label = "Docker 20.10 by path prefix"
    upstream_name = "origin.test"

    def _configure(self):
        """Nothing: Docker takes plain HTTP for granted on loopback."""

    def _name(self, image):
        return self.name_by_path(image)


class DockerEngine29(Docker):
    """This year's Docker Engine, which keeps images in containerd's store and pulls with containerd's resolver."""

    label = "Docker 29 by registry-mirrors"
    reads_all_metadata = True
    limits = dict.fromkeys(("signature", "attestation"), "it unpacks what has the config of an image")
    _options = ("--feature=containerd-snapshotter=true", "--storage-driver=native")

    def _program(self, name):
        return self.workspace.tool(name)

    def _environment(self):
        environment = super()._environment()
        # dockerd starts the containerd that it finds; Debian's docker command speaks an older API
        path = f"{self.workspace.tool('.')}:{environment['PATH']}"
        return environment | {"PATH": path, "DOCKER_MIN_API_VERSION": "1.41"}

    def _held(self, _facts, _image, _platform):
        return digests_in(self._folder / "data/containerd/daemon/io.containerd.content.v1.content/blobs/sha256")
