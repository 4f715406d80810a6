"""The report on InstructBLIP: PEFT's wrapper sends a text model's arguments to a model that has
images. It chained the model's parts by hand; what else there is keeps the model as it is.

Each model under each ``task_type``: with transformers and PEFT alone, and what the tool says.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.engine.registry import find_rules
from lora_doctor.engine.symptoms import find_by_message
from lora_doctor.prescription.apply import apply, make_prescription
from lora_doctor.recipe.edit import Edit, Patch
from lora_doctor.recipe.files.prescription import Prescription, write_prescription
from lora_doctor.recipe.normal_forms import TASK_TYPES
from lora_doctor.sandbox.worker import Worker
from tests import cli
from tests.multimodal_models import TEXT_MODELS, build, has_placeholders, write_folder
from tests.scenario import Versions, holds, message_of, prove

pytestmark = pytest.mark.slow

REPORT = "InstructBLIP"
GENERATING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
OTHERS = tuple(task for task in TASK_TYPES if task not in GENERATING)
#: Until then InstructBLIP and BLIP-2 take every wrapper's arguments the wrong way.
TAKES_EMBEDS = {"transformers": "<4.57"}
#: Until then T5 has no ``**kwargs``, and says so to start_positions.
T5_IS_STRICT = {"transformers": "<5"}


@dataclass(frozen=True)
class Row:
    """What is true of a model: on which versions it fails, under which task types.

    ``shown``: the task type for which the whole story is told. ``thorough``: each of them is also
    trained, not only looked at.
    """

    shown: str
    fails: tuple[tuple[Versions, tuple[str, ...]], ...] = field(default=(({}, TASK_TYPES),))
    thorough: bool = False

    def failing(self) -> set[str]:
        return {task for versions, tasks in self.fails if holds(versions) for task in tasks}


_FUSED = ((TAKES_EMBEDS, TASK_TYPES),)
_FUSED_T5 = (*_FUSED, (T5_IS_STRICT, ("QUESTION_ANS",)))
ROWS: Mapping[str, Row] = {
    "instructblip-t5": Row("SEQ_2_SEQ_LM", _FUSED_T5, thorough=True),
    "instructblip-opt": Row("CAUSAL_LM", _FUSED),
    "instructblip-llama": Row("CAUSAL_LM", _FUSED),
    "blip2-t5": Row("SEQ_2_SEQ_LM", _FUSED_T5),
    "blip2-opt": Row("CAUSAL_LM", _FUSED),
    "blip-vqa": Row("SEQ_2_SEQ_LM"),
    "blip-caption": Row("CAUSAL_LM"),
    "whisper": Row("SEQ_2_SEQ_LM", thorough=True),
    "speech2text": Row("SEQ_2_SEQ_LM"),
    "pix2struct": Row("SEQ_2_SEQ_LM", (({"transformers": "<5"}, TASK_TYPES),)),
    "vision-encoder-decoder": Row("SEQ_2_SEQ_LM", _FUSED),
    # Without a head and without generation, the text-generating wrappers fail for another reason.
    "clip": Row("FEATURE_EXTRACTION", (({}, OTHERS),)),
    "wav2vec2-classifier": Row("SEQ_CLS", (({"transformers": "<5"}, OTHERS),)),
    "t5": Row("QUESTION_ANS", ((T5_IS_STRICT, ("QUESTION_ANS",)),)),
}
NAMES = {
    "instructblip-t5": "InstructBLIP with T5", "instructblip-opt": "InstructBLIP with OPT",
    "instructblip-llama": "InstructBLIP with Llama", "blip2-t5": "BLIP-2 with T5",
    "blip2-opt": "BLIP-2 with OPT", "blip-vqa": "BLIP for question answering",
    "blip-caption": "BLIP for captions", "whisper": "Whisper", "speech2text": "Speech2Text",
    "pix2struct": "Pix2Struct", "vision-encoder-decoder": "ViT with GPT-2",
    "clip": "CLIP", "wav2vec2-classifier": "Wav2Vec2 with a classifier", "t5": "T5",
}  # fmt: skip


def wrapped(name: str, task: str | None, size: int = 2, **more: Any) -> tuple[Any, dict[str, Any]]:
    """A tiny model in PEFT's wrapper, LoRA on all its attention, and a batch."""
    import peft

    model, batch = build(name, size)
    options = {"target_modules": targets(model), "r": 2, **more}
    return peft.get_peft_model(model, peft.LoraConfig(task_type=task, **options)).eval(), batch


