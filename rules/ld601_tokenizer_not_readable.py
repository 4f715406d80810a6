"""LD601: the installed tokenizers library cannot read the model's tokenizer.json."""

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
)
from lora_doctor.static.tokenizer_reading import Unreadable, unreadable_parts, whole_file_error

_FILE = "tokenizer.json"


class TokenizerNotReadable(Rule):
    """The model's `tokenizer.json` was written by a newer or older `tokenizers` than the installed
    one, or is not a valid file.

    ## What happens
    `AutoTokenizer.from_pretrained` and `AutoProcessor.from_pretrained` raise `data did not match
    any variant of untagged enum PyPreTokenizerTypeWrapper` or `... untagged enum ModelWrapper`,
    with a line and a column, but without saying what is wrong there.

    ## Why
    The format has changed. `tokenizers` 0.19 added `split` to `Metaspace` and removed its
    `add_prefix_space`; 0.20 writes merges as pairs (`["a", "b"]`) instead of strings (`"a b"`);
    later releases added more. Older releases refuse what they do not know. The other way round
    happens as well: since 0.19 a `Metaspace` with `add_prefix_space` false is refused unless its
    `prepend_scheme` is `never`, which is how older releases interpreted it. An incomplete download,
    or the pointer file that git leaves without LFS, fails in the same place.

    ## Versions
    `Metaspace` without `add_prefix_space` can be read from tokenizers 0.19 on (transformers 4.40),
    merges as pairs from 0.20 on (transformers 4.45). `add_prefix_space` false with a
    `prepend_scheme` other than `never` can be read up to 0.15 (transformers 4.39).

    ## Fix
    A transformers that installs the newer tokenizers (each release of transformers accepts a narrow
    range of versions, so upgrading tokenizers alone does not work), or a revision of the model from
    before its tokenizer was rewritten. In a file from before 0.19, set `prepend_scheme` to `never`,
    which has the intended meaning and can be read by every release. This has nothing to do with
    LoRA.

    ## Links
    https://github.com/huggingface/tokenizers/releases
    """

    code = "LD601"
    name = "tokenizer-not-readable"
    summary = "The installed tokenizers library cannot read the model's tokenizer.json."
    depth = "static"
    symptoms = (
        Symptom(r"did not match any variant of untagged enum (Py)?PreTokenizer(TypeWrapper)?"),
        Symptom(r"did not match any variant of untagged enum Model(Wrapper|Untagged)"),
        Symptom(r"did not match any variant of untagged enum (Py)?(Normalizer|Decoder)\w*"),
        Symptom(r"did not match any variant of untagged enum PostProcessorWrapper"),
        Symptom(r"add_prefix_space does not match declared prepend_scheme", "tokenizers>=0.21"),
    )
    told_as = ("The installed tokenizers cannot read tokenizer.json.",)
    examples = (
        Example(
            "broken",
            "tests/folders/metaspace_with_split",
            requires={"tokenizers": "<0.19"},
            depth="static",
            why="written by tokenizers 0.19 or later",
        ),
        Example(
            "broken",
            "tests/folders/merges_as_pairs",
            requires={"tokenizers": "<0.20"},
            depth="static",
            why="written by tokenizers 0.20 or later",
        ),
        Example(
            "broken",
            "tests/folders/metaspace_without_prefix",
            requires={"tokenizers": ">=0.19"},
            depth="static",
            why="written by tokenizers 0.15 or earlier",
        ),
        Example(
            "broken",
            "tests/folders/tokenizer_of_git",
            depth="static",
            why="the repository was cloned without git-lfs",
        ),
        Example(
            "healthy",
            "tests/folders/metaspace_with_split",
            requires={"tokenizers": ">=0.19"},
            depth="static",
        ),
        Example(
            "healthy",
            "tests/folders/merges_as_pairs",
            requires={"tokenizers": ">=0.20"},
            depth="static",
        ),
        Example("healthy", "tests/folders/merges_as_texts", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        static = case.static
        path = static.folder / _FILE
        if not path.is_file():
            raise static.tokenizer.why_not(f"{static.source} has no {_FILE}")
        file = static.tokenizer.value
        parts = unreadable_parts(file) if file is not None else ()
        if file is not None and not parts:
            return
        error = whole_file_error(path)
        if error is None:
            return  # the library knows better
        installed = case.environment.version("tokenizers") or "the installed release"
        evidence = [Measurement(f"tokenizers {installed}", error, f"run on {static.where(_FILE)}")]
        for part in parts:
            known = f"; supported from {part.since} on" if part.since else ""
            known += f"; refused from {part.until} on" if part.until else ""
            evidence.append(Measurement(part.part, part.content + known, "tested separately"))
        if parts:
            what = f"cannot read {' and '.join(part.part for part in parts)} of {_FILE}"
        else:
            evidence.append(Measurement(_FILE, static.tokenizer.reason or "", "the file"))
            what = f"cannot read the file: {static.tokenizer.reason}"
        yield self.finding(
            "error",
            f"tokenizers {installed} {what}.",
            location=Location("file", _FILE),
            evidence=tuple(evidence),
            proof=Proof("executed", "the installed library was run on the file and refused it"),
            fixes=(_fix(parts),),
        )


def _fix(parts: tuple[Unreadable, ...]) -> Fix:
    if not parts:
        return Fix(f"Download {_FILE} again; in a git clone: git lfs pull.", "manual")
    if all(part.until for part in parts):
        return Fix(
            f'Set prepend_scheme to "never" in {" and ".join(part.part for part in parts)} '
            f"of {_FILE}: older releases interpreted add_prefix_space false like this, and "
            "every release can read it.",
            "manual",
        )
    known = [part.since for part in parts if part.since]
    if len(known) < len(parts):
        return Fix(
            "Use a transformers that installs a newer tokenizers, or an earlier revision of "
            "the model; which release wrote the file is unknown.",
            "manual",
        )
    since = max(known, key=lambda text: [int(number) for number in text.split(".")])
    return Fix(
        f"Use a transformers that installs tokenizers {since} or later, or an earlier "
        "--revision of the model.",
        "manual",
    )
