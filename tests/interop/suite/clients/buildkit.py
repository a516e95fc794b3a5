"""BuildKit with the cache as a mirror in buildkitd.toml: `FROM` in a Dockerfile."""

import shutil

from ..buildkit import BuildKitDaemon
from ..images import PLATFORM
from .base import Client, digests_in


class BuildKit(Client):
    label = "BuildKit by buildkitd.toml"
    configured_as = "buildkit"

    def pull(self, image, platform=PLATFORM):
        """Builds an image of a single FROM; every manifest and blob that BuildKit's content store then holds."""
        context, target = self.workspace.folder("build"), self.workspace.folder("built")
        (context / "Dockerfile").write_text(f"FROM {self.name(image)}\n")
        # without an output BuildKit fetches no layer
        output = f"--output=type=oci,dest={target}/image.tar"
        try:
            self._daemon.build(context, f"--opt=platform={platform}", output)
            return digests_in(self._daemon.content)
        finally:
            shutil.rmtree(target)
            self._daemon.forget()

    def __enter__(self):
        files = self.cache.client_files(self.configured_as, self.upstream_name)
        self._daemon = BuildKitDaemon(self.workspace, "\n".join(files.values()))
        self._daemon.__enter__()
        return self

    def __exit__(self, *_):
        self._daemon.__exit__()
