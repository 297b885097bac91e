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


@pytest.fixture
def tiny(tables):
    """A plan of seconds."""
    return tables.Plan(
        seeds=(0,),
        train_images=80,
        held_out=0.25,
        test_images=20,
        fc_width=8,
        epochs=1,
        fine_tuning_epochs=1,
        grid=2,
    )


@pytest.fixture
def two_nets(tables, monkeypatch):
    """A at S = 36, and D at S = 36 and [36, 56]."""
    monkeypatch.setattr(tables, "NETS", ("A", "D"))
    monkeypatch.setattr(tables, "ORDER", ("A", "D"))
    monkeypatch.setattr(
        tables, "stages", lambda net: (tables.FIXED, tables.JITTER) if net == "D" else (tables.FIXED,)
    )


def files(out):
    """What every file but the records of times holds."""
    kept = [path for path in sorted(out.rglob("*")) if path.suffix in (".npy", ".safetensors")]
    return {str(path.relative_to(out)): path.read_bytes() for path in kept}


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tables, tiny, two_nets, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    tables.run(tiny, whole, data.sample(), data.sample(train=False))
    assert not list(whole.rglob("checkpoint-*"))

    fit, evaluations = train.fit, []

    class Stop(train.Callback):
        def on_iteration(self, model, iteration, loss, error):
            if model.config == "D" and iteration == 2:
                raise KeyboardInterrupt

    def failing(model, dataset, protocol, **options):
        evaluations.append(protocol)
        if len(evaluations) == 8:
            raise KeyboardInterrupt
        return evaluate_evaluate(model, dataset, protocol, **options)

    evaluate_evaluate = evaluate.evaluate
    monkeypatch.setattr(train, "fit", lambda *a, **k: fit(*a, callbacks=[Stop()], **k))
    with pytest.raises(KeyboardInterrupt):
        tables.run(tiny, stopped, data.sample(), data.sample(train=False))
    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(tables.evaluate, "evaluate", failing)
    with pytest.raises(KeyboardInterrupt):
        tables.run(tiny, stopped, data.sample(), data.sample(train=False))
    monkeypatch.setattr(tables.evaluate, "evaluate", evaluate_evaluate)
    tables.run(tiny, stopped, data.sample(), data.sample(train=False))
    assert files(stopped) == files(whole)


def test_averages_are_those_of_evaluate_and_d_starts_from_a(tables, tiny, two_nets, tmp_path, monkeypatch):
    starts = {}

    def fit(model, *arguments, init_from=None, **options):
        name = model.config, options["recipe"].scale
        starts[name] = init_from and init_from.config, options["recipe"].lr, model.scale
        return original(model, *arguments, init_from=init_from, **options)

    original = train.fit
    monkeypatch.setattr(train, "fit", fit)
    test = tables.part(data.sample(train=False), tiny.test_images, 0)
    tables.run(tiny, tmp_path, data.sample(), data.sample(train=False))
    lr = tiny.lr
    assert starts == {
        ("A", 36): (None, lr, None),
        ("D", 36): ("A", lr, None),
        ("D", (36, 56)): (None, lr / 10, 36),
    }
    model = tables.vgg.load(tables.folder(tmp_path, 0, "D", tables.JITTER) / "model.safetensors")
    found = tables.read(tiny, tmp_path, 0)
    for how, kind in (("dense", "dense"), ("multi-crop", "multi-crop"), ("both", "combined")):
        protocol = evaluate.Protocol(kind, (36, 46, 56), grid=2)
        expected = evaluate.evaluate(model, test, protocol).posteriors
        np.testing.assert_allclose(found["D", "[36, 56]", how], expected, atol=1e-6)
    one = evaluate.evaluate(model, test, evaluate.Protocol("dense", (46,))).posteriors
    np.testing.assert_array_equal(found[tables.single("D", tables.JITTER)], one)

    results = tables.results(tiny, tmp_path, test.labels)
    assert json.loads(json.dumps(results))["plan"]["seeds"] == [0]
    text = tables.report(results)
    error = 100 * evaluate.wrong(found["D", "[36, 56]", "both"], test.labels, 1).mean()
    assert f"| D | both | 36, 46, 56 | {error:.2f} | 1 |" in text.splitlines()
    assert "| D + E | both | 36, 46, 56 | not yet | 0 |" in text.splitlines()
    assert text.endswith("0 of 1 seeds complete.")


def test_the_rows_are_those_of_the_paper(tables):
    rows = tables.table_rows()
    assert [len(table) for table in rows.values()] == [12, 10, 12, 3]
    known = {key for table in rows.values() for _, key in table}
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
