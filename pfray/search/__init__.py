"""Searchers: each file holds one way to choose the next plan, a subclass of ``base.PlanSearcher``."""
