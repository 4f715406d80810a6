"""The same few scripts everywhere: `nox -l` lists them, `nox -s "tests(t437)"` runs one."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

# pip finds a CPU build of torch in a local index or folder, uv only where it is told to.
nox.options.default_venv_backend = "virtualenv"

TORCH = "torch==2.13.0"
BITSANDBYTES = "bitsandbytes==0.50.2"
#: The releases that the tool is tried on, oldest to newest: what each brings is a change in how
#: PEFT calls a model or transformers builds one. The two oldest were built against numpy 1.
STACKS = {
    "t437": ("transformers==4.37.2", "peft==0.7.1", "accelerate==0.27.2", "numpy<2"),
    "t444": ("transformers==4.44.2", "peft==0.12.0", "accelerate==0.34.2", "numpy<2"),
    "t453": ("transformers==4.53.3", "peft==0.15.2", "accelerate"),
    "t457": ("transformers==4.57.6", "peft==0.18.0", "accelerate"),
    "t524": ("transformers==5.24.0", "peft==0.21.2", "accelerate"),
}
NEWEST = list(STACKS)[-1]
nox.options.sessions = ["lint", "types", "docs", f"tests({NEWEST})"]
#: Packages of quantized checkpoints that install and run without a GPU.
QUANTIZERS = ("compressed-tensors", "torchao", "hqq", "optimum-quanto")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
#: Launchers with stacks of their own. What of axolotl needs CUDA is left out (AXOLOTL is installed
#: without what it depends on).
LAUNCHERS = {
    "llamafactory": ("llamafactory==0.9.5",),
    "swift": ("ms-swift==4.6.0", "transformers<5.20"),
    "axolotl": (
        "transformers==5.16.1", "peft==0.20.0", "trl==1.9.0", "accelerate==1.13.0",
        "datasets==4.8.4", "addict", "fire", "einops", "colorama", "numba", "typer", "scipy",
        "art", "python-dotenv", "zstandard", "fastcore", "langdetect", "immutabledict", "posthog",
        "mistral-common", "kernels>=0.16,<0.17", "nvidia-ml-py", "wandb", "tensorboard",
        "hf_transfer", "sentencepiece", "s3fs", "gcsfs", "coloredlogs", "triton",
        "antlr4-python3-runtime==4.13.2",
    ),
}  # fmt: skip
AXOLOTL = (
    "axolotl==0.19.0", "axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6",
    "optimum==1.16.2", "liger-kernel==0.8.1", "torchao==0.17.0", "schedulefree==1.4.1",
    "evaluate==0.4.1", "trackio==0.19.0",
)  # fmt: skip
#: What the scenario tests recorded, a file for each stack.
RECORDS = Path(".nox", "stacks").absolute()
#: The stacks of docs/census.md, and where their rows are kept.
CENSUS_STACKS = ("t457", NEWEST)
CENSUS = Path(".nox", "census").absolute()
#: Likewise what became of each kind of adapter.
KINDS = Path(".nox", "adapter-kinds").absolute()
CODE = ("lora_doctor", "rules", "reports", "tools", "tests", "benchmarks", "noxfile.py")


@nox.session
@nox.parametrize("stack", [nox.param(name, id=name) for name in STACKS])
def tests(session: nox.Session, stack: str) -> None:
    """All tests on one stack, on two cores; arguments after -- go to pytest instead."""
    session.install(TORCH, BITSANDBYTES, *STACKS[stack])
    session.install("-e", ".[dev]")
    session.run("pytest", *(session.posargs or ("-n", "2", "--dist", "worksteal")))


@nox.session
def quantizers(session: nox.Session) -> None:
    """Checkpoints that come quantized, beside the packages that can run some of them on a CPU."""
    session.install(TORCH, BITSANDBYTES, *STACKS[NEWEST], *QUANTIZERS)
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/test_checkpoint_quantization.py", "tests/test_rules.py", "-k",
                "checkpoint_quantization or LD308 or LD309 or LD310 or LD311 or LD312",
                *session.posargs)  # fmt: skip


@nox.session
def dry_run(session: nox.Session) -> None:
    """Dry runs of TRL, datasets and notebooks, which the stacks do not have, and every set-up of
    tests/dry_run_setups that runs with them."""
    # Not the newest: sentence-transformers adds adapters by `model.add_adapter`, for which
    # transformers 5.24 asks for a PEFT that is not released.
    session.install(
        TORCH, BITSANDBYTES, "transformers==5.23.0", "peft==0.21.2", "accelerate", "trl",
        "datasets", "nbclient", "ipykernel", "sentence-transformers", "lightning",
        "hydra-core", "pillow", "tensorboard",
    )  # fmt: skip
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/test_dry_run.py", "tests/test_dry_run_frameworks.py",
                "tests/test_dry_run_data.py", "tests/test_dry_run_setups.py",
                "tests/test_dry_run_processes.py", "tests/test_refused_trainer.py",
                "tests/test_mended_and_trained.py",
                *session.posargs,
                env={"LORA_DOCTOR_SETUPS": "all"})  # fmt: skip
    session.run("pytest", "tests/test_rules.py",
                "-k", "script_is_dry_run and (LD54 or LD553 or LD559 or LD586)",
                *session.posargs, env={"LORA_DOCTOR_SETUPS": "all"})  # fmt: skip


@nox.session
def dry_run_deepspeed(session: nox.Session) -> None:
    """The set-ups with DeepSpeed; nothing of it is compiled."""
    session.install(
        TORCH, BITSANDBYTES, "transformers==5.23.0", "peft==0.21.2", "accelerate", "datasets",
        "ninja", "setuptools", "wheel",
    )  # fmt: skip
    session.install("--no-build-isolation", "deepspeed", env={"DS_BUILD_OPS": "0"})
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/test_dry_run_setups.py", "-k", "DeepSpeed", *session.posargs,
                env={"LORA_DOCTOR_SETUPS": "all"})  # fmt: skip


@nox.session
@nox.parametrize("launcher", [nox.param(name, id=name) for name in LAUNCHERS])
def dry_run_launchers(session: nox.Session, launcher: str) -> None:
    """The set-ups of a launcher that pins its own stack, in an environment of its own."""
    session.install(TORCH, BITSANDBYTES, *LAUNCHERS[launcher])
    if launcher == "axolotl":
        session.install("--no-deps", *AXOLOTL)
    if launcher == "llamafactory":  # its wheel on PyPI needs CUDA's libraries
        session.install("--no-deps", "torchaudio", "--index-url", CPU_INDEX)
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/test_dry_run_setups.py", *session.posargs,
                env={"LORA_DOCTOR_SETUPS": "all"})  # fmt: skip
    session.run("pytest", "tests/test_mended_and_trained.py", "-k", launcher, *session.posargs,
                env={"LORA_DOCTOR_SETUPS": "all"})  # fmt: skip


#: What trains from a set-up, each beside a stack that it takes. axolotl and ms-swift ask for
#: packages that need a GPU to build, and nothing of theirs is run but how they read arguments.
FRAMEWORKS = {
    "llamafactory": (("llamafactory==0.9.5",), ()),
    "trl": (("trl==1.16.0", "transformers", "peft"), ()),
    "axolotl": (
        ("trl", "transformers", "peft", "annotated-types", "pydantic"),
        ("axolotl==0.19.0",),
    ),
    "ms_swift": (("trl", "transformers", "peft"), ("ms-swift==4.6.0",)),
}


@nox.session
@nox.parametrize("framework", [nox.param(name, id=name) for name in FRAMEWORKS])
def set_ups(session: nox.Session, framework: str) -> None:
    """Every set-up of one framework, broken and mended, and what its own parser makes of it."""
    packages, alone = FRAMEWORKS[framework]
    session.install(TORCH, BITSANDBYTES, *packages)
    session.install("-e", ".[dev]")
    if alone:
        session.install("--no-deps", *alone)
    session.run("pytest", "tests/test_set_ups.py", "tests/test_set_ups_parsers.py",
                "tests/test_framework_checks.py", "tests/test_rules_in_formats.py",
                "-k", framework, *session.posargs,
                env={"LORA_DOCTOR_SET_UPS": "all"})  # fmt: skip


@nox.session
@nox.parametrize("stack", [nox.param(name, id=name) for name in STACKS])
def scenarios(session: nox.Session, stack: str) -> None:
    """The failures of the five reports on one stack; what came out is kept for `stacks`."""
    session.install(TORCH, BITSANDBYTES, *STACKS[stack])
    session.install("-e", ".[dev]")
    RECORDS.mkdir(parents=True, exist_ok=True)
    records = RECORDS / f"{stack}.jsonl"
    records.unlink(missing_ok=True)
    files = sorted(str(path) for path in Path("tests").glob("test_scenario_*.py"))
    session.run("pytest", *files, "-n", "2", "--dist", "worksteal", *session.posargs,
                env={"LORA_DOCTOR_STACKS": str(records)})  # fmt: skip


@nox.session
def stacks(session: nox.Session) -> None:
    """Write docs/stacks.md from what `scenarios` kept, all five stacks; commit what changes."""
    session.install("packaging")
    records = sorted(str(path) for path in RECORDS.glob("*.jsonl"))
    if len(records) != len(STACKS):
        session.error(f"{len(records)} of {len(STACKS)} stacks ran: nox -s scenarios first")
    session.run("python", "-m", "tools.stacks_page", *records)


@nox.session
@nox.parametrize("stack", [nox.param(name, id=name) for name in CENSUS_STACKS])
def census(session: nox.Session, stack: str) -> None:
    """Every architecture on one stack; goes on where it was broken off (some ten minutes)."""
    session.install(TORCH, BITSANDBYTES, *STACKS[stack])
    session.install(".")
    session.run("lora-doctor", "census", "-o", str(CENSUS / stack), *session.posargs)


@nox.session
def census_page(session: nox.Session) -> None:
    """Write docs/census.md, and docs/census_rows.json of the newest stack, of what `census` found;
    commit what changes. The table of the kinds of adapters, which `adapter_kinds_page` writes,
    stays."""
    session.install(".")
    folders = [str(CENSUS / stack) for stack in CENSUS_STACKS]
    page = session.run("python", "-m", "lora_doctor.census", *folders, silent=True)
    path = Path("docs", "census.md")
    _, mark, kinds = path.read_text(encoding="utf-8").partition("<!-- adapter kinds: written")
    path.write_text("\n".join(filter(None, [str(page), mark + kinds])), encoding="utf-8")
    session.run("python", "-m", "tools.census_rows", folders[-1])


@nox.session
@nox.parametrize("stack", [nox.param(name, id=name) for name in CENSUS_STACKS])
def adapter_kinds(session: nox.Session, stack: str) -> None:
    """Every kind of adapter of one stack's PEFT, by plain PEFT and by us (some ten minutes)."""
    session.install(TORCH, BITSANDBYTES, *STACKS[stack])
    session.install("-e", ".")
    KINDS.mkdir(parents=True, exist_ok=True)
    session.run("python", "-m", "tools.adapter_kinds", str(KINDS / f"{stack}.jsonl"),
                *session.posargs)  # fmt: skip


