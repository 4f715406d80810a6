"""The census: every architecture that the installed transformers can train, judged by running it.

A row is a pair of an auto class and a `model_type`. Each is diagnosed as `check arch:NAME` would,
and then tried in the ways that people ask about: PEFT's own default, `all-linear`, gradient
checkpointing, 4 and 8 bits, half precision. Every cell that says no says why.

`pairs` finds the rows, `judge` makes one, `run` spreads them and keeps what is done, `page` renders
the table.
"""
