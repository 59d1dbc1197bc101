"""How far the stages of a recipe are: a bar for each that runs, or lines where nobody looks."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass, field

from tqdm import tqdm

_STEP = re.compile(r"step ([\d,]+) of ([\d,]+)\s*(.*)")
_SECONDS_BETWEEN_LINES = 15.0
_NAME_WIDTH, _TEXT_WIDTH = 12, 60


@dataclass
class Display:
    """Progress of all stages of one run."""

    stages: int
    done: int = 0
    _bars: dict[str, tqdm] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)

    def begin(self, stage: str, why: str) -> None:
        """A stage starts; `why` says what is not as it was."""
        if sys.stderr.isatty():
            places = {bar.pos for bar in self._bars.values()}
            place = next(p for p in range(self.stages) if -p not in places)
            form = "{desc:<12} {percentage:3.0f}% |{bar:20}| {elapsed}<{remaining} {postfix}"
            bar = tqdm(desc=stage, total=1, position=place, leave=False, bar_format=form)
            self._bars[stage] = bar
        else:
            self._say(f"{stage}: begins, {why}")

    def line(self, stage: str, text: str) -> None:
        """What the stage's command printed."""
        if bar := self._bars.get(stage):
            if step := _STEP.match(text):
                bar.total = int(step[2].replace(",", ""))
                bar.n = int(step[1].replace(",", ""))
                text = step[3]
            bar.set_postfix_str(text[:_TEXT_WIDTH], refresh=False)
            bar.refresh()
        elif time.monotonic() - self._last.get(stage, 0.0) >= _SECONDS_BETWEEN_LINES:
            self._last[stage] = time.monotonic()
            self._say(f"{stage}: {text}")

    def end(self, stage: str, words: str) -> None:
        """A stage ended, or need not run."""
        if bar := self._bars.pop(stage, None):
            bar.close()
        self.done += 1
        self._say(f"[{self.done}/{self.stages}] {stage:<{_NAME_WIDTH}} {words}")

    def close(self) -> None:
        """Take away the bars of what did not end."""
        for bar in self._bars.values():
            bar.close()

    def _say(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
