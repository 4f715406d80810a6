"""``python -m lora_doctor`` is ``lora-doctor``."""

from lora_doctor.cli import main

raise SystemExit(main())
