"""LD616: a file of the folder is a Git LFS pointer, empty, incomplete, or another kind of file."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    quoted,
)
from lora_doctor.static.folder.checkpoint_files import damaged_files


class FileIsDamaged(Rule):
    """A file of the checkpoint or the tokenizer is not a valid file of its type.

    ## What happens
    `SafetensorError: Error while deserializing header: header too large` (a pointer or a web page),
    `header too small` (an empty file), `incomplete metadata, file not fully covered` (an incomplete
    file); for pickled weights `invalid load key, 'v'` or `failed finding central directory`. The
    messages name neither the file nor the cause.

    ## Why
    A repository cloned without git-lfs has pointers of 130 bytes instead of its large files. An
    interrupted download or copy leaves an incomplete file; a proxy that requires a login leaves its
    login page.

    A damaged `tokenizer.json` is reported by `LD601`.

    ## Versions
    All.

    ## Fix
    Run `git lfs pull` in the clone, or download the file again.

    ## Links
    https://huggingface.co/docs/hub/repositories-getting-started
    """

    code = "LD616"
    name = "file-is-damaged"
    summary = "A file of the checkpoint is a Git LFS pointer, empty or incomplete."
    depth = "static"
    symptoms = (
        Symptom(
            r"Error while deserializing header: (header too (large|small)|incomplete metadata)"
        ),
        Symptom(r"Error while deserializing header: .*(HeaderTooLarge|HeaderTooSmall)"),
        Symptom(r"MetadataIncompleteBuffer|InvalidHeaderDeserialization"),
        Symptom(r"invalid load key, '[v<]'"),
        Symptom(r"cloned a repository without having git-lfs installed"),
        Symptom(r"PytorchStreamReader failed (finding central directory|reading zip archive)"),
        Symptom(
            r"WeightsUnpickler error: Unsupported operand (?:118|60)\b",
            "PyTorch 2.6 and later: the letter v of a pointer, or the < of a page",
        ),
    )
    told_as = ("The model file has only a few bytes, it is a Git LFS pointer.",)
    examples = (
        Example(
            "broken",
            "tests/folders/weights_of_git",
            depth="static",
            why="the repository was cloned without git-lfs",
        ),
        Example("healthy", "tests/folders/vocabulary_padded", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        static = case.static
        found = damaged_files(static)
        if not found:
            return
        first = found[0]
        more = f", and so are {len(found) - 1} more" if len(found) > 1 else ""
        if len({item.problem for item in found}) > 1:
            more = f"; {len(found) - 1} more cannot be read either"
        pointers = [item.name for item in found if item.pointer]
        fixes = []
        if pointers:
            fixes.append(Fix(f"In the clone: git lfs pull ({quoted(pointers, 3)}).", "manual"))
        if len(pointers) < len(found):
            others = [item.name for item in found if not item.pointer]
            fixes.append(Fix(f"Download or copy {quoted(others, 3)} again.", "manual"))
        yield self.finding(
            "error",
            f"{first.name} {first.problem}{more}.",
            location=Location("file", first.name),
            evidence=tuple(
                Measurement(item.name, f"{item.size:,} bytes; {item.problem}", "the file's head")
                for item in found[:20]
            ),
            proof=Proof("measured", "size, first bytes and header of the file were read"),
            fixes=tuple(fixes),
        )
