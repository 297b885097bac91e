"""The paper's chain of trainings: its table, its plan and costs, and that its stages start from one another."""

import dataclasses
import json
import math
import re
import signal

import numpy as np
import pytest
import vggnet as vgg
from vggnet import bench, train
from vggnet.checkpoint import read_tensors
from vggnet.train import Recipe, paper_stages, plan_stages, run_stages, saved_stages, stage_costs

import ilsvrc_tree
from test_train import CLASSES, Signal, assert_equal_weights, patterns

NET = {
    "config": "B",
    "num_classes": 4,
    "classes": CLASSES,
    "input_size": 32,
    "in_channels": 1,
    "fc_width": 16,
    "mean": [120.0],
    "seed": 3,
}
SHORT = {"batch": 8, "lr": 0.002, "epochs": 1, "rgb_shift": "deviation", "holdout": 0.25, "seed": 5}
SCALES = (34, 36, 40)


# ---- the paper's table, typed by hand from section 3.1

PAPER = {
    "batch": 256,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "lr": 1e-2,
    "lr_factor": 0.1,  # "decreased by a factor of 10"
    "lr_drops": 3,  # "decreased 3 times"
    "epochs": 74,
    "iterations": 370_000,
    "scale": 256,
    "mirror": True,
    "rgb_shift": "eigenvalue",  # Krizhevsky's
}
SILENT = {  # what the paper leaves open, with the values that change nothing or are our inferences
    "micro_batch": None,
    "bias_weight_decay": None,
    "bias_lr_multiplier": 1.0,
    "plateau_patience": 3,
    "plateau_threshold": 0.1,
    "filter": "bicubic",
    "freeze": (),
    "lr_multipliers": {},
    "holdout": 0.1,
    "stuck_iterations": 500,
    "compress": None,
    "seed": 0,
}
STAGE_TABLE = [  # stage, net, S, lr, starts from
    ("A", "A", 256, 1e-2, "random"),
    ("256", "D", 256, 1e-2, "A"),
    ("384", "D", 384, 1e-3, "weights"),
    ("jitter", "D", (256, 512), 1e-3, "weights"),
]


def test_every_field_of_the_recipe_is_the_papers_or_named_as_open():
    assert dataclasses.asdict(Recipe.paper(256)) == PAPER | SILENT
    assert dataclasses.asdict(Recipe.paper(384)) == PAPER | SILENT | {"scale": 384, "lr": 1e-3}
    jitter = PAPER | SILENT | {"scale": (256, 512), "lr": 1e-3}
    assert dataclasses.asdict(Recipe.paper((256, 512))) == jitter


def test_every_stage_is_the_papers():
    plan = plan_stages({"config": "D", "input_size": 224})
    assert len(plan) == len(STAGE_TABLE)
    for stage, (name, net, scale, lr, start) in zip(plan, STAGE_TABLE, strict=True):
        assert (stage.name, stage.model["config"], stage.start) == (name, net, start)
        assert dataclasses.asdict(stage.recipe) == PAPER | SILENT | {"scale": scale, "lr": lr}
        assert stage.recipe == Recipe.paper(scale)
    tables = {  # rows of tables 3 and 4: nets and the S they were trained at
        "A": ("256",),
        "A-LRN": ("256",),
        "B": ("A", "256"),
        "C": ("A", "256", "384", "jitter"),
        "D": ("A", "256", "384", "jitter"),
        "E": ("A", "256", "384", "jitter"),
    }
    assert {net: paper_stages(net) for net in tables} == tables
    assert paper_stages("E", "xavier") == ("256", "384", "jitter")
    assert vgg.VGG("A", num_classes=2, input_size=32, fc_width=8).to_dict()["dropout"] == 0.5


# ---- the plan


def test_a_plan_in_miniature():
    plan = plan_stages({**NET, "init": "xavier", "config": "E"}, batch=16, lr=0.005)
    assert [(s.name, s.start, s.recipe.scale) for s in plan] == [
        ("256", "random", 37),
        ("384", "weights", 55),
        ("jitter", "weights", (37, 73)),
    ]
    assert [s.recipe.lr for s in plan] == pytest.approx([0.005, 0.0005, 0.0005])
    assert {s.recipe.batch for s in plan} == {16}
    plan = plan_stages({**NET, "config": "A-LRN"}, ("A", "256", "jitter"), scales=(36, 44, 56))
    assert [(s.model["config"], s.start, s.recipe.scale) for s in plan] == [
        ("A", "random", 36),
        ("A-LRN", "A", 36),
        ("A-LRN", "weights", (36, 56)),
    ]
    plan = plan_stages(NET, ("256", "384"), init_from="A")
    assert [s.start for s in plan] == ["A", "weights"]
    plan = plan_stages(NET, ("384",), init_from="B")
    assert [(s.start, s.recipe.lr) for s in plan] == [("weights", pytest.approx(1e-3))]


