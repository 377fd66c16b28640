"""timm's models with random weights, and the distance of ours from them."""

import keras
import numpy as np
import timm
import torch

import keras_residual as kr


def randomise(model, seed=0):
    """Fills every parameter and statistic, so that no zero-initialised branch hides a mistake."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor):
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.copy_(1 + 0.3 * normal(value).abs())
            elif name.endswith("running_mean"):
                value.copy_(0.1 * normal(value))
            elif value.ndim >= 2 and "token" not in name and "embed" not in name.rpartition(".")[2]:
                value.copy_(normal(value) * 1.4 / np.sqrt(value[0].numel()))
            elif name.endswith("weight") or "gamma" in name:
                value.copy_(1 + 0.2 * normal(value))
            else:
                value.copy_(0.2 * normal(value))
    return model.eval()


def images(size, channels=3, batch=2, seed=1):
    """`(N, H, W, C)` float32 noise."""
    return np.random.default_rng(seed).normal(size=(batch, *size, channels)).astype("float32")


def to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def distance(ours, theirs):
    """Largest difference relative to the largest value of the reference."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def compare(reference, model, stages, size):
    """Distances of logits and of every stage (ours by level, timm's by module name) after copying all weights."""
    kr.load_weights(model, {key: value.numpy() for key, value in reference.state_dict().items()})
    x = images(size)
    seen = {}
    hooks = [
        reference.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o.clone()}))
        for name in stages.values()
    ]
    with torch.no_grad():
        logits = reference(to_torch(x)).numpy()
    for hook in hooks:
        hook.remove()
    result = {"logits": distance(np.asarray(model(x, training=False)), logits)}
    outputs = kr.features(model, levels=tuple(stages))(x, training=False)
    for name, ours in zip(stages.values(), outputs if isinstance(outputs, list) else [outputs], strict=True):
        ours, theirs = np.asarray(ours), seen[name].numpy()
        if theirs.ndim == 4:
            theirs = np.moveaxis(theirs, 1, -1)
        elif ours.ndim == 4:  # a token sequence, of which ours are the patches, back on their grid
            theirs = theirs[:, -np.prod(ours.shape[1:3]) :].reshape(ours.shape)
        result[name] = distance(ours, theirs)
    return result


def check_full_network(entry):
    """Compare what a tiny twin cannot show: every weight's name and shape, the parameter count, the input size."""
    row = entry.config
    with torch.device("meta"):
        full = timm.create_model(row.timm)
    with keras.StatelessScope(initialize_variables=False):  # without memory for the weights
        ours = {slot.key: slot.shape for slot in kr.weights.slots(entry.builder())}
    keras.utils.clear_session(free_memory=False)  # else the next scope would initialise these variables
    theirs = {key: tuple(value.shape) for key, value in full.state_dict().items() if value.is_floating_point()}
    assert ours == theirs
    assert row.params == sum(value.numel() for value in full.parameters())
    name = f"{row.timm}.{row.tag}" if row.tag else row.timm
    assert timm.get_pretrained_cfg(name).input_size[1:] == row.input_shape[:2]
