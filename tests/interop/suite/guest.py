"""A throw-away copy of this machine that boots with systemd as its first process.

Its files are an overlay of this machine's: what is installed, written and removed there is gone with it, and nothing of
it reaches this machine. Its network is this machine's, so that clients and origins are on the same loopback.
"""

import os
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path

from .machine import CommandFailed, Process, expect, wait_until

# longer than a boot takes on a machine that does everything at once
_BOOT_LIMIT = 60

# Units that this machine has enabled are none of the guest's: it boots to basic.target, and to nothing else.
# systemd-nspawn tidies up below /run/systemd; it gets one of its own.
_BOOT = """
set -eu
mount -t tmpfs tmpfs {folder}
mkdir {folder}/upper {folder}/work {folder}/root
mount -t overlay overlay -o lowerdir=/,upperdir={folder}/upper,workdir={folder}/work {folder}/root
rm -rf {folder}/root/etc/systemd/system/*.wants {folder}/root/etc/systemd/system/*.requires {folder}/root/etc/rc?.d
# a machine that builds images may forbid that packages start services
rm -f {folder}/root/etc/machine-id {folder}/root/usr/sbin/policy-rc.d
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
exec systemd-nspawn --quiet --directory={folder}/root --boot --register=no --keep-unit --machine=clawhub-interop \
    --uuid={uuid} --bind-ro={files}:/mnt -- systemd.unit=basic.target
"""


def obstacle():
    """Why this machine cannot boot a guest; empty if it can try."""
    overlay = "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/r && "
    overlay += "mount -t overlay o -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
    argv = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "sh", "-c", overlay]
    result = subprocess.run(argv, capture_output=True, check=False)
    return result.stderr.decode(errors="replace").strip() if result.returncode else ""


class Guest:
    """Use it as a context manager; `files` is a folder that it sees as /mnt."""

    def __init__(self, workspace, files):
        self.log = workspace.log("guest")
        self._workspace = workspace
        self._folder = workspace.folder("guest")
        self._files = files
        self._process = None
        self._first = None

    def run(self, *argv, timeout=60):
        """Runs a command inside to its end and returns what it printed; raises `CommandFailed` with its words."""
        inside = ("nsenter", "--all", f"--target={self._first}")
        return self._workspace.command(*inside, *argv, timeout=timeout, TERM="dumb", DEBIAN_FRONTEND="noninteractive")

    def succeeds(self, *argv):
        try:
            self.run(*argv)
        except CommandFailed:
            return False
        return True

    def write(self, path, text):
        script = f"mkdir -p {shlex.quote(str(Path(path).parent))} && printf %s {shlex.quote(text)} > {shlex.quote(path)}"
        self.run("sh", "-c", script)

    def property(self, unit, name):
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def journal(self, unit, lines=20):
        with suppress(CommandFailed):
            return self.run("journalctl", "--no-pager", f"--lines={lines}", f"--unit={unit}")
        return ""

    def __enter__(self):
        script = _BOOT.format(folder=self._folder, files=self._files, uuid=os.urandom(16).hex())
        argv = ["unshare", "--mount", "--propagation=private", "sh", "-c", script]
        self._process = Process(argv, self.log, self._workspace.environment())
        try:
            wait_until(self._has_systemd, f"the guest boots, see {self.log}", _BOOT_LIMIT)
            self.run("systemctl", "start", "basic.target")
        except BaseException:
            self._process.stop()
            raise
        return self

    def __exit__(self, *_):
        # halting takes its time, and nothing of it is worth keeping
        self._process.kill()

    def _has_systemd(self):
        code = self._process.exit_code
        expect(code is None, f"the guest ended with {code}: {self.log.read_text(errors='replace')[-2000:]}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for child in map(Path("/proc").joinpath, children):
            with suppress(OSError):
                if (child / "comm").read_text().strip() == "systemd":
                    self._first = int(child.name)
                    return (child / "root/run/systemd/private").exists()
        return False
