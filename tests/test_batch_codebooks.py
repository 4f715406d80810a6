"""A decoder of several codebooks gets steps to attend to, not only the one it starts with."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from lora_doctor.tiny_model.shrink.shrink import shrink  # noqa: E402


def test_codes_are_several_steps_long_and_have_labels() -> None:
    """Attention over a single step has no gradient but rounding, which moves an adapter as well."""
    if not hasattr(transformers, "DiaForConditionalGeneration"):
        pytest.skip("this transformers has no Dia")
    made = transformers.DiaForConditionalGeneration
    shrunk = shrink(transformers.DiaConfig(), lambda config: made(config))
    batch = shrunk.batch
    assert batch.loss == "labels"
    rows, steps, codebooks = batch.inputs["decoder_input_ids"].shape
    assert steps > 1 and tuple(batch.inputs["labels"].shape) == (rows * codebooks, steps)
    shrunk.model(**batch.inputs)["loss"].backward()
    weight = shrunk.model.get_submodule("model.decoder.layers.0.self_attention.q_proj").weight
    assert float(weight.grad.abs().max()) > 1e-9
