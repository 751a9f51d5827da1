"""Exit-path benchmarks: workloads as small files, virtual cycles under a cost model, and measured units."""
