"""The exceptions and warnings of organum."""

from __future__ import annotations


class Error(Exception):
    """A failure, with its kind.

    Attributes:
        kind: stage and kind in snake case, such as ``"plan.budget"`` or ``"load.not_found"``.
        exit_code: the exit code of the command line for it.
    """

    def __init__(self, message: str, kind: str = "internal.internal", exit_code: int = 1) -> None:
        super().__init__(message)
        self.kind = kind
        self.exit_code = exit_code


class LoadError(Error):
    """The model cannot be opened, or does not say how scans are prepared (``load.*``)."""


class ScanError(Error):
    """The scan cannot be read, does not suit the model, or labels cannot be written
    (``volume.*``)."""


class OptionError(Error, ValueError):
    """The model does not do what an option asks for (``option.refused``)."""


class PlanError(Error):
    """There is no plan within the budget and the device's limits (``plan.*``).

    Attributes:
        smallest_budget: the smallest budget in bytes that works, for ``plan.budget`` and
            ``plan.host_budget``, else ``None``.
    """

    smallest_budget: int | None = None


class DeviceError(Error):
    """There is no such device, or it refused the plan (``engine.*``)."""


class RunError(Error):
    """The run did not finish (``run.*``)."""


class ScanWarning(UserWarning):
    """A reading of a scan, a model or labels that is legitimate, but may not be what is meant.

    ``warnings.simplefilter("error", organum.ScanWarning)`` refuses such scans before they are
    segmented.
    """


_STAGES: dict[str, type[Error]] = {
    "engine": DeviceError,
    "load": LoadError,
    "option": OptionError,
    "plan": PlanError,
    "run": RunError,
    "volume": ScanError,
}


def exception(kind: str, message: str, exit_code: int, smallest_budget: int | None) -> Error:
    """The exception for an error of the native half, which calls this."""
    made = _STAGES.get(kind.partition(".")[0], Error)(message, kind, exit_code)
    if isinstance(made, PlanError):
        made.smallest_budget = smallest_budget
    return made
