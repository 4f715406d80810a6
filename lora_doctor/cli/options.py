"""The options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from lora_doctor.results.formats import DEFAULT, find_formats

F = TypeVar("F", bound=Callable[..., Any])


class _Number(click.FloatRange):
    """A float in a range; ``nan`` is in none, and ``inf`` is no limit that anybody can keep."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class _ReportFormat(click.types.StringParamType):
    """A report format. They are looked for when one is needed, so that other commands neither pay
    for it nor fail on a broken format of another installed package."""

    name = "report format"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(find_formats())}]"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        name, formats = str(super().convert(value, param, ctx)), find_formats()
        if name not in formats:
            self.fail(f"{name!r} is not one of {', '.join(map(repr, formats))}.", param, ctx)
        return name

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in find_formats() if name.startswith(incomplete)]


def recipe_options(command: F) -> F:
    """The recipe, in PEFT's and transformers' own names. Options win over the file."""
    options = [
        click.argument("model", metavar="MODEL"),
        click.option(
            "--recipe",
            "recipe_file",
            metavar="FILE",
            help="Recipe in YAML or JSON, or a PEFT adapter_config.json.",
        ),
        click.option(
            "--task-type",
            metavar="TYPE",
            help="PEFT's task type: CAUSAL_LM, SEQ_2_SEQ_LM, ... or none.",
        ),
        click.option(
            "--target-modules",
            metavar="NAMES",
            help="Names separated by commas, a regular expression, or all-linear.",
        ),
        click.option(
            "--target-parameters",
            metavar="NAMES",
            help="Parameters (fused experts), separated by commas.",
        ),
        click.option(
            "--exclude-modules",
            metavar="NAMES",
            help="Names separated by commas, or a regular expression.",
        ),
        click.option("--modules-to-save", metavar="NAMES", help="Names separated by commas."),
        click.option("--r", type=int, metavar="N", help="LoRA rank."),
        click.option("--lora-alpha", type=float, metavar="X", help="LoRA alpha."),
        click.option("--lora-dropout", type=float, metavar="P", help="LoRA dropout, 0 to 1."),
        click.option("--use-rslora/--no-use-rslora", default=None, help="Rank-stabilised LoRA."),
        click.option("--use-dora/--no-use-dora", default=None, help="DoRA."),
        click.option("--load-in-4bit/--no-load-in-4bit", default=None, help="bitsandbytes 4-bit."),
        click.option("--load-in-8bit/--no-load-in-8bit", default=None, help="bitsandbytes 8-bit."),
        click.option("--dtype", metavar="DTYPE", help="float32, float16, bfloat16 or auto."),
        click.option(
            "--attn-implementation", metavar="NAME", help="eager, sdpa, flash_attention_2, ..."
        ),
        click.option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            default=None,
            help="Recompute activations in the backward.",
        ),
        click.option(
            "--class",
            "model_class",
            metavar="NAME",
            help="Class to load with: an Auto class or a model class.",
        ),
        click.option("--revision", metavar="REV", help="Revision of a hub id."),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Allow the code of the model's repository to run, in a child process.",
        ),
        click.option(
            "--hub-time-limit",
            type=_Number(min=0.1),
            default=10.0,
            show_default=True,
            metavar="SECONDS",
            help="For all requests to a hub.",
        ),
        click.option(
            "--time-limit",
            type=_Number(min=1),
            metavar="SECONDS",
            help="For each run in a child process.",
        ),
        click.option(
            "--memory-limit",
            type=_Number(min=0.1),
            metavar="GIB",
            help="Resident memory of a child process.",
        ),
    ]
    return _with(options, command)


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
            "--fail-on",
            type=click.Choice(["error", "warning", "never"]),
            default="warning",
            show_default=True,
            help="Lowest severity that gives exit code 1.",
        ),
        click.option(
            "--output-format",
            type=_ReportFormat(),
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
        click.option("--verbose", "-v", is_flag=True, help="Also what passed and was skipped."),
    ]
    return _with(options, command)


def memory_options(command: F) -> F:
    """What the memory plan is made for."""
    options = [
        click.option(
            "--memory",
            is_flag=True,
            help="Show what the recipe and its alternatives take on a GPU.",
        ),
        click.option(
            "--memory-budget",
            metavar="SIZE",
            help="Memory of the GPU, such as 24GB: LD704 says when the recipe does not fit.",
        ),
        click.option(
            "--per-device-train-batch-size",
            "--batch-size",
            type=int,
            metavar="N",
            help="Samples of a batch, for the memory plan.",
        ),
        click.option(
            "--max-length", type=int, metavar="N", help="Tokens of a sample, for the memory plan."
        ),
        click.option(
            "--optim",
            metavar="NAME",
            help="The Trainer's name of an optimizer, for the memory plan: adamw_8bit, sgd, ...",
        ),
    ]
    return _with(options, command)


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
            default=3,
            show_default=True,
            help="Optimizer steps.",
        ),
    ]
    return _with(options, command)


def prescription_option(command: F) -> F:
    """For a recipe whose fixes are patches of the process as well."""
    return click.option(
        "--prescription",
        metavar="FILE",
        help="What fix --apply wrote: run with its patches, and its recipe where --recipe is none.",
    )(command)


def _with(options: Sequence[Callable[[Any], Any]], command: F) -> F:
    """The command with these options, which ``--help`` shows in this order."""
    for option in reversed(options):
        command = option(command)
    return command
