"""Tags: long lists, tags that move, tags that are not there yet."""

import time

from .. import wire
from ..clients import Skopeo, copy_between_registries
from ..images import TAG_COUNT
from ..lab import scenario
from ..machine import expect, wait_until
from ..origin import Origin


@scenario("tags: a list of 2,000", for_any_cache=True)
def a_list_of_2000(lab):
    with lab.origin() as origin, lab.cache(origin) as edge, Skopeo(lab.workspace, edge) as client:
        held = sorted(wire.ask(origin.port, "GET", "/v2/apps/many-tags/tags/list").json["tags"])
        with lab.check("skopeo list-tags shows what the origin has"):
            listed = client.tags("apps/many-tags")
            expect(len(held) == TAG_COUNT, f"the origin has {len(held)} tags")
            # Debian's docker-registry lists tags as its file system does, in no order
            expect(sorted(listed) == held, f"{len(listed)} tags, the origin has {len(held)}")
        with lab.check("pages of 300, followed by Link, show the same"):
            path = f"{edge.path(origin.name, 'apps/many-tags')}/tags/list?n=300"
            expect(sorted(_pages(edge, path)) == held, "another list")
        origin.stop()
        with lab.check("skopeo list-tags shows the same with the origin stopped"):
            expect(sorted(client.tags("apps/many-tags")) == held, "another list than before")


@scenario("tags: push after a miss, and a tag that moves")
def pushed_and_moved(lab):
    storage = lab.workspace.folder("pushed")
    with Origin(lab.workspace, storage, writable=True) as origin:
        with lab.edge(origin, ttl="0s") as edge, Skopeo(lab.workspace, edge) as client:
            path = f"{edge.path(origin.name, 'apps/layers')}/manifests/latest"
            with lab.check("a tag that is not there is 404 MANIFEST_UNKNOWN or NAME_UNKNOWN"):
                answer = wire.ask(edge.port, "GET", path)
                wire.expect_status(answer, 404)
                expect(set(answer.error_codes) & {"MANIFEST_UNKNOWN", "NAME_UNKNOWN"}, f"{answer}")
            with lab.check("once pushed, it pulls within seconds") as figure:
                _push(lab, origin, lab.library["layers"])
                pushed = time.monotonic()
                wait_until(lambda: wire.ask(edge.port, "GET", path).status == 200, f"{path} is 200")
                figure(f"{time.monotonic() - pushed:.1f} s after the push")
                client.pull(lab.library["layers"])
            with lab.check("with a TTL of 0 a moved tag is followed at once"):
                _push(lab, origin, lab.library["umoci"], repository="apps/layers")
                answer = wire.ask(edge.port, "GET", path)
                wire.expect_status(answer, 200)
                expected = lab.library["umoci"].digest
                expect(answer.headers["Docker-Content-Digest"] == expected, f"{answer}, expected {expected}")


def _push(lab, target, image, repository=None):
    with lab.origin() as source:
        names = f"{source.location}/{image.reference}", f"{target.location}/{repository or image.repository}:latest"
        copy_between_registries(lab.workspace, *names)


def _pages(edge, path):
    while path:
        answer = wire.ask(edge.port, "GET", path)
        wire.expect_status(answer, 200)
        yield from answer.json["tags"]
        link = answer.headers["Link"]
        path = link[link.index("<") + 1 : link.index(">")] if link else None
