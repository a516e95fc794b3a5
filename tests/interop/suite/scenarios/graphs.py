"""A signed image and all that is said about it: the same graph through the edge as from the origin, also offline."""

import json

from .. import wire
from ..clients import Crane, Oras, Skopeo
from ..lab import scenario
from ..machine import expect
from ..origin import Origin

# an image, and what cosign has put under tags beside it
COSIGN_KINDS = ("signed", "signature", "attestation", "cosign-sbom")


@scenario("graphs: signatures, attestations and SBOMs")
def graphs(lab):
    with lab.origin() as origin, lab.edge(origin) as edge:
        expected = _shape(Oras(lab.workspace, origin).discover(lab.library["referred"]))
        for state in ("cold", "origin stopped"):
            for client_type in (Skopeo, Crane, Oras):
                with lab.check(f"{client_type.label}, copies by tag, {state}: cosign's signature, attestation and SBOM"):
                    _copy_by_tag(lab, client_type(lab.workspace, edge))
            with lab.check(f"oras discover, {state}: what the origin shows"):
                shape = _shape(Oras(lab.workspace, edge).discover(lab.library["referred"]))
                expect(len(shape["referrers"]) == 3, f"the suite's own mistake, or no referrers: {shape}")
                expect(shape == expected, f"{shape}; from the origin: {expected}")
            with lab.check(f"oras copy --recursive, {state}: the image and its referrers"):
                _copy_with_referrers(lab, Oras(lab.workspace, edge), expected)
            origin.stop()


def _copy_by_tag(lab, client):
    with _empty_registry(lab) as target:
        for image in lab.library.images(*COSIGN_KINDS):
            client.copy(image, f"{target.location}/{image.reference}")
            _expect_held(target, image)


def _copy_with_referrers(lab, client, expected):
    image = lab.library["referred"]
    with _empty_registry(lab) as target:
        client.copy(image, f"{target.location}/{image.reference}", "--recursive")
        _expect_held(target, image)
        shape = _shape(Oras(lab.workspace, target).discover(image))
        expect(shape == expected, f"{shape}; from the origin: {expected}")


def _empty_registry(lab):
    return Origin(lab.workspace, lab.workspace.folder("target"), writable=True)


def _expect_held(target, image):
    """The target has the same manifest under the same tag, and every blob that it names."""
    answer = wire.ask(target.port, "HEAD", f"/v2/{image.repository}/manifests/{image.tag}")
    wire.expect_status(answer, 200)
    expect(answer.headers["Docker-Content-Digest"] == image.digest, f"{answer}; the origin has {image.digest}")
    for digest in image.blobs():
        wire.expect_status(wire.ask(target.port, "HEAD", f"/v2/{image.repository}/blobs/{digest}"), 200)


def _shape(node):
    """What oras shows of a graph, without the names of the registry that it asked."""
    kept = {key: node[key] for key in ("digest", "mediaType", "artifactType", "size") if key in node}
    referrers = sorted((_shape(each) for each in node.get("referrers") or ()), key=json.dumps)
    return kept | {"referrers": referrers}
