"""The sentence that a text is refused with: for the tests of every room."""

import pytest

from isa.assembler import AssemblerError, assemble


def error_of(text: str, bits: int = 64) -> str:
    with pytest.raises(AssemblerError) as caught:
        assemble(text, bits=bits)
    return str(caught.value)