@pytest.mark.parametrize(
    ("net", "stages", "options", "message"),
    [
        ("D", ("256", "A"), {}, "expected some of A, 256, 384, jitter, in this order"),
        ("D", ("256", "256"), {}, "in this order"),
        ("D", ("512",), {}, "stages is ('512',)"),
        ("D", (), {}, "stages is ()"),
        ("A", ("A", "256"), {}, 'begin with "256"'),
        ("D", ("A",), {}, "make it the net"),
        ("D", ("384", "jitter"), {}, 'begins with "384"'),
        ("D", None, {"scales": (40, 36, 50)}, "scales is (40, 36, 50)"),
        ("D", None, {"batch": 0}, "Recipe: batch is 0"),
    ],
)
def test_plans_that_cannot_be(net, stages, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plan_stages({**NET, "config": net}, stages, **options)


# ---- costs


def test_costs_are_counted():
    plan = plan_stages(NET, ("A", "256"), scales=SCALES, **{**SHORT, "epochs": 3, "micro_batch": 4})
    costs = stage_costs(plan, 27, images_per_second=2.0, keep=1)
    a, b = costs
    assert [(c.images, c.iterations) for c in costs] == [(81, 12)] * 2  # 8, 8, 8 and 3 images, three times
    model = vgg.VGG(**NET)
    flop = 0  # forward; both gradients take as much each, but for the first layer's
    side = 32
    for layer in model.layers:
        if layer.kind == "conv":
            flop += 2 * side**2 * layer.window**2 * layer.inputs * layer.outputs * (2 if flop == 0 else 3)
        elif layer.kind == "pool":
            side //= 2
        elif layer.kind == "linear":
            flop += 2 * layer.inputs * layer.outputs * 3
    assert bench.training_flop(model) == flop
    assert b.flop == 81 * flop
    assert b.seconds == pytest.approx(81 / 2.0)
    assert a.seconds == pytest.approx(81 / 2.0 * a.flop / b.flop)
    copy = 2 * 4 * model.num_parameters  # weights and velocities, while a checkpoint is written
    assert b.memory == model.memory_plan(4, training=True).total + copy
    assert b.micro_batch == 4
    assert b.disk == (2 * 2 + 1) * 4 * model.num_parameters
    limited = [dataclasses.replace(s, recipe=dataclasses.replace(s.recipe, iterations=6)) for s in plan]
    assert [(c.images, c.iterations) for c in stage_costs(limited, 27, images_per_second=1)] == [(43, 6)] * 2
    frozen = dataclasses.replace(plan[1], recipe=dataclasses.replace(plan[1].recipe, freeze=("conv*",)))
    assert stage_costs([frozen], 27, images_per_second=1)[0].disk < b.disk
    measured = stage_costs(plan, 27)
    assert 0 < measured[0].seconds < measured[1].seconds < math.inf
    endless = dataclasses.replace(plan[1].recipe, epochs=None, iterations=None)
    with pytest.raises(ValueError, match="nothing limits the stages"):
        stage_costs([dataclasses.replace(plan[1], recipe=endless)], 27, images_per_second=1)


def test_the_papers_own_costs():
    """370 K updates of 256 images, of net D: 15.47 G multiply-adds an image forward (section 2.3's nets)."""
    plan = plan_stages({"config": "D", "input_size": 224}, ("A", "256"))
    _, d = stage_costs(plan, 1_281_167, images_per_second=10.0)
    assert d.iterations == 370_000  # 74 epochs of 5,005 updates are 370,370
    assert d.images == pytest.approx(370_000 * 256, rel=1e-3)
    assert d.flop == pytest.approx(d.images * 3 * 2 * 15.47e9, rel=5e-3)
    assert d.seconds == pytest.approx(d.images / 10)
    assert d.disk == pytest.approx(7 * 4 * 138_357_544)


# ---- the chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """All four stages of a small B, undisturbed."""
    out = tmp_path_factory.mktemp("chain")
    plan = plan_stages(NET, ("A", "256", "384", "jitter"), scales=SCALES, **SHORT)
    model = run_stages(plan, patterns(22), out=out, progress=False)
    return plan, out, model


def test_each_stage_starts_from_the_one_before(chain):
    """The chain is what four calls of fit make, with what the paper says each starts from."""
    plan, out, model = chain
    data = patterns(22)
    a = vgg.VGG(**{**NET, "config": "A"})
    train.fit(a, data, recipe=plan[0].recipe, progress=False)
    assert_equal_weights(a, vgg.load(out / "A" / "model.safetensors"))
    b = vgg.VGG(**NET)
    random = {name: p.numpy().copy() for name, p in b.parameters.items()}
    for layer in ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"):
        for kind in ("weight", "bias"):
            b.parameters[f"{layer}.{kind}"].copy_(a.parameters[f"{layer}.{kind}"])
    np.testing.assert_array_equal(b.parameters["conv1_2.weight"].numpy(), random["conv1_2.weight"])
    for stage in plan[1:]:
        train.fit(b, data, recipe=stage.recipe, progress=False)
        assert_equal_weights(b, vgg.load(out / stage.name / "model.safetensors"))
    assert_equal_weights(b, model)
    assert model.scale == (34, 40)
    assert model.preprocessing.covariance is not None
    for stage in plan:
        names = {path.name for path in (out / stage.name).iterdir()}
        assert {"model.safetensors", "history.csv", "history.jsonl", "curves.png"} < names
        assert len(train.History.read(out / stage.name)) == 1


def test_a_finished_chain_is_not_trained_again_and_another_is_refused(chain, capfd):
    plan, out, model = chain
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = run_stages(plan, patterns(22), out=out)
    assert_equal_weights(again, model)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert capfd.readouterr().err.count("is finished") == 4
    assert saved_stages(out) == [train.Stage.from_dict(json.loads(json.dumps(s.to_dict()))) for s in plan]
    assert saved_stages(out / "A") is None
    other = plan_stages(NET, ("A", "256"), scales=SCALES, **SHORT)
    with pytest.raises(ValueError, match="holds another chain of stages"):
        run_stages(other, patterns(22), out=out)


def test_an_interrupted_chain_goes_on_with_its_stage(chain, tmp_path, capfd):
    """Ctrl-C in the third stage, after its first update; the plan is the one that was saved."""
    plan, _, model = chain

    class Third(Signal):
        stage = 0

        def on_iteration(self, model, iteration, loss, error):
            self.stage += iteration == 1
            if self.stage == 3:
                super().on_iteration(model, iteration, loss, error)

    with pytest.raises(KeyboardInterrupt):
        run_stages(plan, patterns(22), out=tmp_path, callbacks=[Third(1, signal.SIGINT)])
    assert "stage 384 (3 of 4): net B, S = 36, lr 0.0002" in capfd.readouterr().err
    resumed = run_stages(saved_stages(tmp_path), patterns(22), out=tmp_path, progress=False)
    assert_equal_weights(resumed, model)


def test_a_chain_may_start_from_a_trained_net(chain, tmp_path):
    _, out, _ = chain
    a = vgg.load(out / "A" / "model.safetensors")
    shorter = plan_stages(NET, ("256",), scales=SCALES, init_from=a.config, **SHORT)
    model = run_stages(shorter, patterns(22), out=tmp_path, init_from=a, progress=False)
    assert_equal_weights(model, vgg.load(out / "256" / "model.safetensors"))
    arrays, _ = read_tensors(max((tmp_path / "256").glob("checkpoint-*")))
    assert any(name.startswith("velocity/") for name in arrays)


def test_start_from_the_same_net_takes_all_but_another_fc8():
    trained, model = vgg.VGG(**{**NET, "seed": 9}), vgg.VGG(**NET)
    layers = train.start_from(model, trained)
    assert_equal_weights(model, trained)
    assert len(layers) == 13
    ten = vgg.VGG(**{**NET, "num_classes": 10, "classes": None})
    fc8 = ten.parameters["fc8.weight"].numpy().copy()
    assert train.start_from(ten, trained) == layers[:-1]
    np.testing.assert_array_equal(ten.parameters["fc8.weight"].numpy(), fc8)


# ---- augmentation


def inputs_of_training(monkeypatch, data, recipe, workers):
    """What the net sees in training, by (epoch, image): bytes of each input."""
    seen, original = {}, vgg.VGG.run

    def run(self, x, *, rng=None, **options):
        if rng is not None:
            seen.update((int(row), image.tobytes()) for row, image in zip(rng.rows, x.numpy(), strict=True))
        return original(self, x, rng=rng, **options)

    monkeypatch.setattr(vgg.VGG, "run", run)
    model = vgg.VGG("A", num_classes=4, input_size=32, fc_width=16, init="xavier", classes=data.classes)
    train.fit(model, data, recipe=recipe, progress=False, threads=workers)
    monkeypatch.undo()
    return seen


def test_an_image_looks_the_same_whatever_the_threads_and_the_batch(tmp_path, monkeypatch, threads):
    """Scale, crop, mirror, shift and the mean, of JPEG files, are functions of (seed, epoch, image) alone."""
    tree = ilsvrc_tree.make(tmp_path, classes=4, train=5, val=1, sizes=(40, 90), layout="folders")
    data = vgg.data.ImageFolder(tree.directory / "train")
    recipe = Recipe(batch=8, lr=1e-4, epochs=2, scale=(34, 48), holdout=0, seed=11)
    expected = None
    for count, workers, batch, micro_batch in ((1, 1, 8, 8), (3, 4, 8, 3), (2, 2, 20, 7)):
        threads(count)
        changed = dataclasses.replace(recipe, batch=batch, micro_batch=micro_batch)
        seen = inputs_of_training(monkeypatch, data, changed, workers)
        assert seen.keys() == {epoch << 32 | image for epoch in range(2) for image in range(20)}
        expected = expected or seen
        assert seen == expected
    assert len(set(expected.values())) == 40  # and every epoch sees every image otherwise
    other = inputs_of_training(monkeypatch, data, dataclasses.replace(recipe, seed=12), 2)
    assert not set(other.values()) & set(expected.values())
