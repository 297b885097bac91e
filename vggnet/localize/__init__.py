"""Where things are on an image: nets that predict boxes (paper, appendix A).

The last layer of a classification net is replaced by one that predicts a box, of centre x, centre y, width and height: one for
all classes (SCR) or one for each (PCR). `from_classifier` makes such a net, ``train.fit(..., task=BoxRegression())`` trains it,
`center_crop_test` and `full_test` are the paper's two tests, and `locate` tells what is where.

Examples
--------
>>> import vggnet as vgg
>>> from vggnet import data, localize, train
>>> canvases = localize.Canvases(data.sample())
>>> classifier = vgg.VGG("A", num_classes=10, input_size=32, in_channels=1, fc_width=64, init="xavier")
>>> net = localize.from_classifier(classifier, head="PCR")
>>> recipe = train.Recipe(batch=32, lr=1e-3, scale=36, rgb_shift=None, iterations=2, epochs=1)
>>> history = train.fit(net, canvases, recipe=recipe, task=localize.BoxRegression(), progress=False)
>>> guess = localize.locate(net, classifier, canvases.image(0))[0][0]
>>> guess.label in canvases.classes, guess.box.shape
(True, (4,))
"""

from __future__ import annotations

from .boxes import decode, encode, iou, merge
from .canvases import Canvases
from .evaluate import Report, center_crop_test, full_test
from .locate import Located, locate
from .nets import from_classifier
from .task import BoxRegression, with_boxes

__all__ = [
    "BoxRegression",
    "Canvases",
    "Located",
    "Report",
    "center_crop_test",
    "decode",
    "encode",
    "from_classifier",
    "full_test",
    "iou",
    "locate",
    "merge",
    "with_boxes",
]
