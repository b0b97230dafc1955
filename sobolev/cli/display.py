"""Progress of runs on a terminal: a bar per running run, a line per finished one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sobolev.recipe.plan import RunPlan
from sobolev.run import Result


class RichDisplay:
    """Shows runs with rich; without a terminal only lines remain."""

    def __init__(self, plans: Sequence[RunPlan], console: Console) -> None:
        self.plans = plans
        self.console = console
        self.tasks: dict[int, TaskID] = {}
        self._said: set[str] = set()
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            refresh_per_second=4,  # drawing takes more than a millisecond of the training's core
        )

    def __enter__(self) -> RichDisplay:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def _label(self, index: int) -> str:
        plan = self.plans[index]
        return f"{plan.variant}/seed-{plan.seed}"

    def started(self, index: int) -> None:
        """Add a bar."""
        self.tasks[index] = self.bars.add_task(self._label(index), total=None, note="preparing")

    def progress(self, index: int, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Move a bar."""
        loss = metrics.get("train/loss")
        note = "" if loss is None else f"loss {loss:.3g}"
        if step >= steps:
            note = "evaluating"
        self.bars.update(self.tasks[index], completed=step, total=steps, note=note)

    def finished(self, index: int, result: Result) -> None:
        """Replace a bar by a line."""
        if index in self.tasks:
            self.bars.remove_task(self.tasks.pop(index))
        marks = {"finished": "[green]done[/]", "present": "[dim]was finished before[/]"}
        mark = marks.get(result.status, f"[red]{result.status}[/]")
        self.bars.console.print(f"{self._label(index):32} {mark}")
        if result.message:
            self.bars.console.print(f"  {result.message}", markup=False, highlight=False)

    def say(self, text: str) -> None:
        """Print a line above the bars; what runs say alike (what is in their data) once, warnings every time."""
        if text in self._said and not text.startswith("warning"):
            return
        self._said.add(text)
        self.bars.console.print(text, markup=False, highlight=False)
