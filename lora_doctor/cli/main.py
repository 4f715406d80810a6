"""The command line: parse, call, render, exit code. No logic of its own.

Exit codes: 0 the depth that was asked for was reached and nothing is at or above ``--fail-on``; 1
findings; 2 the question could not be answered, or not at that depth.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import click

from lora_doctor.cli import streams
from lora_doctor.cli.command_classes import Interrupted
from lora_doctor.cli.commands import cli
from lora_doctor.cli.output import OK, UNANSWERED
from lora_doctor.cli.signals import EndedBySignal, end_by, end_like_interrupt
from lora_doctor.errors import LoraDoctorError
from lora_doctor.text import one_line, traceback_text

#: With this variable set, an internal error shows its traceback.
DEBUG_VARIABLE = "LORA_DOCTOR_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; every error is one line on stderr.

    Without ``arguments`` it is the process's own, which ends with it: standard output is not given
    back (``streams.results_apart``), and a signal ends the process.
    """
    own = arguments is None
    streams.open_missing()
    try:
        with end_like_interrupt():
            result = cli.main(
                args=arguments, prog_name="lora-doctor", standalone_mode=False, obj=not own
            )
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except Interrupted as stop:
        return _interrupted(stop.by, own)
    except click.Abort as stop:
        return _interrupted(stop.__cause__, own)
    except KeyboardInterrupt as stop:
        return _interrupted(stop, own)
    except click.ClickException as error:
        return _refused(error)
    except LoraDoctorError as error:
        return _say(str(error), UNANSWERED)
    except BaseException as error:  # noqa: BLE001 - also SystemExit: code of others has raised it
        if os.environ.get(DEBUG_VARIABLE):
            for line in traceback_text(error).splitlines():
                streams.tell(line)
        return _say(
            f"internal error: {type(error).__name__}: {one_line(error)}; {DEBUG_VARIABLE}=1 shows "
            "where, please report it",
            UNANSWERED,
        )
    return int(result or OK)


def _refused(error: click.ClickException) -> int:
    """What click says of a command line in a line; of one without a command, the help."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click 8.2
        for line in error.format_message().splitlines():
            streams.tell(line)
        return UNANSWERED
    text = " ".join(error.format_message().split())
    if isinstance(error, click.MissingParameter) and error.ctx is not None:
        text = f"{text.removesuffix('.')}; see {error.ctx.command_path} --help"
    return _say(text, UNANSWERED)


def _interrupted(by: BaseException | None, own: bool) -> int:
    if isinstance(by, EndedBySignal):
        number, code = by.number, _say(f"ended by {by}", 128 + by.number)
    else:
        number, code = signal.SIGINT, _say("interrupted", 128 + signal.SIGINT)
    return end_by(number) if own and isinstance(by, KeyboardInterrupt) else code


def _say(text: str, code: int) -> int:
    streams.tell(f"lora-doctor: {text}")
    return code
