"""Podman's partial pull: of a zstd:chunked layer, only the files that its store does not have, by many ranges at once."""

from ..clients import PodmanPartial, Skopeo
from ..lab import scenario
from ..link import Link
from ..machine import expect
from ..plain import PlainRegistry

_RATE = 1_000_000_000
# headers, and the manifest that the edge keeps by its digest
_SMALL_CHANGE = 16 * 1024
# what a layer may cost in all, as a share of its size: a transfer that stops where another began has a little on its way
_ALLOWED = 1.02


@scenario("partial pulls")
def partial_pulls(lab):
    first, second = lab.library["chunked"], lab.library["chunked-next"]
    whole = sum(lab.library.size(digest) for digest in second.layers())

    with lab.origin() as origin, Link(origin.port, _RATE) as link:
        straight = PlainRegistry(f"127.0.0.1:{link.port}")
        expected, straight_cost = _pull_both(lab, straight, link, first, second)
    with lab.check("straight from the origin, Podman fetches of a changed layer what has changed") as figure:
        figure(f"{straight_cost} of {whole} bytes")
        expect(straight_cost < whole / 2, f"{straight_cost} of {whole} bytes: the suite's own mistake, it is not partial")

    with lab.origin() as origin, Link(origin.port, _RATE) as link, lab.edge(origin, url=link.url) as edge:
        files, cost = _pull_both(lab, edge, link, first, second)
        with lab.check("through the edge, the image has the same files"):
            expect(files == expected, f"{len(files - expected)} that are not the origin's")
        with lab.check("and costs the origin no more") as figure:
            figure(f"{cost} bytes, straight {straight_cost}")
            expect(cost <= straight_cost + _SMALL_CHANGE, f"{cost} bytes, straight from the origin {straight_cost}")
        with lab.check("skopeo then gets the whole layer, of which nothing is fetched twice") as figure:
            before = link.sent
            expect(Skopeo(lab.workspace, edge).pull(second) >= second.blobs(), "something else arrived")
            fetched = link.sent - before + cost
            figure(f"{fetched} of {whole} bytes in all")
            expect(fetched <= _ALLOWED * whole, f"{fetched} bytes of {whole}")


def _pull_both(lab, cache, link, first, second):
    """The files of the second image, pulled into a store that has the first, and what the link carried for it."""
    with PodmanPartial(lab.workspace, cache) as client:
        client.pull(first)
        before = link.sent
        files = client.pull(second)
        return files, link.sent - before
