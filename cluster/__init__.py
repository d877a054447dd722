"""The data centre: scenarios, virtual time across hosts, results and the command line. Imports every other floor."""
