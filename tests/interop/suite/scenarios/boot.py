"""The Debian package on a machine that really boots: installed, activated by its socket, hung, restarted, removed."""

import shutil
import threading
import time

from .. import wire
from ..guest import Guest, obstacle
from ..lab import scenario
from ..machine import expect, free_port, is_listening
from ..origin import PASSWORD, USERNAME

_SERVICE = "clawhub-edge.service"
_SOCKET = "clawhub-edge.socket"
_DROP_IN = f"/etc/systemd/system/{_SERVICE}.d/interop.conf"
_CONFIGURATION = "/etc/clawhub-edge/clawhub-edge.toml"
# the exposure that systemd-analyze may find, in tenths
_EXPOSURE = 20
_RESTARTS = 4
_CALLERS = 8


@scenario("boot: package and units")
def boot(lab):
    reason = obstacle() if lab.package else "no Debian package: give one by --package, or install cargo-deb"
    if reason:
        lab.skip("the package on a machine that boots", reason)
        return
    files = lab.workspace.folder("packages")
    shutil.copy(lab.package, files / "old.deb")
    _make_newer(lab.workspace, files)
    port = free_port()
    with lab.origin(private=True) as origin, Guest(lab.workspace, files) as guest:
        try:
            _install(lab, guest, port)
            _check_units(lab, guest)
            _pull(lab, guest, origin, port)
            _activate(lab, guest, origin, port)
            _restart(lab, guest, port)
            _hang(lab, guest, port)
            _upgrade(lab, guest, port)
            _remove(lab, guest)
        except BaseException:
            print(guest.journal(_SERVICE), flush=True)
            raise


def _make_newer(workspace, files):
    """The same package with a higher version."""
    folder = workspace.folder("newer")
    workspace.command("dpkg-deb", "--raw-extract", files / "old.deb", folder)
    control = folder / "DEBIAN/control"
    lines = control.read_text().splitlines()
    control.write_text("".join(f"{line}+newer\n" if line.startswith("Version:") else f"{line}\n" for line in lines))
    workspace.command("dpkg-deb", "--build", "--root-owner-group", folder, files / "new.deb")


def _install(lab, guest, port):
    with lab.check("the package installs, and the service runs at once, as a user of its own") as figure:
        # the default port may be taken on this machine, whose network it is
        guest.write(_DROP_IN, f"[Service]\nEnvironment=CLAWHUB_EDGE_LISTEN=127.0.0.1:{port}\n")
        guest.run("dpkg", "--install", "/mnt/old.deb")
        expect(guest.property(_SERVICE, "ActiveState") == "active", f"it is not active: {guest.journal(_SERVICE)}")
        wire.expect_status(wire.ask(port, "GET", "/readyz"), 200)
        status = guest.property(_SERVICE, "StatusText")
        expect(f"127.0.0.1:{port}" in status, f"its status is {status!r}")
        owner = guest.run("stat", "--format=%U:%G %a", "/var/cache/clawhub-edge", f"/proc/{_pid(guest)}").split("\n")
        expect(owner[0] == "clawhub-edge:clawhub-edge 750", f"the cache is {owner[0]}")
        expect(owner[1].startswith("clawhub-edge:"), f"the process is {owner[1]}")
        figure(status)


def _check_units(lab, guest):
    with lab.check("systemd-analyze finds nothing wrong with the units"):
        said = guest.run("sh", "-c", f"systemd-analyze verify {_SERVICE} {_SOCKET} 2>&1")
        expect(not said.strip(), said)
    with lab.check(f"systemd-analyze finds an exposure of {_EXPOSURE / 10} at most") as figure:
        argv = ("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={_EXPOSURE}")
        said = guest.run(*argv, f"/lib/systemd/system/{_SERVICE}")
        figure(said.strip().splitlines()[-1].removeprefix("→ "))


def _pull(lab, guest, origin, port):
    """Behind the filter of the unit: a credential helper is started, and a password comes by LoadCredential."""
    with lab.check("a pull through the service, with a credential helper that it starts"):
        helper = "/usr/local/bin/docker-credential-interop"
        answer = f'{{"ServerURL":"","Username":"{USERNAME}","Secret":"{PASSWORD}"}}'
        guest.write(helper, f"#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")
        guest.run("chmod", "755", helper)
        _configure(guest, port, origin, f'credential_helper = "{helper}"')
        guest.run("rm", _DROP_IN)
        guest.run("systemctl", "daemon-reload")
        guest.run("systemctl", "restart", _SERVICE)
        _skopeo(lab, origin, port, "layers")
    with lab.check("a pull with a password that only root can read"):
        guest.write("/etc/clawhub-edge/secrets/origin", PASSWORD)
        guest.run("chown", "root:root", "/etc/clawhub-edge/secrets/origin")
        guest.run("chmod", "600", "/etc/clawhub-edge/secrets/origin")
        guest.write(_DROP_IN, "[Service]\nLoadCredential=origin:/etc/clawhub-edge/secrets/origin\n")
        password = f'username = "{USERNAME}"\npassword_file = "/run/credentials/{_SERVICE}/origin"'
        _configure(guest, port, origin, password)
        guest.run("systemctl", "daemon-reload")
        guest.run("systemctl", "restart", _SERVICE)
        _skopeo(lab, origin, port, "multi-arch")


