"""A saved adapter that a script or a framework's file names is checked as one beside MODEL."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.api.opening import open_case
from lora_doctor.engine.case import Case
from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.adapter_files import read_adapter
from lora_doctor.static.installed.quantized_merging import lora_merges
from tests import saved_adapters as made

HERE = Path(__file__).parent
LOADS = """
from transformers import AutoModelForCausalLM
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
"""
#: What a program says after ``LOADS``, and whether it trains the adapter further.
PROGRAMS = {
    "merges": ('base = AutoModelForCausalLM.from_pretrained("{base}")\n'
               'model = PeftModel.from_pretrained(base, "{adapter}").merge_and_unload()\n'
               'model.save_pretrained("merged")\n', False),
    "base from the config": (
        'config = PeftConfig.from_pretrained("{adapter}")\n'
        "base = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path)\n"
        'model = PeftModel.from_pretrained(base, "{adapter}")\nmodel.generate()\n', False),
    "the auto class": (
        'model = AutoPeftModelForCausalLM.from_pretrained("{adapter}")\nmodel.generate()\n', False),
    "in a folder of it": (
        'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "{above}", subfolder="{inside}")\n', False),
    "tries what it saves": (
        'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "{adapter}")\nmodel.save_pretrained("out")\n'
        'PeftModel.from_pretrained(base, "out/second")\n', False),
    "trains on": (
        'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "{adapter}", is_trainable=True)\n'
        "for batch in batches:\n    model(**batch).loss.backward()\n", True),
}  # fmt: skip
FILES = {
    "llamafactory export": (
        "model_name_or_path: {base}\nadapter_name_or_path: {adapter}\ntemplate: default\n"
        "export_dir: out\n", False),
    "llamafactory train": (
        "model_name_or_path: {base}\nadapter_name_or_path: {adapter}\nstage: sft\ndo_train: true\n"
        "finetuning_type: lora\nlora_target: all\ndataset: identity\ntemplate: default\n", True),
    "axolotl": (
        "base_model: {base}\nlora_model_dir: {adapter}\nadapter: lora\nlora_r: 16\n"
        "datasets:\n  - path: data\n", True),
    "ms-swift": ("model: {base}\nadapters: {adapter}\ntuner_type: lora\nmerge_lora: true\n", False),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders() -> tuple[Path, Path]:
    """A base model and its adapter, which names it."""
    pytest.importorskip("peft")
    base, adapter = made.saved(made.llama(), made.lora_config(r=4))
    made.rewrite(adapter, made.unchanged, base_model_name_or_path=str(base))
    return base, adapter


def opened(path: Path, text: str, folders: tuple[Path, Path]) -> Case:
    base, adapter = folders
    path.write_text(
        text.format(base=base, adapter=adapter, above=adapter.parent, inside=adapter.name)
    )
    with open_case(str(path), None, {"depth": "static"}) as case:
        return case


@pytest.mark.parametrize("name", PROGRAMS)
def test_of_a_program(name: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Where it names its base by the adapter's config as well, and whether it trains."""
    text, trains = PROGRAMS[name]
    case = opened(tmp_path / "program.py", LOADS + text, folders)
    assert case.settings.adapter is not None and case.source.kind == "folder"
    assert (Path(case.source.name), Path(case.source.adapter)) == folders
    assert (case.settings.trains, case.asked.get("r")) == (trains, 4)


