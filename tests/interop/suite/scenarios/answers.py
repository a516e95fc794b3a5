"""Single answers that clients and operators rely on, and that a pull alone does not show."""

import socket
import time

from .. import wire
from ..clients import Skopeo, copy_between_registries
from ..edge import upstream
from ..lab import scenario
from ..machine import CommandFailed, brief, expect
from ..origin import Origin, downloads

# a TLS record header, as the first bytes of a client that tries https on any port
_CLIENT_HELLO = bytes.fromhex("160301020001000001fc0303") + bytes(505)


@scenario("answers")
def answers(lab):
    image = lab.library["layers"]
    layer = image.layers()[0]
    size = lab.library.blob(layer).stat().st_size
    with lab.origin() as origin, lab.edge(origin) as edge:
        blob = f"{edge.path(origin.name, image.repository)}/blobs/{layer}"

        with lab.check("HEAD of a blob that is not cached: its size, without fetching it"):
            mark = origin.mark()
            answer = wire.ask(edge.port, "HEAD", blob)
            wire.expect_status(answer, 200)
            expect(answer.headers["Content-Length"] == str(size), f"{answer}, the blob has {size} bytes")
            expect(answer.headers["Docker-Content-Digest"] == layer, f"{answer}")
            asked = downloads(origin.requests(mark), image)
            expect(not asked, f"downloaded from the origin: {brief(asked)}")

        with lab.check("Cache-Status tells a miss from a hit"):
            first, second = wire.ask(edge.port, "GET", blob), wire.ask(edge.port, "GET", blob)
            expect("fwd=" in first.headers.get("Cache-Status", ""), f"the first: {dict(first.headers)}")
            expect("hit" in second.headers.get("Cache-Status", ""), f"the second: {dict(second.headers)}")
            expect(first.body == second.body == lab.library.blob(layer).read_bytes(), "another body than the origin's")

        with lab.check("a range of a cached blob is 206"):
            answer = wire.ask(edge.port, "GET", blob, Range="bytes=100-199")
            wire.expect_status(answer, 206)
            expect(answer.headers["Content-Range"] == f"bytes 100-199/{size}", f"{answer}")
            expect(answer.body == lab.library.blob(layer).read_bytes()[100:200], "other bytes than the origin's")

        with lab.check("writes are 405 UNSUPPORTED, and skopeo says so"):
            repository = edge.path(origin.name, image.repository)
            writes = (
                ("POST", f"{repository}/blobs/uploads/"),
                ("PUT", f"{repository}/manifests/latest"),
                ("DELETE", f"{repository}/manifests/{image.digest}"),
            )
            for method, path in writes:
                answer = wire.ask(edge.port, method, path, body=b"")
                wire.expect_status(answer, 405)
                expect(answer.error_codes == ["UNSUPPORTED"], f"{method} {path}: {answer}")
            _expect_push_refused(lab, origin, edge, image)

        with lab.check("a TLS handshake on a plain listener ends at once"):
            started = time.monotonic()
            with socket.create_connection(("127.0.0.1", edge.port), timeout=5) as client:
                client.sendall(_CLIENT_HELLO)
                while client.recv(4096):
                    pass
            seconds = time.monotonic() - started
            expect(seconds < 0.5, f"took {seconds:.1f} s")

        with lab.check("/livez, /readyz and /metrics answer"):
            for path in ("/livez", "/readyz", "/metrics"):
                wire.expect_status(wire.ask(edge.port, "GET", path), 200)
            expect(b"# TYPE " in wire.ask(edge.port, "GET", "/metrics").body, "no Prometheus text")


@scenario("one repository cannot read another's blob")
def borders(lab):
    """The bytes of a cached blob are shared; the right to read them is not."""
    image, other = lab.library["layers"], lab.library["umoci"]
    layer = image.layers()[0]
    with lab.origin() as origin, Origin(lab.workspace, lab.workspace.folder("empty")) as empty:
        parts = [upstream(origin.name, origin.url), upstream("empty.test", empty.url)]
        with lab.edge_of(parts) as edge, Skopeo(lab.workspace, edge) as client:
            client.pull(image)
            for name, repository in ((origin.name, other.repository), ("empty.test", image.repository)):
                with lab.check(f"{name}/{repository} does not answer for what {image.repository} holds"):
                    path = edge.path(name, repository)
                    wire.expect_status(wire.ask(edge.port, "GET", f"{path}/blobs/{layer}"), 404)
                    wire.expect_status(wire.ask(edge.port, "GET", f"{path}/manifests/{image.digest}"), 404)


@scenario("naming an upstream")
def naming(lab):
    image = lab.library["layers"]
    plain = f"/v2/{image.repository}/manifests/{image.tag}"
    with lab.origin() as origin, Origin(lab.workspace, lab.workspace.folder("empty")) as empty:
        aliased = upstream(origin.name, origin.url, aliases=["registry-mirror.test"])
        parts = [aliased, upstream("empty.test", empty.url)]
        with lab.edge_of(parts, default="empty.test") as edge:
            prefixed = f"{edge.path(origin.name, image.repository)}/manifests/{image.tag}"
            for how, path, headers in (
                ("ns", f"{plain}?ns={origin.name}", {}),
                ("a Host alias", plain, {"Host": "registry-mirror.test"}),
                ("a path prefix", prefixed, {}),
                ("both ns and a prefix", f"{prefixed}?ns={origin.name}", {}),
            ):
                with lab.check(f"by {how}"):
                    answer = wire.ask(edge.port, "GET", path, **headers)
                    wire.expect_status(answer, 200)
                    expect(answer.headers["Docker-Content-Digest"] == image.digest, f"{answer}")
            with lab.check("not at all: the default upstream, which has nothing here"):
                wire.expect_status(wire.ask(edge.port, "GET", plain), 404)
            with lab.check("an upstream that is not configured is never dialled"):
                started = time.monotonic()
                answer = wire.ask(edge.port, "GET", f"{plain}?ns=127.0.0.1:{origin.port}")
                expect(answer.status != 200, f"{answer}")
                expect(time.monotonic() - started < 1, f"{answer}")

    with lab.origin() as origin, lab.edge(origin) as inner:
        parts = [upstream(origin.name, f"http://{inner.location}", prefix=origin.name)]
        with lab.edge_of(parts) as outer, Skopeo(lab.workspace, outer) as client:
            with lab.check("an edge behind an edge, by its endpoint's prefix: cold, and with all behind it stopped"):
                expect(client.pull(image) >= image.blobs(), "something else arrived")
                inner.stop()
                origin.stop()
                expect(client.pull(image) >= image.blobs(), "something else arrived")


def _expect_push_refused(lab, origin, edge, image):
    try:
        names = f"{origin.location}/{image.reference}", f"{edge.prefix(origin.name)}/apps/new:latest"
        copy_between_registries(lab.workspace, *names)
    except CommandFailed as failure:
        expect("405" in failure.output or "unsupported" in failure.output.lower(), f"skopeo says: {failure.output}")
    else:
        expect(False, "skopeo pushed through the edge")
