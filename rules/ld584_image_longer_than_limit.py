"""LD584: one image may take more tokens than the length limit leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    framework_named,
)

_FILES = ("preprocessor_config.json", "processor_config.json")
#: ``size.longest_edge`` counts pixels of the whole image in processors that merge patches, and
#: those of one edge in others: no edge is that long.
_AREA = 10_000


class ImageLongerThanLimit(Rule):
    """One image may take more tokens than the length limit leaves.

    ## What happens
    A row with such an image is cut within its placeholder tokens, and the forward raises: "Image
    features and image tokens do not match". Some frameworks drop the row instead.

    ## Why
    Processors that keep an image's resolution (Qwen-VL and others) turn every square of patches
    into a token, up to a number of pixels that is far above most length limits. How large the
    images of the data are is not known here, so this is the worst case: one image at that limit.

    ## Versions
    Models whose processor has `patch_size`, `merge_size` and a limit of pixels in its config.

    ## Fix
    Smaller images: `max_pixels` of the processor, `MAX_PIXELS` in ms-swift, `image_max_pixels` in
    LLaMA-Factory. Or a longer limit, which takes memory.

    ## Links
    https://huggingface.co/docs/transformers/model_doc/qwen2_vl
    """

    code = "LD584"
    name = "image-longer-than-limit"
    summary = "One image may take more tokens than the length limit leaves."
    depth = "static"
    examples = (
        Example(
            "broken",
            "tests/folders/images_by_pixels",
            {"max_length": 1024},
            requires={"transformers": ">=4.45"},
            depth="static",
        ),
        Example(
            "healthy",
            "tests/folders/images_by_pixels",
            {"max_length": 2048},
            requires={"transformers": ">=4.45"},
            depth="static",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        limit = case.recipe.get("max_length")
        config, file = _image_processor(case)
        side = _side(config)
        pixels, where = _pixels(case, config, file)
        if not isinstance(limit, int) or not side or not pixels:
            return
        tokens = pixels // side**2
        if tokens < limit:
            return
        length = -(-(tokens + 1) // 1024) * 1024
        yield self.finding(
            "info",
            f"One image at the processor's limit takes {tokens} tokens, and rows are cut at "
            f"{limit}.",
            location=Location("recipe", "max_length"),
            evidence=(
                Measurement("max_length", limit,
                            str(case.recipe.places.get("max_length", "the recipe"))),
                Measurement("pixels of an image", pixels, where),
                Measurement("pixels of a token", f"{side} × {side}", case.static.where(file)),
            ),
            proof=Proof("inferred", "the processor's config; no image was looked at"),
            fixes=(
                Fix(f"Limit images to fewer than {limit * side**2:,} pixels.", "manual"),
                Fix(f"Make room for such an image: max_length {length}.", "unsafe",
                    (Edit("max_length", length),)),
            ),
        )  # fmt: skip


def _image_processor(case: Case) -> tuple[Mapping[str, Any], str]:
    """The config of the image processor, and its file: one of its own, or a part of the whole
    processor's. Raises EvidenceError where there is neither."""
    for name in _FILES:
        found = case.static.json_file(name).value or {}
        inner = found.get("image_processor", found)
        if isinstance(inner, dict) and inner:
            return inner, name
    case.static.json_file(_FILES[0]).require()
    return {}, _FILES[0]


def _side(config: Mapping[str, Any]) -> int:
    """The side of the square of pixels that becomes one token; 0 where it is not known."""
    patch, merge = config.get("patch_size"), config.get("merge_size")
    known = type(patch) is int and type(merge) is int and patch > 0 and merge > 0
    return patch * merge if known else 0  # type: ignore[operator]


def _pixels(case: Case, config: Mapping[str, Any], file: str) -> tuple[int, str]:
    """The most pixels that an image keeps, and where that is set; 0 where it is not known."""
    size = config.get("size")
    held = size if isinstance(size, dict) else {}
    given = (config.get("max_pixels"), held.get("max_pixels"), held.get("longest_edge"))
    own = next((one for one in given if type(one) is int and one > _AREA), 0)
    limits = [(own, case.static.where(file))] if own else []
    if case.has("set_up"):
        set_up = case.set_up
        for name, pixels in framework_named(set_up.format).image_pixels(set_up):
            limits.append((pixels, name))
    return min(limits) if limits else (0, "")