def _activate(lab, guest, origin, port):
    with lab.check("the socket is there, the service is not: the first pull starts it and is answered"):
        guest.write(f"/etc/systemd/system/{_SOCKET}.d/interop.conf", f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n")
        guest.run("systemctl", "daemon-reload")
        guest.run("systemctl", "stop", _SERVICE)
        guest.run("systemctl", "enable", "--now", _SOCKET)
        expect(guest.property(_SERVICE, "ActiveState") == "inactive", "the service runs already")
        expect(is_listening(port), "nothing listens")
        _skopeo(lab, origin, port, "docker")
        expect(guest.property(_SERVICE, "ActiveState") == "active", "something else has answered")


def _restart(lab, guest, port):
    with lab.check(f"{_RESTARTS} restarts while {_CALLERS} clients keep connecting: none of them notices") as figure:
        over = threading.Event()
        callers = [Caller(port, over) for _ in range(_CALLERS)]
        for caller in callers:
            caller.start()
        try:
            for _ in range(_RESTARTS):
                before = _pid(guest)
                guest.run("systemctl", "restart", _SERVICE)
                expect(_pid(guest) != before, "it is the same process")
        finally:
            over.set()
            for caller in callers:
                caller.join(30)
        failures = [failure for caller in callers for failure in caller.failures]
        expect(not failures, f"{len(failures)} were lost: {failures[:3]}")
        answers = sum(caller.answers for caller in callers)
        expect(answers > _CALLERS * _RESTARTS, f"only {answers} answers")
        figure(f"{answers} connections, the longest answer took {max(caller.longest for caller in callers):.2f} s")


class Caller(threading.Thread):
    """Connects again and again, as many nodes would once each."""

    def __init__(self, port, over):
        super().__init__(daemon=True)
        self.answers = 0
        self.longest = 0.0
        self.failures = []
        self._port = port
        self._over = over

    def run(self):
        while not self._over.is_set():
            try:
                answer = wire.ask(self._port, "GET", "/v2/", timeout=30, Connection="close")
                wire.expect_status(answer, 200)
                self.answers += 1
                self.longest = max(self.longest, answer.seconds)
            except Exception as failure:  # noqa: BLE001
                self.failures.append(f"{type(failure).__name__}: {failure}")


def _hang(lab, guest, port):
    with lab.check("a process that hangs is killed by the watchdog and started again") as figure:
        guest.write("/etc/systemd/system/clawhub-edge.service.d/watchdog.conf", "[Service]\nWatchdogSec=2s\n")
        guest.run("systemctl", "daemon-reload")
        guest.run("systemctl", "restart", _SERVICE)
        hung = _pid(guest)
        guest.run("kill", "-STOP", hung)
        stopped = time.monotonic()
        # who asks now waits in the queue, and is answered by the next process
        wire.expect_status(wire.ask(port, "GET", "/readyz", timeout=30), 200)
        figure(f"answered again after {time.monotonic() - stopped:.1f} s")
        expect(_pid(guest) not in (hung, "0"), "the same process goes on")
        expect("atchdog timeout" in guest.journal(_SERVICE), "it was not the watchdog")


def _upgrade(lab, guest, port):
    with lab.check("an upgrade keeps configuration and cache, and runs the new one"):
        before, blobs = _pid(guest), _cached(guest)
        expect(blobs != "0", "nothing is cached")
        guest.run("dpkg", "--install", "/mnt/new.deb")
        expect(_pid(guest) not in (before, "0"), "the old process goes on")
        wire.expect_status(wire.ask(port, "GET", "/readyz"), 200)
        expect("credentials" in guest.run("cat", _CONFIGURATION), "the configuration is another")
        expect(_cached(guest) == blobs, "the cache is another")


def _remove(lab, guest):
    with lab.check("removing keeps cache and configuration, purging does not"):
        guest.run("dpkg", "--remove", "clawhub-edge")
        expect(guest.property(_SERVICE, "ActiveState") == "inactive", "it runs on")
        for gone in ("/usr/bin/clawhub-edge", f"/lib/systemd/system/{_SERVICE}"):
            expect(not guest.succeeds("test", "-e", gone), f"{gone} is still there")
        expect(guest.succeeds("test", "-e", _CONFIGURATION), "the configuration is gone")
        expect(_cached(guest) != "0", "the cache is gone")
        guest.run("dpkg", "--purge", "clawhub-edge")
        for gone in (_CONFIGURATION, "/var/cache/clawhub-edge", "/var/lib/clawhub-edge"):
            expect(not guest.succeeds("test", "-e", gone), f"{gone} is still there")
        expect(guest.succeeds("id", "clawhub-edge"), "the user is gone, and its number free for another")
        links = guest.run("find", "/etc/systemd/system", "-lname", "*clawhub-edge*").strip()
        expect(not links, f"links to nothing: {links}")


def _configure(guest, port, origin, credential):
    listener = f'[[listen]]\naddress = "127.0.0.1:{port}"\n'
    guest.write(_CONFIGURATION, f'{listener}[upstreams."{origin.name}"]\nurl = "{origin.url}"\n{credential}\n')


def _skopeo(lab, origin, port, kind):
    image = lab.library[kind]
    target = lab.workspace.folder("from-the-guest")
    source = f"docker://127.0.0.1:{port}/{origin.name}/{image.reference}"
    lab.workspace.command(
        "skopeo", "copy", "--quiet", "--src-tls-verify=false", source, f"dir:{target}", home=lab.workspace.home()
    )
    shutil.rmtree(target)


def _pid(guest):
    return guest.property(_SERVICE, "MainPID")


def _cached(guest):
    """How many blobs are in the cache."""
    script = "find /var/cache/clawhub-edge/blobs -type f | wc -l"
    return guest.run("sh", "-c", script).strip()
