"""BuildKit's daemon, which builds some of the images and is one of the clients."""

import shutil

from .machine import CommandFailed, Process, wait_until


class BuildKitDaemon:
    """A `buildkitd` with a store of its own; use it as a context manager."""

    def __init__(self, workspace, configuration=""):
        self._workspace = workspace
        self._folder = workspace.folder("buildkit")
        self._address = f"unix://{self._folder}/buildkitd.sock"
        # what it has pulled, by digest
        self.content = self._folder / "root/runc-native/content/blobs/sha256"
        self._configuration = self._folder / "buildkitd.toml"
        self._configuration.write_text(configuration)

    def build(self, context, *options):
        """Builds the Dockerfile in `context` and returns the progress that BuildKit prints."""
        return self._buildctl(
            "build", "--frontend=dockerfile.v0", f"--local=context={context}", f"--local=dockerfile={context}",
            "--progress=rawjson", *options,
        )

    def __enter__(self):
        log = self._workspace.log("buildkitd")
        argv = (
            "unshare", "--mount", self._workspace.tool("buildkitd"), f"--addr={self._address}",
            f"--root={self._folder}/root", f"--config={self._configuration}",
            "--containerd-worker=false", "--oci-worker-snapshotter=native",
        )  # fmt: skip
        self._daemon = Process(argv, log, self._workspace.environment(self._folder))
        wait_until(self._is_serving, f"buildkitd serves, see {log}", 20)
        return self

    def __exit__(self, *_):
        self._daemon.stop()
        shutil.rmtree(self._folder)

    def _buildctl(self, *argv):
        # the progress goes to stderr
        buildctl = (self._workspace.tool("buildctl"), f"--addr={self._address}")
        return self._workspace.command(*buildctl, *argv, home=self._folder, with_errors=True)

    def _is_serving(self):
        try:
            self._buildctl("debug", "workers")
        except CommandFailed:
            return False
        return True
