"""One cold layer of 600 MB, read by eight at once, each with open-ended ranges.

Once in eight parts, as download accelerators read, and once in parts of 4 MiB, of which each reader takes the next,
as containerd's parallel fetch does. Each drops its connection once it has its part: filled naively, every such range
fetches a tail.
"""

from concurrent.futures import ThreadPoolExecutor

from .. import wire
from ..images import MIB
from ..lab import scenario
from ..link import Link
from ..machine import expect
from .crowd import RATE, Client, open_original

READERS = 8
SMALL_PART = 4 * MIB
ORIGIN_SHARE = 1.02


@scenario("ranges in eight parts")
def eight_parts(lab):
    _read_in_parts(lab, lambda size: -(-size // READERS), RATE)


@scenario("ranges of 4 MiB")
def small_parts(lab):
    _read_in_parts(lab, lambda size: SMALL_PART, RATE)


def _read_in_parts(lab, part_of, rate):
    with lab.origin() as origin, Link(origin.port, rate) as link, lab.edge(origin, url=link.url) as edge:
        layer = lab.library["large"].layers()[0]
        repository = edge.path(origin.name, lab.library["large"].repository)
        wire.expect_status(wire.ask(edge.port, "GET", f"{repository}/manifests/latest"), 200)
        before = link.sent
        path = f"{repository}/blobs/{layer}"
        with open_original(lab, layer) as original:
            size = len(original)
            part = part_of(size)
            with lab.check(f"{READERS} readers get their parts of {part} bytes, byte for byte"):
                broken = _readers(range(0, size, part), lambda at: _part(edge.port, path, original, link, at, part))
                expect(not broken, f"{len(broken)} did not: {broken[:3]}")
            # the fill ends on its own, since most of the layer is there
            whole = Client(edge.port, path, original, link)
            whole.run()
            with lab.check("the whole layer is right afterwards"):
                expect(whole.outcome == "complete", whole.outcome)
            share = (link.sent - before) / size
            with lab.check(f"the origin sends at most {ORIGIN_SHARE}× of the layer") as figure:
                figure(f"{share:.4f}×")
                expect(share <= ORIGIN_SHARE, f"the origin sent {link.sent - before} bytes")


def _part(port, path, original, link, at, part):
    client = Client(port, path, original, link, leave_at=min(at + part, len(original)), first=at)
    client.run()
    return client.outcome


def _readers(offsets, read):
    """What went wrong, with READERS at once that take one offset after the other."""
    with ThreadPoolExecutor(READERS) as readers:
        return [outcome for outcome in readers.map(read, offsets) if outcome not in ("left", "complete")]
