"""The table of model families: where each architecture keeps its layers, norms and projections.

This is the only place that knows an architecture by name. A row names where the parts are; what to
do with them is the business of :mod:`streamline.engine.decoder` and of the methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamline.errors import UnsupportedModelError


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where a family of decoder-only models keeps its parts (attribute paths).

    Attributes:
        name: The family's name, as shown to users.
        model_types: The values of ``config.model_type`` it covers.
        base: Path from the causal-LM model to the module whose forward embeds and runs the layers.
        layers: Path from the causal-LM model to the list of layers.
        norm: Path from the causal-LM model to the final norm.
        head: Path from the causal-LM model to the output projection.
        project_out: Path to a projection between final norm and head, if the family may have one.
        attention: Path from a layer to its attention module.
        mlp: Path from a layer to its MLP; empty when its projections lie in the layer itself.
        attention_norm: Path from a layer to the norm before attention; empty where there is none.
        mlp_norm: Path from a layer to the norm before the MLP; empty where there is none.
        extra_norms: Norms of what a layer writes (after attention, after the MLP).
        q: Path from a layer to the query projection; empty where q, k and v are fused.
        k: Path to the key projection.
        v: Path to the value projection.
        qkv: Path to the fused projection; empty where they are separate.
        qkv_layout: Order of its outputs: ``"blocks"`` for all queries, all keys, all values,
            ``"heads"`` for q, k and v of each head in turn, empty where it is another.
        o: Path to the attention's output projection.
        mlp_in: Paths to the projections into the MLP (gate before up). In a mixture they are one
            tensor for all experts, [experts, outputs, inputs].
        mlp_out: Path to the projection out of the MLP, likewise.
        mixture: Whether the MLP is one of several experts that a router chooses for each token.
        norm_kind: ``"rms"`` or ``"layer"``.
        positions: Path to learned position embeddings, if any.
        tree: Whether attention accepts an arbitrary 4-D mask with explicit positions.
        tuple_output: Whether a layer returns a tuple with the hidden states first.
        parallel: Whether attention and MLP read the same input (parallel residual).
    """

    name: str
    model_types: tuple[str, ...]
    base: str = "model"
    layers: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    project_out: str = ""
    attention: str = "self_attn"
    mlp: str = "mlp"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    extra_norms: tuple[str, ...] = ()
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    qkv: str = ""
    qkv_layout: str = ""
    o: str = "self_attn.o_proj"
    mlp_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_out: str = "mlp.down_proj"
    norm_kind: str = "rms"
    positions: str = ""
    mixture: bool = False
    tree: bool = True
    tuple_output: bool = False
    parallel: bool = False

    @property
    def fused(self) -> bool:
        """Whether queries, keys and values come from one projection."""
        return bool(self.qkv)

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of every linear projection of a layer, attention first."""
        heads = (self.qkv,) if self.fused else (self.q, self.k, self.v)
        return (*heads, self.o, *self.mlp_in, self.mlp_out)


_EXPERTS: dict[str, Any] = {
    "mlp_in": ("mlp.experts.gate_up_proj",),
    "mlp_out": "mlp.experts.down_proj",
    "mixture": True,
}

FAMILIES: tuple[Family, ...] = (
    Family(name="llama", model_types=("llama",)),
    Family(name="mistral", model_types=("mistral",)),
    Family(name="qwen2", model_types=("qwen2",)),
    Family(name="qwen3", model_types=("qwen3",)),
    Family(
        name="gemma2",
        model_types=("gemma2",),
        mlp_norm="pre_feedforward_layernorm",
        extra_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    Family(
        name="gemma3",
        model_types=("gemma3_text",),
        mlp_norm="pre_feedforward_layernorm",
        extra_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    Family(
        name="olmo2",
        model_types=("olmo2",),
        attention_norm="",
        mlp_norm="",
        extra_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    Family(name="mixtral", model_types=("mixtral",), **_EXPERTS),
    Family(name="olmoe", model_types=("olmoe",), **_EXPERTS),
    Family(name="qwen3_moe", model_types=("qwen3_moe",), **_EXPERTS),
    Family(
        name="phi3",
        model_types=("phi3",),
        q="",
        k="",
        v="",
        qkv="self_attn.qkv_proj",
        qkv_layout="blocks",
        mlp_in=("mlp.gate_up_proj",),
    ),
    Family(
        name="opt",
        model_types=("opt",),
        layers="model.decoder.layers",
        norm="model.decoder.final_layer_norm",
        project_out="model.decoder.project_out",
        mlp="",
        attention_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
        o="self_attn.out_proj",
        mlp_in=("fc1",),
        mlp_out="fc2",
        norm_kind="layer",
        positions="model.decoder.embed_positions",
    ),
    Family(
        name="gpt2",
        model_types=("gpt2",),
        base="transformer",
        layers="transformer.h",
        norm="transformer.ln_f",
        attention="attn",
        attention_norm="ln_1",
        mlp_norm="ln_2",
        q="",
        k="",
        v="",
        qkv="attn.c_attn",
        qkv_layout="blocks",
        o="attn.c_proj",
        mlp_in=("mlp.c_fc",),
        mlp_out="mlp.c_proj",
        norm_kind="layer",
        positions="transformer.wpe",
    ),
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        base="gpt_neox",
        layers="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        attention="attention",
        q="",
        k="",
        v="",
        qkv="attention.query_key_value",
        qkv_layout="heads",
        o="attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_out="mlp.dense_4h_to_h",
        norm_kind="layer",
        parallel=True,
    ),
    Family(
        name="falcon",
        model_types=("falcon",),
        base="transformer",
        layers="transformer.h",
        norm="transformer.ln_f",
        attention="self_attention",
        q="",
        k="",
        v="",
        qkv="self_attention.query_key_value",
        o="self_attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_out="mlp.dense_4h_to_h",
        norm_kind="layer",
        tree=False,
        tuple_output=True,
        parallel=True,
    ),
    Family(
        name="bloom",
        model_types=("bloom",),
        base="transformer",
        layers="transformer.h",
        norm="transformer.ln_f",
        attention="self_attention",
        q="",
        k="",
        v="",
        qkv="self_attention.query_key_value",
        o="self_attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_out="mlp.dense_4h_to_h",
        norm_kind="layer",
        tree=False,
        tuple_output=True,
    ),
)


def family_of(model_type: str) -> Family:
    """The family that covers a ``config.model_type``.

    Args:
        model_type: As in the model's ``config.json``.

    Returns:
        The row of the table.

    Raises:
        UnsupportedModelError: If no row covers it.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(kind for family in FAMILIES for kind in family.model_types)
    raise UnsupportedModelError(
        f"model type {model_type!r} has no row in the table of families; "
        f"supported: {known}. Add a row to streamline/engine/families.py to support it."
    )
