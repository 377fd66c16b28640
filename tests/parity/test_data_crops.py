"""Random crops of training beside torchvision's."""

import numpy as np
import tensorflow as tf
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from keras_residual.data import sampling

MEASURES = {
    "top": lambda w: w[:, 0],
    "left": lambda w: w[:, 1],
    "height": lambda w: w[:, 2],
    "width": lambda w: w[:, 3],
    "area": lambda w: w[:, 2] * w[:, 3],
    "ratio": lambda w: w[:, 3] / w[:, 2],
    "place": lambda w: w[:, 0] / (301 - w[:, 2]),
}


def test_random_crops_have_the_same_distribution():
    torch.manual_seed(0)
    image = torch.empty(3, 300, 400)
    theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = np.array(theirs, "float64")
    noise = tf.random.stateless_uniform((4000, 34), (1, 2))
    ours = sampling.windows(sampling.Views((224, 224)), tf.fill((4000,), 300), tf.fill((4000,), 400), noise)
    ours = ours.numpy().astype("float64")
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= [300, 400]).all()
    for name, measure in MEASURES.items():
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 0.001, name