@pytest.mark.parametrize("name", FILES)
def test_of_a_framework(name: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Its own settings of a new adapter are not read beside a saved one."""
    text, trains = FILES[name]
    case = opened(tmp_path / "file.yaml", text, folders)
    assert case.source.adapter == str(folders[1].resolve())
    assert (case.settings.trains, case.asked.get("r")) == (trains, 4)


def test_base_of_ms_swift(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """`swift export` reads it off the arguments that the training saved beside the adapter, and
    needs it written where there are none; the adapter's own config is not asked."""
    adapter = shutil.copytree(folders[1], tmp_path / "checkpoint")
    text = "swift export --adapters {adapter} --merge_lora true\n"
    with pytest.raises(InputError, match="names its model with model"):
        opened(tmp_path / "merge.sh", text, (folders[0], adapter))
    (adapter / "args.json").write_text(json.dumps({"model": str(folders[0])}))
    case = opened(tmp_path / "merge.sh", text, (folders[0], adapter))
    assert (case.source.name, case.source.adapter) == (str(folders[0]), str(adapter.resolve()))
    assert not case.settings.trains


def test_a_new_adapter_beside_it(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """LLaMA-Factory merges the saved one first; what trains is what the file says."""
    text = FILES["llamafactory train"][0] + "create_new_adapter: true\nlora_rank: 16\n"
    case = opened(tmp_path / "file.yaml", text, folders)
    assert case.settings.adapter is None and case.asked.get("r") == 16


def test_one_that_is_not_here(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A script is read, and it is said why no more than that; the file of a framework may name what
    is where it runs."""
    gone = (folders[0], tmp_path / "gone")
    case = opened(tmp_path / "program.py", LOADS + PROGRAMS["merges"][0], gone)
    assert case.source.kind == "script" and case.asked.written is not None
    assert "no such folder" in case.asked.written.out_of_reach
    read = lora_doctor.check(str(tmp_path / "program.py"), depth="static", select=["LD620"])
    (note,) = (note.text for note in read.notes if note.kind == "not-observed")
    assert note == f"only the script was read: {case.asked.written.out_of_reach}"
    case = opened(tmp_path / "file.yaml", FILES["axolotl"][0], gone)
    assert case.settings.adapter is None and case.asked.get("r") == 16


TOKENIZER = 'tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")\n'
#: What stands before the adapter is loaded, and how many rows the embeddings then have; ``None``:
#: the program is only read, unless nothing of the adapter is as long as the vocabulary.
RESIZED = {
    "a number": ("base.resize_token_embeddings(99)\n", 99),
    "a multiple": ("base.resize_token_embeddings(99, pad_to_multiple_of=8)\n", 104),
    "the tokenizer": (TOKENIZER + "base.resize_token_embeddings(len(tokenizer))\n", 55),
    "tokens are added": (
        TOKENIZER + "tokenizer.add_special_tokens({{'pad_token': '<new>'}})\n"
        "tokenizer.add_tokens(['<a>', '<b>', '<a>'])\n"
        "base.resize_token_embeddings(len(tokenizer))\n", 58),
    "unknown tokens": (
        TOKENIZER + "tokenizer.add_tokens(words)\nbase.resize_token_embeddings(len(tokenizer))\n",
        None),
    "an unknown number": ("base.resize_token_embeddings(rows)\n", None),
    "perhaps": ("if rows:\n    base.resize_token_embeddings(99)\n", None),
}  # fmt: skip


@pytest.mark.parametrize("name", RESIZED)
def test_other_embeddings(name: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The adapter is loaded onto as many rows as the program gives its model before."""
    before, rows = RESIZED[name]
    before = before.replace("{tokenizer}", str(HERE / "folders" / "vocabulary_padded"))
    text = LOADS.replace("Auto", "AutoTokenizer, Auto", 1)
    text += PROGRAMS["merges"][0].replace("model =", before + "model =", 1)
    case = opened(tmp_path / "program.py", text, folders)
    assert (case.source.kind, case.source.rows) == ("folder", rows or 0)
    if rows is None:  # with a module that is as long as the vocabulary
        whole = made.saved(made.llama(), made.lora_config(modules_to_save=["lm_head"]))
        case = opened(tmp_path / "program.py", text, whole)
        assert (case.source.kind, case.settings.adapter) == ("script", None)


@pytest.mark.parametrize(
    ("given", "outcome"),
    [("num_labels=5", "fits"), ("", "other"), ("num_labels=len(x)", "unknown")],
)
def test_labels_of_the_program(given: str, outcome: str, tmp_path: Path) -> None:
    """The head is as long as the program says when it loads the model, not as the folder does."""
    from lora_doctor.evidence.adapter import gather

    base = made.new_folder("base")
    made.llama().save_pretrained(str(base))
    transformers = pytest.importorskip("transformers")
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(str(base), num_labels=5)
    _, adapter = made.saved(model, made.lora_config(task_type="SEQ_CLS"), base)
    text = LOADS + PROGRAMS["merges"][0].replace('{base}"', '{base}", ' + given)
    text = text.replace("CausalLM", "SequenceClassification")
    case = opened(tmp_path / "program.py", text, (base, adapter))
    files = read_adapter(adapter)
    tensors = {name: dataclasses.asdict(one) for name, one in files.weights.tensors.items()}
    source = case.source.for_child()

    def landing() -> Any:
        recipe = Recipe({"task_type": "SEQ_CLS"}, {}, True).to_json()
        return gather(source, recipe, files.config, tensors, str(adapter))["landing"]

    if outcome == "unknown":
        with pytest.raises(EvidenceError, match="num_labels"):
            landing()
    else:
        assert bool(landing()["other_shapes"]) is (outcome == "other")


def test_embeddings_resized_too_late(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """After the adapter was loaded it changes nothing about the loading."""
    text = PROGRAMS["merges"][0] + "model.resize_token_embeddings(99)\n"
    case = opened(tmp_path / "program.py", LOADS + text, folders)
    assert (case.source.kind, case.source.rows) == ("folder", 0)


def test_rows_of_the_program(tmp_path: Path) -> None:
    """An adapter with the whole head fits the rows that it was trained with, and no others."""
    from lora_doctor.evidence.adapter import gather

    model = made.llama()
    base = made.new_folder("base")
    model.save_pretrained(str(base))
    model.resize_token_embeddings(99)
    _, adapter = made.saved(model, made.lora_config(modules_to_save=["lm_head"]), base)
    files = read_adapter(adapter)
    tensors = {name: dataclasses.asdict(one) for name, one in files.weights.tensors.items()}
    source = {"kind": "folder", "name": str(base), "folder": str(base), "trust_remote_code": False}
    recipe = Recipe({}, {}, True).to_json()
    for rows, fits in ((0, False), (99, True), (98, False)):
        found = gather({**source, "rows": rows}, recipe, files.config, tensors, str(adapter))
        assert bool(found["landing"]["other_shapes"]) is not fits
        assert not found["landing"]["nowhere"]  # of the head, which PEFT has saved twice


@pytest.mark.parametrize(
    ("then", "frozen"), [("", True), ("config.inference_mode = False\n", False)]
)
def test_a_new_adapter_by_its_config(
    then: str, frozen: bool, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Every saved config has inference_mode, which freezes what get_peft_model adds."""
    text = (
        "from peft import LoraConfig, get_peft_model\n"
        'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'config = LoraConfig.from_pretrained("{adapter}", is_trainable=True)\n'
        f"{then}model = get_peft_model(base, config)\n"
    )
    case = opened(tmp_path / "program.py", LOADS + text, folders)
    assert (case.source.kind, case.settings.adapter) == ("folder", None)
    assert (case.asked.get("inference_mode"), case.asked.get("r")) == (frozen, 4)


@pytest.mark.slow
def test_findings_about_it(worker: Worker, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A merge of an adapter whose config was edited is refused; nothing of training is asked."""
    base, adapter = folders
    config = json.loads((adapter / "adapter_config.json").read_text())
    other = made.new_folder("edited")
    (other / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    (other / "adapter_model.safetensors").write_bytes(
        (adapter / "adapter_model.safetensors").read_bytes()
    )
    path = tmp_path / "program.py"
    path.write_text(LOADS + PROGRAMS["merges"][0].format(base=base, adapter=other))
    found = lora_doctor.check(str(path), worker=worker, depth="meta")
    assert [one.rule for one in found.findings] == ["LD622"]


@pytest.mark.parametrize("method", ["awq", "gptq", "aqlm", "eetq", "hqq", "bnb", "torchao", "fp8"])
def test_whether_a_quantized_layer_merges(method: str) -> None:
    """What is read of PEFT's source is what its class has; nothing is said where it has no class
    that is told by its file."""
    peft = pytest.importorskip("peft")
    folder = Path(peft.__file__).parent / "tuners" / "lora"
    read = lora_merges(method)
    if not (folder / f"{method}.py").is_file():
        assert read is None
        return
    module = importlib.import_module(f"peft.tuners.lora.{method}")
    inherited = peft.tuners.tuners_utils.BaseTunerLayer.merge
    own = [cls for cls in vars(module).values()
           if isinstance(cls, type) and peft.tuners.lora.LoraLayer in cls.__bases__
           and cls.__module__ == module.__name__]  # fmt: skip
    if read is not None and own:  # a class that needs a package is defined with it only
        assert (read[0] == "no") == all(cls.merge is inherited for cls in own)
    if not own and method in ("torchao", "fp8"):
        assert read is None


@pytest.mark.slow
def test_tokens_of_tied_embeddings(worker: Worker) -> None:
    """PEFT saves them once, and loading gives both of the tied layers their values."""
    fields = {one.name for one in dataclasses.fields(pytest.importorskip("peft").LoraConfig)}
    if "trainable_token_indices" not in fields:
        pytest.skip("this PEFT trains no single tokens")
    config = made.lora_config(trainable_token_indices=[3, 5])
    base, adapter = made.saved(made.llama(tie_word_embeddings=True), config)
    found = lora_doctor.check(str(base), adapter=str(adapter), worker=worker, depth="meta")
    assert [one.rule for one in found.findings if one.rule.startswith("LD62")] == []


@pytest.mark.parametrize("name", ["~nobody-is-called-this/x", "a" * 5000, "a/" * 3000, "a\\0b"])
@pytest.mark.parametrize(
    "line",
    [
        'model = PeftModel.from_pretrained(base, "{name}")\n',
        'model = get_peft_model(base, LoraConfig.from_pretrained("{name}"))\n',
        'Trainer(base, TrainingArguments("out")).train("{name}")\n',
        'base = AutoModelForCausalLM.from_pretrained("{name}")\n'
        'model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj"]))\n',
    ],
)
def test_a_name_that_is_no_path_here(line: str, name: str, tmp_path: Path) -> None:
    """It is somebody else's, or a mistake: the script is read all the same."""
    script = tmp_path / "train.py"
    script.write_text(
        "from peft import LoraConfig, PeftModel, get_peft_model\n"
        "from transformers import AutoModelForCausalLM, Trainer, TrainingArguments\n\n"
        'base = AutoModelForCausalLM.from_pretrained("org/model")\n' + line.format(name=name)
    )
    assert not lora_doctor.check(str(script), depth="static", select=["LD653"]).findings


def test_a_config_of_a_file_is_named_where_it_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "adapter_config.json").write_text('{"r": "eight"}')
    script = tmp_path / "train.py"
    script.write_text(
        "from peft import LoraConfig, get_peft_model\n"
        "from transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("org/model")\n'
        'model = get_peft_model(model, LoraConfig.from_pretrained("saved"))\n'
    )
    with pytest.raises(lora_doctor.LoraDoctorError, match=r"saved.adapter_config\.json: r must be"):
        lora_doctor.check(str(script), depth="static")