def targets(model: Any, part: str = "") -> list[str]:
    """Full names of the linear layers of a part, but for heads."""
    import torch

    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return [name for name in names if part in name and "head" not in name and "class" not in name]


def plain_step(name: str, task: str | None) -> None:
    """A training step with transformers and PEFT alone."""
    model, batch = wrapped(name, task)
    model(**batch).loss.backward()


@pytest.mark.parametrize("name", ROWS)
def test_every_task_type(name: str, tmp_path: Path, worker: Worker) -> None:
    """What fails is found, explained, fixed and trained; what works is left alone."""
    row, failing = ROWS[name], ROWS[name].failing()
    folder = tmp_path / name
    model_class = write_folder(name, folder)
    plain_step(name, None)
    for task in TASK_TYPES:
        recipe = {"task_type": task, "model_class": model_class}
        if name == "clip" and task in GENERATING:
            _another_rule_speaks(folder, recipe, worker)
            continue
        if name == "wav2vec2-classifier" and task in GENERATING:
            continue  # nobody would; LD101's examples have a class that does not generate
        message = message_of(partial(plain_step, name, task))
        assert bool(message) == (task in failing), (task, message)
        if message:
            known = {match.rule.code for match in find_by_message(message, find_rules())}
            assert "LD102" in known, message
        _judged(folder, recipe, task in failing, worker)
        if row.thorough and task != row.shown:
            _trained(folder, recipe, task in failing, worker)
    diagnosis = prove(
        REPORT,
        f"{NAMES[name]}: PEFT's arguments",
        "LD102",
        str(folder),
        {"task_type": row.shown, "model_class": model_class},
        worker=worker,
        occurs=row.shown in failing,
        plainly=partial(plain_step, name, row.shown),
    )
    assert not diagnosis.undetermined
    if row.shown in failing:
        assert serious(diagnosis) == ["LD102"]
        assert diagnosis.fixed_recipe and diagnosis.fixed_recipe.get("task_type") is None
        kept = diagnosis.fixed_recipe.get("modules_to_save")
        assert kept == (["classifier"] if name == "wav2vec2-classifier" else None)
    else:
        assert not serious(diagnosis)


def serious(diagnosis: lora_doctor.Diagnosis) -> list[str]:
    """Rules with more to say than for information."""
    return [finding.rule for finding in diagnosis.findings if finding.severity != "info"]


def _judged(folder: Path, recipe: dict[str, Any], fails: bool, worker: Worker) -> None:
    """Without running it: found where the signature tells, left open where only a run would."""
    diagnosis = lora_doctor.check(
        str(folder), recipe, depth="meta", select=("LD102",), worker=worker
    )
    assert diagnosis.structure is not None
    found = bool(diagnosis.findings)
    left_open = [item for item in diagnosis.skipped if item.rule == "LD102"]
    assert found + bool(left_open) + ("LD102" in diagnosis.passed) == 1
    if fails:
        assert found or "known by running it" in left_open[0].reason
        assert found == (not diagnosis.structure.forward_takes_any)
    else:
        assert not found


def _trained(folder: Path, recipe: dict[str, Any], fails: bool, worker: Worker) -> None:
    diagnosis = lora_doctor.fix(str(folder), recipe, worker=worker)
    assert serious(diagnosis) == ["LD102"] * fails
    proof = diagnosis.after if fails else diagnosis.before
    assert proof is not None and proof.outcome == "passed", proof


def _another_rule_speaks(folder: Path, recipe: dict[str, Any], worker: Worker) -> None:
    """CLIP generates no text: that is the cause, and it is one finding."""
    diagnosis = lora_doctor.check(
        str(folder), recipe, depth="meta", select=("LD101", "LD102"), worker=worker
    )
    assert [finding.rule for finding in diagnosis.findings] == ["LD101"]


