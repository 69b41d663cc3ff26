"""The one exception that means "a person can mend this"."""


class Problem(Exception):
    """What is wrong and what to do about it; `cli.run` prints both on one line and exits with 1."""

    def __init__(self, what, todo):
        super().__init__(f"{what} — {todo}")
        self.what = what
        self.todo = todo

    def __reduce__(self):
        return Problem, (self.what, self.todo)  # so that it crosses from a worker process
