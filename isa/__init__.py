"""The silicon: an x86-64 CPU, its memory and its exits. It knows no device and no VM."""
