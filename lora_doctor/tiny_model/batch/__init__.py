"""A training batch for any model, corrected by what its forward raises."""
