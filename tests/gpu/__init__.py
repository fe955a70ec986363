"""Everything that needs a GPU, in one command of less than ten minutes.

`make gpu` runs it on a machine with one CUDA device; what it leaves are small files to commit, from
which tests on any machine then check predictions. `make gpu-kit` gathers beforehand what a machine
without a package index lacks. Nothing here is needed to use tradebench.
"""
