"""The first minute of a newcomer: one command, no configuration."""

from .. import wire
from ..lab import scenario
from ..machine import expect, is_listening, wait_until

_PORT = 5050


@scenario("no configuration at all")
def no_configuration(lab):
    name = "it listens on 127.0.0.1:5050 and says where it listens, where it stores, how to pull"
    if is_listening(_PORT):
        lab.skip(name, f"port {_PORT} is taken")
        return
    home = lab.workspace.folder("newcomer")
    with lab.check(name):
        process = lab.unconfigured_edge(home)
        try:
            wait_until(lambda: process.exit_code is not None or is_listening(_PORT), f"it listens on {_PORT}")
            expect(process.exit_code is None, f"it ended with {process.exit_code}: {process.log.read_text()}")
            wire.expect_status(wire.ask(_PORT, "GET", "/v2/"), 200)
            wire.expect_status(wire.ask(_PORT, "GET", "/readyz"), 200)
            store = home / "cache" / "clawhub-edge"
            expect(store.is_dir(), f"no store in {store}")
            said = process.log.read_text()
            for word in (f"127.0.0.1:{_PORT}", str(store), f"127.0.0.1:{_PORT}/docker.io/"):
                expect(word in said, f"{word!r} is not in what it says: {said}")
        finally:
            expect(process.stop() == 0, f"SIGTERM ended it with {process.exit_code}")
