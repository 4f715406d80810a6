"""What ``fix --apply`` writes: the fixed recipe, the prescription and the HTML report.

Files are written whole or not at all, and whether they can be written is asked before the work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lora_doctor.errors import InputError
from lora_doctor.files import check_writable, write_text
from lora_doctor.recipe.edit import Edit
from lora_doctor.results.diagnosis import Diagnosis

RECIPE_NAME = "lora-doctor.recipe.yaml"
PRESCRIPTION_NAME = "lora-doctor.prescription.json"
REPORT_NAME = "lora-doctor.html"


@dataclass(frozen=True)
class Plan:
    """Which files ``fix`` would write. ``recipe_file``: the user's own, edited in place."""

    recipe_file: Path | None
    folder: Path

    @classmethod
    def make(cls, recipe_file: str | None, folder: str, write: bool) -> Plan:
        """Raises InputError when something could not be written later."""
        plan = cls(Path(recipe_file) if recipe_file else None, Path(folder))
        if write:
            for path in (plan.recipe_path, plan.prescription_path, plan.report_path):
                check_writable(path)
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

    def with_diff(self, diagnosis: Diagnosis) -> Diagnosis:
        """The diagnosis with the change of the recipe as a unified diff."""
        from lora_doctor.recipe.files.read_write import new_recipe_text, recipe_diff, write_edits

        if diagnosis.fixed_recipe is None:
            return diagnosis
        if self.recipe_file:
            # Bytes, not universal newlines: a diff must show the file as it is.
            old = self.recipe_file.read_bytes().decode("utf-8-sig")
            new = write_edits(self.recipe_file, self._edits_for_file(diagnosis))
        else:
            old = new_recipe_text(diagnosis.recipe)
            new = new_recipe_text(diagnosis.fixed_recipe)
        return replace(diagnosis, recipe_diff=recipe_diff(self.recipe_path, old, new))

    def write(self, diagnosis: Diagnosis) -> tuple[Path, ...]:
        """Write what there is to write; returns the paths, none when no fix was applied.

        Raises:
            InputError: the recipe trained before and does not after the fixes, or a file cannot
                be written.
        """
        from lora_doctor.prescription.apply import make_prescription
        from lora_doctor.recipe.files.prescription import write_prescription
        from lora_doctor.recipe.files.read_write import apply_edits, new_recipe_text
        from lora_doctor.results.formats import render

        if not diagnosis.applied or diagnosis.fixed_recipe is None:
            return ()
        before, after = diagnosis.before, diagnosis.after
        if before and after and before.outcome == "passed" and after.outcome == "failed":
            raise InputError(
                "the fixes are not written: the recipe trained before them and does not after; "
                "please report it"
            )
        written = [self.recipe_path]
        if self.recipe_file:
            backup = apply_edits(self.recipe_file, self._edits_for_file(diagnosis))
            written += [backup] if backup else []
        else:
            comment = f"The recipe for {diagnosis.model}, fixed by lora-doctor."
            write_text(self.recipe_path, new_recipe_text(diagnosis.fixed_recipe, comment))
        write_prescription(self.prescription_path, make_prescription(diagnosis))
        write_text(self.report_path, render(diagnosis, "html", color=False, width=100))
        return (*written, self.prescription_path, self.report_path)

    def _edits_for_file(self, diagnosis: Diagnosis) -> list[Edit]:
        """The edits that the user's file has a place for; the prescription carries all."""
        from lora_doctor.recipe.files.read_write import holds_edit

        assert self.recipe_file is not None
        edits = [edit for item in diagnosis.applied for edit in item.fix.edits]
        return [edit for edit in edits if holds_edit(self.recipe_file, edit)]
