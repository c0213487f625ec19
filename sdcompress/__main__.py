"""`python -m sdcompress`."""

from sdcompress.cli import main

main()
