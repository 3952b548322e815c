"""Mini-batch k-means: the linguistic codebook from the encoder's hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.tokenizer.centroids import nearest_centroid


@dataclass(frozen=True)
class KMeansConfig:
    """Settings of the clustering.

    Attributes:
        num_clusters: codes.
        steps: mini-batches.
        batch_size: points of a mini-batch.
        momentum: how slowly a centroid follows its points; counts and sums decay by it.
        dead_ratio: a centroid with less than this share of an even count is put on a random point again, which
            keeps nearly all codes in use.
        start_points: points per cluster, drawn at random, among which k-means++ looks for a start.
        seed: of the start, the mini-batches and the restarts.
    """

    num_clusters: int = 1024
    steps: int = 100
    batch_size: int = 8192
    momentum: float = 0.9
    dead_ratio: float = 0.05
    start_points: int = 16
    seed: int = 0


def fit_kmeans(points: Tensor, config: KMeansConfig) -> Tensor:
    """Cluster `points` on this process's device.

    Args:
        points: [N, D]; may be larger than the device's memory.
        config: settings.

    Returns:
        [K, D] float32 centroids, on the CPU.

    Raises:
        ValueError: fewer points than clusters.
    """
    if len(points) < config.num_clusters:
        raise ValueError(f"{len(points)} points cannot make {config.num_clusters} clusters; use more speech")
    generator = torch.Generator().manual_seed(config.seed)
    sample = torch.randperm(len(points), generator=generator)[: config.start_points * config.num_clusters]
    centroids = spread_points(points[sample].float().to(platform.device()), config.num_clusters, generator)
    even = min(config.batch_size, len(points)) / config.num_clusters / (1 - config.momentum)
    counts = torch.full((config.num_clusters,), even, device=centroids.device)
    sums = centroids * counts[:, None]
    for step in range(config.steps):
        drawn = torch.randint(len(points), (config.batch_size,), generator=generator)
        batch = points[drawn].float().to(centroids.device)
        codes = nearest_centroid(batch, centroids)
        counts = counts * config.momentum + torch.bincount(codes, minlength=len(counts))
        sums = (sums * config.momentum).index_add_(0, codes, batch)
        dead = (counts < config.dead_ratio * even).nonzero()[:, 0]
        if step < 0.8 * config.steps and len(dead):  # the last mini-batches settle what was restarted
            put_on = torch.randint(len(batch), (len(dead),), generator=generator)
            sums[dead] = batch[put_on.to(batch.device)] * even
            counts[dead] = even
        centroids = sums / counts.clamp(min=1e-6)[:, None]
    return centroids.cpu()


def spread_points(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the points [N, D], each drawn with odds by its squared distance to those drawn before (k-means++).

    Where fewer points than that are different, some are drawn more than once.
    """
    squares = points.square().sum(-1)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = torch.full_like(squares, torch.inf)
    for draw in torch.rand(count - 1, generator=generator, dtype=torch.float64).tolist():
        last = points[chosen[-1]]
        distances = (squares - 2 * (points @ last) + last.square().sum()).clamp(min=0)
        distances[chosen[-1]] = 0  # rounding leaves a little
        nearest = torch.minimum(nearest, distances)
        odds = nearest.double().cumsum(0)
        place = torch.searchsorted(odds, odds[-1:] * draw, right=True)
        chosen.append(min(int(place), len(points) - 1))
    return points[chosen]
