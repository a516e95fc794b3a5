"""A TCP link with a speed limit, a byte counter and a weak spot.

Stands between the edge and its origin. `rate` bounds the bytes per second of all connections
together, `sent` counts every byte towards the edge, and `cut_at` names the count at which the
connection that reaches it is reset. Bytes move by splice(2), so the link costs little beside
what is measured.
"""

import ctypes
import fcntl
import multiprocessing
import os
import select
import socket
import struct
import threading
import time

from .machine import free_port, is_listening, wait_until

_PIECE = 256 * 1024
# time that the limiter may make up for after oversleeping; keeps the average at `rate`
_CATCH_UP = 0.02
_fork = multiprocessing.get_context("fork")


class Link:
    """A running link; use it as a context manager."""

    def __init__(self, target_port, rate):
        self.port = free_port()
        self.rate = rate
        self._target_port = target_port
        self._sent = _fork.Value(ctypes.c_uint64, 0)
        self._cut_at = _fork.Value(ctypes.c_uint64, 0)
        self._process = _fork.Process(target=self._serve, daemon=True)

    @property
    def sent(self):
        """Bytes sent towards the edge so far, headers included."""
        return self._sent.value

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def cut_at(self, count):
        """Resets the connection on which the byte count reaches `count`, once; new connections are served."""
        self._cut_at.value = count

    @property
    def was_cut(self):
        return self._cut_at.value == 0

    def __enter__(self):
        self._process.start()
        wait_until(lambda: is_listening(self.port), "the link listens")
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.join()

    def _serve(self):
        self._limiter = threading.Lock()
        self._free_at = time.monotonic()
        with socket.create_server(("127.0.0.1", self.port), backlog=256) as listener:
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client):
        try:
            origin = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:
            client.close()
            return
        inlet, outlet = os.pipe()
        fcntl.fcntl(outlet, fcntl.F_SETPIPE_SZ, _PIECE)
        with client, origin, os.fdopen(inlet), os.fdopen(outlet, "w"):
            try:
                while self._carry_once(client, origin, inlet, outlet):
                    pass
            except OSError:
                pass

    def _carry_once(self, client, origin, inlet, outlet):
        readable, _, _ = select.select([client, origin], [], [])
        if client in readable:
            request = client.recv(_PIECE)
            if not request:
                return False
            origin.sendall(request)
        if origin in readable:
            count = os.splice(origin.fileno(), outlet, _PIECE)
            if count == 0:
                return False
            self._wait_for_room(count)
            while count:
                count -= os.splice(inlet, client.fileno(), count)
            return not self._is_cut(client)
        return True

    def _wait_for_room(self, count):
        with self._limiter:
            start = max(self._free_at, time.monotonic() - _CATCH_UP)
            self._free_at = start + count / self.rate
            delay = self._free_at - time.monotonic()
        if delay > 0:
            time.sleep(delay)
        with self._sent.get_lock():
            self._sent.value += count

    def _is_cut(self, client):
        with self._cut_at.get_lock():
            if not 0 < self._cut_at.value <= self.sent:
                return False
            self._cut_at.value = 0
        # a linger time of zero makes close() send RST
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return True
