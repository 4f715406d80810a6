"""One table says which argument of a forward belongs to which modality."""

from __future__ import annotations

import pytest

from lora_doctor.tiny_model.batch.values.makers import MAKERS
from lora_doctor.tiny_model.modalities import (
    MODALITIES,
    Modality,
    carried,
    is_made_by_default,
    taken,
)


@pytest.mark.parametrize("modality", MODALITIES, ids=lambda modality: modality.name)
def test_the_arguments_of_a_modality_can_be_made_and_are_seen_in_a_batch(
    modality: Modality,
) -> None:
    assert set(modality.taken_by) <= set(modality.carried_by)
    assert {*modality.taken_by, *modality.made_by_default} <= set(MAKERS)
    assert set(modality.tower_arguments) <= set(MAKERS)


def test_a_forward_and_a_batch_are_read_by_the_same_table() -> None:
    assert taken(["input_ids", "pixel_values", "input_features"]) == {"text", "image", "audio"}
    # A decoder's ids are made with any input: they do not make its forward one that takes text.
    assert taken(["input_features", "decoder_input_ids"]) == {"audio"}
    assert carried({"input_features": 0, "decoder_input_ids": 0}) == ["text", "audio"]
    assert carried({"pixel_values_videos": 0, "inputs_embeds": 0}) == ["text", "video"]


def test_what_goes_with_an_image_is_made_only_beside_one() -> None:
    assert is_made_by_default("image_grid_thw", {"text", "image"})
    assert not is_made_by_default("image_grid_thw", {"text"})
    assert not is_made_by_default("pixel_mask", {"text", "image"})


def test_videos_of_a_users_own_batch_are_seen() -> None:
    from lora_doctor.model.contract_batches import make_batches

    inputs = {"input_ids": 0, "pixel_values_videos": 0, "labels": 0}
    (batch,) = make_batches(None, [inputs], None, [])
    assert batch.modality == ["text", "video"] and batch.loss == "labels"
