"""What a dry run makes of what it saw: which failures are of this machine, which rows are judged,
which sets share rows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from lora_doctor.dry_run.acts import loops
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.batch_rows import cut_rows
from lora_doctor.dry_run.acts.failures import refused_by_argparse
from lora_doctor.dry_run.acts.packages import changes_packages
from lora_doctor.dry_run.acts.sampled_rows import tell
from lora_doctor.dry_run.captured import Captured
from lora_doctor.dry_run.launch import Ended
from lora_doctor.dry_run.not_asked import not_asked
from lora_doctor.dry_run.not_here import is_about_here
from lora_doctor.dry_run.open_question import why_open
from lora_doctor.dry_run.sampled import judged_batches
from lora_doctor.recipe.edit import Rewrite
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Skipped
from lora_doctor.results.dry_run import ScriptError
from lora_doctor.results.finding import Finding, Location, Measurement, Proof
from lora_doctor.results.fix import Fix
from lora_doctor.results.supervision import TokenizerFacts
from lora_doctor.supervision.observe import observe
from lora_doctor.supervision.padding import padding_labels
from lora_doctor.supervision.rows import Layout, LossSettings, Row
from tests.test_dry_run import SCRIPTS, dry_run, place, rules

__all__ = ["place"]  # a fixture

# --- failures of this machine -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ModuleNotFoundError", "No module named 'flash_attn'"),
        ("AssertionError", "Torch not compiled with CUDA enabled"),
        ("AttributeError", "module 'torch._C' has no attribute '_cuda_resetPeakMemoryStats'"),
        ("RuntimeError", "CUDA is required to train this model"),
        ("httpx.ConnectError", "[Errno -2] Name or service not known"),
        ("requests.exceptions.ConnectionError", "HTTPSConnectionPool: Max retries exceeded"),
        ("huggingface_hub.errors.LocalEntryNotFoundError", "offline mode is enabled"),
        ("LookupError", "Resource punkt not found. Please use the NLTK Downloader"),
        ("ValueError", "Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)"),
        ("RuntimeError", "0 active drivers ([]). There should only be one."),
        ("ImportError", "liger_kernel requires triton"),
    ],
)
def test_what_this_machine_lacks_leaves_the_question_open(kind: str, message: str) -> None:
    assert is_about_here(ScriptError(kind, message, "train.py", 3))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ValueError", "Please specify `target_modules` in `peft_config`"),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (4x8 and 16x8)"),
        ("TypeError", "Trainer.__init__() got an unexpected keyword argument 'tokenizer'"),
        ("ValueError", "Target module TritonV2QuantLinear() is not supported."),
        ("KeyError", "'triton_attention'"),
    ],
)
def test_what_is_wrong_with_the_command_is_not_of_this_machine(kind: str, message: str) -> None:
    assert not is_about_here(ScriptError(kind, message, "train.py", 3))


def test_a_name_that_an_installed_package_does_not_have_is_the_users_failure() -> None:
    message = "cannot import name 'DataCollatorForCompletionOnlyLM' from 'trl' (trl/__init__.py)"
    own = ScriptError("ImportError", message, "train.py", 3, raised_in="train.py:3")
    inside = ScriptError("ImportError", message, "train.py", 3, raised_in="lib/other.py:12")
    assert not is_about_here(own) and is_about_here(inside)


@pytest.mark.parametrize(
    ("text", "line", "here"),
    [
        ("import torch\nassert torch.cuda.is_available(), 'give me one'\n", 2, True),
        ("import torch\nif not torch.cuda.is_available():\n    raise ValueError('no')\n", 3, True),
        ("import torch\nif torch.cuda.device_count() < 2:\n    raise ValueError('no')\n", 3, True),
        (
            "import torch\nif torch.cuda.is_available():\n    pass\nraise ValueError('no')\n",
            4,
            False,
        ),
        ("rows = []\nassert rows, 'no rows'\n", 2, False),
    ],
)
def test_a_script_that_gives_up_without_a_gpu(
    text: str, line: int, here: bool, tmp_path: Path
) -> None:
    file = tmp_path / "train.py"
    file.write_text(text)
    assert is_about_here(ScriptError("ValueError", "no", str(file), line)) is here


def test_a_command_line_that_argparse_refuses_is_the_users_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It exits with code 2, which says nothing by itself."""
    parser = argparse.ArgumentParser(prog="train.py")
    parser.add_argument("--bf16", type=int)
    for words, told in ((["--bf16"], "argument --bf16: expected one argument"), (["--help"], "")):
        with pytest.raises(SystemExit) as raised:
            parser.parse_args(words)
        cause = refused_by_argparse(raised.value)
        assert (told in cause.message) if told and cause else cause is None
    assert "usage: train.py" in capsys.readouterr().err
    assert refused_by_argparse(SystemExit(2)) is None and refused_by_argparse(ValueError()) is None


