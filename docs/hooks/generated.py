"""Parts of pages that are made from the code: methods, settings, commands, models, suites.

Each function takes the argument of its line ``{{ name argument }}`` and returns Markdown.
"""

from __future__ import annotations

from listed_parts import cards, commands, families, lora_presets, models, suites
from method_parts import catalogue, methods
from setting_parts import block, budgets, configuration, quick
from words import table

__all__ = ["GENERATED", "catalogue", "commands", "table"]

GENERATED = {
    function.__name__: function
    for function in (
        methods,
        configuration,
        block,
        quick,
        budgets,
        commands,
        models,
        families,
        suites,
        lora_presets,
        cards,
    )
}
