"""What one task leaves for the next: the same tiny model, or none."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from lora_doctor.evidence import tiny, tiny_model_cache
from lora_doctor.evidence.tiny_model_cache import TinyModelCache
from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.static.model_source import parse_model


def _loader(name: str = "gpt2"):
    pytest.importorskip("transformers")
    from lora_doctor.model.loading import Loader

    return Loader(parse_model(f"arch:{name}").to_json(), as_recipe({}))


def test_a_second_task_gets_the_model_that_the_first_one_made(tmp_path, monkeypatch):
    """Weights, tied ones included, and batch come back: else the census would try the ways of a
    recipe on another model than the one whose recipe it prints. The class is constructed without
    numbers only, for the tables that constructors fill."""
    import torch

    file = str(tmp_path / "made.pt")
    first = tiny.make(_loader(), file)
    loader = _loader()
    devices, build = [], loader.build

    def counted(device="cpu", **options):
        devices.append(device)
        return build(device, **options)

    monkeypatch.setattr(loader, "build", counted)
    second = tiny.make(loader, file)
    assert devices == ["meta"]
    assert second.steps == first.steps
    names = [name for name, _ in first.model.named_parameters()]
    assert [name for name, _ in second.model.named_parameters()] == names
    embedding, head = second.model.get_input_embeddings(), second.model.get_output_embeddings()
    assert embedding.weight is head.weight
    with torch.no_grad():
        one = first.model.eval()(**first.batch.inputs).loss
        other = second.model.eval()(**second.batch.inputs).loss
    assert torch.equal(one, other)


def test_a_model_that_cannot_be_written_is_made_anew(tmp_path):
    """A hook that is a closure cannot be pickled; nothing half written may stay behind."""
    file = str(tmp_path / "made.pt")
    shrunk = tiny.make(_loader())
    shrunk.model.register_forward_hook(lambda *_: None)
    tiny_model_cache.write(file, shrunk)
    assert list(tmp_path.iterdir()) == []
    assert tiny_model_cache.read(file) is None


def test_a_file_that_cannot_be_read_is_none(tmp_path):
    """A disk that was full when it was written is no reason to end in a traceback."""
    file = tmp_path / "made.pt"
    file.write_bytes(b"PK\x03\x04 half of it")
    assert tiny_model_cache.read(str(file)) is None
    assert tiny.make(_loader(), str(file)).batch is not None


def test_each_way_to_load_has_a_file_of_its_own():
    """A recipe for another class, or with a patch, must not be tried on the first one's model."""
    held, source = TinyModelCache(), parse_model("arch:gpt2")
    plain = held.file(source, as_recipe({"r": 8}), ())
    assert held.file(source, as_recipe({"r": 16, "load_in_4bit": True}), ()) == plain
    others = {
        held.file(source, as_recipe({"model_class": "GPT2ForTokenClassification"}), ()),
        held.file(source, as_recipe({"task_type": "TOKEN_CLS"}), ()),
        held.file(source, as_recipe({"attn_implementation": "eager"}), ()),
        held.file(source, as_recipe({}), (Patch("adapters-in-float32"),)),
        held.file(parse_model("arch:llama"), as_recipe({}), ()),
    }
    assert len(others) == 5
    assert plain not in others


def test_the_folder_goes_with_the_case():
    """A census of hundreds of rows may not fill the disk; nor may a failure that is kept, and with
    it the frames that raised it, hold on to the folder."""
    from lora_doctor.engine.case import Case
    from lora_doctor.engine.settings import Settings
    from lora_doctor.sandbox.worker import Worker

    source, recipe = parse_model("arch:gpt2"), as_recipe({})
    with Worker() as worker:
        case = Case(source, recipe, Settings("static"), worker)
        assert not case.has("structure")
        files = [case.tiny_model_file(recipe), case.again(recipe, ()).tiny_model_file(recipe)]
        assert len({Path(file).parent for file in files}) == 1
        assert Path(files[0]).parent.is_dir()
        case.close()
    assert not Path(files[0]).parent.exists()


def test_the_folder_goes_with_the_process():
    """Whoever forgets to close a case leaves nothing behind either."""
    held = TinyModelCache()
    folder = Path(held.file(parse_model("arch:gpt2"), as_recipe({}), ())).parent
    assert folder.is_dir()
    del held
    gc.collect()
    assert not folder.exists()


def test_a_check_leaves_no_folder_behind(tmp_path, monkeypatch):
    """As a user runs it: what the tasks left for each other is gone with the answer."""
    import tempfile

    import lora_doctor

    pytest.importorskip("peft")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert lora_doctor.check("arch:gpt2").before.outcome == "passed"
    assert list(tmp_path.iterdir()) == []
