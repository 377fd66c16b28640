"""Training settings as one frozen, serialisable record, and the published ones by the name of their source."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from keras_residual.data.sampling import Crop, Flip, Views, check_crop, check_flip
from keras_residual.weights import Preprocess

__all__ = ["AUGMENTS", "RECIPES", "RESIZES", "Recipe", "recipe"]

OPTIMIZERS = ("sgd", "adamw", "lamb")
SCHEDULES = ("cosine", "step", "constant", "plateau")
POLICIES = ("randaugment", "trivialaugment", "threeaugment")
RESIZES = ("crop", "squash", "letterbox")
EVALUATED = {"center": "center", "squash": "squash", "pad": "squash", "letterbox": "border"}  # by the training crop
_NO_AUGMENT = {"policy": None, "color_jitter": 0.0, "affine": (0.0, 0.0, 0.0), "erasing": 0.0}
_NO_AUGMENT |= {"mixup": 0.0, "cutmix": 0.0}
_RANDAUGMENT = {"policy": "randaugment", "policy_layers": 2, "policy_magnitude": 7.0, "policy_spread": 0.5}
_RANDAUGMENT |= {"policy_probability": 0.5}
AUGMENTS: dict[str, dict[str, Any]] = {
    "none": _NO_AUGMENT,
    "light": {**_NO_AUGMENT, "color_jitter": 0.2, "affine": (10.0, 0.05, 0.1)},
    "strong": {**_NO_AUGMENT, **_RANDAUGMENT, "erasing": 0.25, "mixup": 0.2},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training settings. All of them are plain numbers and strings, so that a recipe can be stored as JSON.

    Attributes:
        name: Name of the recipe.
        source: Paper and table of the numbers.
        omitted: Parts of the source that are not implemented.
        optimizer: `"sgd"` (weight decay as an L2 term of the gradient, as in torch), `"adamw"` or `"lamb"` (weight
            decay inside the trust ratio, as in the paper and in timm).
        learning_rate: Peak learning rate, for batches of `batch_size` images.
        batch_size: Images per step; with `accumulate`, per partial step.
        rate_batch: Batch size of the learning rate; for other batch sizes the rate is scaled linearly (Goyal et al.
            2017). `None` does not scale it.
        epochs: Number of epochs.
        momentum: Momentum of SGD.
        nesterov: Whether SGD uses Nesterov momentum.
        betas: Decay rates of AdamW and LAMB.
        epsilon: Epsilon of AdamW and LAMB.
        schedule: `"cosine"`; `"step"` by `milestones`; `"constant"`; `"plateau"`, which multiplies by `factor` where
            the validation loss has not improved for `patience` epochs.
        warmup: Epochs of linear warm-up.
        warmup_steps: Steps of linear warm-up, if the source counts steps; overrides `warmup`.
        warmup_start: First rate of the warm-up, as a fraction of the peak.
        final: Last rate of the cosine schedule, as a fraction of the peak.
        milestones: Fractions of the training after which the rate is multiplied by `factor`.
        factor: See `milestones` and `"plateau"`.
        patience: See `"plateau"`.
        weight_decay: Weight decay, multiplied by the learning rate.
        decay_all: Whether norms, biases, tokens, position embeddings and layer scales decay, too.
        label_smoothing: Fraction of the target that is spread over all classes.
        loss: `"cross_entropy"`, or `"binary"` with one sigmoid per class.
        binary_threshold: With `"binary"`, targets above it become 1, the others 0; `None` leaves them unchanged.
        mixup: Parameter of MixUp's Beta distribution; 0 for no MixUp.
        cutmix: Parameter of CutMix' Beta distribution; 0 for no CutMix.
        mix_probability: Probability that a batch is mixed.
        policy: `"randaugment"`, `"trivialaugment"`, `"threeaugment"` or `None`.
        policy_layers: RandAugment's N.
        policy_magnitude: RandAugment's M, of 10.
        policy_spread: Standard deviation of the magnitude.
        policy_probability: Probability of each of RandAugment's operations.
        affine: Largest rotation in degrees, shift as a fraction of each side, and zoom (0.1 for e^-0.1 to e^0.1), drawn
            uniformly for each image and applied as one bilinear map, as in torchvision's `RandomAffine`.
        color_jitter: Strength of random brightness, contrast and saturation.
        erasing: Probability of random erasing.
        crop: Views of `keras_residual.data`: `"random"`, `"center"`, `"squash"`, `"pad"` or `"letterbox"`. Evaluation
            crops accordingly, see `evaluated`. Of arrays, only `"pad"` counts: `keras_residual.data.load((x, y))` makes
            views of them.
        crop_scale: Range of a random crop's area, as a fraction of the image's.
        padding: Pixels on each side for `"pad"`.
        flip: Whether images are mirrored left to right with a probability of one half; or `"horizontal"` for the same,
            `"vertical"`, `"both"`, each with a probability of one half, or `"none"`.
        size: Height and width of the training images; `None` for the network's own.
        growth: Progressive image size: `((fraction of the epochs, size), ...)`, in order; overrides `size`.
        drop_path: Stochastic-depth rate with which to build the network.
        dropout: Rate that `finetune` builds the network with, where its family has dropout; `fit` warns of another.
        clip_norm: Maximum global norm of the gradient; 0 for no clipping.
        accumulate: Number of batches whose mean gradient is applied in one optimizer step.
        ema: Decay of the moving averages of all weights, including batch statistics; 0 for none.
        batch_norm: `"train"` updates batch statistics, `"frozen"` keeps them and uses them in training, too.
        layer_decay: Factor of the learning rate from each stage to the previous one; 1 for the same rate everywhere.
        head_epochs: How many of the epochs train only the classifier (LP-FT, Kumar et al. 2022).
        head_rate: Learning rate of these epochs; `None` for the recipe's.

    Raises:
        ValueError: For a value out of its range.
    """

    name: str = "custom"
    source: str = ""
    omitted: tuple[str, ...] = ()
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    batch_size: int = 128
    rate_batch: int | None = None
    epochs: int = 90
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    schedule: str = "cosine"
    warmup: float = 0.0
    warmup_steps: int = 0
    warmup_start: float = 0.01
    final: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    patience: int = 10
    weight_decay: float = 0.0
    decay_all: bool = False
    label_smoothing: float = 0.0
    loss: str = "cross_entropy"
    binary_threshold: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    policy: str | None = None
    policy_layers: int = 2
    policy_magnitude: float = 9.0
    policy_spread: float = 0.0
    policy_probability: float = 1.0
    affine: tuple[float, float, float] = (0.0, 0.0, 0.0)
    color_jitter: float = 0.0
    erasing: float = 0.0
    crop: Crop = Views.crop
    crop_scale: tuple[float, float] = Views.scale
    padding: int | None = None
    flip: Flip = Views.flip
    size: int | None = None
    growth: tuple[tuple[float, int], ...] = ()
    drop_path: float = 0.0
    dropout: float = 0.0
    clip_norm: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    batch_norm: str = "train"
    layer_decay: float = 1.0
    head_epochs: int = 0
    head_rate: float | None = None

    def __post_init__(self) -> None:
        for field, allowed in {
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "policy": (None, *POLICIES),
            "loss": ("cross_entropy", "binary"),
            "batch_norm": ("train", "frozen"),
        }.items():
            if getattr(self, field) not in allowed:
                words = ", ".join(map(str, allowed))
                raise ValueError(f"Recipe: {field} must be one of {words}; got {getattr(self, field)!r}.")
        check_crop(self.crop, self.crop_scale, "Recipe: ")
        check_flip(self.flip, "Recipe: ")
        # the spelling of version 0.1, so that its runs can be compared
        object.__setattr__(self, "flip", {"horizontal": True, "none": False}.get(str(self.flip), self.flip))
        for field in ("learning_rate", "batch_size", "epochs", "accumulate", "layer_decay", "factor", "patience"):
            if not getattr(self, field) > 0:
                raise ValueError(f"Recipe: {field} must be positive; got {getattr(self, field)!r}.")
        for field in ("warmup", "warmup_steps", "weight_decay", "mixup", "cutmix", "clip_norm", "head_epochs"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"Recipe: {field} must not be negative; got {getattr(self, field)!r}.")
        if len(self.affine) != 3 or min(self.affine) < 0:
            raise ValueError(
                "Recipe: affine must be three numbers of at least 0: rotation in degrees, shift as a fraction of the "
                f"side, zoom; got {self.affine!r}."
            )
        for field in ("momentum", "label_smoothing", "ema", "drop_path", "dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"Recipe: {field} must be at least 0 and below 1; got {getattr(self, field)!r}.")
        for field in ("mix_probability", "policy_probability", "erasing", "warmup_start", "final"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"Recipe: {field} must be from 0 to 1; got {getattr(self, field)!r}.")
        starts = [start for start, _ in self.growth]
        if list(self.milestones) != sorted(self.milestones) or starts != sorted(starts) or (starts and starts[0]):
            raise ValueError(
                "Recipe: milestones and growth must be in ascending order, as fractions of training, and growth "
                f"must begin at 0; got milestones={self.milestones}, growth={self.growth}."
            )
        if self.head_epochs > self.epochs:
            raise ValueError(
                f"head_epochs must be at most epochs; got head_epochs={self.head_epochs}, epochs={self.epochs}. Change "
                f"both: recipe.replace(epochs={self.epochs}, head_epochs={self.epochs // 3})."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Recipe:
        """Return the recipe that `to_dict` was called on.

        Raises:
            ValueError: For an unknown setting, or a value out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise ValueError(f"Settings of a recipe must be among {', '.join(sorted(known))}; got {unknown}.")
        return cls(**{key: _tuples(value) for key, value in settings.items()})

    def replace(self, **changes: Any) -> Recipe:
        """Return this recipe with other values."""
        return dataclasses.replace(self, **changes)

    def with_views(
        self,
        resize: str | None = None,
        flip: Flip | None = None,
        augment: str | None = None,
        crop_scale: tuple[float, float] | None = None,
    ) -> Recipe:
        """Return this recipe with other views of the images; `None` keeps those of the recipe.

        Args:
            resize: `"crop"` crops images to the network's aspect ratio, `"squash"` resizes the whole image, ignoring
                its aspect ratio, and `"letterbox"` keeps it and pads with the mean color.
            flip: `"none"`, `"horizontal"`, `"vertical"` or `"both"`.
            augment: `"none"` for no random changes, crops and flips included; `"light"` for colors, small rotations,
                shifts and zooms; `"strong"` for RandAugment, erasing and MixUp. The last two keep the recipe's crops
                and flips.
            crop_scale: Smallest and largest area of a random crop, as a fraction of the image's.

        Raises:
            ValueError: For an unknown word, a scale out of range, or a crop scale without random crops.
        """
        for name, value, known in (("resize", resize, RESIZES), ("augment", augment, AUGMENTS)):
            if value is not None and value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}.")
        changes, crop = dict(AUGMENTS[augment]) if augment else {}, str(self.crop)
        if augment == "none":
            changes["flip"], crop = False, {"random": "center", "pad": "squash"}.get(crop, crop)
        if resize == "crop" and crop not in ("random", "center"):
            crop = "center" if augment == "none" else "random"
        elif resize in ("squash", "letterbox"):
            crop = resize
        changes["crop"] = crop
        if crop_scale is not None:
            if resize in ("squash", "letterbox"):
                raise ValueError(
                    f"crop_scale must be left out if resize is {resize!r}, which uses the whole image; "
                    f"got {crop_scale}. Use resize='crop' for random crops."
                )
            changes |= {"crop": "random", "crop_scale": crop_scale}
        if flip is not None:
            changes["flip"] = flip
        return self.replace(**changes)

    def evaluated(self, preprocess: Preprocess) -> Preprocess:
        """Return a preprocessing layer with the evaluation crop that corresponds to the training crops.

        Random crops change the scale of the images, and the layer's own crop stays. All other crops keep it, and
        evaluation uses as much of the image as they do.
        """
        crop = "center" if self.crop == "random" and self.crop_scale[0] == 1 else self.crop
        if crop == "random":
            return preprocess
        return Preprocess.from_config({**preprocess.get_config(), "crop": 1.0, "crop_mode": EVALUATED[crop]})

    def with_epochs(self, epochs: int) -> Recipe:
        """Return this recipe for other epochs; the last one trains all layers unless only the head is trained."""
        changed = self.replace(epochs=epochs, head_epochs=0)  # checks the number
        head = epochs if self.head_epochs == self.epochs else min(self.head_epochs, epochs - 1)
        return changed.replace(head_epochs=head)

    def rate(self, batch_size: int) -> float:
        """Return the peak learning rate for steps of so many images, including `accumulate`."""
        images = batch_size * self.accumulate
        return self.learning_rate * (images / self.rate_batch if self.rate_batch else 1.0)

    def image_size(self, epoch: int, epochs: int) -> int | None:
        """Height and width of the training images of an epoch."""
        sizes = [size for start, size in self.growth if epoch >= round(start * epochs)]
        return sizes[-1] if sizes else self.size


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


_RSB = Recipe(
    source="Wightman, Touvron & Jégou 2021, ResNet strikes back, table 2; timm's commands for what it leaves open",
    omitted=("repeated augmentation",),
    optimizer="lamb",
    learning_rate=5e-3,
    batch_size=2048,
    rate_batch=2048,
    epsilon=1e-6,
    warmup=5,
    warmup_start=1e-4 / 5e-3,
    final=1e-6 / 5e-3,
    weight_decay=0.02,
    loss="binary",
    binary_threshold=0.2,
    cutmix=1.0,
    policy="randaugment",
    policy_magnitude=7,
    policy_spread=0.5,
    policy_probability=0.5,
    drop_path=0.05,
    size=224,
    clip_norm=1.0,
)

_PRESETS = [
    _RSB.replace(name="resnet_strikes_back_a1", epochs=600, weight_decay=0.01, label_smoothing=0.1, mixup=0.2),
    _RSB.replace(name="resnet_strikes_back_a2", epochs=300, mixup=0.1),
    _RSB.replace(
        name="resnet_strikes_back_a3",
        epochs=100,
        learning_rate=8e-3,
        warmup_start=1e-4 / 8e-3,
        final=1e-6 / 8e-3,
        mixup=0.1,
        policy_magnitude=6,
        drop_path=0.0,
        size=160,
        omitted=(),
    ),
    Recipe(
        name="torchvision_v2",
        source="Vryniotis 2021, How to train state-of-the-art models using torchvision's latest primitives",
        omitted=("repeated augmentation", "averages of every 32nd step"),
        learning_rate=0.5,
        batch_size=1024,
        rate_batch=1024,
        epochs=600,
        warmup=5,
        warmup_start=0.01,
        weight_decay=2e-5,
        label_smoothing=0.1,
        mixup=0.2,
        cutmix=1.0,
        policy="trivialaugment",
        erasing=0.1,
        size=176,
        # 0.99998 there is for 600 epochs of single images: 1 - 2e-5 * 1024 * 32 / 600 for each 32 steps
        ema=(1 - 2e-5 * 1024 * 32 / 600) ** (1 / 32),
    ),
    Recipe(
        name="deit3",
        source="Touvron, Cord & Jégou 2022, DeiT III, table 1 and the authors' command for ViT-S on ImageNet-1k",
        omitted=("repeated augmentation",),
        optimizer="lamb",
        learning_rate=4e-3,
        batch_size=2048,
        rate_batch=None,
        epsilon=1e-8,  # that of the authors' main.py, which goes before LAMB's own
        epochs=800,
        warmup=5,
        warmup_start=1e-6 / 4e-3,
        final=1e-5 / 4e-3,
        weight_decay=0.05,
        loss="binary",
        binary_threshold=0.0,
        mixup=0.8,
        cutmix=1.0,
        policy="threeaugment",
        color_jitter=0.3,
        drop_path=0.05,
        size=224,
        clip_norm=1.0,
    ),
    Recipe(
        name="plain_vit",
        source="Beyer, Zhai & Kolesnikov 2022, Better plain ViT baselines for ImageNet-1k, section 2",
        omitted=("big_vision's own form of RandAugment: this is timm's",),
        optimizer="adamw",
        learning_rate=1e-3,
        batch_size=1024,
        rate_batch=None,
        epochs=90,
        warmup_steps=10_000,
        warmup_start=0.0,
        weight_decay=0.1,
        mixup=0.2,
        policy="randaugment",
        policy_layers=2,
        policy_magnitude=10,
        crop_scale=(0.05, 1.0),
        size=224,
        clip_norm=1.0,
    ),
    Recipe(
        name="cifar_he2015",
        source="He et al. 2015, Deep residual learning, section 4.2",
        omitted=(
            "zeros around shifted images: edges are reflected",
            "ResNet-110's start at a rate of 0.01 until its training error is below 80 %",
        ),
        learning_rate=0.1,
        batch_size=128,
        rate_batch=128,
        epochs=164,  # 64,000 steps of 128 images out of 50,000
        schedule="step",
        milestones=(0.5, 0.75),  # 32,000 and 48,000
        factor=0.1,
        weight_decay=1e-4,
        decay_all=True,
        crop="pad",
        padding=4,
    ),
    Recipe(
        name="wrn",
        source="Zagoruyko & Komodakis 2016, Wide residual networks, section 3",
        learning_rate=0.1,
        batch_size=128,
        rate_batch=128,
        epochs=200,
        nesterov=True,
        schedule="step",
        milestones=(0.3, 0.6, 0.8),  # epochs 60, 120 and 160
        factor=0.2,
        weight_decay=5e-4,
        decay_all=True,
        crop="pad",
        padding=4,
    ),
    Recipe(
        name="finetune",
        source="Kumar et al. 2022 for the head first; Bao et al. 2022, BEiT, for AdamW with rates by layer",
        optimizer="adamw",
        learning_rate=1e-3,
        head_rate=1e-2,
        layer_decay=0.75,
        weight_decay=0.05,
        batch_size=64,
        epochs=20,
        schedule="cosine",
        warmup=1,
        crop_scale=(0.25, 1.0),
        batch_norm="frozen",
        head_epochs=6,
    ),
]

RECIPES: dict[str, Recipe] = {preset.name: preset for preset in _PRESETS}
"""The published recipes by name; `.source` is the paper and table, `.omitted` what is not done here."""


def recipe(name: str) -> Recipe:
    """Return a published recipe by name.

    Raises:
        ValueError: If there is none; the error lists them.
    """
    if name not in RECIPES:
        raise ValueError(f"The recipe must be one of {', '.join(RECIPES)}; got {name!r}.")
    return RECIPES[name]
