"""Run by a test in a process of its own: JAX functions, and a Keras model on JAX, with a script.

python jax_step.py FOLDER      one JSON object on standard output
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(
    JAX_PLATFORMS="cpu",
    KERAS_BACKEND="jax",
    TF_CPP_MIN_LOG_LEVEL="3",
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
)

import jax
import jax.numpy as jnp

BLOCKS, WIDTH = 8, 64


def blocks(parameters: Any, x: Any, key: Any) -> Any:
    """Named as the layers of the file that the script comes from."""
    for k, (up, down) in enumerate(parameters):
        with jax.named_scope(f"block{k}"):
            h = jax.nn.gelu(x @ up)
            h = h * jax.random.bernoulli(jax.random.fold_in(key, k), 0.9, h.shape)
            x = x + jnp.sin(h / (1 + jnp.abs(h))) @ down
    return (x**2).mean()


def compared(plain: Any, wrapped: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Largest difference between gradients, and the bytes that XLA sets aside for each."""
    results, sizes = [], []
    for function in (plain, wrapped):
        step = jax.jit(jax.value_and_grad(function, **options))
        compiled = step.lower(*arguments).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
        results.append(jax.tree_util.tree_leaves(compiled(*arguments)))
    largest = max(float(jnp.abs(a).max()) for a in results[0])
    apart = max(float(jnp.abs(a - b).max()) for a, b in zip(*results, strict=True))
    return {"difference": apart / largest, "bytes": sizes, "arrays": len(results[0])}


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_keras(script: Path) -> dict[str, Any]:
    """The Keras network that TensorFlow exported, trained on JAX."""
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    x = image = keras.Input((16, 16, 3), name="image")
    for k in range(BLOCKS):
        x = layers.Conv2D(16, 3, padding="same", use_bias=False, name=f"conv{k}")(x)
        x = layers.BatchNormalization(name=f"norm{k}")(x)
        x = layers.Activation("gelu", name=f"gelu{k}")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    model = keras.Model(image, layers.Dense(5, name="classes")(x), name="chain")
    images = jax.random.normal(jax.random.PRNGKey(1), (8, 16, 16, 3))

    def loss(trained: Any, states: Any, images: Any) -> Any:
        outputs, new = model.stateless_call(trained, states, images, training=True)
        return (outputs**2).sum(), new

    values = [
        [v.value for v in part]
        for part in (model.trainable_variables, model.non_trainable_variables)
    ]
    return compared(loss, load(script).recompute(loss), *values, images, has_aux=True)


def main() -> None:
    folder = Path(sys.argv[1])
    keys = jax.random.split(jax.random.PRNGKey(0), 2 * BLOCKS + 2)
    parameters = [
        (
            0.1 * jax.random.normal(keys[2 * k], (WIDTH, 4 * WIDTH)),
            0.1 * jax.random.normal(keys[2 * k + 1], (4 * WIDTH, WIDTH)),
        )
        for k in range(BLOCKS)
    ]
    x = jax.random.normal(keys[-2], (256, WIDTH))
    script = load(folder / "blocks_script.py")
    found = {
        "blocks": compared(blocks, script.recompute(blocks), parameters, x, keys[-1]),
        "groups": len(script.GROUPS),
        "keras": on_keras(folder / "chain_script.py"),
    }
    try:
        script.recompute(blocks, [("elsewhere",)])(parameters, x, keys[-1])
    except ValueError as error:
        found["refused"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
