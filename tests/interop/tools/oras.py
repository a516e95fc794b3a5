"""The Python SDK's client, as a command.

`oras.py NAME FOLDER` pulls the artifact NAME over plain HTTP into FOLDER: its files, config and manifest.
"""

import sys
from pathlib import Path

from oras.client import OrasClient

name, folder = sys.argv[1:]
client = OrasClient(insecure=True)
client.pull(target=name, outdir=folder)

container = client.get_container(name)
manifest = client.get_manifest(container)
client.download_blob(container, manifest["config"]["digest"], f"{folder}/config")
# the SDK hands out manifests parsed; what came over the wire has the digest
types = {"Accept": manifest["mediaType"]}
answer = client.do_request(f"{client.prefix}://{container.manifest_url()}", "GET", headers=types)
(Path(folder) / "manifest").write_bytes(answer.content)
