"""Models that are no text-only decoders, as people set them up: what trains in plain PEFT is not
called broken, and what the trainer refuses is found for pictures too."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import lora_doctor  # noqa: E402
from lora_doctor.sandbox.worker import Worker  # noqa: E402

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4}  # fmt: skip
_TEXT = {**_SIZES, "vocab_size": 99, "max_position_embeddings": 64}
_PICTURE = {**_SIZES, "image_size": 16, "patch_size": 4}


def saved(folder: Path, class_name: str, config: Any) -> str:
    torch.manual_seed(0)
    getattr(transformers, class_name)(config).save_pretrained(folder)
    return str(folder)


def test_a_head_that_the_own_targets_name_is_not_trained_twice(
    worker: Worker, tmp_path: Path
) -> None:
    """`LoraConfig(target_modules="all-linear")` without a task type trains; with PEFT's task type
    for token classification it raises. Nobody has set one, so none is proposed."""
    config = transformers.BertConfig(**_TEXT)
    folder = saved(tmp_path / "bert", "BertForTokenClassification", config)
    recipe = {"class": "BertForTokenClassification", "target_modules": ["query", "classifier"]}
    diagnosis = lora_doctor.check(folder, recipe, worker=worker)
    assert diagnosis.before is not None and diagnosis.before.outcome == "passed", diagnosis
    assert diagnosis.recipe.get("task_type") is None
    told = lora_doctor.check(folder, {**recipe, "task_type": "TOKEN_CLS"}, worker=worker)
    assert [finding.severity for finding in told.findings] == ["error"]


def test_an_end_of_text_that_the_vocabulary_lacks(worker: Worker, tmp_path: Path) -> None:
    """The config of SigLIP has CLIP's end of text beside a smaller vocabulary."""
    source = inspect.getsource(transformers.SiglipModel.forward)
    if "loss to be implemented" in source:
        pytest.skip("this transformers has no loss of SigLIP")
    config = transformers.SiglipConfig(text_config=_TEXT, vision_config=_PICTURE)
    assert config.text_config.eos_token_id > config.text_config.vocab_size
    folder = saved(tmp_path / "siglip", "SiglipModel", config)
    recipe = {"class": "SiglipModel", "target_modules": ["q_proj", "v_proj"], "task_type": None}
    diagnosis = lora_doctor.check(folder, recipe, worker=worker)
    assert diagnosis.before is not None and diagnosis.before.outcome == "passed", diagnosis
    assert {kind for batch in diagnosis.before.batches for kind in batch.kind.split("+")} == {
        "image", "text"
    }  # fmt: skip


_CLASSIFIES_PICTURES = """\
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

model = AutoModelForImageClassification.from_pretrained("FOLDER")
config = LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["classifier"])
args = TrainingArguments("out", remove_unused_columns=False, STRATEGY, save_strategy="SAVE")
trainer = Trainer(get_peft_model(model, config), args, train_dataset=load(), eval_dataset=load())
trainer.train()
"""


def test_a_trainer_of_pictures_is_made_too(worker: Worker, tmp_path: Path) -> None:
    """The best checkpoint by a metric that is not named: the Trainer of a classifier of pictures
    says so when it is created, after the model was loaded."""
    fields = transformers.TrainingArguments.__dataclass_fields__
    if "best" not in str(fields["save_strategy"].metadata.get("help", "")):
        pytest.skip("this transformers has no save_strategy='best'")
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**_PICTURE))
    attention = {name.rpartition(".")[2] for name, _ in model.named_modules() if "atten" in name}
    targets = [name for name in ("query", "value", "q_proj", "v_proj") if name in attention]
    folder = saved(tmp_path / "vit", "ViTForImageClassification", model.config)
    text = _CLASSIFIES_PICTURES.replace("FOLDER", folder).replace("TARGETS", repr(targets))
    strategy = "eval_strategy" if "eval_strategy" in fields else "evaluation_strategy"
    text = text.replace("STRATEGY", f'{strategy}="epoch"')
    found = {}
    for save in ("best", "epoch"):
        path = tmp_path / f"{save}.py"
        path.write_text(text.replace("SAVE", save), encoding="utf-8")
        diagnosis = lora_doctor.check(str(path), worker=worker, select=["LD550"])
        found[save] = [finding.message for finding in diagnosis.findings]
        assert found[save] or "LD550" in diagnosis.passed, diagnosis.skipped
    assert "metric_for_best_model" in found["best"][0] and not found["epoch"]


_RECOGNISES_SPEECH = """\
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, Wav2Vec2ForCTC, Wav2Vec2Processor

processor = Wav2Vec2Processor.from_pretrained("processor")
model = Wav2Vec2ForCTC.from_pretrained("FOLDER", vocab_size=SIZE, ignore_mismatched_sizes=True)
config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
trainer = Trainer(get_peft_model(model, config), TrainingArguments("out"), train_dataset=load())
trainer.train()
"""


def test_a_vocabulary_of_its_own_without_embeddings(worker: Worker, tmp_path: Path) -> None:
    """The published recipe for speech in a new language: PEFT compares the vocabulary when it
    saves, and asks a model for embeddings that has none."""
    small = {"conv_dim": [8, 8], "conv_stride": [5, 4], "conv_kernel": [10, 3], "vocab_size": 24}
    config = transformers.Wav2Vec2Config(
        **_SIZES, **small, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2
    )
    folder = saved(tmp_path / "speech", "Wav2Vec2ForCTC", config)
    found = {}
    for size in ("len(processor.tokenizer)", "30", "24"):
        path = tmp_path / "train.py"
        text = _RECOGNISES_SPEECH.replace("FOLDER", folder).replace("SIZE", size)
        path.write_text(text, encoding="utf-8")
        diagnosis = lora_doctor.check(str(path), worker=worker, select=["LD112"])
        found[size] = [finding.severity for finding in diagnosis.findings]
    saves = "vocab_size" in inspect.getsource(peft.get_peft_model_state_dict)
    expected = [["warning"], ["error"], []] if saves else [[], [], []]
    assert list(found.values()) == expected
    if saves:
        model = transformers.Wav2Vec2ForCTC.from_pretrained(
            folder, vocab_size=30, ignore_mismatched_sizes=True
        )
        recipe = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
        adapted = peft.get_peft_model(model, recipe)
        with pytest.raises(NotImplementedError):
            adapted.save_pretrained(tmp_path / "adapter")
        # As the finding says; on the model alone, so that no other test sees it.
        model.get_input_embeddings = lambda: None
        adapted.save_pretrained(tmp_path / "adapter")
