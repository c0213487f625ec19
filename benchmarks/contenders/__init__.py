"""The ways of running a component or a pipeline that the benchmarks compare, each in processes of its own."""
