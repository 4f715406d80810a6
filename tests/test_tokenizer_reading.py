"""What the installed tokenizers is asked about a file, part by part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.static.tokenizer_file import TokenizerFile
from lora_doctor.static.tokenizer_reading import unreadable_parts, whole_file_error

FOLDERS = Path(__file__).parent / "folders"
pytest.importorskip("tokenizers")
DIGITS = {"type": "Digits", "individual_digits": False}


def tokenizer(**sections: Any) -> TokenizerFile:
    return TokenizerFile({"version": "1.0", **sections}, "BPE", "strings")


def test_the_single_part_of_a_sequence_is_named() -> None:
    """A pre-tokenizer has five parts; 'line 1 column 203' is what the user has otherwise."""
    inner = {"type": "Sequence", "pretokenizers": [{"type": "FromTheFuture"}]}
    outer = {"type": "Sequence", "pretokenizers": [DIGITS, inner]}
    (found,) = unreadable_parts(tokenizer(pre_tokenizer=outer))
    assert found.part == "pre_tokenizer.pretokenizers[1].pretokenizers[0]"
    assert "FromTheFuture" in found.content and "PreTokenizer" in found.error
    assert found.since is None


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("normalizer", {"type": "FromTheFuture"}),
        ("decoder", {"type": "FromTheFuture"}),
        ("post_processor", {"type": "FromTheFuture"}),
        ("truncation", "half of it"),
        ("version", "2.0"),
    ],
)
def test_every_section_is_asked_about(section: str, value: Any) -> None:
    assert [part.part for part in unreadable_parts(tokenizer(**{section: value}))] == [section]


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece", "WordLevel", None])
def test_models_that_every_release_reads_are_no_findings(kind: str | None) -> None:
    """Their vocabulary is left out, which must not be taken for a fault of theirs."""
    assert unreadable_parts(TokenizerFile({}, kind, None)) == ()


def test_a_model_that_the_library_does_not_have() -> None:
    (found,) = unreadable_parts(TokenizerFile({}, "FromTheFuture", None))
    assert found.part == "model.type"


def test_parts_and_the_whole_file_agree() -> None:
    """The rule asks about parts because a vocabulary is large: they must give the same answer."""
    from lora_doctor.static.tokenizer_file import read_tokenizer_file

    for folder in ("metaspace_with_split", "metaspace_without_prefix", "merges_as_pairs",
                   "merges_as_texts"):  # fmt: skip
        path = FOLDERS / folder / "tokenizer.json"
        parts = unreadable_parts(read_tokenizer_file(path))
        assert bool(parts) == (whole_file_error(path) is not None), folder


def test_a_real_file_of_the_installed_release_is_readable(tmp_path: Path) -> None:
    """Whatever the library writes itself, with a vocabulary, is no finding."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    own = Tokenizer(models.BPE())
    own.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    own.decoder = decoders.Metaspace()
    own.train_from_iterator(["a man, a plan"], trainers.BpeTrainer(special_tokens=["<s>"]))
    own.save(str(tmp_path / "tokenizer.json"))
    config = json.loads((FOLDERS / "merges_as_texts" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    diagnosis = lora_doctor.check(str(tmp_path), depth="static", select=("LD601",))
    assert diagnosis.passed == ("LD601",) and not diagnosis.findings


def test_it_is_asked_without_torch() -> None:
    code = (
        "import sys, lora_doctor\n"
        f"found = lora_doctor.check({str(FOLDERS / 'tokenizer_of_git')!r}, depth='static')\n"
        "assert [f.rule for f in found.findings] == ['LD601'], found.findings\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
