"""What `quantized` reads back is, to the last bit, what torchao does."""

from __future__ import annotations

import json

import pytest
from other_tools import install, printed

pytestmark = pytest.mark.package

CODE = """
import json, sys, torch
from torchao.quantization import IntxUnpackedToInt8Tensor, MappingType
from streamline.baselines import quantized

for bits, group in json.loads(sys.argv[1]):
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(bits)).to(dtype)
        weight[3], weight[5, :32] = 0.0, 1.0
        kind = getattr(torch, f"int{bits}")
        stored = IntxUnpackedToInt8Tensor.from_hp(
            weight.float(), (1, group), kind, mapping_type=MappingType.ASYMMETRIC
        )
        found = quantized.read_back(weight, bits, group)
        assert torch.equal(found, stored.dequantize().to(dtype)), (bits, group, dtype)
        assert found[3].eq(0).all() and 0 < (found - weight).abs().max() < 8 / 2**bits
print("true")
"""


def test_weights_are_those_that_torchao_reads_back(tmp_path):
    install("torchao", tmp_path)
    assert printed(tmp_path, CODE, json.dumps([(4, 32), (8, 32), (8, 96)]))