def test_a_command_line_that_is_refused_is_told_with_its_line(tmp_path: Path) -> None:
    """DeepSpeed's launcher, for one, hands a script `--local_rank`. Python tells no hook of an
    exit; a program that goes on with other arguments has not failed."""
    (tmp_path / "place").mkdir()
    script = tmp_path / "place" / "train.py"
    script.write_text(
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--lr')\n"
        "print(parser.parse_args())\n"
    )
    report = dry_run(tmp_path / "place", sys.executable, "train.py", "--local_rank=0", code=1)
    assert rules(report) == ["LD002"] and report["undetermined"] is None
    assert "unrecognized arguments: --local_rank=0" in report["findings"][0]["message"]
    assert report["findings"][0]["location"] == {"kind": "file", "path": "train.py", "line": 4}
    refused = {
        "kind": "refused_arguments",
        "pid": 1,
        "time": 1.0,
        "type": "argparse.ArgumentError",
        "message": "unrecognized arguments: -x",
        "own": [],
        "traceback": "",
        "steps": 0,
    }
    later = {"kind": "model", "pid": 1, "time": 2.0}
    exits = {"kind": "exit", "pid": 1, "time": 3.0}
    for records, fails in (((refused, exits), True), ((refused, later, exits), False)):
        assert (Captured(records, records).error() is not None) is fails


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        ("python -m pip install -q -U trl", True),
        ("python -u -m pip --quiet uninstall -y peft", True),
        ("/env/bin/python /env/bin/pip3.11 install trl", True),
        ("python -W ignore -m pip install trl", True),
        ("python -m pip list", False),
        ("python train.py install", False),
        ("python -m trainer pip install", False),
        ("python -", False),
    ],
)
def test_what_would_change_the_environment_is_left_out(command: str, changes: bool) -> None:
    assert changes_packages(command.split()) is changes


# --- which rows are judged ----------------------------------------------------------------------


def _batch(first: int, rows: int, **more: object) -> dict[str, object]:
    ids = [[first + number, 7, 2] for number in range(rows)]
    return {"input_ids": ids, "labels": [[-100, *line[1:]] for line in ids], **more}


def test_a_sample_of_the_set_is_judged_where_forward_gets_what_the_collator_made() -> None:
    sampled = [_batch(0, 8), _batch(8, 8)]
    batches, origin = judged_batches([_batch(3, 4)], sampled)
    assert batches == sampled and origin.startswith("16 rows spread over the training set")


def test_a_sample_without_a_row_of_the_first_batches_is_held_against_the_loader() -> None:
    """Of a large set no row of the sample is among the first; what the loader gave is."""
    sampled = [_batch(100, 16)]
    batches, _ = judged_batches([_batch(3, 4)], sampled, [_batch(3, 4)])
    assert batches == sampled
    changed = _batch(3, 4)
    changed["labels"] = changed["input_ids"]  # by the trainer, before forward
    for loaded in ([_batch(3, 4)], []):
        batches, _ = judged_batches([changed], sampled, loaded)
        assert batches == [changed]


def test_a_trainer_that_makes_labels_of_its_own_is_judged_by_its_batches() -> None:
    first = _batch(3, 4)
    first["labels"] = first["input_ids"]
    for seen in (first, {"input_ids": first["input_ids"]}, _batch(3, 4, position_ids=[[0, 1, 2]])):
        batches, origin = judged_batches([seen], [_batch(0, 16)])
        assert batches == [seen] and origin == "the first batch of the run"


