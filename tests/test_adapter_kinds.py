"""Adapters other than LoRA: the verdict is what plain PEFT does, told by a run that knows nothing
of us (`tools.plain_peft`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

import lora_doctor
from lora_doctor.contract.adapter_inputs import with_trained_tokens
from lora_doctor.errors import InputError
from lora_doctor.recipe.files.read_write import read_recipe
from lora_doctor.recipe.recipe import Recipe, make_recipe
from lora_doctor.sandbox.worker import Worker
from tools.adapter_kinds import BEGIN, END, kinds, row, write_table
from tools.plain_peft import ARCHITECTURES, train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("kind", "architecture", "stage"),
    [
        ("LOHA", "llama", "done"),  # its `alpha` is its own key
        ("ADALORA", "t5", "done"),  # loaded to be used, it gives no loss
        ("BOFT", "bert", "done"),  # cannot be made on the meta device
        ("ADAPTION_PROMPT", "llama", "done"),  # has no tuner layers
        ("ADAPTION_PROMPT", "bert", "build"),  # is for Llama and its kin
        ("POLY", "llama", "done"),  # wants the task of each row
        ("BEFT", "llama", "merge"),  # has no bias to merge into
        ("GLORA", "bert", "done"),  # scales a bias, which random weights have as zero
    ],
)
def test_a_kind_is_judged_as_plain_peft_treats_it(
    kind: str, architecture: str, stage: str, worker: Worker
) -> None:
    if kind not in kinds():
        pytest.skip(f"this PEFT has no {kind}")
    found = row(kind, architecture, worker)
    assert found["truth"]["stage"] == stage, found
    assert found["agrees"], found


def test_the_plain_run_fails_where_nothing_learns() -> None:
    """What we are held against can say no."""
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["no_such_layer"]}
    assert train("llama", values).stage == "build"
    assert set(ARCHITECTURES) == {"llama", "bert", "t5"}


def _written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_alpha_of_loha_reaches_its_config_and_an_unknown_key_does_not(tmp_path: Path) -> None:
    path = _written(
        tmp_path, {"peft_type": "LOHA", "r": 8, "alpha": 4, "lora_dropout": 0.1, "use_dora": False}
    )
    recipe = read_recipe(path)
    assert recipe.config_arguments() == {"r": 8, "alpha": 4}
    assert set(recipe.unknown) == {"lora_dropout", "use_dora"}


def test_a_key_of_another_kind_is_refused_in_a_recipe_with_the_near_name() -> None:
    with pytest.raises(InputError, match="unknown key 'init_wieghts'; did you mean 'init_weights'"):
        make_recipe({"peft_type": "LOHA", "init_wieghts": True}, where="r", origin="file")
    with pytest.raises(InputError, match="unknown key 'use_dora'; see PEFT's config of IA3"):
        make_recipe({"peft_type": "IA3", "use_dora": True}, where="r", origin="file")


def test_a_kind_that_needs_weights_is_undetermined_at_meta(worker: Worker) -> None:
    """Nothing was tried there: that is no `healthy`."""
    if "BOFT" not in kinds():
        pytest.skip("this PEFT has no BOFT")
    recipe = {"peft_type": "BOFT", "boft_block_size": 4, "target_modules": ["q_proj"]}
    found = lora_doctor.check("arch:llama", recipe, depth="meta", worker=worker)
    assert found.undetermined and "BOFT adapters cannot be made without weights" in str(
        found.undetermined
    )
    wrong = lora_doctor.check(
        "arch:llama", {**recipe, "target_modules": ["qproj"]}, depth="meta", worker=worker
    )
    assert any(one.severity == "error" for one in wrong.findings), wrong.findings


@pytest.mark.parametrize("tokens", [[1, 2, 511], {"embed_tokens": [31999, 7]}])
def test_trained_tokens_are_in_the_batch_that_proves_them(tokens: Any, worker: Worker) -> None:
    if "TRAINABLE_TOKENS" not in kinds():
        pytest.skip("this PEFT trains no single tokens")
    recipe = {"target_modules": ["q_proj", "v_proj"], "trainable_token_indices": tokens}
    found = lora_doctor.check("arch:llama", recipe, worker=worker)
    assert not [one for one in found.findings if one.severity != "info"], found.findings
    assert found.before is not None and found.before.outcome == "passed"
    assert not any("not proven" in note.text for note in found.before.notes)


def test_an_activated_lora_gets_the_tokens_that_it_waits_for(worker: Worker) -> None:
    """Before the invocation sequence it does nothing: without it all gradients are zero."""
    if not hasattr(LoraConfig, "alora_invocation_tokens"):
        pytest.skip("this PEFT has no activated LoRA")
    recipe = {"target_modules": ["q_proj", "v_proj"], "alora_invocation_tokens": [31000, 7, 31000]}
    found = lora_doctor.check("arch:llama", recipe, worker=worker)
    assert not [one for one in found.findings if one.severity != "info"], found.findings
    assert found.before is not None and found.before.outcome == "passed"
    # A sequence that the vocabulary cannot hold never occurs.
    lost = lora_doctor.check(
        "arch:llama", {**recipe, "alora_invocation_tokens": [32000]}, worker=worker
    )
    assert [one for one in lost.findings if one.severity == "error"]


def test_a_token_is_put_where_no_padding_is() -> None:
    import torch

    from lora_doctor.tiny_model.batch.result import Batch

    model = ARCHITECTURES["llama"].build()
    mask = torch.tensor([[0, 0, 1, 1]])
    inputs = {"input_ids": torch.tensor([[0, 0, 5, 6]]), "attention_mask": mask}
    recipe = Recipe({"trainable_token_indices": [9, 4000]})
    changed = with_trained_tokens(model, Batch(inputs, ["text"], "labels"), recipe)
    assert changed.inputs["input_ids"].tolist() == [[0, 0, 9, 6]]
    assert inputs["input_ids"].tolist() == [[0, 0, 5, 6]]


def test_the_table_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"versions": {"transformers": "5", "peft": "0"}}]
    for kind, stage, agrees in (("A", "done", True), ("B", "merge", False)):
        lines.append({
            "kind": kind, "architecture": "t5", "truth": {"stage": stage, "said": "no <bias>"},
            "findings": [], "undetermined": "", "agrees": agrees,
        })  # fmt: skip
    records, page = tmp_path / "one.jsonl", tmp_path / "page.md"
    records.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    page.write_text("# Census\n", encoding="utf-8")
    write_table(page, [records])
    once = page.read_text(encoding="utf-8")
    write_table(page, [records])
    assert page.read_text(encoding="utf-8") == once and once.startswith("# Census\n")
    assert once.count(BEGIN) == once.count(END) == 1
    assert "| A |  |  | trains |" in once and "| B |  |  | no merge, **healthy** |" in once
    assert "no &lt;bias>" in once


def test_an_empty_list_of_targets_is_not_told_as_a_lacking_default(worker: Worker) -> None:
    """A script that collects the 4-bit layers of a model that was not quantized finds none; PEFT
    has a default for Llama, which an empty list does not ask for."""
    found = lora_doctor.check("arch:llama", {"target_modules": []}, depth="meta", worker=worker)
    message = next(f.message for f in found.findings if f.rule == "LD201")
    assert "is an empty list" in message and "no default" not in message
