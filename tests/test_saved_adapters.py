"""Adapters that exist: what `check --adapter` says of them is what plain PEFT does with them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

import lora_doctor
from lora_doctor.cli.explain import explain
from lora_doctor.engine.case import Case, Settings
from lora_doctor.engine.registry import find_rules
from lora_doctor.errors import InputError
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.adapter_files import read_adapter
from lora_doctor.static.adapter_values import read_values
from lora_doctor.static.model_source import ModelSource
from tests import saved_adapters as made
from tests.cli import lora_doctor as command

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow
#: Codes of the rules about saved adapters.
OURS = "LD62"
tf5 = pytest.mark.skipif(transformers.__version__ < "5", reason="the names are the old ones here")


def codes(diagnosis: lora_doctor.Diagnosis) -> list[str]:
    return [finding.rule for finding in diagnosis.findings]


def check(case: made.Made, worker: Worker, **more: Any) -> lora_doctor.Diagnosis:
    model, options = case
    return lora_doctor.check(model, worker=worker, **{"depth": "meta", **options, **more})


def loaded(case: made.Made) -> tuple[Any, Any, list[str]]:
    """The base model, the same with the adapter by plain PEFT, and PEFT's warnings."""
    model, options = case
    config = transformers.AutoConfig.from_pretrained(model)
    cls = getattr(transformers, config.architectures[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrapped = peft.PeftModel.from_pretrained(cls.from_pretrained(model), options["adapter"])
    texts = [str(item.message) for item in caught]
    return cls.from_pretrained(model).eval(), wrapped.eval(), texts


def outputs(model: Any) -> Any:
    """Hidden states, so that a head that was loaded does not hide adapters that were not."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        if model.config.model_type == "vit":
            pixels = torch.randn(2, 3, 32, 32, generator=generator)
            return model(pixels, output_hidden_states=True).hidden_states[-1]
        ids = torch.arange(8)[None]
        return model(ids, output_hidden_states=True).hidden_states[-1]


def changes_the_model(case: made.Made) -> bool:
    base, wrapped, _ = loaded(case)
    return not torch.equal(outputs(base), outputs(wrapped))


# --- what lands nowhere ---------------------------------------------------------------------------


def test_a_healthy_adapter_changes_the_model(worker: Worker) -> None:
    """What the others are measured against."""
    case = made.lora()
    assert changes_the_model(case)
    assert not [code for code in codes(check(case, worker)) if code.startswith(OURS)]


def test_names_of_a_distributed_model_do_nothing_in_plain_peft(worker: Worker) -> None:
    case = made.of_a_distributed_model()
    assert not changes_the_model(case)
    (finding,) = check(case, worker).findings
    assert finding.rule == "LD620" and finding.severity == "error"
    assert "`module.`" in finding.message and "8 of 8 tensors" in finding.message


@tf5
def test_old_names_of_a_vit_are_refused_and_do_nothing_after_an_edit_of_the_config(
    worker: Worker,
) -> None:
    """The edit of target_modules that makes a free recipe train makes this adapter do nothing."""
    case = made.vit_of_before_transformers_5()
    with pytest.raises(ValueError, match="target"):
        loaded(case)
    diagnosis = check(case, worker, depth="tiny")
    (finding,) = diagnosis.findings
    assert finding.rule == "LD620"
    assert "before a rename in transformers" in finding.message
    assert "PEFT then loads it completely" in finding.fixes[0].title
    assert diagnosis.before is None  # there is nothing to train

    folder = Path(case[1]["adapter"])
    made.rewrite(folder, made.unchanged, target_modules=["q_proj", "v_proj"])
    assert any("missing adapter keys" in text for text in loaded(case)[2])
    assert not changes_the_model(case)
    (finding,) = check(case, worker).findings
    assert finding.rule == "LD620" and "8 of 10 tensors" in finding.message


@tf5
def test_the_config_of_a_trained_adapter_as_a_recipe_has_no_safe_fix(worker: Worker) -> None:
    base, options = made.vit_of_before_transformers_5()
    config = Path(options["adapter"]) / "adapter_config.json"
    found = lora_doctor.check(base, config, depth="meta", worker=worker).findings
    assert "LD201" in [finding.rule for finding in found]
    assert all(fix.safety == "manual" for finding in found for fix in finding.fixes)


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (lambda name: name.replace("model.model.", "model._orig_mod.model.", 1), "`_orig_mod.`"),
        (lambda name: name.removeprefix("base_model.model."), "not in the form"),
        (lambda name: "base_model.model." + name, "not in the form"),
        (lambda name: name.replace(".weight", ".default.weight"), "not in the form"),
        (
            lambda name: name.replace("model.layers", "model.language_model.layers"),
            "in `model` and not in `model.language_model`",
        ),
        (lambda name: name.replace("model.layers", "layers"), "in `model` and not in the model"),
    ],
)
def test_causes_are_told_by_trying(
    rename: Callable[[str], str], words: str, worker: Worker
) -> None:
    base, adapter = made.saved(made.llama(), made.lora_config())
    made.renamed(adapter, rename)
    case = made.made((base, adapter))
    if changes_the_model(case):
        pytest.skip("this PEFT takes such names")
    (finding,) = check(case, worker).findings
    assert finding.rule == "LD620"
    assert words in finding.message
    assert "PEFT then loads it completely" in finding.fixes[0].title


def test_names_of_no_layer_have_no_cause(worker: Worker) -> None:
    base, adapter = made.saved(made.llama(), made.lora_config())
    made.renamed(adapter, lambda name: name.replace("self_attn", "nothing_of_this_model"))
    case = made.made((base, adapter))
    assert not changes_the_model(case)
    (finding,) = check(case, worker).findings
    assert finding.rule == "LD620" and "no parameters with these names" in finding.message


# --- other shapes, missing and empty tensors ------------------------------------------------------


def test_part_of_the_layers(worker: Worker) -> None:
    case = made.with_half_of_its_layers()
    if Version(peft.__version__) >= Version("0.14"):  # older ones say nothing
        assert any("missing adapter keys" in text for text in loaded(case)[2])
    (finding,) = check(case, worker).findings
    assert finding.rule == "LD621" and "4 of 8 parameters" in finding.message


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (made.of_another_rank, "rank is 8, the config has 16"),
        (made.of_a_longer_vocabulary, "100 rows in the file and 96 in the model"),
    ],
)
def test_other_shapes(case: Callable[[], made.Made], words: str, worker: Worker) -> None:
    broken = case()
    with pytest.raises(RuntimeError, match="size mismatch"):
        loaded(broken)
    (finding,) = check(broken, worker).findings
    assert finding.rule == "LD622" and words in finding.message


def test_a_prompt_of_another_width_fails_in_forward(worker: Worker) -> None:
    case = made.prompt_of_a_wider_model()
    with pytest.raises(RuntimeError, match="Sizes of tensors"):
        outputs(loaded(case)[1])
    errors = [item for item in check(case, worker).findings if item.severity == "error"]
    assert [item.rule for item in errors] == ["LD622"]
    assert "64 wide" in errors[0].message and "32 wide" in errors[0].message


def test_a_whole_state_dict_as_adapter_replaces_the_base(worker: Worker) -> None:
    """On the same base it does what it did; the user is told that it is more than an adapter."""
    case = made.with_the_whole_state_dict()
    assert changes_the_model(case)
    (finding,) = check(case, worker).findings
    assert (finding.rule, finding.severity) == ("LD631", "info"), finding


def test_a_saved_classifier_is_silent(worker: Worker) -> None:
    """PEFT writes `classifier` and `score` into the config of each; a Llama has one of them."""
    assert not check(made.classifier(), worker).findings


def test_a_base_of_other_sizes(worker: Worker) -> None:
    _, adapter = made.saved(made.llama(), made.lora_config())
    base = made.new_folder("base")
    made.llama(hidden_size=48, num_attention_heads=6).save_pretrained(str(base))
    case = made.made((base, adapter))
    with pytest.raises(RuntimeError, match="size mismatch"):
        loaded(case)
    found = check(case, worker).findings
    assert [item.rule for item in found if item.severity == "error"] == ["LD622"]
    assert "other sizes" in found[0].message


def test_empty_tensors_are_one_finding_at_any_depth(worker: Worker) -> None:
    case = made.of_zero_stage_3()
    with pytest.raises(RuntimeError, match="size mismatch"):
        loaded(case)
    assert codes(check(case, worker, depth="static")) == ["LD623"]
    assert codes(check(case, worker)) == ["LD623"]


def test_an_adapter_of_another_architecture_is_refused(worker: Worker) -> None:
    case = made.of_another_architecture()
    with pytest.raises(ValueError, match="target"):
        loaded(case)
    errors = [item for item in check(case, worker).findings if item.severity == "error"]
    assert [item.rule for item in errors] == ["LD627"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_numbers_are_judged_as_torch_judges_them(dtype: Any) -> None:
    """The bits are looked at without torch, which is the truth here."""
    _, options = made.lora()
    folder = Path(options["adapter"])

    def spoilt(found: dict[str, Any]) -> dict[str, Any]:
        first, second, third, *rest = found
        values = {name: value.to(dtype) for name, value in found.items()}
        values[first][0, 0], values[second][0, 0] = float("inf"), float("nan")
        values[third] = -torch.zeros_like(values[third])
        assert rest
        return values

    made.rewrite(folder, spoilt)
    tensors = made.tensors_of(folder)
    seen = read_values(read_adapter(folder))
    assert set(seen.not_finite) == {n for n, v in tensors.items() if not v.isfinite().all()}
    assert set(seen.zero) == {n for n, v in tensors.items() if not v.any()}
    assert seen.looked_at == len(tensors) and len(seen.not_finite) == 2 and len(seen.zero) == 1


def test_an_untrained_adapter_is_told_at_full_depth_only(worker: Worker) -> None:
    case = made.lora()
    made.rewrite(
        Path(case[1]["adapter"]),
        lambda found: {n: v * (0 if ".lora_B." in n else 1) for n, v in found.items()},
    )
    assert not changes_the_model(case)
    assert "LD625" not in codes(check(case, worker))
    (finding,) = check(case, worker, depth="full", select=("LD625",)).findings
    assert finding.severity == "error" and "4 of 4 B matrices" in finding.message


# --- the fix ---


@tf5
def test_a_renamed_adapter_does_what_it_did(tmp_path: Path) -> None:
    """Hidden states of the adapter before its names were made old ones, and after the fix."""
    base, trained = made.saved(made.vit(), made.vit_config())
    wanted = outputs(loaded(made.made((base, trained)))[1])
    adapter = tmp_path / "old"
    shutil.copytree(trained, adapter)
    made.with_old_names(adapter)
    before = {item.name: item.read_bytes() for item in adapter.iterdir()}

    done = command("fix", base, "--adapter", adapter, "--apply", cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    fixed = tmp_path / "old-fixed"
    assert f"wrote {fixed}" in done.err
    assert {item.name: item.read_bytes() for item in adapter.iterdir()} == before
    assert {item.name for item in tmp_path.iterdir()} == {"old", "old-fixed"}
    _, wrapped, texts = loaded((str(base), {"adapter": str(fixed)}))
    assert not [text for text in texts if "missing adapter keys" in text]
    assert torch.equal(outputs(wrapped), wanted)

    again = command("fix", base, "--adapter", adapter, "--apply", cwd=tmp_path)
    assert again.code == 2 and "exists; move it away" in again.one_line_error


def test_without_apply_nothing_is_written(tmp_path: Path) -> None:
    base, options = made.of_a_distributed_model()
    adapter = shutil.copytree(options["adapter"], tmp_path / "ddp")
    done = command("fix", base, "--adapter", adapter, "--select", "LD620", cwd=tmp_path)
    assert done.code == 1 and f"--adapter {adapter} --apply" in " ".join(done.out.split())
    assert [item.name for item in tmp_path.iterdir()] == ["ddp"]


def test_what_no_other_name_helps_is_not_written(tmp_path: Path) -> None:
    base, options = made.of_another_rank()
    adapter = shutil.copytree(options["adapter"], tmp_path / "rank")
    done = command("fix", base, "--adapter", adapter, "--apply", cwd=tmp_path)
    assert done.code == 1 and "LD622" in done.out
    assert [item.name for item in tmp_path.iterdir()] == ["rank"]


# --- what stays silent ----------------------------------------------------------------------------


#: What an older PEFT does not have: fields of its LoraConfig, and classes.
_FIELDS = {"dora": "use_dora", "tokens": "trainable_token_indices"}
_CLASSES = {
    "loha": "LoHaConfig", "lokr": "LoKrConfig", "oft": "OFTConfig", "vera": "VeraConfig",
    "adalora": "AdaLoraConfig",
}  # fmt: skip


def _needs(name: str) -> None:
    """Skips the test where this PEFT has no such adapter."""
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    missing = (
        (name in _FIELDS and _FIELDS[name] not in fields)
        or (name in _CLASSES and not hasattr(peft, _CLASSES[name]))
        or (
            name == "all-linear"
            and not hasattr(peft.utils.constants, "INCLUDE_LINEAR_LAYERS_SHORTHAND")
        )
    )
    if missing:
        pytest.skip(f"PEFT {peft.__version__} has no {name}")


def _config(name: str) -> Any:
    targets = ["q_proj", "v_proj"]
    task = "CAUSAL_LM"
    return {
        "dora": lambda: made.lora_config(use_dora=True),
        "all-linear": lambda: made.lora_config(target_modules="all-linear"),
        "regex": lambda: made.lora_config(target_modules=r".*\.0\..*q_proj"),
        "modules_to_save": lambda: made.lora_config(modules_to_save=["lm_head"]),
        "embeddings": lambda: made.lora_config(target_modules=["embed_tokens", "q_proj"]),
        "rank_pattern": lambda: made.lora_config(rank_pattern={"q_proj": 4}, bias="lora_only"),
        "tokens": lambda: made.lora_config(trainable_token_indices=[1, 2]),
        "loha": lambda: peft.LoHaConfig(r=4, target_modules=targets, task_type=task),
        "lokr": lambda: peft.LoKrConfig(r=4, target_modules=targets, task_type=task),
        "ia3": lambda: peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"],
            task_type=task,
        ),
        "oft": lambda: peft.OFTConfig(target_modules=targets, task_type=task),
        "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"], task_type=task),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type=task),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, task_type=task),
        "adalora": lambda: peft.AdaLoraConfig(
            init_r=6, target_r=4, target_modules=targets, task_type=task, total_step=10
        ),
    }[name]()  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "dora", "all-linear", "regex", "modules_to_save", "embeddings", "rank_pattern", "tokens",
        "loha", "lokr", "ia3", "oft", "vera", "prompt", "prefix", "adalora",
    ],
)  # fmt: skip
def test_what_this_peft_saved_is_silent(name: str, worker: Worker) -> None:
    _needs(name)
    case = made.made(made.saved(made.llama(), _config(name)))
    assert not [item for item in check(case, worker).findings if item.rule.startswith(OURS)]


def _bert() -> tuple[Any, Any]:
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, num_labels=3,
        )
    )  # fmt: skip
    return model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])


def _vit() -> tuple[Any, Any]:
    model = made.vit()
    new = hasattr(model.vit, "layers")
    return model, made.vit_config(target_modules=["q_proj" if new else "query"])


def _whisper() -> tuple[Any, Any]:
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
            decoder_ffn_dim=48, num_mel_bins=16, max_source_positions=20,
            max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1,
        )
    )  # fmt: skip
    return model, peft.LoraConfig(target_modules=["q_proj", "v_proj"])


def _gemma3() -> tuple[Any, Any]:
    if not hasattr(transformers, "Gemma3Config"):
        pytest.skip(f"transformers {transformers.__version__} has no Gemma 3")
    config = transformers.Gemma3Config(
        text_config={
            "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )  # fmt: skip
    model = transformers.Gemma3ForConditionalGeneration(config)
    return model, made.lora_config()


def _mixtral() -> tuple[Any, Any]:
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        )
    )  # fmt: skip
    return model, made.lora_config(target_modules=["q_proj", "w1", "w2", "w3"])


@pytest.mark.parametrize("family", [_bert, _vit, _whisper, _gemma3, _mixtral])
def test_other_families_are_silent(family: Callable[[], tuple[Any, Any]], worker: Worker) -> None:
    case = made.made(made.saved(*family()))
    assert not [item for item in check(case, worker).findings if item.rule.startswith(OURS)]


# --- how it is asked ------------------------------------------------------------------------------


def test_an_adapter_folder_as_model_is_loaded_onto_the_base_that_it_names(worker: Worker) -> None:
    base, options = made.of_another_rank()
    made.rewrite(Path(options["adapter"]), made.unchanged, base_model_name_or_path=base)
    diagnosis = lora_doctor.check(options["adapter"], depth="meta", worker=worker)
    assert codes(diagnosis) == ["LD622"] and diagnosis.model.name == base


def test_an_adapter_folder_as_model_without_its_base_is_one_sentence() -> None:
    _, options = made.lora()
    made.rewrite(Path(options["adapter"]), made.unchanged, base_model_name_or_path="./gone/base")
    with pytest.raises(InputError, match="which is no folder here and no hub id; give the base"):
        lora_doctor.check(options["adapter"], depth="static")


def test_the_folder_above_an_adapter_names_it() -> None:
    _, adapter = made.saved(made.llama(), made.lora_config())
    inside = made.new_folder("run") / "checkpoint-8"
    adapter.rename(inside)
    with pytest.raises(InputError, match="adapters in its folders 'checkpoint-8'"):
        lora_doctor.check("arch:llama", adapter=str(inside.parent))


def test_what_is_no_adapter_is_one_sentence(tmp_path: Path) -> None:
    base, _options = made.lora()
    with pytest.raises(InputError, match="no such folder; give one, or ORG/NAME"):
        lora_doctor.check(base, adapter="./org/adapter", depth="static")
    with pytest.raises(InputError, match=r"adapter_config\.json is not there"):
        lora_doctor.check(base, adapter=tmp_path, depth="static")


def test_keys_of_the_adapter_cannot_be_given_beside_it() -> None:
    base, options = made.lora()
    with pytest.raises(InputError, match="its config says what it is; leave out r "):
        lora_doctor.check(base, {"r": 4}, depth="static", **options)


def test_a_config_that_names_another_base_is_a_note(worker: Worker) -> None:
    recipe = {"base_model_name_or_path": "meta-llama/Llama-2-7b-hf", "target_modules": ["q_proj"]}
    (finding,) = lora_doctor.check("arch:llama", recipe, depth="static", worker=worker).findings
    assert (finding.rule, finding.severity) == ("LD624", "info")


def test_training_goes_on_from_the_adapter(worker: Worker) -> None:
    """At full depth what is trained is this adapter, not a new one of its config: the loss begins
    where plain PEFT has it, and `inference_mode` of the file keeps nothing frozen."""
    base, options = made.lora()
    fresh = lora_doctor.check(base, {"target_modules": ["q_proj", "v_proj"], "r": 8},
                              depth="full", select=["LD001"], worker=worker)  # fmt: skip
    diagnosis = lora_doctor.check(base, depth="full", worker=worker, **options)
    run, new = diagnosis.before, fresh.before
    assert run is not None and new is not None
    assert run.outcome == "passed" and codes(diagnosis) == []
    started = run.check("starts-at-base")
    assert started is not None and started.detail == "training goes on from a saved adapter"
    assert abs(run.batches[0].losses[0] - new.batches[0].losses[0]) > 1e-3


COMMITS = ("0a" * 20, "1b" * 20)


@pytest.mark.parametrize(
    ("trained_on", "checked", "severity"),
    [
        (COMMITS[0], COMMITS[1], "warning"),
        (COMMITS[0], COMMITS[0], None),
        ("v1.0", COMMITS[0], "info"),  # a tag may be that commit; nobody was asked
        ("main", COMMITS[0], None),
        (None, COMMITS[0], None),
    ],
)
def test_a_revision_of_the_base(trained_on: str | None, checked: str, severity: str | None) -> None:
    """The hub gives a commit, whatever was asked for: only two commits can be told apart."""
    recipe = {"base_model_name_or_path": "org/base", "revision": trained_on}
    source = ModelSource("hub", "org/base", checked)
    case = Case(source, as_recipe(recipe), Settings("static"), Worker())
    (rule,) = [rule for rule in find_rules() if rule.code == "LD624"]
    found = [finding.severity for finding in rule().check(case)]
    assert found == ([] if severity is None else [severity])


def test_weights_in_several_files_are_not_read_by_peft(worker: Worker) -> None:
    """Its own words are about a repository id."""
    base, options = made.in_shards()
    with pytest.raises(Exception):  # noqa: B017 - whose class depends on the hub's library
        peft.PeftModel.from_pretrained(made.llama(), options["adapter"])
    found = lora_doctor.check(base, depth="meta", worker=worker, **options).findings
    assert [finding.rule for finding in found] == ["LD627"]
    assert "2 files" in found[0].message


@pytest.mark.parametrize(
    "text",
    [
        "Found missing adapter keys",
        "UserWarning: Found missing adapter keys while loading the checkpoint: ['base_model.x']",
    ],
)
def test_missing_adapter_keys_are_explained_by_their_most_frequent_cause(text: str) -> None:
    first = explain(text).splitlines()[0]
    assert "LD620" in first


def test_static_depth_imports_no_torch(tmp_path: Path) -> None:
    base, options = made.of_zero_stage_3()
    done = command(
        "check", base, "--adapter", options["adapter"], "--depth", "static",
        "--output-format", "json", env={"PYTHONPROFILEIMPORTTIME": "1"},
    )  # fmt: skip
    assert [item["rule"] for item in json.loads(done.out)["findings"]] == ["LD623"]
    imported = [line.rpartition("|")[2].strip() for line in done.err.splitlines()]
    assert "json" in imported and not {"torch", "peft", "transformers"} & set(imported)
