"""How studies are run and what they leave: seed by seed, each kept, then judged, drawn and written.

===================  ================================================================================================
`study.py`           `Study`, what one is
`run.py`             `run_study`, one run of it
`settings.py`        the settings of a study are the keyword-only parameters of its `measure`
`seeds.py`           one finished seed in a file of its own
`runner.py`          `Runner`: several studies, their seeds on several processes
`judging.py`         `Rule`, `Effect`: what decides a verdict, and its words; Holm's correction
`measured.py`        `Measured`, a number with its interval over seeds or over trials
`ranks.py`           `rank_correlation`, Spearman's
`result.py`          `StudyResult`, `Verdict`
`page.py`            a study's page
`figure_book.py`     `FigureBook`: the figures of a page as files and in it
`progress.py`        bars, lines or nothing while a study runs
`display.py`         a live table, lines or nothing while a network trains
`files.py`           folders that can be written, files that are whole or absent, strict JSON, versions
`threads.py`         one thread, so that numbers do not depend on how many there are
===================  ================================================================================================
"""

from .display import Display, Row, choose_display, gamma_columns, table_row
from .figure_book import FigureBook
from .files import plain, prepare_output, versions, write_json, write_text
from .judging import MATCH, SIGNIFICANT, VERDICTS, Effect, Rule, holm, unshown
from .measured import Measured, fraction_interval, geometric_interval, mean_interval
from .page import duration
from .progress import LOGGER, Progress, choose_progress
from .ranks import rank_correlation
from .result import StudyResult, Verdict
from .run import run_study
from .runner import Runner
from .study import Study, find_study
from .threads import one_thread

__all__ = [
    "LOGGER",
    "MATCH",
    "SIGNIFICANT",
    "VERDICTS",
    "Display",
    "Effect",
    "FigureBook",
    "Measured",
    "Progress",
    "Row",
    "Rule",
    "Runner",
    "Study",
    "StudyResult",
    "Verdict",
    "choose_display",
    "choose_progress",
    "duration",
    "find_study",
    "fraction_interval",
    "gamma_columns",
    "geometric_interval",
    "holm",
    "mean_interval",
    "one_thread",
    "plain",
    "prepare_output",
    "rank_correlation",
    "run_study",
    "table_row",
    "unshown",
    "versions",
    "write_json",
    "write_text",
]
