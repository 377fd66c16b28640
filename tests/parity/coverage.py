"""Counts timm's pretrained tags that map to a registered row: `python -m tests.parity.coverage`."""

from collections import Counter

from . import conftest  # noqa: F401  (lets torchvision import)


def covered():
    """Tags of timm's that a registered row loads, by family."""
    import timm

    from keras_residual import registry

    entries = registry.entries()
    found = Counter()
    for tag in timm.list_pretrained():
        name = registry.resolve(tag.partition(".")[0])
        if name is not None:
            found[entries[name[0]].family.__name__] += 1
    return found, len(timm.list_pretrained())


if __name__ == "__main__":
    import timm

    import keras_residual.models  # noqa: F401

    families, total = covered()
    for family, count in families.items():
        print(f"{family:<16} {count:>5}")
    print(f"{sum(families.values())} of the {total} pretrained tags of timm {timm.__version__}")
