"""How notebooks come to show exit reasons. It draws nothing; `exits.reason_picture` does.

Exit reasons belong to the silicon, which knows neither the words for them nor HTML. So this layer gives their
base class the one method that a notebook looks for; nothing else calls it, and it is the same for every VM.
"""

from __future__ import annotations

from isa.exits import ExitReason


def show_reasons_in_notebooks() -> None:
    """Give ExitReason a `_repr_html_`."""

    def _repr_html_(reason: ExitReason) -> str:
        from pysim_vm.display.exits import reason_picture

        return reason_picture(reason)._repr_html_()

    ExitReason._repr_html_ = _repr_html_  # type: ignore[attr-defined]
