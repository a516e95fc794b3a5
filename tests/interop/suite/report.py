"""Counts and prints checks, a line each."""

import time
import traceback
from contextlib import contextmanager
from textwrap import indent

from .machine import Unmet


class Stopped(Exception):
    """A check failed and the run was not asked to go on."""


class Report:
    def __init__(self, keep_going):
        self.passed = 0
        self.failed = 0
        self.skipped = 0
        self._keep_going = keep_going
        self._started = time.monotonic()

    @contextmanager
    def scenario(self, name, evidence):
        """Prints a heading; what fails in the body outside a check counts as a failed check of its own."""
        print(f"\n{name}", flush=True)
        started = time.monotonic()
        try:
            yield
        except Stopped:
            raise
        except Exception as error:
            self._fail("to the end of the scenario", started, [], error, evidence)

    @contextmanager
    def check(self, name, evidence):
        """Runs its body as one check; `evidence()` is printed below a failure.

        The body gets a function that adds a figure to the check's line.
        """
        started = time.monotonic()
        figures = []
        try:
            yield figures.append
        except Exception as error:
            self._fail(name, started, figures, error, evidence)
        else:
            self.passed += 1
            self._line("ok", name, started, figures)

    def skip(self, name, reason):
        self.skipped += 1
        print(f"skip  {name} ({reason})", flush=True)

    def close(self):
        """Prints the closing lines; true when nothing failed and something passed."""
        print(f"\n{time.monotonic() - self._started:.0f} s")
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        print(f"{self.passed} passed, {self.failed} failed{skipped}", flush=True)
        return self.passed > 0 and self.failed == 0

    def _fail(self, name, started, figures, error, evidence):
        self.failed += 1
        self._line("FAIL", name, started, figures)
        # a promise that was not kept explains itself, a mistake of the suite needs its place
        reason = str(error) if isinstance(error, Unmet) else "".join(traceback.format_exception(error))
        print(indent("\n".join(filter(None, (reason, evidence()))), "      "), flush=True)
        if not self._keep_going:
            raise Stopped from error

    @staticmethod
    def _line(verdict, name, started, figures):
        notes = "".join(f"; {figure}" for figure in figures)
        print(f"{verdict:<5} {name} ({time.monotonic() - started:.2f} s{notes})", flush=True)
