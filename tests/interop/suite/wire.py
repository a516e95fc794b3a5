"""One HTTP request at a time, for what no container client shows."""

import base64
import http.client
import json
import time
from dataclasses import dataclass

from .machine import expect

# what a modern client sends with every manifest request
MANIFEST_TYPES = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error_codes(self):
        """The codes of an OCI error document; empty for anything else."""
        try:
            return [error["code"] for error in self.json["errors"]]
        except (ValueError, KeyError, TypeError):
            return []

    def __str__(self):
        return f"{self.status} in {self.seconds:.3f} s, {dict(self.headers)}, {self.body[:300]!r}"


def ask(port, method, path, body=None, timeout=60, **headers):
    """The answer of the server on `port`; header names are written with underscores."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    headers = {"Accept": MANIFEST_TYPES} | {name.replace("_", "-"): value for name, value in headers.items()}
    started = time.monotonic()
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        content = response.read()
        return Answer(response.status, response.headers, content, time.monotonic() - started)
    finally:
        connection.close()


def expect_status(answer, *allowed):
    expect(answer.status in allowed, f"expected {' or '.join(map(str, allowed))}, got {answer}")


def basic(username, password):
    """The Basic credential of a login (RFC 7617), without the scheme."""
    return base64.b64encode(f"{username}:{password}".encode()).decode()