# --- the same numbers as without PEFT -------------------------------------------------------------

PARTS = {"language model": "language_model", "Q-Former": "qformer"}
FIXES = {"edit": (None, ()), "patch": ("SEQ_2_SEQ_LM", (Patch("drop_none_arguments"),))}


@pytest.fixture(params=FIXES)
def task_type(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The task type after each of the two fixes, which is in force."""
    task, patches = FIXES[request.param]
    with apply(Prescription("m", patches=patches)):
        yield task


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("text", TEXT_MODELS)
def test_loss_and_generation_are_those_of_the_bare_model(
    text: str, part: str, size: int, task_type: str | None
) -> None:
    """The adapters start as nothing, so every number must be the same one, and they must learn."""
    import torch

    name = f"instructblip-{text}"
    bare, batch = build(name, size)
    model, _ = wrapped(name, task_type, size, target_modules=targets(bare, PARTS[part]))
    prompt = {key: value for key, value in batch.items() if key != "labels"}
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with torch.no_grad():
        assert torch.equal(model(**batch).loss, bare(**batch).loss)
        assert torch.equal(model(**batch).logits, bare(**batch).logits)
        assert torch.equal(model.generate(**prompt, **options), bare.generate(**prompt, **options))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name and PARTS[part] in name for name in trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(**batch).loss
        loss.backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0], losses
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(**batch).loss, bare(**batch).loss)


def chain(model: Any, batch: dict[str, Any]) -> Any:
    """The report's own forward: the parts one after the other, the image in front of the prompt."""
    import torch

    image = model.vision_model(batch["pixel_values"]).last_hidden_state
    query = model.query_tokens.expand(image.shape[0], -1, -1)
    queries = model.qformer(
        query_embeds=query,
        input_ids=batch["qformer_input_ids"],
        attention_mask=torch.cat(
            [torch.ones(query.shape[:-1]).long(), batch["qformer_attention_mask"]], dim=1
        ),
        encoder_hidden_states=image,
        encoder_attention_mask=torch.ones(image.shape[:-1]).long(),
        return_dict=True,
    ).last_hidden_state[:, : query.shape[1]]
    prefix = model.language_projection(queries)
    text = model.get_input_embeddings()(batch["input_ids"])
    return model.language_model(
        inputs_embeds=torch.cat([prefix, text], dim=1), labels=batch["labels"], return_dict=True
    )


def test_the_reports_chain_of_parts_is_another_training_and_not_ours() -> None:
    """Where prompts have placeholders for the image, it puts the image in front and leaves them as
    they are: it runs, and learns from another input. The fixed model has the library's loss."""
    import torch

    bare, batch = build("instructblip-t5")
    model, _ = wrapped("instructblip-t5", None)
    with torch.no_grad():
        want, ours, theirs = bare(**batch).loss, model(**batch).loss, chain(bare, batch).loss
    assert torch.equal(ours, want)
    assert torch.isclose(theirs, want, rtol=1e-5) != has_placeholders(bare.config)


SCRIPT = """
import sys
import lora_doctor
applied = lora_doctor.apply(sys.argv[1])
import torch
from peft import get_peft_model
from tests.multimodal_models import build

bare, batch = build("instructblip-t5", 4)
with torch.no_grad():
    want = bare(**batch).loss
model = get_peft_model(build("instructblip-t5", 4)[0], applied.lora_config(lora_dropout=0.0))
with torch.no_grad():
    assert torch.equal(model.eval()(**batch).loss, want)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
for _ in range(5):
    loss = model.train()(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
assert model.eval()(**batch).loss < want
print("trained as", type(model).__name__)
"""


@pytest.mark.parametrize("fix", FIXES)
def test_a_training_script_with_the_prescription(fix: str, tmp_path: Path, worker: Worker) -> None:
    """The user's way: the tool's own prescription for the edit, one of the patch alone, and the
    first line of the script. On a stack that needs neither, both change nothing."""
    folder = tmp_path / "model"
    model_class = write_folder("instructblip-t5", folder)
    recipe = {"task_type": "SEQ_2_SEQ_LM", "model_class": model_class, "target_modules": ["q", "v"]}
    diagnosis = lora_doctor.fix(str(folder), recipe, worker=worker)
    prescription = make_prescription(diagnosis)
    fails = "SEQ_2_SEQ_LM" in ROWS["instructblip-t5"].failing()
    assert prescription.edits == ((Edit("task_type", None),) if fails else ())
    if fix == "patch":
        values = {**prescription.recipe, "task_type": "SEQ_2_SEQ_LM"}
        prescription = Prescription(prescription.model, recipe=values, patches=FIXES[fix][1])
    write_prescription(tmp_path / "lora-doctor.prescription.json", prescription)
    (tmp_path / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "train.py", "lora-doctor.prescription.json"], cwd=tmp_path,
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(cli.ROOT)},
    )  # fmt: skip
    plain = fix == "edit" and fails
    wrapper = "PeftModel" if plain else "PeftModelForSeq2SeqLM"
    assert done.returncode == 0 and f"trained as {wrapper}\n" in done.stdout, done.stderr[-3000:]


