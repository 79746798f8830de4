"""Run by a test in a process of its own: writes Keras models as ONNX, or trains them with scripts.

python tensorflow_step.py write FOLDER
python tensorflow_step.py train FOLDER      one JSON object on standard output
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="", TF_ENABLE_ONEDNN_OPTS="0")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import keras
import keras_densenet
import numpy as np
import tensorflow as tf

BATCH = 8
layers = keras.layers
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


def residual() -> keras.Model:
    """Sums, BatchNorm and Dropout; a model within the model."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    x = image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(12, 3, padding="same", name="stem")(x)
    inner = inside = keras.Input((16, 16, 12))
    for k in range(4):
        y = layers.Conv2D(12, 3, padding="same", use_bias=False, name=f"conv{k}")(inside)
        y = layers.BatchNormalization(name=f"norm{k}")(y)
        y = layers.Activation("gelu", name=f"gelu{k}")(y)
        y = layers.Dropout(0.2, name=f"drop{k}")(y)
        inside = layers.Add(name=f"sum{k}")([inside, y])
    x = keras.Model(inner, inside, name="body")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, layers.Dense(5, name="classes")(x), name="residual")


def transformer() -> keras.Model:
    """Attention, embeddings and sums that are no layers."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(2)
    tokens = keras.Input((24,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 32, name="words")(tokens)
    for k in range(3):
        y = layers.LayerNormalization(name=f"before{k}")(x)
        y = layers.MultiHeadAttention(4, 8, name=f"attention{k}", dropout=0.1)(y, y)
        x = layers.Add(name=f"first{k}")([x, y])
        y = layers.LayerNormalization(name=f"between{k}")(x)
        y = layers.Dense(128, activation="gelu", name=f"up{k}")(y)
        x = x + layers.Dense(32, name=f"down{k}")(y)
    x = layers.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(tokens, layers.Dense(5, name="classes")(x), name="transformer")


def lstm() -> keras.Model:
    """Recurrent layers, one in both directions."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    x = given = keras.Input((12, 16), name="x")
    x = layers.LSTM(24, return_sequences=True, name="first")(x)
    x = layers.Bidirectional(layers.LSTM(16, return_sequences=True), name="both")(x)
    return keras.Model(given, layers.Dense(5, name="classes")(layers.LSTM(8, name="last")(x)))


MODELS = {
    "densenet": lambda: keras_densenet.densenet(22, 12),
    "residual": residual,
    "transformer": transformer,
    "lstm": lstm,
}


# Run eagerly, as a graph, or both.
HOW = {"densenet": (False, True), "residual": (True,), "transformer": (False,)}


def inputs(model: keras.Model) -> tf.Tensor:
    random = np.random.default_rng(0)
    shape = (BATCH, *model.inputs[0].shape[1:])
    if "int" in model.inputs[0].dtype:
        return tf.constant(random.integers(0, 50, shape), tf.int32)
    return tf.constant(random.standard_normal(shape), tf.float32)


def step(model: keras.Model, trained: keras.Model, graph: bool) -> tuple[list[Any], list[Any]]:
    """Gradients and states after a step."""
    x = inputs(model)

    def run() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(trained(x, training=True) ** 2)
        return tape.gradient(loss, model.trainable_variables)

    gradients = (tf.function(run) if graph else run)()
    states = [v.numpy() for v in model.non_trainable_variables]
    return [tf.convert_to_tensor(g).numpy() for g in gradients], states


def train(name: str, script: Path) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = MODELS[name]()
    wrapped = module.recompute(model)
    start = [v.numpy() for v in model.variables]
    found: dict[str, Any] = {"groups": len(module.GROUPS), "repeated": len(module.REPEATED)}
    for graph in HOW[name]:
        results = []
        for trained in (model, wrapped):
            for variable, value in zip(model.variables, start, strict=True):
                variable.assign(value)
            results.append(step(model, trained, graph))
        (gradients, states), (others, again) = results
        largest = max(float(np.abs(g).max()) for g in gradients)
        apart = max(float(np.abs(a - b).max()) for a, b in zip(gradients, others, strict=True))
        found["graph" if graph else "eager"] = {
            "gradients": len(gradients),
            "difference": apart / largest,
            "states": len(states),
            "equal_states": sum(map(np.array_equal, states, again)),
            "moved_states": sum(
                not np.array_equal(v, s)
                for v, s in zip(
                    [b for b, v in zip(start, model.variables, strict=True) if not v.trainable],
                    states,
                    strict=True,
                )
            ),
        }
    return found


def held(script: Path) -> list[int]:
    """Bytes between the passes of the DenseNet, as it is and wrapped."""
    model = MODELS["densenet"]()
    images = tf.random.stateless_normal((32, 32, 32, 3), (0, 0))
    labels = tf.zeros(32, tf.int32)
    wrapped = keras_densenet.load(script).recompute(model)
    return [keras_densenet.step(model, t, images, labels)[2] for t in (model, wrapped) * 2][2:]


def main() -> None:
    folder = Path(sys.argv[2])
    if sys.argv[1] == "write":
        for name, make in MODELS.items():
            keras_densenet.export(make(), folder / f"{name}.onnx")
        return
    found: dict[str, Any] = {name: train(name, folder / f"{name}_script.py") for name in HOW}
    found["held"] = held(folder / "densenet_script.py")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
