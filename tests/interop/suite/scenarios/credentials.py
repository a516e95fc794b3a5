"""The edge's own credential for an origin: used there, and to be found nowhere else."""

import base64
from urllib.parse import quote

from .. import wire
from ..clients import Skopeo, expect_refused
from ..edge import upstream
from ..lab import scenario
from ..machine import expect, wait_until
from ..origin import PASSWORD, USERNAME


@scenario("credentials")
def credentials(lab):
    image = lab.library["layers"]
    with lab.origin(private=True) as origin:
        with lab.check("the origin refuses a caller without one"):
            wire.expect_status(wire.ask(origin.port, "GET", f"/v2/{image.repository}/manifests/latest"), 401)

        with lab.edge(origin, log_level="trace") as edge, Skopeo(lab.workspace, edge) as client:
            client.pull(image)
            path = f"{edge.path(origin.name, image.repository)}/manifests/"
            for unusual in ("absent", "%00", "latest?ns=elsewhere.test"):
                wire.ask(edge.port, "GET", path + unusual)
            metrics = wire.ask(edge.port, "GET", "/metrics").body.decode()
            origin.stop()
            expect_refused(client, lab.library["umoci"])
            origin.start()
            edge.stop()
            with lab.check("neither password nor its Base64 is in a log at level trace, or in the metrics") as figure:
                log = edge.log.read_text(errors="replace")
                expect("TRACE" in log, f"this is all that was logged: {log}")
                _expect_absent(PASSWORD, {"the log": log, "the metrics": metrics})
                figure(f"{len(log.splitlines())} lines searched")

        with lab.check("a wrong password is the operator's affair: 502 UNAVAILABLE, and not in the log"):
            part = upstream(origin.name, origin.url, (USERNAME, "wrong-password-0815"))
            with lab.edge_of([part], log_level="trace") as edge:
                answer = wire.ask(edge.port, "GET", f"{edge.path(origin.name, image.repository)}/manifests/latest")
                wire.expect_status(answer, 502)
                expect(answer.error_codes == ["UNAVAILABLE"], f"{answer}")
                edge.stop()
                _expect_absent("wrong-password-0815", {"the log": edge.log.read_text(errors="replace")})

        with lab.check("a credential, a listener for everyone and no authentication: it refuses to start"):
            edge = lab.edge(origin, address="0.0.0.0:0")
            process = edge.spawn()
            try:
                wait_until(lambda: process.exit_code is not None, "the edge ended")
                expect(process.exit_code != 0, "it ended as if all were well")
                _expect_absent(PASSWORD, {"its words": edge.log.read_text(errors="replace")})
            finally:
                edge.stop()


def _expect_absent(password, places):
    forms = {password, quote(password), _base64(password), _base64(f"{USERNAME}:{password}")}
    for place, text in places.items():
        for form in forms:
            lines = [line for line in text.splitlines() if form.rstrip("=") in line]
            expect(not lines, f"{form!r} is in {place}: {lines[:1]}")


def _base64(text):
    return base64.b64encode(text.encode()).decode()
