"""`python -m tradebench`, for where the console script is not on the path."""

from tradebench.cli import main

main()
