"""The files that point each client at a cache."""


def registries_conf(cache, upstream_name, mode=None):
    """For skopeo, Podman, buildah and CRI-O: `cache` as the mirror of `upstream_name`, which has no address itself."""
    lines = [
        "[[registry]]",
        f'location = "{upstream_name}"',
        "[[registry.mirror]]",
        f'location = "{cache.prefix(upstream_name)}"',
        "insecure = true",
    ]
    if mode:
        lines.append(f'pull-from-mirror = "{mode}"')
    return "\n".join(lines) + "\n"


def hosts_toml(cache, _upstream_name):
    """For containerd. Nothing listens on port 1: what the cache does not answer is not answered at all."""
    return (
        'server = "http://127.0.0.1:1"\n'
        f'[host."http://{cache.location}"]\n'
        '  capabilities = ["pull", "resolve"]\n'
    )


def daemon_json(cache):
    """For Docker, whose mirrors stand for docker.io alone."""
    return f'{{"registry-mirrors": ["http://{cache.location}"]}}\n'


def buildkitd_toml(cache, upstream_name):
    return (
        f'[registry."{upstream_name}"]\n  mirrors = ["{cache.prefix(upstream_name)}"]\n'
        f'[registry."{cache.location}"]\n  http = true\n'
    )
