"""Mini-batch k-means: the linguistic codebook from the encoder's hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_aqaa.tokenizer.linguistic import nearest_centroid


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
        seed: of the start, the mini-batches and the restarts.
    """

    num_clusters: int = 1024
    steps: int = 100
    batch_size: int = 8192
    momentum: float = 0.9
    dead_ratio: float = 0.05
    seed: int = 0


def fit_kmeans(points: torch.Tensor, config: KMeansConfig) -> torch.Tensor:
    """Cluster `points`.

    Args:
        points: [N, D].
        config: settings.

    Returns:
        [K, D] float32 centroids.

    Raises:
        ValueError: fewer points than clusters.
    """
    if len(points) < config.num_clusters:
        raise ValueError(f"{len(points)} points cannot make {config.num_clusters} clusters; use more speech")
    generator = torch.Generator().manual_seed(config.seed)
    start = torch.randperm(len(points), generator=generator)[: config.num_clusters]
    centroids = points[start].float().clone()
    even = min(config.batch_size, len(points)) / config.num_clusters / (1 - config.momentum)
    counts = torch.full((config.num_clusters,), even)
    sums = centroids * counts[:, None]
    for step in range(config.steps):
        batch = points[torch.randint(len(points), (config.batch_size,), generator=generator)].float()
        codes = nearest_centroid(batch, centroids)
        counts = counts * config.momentum + torch.bincount(codes, minlength=len(counts))
        sums = (sums * config.momentum).index_add_(0, codes, batch)
        dead = (counts < config.dead_ratio * even).nonzero()[:, 0]
        if step < 0.8 * config.steps and len(dead):  # the last mini-batches settle what was restarted
            sums[dead] = batch[torch.randint(len(batch), (len(dead),), generator=generator)] * even
            counts[dead] = even
        centroids = sums / counts.clamp(min=1e-6)[:, None]
    return centroids
