"""A time series with lags is as long as its model looks back, and its future is what is learnt."""

from __future__ import annotations

from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from lora_doctor.model.loading import Loader  # noqa: E402
from lora_doctor.recipe.recipe import Recipe  # noqa: E402
from lora_doctor.tiny_model.shrink.shrink import shrink  # noqa: E402

FORECASTERS = ("Informer", "TimeSeriesTransformer", "Autoformer")
SETTINGS: dict[str, dict[str, Any]] = {
    "what is known of it": {
        "context_length": 20, "num_time_features": 3, "num_static_categorical_features": 1,
        "cardinality": [300], "embedding_dimension": [4], "num_static_real_features": 2,
    },
    "several at once": {"input_size": 3, "lags_sequence": [1, 5]},
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", FORECASTERS)
def test_a_series_is_forecast_with_a_loss_of_its_own(name: str, setting: str) -> None:
    """None of them took a batch: their history was shorter than their lags."""
    config = getattr(transformers, f"{name}Config")(prediction_length=12, **SETTINGS[setting])
    made = getattr(transformers, f"{name}ForPrediction")
    shrunk = shrink(config, lambda small: made(small))
    batch, small = shrunk.batch, shrunk.model.config
    assert batch.loss == "its own"
    past = batch.inputs["past_values"]
    assert past.shape[1] == small.context_length + max(small.lags_sequence)
    assert batch.inputs["future_values"].shape[1] == small.prediction_length
    shrunk.model(**batch.inputs).loss.backward()
    weight = shrunk.model.get_submodule("model.encoder.layers.0.self_attn.q_proj").weight
    assert float(weight.grad.abs().max()) > 0


@pytest.mark.parametrize("name", ["informer", "time_series_transformer", "autoformer"])
def test_a_default_config_gets_the_horizon_that_its_class_requires(name: str) -> None:
    """`prediction_length` has no default, and the class refuses to be built without it."""
    source = {"kind": "arch", "name": name, "folder": None, "trust_remote_code": False}
    loader = Loader(source, Recipe({}))
    model = loader.build("meta")
    assert model.config.prediction_length == model.config.context_length == 16
    assert any("prediction_length" in change for change in loader.repairs)
