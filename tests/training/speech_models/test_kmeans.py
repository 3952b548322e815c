from __future__ import annotations

import pytest
import torch

from megatron_aqaa.tokenizer.centroids import nearest_centroid
from megatron_aqaa.training.speech_models.kmeans import KMeansConfig, fit_kmeans, spread_points


def blobs(num_blobs: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(num_blobs, 4, generator=generator)
    return centres, (centres[:, None] + torch.randn(num_blobs, size, 4, generator=generator)).flatten(0, 1)


def test_finds_well_separated_clusters() -> None:
    centres, points = blobs(6, 200)
    found = fit_kmeans(points, KMeansConfig(num_clusters=12, steps=60, batch_size=512))
    distances = torch.cdist(centres, found).amin(1)
    assert (distances < 1.5).all()  # every blob, of deviation 1 in 4 dimensions, has a centroid inside


def test_dead_clusters_are_put_to_use() -> None:
    _, points = blobs(5, 400)
    config = KMeansConfig(num_clusters=64, steps=80, batch_size=1024)
    used = nearest_centroid(points, fit_kmeans(points, config)).unique()
    assert len(used) >= 61


def test_is_repeatable_and_error_falls_with_more_clusters() -> None:
    _, points = blobs(8, 200)
    errors = []
    for num_clusters in (4, 16, 64):
        config = KMeansConfig(num_clusters=num_clusters, steps=30, batch_size=512, seed=5)
        centroids = fit_kmeans(points, config)
        assert torch.equal(centroids, fit_kmeans(points, config))
        errors.append((points - centroids[nearest_centroid(points, centroids)]).square().sum(-1).mean())
    assert errors[0] > errors[1] > errors[2]


def test_too_few_points_are_told() -> None:
    with pytest.raises(ValueError, match="3 points cannot make 4 clusters"):
        fit_kmeans(torch.randn(3, 2), KMeansConfig(num_clusters=4))


def test_the_start_takes_a_point_of_every_cluster_before_a_second_of_any() -> None:
    centres, points = blobs(12, 100)
    for seed in range(20):
        start = spread_points(points, 12, torch.Generator().manual_seed(seed))
        assert len(torch.cdist(start, centres).argmin(1).unique()) >= 11  # evenly drawn ones would meet 8 of 12


def test_the_start_draws_by_squared_distance() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0]])
    counts = torch.zeros(3)
    for seed in range(600):
        start = spread_points(points, 2, torch.Generator().manual_seed(seed))
        counts[points[:, 0] == start[1, 0]] += float(start[0, 0] == 0)
    assert counts[0] == 0
    assert abs(counts[2] / counts.sum() - 0.9) < 0.07  # 9 against 1; three standard errors of about 200 draws


def test_a_start_among_equal_points() -> None:
    assert spread_points(torch.ones(5, 2), 3, torch.Generator().manual_seed(0)).shape == (3, 2)
