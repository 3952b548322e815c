"""The layouts that are compared with one process."""

from __future__ import annotations

import dataclasses

from megatron_aqaa.platform import ParallelConfig

Runs = dict[str, tuple[str, ParallelConfig]]
"""Name of a run → which model, at which layout."""

TP2 = ParallelConfig(tensor_model_parallel_size=2)
TP2_SP = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)
PP2_INTERLEAVED = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
PP2_UNEVEN = ParallelConfig(pipeline_model_parallel_size=2, pipeline_model_parallel_layout="Et|tttL")
ALONE = ParallelConfig(
    pipeline_model_parallel_size=2,
    virtual_pipeline_model_parallel_size=2,
    pipeline_model_parallel_layout="E|ttt|t|L",  # embedding and head without a layer beside them
)
OVERLAPPED = ParallelConfig(overlap_grad_reduce=True, overlap_param_gather=True)
ALONE_OVERLAPPED = dataclasses.replace(ALONE, overlap_grad_reduce=True, overlap_param_gather=True)
CP2 = ParallelConfig(context_parallel_size=2)
TP2_PP2_SP = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True)
TP2_CP2_SP = ParallelConfig(tensor_model_parallel_size=2, context_parallel_size=2, sequence_parallel=True)
TP4 = ParallelConfig(tensor_model_parallel_size=4)  # more ranks than key groups: these are gathered

OF_TWO = {
    "TP2": ("step1", TP2),
    "TP2+SP": ("step1", TP2_SP),
    "PP2": ("step1", PP2),
    "interleaved PP2": ("step1", PP2_INTERLEAVED),
    "uneven PP2": ("step1", PP2_UNEVEN),
    "PP2, embedding and head alone": ("step1", ALONE),
    "CP2": ("step1", CP2),
    "DP2": ("step1", ParallelConfig()),
    "overlapped DP2": ("step1", OVERLAPPED),
    "TP2+SP tied": ("llama", TP2_SP),
    "PP2 tied": ("llama", PP2),
    "uneven PP2 tied": ("llama", PP2_UNEVEN),
    "overlapped DP2 tied": ("llama", OVERLAPPED),
    "overlapped DP2, no tables": ("plain", OVERLAPPED),
    "CP2 rope": ("llama", CP2),
}
OF_FOUR = {
    "TP2xPP2+SP": ("step1", TP2_PP2_SP),
    "TP2xCP2+SP": ("step1", TP2_CP2_SP),
    "TP4": ("step1", TP4),
    "overlapped PP2xDP2, embedding and head alone": ("step1", ALONE_OVERLAPPED),
}
SAVED = {"TP2xPP2+SP": "reversed", "overlapped PP2xDP2, embedding and head alone": "overlapped"}
"""Runs that are continued by one process, and where they are saved."""
