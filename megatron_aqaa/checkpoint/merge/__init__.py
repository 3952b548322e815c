"""Merging versions of one model in constant memory: a configuration in mergekit's form, a plan, a run."""
