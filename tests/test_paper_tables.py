"""`python -m benchmarks paper-tables` on a handful of images: its order, its averages, and that it goes on where it was."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from vggnet import data, evaluate, train

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tables():
    sys.path.append(str(ROOT))  # last: vggnet is the one under test
    yield importlib.import_module("benchmarks.bench_paper_tables")
    sys.path.remove(str(ROOT))


def shrink(tables, patch):
    """A plan of seconds: A at S = 36, and D at S = 36 and [36, 56]."""
    some = {"A": (tables.FIXED,), "D": (tables.FIXED, tables.JITTER)}
    patch.setattr(tables, "NETS", tuple(some))
    patch.setattr(tables, "ORDER", tuple(some))
    patch.setattr(tables, "stages", lambda net: some.get(net, (tables.FIXED,)))
    few = {"train_images": 40, "held_out": 0.25, "test_images": 10, "batch": 8, "fc_width": 8, "grid": 2}
    return tables.Plan(seeds=(0,), epochs=1, fine_tuning_epochs=1, **few)


@pytest.fixture
def tiny(tables, monkeypatch):
    return shrink(tables, monkeypatch)


@pytest.fixture(scope="module")
def whole(tables, tmp_path_factory):
    """The run, from beginning to end: its directory, and what `train.fit` was given for each stage."""
    starts = {}

    def fit(model, *arguments, init_from=None, **options):
        recipe = options["recipe"]
        starts[model.config, recipe.scale] = init_from and init_from.config, recipe.lr, model.scale
        return original(model, *arguments, init_from=init_from, **options)

    original, out = train.fit, tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        plan = shrink(tables, patch)
        patch.setattr(train, "fit", fit)
        tables.run(plan, out, data.sample(), data.sample(train=False))
    return out, starts


def files(out):
    """What every file holds, but for the records of times."""
    kept = [path for path in sorted(out.rglob("*")) if path.suffix in (".npy", ".safetensors")]
    return {str(path.relative_to(out)): path.read_bytes() for path in kept}


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tables, tiny, whole, tmp_path, monkeypatch):
    class Stop(train.Callback):
        def on_iteration(self, model, iteration, loss, error):
            if model.config == "D" and iteration == 2:
                raise KeyboardInterrupt

    def stopping(model, dataset, protocol, **options):
        if protocol.kind == "multi-crop":
            raise KeyboardInterrupt
        return evaluation(model, dataset, protocol, **options)

    fit, evaluation = train.fit, evaluate.evaluate
    images = data.sample(), data.sample(train=False)
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", lambda *a, **k: fit(*a, callbacks=[Stop()], **k))
        with pytest.raises(KeyboardInterrupt):
            tables.run(tiny, tmp_path, *images)
    assert len(list(tmp_path.rglob("checkpoint-*"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", stopping)
        with pytest.raises(KeyboardInterrupt):
            tables.run(tiny, tmp_path, *images)
    assert not list(tmp_path.rglob("checkpoint-*"))
    tables.run(tiny, tmp_path, *images)
    assert files(tmp_path) == files(whole[0])


def test_stages_start_where_the_papers_did(tables, tiny, whole):
    assert whole[1] == {
        ("A", 36): (None, tiny.lr, None),
        ("D", 36): ("A", tiny.lr, None),
        ("D", (36, 56)): (None, tiny.lr / 10, 36),
    }


def test_averages_are_those_of_evaluate(tables, tiny, whole):
    out, test = whole[0], tables.part(data.sample(train=False), tiny.test_images, 0)
    model = tables.vgg.load(tables.folder(out, 0, "D", tables.JITTER) / "model.safetensors")
    found = tables.read(out, 0)
    for rounding in ("floor", "ceil"):
        model.pool_rounding = rounding
        for how, kind in (("dense", "dense"), ("multi-crop", "multi-crop"), ("both", "combined")):
            protocol = evaluate.Protocol(kind, (36, 46, 56), grid=tiny.grid)
            expected = evaluate.evaluate(model, test, protocol).posteriors
            name = f"{how}, ceil" if rounding == "ceil" and kind != "multi-crop" else how
            np.testing.assert_allclose(found["D", "[36, 56]", name], expected, atol=1e-6)
    model.pool_rounding = "floor"
    one = evaluate.evaluate(model, test, evaluate.Protocol("dense", (46,))).posteriors
    np.testing.assert_array_equal(found[tables.single("D", tables.JITTER)], one)

    results = tables.results(tiny, out, test.labels)
    assert json.loads(json.dumps(results))["plan"]["seeds"] == [0]
    text = tables.report(results)
    error = 100 * evaluate.wrong(found["D", "[36, 56]", "both"], test.labels, 1).mean()
    assert f"| D | [36, 56] | both | 36, 46, 56 | {error:.2f} | 1 | 24.4 |" in text.splitlines()
    assert "| D + E | [36, 56] | both | 36, 46, 56 | not yet | 0 | 23.7 |" in text.splitlines()
    assert text.endswith("0 of 1 seeds complete.")


def test_the_rows_are_those_of_the_paper(tables):
    rows = tables.table_rows()
    assert [sum(row.table == number for row in rows) for number in (3, 4, 5, 6)] == [24, 20, 16, 5]
    last = rows[-1]
    assert (last.net, last.tested, last.paper) == ("D + E", "both, ceil", 23.7)
    known = {row.key for row in rows}
    unlisted = {key for _, *pair in tables.comparisons() for key in pair} - known
    assert not unlisted  # what is compared stands in a table


def test_another_plan_is_refused(tables, tiny, tmp_path):
    tables.claim(tiny, tmp_path)
    tables.claim(tiny, tmp_path)
    with pytest.raises(ValueError, match="another plan"):
        tables.claim(replace(tiny, lr=0.1), tmp_path)


def test_pairs(tables):
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    first, second = rng.random(500) < 0.3, rng.random(500) < 0.2
    pair = tables.Paired(500, int((first & ~second).sum()), int((second & ~first).sum()))
    difference = first.astype(float) - second
    assert pair.gain == pytest.approx(100 * difference.mean())
    assert pair.standard_error == pytest.approx(100 * difference.std() / math.sqrt(500))
    test = scipy_stats.binomtest(pair.only_first, pair.only_first + pair.only_second)
    assert pair.p == pytest.approx(test.pvalue)
    assert tables.Paired(10, 0, 0).p == 1


def test_spread(tables):
    assert tables.spread([]) == "not yet"
    assert tables.spread([1.0], signed=True) == "+1.00"
    assert tables.spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
