"""Small tables, frozen rows, learning rates and grown tables at every layout, on batches as a run reads them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from megatron.core import dist_checkpointing, parallel_state
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.store import require_checkpoint
from megatron_aqaa.model import build_model
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.lm_state import TrainState, build_state, new_state
from megatron_aqaa.training.lm_step import train_step
from megatron_aqaa.training.train import NextTokens
from megatron_aqaa.vocabulary import Vocabulary
from tests.distributed.launch import run
from tests.model import sizes
from tests.training.tiny_run import TEXT_VOCABULARY, tiny_config, write_data

pytestmark = pytest.mark.distributed

# Small codebooks: Megatron sums the squares of a gradient in fp32, and of 5,376 rows its norm is good to 3e-5 only.
VOCABULARY = Vocabulary(text_size=160, linguistic_size=64, semantic_size=128, size=354, audio_start=352, audio_end=353)
SERIAL = ParallelConfig()
LAYOUTS = {
    "TP2": ParallelConfig(tensor_model_parallel_size=2),
    "TP2+SP": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "PP2": ParallelConfig(pipeline_model_parallel_size=2),
    "CP2": ParallelConfig(context_parallel_size=2),
    "DP2": SERIAL,
}
BOTH_TABLES = {"codebook_type_embedding": True, "group_position_embedding": True}
TIED_BF16 = {"untie_embeddings_and_output_weights": False, "params_dtype": "bf16"}


class Case(NamedTuple):
    """A run: settings of model and loop, and the layouts that continue it from step 2."""

    model: dict[str, Any]
    training: dict[str, Any]
    layouts: Sequence[str]
    steps: int  # after the resume


CASES = {
    "both tables": Case(BOTH_TABLES, {}, ("CP2", "TP2+SP", "PP2", "DP2"), 2),
    "text rows frozen": Case(BOTH_TABLES, {"frozen": ["text_rows"]}, ("TP2", "DP2"), 8),
    "tied, bf16, text rows frozen": Case(TIED_BF16, {"frozen": ["text_rows"]}, ("TP2", "PP2"), 8),
    "audio rows alone": Case({}, {"frozen": ["backbone", "text_rows"]}, ("TP2", "PP2"), 2),
}
RESUMES = [(case, layout) for case, settings in CASES.items() for layout in settings.layouts]
STEPS_BEFORE, STEPS_BACK = 2, 2
GROWN_TIED, GROWN = "grown, tied", "grown"


class Step(NamedTuple):
    """What a step reported, and the rate of each parameter group in it."""

    loss: float
    grad_norm: float
    rates: dict[tuple[float, bool], float]


def config_of(folder: Path, name: str, layout: ParallelConfig, model: dict[str, Any], **training: Any) -> TrainConfig:
    """Run `name`, on "cut" sequences, which begin anywhere within a group."""
    made = tiny_config(folder / "data", folder / name, dataclasses.asdict(layout), steps=12, **training)
    return dataclasses.replace(
        made,
        model=dataclasses.replace(made.model, **model),
        data=dataclasses.replace(made.data, packing="cut"),
        optimizer=dataclasses.replace(made.optimizer, weight_decay=0.5),
    )


def case_config(folder: Path, case: str, layout_name: str, layout: ParallelConfig) -> TrainConfig:
    return config_of(folder, f"{case}/{layout_name}", layout, CASES[case].model, **CASES[case].training)


def grown_config(folder: Path, name: str, layout_name: str, layout: ParallelConfig) -> TrainConfig:
    model = {} if name == GROWN else {"untie_embeddings_and_output_weights": False}
    text_model = folder / f"text model of {name}"
    return config_of(folder, f"{name}/{layout_name}", layout, model, init_from=text_model, grow_vocabulary=True)


def start(config: TrainConfig, seed: int = 0) -> TrainState:
    platform.initialize(config.parallel, seed)
    return build_state(config, VOCABULARY)


def advance(config: TrainConfig, state: TrainState, steps: int) -> list[Step]:
    loop = config.training
    num_microbatches = loop.global_batch_size // loop.micro_batch_size // parallel_state.get_data_parallel_world_size()
    batches = NextTokens(config, state, VOCABULARY).batches
    shape = (loop.micro_batch_size, config.data.sequence_length)
    trace = []
    for _ in range(steps):
        rates = group_rates(state)
        result = train_step(state.model_chunks, state.optimizer, batches, VOCABULARY, num_microbatches, shape)
        state.scheduler.step(1)
        state.step += 1
        state.consumed_samples += loop.global_batch_size
        trace.append(Step(result.loss, result.grad_norm, rates))
    return trace


def group_rates(state: TrainState) -> dict[tuple[float, bool], float]:
    """Learning rate by what tells parameter groups apart."""
    return {(group["wd_mult"], group["is_decoupled_lr"]): group["lr"] for group in state.optimizer.param_groups}


def resumed(folder: Path, case: str, origin: str, layout_name: str, layout: ParallelConfig) -> tuple:
    """The run of `origin` at another layout, whose own initial weights are others."""
    config = case_config(folder, case, layout_name, layout)
    state = start(config, seed=31)
    state.load(require_checkpoint(folder / case / origin))
    return config, state


def on_two(folder: Path) -> tuple[dict, dict, dict]:
    """On each of two ranks: every resume, growth, and the embedding's collectives."""
    traces = {}
    for case, name in RESUMES:
        config, state = resumed(folder, case, "step 2", name, LAYOUTS[name])
        traces[case, name] = advance(config, state, CASES[case].steps)
        state.save(config.run, keep=1)
    grown = {}
    for kind, name in ((GROWN, "TP2"), (GROWN_TIED, "TP2"), (GROWN_TIED, "PP2")):
        config = grown_config(folder, kind, name, LAYOUTS[name])
        state = start(config)
        state.save(config.run, keep=1)
        grown[kind, name] = advance(config, state, 1)
    return traces, grown, {name: collectives(tables) for name, tables in TABLES.items()}


