"""Which client pulls which kind of image, in which state of the cache: what a run has shown, as a table."""

import re

from .images import KINDS

STATES = ("cold", "warm", "origin stopped")
_BEGIN = "<!-- the matrix: written by `tests/interop/run --matrix-write` -->"
_END = "<!-- the matrix ends -->"


class Matrix:
    def __init__(self):
        # (client, kind) → the states that held
        self._held = {}
        # (client, kind) → why no registry's image of this kind can be pulled
        self._limits = {}
        self._clients = []

    def expect(self, client):
        """Makes room for what `client` will show."""
        if client not in self._clients:
            self._clients.append(client)

    def holds(self, client, kind, state):
        self._held.setdefault((client, kind), set()).add(state)

    def is_limited(self, client, kind):
        self._limits[client, kind] = client.limits[kind]

    @property
    def is_empty(self):
        return not self._clients

    def is_complete(self, clients):
        """Whether every one of `clients` has been asked for every kind."""
        return set(clients) <= set(self._clients)

    def __str__(self):
        """The table in Markdown: a row for each client, a column for each kind, a note for each limit."""
        notes = {reason: number for number, reason in enumerate(dict.fromkeys(self._limits.values()), start=1)}
        rows = [
            ["", *KINDS],
            ["---", *[":-:"] * len(KINDS)],
            *([client.label, *(self._cell(client, kind, notes) for kind in KINDS)] for client in self._clients),
        ]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        legend = "\n".join(f"{number}. {reason}" for reason, number in notes.items())
        return f"{table}\n\n{legend}\n" if legend else f"{table}\n"

    def _cell(self, client, kind, notes):
        if (client, kind) in self._limits:
            return f"({notes[self._limits[client, kind]]})"
        missing = [state for state in STATES if state not in self._held.get((client, kind), ())]
        return f"✘ {', '.join(missing)}" if missing else "✔"


def write(matrix, page):
    """Puts the table between its marks on a Markdown page."""
    text = page.read_text()
    page.write_text(re.sub(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", f"{_BEGIN}\n{matrix}{_END}", text, flags=re.DOTALL))


def is_written(matrix, page):
    """Whether the page shows just this table."""
    return f"{_BEGIN}\n{matrix}{_END}" in page.read_text()
