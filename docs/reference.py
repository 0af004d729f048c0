"""The API reference: a page has one entry for each of its public names. Run by `make docs`, which also loads this file
as a hook of mkdocs: then docstrings list their parameters."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import sorix_dist as sx
from sorix_dist.nn import functional, init

PAGES: dict[str, tuple[str, dict[str, ModuleType]]] = {
    "training": (
        "Ranks and training",
        {
            "sx": sx,
            "sx.metrics": sx.metrics,
            "sx.comm_hooks": sx.comm_hooks,
            "sx.autograd": sx.autograd,
            "sx.distributed": sx.distributed,
        },
    ),
    "tensors": ("Tensors and functions", {"sx": sx, "sx.linalg": sx.linalg}),
    "nn": (
        "Layers and losses",
        {
            "nn": sx.nn,
            "nn.functional": functional,
            "nn.utils": sx.nn.utils,
            "nn.utils.rnn": sx.nn.utils.rnn,
            "nn.init": init,
        },
    ),
    "optim": ("Optimizers and schedulers", {"optim": sx.optim, "optim.lr_scheduler": sx.optim.lr_scheduler}),
    "data": ("Data", {"utils.data": sx.utils.data}),
}
FUNCTIONS = {*sx.core.functions.__all__, *sx.core.compositions.__all__, "Size", "Tensor", "device"}


def public(module: ModuleType) -> list[str]:
    """The public names of a module: its `__all__`, or what it defines itself."""
    own = [name for name, x in vars(module).items() if getattr(x, "__module__", None) == module.__name__]
    return [name for name in getattr(module, "__all__", own) if not name.startswith("_")]


def listed(page: str, module: ModuleType) -> list[str]:
    """The functions and classes of a module that belong on a page; those of `sx` are spread over two."""
    names = [name for name in public(module) if inspect.isroutine(x := getattr(module, name)) or inspect.isclass(x)]
    if module is not sx:
        return names
    return [name for name in names if (name in FUNCTIONS) == (page == "tensors")]


def entry(name: str, module: ModuleType, thing: str) -> str:
    """The directive for one name of a module."""
    return f"::: {module.__name__}.{thing}\n    options: {{heading: {name}, toc_label: {name}}}\n"


def itemized(text: str, names: Iterable[str]) -> str:
    """A docstring as Markdown, in which what it says about each parameter, after "name: ", is an item of a list."""
    if not (names := "|".join(names)):
        return text
    beginning = re.compile(rf"(?:^|(?<=[.;:] ))((?:{names})(?:, (?:{names}))*): ")
    paragraphs = inspect.cleandoc(text).split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        before, *items = beginning.split(" ".join(paragraph.split()))
        if items and not paragraph.startswith("    "):
            pairs = zip(items[::2], items[1::2], strict=True)
            listed = "\n".join(f"- `{name}`: {meaning.strip().removesuffix(';')}" for name, meaning in pairs)
            paragraphs[i] = f"{before.strip()}\n\n{listed}".strip()
    return "\n\n".join(paragraphs)


def on_startup(**_: Any) -> None:
    """The hook: rewrites the docstrings of the listed functions and classes, and of their methods."""
    modules = [module for _, named in PAGES.values() for module in named.values()]
    listed = {getattr(module, name) for module in modules for name in public(module)}
    for thing in filter(lambda x: inspect.isfunction(x) or inspect.isclass(x), listed):
        methods = [x for name, x in vars(thing).items() if inspect.isfunction(x) and name[0] != "_"]
        for each in (thing, *(methods if inspect.isclass(thing) else ())):
            if each.__doc__:
                each.__doc__ = itemized(each.__doc__, _parameters(each))


def _parameters(thing: Any) -> list[str]:
    try:
        return [*inspect.signature(thing).parameters]
    except ValueError:  # classes that are made of C
        return []


def main() -> None:
    folder = Path(__file__).parent / "reference"
    folder.mkdir(exist_ok=True)
    for page, (title, modules) in PAGES.items():
        lines = [f"# {title}\n"]
        for prefix, module in modules.items():
            if len(modules) > 1:
                lines.append(f"## {prefix}\n")
            lines += [entry(f"{prefix}.{name}", module, name) for name in listed(page, module)]
        (folder / f"{page}.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