TABLES = {
    "none": {},
    "type": {"codebook_type_embedding": True},
    "place": {"group_position_embedding": True},
    "both": BOTH_TABLES,
}


class Collectives(TorchDispatchMode):
    """Counts the collectives that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d":
            self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def collectives(tables: dict[str, bool]) -> tuple[Counter[str], Counter[str]]:
    """Of the embedding's forward and backward under sequence parallelism."""
    layout = LAYOUTS["TP2+SP"]
    platform.initialize(layout)
    layer = build_model(sizes.variant(**tables), sizes.VOCABULARY, layout)[0].embedding
    token_ids = torch.randint(0, sizes.VOCABULARY.size, (2, 16), generator=torch.Generator().manual_seed(2))
    with Collectives() as forward:
        out = layer(token_ids)
    with Collectives() as backward:
        out.sum().backward()
    return forward.count, backward.count


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stack")
    write_data(folder / "data", VOCABULARY)
    return folder


@pytest.fixture(scope="module")
def serial(folder: Path) -> dict[str, list[Step]]:
    """Uninterrupted runs of one process, from step 2 on; their weights at the start and at step 2 are kept."""
    traces = {}
    for case, settings in CASES.items():
        config = case_config(folder, case, "serial", SERIAL)
        state = start(config)
        state.save(folder / case / "start", keep=1)
        advance(config, state, STEPS_BEFORE)
        state.save(folder / case / "step 2", keep=1)
        traces[case] = advance(config, state, settings.steps)
        state.save(config.run, keep=1)
        traces[case] += advance(config, state, STEPS_BACK)
    for name in (GROWN, GROWN_TIED):
        config = grown_config(folder, name, "serial", SERIAL)
        platform.initialize(SERIAL, seed=8)
        text = new_state(config.model, TEXT_VOCABULARY, SERIAL, config.optimizer, steps=12)
        text.save(folder / f"text model of {name}", keep=1)
        state = start(config)
        state.save(config.run, keep=1)
        traces[name] = advance(config, state, 1)
    platform.shutdown()
    return traces


@pytest.fixture(scope="module")
def two(serial: dict[str, list[Step]], folder: Path) -> list[tuple[dict, dict, dict]]:
    return run(on_two, 2, folder)


def stored(run_directory: Path) -> dict[str, Tensor]:
    """Whole tensors of a run's newest checkpoint, moments included."""
    platform.initialize(SERIAL)
    tensors = dist_checkpointing.load_plain_tensors(str(require_checkpoint(run_directory)))
    platform.shutdown()
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}


def assert_same(trace: list[Step], expected: list[Step], rel: float = 1e-5) -> None:
    for ours, theirs in zip(trace, expected, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=rel)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=rel)
        assert ours.rates == theirs.rates


