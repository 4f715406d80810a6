"""What ``fix --apply`` writes: the fixed recipe, the prescription and the HTML report.

All of them or none, and whether they can be written is asked before the work. What somebody else
wrote under these names is not replaced, what an earlier run wrote is kept as a backup, and a recipe
that changed while the run was going on is left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.files import Change, check_writable, destination, replace_files
from lora_doctor.limits import RECIPE_BYTES, RECIPE_ITEMS
from lora_doctor.prescription.journal import journal, unfinished
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.static.adapter_files import weights_beside
from lora_doctor.static.piece import parse_json, read_bytes

RECIPE_NAME = "lora-doctor.recipe.yaml"
PRESCRIPTION_NAME = "lora-doctor.prescription.json"
REPORT_NAME = "lora-doctor.html"
_NAMES = (RECIPE_NAME, PRESCRIPTION_NAME, REPORT_NAME)

#: What the files of an earlier run are known by.
_RECIPE_COMMENT = "The recipe for {model}, fixed by lora-doctor."
_RECIPE_BEGINS = b"# The recipe for "
_REPORT_HAS = b'<meta name="generator" content="lora-doctor">'
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Plan:
    """Which files ``fix`` would write.

    ``recipe_file``: the user's own, edited in place; ``held``: the bytes of it, and of the files of
    the set-up that it names, when the run began; ``format``: whose file it is, where it was said.
    """

    recipe_file: Path | None
    folder: Path
    held: Mapping[Path, bytes] | None = None
    format: str | None = None

    @classmethod
    def make(
        cls, recipe_file: str | Path | None, folder: str, write: bool, format: str | None = None
    ) -> Plan:
        """Raises InputError when something could not be written later."""
        from lora_doctor.recipe.files.read_write import held_files
        from lora_doctor.recipe.program.setup import is_program

        file = Path(recipe_file) if recipe_file else None
        if file is not None and not is_program(file):
            _refuse_trained(file)
        plan = cls(file, Path(folder), held_files(file, format) if file else None, format)
        if write:
            left = plan.unfinished()
            if left:
                raise InputError(left)
            for path in plan.paths:
                check_writable(path)
            plan._refuse_foreign()
        return plan

    @property
    def recipe_path(self) -> Path:
        return self.recipe_file or self.folder / RECIPE_NAME

    @property
    def prescription_path(self) -> Path:
        return self.folder / PRESCRIPTION_NAME

    @property
    def report_path(self) -> Path:
        return self.folder / REPORT_NAME

    @property
    def paths(self) -> tuple[Path, ...]:
        named = [path for path in self.held or () if path != self.recipe_file]
        return self.recipe_path, self.prescription_path, self.report_path, *named

    def unfinished(self) -> str:
        """What an apply that was killed here has left, in one line; else empty."""
        return unfinished(self.recipe_path, _NAMES)

    def with_diff(self, diagnosis: Diagnosis) -> Diagnosis:
        """The diagnosis with the change of the recipe as a unified diff."""
        from lora_doctor.recipe.files.read_write import new_recipe_text, recipe_diff

        if diagnosis.fixed_recipe is None:
            return diagnosis
        if self.recipe_file and self.held is not None:
            # Bytes, not universal newlines: a diff must show the file as it is.
            diff = "".join(
                recipe_diff(path, _before(path, self.held), data.decode("utf-8-sig"))
                for path, data in self._edited(diagnosis).items()
            )
            return replace(diagnosis, recipe_diff=diff)
        old = new_recipe_text(diagnosis.recipe)
        new = new_recipe_text(diagnosis.fixed_recipe)
        return replace(diagnosis, recipe_diff=recipe_diff(self.recipe_path, old, new))

    def as_written(self, diagnosis: Diagnosis) -> Diagnosis:
        """The diagnosis as it is once :meth:`write` has written it: what the report says."""
        if not _has_fixes(diagnosis):
            return diagnosis
        written = (self._changed_path(diagnosis), self.prescription_path, self.report_path)
        return replace(diagnosis, written_to=tuple(str(path) for path in written))

    def write(self, diagnosis: Diagnosis) -> tuple[Path, ...]:
        """Write what there is to write, all or nothing; returns the paths, those of backups too,
        none when no fix was applied.

        Raises:
            InputError: the recipe trained before and does not after the fixes, it changed while
                the run was going on, or a file cannot be written.
        """
        from lora_doctor.prescription.apply import make_prescription
        from lora_doctor.recipe.files.prescription import prescription_text
        from lora_doctor.results.formats import render

        if not _has_fixes(diagnosis):
            return ()
        before, after = diagnosis.before, diagnosis.after
        if before and after and before.outcome == "passed" and after.outcome == "failed":
            raise InputError(
                "the fixes are not written: the recipe trained before them and does not after; "
                "please report it"
            )
        made = make_prescription(diagnosis)
        prescription = prescription_text(made)
        report = render(self.as_written(diagnosis), "html", color=False, width=100)
        # The recipe comes last: until it is replaced, nothing that trains has changed.
        changes = [
            Change(
                self.prescription_path,
                prescription.encode("utf-8"),
                backup=_is_needed(self.prescription_path, made.model),
            ),
            Change(self.report_path, report.encode("utf-8", "replace"), backup=False),
            *self._recipe_changes(diagnosis),
        ]
        main = self._changed_path(diagnosis)
        self._refuse_foreign()
        backups = replace_files(
            [change for change in changes if not _holds(change)],
            journal=lambda steps: journal(self.recipe_path, steps, _NAMES),
            check=self._refuse_changed,
        )
        written = [one.path for one in changes if one.path != self.recipe_path or one.path == main]
        paths = dict.fromkeys((*self.paths, *written))
        kept = (backups.get(path) for path in paths)
        return (
            *(path for path in paths if path in written or path == main),
            *(path for path in kept if path is not None),
        )

    def _changed_path(self, diagnosis: Diagnosis) -> Path:
        """The file with the recipe; where only the command that starts a script is changed, the
        shell file with that."""
        if self.recipe_file is None or self.held is None:
            return self.recipe_path
        held = self.held
        changed = [path for path, data in self._edited(diagnosis).items() if data != held.get(path)]
        return changed[0] if changed and self.recipe_path not in changed else self.recipe_path

    def _recipe_changes(self, diagnosis: Diagnosis) -> list[Change]:
        from lora_doctor.recipe.files.read_write import new_recipe_text

        assert diagnosis.fixed_recipe is not None
        if self.recipe_file is not None:
            edited = self._edited(diagnosis)
            return [Change(path, data) for path, data in edited.items()]
        comment = _RECIPE_COMMENT.format(model=diagnosis.model)
        text = new_recipe_text(diagnosis.fixed_recipe, comment)
        return [Change(self.recipe_path, text.encode("utf-8"))]

    def _edited(self, diagnosis: Diagnosis) -> dict[Path, bytes]:
        """The user's files with the edits that they have a place for; the prescription carries
        all."""
        from lora_doctor.recipe.files.read_write import edited_files, holds_edit

        assert self.recipe_file is not None and self.held is not None
        file, held, format = self.recipe_file, self.held, self.format
        program = self._program(diagnosis)
        if program is not None:
            return {file: program, **_shell_file(diagnosis), **_imported_files(diagnosis)}
        edits = [edit for item in diagnosis.applied for edit in item.fix.edits]
        placed = [edit for edit in edits if holds_edit(file, held, edit, format)]
        edited = edited_files(file, held, placed, format)
        return {path: text.encode(text.text) for path, text in edited.items()}

    def _program(self, diagnosis: Diagnosis) -> bytes | None:
        """The fixed script or notebook; ``None`` where the recipe is kept in another file.

        Raises:
            InputError: it was changed between the reading of the plan and that of the recipe.
        """
        read, fixed = diagnosis.recipe.written, diagnosis.fixed_recipe
        file = self.recipe_file
        if file is None or fixed is None or fixed.written is None or fixed.file != file:
            return None
        if read is None or read.data != (self.held or {}).get(file):
            raise _changed(file)
        return fixed.written.data

    def _refuse_changed(self) -> None:
        """Raises InputError when a file of the user's is no longer what the run has read."""
        for path, data in (self.held or {}).items():
            try:
                same = path.read_bytes() == data
            except OSError as error:
                raise InputError(
                    f"{path}: cannot be read any more ({error.strerror}); nothing was "
                    "written, put it back and run fix again"
                ) from None
            if not same:
                raise _changed(path)

    def _refuse_foreign(self) -> None:
        """Raises InputError when a name is taken by a file that no earlier run has written."""
        self._refuse_changed()
        own = [(self.prescription_path, _is_prescription), (self.report_path, _is_report)]
        if self.recipe_file is None:
            own.append((self.recipe_path, _is_recipe))
        for path, is_ours in own:
            with _named(path):
                place = destination(path)
                if not place.plain:
                    continue
                if path.is_symlink() and not place.target.exists():
                    raise InputError(
                        f"output {str(path)!r}: is a link to nothing; remove it or choose another "
                        "--output-dir"
                    )
                if place.target.exists() and not is_ours(place.target):
                    hint = f"give it with --recipe {path}, " if is_ours is _is_recipe else ""
                    raise InputError(
                        f"output {str(path)!r}: exists and was not written by lora-doctor; {hint}"
                        "move it or choose another --output-dir"
                    )


