"""Megatron's short form of which layers each pipeline stage holds, read without Megatron.

`Et*4|(t*4|)*15(t*3|)*7t*3L`: stages are divided by `|` and stand in the order in which a sequence passes through them
(all processes' first stages, then all second ones); `E` is the embedding, `t` a transformer layer, `L` the output head
and loss; `x*3` repeats a letter, `(…)*3` what is in brackets. Commas are for the eye.
"""

from __future__ import annotations

import re

_REPEATS = (r"\(([^()]+)\)\*(\d+)", r"([^()*])\*(\d+)")  # brackets first, as Megatron does


def pipeline_stages(layout: str) -> tuple[str, ...]:
    """Letters of each stage, such as `("Ett", "tt", "ttL")`.

    Raises:
        ValueError: other letters, or not exactly one `E` at the beginning and one `L` at the end.
    """
    letters = layout.replace(",", "")
    for repeat in _REPEATS:
        letters = re.sub(repeat, lambda found: found[1] * int(found[2]), letters)
    wrong = re.search(r"[^EtL|]", letters)
    if wrong is not None:
        raise ValueError(
            f"parallel.pipeline_model_parallel_layout = {layout!r}: cannot read {wrong[0]!r}; it is made of E, t, L, "
            "|, with `t*3` and `(t|)*3` for repeats"
        )
    flat = letters.replace("|", "")
    if not re.fullmatch("Et*L", flat):
        raise ValueError(
            f"parallel.pipeline_model_parallel_layout = {layout!r}: begins with one embedding E, ends with one head L, "
            "and has nothing but layers t between them"
        )
    return tuple(letters.split("|"))
