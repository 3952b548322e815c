"""What the README says of Megatron-Core is so: every subclass, every override, everything replaced on a CPU.

A new override, or a Megatron-Core in which something that we lean on has moved, fails here by name.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

import megatron_aqaa
from megatron_aqaa.model import config as model_config
from megatron_aqaa.platform import ParallelConfig, cpu
from megatron_aqaa.platform.parallel import MEGATRON_CORE_VERSION
from tests.readme import README, quoted, table

ROOT = README.parent
Override = tuple[str, str]
"""Names of our class and of the method."""

# Megatron's own form of each override, and the parameters that we pass on to it or that Megatron passes to us. A class
# that is put in the place of another one (by the layer spec, or as an attribute) answers to the one that it replaces.
RELIES_ON: dict[Override, tuple[Callable[..., Any], str]] = {
    ("AQAAModel", "__init__"): (
        GPTModel.__init__,
        "config transformer_layer_spec vocab_size max_sequence_length pre_process post_process "
        "share_embeddings_and_output_weights position_embedding_type rotary_base pg_collection vp_stage",
    ),
    ("AQAAModel", "forward"): (
        GPTModel.forward,
        "input_ids position_ids attention_mask labels loss_mask inference_context",
    ),
    ("AQAAModel", "_postprocess"): (
        GPTModel._postprocess,
        "hidden_states labels loss_mask inference_context",
    ),
    ("AudioEmbedding", "__init__"): (LanguageModelEmbedding.__init__, ""),
    ("AudioEmbedding", "forward"): (LanguageModelEmbedding.forward, "input_ids position_ids"),
    ("SqrtAlibiAttention", "__init__"): (DotProductAttention.__init__, "config softmax_scale pg_collection"),
    ("SqrtAlibiAttention", "forward"): (DotProductAttention.forward, "query key value attention_mask"),
    ("SqrtAlibiAttention", "sharded_state_dict"): (
        MegatronModule.sharded_state_dict,
        "prefix sharded_offsets metadata",
    ),
    ("CutDocuments", "__init__"): (
        GPTDataset.__init__,
        "indexed_dataset dataset_path indexed_indices num_samples index_split config",
    ),
    ("CutDocuments", "build_low_level_dataset"): (GPTDataset.build_low_level_dataset, "dataset_path config"),
    ("CutDocuments", "__getitem__"): (GPTDataset.__getitem__, "idx"),
    ("WholeDocuments", "__init__"): (
        MegatronDataset.__init__,
        "dataset dataset_path indices num_samples index_split config",
    ),
    ("WholeDocuments", "build_low_level_dataset"): (MegatronDataset.build_low_level_dataset, "dataset_path config"),
    ("WholeDocuments", "numel_low_level_dataset"): (MegatronDataset.numel_low_level_dataset, "low_level_dataset"),
    ("WholeDocuments", "__len__"): (MegatronDataset.__len__, ""),
    ("WholeDocuments", "__getitem__"): (MegatronDataset.__getitem__, "idx"),
    ("ShardStrategy", "__init__"): (TorchDistSaveShardedStrategy.__init__, "backend version"),
    ("ShardStrategy", "async_save"): (TorchDistSaveShardedStrategy.async_save, "sharded_state_dict checkpoint_dir"),
}
PASSED_BY_ORDER = [("CutDocuments", "__init__"), ("WholeDocuments", "__init__")]


def subclasses() -> Iterator[type]:
    """Every class of the package with a class of Megatron-Core among its ancestors."""
    for found in pkgutil.walk_packages(megatron_aqaa.__path__, "megatron_aqaa."):
        if found.name.rpartition(".")[2].startswith("_"):  # the extension modules
            continue
        try:
            module = importlib.import_module(found.name)
        except ImportError as error:
            if "megatron-aqaa[dali]" not in str(error):  # too large to be everywhere
                raise
            continue
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__ and any(map(of_megatron, cls.__mro__)):
                yield cls


def of_megatron(thing: Any) -> bool:
    return thing.__module__.startswith("megatron.core")


def parents(cls: type) -> str:
    return ", ".join(base.__name__ for base in cls.__bases__)


def written(cls: type) -> Iterator[str]:
    """Names that the body of a class gives a value, without those that `@dataclass` adds."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign) or (isinstance(node, ast.AnnAssign) and node.value is not None):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def overridden(cls: type) -> set[str]:
    """Names that an ancestor has as well."""
    ancestors = cls.__mro__[1:-1]  # without `object`
    inherited = {name for base in ancestors for name in (*vars(base), *vars(base).get("__annotations__", {}))}
    return set(written(cls)) & inherited