def _shell_file(diagnosis: Diagnosis) -> dict[Path, bytes]:
    """The shell file that starts the script, where a fix changes its command.

    Raises:
        InputError: it was changed while the run was going on.
    """
    read, fixed = diagnosis.recipe.written, diagnosis.fixed_recipe
    before = read.start if read is not None else None
    after = fixed.written.start if fixed is not None and fixed.written is not None else None
    if before is None or after is None or before.data == after.data:
        return {}
    path = Path(before.place.file)
    with _named(path):
        if path.read_bytes() != before.data:
            raise _changed(path)
    return {path: after.data}


def _imported_files(diagnosis: Diagnosis) -> dict[Path, bytes]:
    """The files that the script imports and a fix changes.

    Raises:
        InputError: one was changed while the run was going on.
    """
    read, fixed = diagnosis.recipe.written, diagnosis.fixed_recipe
    if read is None or fixed is None or fixed.written is None:
        return {}
    found = {
        path: data
        for path, data in fixed.written.beside.items()
        if path in read.beside and data != read.beside[path]
    }
    for path in found:
        with _named(path):
            if path.read_bytes() != read.beside[path]:
                raise _changed(path)
    return found


def _before(path: Path, held: Mapping[Path, bytes]) -> str:
    data = held[path] if path in held else path.read_bytes()
    return data.decode("utf-8-sig")


