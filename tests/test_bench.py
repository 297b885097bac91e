"""`vggnet bench`: its counts of arithmetic and bytes, and that its report is of the pass that a net makes."""

from __future__ import annotations

import pytest
import vggnet as vgg
from vggnet import bench
from vggnet.configs import layers_of

RATES = {"ms", "gflops", "peak_fraction", "floor_fraction", "gbytes_per_s"}
WORK = {"shape", "algorithm", "flops", "least_flops", "least_bytes"}


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("direct", 2 * 3 * (5 * 9) * 9 * 16 * 32),
        ("winograd2", 2 * 3 * (3 * 5) * 16 * 16 * 32),  # 3 x 5 tiles of 2 x 2 cover 5 x 9
        ("winograd4", 2 * 3 * (2 * 3) * 36 * 16 * 32),
        ("winograd6", 2 * 3 * (1 * 2) * 64 * 16 * 32),
    ],
)
def test_flops_by_hand(algorithm, expected):
    assert bench.conv2d_flops((3, 5, 9, 16), (32, 3, 3, 16), algorithm) == expected


def test_flops_of_a_pass_are_those_of_the_paper():
    """15.5 thousand million multiply-adds an image of 224 x 224 in net D, all layers together."""
    model = vgg.VGG("D", init=None)
    plan = model._plan((1, 224, 224, 3), None, training=False, keep=False)
    flops = sum(bench.work(plan, step, "forward").flops for step in plan.steps)
    assert flops == pytest.approx(2 * 15.47e9, rel=1e-3)


@pytest.fixture(scope="module")
def model():
    return vgg.VGG("A", num_classes=10, input_size=32, fc_width=16, init="he")


def test_a_forward_pass(model):
    result = bench.profile(model, 2, seconds=0)
    names = [row["layer"] for row in result["rows"]]
    assert names == [n for n in model.layer_names if n.startswith(("conv", "fc"))]
    for row in [*result["rows"], result["total"]]:
        assert row.keys() >= RATES | WORK
        assert row["flops"] >= row["least_flops"] > 0
        assert all(row[rate] > 0 for rate in RATES)
    assert {row["direction"] for row in result["rows"]} == {"forward"}
    assert result["total"]["ms"] >= sum(row["ms"] for row in result["rows"])
    assert result["total"]["images_per_s"] == pytest.approx(2000 / result["total"]["ms"])
    assert result["machine"]["peak"] > 0 < result["machine"]["bandwidth"]
    assert "traffic" not in result
    algorithms = {row["layer"]: row["algorithm"] for row in result["rows"]}
    assert algorithms["conv1_1"] in ("direct", "winograd4")
    assert algorithms["fc8"] is None


def test_a_training_step(model):
    result = bench.profile(model, 2, training=True, seconds=0)
    rows = {(row["layer"], row["direction"]): row for row in result["rows"]}
    weighted = [n for n in model.layer_names if n.startswith(("conv", "fc"))]
    for name in weighted:
        directions = {direction for layer, direction in rows if layer == name}
        expected = {"forward", "backward_weight"} | ({"backward_input"} if name != "conv1_1" else set())
        assert directions == expected
    assert list(rows)[-1] == ("sgd", "update")
    assert rows["sgd", "update"]["least_bytes"] == 5 * 4 * model.num_parameters
    assert ("loss", "forward") in rows and ("drop6", "backward_input") in rows

    # counted in two ways: by operation, and by purpose
    by_operation = sum(rows[key]["least_bytes"] for key in rows if key[0] in (*weighted, "sgd"))
    traffic = {item["what"]: item for item in result["traffic"]}
    by_purpose = sum(item["bytes"] for item in traffic.values() if item["least"])
    assert by_operation == by_purpose + traffic["dy again, for the gradient to the input"]["bytes"]


def test_traffic_of_net_d_by_hand():
    """Net D at 224, one image, against sums that the paper's table gives: pooled maps, winners, transformed weights."""
    model = vgg.VGG("D", init=None)
    plan = model._plan((1, 224, 224, 3), None, training=True, keep=True)
    traffic = {item.what: item for item in bench.traffic(plan)}
    pools = sum((side * side) * c for side, c in ((112, 64), (56, 128), (28, 256), (14, 512), (7, 512)))
    assert traffic["winners of the pools, written, and read by both gradients"].bytes == 3 * pools
    assert traffic["SGD: p, g and v read, p and v written"].bytes == 20 * 138_357_544
    linear = traffic["ReLU of linear layers: dy and y read, dy written"]
    assert linear.bytes == 3 * 4 * 2 * 4096 and not linear.least


def test_a_layer_that_runs_in_chunks_has_the_sum_of_them() -> None:
    layer = layers_of("A", num_classes=10, input_size=32, in_channels=3, fc_width=16)[0]
    clock = bench._Clock("cpu")
    for _ in range(3):
        clock(layer, "forward")
    assert clock.seconds[layer.name, "forward"] == pytest.approx(clock.total)
