"""The command line: the only home of Hydra; every command is a module with a `run(argv)`."""
