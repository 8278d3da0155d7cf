"""The study file: its tables, what follows from it, reading and writing TOML, the files that ship."""
