"""BuildKit with the cache as a mirror in buildkitd.toml: `FROM` in a Dockerfile."""

from ..buildkit import BuildKitDaemon
from ..images import PLATFORM
from .base import Client, digests_in


class BuildKit(Client):
    label = "BuildKit by buildkitd.toml"
    configured_as = "buildkit"
    limits = {
        "foreign": "it follows no URL of a layer",
        # a signature of cosign's has the config of an image
        **dict.fromkeys(("artifact", "sbom", "helm", "wasm", "model"), "it builds from images, and this is none"),
    }

    def pull(self, image, platform=PLATFORM):
        """Builds an image of a single FROM with a new daemon; what its content store then holds of the image."""
        context = self.workspace.folder("build")
        (context / "Dockerfile").write_text(f"FROM {self.name(image)}\n")
        configuration = "\n".join(self.cache.client_files(self.configured_as, self.upstream_name).values())
        with BuildKitDaemon(self.workspace, configuration) as daemon:
            # without an output BuildKit fetches no layer
            daemon.build(context, f"--opt=platform={platform}", f"--output=type=oci,dest={context}/image.tar")
            # the store also holds what was built: a config, a manifest and an index of its own
            return digests_in(daemon.content) & image.everything()
