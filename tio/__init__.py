"""Chips on cards: the device's side and the link to it. Imports nothing of ours; knows no clock."""
