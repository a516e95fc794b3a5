"""Processes, ports and folders.

Everything the suite starts runs inside one temporary folder, on ports of its own, and is ended by
its process id. Nothing outlives the suite: the kernel ends the children if the suite itself dies.
"""

import base64
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Unmet(AssertionError):
    """A promise that was not kept; the message is the evidence."""


def expect(condition, message):
    """Fails the running check with `message` unless `condition` holds."""
    if not condition:
        raise Unmet(message)


def brief(digests):
    """A few of `digests`, short enough to read in a failure."""
    names = [digest.removeprefix("sha256:")[:12] for digest in sorted(digests)]
    return f"{len(names)} digests, {', '.join(names[:4])}{'…' if names[4:] else ''}"


def wait_until(condition, what, timeout=10.0):
    """Polls `condition` until it is true, and fails the running check when `timeout` seconds pass first."""
    deadline = time.monotonic() + timeout
    while not condition():
        expect(time.monotonic() < deadline, f"not within {timeout:g} s: {what}")
        time.sleep(0.02)


def free_port():
    """A free port below the ephemeral range, so that no client socket takes it while its server is stopped."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def is_listening(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A server in the background, with its output in a log file."""

    def __init__(self, argv, log, env=None):
        self.log = Path(log)
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        self.pid = self._child.pid

    @property
    def exit_code(self):
        """The exit code, or None while it runs."""
        return self._child.poll()

    def stop(self, patience=10.0):
        """SIGTERM, then SIGKILL when it has not gone within `patience` seconds."""
        if self.exit_code is None:
            self._child.terminate()
            try:
                self._child.wait(patience)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.exit_code

    def kill(self):
        """SIGKILL: no time to tidy up."""
        self._child.kill()
        self._child.wait()

    def anonymous_memory(self):
        """Resident anonymous memory in bytes (RssAnon); 0 once the process has gone."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
        return 0

    def cpu_seconds(self):
        """User and system time spent so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class CommandFailed(Unmet):
    """A client's command ended with an error."""

    def __init__(self, argv, result):
        self.output = (result.stdout + result.stderr).decode(errors="replace").strip()
        super().__init__(f"`{' '.join(argv)}` ended with {result.returncode}: {self.output[-1500:]}")


class Workspace:
    """The temporary folder of one run: `logs/` is worth keeping after a failure, `data/` is not."""

    def __init__(self, tools, verbose=False):
        self._tools = tools
        self.root = Path(tempfile.mkdtemp(prefix="clawhub-interop-"))
        self.logs = self.root / "logs"
        self.data = self.root / "data"
        self.logs.mkdir()
        self.data.mkdir()
        self.verbose = verbose
        # location, user name and password of the registry that clients are logged in to from here on
        self.login = None
        self._count = 0

    def folder(self, name):
        """A new empty folder."""
        folder = self.data / self._unique(name)
        folder.mkdir()
        return folder

    def log(self, name):
        """The path of a new log file."""
        return self.logs / f"{self._unique(name)}.log"

    def tool(self, name):
        """The path of a command that the suite has built for itself."""
        return self._tools / name

    def home(self, registries_conf=""):
        """A home directory whose `registries.conf` and trust policy are the only ones a client sees."""
        home = self.folder("home")
        containers = home / ".config" / "containers"
        containers.mkdir(parents=True)
        (containers / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        # without the line, short names would be looked up where the host's own file says
        searched = "" if "unqualified-search-registries" in registries_conf else "unqualified-search-registries = []\n"
        (containers / "registries.conf").write_text(searched + registries_conf)
        self.log_in(home)
        return home

    @contextmanager
    def logged_in(self, location, username, password):
        """While it lasts, new home directories hold this login, as `docker login` writes it."""
        self.login = location, username, password
        try:
            yield
        finally:
            self.login = None

    def log_in(self, home):
        """Writes the login into a home directory, where Docker, Podman, skopeo, crane and oras look for it."""
        if self.login is None:
            return
        location, username, password = self.login
        auth = base64.b64encode(f"{username}:{password}".encode()).decode()
        (home / ".docker").mkdir(exist_ok=True)
        (home / ".docker" / "config.json").write_text(json.dumps({"auths": {location: {"auth": auth}}}))

    def command(self, *argv, home=None, timeout=300, with_errors=False, **variables):
        """Runs a client to its end and returns what it printed, to stderr also when `with_errors`.

        Raises `CommandFailed` with its words.
        """
        argv = [str(word) for word in argv]
        if self.verbose:
            print(f"      $ {' '.join(argv)}", flush=True)
        result = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env=self.environment(home, **variables),
        )
        if result.returncode != 0:
            raise CommandFailed(argv, result)
        return ((result.stderr if with_errors else b"") + result.stdout).decode()

    def environment(self, home=None, **variables):
        """A small environment: no proxy, no credential and no setting of the caller's gets in."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home or self.root),
            "TMPDIR": str(self.data),
            "LC_ALL": "C.UTF-8",
            **variables,
        }

    def close(self, keep_logs):
        """Removes the folder; a failed run keeps its logs."""
        shutil.rmtree(self.data if keep_logs else self.root, ignore_errors=True)

    def _unique(self, name):
        self._count += 1
        return f"{self._count:03}-{name}"
