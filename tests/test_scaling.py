"""`python -m benchmarks scaling`: the model of a step at its limits and by hand, and the measurement on a tiny net."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import vggnet as vgg

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model():
    sys.path.append(str(ROOT))  # last: vggnet is the one under test
    yield importlib.import_module("benchmarks.scaling_model")
    sys.path.remove(str(ROOT))


@pytest.fixture
def work(model):
    """fc8 of 100 MB, fc6 of 400 MB, a convolution of 20 MB; forward takes 10 s, backward 16."""
    layers = (
        model.Layer("fc8", 100_000_000, 1.0, 1.0),
        model.Layer("fc6", 400_000_000, 2.0, 2.0),
        model.Layer("conv", 20_000_000, 5.0, 5.0),
    )
    return model.Work(10.0, layers, update=5.2)


def over(model, count, bandwidth, latency=0.0):
    return [model.Level(count, model.Link("", bandwidth, latency))]


def test_one_replica_exchanges_nothing(model, work):
    one = model.timeline(work, over(model, 1, 1.0, 1.0))
    assert (one.step, one.exposed, one.buckets) == (26.0 + 5.2, 0.0, ())
    assert model.speedup(one, one, 1, strong=False) == 1


def test_a_link_without_limits_gives_as_many_times(model, work):
    one = model.timeline(work, [])
    for count in (2, 7, 64):
        many = model.timeline(work, over(model, count, float("inf")))
        assert many.exposed == pytest.approx(0, abs=1e-12)
        assert model.speedup(one, many, count, strong=False) == pytest.approx(count)


def test_a_step_by_hand(model, work):
    """4 replicas, 50 MB/s, 0.1 s a message: a bucket takes 2 * 3 * (MB / 4 / 50 + 0.1) s = 3.6, 12.6 and 1.2 s."""
    found = model.timeline(work, over(model, 4, 50e6, 0.1))
    assert [bucket.layers for bucket in found.buckets] == [("fc8",), ("fc6",), ("conv",)]
    assert [bucket.ready for bucket in found.buckets] == [11.0, 14.0, 21.0]
    assert [bucket.start for bucket in found.buckets] == pytest.approx([11.0, 14.6, 27.2])
    assert [bucket.end for bucket in found.buckets] == pytest.approx([14.6, 27.2, 28.4])
    # backward ends at 26, fc8's update at 27, fc6's average comes at 27.2, its update ends at 31.2, conv's at 31.4
    assert found.step == pytest.approx(31.4)
    assert found.exposed == pytest.approx(0.2)
    assert model.speedup(model.timeline(work, []), found, 4, strong=False) == pytest.approx(4 * 31.2 / 31.4)
    shares = model.shares(work, over(model, 4, 50e6, 0.1))
    assert shares == {
        ("fc8",): pytest.approx(0.2),
        ("fc6",): pytest.approx(0.2),
        ("conv",): pytest.approx(0.0),
    }


def test_without_overlap_all_is_exposed_but_what_updates_hide(model, work):
    found = model.timeline(work, over(model, 4, 50e6, 0.1), overlap=False)
    assert [bucket.start for bucket in found.buckets] == pytest.approx([26.0, 29.6, 42.2])
    assert found.exposed == pytest.approx(
        3.6 + 12.6 + 1.2 - 1.0 - 1.2
    )  # fc8's update and, of fc6's, the last exchange's time


def test_more_bandwidth_less_latency_and_overlap_never_harm(model, work):
    def exposed(bandwidth, latency, **options):
        return model.timeline(work, over(model, 4, bandwidth, latency), **options).exposed

    speeds = [exposed(bandwidth, 0.1) for bandwidth in (1e6, 1e7, 5e7, 1e8, 1e9)]
    assert speeds == sorted(speeds, reverse=True) and speeds[0] > speeds[-1]
    delays = [exposed(5e7, latency) for latency in (0.0, 0.1, 1.0, 10.0)]
    assert delays == sorted(delays) and delays[-1] > delays[0]
    for bandwidth in (1e6, 5e7, 1e9):
        assert exposed(bandwidth, 0.1) <= exposed(bandwidth, 0.1, overlap=False)


def test_groups_share_their_link(model):
    """8 devices in 4 machines: first in pairs; then all bytes go over each machine's link."""
    levels = [*over(model, 2, 1e9), *over(model, 4, 1e8)]
    assert model.exchange(1e9, levels) == pytest.approx(2 * 1 / 2 * 1.0 + 2 * 3 / 4 * 10.0)
    assert model.exchange(1e9, levels[1:]) < model.exchange(1e9, levels)


