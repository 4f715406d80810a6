"""What is supervised: from rows of token ids and labels to one piece of evidence.

Pure functions over plain data; no torch and no transformers. Where the rows came from does not
matter: a dry run hands over the batches of the user's own collator, ``check --data`` rows that it
made with the model's tokenizer. Both call :func:`lora_doctor.supervision.observe.observe` with
:class:`~lora_doctor.supervision.rows.Row` and get a
:class:`~lora_doctor.results.supervision.Supervision`.
"""
