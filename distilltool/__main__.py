"""`python -m distilltool`."""

from distilltool.cli import main

main()
