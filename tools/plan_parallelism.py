"""Plan a run on a cluster: memory per stage, seconds per step, the best layouts, and the YAML lines to paste.

Examples:
    python tools/plan_parallelism.py examples/tiny_cpu/sft.yaml examples/clusters/h100.yaml --gpus 8
    python tools/plan_parallelism.py run.yaml examples/clusters/h800.yaml --gpus 1024 --picture plan.png
    python tools/plan_parallelism.py run.yaml examples/clusters/h100.yaml data.sequence_length=32768
    python tools/plan_parallelism.py --published examples/clusters/published/megatron_lm_h100.yaml \\
        examples/clusters/h100.yaml

Times are a model (docs/planner.md says how far to trust it); bytes of parameters, gradients and optimizer are exact.
Exit codes: 0 done, 2 wrong files or settings, or nothing fits.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_aqaa.planner.cluster import Cluster, load_cluster
from megatron_aqaa.planner.pipelines import compare_pipelines
from megatron_aqaa.planner.plan import Plan, Software
from megatron_aqaa.planner.prediction import Prediction, predict
from megatron_aqaa.planner.published import SOFTWARE, load_published
from megatron_aqaa.planner.reasons import fit, misfit_reason
from megatron_aqaa.planner.report import pipeline_lines, plan_lines, published_lines, search_lines, yaml_lines
from megatron_aqaa.planner.run_file import PlannedRun, read_run
from megatron_aqaa.planner.search import search


def main() -> int:
    """Parse, plan, print."""
    arguments = _parser().parse_args()
    try:
        cluster = load_cluster(arguments.cluster)
        if arguments.published:
            table = load_published(arguments.run)
            print("\n".join(published_lines(table, cluster, SOFTWARE[table.software])))
            return 0
        run = read_run(arguments.run, arguments.overrides)
        best = _plan(run, cluster, SOFTWARE[arguments.software], arguments.gpus or cluster.num_gpus)
        if arguments.picture is not None:
            _draw(best, cluster, SOFTWARE[arguments.software], arguments.picture)
        print("\n" + yaml_lines(best.plan), end="")
    except (ValueError, ImportError) as error:
        print(f"plan_parallelism: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="YAML file of the run (or, with --published, of a published table)")
    parser.add_argument("cluster", type=Path, help="YAML file of the cluster")
    parser.add_argument("overrides", nargs="*", help="section.field=value of the run")
    parser.add_argument("--gpus", type=int, help="GPUs to plan for; all of the cluster if left out")
    parser.add_argument(
        "--software", choices=sorted(SOFTWARE), default="aqaa", help="kernels: this project's, or Megatron-LM's"
    )
    parser.add_argument("--picture", type=Path, help="PNG or SVG of the best plan")
    parser.add_argument("--published", action="store_true", help="compare with a published table instead")
    return parser


def _plan(run: PlannedRun, cluster: Cluster, software: Software, gpus: int) -> Prediction:
    """Print the run's own layout, the best ones, and the first of these in full; the first."""
    for note in run.notes:
        print(f"note: {note}")
    try:
        own = Plan.on(gpus, run.model, run.layout, run.batch)
        _print_plan("the file's own layout", predict(own, cluster, software), cluster, software)
    except ValueError as error:
        print(f"the file's own layout cannot run here: {error}")
    found = search(gpus, run.model, run.layout, run.batch, cluster, software)
    print("\n" + "\n".join(search_lines(found)) + "\n")
    _print_plan("the first of them", found.best[0], cluster, software)
    return found.best[0]


def _print_plan(title: str, prediction: Prediction, cluster: Cluster, software: Software) -> None:
    print("\n".join([title, *plan_lines(prediction, cluster)]))
    misfit = fit(prediction.plan, cluster)
    if misfit:
        print(f"does not fit: {misfit_reason(misfit)}")
    if prediction.plan.layout.pipeline_model_parallel_size > 1:
        ways = compare_pipelines(prediction.plan, cluster, software)
        print("\n" + "\n".join(pipeline_lines(ways, cluster)))


def _draw(best: Prediction, cluster: Cluster, software: Software, path: Path) -> None:
    from megatron_aqaa.planner.pictures import draw_plan  # matplotlib is an extra

    draw_plan(best, cluster, software, path)
    print(f"\nLook: {path}")


if __name__ == "__main__":
    sys.exit(main())
