"""Pasted messages and logs lead to the rule that knows them, and to none where none does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.cli.explain import explanation
from lora_doctor.engine.as_written import as_written
from tests import cli

DATA = Path(__file__).parent / "data"
MESSAGES = [
    json.loads(line)
    for file in sorted(DATA.glob("messages*.jsonl"))
    for line in file.read_text("utf-8").splitlines()
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message["name"])
def test_the_right_rule_is_named_first_or_none(message: dict[str, Any]) -> None:
    found = [match.rule.code for match in explanation(message["text"]).matches]
    assert found[: len(message["codes"]) or None] == message["codes"]


def test_a_message_out_of_which_markdown_took_the_backticks_is_known_as_well() -> None:
    quoted = [one for one in MESSAGES if "`" in one["text"] and one["codes"]]
    assert quoted
    for message in quoted:
        matches = explanation(message["text"].replace("`", "")).matches
        assert [match.rule.code for match in matches][:1] == message["codes"][:1], message["text"]


#: What stands before the lines of a message where a logger, a launcher, a mail or a page has it.
BEFORE_LINES = (
    "> ", "> > ", "[rank1]:[rank1]: ", "stderr: ", "worker-0: ", "trainer-1  | ",
    "(pid=812, ip=10.0.0.7) ", "2026-11-02T10:11:12.1234567Z ", "2026-11-02 10:11:12,123 - INFO - ",
    "[2026-11-02 10:11:12] ERROR trainer.py:33 >> ",
    "[WARNING|trainer.py:33] 2026-11-02 10:11:12 >> ",
)  # fmt: skip
OVER_LINES = {
    "LD546": "ValueError: You can't train a model that has been loaded in 8-bit precision on a\n"
    "different device than the one you're training on.",
    "LD634": "RuntimeError: You set `ignore_mismatched_sizes` to `False`, thus raising an\nerror",
    "LD544": "RuntimeError: Expected to mark a variable\nready only once.\nThis is an error.",
}


@pytest.mark.parametrize("before", BEFORE_LINES)
@pytest.mark.parametrize("code", OVER_LINES)
def test_what_stands_before_each_line_is_no_part_of_the_message(code: str, before: str) -> None:
    text = "\n".join(before + line for line in OVER_LINES[code].splitlines())
    assert [match.rule.code for match in explanation(text).matches][:1] == [code]


def test_what_a_page_or_markdown_has_escaped_is_what_the_program_wrote() -> None:
    text = "ValueError: Target modules {&#x27;q\\_proj&#x27;} not found in the base model."
    assert [match.rule.code for match in explanation(text).matches] == ["LD201"]
    assert as_written("C:\\Users\\_me\\a.py") == "C:\\Users\\_me\\a.py"
    assert as_written("ValueError: a\nValueError: b") == "ValueError: a\nValueError: b"


def test_a_message_without_its_traceback_names_the_nearest_rule_and_what_is_missing() -> None:
    result = cli.lora_doctor("explain", "ModuleNotFoundError: No module named 'einops'")
    assert result.code == 2
    assert "LD104" in result.err
    assert "paste the whole traceback" in result.err


def test_a_rule_that_knows_the_class_of_the_error_alone_is_told_as_such() -> None:
    message = "ValueError: Unable to create frobs, you should probably activate wobbling."
    result = cli.lora_doctor("explain", message)
    assert result.code == 2 and "LD524" in result.err and "whole traceback" in result.err
    assert "'ValueError: U'" not in result.err


def test_json_gives_the_codes_in_order_with_the_line_that_matched() -> None:
    text = "ValueError: optimizer got an empty parameter list"
    result = cli.lora_doctor("explain", text, "--output-format", "json")
    answer = json.loads(result.out)
    assert result.code == 0
    assert [match["code"] for match in answer["matches"]] == ["LD502", "LD503", "LD521"]
    assert answer["matches"][0]["line"] == "optimizer got an empty parameter list"


def test_json_without_a_rule_is_still_json() -> None:
    result = cli.lora_doctor("explain", "Killed", "--output-format", "json")
    assert result.code == 2
    cause = {"about": "a process that the system ended, mostly for want of main memory (not of "
                      "the GPU's)", "command": None}  # fmt: skip
    assert json.loads(result.out) == {
        "matches": [], "near": [], "other_cause": cause, "raised": None,
    }  # fmt: skip


def test_a_failure_described_in_words_is_told_as_a_guess() -> None:
    result = cli.lora_doctor("explain", "lora_B stays zero in every layer of the encoder")
    assert result.code == 0
    assert "by its description it may be LD206" in result.out


def test_words_inside_a_log_or_a_traceback_describe_nothing() -> None:
    words = "the routed experts stay frozen"
    assert explanation(words).matches
    assert not explanation(words + "\nstep 1 of 900, all is well" * 40).matches
    assert not explanation(f'  File "/home/user/train.py", line 3\n    log("{words}")').matches


def test_of_a_log_that_no_rule_knows_the_lines_that_were_taken_for_the_message_are_shown() -> None:
    log = "Traceback (most recent call last):\n  File 'x.py'\nKeyError: wobble the frobnicator"
    result = cli.lora_doctor("explain", log)
    assert result.code == 2 and "'KeyError: wobble the frobnicator'" in result.err


def test_a_log_is_read_from_a_file_also_as_powershell_writes_it(tmp_path: Path) -> None:
    log = "step 1\nValueError: Target modules ['x'] not found in the base model."
    for number, encoding in enumerate(("utf-8", "utf-16")):
        file = tmp_path / f"{number}.log"
        file.write_bytes(log.encode(encoding))
        assert "Matched LD201" in cli.lora_doctor("explain", str(file)).out


def test_a_rule_is_found_as_reports_and_people_write_it() -> None:
    for written in ("LD201", "ld 201", "201", "LD201:", "no-target-matches",
                    "LD201 no-target-matches"):  # fmt: skip
        assert cli.lora_doctor("explain", written).out.startswith("LD201 no-target-matches")


def test_a_log_that_does_not_exist_is_no_message(tmp_path: Path) -> None:
    missing = str(tmp_path / "slurm.log")
    result = cli.lora_doctor("explain", missing)
    assert result.code == 2 and result.err.strip().endswith(f"there is no file {missing!r}")


@pytest.mark.parametrize(
    ("text", "about", "command"),
    [
        ("RuntimeError: CUDA Setup failed despite GPU being available.", "another GPU", "env"),
        ("AttributeError: 'DeepSpeedCPUAdam' object has no attribute 'x'", "another GPU", "env"),
        ("[Rank 3] Watchdog caught collective operation timeout: Work", "processes", "dry-run"),
        ("OSError: You are trying to access a gated repo.", "access", ""),
        (
            "requests.exceptions.ConnectionError: ('Connection aborted.', "
            "ConnectionResetError(104, 'Connection reset by peer'))",
            "access",
            "",
        ),
        ("IoError(Os { code: 28, kind: StorageFull })", "a disk", ""),
        ("ValueError: LoRA rank 64 is greater than max_lora_rank 16.", "serves", "--adapter"),
        ("pyarrow.lib.ArrowInvalid: JSON parse error", "data files", "--data"),
        ("ValueError: Can't find 'adapter_config.json' at 'out'", "no saved adapter", "--adapter"),
        ("exit 1\ntorch.distributed.elastic.ChildFailedError:", "launcher's own summary", ""),
    ],
)
def test_what_is_no_mistake_of_a_set_up_is_told_as_what_it_is(
    text: str, about: str, command: str
) -> None:
    answer = explanation(text)
    assert not answer.matches and answer.other_cause
    assert about in answer.other_cause.about and command in answer.other_cause.command


def test_an_engine_that_a_trainer_has_write_the_answers_is_a_part_of_the_training() -> None:
    engine = '  File "/x/vllm/entrypoints/llm.py", line 4, in generate\nValueError: too long'
    assert explanation(engine).other_cause
    trainer = '  File "/x/trl/trainer/grpo_trainer.py", line 9, in _generate\n'
    assert not explanation(trainer + engine).other_cause


def test_of_a_training_that_runs_on_no_cause_is_told() -> None:
    warning = "The installed version of bitsandbytes was compiled without GPU support."
    assert explanation(warning).other_cause
    steps = "".join(f"{{'loss': {2 - n / 100}, 'epoch': {n}}}\n" for n in range(100))
    healthy = explanation(f"{warning}\n{steps}saved to out")
    assert not healthy.matches and not healthy.near and not healthy.other_cause


def test_of_an_error_in_other_code_the_class_alone_is_no_near_rule() -> None:
    frame = 'Traceback (most recent call last):\n  File "/srv/app/main.py", line 3, in <module>\n'
    result = cli.lora_doctor("explain", frame + "ValueError: the moon is full")
    assert result.code == 2 and "LD524" not in result.err


def test_the_command_that_asks_the_rule_has_the_options_without_which_it_is_silent() -> None:
    for message, command in (
        ("CUDA out of memory", "check MODEL --depth meta --memory --memory-budget 24GB"),
        ("LD706", "lora-doctor env --check"),
        ("LD547", "lora-doctor dry-run -- COMMAND"),
        ("LD714", "--gpu NAME"),
    ):
        assert command in cli.lora_doctor("explain", message).out.splitlines()[-1]
