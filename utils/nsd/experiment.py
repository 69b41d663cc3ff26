"""NSD's design and a subject's responses: which stimulus each trial showed, in which session.

Ids are 1-based in the files, 0-based in everything that is returned. Whatever is not as NSD's manual says raises a
Problem that names the key.
"""
import re
from dataclasses import dataclass

import numpy as np

from utils import cli, layout
from utils.errors import Problem
from utils.nsd import mat5, object_keys, text_tables


@dataclass(frozen=True)
class Design:
    """nsd_expdesign.mat, with 0-based ids.

    shared: (n,) int64 ids of the images that every subject was to see. images: (subjects, n) int64 ids by subject, or
    None. order: (trials,) int64 columns of `images` in the order of presentation, or None.
    """

    shared: np.ndarray
    images: np.ndarray | None
    order: np.ndarray | None


@dataclass(frozen=True)
class Responses:
    """responses.tsv, in scan order. stimuli: (trials,) int64 0-based ids. sessions: (trials,) int64, from 1."""

    stimuli: np.ndarray
    sessions: np.ndarray


def design(root):
    """NSD's design. Raises Problem for a file that is not one, or ids that are not 1-based."""
    name = root.name(object_keys.DESIGN_KEY)
    content = root.read(object_keys.DESIGN_KEY)
    try:
        fields = mat5.read(content, ("sharedix", "subjectim", "masterordering"))
    except ValueError as error:
        raise Problem(f"{name} is not a readable MAT file ({error})", object_keys.AGAIN) from error
    if "sharedix" not in fields:
        raise Problem(f"{name} has no sharedix", object_keys.AGAIN)
    shared = one_based(fields["sharedix"].ravel(), object_keys.STIMULI, f"sharedix of {name}")
    if len(np.unique(shared)) != len(shared):
        raise Problem(f"sharedix of {name} names an image twice", object_keys.AGAIN)
    images = order = None
    if "subjectim" in fields:
        # A row of zeros is a subject that is not in this copy of the design; its ids become -1.
        images = one_based(fields["subjectim"], object_keys.STIMULI, f"subjectim of {name}", least=0)
        if not np.isin(shared, images).all():
            raise Problem(f"sharedix of {name} names images that no subject saw by its subjectim",
                          "both must be 1-based: get the file from NSD again")
    if "masterordering" in fields and images is not None:
        order = one_based(fields["masterordering"].ravel(), images.shape[1], f"masterordering of {name}")
    return Design(shared, images, order)


def one_based(numbers, most, what, least=1):
    """0-based int64 of 1-based whole numbers, `least` … `most`."""
    if numbers.dtype.kind not in "iuf" or numbers.size == 0:
        raise Problem(f"{what} holds no numbers", object_keys.AGAIN)
    if not np.isfinite(numbers).all() or (numbers != np.round(numbers)).any():
        raise Problem(f"{what} holds something else than whole numbers", object_keys.AGAIN)
    low, high = int(numbers.min()), int(numbers.max())
    if low < least or high > most:
        raise Problem(f"{what} holds {low} … {high}, not 1-based numbers up to {most}", object_keys.AGAIN)
    return numbers.astype(np.int64) - 1


def responses(root, subject, against=None):
    """A subject's trials, in scan order.

    against: the Design that the stimuli must agree with. Raises Problem for ids that are not 1-based 73k ids, rows out
    of scan order, and stimuli that the design did not give this subject.
    """
    key = object_keys.responses_key(subject)
    name = root.name(key)
    rows = text_tables.table(root.read(key), "\t", name)
    wanted = ("SESSION", "RUN", "TRIAL", "73KID")
    found = {}
    for column in wanted:
        if column not in (rows[0] if rows else {}):
            if column in ("SESSION", "73KID"):
                raise Problem(f"{name} has no trials with a column {column}", object_keys.AGAIN)
            continue
        found[column] = np.array([text_tables.whole_number(row[column], f"{column} in line {line} of {name}")
                                  for line, row in enumerate(rows, start=2)])
    stimuli = one_based(found["73KID"], object_keys.STIMULI, f"73KID of {name}")
    _must_ascend([found[column] for column in wanted[:3] if column in found], name)
    if found["SESSION"].min() < 1:
        raise Problem(f"SESSION of {name} holds {found['SESSION'].min()}, but sessions count from 1", object_keys.AGAIN)
    if against is not None:
        _must_agree(stimuli, against, subject, name)
    return Responses(stimuli, found["SESSION"])


def _must_ascend(columns, name):
    """Rows must be in scan order, none twice: session, then run, then trial."""
    rank = np.lexsort(columns[::-1])
    misplaced = np.flatnonzero(rank != np.arange(len(rank)))
    if misplaced.size:
        raise Problem(f"line {misplaced[0] + 2} of {name} is out of scan order", object_keys.AGAIN)
    if len(columns) == 3:
        twice = np.flatnonzero(np.all([np.diff(column) == 0 for column in columns], axis=0))
        if twice.size:
            raise Problem(f"line {twice[0] + 3} of {name} repeats a trial", object_keys.AGAIN)


def _must_agree(stimuli, against, subject, name):
    """The design says which image each trial showed; 0-based ids, for one, do not pass."""
    if against.images is None:
        cli.say(f"warning: the design has no subjectim, so whether 73KID of {name} is 1-based cannot be checked")
        return
    row = layout.SUBJECTS.index(subject)
    if row >= len(against.images) or against.images[row].min() < 0:
        raise Problem(f"the design names no images of {subject}", "give a subject that it has")
    own = against.images[row]
    if against.order is not None and len(stimuli) <= len(against.order):
        wrong = np.flatnonzero(stimuli != own[against.order[:len(stimuli)]])
    else:
        wrong = np.flatnonzero(~np.isin(stimuli, own))
    if wrong.size:
        raise Problem(f"line {wrong[0] + 2} of {name} has 73KID {stimuli[wrong[0]] + 1}, which the design does not "
                      f"show there ({wrong.size} such lines)", "73KID must be 1-based: get the file from NSD again")


# which sessions


def sessions(root, subject, in_design, limit=None):
    """The sessions to read: those in the design (`in_design`, any order) that have betas, at most the first `limit`.

    Those without betas are reported on stderr. Raises Problem if there is none, or if betas have no rows in the design.
    """
    pattern = re.compile(re.escape(object_keys.betas_prefix(subject)) + r"betas_session(\d+)\.nii\.gz")
    there = {int(match[1]) for key, _ in root.list(object_keys.betas_prefix(subject))
             if (match := pattern.fullmatch(key))}
    wanted = sorted({int(session) for session in in_design})
    if not there:
        raise Problem(f"{root.name(object_keys.betas_prefix(subject))} holds no betas_sessionNN.nii.gz",
                      "check NSD_ROOT and --subject")
    unknown = sorted(there - set(wanted))
    if unknown:
        raise Problem(f"{subject} has betas of session {listed(unknown)} without rows in responses.tsv",
                      "get responses.tsv from NSD again")
    if limit is not None:
        if limit > len(wanted):
            cli.say(f"--sessions {limit}: {subject} has {len(wanted)}, so all of them")
        wanted = wanted[:limit]
    absent = [session for session in wanted if session not in there]
    if absent:
        cli.say(f"warning: {subject} has no betas of session {listed(absent)}, "
                f"{len(wanted) - len(absent)} of {len(wanted)} sessions are used")
    used = [session for session in wanted if session in there]
    if not used:
        raise Problem(f"{subject} has betas of none of the {len(wanted)} sessions wanted", "give a larger --sessions")
    return used


def listed(numbers):
    return ", ".join(str(number) for number in numbers)
