"""What points a client at a registry that prints no configuration: the plain origin, and distribution's cache.

The edge prints its own, with `clawhub-edge client-config`. These files differ in one thing: such a registry has its
repositories at its root.
"""


class PlainRegistry:
    """A registry at `location`, as clients are pointed at it."""

    def __init__(self, location):
        self.location = location

    def prefix(self, _upstream_name):
        """Where its repositories begin, for clients that name them by path."""
        return self.location

    def client_files(self, client, upstream_name, *_options):
        """The files that point `client` straight at it, path to content."""
        return plain_files(client, self.location, upstream_name)


def plain_files(client, location, upstream_name):
    """The files that point `client` at the registry at `location`, path to content."""
    match client:
        case "containerd":
            return {f"/etc/containerd/certs.d/{upstream_name}/hosts.toml": _hosts_toml(location)}
        case "docker":
            return {"/etc/docker/daemon.json": f'{{"registry-mirrors": ["http://{location}"]}}\n'}
        case "podman" | "cri-o":
            return {"/etc/containers/registries.conf.d/50-mirror.conf": _registries_conf(location, upstream_name)}
        case "buildkit":
            return {"/etc/buildkit/buildkitd.toml": _buildkitd_toml(location, upstream_name)}
    raise ValueError(client)


def _registries_conf(location, upstream_name):
    return (
        f'[[registry]]\nlocation = "{upstream_name}"\n'
        f'[[registry.mirror]]\nlocation = "{location}"\ninsecure = true\n'
    )


def _hosts_toml(location):
    return f'[host."http://{location}"]\n  capabilities = ["pull", "resolve"]\n'


def _buildkitd_toml(location, upstream_name):
    return f'[registry."{upstream_name}"]\n  mirrors = ["{location}"]\n[registry."{location}"]\n  http = true\n'
