"""Scores, the judge that hears spoken answers, the style check, and the report."""
