"""Layer modules and their specs."""

from __future__ import annotations

import ast
import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from streamline.engine.decoder import Decoder
from streamline.modeling import modeling_layers
from streamline.modeling import modeling_streamline as modeling
from streamline.modeling.modeling_layers import (
    BUILDERS,
    FFN,
    LayerModule,
    LinearMap,
    Repeated,
    Stack,
    SwiGLU,
    build,
    builder,
    spec_of,
)
from streamline.modeling.modeling_streamline import FILES
from streamline.testing.models import tiny_config, tiny_model

MODULES = [
    FFN(32, 48),
    FFN(32, 48, activation="gelu", bias=False, residual=True),
    SwiGLU(32, 40),
    SwiGLU(32, 40, bias=True, residual=True),
    LinearMap(32),
    LinearMap(32, bias=False),
    Stack([FFN(32, 8), Repeated(SwiGLU(32, 8), 2)]),
    Repeated(FFN(32, 8), 3),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_spec_builds_the_same_module(module: LayerModule) -> None:
    config = tiny_config("llama")
    spec = json.loads(json.dumps(module.spec()))
    again = build(spec, config, nn.Identity())
    again.load_state_dict(module.state_dict())
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), module(x))
    assert spec_of(again) == module.spec()


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_called_like_a_layer(module: LayerModule) -> None:
    x = torch.zeros(1, 3, 32)
    plain = module(x, None, position_ids=None, past_key_values=None)
    module = copy.deepcopy(module)
    module.tuple_output = True
    assert torch.equal(module(x, "alibi", use_cache=False)[0], plain)


def test_formulas() -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    ffn, gated = FFN(8, 6, residual=True), SwiGLU(8, 6)
    expected = x + ffn.fc2(torch.relu(ffn.fc1(x)))
    torch.testing.assert_close(ffn(x), expected)
    gate = gated.gate_proj(x)
    torch.testing.assert_close(
        gated(x), gated.down_proj(gate * torch.sigmoid(gate) * gated.up_proj(x))
    )


def test_shared_form_has_one_set_of_weights() -> None:
    one = FFN(8, 4)
    module = Repeated(one, 3)
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(x), one(one(one(x))))
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in one.parameters())
    assert module.sequence() == [one] * 3


def test_a_plain_layer_needs_no_spec() -> None:
    layer = Decoder(tiny_model("llama", n_layers=1)).layers[0]
    assert spec_of(layer) == {"kind": "layer"}
    assert build({"kind": "layer"}, tiny_config("llama"), layer) is layer


def test_a_new_kind_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_layers, "BUILDERS", dict(BUILDERS))

    @builder("identity")
    def make(spec: object, config: object, layer: nn.Module) -> nn.Module:
        return nn.Identity()

    assert isinstance(
        build({"kind": "identity"}, tiny_config("llama"), nn.Linear(1, 1)), nn.Identity
    )


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown kind of layer 'fnn'; known: ffn"):
        build({"kind": "fnn"}, tiny_config("llama"), nn.Identity())
    with pytest.raises(ValueError, match="unknown activation 'tanh'; known: relu"):
        FFN(4, 4, activation="tanh")
    with pytest.raises(ValueError, match="at least once, got times=0"):
        Repeated(FFN(4, 4), 0)


@pytest.mark.parametrize("name", FILES)
def test_copied_files_stand_alone(name: str) -> None:
    tree = ast.parse((Path(modeling.__file__).parent / name).read_text(encoding="utf-8"))
    siblings = {Path(there).stem for there in FILES}
    outside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add((node.module or "").split(".")[0])
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module in siblings
    assert outside <= {"torch", "transformers", *sys.stdlib_module_names}
