"""LD113's evidence: an image through processors whose folders lack one value or another."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaProcessor

from lora_doctor.evidence.processed_image import gather
from lora_doctor.recipe.recipe import Recipe

_COMPLETE = Path("tests/folders/processor_with_sizes")


@pytest.mark.skipif(
    "vision_feature_select_strategy" not in inspect.signature(LlavaProcessor.__init__).parameters,
    reason="this transformers replaces the token of an image in the model",
)
@pytest.mark.parametrize(
    ("changed", "places", "lacks"),
    [
        ({}, 16, {}),
        ({"patch_size": None}, 0, {"patch_size": 8}),
        (
            {"vision_feature_select_strategy": None},
            17,
            {"vision_feature_select_strategy": "default"},
        ),
        ({"num_additional_image_tokens": 0}, 15, {"num_additional_image_tokens": 1}),
        # Given, and other than the model's: that is no value which is lacking.
        ({"vision_feature_select_strategy": "full"}, 17, {}),
    ],
)
def test_a_value_lacks_where_it_makes_as_many_places_as_features(
    tmp_path: Path, changed: dict[str, Any], places: int, lacks: dict[str, Any]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(_COMPLETE, folder)
    file = folder / "processor_config.json"
    settings = {**json.loads(file.read_text()), **changed}
    file.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    image = folder / "preprocessor_config.json"  # where releases before 5 look for it
    image.write_text(json.dumps(settings["image_processor"]))
    source = {"kind": "folder", "name": "m", "folder": str(folder), "trust_remote_code": False}
    found = gather(source, Recipe({"target_modules": ["q_proj"]}).to_json())
    assert (found["places"], found["lacks"]) == (places, lacks)
    assert (found["error"] is None) is bool(places)
