"""A Keras DenseNet-BC as an ONNX file, to plan, to fit, and to wrap in tf.recompute_grad.

    python keras_densenet.py --depth 100 --growth 12 -o densenet.onnx
    memcli fit densenet.onnx --memory 12GB --as-training --time-limit 20
    memcli plan densenet.onnx --as-training --batch 256 -o planned.onnx
    memcli export planned.onnx --to tensorflow -o recompute_densenet.py
    python keras_densenet.py --depth 100 --growth 12 --train recompute_densenet.py

The last trains a step of the network on the CPU as it is and wrapped, and prints what each held
between the forward and the backward pass. DenseNet is Huang et al., arXiv 1608.06993: three dense
blocks on 32 x 32 images, with bottlenecks and half of the channels after each block; with
--blocks 6,12,24,16 --growth 32 --subsample it is DenseNet-121. The export is one for inference, as
tf2onnx makes by default: --as-training puts BatchNorm back.

Needs the extra ``tensorflow`` (TensorFlow, Keras 3 and tf2onnx).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if "--train" in sys.argv and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
    # Large tensors go back to the system when they go, so that what is left can be seen: no pool of
    # oneDNN's, and none of the C library's.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "TF_ENABLE_ONEDNN_OPTS": "0"}
    os.execv(sys.executable, [sys.executable, *sys.argv])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf


def densenet(
    depth: int = 100,
    growth: int = 12,
    classes: int = 10,
    size: int = 32,
    seed: int = 0,
    blocks: Sequence[int] = (),
    subsample: bool = False,
) -> keras.Model:
    """DenseNet-BC of ``depth`` layers (6 n + 4), ``growth`` channels for each.

    ``blocks``: layers in each dense block, in place of three blocks of a depth. ``subsample``:
    begin with a convolution and a pooling of stride 2, as for large images.

    Raises:
        ValueError: an impossible depth.
    """
    if not blocks and (depth < 10 or (depth - 4) % 6):
        raise ValueError(f"depth {depth} is not 6 n + 4")
    blocks = blocks or [(depth - 4) // 6] * 3
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    count = [0]

    def composite(x: Any, filters: int, kernel: int) -> Any:
        count[0] += 1
        x = layers.BatchNormalization(name=f"norm{count[0]}")(x)
        x = layers.Activation("relu", name=f"relu{count[0]}")(x)
        return layers.Conv2D(
            filters,
            kernel,
            padding="same",
            use_bias=False,
            name=f"conv{count[0]}",
            kernel_initializer="he_normal",
        )(x)

    image = keras.Input((size, size, 3), name="image")
    channels = 2 * growth
    first: dict[str, Any] = {"padding": "same", "use_bias": False, "name": "conv0"}
    if subsample:
        x = layers.Conv2D(channels, 7, strides=2, **first)(image)
        x = layers.BatchNormalization(name="norm0")(x)
        x = layers.Activation("relu", name="relu0")(x)
        x = layers.MaxPooling2D(3, 2, padding="same", name="pool")(x)
    else:
        x = layers.Conv2D(channels, 3, **first)(image)
    for block, count_of_layers in enumerate(blocks):
        for number in range(count_of_layers):
            y = composite(composite(x, 4 * growth, 1), growth, 3)
            x = layers.Concatenate(name=f"join{block}_{number}")([x, y])
            channels += growth
        if block < len(blocks) - 1:
            channels //= 2
            x = layers.AveragePooling2D(2, name=f"pool{block}")(composite(x, channels, 1))
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Activation("relu", name="relu")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, layers.Dense(classes, name="classes")(x), name="densenet")


def export(model: keras.Model, path: str | Path) -> None:
    """Writes the model as ONNX with tf2onnx; the batch is open."""
    import tf2onnx

    specs = [tf.TensorSpec((None, *t.shape[1:]), t.dtype, name=t.name) for t in model.inputs]
    function = tf.function(lambda *inputs: model(*inputs), input_signature=specs)
    tf2onnx.convert.from_function(function, input_signature=specs, opset=17, output_path=str(path))


def load(path: str | Path) -> Any:
    """A script of ``memcli export`` as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step(
    model: keras.Model, trained: keras.Model, images: tf.Tensor, labels: tf.Tensor
) -> tuple[float, list[np.ndarray], int]:
    """Loss, gradients, and the bytes held between the forward and the backward pass."""
    gc.collect()
    before = resident_bytes()
    with tf.GradientTape() as tape:
        logits = trained(images, training=True)
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        )
    held = resident_bytes() - before
    gradients = tape.gradient(loss, model.trainable_variables)
    return float(loss), [tf.convert_to_tensor(g).numpy() for g in gradients], held


def resident_bytes() -> int:
    """Of this process, by Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def compare(model: keras.Model, script: str, batch: int) -> None:
    """Trains a step of the model as it is and wrapped, from the same state."""
    random = np.random.default_rng(0)
    shape = (batch, *model.inputs[0].shape[1:])
    images = tf.constant(random.standard_normal(shape), tf.float32)
    labels = tf.constant(random.integers(0, model.output.shape[-1], batch), tf.int32)
    start = [variable.numpy() for variable in model.variables]
    wrapped = load(script).recompute(model)
    results = []
    for trained in (model, wrapped, model, wrapped):  # the first of each warms up
        for variable, value in zip(model.variables, start, strict=True):
            variable.assign(value)
        results.append(step(model, trained, images, labels))
    (loss, gradients, held), (again, others, less) = results[2:]
    scale = max(float(np.abs(g).max()) for g in gradients)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(gradients, others, strict=True))
    print(f"batch {batch}: held {held / 2**20:,.0f} MiB as it is, {less / 2**20:,.0f} MiB wrapped")
    print(f"loss {loss:.6f} and {again:.6f}")
    print(f"gradients differ by {apart / scale:.1e} of the largest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--growth", type=int, default=12)
    parser.add_argument("--blocks", help="layers in each dense block, as 6,12,24,16")
    parser.add_argument("--subsample", action="store_true", help="strides of 2 to begin with")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the ONNX file")
    parser.add_argument("--train", metavar="SCRIPT", help="compare a step with and without it")
    parser.add_argument("--batch", type=int, default=16, help="for --train")
    options = parser.parse_args()
    blocks = [int(n) for n in options.blocks.split(",")] if options.blocks else []
    model = densenet(options.depth, options.growth, blocks=blocks, subsample=options.subsample)
    if options.output:
        export(model, options.output)
        print(f"wrote {options.output}: {model.count_params():,} parameters")
    if options.train:
        compare(model, options.train, options.batch)


if __name__ == "__main__":
    main()
