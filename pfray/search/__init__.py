"""Searchers: how the next plan is chosen. One a file, each a subclass of ``base.PlanSearcher``."""
