"""`python -m avlens` is the `avlens` command."""

from avlens.cli import main

main()
