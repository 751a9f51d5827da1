"""The calibration unit, by the name that this folder has for it. It is defined in `pysim_vm.bench_unit`."""

from pysim_vm.bench_unit import UNITS, Measurement, cpu_name, measure, unit_seconds

__all__ = ["UNITS", "Measurement", "cpu_name", "measure", "unit_seconds"]
