"""Write src/thurl/distillation/laplace_factors.json: round(2^32 exp(-1 / (64 exp(s / 16)))) for s from -73 to 80.

In decimal arithmetic of 60 digits, hence the same everywhere. The numbers are part of the `.ddr` format: a change of
one makes old files unreadable. `--check` compares (exit code 1 where they differ).
"""

from __future__ import annotations

import json
import sys
from decimal import Decimal, localcontext
from pathlib import Path


FILE = Path(__file__).resolve().parents[1] / "src" / "thurl" / "distillation" / "laplace_factors.json"


def factors() -> list[int]:
    """The 154 numbers, the smallest scale first."""
    with localcontext() as context:
        context.prec = 60
        scales = [(Decimal(s) / 16).exp() for s in range(-73, 81)]
        return [int(((-1 / (64 * scale)).exp() * 2**32).to_integral_value()) for scale in scales]


def main() -> int:
    """Write or check."""
    if "--check" in sys.argv[1:]:
        same = json.loads(FILE.read_text(encoding="utf-8")) == factors()
        print(f"{FILE.name} is {'as it must be' if same else 'changed'}")
        return 0 if same else 1
    lines = [factors()[i : i + 10] for i in range(0, 154, 10)]
    FILE.write_text("[" + ",\n".join(", ".join(map(str, line)) for line in lines) + "]\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
