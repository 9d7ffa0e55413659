"""More than one machine: commands of this program as tasks of a Dask cluster, one a host."""
