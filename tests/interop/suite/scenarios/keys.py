"""Keys: each client pulls with one what it names, and a revoked one ends on every edge that shares the database."""

import shutil
import time

from .. import wire
from ..clients import Containerd, Crane, DockerByPath, Oras, Podman, Skopeo, SkopeoMirror, expect_refused
from ..database import Postgres
from ..edge import upstream
from ..lab import scenario
from ..machine import CommandFailed, expect, wait_until

_CLIENTS = (Skopeo, SkopeoMirror, Podman, Containerd, Crane, Oras, DockerByPath)
_AUTH = "\n[auth]\nanonymous = false\n"


@scenario("keys")
def keys(lab):
    allowed, other = lab.library["docker"], lab.library["layers"]
    with lab.origin(private=True) as origin:
        part = upstream(origin.name, origin.url, origin.credential) + _AUTH
        with lab.edge_of([part], default=origin.name, log_level="trace") as edge:
            key = edge.keys("create", "--name=interop", f"--scope={origin.name}/{allowed.repository}")
            for kind in _CLIENTS:
                _pulls_of(lab, edge, kind, key, allowed, other)
            _logins(lab, edge, key)
            with lab.check("nothing writes upstream, whatever the edge is asked"):
                since = origin.mark()
                _ask_to_write(edge, origin, allowed, key)
                methods = {request.method for request in origin.requests(since)}
                expect(methods <= {"GET", "HEAD"}, f"the origin was asked to {methods}")
            with lab.check("no secret of a key is in a log at level trace"):
                expect(key["secret"] not in edge.log.read_text(errors="replace"), "it is")


@scenario("keys of two edges")
def keys_of_two_edges(lab):
    image = lab.library["docker"]
    with lab.origin(private=True) as origin, Postgres(lab.workspace) as database:
        shared = f'\n[database]\nurl = "{database.url}"\n'
        part = upstream(origin.name, origin.url, origin.credential) + _AUTH + shared
        with lab.edge_of([part], default=origin.name) as first:
            second = lab.edge_of([part], default=origin.name)
            second.state.mkdir(parents=True, mode=0o700)
            shutil.copy(first.state / "secret", second.state / "secret")
            with second:
                _share(lab, origin, database, first, second, image)


def _share(lab, origin, database, first, second, image):
    path = f"{first.path(origin.name, image.repository)}/manifests/{image.digest}"
    key, kept = (first.keys("create", f"--name={name}", f"--scope={origin.name}/**") for name in ("ends", "stays"))

    with lab.check("a key that one edge has made pulls through the other, and so does a token"):
        for edge in (first, second):
            wire.expect_status(_ask(edge, path, key), 200)
            wire.expect_status(_ask(edge, path, kept), 200)
        token = _token(first, origin, image, key)
        # an edge that has made a signing key of its own learns the other's within a minute
        wait_until(lambda: _with_token(second, path, token).status == 200, "the token is taken", 90)

    with lab.check("a revoked key ends at once on both, with its token") as figure:
        began = time.monotonic()
        first.keys("revoke", key["id"])
        seconds = time.monotonic() - began
        for edge in (first, second):
            wire.expect_status(_ask(edge, path, key), 401)
            wire.expect_status(_with_token(edge, path, token), 401)
            wire.expect_status(_ask(edge, path, kept), 200)
        figure(f"the command took {seconds:.1f} s, and both edges knew")

    with lab.check("with the database gone, who is known goes on pulling, and nobody new comes in"):
        stranger = first.keys("create", "--name=stranger", f"--scope={origin.name}/**")
        database.kill()
        for edge in (first, second):
            wire.expect_status(_ask(edge, path, kept), 200)
            wire.expect_status(_ask(edge, path, stranger), 503)
            wire.expect_status(wire.ask(edge.port, "GET", "/livez"), 200)
        database.start()
        for edge in (first, second):
            wait_until(lambda edge=edge: _ask(edge, path, stranger).status == 200, "and then it does", 20)

    with lab.check("an edge that starts without the database serves once it is there"):
        database.kill()
        second.restart()
        wire.expect_status(_ask(second, path, kept), 503)
        database.start()
        wait_until(lambda: _ask(second, path, kept).status == 200, "the key is taken", 20)


def _pulls_of(lab, edge, kind, key, allowed, other):
    with lab.check(f"{kind.label}: pulls with the key what it names; not another image, nor without the key or with a wrong one"):
        with lab.workspace.logged_in(edge.location, "interop", key["secret"]):
            with kind(lab.workspace, edge) as client:
                expect(client.pull(allowed) >= allowed.blobs(), "not every blob")
            with kind(lab.workspace, edge) as client:
                expect_refused(client, other)
        wrong = key["secret"][:-1] + ("x" if key["secret"][-1] != "x" else "y")
        with lab.workspace.logged_in(edge.location, "interop", wrong), kind(lab.workspace, edge) as client:
            expect_refused(client, allowed)
        with kind(lab.workspace, edge) as client:
            expect_refused(client, allowed)


def _logins(lab, edge, key):
    logins = {
        "skopeo": ("skopeo", "login", "--tls-verify=false"),
        "Podman": ("podman", "login", "--tls-verify=false"),
        "oras": (lab.workspace.tool("oras"), "login", "--plain-http"),
        "crane": (lab.workspace.tool("crane"), "auth", "login"),
    }
    for name, command in logins.items():
        with lab.check(f"{name} logs in with the key, and not with a wrong one"):
            _log_in(lab, command, edge, key["secret"])
            if name == "crane":
                # it writes the login down and asks nobody
                continue
            try:
                _log_in(lab, command, edge, "hunter2")
            except CommandFailed:
                continue
            expect(False, "a wrong password logs in")
    with lab.check("Docker logs in with the key, and not with a wrong one"):
        with DockerByPath(lab.workspace, edge) as docker:
            docker.log_in("interop", key["secret"])
            try:
                docker.log_in("interop", "hunter2")
            except CommandFailed:
                return
            expect(False, "a wrong password logs in")


def _log_in(lab, command, edge, password):
    home = lab.workspace.home()
    authfile = {"REGISTRY_AUTH_FILE": str(home / "auth.json")}
    lab.workspace.command(*command, "-u", "interop", "-p", password, edge.location, home=home, **authfile)


def _ask_to_write(edge, origin, image, key):
    base = edge.path(origin.name, image.repository)
    paths = [
        "/v2/", f"{base}/manifests/new", f"{base}/manifests/{image.digest}", f"{base}/blobs/uploads/",
        f"{base}/blobs/uploads/?mount={image.digest}&from={image.repository}", f"{base}/blobs/{image.digest}",
        f"{base}/tags/list", "/v2/_catalog", f"/token/{origin.name}",
    ]  # fmt: skip
    for path in paths:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            answer = _ask(edge, path, key, method, body=b"{}")
            allowed = (400,) if (method, path) == ("POST", f"/token/{origin.name}") else (405, 404, 400)
            wire.expect_status(answer, *allowed)


def _ask(edge, path, key, method="GET", **options):
    return wire.ask(edge.port, method, path, Authorization=f"Basic {wire.basic('interop', key['secret'])}", **options)


def _with_token(edge, path, token):
    return wire.ask(edge.port, "GET", path, Authorization=f"Bearer {token}")


def _token(edge, origin, image, key):
    path = f"/token/{origin.name}?service=clawhub-edge&scope=repository:{image.repository}:pull"
    answer = _ask(edge, path, key)
    wire.expect_status(answer, 200)
    return answer.json["token"]
