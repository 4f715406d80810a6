"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from lora_doctor.cli.option_types import Number, ReportFormat, Several, joined, outputs
from lora_doctor.limits import DATA_ROWS, HUB_SECONDS, META_SECONDS, MOST_DATA_ROWS, TINY_SECONDS
from lora_doctor.recipe.command_line import Option
from lora_doctor.recipe.keys import KEYS, RecipeKey
from lora_doctor.results.depth import STEPS
from lora_doctor.results.formats import DEFAULT

F = TypeVar("F", bound=Callable[..., Any])


def optional_model(command: F) -> F:
    """``recipe_options`` for a command that also takes the project's set-ups."""
    return recipe_options(command, required=False)


def recipe_options(command: F, *, required: bool = True) -> F:
    """The recipe, in PEFT's and transformers' own names. Options win over the file."""
    options = [
        click.argument("model", metavar="MODEL" if required else "[MODEL]", required=required),
        click.argument(
            "script_arguments",
            metavar="[-- ARGUMENTS OF A SCRIPT]",
            nargs=-1,
            type=click.UNPROCESSED,
        ),
        click.option(
            "--recipe",
            "recipe_file",
            metavar="FILE",
            help="Recipe in YAML or JSON, a PEFT adapter_config.json, or a training script or "
            "notebook.",
        ),
        click.option(
            "--format",
            "format_name",
            metavar="FORMAT",
            help="Format of the file, if its content does not show it: LLaMA-Factory, axolotl, "
            "TRL, ms-swift.",
        ),
        *_options_of_keys("recipe"),
        click.option("--revision", metavar="REV", help="Revision of a hub id."),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Allow code of the model's repository to run, in a child process.",
        ),
        click.option(
            "--hub-time-limit",
            type=Number(min=0.1),
            default=HUB_SECONDS,
            show_default=True,
            metavar="SECONDS",
            help="Time limit for all hub requests together.",
        ),
        click.option(
            "--time-limit",
            type=Number(min=1),
            metavar="SECONDS",
            help="Time limit for each run in a child process.  "
            f"[default: {META_SECONDS:g} at meta, {TINY_SECONDS:g} at tiny, by size at full, "
            "an hour at least]",
        ),
        click.option(
            "--memory-limit",
            type=Number(min=0.1),
            metavar="GIB",
            help="Limit for the resident memory of a child process.  [default: 8; at full by the "
            "checkpoint and the machine's memory]",
        ),
    ]
    return with_options(options, command)


def fail_on_option(command: F) -> F:
    """What gives exit code 1."""
    return with_options(
        [
            click.option(
                "--fail-on",
                type=click.Choice(["error", "warning", "never"]),
                default="warning",
                show_default=True,
                help="Lowest severity that gives exit code 1.",
            ),
        ],
        command,
    )


def output_options(command: F) -> F:
    """How the result is written, and what of it counts."""
    options = [
        click.option(
            "--baseline",
            metavar="FILE",
            help="Result of an earlier run (--output json=FILE): its findings do not give exit "
            "code 1; those that are gone since are reported.",
        ),
        click.option(
            "--output-format",
            type=ReportFormat(),
            default=DEFAULT,
            show_default=True,
            help="Format of the result.",
        ),
        click.option(
            "--output-file",
            "-o",
            metavar="FILE",
            help="Write the result to FILE instead of standard output.",
        ),
        click.option(
            "--output",
            "outputs",
            type=click.UNPROCESSED,
            metavar="FORMAT=FILE",
            callback=outputs,
            multiple=True,
            help="Also write the result to FILE in this format; may be repeated.",
        ),
        click.option(
            "--verbose", "-v", is_flag=True, help="Also show what passed and what was skipped."
        ),
    ]
    return fail_on_option(with_options(options, command))


def report_options(command: F) -> F:
    """Which rules, and how the result is written."""
    options = [
        click.option("--select", metavar="CODES", default="", help="Only these codes or prefixes."),
        click.option("--ignore", metavar="CODES", default="", help="Not these codes or prefixes."),
        click.option(
            "--rules",
            "rule_folders",
            metavar="DIR",
            multiple=True,
            help="Folder with rule files of your own.",
        ),
        click.option(
            "--strict",
            is_flag=True,
            help="Exit code 2 also if a rule of this depth is skipped for a reason that you "
            "can change: a missing package, an unreadable file, ...",
        ),
    ]
    return with_options(options, output_options(command))