@pytest.mark.parametrize(("case", "layout"), RESUMES)
def test_a_layout_continues_as_one_process(case: str, layout: str, serial: dict, two: list) -> None:
    """In bf16 for two steps: the matrix products of a layout round in their own way, and steps drift apart."""
    steps, rel = (2, 2e-3) if "bf16" in case else (CASES[case].steps, 1e-5)
    for traces, _, _ in two:
        assert_same(traces[case, layout][:steps], serial[case][:steps], rel)


@pytest.mark.parametrize("layout", CASES["both tables"].layouts)
def test_gradients_are_those_of_one_process(layout: str, serial: dict, two: list, folder: Path) -> None:
    """Of every weight, as the moments of the optimizer hold them after the second step."""
    ours, expected = stored(folder / "both tables" / layout), stored(folder / "both tables" / "serial")
    moments = [name for name in expected if name.startswith("optimizer.state.exp_avg.")]
    assert any(name.endswith("group_position") for name in moments)
    for name in moments:
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize(("case", "layout"), [("both tables", "DP2"), ("text rows frozen", "TP2")])
def test_one_process_continues_from_a_layout(case: str, layout: str, serial: dict, two: list, folder: Path) -> None:
    config, state = resumed(folder, case, layout, "back", SERIAL)
    trace = advance(config, state, STEPS_BACK)
    platform.shutdown()
    assert_same(trace, serial[case][CASES[case].steps :])


def test_embedding_and_head_learn_five_times_as_fast(serial: dict) -> None:
    """So that equal rates, above, are rates of two kinds."""
    for step in serial["both tables"][:2]:
        assert step.rates[1.0, True] == pytest.approx(5 * step.rates[1.0, False])
        assert step.rates[0.0, False] == step.rates[1.0, False] > 0
    assert list(serial["audio rows alone"][0].rates) == [(0.0, True)]


FROZEN = [(case, layout) for case, layout in RESUMES if CASES[case].training]


@pytest.mark.parametrize(("case", "layout"), [*FROZEN, *((case, "serial") for case in dict(FROZEN))])
def test_frozen_rows_are_as_they_were(case: str, layout: str, serial: dict, two: list, folder: Path) -> None:
    before, after = stored(folder / case / "start"), stored(folder / case / layout)
    prefixes = ("", "optimizer.state.param.")
    tables = [name for name in before if name.endswith(("word_embeddings.weight", "output_layer.weight"))]
    tables = [name for name in tables if name.startswith(("embedding", "output", "optimizer.state.param."))]
    assert len(tables) == len(prefixes) * (1 if "tied" in case else 2)
    for name in tables:
        text = slice(0, VOCABULARY.text_size)
        assert torch.equal(after[name][text], before[name][text])
        assert not torch.equal(after[name], before[name])
    layers = [name for name in before if name.startswith("decoder.")]
    unchanged = [name for name in layers if torch.equal(after[name], before[name])]
    assert unchanged == (layers if case == "audio rows alone" else [])


@pytest.mark.parametrize(("name", "layout"), [(GROWN, "TP2"), (GROWN_TIED, "TP2"), (GROWN_TIED, "PP2")])
def test_grown_tables_are_the_same_at_every_layout(
    name: str, layout: str, serial: dict, two: list, folder: Path
) -> None:
    ours, expected = stored(folder / name / layout), stored(folder / name / "serial")
    text_model = stored(folder / f"text model of {name}")
    for key in (key for key in expected if not key.startswith("optimizer.")):
        assert torch.equal(ours[key], expected[key]), key
    key = "embedding.word_embeddings.weight"
    assert torch.equal(ours[key][: VOCABULARY.text_size], text_model[key][: VOCABULARY.text_size])
    for _, grown, _ in two:
        assert_same(grown[name, layout], serial[name])


@pytest.mark.parametrize("tables", TABLES)
def test_sequence_parallelism_scatters_once(tables: str, two: list) -> None:
    """Whatever tables are added; backward gathers once, and sums each small table's gradient over the ranks."""
    for _, _, counts in two:
        forward, backward = counts[tables]
        assert sum(forward.values()) == 1 and "reduce_scatter" in next(iter(forward))
        gathers = sum(count for name, count in backward.items() if "allgather" in name)
        sums = sum(count for name, count in backward.items() if "allreduce" in name)
        assert (gathers, sums) == (1, len(TABLES[tables]))
        assert sum(backward.values()) == gathers + sums
