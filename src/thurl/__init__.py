"""thurl: THUrstone Reinforcement Learning for vision-language models and the vision methods around it."""

from __future__ import annotations

from thurl.version import __version__


__all__ = ["__version__", "launch"]


def launch(path: str) -> bool:
    """Run the recipe at `path` with the overrides in `sys.argv[1:]`, then exit the interpreter.

    Executable recipes call this from their first line, which is why it is importable without torch.
    """
    from thurl.recipe.launch import launch as _launch

    return _launch(path)