def dry_run_options(command: F) -> F:
    """The command of a dry run, and how much of it is run."""
    options = [
        click.argument("command", metavar="COMMAND...", nargs=-1, type=click.UNPROCESSED),
        click.option(
            "--rows",
            type=click.IntRange(2),
            default=64,
            show_default=True,
            metavar="N",
            help="Rows of each dataset that are tokenized and mapped.",
        ),
        click.option(
            "--synthetic-data",
            is_flag=True,
            help="If a dataset is not available, continue with made-up rows of its declared "
            "features; labels are then not checked.",
        ),
        click.option(
            "--check-resume",
            is_flag=True,
            help=(
                "Also resume the Trainer from a checkpoint of the dry run, and compare with "
                "the run that was not interrupted."
            ),
        ),
        click.option(
            "--time-limit",
            type=Number(min=1),
            metavar="SECONDS",
            help="Time limit for the whole command.  [default: 600]",
        ),
        click.option(
            "--memory-limit",
            type=Number(min=0.1),
            metavar="GIB",
            help="Limit for the resident memory of the command and all processes that it starts.  "
            "[default: 8]",
        ),
    ]
    return with_options(options, command)


def real_run_options(command: F) -> F:
    """The command of a real run, and the prescription for it."""
    options = [
        click.argument("command", metavar="COMMAND...", nargs=-1, type=click.UNPROCESSED),
        click.option(
            "--prescription",
            metavar="FILE",
            help="Prescription that fix --apply wrote.  [default: lora-doctor.prescription.json]",
        ),
    ]
    return with_options(options, command)


def memory_options(command: F) -> F:
    """What the memory plan is made for."""
    options = [
        click.option(
            "--memory",
            is_flag=True,
            help="Show how much GPU memory the recipe and its alternatives take.",
        ),
        *_options_of_keys("memory"),
    ]
    return with_options(options, command)


def data_options(command: F) -> F:
    """Training data, and how its rows become batches with labels."""
    options = [
        click.option(
            "--data",
            metavar="FILE",
            help="Training data (JSON lines, JSON, CSV, Parquet): check which tokens are "
            "supervised.",
        ),
        click.option("--eval-data", metavar="FILE", help="Evaluation data, compared with --data."),
        click.option(
            "--rows",
            type=click.IntRange(1, MOST_DATA_ROWS),
            default=DATA_ROWS,
            show_default=True,
            metavar="N",
            help="Rows to examine, spread over the file.",
        ),
        click.option(
            "--samples/--no-samples",
            default=None,
            help="Show texts of rows in every format, or in none.  [default: only in the terminal]",
        ),
        *_options_of_keys("data"),
    ]
    return with_options(options, command)


def device_options(command: F) -> F:
    """Where and how long the training contract is run."""
    options = [
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda", "mps"]),
            default="auto",
            show_default=True,
            help="Where to run.",
        ),
        click.option(
            "--steps",
            type=click.IntRange(1, 100),
            default=STEPS,
            show_default=True,
            help="Optimizer steps.",
        ),
    ]
    return with_options(options, command)


def cache_option(command: F) -> F:
    """Whether a stored answer will do."""
    return click.option(
        "--no-cache",
        is_flag=True,
        help="Neither use nor store cached results.",
    )(command)


def adapter_option(command: F) -> F:
    """An adapter that exists."""
    return click.option(
        "--adapter",
        metavar="DIR|ID[@REVISION]",
        help="Saved adapter to load onto MODEL: a folder or a hub id; its config is the recipe.",
    )(command)


def prescription_option(command: F) -> F:
    """For a recipe whose fixes are patches of the process as well."""
    return click.option(
        "--prescription",
        metavar="FILE",
        help=(
            "Prescription that fix --apply wrote: use its patches, and its recipe if there is "
            "no --recipe."
        ),
    )(command)


def _options_of_keys(group: str) -> list[Callable[[Any], Any]]:
    """The options of the recipe's keys, as their table has them."""
    return [_option_of(key, key.option) for key in KEYS if key.option and key.option.group == group]


def _option_of(key: RecipeKey, option: Option) -> Callable[[Any], Any]:
    if option.type is bool:
        pair = f"{key.spelling}/{option.negation(key.spelling)}"
        return click.option(pair, key.name, default=None, help=option.help)
    if option.several:
        return click.option(
            key.spelling, *option.aliases, key.name, cls=Several, multiple=True,
            callback=joined, metavar=option.metavar, help=option.help,
        )  # fmt: skip
    return click.option(
        key.spelling,
        *option.aliases,
        key.name,
        type=option.type,
        metavar=option.metavar,
        help=option.help,
    )


def with_options(options: Sequence[Callable[[Any], Any]], command: F) -> F:
    """The command with these options, which ``--help`` shows in this order."""
    for option in reversed(options):
        command = option(command)
    return command
