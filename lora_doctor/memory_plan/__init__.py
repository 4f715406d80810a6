"""How much memory a training run takes on one GPU, before anything is loaded.

``plan`` is the result (data only), ``gather`` makes it in a child process: the real classes on the
meta device (``footprint``), with equal layers once or twice (``thinned``), a batch of the size that
will be trained (``batch``), and every live byte counted (``live``).
"""
