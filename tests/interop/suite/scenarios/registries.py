"""The modes of registries.conf, as Podman and CRI-O know them: which names ask the mirror, and which must not."""

from ..clients import CriO, Podman
from ..lab import scenario
from ..machine import CommandFailed, expect

# mode → whether a tag and whether a digest is pulled through the mirror
_MODES = {"all": (True, True), "digest-only": (False, True), "tag-only": (True, False)}


@scenario("registries.conf: what asks the mirror")
def modes(lab):
    tagged, by_digest = lab.library["layers"], lab.library["umoci"]
    for client_type in (Podman, CriO):
        for mode, (tags, digests) in _MODES.items():
            # an edge of its own: what is asked of it, it has to ask of the origin
            with lab.origin() as origin, lab.edge(origin) as edge, client_type(lab.workspace, edge) as client:
                printed = edge.client_files(client.configured_as, origin.name, f"--pull-from-mirror={mode}")
                lines = "\n".join(printed.values())
                names = {
                    f"{origin.name}/{tagged.reference}": (tagged, tags),
                    f"{origin.name}/{by_digest.repository}@{by_digest.digest}": (by_digest, digests),
                }
                for name, (image, mirrored) in names.items():
                    what = "digest" if "@" in name else "tag"
                    with lab.check(f"{client.label}, {mode}: a {what} is {'' if mirrored else 'not '}asked of the edge"):
                        _expect_pull(origin, client, name, lines, image if mirrored else None)


@scenario("registries.conf: short and blocked names")
def names(lab):
    image = lab.library["layers"]
    for client_type in (Podman, CriO):
        with lab.origin() as origin, lab.edge(origin) as edge, client_type(lab.workspace, edge) as client:
            mirror = "\n".join(edge.client_files(client.configured_as, origin.name).values())
            name = f"{origin.name}/{image.reference}"
            with lab.check(f"{client.label}: a blocked edge is not asked"):
                blocked = f'{mirror}\n[[registry]]\nlocation = "{edge.location}"\nblocked = true\n'
                _expect_pull(origin, client, name, blocked, None)
            # the library looks at `blocked` only for the host that it is about to ask
            with lab.check(f"{client.label}: a registry that is blocked itself is still pulled through the edge"):
                blocked = mirror.replace("[[registry.mirror]]", "blocked = true\n[[registry.mirror]]")
                _expect_pull(origin, client, name, blocked, image)
            with lab.check(f"{client.label}: a short name is searched through the edge"):
                searched = f'unqualified-search-registries = ["{origin.name}"]\n{mirror}'
                _expect_pull(origin, client, image.reference, searched, image)


def _expect_pull(origin, client, name, registries_conf, image):
    """`name` pulls `image` through the edge; for None, it fails, and nothing has reached the origin."""
    mark = origin.mark()
    try:
        manifests = client.pull_as(name, registries_conf)
    except CommandFailed:
        if image:
            raise
        asked = origin.requests(mark)
        expect(not asked, f"the origin was asked: {', '.join(map(str, asked))}")
    else:
        expect(image, f"{name} was pulled")
        expect(image.digest in manifests, f"{manifests}, the origin has {image.digest}")
