"""The rows of the paper's tables as presets, against a table typed by hand from the paper."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import vggnet as vgg
from vggnet import data, evaluate
from vggnet.evaluate import Protocol, paper_rows, preset

J = (256, 512)
# name, table, nets, S, tested, Q, top-1 and top-5 error on ILSVRC-2012's validation images (paper, tables 3 to 6)
BY_HAND = [
    ("table3:A", 3, ("A",), 256, "dense", (256,), 29.6, 10.4),
    ("table3:A-LRN", 3, ("A-LRN",), 256, "dense", (256,), 29.7, 10.5),
    ("table3:B", 3, ("B",), 256, "dense", (256,), 28.7, 9.9),
    ("table3:C:256", 3, ("C",), 256, "dense", (256,), 28.1, 9.4),
    ("table3:C:384", 3, ("C",), 384, "dense", (384,), 28.1, 9.3),
    ("table3:C:jitter", 3, ("C",), J, "dense", (384,), 27.3, 8.8),
    ("table3:D:256", 3, ("D",), 256, "dense", (256,), 27.0, 8.8),
    ("table3:D:384", 3, ("D",), 384, "dense", (384,), 26.8, 8.7),
    ("table3:D:jitter", 3, ("D",), J, "dense", (384,), 25.6, 8.1),
    ("table3:E:256", 3, ("E",), 256, "dense", (256,), 27.3, 9.0),
    ("table3:E:384", 3, ("E",), 384, "dense", (384,), 26.9, 8.7),
    ("table3:E:jitter", 3, ("E",), J, "dense", (384,), 25.5, 8.0),
    ("table4:B", 4, ("B",), 256, "dense", (224, 256, 288), 28.2, 9.6),
    ("table4:C:256", 4, ("C",), 256, "dense", (224, 256, 288), 27.7, 9.2),
    ("table4:C:384", 4, ("C",), 384, "dense", (352, 384, 416), 27.8, 9.2),
    ("table4:C:jitter", 4, ("C",), J, "dense", (256, 384, 512), 26.3, 8.2),
    ("table4:D:256", 4, ("D",), 256, "dense", (224, 256, 288), 26.6, 8.6),
    ("table4:D:384", 4, ("D",), 384, "dense", (352, 384, 416), 26.5, 8.6),
    ("table4:D:jitter", 4, ("D",), J, "dense", (256, 384, 512), 24.8, 7.5),
    ("table4:E:256", 4, ("E",), 256, "dense", (224, 256, 288), 26.9, 8.7),
    ("table4:E:384", 4, ("E",), 384, "dense", (352, 384, 416), 26.7, 8.6),
    ("table4:E:jitter", 4, ("E",), J, "dense", (256, 384, 512), 24.8, 7.5),
    ("table5:D:dense", 5, ("D",), J, "dense", (256, 384, 512), 24.8, 7.5),
    ("table5:D:multi-crop", 5, ("D",), J, "multi-crop", (256, 384, 512), 24.6, 7.5),
    ("table5:D:both", 5, ("D",), J, "combined", (256, 384, 512), 24.4, 7.2),
    ("table5:E:dense", 5, ("E",), J, "dense", (256, 384, 512), 24.8, 7.5),
    ("table5:E:multi-crop", 5, ("E",), J, "multi-crop", (256, 384, 512), 24.6, 7.4),
    ("table5:E:both", 5, ("E",), J, "combined", (256, 384, 512), 24.4, 7.1),
    ("table6:D+E:dense", 6, ("D", "E"), J, "dense", (256, 384, 512), 24.0, 7.1),
    ("table6:D+E:multi-crop", 6, ("D", "E"), J, "multi-crop", (256, 384, 512), 23.9, 7.2),
    ("table6:D+E:both", 6, ("D", "E"), J, "combined", (256, 384, 512), 23.7, 6.8),
]
NAMES = [row[0] for row in BY_HAND]

LONGER_SIDE = "longer side of the rescaled image = floor(longer * Q / shorter + 0.5)"
FILTER = "rescaled by Pillow's antialiased bicubic filter"
POOLED = "'sum-pooled' means averaged over positions, before the soft-max"
GRID = "crops start at floor(linspace(0, side - crop, 5) + 0.5) on each axis, repeated ones count"
INFERENCES = {
    "dense": [LONGER_SIDE, FILTER, POOLED],
    "multi-crop": [LONGER_SIDE, FILTER, GRID],
    "combined": [LONGER_SIDE, FILTER, POOLED, GRID],
}


def test_there_are_all_rows_and_no_others():
    assert [row.name for row in paper_rows()] == NAMES


@pytest.mark.parametrize("row", BY_HAND, ids=NAMES)
def test_row(row):
    name, table, nets, scale, kind, scales, top1, top5 = row
    found = preset(name)
    assert found in paper_rows()
    assert (found.name, found.table, found.nets, found.train_scale) == (name, table, nets, scale)
    assert (found.top1, found.top5, found.input_size) == (top1, top5, 224)
    assert {field.name for field in dataclasses.fields(Protocol)} == {
        *("kind", "scales", "mirror", "grid", "averaging", "filter", "batch", "memory")
    }
    p = found.protocol
    assert (p.kind, p.scales, p.mirror, p.grid, p.averaging) == (kind, scales, True, 5, "scores")
    assert (p.filter, p.batch, p.memory) == ("bicubic", 32, 1 << 30)
    assert p.inferences() == INFERENCES[kind]
    told = json.loads(json.dumps(found.to_dict()))
    assert told == {
        "name": name,
        "table": table,
        "nets": list(nets),
        "train_scale": scale if isinstance(scale, int) else list(scale),
        "kind": kind,
        "scales": list(scales),
        "input_size": 224,
        "top1": top1,
        "top5": top5,
        "inferences": INFERENCES[kind],
    }
    text = found.describe()
    for part in (f"table {table}", name, *nets, kind, ", ".join(map(str, scales)), f"{top1} %", f"{top5} %"):
        assert part in text


def test_a_wrong_name_tells_the_nearest():
    with pytest.raises(ValueError, match=r"'table4:D:jiter'; near to it: table4:D:jitter"):
        preset("table4:D:jiter")
    with pytest.raises(ValueError, match="near to it"):
        preset("")


# ---- nets of another input size

SCALED = {  # name: S and Q at 32 x 32, from scale / 7 rounded half up
    "table3:A": (37, (37,)),
    "table3:D:384": (55, (55,)),
    "table3:E:jitter": ((37, 73), (55,)),
    "table4:B": (37, (32, 37, 41)),
    "table4:C:384": (55, (50, 55, 59)),
    "table4:D:jitter": ((37, 73), (37, 55, 73)),
    "table6:D+E:both": ((37, 73), (37, 55, 73)),
}


@pytest.mark.parametrize("name", SCALED)
def test_scaled(name):
    row, small = preset(name), preset(name).scaled(32)
    assert (small.train_scale, small.protocol.scales) == SCALED[name]
    assert small.input_size == 32
    assert small.scaled(224) == row  # scales come from the paper's each time
    protocol = dataclasses.replace(row.protocol, scales=small.protocol.scales)
    assert small == dataclasses.replace(row, train_scale=small.train_scale, protocol=protocol, input_size=32)
    text = small.describe()
    for part in (
        row.describe(),
        "in proportion",
        "32 instead of 224",
        "Q = " + ", ".join(map(str, SCALED[name][1])),
    ):
        assert part in text


# ---- which nets


def net(config: str, scale=None, seed=0, **options) -> vgg.VGG:
    options = {"num_classes": 12, "input_size": 32, "fc_width": 16, "init": "he"} | options
    return vgg.VGG(config, seed=seed, scale=scale, **options)


@pytest.mark.parametrize(
    ("name", "nets", "message"),
    [
        ("table4:D:jitter", [("A", None)], "needs net D trained with S from 37 to 73; given: net A"),
        ("table4:D:jitter", [("D", 37)], r"given: net D \(S = 37\)"),
        ("table4:D:jitter", [("D", (37, 70))], r"given: net D \(S from 37 to 70\)"),
        ("table4:D:256", [("D", (37, 73))], "needs net D trained with S = 37; given"),
        ("table4:D:256", [("D", 37), ("D", 37)], "given: net D .*, net D"),
        ("table6:D+E:both", [("D", None)], "needs net D and net E trained with"),
        ("table6:D+E:both", [("D", None), ("D", None)], "net D and net E"),
        ("table6:D+E:both", [], "net D and net E"),
    ],
)
def test_the_wrong_net_is_named(name, nets, message):
    models = [net(config, scale) for config, scale in nets]
    with pytest.raises(ValueError, match=message):
        preset(name).scaled(32).pairs(models)


def test_scales_are_never_in_proportion_unasked():
    with pytest.raises(ValueError, match=r"of input size 224; that of net A is 32.*scaled\(32\).*--scaled"):
        preset("table3:A").pairs(net("A"))


def test_a_row_brings_its_protocol(dataset):
    with pytest.raises(TypeError, match="brings its protocol"):
        evaluate.evaluate([(net("A"), "dense")], dataset, preset("table3:A").scaled(32))


# ---- reports


@pytest.fixture(scope="module")
def dataset() -> data.ArrayDataset:
    random = np.random.default_rng(5)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((41, 67), (50, 33), (41, 67))]
    return data.ArrayDataset(images, [0, 3, 6], [f"class {i}" for i in range(12)])


def test_a_report_tells_the_paper_s_errors_beside_its_own(dataset):
    model = net("B", 37)
    row = preset("table4:B").scaled(32)
    report = evaluate.evaluate(model, dataset, row)
    plain = evaluate.evaluate(model, dataset, Protocol("dense", (32, 37, 41)))
    assert report.paper == row and plain.paper is None
    assert report.posteriors.tobytes() == plain.posteriors.tobytes()
    lines = str(report).splitlines()
    assert lines[0].split() == [
        "Q",
        "top-1",
        "error",
        "paper",
        "top-5",
        "error",
        "paper",
        "images",
        "images/s",
    ]
    errors = f"{report.top1:.2f} % 28.2 % {report.top5:.2f} % 9.6 %"
    assert errors in " ".join(lines[2].split())
    assert row.describe() in str(report)
    assert "does not tell the S" not in str(report)
    told = report.to_dict()
    assert told["paper"] | {"inferences": told["protocols"][0]["inferences"]} == row.to_dict()
    assert "paper" not in plain.to_dict() and "paper" not in str(plain).splitlines()[0]
    unknown = evaluate.evaluate(net("B"), dataset, row)
    assert "does not tell the S" in str(unknown)


def test_rows_of_several_nets_in_one_pass(dataset):
    d, e = net("D", (37, 73), 1), net("E", [37, 73], 2)
    rows = [preset(name).scaled(32) for name in ("table4:D:jitter", "table6:D+E:dense")]
    single, fused = evaluate.compare([(d, rows[0]), ([e, d], rows[1])], dataset)
    assert (single.paper, fused.paper) == tuple(rows)
    assert [m["config"] for m in fused.models] == ["E", "D"]
    e_alone = evaluate.evaluate(e, dataset, rows[1].protocol)
    again = evaluate.fuse([e_alone, single])
    assert again.paper is None
    assert again.posteriors.tobytes() == fused.posteriors.tobytes()
    assert again.beside(rows[1]).paper == rows[1]
    assert "24.0 %" in evaluate.table([single, fused, e_alone])


def test_fused_posteriors_must_be_those_of_the_row(dataset):
    a_net = evaluate.evaluate(net("D"), dataset, Protocol("center", (32,)))

    def report(config, kind, scales=(37, 55, 73), **options):
        """As an evaluation would make it, but for the posteriors."""
        facts = a_net.models[0] | {"config": config}
        return dataclasses.replace(a_net, models=[facts], protocols=[Protocol(kind, scales, **options)])

    def fused(*entries):
        return evaluate.fuse([report(*entry) for entry in entries])

    both = preset("table6:D+E:both").scaled(32)
    dense, crops, combined = ("D", "dense"), ("D", "multi-crop"), ("D", "combined")
    four = fused(dense, crops, ("E", "dense"), ("E", "multi-crop"))
    two = fused(combined, ("E", "combined"))
    three = evaluate.fuse([fused(dense, crops), fused(("E", "dense"), ("E", "multi-crop"))])
    for one in (four, two, three):
        assert one.beside(both).paper == both
    fused(dense, crops).beside(preset("table5:D:both").scaled(32))
    report("D", "dense", filter="box", batch=2).beside(preset("table4:D:jitter").scaled(32))
    for one, message in (
        (fused(dense, crops, ("E", "combined")), "is the mean of D and E combined"),  # D counts twice
        (fused(dense, ("E", "dense")), "these posteriors are of D dense at Q = 37, 55, 73; E dense"),
        (fused(combined, combined), "needs net D and net E"),
    ):
        with pytest.raises(ValueError, match=message):
            one.beside(both)
    for other in (report("D", "dense", (37, 55, 74)), report("D", "dense", mirror=False)):
        with pytest.raises(ValueError, match="is the mean of D dense at Q = 37, 55, 73"):
            other.beside(preset("table4:D:jitter").scaled(32))
