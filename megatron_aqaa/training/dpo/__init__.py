"""Preference optimization: configuration, losses, reference, step and the run."""
