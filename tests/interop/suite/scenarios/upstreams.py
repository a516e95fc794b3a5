"""Every kind of registry behind one edge: all pull, and none gets a credential that is not its own."""

import json
import re
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

from .. import wire
from ..clients import Containerd, Skopeo
from ..door import Door, Nginx, TokenService, make_certificate, signed_path
from ..edge import upstream
from ..images import LARGE_LAYER_SIZE
from ..lab import scenario
from ..link import Link
from ..machine import expect
from ..origin import PASSWORD, USERNAME

_REFRESH_TOKEN = "refresh-token-of-the-operator-0815"
_PROXY_PASSWORD = "proxy-password-0815"
_SIGNING_SECRET = "storage-signature-0815"
# a signature lives shorter than the transfer that it begins
_SIGNATURE_LIFETIME = 1
_STORAGE_RATE = 150 << 20
_BLOB = re.compile(r"^/v2/.+/blobs/sha256:([0-9a-f]{64})$")


@scenario("upstreams: every kind of registry behind one edge")
def every_kind(lab):
    with ExitStack() as stack:
        kinds = _registries(lab, stack)
        parts = [part for _, part, _, _ in kinds]
        edge = stack.enter_context(lab.edge_of(parts, default="edge.test", log_level="trace"))
        for name, _, kind, _ in kinds:
            image = lab.library[kind]
            for client_class in (Skopeo, Containerd):
                with lab.check(f"{name}: {client_class.label} pulls {kind}") as figure:
                    with client_class(lab.workspace, edge, name) as client:
                        started = time.monotonic()
                        client.pull(image)
                        figure(f"{time.monotonic() - started:.2f} s")
        edge.stop()
        with lab.check("no registry, storage or log has seen a credential that is not its own") as figure:
            secrets = _secrets(kinds)
            places = {name: (own, heads()) for name, _, _, (own, heads) in kinds}
            places["the log"] = (set(), edge.log.read_text(errors="replace"))
            for place, (own, text) in places.items():
                for secret in secrets - own:
                    expect(secret not in text, f"{secret!r} has come to {place}")
            figure(f"{len(secrets)} secrets searched in {len(places)} places")


def _secrets(kinds):
    return set().union(*(own for _, _, _, (own, _) in kinds))


def _registries(lab, stack):
    """(name, configuration, image, (its own secrets, what it has received)) of each."""
    return [
        _behind_htpasswd(lab, stack),
        _with_tokens(lab, stack),
        _over_tls(lab, stack),
        _another_edge(lab, stack),
        _redirecting(lab, stack),
        _without_keep_alive(lab, stack),
        _rate_limited(lab, stack),
    ]


def _behind_htpasswd(lab, stack):
    origin = stack.enter_context(lab.origin(private=True))
    door = stack.enter_context(Door(origin.port))
    helper = _helper(lab, "htpasswd", USERNAME, PASSWORD)
    part = f'[upstreams."htpasswd.test"]\nurl = "{door.url}"\ncredential_helper = {json.dumps(str(helper))}\n'
    basic = wire.basic(USERNAME, PASSWORD)
    return "htpasswd.test", part, "layers", ({PASSWORD, basic}, lambda: _heads(door))


def _with_tokens(lab, stack):
    service = TokenService(lab.workspace, _REFRESH_TOKEN)
    tokens = stack.enter_context(service.door)
    origin = stack.enter_context(lab.origin(extra=service.settings))
    door = stack.enter_context(Door(origin.port))
    helper = _helper(lab, "token", "<token>", _REFRESH_TOKEN)
    part = f'[upstreams."token.test"]\nurl = "{door.url}"\ncredential_helper = {json.dumps(str(helper))}\n'

    def heads():
        expect(_REFRESH_TOKEN in _heads(tokens), "the token service was never given its refresh token")
        expect(_REFRESH_TOKEN not in _heads(door), "the registry has got what is the token service's")
        expect(len(service.secrets) > 1, "no refresh token was rotated")
        return _heads(door)

    return "token.test", part, "umoci", ({_REFRESH_TOKEN}, heads)


