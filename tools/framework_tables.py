"""The tables of ``lora_doctor/static/installed/framework_tables``: the arguments of each framework,
for where it is not installed. Run where it is:

    python -m tools.framework_tables           # every framework that is installed here
"""

from __future__ import annotations

from lora_doctor.recipe.files.format import find_formats, framework_of
from lora_doctor.static.installed.framework_fields import (
    installed_fields,
    table_path,
    table_text,
)


def main() -> None:
    """Write the table of every framework that is installed."""
    for framework in filter(None, map(framework_of, find_formats())):
        fields = installed_fields(framework.sources)
        if fields is None:
            print(f"{framework.sources.distribution}: not installed, left as it is")
            continue
        path = table_path(fields.distribution)
        path.parent.mkdir(exist_ok=True)
        path.write_text(table_text(fields), encoding="utf-8")
        print(f"{path}: {fields.distribution} {fields.version}, {len(fields.names)} arguments")


if __name__ == "__main__":
    main()
