"""LD634: a checkpoint whose weights have other shapes than its config makes."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    pattern_of,
    quoted,
)
from lora_doctor.rules._saved_adapter import shape_text
from lora_doctor.static.folder.vocabulary import vocabulary_mismatches


class WeightsOfOtherSizes(Rule):
    """Weights of the checkpoint have other shapes than the class has by its config.

    ## What happens
    `from_pretrained` raises: `size mismatch for ...`, in transformers 5 `You set
    ignore_mismatched_sizes to False, thus raising an error`.

    ## Why
    The config beside the weights is another model's or was edited: `intermediate_size`,
    `num_key_value_heads`, a `head_dim` that is left out and is not `hidden_size` divided by the
    heads, `num_labels` of another data set. Or this release of transformers reads an entry of the
    config in another way than the one that wrote it.

    ## Versions
    All. The installed transformers is given the names and shapes of the checkpoint and told to go
    on where they do not fit.

    ## Fix
    The config and the weights of one revision. For a head of another number of classes,
    `ignore_mismatched_sizes=True` makes a new one at random, which then has to be trained and
    saved (`modules_to_save`).

    ## Links
    https://huggingface.co/docs/transformers/main_classes/model
    """

    code = "LD634"
    name = "weights-of-other-sizes"
    summary = "The checkpoint has weights of other shapes than its config makes."
    depth = "meta"
    symptoms = (
        Symptom(
            r"size mismatch for (?:model|transformer|bert|vit|gpt_neox)\.(?:\w+\.)*\d+\.\S+: "
            r"copying a param with shape torch\.Size\(\[(?!0\])[\d, ]+\]\) from checkpoint"
        ),
        Symptom(r"You set `ignore_mismatched_sizes` to `False`, thus raising an error", weight=-1),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/sizes_of_another_config",
            {"target_modules": ["q_proj", "v_proj"]},
            depth="meta",
            why="intermediate_size was edited",
        ),
        Example(
            "healthy",
            "tests/folders/base_without_head",
            {"target_modules": ["q_proj", "v_proj"]},
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        loading = case.loading
        told = _of_the_vocabulary(case)  # LD612
        found = [item for item in loading.other_sizes if item.name not in told]
        if not found:
            return
        patterns = list(dict.fromkeys(pattern_of(item.name) for item in found))
        first = found[0]
        yield self.finding(
            "error",
            f"{len(found)} weights of the checkpoint have other shapes than {loading.model_class} "
            f"has by its config ({quoted(patterns, 3)}): from_pretrained will refuse them.",
            location=Location("file", "config.json"),
            evidence=(
                Measurement("in the checkpoint", f"{first.name} {shape_text(first.in_file)}",
                            "header of the weights"),
                Measurement("in the model", shape_text(first.in_model),
                            f"{loading.model_class} by its config, installed transformers"),
                Measurement("weights that do not fit", quoted(patterns, 8),
                            "from_pretrained on the meta device"),
            ),
            proof=Proof("measured", "the names and shapes were given to from_pretrained on the "
                        "meta device"),
            fixes=(
                Fix("Take the config and the weights of one revision. A head alone: load with "
                    "ignore_mismatched_sizes=True, and train and save the new one "
                    "(modules_to_save).", "manual"),
            ),
            explains=("builds",),
        )  # fmt: skip


def _of_the_vocabulary(case: Case) -> set[str]:
    if not case.has("static") or case.static.weights.value is None:
        return set()
    return {
        item.tensor for item in vocabulary_mismatches(case.static.config, case.static.weights.value)
    }
