"""`python -m stylekern`."""

from stylekern.cli import main

main()
