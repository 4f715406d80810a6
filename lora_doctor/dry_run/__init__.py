"""The dry run: the user's own command, with the model shrunk, the data cut and the outputs apart.

``acts/`` is what a guest does in the processes of the command; everything else runs in ours: the
command (``command``), its start and its end (``launch``), what it told (``captured``), and the
diagnosis that is made of it (``judge``).
"""
