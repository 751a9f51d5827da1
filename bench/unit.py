"""The calibration unit, under the name of this folder. It is defined in `pysim_vm.benchmark.unit`."""

from pysim_vm.benchmark.unit import UNITS, Measurement, cpu_name, measure, unit_seconds

__all__ = ["UNITS", "Measurement", "cpu_name", "measure", "unit_seconds"]
