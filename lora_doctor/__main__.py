"""``python -m lora_doctor`` is ``lora-doctor``."""

from lora_doctor.cli.main import main

raise SystemExit(main())
