"""The edge under test, and distribution's own pull-through cache in its place for comparison."""

import json
import shutil

from . import wire
from .machine import Process, expect, free_port, is_listening, wait_until
from .origin import Origin


def upstream(name, url, credential=None, aliases=(), prefix="", access=""):
    """One upstream's part of the configuration file."""
    username, password = credential or (None, None)
    table, endpoint = f'upstreams."{name}"', f'upstreams."{name}".endpoints'
    return "\n".join(
        [
            f"[{table}]",
            *_settings(aliases=list(aliases), access=access),
            f"[[{endpoint}]]",
            *_settings(url=url, username=username, password=password, prefix=prefix),
        ]
    )


def _settings(**settings):
    """TOML lines; what is empty is left to its default. A JSON string or array is a TOML one, too."""
    return [f"{key} = {json.dumps(value)}" for key, value in settings.items() if value]


class Edge:
    """A `clawhub-edge serve` with a store of its own that survives `stop`, `kill` and `start`."""

    def __init__(self, binary, workspace, upstreams, *, default=None, ttl="5m", log_level="info", address=None, listeners=""):
        self.port = free_port()
        self.log = workspace.log("edge")
        self._binary = binary
        self._workspace = workspace
        self._folder = workspace.folder("edge")
        self.store = self._folder / "store"
        self.configuration = self._folder / "clawhub-edge.toml"
        sections = [
            ["[store]", *_settings(directory=str(self.store))],
            ["[[listen]]", *_settings(address=address or self.location), listeners],
            ["[routing]", *_settings(default_upstream=default)],
            ["[tags]", *_settings(ttl=ttl, stale_if_error="30d")],
            ["[log]", *_settings(format="json", level=log_level)],
            upstreams,
        ]
        self.configuration.write_text("\n\n".join("\n".join(section) for section in sections))
        self.process = None

    @property
    def location(self):
        return f"127.0.0.1:{self.port}"

    @property
    def state(self):
        """Where it keeps its secret and, if it shares none, its database."""
        return self._folder / ".local/state/clawhub-edge"

    def keys(self, *argv):
        """What `clawhub-edge keys` says of this edge's keys."""
        command = (self._binary, "--config", self.configuration, "keys", *argv, "--json")
        return json.loads(self._workspace.command(*command, home=self._folder))

    def prefix(self, upstream_name):
        """Where `upstream_name`'s repositories begin, for clients that name it by path."""
        return f"{self.location}/{upstream_name}"

    def path(self, upstream_name, repository):
        """The URL path of a repository, for requests that name the upstream by path."""
        return f"/v2/{upstream_name}/{repository}"

    def client_files(self, client, upstream_name, *options):
        """What `client-config` prints to point `client` at this edge, path to content."""
        printed = self._workspace.command(
            self._binary, "--config", self.configuration, "client-config", client, f"--upstream={upstream_name}",
            "--json", *options,
        )  # fmt: skip
        return {file["path"]: file["content"] for file in json.loads(printed)}

    def spawn(self):
        """Starts the process without waiting for anything."""
        argv = [self._binary, "--config", self.configuration, "serve"]
        self.process = Process(argv, self.log, self._workspace.environment(home=self._folder))
        return self.process

    def start(self):
        self.spawn()
        wait_until(lambda: self.process.exit_code is not None or is_listening(self.port), "the edge listens", 20)
        expect(self.process.exit_code is None, f"the edge ended at once with {self.process.exit_code}: {self.tail()}")
        wait_until(lambda: wire.ask(self.port, "GET", "/readyz").status == 200, "/readyz is 200")

    def stop(self):
        """SIGTERM, as an operator would."""
        self.process.stop()

    def kill(self):
        """SIGKILL."""
        self.process.kill()

    def restart(self):
        self.stop()
        self.start()

    def tail(self, lines=15):
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self._folder)


class Distribution:
    """docker-registry in proxy mode, with the same interface as far as pulls need it.

    It serves one upstream at its root, so a path prefix names nothing and `ns` is ignored.
    """

    def __init__(self, workspace, origin_url):
        storage = workspace.folder("distribution")
        self._registry = Origin(workspace, storage, writable=True, extra=f"proxy: {{remoteurl: {origin_url}}}")
        self.port = self._registry.port
        self.location = self._registry.location

    @property
    def process(self):
        return self._registry.process

    def prefix(self, _upstream_name):
        return self.location

    def path(self, _upstream_name, repository):
        return f"/v2/{repository}"

    def client_files(self, client, upstream_name, *options):
        return self._registry.client_files(client, upstream_name, *options)

    def restart(self):
        self._registry.stop()
        self._registry.start()

    def tail(self):
        return ""

    def __enter__(self):
        self._registry.start()
        return self

    def __exit__(self, *_):
        self._registry.stop()
