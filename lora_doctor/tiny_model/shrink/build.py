"""Build a small model: not larger than allowed, from a seed, with weights that are numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lora_doctor.sandbox.temporary import temporary_folder
from lora_doctor.tiny_model.model_error import ModelError


class TooBig(Exception):
    def __init__(self, parameters: int, largest: str, shape: tuple[int, ...]) -> None:
        self.parameters = parameters
        super().__init__(f"{parameters} parameters, the largest is {largest} {list(shape)}")
        self.shape = shape


def read_back(config: Any) -> tuple[Any, Exception | None]:
    """The config as it is loaded with a saved model, and what its class raises then: many of
    its checks run only when loading. No weights are made.

    Where the class computes an entry from others (Phi-4-multimodal's `nemo_final_size`), that entry
    is another one after loading, and weights of the shape before would not fit.
    """
    if not hasattr(config, "save_pretrained"):
        return config, None
    twin = copy.deepcopy(config)  # saving writes class names into it
    try:
        with temporary_folder() as folder:
            twin.save_pretrained(folder)
            loaded = type(config).from_pretrained(folder)
    except Exception as error:  # noqa: BLE001 - answered like an error of construction
        return config, error
    if _entries(loaded) == _entries(config):
        return config, None
    loaded._name_or_path = getattr(config, "_name_or_path", "")
    return loaded, None


def _entries(config: Any) -> dict[str, Any]:
    """What is saved of a config, as the file has it."""
    text: str = config.to_json_string(use_diff=False)
    found: dict[str, Any] = json.loads(text)
    for key in ("_name_or_path", "transformers_version"):
        found.pop(key, None)
    return found


def build_small(
    config: Any, build: Callable[[Any], Any], max_parameters: int, seed: int, steps: list[str]
) -> Any:
    from accelerate import init_empty_weights

    with seeded(seed):
        try:
            # Not `torch.device("meta")`: what `build` says about the device would undo it, and what
            # code keeps from one model for the next must hold numbers.
            with init_empty_weights():
                _check_size(build(copy.deepcopy(config)), max_parameters)
        except TooBig:
            raise
        except Exception as error:  # noqa: BLE001 - init code that needs real numbers
            steps.append(f"size not checked beforehand: {ModelError.of(error)}")
    with seeded(seed):
        model = build(config)
        _check_size(model, max_parameters)
        model.float()
        repaired = sane_weights(model)
    if repaired:
        steps.append(
            f"initialised {len(repaired)} parameters that the class leaves as they are: "
            f"{', '.join(repaired[:3])}{' ...' if len(repaired) > 3 else ''}"
        )
    model.train()
    return model


def _check_size(model: Any, max_parameters: int) -> None:
    total = sum(p.numel() for p in model.parameters())
    if total > max_parameters:
        name, parameter = max(model.named_parameters(), key=lambda item: int(item[1].numel()))
        raise TooBig(total, name, tuple(parameter.shape))


def sane_weights(model: Any) -> list[str]:
    """Give parameters with garbage (not finite, or beyond 100) small normal values; their names."""
    import torch

    repaired = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.device.type != "meta":
                worst = parameter.abs().max() if parameter.numel() else parameter.new_zeros(())
                # torch.empty may also hand out memory full of denormal numbers
                if not torch.isfinite(worst) or worst > 100 or 0 < worst < 1e-20:
                    parameter.normal_(0.0, 0.02)
                    repaired.append(name)
    return repaired


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from `seed`; the caller's generator is as before afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
