"""LD209 on slips of the pen: what was meant is offered, and a wish is never lost as a safe fix."""

from __future__ import annotations

import pytest

import lora_doctor
from lora_doctor.rules.ld209_other_keys_match_nothing import _fixes, _meant
from tests.diagnoses import module_group, structure

MODEL = structure(
    (
        module_group("model.embed_tokens", 1, (64, 16), kind="embedding"),
        module_group("model.layers.*.self_attn.q_proj", 2, (16, 16), adapted=2),
        module_group("model.layers.*.mlp.experts.gate_up_proj", 2, (4, 16, 32), kind="parameter"),
        module_group("lm_head", 1, (64, 16)),
    ),
    (),
)


@pytest.mark.parametrize(
    ("own", "entries", "edits"),
    [
        (["lm_haed"], ["lm_haed"], [("unsafe", ["lm_head"]), ("unsafe", None)]),
        (
            ["embed_token", "score"], ["embed_token", "score"],
            [("unsafe", ["embed_tokens"]), ("unsafe", None)],
        ),
        (
            ["lm_head", "model.embed_token"], ["model.embed_token"],
            [("unsafe", ["lm_head", "model.embed_tokens"]), ("unsafe", ["lm_head"])],
        ),
        # The front of the path is wrong as well: the name alone, which PEFT takes.
        (["body.lm_haed"], ["body.lm_haed"], [("unsafe", ["lm_head"]), ("unsafe", None)]),
        # What was meant is in the recipe already, or carries an adapter, or is another module.
        (["lm_head", "lm_haed"], ["lm_haed"], [("safe", ["lm_head"])]),
        (["q_prj"], ["q_prj"], [("safe", None)]),
        (["v_head", "score"], ["v_head", "score"], [("safe", None)]),
        # A parameter is nothing that modules_to_save takes.
        (["gate_up_prj"], ["gate_up_prj"], [("safe", None)]),
    ],
)  # fmt: skip
def test_modules_to_save(
    own: list[str], entries: list[str], edits: list[tuple[str, list[str] | None]]
) -> None:
    key = "modules_to_save"
    fixes = _fixes(key, own, entries, _meant(MODEL, key, entries, own))
    assert [(fix.safety, fix.edits[0].value) for fix in fixes] == edits
    assert {edit.key for fix in fixes for edit in fix.edits} == {key}


def test_parameters_of_fused_experts() -> None:
    entries = ["experts.gate_up_prj"]
    meant = _meant(MODEL, "target_parameters", entries, entries)
    assert meant == {"experts.gate_up_prj": "experts.gate_up_proj"}
    assert _meant(MODEL, "target_parameters", ["lm_haed"], ["lm_haed"]) == {}


def test_a_layer_that_is_no_target_is_no_slip_of_one_that_is() -> None:
    """`k_proj` is nearly `q_proj`, and the model has both."""
    recipe = {"target_modules": ["q_proj"], "rank_pattern": {"k_proj": 4, "q_porj": 8}}
    diagnosis = lora_doctor.check("arch:llama", recipe, depth="meta")
    (finding,) = [finding for finding in diagnosis.findings if finding.rule == "LD213"]
    assert "q_proj for q_porj" in finding.fixes[0].title
    assert "k_proj" not in finding.fixes[0].title