def _over_tls(lab, stack):
    folder = lab.workspace.folder("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    authority = folder / "ca-key.pem", folder / "ca.pem"
    make_certificate(lab.workspace, *authority, "a private authority")
    make_certificate(lab.workspace, key, certificate, "localhost", authority)
    settings = f"  tls: {{certificate: {certificate}, key: {key}}}\n"
    origin = stack.enter_context(lab.origin(extra=settings))
    url = f"https://localhost:{origin.port}"
    part = f'[upstreams."tls.test"]\nurl = "{url}"\nca_file = "{authority[1]}"\n'
    return "tls.test", part, "docker", (set(), lambda: "")


def _another_edge(lab, stack):
    origin = stack.enter_context(lab.origin())
    other = stack.enter_context(lab.edge(origin))
    door = stack.enter_context(Door(other.port))
    part = f'[upstreams."edge.test"]\nurl = "{door.url}"\n'

    def heads():
        expect("via:" in _heads(door).lower(), "the first edge does not name itself in Via")
        return _heads(door)

    return "edge.test", part, "multi-arch", (set(), heads)


def _redirecting(lab, stack):
    """Blobs are in a storage that wants a fresh signature, and that breaks off half-way through the large one."""
    storage = Nginx(
        lab.workspace,
        "    secure_link $arg_md5,$arg_expires;\n"
        f'    secure_link_md5 "$secure_link_expires$uri {_SIGNING_SECRET}";\n'
        '    if ($secure_link = "") { return 403; }\n    if ($secure_link = "0") { return 403; }\n'
        f"    root {lab.library.storage};\n",
    )
    stack.enter_context(storage)
    link = stack.enter_context(Link(storage.port, _STORAGE_RATE))
    link.cut_at(LARGE_LAYER_SIZE // 2)
    origin = stack.enter_context(lab.origin(private=True))

    def redirect(handler):
        blob = _BLOB.match(urlsplit(handler.path).path)
        # without a login there is nothing to be had
        if not blob or handler.command != "GET" or "Authorization" not in handler.headers:
            return False
        path = f"/docker/registry/v2/blobs/sha256/{blob[1][:2]}/{blob[1]}/data"
        handler.reply(307, Location=link.url + signed_path(path, _SIGNING_SECRET, _SIGNATURE_LIFETIME))
        return True

    door = stack.enter_context(Door(origin.port, answer=redirect))
    part = upstream("redirect.test", door.url, (USERNAME, PASSWORD))

    def heads():
        expect(link.was_cut, "the suite's own mistake: nothing was cut")
        log = storage.access_log.read_text()
        expect(" 206 " in log, f"no transfer was resumed at its byte: {log}")
        strangers = [line for line in log.splitlines() if not line.endswith("authorization=- via=-")]
        expect(not strangers, f"the storage was told who asks: {strangers[:1]}")
        return log

    # what the storage has seen must hold no secret at all
    return "redirect.test", part, "large", (set(), heads)


def _without_keep_alive(lab, stack):
    origin = stack.enter_context(lab.origin())
    front = Nginx(
        lab.workspace,
        "    keepalive_timeout 0;\n"
        f"    location / {{ proxy_pass http://127.0.0.1:{origin.port}; proxy_set_header Host $http_host; }}\n",
    )
    stack.enter_context(front)
    part = f'[upstreams."closing.test"]\nurl = "{front.url}"\n'
    return "closing.test", part, "zstd", (set(), front.access_log.read_text)


def _rate_limited(lab, stack):
    """Counts manifests, says how many are left, and refuses once none is."""
    origin = stack.enter_context(lab.origin())
    used = []

    def limit(handler):
        if handler.command == "GET" and "/manifests/" in handler.path:
            used.append(handler.path)
        if len(used) <= 100:
            return False
        handler.reply(429, Retry_After="5")
        return True

    def left(_):
        return {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": f"{max(0, 100 - len(used))};w=21600"}

    door = stack.enter_context(Door(origin.port, answer=limit, headers=left))
    part = f'[upstreams."limited.test"]\nurl = "{door.url}"\n'
    return "limited.test", part, "sixty", (set(), lambda: _heads(door))


@scenario("upstreams: a quota that runs out")
def quota(lab):
    image = lab.library["layers"]
    remaining = [100]

    def left(_):
        return {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": f"{remaining[0]};w=21600"}

    with lab.origin() as origin, Door(origin.port, headers=left) as door:
        part = upstream(origin.name, door.url)
        with lab.edge_of([part], ttl="0s") as edge, Skopeo(lab.workspace, edge, origin.name) as client:
            remaining[0] = 5
            client.pull(image)
            with lab.check("what is cached pulls without a request to the upstream") as figure:
                before = len(door.requests)
                client.pull(image)
                figure(f"{len(door.requests) - before} requests")
                expect(len(door.requests) == before, f"{door.requests[before:]}")
            with lab.check("what is not still pulls"):
                client.pull(lab.library["umoci"])


@scenario("upstreams: a proxy on the way")
def proxy(lab):
    image = lab.library["layers"]
    with lab.origin() as origin, Door(origin.port) as proxy:
        url = f"http://edge:{_PROXY_PASSWORD}@127.0.0.1:{proxy.port}"
        fetch = f'[fetch]\nproxy = "{url}"\n'
        # a name that resolves nowhere: only the proxy leads there
        part = upstream(origin.name, "http://registry.interop.test")
        with lab.edge_of([fetch, part], log_level="trace") as edge, Skopeo(lab.workspace, edge, origin.name) as client:
            with lab.check("the image pulls through it"):
                client.pull(image)
                paths = [path for _, path, _ in proxy.requests]
                expect(all(path.startswith("http://registry.interop.test/v2/") for path in paths), f"{paths}")
            edge.stop()
            with lab.check("its password is not in the log"):
                log = edge.log.read_text(errors="replace")
                for form in (_PROXY_PASSWORD, wire.basic("edge", _PROXY_PASSWORD)):
                    expect(form not in log, f"{form} is in the log")


def _helper(lab, name, username, secret):
    """A credential helper that knows this login."""
    program = lab.workspace.folder("helper") / f"docker-credential-{name}"
    answer = json.dumps({"ServerURL": name, "Username": username, "Secret": secret})
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    program.chmod(0o755)
    return program


def _heads(door):
    return "\n".join(f"{method} {path}\n{head}" for method, path, head in door.requests)
