"""Conformance of other programs: drive a port of llama2.c's run, find where it differs, shrink.

adapter     a command line for each run; ids and text out of whatever it prints
child       a program as a child process, with limits
case        one run as data: shape, weights, vocabulary, prompt, flags; its two files
weights     random models whose greedy ids depend on one part at a time
reference   what llama2.c's run prints for a case, and how sure each step is
judge       what a program printed, against that
properties  the table: what is checked, and what usually breaks it
session     the protocol: a property after those it needs, then shrinking, then the report
"""
