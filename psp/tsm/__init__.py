"""The firmware as TSM: TIO commands, the device's security module at the other end, and what guests ask of it."""
