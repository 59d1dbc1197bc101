"""The page for people, under /ui/: its files, and the few endpoints that only it asks.

Scores come from `POST /score` like everybody's. Comments that a person labels stay in the browser.
"""
