"""Sweeps: guests x configurations x seeds, run by whatever executor, with one result whatever that was."""

from pysim_vm.sweep.sweep import Job, JobResult, Results, Sweep, SweepError, SweepInterrupted

__all__ = ["Job", "JobResult", "Results", "Sweep", "SweepError", "SweepInterrupted"]
