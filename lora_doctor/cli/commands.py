"""The commands of the command line: what each takes, and what it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lora_doctor._version import __version__
from lora_doctor.cli import streams
from lora_doctor.cli.arguments import check_options, recipe_of
from lora_doctor.cli.census_options import census_options, refuse_arguments
from lora_doctor.cli.command_classes import Group
from lora_doctor.cli.options import (
    adapter_option,
    cache_option,
    data_options,
    device_options,
    dry_run_options,
    fail_on_option,
    memory_options,
    optional_model,
    output_options,
    prescription_option,
    real_run_options,
    recipe_options,
    report_options,
)
from lora_doctor.cli.output import (
    FINDINGS,
    OK,
    UNANSWERED,
    colors,
    report,
    with_next_command,
    with_progress,
)
from lora_doctor.cli.unfinished import tell_of_unfinished

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis


@click.group(
    cls=Group,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "auto_envvar_prefix": "LORA_DOCTOR",
    },
)
@click.version_option(__version__, message="lora-doctor %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Find and fix what would go wrong in a LoRA fine-tuning run, and prove the fix.

    MODEL is a hub id, a local folder, arch:NAME (an architecture of the installed transformers,
    such as arch:llama), package.module:factory (a function of yours that returns a model), the
    config of axolotl, LLaMA-Factory, ms-swift or TRL, or a training script or notebook (train.py),
    which is read, not run.

    Exit codes: 0 the requested depth was reached and nothing was found at or above --fail-on; 1
    findings; 2 undetermined, or not determined at that depth (with --strict also if a rule was
    skipped for a reason that you can change).

    Options can be set in [tool.lora-doctor] of pyproject.toml, or in lora-doctor.toml; if set-ups
    are listed there, check and fix without MODEL take all of them.
    """
    from pathlib import Path

    from lora_doctor.cli.project import META, defaults, find_project

    if ctx.invoked_subcommand in ("check", "fix", "verify", "dry-run"):
        project = find_project(cli, Path.cwd())
        if project is not None:
            ctx.meta[META], ctx.default_map = project, defaults(project, cli)


def _executed_depth(help: str) -> Callable[[Any], Any]:
    """``--depth`` of a command that runs the training contract."""
    return click.option(
        "--depth",
        type=click.Choice(["tiny", "full"]),
        default="tiny",
        show_default=True,
        help=help,
    )


@cli.command()
@optional_model
@adapter_option
@click.option(
    "--depth",
    type=click.Choice(["static", "meta", "tiny", "full"]),
    default="tiny",
    show_default=True,
    help="How deep to check: files only; the full-size class without weights; a tiny model, "
    "really trained; the real weights.",
)
@memory_options
@data_options
@prescription_option
@device_options
@cache_option
@report_options
def check(**options: Any) -> int:
    """Diagnose a recipe; nothing is changed. Without MODEL: every set-up of the project."""
    if options["model"] is None:
        from lora_doctor.cli.set_ups import run_all

        return run_all(cli, click.get_current_context())
    from lora_doctor.cli.check import run

    return run(options)


@cli.command()
@optional_model
@adapter_option
@_executed_depth(
    "Where fixes are executed: on a tiny model, or on the real weights (folder or hub id)."
)
@click.option("--diff", "only_diff", is_flag=True, help="Print only the diff of the recipe.")
@click.option(
    "--apply",
    "write",
    is_flag=True,
    help="Write the fixed recipe, the prescription and the HTML report.",
)
@click.option(
    "--unsafe-fixes",
    is_flag=True,
    help="Also apply fixes that may change the trained result, memory or speed.",
)
@click.option(
    "--output-dir",
    metavar="DIR",
    default=".",
    show_default=True,
    help="Folder for new files of --apply.",
)
@memory_options
@data_options
@device_options
@report_options
def fix(**options: Any) -> int:
    """Fix a recipe and prove it: the training contract is run before and after.

    Without --apply it shows what would change. With --apply, --recipe FILE is edited in place (the
    old file is kept); without a recipe file, a new one is written. An adapter (--adapter DIR) is
    never changed: if renaming its tensors makes it load, the renamed adapter is written to
    DIR-fixed.

    A training command in place of MODEL (-- llamafactory-cli train x.yaml): the file that it names
    is fixed, and then the command is dry-run. Without MODEL: every set-up of the project.
    """
    if options["model"] is None:
        from lora_doctor.cli.set_ups import run_all

        return run_all(cli, click.get_current_context())
    from lora_doctor.cli.fix import run

    return run(options)


@cli.command("dry-run", context_settings={"allow_interspersed_args": False})
@dry_run_options
@report_options
def dry_run(**options: Any) -> int:
    """Run your training command with a tiny model, and diagnose what happened.

    COMMAND is what you type to train (-- python train.py --lr 2e-4, -- accelerate launch ...), or a
    train.py, a notebook or a launcher's YAML file. Your code runs unchanged; models are replaced by
    tiny ones with random weights, data is cut to a few rows and training to three steps; outputs go
    to a temporary folder. No weights and no GPU are needed.
    """
    from lora_doctor.cli.dry_run import run
    from lora_doctor.cli.fix_command import after_dry_run

    ran = with_progress(lambda tell: run(options, tell))
    return report(after_dry_run(ran, options), options)


@cli.command("run", context_settings={"allow_interspersed_args": False})
@real_run_options
def real_run(**options: Any) -> int:
    """Run your training command with the patches of a prescription, and nothing else changed.

    COMMAND is what you type to train (-- accelerate launch train.py). The patches are installed in
    every Python process that it starts. The command replaces this process: exit code, signals and
    terminal are its own. It is not started if the patches could not be installed, or if the
    installed versions differ from those of the prescription (exit code 2).
    """
    from lora_doctor.cli.real_run import run

    return run(options, in_place=not click.get_current_context().obj)


