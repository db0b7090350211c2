"""Accelerators that a run can be planned for, by name, with their makers' figures.

Peaks are those of dense matrices (a data sheet's figures "with sparsity" are twice as high) with
sums in float32, of the SXM form where there are several; a rate of None means that the format has
no units of its own. Memory is what the driver leaves to a program, as torch reports it: a little
less than what the name says, and where errors are corrected in it (L40S, L4, A10, T4) less still.

Sources: NVIDIA's data sheets of H200 (11/2024), H100 (2023), A100 (6/2021), L40S, L4, A40, A10,
A6000, V100 (1/2020), T4, and the white papers of the Ada (RTX 4090) and Ampere (RTX 3090)
architectures.

Example::

    CARDS["a100-80gb"].rate("bfloat16")       # 312e12
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CARDS", "Card", "card_name"]


@dataclass(frozen=True)
class Card:
    """One accelerator.

    Attributes:
        title: Its name for people.
        half: Peak of products in float16, in TFLOP/s.
        brain: The same in bfloat16; None if it has no units for it.
        single: The same in float32, without TF32, which torch leaves out unless it is asked.
        bandwidth: Of its memory, in GB/s.
        gib: Memory for a program, in GiB.
    """

    title: str
    half: float
    brain: float | None
    single: float
    bandwidth: float
    gib: float

    @property
    def memory(self) -> int:
        """Bytes of memory."""
        return int(self.gib * 2**30)

    def rate(self, dtype: str) -> float:
        """Peak operations per second in a format; float32's where it has no units for it."""
        rates = {"float16": self.half, "bfloat16": self.brain}
        return 1e12 * (rates.get(dtype) or self.single)

    def remark(self, dtype: str) -> str | None:
        """What is to be said of a format on it."""
        if dtype == "bfloat16" and self.brain is None:
            return (
                f"{self.title} has no units for bfloat16: its hours are float32's; --dtype float16 "
                f"would be up to {self.half / self.single:.0f} times faster"
            )
        return None


CARDS: dict[str, Card] = {
    "h200": Card("H200", 989.4, 989.4, 66.9, 4800, 139.8),
    "h100-80gb": Card("H100 80GB", 989.4, 989.4, 66.9, 3350, 79.1),
    "a100-80gb": Card("A100 80GB", 312.0, 312.0, 19.5, 2039, 79.2),
    "a100-40gb": Card("A100 40GB", 312.0, 312.0, 19.5, 1555, 39.4),
    "l40s": Card("L40S", 362.0, 362.0, 91.6, 864, 44.4),
    "a40": Card("A40", 149.7, 149.7, 37.4, 696, 44.4),
    "a6000": Card("RTX A6000", 154.8, 154.8, 38.7, 768, 47.4),
    "rtx4090": Card("RTX 4090", 165.2, 165.2, 82.6, 1008, 23.5),
    "rtx3090": Card("RTX 3090", 71.0, 71.0, 35.6, 936, 23.6),
    "a10": Card("A10", 125.0, 125.0, 31.2, 600, 22.0),
    "l4": Card("L4", 121.0, 121.0, 30.3, 300, 22.0),
    "v100-32gb": Card("V100 32GB", 125.0, None, 15.7, 900, 31.7),
    "t4": Card("T4", 65.0, None, 8.1, 320, 14.6),
}


def card_name(name: str) -> str:
    """Refuse what is not in the table; upper case does not matter.

    Raises:
        ValueError: If it is not there.
    """
    if name.lower() not in CARDS:
        raise ValueError(
            f"{name!r} is no card that is known here; choose {', '.join(CARDS)}, or leave it out "
            "to plan for this machine"
        )
    return name.lower()
