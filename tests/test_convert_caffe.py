"""Caffe's files: read when protobuf wrote them by a schema of our own typing, and read by protobuf when we wrote them."""

import numpy as np
import pytest
import vggnet as vgg
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from vggnet import convert

from foreign import MEAN, check_scores, random_images, random_net, same_parameters, scores

CONFIGS = ("A", "A-LRN", "B", "C", "D", "E")
OPTIONAL, REPEATED = 1, 3
DOUBLE, FLOAT, INT32, STRING, MESSAGE = 1, 2, 5, 9, 11
# caffe.proto as far as these nets need it: message -> field -> (number, type or inner message, repeated).
SCHEMA = {
    "BlobShape": {"dim": (1, INT32, "packed")},
    "BlobProto": {
        "num": (1, INT32),
        "channels": (2, INT32),
        "height": (3, INT32),
        "width": (4, INT32),
        "data": (5, FLOAT, "packed"),
        "diff": (6, FLOAT, "packed"),
        "shape": (7, "BlobShape"),
        "double_data": (8, DOUBLE, "packed"),
    },
    "TransformationParameter": {"scale": (1, FLOAT), "mean_value": (5, FLOAT, "repeated")},
    "ConvolutionParameter": {
        "num_output": (1, INT32),
        "pad": (3, INT32, "repeated"),
        "kernel_size": (4, INT32, "repeated"),
    },
    "DropoutParameter": {"dropout_ratio": (1, FLOAT)},
    "InnerProductParameter": {"num_output": (1, INT32)},
    "LRNParameter": {"local_size": (1, INT32), "alpha": (2, FLOAT), "beta": (3, FLOAT), "k": (5, FLOAT)},
    "PoolingParameter": {
        "pool": (1, INT32),
        "kernel_size": (2, INT32),
        "stride": (3, INT32),
        "round_mode": (13, INT32),
    },
    "InputParameter": {"shape": (1, "BlobShape", "repeated")},
    "LayerParameter": {
        "name": (1, STRING),
        "type": (2, STRING),
        "bottom": (3, STRING, "repeated"),
        "top": (4, STRING, "repeated"),
        "blobs": (7, "BlobProto", "repeated"),
        "transform_param": (100, "TransformationParameter"),
        "convolution_param": (106, "ConvolutionParameter"),
        "dropout_param": (108, "DropoutParameter"),
        "inner_product_param": (117, "InnerProductParameter"),
        "lrn_param": (118, "LRNParameter"),
        "pooling_param": (121, "PoolingParameter"),
        "input_param": (143, "InputParameter"),
    },
    "V0LayerParameter": {"name": (1, STRING)},
    "V1LayerParameter": {
        "layer": (1, "V0LayerParameter"),
        "bottom": (2, STRING, "repeated"),
        "top": (3, STRING, "repeated"),
        "name": (4, STRING),
        "type": (5, INT32),
        "blobs": (6, "BlobProto", "repeated"),
        "blobs_lr": (7, FLOAT, "repeated"),
        "lrn_param": (18, "LRNParameter"),
    },
    "NetParameter": {
        "name": (1, STRING),
        "layers": (2, "V1LayerParameter", "repeated"),
        "input": (3, STRING, "repeated"),
        "input_dim": (4, INT32, "repeated"),
        "layer": (100, "LayerParameter", "repeated"),
    },
}


def _messages():
    file = descriptor_pb2.FileDescriptorProto(name="caffe_subset.proto", package="caffe", syntax="proto2")
    for message, fields in SCHEMA.items():
        entry = file.message_type.add(name=message)
        for name, (number, kind, *repeated) in fields.items():
            label = REPEATED if repeated else OPTIONAL
            field = entry.field.add(name=name, number=number, label=label)
            field.type = MESSAGE if isinstance(kind, str) else kind
            if isinstance(kind, str):
                field.type_name = f".caffe.{kind}"
            field.options.packed = repeated == ["packed"]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}")) for name in SCHEMA
    }


MESSAGES = _messages()


