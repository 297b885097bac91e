"""Tasks: what is learnt may be another thing than classes, and where the crop lies is known."""

import dataclasses

import numpy as np
import pytest
import vggnet as vgg
from vggnet import train
from vggnet.augment import Augmentation
from vggnet.data import ArrayDataset, Subset
from vggnet.preprocess import rescale
from vggnet.rng import Rng, permutation, rows_of
from vggnet.train import Loss, Measure, Recipe, Task, fit

RECIPE = Recipe(
    batch=6,
    micro_batch=4,
    lr=0.0002,
    epochs=2,
    scale=(32, 40),
    rgb_shift=None,
    holdout=0.25,
    plateau_patience=9,
)


class Blocks(ArrayDataset):
    """A bright block on dark, one an image, of any size; its place is known."""

    def __init__(self, n, seed=0):
        rng = np.random.default_rng(seed)
        images, self.places = [], []
        for _ in range(n):
            height, width = rng.integers(40, 70, 2)
            top, left = rng.integers(0, height - 20), rng.integers(0, width - 20)
            image = np.zeros((height, width, 1), np.uint8)
            image[top : top + 20, left : left + 20] = 255
            images.append(image)
            self.places.append([[left, top, left + 20, top + 20]])
        super().__init__(images, np.arange(n) % 2, ["a", "b"])

    def boxes(self, i):
        return np.array(self.places[i], np.float64)


def boxes_of(data, i):
    return boxes_of(data.dataset, int(data.indices[i])) if isinstance(data, Subset) else data.boxes(i)


class Boxes(Task):
    """Edges of the block as fractions of the crop; half the squared distance."""

    def __init__(self, weight=1.0):
        self.weight = weight
        self.asked = []

    def check(self, model, data, name):
        if model.num_classes != 4:
            raise ValueError(f"{name}: the model has {model.num_classes} outputs; expected 4")

    def targets(self, data, geometry):
        boxes = np.concatenate([boxes_of(data, int(i)) for i in geometry.images])
        return (geometry.boxes(boxes) / geometry.crop).astype(np.float32)

    def loss(self, outputs, targets, normalizer):
        difference = outputs.numpy() - targets
        value = self.weight * float((difference.astype(np.float64) ** 2).sum()) / (2 * normalizer)
        gradient = vgg.tensor(difference * np.float32(self.weight / normalizer))
        return Loss(value, gradient, float((np.abs(difference).max(axis=1) > 0.1).sum()))

    def measure(self, model, data, recipe, batch):
        self.asked.append((len(data), recipe.validation_scale, batch))
        return Measure(error=40.0 - len(self.asked), loss=0.5)

    def to_dict(self):
        return super().to_dict() | {"weight": self.weight}


def net():
    return vgg.VGG(
        "A", num_classes=4, input_size=32, in_channels=1, fc_width=16, init="xavier", mean=[50.0], seed=2
    )


def test_boxes_go_where_their_pixels_go():
    """A block that was rescaled, cropped and mirrored lies where `Geometry.boxes` says."""
    data, augmentation = Blocks(40), Augmentation(crop=32, scale=(36, 60), seed=4)
    images = np.arange(40)
    sides = augmentation.short_sides(3, images)
    pixels = [rescale(data.image(i), int(side), "box") for i, side in zip(images, sides, strict=True)]
    original = np.array([data.image(i).shape[:2] for i in images])
    geometry = augmentation.geometry(3, images, original, pixels)
    assert geometry.mirrored.any() and not geometry.mirrored.all()
    x = augmentation.batch(pixels, 3, images, [0.0]).numpy()[..., 0]
    boxes = geometry.boxes(np.concatenate([data.boxes(i) for i in images]))
    seen = 0
    for crop, (left, top, right, bottom) in zip(x, boxes, strict=True):
        if not (crop > 127).any():
            assert left > 30 or right < 2 or top > 30 or bottom < 2  # hardly anything of it is in the crop
            continue
        seen += 1
        for axis, low, high in ((0, left, right), (1, top, bottom)):
            bright = np.flatnonzero(crop.max(axis=axis) > 127)
            assert abs(bright[0] - max(low, 0)) <= 1
            assert abs(bright[-1] + 1 - min(high, 32)) <= 1
    assert seen > 20


def test_geometry_is_what_augmentation_drew(rng):
    augmentation = Augmentation(crop=32, scale=(40, 50), seed=1)
    images = np.array([5, 0, 9])
    pixels = [rng.integers(0, 256, (40 + i, 50, 1), np.uint8) for i in range(3)]
    geometry = augmentation.geometry(2, images, np.full((3, 2), 99), pixels)
    assert geometry.rescaled.tolist() == [[40, 50], [41, 50], [42, 50]]
    crops = augmentation.crops(2, images, geometry.rescaled)
    np.testing.assert_array_equal(crops, np.stack([geometry.top, geometry.left, geometry.mirrored], axis=1))
    x = augmentation.batch(pixels, 2, images, [0.0]).numpy()
    for n in range(3):
        top, left = geometry.top[n], geometry.left[n]
        crop = pixels[n][top : top + 32, left : left + 32]
        np.testing.assert_array_equal(x[n], crop[:, ::-1] if geometry.mirrored[n] else crop)


