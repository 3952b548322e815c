"""All processes tell what is wrong, and all learn what any of them told: who does not answer is named."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from megatron_aqaa.slurm.place import Place


def meet(place: Place, timeout_s: float) -> dist.TCPStore:
    """A store at rank 0 that every process reaches.

    Raises:
        ValueError: no connection; names both nodes.
    """
    try:
        return dist.TCPStore(
            place.address,
            place.port,
            place.world_size,
            is_master=place.rank == 0,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
    except RuntimeError as error:  # DistNetworkError and its kin
        here, first = place.node_of(place.rank), place.nodes[0]
        what = "cannot listen at" if place.rank == 0 else f"cannot reach {first} at"
        reason = str(error).splitlines()[0]
        raise ValueError(f"{here}: rank {place.rank} {what} {place.address}:{place.port}: {reason}") from None


class Answers:
    """Rounds of questions that every process answers.

    Args:
        store: of `meet`.
        place: of this process.
        timeout_s: how long rank 0 waits in each round.
    """

    def __init__(self, store: dist.Store, place: Place, timeout_s: float) -> None:
        self.store, self.place, self.timeout_s = store, place, timeout_s

    def exchange(self, round_name: str, problems: Sequence[str]) -> list[str]:
        """What all processes of this round found, each once, and who was silent; the same everywhere.

        Args:
            round_name: the same on all processes, another one in each round.
            problems: of this process; its node's name is put before.
        """
        place = self.place
        named = [f"{place.node_of(place.rank)}: {problem}" for problem in problems]
        self.store.set(f"{round_name}/{place.rank}", json.dumps(named))
        if place.rank == 0:
            found = self._collect(round_name)
            self.store.set(f"{round_name}/all", json.dumps(found))
            self._outlive(round_name)
            return found
        text = self._text(f"{round_name}/all", self.timeout_s + 30)
        self.store.add(f"{round_name}/read", 1)
        if text is None:
            return [f"{place.nodes[0]}: rank 0 was there, but sent no verdict within {self.timeout_s + 30:g} s"]
        verdict: list[str] = json.loads(text)
        return verdict

    def _collect(self, round_name: str) -> list[str]:
        deadline_s = time.monotonic() + self.timeout_s
        found: list[str] = []
        silent: dict[str, list[str]] = {}
        self.num_answers = 0
        for rank in range(self.place.world_size):
            text = self._text(f"{round_name}/{rank}", deadline_s - time.monotonic())
            if text is None:
                silent.setdefault(self.place.node_of(rank), []).append(str(rank))
            else:
                self.num_answers += 1
                found += json.loads(text)
        late = [f"{node}: rank {', '.join(r)} did not answer in {self.timeout_s:g} s" for node, r in silent.items()]
        return list(dict.fromkeys(found)) + late

    def _text(self, key: str, timeout_s: float) -> bytes | None:
        """A value of the store, or None if it is not there in time or the store is gone."""
        try:
            self.store.wait([key], timedelta(seconds=max(timeout_s, 0.05)))
            return self.store.get(key)
        except RuntimeError:
            return None

    def _outlive(self, round_name: str) -> None:
        """The store ends with rank 0: wait for those that still have to read."""
        deadline_s = time.monotonic() + 10
        while self.store.add(f"{round_name}/read", 0) < self.num_answers - 1 and time.monotonic() < deadline_s:
            time.sleep(0.02)
