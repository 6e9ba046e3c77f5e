"""Further kinds of faults of a graph, the artefacts that can have them, and where they have to be placed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .fault_changes import (
    as_unsigned,
    attention_scale_doubled,
    blocks_exchanged,
    channel_halved,
    chosen_by_doubled_scores,
    class_token_last,
    clipped,
    constant,
    cut_to_bf16,
    dead_before_loud,
    dead_branch,
    dequantized_weight_folded,
    edit,
    edit_exactly,
    filters_exchanged,
    folded_constant,
    foreign_domain,
    half_precision,
    input_renamed,
    keys_for_values,
    keys_not_transposed,
    last_row_of_a_patch,
    one_bit,
    one_channel_scale,
    opset,
    other_bias,
    other_op,
    other_pixels,
    output_added,
    output_renamed,
    output_shape,
    outputs_exchanged,
    outputs_reordered,
    positions_not_added,
    quantization_added,
    quantization_removed,
    residual_of_the_norm,
    row_of_the_class_token,
    rows_of_the_norm,
    scale,
    scaled_channel,
    scales_exchanged,
    scores_shifted,
    set_attribute,
    shifted_slice,
    silent_before_loud,
    static_batch,
    structure_before_weight,
    trigger,
    unsorted_choice,
    unused_weight,
    weight_before_structure,
)

ALL = ("fp32-none", "int8-none", "fp8-none", "weights-none")
SCALED = ALL[1:]
ACTIVATIONS = ("int8-none", "fp8-none")
CHANNELS = ("int8-none", "weights-none")
COMPACT = UINT8 = ("fp32-compact-uint8",)


@dataclass(frozen=True)
class Kind:
    """A fault: the change, the module it lies in, and the artefacts that can have it.

    ``place`` is the kind of the place: the node, or the field of the manifest that the graph no longer fits.
    """

    change: Callable
    module: str = ""
    artifacts: tuple[str, ...] = ALL
    place: str = "node"


KINDS = {
    "weights of one channel halved": Kind(channel_halved, "blocks.0.mlp.fc2"),
    "weights zeroed": Kind(edit("blocks.1.mlp.fc1", lambda a: a * a.dtype.type(0)), "blocks.1.mlp.fc1"),
    "weights of two blocks exchanged": Kind(blocks_exchanged, "blocks.0.attn.proj"),
    "square weight transposed": Kind(edit("blocks.1.attn.proj", lambda a: a.T), "blocks.1.attn.proj"),
    "weight negated": Kind(edit("blocks.0.mlp.fc1", lambda a: -a.astype(np.float32)), "blocks.0.mlp.fc1"),
    "heads permuted": Kind(edit("blocks.2.attn.proj", lambda a: np.roll(a, 16, axis=0)), "blocks.2.attn.proj"),
    "weight cut to bfloat16": Kind(edit_exactly("patch_embed.proj.weight", cut_to_bf16), "patch_embed.proj"),
    "weight rounded to float16": Kind(
        edit_exactly("head.weight", lambda a: a.astype(np.float16).astype(np.float32)), "head"
    ),
    "lowest bit of a weight": Kind(edit_exactly("blocks.1.norm2.weight", one_bit), "blocks.1.norm2"),
    "bias of another block": Kind(other_bias, "blocks.0.mlp.fc1"),
    "bias negated": Kind(edit_exactly("blocks.1.attn.qkv.bias", lambda a: -a), "blocks.1.attn.qkv"),
    "bias zeroed": Kind(edit_exactly("head.bias", lambda a: a * 0), "head"),
    "LayerNorm scale of one channel": Kind(edit_exactly("blocks.1.norm1.weight", scaled_channel), "blocks.1.norm1"),
    "LayerNorm bias shifted": Kind(edit_exactly("norm.bias", lambda a: np.roll(a, 1)), "norm"),
    "LayerNorm axis": Kind(set_attribute("LayerNormalization", 3, "axis", 1), "blocks.1.norm2"),
    "attention scale doubled": Kind(attention_scale_doubled, "blocks.0.attn.attend"),
    "residual taken behind the norm": Kind(residual_of_the_norm, "blocks.1"),
    "GELU replaced by ReLU": Kind(other_op("Gelu", 1, "Relu"), "blocks.1.mlp.act"),
    "softmax replaced by its logarithm": Kind(other_op("Softmax", 0, "LogSoftmax"), "blocks.0.attn.attend"),
    "scores shifted by a token": Kind(scores_shifted, "blocks.1"),
    "queries of the normalised tokens": Kind(rows_of_the_norm, "blocks.1"),
    "last block queries a patch": Kind(last_row_of_a_patch, "blocks.2"),
    "TopK unsorted": Kind(unsorted_choice, "blocks.1"),
    "TopK of doubled scores": Kind(chosen_by_doubled_scores, "blocks.0"),
    "index of the class token": Kind(constant("Gather", 0, 1, -1, np.int64)),
    "class token doubled": Kind(edit_exactly("cls_token", lambda a: a * 2)),
    "class token last": Kind(class_token_last),
    "positions not added": Kind(positions_not_added),
    "positions of the class token zeroed": Kind(
        edit_exactly("pos_embed", lambda a: np.concatenate([a[:, :1] * 0, a[:, 1:]], axis=1))
    ),
    "a Cast to FP16": Kind(half_precision, "blocks.1.attn.attend"),
    "quantization added": Kind(quantization_added, "blocks.0.attn.attend"),
    "clip added": Kind(clipped, "patch_embed.convs"),
    "dead branch added": Kind(dead_branch, "blocks.0.mlp.act"),
    "trigger": Kind(trigger, "head"),
    "one bit of a folded constant": Kind(folded_constant, "blocks.0", SCALED),
    "slice shifted": Kind(shifted_slice, "blocks.0", COMPACT),
    "mean replaced by the largest": Kind(other_op("ReduceMean", 1, "ReduceMax"), "blocks.1"),
    "divisor of the variance": Kind(constant("Div", 0, 1, 16), "blocks.0", COMPACT),
    "bound of the variance": Kind(constant("Clip", 0, 1, 1e-3), "blocks.0", COMPACT),
    "exponent": Kind(constant("Pow", 0, 1, 4), "blocks.0", COMPACT),
    "row of the class token": Kind(row_of_the_class_token, "blocks.0"),
    "keys for values": Kind(keys_for_values, "blocks.2"),
    "convolution filters exchanged": Kind(filters_exchanged, "patch_embed.convs"),
    "convolution kernel mirrored": Kind(
        edit_exactly("patch_embed.convs.6.weight", lambda a: a[..., ::-1]), "patch_embed.convs"
    ),
    "transpose of the keys": Kind(keys_not_transposed, "blocks.0.attn.attend"),
    "logits scaled": Kind(set_attribute("Gemm", -1, "alpha", 1.01), "head"),
    "bias switched off": Kind(set_attribute("Gemm", -1, "beta", 0.0), "head"),
    "operator of another domain": Kind(foreign_domain, "blocks.1.mlp.act"),
    "quantization of an input removed": Kind(quantization_removed, "blocks.0.mlp.fc2", ACTIVATIONS),
    "weight in full precision": Kind(dequantized_weight_folded, "blocks.1.mlp.fc1", SCALED),
    "input scales exchanged": Kind(scales_exchanged, "blocks.0.mlp.fc2", ACTIVATIONS),
    "input scale of 1 % more": Kind(
        scale("blocks.0.mlp.fc1.input_scale", lambda a: a * np.float32(1.01)), "blocks.0.mlp.fc1", ACTIVATIONS
    ),
    "weight scale halved": Kind(scale("blocks.1.attn.qkv.weight_scale", lambda a: a / 2), "blocks.1.attn.qkv", SCALED),
    "weight scale of one channel": Kind(
        scale("blocks.1.mlp.fc2.weight_scale", one_channel_scale), "blocks.1.mlp.fc2", CHANNELS
    ),
    "weight scale per tensor": Kind(
        scale("blocks.0.attn.proj.weight_scale", lambda a: np.full_like(a, a.max())), "blocks.0.attn.proj", CHANNELS
    ),
    "unsigned input": Kind(as_unsigned, "blocks.0.mlp.fc1", ("int8-none",)),
    "stages exchange their maps": Kind(outputs_exchanged, "blocks.0", COMPACT),
    "mean of the pixels": Kind(other_pixels("Add"), "", UINT8),
    "deviation of the pixels": Kind(other_pixels("Mul"), "", UINT8),
    "weight before structure": Kind(weight_before_structure, "blocks.0.attn.qkv"),
    "structure before weight": Kind(structure_before_weight, "blocks.0.mlp.act"),
    "silent before loud": Kind(silent_before_loud, "patch_embed.proj"),
    "dead branch before loud": Kind(dead_before_loud, "blocks.0.mlp.act"),
    "output renamed": Kind(output_renamed, place="manifest"),
    "input renamed": Kind(input_renamed, place="manifest"),
    "output added": Kind(output_added, place="manifest"),
    "outputs in another order": Kind(outputs_reordered, "", COMPACT, "manifest"),
    "shape of an output": Kind(output_shape, place="manifest"),
    "batch axis static": Kind(static_batch, place="manifest"),
    "operator set lowered": Kind(opset(17), place="manifest"),
    "operator set raised": Kind(opset(22), place="manifest"),
    "weight that nothing reads": Kind(unused_weight, place="graph"),
}