def v1_net(weights, lrn=False):
    """As Caffe of 2014 wrote it: four sizes a blob, fully connected weights (1, 1, out, in), biases (1, 1, 1, out)."""
    net = MESSAGES["NetParameter"](name="VGG_ILSVRC", input=["data"], input_dim=[10, 3, 64, 64])
    for name, arrays in weights.items():
        layer = net.layers.add(name=name, type=4 if name.startswith("conv") else 14, blobs_lr=[1, 2])
        for array in arrays:
            sizes = (1,) * (4 - array.ndim) + array.shape
            layer.blobs.add(
                **dict(zip(("num", "channels", "height", "width"), sizes, strict=True)), data=array.ravel()
            )
        net.layers.add(name=name.replace("conv", "relu"), type=18, bottom=[name], top=[name])
        if name == "conv1_1" and lrn:
            lrn_layer = net.layers.add(name="norm1", type=15)
            lrn_layer.lrn_param.CopyFrom(MESSAGES["LRNParameter"](local_size=5, alpha=5e-4, beta=0.75, k=2.0))
    return net


def new_net(weights, field="data"):
    net = MESSAGES["NetParameter"](name="VGG")
    for name, arrays in weights.items():
        layer = net.layer.add(name=name, type="Convolution" if name.startswith("conv") else "InnerProduct")
        for array in arrays:
            blob = layer.blobs.add(**{field: array.ravel()})
            blob.shape.dim.extend(array.shape)
    return net


def write(path, net):
    path.write_bytes(net.SerializeToString())
    return path


def caffe_scores(config, weights, images, mean=MEAN):
    """What Caffe makes of RGB images: planes in BGR order, the mean subtracted."""
    x = (images.astype(np.float64) - mean)[..., ::-1].transpose(0, 3, 1, 2)
    return scores(config, weights, x)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_format_of_2014(narrow, tmp_path, rng, config):
    weights, images = random_net(config, rng), random_images(rng)
    path = write(tmp_path / "VGG_ILSVRC_16_layers.caffemodel", v1_net(weights, lrn=config == "A-LRN"))
    model = vgg.load(path)
    assert (model.config, model.pool_rounding, model.classes) == (config, "ceil", None)
    assert model.preprocessing.mean == MEAN
    check_scores(model, images, caffe_scores(config, weights, images))
    assert vgg.load(path, config=config).config == config


@pytest.mark.parametrize("field", ["data", "double_data"])
def test_the_format_of_later_years(narrow, tmp_path, rng, field):
    weights, images = random_net("D", rng), random_images(rng)
    net = new_net(weights, field)
    data = net.layer.add(name="data", type="Data")
    data.transform_param.mean_value.extend([104, 117, 124])
    data.transform_param.scale = 0.5
    model = vgg.load(write(tmp_path / "D.caffemodel", net))
    assert model.preprocessing.mean == (124, 117, 104)
    expected = caffe_scores(
        "D",
        weights | {"conv1_1": (weights["conv1_1"][0] / 2, weights["conv1_1"][1])},
        images,
        (124, 117, 104),
    )
    check_scores(model, images, expected)


def test_a_gray_net_with_one_class_and_its_mean(narrow, tmp_path, rng):
    weights = random_net("A", rng, channels=1)
    weights["fc8"] = tuple(array[:1] for array in weights["fc8"])
    for net in (v1_net(weights), new_net(weights)):
        model = vgg.load(write(tmp_path / "gray.caffemodel", net))
        assert (model.in_channels, model.num_classes) == (1, 1)
        images = random_images(rng, channels=1)
        x = (images - np.float64(model.preprocessing.mean)).transpose(0, 3, 1, 2)
        check_scores(model, images, scores("A", weights, x))


