# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Read by pyright, never run: what an editor must see of the public API, and what it must refuse."""

import keras_residual as kr

kr.ResNet50(include_top=False, pooling="avg", drop_path=0.1)
kr.ResNet20(classes=10)
kr.ResNet50(clases=10)  # pyright: ignore[reportCallIssue]
kr.ResNet50(classes="ten")  # pyright: ignore[reportArgumentType]
kr.ResNet20(stride_in="1x1")  # pyright: ignore[reportCallIssue]
names: list[str] = kr.list_models("resnet*")
