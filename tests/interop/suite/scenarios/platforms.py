"""Images of several platforms: what was asked for, and nothing else."""

from ..clients import Containerd, Podman, Skopeo
from ..images import PLATFORMS
from ..lab import scenario
from ..machine import brief, expect
from ..origin import downloads
from .pulls import pull


@scenario("platforms", for_any_cache=True)
def platforms(lab):
    image = lab.library["multi-arch"]
    for client_type, platform in zip((Skopeo, Podman, Containerd), PLATFORMS, strict=True):
        with lab.origin() as origin, lab.cache(origin) as edge:
            client = client_type(lab.workspace, edge)
            with client, lab.check(f"{client.label}, {platform}: no other platform's layer leaves the origin"):
                asked = downloads(pull(origin, client, image, platform), image)
                expected = image.manifests(platform) | image.blobs(platform)
                expect(asked.keys() == expected, f"downloaded {brief(asked)}; expected {brief(expected)}")

    with lab.origin() as origin, lab.cache(origin) as edge, Skopeo(lab.workspace, edge) as client:
        for state in ("cold", "warm"):
            with lab.check(f"skopeo copy --all, {state}: every platform, each blob once"):
                mark = origin.mark()
                pulled = client.pull_everything(image)
                held = image.everything()
                expect(pulled == held, f"arrived: {brief(pulled)}; the origin has {brief(held)}")
                asked = downloads(origin.requests(mark), image)
                expected = held if state == "cold" else set()
                expect(asked.keys() == expected, f"downloaded {brief(asked)}; expected {brief(expected)}")
                twice = [digest for digest, times in asked.items() if times > 1]
                expect(not twice, f"downloaded more than once: {brief(twice)}")
