"""The one command line, above every stage: `toxicity --help`."""
