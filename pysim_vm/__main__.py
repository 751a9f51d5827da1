"""`python -m pysim_vm`: the command line without its script. Nothing else is here."""

from pysim_vm.cli import main

if __name__ == "__main__":
    main()
