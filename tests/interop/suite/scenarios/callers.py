"""Where the origin judges its callers: each client pulls what its own login may pull, and nothing that others have pulled."""

from contextlib import contextmanager

from .. import wire
from ..clients import Containerd, Crane, DockerByPath, Oras, Podman, Skopeo, SkopeoMirror, expect_refused
from ..door import Accounts, Door
from ..edge import upstream
from ..lab import scenario
from ..machine import expect, wait_until

_ALICE, _BOB = ("alice", "sesame of alice"), ("bob", "sesame of bob")
_CLIENTS = (Skopeo, SkopeoMirror, Podman, Containerd, Crane, Oras, DockerByPath)
_AUTH = '[auth]\nverdict_ttl = "2s"\ndenial_ttl = "0s"\n'


@scenario("callers")
def callers(lab):
    private, public = lab.library["docker"], lab.library["layers"]
    service = Accounts(
        lab.workspace,
        dict([_ALICE, _BOB]),
        {"alice": {private.repository}, "bob": set(), None: {public.repository}},
    )
    with service.door, lab.origin(extra=service.settings) as origin, Door(origin.port) as door:
        part = upstream(origin.name, door.url, access="caller") + "\n" + _AUTH
        with lab.edge_of([part], default=origin.name, log_level="trace") as edge:
            for client in _CLIENTS:
                _pulls_of(lab, edge, client, private, public)
            _what_is_hot(lab, edge, origin, private)
            _when_a_right_ends(lab, edge, service, origin, private)
            _when_the_origin_is_down(lab, edge, service, origin, private)
            with lab.check("no password is in a log at level trace, and the origin has got none of the edge's tokens"):
                log = edge.log.read_text(errors="replace")
                for login in (_ALICE, _BOB):
                    expect(login[1] not in log and wire.basic(*login) not in log, f"the password of {login[0]}")
                heads = "".join(head for _, _, head in door.requests)
                expect("clawhub-edge" in heads and '"aud":"clawhub-edge"' not in heads, "an edge's token upstream")
                methods = {method for method, _, _ in door.requests}
                expect(methods <= {"GET", "HEAD"}, f"the origin was asked to {methods}")


@scenario("callers by htpasswd")
def callers_by_htpasswd(lab):
    image = lab.library["docker"]
    folder = lab.workspace.folder("accounts")
    accounts = folder / "htpasswd"

    def set_accounts(*logins):
        lines = (lab.workspace.command("htpasswd", "-Bbn", *login) for login in logins)
        accounts.write_text("".join(lines))

    set_accounts(_ALICE, _BOB)
    settings = f"auth:\n  htpasswd: {{realm: interop, path: {accounts}}}\n"
    with lab.origin(extra=settings) as origin:
        part = upstream(origin.name, origin.url, access="caller") + "\n" + _AUTH
        with lab.edge_of([part], default=origin.name) as edge:
            with lab.check("two users pull, a stranger and a wrong password do not"):
                for login in (_ALICE, _BOB):
                    with _pulling(lab, edge, Skopeo, login) as client:
                        expect(client.pull(image) >= image.blobs(), "not every blob")
                for login in (("carol", "sesame"), ("alice", _BOB[1]), None):
                    with _pulling(lab, edge, Skopeo, login) as client:
                        expect_refused(client, image)
            with lab.check("an account that ends upstream ends here within the TTL, and the others go on"):
                set_accounts(_BOB)
                path = f"{edge.path(origin.name, image.repository)}/manifests/{image.digest}"
                wait_until(lambda: _ask(edge, path, _ALICE).status == 401, "her access ends", 20)
                wire.expect_status(_ask(edge, path, _BOB), 200)


def _pulls_of(lab, edge, kind, private, public):
    with lab.check(f"{kind.label}: pulls with its own login, and not with another's or none") as figure:
        with _pulling(lab, edge, kind, _ALICE) as client:
            held = client.pull(private)
            expect(held >= private.blobs(), f"not every blob: {held}")
        for login in (_BOB, ("alice", _BOB[1]), None):
            with _pulling(lab, edge, kind, login) as client:
                expect_refused(client, private)
        with _pulling(lab, edge, kind, None) as client:
            expect(client.pull(public) >= public.blobs(), "not every blob of what is everybody's")
        figure("also what everybody may pull, without a login")


def _what_is_hot(lab, edge, origin, image):
    with lab.check("what is in the cache is hidden from whoever may not pull it, however it is asked for"):
        for path in _paths(edge, origin, image):
            wire.expect_status(_ask(edge, path, _ALICE), 200)
            for login in (_BOB, ("alice", _BOB[1]), None):
                for method in ("GET", "HEAD"):
                    wire.expect_status(_ask(edge, path, login, method), 401)
                wire.expect_status(_ask(edge, path, login, Range="bytes=0-0"), 401)


def _when_a_right_ends(lab, edge, service, origin, image):
    with lab.check("a right that is taken away upstream ends here within the TTL") as figure:
        path = f"{edge.path(origin.name, image.repository)}/manifests/{image.digest}"
        wire.expect_status(_ask(edge, path, _ALICE), 200)
        service.rights["alice"] = set()
        wait_until(lambda: _ask(edge, path, _ALICE).status == 401, "her access ends", 20)
        service.rights["alice"] = {image.repository}
        wait_until(lambda: _ask(edge, path, _ALICE).status == 200, "and begins again", 20)
        figure("verdict_ttl is 2 s")


def _when_the_origin_is_down(lab, edge, service, origin, image):
    with lab.check("with the origin down, who has pulled before goes on pulling, also after a restart, and nobody else"):
        with _pulling(lab, edge, Skopeo, _ALICE) as client:
            client.pull(image)
        origin.stop()
        for restart in (False, True):
            if restart:
                edge.restart()
            with _pulling(lab, edge, Skopeo, _ALICE) as client:
                expect(client.pull(image) >= image.blobs(), "not every blob")
            path = f"{edge.path(origin.name, image.repository)}/manifests/{image.digest}"
            wire.expect_status(_ask(edge, path, _BOB), 401, 502, 504)
            # once the origin's last word is older than verdict_ttl
            wait_until(lambda: _ask(edge, path, _ALICE).status == 200 and _is_graceful(edge), "the grace applies")
            log = edge.log.read_text(errors="replace")
            expect("within the grace" in log, "the log does not say so")
        origin.start()


def _is_graceful(edge):
    return 'verdict="grace"' in wire.ask(edge.port, "GET", "/metrics").body.decode()


@contextmanager
def _pulling(lab, edge, kind, login):
    """A client with this login for the edge, or none."""
    if login is None:
        with kind(lab.workspace, edge) as client:
            yield client
        return
    with lab.workspace.logged_in(edge.location, *login), kind(lab.workspace, edge) as client:
        yield client


def _paths(edge, origin, image):
    base = edge.path(origin.name, image.repository)
    blobs = (f"{base}/blobs/{digest}" for digest in sorted(image.blobs() - image.manifests()))
    return [f"{base}/manifests/{image.tag}", f"{base}/manifests/{image.digest}", f"{base}/tags/list", *blobs]


def _ask(edge, path, login, method="GET", **headers):
    if login:
        headers["Authorization"] = f"Basic {wire.basic(*login)}"
    return wire.ask(edge.port, method, path, **headers)
