"""`python -m lora_doctor.census FOLDER...`: the totals of several censuses as Markdown."""

from lora_doctor.import_path import drop_working_directory

drop_working_directory()  # before anything else is imported

import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import click  # noqa: E402

from lora_doctor.census.page import totals  # noqa: E402
from lora_doctor.census.run import load  # noqa: E402
from lora_doctor.errors import LoraDoctorError  # noqa: E402


def main(folders: list[str]) -> int:
    if not folders:
        click.echo("lora_doctor.census: give the output folders of `lora-doctor census`", err=True)
        return 2
    try:
        click.echo(totals([load(Path(folder)) for folder in folders]), nl=False)
    except LoraDoctorError as error:
        click.echo(f"lora_doctor.census: {error}", err=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