def test_trainer_trains_and_evaluates_after_the_fix(tmp_path: Path) -> None:
    """Trainer hands a batch on by the names in a signature, which the plain wrapper hides: what the
    rule's page says about labels is what happens."""
    import torch
    import transformers

    model, batch = wrapped("whisper", None)
    rows = [{key: value[0] for key, value in batch.items()}] * 4
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[],
        save_strategy="no", disable_tqdm=True, use_cpu=True, label_names=["labels"],
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows
    )
    assert trainer.train().training_loss > 0
    assert torch.isfinite(torch.tensor(trainer.evaluate()["eval_loss"]))


# --- the tokenizer --------------------------------------------------------------------------------

FOLDERS = Path(__file__).parent / "folders"
FILES: Mapping[str, tuple[str, Versions, str, str]] = {
    "a pre-tokenizer without add_prefix_space": (
        "metaspace_with_split", {"tokenizers": "<0.19"}, "enum PyPreTokenizerTypeWrapper",
        "tokenizers 0.19.0 or later",
    ),
    "merges as pairs": (
        "merges_as_pairs", {"tokenizers": "<0.20"}, "enum ModelWrapper",
        "tokenizers 0.20.0 or later",
    ),
    "a pre-tokenizer from before 0.19": (
        "metaspace_without_prefix", {"tokenizers": ">=0.19"},
        "enum PyPreTokenizerTypeWrapper|add_prefix_space does not match",
        'Set prepend_scheme to "never" in pre_tokenizer and decoder',
    ),
}  # fmt: skip


@pytest.mark.parametrize("failure", FILES)
def test_a_tokenizer_file_of_another_release(failure: str, tmp_path: Path, worker: Worker) -> None:
    """Seen in the file: nothing is loaded, and what to do depends on whether it is too new or too
    old. The message is the same."""
    name, versions, message, remedy = FILES[failure]
    folder = FOLDERS / name
    occurs = holds(versions)

    def plainly() -> None:
        from transformers import PreTrainedTokenizerFast

        PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))

    if occurs:
        assert re.search(message, message_of(plainly))
    repaired = FOLDERS / "merges_as_texts"
    if "never" in remedy:
        repaired = tmp_path / "model"
        shutil.copytree(folder, repaired)
        file = repaired / "tokenizer.json"
        file.write_text(file.read_text().replace('"first"', '"never"'))
    prove(
        REPORT, f"tokenizer.json with {failure}", "LD601", str(folder), None, worker=worker,
        occurs=occurs, plainly=plainly, by_hand=(str(repaired), None),
    )  # fmt: skip
    if not occurs:
        return
    static = lora_doctor.check(str(folder), depth="static")
    (finding,) = (item for item in static.findings if item.rule == "LD601")
    assert remedy in finding.fixes[0].title
    assert static.verdict == "findings"
