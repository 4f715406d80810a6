"""Values for the keys of a recipe that the user left open, tried on the real class."""
