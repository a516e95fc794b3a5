"""Command line of the interop suite."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from . import matrix
from . import scenarios as _register_all  # noqa: F401
from .clients import CLIENTS
from .lab import Lab, scenarios
from .machine import Workspace, expect
from .recipe import open_library
from .report import Report, Stopped
from .tools import open_tools

REPOSITORY = Path(__file__).resolve().parents[3]
README = Path(__file__).resolve().parents[1] / "README.md"


def main():
    options = parse_arguments()
    chosen = {name: run for name, run in scenarios(options.peer).items() if options.filter in name}
    if options.list:
        print("\n".join(chosen))
        return 0

    # SIGTERM unwinds as Ctrl-C does, so that every process is ended
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    binary = None if options.peer else options.edge.resolve() if options.edge else build()
    package = options.package or (None if options.peer or options.edge else build_package())
    report = Report(options.keep_going)
    cache = cache_folder()
    workspace = Workspace(open_tools(cache), options.verbose)
    succeeded = False
    try:
        library = open_library(cache, workspace)
        lab = Lab(workspace, library, report, binary, package, options.peer, options.compare)
        run_all(lab, chosen)
        show_matrix(lab, options.matrix_write)
    except Stopped:
        pass
    finally:
        succeeded = report.close()
        workspace.close(keep_logs=not succeeded)
        if not succeeded:
            print(f"logs: {workspace.logs}", file=sys.stderr)
    return 0 if succeeded else 1


def run_all(lab, chosen):
    for name, run in chosen.items():
        with lab.scenario(name):
            run(lab)


def show_matrix(lab, write_it):
    """Prints what the pulls have shown; writes it into the README only if asked, and only if it is all of it."""
    if lab.matrix.is_empty:
        return
    print(f"\n{lab.matrix}", flush=True)
    if not lab.matrix.is_complete(CLIENTS):
        return
    if write_it:
        matrix.write(lab.matrix, README)
    elif not lab.peer:
        with lab.check("the matrix is the one in tests/interop/README.md"):
            expect(matrix.is_written(lab.matrix, README), "it is another; tests/interop/run --matrix-write writes it")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/interop/run", description=__doc__)
    parser.add_argument("--edge", type=Path, metavar="PATH", help="the binary to test; default: build it for release")
    parser.add_argument("--package", type=Path, metavar="PATH", help="the Debian package to test; default: build it")
    parser.add_argument("--peer", choices=["distribution"], help="put another cache in the edge's place")
    parser.add_argument("--compare", action="store_true", help="also send the crowd to distribution, for its figures")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only scenarios whose name contains TEXT")
    parser.add_argument("--list", action="store_true", help="print the scenarios' names and end")
    parser.add_argument("--matrix-write", action="store_true", help="write what all pulls show into README.md")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failed check")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every client command")
    return parser.parse_args()


def build():
    subprocess.run(["cargo", "build", "--release", "--quiet", "--bin", "clawhub-edge"], cwd=REPOSITORY, check=True)
    return REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target") / "release/clawhub-edge"


def build_package():
    """The Debian package of what `build` has built; None without cargo-deb."""
    if not shutil.which("cargo-deb"):
        return None
    argv = ["cargo", "deb", "--no-build", "--quiet"]
    built = subprocess.run(argv, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return Path(built.stdout.splitlines()[-1])


def cache_folder():
    """Where the made images and the built clients are kept between runs."""
    fallback = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "clawhub-edge-interop"
    folder = Path(os.environ.get("CLAWHUB_INTEROP_CACHE", fallback))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


sys.exit(main())
