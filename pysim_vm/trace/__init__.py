"""Records, read: querying one, putting its rows into words, counting, comparing two, other formats.

What writes a record is `pysim_vm.recorder`; how it looks in a file is in `pysim_vm.record_format`.
"""

from pysim_vm.trace.trace import Trace

__all__ = ["Trace"]
