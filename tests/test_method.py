from __future__ import annotations

from typing import Any, ClassVar

import pytest

from streamline.errors import ConfigError
from streamline.method import DepthMethod, Method


@pytest.mark.parametrize("base", [Method, DepthMethod])
@pytest.mark.parametrize(
    ("old", "new"), [("whole", "returns_model"), ("streams", "supports_streaming")]
)
def test_an_attribute_under_its_old_name_is_refused_with_the_new_one(
    base: type[Method], old: str, new: str
) -> None:
    attributes: dict[str, Any] = {old: True, "__module__": "a.plugin"}
    with pytest.raises(ConfigError, match=rf"a\.plugin\.Mine sets `{old}`.*called `{new}`"):
        type("Mine", (base,), attributes)


def test_an_old_name_that_comes_from_a_mixin_is_refused_too() -> None:
    class Mixin:
        whole: ClassVar[bool] = True

    with pytest.raises(ConfigError, match="returns_model"):
        type("Mine", (Mixin, DepthMethod), {})
