"""The evaluation protocols: orders of averaging against direct formulas, counting, fusion, memory."""

from __future__ import annotations

import dataclasses
import gc
import json

import numpy as np
import pytest
import vggnet as vgg
from vggnet import _C, data, evaluate
from vggnet.bench import work
from vggnet.evaluate import KINDS, Protocol
from vggnet.preprocess import rescale

SCALES = (33, 45)


def net(config: str = "A", num_classes: int = 7, **options) -> vgg.VGG:
    """A net with scores of about 1, so that no posterior is 0 or 1 and the order of averaging shows."""
    model = vgg.VGG(config, num_classes=num_classes, input_size=32, fc_width=16, init="he", **options)
    x = np.random.default_rng(0).normal(0, 60, (4, 32, 32, 3)).astype(np.float32)
    weight = model.parameters["fc8.weight"]
    weight.copy_(2 * weight.numpy() / model.forward(x).numpy().std())
    return model


@pytest.fixture(scope="module")
def model() -> vgg.VGG:
    return net(seed=3)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Sides that are no multiples of 32, both orientations, two of one shape."""
    random = np.random.default_rng(5)
    return [
        random.integers(0, 256, (*size, 3), dtype=np.uint8)
        for size in ((41, 67), (50, 33), (41, 67), (32, 32))
    ]


@pytest.fixture(scope="module")
def dataset(images: list[np.ndarray]) -> data.ArrayDataset:
    return data.ArrayDataset(images, [0, 3, 6, 1], list("abcdefg"))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def preprocessed(model: vgg.VGG, image: np.ndarray) -> np.ndarray:
    return (image.astype(np.float32) - np.array(model.preprocessing.mean, np.float32))[None]


def close(ours: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(ours, expected, rtol=0, atol=4e-6)


def dense_directly(model: vgg.VGG, image: np.ndarray, scales: tuple[int, ...]) -> np.ndarray:
    """Scores averaged over positions, soft-max, then image and mirror, then scales."""
    posteriors = []
    for scale in scales:
        x = preprocessed(model, rescale(image, scale))
        both = [
            softmax(model.dense(view).numpy().mean(axis=(1, 2), dtype=np.float64))
            for view in (x, x[:, :, ::-1].copy())
        ]
        posteriors.append((both[0] + both[1]) / 2)
    return np.mean(posteriors, axis=0)[0]


def crops_directly(model: vgg.VGG, image: np.ndarray, scales: tuple[int, ...], places) -> np.ndarray:
    """Soft-max of each crop and of its mirror, averaged; ``places(height, width)`` lists (top, left)."""
    posteriors = []
    for scale in scales:
        x = preprocessed(model, rescale(image, scale))
        each = []
        for top, left in places(*x.shape[1:3]):
            crop = x[:, top : top + 32, left : left + 32]
            each += [softmax(model.forward(view.copy()).numpy()) for view in (crop, crop[:, :, ::-1])]
        posteriors.append(np.mean(each, axis=0))
    return np.mean(posteriors, axis=0)[0]


def grid(height: int, width: int) -> list[tuple[int, int]]:
    rows, columns = ([int(np.floor(k * (side - 32) / 4 + 0.5)) for k in range(5)] for side in (height, width))
    return [(top, left) for top in rows for left in columns]


def corners(height: int, width: int) -> list[tuple[int, int]]:
    bottom, right = height - 32, width - 32
    return [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]


# ---- orders of averaging (PAPER: sections 3.2 and 4)


def test_dense_averages_scores_then_mirror_then_scales(model, images):
    ours = evaluate.posteriors(model, images, Protocol("dense", SCALES))
    for row, image in zip(ours, images, strict=True):
        close(row, dense_directly(model, image, SCALES))


def test_dense_posteriors_averaging_is_another_order(model, images):
    image = images[:1]
    x = preprocessed(model, rescale(image[0], 64))
    expected = np.mean(
        [softmax(model.dense(v).numpy()).mean(axis=(1, 2)) for v in (x, x[:, :, ::-1].copy())], axis=0
    )
    ours = evaluate.posteriors(model, image, Protocol("dense", (64,), averaging="posteriors"))
    close(ours, expected)
    assert np.abs(ours - evaluate.posteriors(model, image, Protocol("dense", (64,)))).max() > 1e-4


def test_multi_crop_averages_soft_max_outputs_of_the_grid(model, images):
    ours = evaluate.posteriors(model, images[:2], Protocol("multi-crop", SCALES))
    for row, image in zip(ours, images, strict=False):
        close(row, crops_directly(model, image, SCALES, grid))


def test_ten_crop_and_center(model, images):
    ten = evaluate.posteriors(model, images[:2], Protocol("ten-crop", (45,)))
    both = evaluate.posteriors(model, images[:2], Protocol("center", (45,), mirror=True))
    center = evaluate.posteriors(model, images[:2], Protocol("center", (45,)))
    for i, image in enumerate(images[:2]):
        close(ten[i], crops_directly(model, image, (45,), corners))
        close(both[i], crops_directly(model, image, (45,), lambda h, w: corners(h, w)[-1:]))
        x = preprocessed(model, rescale(image, 45))
        top, left = corners(*x.shape[1:3])[-1]
        close(center[i], softmax(model.forward(x[:, top : top + 32, left : left + 32].copy()).numpy())[0])


def test_combined_is_the_mean_of_dense_and_multi_crop(model, images):
    dense, crops, combined = (
        evaluate.posteriors(model, images, Protocol(kind, SCALES))
        for kind in ("dense", "multi-crop", "combined")
    )
    np.testing.assert_array_equal(combined, ((dense.astype(np.float64) + crops) / 2).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_averaged(model, images, kind):
    each = [evaluate.posteriors(model, images[:2], Protocol(kind, (scale,), grid=2)) for scale in SCALES]
    close(evaluate.posteriors(model, images[:2], Protocol(kind, SCALES, grid=2)), np.mean(each, axis=0))


def test_grid_keeps_repeats_and_rounds_half_up():
    assert evaluate.grid_offsets(256, 224, 5).tolist() == [0, 8, 16, 24, 32]
    assert evaluate.grid_offsets(34, 32, 5).tolist() == [0, 1, 1, 2, 2]  # 0, 0.5, 1, 1.5, 2
    assert evaluate.grid_offsets(224, 224, 5).tolist() == [0] * 5
    crops, weights = evaluate.crops(Protocol("multi-crop", (32,)), 32, 34, 32)
    assert len(crops) == 6  # three columns, mirrored or not; computed once each
    counted = {
        (int(left), int(flip)): round(float(w) * 50)
        for (_, left, flip), w in zip(crops, weights, strict=True)
    }
    assert counted == {(0, 0): 5, (0, 1): 5, (1, 0): 10, (1, 1): 10, (2, 0): 10, (2, 1): 10}


@pytest.mark.parametrize("kind", KINDS)
def test_result_does_not_depend_on_batches(model, images, kind):
    whole = evaluate.posteriors(model, images, Protocol(kind, (36,), grid=2, batch=64))
    single = evaluate.posteriors(model, images, Protocol(kind, (36,), grid=2, batch=3))
    close(whole, single)


def test_dense_in_bands_gives_the_same_posteriors(model):
    image = [np.random.default_rng(0).integers(0, 256, (640, 64, 3), dtype=np.uint8)]
    need = model.memory_plan(2, size=(640, 64))["maps"]
    ours = evaluate.posteriors(model, image, Protocol("dense", (64,), memory=need * 3 // 4))
    close(ours, evaluate.posteriors(model, image, Protocol("dense", (64,))))


def test_inputs_are_not_written_to(model, images):
    before = [image.copy() for image in images]
    for kind in KINDS:
        evaluate.posteriors(model, images, Protocol(kind, (32,)))
    for image, copy in zip(images, before, strict=True):
        np.testing.assert_array_equal(image, copy)


# ---- reports and counting


def test_report_counts_errors(model, dataset):
    report = evaluate.evaluate(model, dataset, Protocol("dense", SCALES))
    order = np.argsort(-report.posteriors, axis=1, kind="stable")
    assert report.top1 == 100 * np.mean(order[:, 0] != dataset.labels)
    assert report.top5 == 100 * np.mean(
        [label not in row[:5] for row, label in zip(order, dataset.labels, strict=True)]
    )
    assert report.count == 4
    assert report.broken == []
    assert report.not_finite == 0
    assert report.images_per_second == pytest.approx(4 / report.seconds)
    assert "top-1 error" in str(report)
    assert "top-5 error" not in str(report)  # of 7 classes
    many = dataclasses.replace(report, models=[report.models[0] | {"classes": 11}])
    assert evaluate.table([report, many]).count(f"{report.top5:.2f} %") >= 2
    assert "Q = 33, 45" in str(report)


def test_ties_go_to_the_smaller_index_and_nan_is_wrong():
    p = np.array([[0.2] * 5] * 3 + [[0.9, 0.1, 0, 0, np.nan]], np.float32)
    assert evaluate.wrong(p, np.array([0, 1, 4, 0]), 1).tolist() == [False, True, True, True]
    assert evaluate.wrong(p, np.array([0, 2, 3, 0]), 3).tolist() == [False, False, True, True]


def test_top5_with_fewer_classes():
    p = np.array([[0.1, 0.2, 0.7]], np.float32)
    assert not evaluate.wrong(p, np.array([0]), 5)[0]


def test_nan_weights_count_as_wrong(images):
    model = vgg.VGG("A", num_classes=3, input_size=32, fc_width=16, init=None)
    model.parameters["fc8.bias"].copy_(np.full(3, np.nan, np.float32))
    report = evaluate.evaluate(
        model, data.ArrayDataset(images, [0, 1, 2, 0], list("abc")), Protocol("center", (32,))
    )
    assert report.top1 == report.top5 == 100
    assert report.not_finite == 4


class Broken(data.ArrayDataset):
    """Some images cannot be read."""

    def __init__(self, n: int, broken: tuple[int, ...]) -> None:
        random = np.random.default_rng(1)
        super().__init__(
            random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.zeros(n, int), list("abcdefg")
        )
        self.broken = broken

    def image(self, i: int) -> np.ndarray:
        if i in self.broken:
            raise vgg.ImageError(f"picture {i}: no pixels in it")
        return super().image(i)


def test_broken_images_are_named_and_wrong(model):
    report = evaluate.evaluate(model, Broken(200, (17, 199)), Protocol("center", (32,)))
    good = np.delete(report.posteriors, (17, 199), axis=0)
    assert report.top1 == 100 * (2 + np.sum(good.argmax(axis=1) != 0)) / 200
    assert [item.name for item in report.broken] == ["image 17", "image 199"]
    assert "no pixels" in report.broken[0].reason
    assert "2 broken" in str(report)
    assert np.isnan(report.posteriors[17]).all()
    assert report.not_finite == 0
    again = evaluate.fuse([report, report])
    assert (again.top1, again.top5, again.not_finite) == (report.top1, report.top5, 0)


def test_too_many_broken_images_or_strict_raise(model):
    with pytest.raises(vgg.ImageError):
        evaluate.evaluate(model, Broken(100, (3, 4)), Protocol("center", (32,)))
    with pytest.raises(vgg.ImageError, match="picture 3"):
        evaluate.evaluate(model, Broken(200, (3,)), Protocol("center", (32,)), strict=True)


def test_json_round_trip(model, dataset):
    report = evaluate.evaluate(model, dataset, Protocol("combined", SCALES, grid=2), keep_posteriors=False)
    assert report.posteriors is None
    values = json.loads(report.to_json())
    assert values == report.to_dict()
    told = ("description", "inferences")
    fields = {k: v for k, v in values["protocols"][0].items() if k not in told}
    assert Protocol(**fields) == report.protocol
    assert (
        values["models"][0] | {"config": "A", "pool_rounding": "floor", "input_size": 32}
        == values["models"][0]
    )
    assert values["protocols"][0]["filter"] == "bicubic"
    assert values["version"] == vgg.__version__


def test_progress_reaches_the_end(model, dataset):
    seen = []
    evaluate.evaluate(
        model, dataset, Protocol("center", (32,), batch=1), progress=lambda done, n: seen.append((done, n))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


# ---- fusion


def test_fusion_is_the_mean_of_posteriors(model, dataset):
    other = net("B", seed=8)
    protocol, second = Protocol("dense", (45,)), Protocol("ten-crop", (32,))
    alone = [evaluate.evaluate(model, dataset, protocol), evaluate.evaluate(other, dataset, second)]
    together = evaluate.evaluate([model, (other, second)], dataset, protocol)
    np.testing.assert_array_equal(
        together.posteriors,
        np.mean([r.posteriors.astype(np.float64) for r in alone], axis=0).astype(np.float32),
    )
    fused = evaluate.fuse(alone)
    np.testing.assert_array_equal(fused.posteriors, together.posteriors)
    assert (fused.top1, fused.top5, fused.protocol) == (together.top1, together.top5, together.protocol)
    assert fused.name == "A dense + B ten-crop"


def test_fusing_counts_every_net_once_however_they_are_grouped(model, dataset):
    reports = [evaluate.evaluate(model, dataset, Protocol("center", (scale,))) for scale in (32, 40, 48)]
    nested = evaluate.fuse([evaluate.fuse(reports[:2]), reports[2]])
    close(nested.posteriors, evaluate.fuse(reports).posteriors)
    assert nested.protocols == [r.protocol for r in reports]


def test_stored_reports_fuse_as_those_in_memory(model, tmp_path):
    dataset = Broken(200, (17, 199))
    protocols = [Protocol("center", (32,)), Protocol("center", (40,), filter="box", mirror=True)]
    reports = [evaluate.evaluate(model, dataset, p) for p in protocols]
    for i, report in enumerate(reports):
        report.save(tmp_path / f"{i}.npz")
    loaded = [evaluate.Report.load(tmp_path / f"{i}.npz") for i in range(2)]
    for report, again in zip(reports, loaded, strict=True):
        assert again.to_dict() == report.to_dict()
        assert (again.broken, again.protocols) == (report.broken, report.protocols)
        assert again.posteriors.tobytes() == report.posteriors.tobytes()
        np.testing.assert_array_equal(again.labels, report.labels)
    one, other = evaluate.fuse(reports), evaluate.fuse(loaded)
    assert one.to_dict() == other.to_dict()
    assert one.posteriors.tobytes() == other.posteriors.tobytes()
    row = evaluate.preset("table3:A").scaled(32)
    marked = evaluate.evaluate(model, dataset, row)
    marked.save(tmp_path / "row.npz")
    assert evaluate.Report.load(tmp_path / "row.npz").paper == row
    box = dataclasses.replace(row, protocol=dataclasses.replace(row.protocol, filter="box"))
    marked = evaluate.evaluate(model, dataset, box)
    marked.save(tmp_path / "box.npz")
    assert evaluate.Report.load(tmp_path / "box.npz").to_dict() == marked.to_dict()
    assert marked.beside(row).to_dict() == marked.to_dict()


def test_what_is_not_a_stored_report_is_named(model, dataset, tmp_path):
    good = tmp_path / "good.npz"
    report = evaluate.evaluate(model, dataset, Protocol("center", (32,)))
    report.save(good)
    with pytest.raises(ValueError, match="no posteriors"):
        dataclasses.replace(report, posteriors=None).save(tmp_path / "bare.npz")
    assert not (tmp_path / "bare.npz").exists()
    with pytest.raises(FileNotFoundError, match="absent"):
        evaluate.Report.load(tmp_path / "absent.npz")
    with np.load(good) as arrays:
        contents = dict(arrays)
    text = json.loads(str(contents["report"]))
    cases = {
        "cut": good.read_bytes()[:-200],
        "flipped": good.read_bytes().replace(
            contents["posteriors"].tobytes(), bytes(contents["posteriors"].nbytes)
        ),
        "empty": b"",
        "other": {"x": np.zeros(3)},
        "fewer": contents | {"labels": contents["labels"][:-1]},
        "wider": contents | {"posteriors": contents["posteriors"].astype(np.float64)},
        "version": contents | {"report": np.array(json.dumps(text | {"format": "vggnet-report-9"}))},
        "field": contents
        | {"report": np.array(json.dumps(text | {"protocols": [{"kind": "dense", "new": 1}]}))},
        "pickle": contents | {"report": np.array({"a": 1}, object)},
    }
    for name, case in cases.items():
        path = tmp_path / f"{name}.npz"
        if isinstance(case, bytes):
            path.write_bytes(case)
        else:
            np.savez(path, **case)
        with pytest.raises(vgg.VggError, match=rf"{name}\.npz: no posteriors that .* or damaged"):
            evaluate.Report.load(path)


def test_compare_shares_one_pass(model, dataset, monkeypatch):
    reads = []
    monkeypatch.setattr(dataset, "image", lambda i, read=dataset.image: (reads.append(i), read(i))[1])
    passes = []
    monkeypatch.setattr(
        model, "dense", lambda x, dense=model.dense, **k: (passes.append(x.shape[0]), dense(x, **k))[1]
    )
    kinds = ("dense", "multi-crop", "combined")
    reports = evaluate.compare([(model, Protocol(kind, (45,), grid=2)) for kind in kinds], dataset)
    assert sorted(reads) == [0, 1, 2, 3]
    # An image and its mirror share a pass, so do the two of one shape; once for "dense" and "combined" both.
    assert sorted(passes) == [2, 2, 4]
    np.testing.assert_array_equal(evaluate.fuse(reports[:2]).posteriors, reports[2].posteriors)


def test_fuse_needs_posteriors_of_the_same_images(model, dataset):
    report = evaluate.evaluate(model, dataset, Protocol("center", (32,)))
    bare = evaluate.evaluate(model, dataset, Protocol("center", (32,)), keep_posteriors=False)
    part = evaluate.evaluate(model, data.Subset(dataset, [0, 1]), Protocol("center", (32,)))
    turned = evaluate.evaluate(model, data.Subset(dataset, [1, 0, 2, 3]), Protocol("center", (32,)))
    renamed = evaluate.evaluate(
        model,
        data.ArrayDataset(
            [dataset.image(i) for i in range(4)], dataset.labels, list("abcdefg"), names=list("wxyz")
        ),
        Protocol("center", (32,)),
    )
    facts = report.models[0]
    report.models = [facts | {"classes_sha256": "1"}]
    reordered = dataclasses.replace(report, models=[facts | {"classes_sha256": "2"}])
    for reports, message in (
        ([report, bare], "no posteriors"),
        ([report, part], "expected equal shapes"),
        ([report, turned], "different labels"),
        ([report, renamed], "different names"),
        ([report, reordered], "same in another order"),
        ([], "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.fuse(reports)


# ---- classes


def test_labels_follow_class_names(images):
    model = vgg.VGG("A", num_classes=3, input_size=32, fc_width=16, init="he", classes=["cat", "dog", "eel"])
    protocol = Protocol("center", (32,))
    report = evaluate.evaluate(model, data.ArrayDataset(images, [0, 1, 0, 1], ["eel", "cat"]), protocol)
    assert report.labels.tolist() == [2, 0, 2, 0]
    with pytest.raises(ValueError, match="'fox'"):
        evaluate.evaluate(model, data.ArrayDataset(images, [0, 1, 0, 1], ["cat", "fox"]), protocol)
    with pytest.raises(ValueError, match="2 classes, the model 3"):
        evaluate.evaluate(model, data.ArrayDataset(images, [0, 1, 0, 1], ["x", "y"]), protocol)
    by_number = evaluate.evaluate(model, data.ArrayDataset(images, [0, 1, 0, 1], ["x", "y", "z"]), protocol)
    assert by_number.labels.tolist() == [0, 1, 0, 1]
    swapped = vgg.VGG(
        "A", num_classes=3, input_size=32, fc_width=16, init="he", classes=["dog", "cat", "eel"]
    )
    with pytest.raises(ValueError, match="another order"):
        evaluate.evaluate([model, swapped], data.ArrayDataset(images, [0, 1, 0, 1], ["eel", "cat"]), protocol)


# ---- cost


def test_flops_of_protocols(model):
    d = vgg.VGG("D", init=None)
    crop = evaluate.flops(d, Protocol("center", (256,)), 375, 500)
    assert crop == 2 * 15_470_264_320  # of the paper's net D at 224 x 224: 15.47 G multiply-adds
    assert evaluate.flops(d, Protocol("multi-crop"), 375, 500) == 150 * crop
    assert evaluate.flops(d, Protocol("ten-crop", (256,)), 500, 375) == 10 * crop
    one = evaluate.flops(d, Protocol("multi-crop", (224,)), 300, 300)  # all crops at one place
    assert one == 2 * crop == evaluate.flops(d, Protocol("dense", (224,)), 300, 300)
    both = evaluate.flops(d, Protocol("combined"), 375, 500)
    assert both == evaluate.flops(d, Protocol("dense"), 375, 500) + 150 * crop

    plan = model._plan((1, 49, 70, 3), ["pool5"], training=False, keep=False)
    trunk = sum(work(plan, step, "forward").flops for step in plan.steps)
    head = 2 * (512 * 16 + 16 * 16 + 16 * 7) * 1 * 2  # at 1 x 2 positions
    assert evaluate.flops(model, Protocol("dense", (49,), mirror=False), 49, 70) == trunk + head
    with pytest.raises(ValueError, match="at least the model's input size"):
        evaluate.flops(model, Protocol("dense", (31,)), 49, 70)


# ---- memory


def test_batches_are_bounded(model, dataset, monkeypatch):
    sizes = []
    monkeypatch.setattr(model, "forward", lambda x, run=model.forward: (sizes.append(x.shape[0]), run(x))[1])
    evaluate.evaluate(model, dataset, Protocol("multi-crop", SCALES, grid=2, batch=7))
    assert max(sizes) == 7
    assert set(sizes[:-1]) == {7}


def test_memory_does_not_grow_with_the_data(model):
    def peak(n: int) -> int:
        images = np.random.default_rng(2).integers(0, 256, (n, 48, 48, 3), dtype=np.uint8)
        gc.collect()
        _C.reset_peak_memory()
        before = _C.memory_stats()["current"]
        for kind in ("multi-crop", "dense"):
            evaluate.posteriors(model, images, Protocol(kind, (48,), grid=2, batch=4))
        return _C.memory_stats()["peak"] - before

    assert peak(8) == peak(2)


# ---- protocols


def test_paper_and_for_model(model):
    assert Protocol.paper("dense").scales == (256, 384, 512)
    assert Protocol.paper("combined", 384) == Protocol("combined", (384,))
    assert Protocol.for_model("dense", model).scales == (37, 55, 73)
    assert Protocol.for_model("center", model).scales == (37,)
    assert Protocol.for_model("multi-crop", model, [40]).scales == (40,)
    model224 = type("Net", (), {"input_size": 224, "scale": None})()
    assert Protocol.for_model("combined", model224) == Protocol.paper("combined")
    for scale, several, single in (  # the paper's section 4
        (256, (224, 256, 288), (256,)),
        (384, (352, 384, 416), (384,)),
        ((256, 512), (256, 384, 512), (384,)),
        (230, (230,), (230,)),
    ):
        model224.scale = scale
        assert Protocol.for_model("dense", model224).scales == several
        assert Protocol.for_model("center", model224).scales == single
    assert not Protocol("center").mirror
    assert Protocol("dense").mirror


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"kind": "densely"}, ValueError, "kind is 'densely'"),
        ({"scales": ()}, ValueError, "scales"),
        ({"scales": (32, 32)}, ValueError, "different"),
        ({"scales": (0,)}, ValueError, "at least 1"),
        ({"scales": (32.0,)}, TypeError, "int"),
        ({"scales": "256"}, TypeError, "scales"),
        ({"grid": 1}, ValueError, "grid"),
        ({"mirror": 1}, TypeError, "mirror"),
        ({"averaging": "sum"}, ValueError, "averaging"),
        ({"filter": "nearest"}, ValueError, "filter"),
        ({"batch": 0}, ValueError, "batch"),
        ({"memory": True}, TypeError, "memory"),
    ],
)
def test_fields_are_checked(fields, error, message):
    with pytest.raises(error, match=message):
        Protocol(**({"kind": "dense"} | fields))


def test_scales_below_the_input_size(model, images):
    with pytest.raises(ValueError, match="at least the model's input size, 32"):
        evaluate.posteriors(model, images, Protocol("dense", (31, 64)))


@pytest.mark.parametrize("kind", KINDS)
def test_description_names_every_choice(kind):
    text = Protocol(kind, (40, 50), filter="lanczos").describe()
    for part in (kind, "40, 50", "lanczos", "Our inferences", "averaged over the scales"):
        assert part in text
    assert ("sum-pooled" in text) == (kind in ("dense", "combined"))
    assert ("linspace" in text) == (kind in ("multi-crop", "combined"))


# ---- predict


def test_predict_goes_through_the_same_core(model, images):
    p = evaluate.posteriors(model, images, Protocol.for_model("dense", model))
    answers = model.predict(images, top=2)
    for row, answer in zip(p, answers, strict=True):
        best = int(row.argmax())
        assert answer[0] == (best, float(row[best]))
        assert len(answer) == 2
