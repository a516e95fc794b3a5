"""The front as clients meet it: TLS, HTTP/2 with and without it, a proxy that says whom it speaks for, a Unix socket.

And certificates that are renewed while everybody pulls: no connection is dropped, and new ones see the new one.
"""

import hashlib
import http.client
import json
import os
import socket
import ssl
import threading
import time

from .. import wire
from ..clients import Skopeo
from ..door import make_certificate
from ..lab import scenario
from ..machine import Process, expect, free_port, is_listening, wait_until

ROTATIONS = 6
READERS = 4


class Front:
    """Certificates, and the listeners of an edge that uses them."""

    def __init__(self, workspace):
        self.folder = workspace.folder("front")
        self.workspace = workspace
        self.authority = (self.folder / "ca.key", self.folder / "ca.crt")
        make_certificate(workspace, *self.authority, "Interop CA")
        self.files = (self.folder / "edge.key", self.folder / "edge.crt")
        make_certificate(workspace, *self.files, "edge-0", self.authority)
        self.tls, self.proxied, self.socket = free_port(), free_port(), self.folder / "edge.sock"

    @property
    def tables(self):
        return (
            f'[[listen]]\naddress = "127.0.0.1:{self.tls}"\nkey = "{self.files[0]}"\ncertificate = "{self.files[1]}"\n'
            f'[[listen]]\naddress = "127.0.0.1:{self.proxied}"\nproxy_protocol = "required"\n'
            'trusted_proxies = ["127.0.0.0/8"]\n'
            f'[[listen]]\naddress = "unix:{self.socket}"\n'
        )

    def renew(self, name):
        """Puts a new pair in place of the old one, as a renewal does."""
        new = (self.folder / "new.key", self.folder / "new.crt")
        make_certificate(self.workspace, *new, name, self.authority)
        for source, target in zip(new, self.files, strict=True):
            os.replace(source, target)

    def name_served(self):
        """The subject of the certificate that a new connection is shown."""
        context = ssl.create_default_context(cafile=self.authority[1])
        with (
            socket.create_connection(("127.0.0.1", self.tls), timeout=10) as connection,
            context.wrap_socket(connection, server_hostname="127.0.0.1") as secured,
        ):
            return dict(pair[0] for pair in secured.getpeercert()["subject"])["commonName"]


@scenario("listeners: TLS, HTTP/2, PROXY and a Unix socket")
def every_listener(lab):
    front = Front(lab.workspace)
    with lab.origin() as origin, lab.edge(origin, listeners=front.tables) as edge:
        image = lab.library["layers"]
        with lab.check("skopeo pulls by TLS"):
            target = lab.workspace.folder("by-tls")
            certificates = front.folder / "skopeo"
            certificates.mkdir()
            (certificates / "ca.crt").write_bytes(front.authority[1].read_bytes())
            lab.workspace.command(
                "skopeo", "copy", "--quiet", f"--src-cert-dir={certificates}",
                f"docker://127.0.0.1:{front.tls}/{origin.name}/{image.repository}:latest", f"dir:{target}",
            )  # fmt: skip
            expect(_requests(edge, tls="TLSv1.3"), "no request of it is logged as one by TLS 1.3")
        layer = image.layers()[0]
        path = f"/v2/{origin.name}/{image.repository}/blobs/{layer}"
        for how, url, options in [
            ("HTTP/2 over TLS", f"https://127.0.0.1:{front.tls}", ["--http2", "--cacert", front.authority[1]]),
            ("HTTP/2 without TLS", f"http://{edge.location}", ["--http2-prior-knowledge"]),
            ("a Unix socket", "http://edge", ["--unix-socket", front.socket]),
        ]:
            with lab.check(f"curl pulls a layer by {how}") as figure:
                target = lab.workspace.folder("by-curl") / "layer"
                version = lab.workspace.command(
                    "curl", "--silent", "--show-error", "--fail", *options, "--output", target,
                    "--write-out", "%{http_version}", url + path,
                )  # fmt: skip
                figure(f"HTTP/{version}")
                expect((version == "2") == how.startswith("HTTP/2"), f"by HTTP/{version}")
                digest = hashlib.sha256(target.read_bytes()).hexdigest()
                expect(layer == f"sha256:{digest}", f"got {digest}")
        _behind_haproxy(lab, edge, origin, front, image)


