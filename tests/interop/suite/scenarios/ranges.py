"""Eight clients ask at once for eight parts of one cold layer of 600 MB, each with an open-ended range.

That is how containerd's parallel fetch and download accelerators read: each client drops its connection once it
has its own part. Filled naively, eight such ranges fetch eight tails.
"""

import threading

from .. import wire
from ..lab import scenario
from ..link import Link
from ..machine import expect
from .crowd import RATE, Client, open_original

PARTS = 8
ORIGIN_SHARE = 1.02


@scenario("ranges")
def ranges(lab):
    with lab.origin() as origin, Link(origin.port, RATE) as link, lab.edge(origin, url=link.url) as edge:
        layer = lab.library["large"].layers()[0]
        repository = edge.path(origin.name, lab.library["large"].repository)
        wire.expect_status(wire.ask(edge.port, "GET", f"{repository}/manifests/latest"), 200)
        before = link.sent
        with open_original(lab, layer) as original:
            clients = _read_in_parts(edge.port, f"{repository}/blobs/{layer}", original, link)
            with lab.check(f"{PARTS} clients at {PARTS} offsets get their parts, byte for byte"):
                broken = [client.outcome for client in clients if client.outcome not in ("left", "complete")]
                expect(not broken, f"{len(broken)} did not: {broken[:3]}")
            # the fill ends on its own, since most of the layer is there
            whole = Client(edge.port, f"{repository}/blobs/{layer}", original, link)
            whole.start()
            whole.join()
            with lab.check("the whole layer is right afterwards"):
                expect(whole.outcome == "complete", whole.outcome)
            share = (link.sent - before) / len(original)
            with lab.check(f"the origin sends at most {ORIGIN_SHARE}× of the layer") as figure:
                figure(f"{share:.4f}×")
                expect(share <= ORIGIN_SHARE, f"the origin sent {link.sent - before} bytes")


def _read_in_parts(port, path, original, link):
    part = len(original) // PARTS
    start = threading.Barrier(PARTS, timeout=30)
    offsets = [index * part for index in range(PARTS)]
    clients = [Client(port, path, original, link, 0, start, offset + part, offset) for offset in offsets]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return clients
