"""Processes of the tests, forked from a warm one, which costs what a single start costs.

Where processes cannot be forked they start anew.
"""

import contextlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType

# Of what is forked. A number set by torch would be set again in each fork, which may fail.
os.environ.setdefault("OMP_NUM_THREADS", "1")
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    CONTEXT.set_forkserver_preload(["tests.warm"])


def begin(errors, function, arguments, variables):
    """Call the function with stderr in a file, and end the process with what it returns."""
    os.environ.update(variables)
    import tests.warm  # noqa: F401

    with open(errors, "w") as file, open(os.devnull, "w") as nothing:
        os.dup2(file.fileno(), 2)
        with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(file):
            try:
                code = function(*arguments)
            except BaseException as error:  # as an interpreter ends
                code = error.code if isinstance(error, SystemExit) else 1
                if code and not isinstance(error, SystemExit):
                    traceback.print_exc()
    sys.exit(code)


@contextlib.contextmanager
def no_main():
    """Hide what was started, a runner of tests, which the process would import."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class Process:
    """A process that calls a function of a module, and what it says on stderr.

    Args:
        function: A function of a module; its result is the exit code.
        *arguments: Of the function.
        **variables: Of the environment.
    """

    def __init__(self, function, *arguments, **variables):
        handle, name = tempfile.mkstemp(suffix=".err")
        os.close(handle)
        self.path = Path(name)
        self.process = CONTEXT.Process(
            target=begin, args=(name, function, arguments, variables), daemon=True
        )
        with no_main():
            self.process.start()

    def is_alive(self):
        return self.process.is_alive()

    def kill(self):
        self.process.kill()

    def signal(self, number):
        os.kill(self.process.pid, number)

    def ended(self, timeout=60):
        """Wait for the end, kill after a time, and return exit code and stderr."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        errors = self.path.read_text()
        self.path.unlink()
        return self.process.exitcode, errors