def _has_fixes(diagnosis: Diagnosis) -> bool:
    return bool(diagnosis.applied) and diagnosis.fixed_recipe is not None


def _changed(path: Path) -> InputError:
    return InputError(
        f"{path}: was changed while lora-doctor ran; nothing was written, run fix again"
    )


def _refuse_trained(file: Path) -> None:
    """An ``adapter_config.json`` says what the weights beside it are: with other target modules
    they would land nowhere, with another alpha they would weigh more or less.

    Raises:
        InputError: the file is one.
    """
    weights = weights_beside(file)
    if weights is not None:
        raise InputError(
            f"{file}: describes the trained weights beside it ({weights}) and is not edited; "
            f"check MODEL --adapter {file.parent} tells whether they load, and a copy of the file "
            "in a folder without weights is a recipe to train anew"
        )


def _holds(change: Change) -> bool:
    """Whether the file is already what it would become."""
    with _named(change.path):
        place = destination(change.path)
        return place.plain and place.target.is_file() and (place.target.read_bytes() == change.data)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """What the system says of this file, as an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"output {str(path)!r}: {error.strerror or error}") from error


def _is_recipe(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(_RECIPE_BEGINS)) == _RECIPE_BEGINS


def _is_report(file: Path) -> bool:
    with file.open("rb") as stream:
        return _REPORT_HAS in stream.read(_HEAD_BYTES)


def _is_prescription(file: Path) -> bool:
    """By its keys, so that one of another version is an earlier one too."""
    return {"schema_version", "edits", "patches"} <= _keys_of(file).keys()


def _is_needed(file: Path, model: str) -> bool:
    """Whether a prescription that is there still stands for something: it has patches, or is of
    another model. Edits of this one are in its recipe already."""
    found = _keys_of(file)
    return bool(found.get("patches")) or found.get("model") != model


def _keys_of(file: Path) -> dict[str, Any]:
    """What a file of ours holds; nothing where it is no JSON object."""
    try:
        data = parse_json(read_bytes(file, RECIPE_BYTES), file.name, items=RECIPE_ITEMS)
    except EvidenceError:
        return {}
    return data if isinstance(data, dict) else {}
