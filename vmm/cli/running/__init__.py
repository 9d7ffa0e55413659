"""Scenarios run side by side, judged while others run, and handed on in order."""
