"""Figures and the self-contained HTML report.

`html` builds one page from plain sections and needs nothing but the standard library. `figures` draws with
matplotlib, imported when the first figure is made (the extra "report").
"""
