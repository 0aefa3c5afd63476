from mnemos.store import bench_erase


def test_the_fields_and_that_nothing_is_left() -> None:
    measured = bench_erase.run(300)
    assert set(measured) == {
        "one_ms_p50",
        "thousand_s",
        "thousand_cpu_s",
        "thousand_plan_s",
        "namespace_s",
        "namespace_receipt_s",
        "namespace_plan_s",
        "open_s",
        "rewrite_s",
        "memories",
        "many",
        "left",
        "encrypted",
        "cpus",
    }
    assert measured["left"] == 0 and measured["encrypted"] is True
    assert (measured["memories"], measured["many"]) == (300, 60)
    assert 0 < measured["namespace_s"] < measured["namespace_receipt_s"]
    assert all(measured[name] > 0 for name in ("one_ms_p50", "thousand_s", "open_s"))