@pytest.mark.parametrize(
    ("of_prompt", "of_padding", "alike"), [(-100, -100, True), (3, -100, False), (-100, 0, False)]
)
def test_rows_are_compared_apart_from_how_far_they_are_padded(
    of_prompt: int, of_padding: int, alike: bool
) -> None:
    """A row is padded to the longest of its batch, which is another one in the sample."""

    def batch(rows: int, padding: int, labels: tuple[int, int]) -> dict[str, object]:
        ids = [[3 + number, 7, 2, *[0] * padding] for number in range(rows)]
        return {"input_ids": ids, "attention_mask": [[1] * 3 + [0] * padding] * rows,
                "labels": [[labels[0], 7, 2, *[labels[1]] * padding]] * rows}  # fmt: skip

    first, sampled = batch(1, 1, (of_prompt, of_padding)), batch(4, 2, (-100, -100))
    batches, _ = judged_batches([first], [sampled])
    assert batches == [sampled if alike else first]


def test_rows_of_a_set_of_any_length_are_drawn_once_each() -> None:
    """A set that was cut has the same few rows over and over; nothing is made of all numbers."""
    torch = pytest.importorskip("torch")

    class Rows:
        def __len__(self) -> int:
            return 10**12

        def __getitem__(self, number: int) -> dict[str, list[int]]:
            ids = [number % 50, 2]
            return {"input_ids": ids, "labels": ids}

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, object]:
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

    told: list[dict[str, list[list[int]]]] = []
    acting = SimpleNamespace(
        writes_its_rows=False, rows=64, ours=nullcontext,
        journal=SimpleNamespace(tell=lambda kind, rows: told.append(rows)),
    )  # fmt: skip
    tell(cast(Acting, acting), SimpleNamespace(dataset=Rows(), collate_fn=collate, batch_size=4))
    rows = [row for batch in told for row in batch["input_ids"]]
    assert sorted(rows) == [[number, 2] for number in range(50)]


def test_sets_that_were_made_of_the_same_few_rows_are_known_again() -> None:
    """A set is mapped, which leaves few rows of it, and split: the parts have the same rows, and
    the user's own set has none twice."""
    datasets = pytest.importorskip("datasets")
    from lora_doctor.dry_run.acts import cut_sets

    few = datasets.Dataset.from_dict({"text": [str(n) for n in range(8)], "number": list(range(8))})
    other = datasets.Dataset.from_dict({"text": [str(n) for n in range(8)]})
    cut_sets.remember(few)
    whole = few.select([n % 8 for n in range(40)]).rename_column("text", "words").shuffle(seed=1)
    split = whole.train_test_split(0.2)
    held_out = split["test"].remove_columns(["number"])
    assert cut_sets.share_rows(split["train"], held_out)
    again = datasets.Dataset.from_dict({"words": held_out["words"]})
    assert cut_sets.handed_on(held_out, again) is again
    assert cut_sets.share_rows(split["train"], again)
    assert cut_sets.handed_on(other, again) is again and not cut_sets.share_rows(again, other)
    assert not cut_sets.share_rows(split["train"], other)


def test_a_scheduler_that_nobody_steps_counts_as_it_stands() -> None:
    """Unless the script was ended before it could have: it may step after an epoch."""
    state = {"phases": [], "tensors": [], "frozen": [], "foreign": 0, "foreign_shared": [],
             "adapters": True}  # fmt: skip
    records = [
        {"kind": "optimizer", "state": {**state, "held": 1}},
        {"kind": "optimizer_unscheduled", "state": {**state, "held": 2}, "of": 5},
    ]
    stepped, ended = {"kind": "scheduler_stepped", "of": 5}, {"kind": "ended", "why": "time"}
    other = {"kind": "scheduler_stepped", "of": 6}
    for more, held in (([], 2), ([other], 2), ([stepped], 1), ([ended], 1)):
        found = Captured((*records, *more)).optimizer()
        assert found is not None and found.held == held, more


