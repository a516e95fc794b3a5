"""The clients, each as its users point it at a mirror."""

from ..machine import CommandFailed, expect
from .buildkit import BuildKit
from .containerd import Containerd, ContainerdParallel
from .containers import Buildah, CriO, Podman, PodmanPartial, Skopeo, SkopeoMirror
from .docker import Docker, DockerByPath, DockerEngine29
from .registries import Crane, Oras, OrasPython

CLIENTS = (
    Skopeo, SkopeoMirror, Podman, Buildah, CriO, Containerd, ContainerdParallel, Docker, DockerByPath, DockerEngine29,
    BuildKit, Crane, Oras, OrasPython,
)  # fmt: skip

__all__ = [*(client.__name__ for client in CLIENTS), "CLIENTS", "PodmanPartial", "copy_between_registries", "expect_refused"]


def copy_between_registries(workspace, source, target, *options):
    """Pushes with skopeo what it pulls."""
    tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
    names = (f"docker://{source}", f"docker://{target}")
    workspace.command("skopeo", "copy", "--quiet", "--preserve-digests", *options, *tls, *names, home=workspace.home())


def expect_refused(client, image):
    """Fails the running check if the client can pull the image."""
    try:
        client.pull(image)
    except CommandFailed:
        return
    expect(False, f"{client.label} pulled {image.reference}")
