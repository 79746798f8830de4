"""Architectures in training under plans of ``memcli.torch.plan``, beside themselves without one.

    python benchmarks/module_architectures.py [--only NAME ...] [--budget 50%] [--list]

Each is planned within the budget and trained for two steps, beside a copy without a plan: outputs,
gradients, parameters and buffers must have the same bits. ``memory()`` must say what the plan says,
to the byte, and peaks measured in real steps, storage by storage, at most 0.5% more or less (a
library's work space). Random weights, small sizes, training mode, one thread, the CPU. Networks of
transformers, peft and diffusers are left out where these are not installed.
Status 1 where a row is not as planned, or refused.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from module_networks import (
    DeepLab,
    DenseNet,
    EfficientFPN,
    InstanceNorms,
    ResNet,
    Tagger,
    Translator,
    UNet,
    ViT,
    mobile_net,
    rrelu,
)
from module_training import Case, compared

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

IMAGE = (2, 3, 64, 64)
LLAMA: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def words(count: int = 64, length: int = 24) -> torch.Tensor:
    """Two sentences."""
    return torch.randint(5, count, (2, length))


def text(model: Any) -> Case:
    """A causal language model with its loss, called as the Trainer does."""
    ids = words()
    return Case(
        model, (), {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    )


def labelled(model: Any) -> Case:
    """A classifier of images with its loss."""
    return Case(model, (), {"pixel_values": torch.randn(IMAGE), "labels": torch.tensor([0, 1])})


def hf(name: str, config: str, **settings: Any) -> Any:
    """A model of transformers with random weights."""
    import transformers

    return getattr(transformers, name)(getattr(transformers, config)(**settings))


def lora() -> Case:
    """Llama whose attention is trained through LoRA."""
    import peft

    settings = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    return text(peft.get_peft_model(hf("LlamaForCausalLM", "LlamaConfig", **LLAMA), settings))


def clip() -> Case:
    """Both towers, with the contrastive loss."""
    both = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2}
    model = hf(
        "CLIPModel",
        "CLIPConfig",
        text_config={
            **both,
            **heads,
            "vocab_size": 64,
            "max_position_embeddings": 32,
            "eos_token_id": 63,
            "bos_token_id": 1,
            "pad_token_id": 0,
        },
        vision_config={**both, **heads, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    ids = words()
    return Case(
        model,
        (),
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(2, 3, 32, 32),
            "return_loss": True,
        },
    )


def whisper() -> Case:
    """Sounds to words."""
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = hf(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=50,
        max_target_positions=32,
        num_mel_bins=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        **heads,
    )
    return Case(model, (), {"input_features": torch.randn(2, 16, 100), "labels": words()})


def wav2vec2() -> Case:
    """Without LayerDrop and SpecAugment, which decide in Python what runs; CTC stays outside."""
    model = hf(
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16, 16),
        conv_stride=(5, 2, 2),
        conv_kernel=(10, 3, 3),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        layerdrop=0.0,
        apply_spec_augment=False,
    )
    return Case(model, (), {"input_values": torch.randn(2, 2000)})


def diffusion() -> Case:
    """The noise predictor of a diffusion model, under text."""
    import diffusers

    model = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return Case(model, (torch.randn(2, 4, 16, 16), torch.tensor([3, 5]), torch.randn(2, 7, 32)))


def gpt2() -> Any:
    """GPT-2 with its cache of keys and values, as it comes."""
    return hf(
        "GPT2LMHeadModel",
        "GPT2Config",
        vocab_size=64,
        n_positions=32,
        n_embd=32,
        n_layer=3,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )


ARCHITECTURES: dict[str, tuple[str, Callable[[], Case]]] = {
    "resnet-50": ("", lambda: Case(ResNet(), (torch.randn(4, 3, 64, 64),))),
    "vit-s": ("", lambda: Case(ViT(), (torch.randn(IMAGE),))),
    "convnext": (
        "transformers",
        lambda: labelled(
            hf(
                "ConvNextForImageClassification",
                "ConvNextConfig",
                hidden_sizes=[8, 16, 32, 64],
                depths=[2, 2, 2, 2],
                drop_path_rate=0.1,
            )
        ),
    ),
    "swin-t": (
        "transformers",
        lambda: labelled(
            hf(
                "SwinForImageClassification",
                "SwinConfig",
                image_size=64,
                embed_dim=16,
                depths=[2, 2],
                num_heads=[2, 4],
                window_size=4,
            )
        ),
    ),
    "mobilenetv3": ("", lambda: Case(mobile_net(), (torch.randn(IMAGE),))),
    "efficientnet-fpn": ("", lambda: Case(EfficientFPN(), (torch.randn(IMAGE),))),
    "u-net": ("", lambda: Case(UNet(), (torch.randn(2, 1, 32, 32),))),
    "u-net-3d": ("", lambda: Case(UNet(3, 4, 2), (torch.randn(1, 1, 16, 16, 16),))),
    "densenet-121": ("", lambda: Case(DenseNet(), (torch.randn(IMAGE),))),
    "deeplabv3+": (
        "",
        lambda: Case(DeepLab(), (torch.randn(IMAGE),), loss=lambda y: y["out"].square().mean()),
    ),
    "segformer": (
        "transformers",
        lambda: Case(
            hf(
                "SegformerForSemanticSegmentation",
                "SegformerConfig",
                hidden_sizes=[8, 16, 32, 64],
                depths=[1, 1, 1, 1],
                num_attention_heads=[1, 2, 2, 4],
                decoder_hidden_size=32,
                num_labels=3,
            ),
            (),
            {"pixel_values": torch.randn(IMAGE), "labels": torch.randint(0, 3, (2, 64, 64))},
        ),
    ),
    "clip": ("transformers", clip),
    "nn.Transformer": (
        "",
        lambda: Case(Translator(), (torch.randint(0, 40, (2, 20)), torch.randint(0, 40, (2, 18)))),
    ),
    "bert": (
        "transformers",
        lambda: text(
            hf(
                "BertForMaskedLM",
                "BertConfig",
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=64,
            )
        ),
    ),
    "gpt-2": ("transformers", lambda: text(gpt2())),
    "llama": ("transformers", lambda: text(hf("LlamaForCausalLM", "LlamaConfig", **LLAMA))),
    "llama-lora": ("peft", lora),
    "gemma": (
        "transformers",
        lambda: text(hf("GemmaForCausalLM", "GemmaConfig", **LLAMA, head_dim=8)),
    ),
    "qwen": ("transformers", lambda: text(hf("Qwen2ForCausalLM", "Qwen2Config", **LLAMA))),
    "mixtral": (
        "transformers",
        lambda: text(hf("MixtralForCausalLM", "MixtralConfig", **LLAMA, num_local_experts=4)),
    ),
    "t5": (
        "transformers",
        lambda: text(
            hf(
                "T5ForConditionalGeneration",
                "T5Config",
                vocab_size=64,
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                decoder_start_token_id=0,
            )
        ),
    ),
    "whisper": ("transformers", whisper),
    "wav2vec2": ("transformers", wav2vec2),
    "diffusers-unet": ("diffusers", diffusion),
    "lstm-tagger": (
        "",
        lambda: Case(Tagger(), (torch.randint(0, 50, (8, 24)), torch.randint(0, 6, (8, 24)))),
    ),
    "rrelu": ("", lambda: Case(rrelu(), (torch.randn(4, 3, 16, 16),))),
    "instance-norm": ("", lambda: Case(InstanceNorms(), (torch.randn(2, 3, 32, 32),))),
}


def main() -> int:
    """Runs the table; 1 where a row is not as planned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--list", action="store_true", help="print the names")
    options = parser.parse_args()
    if options.list:
        print("\n".join(ARCHITECTURES))
        return 0
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.simplefilter("ignore")
    failed = 0
    print(
        f"{'architecture':<17} {'plain':>9} {'planned':>9} {'part':>6} {'again':>6} {'plan s':>6}"
    )
    for name in options.only or ARCHITECTURES:
        package, make = ARCHITECTURES[name]
        if package and importlib.util.find_spec(package) is None:
            print(f"{name:<17} left out: {package} is not installed")
            continue
        torch.manual_seed(0)
        row = compared(make(), options.budget)
        if row.refused:
            failed += 1
            print(f"{name:<17} refused: {row.refused}", flush=True)
            continue
        said = "bits equal, memory as planned"
        if row.measured != row.planned or row.measured_baseline != row.baseline:
            said += (
                f" (measured {row.measured / row.planned - 1:+.2%}, "
                f"plain {row.measured_baseline / row.baseline - 1:+.2%})"
            )
        failed += bool(row.wrong)
        print(
            f"{name:<17} {row.baseline / 2**20:9.3f} {row.planned / 2**20:9.3f} "
            f"{row.planned / row.baseline:6.1%} {row.recomputed:6.1%} {row.seconds:6.1f}  "
            + ("; ".join(row.wrong[:4]) or said),
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