@nox.session
def adapter_kinds_page(session: nox.Session) -> None:
    """Write what `adapter_kinds` found into docs/census.md; commit what changes."""
    session.install("-e", ".")
    files = [str(KINDS / f"{stack}.jsonl") for stack in CENSUS_STACKS]
    session.run("python", "-m", "tools.adapter_kinds", "--page", "docs/census.md", *files)


@nox.session
def fuzz(session: nox.Session) -> None:
    """New hostile input for every reader, as long as you like: `nox -s fuzz -- --minutes 120`."""
    session.install(TORCH, *STACKS[NEWEST])
    session.install("-e", ".[dev]")
    session.run("python", "-m", "tests.fuzzing", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Whether tests notice changed rules, in 15 minutes; `nox -s mutants -- LD407 --most 30`."""
    session.install(TORCH, BITSANDBYTES, *STACKS[NEWEST], "cosmic-ray==8.7.0")
    session.install("-e", ".[dev]")
    session.run("python", "-m", "tools.mutants", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format; import-linter: the arrows between the rooms."""
    session.install("ruff>=0.6", "import-linter>=2.7")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("lint-imports", "--no-logo")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict; torch, transformers and peft need not be installed."""
    session.install("-e", ".", "mypy>=1.11")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Write the schema, docs/rules/, quoted output and the picture of the rooms."""
    session.install("import-linter>=2.7", TORCH, BITSANDBYTES, *STACKS[NEWEST])
    session.install("-e", ".")
    session.run("python", "-m", "tools.json_schema")
    session.run("python", "-m", "tools.pages")
    session.run("python", "-m", "tools.architecture_picture")


@nox.session
def site(session: nox.Session) -> None:
    """The documentation site in .nox/site; a broken link is an error."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "docs", ".nox/site")


@nox.session
def benchmark(session: nox.Session) -> None:
    """Time and memory against the plain import of the stack; needs an otherwise idle machine."""
    session.install(TORCH, BITSANDBYTES, *STACKS[NEWEST])
    session.install(".")
    session.run("python", "benchmarks/run.py", *session.posargs)
    session.run("python", "benchmarks/dry_run.py")
    session.run("python", "benchmarks/live.py")


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and source distribution in dist/."""
    session.install("build")
    shutil.rmtree(Path("dist"), ignore_errors=True)
    session.run("python", "-m", "build")
