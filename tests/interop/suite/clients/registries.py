"""The clients that treat a registry as a registry: crane and oras. They know no mirrors, so the cache is in the name."""

import json
import shutil

from ..images import PLATFORM
from .base import Client, digests_in


class Crane(Client):
    label = "crane by path prefix"
    limits = {"foreign": "it follows no URL of a layer to a private address"}

    def pull(self, image, platform=PLATFORM):
        """Saves one platform's image as an OCI layout; all its blobs."""
        target = self.workspace.folder("pulled")
        # an artifact belongs to no platform
        choice = () if image.is_artifact else (f"--platform={platform}",)
        try:
            self.crane("pull", "--format=oci", *choice, self.name_by_path(image), target)
            return digests_in(target / "blobs")
        finally:
            shutil.rmtree(target)

    def copy(self, image, target):
        """Copies all that is below a tag to another registry."""
        self.crane("copy", self.name_by_path(image), target)

    def crane(self, *argv):
        return self.workspace.command(self.workspace.tool("crane"), "--insecure", *argv, home=self.workspace.home())


class Oras(Client):
    label = "oras by path prefix"
    limits = {"nested": "of an index in an index, it finds no platform", "foreign": "it follows no URL of a layer"}

    def pull(self, image, platform=PLATFORM):
        """Copies into an OCI layout; all its blobs."""
        target = self.workspace.folder("pulled")
        choice = (f"--platform={platform}",) if image.is_index else ()
        try:
            self.oras("copy", "--from-plain-http", "--to-oci-layout", *choice, self.name_by_path(image), f"{target}:it")
            return digests_in(target / "blobs")
        finally:
            shutil.rmtree(target)

    def copy(self, image, target, *options):
        """Copies all that is below a tag to another registry."""
        plain = ("--from-plain-http", "--to-plain-http")
        self.oras("copy", *plain, *options, self.name_by_path(image), target)

    def discover(self, image):
        """What refers to the image, and what refers to that, as oras shows it."""
        name = f"{self.cache.prefix(self.upstream_name)}/{image.repository}@{image.digest}"
        return json.loads(self.oras("discover", "--plain-http", "--format=json", name))

    def oras(self, *argv):
        return self.workspace.command(self.workspace.tool("oras"), *argv, home=self.workspace.home())


class OrasPython(Client):
    label = "oras for Python by path prefix"
    limits = {
        **dict.fromkeys(("docker-list", "multi-arch", "nested", "attested"), "it pulls manifests, not indexes"),
        "foreign": "it follows no URL of a layer",
    }

    def pull(self, image, _platform=PLATFORM):
        """Downloads manifest, config and layers into a folder."""
        target = self.workspace.folder("pulled")
        try:
            self.workspace.command(self.workspace.tool("oras-python"), self.name_by_path(image), target)
            return digests_in(target)
        finally:
            shutil.rmtree(target)