def test_a_net_of_a_and_its_lrn(narrow, tmp_path, rng):
    """The weights of A-LRN are those of A; without the layer, config tells."""
    path = write(tmp_path / "x.caffemodel", new_net(random_net("A", rng)))
    assert vgg.load(path).config == "A"
    assert vgg.load(path, config="A-LRN").config == "A-LRN"
    net = v1_net(random_net("A", rng), lrn=True)
    net.layers[2].lrn_param.k = 1
    with pytest.raises(vgg.WeightsError, match=r"norm1 has .*'k': 1.0.* expected the paper's"):
        vgg.load(write(path, net))


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_written_is_read_by_protobuf_and_by_us(narrow, tmp_path, config, rounding):
    mean = (120.5, 110.0, 100.25)
    model = vgg.VGG(
        config, num_classes=4, input_size=64, fc_width=6, init="he", mean=mean, pool_rounding=rounding
    )
    path = tmp_path / "x.caffemodel"
    convert.write(model, path)
    back = vgg.load(path)
    same_parameters(model, back)
    assert back.to_dict() == model.to_dict()

    net = MESSAGES["NetParameter"]()
    net.ParseFromString(path.read_bytes())
    weights = {
        layer.name: tuple(np.array(b.data, np.float32).reshape(b.shape.dim) for b in layer.blobs)
        for layer in net.layer
        if layer.blobs
    }
    images = random_images(np.random.default_rng(0))
    check_scores(model, images, caffe_scores(config, weights, images, mean))

    text = (tmp_path / "x.prototxt").read_text()
    assert "round_mode" not in text
    deploy = MESSAGES["NetParameter"]()
    text_format.Parse(text.replace("pool: MAX", "pool: 0"), deploy)
    for layer in net.layer:  # the text is the binary without weights
        del layer.blobs[:]
        layer.pooling_param.ClearField("round_mode")
        if layer.type != "Pooling":
            layer.ClearField("pooling_param")
    assert deploy == net
    assert [layer.name for layer in deploy.layer] == ["data", *model.layer_names]
    assert [layer.bottom[0] for layer in deploy.layer if layer.name in ("conv1_1", "fc6", "prob")] == [
        "data",
        "pool5",
        "fc8",
    ]


def test_what_it_cannot_be(narrow, tmp_path, rng):
    path = tmp_path / "x.caffemodel"
    weights = random_net("D", rng)

    def refuses(net, message):
        with pytest.raises(vgg.WeightsError, match=message) as caught:
            vgg.load(write(path, net))
        assert str(path) in str(caught.value)

    refuses(MESSAGES["NetParameter"](name="empty"), "no layer with weights")
    v0 = MESSAGES["NetParameter"]()
    v0.layers.add().layer.name = "conv1_1"
    refuses(v0, "upgrade_net_proto_binary")
    refuses(new_net({k: v for k, v in weights.items() if k != "fc8"}), r"has no fc8.weight")
    refuses(new_net({k: v for k, v in weights.items() if k != "conv4_2"}), r"begin with: there is no conv4_2")
    refuses(new_net(weights | {"conv5_4": weights["conv5_3"]}), "it has conv5_4.weight, too")
    refuses(
        new_net(weights | {"fc6": (weights["fc6"][0][:, :-1], weights["fc6"][1])}), "fc6.weight has 19 inputs"
    )
    refuses(new_net(weights | {"fc7": (weights["fc7"][0][:, :-1], weights["fc7"][1])}), "maps 5 to 6")
    nan = weights["conv3_1"][0].copy()
    nan[0, 0, 0, 0] = np.nan
    refuses(
        new_net(weights | {"conv3_1": (nan, weights["conv3_1"][1])}),
        "conv3_1.weight holds values that are no",
    )
    net = new_net(weights)
    net.layer[0].blobs[0].shape.dim[0] = 3
    refuses(net, "conv1_1.weight has 54 numbers for the shape")
    write(path, new_net(weights))
    with pytest.raises(vgg.WeightsError, match="does not fit net E"):
        vgg.load(path, config="E")
    with pytest.raises(ValueError, match="config is 'F'"):
        vgg.load(path, config="F")


def test_files_end_at_two_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("vggnet.convert.wire.LARGEST", 1 << 20)
    with pytest.raises(ValueError, match="end at 2 GiB"):
        convert.write(
            vgg.VGG("A", num_classes=4, input_size=32, fc_width=6, init=None), tmp_path / "x.caffemodel"
        )
    assert not list(tmp_path.iterdir())
