"""``python -m lora_doctor`` is ``lora-doctor``."""

from lora_doctor.import_path import drop_working_directory

drop_working_directory()  # before anything else is imported

from lora_doctor.cli.main import main  # noqa: E402

raise SystemExit(main())
