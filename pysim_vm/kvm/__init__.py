"""The same guest on the host's own CPU: Linux's KVM from Python, and the comparison of both exit streams."""