def test_an_optimizer_that_steps_late_is_looked_at_with_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second phase begins after the three steps that are enough for one."""
    looked_at: list[Any] = []
    monkeypatch.setattr(
        loops.contract, "read_optimizer", lambda _, held, *rest: looked_at.append(held)
    )
    hooks: list[Any] = []
    acting = SimpleNamespace(in_contract=False, in_trainer=False, steps=0, end=lambda why: None,
                             journal=SimpleNamespace(tell=lambda *kind, **more: None))  # fmt: skip
    module = SimpleNamespace(register_optimizer_step_post_hook=hooks.append)
    loops._optimizers(cast(Acting, acting), cast(ModuleType, module), loops._Loops())
    for step in (*"aaaa", *"bbb"):
        hooks[0](step, (), {})
    assert looked_at == ["a", ["a", "b"]]


def test_a_fix_of_the_text_is_not_called_tried_where_the_recipe_is_not_from_that_text() -> None:
    """In a dry run the recipe is captured: reading it again would show the finding once more, and a
    fix that is right would be said not to help."""
    from lora_doctor.engine.try_fixes import _Round

    fix = Fix("quantization_config=...", "safe", rewrites=(Rewrite(0, 3, "old", "new"),))
    finding = Finding(
        "LD315", "load-argument-removed", "error", "It raises.", Location("file", "a.py", 1),
        (Measurement("the line", "from_pretrained(load_in_8bit=True)", "a.py"),),
        Proof("inferred", ""), fixes=(fix,),
    )  # fmt: skip
    tried: list[object] = []
    trials = SimpleNamespace(run=lambda *given: tried.append(given) or {}, would_take=lambda one: 0)
    for recipe, times in ((Recipe(), 0), (SimpleNamespace(written=1, set_up=None), 1)):
        first = SimpleNamespace(case=SimpleNamespace(recipe=recipe))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lora_doctor.engine.try_fixes.is_of_text", lambda fix, recipe: True)
            _Round(cast(Any, trials), cast(Any, first), [finding]).read_again()
        assert len(tried) == times


def test_rules_that_need_more_than_batches_are_named_beside_the_verdict() -> None:
    """They are skipped, not passed; a rule that has nothing to say here is not named."""
    skipped = [
        Skipped("LD902", "answers-cut-off", "a run has batches only", lacks="texts"),
        Skipped("LD401", "epsilon-mismatch", "these weights are random", lacks="weights"),
        Skipped("LD620", "adapter-keys-land-nowhere", "no saved adapter was given (--adapter)"),
    ]
    [note] = not_asked(skipped)
    assert "LD401" in note.text and "LD902" in note.text and "LD620" not in note.text
    assert note.is_always_shown and not not_asked(skipped[2:])


# --- labels -------------------------------------------------------------------------------------


def _padding(row: Row, layout: Layout = "causal", **facts: int) -> int:
    return padding_labels(row, TokenizerFacts(**facts), LossSettings(layout=layout))


def test_labels_of_padding_are_counted_in_every_layout() -> None:
    ids, mask = [1, 5, 6, 2, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0]
    assert _padding(Row(ids, ids, attention_mask=mask)) == 3
    assert _padding(Row(ids, [*ids[:4], -100, -100, -100], attention_mask=mask)) == 0
    assert _padding(Row(ids[::-1], ids[::-1], attention_mask=mask[::-1])) == 2, "from the left"
    assert _padding(Row(ids, ids), pad_id=0) == 3, "no mask: the padding tokens at the end"
    ends = [1, 5, 6, 2, 2, 2]
    assert _padding(Row(ends, ends), pad_id=2, eos_id=2) == 2, "one of them ends the text"
    assert _padding(Row([7, 8], [5, 6, 2, 0, 0]), "seq2seq", pad_id=0) == 2
    assert _padding(Row([7, 8], [5, 6, 2, -100, -100]), "seq2seq", pad_id=0) == 0
    assert _padding(Row([7, 8, 0], [1]), "classes", pad_id=0) == 0


def test_an_end_of_text_before_labelled_padding_is_an_end() -> None:
    """What is wrong is the padding, and nothing else."""
    facts = TokenizerFacts(pad_id=0, eos_id=2)
    own = Row([7, 8], [5, 6, 2, 0, 0])
    found = observe([own], facts, LossSettings(layout="seq2seq"), origin="here")
    assert found.padding_supervised.count == 1 and found.padding_labels == 2
    assert found.supervised_tokens == 3
    assert found.end_trained.count == 1 and not found.end_missing
    ids = [1, 5, 6, 2, 0, 0]
    found = observe([Row(ids, ids)], facts, LossSettings(), origin="here")
    assert found.end_trained.count == 1 and found.padding_labels == 2
    assert found.supervised_tokens == 3, "the first token is predicted from nothing"


# --- runs ---------------------------------------------------------------------------------------


def test_a_script_for_a_gpu_goes_its_way_and_a_schedule_that_stands_still_is_found(
    place: Path,
) -> None:
    """What the script asks its GPU, and signing in to a hub, do not end it here."""
    script = (SCRIPTS / "bare_loop.py").read_text()
    optimizer = next(line for line in script.splitlines() if line.startswith("optimizer ="))
    asked = (
        "from huggingface_hub import login\n"
        "login(token='hf_0')\n"
        "assert torch.cuda.get_device_capability()[0] >= 8 and torch.cuda.is_bf16_supported()\n"
        "print(torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0))\n"
        "torch.cuda.reset_peak_memory_stats()\n"
        "import subprocess, sys\n"
        "subprocess.check_call([sys.executable, '-m', 'pip', 'install', 'no-such-package-42'])\n"
    )
    (place / "loop.py").write_text(
        script.replace(f"{optimizer}\n", "")
        .replace("scheduler = ", f"{optimizer}\nscheduler = ")
        .replace("        scheduler.step()\n", "")
        .replace('device = "cuda"\n', f'device = "cuda"\n{asked}')
    )
    report = dry_run(place, sys.executable, "loop.py", code=1)
    assert rules(report) == ["LD510"], json.dumps(report["findings"])[:2000]
    assert report["dry_run"]["error"] is None
    assert any("pip was left out" in note["text"] for note in report["notes"])


def _texts(lengths: Sequence[int], unlabelled: Sequence[int] = ()) -> dict[str, Any]:
    """A padded batch with rows of so many tokens, of which some have no label."""
    import torch

    longest = max(lengths)
    mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths])
    ids = torch.arange(len(lengths)).reshape(-1, 1).expand(-1, longest).clone()
    labels = ids.masked_fill(mask == 0, -100)
    labels[list(unlabelled)] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "num_items": mask.sum()}


@pytest.mark.parametrize(
    ("lengths", "unlabelled", "vocabulary", "kept"),
    [
        ((40, 30, 50, 20), (), 50_000, [2, 3]),
        ((40, 40, 40, 40), (), 50_000, [0, 1]),
        ((40, 30, 50, 20), (3,), 50_000, [1, 2]),
        ((40, 30, 50, 20), (1, 2, 3), 50_000, [0, 1, 2, 3]),
        ((40, 30, 50, 20), (), 1_000, [0, 1, 2, 3]),
        ((40, 30, 50, 20), (), None, [0, 1, 2, 3]),
    ],
)
def test_of_a_large_batch_of_texts_the_rows_are_kept_that_tell_most(
    lengths: Sequence[int], unlabelled: Sequence[int], vocabulary: int | None, kept: list[int]
) -> None:
    """What fails for padded rows alone has to fail for those of the training contract, too."""
    batch = _texts(lengths, unlabelled)
    cut = cut_rows(batch, vocabulary)
    found = batch if cut is None else cut.few
    assert found["input_ids"][:, 0].tolist() == kept
    assert {name: len(found[name]) for name in ("attention_mask", "labels")} == {
        "attention_mask": len(kept), "labels": len(kept)
    }  # fmt: skip
    assert found["num_items"] is batch["num_items"]


def test_an_unknown_rule_is_told_before_the_command_runs(tmp_path: Path) -> None:
    """A dry run takes minutes; a mistyped code came to light when it was over."""
    from lora_doctor.dry_run.judge import DryRunOptions
    from lora_doctor.dry_run.judge import dry_run as run
    from lora_doctor.errors import InputError

    ran = tmp_path / "ran"
    script = tmp_path / "train.py"
    script.write_text(f"open({str(ran)!r}, 'w').close()\n")
    with pytest.raises(InputError, match="XX9"):
        run([sys.executable, str(script)], DryRunOptions(check={"select": ["XX9"]}))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("code", "ended", "said"),
    [
        (-11, False, "after 3 steps (ended by SIGSEGV; its last line: saving now)"),
        (3, False, "after 3 steps (exit code 3; its last line: saving now)"),
        (0, False, None),
        (1, True, None),  # by us, from the middle of somebody's code
    ],
)
def test_a_command_that_dies_behind_its_steps_is_not_healthy(
    code: int, ended: bool, said: str | None
) -> None:
    """No exception is seen of a signal, nor of ``os._exit``."""
    records: list[dict[str, Any]] = [
        {"kind": "trained", "pid": 1, "steps": 3}, {"kind": "adapted", "pid": 1},
    ]  # fmt: skip
    if ended:
        records.append({"kind": "ended", "pid": 1, "why": "what follows"})
    why = why_open(Ended(code, 1.0, "saving now\n"), Captured(tuple(records)), frozenset("p"), None)
    assert why is None if said is None else why is not None and said in why
