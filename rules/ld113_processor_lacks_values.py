"""LD113: the processor in the model's folder lacks values that its class needs for an image."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    ProcessedImage,
    Proof,
    Rule,
    Symptom,
    excerpt,
)


class ProcessorLacksValues(Rule):
    """The processor of the model's folder raises for an image, or makes more or fewer places for it
    in the tokens than the model has features, since values are not in its config.

    ## What happens
    With LLaVA: `TypeError: unsupported operand type(s) for //: 'int' and 'NoneType'` when the first
    row with an image is processed, or `Image features and image tokens do not match` in the first
    forward.

    ## Why
    Processors write as many tokens for an image as the model has features of it, and count them by
    `patch_size`, `vision_feature_select_strategy` and `num_additional_image_tokens`. Folders from
    before transformers 4.46 do not have these: then the model replaced one token by all features.

    ## Versions
    As the installed transformers has it: its processor was called with one image, and its class
    asked how many features that has. Not told where the script names one of these values.

    ## Fix
    Set them on the processor, or in `processor_config.json`.

    ## Links
    https://github.com/hiyouga/LlamaFactory/issues/7517,
    https://github.com/huggingface/transformers/issues/41206
    """

    code = "LD113"
    name = "processor-lacks-values"
    summary = "The processor in the model's folder lacks values that its class needs for an image."
    depth = "meta"
    symptoms = (
        Symptom(
            r"unsupported operand type\(s\) for //: 'int' and 'NoneType'",
            context=r"processing_\w+\.py",
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/processor_without_sizes",
            {"target_modules": ["q_proj"]},
            {"transformers": ">=4.57"},
            why="a processor of before transformers 4.46",
        ),
        Example(
            "healthy",
            "tests/folders/processor_with_sizes",
            {"target_modules": ["q_proj"]},
            {"transformers": ">=4.57"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.processed_image
        if not found.lacks or _is_set_elsewhere(case, found):
            return
        values = [f"{name} = {value!r}" for name, value in found.lacks.items()]
        yield self.finding(
            "warning",
            f"The {found.processor} of this folder {_outcome(found)}; with {', '.join(values)} it "
            "does not.",
            location=Location("file", _file(case)),
            evidence=(
                *_measured(found),
                Measurement("works with", ", ".join(values),
                            "the model's config, and the processor called again"),
            ),
            proof=Proof("executed", "the installed processor was called with one image, without "
                        "these values and with them"),
            fixes=(
                Fix("Set them on the processor before the first image: "
                    + "; ".join(f"processor.{one}" for one in values) + ".", "manual"),
            ),
        )  # fmt: skip


def _outcome(found: ProcessedImage) -> str:
    if found.error is not None:
        return f"fails on an image with {excerpt(found.error)}"
    return (
        f"writes {found.places:,} tokens for an image of which the model makes "
        f"{found.features:,} features"
    )


def _measured(found: ProcessedImage) -> Iterator[Measurement]:
    if found.error is not None:
        yield Measurement("with an image", str(found.error), found.error.where)
        return
    yield Measurement("places for an image", f"{found.places:,} tokens", found.processor)
    yield Measurement("features of it", f"{found.features:,}", "the class on the meta device")


def _is_set_elsewhere(case: Case, found: ProcessedImage) -> bool:
    """Whether a script names one of these values, or a framework makes the processor."""
    if case.has("program"):
        units = case.program.program.units
        return any(name in unit.text for name in found.lacks for unit in units)
    return case.has("set_up")


def _file(case: Case) -> str:
    """The file in which the values would be."""
    names = ("processor_config.json", "preprocessor_config.json")
    return names[0] if case.static.json_file(names[0]).value is not None else names[1]
