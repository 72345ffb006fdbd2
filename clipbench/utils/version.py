"""The version of the package. Imports nothing, so that `import clipbench` costs nothing."""

__version__ = "0.1.0"
