"""Count the operations that torch runs."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts the operations inside the block that a GPU would have to launch.

    These are all but views and fresh memory. An operation counts as one even if it makes others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.by_name.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        free = func.is_view or name.startswith(("empty", "new_empty", "detach", "profiler::"))
        if not free and name != "promote_types":
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))
