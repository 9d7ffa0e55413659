"""Runs commands of this program as tasks of a Dask cluster, one at a time on each host."""
