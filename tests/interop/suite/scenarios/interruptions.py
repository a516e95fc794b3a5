"""Transfers that break: the edge is killed, the origin hangs up, a client leaves. No byte is fetched twice."""

import threading

from .. import wire
from ..clients import Skopeo
from ..images import LARGE_LAYER_SIZE
from ..lab import scenario
from ..link import Link
from ..machine import CommandFailed, expect, wait_until
from .crowd import RATE, Client, open_original

# what the promises allow the origin to have sent, as a share of the layer
_AFTER_A_KILL = 1.02
_AFTER_A_RESET = 1.01
_AFTER_A_LEAVER = 1.005
# manifest, config, headers and probes of one pull
_SMALL_CHANGE = 64 * 1024


@scenario("interruptions: the edge is killed half-way through a layer")
def killed_edge(lab):
    image = lab.library["large"]
    with lab.origin() as origin, Link(origin.port, RATE) as link:
        with lab.edge(origin, url=link.url) as edge, Skopeo(lab.workspace, edge) as client:
            with lab.check("the client's pull breaks with it") as figure:
                with _in_background(client, image) as first_pull:
                    wait_until(lambda: link.sent > LARGE_LAYER_SIZE / 2, "half of the layer was sent", 30)
                    edge.kill()
                expect(isinstance(first_pull.error, CommandFailed), "the client's pull ended as a success")
                figure(f"killed when the origin had sent {link.sent / LARGE_LAYER_SIZE:.1%} of it")
            edge.start()
            with lab.check("started again, the next pull completes with the right digest"):
                expect(client.pull(image) >= image.blobs(), "something else arrived")
            with lab.check(f"the origin sent at most {_AFTER_A_KILL}× the layer") as figure:
                _expect_share(link, _AFTER_A_KILL, figure)


@scenario("interruptions: the origin hangs up half-way through a layer")
def reset_origin(lab):
    image = lab.library["large"]
    with lab.origin() as origin, Link(origin.port, 3 * RATE) as link:
        with lab.edge(origin, url=link.url) as edge, Skopeo(lab.workspace, edge) as client:
            link.cut_at(LARGE_LAYER_SIZE // 2)
            with lab.check("the client's transfer completes without noticing"):
                expect(client.pull(image) >= image.blobs(), "something else arrived")
            with lab.check(f"the origin sent at most {_AFTER_A_RESET}× the layer") as figure:
                expect(link.was_cut, "the suite's own mistake: nothing was cut")
                _expect_share(link, _AFTER_A_RESET, figure)


@scenario("interruptions: the first of four clients leaves at 30 %")
def leaving_client(lab):
    image = lab.library["large"]
    layer = image.layers()[0]
    with lab.origin() as origin, Link(origin.port, 3 * RATE) as link, lab.edge(origin, url=link.url) as edge:
        repository = edge.path(origin.name, image.repository)
        wire.expect_status(wire.ask(edge.port, "GET", f"{repository}/manifests/latest"), 200)
        with open_original(lab, layer) as original:
            path = f"{repository}/blobs/{layer}"
            leaver = Client(edge.port, path, original, link, leave_at=int(0.3 * len(original)))
            others = [Client(edge.port, path, original, link) for _ in range(3)]
            leaver.start()
            wait_until(lambda: leaver.received, "the first client receives")
            for client in others:
                client.start()
            for client in (leaver, *others):
                client.join()
        with lab.check("the others get the whole layer, byte for byte"):
            expect(leaver.outcome == "left", f"the first: {leaver.outcome}")
            outcomes = [client.outcome for client in others]
            expect(outcomes == ["complete"] * 3, f"{outcomes}")
        with lab.check("the origin sent it once") as figure:
            _expect_share(link, _AFTER_A_LEAVER, figure)


class _in_background:
    """Pulls in a thread; leaving the block waits for its end, and `error` then says how it failed."""

    def __init__(self, client, image):
        self.error = None
        self._thread = threading.Thread(target=self._pull, args=(client, image), daemon=True)

    def _pull(self, client, image):
        try:
            client.pull(image)
        except Exception as error:
            self.error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join()


def _expect_share(link, allowed, figure):
    figure(f"{link.sent / LARGE_LAYER_SIZE:.4f}×")
    expect(link.sent <= allowed * LARGE_LAYER_SIZE + _SMALL_CHANGE, f"the origin sent {link.sent} bytes")