@pytest.fixture(scope="module")
def ours() -> dict[str, tuple[str, set[str]]]:
    """Class → its parents, what it overrides."""
    return {cls.__name__: (parents(cls), overridden(cls)) for cls in subclasses()}


def test_the_readme_lists_every_subclass_with_exactly_what_it_overrides(ours: dict[str, tuple[str, set[str]]]) -> None:
    listed: dict[str, tuple[str, set[str]]] = {}
    for classes, override, reason in table("our class ← Megatron's", "overrides", "why"):
        if classes:  # an empty cell goes on with the class above
            name, parent = quoted(classes)
        listed.setdefault(name, (parent, set()))[1].update(quoted(override))
        assert reason, f"README.md: why does {name} override {override}?"
    assert listed == ours


def test_there_is_a_contract_for_each_override(ours: dict[str, tuple[str, set[str]]]) -> None:
    assert set(RELIES_ON) == {(name, method) for name, (_, methods) in ours.items() for method in methods}


@pytest.mark.parametrize("override", RELIES_ON, ids=".".join)
def test_megatron_still_has_what_is_overridden(override: Override) -> None:
    theirs, relied_on = RELIES_ON[override]
    found = [name for name in inspect.signature(theirs).parameters if name != "self"]
    assert of_megatron(theirs), f"{override}: comes from {theirs.__module__}"
    assert set(relied_on.split()) <= set(found)
    if override in PASSED_BY_ORDER:
        assert found == relied_on.split()


def test_the_installed_megatron_core_is_the_pinned_one_and_everything_pins_the_same() -> None:
    assert importlib.metadata.version("megatron-core") == MEGATRON_CORE_VERSION
    assert set(re.findall(r"Megatron-Core (\d[\d.]*\d)", README.read_text())) == {MEGATRON_CORE_VERSION}
    for name in ("pyproject.toml", "requirements.txt"):
        pins = re.findall(r"^\W*megatron-core==([\w.]+)", (ROOT / name).read_text(), re.MULTILINE)
        assert pins == [MEGATRON_CORE_VERSION], f"{name} pins megatron-core {pins}"


def test_the_readme_lists_all_that_is_replaced_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {}
    for where, names, _ in table("of", "replaced without a GPU", "by"):
        listed[quoted(where)[0]] = set(quoted(names))
    monkeypatch.setattr(model_config, "has_gpu", lambda: False)
    interleaved = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    settings = model_config._platform_settings(interleaved)
    assert listed == {**replaced_functions(), "TorchFunctionMode": mode_names(), "TransformerConfig": set(settings)}
    assert set(settings) <= set(inspect.signature(TransformerConfig).parameters)


def replaced_functions() -> dict[str, set[str]]:
    """Module → names that `platform/cpu.py` assigns to."""
    source = inspect.getsource(cpu._replace_cuda_queries)
    names = {"cuda": "torch.cuda", "random": "megatron.core.tensor_parallel.random"}
    found: dict[str, set[str]] = {module: set() for module in names.values()}
    for node in ast.walk(ast.parse(source)):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Attribute):
                found[names[ast.unparse(target).partition(".")[0]]].add(target.attr)
    return found


def mode_names() -> set[str]:
    """Tensor methods and keyword arguments that the function mode looks at."""
    source = inspect.getsource(cpu.CudaMeansCpu)
    return set(re.findall(r"torch\.Tensor\.(\w+)", source)) | set(re.findall(r"kwargs\.get\(\"(\w+)\"\)", source))


def test_the_readme_names_the_file_of_every_subclass() -> None:
    text = README.read_text()
    for cls in subclasses():
        path = Path(inspect.getfile(cls)).relative_to(ROOT)
        assert f"[`{cls.__name__}`]({path})" in text, f"README.md does not link {cls.__name__} to {path}"
