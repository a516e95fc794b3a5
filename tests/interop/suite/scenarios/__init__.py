"""The scenarios, in the order in which they run."""

from . import pulls, platforms, tags, answers, outages, credentials, upstreams, crowd, interruptions, defaults  # noqa: F401, I001
