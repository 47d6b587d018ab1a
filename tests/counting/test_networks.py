"""The built-in architectures: their sizes are the published ones, and they run on what they are given."""

from dataclasses import replace

import pytest
import torch

from benchmarks.encoders import build_encoders
from diffpref.counting.architectures import BUILT_IN, EDM, SD3, SD15, SD35, SDXL, Architecture
from diffpref.counting.counters import Usage
from diffpref.counting.meta import as_on_a_gpu
from diffpref.counting.networks import build_network, family_of, meta_probe, shape_of
from diffpref.errors import predict


@pytest.mark.parametrize(
    ("architecture", "millions"), [(SDXL, 2567.46), (SD15, 859.52), (SD3, 2028.33), (SD35, 2243.17), (EDM, 55.94)]
)
def test_parameter_counts(architecture: Architecture, millions: float) -> None:
    network = build_network(architecture, torch.bfloat16)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    ("architecture", "resolution", "tokens", "teraflops"),
    [
        # Counted independently of this package, with a stand-in for attention.
        (SDXL, 1024, None, 6.761),
        pytest.param(SDXL, 512, None, 1.589, marks=pytest.mark.slow),
        pytest.param(SD3, 1024, None, 8.904, marks=pytest.mark.slow),
        pytest.param(SD3, 1024, 154, 8.437, marks=pytest.mark.slow),
        pytest.param(SD35, 1024, None, 11.25, marks=pytest.mark.slow),
    ],
)
def test_forward_flops(architecture: Architecture, resolution: int, tokens: int | None, teraflops: float) -> None:
    model = family_of(architecture).meta_backbone(build_network(architecture, torch.bfloat16))
    shape = shape_of(architecture, resolution, tokens)
    with as_on_a_gpu(), torch.no_grad(), Usage() as usage:
        prediction = predict(model, meta_probe(shape, 1, 1))
    assert prediction.shape == (1, 1, *shape.latent)
    assert usage.flops / 1e12 == pytest.approx(teraflops, rel=1e-3)


def test_flops_grow_with_the_batch_and_launches_do_not() -> None:
    model = family_of(EDM).meta_backbone(build_network(EDM, torch.float32))
    counts = []
    for groups in (1, 3):
        with as_on_a_gpu(), torch.no_grad(), Usage() as usage:
            predict(model, meta_probe(shape_of(EDM, 32), groups, 2))
        counts.append((usage.flops, usage.launches))
    # The embedding of t is computed for each row too, so everything grows alike.
    assert counts[1] == (3 * counts[0][0], counts[0][1])


def test_every_hub_name_of_the_configs_is_built_in() -> None:
    from pathlib import Path

    import yaml

    root = Path(__file__).parent.parent.parent / "configs"
    for file in [*root.glob("sd*/*.yaml"), *root.glob("edm/*.yaml")]:
        assert yaml.safe_load(file.read_text())["pretrained_model_name_or_path"] in BUILT_IN, file


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot count a FluxTransformer2DModel"):
        build_network(replace(SDXL, network={"_class_name": "FluxTransformer2DModel"}), torch.float32)
    with pytest.raises(ValueError, match="is a FluxPipeline; supported pipelines are"):
        family_of(Architecture("some/flux", "FluxPipeline", {}))


@pytest.mark.parametrize(("architecture", "text"), [(SDXL, 0.109), (SD3, 0.109 + 2.404)])
def test_the_encoders_of_a_step(architecture: Architecture, text: float) -> None:
    """Published sizes; 4.88 TFLOP for a picture of 1024 pixels, and for the prompts what 2 x weights x tokens gives."""
    encoders = build_encoders(architecture, torch.bfloat16)
    sizes = [round(sum(p.numel() for p in part.parameters()) / 1e6) for part in (encoders.vae, *encoders.text)]
    assert sizes == [84, 123, 695, 4762][: len(sizes)] and len(sizes) == len(architecture.text) + 1
    with as_on_a_gpu(), Usage() as usage:
        encoders.run(1, 1, 1024)
    assert usage.flops / 1e12 == pytest.approx(4.88 + text, rel=0.01)


def test_a_network_in_pixel_space_has_no_encoders() -> None:
    with pytest.raises(ValueError, match="EDM for CIFAR-10 has no autoencoder"):
        build_encoders(EDM, torch.float32)
