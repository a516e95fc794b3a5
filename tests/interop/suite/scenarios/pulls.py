"""Every client pulls every kind of image: cold, warm, with the origin stopped, and after a restart of the edge."""

from ..clients import CLIENTS, Skopeo
from ..images import PLATFORM
from ..lab import scenario
from ..machine import brief, expect
from ..origin import downloads

# what the private origin is asked for: every kind of manifest
PRIVATE_KINDS = ("layers", "docker", "multi-arch", "artifact")
# these take seconds to unpack, so they skip the states whose promise another check holds as well
HEAVY_KINDS = ("sixty", "large")


def _register(client):
    @scenario(f"pulls: {client.label}", for_any_cache=True)
    def _plain(lab):
        with lab.origin() as origin, lab.cache(origin) as edge:
            pull_in_every_state(lab, origin, edge, client, client.kinds)

    @scenario(f"private pulls: {client.label}")
    def _private(lab):
        kinds = [kind for kind in client.kinds if kind in PRIVATE_KINDS]
        with lab.origin(private=True) as origin, lab.edge(origin) as edge:
            pull_in_every_state(lab, origin, edge, client, kinds)


for _client in CLIENTS:
    _register(_client)


def pull_in_every_state(lab, origin, edge, client_type, kinds):
    images = lab.library.images(*kinds)
    light = [image for image in images if image.kind not in HEAVY_KINDS]
    with client_type(lab.workspace, edge) as client:
        for image in images:
            with lab.check(f"cold · {image.kind}"):
                asked = downloads(pull(origin, client, image), image)
                twice = {digest: times for digest, times in asked.items() if times > 1}
                expect(not twice, f"downloaded more than once from the origin: {brief(twice)}")
                needless = asked.keys() - image.manifests() - image.blobs()
                expect(not needless, f"downloaded from the origin, but nobody asked: {brief(needless)}")
        for image in light:
            with lab.check(f"warm · {image.kind}"):
                # inside the tag's TTL not even a HEAD
                asked = pull(origin, client, image)
                expect(not asked, f"the origin was asked: {', '.join(map(str, asked))}")
        origin.stop()
        for image in images:
            with lab.check(f"origin stopped · {image.kind}"):
                pull(origin, client, image)
        edge.restart()
        for image in images if client_type is Skopeo else light:
            with lab.check(f"edge restarted, origin still stopped · {image.kind}"):
                pull(origin, client, image)


def pull(origin, client, image, platform=PLATFORM):
    """Pulls, compares what arrived with what the origin has, and returns what the origin was asked for."""
    mark = origin.mark()
    pulled = client.pull(image, platform)
    missing = (image.blobs(platform) | {image.manifest(platform)}) - pulled
    expect(not missing, f"did not arrive: {brief(missing)}; what did: {brief(pulled)}")
    foreign = pulled - image.blobs(platform) - image.manifests(platform)
    expect(not foreign, f"the origin does not have, or nobody asked for: {brief(foreign)}")
    return origin.requests(mark)