def test_small_layers_wait_for_a_bucket(model, work):
    (found,) = model.timeline(work, over(model, 2, 1e9), bucket_bytes=10**9).buckets
    assert found.layers == ("fc8", "fc6", "conv") and found.ready == 21.0


def test_averaging_on_the_cores_that_compute(model, work):
    from dataclasses import replace

    busy = replace(work, averaging=1e-9)  # 0.52 s for all
    assert model.timeline(busy, over(model, 2, float("inf"))).exposed == pytest.approx(0.52)


def test_a_work_stretched(model, work):
    twice = work.taking(52.0)
    assert twice.compute == pytest.approx(52.0) and twice.forward == 20.0 and twice.nbytes == work.nbytes


def test_a_fitted_link(model):
    link = model.fit_link("veth", [1e6, 2e7, 4e8], [0.0104, 0.2004, 4.0004])
    assert link.bandwidth == pytest.approx(1e8) and link.latency == pytest.approx(2e-4)


@pytest.fixture
def one_thread_again():
    threads = vgg.get_num_threads()
    yield
    vgg.set_num_threads(threads)


def test_a_tiny_net_measured_and_reported(model, tmp_path, capsys, one_thread_again):
    scaling = importlib.import_module("benchmarks.bench_scaling")
    net = ["--net", "A", "--size", "32", "--fc-width", "64", "--json", str(tmp_path / "scaling.json")]
    assert scaling.main(["measure", *net, "--batch", "3", "--strong"]) == 0
    assert scaling.main(["profile", *net, "--batch", "2"]) == 0
    results = json.loads((tmp_path / "scaling.json").read_text())
    (row,) = results["steps"]
    assert (row["engine"], row["scaling"], row["replicas"]) == ("devices", "strong", 2)
    assert {mode: times["images"] for mode, times in row["modes"].items()} == {"alone": 3, "off": 3, "on": 3}
    for times in row["modes"].values():
        parts = [times[part] for part in ("input", "compute", "idle", "exposed", "update")]
        assert min(parts) >= 0 and sum(parts) == pytest.approx(times["step"])
    parameters = vgg.VGG("A", input_size=32, fc_width=64, init=None).num_parameters
    assert sum(exchange["bytes"] for exchange in row["exchanges"]) == 4 * parameters

    page = tmp_path / "page.md"
    page.write_text(f"Before.\n\n{scaling.BEGIN}\n\nold\n\n{scaling.END}\nAfter.\n")
    chart = tmp_path / "chart.png"
    options = ["--json", str(tmp_path / "scaling.json"), "--update", str(page), "--chart", str(chart)]
    assert scaling.main(["report", *options]) == 0
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith(f"{scaling.END}\nAfter.\n") and "old" not in text
    assert "| A | 2 devices | strong | 3 | on |" in text and "3.75" in text
    assert chart.stat().st_size < 100_000
    page.write_text("no marks")
    assert scaling.main(["report", *options]) == 2 and "has no" in capsys.readouterr().err


def test_predictions_are_within_their_limits(model):
    tables = importlib.import_module("benchmarks.scaling_report")
    work = tables.paper_work(2)
    assert work.nbytes == 4 * 138_357_544  # net D's parameters
    assert 4 * work.compute + 4 * work.update == pytest.approx(3.75 * 14 * 86400 / 370e3, rel=0.01)
    for strong in (False, True):
        found = [
            tables.predicted(tables.A100, "tf32", [model.Level(4, link)], strong=strong)
            for link in tables.NETWORKS
        ]
        assert found == sorted(found) and 0 < found[0] < found[-1] <= 4
