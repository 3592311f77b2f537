"""Experiments that run from the command line, one file a study. Nothing but the command line imports them."""
