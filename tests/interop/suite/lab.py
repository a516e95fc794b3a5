"""What a scenario works with: origins over the images, edges in front of them, and the report."""

from .edge import Distribution, Edge, upstream
from .machine import Process
from .matrix import Matrix
from .origin import Origin

_SCENARIOS = {}


def scenario(name, for_any_cache=False):
    """Registers a function of a `Lab` under `name`, in the order of definition.

    One that is `for_any_cache` asks nothing of the edge that distribution's cache does not have as well.
    """

    def register(function):
        _SCENARIOS[name] = (function, for_any_cache)
        return function

    return register


def scenarios(peer):
    """The scenarios by name; with a `peer` in the edge's place, those that suit it."""
    return {name: run for name, (run, for_any_cache) in _SCENARIOS.items() if for_any_cache or not peer}


class Lab:
    def __init__(self, workspace, library, report, binary, package=None, peer=None, compare=False):
        self.workspace = workspace
        self.library = library
        self.package = package
        self.peer = peer
        self.compare = compare
        self.matrix = Matrix()
        self._report = report
        self._binary = binary
        self._edge = None

    def origin(self, **options):
        """An origin over the images, read-only."""
        return Origin(self.workspace, self.library.storage, **options)

    def edge(self, origin, *, url=None, **options):
        """An edge with an empty store in front of `origin`, reached at `url` where that is not its own."""
        parts = [upstream(origin.name, url or origin.url, origin.credential)]
        return self.edge_of(parts, default=origin.name, **options)

    def edge_of(self, parts, **options):
        """An edge with an empty store and the upstreams of `parts`."""
        self._edge = Edge(self._binary, self.workspace, parts, **options)
        return self._edge

    def cache(self, origin, *, url=None, **options):
        """The cache under test: the edge, or the peer that was asked for in its place."""
        if self.peer:
            return self.distribution(origin, url=url)
        return self.edge(origin, url=url, **options)

    def distribution(self, origin, *, url=None):
        """distribution's own cache, with an empty store, in front of `origin`."""
        return Distribution(self.workspace, url or origin.url)

    def unconfigured_edge(self, home):
        """The edge as a newcomer starts it: no argument, no file, no variable but the home directory's."""
        environment = self.workspace.environment(home, XDG_CACHE_HOME=str(home / "cache"))
        return Process([self._binary], self.workspace.log("unconfigured-edge"), environment)

    def scenario(self, name):
        return self._report.scenario(name, self._evidence)

    def check(self, name):
        return self._report.check(name, self._evidence)

    def skip(self, name, reason):
        self._report.skip(name, reason)

    def _evidence(self):
        tail = self._edge and self._edge.tail()
        return f"the edge's log ends:\n{tail}" if tail else ""
