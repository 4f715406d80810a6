"""One file per format of recipe files, found by its place; see :mod:`..format` for what it offers.

To add a format, copy ``peft_adapter_config.py`` and change it. A format says how it is recognised
and how it spells the keys of a recipe; bytes, syntax and edits in place are not its business.
"""
