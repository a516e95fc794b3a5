"""Every client pulls every kind of image: cold, warm, with the origin stopped, and after a restart of the edge.

What a client cannot pull at all is its own limit, and is shown to be: it fails against the plain origin, too.
"""

from ..clients import CLIENTS, Skopeo
from ..foreign import ForeignHost
from ..images import PLATFORM
from ..lab import scenario
from ..machine import CommandFailed, brief, expect
from ..origin import downloads, excess

# what the private origin is asked for: every kind of manifest
PRIVATE_KINDS = ("layers", "docker", "multi-arch", "artifact")
# what may leave the origin, as a share of a blob: of a range that ends where another began, a little is on its way
_ALLOWED = 1.02


def _register(client):
    @scenario(f"pulls: {client.label}", for_any_cache=True)
    def _plain(lab):
        lab.matrix.expect(client)
        origin = lab.origin(name=client.upstream_name)
        with origin, lab.cache(origin) as edge, ForeignHost(lab.library):
            pull_in_every_state(lab, origin, edge, client, client.kinds)

    @scenario(f"private pulls: {client.label}")
    def _private(lab):
        kinds = [kind for kind in client.kinds if kind in PRIVATE_KINDS and kind not in client.limits]
        with lab.origin(name=client.upstream_name, private=True) as origin, lab.edge(origin) as edge:
            pull_in_every_state(lab, origin, edge, client, kinds)


for _client in CLIENTS:
    _register(_client)


def pull_in_every_state(lab, origin, edge, client_type, kinds):
    limited = lab.library.images(*(kind for kind in kinds if kind in client_type.limits))
    images = lab.library.images(*(kind for kind in kinds if kind not in client_type.limits))
    with client_type(lab.workspace, edge) as client:
        for image in images:
            with _cell(lab, client_type, image, "cold"):
                asked = pull(origin, client, image)
                too_much = excess(asked, image, _ALLOWED)
                expect(not too_much, f"downloaded more than once from the origin: {too_much}")
                needless = downloads(asked, image).keys() - client.reads(image)
                expect(not needless, f"downloaded from the origin, but nobody asked: {brief(needless)}")
        for image in images:
            with _cell(lab, client_type, image, "warm"):
                # inside the tag's TTL not even a HEAD
                asked = pull(origin, client, image)
                expect(not asked, f"the origin was asked: {', '.join(map(str, asked))}")
        if limited:
            _show_limits(lab, origin, client, limited)
        origin.stop()
        for image in images:
            with _cell(lab, client_type, image, "origin stopped"):
                pull(origin, client, image)
        edge.restart()
        # what the edge has kept does not depend on who asks: the first client stands for all
        for image in images if client_type is Skopeo else images[:1]:
            with lab.check(f"edge restarted, origin still stopped · {image.kind}"):
                pull(origin, client, image)


def pull(origin, client, image, platform=PLATFORM):
    """Pulls, compares what arrived with what the origin has, and returns what the origin was asked for."""
    mark = origin.mark()
    pulled = client.pull(image, platform)
    missing = (image.blobs(platform) | {image.manifest(platform)}) - pulled
    expect(not missing, f"did not arrive: {brief(missing)}; what did: {brief(pulled)}")
    strange = pulled - client.reads(image, platform)
    expect(not strange, f"the origin does not have, or nobody asked for: {brief(strange)}")
    return origin.requests(mark)


class _cell:
    """A check that, when it holds, is in the matrix."""

    def __init__(self, lab, client_type, image, state):
        self._check = lab.check(f"{state} · {image.kind}")
        self._hold = lambda: lab.matrix.holds(client_type, image.kind, state)

    def __enter__(self):
        return self._check.__enter__()

    def __exit__(self, kind, *error):
        if kind is None:
            self._hold()
        return self._check.__exit__(kind, *error)


def _show_limits(lab, origin, client, images):
    """The same client in front of the plain origin, where it has to fail as well."""
    with type(client)(lab.workspace, origin) as direct:
        for image in images:
            with lab.check(f"not a kind that it pulls, from the origin neither · {image.kind}") as figure:
                figure(client.limits[image.kind])
                _expect_failure(direct, image, "the plain origin")
                _expect_failure(client, image, "the edge")
                lab.matrix.is_limited(type(client), image.kind)


def _expect_failure(client, image, where):
    try:
        pulled = client.pull(image)
    except CommandFailed:
        return
    missing = image.blobs() - pulled
    expect(missing, f"from {where} it pulls it")
