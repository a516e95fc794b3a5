"""The Python SDK's client, as a command.

`oras-python NAME FOLDER` downloads manifest, config and layers of NAME over plain HTTP into FOLDER. The SDK's own
`pull` does the same and then unpacks what is a tar; the digests are those of what came over the wire.
"""

import sys
from pathlib import Path

from oras import defaults
from oras.client import OrasClient

name, folder = sys.argv[1:]
client = OrasClient(insecure=True)
container = client.get_container(name)

manifest = client.get_manifest(container)
# an index has neither, and the SDK then pulls nothing
for blob in filter(None, (manifest.get("config"), *manifest.get("layers", ()))):
    client.download_blob(container, blob["digest"], f"{folder}/{blob['digest'].removeprefix('sha256:')}")

# the SDK hands out manifests parsed
accepted = {"Accept": ", ".join(defaults.default_manifest_accepted_media_types)}
answer = client.do_request(f"{client.prefix}://{container.manifest_url()}", "GET", headers=accepted)
(Path(folder) / "manifest").write_bytes(answer.content)
