"""What stands before a registry in the field: a gateway that limits, redirects and remembers, and a token service."""

import base64
import hashlib
import http.client
import json
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from .machine import Process, free_port, is_listening, wait_until

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection"}


class Door:
    """Forwards to `target_port` and keeps every request's head; use it as a context manager.

    `answer` may answer in the registry's place: it gets a request's handler and returns whether it did.
    `headers` are added to every answer.
    """

    def __init__(self, target_port, answer=lambda handler: False, headers=lambda handler: {}):
        self.port = free_port()
        self.requests = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                length = int(self.headers.get("Content-Length") or 0)
                self.content = self.rfile.read(length)
                door.requests.append((self.command, self.path, str(self.headers) + self.content.decode()))
                if not answer(self):
                    self.forward()

            do_GET = do_HEAD = do_POST = handle_any

            def forward(self):
                connection = http.client.HTTPConnection("127.0.0.1", target_port, timeout=60)
                try:
                    kept = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
                    path = urlsplit(self.path)
                    connection.request(self.command, path._replace(scheme="", netloc="").geturl(), headers=kept)
                    response = connection.getresponse()
                    self.send_response(response.status)
                    for name, value in [*response.getheaders(), *headers(self).items()]:
                        if name.lower() not in _HOP_BY_HOP:
                            self.send_header(name, value)
                    if "Content-Length" not in response.headers:
                        self.send_header("Connection", "close")
                    self.end_headers()
                    if self.command != "HEAD":
                        shutil.copyfileobj(response, self.wfile)
                finally:
                    connection.close()

            def reply(self, status, body=b"", **fields):
                self.send_response(status)
                for name, value in fields.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                """A client that leaves is no affair of the suite's."""

        self._server = Server(("127.0.0.1", self.port), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class TokenService:
    """Issues the tokens that docker-registry's `auth.token` wants, for a refresh token that changes with each use."""

    ISSUER = "interop"
    SERVICE = "token.test"

    def __init__(self, workspace, refresh_token):
        folder = workspace.folder("token-service")
        self._workspace = workspace
        self._key, self.certificate = folder / "key.pem", folder / "certificate.pem"
        self._signed = folder / "signed"
        make_certificate(workspace, self._key, self.certificate, "token.test")
        self._refresh_tokens = [refresh_token]
        self._lock = threading.Lock()
        self.door = Door(0, answer=self._issue)

    @property
    def secrets(self):
        return list(self._refresh_tokens)

    @property
    def settings(self):
        """The part of docker-registry's configuration that trusts it."""
        return (
            "auth:\n  token:\n"
            f"    realm: {self.door.url}/token\n    service: {self.SERVICE}\n    issuer: {self.ISSUER}\n"
            f"    rootcertbundle: {self.certificate}\n"
        )

    def _issue(self, handler):
        form = {name: values[0] for name, values in parse_qs(handler.content.decode()).items()}
        with self._lock:
            if form.get("refresh_token") != self._refresh_tokens[-1]:
                handler.reply(400, b'{"error":"invalid_grant"}', Content_Type="application/json")
                return True
            self._refresh_tokens.append(hashlib.sha256(self._refresh_tokens[-1].encode()).hexdigest())
            token = self._token(form["scope"])
        document = {"access_token": token, "expires_in": 300, "refresh_token": self._refresh_tokens[-1]}
        handler.reply(200, json.dumps(document).encode(), Content_Type="application/json")
        return True

    def _token(self, scope):
        kind, name, actions = scope.split(":")
        now = int(time.time())
        der = "".join(self.certificate.read_text().splitlines()[1:-1])
        header = {"typ": "JWT", "alg": "RS256", "x5c": [der]}
        access = [{"type": kind, "name": name, "actions": actions.split(",")}]
        claims = {"iss": self.ISSUER, "sub": "edge", "aud": self.SERVICE, "access": access, "jti": str(now)}
        claims |= {"iat": now, "nbf": now - 10, "exp": now + 300}
        text = f"{_url64(json.dumps(header).encode())}.{_url64(json.dumps(claims).encode())}"
        unsigned = self._signed.with_suffix(".in")
        unsigned.write_text(text)
        self._workspace.command("openssl", "dgst", "-sha256", "-sign", self._key, "-out", self._signed, unsigned)
        return f"{text}.{_url64(self._signed.read_bytes())}"


class Accounts(TokenService):
    """A token service with users, each of whom may pull from some repositories. Whoever asks for more gets a token with
    less, and 200; whoever offers a wrong password gets 401.
    """

    def __init__(self, workspace, passwords, rights):
        """`rights` has the repositories of each user; those of None are everybody's."""
        super().__init__(workspace, None)
        self.passwords, self.rights = passwords, rights

    def _issue(self, handler):
        asked = parse_qs(urlsplit(handler.path).query)
        user, offered = None, handler.headers.get("Authorization")
        if offered:
            user, _, password = base64.b64decode(offered.split()[1]).decode().partition(":")
            if self.passwords.get(user) != password:
                handler.reply(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}', Content_Type="application/json")
                return True
        scope = asked["scope"][0]
        repository = scope.split(":")[1]
        if repository not in {*self.rights.get(user, ()), *self.rights[None]}:
            scope = f"repository:{repository}:"
        with self._lock:
            token = self._token(scope)
        document = json.dumps({"token": token, "expires_in": 300})
        handler.reply(200, document.encode(), Content_Type="application/json")
        return True


class Nginx:
    """An nginx with these lines in its `http` block, on a port of its own."""

    def __init__(self, workspace, server, http=""):
        self.port = free_port()
        self._workspace = workspace
        folder = workspace.folder("nginx")
        self.access_log = workspace.log("nginx-access")
        self._error_log = workspace.log("nginx")
        self._configuration = folder / "nginx.conf"
        self._configuration.write_text(
            "daemon off;\nmaster_process off;\nuser root;\n"
            f"pid {folder}/pid;\nerror_log {self._error_log};\nevents {{}}\nhttp {{\n"
            "  log_format heads '$request_method $uri $status authorization=$http_authorization via=$http_via';\n"
            f"  access_log {self.access_log} heads;\n  sendfile on;\n"
            f"  proxy_temp_path {folder};\n  client_body_temp_path {folder};\n  {http}\n"
            f"  server {{\n    listen 127.0.0.1:{self.port};\n{server}\n  }}\n}}\n"
        )

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        argv = ["nginx", "-c", self._configuration]
        self._process = Process(argv, self._error_log, self._workspace.environment())
        wait_until(lambda: is_listening(self.port), "nginx listens")
        return self

    def __exit__(self, *_):
        self._process.stop()


def make_certificate(workspace, key, certificate, name, authority=None):
    """A key and a certificate for `name`, localhost and 127.0.0.1, signed by `authority` (key, certificate) or itself."""
    signer = ["-CAkey", authority[0], "-CA", authority[1]] if authority else []
    workspace.command(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}", *signer,
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-addext", f"basicConstraints=critical,CA:{'FALSE' if authority else 'TRUE'}",
        "-keyout", key, "-out", certificate,
    )  # fmt: skip


def signed_path(uri, secret, lifetime):
    """`uri` as nginx's `secure_link` wants it, valid for `lifetime` seconds."""
    expires = int(time.time() + lifetime)
    digest = hashlib.md5(f"{expires}{uri} {secret}".encode()).digest()
    return f"{uri}?md5={_url64(digest)}&expires={expires}"


def _url64(content):
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
