from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, Path, dense_path
from streamline.plan import Span
from streamline.testing.models import tiny_model
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.distillation.teacher import Distillation, Teacher
from streamline.training.distillation.trainees import weights
from streamline.training.flops import adapting_flops, distilling_flops, replacing_flops
from streamline.training.student import Recipe, Student

TOKENS = 24


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 48, bias=False), nn.Linear(48, 32, bias=False)

    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states + self.down(self.up(hidden_states))


@pytest.fixture
def decoder():
    return Decoder(tiny_model("llama", n_layers=4).eval())


def student():
    return Student(span=Span(1, 3), module=Block(), recipe=Recipe())


def matrices(*modules):
    return sum(p.numel() for m in modules for p in m.parameters() if p.dim() == 2)


def test_a_replacement_takes_what_the_counter_of_flops_sees(decoder):
    one = student()
    inputs = torch.randn(1, TOKENS, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        one.module(inputs).sum().backward()
    layers = 2 * TOKENS * matrices(*decoder.layers[:3])
    assert replacing_flops(decoder, [one], "mse", TOKENS) == layers + counter.get_total_flops()


def test_two_replacements_need_one_teacher(decoder):
    first, second = student(), student()
    alone = replacing_flops(decoder, [first], "mse", TOKENS)
    both = replacing_flops(decoder, [first, second], "mse", TOKENS)
    assert both - alone == 6 * TOKENS * matrices(second.module)


def test_the_loss_of_the_whole_model_takes_what_the_counter_sees_but_for_attention(decoder):
    decoder.model.requires_grad_(False)
    one, nodes = student(), dense_path(decoder).nodes
    path = Path(decoder, (nodes[0], Node(one.module, 1), nodes[3]))
    entry = decoder.enter(torch.arange(TOKENS)[None])
    hidden = entry.hidden.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            hidden = decoder.run(nodes[0].module, hidden, entry, 0)
        hidden = hidden.requires_grad_()
        for node in path.nodes[1:]:
            hidden = decoder.run(node.module, hidden, entry, node.layer)
        decoder.leave(hidden).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    attention = sum(n for op, n in counted.items() if "attention" in str(op) or "bmm" in str(op))
    expected = counter.get_total_flops() - attention
    assert replacing_flops(decoder, [one], "lm", TOKENS, path) == expected


def test_adapters_pass_gradients_through_all_weights(decoder):
    weights = matrices(*decoder.layers) + decoder.model.lm_head.weight.numel()
    assert adapting_flops(decoder.model, 100, TOKENS) == TOKENS * (4 * weights + 600)


@pytest.mark.parametrize("trainees", ["replacement", "all"])
def test_distillation_takes_what_the_counter_sees_but_for_attention(decoder, trainees):
    decoder.model.requires_grad_(False)
    nodes = dense_path(decoder).nodes
    block = Block().requires_grad_(False)
    path = Path(decoder, (nodes[0], Node(block, 1), nodes[3]))
    pupil = Decoder(assemble(path))
    ids = torch.arange(TOKENS)[None]
    settings = DistillationSettings(trainees=trainees)
    with weights(pupil, decoder, trainees):
        teacher = Teacher.of(Distillation(decoder, "", settings), pupil)
        with FlopCounterMode(display=False) as counter:
            teacher.divergence(ids, torch.ones_like(ids, dtype=torch.bool)).backward()
    head = decoder.model.lm_head.weight.numel()  # the last token predicts nothing
    counted = counter.get_flop_counts()["Global"]
    attention = sum(n for op, n in counted.items() if "attention" in str(op) or "bmm" in str(op))
    unread = 2 * head * (4 if trainees == "all" else 3)
    if trainees == "replacement":  # no gradient is wanted of what enters its first matrix
        unread += 2 * TOKENS * block.up.weight.numel()
    found = distilling_flops(pupil.model, decoder, TOKENS, shared=teacher.shared)
    assert teacher.shared == (1 if trainees == "replacement" else 0)
    assert found == counter.get_total_flops() - attention + unread


def test_of_a_mixture_the_experts_that_a_token_meets_are_counted():
    decoder = Decoder(tiny_model("olmoe", n_layers=4, num_experts=8, num_experts_per_tok=2))
    same = Decoder(tiny_model("olmoe", n_layers=4, num_experts=2, num_experts_per_tok=2))
    routers = 2 * TOKENS * 3 * 32 * (8 - 2)
    found, wanted = (replacing_flops(d, [student()], "mse", TOKENS) for d in (decoder, same))
    assert found == wanted + routers
