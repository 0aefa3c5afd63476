from pathlib import Path

from mnemos.store import bench_ingest


def test_the_fields_and_that_both_sides_wrote(tmp_path: Path) -> None:
    measured = bench_ingest.run(memories=6, tokens=20, folder=tmp_path)
    assert set(measured) == {
        "ratio",
        "store_mb_per_s",
        "plain_mb_per_s",
        "memories_per_s",
        "bytes",
        "memories",
        "tokens",
        "group",
        "runs",
        "encrypted",
        "cpus",
    }
    assert measured["bytes"] > 6 * 20 * 7300
    assert all(measured[name] > 0 for name in ("ratio", "store_mb_per_s", "plain_mb_per_s"))
    assert not list(tmp_path.iterdir())
