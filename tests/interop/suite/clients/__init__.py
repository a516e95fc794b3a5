"""The clients, each as its users point it at a mirror."""

from .buildkit import BuildKit
from .containerd import Containerd, ContainerdParallel
from .containers import Buildah, CriO, Podman, PodmanPartial, Skopeo, SkopeoMirror
from .docker import Docker, DockerByPath, DockerEngine29
from .registries import Crane, Oras, OrasPython

CLIENTS = (
    Skopeo, SkopeoMirror, Podman, Buildah, CriO, Containerd, ContainerdParallel, Docker, DockerByPath, DockerEngine29,
    BuildKit, Crane, Oras, OrasPython,
)  # fmt: skip

__all__ = [*(client.__name__ for client in CLIENTS), "CLIENTS", "PodmanPartial", "copy_between_registries"]


def copy_between_registries(workspace, source, target, *options):
    """Pushes with skopeo what it pulls."""
    tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
    names = (f"docker://{source}", f"docker://{target}")
    workspace.command("skopeo", "copy", "--quiet", "--preserve-digests", *options, *tls, *names, home=workspace.home())
