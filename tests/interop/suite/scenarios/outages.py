"""The origin is down: what is cached pulls, what is not is refused fast, and nothing is denied that may exist."""

import time

from .. import wire
from ..clients import Skopeo
from ..lab import scenario
from ..machine import CommandFailed, expect, wait_until

# the origin refuses connections: the edge knows at once
_SOON = 2.0


@scenario("outages")
def outages(lab):
    cached, uncached = lab.library["layers"], lab.library["umoci"]
    with lab.origin() as origin, lab.edge(origin, ttl="0s") as edge, Skopeo(lab.workspace, edge) as client:
        client.pull(cached)
        origin.stop()

        with lab.check("a cached tag pulls although its TTL is over") as figure:
            started = time.monotonic()
            client.pull(cached)
            figure(f"skopeo needed {time.monotonic() - started:.2f} s")

        repository = edge.path(origin.name, uncached.repository)
        unknown = {
            "tag": f"{repository}/manifests/latest",
            "manifest digest": f"{repository}/manifests/{uncached.digest}",
            "blob": f"{repository}/blobs/{uncached.layers()[0]}",
            "tags list": f"{repository}/tags/list",
        }
        for what, path in unknown.items():
            with lab.check(f"an uncached {what} is refused within {_SOON:g} s, and not as 404") as figure:
                answer = wire.ask(edge.port, "GET", path)
                wire.expect_status(answer, 502)
                expect(answer.error_codes == ["UNAVAILABLE"], f"{answer}")
                expect(answer.seconds < _SOON, f"{answer}")
                wire.expect_status(wire.ask(edge.port, "HEAD", path), 502)
                figure(f"answered in {answer.seconds * 1000:.0f} ms")

        with lab.check("skopeo gives up on an uncached image soon"):
            started = time.monotonic()
            try:
                client.pull(uncached)
            except CommandFailed:
                pass
            else:
                expect(False, "skopeo pulled what is nowhere")
            expect(time.monotonic() - started < _SOON, f"skopeo needed {time.monotonic() - started:.1f} s")

        origin.start()
        with lab.check("the origin is back: the uncached image pulls within seconds") as figure:
            started = time.monotonic()
            wait_until(lambda: wire.ask(edge.port, "GET", unknown["tag"]).status == 200, "its tag is 200", 15)
            figure(f"{time.monotonic() - started:.1f} s")
            client.pull(uncached)
