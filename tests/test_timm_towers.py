"""Towers that a config has only a name for, and what they need to be tried as tiny models.

A user of Gemma 3n, FastVLM or PerceptionLM has a config without one width of its vision tower: the
tower is a name of timm's. It must become small and stay the same model otherwise.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from lora_doctor.evidence import tiny
from lora_doctor.model import zero_weights
from lora_doctor.model.loading import Loader
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.tiny_model.config_roles import tree, width_map


def _made(name: str, auto_class: str) -> tuple[Any, Any]:
    """The tiny model of a default config, and the same class at full size without storage."""
    source = {"kind": "arch", "name": name, "trust_remote_code": False}
    loader = Loader(source, as_recipe({"model_class": auto_class}))
    full = loader.build("meta")
    return tiny.make(loader), full


def _kinds(model: Any) -> set[tuple[str, str]]:
    """Names of modules without their numbers, with their classes."""
    return {
        (re.sub(r"\d+", "*", name), type(module).__name__) for name, module in model.named_modules()
    }


@pytest.mark.parametrize(
    ("name", "auto_class"),
    [
        ("gemma3n", "AutoModelForImageTextToText"),
        ("fast_vlm", "AutoModelForImageTextToText"),
        ("perception_lm", "AutoModelForImageTextToText"),
        ("timm_wrapper", "AutoModelForImageClassification"),
    ],
)
def test_a_tower_with_only_a_name_becomes_small_and_stays_the_same_model(
    name: str, auto_class: str
) -> None:
    """Without this, `check arch:gemma3n` ends in "299 million parameters" where timm is there."""
    pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    if name not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    shrunk, full = _made(name, auto_class)
    assert sum(parameter.numel() for parameter in shrunk.model.parameters()) < 30_000_000
    assert shrunk.batch is not None and "pixel_values" in shrunk.batch.inputs
    assert _kinds(shrunk.model) == _kinds(full)


def test_sizes_of_blocks_that_are_described_one_by_one_are_shrunk() -> None:
    """MobileNet's kind lists its blocks as dicts, a list a stage: their widths are widths, too."""
    pytest.importorskip("torch")
    blocks = [[{"kind": "conv", "out_chs": 640}], [{"kind": "attention", "out_chs": 1280}]]
    nodes = list(tree({"blocks": blocks}).walk())
    assert [node.path for node in nodes[1:]] == ["blocks.0.0", "blocks.1.0"]
    nodes[1].set("out_chs", 64)
    assert blocks[0][0]["out_chs"] == 64
    small = width_map(tree({"blocks": [[{"out_chs": 640}], [{"out_chs": 1280}]]}), 32)
    assert small[1280] == 2 * small[640]


def test_stages_that_double_their_width_still_do() -> None:
    """Five stages from 96 to 1536 with convolutions between, in as many groups as the stage before
    is wide: widths in any other proportion cannot be built."""
    pytest.importorskip("torch")
    widths = [96, 192, 384, 768, 1536]
    small = width_map(tree({"embed_dims": widths}), 32)
    assert [small[number] for number in widths] == [32, 64, 128, 256, 512]


def test_an_image_reaches_the_end_of_a_chain_of_convolutions() -> None:
    """FastViT as it is run has convolutions of nine inputs and no norm behind them; with weights as
    small as they are made, 1e-20 of an image is left, and no gradient that an optimizer sees."""
    torch = pytest.importorskip("torch")
    chain = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(12)))
    for layer in chain:
        torch.nn.init.normal_(layer.weight, std=0.02)
        torch.nn.init.zeros_(layer.bias)
    image = torch.randn(1, 8, 16, 16)
    assert float(chain(image).abs().mean()) < 1e-10
    zero_weights.wake_zero_weights(chain)
    assert float(chain(image).abs().mean()) > 1e-3


def test_a_head_takes_the_channels_of_the_backbone_that_the_config_has() -> None:
    """UperNet counts on a Swin's channels and has a ResNet by default: no image could be run."""
    transformers = pytest.importorskip("transformers")
    if "upernet" not in transformers.CONFIG_MAPPING:
        pytest.skip("this transformers has no upernet")
    shrunk, _ = _made("upernet", "AutoModelForSemanticSegmentation")
    assert shrunk.batch is not None
    assert shrunk.model(**shrunk.batch.inputs).logits.shape[0] == 2
