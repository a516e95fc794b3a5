"""What is made once and kept between runs: the images and the built clients, each under a hash of its recipe.

Invariant: a folder is removed only while nobody uses it. Every run holds a shared lock on what it has opened, so that
runs of several versions of the suite, each with recipes of its own, leave each other alone.
"""

import fcntl
import shutil
from contextlib import suppress

# open for as long as the suite runs: closing one gives the lock up
_locks = []


def cached(cache, prefix, recipe, make):
    """The folder `prefix` + `recipe` in `cache`, made first by `make(folder)` where it is not complete."""
    folder = cache / f"{prefix}{recipe}"
    # a file beside the folder, as the folder comes and goes
    lock = (cache / f"{folder.name}.lock").open("w")
    _locks.append(lock)
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (folder / "complete").exists():
        _remove_unused(cache, prefix, folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(folder)
        (folder / "complete").touch()
    # others may use it as well from here on
    fcntl.flock(lock, fcntl.LOCK_SH)
    return folder


def _remove_unused(cache, prefix, wanted):
    for stale in cache.glob(f"{prefix}*/"):
        if stale == wanted:
            continue
        with (cache / f"{stale.name}.lock").open("w") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(stale)