def test_a_task_of_ones_own_trains_on_what_its_crops_show():
    """Boxes, in micro-batches, with a held-out part: the same as a plain loop over gradients that are made by hand."""
    data, model, plain = Blocks(20), net(), net()
    task = Boxes()
    history = fit(model, data, recipe=RECIPE, task=task, progress=False)
    part = vgg.data.split(data, RECIPE.holdout, RECIPE.seed)[0]
    assert task.asked == [(6, 36, 4)] * 2
    assert [row.val_top1 for row in history.rows] == [39.0, 38.0]
    assert [(row.val_loss, row.val_top5) for row in history.rows] == [(0.5, None)] * 2
    velocity = {name: vgg.zeros(p.shape) for name, p in plain.parameters.items()}
    augmentation = Augmentation(32, RECIPE.scale, seed=RECIPE.seed)
    for epoch in range(2):
        order, losses, wrong = permutation(RECIPE.seed, epoch, len(part)), [], 0
        for start in range(0, len(part), RECIPE.batch):
            images = order[start : start + RECIPE.batch]
            sides = augmentation.short_sides(epoch, images)
            originals = [part.image(int(i)) for i in images]
            pixels = [rescale(o, int(s), RECIPE.filter) for o, s in zip(originals, sides, strict=True)]
            crops = augmentation.crops(epoch, images, np.array([p.shape[:2] for p in pixels]))
            targets = []
            for i, o, p, (top, left, mirrored) in zip(images, originals, pixels, crops, strict=True):
                (x1, y1, x2, y2), (h, w), (rh, rw) = boxes_of(part, i)[0], o.shape[:2], p.shape[:2]
                x1, x2 = x1 * rw / w - left, x2 * rw / w - left
                targets.append(
                    [
                        32 - x2 if mirrored else x1,
                        y1 * rh / h - top,
                        32 - x1 if mirrored else x2,
                        y2 * rh / h - top,
                    ]
                )
            x = augmentation.batch(pixels, epoch, images, [50.0])
            run = plain.run(x, training=True, rng=Rng(RECIPE.seed, rows_of(epoch, images)))
            difference = run.logits.numpy() - np.array(targets, np.float32) / np.float32(32)
            losses.append(float((difference**2).sum()) / 2)
            wrong += int((np.abs(difference).max(axis=1) > 0.1).sum())
            grads, _ = run.backward({"fc8": difference / np.float32(len(images))})
            for name, p in plain.parameters.items():
                vgg.ops.sgd_(p, grads[name], velocity[name], RECIPE.lr, momentum=0.9, weight_decay=5e-4)
        assert history[epoch].train_loss == pytest.approx(sum(losses) / len(part), rel=1e-3)
        assert history[epoch].train_error == pytest.approx(100 * wrong / len(part))
    for name, p in plain.parameters.items():
        scale = max(np.abs(p.numpy()).max(), 1e-6)
        np.testing.assert_allclose(model.parameters[name].numpy(), p.numpy(), atol=1e-3 * scale, err_msg=name)


def test_a_run_goes_on_with_its_own_task_only(tmp_path):
    data = Blocks(12)
    one = dataclasses.replace(RECIPE, epochs=1)
    fit(net(), data, recipe=one, task=Boxes(), checkpoint=tmp_path, progress=False)
    for task, message in (
        (Boxes(2.0), "task.weight is 2.0, but the run in .* has 1.0"),
        (type("Other", (Boxes,), {})(), "task.name is 'Other', but"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(net(), data, recipe=RECIPE, task=task, checkpoint=tmp_path, resume=True)
    straight, model = net(), net()
    fit(model, data, recipe=RECIPE, task=Boxes(), checkpoint=tmp_path, resume=True, progress=False)
    fit(straight, data, recipe=RECIPE, task=Boxes(), progress=False)
    for name, p in straight.parameters.items():
        np.testing.assert_array_equal(p.numpy(), model.parameters[name].numpy(), err_msg=name)
    with pytest.raises(ValueError, match="train_data: the model has 2 outputs"):
        fit(
            vgg.VGG("A", num_classes=2, input_size=32, in_channels=1, fc_width=16),
            data,
            recipe=RECIPE,
            task=Boxes(),
        )


def test_a_task_that_knows_no_guessing_is_never_stuck(caplog):
    recipe = dataclasses.replace(RECIPE, lr=1e-12, stuck_iterations=2, holdout=0)
    fit(net(), Blocks(6), recipe=recipe, task=Boxes(), progress=False)
    assert "stuck" not in caplog.text
    assert train.Classification().guessing(net()) == pytest.approx(np.log(4))


def test_the_example_in_the_docstring():
    """Its class is complete: a run of it goes through."""
    text = train.task.__doc__
    lines = [line[4:] for line in text.splitlines() if line.startswith((">>> ", "... "))]
    scope = vars(train.task) | {"np": np}
    exec("\n".join(lines), scope)
    history = fit(
        net(), Blocks(6), recipe=dataclasses.replace(RECIPE, holdout=0), task=scope["Boxes"](), progress=False
    )
    assert np.isfinite(history[-1].train_loss)
