"""The search for the fastest mix of int8 and float whose AP stays within a budget.

* `grouping.group_products` puts products together that share a tensor's scale or lie in one
  residual block: they are int8 together or not at all.
* `measuring.Measuring` measures: how far the heads' outputs are off with one group int8 (the
  sensitivity), and the scores of a choice on labelled frames (`scoring.py`). Each result goes into
  a state file at once (`progress.py`), so a search that was stopped goes on where it was.
* `choosing.choose` gives back the most sensitive groups to float, as few as the budget allows.

Speed is counted in multiply-adds: a group is the more worth keeping int8 the more of these it has.
"""
