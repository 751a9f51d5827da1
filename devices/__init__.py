"""The board: every chip outside the CPU. No device here knows a CPU, a VM or an absolute address."""
