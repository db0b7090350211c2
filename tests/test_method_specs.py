"""Method specs: fields set in one word of the command line."""

from __future__ import annotations

import pytest

from streamline.errors import ConfigError, UnknownNameError
from streamline.methods.llm_streamline import StreamlineFFN, StreamlineNone
from streamline.registry import base_name, build_method


def test_a_bare_name_has_the_defaults():
    assert build_method("llm-streamline-none") == StreamlineNone()


def test_fields_are_read_as_yaml_and_checked():
    method = build_method("llm-streamline-ffn+init=identity+residual=true+runner_up=1")
    assert method == StreamlineFFN(init="identity", residual=True, runner_up=1)
    assert base_name("llm-streamline-ffn+init=identity") == "llm-streamline-ffn"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("llm-streamline-none+speed=3", "'speed=3' .* does not set a field .* runner_up"),
        (
            "llm-streamline-none+runner_up",
            "write field=value with one of criterion, refit, run",
        ),
        ("llm-streamline-none+runner_up=soon", "runner_up=soon .* is not accepted"),
        ("llm-streamline-layer+init=middle", "init=middle .* is not accepted"),
    ],
)
def test_a_bad_setting_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        build_method(spec)


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean: .*shortgpt"):
        build_method("shortgtp+x=1")
