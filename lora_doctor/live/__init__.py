"""The live run: the user's own training, judged before its first step and watched after it."""
