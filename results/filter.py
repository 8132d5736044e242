"""Choosing by name: models, tasks and protocols, with patterns; what nothing fits is an error."""

# No postponed annotations here: the command line reads the types of Filter from another module's subclass.

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Annotated, TypeVar

from m2d_bench.output import Names
from m2d_bench.registry import unknown
from m2d_bench.results.papers.published import task_name
from m2d_bench.runs import Run

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What is shown.

    Args:
        models: Names or patterns (m2d_*) of models, separated by commas; all if empty.
        tasks: Names or patterns of tasks, their own or the papers' names; all if empty.
        protocol: linear, knn, finetune, superb, …; all if empty.
    """

    models: Annotated[tuple[str, ...], Names] = ()
    tasks: Annotated[tuple[str, ...], Names] = ()
    protocol: str = ""

    def runs(self, runs: Sequence[Run]) -> list[Run]:
        """The runs of these tasks and this protocol, of any model.

        Raises:
            UsageError: A task or protocol that no run has.
        """
        runs = chosen("protocol", [self.protocol] if self.protocol else [], runs, lambda run: [run.protocol])
        return chosen("task", self.tasks, runs, lambda run: [run.task["name"], task_name(run.task["name"])])


ALL = Filter()


def chosen(kind: str, patterns: Sequence[str], items: Sequence[T], names: Callable[[T], Iterable[str]]) -> list[T]:
    """The items of which a name fits one of the patterns, in any case; all of them without patterns.

    Args:
        kind: What the patterns name, for the error.
        patterns: Names, or patterns with * and ?.
        items: What is chosen from.
        names: The names of an item.

    Raises:
        UsageError: A pattern that fits no item, where there are any.
    """
    lowered = [[name.lower() for name in names(item)] for item in items]
    known = sorted({name for item in items for name in names(item)})
    for pattern in patterns:
        if items and not any(_fits(of_item, pattern.lower()) for of_item in lowered):
            raise unknown(kind, pattern, known)
    wanted = [pattern.lower() for pattern in patterns]
    return [
        item
        for item, of_item in zip(items, lowered, strict=True)
        if not wanted or any(_fits(of_item, pattern) for pattern in wanted)
    ]


def _fits(names: Iterable[str], pattern: str) -> bool:
    return any(name == pattern or fnmatch(name, pattern) for name in names)
