"""Faults of S3: which may pass, how long to wait, when to give up, and what to say."""
import http.client
import time

from utils import cli, lazy
from utils.errors import Problem

boto3, botocore, urllib3 = map(lazy.module, ("boto3", "botocore", "urllib3"))

TRIES = 6  # faults in a row before giving up
FIRST_WAIT = 0.5  # seconds before the first retry; doubles with each
LONGEST_WAIT = 30.0  # seconds
STALL = 60.0  # seconds without a byte before a connection counts as stalled
PROGRESS = 8 << 20  # bytes after which the count of faults starts again
TRANSIENT_CODES = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling",
                   "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}


def transient_errors():
    """What may pass when it is tried again."""
    return (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError,
            botocore.exceptions.IncompleteReadError, urllib3.exceptions.HTTPError, http.client.HTTPException,
            ConnectionError, TimeoutError)


class Fault(Exception):
    """A fault that may pass."""


class Unavailable(Problem):
    """An object cannot be had; what it holds is another matter."""


class Missing(Unavailable):
    def __init__(self, name):
        super().__init__(f"{name} does not exist", "check NSD_ROOT and the subject: get_data.py lists what is there")


class Denied(Unavailable):
    def __init__(self, name, todo="check NSD_ROOT: requests are anonymous, and it is not public"):
        super().__init__(f"access to {name} is denied", todo)


class Changed(Unavailable):
    def __init__(self, name):
        super().__init__(f"{name} changed while it was read", "run the same command again")


class Patience:
    """Counts faults in a row, waits longer after each, says so once, and gives up after TRIES.

    told: an event that several share, so that one of them says it. sleep: function of seconds.
    """

    def __init__(self, name, told=None, sleep=None):
        self.name = name
        self.faults, self.since = 0, 0
        self._told, self._sleep = told, sleep or time.sleep

    def moved(self, count):
        self.since += count
        if self.since >= PROGRESS:
            self.faults = 0

    def wait(self, what):
        """Raises Problem when there have been too many."""
        self.faults += 1
        self.since = 0
        if self.faults > TRIES:
            raise Unavailable(f"{self.name}: {what}, {TRIES} retries did not help",
                              "check the network and AWS_ENDPOINT_URL_S3, then run the same command again")
        pause = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self.faults - 1))
        if self.faults == 1 and not (self._told and self._told.is_set()):
            if self._told:
                self._told.set()
            cli.say(f"warning: {self.name}: {what}; retrying, up to {TRIES} times")
        self._sleep(pause)


def persist(name, request):
    """The answer to `request`, asked again after faults that may pass."""
    patience = Patience(name)
    while True:
        try:
            return request()
        except botocore.exceptions.ClientError as error:
            fault = judged(error, name)
            if not isinstance(fault, Fault):
                raise fault from error
        except transient_errors() as error:
            fault = error
        except botocore.parsers.ResponseParserError as error:
            fault = error
        patience.wait(words(fault))


def judged(error, name):
    """The exception that a client error stands for: a fault that may pass, or a Problem that names the key."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500 or status == 429 or code in TRANSIENT_CODES:
        return Fault(f"the server answered {status} {code}")
    if status == 404:
        return Missing(name)
    if status in (401, 403):
        return Denied(name)
    if status == 412:
        return Changed(name)
    return Unavailable(f"{name}: the server answered {status} {code}", "check NSD_ROOT and AWS_ENDPOINT_URL_S3")


def words(fault):
    if isinstance(fault, Fault):
        return str(fault)
    if isinstance(fault, (botocore.exceptions.ReadTimeoutError, urllib3.exceptions.ReadTimeoutError, TimeoutError)):
        return f"no byte for {STALL:g} s"
    if isinstance(fault, botocore.exceptions.EndpointConnectionError):
        return "no connection to the server"
    return f"the connection broke ({type(fault).__name__})"
