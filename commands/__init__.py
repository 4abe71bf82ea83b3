"""The commands of `cliad`: each parses its options, calls the pipeline and prints what it gave."""
