"""Tiny guests, in real mode and in 64-bit mode, that touch, sweep and execute guest memory.

``contract.h`` says how to set up the machine and what each guest answers;
``guests.image`` has the code and the labels, ``guests.mailbox`` the records,
``guests.windows`` the page tables of 64-bit mode.
"""