@cli.command()
@recipe_options
@_executed_depth("A tiny model, or the real weights (folder or hub id).")
@prescription_option
@device_options
@report_options
def verify(**options: Any) -> int:
    """Run the training contract: a short training with named checks.

    Data, training arguments, files and packages are not checked: that is what check does.
    """
    from lora_doctor import api

    tell_of_unfinished(options)

    def run(tell: Callable[[str], None]) -> Diagnosis:
        call_options = check_options(options, tell)
        return api.diagnose_contract(options["model"], recipe_of(options), **call_options)

    diagnosis = with_progress(run)
    return report(with_next_command(diagnosis, options), {**options, "verbose": True})


@cli.command(context_settings={"allow_extra_args": True})
@census_options
def census(
    select: tuple[str, ...],
    classes: tuple[str, ...],
    jobs: int,
    engine: str,
    output_dir: str,
    keep_models: str | None,
) -> int:
    """Try LoRA on every architecture that transformers has.

    Writes census.json and a searchable census.html: whether a model builds, whether it trains with
    PEFT's defaults, with the proposed recipe, with checkpointing, in 4 and 8 bits and in half
    precision, whether saving and merging work, and why not.
    """
    from pathlib import Path

    from lora_doctor.census import run
    from lora_doctor.census.page import render
    from lora_doctor.files import write_text

    refuse_arguments(("--select", select), ("--class", classes))
    folder = Path(output_dir)
    taken = run.take(
        folder,
        select=select,
        classes=classes,
        jobs=jobs,
        engine=engine,
        keep=Path(keep_models) if keep_models else None,
        tell=streams.tell,
    )
    write_text(folder / "census.html", render(taken))
    for name, count in run.totals(taken).items():
        streams.write(f"{count:>5}  {name}")
    streams.tell(f"wrote {folder / 'census.json'} and {folder / 'census.html'}")
    return OK


@cli.command()
@click.option(
    "--rules",
    "rule_folders",
    metavar="DIR",
    multiple=True,
    help="Folder with rule files of your own.",
)
def rules(rule_folders: tuple[str, ...]) -> int:
    """List the rules, one line each."""
    from pathlib import Path

    from lora_doctor.engine.registry import find_rules

    for rule in find_rules(Path(folder) for folder in rule_folders):
        streams.write(f"{rule.code}  {rule.depth:<6}  {rule.name:<40}  {rule.summary}")
    return OK


@cli.command("report")
@click.argument("file", metavar="FILE")
@output_options
def report_stored(file: str, **options: Any) -> int:
    """Render a stored result (--output json=FILE) again, in any format."""
    from lora_doctor.cli.arguments import check_outputs
    from lora_doctor.results.stored import read_diagnosis

    check_outputs(options)
    return report(read_diagnosis(file), options)


@cli.command()
@click.argument("before", metavar="BEFORE")
@click.argument("now", metavar="NOW")
@fail_on_option
@click.option(
    "--output-format",
    type=click.Choice(["full", "json"]),
    default="full",
    show_default=True,
    help="Format of the result.",
)
def diff(before: str, now: str, fail_on: str, output_format: str) -> int:
    """Compare two stored results: new, gone and changed findings, and changed versions.

    Exit code 1 if a new finding, or one that got worse, is at or above --fail-on.
    """
    from lora_doctor.cli.comparison import as_json, as_text, fails
    from lora_doctor.results.baseline import compare
    from lora_doctor.results.secrets import hidden_in
    from lora_doctor.results.stored import read_diagnosis

    found = compare(*(hidden_in(read_diagnosis(file)) for file in (before, now)))
    streams.write(as_json(found) if output_format == "json" else as_text(found), end="")
    return FINDINGS if fails(found, fail_on) else OK


@cli.command()
@click.argument("what", metavar="CODE_OR_MESSAGE")
@click.option(
    "--output-format",
    type=click.Choice(["full", "json"]),
    default="full",
    show_default=True,
    help=(
        "full: the rule's documentation; json: matching codes in order, each with the line "
        "that matched."
    ),
)
def explain(what: str, output_format: str) -> int:
    """Explain a rule, or find the rule for an error message: pasted, in a file, or - for stdin."""
    from lora_doctor.cli.explain import explain as explanation
    from lora_doctor.cli.explain import explain_as_json, pasted

    text = streams.read_input() if what == "-" else pasted(what)
    if output_format == "json":
        answer, known = explain_as_json(text)
        streams.write(answer)
        return OK if known else UNANSWERED
    color = colors(streams.results())
    streams.write(explanation(text, color=color), foreign=not color)
    return OK


@cli.command()
@click.option(
    "--output-format",
    type=click.Choice(["full", "json"]),
    default="full",
    show_default=True,
    help="Format of the result.",
)
@click.option("--no-devices", is_flag=True, help="Versions only; torch is not imported.")
@click.option(
    "--check",
    "fit",
    is_flag=True,
    help="Check instead whether the installed packages are compatible; nothing is imported. "
    "Exit codes are those of check.",
)
def env(output_format: str, no_devices: bool, fit: bool) -> int:
    """Versions, devices and dtypes, ready to paste into a bug report."""
    if fit:
        from lora_doctor import api

        options = {"output_format": output_format, "output_file": None, "verbose": False,
                   "fail_on": "warning"}  # fmt: skip
        return report(with_progress(lambda tell: api.check_environment()), options)
    from lora_doctor.cli.environment import describe

    streams.write(describe(output_format, devices=not no_devices))
    return OK
