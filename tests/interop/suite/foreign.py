"""The host of the foreign layer: neither the registry nor the edge has it, the manifest says where it is."""

import functools
import http.server
import threading

from .images import FOREIGN_PORT


class ForeignHost:
    """Serves the foreign layer over HTTP; use it as a context manager."""

    def __init__(self, library):
        handler = functools.partial(_Quiet, directory=str(library.foreign))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", FOREIGN_PORT), handler)

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