def _behind_haproxy(lab, edge, origin, front, image):
    for version in ("send-proxy", "send-proxy-v2"):
        port = free_port()
        configuration = lab.workspace.folder("haproxy") / "haproxy.cfg"
        configuration.write_text(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
            f"listen edge\n  bind 127.0.0.1:{port}\n  server edge 127.0.0.1:{front.proxied} {version}\n"
        )
        haproxy = Process(["haproxy", "-db", "-f", configuration], lab.workspace.log("haproxy"), lab.workspace.environment())
        try:
            wait_until(lambda port=port: is_listening(port), "haproxy listens")
            with lab.check(f"skopeo pulls behind haproxy with {version}"):
                lab.workspace.command(
                    "skopeo", "copy", "--quiet", "--src-tls-verify=false",
                    f"docker://127.0.0.1:{port}/{origin.name}/{image.repository}:latest",
                    f"dir:{lab.workspace.folder('by-haproxy')}",
                )  # fmt: skip
        finally:
            haproxy.stop()
    with lab.check("whoever does not come by way of the proxy is turned away"):
        try:
            answer = wire.ask(front.proxied, "GET", "/v2/")
            expect(answer.status >= 400, f"answered {answer}")
        except (OSError, http.client.HTTPException):
            pass


@scenario("listeners: certificates are renewed under load")
def renewed_under_load(lab):
    front = Front(lab.workspace)
    with lab.origin() as origin, lab.edge(origin, listeners=front.tables) as edge:
        with Skopeo(lab.workspace, edge) as client:
            client.pull(lab.library["large"])
        path = f"{edge.path(origin.name, lab.library['large'].repository)}/blobs/{lab.library['large'].layers()[0]}"
        over = threading.Event()
        readers = [_Reader(front, path, over, keeps=index % 2 == 0) for index in range(READERS)]
        for reader in readers:
            reader.start()
        served = []
        for rotation in range(1, ROTATIONS + 1):
            front.renew(f"edge-{rotation}")
            wait_until(lambda name=f"edge-{rotation}": front.name_served() == name, "the new certificate is shown", 20)
            served.append(rotation)
        over.set()
        for reader in readers:
            reader.join()
        with lab.check(f"{ROTATIONS} renewals are seen by new connections within seconds"):
            expect(len(served) == ROTATIONS, f"{served} were")
        with lab.check("no connection is dropped by them") as figure:
            figure(f"{sum(reader.answers for reader in readers)} answers, {sum(reader.bytes for reader in readers) >> 20} MiB")
            failures = [reader.failure for reader in readers if reader.failure]
            expect(not failures, f"{failures}")
            expect(all(reader.answers for reader in readers), "a reader got no answer at all")


class _Reader(threading.Thread):
    """Reads ranges of a layer by TLS until it is told to stop; on one connection, or on a new one each time."""

    def __init__(self, front, path, over, keeps):
        super().__init__(daemon=True)
        self.answers, self.bytes, self.failure = 0, 0, None
        self._context = ssl.create_default_context(cafile=front.authority[1])
        self._port, self._path, self._over, self._keeps = front.tls, path, over, keeps

    def run(self):
        connection = None
        try:
            while not self._over.is_set():
                connection = connection or http.client.HTTPSConnection(
                    "127.0.0.1", self._port, timeout=30, context=self._context
                )
                first = (self.answers % 100) << 20
                connection.request("GET", self._path, headers={"Range": f"bytes={first}-{first + (4 << 20) - 1}"})
                answer = connection.getresponse()
                length = len(answer.read())
                if (answer.status, length) != (206, 4 << 20):
                    self.failure = f"{answer.status} with {length} bytes"
                    return
                self.answers += 1
                self.bytes += length
                if not self._keeps:
                    connection.close()
                    connection = None
        except (OSError, http.client.HTTPException) as error:
            self.failure = f"{type(error).__name__} after {self.answers} answers: {error}"


def _requests(edge, **fields):
    """The access log's records that have these fields; it is written when an answer is over."""
    time.sleep(0.1)
    lines = edge.log.read_text(errors="replace").splitlines()
    records = [json.loads(line) for line in lines if '"clawhub_edge::access"' in line]
    return [record for record in records if fields.items() <= record.items()]
