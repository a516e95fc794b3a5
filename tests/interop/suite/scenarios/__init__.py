"""The scenarios, in the order in which they run."""

from . import pulls, platforms, registries, graphs, partial, tags, answers, listeners, outages, credentials, callers, keys, upstreams, crowd, ranges, interruptions, defaults, boot  # noqa: F401, I001
