"""Debian's docker-registry as the origin, plain or behind htpasswd, and what its access log says."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import count

from . import wire
from .machine import Process, free_port, is_listening, wait_until
from .plain import plain_files

USERNAME = "puller"
PASSWORD = "correct horse battery staple 4711"

_CONFIGURATION = """\
version: 0.1
log:
  level: error
  accesslog: {{disabled: false}}
storage:
  filesystem: {{rootdirectory: {storage}}}
  maintenance: {{readonly: {{enabled: {readonly}}}}}
http:
  addr: 127.0.0.1:{port}
  secret: interop
{extra}
"""

_ACCESS = re.compile(
    r"""^\S+ - \S+ \[[^]]+\] "(?P<method>\S+) (?P<path>[^ ?]+)\S* HTTP/\S+" (?P<status>\d+) (?P<size>\d+)"""
)
_CONTENT = re.compile(r"^/v2/(?P<repository>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/]+)$")


@dataclass(frozen=True)
class Request:
    """One line of the origin's access log."""

    method: str
    path: str
    status: int
    size: int

    def __str__(self):
        return f"{self.method} {self.path} → {self.status}, {self.size} bytes"


class Origin:
    """A docker-registry on a storage directory; use it as a context manager."""

    def __init__(self, workspace, storage, *, name="origin.test", private=False, writable=False, extra=""):
        self.name = name
        self.port = free_port()
        self.credential = (USERNAME, PASSWORD) if private else None
        self._workspace = workspace
        self._log = workspace.log("origin")
        self._configuration = workspace.folder("origin") / "config.yml"
        if private:
            extra += self._htpasswd()
        self._configuration.write_text(
            _CONFIGURATION.format(
                storage=storage, port=self.port, readonly=str(not writable).lower(), extra=extra
            )
        )
        self.process = None
        self._settled = count()

    @property
    def location(self):
        return f"127.0.0.1:{self.port}"

    @property
    def url(self):
        return f"http://{self.location}"

    def prefix(self, _upstream_name):
        """Where its repositories begin, for clients that are pointed straight at it."""
        return self.location

    def client_files(self, client, upstream_name, *_options):
        """The files that point `client` straight at it, path to content."""
        return plain_files(client, self.location, upstream_name)

    def start(self):
        argv = ["docker-registry", "serve", self._configuration]
        self.process = Process(argv, self._log, self._workspace.environment())
        wait_until(lambda: is_listening(self.port), "docker-registry listens")

    def stop(self):
        """Refuses connections from here on."""
        self.process.kill()

    def mark(self):
        """A position in the access log, for `requests`."""
        self._settle()
        return self._log.stat().st_size

    def requests(self, since):
        """What was asked after `since`, without the challenges that preceded an authorised request."""
        self._settle()
        with self._log.open(errors="replace") as log:
            log.seek(since)
            matches = filter(None, map(_ACCESS.match, log))
            requests = [Request(m["method"], m["path"], int(m["status"]), int(m["size"])) for m in matches]
        return [request for request in requests if request.status != 401 and "/settle/" not in request.path]

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.process.stop()

    def _settle(self):
        """Waits until the log shows a request of our own: all that ended before it is then written, too."""
        if self.process.exit_code is not None:
            return
        path = f"/v2/settle/manifests/mark-{next(self._settled)}."
        wire.ask(self.port, "HEAD", path)
        wait_until(lambda: path in self._log.read_text(errors="replace"), "docker-registry writes its access log")

    def _htpasswd(self):
        users = self._configuration.parent / "htpasswd"
        users.write_text(self._workspace.command("htpasswd", "-Bbn", USERNAME, PASSWORD))
        return f"auth:\n  htpasswd: {{realm: interop, path: {users}}}\n"


def excess(requests, image, allowed):
    """The digests of which more than `allowed` times their size was downloaded, in one piece or in ranges."""
    sent = Counter()
    for digest, request in _content_of(requests, image):
        sent[digest] += request.size
    sizes = {digest: image.library.size(digest) for digest in sent}
    return {digest: size for digest, size in sent.items() if size > allowed * sizes[digest]}


def downloads(requests, image):
    """How often each digest of `image`'s repository was downloaded; a tag counts as what it points at."""
    return Counter(digest for digest, _ in _content_of(requests, image))


def _content_of(requests, image):
    """The downloads of `image`'s repository, each with its digest."""
    for request in requests:
        content = _CONTENT.match(request.path)
        if request.method == "GET" and request.status < 300 and content and content["repository"] == image.repository:
            yield image.digest if content["reference"] == image.tag else content["reference"], request
