"""The recipes that ship: in a source checkout `recipes/`, in an installed wheel `<prefix>/share/thurl/recipes/`."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from thurl.errors import UsageError
from thurl.messages import nearest


__all__ = ["find_recipe", "recipe_summary", "shipped_recipes"]


def _folder() -> Path | None:
    checkout = Path(__file__).resolve().parents[3]
    candidates = [checkout / "recipes"] if (checkout / "pyproject.toml").is_file() else []
    candidates += [Path(base) / "share" / "thurl" / "recipes" for base in (sysconfig.get_path("data"), sys.prefix)]
    return next((folder for folder in candidates if folder.is_dir()), None)


def shipped_recipes() -> dict[str, Path]:
    """Name (`visualquality_r1`, `tiny/visualquality_r1`) to file, sorted with the tiny ones last."""
    folder = _folder()
    if folder is None:
        return {}
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    return dict(sorted(names.items(), key=lambda item: (item[0].startswith("tiny/"), item[0])))


def find_recipe(name: str | os.PathLike[str]) -> Path:
    """A recipe by file name, or by the name of a shipped one.

    Raises:
        UsageError: neither exists.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    shipped = shipped_recipes()
    key = path.as_posix().removeprefix("./").removeprefix("recipes/").removesuffix(".yaml")
    if key in shipped:
        return shipped[key]
    raise UsageError(
        f"recipe {name} is neither a file nor a recipe that ships{nearest(key, shipped)} (`thurl list` shows them)"
    )


def recipe_summary(path: Path) -> str:
    """First comment of a recipe file, which says what it trains."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            return line.removeprefix("# ").strip()
        if line.strip() and not line.startswith("#"):
            break
    return ""
