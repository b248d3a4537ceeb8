"""The real click log of the development machines."""

from pathlib import Path

import polars as pl
import pytest

from dmt.datamodules import TabularClicks

FLIGHTS = Path(__file__).parents[3] / "shared" / "data" / "flights"

pytestmark = pytest.mark.skipif(not FLIGHTS.is_dir(), reason=f"no flight log in {FLIGHTS}")


def test_flights_are_prepared_and_read(tmp_path):
    # Every eighth sample: all of them take seconds longer and show nothing more.
    path = tmp_path / "flights"
    path.mkdir()
    for split in ("train", "valid", "test"):
        pl.read_parquet(FLIGHTS / f"{split}.parquet").gather_every(8).write_parquet(path / f"{split}.parquet")
    data = TabularClicks(
        path=path,
        categorical=["carrier", "tailnum", "dep_hour", "plane_year", "dest_dst"],
        numeric=["temp", "wind_gust", "distance"],
        global_batch_size=4096,
    )
    data.prepare_data()
    data.setup()
    assert data.schema.dense == ("temp", "temp:missing", "wind_gust", "wind_gust:missing", "distance")
    sizes = {feature.name: feature.num_embeddings for feature in data.schema.categorical}
    assert 20 <= sizes["dep_hour"] <= 27
    assert sizes["tailnum"] > 1000
    labels = [float(batch.labels.sum()) for batch in data.train_dataloader()]
    assert len(labels) == len(data.train_dataloader()) == 29
    assert 0.1 < sum(labels) / 118_060 < 0.3
