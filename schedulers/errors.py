"""What the samplers refuse: one tree, every text safe to show to a client."""

from __future__ import annotations


class SchedulerError(ValueError):
    """A scheduler, or an option of one, that cannot be drawn with; the text names the offending value."""

    #: Stable, machine-readable name.
    code = "scheduler_error"


class UnknownScheduler(SchedulerError):
    """No scheduler has this name."""

    code = "unknown_scheduler"

    def __init__(self, name: str) -> None:
        super().__init__(f"Unknown scheduler: {name[:100]!r}")
        self.name = name


class StepsRefused(SchedulerError):
    """A number of steps, or a strength, that leaves nothing to draw or more than the schedulers stay exact for."""

    code = "steps_refused"


class OptionRefused(SchedulerError):
    """An option that makes the update depend on the values it updates: thresholding, clipping, learned variance."""

    code = "option_refused"

    def __init__(self, name: str, option: str, value: object) -> None:
        super().__init__(f"{name} cannot be drawn with {option}={value!r}")
        self.name, self.option, self.value = name, option, value


class NotATable(SchedulerError):
    """The scheduler does something that its table does not reproduce."""

    code = "not_a_table"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot be compiled: {reason}")
        self.name = name
