"""`python -m sdcompress`."""

from sdcompress.cli.main import main

main()
