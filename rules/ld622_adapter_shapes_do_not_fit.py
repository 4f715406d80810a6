"""LD622: a saved adapter whose tensors have other shapes than the model's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Rule, Symptom
from lora_doctor.rules._saved_adapter import LOADED, base_class, loaded, shape_text, weights_file

if TYPE_CHECKING:
    from lora_doctor.rule_api import OtherShape


#: The tensor of a learned prompt in an adapter file.
_PROMPT = "prompt_embeddings"


class AdapterShapesDoNotFit(Rule):
    """The rank, the vocabulary or the sizes of the model are not those that the adapter was trained
    with.

    ## What happens
    `PeftModel.from_pretrained` raises `size mismatch for ...`.

    ## Why
    Three causes, distinguished by the dimension that differs. The rank: `r` or `rank_pattern` in
    the config is not the trained one, for example after it was edited. The number of rows of the
    embeddings or the output: tokens were added and the embeddings resized before training, and the
    base model has not been resized now. Otherwise the base model is another one, with other sizes.

    ## Versions
    All.

    ## Fix
    Write the file's rank into the config; call `resize_token_embeddings` with the file's number of
    rows before loading; or use the base model that the adapter was trained on.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD622"
    name = "adapter-shapes-do-not-fit"
    summary = "Tensors of a saved adapter have other shapes than its config and the model imply."
    depth = "meta"
    about_saved_adapter = True
    symptoms = (
        Symptom(
            r"size mismatch for base_model\.model\.\S*"
            r"(lora_|modules_to_save|embed|wte|lm_head|shared|score|classifier)"
        ),
        Symptom(
            r"in loading state_dict for Peft\w+:\s+size mismatch for (?!base_model\.)", weight=-1
        ),
        Symptom(r"size mismatch for \S+\.(?:modules_to_save|lora_(?:embedding_)?[AB])\.\S+"),
        Symptom(r"size mismatch\W+torch\.Size\(\[\d{5,6}, \d+\]\)", weight=-1),
    )
    told_as = (
        "Size mismatch of the embeddings when the adapter is loaded: tokens were added.",
        "The adapter cannot be loaded, its shapes do not match the model's.",
    )
    examples = (
        Example(
            "broken",
            "tests.saved_adapters:of_another_rank",
            loaded=True,
            depth="meta",
            why="the config says r: 16, the tensors have 8",
        ),
        Example(
            "broken",
            "tests.saved_adapters:of_a_longer_vocabulary",
            loaded=True,
            depth="meta",
            why="four tokens were added before training",
        ),
        Example("healthy", "tests.saved_adapters:lora", loaded=True, depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        loading = case.adapter_loading
        empty = [item for item in loading.landing.other_shapes if 0 in item.in_file]
        shapes = loading.landing.other_shapes
        if not shapes or empty:  # nothing was saved: LD623
            return
        cause, advice = _cause(shapes)
        yield self.finding(
            "error",
            f"{len(shapes)} of {loading.landing.tensors} tensors of the adapter do not fit: "
            f"{cause}.",
            location=weights_file(case),
            evidence=(
                *(
                    Measurement(
                        item.name,
                        f"{shape_text(item.in_file)} in the file, {shape_text(item.in_model)} in "
                        "the model",
                        LOADED,
                    )
                    for item in shapes[:4]
                ),
                base_class(loading),
            ),
            proof=loaded(loading),
            fixes=(Fix(advice, "manual"),),
        )


def _cause(shapes: tuple[OtherShape, ...]) -> tuple[str, str]:
    """Why the shapes differ, and what to do."""
    if shapes[0].name == _PROMPT:
        return (
            f"the prompt that was learned is {shapes[0].in_file[1]} wide, the embeddings of the "
            f"base model are {shapes[0].in_model[1]} wide",
            "Load the adapter onto the base model that it was trained on.",
        )
    if all(_of_base_layer(item) for item in shapes):
        return (
            f"they are weights of the base model itself, such as {shapes[0].name}, and the base "
            "model that was trained held them in another form, as in 4 or 8 bits",
            "Save the adapter with save_pretrained of the PeftModel, which leaves the base model's "
            "weights out; or load the base model in the quantization that it was trained in.",
        )
    factors = [item for item in shapes if ".lora_A." in item.name or ".lora_B." in item.name]
    others = [item for item in shapes if item not in factors]
    if factors and not others and all(_only_rank(item) for item in factors):
        ranks = sorted({_rank(item.in_file, item.name) for item in factors})
        asked = sorted({_rank(item.in_model, item.name) for item in factors})
        return (
            f"their rank is {_listed(ranks)}, the config has {_listed(asked)}",
            f"Set r (or rank_pattern) in adapter_config.json to {_listed(ranks)}, and "
            "lora_alpha to the value used in training.",
        )
    if all(item.in_file[1:] == item.in_model[1:] for item in others) and others:
        rows, wanted = others[0].in_file[0], others[0].in_model[0]
        return (
            f"{others[0].name} has {rows} rows in the file and {wanted} in the model, as if "
            "tokens or classes had been added",
            f"Give the base model {rows} rows before the adapter is loaded "
            f"(resize_token_embeddings({rows}), or num_labels={rows} for a head).",
        )
    return (
        "the base model has other sizes than the one used in training",
        "Load the adapter onto the base model that it was trained on.",
    )


def _of_base_layer(item: OtherShape) -> bool:
    """Whether this is the weight of a layer below its adapter, in another number of dimensions or
    of numbers; a head that has more classes keeps its width."""
    return ".base_layer." in item.name and item.in_file[1:] != item.in_model[1:]


def _only_rank(item: OtherShape) -> bool:
    """Whether the side of the layer fits and the side of the rank does not."""
    side = 1 if ".lora_A." in item.name else 0
    return len(item.in_file) == 2 == len(item.in_model) and (
        item.in_file[side] == item.in_model[side]
    )


def _rank(shape: tuple[int, ...], name: str) -> int:
    return shape[0] if ".lora_A." in name else shape[1]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
