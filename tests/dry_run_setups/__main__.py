"""Run set-ups by name and say what came out: ``python -m tests.dry_run_setups [NAME ...]``."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from tests import cli
from tests.dry_run_setups.folders import write_all
from tests.dry_run_setups.setups import Setup
from tests.dry_run_setups.table import SETUPS


def _run(setup: Setup, root: Path) -> None:
    write_all(root)
    setup.write(root)
    before, began = sorted(root.rglob("*")), time.monotonic()
    result = cli.lora_doctor(
        "dry-run", "--output-format", "json", "--", *setup.words, cwd=root, timeout=900
    )
    print(f"== {setup.name}: {time.monotonic() - began:.0f} s, code {result.code}")
    left = sorted({str(path.relative_to(root)) for path in set(root.rglob("*")) - set(before)})
    print(f"   left behind: {left}")
    try:
        report = json.loads(result.out)
    except ValueError:
        print(result.out[-2000:], result.err[-2000:])
        return
    rules = [finding["rule"] for finding in report["findings"]]
    loud = [one["rule"] for one in report["findings"] if one["severity"] != "info"]
    wanted = set(setup.expects) <= set(loud) and result.code == bool(setup.expects)
    good = wanted and (bool(setup.expects) or (report["verdict"] == "healthy" and not loud))
    print(f"   {'as expected' if good else 'NOT AS EXPECTED'}: {report['verdict']} {rules}")
    if not good:
        print(f"   expected {setup.expects}, undetermined: {report['undetermined']}")
        for finding in report["findings"]:
            print("  ", finding["rule"], finding["message"][:300], finding["location"])
        error = (report["dry_run"] or {}).get("error")
        print(error["traceback"][-2000:] if error else "   no exception")
    sys.stdout.flush()


def main() -> None:
    """Every set-up that is named, or all."""
    for setup in SETUPS:
        if sys.argv[1:] and setup.name not in sys.argv[1:]:
            continue
        if setup.lacking:
            print(f"== {setup.name}: not run, {setup.lacking} is not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            _run(setup, Path(folder))


if __name__ == "__main__":
    main()
