"""What the clients have in common."""

import hashlib
from pathlib import Path

from ..images import KINDS, PLATFORM


class Client:
    """A client pointed at a cache: `pull` gets an image into a place where nothing is yet.

    It hashes what arrived, or relies on a check of the client's own that its docstring names, and returns the digests
    that the client then holds. A `cache` is an edge or anything else with a `location` and a `prefix`.
    """

    # how reports call it
    label: str
    # what it is asked for: all kinds, unless another client of the same program has proven the rest
    kinds = KINDS
    # kinds that it cannot pull from any registry, and why
    limits: dict[str, str] = {}
    # what `clawhub-edge client-config` calls it
    configured_as: str
    # whether it reads the manifests and configs of the platforms that were not asked for
    reads_all_metadata = False
    # what the upstream is called in the image names that it is given
    upstream_name = "origin.test"

    def __init__(self, workspace, cache, upstream_name=None):
        self.workspace = workspace
        self.cache = cache
        self.upstream_name = upstream_name or self.upstream_name

    def pull(self, image, platform=PLATFORM):
        raise NotImplementedError

    def write_configuration(self, folder, *options):
        """Writes the files that point this client at the cache below `folder`, as if it were the root directory."""
        files = self.cache.client_files(self.configured_as, self.upstream_name, *options)
        for path, content in files.items():
            place = Path(folder, path.removeprefix("/"))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
        return Path(folder)

    def reads(self, image, platform=PLATFORM):
        """The digests that a pull may read, and no others."""
        metadata = image.metadata() if self.reads_all_metadata else image.manifests(platform)
        return metadata | image.blobs(platform)

    def name(self, image):
        """What its user types, where the client knows the cache as a mirror."""
        return f"{self.upstream_name}/{image.reference}"

    def name_by_path(self, image):
        """What its user types, where the client knows nothing of mirrors."""
        return f"{self.cache.prefix(self.upstream_name)}/{image.reference}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def digest_of(path):
    with Path(path).open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"


def digests_in(folder):
    """The digests of all files below `folder`."""
    return {digest_of(path) for path in Path(folder).rglob("*") if path.is_file()}
