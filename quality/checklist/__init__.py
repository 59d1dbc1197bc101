"""Functional tests of a classifier: sentences whose right answer is plain, by capability.

The files beside this one are the suite; `suite` reads them, `judge` scores them. The idea of such
tests, and of invariance and direction, is from Ribeiro et al., "Beyond Accuracy: Behavioral Testing
of NLP Models with CheckList" (ACL 2020), and Röttger et al., "HateCheck" (ACL 2021); no sentence is
theirs.
"""

from quality.checklist.judge import bars, checked, rows, sentences_wrong
from quality.checklist.suite import Capability, load_suite

__all__ = ["Capability", "bars", "checked", "load_suite", "rows", "sentences_wrong"]
