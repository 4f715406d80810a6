"""LD615: the index of a sharded checkpoint does not match its files."""

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
from lora_doctor.static.folder.checkpoint_files import (
    IndexMismatch,
    index_mismatch,
    unread_weights,
)

_SHOWN = 20


class CheckpointNotComplete(Rule):
    """The index of a sharded checkpoint names files or tensors that do not exist.

    ## What happens
    A missing file ends in `FileNotFoundError` or `does not appear to have a file named ...`. A
    missing tensor is random in transformers 5, with a warning; transformers 4 trusts the index,
    reports nothing and leaves the tensor on the meta device, so the first step fails. Tensors that
    are in the files but not in the index are random in transformers 4, and loaded in 5.

    ## Why
    An interrupted download, a shard that was not uploaded, or the index of an earlier save with
    shards of a later one.

    Weights under other names are not found either: GGUF files, `consolidated.safetensors` of the
    maker's own code, shards without their index.

    A folder with an index and no weights at all is not reported: it holds only the small files of a
    model.

    ## Versions
    All.

    ## Fix
    Get all files of one revision: `hf download MODEL`, which resumes, or save the model again.

    ## Links
    https://huggingface.co/docs/transformers/big_models
    """

    code = "LD615"
    name = "checkpoint-not-complete"
    summary = "A sharded checkpoint lacks files or tensors that its index names."
    depth = "static"
    symptoms = (
        Symptom(
            r"(?:does not appear to have a file named|no file named) "
            r"(?:pytorch_model\.bin|model\.safetensors)"
        ),
        Symptom(r"does not appear to have a file named \S*-of-\d+\.(safetensors|bin)"),
        Symptom(r"No such file or directory: .*-of-\d+\.(safetensors|bin)"),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/shard_missing",
            depth="static",
            why="the second of two files is not there",
        ),
        Example(
            "healthy",
            "tests/folders/base_without_head",
            depth="static",
            why="an index and no weights: only the small files were fetched",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        static = case.static
        found = index_mismatch(static)
        if found is None:
            yield from self._under_other_names(case)
            return
        if found.missing:
            message = (
                f"{found.index} names {len(found.missing) + found.present} files and "
                f"{quoted(found.missing, 3)} {'is' if len(found.missing) == 1 else 'are'} not "
                "there: the checkpoint cannot be loaded."
            )
        elif found.lacking:
            message = (
                f"{found.index} names {quoted(found.lacking, 3)}, which are in no file of the "
                "checkpoint: these weights will not be the trained ones."
            )
        elif _trusts_the_index(case):
            message = (
                f"{found.index} does not name {quoted(found.unlisted, 3)}, which are in its "
                "files: the installed transformers will initialise these weights at random."
            )
        else:
            return
        yield self.finding(
            "error",
            message,
            location=Location("file", found.index),
            evidence=tuple(_evidence(found)),
            proof=Proof("measured", "the folder's files and headers were compared with its index"),
            fixes=(
                Fix(
                    "Download all files of one revision again (hf download "
                    f"{case.source.name}), or save the model again into an empty folder."
                    if case.source.snapshot is not None
                    else "Copy or download the files again, all of one revision, or "
                    "save the model again into an empty folder.",
                    "manual",
                ),
            ),
        )

    def _under_other_names(self, case: Case) -> Iterator[Finding]:
        found = unread_weights(case.static)
        if not found:
            return
        gguf = all(name.endswith(".gguf") for name in found)
        advice = (
            "Train the model that it was converted from; or load it with gguf_file=, which turns "
            "it into floating point."
            if gguf
            else "Fetch or save the model in the form of transformers: model.safetensors, or "
            "shards with an index."
        )
        yield self.finding(
            "error",
            f"The weights lie in {quoted(found, 3)}, and from_pretrained looks for "
            "model.safetensors, pytorch_model.bin or an index of shards: it finds none.",
            location=Location("file", found[0]),
            evidence=(
                Measurement("files with weights", list(found[:_SHOWN]), "the folder"),
                Measurement("files that from_pretrained looks for", "none", "the folder"),
            ),
            proof=Proof("read", "from the names of the files"),
            fixes=(Fix(advice, "manual"),),
        )


def _evidence(found: IndexMismatch) -> Iterator[Measurement]:
    if found.missing:
        yield Measurement("missing files", list(found.missing[:_SHOWN]), found.index)
        yield Measurement("files there", found.present, "the folder")
    if found.lacking:
        yield Measurement("tensors in no file", list(found.lacking[:_SHOWN]), "headers")
    if found.unlisted:
        yield Measurement("tensors not in the index", list(found.unlisted[:_SHOWN]), "headers")


def _trusts_the_index(case: Case) -> bool:
    """Whether this transformers loads what the index names and nothing else, as 4 did."""
    version = case.environment.version("transformers") or ""
    return version.partition(".")[0].isdecimal() and int(version.partition(".")[0]) < 5
