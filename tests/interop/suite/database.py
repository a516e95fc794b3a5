"""PostgreSQL, as several edges share it."""

import shutil
import tempfile
from pathlib import Path

from .machine import Process, free_port, is_listening, wait_until


class Postgres:
    """Debian's PostgreSQL with a database of its own; use it as a context manager."""

    _USER = "postgres"

    def __init__(self, workspace):
        self.port = free_port()
        self._workspace = workspace
        self._programs = max(Path("/usr/lib/postgresql").iterdir(), key=lambda path: int(path.name)) / "bin"
        self._log = workspace.log("postgres")
        # it refuses to run as root, and others may not enter the workspace
        self._folder = Path(tempfile.mkdtemp(prefix="clawhub-interop-postgres-"))
        shutil.chown(self._folder, self._USER, self._USER)
        self._as_user("initdb", "--auth=trust", "--no-sync", "--pgdata", self._folder / "data")

    @property
    def url(self):
        return f"postgres://{self._USER}@127.0.0.1:{self.port}/postgres"

    def start(self):
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "fsync": "off",
        }
        options = (f"--{name.replace('_', '-')}={value}" for name, value in settings.items())
        argv = (*self._prefix(), self._programs / "postgres", "-D", self._folder / "data", *options)
        self._process = Process(argv, self._log, self._workspace.environment(self._folder))
        wait_until(lambda: is_listening(self.port), "PostgreSQL listens", 20)

    def kill(self):
        """As a machine that is switched off."""
        self._process.kill()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        # a connected edge would keep it waiting
        self._process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _prefix(self):
        return ("setpriv", f"--reuid={self._USER}", f"--regid={self._USER}", "--clear-groups", "--pdeathsig=KILL")

    def _as_user(self, program, *argv):
        self._workspace.command(*self._prefix(), self._programs / program, *argv, home=self._folder)
