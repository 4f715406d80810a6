"""Our part in a process of the user's: started before any of their code, by the environment.

`site/sitecustomize.py` is found by every Python that reads ``PYTHONPATH``, so it reaches what
launchers start, too. It answers the handshake, and calls what the session names. Nothing here
imports torch, and nothing is changed before a library that is to be changed is imported.
"""
