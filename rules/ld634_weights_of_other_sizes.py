"""LD634: a checkpoint whose weights have other shapes than the model built from its config."""

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
    """Weights in the checkpoint have other shapes than in the model that the config builds.

    ## What happens
    `from_pretrained` raises `size mismatch for ...`, or `You set ignore_mismatched_sizes to False,
    thus raising an error` in transformers 5.

    ## Why
    The config next to the weights belongs to another model or was edited: `intermediate_size`,
    `num_key_value_heads`, a missing `head_dim` that is not `hidden_size` divided by the number of
    heads, or `num_labels` of another data set. Or this release of transformers reads an entry of
    the config differently from the release that wrote it.

    ## Versions
    All. The installed transformers loads the names and shapes of the checkpoint, and reports the
    weights that do not fit.

    ## Fix
    Use config and weights of the same revision. For a head with another number of classes,
    `ignore_mismatched_sizes=True` creates a new, randomly initialised one, which then has to be
    trained and saved (`modules_to_save`).

    ## Links
    https://huggingface.co/docs/transformers/main_classes/model
    """

    code = "LD634"
    name = "weights-of-other-sizes"
    summary = "Weights in the checkpoint have other shapes than the model that its config builds."
    depth = "meta"
    symptoms = (
        Symptom(
            r"size mismatch for (?:model|transformer|bert|vit|gpt_neox)\.(?:\w+\.)*\d+\.\S+: "
            r"copying a param with shape torch\.Size\(\[(?!0\])[\d, ]+\]\) from checkpoint"
        ),
        Symptom(
            r"size mismatch for (?!base_model\.)(?:\w+\.)+\d+\.\S+: copying a param with shape "
            r"torch\.Size\(\[(?!0\])[\d, ]+\]\) from checkpoint",
            context=r"state_dict for (?!Peft)\w+(?:For[A-Z]\w+|LMHeadModel)\b",
        ),
        Symptom(
            r"size mismatch for (?!base_model\.|\S*(?:embed|wte|lm_head|shared))(?:\w+\.)+\w+: "
            r"copying a param with shape torch\.Size\(\[(?!0\])[\d, ]+\]\) from checkpoint",
            context=r"state_dict for (?!Peft)\w+For[A-Z]\w+",
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
        known = _of_the_vocabulary(case)  # LD612
        found = [item for item in loading.other_sizes if item.name not in known]
        if not found:
            return
        patterns = list(dict.fromkeys(pattern_of(item.name) for item in found))
        first = found[0]
        yield self.finding(
            "error",
            f"{len(found)} weights in the checkpoint have other shapes than in the "
            f"{loading.model_class} that its config builds ({quoted(patterns, 3)}): "
            "from_pretrained raises an error.",
            location=Location("file", "config.json"),
            evidence=(
                Measurement("in the checkpoint", f"{first.name} {shape_text(first.in_file)}",
                            "header of the weights"),
                Measurement("in the model", shape_text(first.in_model),
                            f"{loading.model_class} built from the config, installed transformers"),
                Measurement("weights that do not fit", quoted(patterns, 8),
                            "from_pretrained on the meta device"),
            ),
            proof=Proof("measured", "from_pretrained was given the names and shapes on the "
                        "meta device"),
            fixes=(
                Fix("Use config and weights of the same revision. If only the head differs, load "
                    "with ignore_mismatched_sizes=True, and train and save the new head "
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
