"""Floors: programs of a few lines that do the least a command of modelctl has to do.

They are started as a console script is: a stub imports the module, which is compiled, and calls
``run``. See ``benchmarks.processes``.
"""
