"""Tiny real-mode guests that touch, sweep and execute guest memory.

``contract.h`` says how the machine has to be set up and what each guest answers;
``guests.image`` has the code and the labels, ``guests.mailbox`` the records.
"""
